/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Sector bitmaps ([MS-VHDX] 2.4): one bit per logical sector of a chunk, the lowest bit of a byte first. Set:
 * the sector is here; clear: in the parent.  Pieces of 64 KiB are cached; changed ones stay until the flush,
 * for their bits may not reach the medium before the data.
 */
#include "formats/vhdx.h"

#include <string.h>

#define MAX_CLEAN        256u /* pieces */
#define PIECE_BITS       (VHDX_BITMAP_PIECE * UINT64_C(8))
#define PIECES_PER_CHUNK (VHDX_CHUNK_SECTORS / PIECE_BITS)

static void piece_free(gpointer data)
{
    struct vhdx_piece *piece = data;

    g_free(piece->bytes);
    g_free(piece);
}

void vhdx_bitmaps_init(struct vhdx *vhdx)
{
    vhdx->pieces = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, piece_free);
    g_queue_init(&vhdx->used);
}

void vhdx_bitmaps_clear(struct vhdx *vhdx)
{
    g_queue_init(&vhdx->used); /* the links live inside the pieces */
    g_clear_pointer(&vhdx->pieces, g_hash_table_unref);
}

uint64_t vhdx_piece_host(const struct vhdx *vhdx, const struct vhdx_piece *piece)
{
    uint32_t entry = vhdx->bat[vhdx_bitmap_index(vhdx, piece->index / PIECES_PER_CHUNK)];

    return vhdx_entry_host(entry) + piece->index % PIECES_PER_CHUNK * VHDX_BITMAP_PIECE;
}

/* The oldest piece goes, unless it is changed: then it is put aside, and goes after the flush. */
static void make_room(struct vhdx *vhdx)
{
    while (vhdx->used.length >= MAX_CLEAN) {
        struct vhdx_piece *oldest = g_queue_peek_tail(&vhdx->used);

        g_queue_unlink(&vhdx->used, &oldest->link);
        if (oldest->dirty)
            oldest->link.data = NULL;
        else
            g_hash_table_remove(vhdx->pieces, &oldest->index);
    }
}

static struct vhdx_piece *read_piece(struct vhdx *vhdx, uint64_t index, GError **error)
{
    struct vhdx_piece *piece = g_new0(struct vhdx_piece, 1);

    piece->index = index;
    piece->bytes = g_try_malloc(VHDX_BITMAP_PIECE);
    if (!piece->bytes) {
        blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "no memory for a sector bitmap");
        piece_free(piece);
        return NULL;
    }
    if (!storage_pread(vhdx->storage, piece->bytes, VHDX_BITMAP_PIECE, vhdx_piece_host(vhdx, piece), error)) {
        piece_free(piece);
        return NULL;
    }
    make_room(vhdx);
    g_hash_table_insert(vhdx->pieces, &piece->index, piece);
    return piece;
}

struct vhdx_piece *vhdx_bitmap_load(struct vhdx *vhdx, uint64_t block, uint64_t *first, GError **error)
{
    uint64_t per_block = vhdx->block_size / vhdx->logical_sector;
    uint64_t bit = block % vhdx->chunk_ratio * per_block;
    uint64_t index = block / vhdx->chunk_ratio * PIECES_PER_CHUNK + bit / PIECE_BITS;
    struct vhdx_piece *piece = g_hash_table_lookup(vhdx->pieces, &index);

    *first = bit % PIECE_BITS;
    if (!piece)
        piece = read_piece(vhdx, index, error);
    else if (piece->link.data)
        g_queue_unlink(&vhdx->used, &piece->link);
    if (!piece)
        return NULL;
    piece->link.data = piece;
    g_queue_push_head_link(&vhdx->used, &piece->link);
    return piece;
}

bool vhdx_bitmap_get(const struct vhdx_piece *piece, uint64_t bit)
{
    return piece->bytes[bit / 8] >> (bit % 8) & 1;
}

uint64_t vhdx_bitmap_run(const struct vhdx_piece *piece, uint64_t bit, uint64_t end)
{
    uint64_t flip = vhdx_bitmap_get(piece, bit) ? UINT64_MAX : 0, at = bit;

    while (at < end) {
        uint64_t differ = (load_le64(piece->bytes + at / 64 * 8) ^ flip) >> (at % 64);

        if (differ)
            return MIN(at + __builtin_ctzll(differ), end) - bit;
        at = (at / 64 + 1) * 64;
    }
    return end - bit;
}

void vhdx_bitmap_set(struct vhdx_piece *piece, uint64_t bit, uint64_t end, bool value)
{
    while (bit < end) {
        uint8_t *byte = &piece->bytes[bit / 8], before = *byte;
        uint64_t next = MIN(end, (bit / 8 + 1) * 8);
        uint8_t mask = (0xffu >> (8 - (next - bit))) << (bit % 8);

        *byte = value ? before | mask : before & ~mask;
        if (*byte != before)
            piece->dirty |= 1u << (bit / 8 / VHDX_SECTOR);
        bit = next;
    }
}
