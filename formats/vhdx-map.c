/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* From guest offsets to extents: the BAT, and sector bitmaps for blocks that are there in part. */
#include "formats/vhdx.h"

/* The part [offset, end) of a block that is there in part.  False: the sink is full or (error set) the bitmap
 * cannot be read. */
static bool map_partial(struct vhdx *vhdx, uint64_t block, uint64_t host, uint64_t offset, uint64_t end,
                        struct extent_sink *sink, GError **error)
{
    uint64_t start = block * vhdx->block_size, first;
    struct vhdx_piece *piece = vhdx_bitmap_load(vhdx, block, &first, error);

    if (!piece)
        return false;
    while (offset < end) {
        uint64_t bit = first + (offset - start) / vhdx->logical_sector;
        uint64_t last = first + (end - start + vhdx->logical_sector - 1) / vhdx->logical_sector;
        uint64_t stop = bit + vhdx_bitmap_run(piece, bit, last);
        uint64_t next = MIN(end, start + (stop - first) * vhdx->logical_sector);
        struct extent extent = {.offset = offset,
                                .length = next - offset,
                                .status = vhdx_bitmap_get(piece, bit) ? EXTENT_DATA : EXTENT_HOLE,
                                .host_offset = host + (offset - start)};

        if (!extent_sink_add(sink, &extent))
            return false;
        offset = next;
    }
    return true;
}

/* Blocks of the same kind without content, from the one of `offset` on. */
static bool map_absent(struct vhdx *vhdx, uint64_t offset, uint64_t end, uint64_t *next,
                       struct extent_sink *sink)
{
    uint64_t block = offset / vhdx->block_size, last = (end - 1) / vhdx->block_size;
    uint32_t entry = vhdx->bat[vhdx_block_index(vhdx, block)];
    struct extent extent = {
        .offset = offset, .status = vhdx_entry_state(entry) == VHDX_NOT_PRESENT ? EXTENT_HOLE : EXTENT_ZERO};

    while (block < last && vhdx->bat[vhdx_block_index(vhdx, block + 1)] == entry)
        block++;
    *next = MIN(end, (block + 1) * vhdx->block_size);
    extent.length = *next - offset;
    return extent_sink_add(sink, &extent);
}

static bool map_block(struct vhdx *vhdx, uint64_t offset, uint64_t end, uint64_t *next,
                      struct extent_sink *sink, GError **error)
{
    uint64_t block = offset / vhdx->block_size, start = block * vhdx->block_size;
    uint32_t entry = vhdx->bat[vhdx_block_index(vhdx, block)];
    struct extent extent = {.offset = offset, .status = EXTENT_DATA};

    if (!vhdx_entry_present(entry))
        return map_absent(vhdx, offset, end, next, sink);
    *next = MIN(end, start + vhdx->block_size);
    if (vhdx_entry_state(entry) == VHDX_PARTIAL)
        return map_partial(vhdx, block, vhdx_entry_host(entry), offset, *next, sink, error);
    extent.length = *next - offset;
    extent.host_offset = vhdx_entry_host(entry) + (offset - start);
    return extent_sink_add(sink, &extent);
}

bool vhdx_map(struct image *image, uint64_t offset, uint64_t length, struct extent *out, size_t max,
              size_t *count, GError **error)
{
    struct vhdx *vhdx = image->opaque;
    struct extent_sink sink = {
        .out = out, .max = max, .storage = vhdx->replayed_data ? vhdx->replay : image->storage};
    uint64_t end = offset + length, next;
    GError *failure = NULL;

    for (; offset < end; offset = next) {
        if (!map_block(vhdx, offset, end, &next, &sink, &failure))
            break;
    }
    return extent_sink_end(&sink, failure, count, error);
}
