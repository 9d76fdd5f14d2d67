/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Moves of running machines from the outside, and what every phase of them needs. */
#include "blockmig/migrate/keeper.h"
#include "blockmig/migrate/live-watch.h"
#include "blockmig/migrate/machine.h"
#include "blockmig/storage/uri.h"

#include <sched.h>

#define PAUSE_TIMEOUT 10000   /* ms; a stop waits for the guest's requests in flight */
#define GUARD_GRACE   20000   /* ms */
#define ANY_PAUSE     600000u /* ms */

void live_describe(const struct job *base, struct journal_job *record)
{
    const struct live_job *job = (const struct live_job *)base;

    record->request = move_request_to_json(job->request);
    record->source = g_strdup(job->request->machine);
    record->target = storage_absolute_name(job->request->target);
}

/* What was rolled back has its own words. */
char *live_advise(const struct job *base, const GError *error)
{
    const struct live_job *job = (const struct live_job *)base;
    const char *id = base->record->id;

    if (job->pivoted)
        return g_strdup("the machine runs on the target, which was proved; run the same command again to "
                        "finish");
    if (g_error_matches(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_UNREACHABLE) ||
        g_error_matches(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_UNCERTAIN))
        return g_strdup_printf("nothing was changed any more: all that the machine wrote is in its overlays. "
                               "Once it answers, or is off: 'blockmig job resume %s' goes on, 'blockmig job "
                               "cancel %s' rolls back",
                               id, id);
    return g_strdup_printf("the machine runs on, and what was copied is kept: 'blockmig job resume %s' goes "
                           "on, 'blockmig job cancel %s' rolls back",
                           id, id);
}

void live_disk_free(struct live_disk *disk)
{
    chain_close(disk->base);
    image_close(disk->target);
    checkpoint_clear(&disk->done);
    g_free(disk->frozen);
    g_clear_pointer(&disk->options, g_hash_table_unref);
    g_free(disk->name);
    g_free(disk->stem);
    g_free(disk->base_node);
    g_free(disk->target_path);
    g_free(disk->target_overlay);
    g_free(disk->backing_name);
    g_free(disk->handed_over);
    g_free(disk->takes_name);
    g_free(disk);
}

void live_set_request(struct live_job *job, const struct move_request *request)
{
    job->request = request;
    job->base.report->verified = request->verify;
    job->base.report->max_pause_ms = request->max_pause;
    job->throttle = throttle_new(request->bandwidth);
    job->scratch = request->scratch ? g_canonicalize_filename(request->scratch, NULL) : NULL;
}

void live_run(struct live_job *job, const char *state_dir, GError **error)
{
    job->watch = live_watch_new();
    job->tag = g_random_int();
    job->steps = g_string_new(NULL);
    job->disks = g_ptr_array_new_with_free_func((GDestroyNotify)live_disk_free);
    job->lowers = g_ptr_array_new_with_free_func((GDestroyNotify)lower_free);
    job_run(&job->base, state_dir, error);
    g_ptr_array_unref(job->disks);
    g_ptr_array_unref(job->lowers);
    g_free(job->scratch);
    g_clear_pointer(&job->others, g_ptr_array_unref);
    g_string_free(job->steps, true);
    g_free(job->resized);
    vm_description_free(job->description);
    guard_stop(job->guard);
    vm_close(job->vm);
    live_watch_free(job->watch);
    live_share_end(job);
    throttle_free(job->throttle);
    if (job->base.record && !job->kept)
        keeper_start(&job->base);
    job_clear(&job->base);
}

static struct job_report *run(struct live_job *job, const struct job_listener *listener, GError **error)
{
    struct job *base = &job->base;

    base->method = live_choose_method(job->request);
    base->listener = listener;
    base->report = job_report_new();
    base->report->command = "move";
    live_set_request(job, job->request);
    live_run(job, job->request->state_dir, error);
    return base->report;
}

struct job_report *move_job_run(const struct move_request *request, const struct job_listener *listener,
                                bool dry_run, GError **error)
{
    if (!dry_run)
        window_close_overdue(request, listener);
    if (machine_is_domain(request->machine))
        return machine_job_run(request, listener, dry_run, error);
    return run(&(struct live_job){.request = request, .base.dry_run = dry_run}, listener, error);
}

