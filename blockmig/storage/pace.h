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

#define PACE_STEPS 4

/* Begins as zeros: with data as it is. */
struct pace {
    unsigned step;           /* the one that is used, and */
    unsigned trying;         /* the one that is measured, which may be the same */
    double rate[PACE_STEPS]; /* bytes in a microsecond, lately; 0: not measured */
    unsigned since_trial;    /* measurements since another one was tried, */
    bool tried;              /* another one, at all */
    unsigned wins;           /* of compressing over not, one after the other */
    bool down;               /* where the last trial was */
    int64_t begin;           /* of the measurement; 0: with the first piece that arrives */
    uint64_t bytes;
};

/* What the next piece is to be sent with, and the level of zstd that this is; 0: none. */
unsigned pace_step(const struct pace *pace);
int pace_level(unsigned step);
/* A piece of `bytes` of content that was sent so has arrived at `now`, microseconds. */
void pace_note(struct pace *pace, unsigned step, size_t bytes, int64_t now);

#endif
