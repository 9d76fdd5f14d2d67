/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/migrate/share.h"

#define MEASURE     (G_USEC_PER_SEC / 10)
#define DRAIN       (G_USEC_PER_SEC / 33) /* for what is on its way when a rest begins */
#define REST_PERIOD G_USEC_PER_SEC
#define FEW         5 /* requests in a rest that say nothing */
#define SMALLEST    ((double)(64 << 10))
#define FIRST       ((double)(1 << 20))
#define LARGEST     ((double)(32 << 20)) /* more than the copier has on its way */

enum state { DRAINING, RESTING, COPYING };

struct share {
    double wanted;
    enum state state;
    int64_t since, next_rest; /* since when the present measurement goes on; 0: not begun */
    uint64_t requests, time_ns;
    double period, latency; /* of the last rest, in seconds; period 0: nothing was asked for */
    double window;          /* bytes */
};

struct share *share_new(unsigned percent)
{
    struct share *share = g_new0(struct share, 1);

    share->wanted = percent / 100.0;
    share->window = FIRST;
    return share;
}

void share_free(struct share *share)
{
    g_free(share);
}

bool share_is_due(const struct share *share, int64_t now)
{
    return !share->since || now - share->since >= (share->state == DRAINING ? DRAIN : MEASURE);
}

/* What we may cost is excess latency; how much of it there is follows from how much is in the way. */
static void adapt(struct share *share, double latency)
{
    double allowed = share->period * (1 / share->wanted - 1), excess = latency - share->latency;
    double factor = excess > 0 ? CLAMP(allowed / excess, 0.5, 1.5) : 1.5;

    share->window = CLAMP(share->window * factor, SMALLEST, LARGEST);
}

/* One measurement of so many seconds is over. */
static void judge(struct share *share, double seconds, uint64_t requests, uint64_t time_ns)
{
    double latency = requests ? (double)time_ns / 1e9 / (double)requests : 0;

    if (share->state == RESTING) {
        share->period = requests < FEW ? 0 : MAX(seconds / (double)requests, latency);
        share->latency = latency;
    } else if (share->period == 0) {
        share->window = MIN(share->window * 1.5, LARGEST);
    } else if (requests) { /* none: asleep, or behind all that we have on its way; the next rest will tell */
        adapt(share, latency);
    }
}

static size_t turn_to(struct share *share, enum state state, int64_t now)
{
    share->state = state;
    share->since = now;
    if (state == DRAINING)
        share->next_rest = now + REST_PERIOD;
    return state == COPYING ? (size_t)share->window : 0;
}

/* Is a rest worth its while?  Not for a machine that asked for little in the last one, unless it waits now.
 */
static bool wants_rest(const struct share *share, int64_t now, double seconds, uint64_t time_ns)
{
    return now >= share->next_rest && (share->period > 0 || (double)time_ns / 1e9 > seconds / 2);
}

size_t share_step(struct share *share, int64_t now, uint64_t requests, uint64_t time_ns)
{
    double seconds = (double)(now - share->since) / G_USEC_PER_SEC;
    uint64_t time = time_ns - share->time_ns;
    bool first = !share->since, rest;

    if (requests < share->requests || time_ns < share->time_ns) { /* a disk went, with what it had counted */
        share->requests = requests;
        share->time_ns = time_ns;
        return share_skip(share, now);
    }
    if (!first && share->state != DRAINING)
        judge(share, seconds, requests - share->requests, time);
    rest = share->state == COPYING && wants_rest(share, now, seconds, time);
    share->requests = requests;
    share->time_ns = time_ns;
    if (share->state == DRAINING && !first)
        return turn_to(share, RESTING, now);
    return turn_to(share, first || rest ? DRAINING : COPYING, now);
}

size_t share_skip(struct share *share, int64_t now)
{
    turn_to(share, COPYING, now);
    share->period = 0; /* what the next step measures is not what this one would have */
    return G_MAXSIZE;
}

void share_look(struct share *share, struct throttle *throttle,
                bool (*ask)(void *opaque, uint64_t *requests, uint64_t *time_ns), void *opaque)
{
    int64_t now = g_get_monotonic_time();
    uint64_t requests, time_ns;

    if (!share_is_due(share, now))
        return;
    throttle_set_window(throttle, ask(opaque, &requests, &time_ns) ? share_step(share, now, requests, time_ns)
                                                                   : share_skip(share, now));
}
