/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The write order.  Invariant: on the medium, every refcount is at least the number of references to its
 * cluster, and everything that is referenced is complete.  Between two barriers writes may reach the
 * medium in any order, or not.
 *
 *   1  raised refcounts, whatever no durable entry points to yet (new L2 tables, new refcount blocks,
 *      a moved refcount table)                               with the guest's data, barrier
 *   2  the refcount table's entries of new blocks, or the header's pointer to a moved table
 *                                                            barrier, only if there are any
 *   3  L2 tables in place, L1 entries of new L2 tables       barrier, only if there are any
 *   4  lowered refcounts of what 3 made superfluous          barrier, only if there are any
 *
 * 1 and 3 are one write per dirty table; after 4 there are no leaks.  A torn write of a table is harmless:
 * its entries are 8 or 16 bytes, aligned, and each is valid by itself.
 */
#include "formats/qcow2.h"

#include <string.h>

static bool is_new(struct qcow2 *qcow2, const struct qcow2_table *table)
{
    return qcow2_bit(qcow2->l1_changed, table->index);
}

/* Writes entries [range) of a table of words, widened to sectors of 512 bytes but inside `size`. */
static bool write_words(struct qcow2 *qcow2, const uint64_t *words, uint64_t size, struct qcow2_range range,
                        uint64_t offset, GError **error)
{
    uint64_t first = range.first / 64 * 64, end = MIN(size, (range.first + range.count + 63) / 64 * 64);
    g_autofree uint64_t *bytes = g_try_new(uint64_t, end - first);

    if (!bytes) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED, "no memory to write a table");
        return false;
    }
    for (uint64_t i = first; i < end; i++)
        bytes[i - first] = GUINT64_TO_BE(words[i]);
    return storage_pwrite(qcow2->storage, bytes, (end - first) * 8, offset + first * 8, error);
}

/* Offset and length lie side by side in one sector: one write switches both. */
static bool write_reftable_pointer(struct qcow2 *qcow2, GError **error)
{
    uint32_t clusters = GUINT32_TO_BE(qcow2->reftable_clusters);
    uint8_t pointer[12];

    store_be64(pointer, qcow2->reftable_offset);
    memcpy(pointer + 8, &clusters, sizeof clusters);
    return storage_pwrite(qcow2->storage, pointer, sizeof pointer, 48, error);
}

/* Step 1.  The file also gets its full length: no entry may point behind its end. */
static bool write_unreferenced(struct qcow2 *qcow2, GError **error)
{
    const struct qcow2_range all = {0, qcow2->reftable_size};
    bool written = false;

    if (qcow2->storage->growable && qcow2->storage->size < qcow2->end &&
        !storage_resize(qcow2->storage, qcow2->end, error))
        return false;
    if (!qcow2_cache_write(qcow2, &qcow2->blocks, NULL, &written, error) ||
        !qcow2_cache_write(qcow2, &qcow2->l2, is_new, &written, error))
        return false;
    if (qcow2->reftable_moved &&
        !write_words(qcow2, qcow2->reftable, qcow2->reftable_size, all, qcow2->reftable_offset, error))
        return false;
    return storage_flush(qcow2->storage, error);
}

/* Step 2. */
static bool write_reftable(struct qcow2 *qcow2, GError **error)
{
    if (!qcow2->reftable_moved && !qcow2->reftable_dirty.count)
        return true;
    if (qcow2->reftable_moved) {
        if (!write_reftable_pointer(qcow2, error))
            return false;
    } else if (!write_words(qcow2, qcow2->reftable, qcow2->reftable_size, qcow2->reftable_dirty,
                            qcow2->reftable_offset, error)) {
        return false;
    }
    if (!storage_flush(qcow2->storage, error))
        return false;
    qcow2->reftable_moved = false;
    qcow2->reftable_dirty.count = 0;
    return true;
}

/* The changed L1 entries, in runs of changed sectors. */
static bool write_l1(struct qcow2 *qcow2, GError **error)
{
    uint64_t end = qcow2->l1_dirty.first + qcow2->l1_dirty.count, first = qcow2->l1_dirty.first / 64;
    uint64_t last = (end + 63) / 64;

    if (!qcow2->l1_dirty.count)
        return true;
    for (uint64_t i = first, next; i < last; i = next + 1) {
        for (next = i; next < last && qcow2->l1_changed[next]; next++)
            continue;
        if (next > i && !write_words(qcow2, qcow2->l1, qcow2->l1_size,
                                     (struct qcow2_range){i * 64, (next - i) * 64}, qcow2->l1_offset, error))
            return false;
    }
    return true;
}

/* Step 3. */
static bool write_mapping(struct qcow2 *qcow2, GError **error)
{
    bool written = qcow2->l1_dirty.count > 0;

    if (!qcow2_cache_write(qcow2, &qcow2->l2, NULL, &written, error) || !write_l1(qcow2, error))
        return false;
    if (written && !storage_flush(qcow2->storage, error))
        return false;
    for (uint64_t i = 0; i < qcow2->l1_dirty.count; i++)
        qcow2_set_bit(qcow2->l1_changed, qcow2->l1_dirty.first + i, false);
    qcow2->l1_dirty.count = 0;
    return true;
}

/* Step 4. Then the space may really go back. */
static bool write_frees(struct qcow2 *qcow2, GError **error)
{
    g_autoptr(GArray) freed = g_array_new(false, false, sizeof(struct qcow2_range));
    bool written = false;

    if (!qcow2->frees->len)
        return true;
    if (!qcow2_drop_references(qcow2, freed, error) ||
        !qcow2_cache_write(qcow2, &qcow2->blocks, NULL, &written, error) ||
        !storage_flush(qcow2->storage, error))
        return false;
    for (guint i = 0; i < freed->len; i++) {
        struct qcow2_range range = g_array_index(freed, struct qcow2_range, i);
        uint64_t offset = range.first << qcow2->cluster_bits, length = range.count << qcow2->cluster_bits;

        length = MIN(length, MAX(qcow2->storage->size, offset) - offset);
        if (length && !storage_discard(qcow2->storage, offset, length, error))
            return false;
    }
    return true;
}

bool qcow2_flush(struct image *image, GError **error)
{
    struct qcow2 *qcow2 = image->opaque;

    if (!qcow2->fixed && !qcow2->failed) /* nothing was changed */
        return storage_flush(qcow2->storage, error);
    if (!qcow2_prepare_write(qcow2, error)) /* reports what failed before */
        return false;
    if (write_unreferenced(qcow2, error) && write_reftable(qcow2, error) && write_mapping(qcow2, error) &&
        write_frees(qcow2, error))
        return true;
    qcow2->failed = true; /* after a failed barrier nobody knows what the medium holds */
    return false;
}
