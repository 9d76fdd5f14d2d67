/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/migrate/pause.h"

#include "formats/error.h"

#define TIMES 2 /* as long as was allowed */

struct pause_limit {
    GThread *thread;
    GMutex lock;
    GCond changed;
    int64_t begin, deadline; /* monotonic */
    int64_t given_up;        /* when the machine went on; 0: it did not */
    unsigned allowed;
    bool over; /* what had to be done in the pause is */
    void (*give_up)(void *opaque);
    void *opaque;
};

static void *watch(void *opaque)
{
    struct pause_limit *limit = opaque;

    g_mutex_lock(&limit->lock);
    while (!limit->over && g_cond_wait_until(&limit->changed, &limit->lock, limit->deadline))
        ;
    if (!limit->over) {
        limit->give_up(limit->opaque);
        limit->given_up = g_get_monotonic_time();
    }
    g_mutex_unlock(&limit->lock);
    return NULL;
}

struct pause_limit *pause_limit_begin(int64_t begin, unsigned allowed, void (*give_up)(void *opaque),
                                      void *opaque)
{
    struct pause_limit *limit = g_new0(struct pause_limit, 1);

    limit->begin = begin;
    limit->allowed = allowed;
    limit->deadline = begin + (int64_t)allowed * TIMES * 1000;
    limit->give_up = give_up;
    limit->opaque = opaque;
    g_mutex_init(&limit->lock);
    g_cond_init(&limit->changed);
    limit->thread = g_thread_new("limit", watch, limit);
    return limit;
}

static void limit_free(struct pause_limit *limit)
{
    g_mutex_clear(&limit->lock);
    g_cond_clear(&limit->changed);
    g_free(limit);
}

bool pause_limit_end(struct pause_limit *limit, GError **error)
{
    bool exceeded;
    int64_t now;

    if (!limit)
        return true;
    g_mutex_lock(&limit->lock);
    limit->over = true;
    g_cond_signal(&limit->changed);
    g_mutex_unlock(&limit->lock);
    g_thread_join(limit->thread);
    now = limit->given_up ? limit->given_up : g_get_monotonic_time();
    exceeded = now > limit->deadline;
    if (exceeded) {
        g_clear_error(error);
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_PARKED,
                    "the pause took more than twice the %u ms of --max-pause: given up after %.0f ms",
                    limit->allowed, (double)(now - limit->begin) / 1000);
    }
    limit_free(limit);
    return !exceeded;
}
