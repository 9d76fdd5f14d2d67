/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Changes of a VHD.  BAT and bitmaps change in memory; flush() makes them durable in this order:
 *
 *   1  the file gets its new length, with the footer at its end, and bitmaps of new blocks; with the guest's
 *      data                                                          barrier
 *   2  BAT entries of new blocks, bitmaps of others                  barrier
 *
 * Before 1 is durable there may be no footer at the end: then its copy at the start counts, and nothing leads
 * to what is new.  A block begins where the footer was, or behind it, and its data never lies on it: what was
 * not written in a new block is zeros, which is what QEMU reads there without asking the bitmap.
 */
#include "formats/raw.h"
#include "formats/vhd.h"

#include <string.h>

void vhd_bitmap_free(struct vhd_bitmap *bitmap)
{
    g_free(bitmap->bits);
    g_free(bitmap);
}

static uint64_t used_end(const struct vhd *vhd)
{
    uint64_t end = 0;

    for (guint i = 0; i < vhd->fixed->len; i++) {
        const struct vhd_range *part = &g_array_index(vhd->fixed, struct vhd_range, i);

        end = MAX(end, part->offset + part->length);
    }
    for (uint64_t block = 0; block < vhd->bat.count; block++) {
        if (vhd->bat.entries[block] != VHD_ABSENT)
            end = MAX(end, vhd_host(vhd, block) + vhd->block_size);
    }
    return (end + VHD_SECTOR - 1) / VHD_SECTOR * VHD_SECTOR;
}

/* Where new blocks begin.  Of a file whose last footer is lost nobody knows what lies behind the last block:
 * it is cut off.  A device has its footer at its end from the start. */
static bool begin_write(struct vhd *vhd, GError **error)
{
    struct storage *storage = vhd->storage;

    if (vhd->failed)
        return blockmig_fail(error, BLOCKMIG_ERROR_FAILED,
                             "vhd: an earlier change stopped half way; the image must be opened anew");
    if (vhd->writing)
        return true;
    vhd->end = used_end(vhd);
    vhd->grown = vhd->end_missing;
    if (storage->growable && vhd->end_missing && !storage_resize(storage, vhd->end, error))
        return false;
    if (storage->growable && !vhd->end_missing)
        vhd->end = MAX(vhd->end, storage->size / VHD_SECTOR * VHD_SECTOR - VHD_SECTOR);
    vhd->changed = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, (GDestroyNotify)vhd_bitmap_free);
    vhd->writing = true;
    return true;
}

/* ---- place -------------------------------------------------------------------------------------- */

/* On a device zeros have to be made: no bit hides from QEMU what was there before. */
static bool allocate(struct vhd *vhd, uint64_t block, GError **error)
{
    struct storage *storage = vhd->storage;
    uint64_t data =
        (vhd->end + vhd->bitmap_size + VHD_DATA_ALIGNMENT - 1) / VHD_DATA_ALIGNMENT * VHD_DATA_ALIGNMENT;
    uint64_t start = data - vhd->bitmap_size, end = data + vhd->block_size;

    if (start / VHD_SECTOR >= VHD_ABSENT)
        return blockmig_fail(error, BLOCKMIG_ERROR_FAILED,
                             "vhd: block %" G_GUINT64_FORMAT " would lie behind the first 2 TiB of the file",
                             block);
    if (!storage->growable && end > storage->size - VHD_SECTOR)
        return blockmig_fail(error, BLOCKMIG_ERROR_NOSPACE,
                             "vhd: no room for block %" G_GUINT64_FORMAT " on %" G_GUINT64_FORMAT " bytes",
                             block, storage->size);
    if (!storage->growable && !storage_zero(storage, start, end - start, true, error))
        return false;
    block_table_set(&vhd->bat, block, start / VHD_SECTOR);
    vhd->end = end;
    vhd->grown = true;
    return true;
}

/* The bitmap of a block, to be changed; the block is made if it is not there. */
static struct vhd_bitmap *edit(struct vhd *vhd, uint64_t block, GError **error)
{
    struct vhd_bitmap *bitmap = g_hash_table_lookup(vhd->changed, &block);
    const uint8_t *bits = NULL;
    bool fresh = vhd->bat.entries[block] == VHD_ABSENT;

    if (bitmap)
        return bitmap;
    if (fresh ? !allocate(vhd, block, error) : !(bits = vhd_bitmap_load(vhd, block, error)))
        return NULL;
    bitmap = g_new0(struct vhd_bitmap, 1);
    bitmap->block = block;
    bitmap->fresh = fresh;
    bitmap->bits = fresh ? g_malloc0(vhd->bitmap_size) : g_memdup2(bits, vhd->bitmap_size);
    vhd_cache_drop(vhd, block);
    g_hash_table_insert(vhd->changed, &bitmap->block, bitmap);
    return bitmap;
}

