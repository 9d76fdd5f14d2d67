/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Changes of the mapping.  They happen in memory: the medium learns of them in flush().  A standard cluster
 * is treated as one with a single subcluster, so that one set of rules serves both layouts.
 *
 * Whatever a change makes superfluous keeps its refcount until that flush: the old bytes stay
 * readable as the source of fills, and a crash finds the old mapping intact.
 */
#include "formats/qcow2.h"

#include <string.h>

#define PACKED_ALIGNMENT 512 /* so that two packed clusters never share a sector of the medium */

/* One cluster of the guest and its L2 entry. */
struct target {
    struct qcow2_table *table;
    uint64_t index; /* of the entry in the table */
    uint64_t start; /* guest offset of the cluster */
    struct qcow2_entry entry;
    bool blank; /* the new cluster reads as zeros already */
};

/* Finds the entry of the cluster at guest offset `start`; `edit`: it is going to be changed. */
static bool target_find(struct qcow2 *qcow2, uint64_t start, bool edit, struct target *target, GError **error)
{
    uint64_t l1_index = start >> (qcow2->cluster_bits + qcow2->l2_bits);

    memset(target, 0, sizeof *target);
    target->start = start;
    target->index = (start >> qcow2->cluster_bits) & ((UINT64_C(1) << qcow2->l2_bits) - 1);
    if (!edit && qcow2->l1[l1_index] == 0)
        return true;
    target->table = edit ? qcow2_l2_edit(qcow2, l1_index, error) : qcow2_l2_load(qcow2, l1_index, error);
    return target->table &&
           qcow2_decode(qcow2, target->table->bytes, target->index, start, &target->entry, error);
}

/* Bits of the subclusters that [from, to), relative to the cluster, touches. */
static uint32_t touched(const struct qcow2 *qcow2, uint64_t from, uint64_t to)
{
    unsigned first = from / qcow2->sub_size, last = (to - 1) / qcow2->sub_size;

    return (UINT32_MAX >> (31 - last)) & (UINT32_MAX << first);
}

static void free_entry(struct qcow2 *qcow2, const struct qcow2_entry *entry, uint64_t packed_length)
{
    uint64_t first = entry->host >> qcow2->cluster_bits;
    uint64_t last = entry->packed ? (entry->host + packed_length - 1) >> qcow2->cluster_bits : first;

    if (entry->host)
        qcow2_free_later(qcow2, first, last - first + 1);
}

/* As free_entry, with the length of packed bytes as the descriptor says it, not cut at the end of file:
 * that is what was counted when they were written. */
static void free_target(struct qcow2 *qcow2, const struct target *target)
{
    uint64_t word = load_be64(target->table->bytes + target->index * qcow2->words * 8);
    unsigned shift = 62 - (qcow2->cluster_bits - 8);
    uint64_t sectors = (word >> shift & ((UINT64_C(1) << (qcow2->cluster_bits - 8)) - 1)) + 1;

    free_entry(qcow2, &target->entry, sectors * 512 - target->entry.host % 512);
}

/* May the host cluster be written in place?  If the entry says so, it must be true. */
static bool check_owned(struct qcow2 *qcow2, const struct target *target, bool *owned, GError **error)
{
    uint64_t cluster = target->entry.host >> qcow2->cluster_bits, count;

    *owned = target->entry.host && !target->entry.packed && target->entry.copied;
    if (!*owned)
        return true;
    if (!qcow2_guard(qcow2, cluster, error) || !qcow2_refcount_get(qcow2, cluster, &count, error))
        return false;
    return count == 1 || qcow2_corrupt(qcow2, error,
                                       "the cluster of guest offset %" G_GUINT64_FORMAT
                                       " is said to be used once, but its refcount is %" G_GUINT64_FORMAT,
                                       target->start, count);
}

/* ---- place -------------------------------------------------------------------------------------- */

static bool joins(const struct extent *a, const struct extent *b)
{
    return a->status == b->status && a->status != EXTENT_PACKED &&
           (a->status != EXTENT_DATA || a->host_offset + a->length == b->host_offset);
}

