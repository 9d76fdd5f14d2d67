/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Quiescing.  A frozen guest must be thawed whatever happens to us: the guard is told before, a watchdog in
 * this process thaws after LIMIT, and live_thaw() stands on every way out.  What was frozen for less than
 * LIMIT, by our clock from before the request, has been frozen all the time.
 */
#include "blockmig/migrate/live-watch.h"

#define LIMIT 10000 /* ms; the longest that the agent grants */

bool live_check_agent(struct live_job *job, GError **error)
{
    g_autoptr(GError) local = NULL;

    if (job->request->quiesce == QUIESCE_NO)
        return true;
    if (vm_find_agent(job->vm, &local))
        return true;
    if (job->request->quiesce == QUIESCE_REQUIRE)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "--quiesce=require: %s", local->message);
    job_notice(&job->base, "the guest's file systems cannot be frozen: %s", local->message);
    return true;
}

/* What could not be had; ends the move only if it was required. */
static bool go_without(struct live_job *job, const char *why, GError **error)
{
    if (job->request->quiesce == QUIESCE_REQUIRE)
        return blockmig_fail(error, BLOCKMIG_ERROR_CANCELLED, "--quiesce=require: %s", why);
    live_watch_say(job, "goes on without freezing the guest's file systems: %s", why);
    return true;
}

bool live_freeze(struct live_job *job, GError **error)
{
    g_autoptr(GError) local = NULL;
    int64_t begin;

    if (job->request->quiesce == QUIESCE_NO)
        return true;
    if (!live_guard(job, error) || !guard_freezing(job->guard, error))
        return false;
    begin = g_get_monotonic_time();
    if (vm_freeze(job->vm, LIMIT, NULL, &local)) {
        job->frozen = begin;
        return true;
    }
    guard_thawed(job->guard, NULL);
    return go_without(job, local->message, error);
}

bool live_held(struct live_job *job, GError **error)
{
    if (!job->frozen || g_get_monotonic_time() - job->frozen < LIMIT * INT64_C(1000))
        return true;
    return go_without(job, "they were frozen for 10 s and have been thawed before the machine stood still",
                      error);
}

/* If the agent does not answer the guard stays told: it tries again when we end. */
void live_thaw(struct live_job *job, double *milliseconds)
{
    g_autoptr(GError) local = NULL;
    bool thawed;

    if (!job->frozen)
        return;
    thawed = vm_thaw(job->vm, &local) || g_error_matches(local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED);
    if (thawed)
        guard_thawed(job->guard, NULL);
    else
        live_watch_say(job, "the guest's file systems may be frozen still: %s", local->message);
    if (milliseconds)
        *milliseconds = (double)(g_get_monotonic_time() - job->frozen) / 1000;
    job->frozen = 0;
}
