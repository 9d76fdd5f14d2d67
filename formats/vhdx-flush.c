/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The write order ([MS-VHDX] 2.2.2, 2.3).  Data is durable before metadata that shows it, and metadata goes
 * through the log, so that the medium never holds half a change of a 4 KiB sector:
 *
 *   1  data, and the zeros of new blocks                                   barrier
 *   2  a log entry, beside the last one                                    barrier
 *   3  before the first entry of a flush is applied: both headers say that the log is in use.  Not earlier:
 *      a log in use must have a valid entry                                two barriers
 *   4  what the entry says, in its place                                   barrier; again from 2
 *   5  both headers say that the log is empty                              two barriers
 *
 * What does not fit into one entry becomes durable in this order: new sector bitmap blocks, which are all
 * zero; their bits, which mean nothing before their block is partially present; then the BAT.  After a flush
 * the image is clean, and any reader can open it.
 */
#include "formats/crc32c.h"
#include "formats/vhdx.h"

#include <string.h>

#define ENTRY_HEADER 64u
#define DESCRIPTOR   32u
#define MAX_SECTORS  126u /* of an entry: its descriptors fill one sector, and two entries fit into 1 MiB */

/* The log while it is used. */
struct session {
    struct vhdx *vhdx;
    uint64_t sequence;
    unsigned count;                          /* of `sectors` */
    uint64_t offsets[MAX_SECTORS];           /* where each of them goes */
    uint8_t bytes[MAX_SECTORS][VHDX_SECTOR]; /* as they are to be */
    uint8_t entry[1 + MAX_SECTORS][VHDX_SECTOR];
};

bool vhdx_begin_write(struct vhdx *vhdx, GError **error)
{
    if (vhdx->failed)
        return blockmig_fail(error, BLOCKMIG_ERROR_FAILED,
                             "VHDX: an earlier change stopped half way; the image must be opened again");
    if (vhdx->writing)
        return true;
    if (!vhdx->header.log_length)
        return vhdx_refuse(error, "the image has no log, and without one it cannot be changed");
    vhdx->failed = true; /* unless all goes well */
    if (vhdx->replay && !vhdx_replay_apply(vhdx->replay, error))
        return false;
    vhdx->storage = vhdx->image->storage;
    vhdx->replayed_data = false;
    vhdx->header.log = vhdx_no_guid;
    vhdx->header.file_write = vhdx_guid_random();
    vhdx->header.data_write =
        vhdx_guid_is_zero(&vhdx->next_data_write) ? vhdx_guid_random() : vhdx->next_data_write;
    if (!vhdx_update_headers(vhdx, error))
        return false;
    vhdx->bat_dirty = g_new0(uint64_t, vhdx->bat_region.length / VHDX_SECTOR / 64 + 1);
    vhdx->new_bitmaps = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    vhdx->frees = g_array_new(FALSE, FALSE, sizeof(struct vhdx_range));
    vhdx->writing = true;
    vhdx->failed = false;
    return true;
}

/* ---- the log ------------------------------------------------------------------------------------ */

static void encode_sector(struct session *session, unsigned i)
{
    uint8_t *descriptor = session->entry[0] + ENTRY_HEADER + i * DESCRIPTOR, *data = session->entry[1 + i];
    const uint8_t *bytes = session->bytes[i];

    memcpy(descriptor, "desc", 4);
    memcpy(descriptor + 4, bytes + VHDX_SECTOR - 4, 4);
    memcpy(descriptor + 8, bytes, 8);
    store_le64(descriptor + 16, session->offsets[i]);
    store_le64(descriptor + 24, session->sequence);
    memcpy(data, bytes, VHDX_SECTOR);
    memcpy(data, "data", 4);
    store_le32(data + 4, session->sequence >> 32);
    store_le32(data + VHDX_SECTOR - 4, (uint32_t)session->sequence);
}

