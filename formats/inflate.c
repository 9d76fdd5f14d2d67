/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "formats/inflate.h"

#include <config.h>
#include <glib.h>
#include <zlib.h>
#ifdef HAVE_LIBDEFLATE
#include <libdeflate.h>
#endif

#define RAW_WINDOW  (-12) /* negative: without zlib's header */
#define ZLIB_WINDOW 15

/* The end mark may be missing when the output is complete, but nothing may come after it. */
static enum inflate_result inflate_zlib(enum inflate_kind kind, const void *packed, size_t packed_length,
                                        void *out, size_t room, size_t *got)
{
    z_stream stream = {
        .next_in = (Bytef *)packed, .avail_in = packed_length, .next_out = out, .avail_out = room};
    Bytef extra;
    int result;

    *got = 0;
    if (inflateInit2(&stream, kind == INFLATE_RAW ? RAW_WINDOW : ZLIB_WINDOW) != Z_OK)
        return INFLATE_DAMAGED;
    result = inflate(&stream, Z_SYNC_FLUSH);
    *got = stream.total_out;
    if (result == Z_OK && stream.avail_out == 0) {
        stream.next_out = &extra;
        stream.avail_out = 1;
        result = inflate(&stream, Z_SYNC_FLUSH);
    }
    inflateEnd(&stream);
    if (stream.total_out > *got)
        return INFLATE_MORE;
    return result == Z_STREAM_END || result == Z_BUF_ERROR ? INFLATE_WHOLE : INFLATE_DAMAGED;
}

#ifdef HAVE_LIBDEFLATE
static void decompressor_free(gpointer data)
{
    libdeflate_free_decompressor(data);
}

static GPrivate decompressor = G_PRIVATE_INIT(decompressor_free);

/* Twice as fast as zlib, but it insists on the end mark: a false answer means "ask zlib". */
static bool inflate_fast(enum inflate_kind kind, const void *packed, size_t packed_length, void *out,
                         size_t room, size_t *got)
{
    struct libdeflate_decompressor *context = g_private_get(&decompressor);
    size_t used;

    if (!context) {
        context = libdeflate_alloc_decompressor();
        g_private_set(&decompressor, context);
    }
    return context &&
           (kind == INFLATE_RAW ? libdeflate_deflate_decompress_ex : libdeflate_zlib_decompress_ex)(
               context, packed, packed_length, out, room, &used, got) == LIBDEFLATE_SUCCESS;
}
#endif

enum inflate_result inflate_bytes(enum inflate_kind kind, const void *packed, size_t packed_length, void *out,
                                  size_t room, size_t *got)
{
#ifdef HAVE_LIBDEFLATE
    if (inflate_fast(kind, packed, packed_length, out, room, got))
        return INFLATE_WHOLE;
#endif
    return inflate_zlib(kind, packed, packed_length, out, room, got);
}

#ifdef HAVE_LIBDEFLATE
#define LEVEL 6 /* packs as well as zlib's default */

static void compressor_free(gpointer data)
{
    libdeflate_free_compressor(data);
}

static GPrivate compressor = G_PRIVATE_INIT(compressor_free);

/* 0: ask zlib. */
static size_t deflate_fast(const void *data, size_t length, void *out, size_t room)
{
    struct libdeflate_compressor *context = g_private_get(&compressor);

    if (!context) {
        context = libdeflate_alloc_compressor(LEVEL);
        g_private_set(&compressor, context);
    }
    return context ? libdeflate_zlib_compress(context, data, length, out, room) : 0;
}
#endif

size_t deflate_bytes(const void *data, size_t length, void *out, size_t room)
{
    uLongf packed = room;

#ifdef HAVE_LIBDEFLATE
    size_t fast = deflate_fast(data, length, out, room);

    if (fast)
        return fast;
#endif
    return compress(out, &packed, data, length) == Z_OK ? packed : 0;
}
