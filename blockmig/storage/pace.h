/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How strongly data is compressed so that it arrives soonest.
 *
 * What counts is content that arrived in a time, over all connections: it says what compressing costs the
 * processors of both hosts as well as what it spares the link.  A level is used for a while, now and then the
 * next one is tried, and kept if it is faster; so data is not compressed where the link is not what
 * everything waits for.  The caller locks.
 */
#ifndef BLOCKMIG_STORAGE_PACE_H
#define BLOCKMIG_STORAGE_PACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PACE_STEPS 3

struct pace {
    unsigned step;                  /* the one that is used, and */
    unsigned trying;                /* the one that is measured, which may be the same */
    unsigned under_way[PACE_STEPS]; /* pieces */
    double rate[PACE_STEPS];        /* bytes in a microsecond, lately; 0: not measured */
    bool warm;                      /* what is slow only because a copy begins is over */
    unsigned interval;              /* measurements between trials, and */
    unsigned since_trial;           /* since the last one */
    unsigned wins;                  /* of the step that was tried last, one after the other */
    bool down;                      /* where the last trial was */
    int64_t begin;                  /* of the measurement; 0: with the first piece that arrives */
    uint64_t bytes;
};

/* With compression: on a slow link that is much, on a fast one it costs a moment. */
#define PACE_INIT                                                                                            \
    (struct pace)                                                                                            \
    {                                                                                                        \
        .step = 1, .trying = 1, .interval = 1                                                                \
    }

/* What a piece that begins now is to be sent with, and the level of zstd that this is; 0: none. */
unsigned pace_begin(struct pace *pace);
int pace_level(unsigned step);
/* A piece that began so has arrived at `now`, microseconds; or it did not, or is too small to say anything:
 * `bytes` 0. */
void pace_end(struct pace *pace, unsigned step, size_t bytes, int64_t now);

#endif
