/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How much may be on its way beside a machine that shall keep a share of its disks.  Knows no machine:
 * counters go in, a window comes out.
 *
 * Now and then nothing is begun for a moment (a rest), which shows what a request costs without us: the
 * comparison is always with a moment ago, so it does not matter what the machine does or how fast the
 * datastore is.  For a machine that waits for each request
 *
 *     share = period / (period - latency + latency beside us)
 *
 * where `period` and `latency` are those of a rest, both per request; for one that has many on their way the
 * period is the latency.  One that asks for little has long periods, and hardly slows us.
 *
 * What is on its way is what a request of the machine waits behind.  So that is what follows from the share,
 * and not a rate: one small request at a time is as fast as a disk is idle.
 */
#ifndef BLOCKMIG_MIGRATE_SHARE_H
#define BLOCKMIG_MIGRATE_SHARE_H

#include "blockmig/copy/throttle.h"

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

struct share;

/* `percent`: 1 to 100.  Begins with a rest. */
struct share *share_new(unsigned percent);
void share_free(struct share *share);
/* Is it time for the next step?  `now`: monotonic, in microseconds. */
bool share_is_due(const struct share *share, int64_t now);
/* What the machine asked for so far, and the nanoseconds that it took, of all requests together.  Returns the
 * bytes that may be on their way from now on; 0 in a rest. */
size_t share_step(struct share *share, int64_t now, uint64_t requests, uint64_t time_ns);
/* The machine cannot be asked now: nothing waits for it. */
size_t share_skip(struct share *share, int64_t now);
/* If it is time, asks the machine for both numbers (false: it cannot be asked), and limits `throttle`. */
void share_look(struct share *share, struct throttle *throttle,
                bool (*ask)(void *opaque, uint64_t *requests, uint64_t *time_ns), void *opaque);

typedef struct share share_t; /* for g_autoptr only */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(share_t, share_free)

#endif
