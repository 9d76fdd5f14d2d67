/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A storage as it will be once the log is replayed: the storage below, and what was added on top of it in the
 * order of the log.  The storage below is not touched before vhdx_replay_apply().
 *
 * A log changes little: everything is looked through for every read.
 */
#include "formats/vhdx.h"

#include <string.h>

struct change {
    uint64_t offset, length;
    uint8_t *bytes; /* owned; NULL: zeros */
};

struct replay {
    struct storage *below;
    GArray *changes;     /* of struct change, the latest last */
    uint64_t first, end; /* all changes are inside */
};

static bool replay_pread(struct storage *storage, void *buffer, size_t length, uint64_t offset,
                         GError **error)
{
    struct replay *replay = storage->opaque;
    uint64_t size = replay->below->size, inside = offset < size ? MIN(length, size - offset) : 0;

    memset((uint8_t *)buffer + inside, 0, length - inside);
    if (inside && !storage_pread(replay->below, buffer, inside, offset, error))
        return false;
    for (guint i = 0; i < replay->changes->len; i++) {
        const struct change *change = &g_array_index(replay->changes, struct change, i);
        uint64_t begin = MAX(offset, change->offset);
        uint64_t end = MIN(offset + length, change->offset + change->length);

        if (begin < end && change->bytes)
            memcpy((uint8_t *)buffer + (begin - offset), change->bytes + (begin - change->offset),
                   end - begin);
        else if (begin < end)
            memset((uint8_t *)buffer + (begin - offset), 0, end - begin);
    }
    return true;
}

static void replay_close(struct storage *storage)
{
    struct replay *replay = storage->opaque;

    g_array_unref(replay->changes);
    g_free(replay);
}

static const struct storage_ops replay_ops = {.name = "replay", .pread = replay_pread, .close = replay_close};

static void change_clear(gpointer data)
{
    g_free(((struct change *)data)->bytes);
}

struct storage *vhdx_replay_new(struct storage *below)
{
    struct replay *replay = g_new0(struct replay, 1);
    struct storage *storage = storage_new(&replay_ops, below->name, replay);

    replay->below = below;
    replay->changes = g_array_new(FALSE, FALSE, sizeof(struct change));
    g_array_set_clear_func(replay->changes, change_clear);
    replay->first = UINT64_MAX;
    storage->identity = g_strdup(below->identity);
    storage->size = below->size;
    return storage;
}

void vhdx_replay_reach(struct storage *storage, uint64_t end)
{
    storage_grown(storage, end);
}

void vhdx_replay_add(struct storage *storage, uint64_t offset, uint64_t length, uint8_t *bytes)
{
    struct replay *replay = storage->opaque;
    struct change change = {offset, length, bytes};

    g_array_append_val(replay->changes, change);
    replay->first = MIN(replay->first, offset);
    replay->end = MAX(replay->end, offset + length);
    vhdx_replay_reach(storage, offset + length);
}

bool vhdx_replay_touches(const struct storage *storage, uint64_t offset, uint64_t length)
{
    const struct replay *replay = storage->opaque;

    if (offset >= replay->end || offset + length <= replay->first)
        return false;
    for (guint i = 0; i < replay->changes->len; i++) {
        const struct change *change = &g_array_index(replay->changes, struct change, i);

        if (offset < change->offset + change->length && change->offset < offset + length)
            return true;
    }
    return false;
}

bool vhdx_replay_apply(struct storage *storage, GError **error)
{
    struct replay *replay = storage->opaque;
    struct storage *below = replay->below;

    if (below->size < storage->size && !storage_resize(below, storage->size, error))
        return false;
    for (guint i = 0; i < replay->changes->len; i++) {
        const struct change *change = &g_array_index(replay->changes, struct change, i);

        if (!(change->bytes ? storage_pwrite(below, change->bytes, change->length, change->offset, error)
                            : storage_zero(below, change->offset, change->length, true, error)))
            return false;
    }
    return storage_flush(below, error);
}