static void append(GArray *placements, const struct placement *placement)
{
    struct placement *last =
        placements->len ? &g_array_index(placements, struct placement, placements->len - 1) : NULL;

    if (last && last->fill == placement->fill && last->clean == placement->clean &&
        extent_end(&last->to) == placement->to.offset && joins(&last->to, &placement->to) &&
        (!last->fill || joins(&last->from, &placement->from))) {
        last->to.length += placement->to.length;
        last->from.length += placement->from.length;
        return;
    }
    g_array_append_vals(placements, placement, 1);
}

/* Guest bytes [from, to) of the cluster go to its host cluster `host`. */
static struct placement make_placement(struct qcow2 *qcow2, const struct target *target, uint64_t host,
                                       uint64_t from, uint64_t to)
{
    return (struct placement){
        .to = {.offset = target->start + from,
               .length = to - from,
               .status = EXTENT_DATA,
               .storage = qcow2->storage,
               .host_offset = host + from},
    };
}

/* The same with the old content, which `target` still describes; all of one kind. */
static void append_fill(struct qcow2 *qcow2, const struct target *target, uint64_t host, uint64_t from,
                        uint64_t to, GArray *fills)
{
    struct placement fill = make_placement(qcow2, target, host, from, to);
    const struct qcow2_entry *old = &target->entry;
    unsigned sub = from / qcow2->sub_size;

    fill.fill = true;
    fill.from = fill.to;
    if (old->packed) {
        fill.from.status = EXTENT_PACKED;
        fill.from.host_offset = old->host;
        fill.from.packed_length = old->packed_length;
        fill.from.skip = from;
    } else if (old->data >> sub & 1) {
        fill.from.host_offset = old->host + from;
    } else {
        fill.from.status = old->zero >> sub & 1 ? EXTENT_ZERO : EXTENT_HOLE;
        fill.from.storage = NULL;
        fill.from.host_offset = 0;
        fill.clean = target->blank && (fill.from.status == EXTENT_ZERO || !qcow2->image->backing_name);
    }
    if (fill.clean)
        fill.from.status = EXTENT_ZERO;
    append(fills, &fill);
}

/* [from, to) outside the request, cut into subclusters of `need` and at the end of the disk. */
static void append_fills(struct qcow2 *qcow2, const struct target *target, uint64_t host, uint32_t need,
                         uint64_t from, uint64_t to, GArray *fills)
{
    uint64_t end = MIN(to, qcow2->image->size - target->start);

    if (target->entry.packed && from < end) {
        append_fill(qcow2, target, host, from, end, fills);
        return;
    }
    while (from < end) {
        unsigned sub = from / qcow2->sub_size;
        uint64_t next = MIN(end, (uint64_t)(sub + 1) * qcow2->sub_size);

        if (need >> sub & 1)
            append_fill(qcow2, target, host, from, next, fills);
        from = next;
    }
}

/* What lies behind the end of the disk becomes visible if the disk grows one day: it must be zeros. */
static bool zero_tail(struct qcow2 *qcow2, const struct target *target, uint64_t host, GError **error)
{
    uint64_t valid = qcow2->image->size - target->start, end = host + qcow2->cluster_size;

    if (valid >= qcow2->cluster_size)
        return true;
    if (qcow2->storage->growable)
        end = MIN(end, qcow2->storage->size);
    return host + valid >= end || storage_zero(qcow2->storage, host + valid, end - host - valid, true, error);
}

/* A cluster behind the end of a file is zeros when the file has grown by it. */
static bool append_blank(struct qcow2 *qcow2, uint64_t host, bool *blank, GError **error)
{
    *blank = qcow2->storage->growable && host >= qcow2->storage->size;
    return !*blank || storage_resize(qcow2->storage, host + qcow2->cluster_size, error);
}

