/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Changes of the mapping.  They happen in memory: the medium learns of them in flush().
 *
 * A new block reads as zeros before anything is written to it, so a base never needs bytes around those that
 * are written.  A differencing image holds sectors: what a write touches of one that is still the parent's
 * has to be brought along. Space that a change makes superfluous stays taken until that flush.
 */
#include "formats/vhdx.h"

/* Bytes [from, to) of a block, `bytes` of which the disk shows. */
struct part {
    uint64_t block, from, to, bytes;
};

static struct part part_of(const struct vhdx *vhdx, uint64_t offset, uint64_t end)
{
    uint64_t block = offset / vhdx->block_size, start = block * vhdx->block_size;

    return (struct part){.block = block,
                         .from = offset - start,
                         .to = MIN(end - start, vhdx->block_size),
                         .bytes = MIN(vhdx->block_size, vhdx->image->size - start)};
}

static bool is_whole(const struct part *part)
{
    return part->from == 0 && part->to == part->bytes;
}

static uint32_t entry_of(const struct vhdx *vhdx, uint64_t block)
{
    return vhdx->bat[vhdx_block_index(vhdx, block)];
}

/* The file grows at once: whatever is mapped can be read. */
static bool reach(struct vhdx *vhdx, uint64_t end, GError **error)
{
    struct storage *storage = vhdx->image->storage;

    if (end <= storage->size)
        return true;
    if (storage->growable)
        return storage_resize(storage, end, error);
    return blockmig_fail(error, BLOCKMIG_ERROR_NOSPACE,
                         "%s: no space: a block would end at %" G_GUINT64_FORMAT
                         ", behind the end of the storage (%" G_GUINT64_FORMAT " bytes)",
                         storage->name, end, storage->size);
}

/* New space that reads as zeros. */
static bool allocate(struct vhdx *vhdx, uint64_t length, uint64_t *host, GError **error)
{
    struct storage *storage = vhdx->image->storage;
    uint64_t old;

    *host = vhdx_space_find(&vhdx->space, length);
    old = storage->growable ? CLAMP(storage->size, *host, *host + length) : *host + length;
    if (*host + length > VHDX_MAX_HOST)
        return blockmig_fail(error, BLOCKMIG_ERROR_NOSPACE,
                             "VHDX: the file would be larger than %" G_GUINT64_FORMAT, VHDX_MAX_HOST);
    if (!reach(vhdx, *host + length, error) || !storage_zero(storage, *host, old - *host, true, error))
        return false;
    vhdx_space_claim(&vhdx->space, *host, length);
    return true;
}

static void free_later(struct vhdx *vhdx, uint64_t host)
{
    struct vhdx_range range = {host, vhdx->block_size};

    g_array_append_val(vhdx->frees, range);
}

static void set_block(struct vhdx *vhdx, uint64_t block, enum vhdx_state state, uint64_t host)
{
    uint32_t entry = entry_of(vhdx, block);

    if (vhdx_entry_present(entry) && vhdx_entry_host(entry) != host)
        free_later(vhdx, vhdx_entry_host(entry));
    if (vhdx_entry_state(entry) != state || vhdx_entry_host(entry) != host)
        vhdx_bat_set(vhdx, vhdx_block_index(vhdx, block), state, host);
}

/* ---- place -------------------------------------------------------------------------------------- */

/* Bytes [from, to) of a block. */
static struct placement make_placement(const struct vhdx *vhdx, uint64_t block, uint64_t from, uint64_t to)
{
    return (struct placement){
        .to = {.offset = block * vhdx->block_size + from,
               .length = to - from,
               .status = EXTENT_DATA,
               .storage = vhdx->image->storage,
               .host_offset = vhdx_entry_host(entry_of(vhdx, block)) + from},
    };
}

