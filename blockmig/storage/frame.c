/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/storage/frame.h"

#include "formats/bytes.h"
#include "formats/error.h"
#include "formats/xxh3.h"

#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#define ALIGNMENT    4096
#define SAME_PAYLOAD (FRAME_SEED + 8 + FRAME_SHA256)

static const char magic[4] = "BMF1";

/* No digest at all fits nothing. */
void frame_sha256(const void *content, size_t length, uint8_t *digest)
{
    if (gnutls_hash_fast(GNUTLS_DIG_SHA256, content, length, digest) != 0)
        gnutls_rnd(GNUTLS_RND_NONCE, digest, FRAME_SHA256);
}

/* ---- making them -------------------------------------------------------------------------------- */

static void put_header(GByteArray *stream, enum frame_kind kind, uint64_t offset, uint64_t length,
                       size_t payload, const uint8_t *digest)
{
    uint8_t header[FRAME_HEADER] = {0};

    memcpy(header, magic, sizeof(magic));
    header[4] = (uint8_t)kind;
    store_le64(header + 8, offset);
    store_le64(header + 16, length);
    store_le32(header + 24, (uint32_t)payload);
    if (digest)
        memcpy(header + 32, digest, FRAME_DIGEST);
    g_byte_array_append(stream, header, sizeof(header));
}

static void free_compressor(gpointer context)
{
    ZSTD_freeCCtx(context);
}

static void free_decompressor(gpointer context)
{
    ZSTD_freeDCtx(context);
}

/* One of each for a thread: their tables are larger than most frames. */
static GPrivate compressor = G_PRIVATE_INIT(free_compressor);
static GPrivate decompressor = G_PRIVATE_INIT(free_decompressor);

static ZSTD_CCtx *get_compressor(void)
{
    if (!g_private_get(&compressor))
        g_private_set(&compressor, ZSTD_createCCtx());
    return g_private_get(&compressor);
}

static ZSTD_DCtx *get_decompressor(void)
{
    if (!g_private_get(&decompressor))
        g_private_set(&decompressor, ZSTD_createDCtx());
    return g_private_get(&decompressor);
}

/* The compressed content, behind a header that is made afterwards; 0: it does not get smaller. */
static size_t compress_behind(GByteArray *stream, const void *content, size_t length, int level)
{
    ZSTD_CCtx *context = get_compressor();
    size_t room = length - length / 8, begin = stream->len + FRAME_HEADER, packed;

    g_byte_array_set_size(stream, (guint)(begin + room));
    packed = context ? ZSTD_compressCCtx(context, stream->data + begin, room, content, length, level) : 0;
    g_byte_array_set_size(stream, (guint)(begin - FRAME_HEADER));
    return ZSTD_isError(packed) ? 0 : packed;
}

void frame_put_data(GByteArray *stream, uint64_t offset, const void *content, size_t length, int zstd_level)
{
    uint8_t digest[FRAME_DIGEST];
    size_t packed = zstd_level ? compress_behind(stream, content, length, zstd_level) : 0;

    xxh3_digest(content, length, digest);
    put_header(stream, packed ? FRAME_ZSTD : FRAME_DATA, offset, length, packed ? packed : length, digest);
    if (packed)
        g_byte_array_set_size(stream, (guint)(stream->len + packed)); /* it is there already */
    else
        g_byte_array_append(stream, content, (guint)length);
}

void frame_put_header(GByteArray *stream, uint64_t offset, const void *content, size_t length)
{
    uint8_t digest[FRAME_DIGEST];

    xxh3_digest(content, length, digest);
    put_header(stream, FRAME_DATA, offset, length, length, digest);
}

void frame_put_zero(GByteArray *stream, uint64_t offset, uint64_t length)
{
    put_header(stream, FRAME_ZERO, offset, length, 0, NULL);
}

void frame_put_same(GByteArray *stream, uint64_t offset, const void *content, size_t length,
                    const uint8_t *seed, uint64_t seed_offset)
{
    uint8_t payload[SAME_PAYLOAD];

    memcpy(payload, seed, FRAME_SEED);
    store_le64(payload + FRAME_SEED, seed_offset);
    frame_sha256(content, length, payload + FRAME_SEED + 8);
    put_header(stream, FRAME_SAME, offset, length, sizeof(payload), NULL);
    g_byte_array_append(stream, payload, sizeof(payload));
}

/* ---- reading them ------------------------------------------------------------------------------- */

struct frame_parser {
    frame_fn call;
    void *opaque;
    uint8_t header[FRAME_HEADER];
    size_t have; /* bytes of the header, or of the payload once the header is whole */
    bool in_payload, failed;
    struct frame frame;
    size_t payload;
    uint8_t *content; /* FRAME_CONTENT, aligned; from the first frame that has any */
    uint8_t *packed;  /* FRAME_CONTENT */
    uint8_t same[SAME_PAYLOAD];
};

struct frame_parser *frame_parser_new(frame_fn frame, void *opaque)
{
    struct frame_parser *parser = g_new0(struct frame_parser, 1);

    parser->call = frame;
    parser->opaque = opaque;
    return parser;
}

void frame_parser_free(struct frame_parser *parser)
{
    if (!parser)
        return;
    free(parser->content);
    g_free(parser->packed);
    g_free(parser);
}

static bool refuse(GError **error, const struct frame *frame, const char *what, uint64_t value)
{
    return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                         "frame for offset %" G_GUINT64_FORMAT ": %s %" G_GUINT64_FORMAT, frame->offset, what,
                         value);
}

