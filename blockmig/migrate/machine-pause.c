/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What --max-pause means for a domain that moves on this host or by live: before the pause the comparison
 * that it is for is rehearsed, and the pause begins only if that fits; at twice --max-pause it is given up.
 * After either the switch is tried again behind more passes, which leave less to be compared; and then
 * on_busy() does what was asked for.
 */
#include "blockmig/migrate/machine.h"

#define TRIES      3u /* of the switch */
#define REHEARSALS 3u /* in each; what the first reads is known to the next */
/* What a pause costs beside the comparison, in times of putting layers on, as in live-converge.c. */
#define OVERHEAD 1.5
#define TICK     (G_USEC_PER_SEC / 200)

/* ---- the forecast -------------------------------------------------------------------------------- */

static void tell_pace(const struct machine_job *job)
{
    const struct job_report *report = job->base.report;
    const struct job_pace pace = {.pass = report->passes,
                                  .dirty_rate = report->dirty_rate,
                                  .ship_rate = report->ship_rate,
                                  .forecast_ms = report->pause_forecast_ms,
                                  .limit_ms = report->max_pause_ms,
                                  .pause_ms = report->pause_ms};

    if (job->base.listener->pace)
        job->base.listener->pace(job->base.listener->opaque, &pace);
}

static bool note_forecast(struct machine_job *job, double seconds, GError **error)
{
    double forecast = (seconds + OVERHEAD * job->layer_time) * 1000;

    job->base.report->pause_forecast_ms = forecast;
    tell_pace(job);
    machine_tell(job, "comparing takes %.0f ms", seconds * 1000);
    return job_event(&job->base, "result", error, "comparison rehearsed in %.1f ms, pause forecast %.1f ms",
                     seconds * 1000, forecast);
}

static bool is_too_long(const struct machine_job *job)
{
    return job->base.report->pause_forecast_ms > job->request->max_pause;
}

bool machine_look_forward(struct machine_job *job, struct comparison *comparison, bool *fits, GError **error)
{
    double seconds = -1;

    *fits = !job->state.running;
    if (*fits)
        return true;
    if (job->rehearsals > 0) {
        if (!machine_comparison_is_rehearsed(comparison, &seconds))
            return true;
        if (seconds >= 0 && !note_forecast(job, seconds, error))
            return false;
        *fits = seconds >= 0 ? !is_too_long(job) : job->rehearsals == REHEARSALS;
        if (*fits)
            return true;
    }
    if (job->rehearsals == REHEARSALS)
        return blockmig_fail(error, BLOCKMIG_ERROR_PARKED,
                             "a pause would take %.0f ms, and --max-pause allows %u ms",
                             job->base.report->pause_forecast_ms, job->request->max_pause);
    job->rehearsals++;
    machine_comparison_rehearse(comparison);
    return true;
}

/* ---- the limit ----------------------------------------------------------------------------------- */

struct pause_limit *machine_limit_begin(struct machine_job *job, int64_t begin, void (*give_up)(void *opaque),
                                        void *opaque)
{
    return job->state.running ? pause_limit_begin(begin, job->request->max_pause, give_up, opaque) : NULL;
}

bool machine_limit_end(struct machine_job *job, struct pause_limit *limit, GError **error)
{
    bool kept = pause_limit_end(limit, error);

    g_atomic_int_set(&job->given_up, 0);
    return kept;
}

void machine_note_pause(struct machine_job *job, struct domain_host *to)
{
    int64_t stopped = domain_host_times(job->here, machine_uuid(job)).stopped, resumed;

    if (!job->state.running)
        return;
    for (int tries = 0; (resumed = domain_host_times(to, machine_uuid(job)).resumed) <= stopped && tries < 50;
         tries++)
        g_usleep(TICK);
    if (stopped > 0 && resumed > stopped)
        job->base.report->pause_ms = (double)(resumed - stopped) / 1000;
    tell_pace(job);
}

/* ---- the plan ------------------------------------------------------------------------------------ */

/* By these the machine stands still as long as it takes. */
static const char *why_unlimited(const struct machine_job *job)
{
    const struct method *method = job->base.method;

    return method == &method_machine_quick     ? "its memory and its last writes take to go over"
           : method == &method_machine_restart ? "the guest takes to shut down and to start"
                                               : NULL;
}

static void plan_limit(const struct machine_job *job)
{
    const struct move_request *request = job->request;
    bool mirror = !job->across && request->on_busy == BUSY_MIRROR;

    if (job->disks->len == 0)
        job_plan(&job->base,
                 "pause: the hypervisor reckons with %u ms; nothing gives it up that takes longer",
                 request->max_pause);
    else if (request->max_pause == 0)
        job_plan(&job->base, "pause: none; what is written last is not compared");
    else
        job_plan(&job->base, "pause: at most %u ms, and given up after twice that; if it would be longer: %s",
                 request->max_pause,
                 mirror ? "the switch is made without one, and what is written last is not compared"
                        : "it is rolled back");
}

void machine_plan_pause(const struct machine_job *job)
{
    const char *why = why_unlimited(job);

    if (!job->state.running || job->base.method == &method_machine_cold)
        return;
    if (!why) {
        plan_limit(job);
        return;
    }
    job_plan(&job->base, "pause: as long as %s; --max-pause is no limit of the method %s", why,
             job->base.method->name);
    if (job->request->max_pause_named)
        job_notice(&job->base, "--max-pause=%ums is no limit of the method %s: the pause is as long as %s",
                   job->request->max_pause, job->base.method->name, why);
}

/* ---- once more ----------------------------------------------------------------------------------- */

/* Nothing is left to try but this. */
static bool on_busy(struct machine_job *job)
{
    bool mirror = job->request->on_busy == BUSY_MIRROR && !job->without_pause;

    job->base.report->on_busy = busy_policy_name(mirror ? BUSY_MIRROR : BUSY_PARK);
    job->without_pause = mirror;
    return mirror;
}

bool machine_try_again(struct machine_job *job, GError *failure, GError **error)
{
    if (job->uncertain || job->released || !g_error_matches(failure, BLOCKMIG_ERROR, BLOCKMIG_ERROR_PARKED) ||
        (++job->tries >= TRIES && !on_busy(job))) {
        g_propagate_error(error, failure);
        return false;
    }
    job_notice(&job->base, "%s: %s", failure->message,
               job->without_pause ? "the switch is made without a pause (--on-busy=mirror)"
                                  : "the machine runs on where it was, and the switch is tried again");
    g_error_free(failure);
    job->rehearsals = 0;
    job->base.go_on_at = "converge";
    return !machine_is_cancelled(job, error) && machine_take_targets_back(job, error);
}
