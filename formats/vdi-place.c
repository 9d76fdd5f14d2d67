/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Changes of a VDI.  The block map changes in memory; flush() makes it durable in this order:
 *
 *   0  before the first change: a new modification UUID, so that children know    barrier
 *   1  the number of blocks in use, for VirtualBox takes the next one from it; with the guest's data
 *                                                                                  barrier
 *   2  the block map                                                               barrier
 *
 * A crash leaves at most blocks to which no entry leads.  What is not written of a new block is made zeros
 * first or, over a parent, filled from there; so it does not matter what was there before.
 */
#include "formats/vdi.h"

#include <string.h>

static uint64_t end_of(const struct vdi *vdi, uint64_t blocks)
{
    return blocks ? vdi_host(vdi, blocks - 1) + vdi->block_size : vdi->data;
}

/* Numbers below `next` to which no entry leads: what a crash left, or blocks that became zeros. */
static void find_unused(struct vdi *vdi)
{
    g_autofree uint8_t *used = g_malloc0(vdi->next + 1);

    for (uint64_t block = 0; block < vdi->map.count; block++) {
        if (vdi->map.entries[block] < VDI_ZERO)
            used[vdi->map.entries[block]] = 1;
    }
    for (uint32_t number = vdi->next; number-- > 0;) { /* descending */
        if (!used[number])
            g_array_append_val(vdi->unused, number);
    }
}

static bool begin_write(struct vdi *vdi, GError **error)
{
    if (vdi->failed)
        return blockmig_fail(error, BLOCKMIG_ERROR_FAILED,
                             "vdi: an earlier change stopped half way; the image must be opened anew");
    if (vdi->writing)
        return true;
    if (!vdi->merging)
        uuid_random(vdi->header + VDI_AT_MODIFICATION);
    if (!storage_pwrite(vdi->storage, vdi->header, VDI_HEADER, 0, error) ||
        !storage_flush(vdi->storage, error)) {
        vdi->failed = true;
        return false;
    }
    vdi->unused = g_array_new(FALSE, FALSE, sizeof(uint32_t));
    vdi->dropped = g_array_new(FALSE, FALSE, sizeof(uint32_t));
    find_unused(vdi);
    vdi->writing = true;
    return true;
}

/* The header is one sector: it is written as a whole. */
static bool tell_child(struct vdi *child, const uint8_t *modification, GError **error)
{
    uint8_t *known = child->header + VDI_AT_PARENT_MODIFICATION;

    if (uuid_is_zero(known) || memcmp(known, modification, UUID_LENGTH) == 0)
        return true;
    memcpy(known, modification, UUID_LENGTH);
    return storage_pwrite(child->storage, child->header, VDI_HEADER, 0, error) &&
           storage_flush(child->storage, error);
}

bool vdi_begin_merge(struct image *image, struct image *child, GError **error)
{
    struct vdi *vdi = image->opaque;
    uint8_t next[UUID_LENGTH];

    vdi_merge_uuid(child->opaque, vdi->header + VDI_AT_MODIFICATION, next);
    if (!tell_child(child->opaque, next, error))
        return false;
    memcpy(vdi->header + VDI_AT_MODIFICATION, next, UUID_LENGTH);
    vdi->merging = true;
    return true;
}

/* ---- place -------------------------------------------------------------------------------------- */

static bool allocate(struct vdi *vdi, uint64_t block, GError **error)
{
    uint64_t number = vdi->next;

    if (vdi->unused->len > 0) {
        number = g_array_index(vdi->unused, uint32_t, vdi->unused->len - 1);
        g_array_set_size(vdi->unused, vdi->unused->len - 1);
    } else if (number >= VDI_ZERO) {
        return blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "vdi: there are no numbers for more blocks");
    } else if (!vdi->storage->growable && end_of(vdi, number + 1) > vdi->storage->size) {
        return blockmig_fail(error, BLOCKMIG_ERROR_NOSPACE,
                             "vdi: no room for block %" G_GUINT64_FORMAT " on %" G_GUINT64_FORMAT " bytes",
                             block, vdi->storage->size);
    } else {
        vdi->next++;
    }
    block_table_set(&vdi->map, block, number);
    return true;
}

static struct placement make_placement(struct vdi *vdi, uint64_t from, uint64_t to)
{
    uint32_t number = vdi->map.entries[from / vdi->block_size];

    return (struct placement){
        .to = {.offset = from,
               .length = to - from,
               .status = EXTENT_DATA,
               .storage = vdi->storage,
               .host_offset = vdi_host(vdi, number) + from % vdi->block_size},
    };
}