static bool check_lengths(const struct frame_parser *parser, GError **error)
{
    const struct frame *frame = &parser->frame;
    uint64_t most = frame->kind == FRAME_ZERO ? FRAME_MAX_ZERO : FRAME_CONTENT;

    if (frame->length == 0 || frame->length > most)
        return refuse(error, frame, "length", frame->length);
    if (frame->offset > (uint64_t)INT64_MAX - frame->length)
        return refuse(error, frame, "it ends beyond what a file can have; length", frame->length);
    switch (frame->kind) {
    case FRAME_ZERO:
        return parser->payload == 0 || refuse(error, frame, "zeros with a payload of", parser->payload);
    case FRAME_SAME:
        return parser->payload == SAME_PAYLOAD || refuse(error, frame, "a place of", parser->payload);
    case FRAME_DATA:
        return parser->payload == frame->length ||
               refuse(error, frame, "data with a payload of", parser->payload);
    default:
        return (parser->payload > 0 && parser->payload < frame->length) ||
               refuse(error, frame, "compressed data with a payload of", parser->payload);
    }
}

static bool read_header(struct frame_parser *parser, GError **error)
{
    const uint8_t *header = parser->header;
    struct frame *frame = &parser->frame;

    frame->offset = load_le64(header + 8);
    frame->length = load_le64(header + 16);
    parser->payload = load_le32(header + 24);
    memcpy(frame->digest, header + 32, FRAME_DIGEST);
    if (memcmp(header, magic, sizeof(magic)) != 0 || !is_zero(header + 5, 3) || !is_zero(header + 28, 4))
        return refuse(error, frame, "not a frame: it begins with", load_le64(header));
    if (header[4] > FRAME_SAME)
        return refuse(error, frame, "unknown kind", header[4]);
    frame->kind = header[4];
    return check_lengths(parser, error);
}

static bool make_room(struct frame_parser *parser, GError **error)
{
    if (!parser->content && posix_memalign((void **)&parser->content, ALIGNMENT, FRAME_CONTENT))
        parser->content = NULL;
    if (!parser->packed && parser->frame.kind == FRAME_ZSTD)
        parser->packed = g_try_malloc(FRAME_CONTENT);
    return (parser->content && (parser->packed || parser->frame.kind != FRAME_ZSTD)) ||
           blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "no memory for %u bytes of a frame", FRAME_CONTENT);
}

static bool check_content(struct frame_parser *parser, GError **error)
{
    struct frame *frame = &parser->frame;
    uint8_t digest[FRAME_DIGEST];

    if (frame->kind == FRAME_ZSTD) {
        ZSTD_DCtx *context = get_decompressor();
        size_t length = context ? ZSTD_decompressDCtx(context, parser->content, frame->length, parser->packed,
                                                      parser->payload)
                                : 0;

        if (ZSTD_isError(length) || length != frame->length)
            return refuse(error, frame, "it does not unpack to its length of", frame->length);
    }
    xxh3_digest(parser->content, frame->length, digest);
    return memcmp(digest, frame->digest, FRAME_DIGEST) == 0 ||
           blockmig_fail(error, BLOCKMIG_ERROR_DIFFERENT,
                         "frame for offset %" G_GUINT64_FORMAT ": its %" G_GUINT64_FORMAT
                         " bytes do not have its digest: they were changed on their way",
                         frame->offset, frame->length);
}

static bool read_same(struct frame_parser *parser, GError **error)
{
    struct frame *frame = &parser->frame;

    memcpy(frame->seed, parser->same, FRAME_SEED);
    frame->seed_offset = load_le64(parser->same + FRAME_SEED);
    memcpy(frame->sha256, parser->same + FRAME_SEED + 8, FRAME_SHA256);
    return frame->seed_offset <= (uint64_t)INT64_MAX - frame->length ||
           refuse(error, frame, "its place is beyond what a file can have:", frame->seed_offset);
}

static bool finish_frame(struct frame_parser *parser, GError **error)
{
    bool same = parser->frame.kind == FRAME_SAME, has_content = parser->payload > 0 && !same;

    parser->have = 0;
    parser->in_payload = false;
    return (!same || read_same(parser, error)) && (!has_content || check_content(parser, error)) &&
           parser->call(parser->opaque, &parser->frame, has_content ? parser->content : NULL, error);
}

/* Takes what it can of `length` bytes; true with *taken, or an error. */
static bool feed_some(struct frame_parser *parser, const uint8_t *data, size_t length, size_t *taken,
                      GError **error)
{
    size_t wanted = parser->in_payload ? parser->payload : FRAME_HEADER;
    uint8_t *to = !parser->in_payload                ? parser->header
                  : parser->frame.kind == FRAME_SAME ? parser->same
                  : parser->frame.kind == FRAME_ZSTD ? parser->packed
                                                     : parser->content;

    *taken = MIN(length, wanted - parser->have);
    memcpy(to + parser->have, data, *taken);
    parser->have += *taken;
    if (parser->have < wanted)
        return true;
    if (parser->in_payload)
        return finish_frame(parser, error);
    if (!read_header(parser, error))
        return false;
    if (parser->payload == 0)
        return finish_frame(parser, error);
    parser->have = 0;
    parser->in_payload = true;
    return parser->frame.kind == FRAME_SAME || make_room(parser, error);
}

bool frame_parser_feed(struct frame_parser *parser, const void *data, size_t length, GError **error)
{
    const uint8_t *bytes = data;

    if (parser->failed)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "the stream had ended with an error");
    for (size_t taken; length > 0; bytes += taken, length -= taken) {
        if (!feed_some(parser, bytes, length, &taken, error)) {
            parser->failed = true;
            return false;
        }
    }
    return true;
}

bool frame_parser_end(struct frame_parser *parser, GError **error)
{
    if (parser->failed || (parser->have == 0 && !parser->in_payload))
        return !parser->failed ||
               blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "the stream ended with an error");
    return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "the stream ends within a frame");
}
