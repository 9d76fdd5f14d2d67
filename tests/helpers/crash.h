/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a crash at any moment leaves of an image: for unit tests of drivers.  The image lies on a memory
 * storage, whose writes are cut behind every flush; what is left must open, be sound, hold all that was
 * flushed and not touched since, and serve as a target again.
 */
#ifndef TESTS_CRASH_H
#define TESTS_CRASH_H

#include "formats/chain.h"

struct crash_case {
    const struct format *format;
    struct chain *backing; /* what lies below the image, or NULL */
    /* An independent program: 0 sound, 3 sound but with leaks; or NULL. */
    int (*judge)(const void *bytes, size_t length);
};

/* What the image held when image_flush() returned, and what was touched after it. */
struct crash_mark {
    unsigned flush; /* of the storage */
    uint8_t *model;
    uint8_t *touched; /* one byte per byte */
};

struct crash_mark *crash_mark_new(struct storage *storage, const uint8_t *model, uint64_t size);
void crash_mark_free(struct crash_mark *mark);
/* Cuts `storage` behind flushes from the first mark (of struct crash_mark *) on: with BLOCKMIG_LONG=1 behind
 * each, else behind a sample of them with a random start (harness_sample()). */
void crash_everywhere(const struct crash_case *crash, struct storage *storage, GPtrArray *marks,
                      GRand *random);
/* Random changes of the image on `storage`, which is closed, then crash_everywhere(). */
void crash_random(const struct crash_case *crash, struct storage *storage, unsigned steps);
/* The child on `child` is merged into the parent on `parent` again and again, both cut everywhere: the parent
 * stays its parent, but not that of `sibling`.  Takes ownership of the storages. */
void crash_merge(const struct format *format, struct storage *parent, struct storage *child,
                 struct storage *sibling);

#endif
