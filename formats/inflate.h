/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Deflate data, unpacked into a buffer that bounds it, and packed.  Any thread. */
#ifndef FORMATS_INFLATE_H
#define FORMATS_INFLATE_H

#include <stdbool.h>
#include <stddef.h>

enum inflate_kind {
    INFLATE_RAW,  /* RFC 1951, with a window of 4 KiB */
    INFLATE_ZLIB, /* RFC 1950 */
};

enum inflate_result {
    INFLATE_WHOLE, /* the mark of its end, with the checksum of a kind that has one, may be missing */
    INFLATE_MORE,  /* than there is room for */
    INFLATE_DAMAGED,
};

/* *got: bytes that were unpacked, at most `room`. */
enum inflate_result inflate_bytes(enum inflate_kind kind, const void *packed, size_t packed_length, void *out,
                                  size_t room, size_t *got);
/* Packs as INFLATE_ZLIB.  0: it does not fit into `room` bytes. */
size_t deflate_bytes(const void *data, size_t length, void *out, size_t room);

#endif
