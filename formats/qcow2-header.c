/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The qcow2 header (QEMU docs/interop/qcow2.txt, "Header"): everything that later calls rely on is
 * validated here, before anything is allocated by a number from the image.  Errors are REFUSED and name
 * format, field and value.
 */
#include "formats/qcow2.h"

#include <string.h>

#define V2_HEADER_LENGTH    72
#define V3_HEADER_LENGTH    104
#define MAX_BACKING_NAME    1023
#define MAX_EXTRA_LENGTH    1024
#define SNAPSHOT_FIXED      40
#define MAX_BITMAPS         65535
#define MAX_BITMAP_DIR      (64u << 20)
#define FEATURE_NAME_LENGTH 46

struct header_bytes {
    const uint8_t *bytes; /* the first cluster, or all of a shorter file */
    size_t length;
};

static uint32_t get32(const struct header_bytes *header, size_t offset)
{
    uint32_t value;

    memcpy(&value, header->bytes + offset, sizeof value);
    return GUINT32_FROM_BE(value);
}

static uint64_t get64(const struct header_bytes *header, size_t offset)
{
    return load_be64(header->bytes + offset);
}

bool qcow2_refuse(GError **error, const char *format, ...)
{
    g_autofree char *text = NULL;
    va_list arguments;

    va_start(arguments, format);
    text = g_strdup_vprintf(format, arguments);
    va_end(arguments);
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED, "qcow2: %s", text);
    return false;
}

bool qcow2_probe(const uint8_t *head, size_t length, struct storage *storage)
{
    const struct header_bytes header = {head, length};

    /* Whatever the version: what open refuses here must not be taken for a raw disk. */
    return length >= V2_HEADER_LENGTH && get32(&header, 0) == QCOW2_MAGIC;
}

bool qcow2_check_table(struct qcow2 *qcow2, const char *field, uint64_t offset, uint64_t length,
                       GError **error)
{
    if (offset % qcow2->cluster_size)
        return qcow2_refuse(error, "%s 0x%" G_GINT64_MODIFIER "x is not aligned to the cluster size %u",
                            field, offset, qcow2->cluster_size);
    if (offset > qcow2->storage->size || length > qcow2->storage->size - offset)
        return qcow2_refuse(error,
                            "%s 0x%" G_GINT64_MODIFIER "x + %" G_GUINT64_FORMAT
                            " bytes lies outside the file of %" G_GUINT64_FORMAT " bytes",
                            field, offset, length, qcow2->storage->size);
    if (length > 0 && offset == 0)
        return qcow2_refuse(error, "%s 0 would overlap the header", field);
    return true;
}

/* The fixed part up to offset 72, which both versions have. */
static bool read_common(struct qcow2 *qcow2, const struct header_bytes *header, GError **error)
{
    uint32_t bits = get32(header, 20), crypt = get32(header, 32);

    if (bits < QCOW2_MIN_CLUSTER_BITS || bits > QCOW2_MAX_CLUSTER_BITS)
        return qcow2_refuse(error, "cluster_bits %u is not between %d and %d", bits, QCOW2_MIN_CLUSTER_BITS,
                            QCOW2_MAX_CLUSTER_BITS);
    qcow2->cluster_bits = bits;
    qcow2->cluster_size = 1u << bits;
    if (crypt == 1)
        return qcow2_refuse(error, "crypt_method 1: the image is encrypted with AES, which is not supported");
    if (crypt == 2)
        return qcow2_refuse(error,
                            "crypt_method 2: the image is encrypted with LUKS, which is not supported");
    if (crypt)
        return qcow2_refuse(error, "crypt_method %u is unknown", crypt);
    qcow2->refcount_order = 4;
    qcow2->header_length = V2_HEADER_LENGTH;
    return true;
}

/* The name that the image's own feature name table gives to a feature bit; NULL: none. */
static char *feature_name(const struct header_bytes *header, size_t start, unsigned bit)
{
    for (size_t at = start; at + 8 <= header->length;) {
        uint32_t type = get32(header, at), length = get32(header, at + 4);

        at += 8;
        if (type == QCOW2_EXT_END || length > header->length - at)
            return NULL;
        for (uint32_t i = 0; type == QCOW2_EXT_FEATURES && i + 48 <= length; i += 48) {
            const uint8_t *entry = header->bytes + at + i;

            if (entry[0] == 0 && entry[1] == bit)
                return g_strndup((const char *)entry + 2, FEATURE_NAME_LENGTH);
        }
        at += (length + 7u) & ~7u;
    }
    return NULL;
}