static void append(GArray *placements, const struct vhdx *vhdx, const struct part *part)
{
    struct placement *last =
        placements->len ? &g_array_index(placements, struct placement, placements->len - 1) : NULL;
    struct placement placement = make_placement(vhdx, part->block, part->from, part->to);

    if (last && last->to.host_offset + last->to.length == placement.to.host_offset)
        last->to.length += placement.to.length;
    else
        g_array_append_val(placements, placement);
}

/* What is read there now: a hole, or zeros that are there already. */
static void append_fill(GArray *fills, const struct vhdx *vhdx, const struct part *part, uint64_t from,
                        uint64_t to, bool clean)
{
    struct placement fill = make_placement(vhdx, part->block, from, to);

    fill.fill = true;
    fill.clean = clean;
    fill.from = (struct extent){
        .offset = fill.to.offset, .length = fill.to.length, .status = clean ? EXTENT_ZERO : EXTENT_HOLE};
    if (from < to)
        g_array_append_val(fills, fill);
}

/* The chunk of the block gets a sector bitmap of zeros if it has none. */
static bool need_bitmap(struct vhdx *vhdx, uint64_t block, GError **error)
{
    uint64_t chunk = block / vhdx->chunk_ratio, index = vhdx_bitmap_index(vhdx, chunk), host;

    if (vhdx_entry_present(vhdx->bat[index]))
        return true;
    if (!allocate(vhdx, VHDX_MIB, &host, error))
        return false;
    vhdx_bat_set(vhdx, index, VHDX_PRESENT, host);
    g_array_append_val(vhdx->new_bitmaps, chunk);
    return true;
}

/* Sectors that the part touches become ours; those that it touches in part are filled from the parent. */
static bool take_sectors(struct vhdx *vhdx, const struct part *part, bool fresh, GArray *fills,
                         GError **error)
{
    uint64_t sector = vhdx->logical_sector, first;
    uint64_t head = part->from / sector, tail = (part->to - 1) / sector;
    struct vhdx_piece *piece = vhdx_bitmap_load(vhdx, part->block, &first, error);

    if (!piece)
        return false;
    if (fresh) /* what the bits said while the block was not there means nothing */
        vhdx_bitmap_set(piece, first, first + vhdx->block_size / sector, false);
    if (part->from % sector && !vhdx_bitmap_get(piece, first + head))
        append_fill(fills, vhdx, part, head * sector, part->from, false);
    if (part->to % sector && !vhdx_bitmap_get(piece, first + tail))
        append_fill(fills, vhdx, part, part->to, (tail + 1) * sector, false);
    vhdx_bitmap_set(piece, first + head, first + tail + 1, true);
    return true;
}

static bool place_part(struct vhdx *vhdx, const struct part *part, GArray *places, GArray *fills,
                       GError **error)
{
    uint32_t entry = entry_of(vhdx, part->block);
    bool present = vhdx_entry_present(entry);
    /* Zeros that hide the parent stay zeros around what is written: all of such a block is ours. */
    bool partial = vhdx->differencing && !is_whole(part) &&
                   (vhdx_entry_state(entry) == VHDX_PARTIAL || vhdx_entry_state(entry) == VHDX_NOT_PRESENT);
    uint64_t host = vhdx_entry_host(entry);

    if ((partial && !need_bitmap(vhdx, part->block, error)) ||
        (!present && !allocate(vhdx, vhdx->block_size, &host, error)))
        return false;
    set_block(vhdx, part->block, partial ? VHDX_PARTIAL : VHDX_PRESENT, host);
    append(places, vhdx, part);
    if (partial)
        return take_sectors(vhdx, part, !present, fills, error);
    if (!present) {
        append_fill(fills, vhdx, part, 0, part->from, true);
        append_fill(fills, vhdx, part, part->to, part->bytes, true);
    }
    return true;
}

