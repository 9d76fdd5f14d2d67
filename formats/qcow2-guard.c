/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What must be known before the first change: where metadata lies.  A hostile or damaged image may map
 * guest data onto its own tables or have tables that overlap; both are found before anything is written.
 */
#include "formats/qcow2.h"

static void add_fixed(struct qcow2 *qcow2, uint64_t offset, uint64_t length)
{
    struct qcow2_range range = {offset >> qcow2->cluster_bits,
                                (length + qcow2->cluster_size - 1) >> qcow2->cluster_bits};

    if (length)
        g_array_append_val(qcow2->fixed, range);
}

static gint range_compare(gconstpointer a, gconstpointer b)
{
    const struct qcow2_range *left = a, *right = b;

    return left->first < right->first ? -1 : left->first > right->first;
}

/* Is the cluster in one of the sorted ranges? */
static bool is_fixed(const struct qcow2 *qcow2, uint64_t cluster)
{
    guint low = 0, high = qcow2->fixed->len;

    while (low < high) {
        guint middle = low + (high - low) / 2;
        const struct qcow2_range *range = &g_array_index(qcow2->fixed, struct qcow2_range, middle);

        if (cluster < range->first)
            high = middle;
        else if (cluster - range->first < range->count)
            return true;
        else
            low = middle + 1;
    }
    return false;
}

bool qcow2_guard(struct qcow2 *qcow2, uint64_t cluster, GError **error)
{
    if (!g_hash_table_contains(qcow2->metadata, GSIZE_TO_POINTER(cluster)) && !is_fixed(qcow2, cluster))
        return true;
    return qcow2_corrupt(qcow2, error,
                         "host offset 0x%" G_GINT64_MODIFIER "x would be overwritten but holds metadata",
                         cluster << qcow2->cluster_bits);
}

static bool collect_fixed(struct qcow2 *qcow2, GError **error)
{
    qcow2->fixed = g_array_new(false, false, sizeof(struct qcow2_range));
    add_fixed(qcow2, 0, 1);
    add_fixed(qcow2, qcow2->l1_offset, qcow2->l1_size * UINT64_C(8));
    add_fixed(qcow2, qcow2->reftable_offset, (uint64_t)qcow2->reftable_clusters * qcow2->cluster_size);
    add_fixed(qcow2, qcow2->snapshots_offset, qcow2->snapshots_length);
    add_fixed(qcow2, qcow2->bitmaps_offset, qcow2->bitmaps_length);
    for (guint i = 0; i < qcow2->snapshots->len; i++) {
        struct qcow2_snapshot *snapshot = &g_array_index(qcow2->snapshots, struct qcow2_snapshot, i);

        add_fixed(qcow2, snapshot->l1_offset, snapshot->l1_size * UINT64_C(8));
    }
    g_array_sort(qcow2->fixed, range_compare);
    for (guint i = 1; i < qcow2->fixed->len; i++) {
        const struct qcow2_range *range = &g_array_index(qcow2->fixed, struct qcow2_range, i - 1);

        if (range[0].first + range[0].count > range[1].first)
            return qcow2_corrupt(qcow2, error,
                                 "two metadata tables overlap at host offset 0x%" G_GINT64_MODIFIER "x",
                                 range[1].first << qcow2->cluster_bits);
    }
    return true;
}

static bool add_table(struct qcow2 *qcow2, uint64_t host, GError **error)
{
    uint64_t cluster = host >> qcow2->cluster_bits;

    if (!qcow2_guard(qcow2, cluster, error))
        return false;
    g_hash_table_add(qcow2->metadata, GSIZE_TO_POINTER(cluster));
    return true;
}

/* L2 tables and refcount blocks, one cluster each. */
static bool collect_tables(struct qcow2 *qcow2, GError **error)
{
    const char *why;

    qcow2->metadata = g_hash_table_new(g_direct_hash, g_direct_equal);
    for (uint64_t i = 0; i < qcow2->reftable_size; i++) {
        if (qcow2->reftable[i] && !add_table(qcow2, qcow2->reftable[i], error))
            return false;
    }
    for (uint64_t i = 0; i < qcow2->l1_size; i++) {
        if (!qcow2->l1[i])
            continue;
        if (!qcow2_l1_entry_valid(qcow2, qcow2->l1[i], &why))
            return qcow2_corrupt(qcow2, error, "L1 entry %" G_GUINT64_FORMAT " 0x%" G_GINT64_MODIFIER "x %s",
                                 i, qcow2->l1[i], why);
        if (!add_table(qcow2, qcow2->l1[i] & QCOW2_HOST, error))
            return false;
    }
    return true;
}

