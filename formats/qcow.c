/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * QCOW version 1, which is only read: QEMU block/qcow.c; VirtualBox still writes it.  Big endian.  There are
 * no counts, no flags and no word for zeros; the name of a backing file comes without its format.
 */
#include "formats/bytes.h"
#include "formats/image.h"
#include "formats/inflate.h"

#include <stdarg.h>
#include <string.h>

#define MAGIC         0x514649fbu
#define HEADER_LENGTH 48u
#define MAX_NAME      1023u
#define MAX_L1        (16u << 20) /* entries: 128 MiB */
#define MAX_SIZE      (UINT64_C(1) << 62)
#define CACHE_BYTES   (4u << 20) /* of L2 tables */

#define PACKED (UINT64_C(1) << 63) /* of an L2 entry; in qcow2 this bit means something else */

struct qcow {
    struct image *image;
    unsigned cluster_bits, l2_bits;
    uint64_t cluster_size;
    uint64_t l1_offset, l1_size;
    uint64_t *l1;
    GHashTable *tables; /* L1 index + 1 -> uint64_t *, in the file's byte order */
};

static bool G_GNUC_PRINTF(2, 3) refuse(GError **error, const char *format, ...)
{
    g_autofree char *text = NULL;
    va_list arguments;

    va_start(arguments, format);
    text = g_strdup_vprintf(format, arguments);
    va_end(arguments);
    return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "qcow: %s", text);
}

static bool qcow_probe(const uint8_t *head, size_t length, struct storage *storage)
{
    return length >= 8 && load_be32(head) == MAGIC && load_be32(head + 4) == 1;
}

/* ---- the header --------------------------------------------------------------------------------- */

static bool read_geometry(struct qcow *qcow, const uint8_t *header, GError **error)
{
    struct image *image = qcow->image;
    uint64_t size = load_be64(header + 24), span;

    qcow->cluster_bits = header[32];
    qcow->l2_bits = header[33];
    if (qcow->cluster_bits < 9 || qcow->cluster_bits > 16)
        return refuse(error, "cluster_bits %u is not between 9 and 16", qcow->cluster_bits);
    if (qcow->l2_bits < 6 || qcow->l2_bits > 13)
        return refuse(error, "l2_bits %u is not between 6 and 13", qcow->l2_bits);
    if (load_be32(header + 36))
        return refuse(error, "crypt_method %u: encrypted images are not read", load_be32(header + 36));
    qcow->cluster_size = UINT64_C(1) << qcow->cluster_bits;
    span = qcow->cluster_size << qcow->l2_bits;
    qcow->l1_size = size / span + (size % span != 0);
    if (size < 2 || size > MAX_SIZE || qcow->l1_size > MAX_L1)
        return refuse(error, "size %" G_GUINT64_FORMAT " is out of range: an L1 table has at most %u entries",
                      size, MAX_L1);
    image->size = size & ~UINT64_C(511); /* as QEMU: a tail of less than a sector is not visible */
    if (image->size != size)
        image_notice(image,
                     "virtual size %" G_GUINT64_FORMAT " is not a multiple of 512: the tail is not visible",
                     size);
    return true;
}

static bool read_backing_name(struct qcow *qcow, const uint8_t *header, GError **error)
{
    struct storage *storage = qcow->image->storage;
    uint64_t offset = load_be64(header + 8);
    uint32_t length = load_be32(header + 16);
    g_autofree char *name = NULL;

    if (offset == 0)
        return true;
    if (length == 0 || length > MAX_NAME)
        return refuse(error, "backing_file_size %u is not between 1 and %u", length, MAX_NAME);
    if (offset < HEADER_LENGTH || offset > storage->size || length > storage->size - offset)
        return refuse(error,
                      "backing_file_offset %" G_GUINT64_FORMAT ": a name of %u bytes is not inside the file",
                      offset, length);
    name = g_malloc0(length + 1);
    if (!storage_pread(storage, name, length, offset, error))
        return false;
    if (strlen(name) != length)
        return refuse(error, "there is a NUL byte in the name of the backing file");
    qcow->image->backing_name = g_steal_pointer(&name);
    return true;
}

