/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which host cluster is next.  The lowest free one is taken, so a fresh image fills upwards, and tables
 * stand where they are first needed: a refcount block is the first cluster of those that it counts.
 *
 * Invariant: no cluster below free_hint is free, and no block whose bit in `full` is set has a free one.
 */
#include "formats/qcow2.h"

#include <string.h>

void qcow2_range_extend(struct qcow2_range *range, uint64_t entry)
{
    uint64_t end = MAX(range->first + range->count, entry + 1);

    range->first = range->count ? MIN(range->first, entry) : entry;
    range->count = range->count ? end - range->first : 1;
}

void qcow2_ranges_append(GArray *ranges, uint64_t first, uint64_t count)
{
    struct qcow2_range *last =
        ranges->len ? &g_array_index(ranges, struct qcow2_range, ranges->len - 1) : NULL;
    struct qcow2_range range = {first, count};

    if (last && last->first + last->count == first)
        last->count += count;
    else
        g_array_append_val(ranges, range);
}

/* A storage that cannot grow, a device, ends somewhere. */
static bool check_room(struct qcow2 *qcow2, uint64_t cluster, GError **error)
{
    uint64_t end = (cluster + 1) << qcow2->cluster_bits;

    if (qcow2->storage->growable || end <= qcow2->storage->size)
        return true;
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_NOSPACE,
                "%s: no space: a cluster would end at %" G_GUINT64_FORMAT
                ", behind the end of the storage (%" G_GUINT64_FORMAT " bytes)",
                qcow2->storage->name, end, qcow2->storage->size);
    return false;
}

/* A free cluster gets its first reference. */
static bool take(struct qcow2 *qcow2, uint64_t cluster, GError **error)
{
    if (!check_room(qcow2, cluster, error) || !qcow2_guard(qcow2, cluster, error) ||
        !qcow2_refcount_set(qcow2, cluster, 1, error))
        return false;
    qcow2->free_hint = cluster + 1;
    qcow2->end = MAX(qcow2->end, (cluster + 1) << qcow2->cluster_bits);
    return true;
}

/* Where a larger refcount table and the blocks that count it and themselves go. */
struct growth {
    uint64_t start;  /* first cluster, which is the first that the old table cannot count */
    uint64_t table;  /* clusters of the new table */
    uint64_t blocks; /* blocks, one cluster each, behind the table */
};

static bool plan_growth(struct qcow2 *qcow2, struct growth *growth, GError **error)
{
    uint64_t per_cluster = qcow2->cluster_size / 8, per_block = UINT64_C(1) << qcow2->block_bits, needed;

    growth->start = qcow2->reftable_size << qcow2->block_bits;
    growth->table = qcow2->reftable_clusters + qcow2->reftable_clusters / 2 + 1;
    growth->blocks = 0;
    for (;;) {
        uint64_t blocks = (growth->table + growth->blocks + per_block - 1) / per_block;

        needed = (qcow2->reftable_size + blocks + 1 + per_cluster - 1) / per_cluster;
        if (blocks == growth->blocks && needed <= growth->table)
            break;
        growth->blocks = blocks;
        growth->table = MAX(growth->table, needed);
    }
    if (growth->table * qcow2->cluster_size <= QCOW2_MAX_REFTABLE)
        return true;
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_NOSPACE,
                "qcow2: the refcount table would be larger than %u bytes", QCOW2_MAX_REFTABLE);
    return false;
}

static bool enlarge_arrays(struct qcow2 *qcow2, uint64_t size)
{
    uint64_t *table = g_try_realloc_n(qcow2->reftable, size, 8);
    uint64_t old_words = qcow2->reftable_size / 64 + 1, words = size / 64 + 1, *full;

    if (!table)
        return false;
    memset(table + qcow2->reftable_size, 0, (size - qcow2->reftable_size) * 8);
    qcow2->reftable = table;
    full = g_try_realloc_n(qcow2->full, words, 8);
    if (!full)
        return false;
    memset(full + old_words, 0, (words - old_words) * 8);
    qcow2->full = full;
    qcow2->reftable_size = size;
    return true;
}

