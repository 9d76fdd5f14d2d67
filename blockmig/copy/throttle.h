/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A rate limit, and one of what is on its way at a time.  Both may be changed from another thread while they
 * are in use. */
#ifndef BLOCKMIG_COPY_THROTTLE_H
#define BLOCKMIG_COPY_THROTTLE_H

#include <glib.h>
#include <stdint.h>

struct throttle;

struct throttle *throttle_new(uint64_t bytes_per_second); /* 0: no limit */
void throttle_free(struct throttle *throttle);
void throttle_set_rate(struct throttle *throttle, uint64_t bytes_per_second); /* thread-safe */
/* At most so many bytes of reads and writes are on their way at a time, G_MAXSIZE: no limit, as at first; 0:
 * none, until there is another limit. See ring_limit(). */
void throttle_set_window(struct throttle *throttle, size_t bytes); /* thread-safe */
size_t throttle_window(struct throttle *throttle);
/* Takes `bytes` if they fit now and returns 0, else takes nothing and returns the microseconds
 * to wait before asking again (`now` is g_get_monotonic_time()).  Bursts are at most 100 ms of the rate,
 * or one request where that is larger. */
int64_t throttle_take(struct throttle *throttle, uint64_t bytes, int64_t now);

typedef struct throttle throttle_t; /* for g_autoptr only */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(throttle_t, throttle_free)

#endif