/* The request covers [from, to) of the cluster at `start`. */
static bool place_cluster(struct qcow2 *qcow2, uint64_t start, uint64_t from, uint64_t to, GArray *placements,
                          GArray *fills, GError **error)
{
    uint32_t touch = touched(qcow2, from, to), need;
    struct placement placement;
    struct qcow2_entry new;
    struct target target;
    uint64_t cluster;
    bool owned;

    if (!target_find(qcow2, start, true, &target, error) || !check_owned(qcow2, &target, &owned, error))
        return false;
    new = target.entry;
    if (owned) {
        need = touch & ~new.data; /* what is data already stays where it is */
    } else {
        need = new.packed ? qcow2_all_subclusters(qcow2) : touch | new.data;
        if (!qcow2_allocate(qcow2, &cluster, error))
            return false;
        new = (struct qcow2_entry){.host = cluster << qcow2->cluster_bits, .copied = true, .zero = new.zero};
        if (to - from < qcow2->cluster_size && !append_blank(qcow2, new.host, &target.blank, error))
            return false;
    }
    if (need && !zero_tail(qcow2, &target, new.host, error))
        return false;
    new.data |= need;
    new.zero &= ~need;
    placement = make_placement(qcow2, &target, new.host, from, to);
    append(placements, &placement);
    append_fills(qcow2, &target, new.host, need, 0, from, fills);
    append_fills(qcow2, &target, new.host, need, to, qcow2->cluster_size, fills);
    if (!owned)
        free_target(qcow2, &target);
    if (!owned || need)
        qcow2_encode(qcow2, target.table, target.index, &new);
    return true;
}

bool qcow2_place(struct image *image, uint64_t offset, uint64_t length, GArray *placements, GError **error)
{
    struct qcow2 *qcow2 = image->opaque;
    g_autoptr(GArray) places = g_array_new(false, false, sizeof(struct placement));
    g_autoptr(GArray) fills = g_array_new(false, false, sizeof(struct placement));
    uint64_t end = offset + length;

    if (!qcow2_begin_write(qcow2, error))
        return false;
    while (offset < end) {
        uint64_t start = offset & ~(uint64_t)(qcow2->cluster_size - 1);
        uint64_t stop = MIN(end, start + qcow2->cluster_size);

        if (!place_cluster(qcow2, start, offset - start, stop - start, places, fills, error)) {
            qcow2->failed = true; /* the caller will not fill what was placed before */
            return false;
        }
        offset = stop;
    }
    if (places->len)
        g_array_append_vals(placements, places->data, places->len);
    if (fills->len)
        g_array_append_vals(placements, fills->data, fills->len);
    return true;
}

/* ---- packed clusters ---------------------------------------------------------------------------- */

/* Room behind the packed bytes that came last: in the same cluster, or running on into a new one that
 * follows it; otherwise in a new one. */
static bool allocate_packed(struct qcow2 *qcow2, size_t length, uint64_t *host, GError **error)
{
    uint64_t last = qcow2->packed_end ? (qcow2->packed_end - 1) >> qcow2->cluster_bits : 0;
    uint64_t last_end = (last + 1) << qcow2->cluster_bits, count = 0, cluster;
    bool room;

    *host = (qcow2->packed_end + PACKED_ALIGNMENT - 1) & ~(uint64_t)(PACKED_ALIGNMENT - 1);
    room = qcow2->packed_end && *host < last_end;
    if (room && !qcow2_refcount_get(qcow2, last, &count, error))
        return false;
    room = room && count < qcow2_refcount_max(qcow2);
    if (!room || *host + length > last_end) {
        if (!qcow2_allocate(qcow2, &cluster, error))
            return false;
        room = room && cluster == last + 1;
        if (!room)
            *host = cluster << qcow2->cluster_bits;
    }
    qcow2->packed_end = *host + length;
    return !room || qcow2_reference(qcow2, last, error);
}

static bool place_packed(struct qcow2 *qcow2, uint64_t offset, size_t length, struct extent *to,
                         GError **error)
{
    unsigned shift = 62 - (qcow2->cluster_bits - 8);
    struct target target;
    uint64_t host, sectors;
    uint8_t *at;

    if (!target_find(qcow2, offset, true, &target, error) || !allocate_packed(qcow2, length, &host, error))
        return false;
    if (host + length > UINT64_C(1) << shift) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_NOSPACE,
                    "qcow2: a compressed cluster cannot lie at %" G_GUINT64_FORMAT, host);
        return false;
    }
    free_target(qcow2, &target);
    sectors = (host + length - 1) / 512 - host / 512;
    at = target.table->bytes + target.index * qcow2->words * 8;
    store_be64(at, QCOW2_PACKED | sectors << shift | host);
    if (qcow2->words == 2)
        store_be64(at + 8, 0);
    target.table->dirty = true;
    *to = (struct extent){.offset = offset,
                          .length = MIN(qcow2->cluster_size, qcow2->image->size - offset),
                          .status = EXTENT_PACKED,
                          .storage = qcow2->storage,
                          .host_offset = host,
                          .packed_length = length};
    return true;
}