static struct placement make_placement(struct vhd *vhd, uint64_t from, uint64_t to)
{
    uint64_t block = from / vhd->block_size;

    return (struct placement){
        .to = {.offset = from,
               .length = to - from,
               .status = EXTENT_DATA,
               .storage = vhd->storage,
               .host_offset = vhd_host(vhd, block) + from % vhd->block_size},
    };
}

/* The part [from, to) of a sector whose bit is about to be set, and which is not written. */
static void add_fill(struct vhd *vhd, const uint8_t *bits, uint64_t from, uint64_t to, GArray *fills)
{
    struct placement fill = make_placement(vhd, from, to);

    if (from == to || vhd_bit(bits, from % vhd->block_size / VHD_SECTOR))
        return;
    fill.fill = true;
    fill.from = (struct extent){.offset = from, .length = to - from, .status = vhd_nothing(vhd)};
    g_array_append_val(fills, fill);
}

static void set_bits(uint8_t *bits, uint64_t first, uint64_t end, bool value)
{
    while (first < end) {
        if (first % 8 == 0 && end - first >= 8) {
            memset(bits + first / 8, value ? 0xff : 0, (end - first) / 8);
            first += (end - first) / 8 * 8;
        } else {
            bits[first / 8] =
                value ? bits[first / 8] | 0x80 >> first % 8 : bits[first / 8] & ~(0x80 >> first % 8);
            first++;
        }
    }
}

/* [from, to) lies in one block. */
static bool place_block(struct vhd *vhd, uint64_t from, uint64_t to, GArray *placements, GArray *fills,
                        GError **error)
{
    struct vhd_bitmap *bitmap = edit(vhd, from / vhd->block_size, error);
    struct placement placement;
    uint64_t first = from / VHD_SECTOR * VHD_SECTOR, end = (to + VHD_SECTOR - 1) / VHD_SECTOR * VHD_SECTOR;
    uint64_t start = from / vhd->block_size * vhd->block_size;

    if (!bitmap)
        return false;
    placement = make_placement(vhd, from, to);
    g_array_append_val(placements, placement);
    add_fill(vhd, bitmap->bits, first, from, fills);
    add_fill(vhd, bitmap->bits, to, end, fills);
    set_bits(bitmap->bits, (first - start) / VHD_SECTOR, (end - start) / VHD_SECTOR, true);
    return true;
}

bool vhd_place(struct image *image, uint64_t offset, uint64_t length, GArray *placements, GError **error)
{
    struct vhd *vhd = image->opaque;
    g_autoptr(GArray) fills = g_array_new(FALSE, FALSE, sizeof(struct placement));
    uint64_t end = offset + length;

    if (vhd->type == VHD_FIXED)
        return raw_place(image, offset, length, placements, error);
    if (!begin_write(vhd, error))
        return false;
    for (uint64_t next; offset < end; offset = next) {
        next = MIN(end, (offset / vhd->block_size + 1) * vhd->block_size);
        if (!place_block(vhd, offset, next, placements, fills, error)) {
            vhd->failed = true;
            return false;
        }
    }
    g_array_append_vals(placements, fills->data, fills->len);
    return true;
}

/* ---- zero --------------------------------------------------------------------------------------- */

/* [from, to) lies in one block that is there.  Its bytes become zeros at once, and all of them: QEMU does not
 * ask the bits, and what a crash left in a sector before its bit was set is still there. */
static bool zero_block(struct vhd *vhd, uint64_t from, uint64_t to, GError **error)
{
    uint64_t block = from / vhd->block_size, start = block * vhd->block_size;
    uint64_t first = (from - start + VHD_SECTOR - 1) / VHD_SECTOR, end = (to - start) / VHD_SECTOR;
    struct vhd_bitmap *bitmap = edit(vhd, block, error);

    if (!bitmap || !storage_zero(vhd->storage, vhd_host(vhd, block) + (from - start), to - from, true, error))
        return false;
    set_bits(bitmap->bits, first, end, false);
    return true;
}

