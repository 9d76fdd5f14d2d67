/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/storage/shift.h"

#include "formats/error.h"

#include <librsync.h>
#include <string.h>

#define PIECE       (1u << 20)
#define MOST_BLOCKS 65536u
#define STRONG      16u /* bytes of each block's hash */

/* ---- jobs of librsync ---------------------------------------------------------------------------- */

/* Takes what came out of a job. */
typedef bool sink(void *opaque, const uint8_t *data, size_t length, GError **error);

static bool complain(rs_result result, GError **error)
{
    return result == RS_DONE || result == RS_BLOCKED ||
           blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "librsync: %s", rs_strerror(result));
}

/* It would print errors by itself. */
static void be_quiet(void)
{
    rs_trace_set_level(RS_LOG_EMERG);
}

/* Feeds the job; `last`: nothing comes after it. */
static bool feed(rs_job_t *job, const void *data, size_t length, bool last, sink *out, void *opaque,
                 GError **error)
{
    g_autofree uint8_t *room = g_malloc(PIECE);
    rs_buffers_t buffers = {.next_in = (char *)data, .avail_in = length, .eof_in = last};
    rs_result result;

    do {
        buffers.next_out = (char *)room;
        buffers.avail_out = PIECE;
        result = rs_job_iter(job, &buffers);
        if (!complain(result, error) || !out(opaque, room, PIECE - buffers.avail_out, error))
            return false;
    } while (result == RS_BLOCKED && (buffers.avail_in > 0 || buffers.avail_out == 0 || last));
    return true;
}

static bool append(void *opaque, const uint8_t *data, size_t length, GError **error)
{
    g_byte_array_append(opaque, data, (guint)length);
    return true;
}

static bool ignore(void *opaque, const uint8_t *data, size_t length, GError **error)
{
    return true;
}

/* ---- signatures ---------------------------------------------------------------------------------- */

static bool sign(rs_job_t *job, struct storage *storage, uint64_t offset, uint64_t length,
                 GByteArray *signature, GError **error)
{
    g_autofree uint8_t *buffer = g_malloc(PIECE);

    for (uint64_t piece; length > 0; offset += piece, length -= piece) {
        piece = MIN(PIECE, length);
        if (!storage_pread(storage, buffer, (size_t)piece, offset, error) ||
            !feed(job, buffer, (size_t)piece, false, append, signature, error))
            return false;
    }
    return feed(job, NULL, 0, true, append, signature, error);
}

uint32_t shift_block(uint64_t size)
{
    return (uint32_t)MAX(SHIFT_SMALLEST,
                         (size / MOST_BLOCKS + SHIFT_SMALLEST) / SHIFT_SMALLEST * SHIFT_SMALLEST);
}

GByteArray *shift_signature(struct storage *storage, uint64_t offset, uint64_t length, uint32_t block,
                            GError **error)
{
    g_autoptr(GByteArray) signature = g_byte_array_new();
    rs_job_t *job = rs_sig_begin(block, STRONG, RS_RK_BLAKE2_SIG_MAGIC);
    bool ok;

    be_quiet();
    ok = sign(job, storage, offset, length, signature, error);
    rs_job_free(job);
    return ok ? g_steal_pointer(&signature) : NULL;
}

/* ---- what is found ------------------------------------------------------------------------------- */

struct part {
    uint64_t offset, length, at;
};

/* A delta is not sent: it is applied at once, for its copies tell where what is. */
struct search {
    rs_job_t *patch;
    GArray *parts;      /* of struct part, ascending */
    uint64_t size;      /* of the old file */
    uint64_t before;    /* bytes of the new one that came out of the patch before */
    const char *begins; /* where this time's do */
};

static rs_result note_copy(void *opaque, rs_long_t at, size_t *length, void **room)
{
    struct search *search = opaque;
    struct part part = {search->before + (uint64_t)((char *)*room - search->begins), *length, (uint64_t)at};
    struct part *last =
        search->parts->len ? &g_array_index(search->parts, struct part, search->parts->len - 1) : NULL;

    if (at < 0 || part.at > search->size || part.length > search->size - part.at)
        return RS_CORRUPT;
    if (last && last->offset + last->length == part.offset && last->at + last->length == part.at)
        last->length += part.length;
    else
        g_array_append_val(search->parts, part);
    return RS_DONE;
}

static bool apply(void *opaque, const uint8_t *data, size_t length, GError **error)
{
    struct search *search = opaque;
    g_autofree char *room = g_malloc(PIECE);
    rs_buffers_t buffers = {.next_in = (char *)data, .avail_in = length};
    rs_result result;

    search->begins = room;
    do {
        buffers.next_out = room;
        buffers.avail_out = PIECE;
        result = rs_job_iter(search->patch, &buffers);
        if (!complain(result, error))
            return false;
        search->before += PIECE - buffers.avail_out;
    } while (result == RS_BLOCKED && (buffers.avail_in > 0 || buffers.avail_out == 0));
    return true;
}