static bool check_incompatible(struct qcow2 *qcow2, const struct header_bytes *header, GError **error)
{
    uint64_t known = QCOW2_DIRTY | QCOW2_CORRUPT | QCOW2_DATA_FILE | QCOW2_COMPRESSION | QCOW2_EXTENDED_L2;
    uint64_t unknown = qcow2->incompatible & ~known;
    g_autofree char *name = NULL, *printable = NULL;
    unsigned bit;

    if (!unknown)
        return true;
    bit = __builtin_ctzll(unknown);
    name = feature_name(header, qcow2->header_length, bit);
    printable = name ? g_strescape(name, NULL) : NULL;
    return qcow2_refuse(error,
                        "incompatible_features 0x%" G_GINT64_MODIFIER "x: bit %u (%s) is not supported",
                        qcow2->incompatible, bit, printable && *printable ? printable : "unnamed");
}

static bool check_compression(struct qcow2 *qcow2, unsigned type, GError **error)
{
    bool flagged = qcow2->incompatible & QCOW2_COMPRESSION;

    if (type > QCOW2_ZSTD)
        return qcow2_refuse(error, "compression_type %u is unknown", type);
    if (flagged != (type != 0))
        return qcow2_refuse(error, "compression_type %u contradicts incompatible feature bit 3 (%d)", type,
                            flagged);
    qcow2->compression = type;
    return true;
}

static bool read_version3(struct qcow2 *qcow2, const struct header_bytes *header, GError **error)
{
    if (header->length < V3_HEADER_LENGTH)
        return qcow2_refuse(error, "the file of %zu bytes is shorter than its header", header->length);
    qcow2->incompatible = get64(header, 72);
    qcow2->compatible = get64(header, 80);
    qcow2->autoclear = get64(header, 88);
    qcow2->refcount_order = get32(header, 96);
    qcow2->header_length = get32(header, 100);
    if (qcow2->header_length < V3_HEADER_LENGTH || qcow2->header_length % 8 ||
        qcow2->header_length > header->length)
        return qcow2_refuse(error, "header_length %u is not a multiple of 8 between %d and %zu",
                            qcow2->header_length, V3_HEADER_LENGTH, header->length);
    if (!check_incompatible(qcow2, header, error))
        return false;
    if (qcow2->refcount_order > 6)
        return qcow2_refuse(error, "refcount_order %u is larger than 6", qcow2->refcount_order);
    if (qcow2->incompatible & QCOW2_EXTENDED_L2 && qcow2->cluster_bits < 14)
        return qcow2_refuse(error, "cluster_bits %u is too small for extended L2 entries (at least 14)",
                            qcow2->cluster_bits);
    return check_compression(qcow2, qcow2->header_length > V3_HEADER_LENGTH ? header->bytes[104] : 0, error);
}

/* What follows from cluster_bits, refcount_order and the feature bits. */
void qcow2_set_geometry(struct qcow2 *qcow2)
{
    bool extended = qcow2->incompatible & QCOW2_EXTENDED_L2;

    qcow2->words = extended ? 2 : 1;
    qcow2->l2_bits = qcow2->cluster_bits - (extended ? 4 : 3);
    qcow2->sub_count = extended ? 32 : 1;
    qcow2->sub_size = qcow2->cluster_size / qcow2->sub_count;
    qcow2->block_bits = qcow2->cluster_bits + 3 - qcow2->refcount_order;
}

