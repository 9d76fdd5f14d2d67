/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * From guest offsets to extents.  A sector whose bit is set is in this file; of the others, and of blocks
 * that are not there, a dynamic disk reads zeros and a differencing disk its parent.  QEMU takes all of a
 * block from the file, whatever the bits say; in the images of all known writers those bytes are zeros.
 */
#include "formats/raw.h"
#include "formats/vhd.h"

#include <string.h>

#define CACHE    64u /* bitmaps */
#define PREFETCH 64u /* blocks ahead of a walk whose bitmaps are on their way */

/* Bytes without a change of value are passed eight bits at a time. */
uint64_t vhd_bits_run(const uint8_t *bits, uint64_t sector, uint64_t end, bool value)
{
    uint8_t same = value ? 0xff : 0;

    while (sector < end && vhd_bit(bits, sector) == value) {
        if (sector % 8 == 0 && bits[sector / 8] == same)
            sector += 8;
        else
            sector++;
    }
    return MIN(sector, end);
}

/* Bitmaps lie scattered among the data: a walk through the disk asks for those ahead of it. */
static void prefetch_bitmaps(struct vhd *vhd, uint64_t block)
{
    uint64_t last = vhd->last_read, end = MIN(block + PREFETCH, vhd->bat.count);
    bool walking = block > last && block - last <= PREFETCH;
    uint64_t next = MAX(block + 1, vhd->prefetched);

    vhd->last_read = block;
    if (!walking) {
        vhd->prefetched = block + 1;
        return;
    }
    if (next > block + PREFETCH / 2)
        return;
    for (; next < end; next++) {
        if (vhd->bat.entries[next] != VHD_ABSENT)
            storage_prefetch(vhd->storage, (uint64_t)vhd->bat.entries[next] * VHD_SECTOR, vhd->bitmap_size);
    }
    vhd->prefetched = end;
}

const uint8_t *vhd_bitmap_load(struct vhd *vhd, uint64_t block, GError **error)
{
    struct vhd_bitmap *changed = vhd->changed ? g_hash_table_lookup(vhd->changed, &block) : NULL;
    struct vhd_bitmap *slot;

    if (changed)
        return changed->bits;
    if (!vhd->cache)
        vhd->cache = g_new0(struct vhd_bitmap, CACHE);
    slot = &vhd->cache[block % CACHE];
    if (slot->bits && slot->block == block)
        return slot->bits;
    if (!slot->bits)
        slot->bits = g_malloc(vhd->bitmap_size);
    prefetch_bitmaps(vhd, block);
    slot->block = UINT64_MAX;
    if (!storage_pread(vhd->storage, slot->bits, vhd->bitmap_size,
                       (uint64_t)vhd->bat.entries[block] * VHD_SECTOR, error))
        return NULL;
    slot->block = block;
    return slot->bits;
}

void vhd_cache_drop(struct vhd *vhd, uint64_t block)
{
    struct vhd_bitmap *slot = vhd->cache ? &vhd->cache[block % CACHE] : NULL;

    if (slot && slot->block == block)
        slot->block = UINT64_MAX;
}

void vhd_cache_free(struct vhd *vhd)
{
    for (unsigned i = 0; vhd->cache && i < CACHE; i++)
        g_free(vhd->cache[i].bits);
    g_clear_pointer(&vhd->cache, g_free);
}

/* [from, to) lies in one block that is there. *done: up to where it was added. */
static bool map_block(struct vhd *vhd, uint64_t from, uint64_t to, struct extent_sink *sink, uint64_t *done,
                      GError **error)
{
    uint64_t block = from / vhd->block_size, start = block * vhd->block_size;
    uint64_t end = (to - start + VHD_SECTOR - 1) / VHD_SECTOR;
    const uint8_t *bits = vhd_bitmap_load(vhd, block, error);

    *done = from;
    while (bits && *done < to) {
        uint64_t sector = (*done - start) / VHD_SECTOR;
        bool set = vhd_bit(bits, sector);
        uint64_t next = MIN(to, start + vhd_bits_run(bits, sector, end, set) * VHD_SECTOR);
        struct extent extent = {.offset = *done, .length = next - *done, .status = vhd_nothing(vhd)};

        if (set) {
            extent.status = EXTENT_DATA;
            extent.host_offset = vhd_host(vhd, block) + (*done - start);
        }
        if (!extent_sink_add(sink, &extent))
            break;
        *done = next;
    }
    return bits;
}

bool vhd_map(struct image *image, uint64_t offset, uint64_t length, struct extent *out, size_t max,
             size_t *count, GError **error)
{
    struct vhd *vhd = image->opaque;
    struct extent_sink sink = {.out = out, .max = max, .storage = vhd->storage};
    GError *failure = NULL;

    if (vhd->type == VHD_FIXED)
        return raw_map(image, offset, length, out, max, count, error);
    uint64_t end = offset + length, blocks = (end + vhd->block_size - 1) / vhd->block_size;

    for (uint64_t at = offset, next, done; at < end; at = next) {
        uint64_t block = at / vhd->block_size;
        uint64_t absent = block_table_run(&vhd->bat, block, blocks, VHD_ABSENT);
        struct extent extent = {.offset = at, .status = vhd_nothing(vhd)};

        next = MIN(end, (block + MAX(absent, 1)) * vhd->block_size);
        extent.length = next - at;
        if (absent == 0) {
            if (!map_block(vhd, at, next, &sink, &done, &failure) || done < next)
                break;
        } else if (!extent_sink_add(&sink, &extent))
            break;
    }
    return extent_sink_end(&sink, failure, count, error);
}