static bool compare(rs_job_t *delta, struct search *search, struct chain *chain,
                    bool (*cancelled)(void *opaque), void *opaque, GError **error)
{
    g_autofree uint8_t *buffer = g_malloc(PIECE);

    for (uint64_t at = 0, length; at < chain->size; at += length) {
        length = MIN(PIECE, chain->size - at);
        if (cancelled && cancelled(opaque))
            return blockmig_fail(error, BLOCKMIG_ERROR_CANCELLED, "cancelled");
        if (!chain_read(chain, buffer, (size_t)length, at, error) ||
            !feed(delta, buffer, (size_t)length, false, apply, search, error))
            return false;
    }
    return feed(delta, NULL, 0, true, apply, search, error);
}

/* librsync allocates what a signature says. */
static bool check_signature(const GByteArray *signature, GError **error)
{
    uint32_t fields[SHIFT_HEADER / 4] = {0};

    if (signature->len >= SHIFT_HEADER)
        memcpy(fields, signature->data, SHIFT_HEADER);
    return (GUINT32_FROM_BE(fields[0]) == RS_RK_BLAKE2_SIG_MAGIC && GUINT32_FROM_BE(fields[1]) > 0 &&
            GUINT32_FROM_BE(fields[1]) <= SHIFT_BLOCK_MOST && GUINT32_FROM_BE(fields[2]) == STRONG) ||
           blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "that is no signature of ours");
}

static rs_signature_t *load(const GByteArray *signature, GError **error)
{
    rs_signature_t *loaded = NULL;
    rs_job_t *job = rs_loadsig_begin(&loaded);
    bool ok = check_signature(signature, error) &&
              feed(job, signature->data, signature->len, true, ignore, NULL, error) && loaded &&
              complain(rs_build_hash_table(loaded), error);

    rs_job_free(job);
    if (ok)
        return loaded;
    if (loaded)
        rs_free_sumset(loaded);
    if (error && !*error)
        blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "librsync: no signature");
    return NULL;
}

static bool search_chain(struct search *search, struct chain *chain, const GByteArray *signature,
                         bool (*cancelled)(void *opaque), void *opaque, GError **error)
{
    rs_signature_t *loaded = load(signature, error);
    rs_job_t *delta;
    bool ok;

    if (!loaded)
        return false;
    delta = rs_delta_begin(loaded);
    search->patch = rs_patch_begin(note_copy, search);
    ok = compare(delta, search, chain, cancelled, opaque, error);
    rs_job_free(search->patch);
    rs_job_free(delta);
    rs_free_sumset(loaded);
    return ok;
}

/* ---- as a chain ---------------------------------------------------------------------------------- */

/* The first part that ends behind `offset`; or their count. */
static guint first_behind(const GArray *parts, uint64_t offset)
{
    guint low = 0, high = parts->len;

    while (low < high) {
        guint middle = low + (high - low) / 2;
        const struct part *part = &g_array_index(parts, struct part, middle);

        if (part->offset + part->length > offset)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

static bool shifted_map(struct image *image, uint64_t offset, uint64_t length, struct extent *out, size_t max,
                        size_t *count, GError **error)
{
    const GArray *parts = image->opaque;
    uint64_t end = offset + length;
    guint next = first_behind(parts, offset);

    for (*count = 0; *count < max && offset < end; offset = extent_end(&out[(*count)++])) {
        const struct part *part = next < parts->len ? &g_array_index(parts, struct part, next) : NULL;

        if (part && part->offset <= offset) {
            out[*count] = (struct extent){.offset = offset,
                                          .length = MIN(end, part->offset + part->length) - offset,
                                          .status = EXTENT_DATA,
                                          .storage = image->storage,
                                          .host_offset = part->at + (offset - part->offset)};
            next++;
        } else {
            out[*count] = (struct extent){.offset = offset,
                                          .length = MIN(end, part ? part->offset : end) - offset,
                                          .status = EXTENT_ZERO};
        }
    }
    return true;
}

static bool shifted_open(struct image *image, GError **error)
{
    return true;
}

static void shifted_close(struct image *image)
{
    if (image->opaque)
        g_array_unref(image->opaque);
}

static const struct format format_shifted = {
    .name = "shifted", .open = shifted_open, .map = shifted_map, .close = shifted_close};

struct chain *shift_find(struct chain *chain, struct storage *seed, const GByteArray *signature,
                         bool (*cancelled)(void *opaque), void *opaque, GError **error)
{
    struct search search = {.parts = g_array_new(FALSE, FALSE, sizeof(struct part)), .size = seed->size};
    g_autoptr(image_t) image = image_open(seed, &format_shifted, false, error);

    be_quiet();
    if (!image || !search_chain(&search, chain, signature, cancelled, opaque, error)) {
        g_array_unref(search.parts);
        return NULL;
    }
    image->opaque = search.parts;
    image->size = chain->size;
    return chain_new_single(g_steal_pointer(&image), true);
}