static bool read_tables(struct qcow2 *qcow2, const struct header_bytes *header, GError **error)
{
    uint64_t size = get64(header, 24);
    unsigned l1_shift = qcow2->cluster_bits + qcow2->l2_bits;
    uint64_t needed = (size >> l1_shift) + ((size & ((UINT64_C(1) << l1_shift) - 1)) != 0);

    qcow2->l1_size = get32(header, 36);
    qcow2->l1_offset = get64(header, 40);
    qcow2->reftable_offset = get64(header, 48);
    qcow2->reftable_clusters = get32(header, 56);
    if (qcow2->l1_size > QCOW2_MAX_L1_BYTES / 8)
        return qcow2_refuse(error, "l1_size %u is larger than %u entries", qcow2->l1_size,
                            QCOW2_MAX_L1_BYTES / 8);
    if (qcow2->l1_size < needed)
        return qcow2_refuse(error,
                            "l1_size %u: the L1 table is too small for a disk of %" G_GUINT64_FORMAT
                            " bytes (%" G_GUINT64_FORMAT " entries)",
                            qcow2->l1_size, size, needed);
    if (!qcow2_check_table(qcow2, "l1_table_offset", qcow2->l1_offset, qcow2->l1_size * UINT64_C(8), error))
        return false;
    if (qcow2->reftable_clusters == 0 || qcow2->reftable_clusters > QCOW2_MAX_REFTABLE / qcow2->cluster_size)
        return qcow2_refuse(error, "refcount_table_clusters %u is not between 1 and %u",
                            qcow2->reftable_clusters, QCOW2_MAX_REFTABLE / qcow2->cluster_size);
    if (!qcow2_check_table(qcow2, "refcount_table_offset", qcow2->reftable_offset,
                           (uint64_t)qcow2->reftable_clusters * qcow2->cluster_size, error))
        return false;
    qcow2->image->size = size & ~UINT64_C(511); /* as QEMU: a tail of less than a sector is not visible */
    if (qcow2->external)                        /* a raw one alone shows the whole disk */
        image_add_data_file(qcow2->image->data_files, qcow2->data_name,
                            qcow2->autoclear & QCOW2_RAW_DATA ? qcow2->image->size : 0);
    if (qcow2->image->size != size)
        image_notice(qcow2->image,
                     "virtual size %" G_GUINT64_FORMAT " is not a multiple of 512: the tail is not visible",
                     size);
    return true;
}

static bool read_backing_name(struct qcow2 *qcow2, const struct header_bytes *header, GError **error)
{
    uint64_t offset = get64(header, 8);
    uint32_t length = get32(header, 16);

    if (offset == 0)
        return true;
    if (offset > header->length || offset < qcow2->header_length)
        return qcow2_refuse(
            error, "backing_file_offset %" G_GUINT64_FORMAT " is not in the first cluster behind the header",
            offset);
    if (length > MAX_BACKING_NAME || length > header->length - offset)
        return qcow2_refuse(error, "backing_file_size %u is too large (at most %d, inside the first cluster)",
                            length, MAX_BACKING_NAME);
    if (length == 0)
        return true;
    if (memchr(header->bytes + offset, 0, length))
        return qcow2_refuse(error, "the backing file name contains a NUL byte");
    qcow2->image->backing_name = g_strndup((const char *)header->bytes + offset, length);
    return true;
}

static bool read_bitmaps_extension(struct qcow2 *qcow2, const struct header_bytes *header, size_t at,
                                   uint32_t length, GError **error)
{
    if (length != 24)
        return qcow2_refuse(error, "the bitmaps extension has %u bytes instead of 24", length);
    if (!(qcow2->autoclear & QCOW2_BITMAPS))
        return true; /* stale: a writer that knows no bitmaps was here */
    qcow2->bitmap_count = get32(header, at);
    qcow2->bitmaps_length = get64(header, at + 8);
    qcow2->bitmaps_offset = get64(header, at + 16);
    if (qcow2->bitmap_count == 0 || qcow2->bitmap_count > MAX_BITMAPS)
        return qcow2_refuse(error, "nb_bitmaps %u is not between 1 and %d", qcow2->bitmap_count, MAX_BITMAPS);
    if (qcow2->bitmaps_length > MAX_BITMAP_DIR ||
        qcow2->bitmaps_length < (uint64_t)qcow2->bitmap_count * QCOW2_BITMAP_FIXED)
        return qcow2_refuse(error, "bitmap_directory_size %" G_GUINT64_FORMAT " is impossible for %u bitmaps",
                            qcow2->bitmaps_length, qcow2->bitmap_count);
    return qcow2_check_table(qcow2, "bitmap_directory_offset", qcow2->bitmaps_offset, qcow2->bitmaps_length,
                             error);
}