struct job_report *move_job_resume(const struct move_request *request, const char *id,
                                   const struct job_listener *listener, GError **error)
{
    if (machine_is_domain(request->machine))
        return machine_job_resume(request, id, false, listener, error);
    return run(&(struct live_job){.request = request, .wanted = id}, listener, error);
}

static struct job_report *give_up(struct live_job *job, const struct job_listener *listener, GError **error)
{
    g_autoptr(GError) local = NULL;
    struct job_report *report = run(job, listener, &local);

    /* That it was rolled back is what was asked for. */
    if (local && !g_error_matches(local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_CANCELLED))
        g_propagate_error(error, g_steal_pointer(&local));
    return report;
}

struct job_report *move_job_cancel(const struct move_request *request, const char *id,
                                   const struct job_listener *listener, GError **error)
{
    if (machine_is_domain(request->machine))
        return machine_job_resume(request, id, true, listener, error);
    return give_up(&(struct live_job){.request = request, .wanted = id, .give_up = true}, listener, error);
}

struct job_report *parked_give_up(const struct move_request *request, const char *id,
                                  const struct job_listener *listener, GError **error)
{
    return give_up(&(struct live_job){.request = request, .wanted = id, .give_up = true, .kept = true},
                   listener, error);
}

/* After the pivot nothing is cancelled: what is begun there ends on the target. */
static bool cancelled(void *opaque)
{
    const struct live_job *job = opaque;
    const struct job_listener *listener = job->base.listener;

    return !live_watch(job) || (!job->pivoted && !job->at_any_price && listener->cancelled &&
                                listener->cancelled(listener->opaque));
}

bool live_is_cancelled(const struct live_job *job, GError **error)
{
    const GError *trouble;

    if (!cancelled((void *)job))
        return false;
    trouble = live_watch_trouble(job);
    if (trouble)
        g_propagate_error(error, g_error_copy(trouble));
    else
        g_set_error_literal(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_CANCELLED, "cancelled");
    return true;
}

/* The machine is not limited while nobody knows for how long. */
void live_park(struct job *base)
{
    g_autoptr(GError) local = NULL;

    if (!live_unthrottle(live_of(base), &local))
        job_notice(base, "%s", local->message);
}

/* A copy that the watch ended knows only that it was cancelled. */
void live_explain(const struct job *base, GError **error)
{
    const GError *trouble = live_watch_trouble((const struct live_job *)base);

    if (!trouble || !g_error_matches(*error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_CANCELLED))
        return;
    g_clear_error(error);
    g_propagate_error(error, g_error_copy(trouble));
}

/* While the base is copied nothing was shipped yet: then the growth of the overlays tells what is written. */
static void tell_pace(const struct live_job *job)
{
    const struct job_listener *listener = job->base.listener;
    struct job_report *report = job->base.report;
    struct job_pace pace = {.pass = report->passes,
                            .dirty_rate = report->dirty_rate,
                            .ship_rate = report->ship_rate,
                            .forecast_ms = report->pause_forecast_ms,
                            .limit_ms = report->max_pause_ms,
                            .pause_ms = report->pause_ms};

    if (report->passes == 1)
        pace.dirty_rate = live_watch_dirty_rate(job);
    if (listener->pace)
        listener->pace(listener->opaque, &pace);
}

static void progress(void *opaque, const struct copy_counters *counters)
{
    const struct live_job *job = opaque;
    const struct job_listener *listener = job->base.listener;

    if (job->paused)
        return;
    tell_pace(job);
    if (listener->progress)
        listener->progress(listener->opaque, job->base.report->phase, counters);
}

void live_progress(const struct live_job *job, const struct copy_counters *counters)
{
    progress((void *)job, counters);
}

void live_copy_options(const struct live_job *job, struct copy_options *options)
{
    options->cancelled = cancelled;
    options->progress = progress;
    options->throttle = job->paused ? NULL : job->throttle;
    options->read_back = job->request->verify != VERIFY_NONE;
    options->opaque = (void *)job;
}

