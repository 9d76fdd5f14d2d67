/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * New images.  From the start of the file, in clusters: header, refcount table (sized for a full disk, so
 * that it never has to move), refcount blocks of what is written here, L1 table.
 */
#include "formats/create-options.h"
#include "formats/qcow2.h"

#include <string.h>

#define V2_LENGTH     72
#define V3_LENGTH     112
#define PREALLOCATION (64u << 20) /* bytes per step */

enum preallocation { PREALLOCATION_OFF, PREALLOCATION_METADATA, PREALLOCATION_FALLOC, PREALLOCATION_FULL };

const struct format_option qcow2_options[] = {
    {"cluster_size", "512 to 2M, a power of two (default 64k)"},
    {"compat", "0.10 (v2) or 1.1 (v3) (default 1.1)"},
    {"compression_type", "zlib or zstd (default zlib)"},
    {"extended_l2", "on or off: 32 subclusters per cluster (default off)"},
    {"lazy_refcounts", "on or off (default off)"},
    {"preallocation", "off, metadata, falloc or full (default off)"},
    {"refcount_bits", "1, 2, 4, 8, 16, 32 or 64 (default 16)"},
    {NULL, NULL},
};

/* What the options say and what follows from it; counts are of clusters. */
struct plan {
    struct qcow2 qcow2; /* header fields and geometry only */
    const char *backing_name, *backing_format;
    enum preallocation preallocation;
    uint64_t size;
    uint64_t data, tables, l1; /* of a full disk: data clusters, L2 tables; L1 table */
    uint64_t reftable, blocks; /* refcount table, blocks written at creation */
    uint64_t total;            /* written at creation */
};

static bool parse_cluster_size(const struct image_create_options *options, struct plan *plan, GError **error)
{
    uint64_t size;

    if (!create_option_size("qcow2", options, "cluster_size", "64k", 1u << QCOW2_MIN_CLUSTER_BITS,
                            1u << QCOW2_MAX_CLUSTER_BITS, &size, error))
        return false;
    plan->qcow2.cluster_bits = __builtin_ctzll(size);
    plan->qcow2.cluster_size = size;
    return true;
}

static int choose(const struct image_create_options *options, const char *key, const char *fallback,
                  const char *const *names, GError **error)
{
    return create_option_choose("qcow2", options, key, fallback, names, error);
}

static bool parse_choices(const struct image_create_options *options, struct plan *plan, GError **error)
{
    static const char *const compat[] = {"0.10", "v2", "1.1", "v3", NULL};
    static const char *const bits[] = {"1", "2", "4", "8", "16", "32", "64", NULL};
    static const char *const types[] = {"zlib", "zstd", NULL};
    static const char *const switches[] = {"off", "on", NULL};
    static const char *const preallocation[] = {"off", "metadata", "falloc", "full", NULL};
    int version = choose(options, "compat", "1.1", compat, error), order, type, extended, lazy, before;

    if (version < 0 || (order = choose(options, "refcount_bits", "16", bits, error)) < 0 ||
        (type = choose(options, "compression_type", "zlib", types, error)) < 0 ||
        (extended = choose(options, "extended_l2", "off", switches, error)) < 0 ||
        (lazy = choose(options, "lazy_refcounts", "off", switches, error)) < 0 ||
        (before = choose(options, "preallocation", "off", preallocation, error)) < 0)
        return false;
    plan->qcow2.version = version < 2 ? 2 : 3;
    plan->qcow2.refcount_order = order;
    plan->qcow2.compression = type;
    plan->qcow2.incompatible = (type ? QCOW2_COMPRESSION : 0) | (extended ? QCOW2_EXTENDED_L2 : 0);
    plan->qcow2.compatible = lazy ? QCOW2_LAZY : 0;
    plan->preallocation = before;
    return true;
}

static bool check_combination(const struct plan *plan, GError **error)
{
    const char *wrong = NULL;

    if (plan->qcow2.version < 3 &&
        (plan->qcow2.incompatible || plan->qcow2.compatible || plan->qcow2.refcount_order != 4))
        wrong = "compat=0.10 knows no extended_l2, lazy_refcounts, zstd or refcount_bits other than 16";
    else if (plan->qcow2.incompatible & QCOW2_EXTENDED_L2 && plan->qcow2.cluster_bits < 14)
        wrong = "extended_l2 needs a cluster_size of at least 16k";
    else if (plan->backing_name && plan->preallocation)
        wrong = "preallocation would hide the backing file";
    else if (plan->backing_name && !plan->backing_format)
        wrong = "a backing file needs its format";
    if (!wrong)
        return true;
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE, "qcow2: %s", wrong);
    return false;
}