static bool read_name(const struct header_bytes *header, size_t at, uint32_t length, const char *what,
                      char **name, GError **error)
{
    if (length > MAX_BACKING_NAME)
        return qcow2_refuse(error, "the %s of %u bytes is longer than %d", what, length, MAX_BACKING_NAME);
    if (memchr(header->bytes + at, 0, length))
        return qcow2_refuse(error, "the %s contains a NUL byte", what);
    g_free(*name);
    *name = g_strndup((const char *)header->bytes + at, length);
    return true;
}

static bool read_extension(struct qcow2 *qcow2, const struct header_bytes *header, uint32_t type, size_t at,
                           uint32_t length, GError **error)
{
    switch (type) {
    case QCOW2_EXT_BACKING:
        return read_name(header, at, length, "backing format name", &qcow2->image->backing_format, error);
    case QCOW2_EXT_DATA:
        return read_name(header, at, length, "external data file name", &qcow2->data_name, error);
    case QCOW2_EXT_BITMAPS:
        return read_bitmaps_extension(qcow2, header, at, length, error);
    case QCOW2_EXT_CRYPTO:
        return qcow2_refuse(error, "there is an encryption header extension but crypt_method is 0");
    default:
        return true; /* unknown ones are kept: the header is only ever changed in place */
    }
}

static bool read_extensions(struct qcow2 *qcow2, const struct header_bytes *header, GError **error)
{
    uint64_t backing = get64(header, 8);
    size_t end = backing ? backing : header->length, at = qcow2->header_length;
    g_autoptr(GHashTable) seen = g_hash_table_new(g_direct_hash, g_direct_equal);

    while (at + 8 <= end) {
        uint32_t type = get32(header, at), length = get32(header, at + 4);

        if (type == QCOW2_EXT_END)
            return true;
        at += 8;
        if (length > end - at)
            return qcow2_refuse(error, "header extension 0x%08x of %u bytes runs past %zu", type, length,
                                end);
        if (!g_hash_table_add(seen, GUINT_TO_POINTER(type)))
            return qcow2_refuse(error, "header extension 0x%08x appears twice", type);
        if (!read_extension(qcow2, header, type, at, length, error))
            return false;
        at += ((size_t)length + 7) & ~(size_t)7;
    }
    return backing || header->length < qcow2->cluster_size ||
           qcow2_refuse(error, "the header extensions have no end mark");
}

/* Whether the file may be opened is for the chain's policy to say. */
static bool check_data_file(struct qcow2 *qcow2, GError **error)
{
    struct image *image = qcow2->image;
    bool raw = qcow2->autoclear & QCOW2_RAW_DATA;

    qcow2->external = qcow2->incompatible & QCOW2_DATA_FILE;
    if (!qcow2->external)
        return !raw || qcow2_refuse(error,
                                    "autoclear_features 0x%" G_GINT64_MODIFIER "x: the data file is raw, but "
                                    "there is none",
                                    qcow2->autoclear);
    if (raw && image->backing_name)
        return qcow2_refuse(error, "a raw external data file and a backing file exclude each other");
    if (!qcow2->data_name || !*qcow2->data_name)
        return qcow2_refuse(error, "the image keeps its data in an external file, which it does not name");
    if (image->writable)
        return qcow2_refuse(error, "the image keeps its data in an external file; such images are only read");
    return true;
}

