/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Bulk data between blockmig and an agent: a stream of frames, each with a digest of its content.
 *
 * All numbers are little endian.
 *
 *    0  "BMF1"
 *    4  kind, one byte; three bytes of zeros
 *    8  offset  in the file, bytes
 *   16  length  of the content, bytes
 *   24  length of what follows the header; four bytes of zeros
 *   32  XXH3-128 of the content, canonical; zeros for FRAME_ZERO and FRAME_SAME
 *
 * What follows the header of FRAME_SAME says where the content is to be found, and what it has to be:
 *
 *    0  the number of a handle, 16 bytes
 *   16  offset in that file
 *   24  SHA-256 of the content: nobody has seen both, and that file may be of anybody's making
 *
 * A frame comes from outside: every number in it is checked before it is used or anything is allocated.
 */
#ifndef BLOCKMIG_STORAGE_FRAME_H
#define BLOCKMIG_STORAGE_FRAME_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FRAME_HEADER   48
#define FRAME_DIGEST   16
#define FRAME_SHA256   32
#define FRAME_SEED     16                  /* bytes of the number of a handle */
#define FRAME_CONTENT  (4u << 20)          /* bytes of content at most, where it has a digest */
#define FRAME_MAX_ZERO (UINT64_C(1) << 40) /* bytes of zeros at most */

enum frame_kind {
    FRAME_ZERO, /* reads as zeros */
    FRAME_DATA, /* the content follows */
    FRAME_ZSTD, /* the content follows, compressed */
    FRAME_SAME, /* the content may be in another file */
};

struct frame {
    enum frame_kind kind;
    uint64_t offset, length;
    uint8_t digest[FRAME_DIGEST];
    uint8_t seed[FRAME_SEED]; /* these three: SAME */
    uint64_t seed_offset;
    uint8_t sha256[FRAME_SHA256];
};

void frame_sha256(const void *content, size_t length, uint8_t *digest);

/* Appends a frame.  Data gets its digest here; `zstd_level` 0: as it is, otherwise compressed if it gets
 * smaller by an eighth. */
void frame_put_data(GByteArray *stream, uint64_t offset, const void *content, size_t length, int zstd_level);
/* Only the header: the content follows as it is. */
void frame_put_header(GByteArray *stream, uint64_t offset, const void *content, size_t length);
void frame_put_zero(GByteArray *stream, uint64_t offset, uint64_t length);
/* `content` is not sent. */
void frame_put_same(GByteArray *stream, uint64_t offset, const void *content, size_t length,
                    const uint8_t *seed, uint64_t seed_offset);

struct frame_parser;

/* `content`: frame->length bytes, aligned to 4096, for DATA and ZSTD, whose digest fits; otherwise NULL. */
typedef bool (*frame_fn)(void *opaque, const struct frame *frame, const uint8_t *content, GError **error);

struct frame_parser *frame_parser_new(frame_fn frame, void *opaque);
void frame_parser_free(struct frame_parser *parser); /* NULL is allowed */
/* Any part of a stream.  REFUSED what is no frame, DIFFERENT a digest that does not fit; both name the
 * offset.  After an error nothing more is taken. */
bool frame_parser_feed(struct frame_parser *parser, const void *data, size_t length, GError **error);
/* The stream has ended: REFUSED within a frame. */
bool frame_parser_end(struct frame_parser *parser, GError **error);

typedef struct frame_parser frame_parser_t; /* for g_autoptr only */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(frame_parser_t, frame_parser_free)

#endif
