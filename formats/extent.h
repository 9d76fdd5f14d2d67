/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The only currency between layers: a run of guest bytes and where they live. */
#ifndef FORMATS_EXTENT_H
#define FORMATS_EXTENT_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

struct storage;

enum extent_status {
    EXTENT_DATA,   /* raw bytes at storage:host_offset */
    EXTENT_ZERO,   /* reads as zeros; hides whatever a lower layer has there */
    EXTENT_HOLE,   /* not in this layer: ask the backing layer (zeros below the base) */
    EXTENT_PACKED, /* compressed: packed_length bytes at storage:host_offset, see image_unpack() */
};

/*
 * All offsets and lengths are bytes.  `storage` is borrowed from the image that
 * returned the extent and lives as long as that image is open.  `storage`, `host_offset`
 * mean something for DATA and PACKED only, `packed_*` and `skip` for PACKED only.
 */
struct extent {
    uint64_t offset; /* guest offset */
    uint64_t length; /* guest bytes */
    enum extent_status status;
    unsigned layer; /* index into the chain that was mapped, 0 = top */
    struct storage *storage;
    uint64_t host_offset;
    uint32_t packed_length; /* an upper bound; the bytes may end at the end of the storage */
    uint32_t skip;          /* where this extent begins inside the unpacked unit */
};

static inline uint64_t extent_end(const struct extent *extent)
{
    return extent->offset + extent->length;
}

/* Collects the extents of a map() and merges neighbours. */
struct extent_sink {
    struct extent *out;
    size_t max, count;
    struct storage *storage; /* where the next DATA and PACKED extents lie */
};

/* False: there is no room for it.  `extent` needs no storage. */
bool extent_sink_add(struct extent_sink *sink, const struct extent *extent);
/* The end of a map().  What was found before a bad place is good: `failure` (or NULL), which is taken,
 * becomes the error only if there is nothing else; or else the next call begins at the bad place and fails.
 */
bool extent_sink_end(const struct extent_sink *sink, GError *failure, size_t *count, GError **error);

const char *extent_status_name(enum extent_status status);

#endif