/* The part [from, to) of a new block that is not written. */
static void add_fill(struct vdi *vdi, enum extent_status status, uint64_t from, uint64_t to, GArray *fills)
{
    struct placement fill = make_placement(vdi, from, to);

    if (from == to)
        return;
    fill.fill = true;
    fill.clean = status == EXTENT_ZERO;
    fill.from = (struct extent){.offset = from, .length = to - from, .status = status};
    g_array_append_val(fills, fill);
}

/* Bytes [from, to) of a new block read as zeros from now on.  Behind the end of the file they do so already.
 */
static bool make_zeros(struct vdi *vdi, uint64_t block, uint64_t from, uint64_t to, GError **error)
{
    struct storage *storage = vdi->storage;
    uint64_t host = vdi_host(vdi, vdi->map.entries[block]), first = host + from, end = host + to;
    uint64_t old = storage->growable ? CLAMP(storage->size, first, end) : end;

    return from == to || ((end <= storage->size || storage_resize(storage, end, error)) &&
                          storage_zero(storage, first, old - first, true, error));
}

/* A new block of which [from, to) is written.  What lies behind the end of the disk in its last block is seen
 * if the disk grows one day. */
static bool add_block(struct vdi *vdi, uint64_t block, uint64_t from, uint64_t to, GArray *fills,
                      GError **error)
{
    uint64_t start = block * vdi->block_size, end = MIN(start + vdi->block_size, vdi->image->size);
    bool free = vdi->map.entries[block] == VDI_FREE;
    enum extent_status status = free && vdi->type == VDI_DIFFERENCING ? EXTENT_HOLE : EXTENT_ZERO;
    uint64_t dirty = status == EXTENT_ZERO ? from - start : 0, clean = status == EXTENT_ZERO ? to : end;

    if (!allocate(vdi, block, error) || !make_zeros(vdi, block, 0, dirty, error) ||
        !make_zeros(vdi, block, clean - start, vdi->block_size, error))
        return false;
    add_fill(vdi, status, start, from, fills);
    add_fill(vdi, status, to, end, fills);
    return true;
}

/* [from, to) lies in one block. */
static bool place_block(struct vdi *vdi, uint64_t from, uint64_t to, GArray *placements, GArray *fills,
                        GError **error)
{
    uint64_t block = from / vdi->block_size;
    struct placement placement;

    if (vdi->map.entries[block] >= VDI_ZERO && !add_block(vdi, block, from, to, fills, error))
        return false;
    placement = make_placement(vdi, from, to);
    g_array_append_val(placements, placement);
    return true;
}

bool vdi_place(struct image *image, uint64_t offset, uint64_t length, GArray *placements, GError **error)
{
    struct vdi *vdi = image->opaque;
    g_autoptr(GArray) fills = g_array_new(FALSE, FALSE, sizeof(struct placement));
    uint64_t end = offset + length;

    if (!begin_write(vdi, error))
        return false;
    for (uint64_t next; offset < end; offset = next) {
        next = MIN(end, (offset / vdi->block_size + 1) * vdi->block_size);
        if (!place_block(vdi, offset, next, placements, fills, error)) {
            vdi->failed = true;
            return false;
        }
    }
    g_array_append_vals(placements, fills->data, fills->len);
    return true;
}

/* ---- zero --------------------------------------------------------------------------------------- */

/* A base: what is there becomes zeros where it is; VirtualBox wants no unused numbers. */
static bool zero_in_place(struct vdi *vdi, uint64_t offset, uint64_t end, GError **error)
{
    for (uint64_t next; offset < end; offset = next) {
        uint64_t block = offset / vdi->block_size;
        uint32_t entry = vdi->map.entries[block];

        next = MIN(end, (block + 1) * vdi->block_size);
        if (entry < VDI_ZERO && !storage_zero(vdi->storage, vdi_host(vdi, entry) + offset % vdi->block_size,
                                              next - offset, true, error))
            return false;
    }
    return true;
}

/* A child: the whole blocks among them hide the parent. */
static void hide_blocks(struct vdi *vdi, uint64_t first, uint64_t end)
{
    for (uint64_t block = first; block < end; block++) {
        uint32_t entry = vdi->map.entries[block];

        if (entry < VDI_ZERO)
            g_array_append_val(vdi->dropped, entry);
        if (entry != VDI_ZERO)
            block_table_set(&vdi->map, block, VDI_ZERO);
    }
}