static bool read_l1(struct qcow *qcow, const uint8_t *header, GError **error)
{
    struct storage *storage = qcow->image->storage;

    qcow->l1_offset = load_be64(header + 40);
    if (qcow->l1_offset < HEADER_LENGTH || qcow->l1_offset > storage->size ||
        qcow->l1_size * 8 > storage->size - qcow->l1_offset)
        return refuse(error,
                      "l1_table_offset %" G_GUINT64_FORMAT ": a table of %" G_GUINT64_FORMAT
                      " entries is not inside the file",
                      qcow->l1_offset, qcow->l1_size);
    qcow->l1 = g_try_new(uint64_t, qcow->l1_size);
    if (!qcow->l1)
        return refuse(error, "no memory for an L1 table of %" G_GUINT64_FORMAT " entries", qcow->l1_size);
    if (!storage_pread(storage, qcow->l1, qcow->l1_size * 8, qcow->l1_offset, error))
        return false;
    for (uint64_t i = 0; i < qcow->l1_size; i++)
        qcow->l1[i] = GUINT64_FROM_BE(qcow->l1[i]);
    return true;
}

static bool open_image(struct qcow *qcow, GError **error)
{
    struct image *image = qcow->image;
    uint8_t header[HEADER_LENGTH];

    if (image->writable)
        return refuse(error, "images of version 1 are only read");
    if (image->storage->size < sizeof header)
        return refuse(error, "the file of %" G_GUINT64_FORMAT " bytes is shorter than a header",
                      image->storage->size);
    if (!storage_pread(image->storage, header, sizeof header, 0, error))
        return false;
    if (load_be32(header) != MAGIC || load_be32(header + 4) != 1)
        return refuse(error, "magic 0x%08x and version %u are not those of qcow version 1", load_be32(header),
                      load_be32(header + 4));
    if (!read_geometry(qcow, header, error) || !read_backing_name(qcow, header, error) ||
        !read_l1(qcow, header, error))
        return false;
    qcow->tables = g_hash_table_new_full(g_direct_hash, g_direct_equal, NULL, g_free);
    image->granularity = image->cluster_size = image->packed_unit = qcow->cluster_size;
    return true;
}

static void qcow_close(struct image *image)
{
    struct qcow *qcow = g_steal_pointer(&image->opaque);

    g_clear_pointer(&qcow->tables, g_hash_table_unref);
    g_free(qcow->l1);
    g_free(qcow);
}

static bool qcow_open(struct image *image, GError **error)
{
    struct qcow *qcow = g_new0(struct qcow, 1);

    qcow->image = image;
    image->opaque = qcow;
    if (open_image(qcow, error))
        return true;
    qcow_close(image);
    g_clear_pointer(&image->backing_name, g_free);
    return false;
}

/* ---- the map ------------------------------------------------------------------------------------ */

static bool corrupt(GError **error, const char *what, uint64_t entry, uint64_t guest, const char *why)
{
    return blockmig_fail(error, BLOCKMIG_ERROR_FAILED,
                         "qcow: %s entry 0x%" G_GINT64_MODIFIER "x of guest offset %" G_GUINT64_FORMAT " %s",
                         what, entry, guest, why);
}

/* NULL: [host, +length) is inside the file and not on the header or the L1 table. */
static const char *check_place(const struct qcow *qcow, uint64_t host, uint64_t length)
{
    uint64_t size = qcow->image->storage->size, l1_end = qcow->l1_offset + qcow->l1_size * 8;

    if (host >= size || length > size - host)
        return "points behind the end of the file";
    if (host < HEADER_LENGTH || (host < l1_end && qcow->l1_offset < host + length))
        return "points into the header or the L1 table";
    return NULL;
}

static bool load_table(struct qcow *qcow, uint64_t index, const uint64_t **table, GError **error)
{
    uint64_t bytes = UINT64_C(8) << qcow->l2_bits, guest = index << (qcow->cluster_bits + qcow->l2_bits);
    const char *why = check_place(qcow, qcow->l1[index], bytes);
    g_autofree uint64_t *read = NULL;

    *table = g_hash_table_lookup(qcow->tables, GSIZE_TO_POINTER(index + 1));
    if (*table)
        return true;
    if (why)
        return corrupt(error, "L1", qcow->l1[index], guest, why);
    read = g_malloc(bytes);
    if (!storage_pread(qcow->image->storage, read, bytes, qcow->l1[index], error))
        return false;
    if (g_hash_table_size(qcow->tables) * bytes >= CACHE_BYTES)
        g_hash_table_remove_all(qcow->tables);
    *table = read;
    g_hash_table_insert(qcow->tables, GSIZE_TO_POINTER(index + 1), g_steal_pointer(&read));
    return true;
}

