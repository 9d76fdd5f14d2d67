/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A rate limit whose rate may be changed from another thread while it is in use. */
#ifndef BLOCKMIG_COPY_THROTTLE_H
#define BLOCKMIG_COPY_THROTTLE_H

#include <glib.h>
#include <stdint.h>

struct throttle;

struct throttle *throttle_new(uint64_t bytes_per_second); /* 0: no limit */
void throttle_free(struct throttle *throttle);
void throttle_set_rate(struct throttle *throttle, uint64_t bytes_per_second); /* thread-safe */
/* Takes `bytes` if they fit now and returns 0, else takes nothing and returns the microseconds
 * to wait before asking again (`now` is g_get_monotonic_time()).  Bursts are at most 100 ms of the rate,
 * or one request where that is larger. */
int64_t throttle_take(struct throttle *throttle, uint64_t bytes, int64_t now);

typedef struct throttle throttle_t; /* for g_autoptr only */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(throttle_t, throttle_free)

#endif
