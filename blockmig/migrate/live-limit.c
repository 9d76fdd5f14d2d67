/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The limit of a pause: at twice what was allowed the machine goes on where it was, whatever we are doing.
 *
 * Shipping can hang in one write or one fsync of a slow target, so the limit has a thread of its own.  It may
 * use the monitor and the guard because the shipping thread uses neither until live_limit_end() returns; and
 * nothing on the old side depends on what is still being written to the target.
 */
#include "blockmig/migrate/live.h"

struct live_limit {
    struct live_job *job;
    GThread *thread;
    GMutex lock;
    GCond changed;
    int64_t deadline; /* monotonic */
    bool over;        /* the shipping is */
    bool exceeded;
};

static void *watch(void *opaque)
{
    struct live_limit *limit = opaque;

    g_mutex_lock(&limit->lock);
    while (!limit->over && g_cond_wait_until(&limit->changed, &limit->lock, limit->deadline))
        ;
    if (!limit->over) {
        limit->exceeded = true;
        g_atomic_int_set(&limit->job->given_up, 1);
        live_resume(limit->job, NULL, NULL);
    }
    g_mutex_unlock(&limit->lock);
    return NULL;
}

struct live_limit *live_limit_begin(struct live_job *job)
{
    struct live_limit *limit = g_new0(struct live_limit, 1);

    limit->job = job;
    limit->deadline = job->pause_begin + (int64_t)live_max_pause(job) * 2000;
    g_mutex_init(&limit->lock);
    g_cond_init(&limit->changed);
    limit->thread = g_thread_new("limit", watch, limit);
    return limit;
}

bool live_limit_end(struct live_limit *limit, GError **error)
{
    unsigned allowed = live_max_pause(limit->job);
    bool exceeded;

    g_mutex_lock(&limit->lock);
    limit->over = true;
    g_cond_signal(&limit->changed);
    g_mutex_unlock(&limit->lock);
    g_thread_join(limit->thread);
    g_atomic_int_set(&limit->job->given_up, 0);
    exceeded = limit->exceeded || g_get_monotonic_time() > limit->deadline;
    g_mutex_clear(&limit->lock);
    g_cond_clear(&limit->changed);
    g_free(limit);
    if (!exceeded)
        return true;
    g_clear_error(error);
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_PARKED,
                "the pause took more than twice the %u ms of --max-pause: given up", allowed);
    return false;
}