/* The refcount table for a full disk: blocks count blocks and the table too, hence the fixed point. */
static void size_reftable(struct plan *plan)
{
    uint64_t per_block = UINT64_C(1) << plan->qcow2.block_bits, per_cluster = plan->qcow2.cluster_size / 8;
    uint64_t max = QCOW2_MAX_REFTABLE / plan->qcow2.cluster_size, blocks = 0, before;

    plan->reftable = 1;
    do {
        before = blocks;
        blocks = divide_up(1 + plan->data + plan->tables + plan->l1 + plan->reftable + blocks, per_block);
        plan->reftable = MIN(divide_up(blocks, per_cluster), max);
    } while (blocks != before);
    plan->blocks = 0;
    do {
        before = plan->blocks;
        plan->total = 1 + plan->reftable + plan->blocks + plan->l1;
        plan->blocks = divide_up(plan->total, per_block);
    } while (plan->blocks != before);
}

static bool make_plan(const struct image_create_options *options, struct plan *plan, GError **error)
{
    uint64_t entries;

    memset(plan, 0, sizeof *plan);
    plan->backing_name = options->backing_name;
    plan->backing_format = options->backing_format;
    if (!parse_cluster_size(options, plan, error) || !parse_choices(options, plan, error) ||
        !check_combination(plan, error))
        return false;
    qcow2_set_geometry(&plan->qcow2);
    plan->size = divide_up(options->size, 512) * 512; /* qcow2 disks consist of sectors */
    plan->data = divide_up(options->size, plan->qcow2.cluster_size);
    plan->tables = divide_up(plan->data, UINT64_C(1) << plan->qcow2.l2_bits);
    entries = plan->tables;
    if (entries > QCOW2_MAX_L1_BYTES / 8 || options->size > G_MAXINT64 - 511) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE,
                    "qcow2: a disk of %" G_GUINT64_FORMAT " bytes is too large for clusters of %u bytes",
                    options->size, plan->qcow2.cluster_size);
        return false;
    }
    plan->qcow2.l1_size = entries;
    plan->l1 = divide_up(entries * 8, plan->qcow2.cluster_size);
    size_reftable(plan);
    plan->qcow2.reftable_clusters = plan->reftable;
    plan->qcow2.reftable_offset = plan->qcow2.cluster_size;
    plan->qcow2.l1_offset = (1 + plan->reftable + plan->blocks) << plan->qcow2.cluster_bits;
    return true;
}

bool qcow2_child_unit(const struct image_create_options *options, uint32_t *unit, GError **error)
{
    struct plan plan;

    if (!make_plan(options, &plan, error))
        return false;
    *unit = plan.qcow2.sub_size;
    return true;
}

/* ---- the header --------------------------------------------------------------------------------- */

static void put32(GByteArray *bytes, uint32_t value)
{
    value = GUINT32_TO_BE(value);
    g_byte_array_append(bytes, (const guint8 *)&value, sizeof value);
}

static void put64(GByteArray *bytes, uint64_t value)
{
    value = GUINT64_TO_BE(value);
    g_byte_array_append(bytes, (const guint8 *)&value, sizeof value);
}

static void put_padded(GByteArray *bytes, const void *data, size_t length)
{
    static const guint8 zeros[8];

    g_byte_array_append(bytes, data, length);
    g_byte_array_append(bytes, zeros, -length & 7);
}

static void put_extension(GByteArray *bytes, uint32_t type, const void *data, size_t length)
{
    put32(bytes, type);
    put32(bytes, length);
    put_padded(bytes, data, length);
}

static void put_text(GByteArray *bytes, uint32_t type, const char *text)
{
    put_extension(bytes, type, text, strlen(text));
}

