/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Reads guest bytes of a chain into buffers: one struct reader per disk, one struct load per buffer.
 *
 * Pieces of a load are as large as the host layout allows.  What cannot be read is read again block by
 * block to find the exact range, which is then a failure or (salvage) zeros and an entry in `bad`.
 */
#ifndef BLOCKMIG_COPY_READER_H
#define BLOCKMIG_COPY_READER_H

#include "blockmig/copy/copier.h"

#define READER_BATCH 256

struct reader {
    struct copier *copier;
    struct chain *chain; /* or */
    struct image *image; /* alone: its holes read as zeros */
    uint64_t size;
    bool past_cache; /* also where there is no O_DIRECT */
    bool keep_holes;
    bool leave_holes; /* what the buffer of a load has in a hole, or behind its end, is of no interest */
    /* If set: only what must be zero according to it is data, the rest is passed over as if it were zeros. */
    const struct digest_table *only_zero;
    struct extent batch[READER_BATCH]; /* of the map, around where we are */
    size_t batch_count, current;
};

void reader_init(struct reader *reader, struct copier *copier, struct chain *chain, struct image *image);
/* What is at `offset`, up to `limit` at most: never empty.  HOLE only with keep_holes. */
bool reader_extent(struct reader *reader, uint64_t offset, uint64_t limit, struct extent *out,
                   GError **error);
/* As reader_extent, but only DATA (which may be packed), ZERO or HOLE, and as long as it goes on. */
bool reader_run(struct reader *reader, uint64_t offset, uint64_t limit, enum extent_status *status,
                uint64_t *end, GError **error);
/* The first data at or behind `offset`; `limit` if there is none before it. */
bool reader_next(struct reader *reader, uint64_t offset, uint64_t limit, uint64_t *found, GError **error);
/* Guest bytes of data in a range. */
bool reader_count(struct reader *reader, uint64_t offset, uint64_t limit, uint64_t *data, GError **error);

struct load {
    struct reader *reader;
    uint64_t offset;
    size_t length; /* at most SLOT_SIZE; what lies beyond the end of the disk becomes zeros */
    uint8_t *buffer;
    GArray *extents; /* of struct extent: the map of the range */
    uint64_t data;   /* guest bytes of it that will be read */
    unsigned pending;
    GArray *bad; /* of struct copy_range, in no order; NULL: none */
    void (*done)(struct load *load);
};

/* Looks up the map.  `buffer` has SLOT_SIZE bytes. */
bool load_plan(struct load *load, struct reader *reader, uint64_t offset, size_t length, uint8_t *buffer,
               GError **error);
/* Starts reading; done() comes when everything is there or has failed the copier: perhaps at once. */
void load_start(struct load *load);
void load_clear(struct load *load);
/* Moves the bad ranges of the load into the result, where they are kept merged and ascending. */
void load_report_bad(struct load *load);

#endif