static bool check_header_count(struct qcow2 *qcow2, GError **error)
{
    uint64_t count;

    if (!qcow2_refcount_get(qcow2, 0, &count, error))
        return false;
    return count > 0 || qcow2_corrupt(qcow2, error, "the header has refcount 0");
}

/* Autoclear features are promises of other writers that we do not keep: bitmaps, and unknown ones.
 * They must be gone from the medium before the first byte changes. */
static bool clear_autoclear(struct qcow2 *qcow2, GError **error)
{
    if (qcow2->autoclear == 0)
        return true;
    qcow2->autoclear = 0;
    if (!qcow2_write_features(qcow2, error))
        return false;
    /* The bitmaps are leaked space now: a check may give it back, and then anything may lie there. */
    for (guint i = 0; qcow2->bitmaps_length && i < qcow2->fixed->len; i++) {
        if (g_array_index(qcow2->fixed, struct qcow2_range, i).first ==
            qcow2->bitmaps_offset >> qcow2->cluster_bits) {
            g_array_remove_index(qcow2->fixed, i);
            break;
        }
    }
    qcow2->bitmaps_length = 0;
    return true;
}

/* With the dirty bit set the counts are older than the tables: they are raised first. */
static bool rebuild_dirty(struct qcow2 *qcow2, GError **error)
{
    struct image_check result = {0};

    if (!(qcow2->incompatible & QCOW2_DIRTY))
        return true;
    if (!qcow2_check(qcow2->image, true, &result, error))
        return false;
    if (!(qcow2->incompatible & QCOW2_DIRTY))
        return true;
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED,
                "qcow2: the dirty bit is set and %" G_GUINT64_FORMAT " errors cannot be repaired: %s",
                result.corruptions, result.finding);
    return false;
}

/* Loads what changes need; changes nothing. */
bool qcow2_prepare_write(struct qcow2 *qcow2, GError **error)
{
    if (qcow2->failed) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED,
                    "qcow2: an earlier change stopped half way; the image must be opened again");
        return false;
    }
    if (qcow2->fixed)
        return true;
    if (!qcow2_refcounts_load(qcow2, error))
        return false;
    qcow2->l1_changed = g_new0(uint64_t, qcow2->l1_size / 64 + 1);
    qcow2->full = g_new0(uint64_t, qcow2->reftable_size / 64 + 1);
    qcow2->frees = g_array_new(false, false, sizeof(struct qcow2_range));
    return collect_fixed(qcow2, error) && collect_tables(qcow2, error);
}

/* An image without data cannot have clusters that are used twice: a new target costs nothing here. */
static bool has_data(const struct qcow2 *qcow2)
{
    for (uint64_t i = 0; i < qcow2->l1_size; i++) {
        if (qcow2->l1[i])
            return true;
    }
    return qcow2->snapshots->len > 0;
}

bool qcow2_begin_write(struct qcow2 *qcow2, GError **error)
{
    if (!qcow2_prepare_write(qcow2, error))
        return false;
    if (qcow2->writing)
        return true;
    if (!rebuild_dirty(qcow2, error) || !check_header_count(qcow2, error) ||
        (has_data(qcow2) && !qcow2_verify(qcow2, error)) || !clear_autoclear(qcow2, error))
        return false;
    qcow2->writing = true;
    return true;
}

void qcow2_guard_move(struct qcow2 *qcow2, struct qcow2_range from, struct qcow2_range to)
{
    for (guint i = 0; i < qcow2->fixed->len; i++) {
        struct qcow2_range *range = &g_array_index(qcow2->fixed, struct qcow2_range, i);

        if (range->first == from.first)
            *range = to;
    }
    g_array_sort(qcow2->fixed, range_compare);
}
