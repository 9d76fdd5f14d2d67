/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The block allocation table ([MS-VHDX] 2.5).  All of it is read and checked when an image is opened: no
 * block may lie on another, on a table or outside the file.  In memory an entry has four bytes, and those of
 * blocks that are not there cost nothing.
 */
#include "formats/vhdx.h"

#include <string.h>

#define READ_PIECE   (UINT64_C(1) << 20)
#define ENTRY_OFFSET UINT64_C(0xfffffffffff00000)
#define ENTRY_ZEROS  UINT64_C(0x00000000000ffff8)

uint64_t vhdx_block_index(const struct vhdx *vhdx, uint64_t block)
{
    return block + block / vhdx->chunk_ratio;
}

uint64_t vhdx_bitmap_index(const struct vhdx *vhdx, uint64_t chunk)
{
    return chunk * (vhdx->chunk_ratio + 1) + vhdx->chunk_ratio;
}

/* Of an entry that is no bitmap's. */
static uint64_t block_of(const struct vhdx *vhdx, uint64_t index)
{
    return index - index / (vhdx->chunk_ratio + 1);
}

static bool is_bitmap(const struct vhdx *vhdx, uint64_t index)
{
    return index % (vhdx->chunk_ratio + 1) == vhdx->chunk_ratio;
}

/* Bytes of the file that must be there.  Only the block at the end of the disk may be cut, behind what the
 * disk shows of it: old versions of QEMU wrote it so. */
static uint64_t needed_bytes(const struct vhdx *vhdx, uint64_t index)
{
    if (is_bitmap(vhdx, index))
        return VHDX_MIB;
    return MIN(vhdx->block_size, vhdx->image->size - block_of(vhdx, index) * vhdx->block_size);
}

static const char *claim_block(struct vhdx *vhdx, uint64_t index, uint64_t host)
{
    uint64_t size = vhdx->storage->size;

    if (host < VHDX_MIB)
        return "points into the header section";
    if (host >= VHDX_MAX_HOST || host > size || needed_bytes(vhdx, index) > size - host)
        return "points behind the end of the file";
    if (!vhdx_space_claim(&vhdx->space, host, is_bitmap(vhdx, index) ? VHDX_MIB : vhdx->block_size))
        return "points to where a table or another block is";
    return NULL;
}

static const char *state_wrong(const struct vhdx *vhdx, uint64_t index, enum vhdx_state state)
{
    if (is_bitmap(vhdx, index))
        return state == VHDX_NOT_PRESENT || state == VHDX_PRESENT ? NULL
                                                                  : "has a state that bitmaps cannot have";
    if (block_of(vhdx, index) >= vhdx->blocks && state >= VHDX_PRESENT)
        return "is of a block behind the end of the disk";
    if (state == 4)
        return "has state 4, which does not exist";
    if (state == VHDX_PARTIAL && !vhdx->differencing)
        return "is partially present, but the image has no parent";
    return NULL;
}

static bool take_entry(struct vhdx *vhdx, uint64_t index, uint64_t raw, GError **error)
{
    enum vhdx_state state = raw & 7;
    uint64_t host = raw & ENTRY_OFFSET;
    const char *wrong = state_wrong(vhdx, index, state);

    if (!wrong && raw & ENTRY_ZEROS)
        wrong = "has reserved bits set";
    if (!wrong && state >= VHDX_PRESENT)
        wrong = claim_block(vhdx, index, host);
    else
        host = 0; /* 2.5.1.1: without meaning in the other states */
    if (wrong)
        return vhdx_refuse(error, "BAT entry %" G_GUINT64_FORMAT " 0x%" G_GINT64_MODIFIER "x %s", index, raw,
                           wrong);
    vhdx->bat[index] = (uint32_t)(host >> 20) << 3 | state;
    if (vhdx_entry_present(vhdx->bat[index]) && vhdx->replay &&
        vhdx_replay_touches(vhdx->replay, host, vhdx->block_size))
        vhdx->replayed_data = vhdx->replayed_data || !is_bitmap(vhdx, index);
    return true;
}