/* One entry of the snapshot table: qcow2.txt, "Snapshots". */
static bool read_snapshot(struct qcow2 *qcow2, unsigned number, uint64_t *at, GError **error)
{
    uint8_t fixed[SNAPSHOT_FIXED];
    const struct header_bytes entry = {fixed, sizeof fixed};
    struct qcow2_snapshot snapshot;
    uint64_t length;
    uint32_t extra;

    if (!storage_pread(qcow2->storage, fixed, sizeof fixed, *at, error)) {
        g_prefix_error(error, "qcow2: snapshot %u: ", number);
        return false;
    }
    snapshot.l1_offset = get64(&entry, 0);
    snapshot.l1_size = get32(&entry, 8);
    extra = get32(&entry, 36);
    length = SNAPSHOT_FIXED + (uint64_t)extra + GUINT16_FROM_BE(*(uint16_t *)(fixed + 12)) +
             GUINT16_FROM_BE(*(uint16_t *)(fixed + 14));
    if (extra > MAX_EXTRA_LENGTH)
        return qcow2_refuse(error, "snapshot %u: extra_data_size %u is larger than %d", number, extra,
                            MAX_EXTRA_LENGTH);
    if (length > qcow2->storage->size - *at)
        return qcow2_refuse(error,
                            "snapshot %u: %" G_GUINT64_FORMAT " bytes at 0x%" G_GINT64_MODIFIER
                            "x run past the end of the file",
                            number, length, *at);
    *at += (length + 7) & ~UINT64_C(7);
    if (*at - qcow2->snapshots_offset > QCOW2_MAX_SNAPSHOT_META)
        return qcow2_refuse(error, "the snapshot table is larger than %u bytes", QCOW2_MAX_SNAPSHOT_META);
    if (snapshot.l1_size > QCOW2_MAX_L1_BYTES / 8)
        return qcow2_refuse(error, "snapshot %u: l1_size %u is larger than %u entries", number,
                            snapshot.l1_size, QCOW2_MAX_L1_BYTES / 8);
    if (!qcow2_check_table(qcow2, "snapshot l1_table_offset", snapshot.l1_offset,
                           snapshot.l1_size * UINT64_C(8), error))
        return false;
    g_array_append_val(qcow2->snapshots, snapshot);
    return true;
}

static bool read_snapshots(struct qcow2 *qcow2, const struct header_bytes *header, GError **error)
{
    uint32_t count = get32(header, 60);
    uint64_t at = get64(header, 64);

    qcow2->snapshots = g_array_new(false, false, sizeof(struct qcow2_snapshot));
    qcow2->snapshots_offset = at;
    if (count > QCOW2_MAX_SNAPSHOTS)
        return qcow2_refuse(error, "nb_snapshots %u is larger than %u", count, QCOW2_MAX_SNAPSHOTS);
    if (!qcow2_check_table(qcow2, "snapshots_offset", at, count * (uint64_t)SNAPSHOT_FIXED, error))
        return false;
    for (uint32_t i = 0; i < count; i++) {
        if (!read_snapshot(qcow2, i, &at, error))
            return false;
    }
    qcow2->snapshots_length = at - qcow2->snapshots_offset;
    return true;
}

bool qcow2_read_header(struct qcow2 *qcow2, GError **error)
{
    size_t size = MIN(qcow2->storage->size, 1u << QCOW2_MAX_CLUSTER_BITS);
    g_autofree uint8_t *bytes = g_malloc0(MAX(size, 4096));
    struct header_bytes header = {bytes, MIN(size, 4096)};

    if (size < V2_HEADER_LENGTH)
        return qcow2_refuse(error, "the file of %zu bytes is shorter than a header", size);
    if (!storage_pread(qcow2->storage, bytes, header.length, 0, error))
        return false;
    qcow2->version = get32(&header, 4);
    if (get32(&header, 0) != QCOW2_MAGIC)
        return qcow2_refuse(error, "magic 0x%08x is not that of qcow2", get32(&header, 0));
    if (qcow2->version != 2 && qcow2->version != 3)
        return qcow2_refuse(error, "version %u is neither 2 nor 3", qcow2->version);
    if (!read_common(qcow2, &header, error))
        return false;
    header.length = MIN(size, qcow2->cluster_size);
    if (!storage_pread(qcow2->storage, bytes, header.length, 0, error))
        return false;
    if (qcow2->version == 3 && !read_version3(qcow2, &header, error))
        return false;
    qcow2_set_geometry(qcow2);
    return read_backing_name(qcow2, &header, error) && read_extensions(qcow2, &header, error) &&
           check_data_file(qcow2, error) && read_tables(qcow2, &header, error) &&
           read_snapshots(qcow2, &header, error) && qcow2_read_bitmaps(qcow2, error);
}