void live_tell(const struct live_job *job, const char *format, ...)
{
    const struct job_listener *listener = job->base.listener;
    g_autofree char *text = NULL;
    va_list args;

    va_start(args, format);
    text = g_strdup_vprintf(format, args);
    va_end(args);
    tell_pace(job);
    if (listener->phase)
        listener->phase(listener->opaque, job->base.report->phase, text);
}

unsigned live_max_pause(const struct live_job *job)
{
    return job->at_any_price ? ANY_PAUSE : job->request->max_pause;
}

/* Beyond this the guard takes a pause for one that hangs, and ends us. */
static unsigned guard_limit(const struct live_job *job)
{
    return 2 * live_max_pause(job) + GUARD_GRACE;
}

/* A guard that has died protects nobody: there must be another before the machine is stopped or frozen. */
bool live_guard(struct live_job *job, GError **error)
{
    g_autofree char *log = g_build_filename(journal_directory(job->base.journal), "guard.log", NULL);

    if (!job->guard)
        job->guard = guard_start(job->vm, log, error);
    return job->guard != NULL;
}

static bool arm_guard(struct live_job *job, const struct guard_device *devices, GError **error)
{
    if (job->guard && guard_arm(job->guard, devices, job->disks->len, guard_limit(job), NULL))
        return true;
    g_clear_pointer(&job->guard, guard_stop);
    return live_guard(job, error) && guard_arm(job->guard, devices, job->disks->len, guard_limit(job), error);
}

static bool arm(struct live_job *job, live_node_fn from, live_node_fn to, GError **error)
{
    g_autofree struct guard_device *devices = g_new0(struct guard_device, job->disks->len);
    g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);

    for (guint i = 0; i < job->disks->len; i++) {
        const struct live_disk *disk = live_disk_at(job, i);

        devices[i] =
            (struct guard_device){.qdev = disk->vm->qdev, .from = from(job, disk), .to = to(job, disk)};
        g_ptr_array_add(names, (char *)devices[i].from);
        g_ptr_array_add(names, (char *)devices[i].to);
    }
    return arm_guard(job, devices, error);
}

/* While the machine stands still nothing on this host is more urgent than this thread and those that it
 * makes. Who may not ask for that waits as long as the others let him. */
static void be_urgent(bool urgent)
{
    struct sched_param parameter = {.sched_priority = urgent ? sched_get_priority_min(SCHED_FIFO) : 0};

    sched_setscheduler(0, urgent ? SCHED_FIFO : SCHED_OTHER, &parameter);
}

bool live_pause(struct live_job *job, live_node_fn from, live_node_fn to, int64_t *time, GError **error)
{
    int64_t stopped = 0;

    if (!arm(job, from, to, error))
        return false;
    job->paused = true;
    job->stays = false;
    be_urgent(true);
    g_string_truncate(job->steps, 0);
    job->pause_begin = job->step_begin = g_get_monotonic_time();
    if (time)
        *time = 0;
    if (!vm_pause(job->vm, PAUSE_TIMEOUT, &stopped, error))
        return false;
    live_step(job, "stop");
    if (time)
        *time = stopped;
    job->stays = !stopped;
    return !job->stays || guard_stay(job->guard, error);
}

void live_step(struct live_job *job, const char *name)
{
    int64_t now = g_get_monotonic_time();

    g_string_append_printf(job->steps, "%s%s %.1f", job->steps->len ? ", " : "", name,
                           (double)(now - job->step_begin) / 1000);
    job->step_begin = now;
}

/* One question more in the pause: what a machine that somebody resumed wrote since would be lost. */
bool live_pause_merged(struct live_job *job, GError **error)
{
    bool running;

    if (!vm_status(job->vm, &running, NULL, error))
        return false;
    if (running)
        return blockmig_fail(error, BLOCKMIG_ERROR_CANCELLED, "somebody resumed the machine in the pause");
    return guard_merged(job->guard, error);
}

bool live_resume(struct live_job *job, int64_t *time, GError **error)
{
    g_autoptr(GError) local = NULL;

    if (time)
        *time = 0;
    be_urgent(false);
    if (!job->paused)
        return true;
    if (!job->stays && !vm_resume(job->vm, time, error))
        return false;
    live_step(job, "resume");
    job->paused = false;
    if (!guard_disarm(job->guard, &local))
        job_notice(&job->base, "%s", local->message);
    return true;
}
