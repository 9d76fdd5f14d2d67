/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Dirty bitmaps of QEMU, which a server gives as block status of a context of their own. */
#include "blockmig/storage/nbd-export.h"
#include "blockmig/storage/nbd.h"
#include "formats/error.h"

#define BITMAP_CONTEXT "qemu:dirty-bitmap:" /* docs/interop/nbd.txt of QEMU, as is the flag */
#define BITMAP_DIRTY   1

/* The last dirty range, which may go on in what comes next. */
struct dirty_range {
    const struct bitmap_reader *reader;
    uint64_t begin, end;
};

static void tell_range(const struct dirty_range *last)
{
    if (last->begin < last->end)
        last->reader->dirty(last->reader->opaque, last->begin, last->end - last->begin);
}

static void add_range(struct dirty_range *last, uint64_t begin, uint64_t end)
{
    if (begin != last->end) {
        tell_range(last);
        last->begin = begin;
    }
    last->end = end;
}

/* What is behind `known`.  Returns where the answer ends, which need not be where the question did. */
static uint64_t add_answer(struct dirty_range *last, const struct nbd_command *asked, uint64_t known,
                           uint64_t size)
{
    uint64_t at = asked->offset;

    for (guint i = 0; i < asked->extents->len; i++) {
        const struct nbd_extent *extent = &g_array_index(asked->extents, struct nbd_extent, i);
        uint64_t end = at + MIN(extent->length, size - at);

        if (extent->flags & BITMAP_DIRTY && end > known)
            add_range(last, MAX(at, known), end);
        at = end;
    }
    return at;
}

/* An answer may end inside a block of the server's, where no question may begin. */
static bool read_bitmap(struct nbd *nbd, struct dirty_range *last, GError **error)
{
    g_autoptr(GArray) extents = g_array_new(FALSE, FALSE, sizeof(struct nbd_extent));
    uint64_t size = nbd->abilities.size;

    for (uint64_t known = 0, end; known < size; known = end) {
        uint64_t begin = nbd_round_down(nbd, known);
        struct nbd_command range = {.kind = NBD_STATUS,
                                    .offset = begin,
                                    .length = MIN(size - begin, NBD_LARGEST_COMMAND),
                                    .extents = extents};

        if (!nbd_run(nbd, &range, error))
            return false;
        end = add_answer(last, &range, known, size);
        if (end <= known)
            return blockmig_fail(error, BLOCKMIG_ERROR_FAILED,
                                 "the server does not say what is dirty from offset %" G_GUINT64_FORMAT " on",
                                 known);
    }
    return true;
}

/* Never connected again: a server that was started anew may have other bits. */
bool storage_nbd_read_bitmap(const char *uri, const char *bitmap, const struct bitmap_reader *reader,
                             GError **error)
{
    g_autofree char *context = g_strconcat(BITMAP_CONTEXT, bitmap, NULL);
    struct nbd_way way = {.uri = uri, .context = context, .socket = -1};
    struct dirty_range last = {.reader = reader};
    struct nbd *nbd = nbd_new(&way, 1, error);
    bool ok;

    if (!nbd)
        return false;
    g_atomic_int_set(&nbd->retry, 0);
    ok = nbd->abilities.status;
    if (ok) {
        reader->begin(reader->opaque, nbd->abilities.size);
        ok = read_bitmap(nbd, &last, error);
        tell_range(&last);
    } else {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED, "the server has no dirty bitmap \"%s\"",
                    bitmap);
    }
    nbd_unref(nbd);
    return ok;
}