static bool place_range(struct vhdx *vhdx, uint64_t offset, uint64_t end, GArray *places, GArray *fills,
                        GError **error)
{
    struct part part;

    for (; offset < end; offset += part.to - part.from) {
        part = part_of(vhdx, offset, end);
        if (!place_part(vhdx, &part, places, fills, error))
            return false;
    }
    return true;
}

bool vhdx_place(struct image *image, uint64_t offset, uint64_t length, GArray *placements, GError **error)
{
    struct vhdx *vhdx = image->opaque;
    g_autoptr(GArray) places = g_array_new(FALSE, FALSE, sizeof(struct placement));
    g_autoptr(GArray) fills = g_array_new(FALSE, FALSE, sizeof(struct placement));

    if (!vhdx_begin_write(vhdx, error))
        return false;
    if (!place_range(vhdx, offset, offset + length, places, fills, error)) {
        vhdx->failed = true; /* the caller will not write what was placed before */
        return false;
    }
    g_array_append_vals(placements, places->data, places->len);
    if (fills->len)
        g_array_append_vals(placements, fills->data, fills->len);
    return true;
}

/* ---- zero and discard --------------------------------------------------------------------------- */

/* Does it take bytes to make a part of the block zero? */
static bool needs_bytes(const struct vhdx *vhdx, uint64_t block)
{
    uint32_t entry = entry_of(vhdx, block);

    return vhdx_entry_present(entry) || (vhdx->differencing && vhdx_entry_state(entry) == VHDX_NOT_PRESENT);
}

/* Does it take bytes to make all of it zero? A fixed image keeps its blocks. */
static bool keeps_block(const struct vhdx *vhdx, const struct part *part)
{
    return needs_bytes(vhdx, part->block) && (vhdx->fixed || !is_whole(part));
}

static void zero_block(struct vhdx *vhdx, uint64_t block, enum vhdx_state state)
{
    if (needs_bytes(vhdx, block))
        set_block(vhdx, block, state, 0);
}

/* The first run of parts from *offset on that need no bytes. */
static void zero_run(struct vhdx *vhdx, uint64_t *offset, uint64_t end, uint64_t *stop)
{
    struct part part;

    for (*stop = *offset; *stop < end; *stop += part.to - part.from) {
        part = part_of(vhdx, *stop, end);
        if (keeps_block(vhdx, &part)) {
            if (*stop > *offset)
                return;
            *offset += part.to - part.from;
        } else if (is_whole(&part)) {
            zero_block(vhdx, part.block, VHDX_ZERO);
        }
    }
}

bool vhdx_zero(struct image *image, uint64_t offset, uint64_t length, uint64_t *done_offset,
               uint64_t *done_length, GError **error)
{
    struct vhdx *vhdx = image->opaque;
    uint64_t first = offset, stop;

    if (!vhdx_begin_write(vhdx, error))
        return false;
    zero_run(vhdx, &first, offset + length, &stop);
    *done_offset = stop > first ? first : offset;
    *done_length = stop - first;
    return true;
}

/* Without a parent zeros may also be made in the blocks themselves. */
bool vhdx_discard(struct image *image, uint64_t offset, uint64_t length, uint64_t *done_offset,
                  uint64_t *done_length, GError **error)
{
    struct vhdx *vhdx = image->opaque;
    uint64_t end = offset + length;
    struct part part;

    if (vhdx->differencing)
        return vhdx_zero(image, offset, length, done_offset, done_length, error);
    if (!vhdx_begin_write(vhdx, error))
        return false;
    for (uint64_t at = offset; at < end; at += part.to - part.from) {
        part = part_of(vhdx, at, end);
        if (!keeps_block(vhdx, &part))
            zero_block(vhdx, part.block, VHDX_NOT_PRESENT);
        else if (!storage_zero(image->storage, vhdx_entry_host(entry_of(vhdx, part.block)) + part.from,
                               part.to - part.from, !vhdx->fixed, error))
            return false;
    }
    *done_offset = offset;
    *done_length = length;
    return true;
}
