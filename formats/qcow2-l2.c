/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The life of an L2 table that is changed.
 *
 * "New" is a table to which no durable L1 entry points (its bit in l1_changed is set): it may be written
 * at any time.  A table that the medium already uses may only be overwritten in flush(), after data and
 * refcounts are durable.  If it must leave the cache before, or is shared with a snapshot, it moves
 * to a new cluster and thereby becomes new; its old cluster is given back by the next flush.
 */
#include "formats/qcow2.h"

#include <string.h>

static void set_l1(struct qcow2 *qcow2, struct qcow2_table *table, uint64_t cluster)
{
    table->host = cluster << qcow2->cluster_bits;
    table->dirty = true;
    g_hash_table_add(qcow2->metadata, GSIZE_TO_POINTER(cluster));
    qcow2->l1[table->index] = table->host | QCOW2_COPIED;
    qcow2_set_bit(qcow2->l1_changed, table->index, true);
    qcow2_range_extend(&qcow2->l1_dirty, table->index);
}

static bool l2_move(struct qcow2 *qcow2, struct qcow2_table *table, GError **error)
{
    uint64_t old = table->host >> qcow2->cluster_bits, cluster;

    if (!qcow2_allocate(qcow2, &cluster, error))
        return false;
    g_hash_table_remove(qcow2->metadata, GSIZE_TO_POINTER(old));
    qcow2_free_later(qcow2, old, 1);
    set_l1(qcow2, table, cluster);
    return true;
}

bool qcow2_l2_evict(struct qcow2 *qcow2, struct qcow2_table *table, GError **error)
{
    if (!qcow2_bit(qcow2->l1_changed, table->index) && !l2_move(qcow2, table, error))
        return false;
    return qcow2_table_write(qcow2, table, error);
}

static struct qcow2_table *l2_new(struct qcow2 *qcow2, uint64_t l1_index, GError **error)
{
    struct qcow2_table *table;
    uint64_t cluster;

    if (!qcow2_allocate(qcow2, &cluster, error))
        return NULL;
    table = qcow2_cache_add(qcow2, &qcow2->l2, l1_index, 0, error);
    if (!table)
        return NULL;
    memset(table->bytes, 0, qcow2->cluster_size);
    set_l1(qcow2, table, cluster);
    return table;
}

struct qcow2_table *qcow2_l2_edit(struct qcow2 *qcow2, uint64_t l1_index, GError **error)
{
    uint64_t entry = qcow2->l1[l1_index], count;
    struct qcow2_table *table;

    if (entry == 0)
        return l2_new(qcow2, l1_index, error);
    table = qcow2_l2_load(qcow2, l1_index, error);
    if (!table || table->dirty)
        return table;
    if (!(entry & QCOW2_COPIED))
        return l2_move(qcow2, table, error) ? table : NULL;
    if (!qcow2_refcount_get(qcow2, table->host >> qcow2->cluster_bits, &count, error))
        return NULL;
    if (count == 1)
        return table;
    qcow2_corrupt(qcow2, error,
                  "the L2 table at 0x%" G_GINT64_MODIFIER
                  "x is said to be used once, but its refcount is %" G_GUINT64_FORMAT,
                  table->host, count);
    return NULL;
}

void qcow2_encode(struct qcow2 *qcow2, struct qcow2_table *table, uint64_t index,
                  const struct qcow2_entry *entry)
{
    uint8_t *at = table->bytes + index * qcow2->words * 8;
    uint64_t word = entry->host | (entry->copied ? QCOW2_COPIED : 0);

    if (qcow2->words == 2)
        store_be64(at + 8, (uint64_t)entry->zero << 32 | entry->data);
    else if (entry->zero)
        word |= QCOW2_ZERO;
    store_be64(at, word);
    table->dirty = true;
}