/* Every entry is a sequence of its own: what was before it is applied. `at` is its place in the log. */
static size_t encode_entry(struct session *session, const struct vhdx_guid *guid, uint32_t at)
{
    uint8_t *header = session->entry[0];
    uint64_t size = session->vhdx->image->storage->size;
    size_t length = (1 + session->count) * (size_t)VHDX_SECTOR;

    memset(header, 0, VHDX_SECTOR);
    memcpy(header, "loge", 4);
    store_le32(header + 8, length);
    store_le32(header + 12, at);
    store_le64(header + 16, session->sequence);
    store_le32(header + 24, session->count);
    memcpy(header + 32, guid, sizeof *guid);
    store_le64(header + 48, size / VHDX_MIB * VHDX_MIB);
    store_le64(header + 56, size / VHDX_MIB * VHDX_MIB);
    for (unsigned i = 0; i < session->count; i++)
        encode_sector(session, i);
    store_le32(header + 4, crc32c(0, header, length));
    return length;
}

static bool apply(struct session *session, GError **error)
{
    struct storage *storage = session->vhdx->image->storage;

    for (unsigned i = 0; i < session->count; i++) {
        if (!storage_pwrite(storage, session->bytes[i], VHDX_SECTOR, session->offsets[i], error))
            return false;
    }
    session->count = 0;
    return storage_flush(storage, error);
}

/* Steps 2 to 4 for the sectors that were collected. */
static bool commit(struct session *session, GError **error)
{
    struct vhdx *vhdx = session->vhdx;
    struct storage *storage = vhdx->image->storage;
    bool first = vhdx_guid_is_zero(&vhdx->header.log);
    struct vhdx_guid guid = first ? vhdx_guid_random() : vhdx->header.log;
    uint32_t at = session->sequence % 2 ? vhdx->header.log_length / 2 : 0;
    size_t length;

    if (session->count == 0)
        return true;
    session->sequence++;
    length = encode_entry(session, &guid, at);
    if (!storage_pwrite(storage, session->entry, length, vhdx->header.log_offset + at, error) ||
        !storage_flush(storage, error))
        return false;
    vhdx->header.log = guid;
    return (!first || vhdx_update_headers(vhdx, error)) && apply(session, error);
}

/* The place for the content of a sector. */
static uint8_t *add_sector(struct session *session, uint64_t offset, GError **error)
{
    if (session->count == MAX_SECTORS && !commit(session, error))
        return NULL;
    session->offsets[session->count] = offset;
    return session->bytes[session->count++];
}

/* ---- what has changed --------------------------------------------------------------------------- */

/* Entries of new bitmap blocks in the BAT as the medium has it. */
static bool log_new_bitmaps(struct session *session, GError **error)
{
    struct vhdx *vhdx = session->vhdx;
    uint64_t last = UINT64_MAX;
    uint8_t *bytes = NULL;

    for (guint i = 0; i < vhdx->new_bitmaps->len; i++) {
        uint64_t index = vhdx_bitmap_index(vhdx, g_array_index(vhdx->new_bitmaps, uint64_t, i));
        uint64_t offset = vhdx->bat_region.offset + index * 8 / VHDX_SECTOR * VHDX_SECTOR;

        if (offset != last) {
            bytes = add_sector(session, offset, error);
            if (!bytes || !storage_pread(vhdx->storage, bytes, VHDX_SECTOR, offset, error))
                return false;
        }
        last = offset;
        store_le64(bytes + index * 8 % VHDX_SECTOR, vhdx_entry_host(vhdx->bat[index]) | VHDX_PRESENT);
    }
    return commit(session, error);
}

static bool log_piece(struct session *session, struct vhdx_piece *piece, GError **error)
{
    uint64_t host = vhdx_piece_host(session->vhdx, piece);

    for (unsigned i = 0; i < VHDX_BITMAP_PIECE / VHDX_SECTOR; i++) {
        uint8_t *bytes;

        if (!(piece->dirty >> i & 1))
            continue;
        bytes = add_sector(session, host + i * VHDX_SECTOR, error);
        if (!bytes)
            return false;
        memcpy(bytes, piece->bytes + i * VHDX_SECTOR, VHDX_SECTOR);
    }
    piece->dirty = 0;
    return true;
}

static bool log_bits(struct session *session, GError **error)
{
    GHashTableIter iter;
    gpointer piece;

    g_hash_table_iter_init(&iter, session->vhdx->pieces);
    while (g_hash_table_iter_next(&iter, NULL, &piece)) {
        if (!log_piece(session, piece, error))
            return false;
        if (!((struct vhdx_piece *)piece)->link.data) /* put aside only because it was changed */
            g_hash_table_iter_remove(&iter);
    }
    return true;
}

