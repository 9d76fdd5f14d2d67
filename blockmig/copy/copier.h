/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What every walk over a disk has: the ring, its buffers, the first failure, progress.  Inside blockmig/copy
 * only. */
#ifndef BLOCKMIG_COPY_COPIER_H
#define BLOCKMIG_COPY_COPIER_H

#include "blockmig/copy/copy.h"
#include "blockmig/copy/ring.h"
#include "blockmig/storage/direct.h"

/* Guest bytes that are read, written and read back in one go: a multiple of the digest chunk, and the
 * request size at which the reference disk is fastest. Slots lie on multiples of it. */
#define SLOT_SIZE   (UINT64_C(2) << 20)
#define SLOT_CHUNKS (SLOT_SIZE / DIGEST_CHUNK_SIZE)

struct copier {
    const struct copy_options *options;
    struct copy_result *result;
    struct ring *ring;
    uint8_t *memory; /* all buffers, each of SLOT_SIZE */
    size_t memory_size;
    unsigned buffer_count, free_count;
    uint8_t **free_buffers;
    GError *error; /* the first failure */
    int64_t next_tick;
    int64_t read_until; /* throttle: nothing more before this time */
};

/* `options` may be NULL: the defaults.  The counters of `result` start at zero. */
bool copier_init(struct copier *copier, const struct copy_options *options, struct copy_result *result,
                 GError **error);
/* Nothing may be in flight. */
void copier_clear(struct copier *copier);

uint8_t *copier_take_buffer(struct copier *copier); /* NULL: none is free */
void copier_give_buffer(struct copier *copier, uint8_t *buffer);

/* Takes ownership of `error`; later failures are consequences of the first and are dropped. */
void copier_fail(struct copier *copier, GError *error);
void copier_submit(struct copier *copier, struct ring_op *op);
/* May `bytes` be read now, says the rate limit? */
bool copier_may_read(struct copier *copier, uint64_t bytes);
/* Waits for a completion and lets its done() handle it; tells progress, notices a cancellation.  Returns
 * after at most a tenth of a second. */
void copier_wait(struct copier *copier);
void copier_drain(struct copier *copier);
void copier_tell_progress(struct copier *copier);

#endif