bool qcow2_place_packed(struct image *image, uint64_t offset, size_t packed_length, struct extent *to,
                        GError **error)
{
    struct qcow2 *qcow2 = image->opaque;

    if (offset % qcow2->cluster_size || packed_length == 0 || packed_length > qcow2->cluster_size) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED,
                    "qcow2: %zu packed bytes at offset %" G_GUINT64_FORMAT " are not one cluster",
                    packed_length, offset);
        return false;
    }
    if (!qcow2_begin_write(qcow2, error))
        return false;
    if (place_packed(qcow2, offset, packed_length, to, error))
        return true;
    qcow2->failed = true;
    return false;
}

/* ---- zero --------------------------------------------------------------------------------------- */

/* Subclusters [from, to) of the cluster at `start` shall read as zeros.  With a backing layer they are
 * marked so; without one it is enough that nothing is there. */
static bool zero_cluster(struct qcow2 *qcow2, uint64_t start, uint64_t from, uint64_t to, bool *done,
                         GError **error)
{
    uint32_t mask = touched(qcow2, from, to);
    bool backed = qcow2->image->backing_name, whole = mask == qcow2_all_subclusters(qcow2);
    struct qcow2_entry new;
    struct target target;

    if (!target_find(qcow2, start, false, &target, error))
        return false;
    *done = whole || !target.entry.packed; /* a packed cluster has no parts */
    if (!*done)
        return true;
    new = target.entry;
    new.packed = false;
    new.data &= ~mask;
    new.zero = backed ? new.zero | mask : new.zero & ~mask;
    if (new.data == 0) {
        new.host = 0;
        new.copied = false;
    }
    if (new.host == target.entry.host &&new.data == target.entry.data &&new.zero == target.entry.zero)
        return true;
    if (!target_find(qcow2, start, true, &target, error))
        return false;
    if (target.entry.host && !new.host)
        free_target(qcow2, &target);
    qcow2_encode(qcow2, target.table, target.index, &new);
    return true;
}

/* [*offset, end) consists of whole subclusters; moves *offset and *stop to what was done: parts of packed
 * clusters are left out at both ends. */
static bool zero_range(struct qcow2 *qcow2, uint64_t *offset, uint64_t end, uint64_t *stop, GError **error)
{
    unsigned shift = qcow2->cluster_bits + qcow2->l2_bits;
    bool done;

    for (*stop = *offset; *stop < end;) {
        uint64_t start = *stop & ~(uint64_t)(qcow2->cluster_size - 1);
        uint64_t next = MIN(end, start + qcow2->cluster_size);
        uint64_t sub_end = (next - start + qcow2->sub_size - 1) / qcow2->sub_size * qcow2->sub_size;

        if (!qcow2->image->backing_name && qcow2->l1[start >> shift] == 0) {
            *stop = MIN(end, ((start >> shift) + 1) << shift);
            continue;
        }
        /* The end of the disk may lie anywhere in its last cluster: all of that is zeroed. */
        if (next == qcow2->image->size)
            sub_end = qcow2->cluster_size;
        if (!zero_cluster(qcow2, start, *stop - start, sub_end, &done, error))
            return false;
        if (!done && *stop != *offset)
            return true;
        if (!done)
            *offset = next;
        *stop = next;
    }
    return true;
}

bool qcow2_zero(struct image *image, uint64_t offset, uint64_t length, uint64_t *done_offset,
                uint64_t *done_length, GError **error)
{
    struct qcow2 *qcow2 = image->opaque;
    uint64_t mask = qcow2->sub_size - 1, end = offset + length;
    uint64_t first = (offset + mask) & ~mask, last = end == image->size ? end : end & ~mask, stop;

    *done_offset = offset;
    *done_length = 0;
    if (first >= last || (qcow2->version < 3 && image->backing_name))
        return true;
    if (!qcow2_begin_write(qcow2, error))
        return false;
    if (!zero_range(qcow2, &first, last, &stop, error)) {
        qcow2->failed = true;
        return false;
    }
    *done_offset = first;
    *done_length = stop - first;
    return true;
}