static bool log_bat(struct session *session, GError **error)
{
    struct vhdx *vhdx = session->vhdx;
    uint64_t sectors = vhdx->bat_region.length / VHDX_SECTOR;

    for (uint64_t i = 0; i < sectors; i++) {
        uint8_t *bytes;

        if (!(vhdx->bat_dirty[i / 64] >> (i % 64) & 1))
            continue;
        bytes = add_sector(session, vhdx->bat_region.offset + i * VHDX_SECTOR, error);
        if (!bytes)
            return false;
        vhdx_encode_bat(vhdx, i, bytes);
        vhdx->bat_dirty[i / 64] &= ~(UINT64_C(1) << (i % 64));
    }
    return true;
}

static struct session *session_new(struct vhdx *vhdx)
{
    struct session *session = g_new(struct session, 1);

    session->vhdx = vhdx;
    session->sequence = session->count = 0;
    return session;
}

/* Step 5. */
static bool end_log(struct vhdx *vhdx, GError **error)
{
    if (vhdx_guid_is_zero(&vhdx->header.log)) /* nothing had changed */
        return true;
    vhdx->header.log = vhdx_no_guid;
    return vhdx_update_headers(vhdx, error);
}

static bool log_changes(struct vhdx *vhdx, GError **error)
{
    g_autofree struct session *session = session_new(vhdx);

    if (!log_new_bitmaps(session, error) || !log_bits(session, error) || !log_bat(session, error) ||
        !commit(session, error))
        return false;
    g_array_set_size(vhdx->new_bitmaps, 0);
    return end_log(vhdx, error);
}

/* No durable entry points there any more. */
static bool give_back(struct vhdx *vhdx, GError **error)
{
    struct storage *storage = vhdx->image->storage;

    for (guint i = 0; i < vhdx->frees->len; i++) {
        struct vhdx_range range = g_array_index(vhdx->frees, struct vhdx_range, i);
        uint64_t inside = MIN(range.length, MAX(storage->size, range.offset) - range.offset);

        vhdx_space_release(&vhdx->space, range.offset, range.length);
        if (!storage_discard(storage, range.offset, inside, error))
            return false;
    }
    g_array_set_size(vhdx->frees, 0);
    return true;
}

bool vhdx_flush(struct image *image, GError **error)
{
    struct vhdx *vhdx = image->opaque;

    if (!vhdx->writing && !vhdx->failed) /* nothing was changed */
        return storage_flush(image->storage, error);
    if (!vhdx_begin_write(vhdx, error)) /* reports what failed before */
        return false;
    if (storage_flush(image->storage, error) && log_changes(vhdx, error) && give_back(vhdx, error))
        return true;
    vhdx->failed = true; /* after a failed barrier nobody knows what the medium holds */
    return false;
}

/* ---- metadata items ----------------------------------------------------------------------------- */

/* The bytes go into the sectors that they touch, as those are on the medium. */
static bool log_bytes(struct session *session, uint64_t offset, const uint8_t *bytes, uint32_t length,
                      GError **error)
{
    for (uint64_t at = offset, end = offset + length, next; at < end; at = next) {
        uint64_t start = at / VHDX_SECTOR * VHDX_SECTOR;
        uint8_t *sector = add_sector(session, start, error);

        next = MIN(end, start + VHDX_SECTOR);
        if (!sector || !storage_pread(session->vhdx->storage, sector, VHDX_SECTOR, start, error))
            return false;
        memcpy(sector + (at - start), bytes + (at - offset), next - at);
    }
    return true;
}

/* The table lies in the first 64 KiB of the region, the items behind it: no sector has parts of both. */
bool vhdx_change_item(struct vhdx *vhdx, uint32_t entry, uint64_t at, const uint8_t *item, uint32_t length,
                      GError **error)
{
    g_autofree struct session *session = session_new(vhdx);
    uint64_t region = vhdx->metadata_region.offset;
    uint8_t place[8];

    store_le32(place, at);
    store_le32(place + 4, length);
    if (log_bytes(session, region + at, item, length, error) &&
        log_bytes(session, region + 32 + entry * UINT64_C(32) + 16, place, sizeof place, error) &&
        commit(session, error) && end_log(vhdx, error))
        return true;
    vhdx->failed = true;
    return false;
}
