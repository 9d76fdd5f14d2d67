/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Refcounts of host clusters (qcow2.txt, "Host cluster management").
 *
 * Counts in memory only ever rise until a flush has made durable whatever made a reference
 * unnecessary (qcow2-flush.c); so a refcount block may be written at any time.
 */
#include "formats/qcow2.h"

#include <string.h>

/* Order < 3: entry k lies in byte k / (8 / bits), least significant bits first. */
uint64_t qcow2_block_get(const struct qcow2 *qcow2, const uint8_t *block, uint64_t i)
{
    unsigned order = qcow2->refcount_order, bits = 1u << order;
    uint16_t half;
    uint32_t word;

    switch (order) {
    case 3:
        return block[i];
    case 4:
        memcpy(&half, block + i * 2, sizeof half);
        return GUINT16_FROM_BE(half);
    case 5:
        memcpy(&word, block + i * 4, sizeof word);
        return GUINT32_FROM_BE(word);
    case 6:
        return load_be64(block + i * 8);
    default:
        return block[i * bits / 8] >> (i * bits % 8) & ((1u << bits) - 1);
    }
}

void qcow2_block_set(const struct qcow2 *qcow2, uint8_t *block, uint64_t i, uint64_t count)
{
    unsigned order = qcow2->refcount_order, bits = 1u << order, shift = i * bits % 8;
    uint16_t half = GUINT16_TO_BE((uint16_t)count);
    uint32_t word = GUINT32_TO_BE((uint32_t)count);

    switch (order) {
    case 3:
        block[i] = count;
        break;
    case 4:
        memcpy(block + i * 2, &half, sizeof half);
        break;
    case 5:
        memcpy(block + i * 4, &word, sizeof word);
        break;
    case 6:
        store_be64(block + i * 8, count);
        break;
    default:
        block += i * bits / 8;
        *block = (*block & ~(((1u << bits) - 1) << shift)) | count << shift;
    }
}

uint64_t qcow2_refcount_max(const struct qcow2 *qcow2)
{
    return qcow2->refcount_order == 6 ? UINT64_MAX : (UINT64_C(1) << (1u << qcow2->refcount_order)) - 1;
}

bool qcow2_refcounts_load(struct qcow2 *qcow2, GError **error)
{
    if (qcow2->reftable)
        return true;
    qcow2->reftable_size = (uint64_t)qcow2->reftable_clusters * qcow2->cluster_size / 8;
    qcow2->reftable = qcow2_read_words(qcow2, qcow2->reftable_offset, qcow2->reftable_size, error);
    return qcow2->reftable;
}

/* Is the refcount table entry well formed, and its block inside the file? */
static const char *entry_fault(const struct qcow2 *qcow2, uint64_t entry)
{
    uint64_t end = MAX(qcow2->storage->size, qcow2->end);

    return entry & 511                                         ? "has reserved bits set"
           : entry % qcow2->cluster_size                       ? "is not aligned to a cluster"
           : entry >= end || end - entry < qcow2->cluster_size ? "points behind the end of the file"
                                                               : NULL;
}

bool qcow2_block_load(struct qcow2 *qcow2, uint64_t index, struct qcow2_table **block, GError **error)
{
    uint64_t entry = index < qcow2->reftable_size ? qcow2->reftable[index] : 0;
    const char *fault;

    *block = entry ? qcow2_cache_find(&qcow2->blocks, index) : NULL;
    if (*block || !entry)
        return true;
    fault = entry_fault(qcow2, entry);
    if (fault)
        return qcow2_corrupt(qcow2, error,
                             "refcount table entry %" G_GUINT64_FORMAT " 0x%" G_GINT64_MODIFIER "x %s", index,
                             entry, fault);
    *block = qcow2_cache_add(qcow2, &qcow2->blocks, index, entry, error);
    if (!*block)
        return false;
    if (storage_pread(qcow2->storage, (*block)->bytes, qcow2->cluster_size, entry, error))
        return true;
    qcow2_cache_drop(&qcow2->blocks, *block);
    return false;
}

bool qcow2_refcount_get(struct qcow2 *qcow2, uint64_t cluster, uint64_t *count, GError **error)
{
    struct qcow2_table *block;
    uint64_t mask = (UINT64_C(1) << qcow2->block_bits) - 1;

    if (!qcow2_block_load(qcow2, cluster >> qcow2->block_bits, &block, error))
        return false;
    *count = block ? qcow2_block_get(qcow2, block->bytes, cluster & mask) : 0;
    return true;
}

bool qcow2_refcount_set(struct qcow2 *qcow2, uint64_t cluster, uint64_t count, GError **error)
{
    struct qcow2_table *block;
    uint64_t mask = (UINT64_C(1) << qcow2->block_bits) - 1;

    if (!qcow2_block_load(qcow2, cluster >> qcow2->block_bits, &block, error))
        return false;
    if (!block)
        return qcow2_corrupt(qcow2, error, "host cluster %" G_GUINT64_FORMAT " has no refcount block",
                             cluster);
    qcow2_block_set(qcow2, block->bytes, cluster & mask, count);
    block->dirty = true;
    return true;
}

/* The new block is all zeros; its own count is the caller's to set, in this block or another. */
bool qcow2_block_add(struct qcow2 *qcow2, uint64_t index, uint64_t cluster, GError **error)
{
    uint64_t host = cluster << qcow2->cluster_bits;
    struct qcow2_table *block = qcow2_cache_add(qcow2, &qcow2->blocks, index, host, error);

    if (!block)
        return false;
    memset(block->bytes, 0, qcow2->cluster_size);
    block->dirty = true;
    qcow2->reftable[index] = host;
    qcow2_range_extend(&qcow2->reftable_dirty, index);
    g_hash_table_add(qcow2->metadata, GSIZE_TO_POINTER(cluster));
    qcow2->end = MAX(qcow2->end, host + qcow2->cluster_size);
    return true;
}