/* Only for the error messages of programs that do not know a feature. */
static const struct {
    uint8_t kind, bit; /* 0 incompatible, 1 compatible, 2 autoclear */
    char name[46];
} feature_names[] = {
    {0, 0, "dirty bit"},        {0, 1, "corrupt bit"},         {0, 2, "external data file"},
    {0, 3, "compression type"}, {0, 4, "extended L2 entries"}, {1, 0, "lazy refcounts"},
    {2, 0, "bitmaps"},          {2, 1, "raw external data"},
};

static void put_fixed(GByteArray *bytes, const struct plan *plan, uint64_t backing_offset)
{
    put32(bytes, QCOW2_MAGIC);
    put32(bytes, plan->qcow2.version);
    put64(bytes, backing_offset);
    put32(bytes, backing_offset ? strlen(plan->backing_name) : 0);
    put32(bytes, plan->qcow2.cluster_bits);
    put64(bytes, plan->size);
    put32(bytes, 0); /* crypt_method */
    put32(bytes, plan->qcow2.l1_size);
    put64(bytes, plan->qcow2.l1_offset);
    put64(bytes, plan->qcow2.reftable_offset);
    put32(bytes, plan->qcow2.reftable_clusters);
    put32(bytes, 0); /* nb_snapshots */
    put64(bytes, 0); /* snapshots_offset */
    if (plan->qcow2.version < 3)
        return;
    put64(bytes, plan->qcow2.incompatible);
    put64(bytes, plan->qcow2.compatible);
    put64(bytes, 0); /* autoclear_features */
    put32(bytes, plan->qcow2.refcount_order);
    put32(bytes, V3_LENGTH);
    put64(bytes, (uint64_t)plan->qcow2.compression << 56); /* one byte and padding */
}

static const char *name_for_qemu(const char *name)
{
    const struct format *format = format_by_name(name, NULL);

    return format && format->qemu_name ? format->qemu_name : name;
}

/* Header, extensions, backing file name; NULL: they do not fit into the first cluster. */
static GByteArray *make_header(const struct plan *plan, GError **error)
{
    g_autoptr(GByteArray) tail = g_byte_array_new(), bytes = g_byte_array_new();
    uint32_t fixed = plan->qcow2.version < 3 ? V2_LENGTH : V3_LENGTH;
    size_t name = plan->backing_name ? strlen(plan->backing_name) : 0;

    if (plan->backing_name)
        put_text(tail, QCOW2_EXT_BACKING, name_for_qemu(plan->backing_format));
    if (plan->qcow2.version >= 3 &&
        fixed + tail->len + 8 + sizeof feature_names + 8 + name <= plan->qcow2.cluster_size)
        put_extension(tail, QCOW2_EXT_FEATURES, feature_names, sizeof feature_names);
    put64(tail, 0); /* end of the extensions */
    put_fixed(bytes, plan, name ? fixed + tail->len : 0);
    g_byte_array_append(bytes, tail->data, tail->len);
    g_byte_array_append(bytes, (const guint8 *)plan->backing_name, name);
    if (name <= 1023 && bytes->len <= plan->qcow2.cluster_size) {
        guint length = bytes->len;

        g_byte_array_set_size(bytes, plan->qcow2.cluster_size);
        memset(bytes->data + length, 0, plan->qcow2.cluster_size - length);
        return g_steal_pointer(&bytes);
    }
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED,
                "qcow2: the backing file name of %zu bytes does not fit into the header of %u bytes", name,
                plan->qcow2.cluster_size);
    return NULL;
}

bool qcow2_measure(const struct image_create_options *options, uint64_t data, uint64_t *bytes, GError **error)
{
    g_autoptr(GByteArray) header = NULL;
    struct plan plan;
    uint64_t clusters, tables, blocks;

    if (!make_plan(options, &plan, error) || !(header = make_header(&plan, error)))
        return false;
    clusters = plan.preallocation ? plan.data : MIN(plan.data, divide_up(data, plan.qcow2.cluster_size));
    tables = MIN(plan.tables, clusters);
    blocks = divide_up(plan.total + clusters + tables, (UINT64_C(1) << plan.qcow2.block_bits) - 1);
    *bytes = (plan.total + clusters + tables + blocks) << plan.qcow2.cluster_bits;
    return true;
}

/* ---- writing it --------------------------------------------------------------------------------- */