bool vdi_zero(struct image *image, uint64_t offset, uint64_t length, uint64_t *done_offset,
              uint64_t *done_length, GError **error)
{
    struct vdi *vdi = image->opaque;
    uint64_t end = offset + length, first = (offset + vdi->block_size - 1) / vdi->block_size;
    uint64_t last = end == image->size ? vdi->map.count : end / vdi->block_size;

    *done_offset = offset;
    *done_length = 0;
    if (vdi->type == VDI_DIFFERENCING && first >= last)
        return true;
    if (!begin_write(vdi, error))
        return false;
    if (vdi->type != VDI_DIFFERENCING) {
        vdi->failed = !zero_in_place(vdi, offset, end, error);
        *done_length = length;
        return !vdi->failed;
    }
    hide_blocks(vdi, first, last);
    *done_offset = first * vdi->block_size;
    *done_length = MIN(last * vdi->block_size, image->size) - *done_offset;
    return true;
}

/* ---- flush -------------------------------------------------------------------------------------- */

static bool write_count(struct vdi *vdi, GError **error)
{
    uint64_t end = end_of(vdi, vdi->next);

    if (vdi->storage->growable && vdi->storage->size < end && !storage_resize(vdi->storage, end, error))
        return false;
    if (load_le32(vdi->header + VDI_AT_ALLOCATED) == vdi->next)
        return true;
    store_le32(vdi->header + VDI_AT_ALLOCATED, vdi->next);
    return storage_pwrite(vdi->storage, vdi->header, VDI_HEADER, 0, error);
}

static gint descending(gconstpointer a, gconstpointer b)
{
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;

    return left < right ? 1 : -(left > right);
}

/* No entry leads to them any more: those at the end of the file are cut off, the others may be used again,
 * and their space goes back until then. */
static bool drop_blocks(struct vdi *vdi, GError **error)
{
    uint64_t before = vdi->next;

    for (guint i = 0; i < vdi->dropped->len; i++) {
        uint64_t host = vdi_host(vdi, g_array_index(vdi->dropped, uint32_t, i));

        if (!storage_discard(vdi->storage, host, vdi->block_size, error))
            return false;
    }
    g_array_append_vals(vdi->unused, vdi->dropped->data, vdi->dropped->len);
    g_array_set_size(vdi->dropped, 0);
    g_array_sort(vdi->unused, descending); /* the lowest is taken first */
    while (vdi->unused->len > 0 && g_array_index(vdi->unused, uint32_t, 0) == vdi->next - 1) {
        g_array_remove_index(vdi->unused, 0);
        vdi->next--;
    }
    if (vdi->next == before)
        return true;
    return (!vdi->storage->growable || storage_resize(vdi->storage, end_of(vdi, vdi->next), error)) &&
           write_count(vdi, error) && storage_flush(vdi->storage, error);
}

bool vdi_flush(struct image *image, GError **error)
{
    struct vdi *vdi = image->opaque;

    if (!vdi->writing && !vdi->failed)
        return storage_flush(vdi->storage, error);
    if (!begin_write(vdi, error)) /* reports what failed before */
        return false;
    vdi->failed = true; /* after a failed barrier nobody knows what the medium holds */
    if (!write_count(vdi, error) || !storage_flush(vdi->storage, error))
        return false;
    if (vdi->map.any_dirty && (!block_table_write(&vdi->map, error) || !storage_flush(vdi->storage, error)))
        return false;
    vdi->failed = vdi->dropped->len > 0 && !drop_blocks(vdi, error);
    return !vdi->failed;
}

/* ---- check -------------------------------------------------------------------------------------- */

/* What can be wrong is refused by open.  What a crash left behind the last block is cut off. */
bool vdi_check(struct image *image, bool repair, struct image_check *result, GError **error)
{
    struct vdi *vdi = image->opaque;
    uint64_t counted = MAX(load_le32(vdi->header + VDI_AT_ALLOCATED), vdi->next) - vdi->next;
    uint64_t end = end_of(vdi, vdi->next);

    if (vdi->writing)
        return true;
    if (vdi->storage->growable && vdi->storage->size > end)
        result->leaks = (vdi->storage->size - end) / ((uint64_t)vdi->block_size + vdi->extra);
    result->leaks = MAX(result->leaks, counted);
    if (!repair || result->leaks == 0)
        return true;
    if (!begin_write(vdi, error) ||
        (vdi->storage->growable && vdi->storage->size > end && !storage_resize(vdi->storage, end, error)))
        return false;
    result->repaired = result->leaks;
    return vdi_flush(image, error);
}