/* The header points to the old table until the flush, which writes the new one as a whole first. */
static bool grow_reftable(struct qcow2 *qcow2, GError **error)
{
    struct qcow2_range old = {qcow2->reftable_offset >> qcow2->cluster_bits, qcow2->reftable_clusters};
    struct growth growth;
    uint64_t first_block = qcow2->reftable_size;

    if (!plan_growth(qcow2, &growth, error))
        return false;
    if (!enlarge_arrays(qcow2, growth.table * (qcow2->cluster_size / 8))) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED, "no memory for the refcount table");
        return false;
    }
    for (uint64_t i = 0; i < growth.blocks; i++) {
        uint64_t cluster = growth.start + growth.table + i;

        if (!check_room(qcow2, cluster, error) || !qcow2_guard(qcow2, cluster, error) ||
            !qcow2_block_add(qcow2, first_block + i, cluster, error))
            return false;
    }
    for (uint64_t i = 0; i < growth.table; i++) {
        if (!take(qcow2, growth.start + i, error))
            return false;
    }
    for (uint64_t i = 0; i < growth.blocks; i++) {
        if (!qcow2_refcount_set(qcow2, growth.start + growth.table + i, 1, error))
            return false;
    }
    qcow2->free_hint = growth.start + growth.table + growth.blocks;
    qcow2_free_later(qcow2, old.first, old.count);
    qcow2_guard_move(qcow2, old, (struct qcow2_range){growth.start, growth.table});
    qcow2->reftable_offset = growth.start << qcow2->cluster_bits;
    qcow2->reftable_clusters = growth.table;
    qcow2->reftable_moved = true;
    return true;
}

/* The first free cluster from the hint on among those that `block` counts; false: none. */
static bool scan_block(const struct qcow2 *qcow2, const struct qcow2_table *block, uint64_t *cluster)
{
    uint64_t entries = UINT64_C(1) << qcow2->block_bits;

    for (uint64_t i = *cluster & (entries - 1); i < entries; i++) {
        if (qcow2_block_get(qcow2, block->bytes, i) == 0) {
            *cluster = (*cluster & ~(entries - 1)) + i;
            return true;
        }
    }
    return false;
}

bool qcow2_allocate(struct qcow2 *qcow2, uint64_t *cluster, GError **error)
{
    for (;;) {
        uint64_t index = qcow2->free_hint >> qcow2->block_bits;
        struct qcow2_table *block;

        *cluster = qcow2->free_hint;
        if (index >= qcow2->reftable_size) {
            if (!grow_reftable(qcow2, error))
                return false;
            continue;
        }
        if (!qcow2_bit(qcow2->full, index)) {
            if (!qcow2_block_load(qcow2, index, &block, error))
                return false;
            if (!block) { /* counts itself */
                if (!check_room(qcow2, *cluster, error) || !qcow2_guard(qcow2, *cluster, error) ||
                    !qcow2_block_add(qcow2, index, *cluster, error) ||
                    !qcow2_refcount_set(qcow2, *cluster, 1, error))
                    return false;
                qcow2->free_hint++;
                continue;
            }
            if (scan_block(qcow2, block, cluster))
                return take(qcow2, *cluster, error);
            qcow2_set_bit(qcow2->full, index, true);
        }
        qcow2->free_hint = (index + 1) << qcow2->block_bits;
    }
}

bool qcow2_reference(struct qcow2 *qcow2, uint64_t cluster, GError **error)
{
    uint64_t count;

    return qcow2_refcount_get(qcow2, cluster, &count, error) &&
           qcow2_refcount_set(qcow2, cluster, count + 1, error);
}

void qcow2_free_later(struct qcow2 *qcow2, uint64_t first, uint64_t count)
{
    qcow2_ranges_append(qcow2->frees, first, count);
}

static bool drop_reference(struct qcow2 *qcow2, uint64_t cluster, GArray *freed, GError **error)
{
    uint64_t count;

    if (!qcow2_refcount_get(qcow2, cluster, &count, error))
        return false;
    if (count == 0)
        return qcow2_corrupt(qcow2, error, "host cluster %" G_GUINT64_FORMAT " was in use with refcount 0",
                             cluster);
    if (!qcow2_refcount_set(qcow2, cluster, count - 1, error))
        return false;
    if (count > 1)
        return true;
    qcow2_ranges_append(freed, cluster, 1);
    qcow2_set_bit(qcow2->full, cluster >> qcow2->block_bits, false);
    qcow2->free_hint = MIN(qcow2->free_hint, cluster);
    if (qcow2->packed_end && (qcow2->packed_end - 1) >> qcow2->cluster_bits == cluster)
        qcow2->packed_end = 0;
    return true;
}

bool qcow2_drop_references(struct qcow2 *qcow2, GArray *freed, GError **error)
{
    for (guint i = 0; i < qcow2->frees->len; i++) {
        struct qcow2_range range = g_array_index(qcow2->frees, struct qcow2_range, i);

        for (uint64_t k = 0; k < range.count; k++) {
            if (!drop_reference(qcow2, range.first + k, freed, error))
                return false;
        }
    }
    g_array_set_size(qcow2->frees, 0);
    return true;
}
