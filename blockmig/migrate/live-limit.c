/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The limit of a pause (pause.h) may use the monitor and the guard because the shipping thread uses neither
 * until live_limit_end() returns; and nothing on the old side depends on what is still being written to the
 * target.
 */
#include "blockmig/migrate/live.h"
#include "blockmig/migrate/pause.h"

static void give_up(void *opaque)
{
    struct live_job *job = opaque;

    g_atomic_int_set(&job->given_up, 1);
    live_resume(job, NULL, NULL);
}

struct pause_limit *live_limit_begin(struct live_job *job)
{
    return pause_limit_begin(job->pause_begin, live_max_pause(job), give_up, job);
}

bool live_limit_end(struct live_job *job, struct pause_limit *limit, GError **error)
{
    bool kept = pause_limit_end(limit, error);

    g_atomic_int_set(&job->given_up, 0);
    return kept;
}