static bool write_blocks(struct storage *storage, const struct plan *plan, GError **error)
{
    const struct qcow2 *qcow2 = &plan->qcow2;
    uint64_t per_block = UINT64_C(1) << qcow2->block_bits, first = 1 + plan->reftable;
    g_autofree uint8_t *block = g_malloc(qcow2->cluster_size);
    g_autofree uint64_t *entries = g_new(uint64_t, plan->blocks);

    for (uint64_t i = 0; i < plan->blocks; i++) {
        memset(block, 0, qcow2->cluster_size);
        for (uint64_t k = 0; k < per_block && i * per_block + k < plan->total; k++)
            qcow2_block_set(qcow2, block, k, 1);
        entries[i] = GUINT64_TO_BE((first + i) << qcow2->cluster_bits);
        if (!storage_pwrite(storage, block, qcow2->cluster_size, (first + i) << qcow2->cluster_bits, error))
            return false;
    }
    return storage_pwrite(storage, entries, plan->blocks * 8, qcow2->reftable_offset, error);
}

/* The header comes last: what is there before it is not an image. */
static bool write_image(struct storage *storage, const struct plan *plan, GByteArray *header, GError **error)
{
    uint64_t end = plan->total << plan->qcow2.cluster_bits;

    if (storage->growable && storage->size && !storage_resize(storage, 0, error))
        return false;
    if (!storage->growable && storage->size < end) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_NOSPACE,
                    "qcow2: the tables alone need %" G_GUINT64_FORMAT
                    " bytes, the storage has %" G_GUINT64_FORMAT,
                    end, storage->size);
        return false;
    }
    if (storage->growable ? !storage_resize(storage, end, error)
                          : !storage_zero(storage, 0, end, true, error))
        return false;
    return write_blocks(storage, plan, error) && storage_flush(storage, error) &&
           storage_pwrite(storage, header->data, header->len, 0, error) && storage_flush(storage, error);
}

static bool fill_placement(const struct extent *to, enum preallocation how, GError **error)
{
    if (how == PREALLOCATION_FULL) {
        g_autofree uint8_t *zeros = g_malloc0(1u << 20);

        for (uint64_t done = 0; done < to->length; done += 1u << 20) {
            if (!storage_pwrite(to->storage, zeros, MIN(1u << 20, to->length - done), to->host_offset + done,
                                error))
                return false;
        }
        return true;
    }
    /* What a used device holds must not become the content of the disk. */
    if (!to->storage->reads_zero && !to->storage->growable &&
        !storage_zero(to->storage, to->host_offset, to->length, false, error))
        return false;
    return how == PREALLOCATION_METADATA || storage_allocate(to->storage, to->host_offset, to->length, error);
}

static bool preallocate_all(struct image *image, enum preallocation how, GError **error)
{
    g_autoptr(GArray) placements = g_array_new(false, false, sizeof(struct placement));

    for (uint64_t offset = 0, length; offset < image->size; offset += length) {
        length = MIN(PREALLOCATION, image->size - offset);
        g_array_set_size(placements, 0);
        if (!qcow2_place(image, offset, length, placements, error))
            return false;
        for (guint i = 0; i < placements->len; i++) {
            if (!fill_placement(&g_array_index(placements, struct placement, i).to, how, error))
                return false;
        }
    }
    return qcow2_flush(image, error);
}

static bool preallocate(struct storage *storage, enum preallocation how, GError **error)
{
    struct image image = {
        .format = &format_qcow2, .storage = storage, .name = storage->name, .writable = true};
    bool ok;

    image.notices = g_ptr_array_new_with_free_func(g_free);
    ok = qcow2_open(&image, error);
    if (ok) {
        ok = preallocate_all(&image, how, error);
        qcow2_close(&image);
    }
    g_ptr_array_unref(image.notices);
    return ok;
}

bool qcow2_create(struct storage *storage, const struct image_create_options *options, GError **error)
{
    g_autoptr(GByteArray) header = NULL;
    struct plan plan;

    if (!make_plan(options, &plan, error))
        return false;
    header = make_header(&plan, error);
    return header && write_image(storage, &plan, header, error) &&
           (plan.preallocation == PREALLOCATION_OFF || preallocate(storage, plan.preallocation, error));
}