/* A differencing disk has no word for zeros: they are written. */
bool vhd_zero(struct image *image, uint64_t offset, uint64_t length, uint64_t *done_offset,
              uint64_t *done_length, GError **error)
{
    struct vhd *vhd = image->opaque;
    uint64_t end = offset + length;

    if (vhd->type == VHD_FIXED)
        return raw_zero(image, offset, length, done_offset, done_length, error);
    *done_offset = offset;
    *done_length = vhd->type == VHD_DIFFERENCING ? 0 : length;
    if (*done_length == 0)
        return true;
    if (!begin_write(vhd, error))
        return false;
    for (uint64_t next; offset < end; offset = next) {
        uint64_t block = offset / vhd->block_size;

        next = MIN(end, (block + 1) * vhd->block_size);
        if (vhd->bat.entries[block] != VHD_ABSENT && !zero_block(vhd, offset, next, error)) {
            vhd->failed = true;
            return false;
        }
    }
    return true;
}

/* ---- flush -------------------------------------------------------------------------------------- */

static gint by_block(gconstpointer a, gconstpointer b)
{
    const struct vhd_bitmap *left = *(void *const *)a, *right = *(void *const *)b;

    return left->block < right->block ? -1 : left->block > right->block;
}

static GPtrArray *sorted_bitmaps(struct vhd *vhd)
{
    GPtrArray *bitmaps = g_ptr_array_new();
    GHashTableIter iter;
    gpointer bitmap;

    g_hash_table_iter_init(&iter, vhd->changed);
    while (g_hash_table_iter_next(&iter, NULL, &bitmap))
        g_ptr_array_add(bitmaps, bitmap);
    g_ptr_array_sort(bitmaps, by_block);
    return bitmaps;
}

static bool write_bitmaps(struct vhd *vhd, GPtrArray *bitmaps, bool fresh, GError **error)
{
    for (guint i = 0; i < bitmaps->len; i++) {
        const struct vhd_bitmap *bitmap = bitmaps->pdata[i];
        uint64_t host = (uint64_t)vhd->bat.entries[bitmap->block] * VHD_SECTOR;

        if (bitmap->fresh == fresh &&
            !storage_pwrite(vhd->storage, bitmap->bits, vhd->bitmap_size, host, error))
            return false;
    }
    return true;
}

/* Step 1. */
static bool write_unreferenced(struct vhd *vhd, GPtrArray *bitmaps, GError **error)
{
    struct storage *storage = vhd->storage;
    uint64_t size = storage->growable ? vhd->end + VHD_SECTOR : storage->size;

    if (vhd->grown && storage->size != size && !storage_resize(storage, size, error))
        return false;
    return write_bitmaps(vhd, bitmaps, true, error) &&
           (!vhd->grown || storage_pwrite(storage, vhd->footer, VHD_SECTOR, size - VHD_SECTOR, error)) &&
           storage_flush(storage, error);
}

/* Step 2. */
static bool write_references(struct vhd *vhd, GPtrArray *bitmaps, GError **error)
{
    if (bitmaps->len == 0 && !vhd->copy_differs)
        return true;
    return write_bitmaps(vhd, bitmaps, false, error) && block_table_write(&vhd->bat, error) &&
           (!vhd->copy_differs || storage_pwrite(vhd->storage, vhd->footer, VHD_SECTOR, 0, error)) &&
           storage_flush(vhd->storage, error);
}

bool vhd_flush(struct image *image, GError **error)
{
    struct vhd *vhd = image->opaque;
    g_autoptr(GPtrArray) bitmaps = NULL;

    if (!vhd->writing && !vhd->failed) /* fixed, or nothing was changed */
        return storage_flush(vhd->storage, error);
    if (!begin_write(vhd, error)) /* reports what failed before */
        return false;
    bitmaps = sorted_bitmaps(vhd);
    if (!write_unreferenced(vhd, bitmaps, error) || !write_references(vhd, bitmaps, error)) {
        vhd->failed = true; /* after a failed barrier nobody knows what the medium holds */
        return false;
    }
    g_hash_table_remove_all(vhd->changed);
    vhd->grown = vhd->copy_differs = vhd->end_missing = false;
    return true;
}

/* ---- check -------------------------------------------------------------------------------------- */

/* What can be wrong is refused by open.  A crash leaves blocks at the end of the file to which no entry
 * leads: they are cut off. */
bool vhd_check(struct image *image, bool repair, struct image_check *result, GError **error)
{
    struct vhd *vhd = image->opaque;
    uint64_t used, size = vhd->storage->size;

    if (vhd->type == VHD_FIXED || !vhd->storage->growable || vhd->writing)
        return true;
    used = used_end(vhd) + (vhd->end_missing ? 0 : VHD_SECTOR);
    result->leaks = size > used ? (size - used) / (vhd->bitmap_size + vhd->block_size) : 0;
    if (!repair || result->leaks == 0)
        return true;
    if (!begin_write(vhd, error))
        return false;
    vhd->end = used_end(vhd);
    vhd->grown = true;
    result->repaired = result->leaks;
    return vhd_flush(image, error);
}
