/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Packed clusters: raw deflate with a window of 4 KiB, or zstd frames.  These functions may run on any
 * thread; contexts are kept per thread because making one costs more than using it.
 */
#include "formats/inflate.h"
#include "formats/qcow2.h"

#include <string.h>
#include <zlib.h>
#include <zstd.h>

#define DEFLATE_WINDOW (-12) /* negative: raw, without zlib's header */
#define DEFLATE_MEMORY 9

static bool unpack_failed(GError **error, const char *method, size_t got, size_t want)
{
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED,
                "qcow2: a %s cluster does not unpack to %zu bytes (stopped after %zu)", method, want, got);
    return false;
}

static void zstd_in_free(gpointer data)
{
    ZSTD_freeDCtx(data);
}

static void zstd_out_free(gpointer data)
{
    ZSTD_freeCCtx(data);
}

static GPrivate zstd_in = G_PRIVATE_INIT(zstd_in_free);
static GPrivate zstd_out = G_PRIVATE_INIT(zstd_out_free);

/* Frame after frame until the cluster is full; what follows belongs to the next cluster.  Each frame is
 * unpacked in one piece into `out`, so that the window a frame asks for costs no memory. */
static bool zstd_unpack(const uint8_t *packed, size_t packed_length, uint8_t *out, size_t out_length,
                        GError **error)
{
    ZSTD_DCtx *context = g_private_get(&zstd_in);
    size_t got = 0;

    if (!context) {
        context = ZSTD_createDCtx();
        g_private_set(&zstd_in, context);
    }
    while (context && got < out_length) {
        size_t frame = ZSTD_findFrameCompressedSize(packed, packed_length);
        size_t bytes;

        if (ZSTD_isError(frame) || frame == 0 || frame > packed_length)
            break;
        bytes = ZSTD_decompressDCtx(context, out + got, out_length - got, packed, frame);
        if (ZSTD_isError(bytes))
            break;
        got += bytes;
        packed += frame;
        packed_length -= frame;
    }
    return got == out_length || unpack_failed(error, "zstd", got, out_length);
}

bool qcow2_unpack(struct image *image, uint64_t offset, const void *packed, size_t packed_length, void *out,
                  GError **error)
{
    struct qcow2 *qcow2 = image->opaque;
    size_t got = 0;

    if (qcow2->compression == QCOW2_ZSTD)
        return zstd_unpack(packed, packed_length, out, qcow2->cluster_size, error);
    if (inflate_bytes(INFLATE_RAW, packed, packed_length, out, qcow2->cluster_size, &got) == INFLATE_WHOLE &&
        got == qcow2->cluster_size)
        return true;
    return unpack_failed(error, "zlib", got, qcow2->cluster_size);
}

static void deflate_free(gpointer data)
{
    deflateEnd(data);
    g_free(data);
}

static GPrivate deflater = G_PRIVATE_INIT(deflate_free);

/* *packed_length stays 0 if the result is not smaller than the cluster. */
static bool zlib_pack(const void *data, void *out, size_t length, size_t *packed_length, GError **error)
{
    z_stream *stream = g_private_get(&deflater);

    if (!stream) {
        stream = g_new0(z_stream, 1);
        if (deflateInit2(stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, DEFLATE_WINDOW, DEFLATE_MEMORY,
                         Z_DEFAULT_STRATEGY) != Z_OK) {
            g_free(stream);
            g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED, "zlib: no memory");
            return false;
        }
        g_private_set(&deflater, stream);
    }
    deflateReset(stream);
    stream->next_in = (Bytef *)data;
    stream->avail_in = length;
    stream->next_out = out;
    stream->avail_out = length - 1;
    if (deflate(stream, Z_FINISH) == Z_STREAM_END)
        *packed_length = stream->total_out;
    return true;
}

static bool zstd_pack(const void *data, void *out, size_t length, size_t *packed_length, GError **error)
{
    ZSTD_CCtx *context = g_private_get(&zstd_out);
    size_t bytes;

    if (!context) {
        context = ZSTD_createCCtx();
        if (!context) {
            g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED, "zstd: no memory");
            return false;
        }
        g_private_set(&zstd_out, context);
    }
    bytes = ZSTD_compressCCtx(context, out, length - 1, data, length, ZSTD_CLEVEL_DEFAULT);
    if (!ZSTD_isError(bytes))
        *packed_length = bytes;
    return true;
}

bool qcow2_pack(struct image *image, uint64_t offset, const void *data, void *out, size_t *packed_length,
                GError **error)
{
    struct qcow2 *qcow2 = image->opaque;

    *packed_length = 0;
    if (qcow2->compression == QCOW2_ZSTD)
        return zstd_pack(data, out, qcow2->cluster_size, packed_length, error);
    return zlib_pack(data, out, qcow2->cluster_size, packed_length, error);
}