static bool read_piece(struct vhdx *vhdx, uint64_t first, uint64_t count, uint8_t *bytes, GError **error)
{
    if (!storage_pread(vhdx->storage, bytes, count * 8, vhdx->bat_region.offset + first * 8, error))
        return false;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t raw = load_le64(bytes + i * 8);

        if (raw && !take_entry(vhdx, first + i, raw, error))
            return false;
    }
    return true;
}

/* Most of a large table may be a hole in the file. */
static bool read_entries(struct vhdx *vhdx, GError **error)
{
    g_autofree uint8_t *bytes = g_malloc(READ_PIECE);
    uint64_t length = vhdx->entries * 8, run;
    bool data;

    for (uint64_t at = 0; at < length; at += run) {
        if (!storage_status(vhdx->storage, vhdx->bat_region.offset + at, length - at, &data, &run, error))
            return false;
        if (!data && run >= 8) {
            run -= run % 8;
            continue;
        }
        run = MIN((run + 7) / 8 * 8, READ_PIECE);
        if (!read_piece(vhdx, at / 8, run / 8, bytes, error))
            return false;
    }
    return true;
}

/* 2.5.1.2: sectors of a block that is there in part are found through its chunk's bitmap. */
static bool check_bitmaps(struct vhdx *vhdx, GError **error)
{
    for (uint64_t block = 0; vhdx->differencing && block < vhdx->blocks; block++) {
        uint64_t index = vhdx_block_index(vhdx, block);
        uint64_t bitmap = vhdx_bitmap_index(vhdx, block / vhdx->chunk_ratio);

        if (vhdx_entry_state(vhdx->bat[index]) == VHDX_PARTIAL && !vhdx_entry_present(vhdx->bat[bitmap]))
            return vhdx_refuse(error,
                               "block %" G_GUINT64_FORMAT
                               " is partially present, but its sector bitmap (BAT entry %" G_GUINT64_FORMAT
                               ") is not there",
                               block, bitmap);
    }
    return true;
}

bool vhdx_read_bat(struct vhdx *vhdx, GError **error)
{
    if (vhdx->entries * 8 > vhdx->bat_region.length)
        return vhdx_refuse(error,
                           "the BAT region has %" G_GUINT64_FORMAT " bytes, %" G_GUINT64_FORMAT
                           " entries are needed for a disk of %" G_GUINT64_FORMAT,
                           vhdx->bat_region.length, vhdx->entries, vhdx->image->size);
    vhdx->bat = g_try_new0(uint32_t, vhdx->entries + 1);
    if (!vhdx->bat)
        return blockmig_fail(error, BLOCKMIG_ERROR_FAILED,
                             "no memory for a BAT of %" G_GUINT64_FORMAT " entries", vhdx->entries);
    return read_entries(vhdx, error) && check_bitmaps(vhdx, error);
}

void vhdx_bat_set(struct vhdx *vhdx, uint64_t index, enum vhdx_state state, uint64_t host)
{
    uint64_t sector = index * 8 / VHDX_SECTOR;

    vhdx->bat[index] = (uint32_t)(host >> 20) << 3 | state;
    vhdx->bat_dirty[sector / 64] |= UINT64_C(1) << (sector % 64);
}

void vhdx_encode_bat(const struct vhdx *vhdx, uint64_t sector, uint8_t *out)
{
    uint64_t first = sector * (VHDX_SECTOR / 8);

    memset(out, 0, VHDX_SECTOR);
    for (uint64_t i = 0; i < VHDX_SECTOR / 8 && first + i < vhdx->entries; i++) {
        uint32_t entry = vhdx->bat[first + i];

        store_le64(out + i * 8, vhdx_entry_host(entry) | vhdx_entry_state(entry));
    }
}