static const char *map_packed(const struct qcow *qcow, uint64_t entry, uint64_t skip, struct extent *out)
{
    unsigned shift = 63 - qcow->cluster_bits;

    out->status = EXTENT_PACKED;
    out->skip = skip;
    out->host_offset = entry & ((UINT64_C(1) << shift) - 1);
    out->packed_length = entry >> shift & (qcow->cluster_size - 1);
    return out->packed_length ? check_place(qcow, out->host_offset, out->packed_length)
                              : "has a compressed length of 0";
}

/* Of the last cluster only what the disk shows has to be there. */
static bool map_cluster(const struct qcow *qcow, uint64_t entry, struct extent *out, GError **error)
{
    uint64_t skip = out->offset & (qcow->cluster_size - 1), guest = out->offset - skip;
    const char *why = NULL;

    out->status = EXTENT_HOLE;
    if (entry & PACKED) {
        why = map_packed(qcow, entry, skip, out);
    } else if (entry) {
        out->status = EXTENT_DATA;
        out->host_offset = entry + skip;
        why = entry % 512 ? "is not aligned to a sector"
                          : check_place(qcow, entry, MIN(qcow->cluster_size, qcow->image->size - guest));
    }
    return !why || corrupt(error, "L2", entry, guest, why);
}

/* [offset, end) lies in the range of one table. */
static bool map_table(const struct qcow *qcow, const uint64_t *table, uint64_t offset, uint64_t end,
                      struct extent_sink *sink, bool *full, GError **error)
{
    uint64_t mask = (UINT64_C(1) << qcow->l2_bits) - 1;

    while (offset < end && !*full) {
        uint64_t next = MIN(end, ((offset >> qcow->cluster_bits) + 1) << qcow->cluster_bits);
        uint64_t entry = GUINT64_FROM_BE(table[offset >> qcow->cluster_bits & mask]);
        struct extent extent = {.offset = offset, .length = next - offset};

        if (!map_cluster(qcow, entry, &extent, error))
            return false;
        *full = !extent_sink_add(sink, &extent);
        offset = next;
    }
    return true;
}

static bool map_range(struct qcow *qcow, uint64_t offset, uint64_t end, struct extent_sink *sink,
                      GError **error)
{
    unsigned shift = qcow->cluster_bits + qcow->l2_bits;
    const uint64_t *table;
    bool full = false;

    while (offset < end && !full) {
        uint64_t index = offset >> shift, next = MIN(end, (index + 1) << shift);
        struct extent hole = {.offset = offset, .length = next - offset, .status = EXTENT_HOLE};

        if (qcow->l1[index] == 0)
            full = !extent_sink_add(sink, &hole);
        else if (!load_table(qcow, index, &table, error) ||
                 !map_table(qcow, table, offset, next, sink, &full, error))
            return false;
        offset = next;
    }
    return true;
}

static bool qcow_map(struct image *image, uint64_t offset, uint64_t length, struct extent *out, size_t max,
                     size_t *count, GError **error)
{
    struct extent_sink sink = {.out = out, .max = max, .storage = image->storage};
    GError *failure = NULL;

    map_range(image->opaque, offset, offset + length, &sink, &failure);
    return extent_sink_end(&sink, failure, count, error);
}

static bool qcow_unpack(struct image *image, uint64_t offset, const void *packed, size_t packed_length,
                        void *out, GError **error)
{
    const struct qcow *qcow = image->opaque;
    size_t got = 0;

    return (inflate_bytes(INFLATE_RAW, packed, packed_length, out, qcow->cluster_size, &got) ==
                INFLATE_WHOLE &&
            got == qcow->cluster_size) ||
           blockmig_fail(error, BLOCKMIG_ERROR_FAILED,
                         "qcow: the compressed cluster at guest offset %" G_GUINT64_FORMAT
                         " unpacks to %zu bytes, "
                         "not to %" G_GUINT64_FORMAT,
                         offset, got, qcow->cluster_size);
}

static void qcow_describe(struct image *image, image_describe_fn describe, void *opaque)
{
    const struct qcow *qcow = image->opaque;
    char text[24];

    g_snprintf(text, sizeof text, "%" G_GUINT64_FORMAT, qcow->cluster_size);
    describe(opaque, "cluster_size", text);
}

const struct format format_qcow = {
    .name = "qcow",
    .flags = FORMAT_BACKING | FORMAT_PACKED,
    .probe = qcow_probe,
    .open = qcow_open,
    .map = qcow_map,
    .unpack = qcow_unpack,
    .describe = qcow_describe,
    .close = qcow_close,
};
