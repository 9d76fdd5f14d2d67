/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Content that is here already, in another file.
 *
 * That file may be of anybody's making, and be written meanwhile.  So what is written is the very bytes in
 * memory whose SHA-256 is right, and never again what the file has.
 */
#include "blockmig/remote/server-internal.h"
#include "blockmig/storage/direct.h"
#include "formats/error.h"

#include <stdlib.h>
#include <string.h>

#define PAGE 4096u

/* What cannot be read is not the same. */
static bool is_same(struct storage *seed, const struct frame *frame, uint8_t *buffer)
{
    uint8_t digest[FRAME_SHA256];
    bool ok = direct_fits(seed, buffer, frame->length, frame->seed_offset)
                  ? direct_read(seed, buffer, frame->length, frame->seed_offset, false, NULL)
                  : storage_pread(seed, buffer, frame->length, frame->seed_offset, NULL);

    if (!ok)
        return false;
    frame_sha256(buffer, frame->length, digest);
    return memcmp(digest, frame->sha256, FRAME_SHA256) == 0;
}

static struct handle *find(const struct caller *caller, const struct frame *frame)
{
    g_autoptr(GString) id = g_string_new(NULL);

    for (unsigned i = 0; i < FRAME_SEED; i++)
        g_string_append_printf(id, "%02x", frame->seed[i]);
    return handle_find(caller->handles, id->str, caller->peer, NULL);
}

bool seed_take(const struct caller *caller, struct storage *target, const struct frame *frame, bool *same,
               bool *gone, GError **error)
{
    g_autoptr(handle_t) seed = find(caller, frame);
    uint8_t *buffer = NULL;
    bool ok;

    *gone = *gone || !seed;
    if (!seed)
        return true;
    if (posix_memalign((void **)&buffer, PAGE, frame->length))
        return blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "no memory for a frame");
    *same = is_same(seed->storage, frame, buffer);
    ok = !*same || write_content(target, frame, buffer, error);
    free(buffer);
    return ok;
}
