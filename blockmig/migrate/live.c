/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Moves of running machines from the outside, and what every phase of them needs. */
#include "blockmig/migrate/live.h"

#include <sched.h>

#define PAUSE_TIMEOUT 10000 /* ms; a stop waits for the guest's requests in flight */
#define GUARD_GRACE   20000 /* ms */

void live_describe(const struct job *base, struct journal_job *record)
{
    const struct live_job *job = (const struct live_job *)base;

    record->request = move_request_to_json(job->request);
    record->source = g_strdup(job->request->machine);
    record->target = g_canonicalize_filename(job->request->target, NULL);
}

/* What was rolled back has its own words. */
char *live_advise(const struct job *base, const GError *error)
{
    const struct live_job *job = (const struct live_job *)base;

    if (!job->pivoted)
        return NULL;
    return g_strdup("the machine runs on the target, which was proved; run the same command again to finish");
}

void live_disk_free(struct live_disk *disk)
{
    chain_close(disk->base);
    image_close(disk->target);
    digest_table_free(disk->digests);
    g_clear_pointer(&disk->options, g_hash_table_unref);
    g_free(disk->name);
    g_free(disk->base_node);
    g_free(disk->target_path);
    g_free(disk->target_overlay);
    g_free(disk->handed_over);
    g_free(disk);
}

struct job_report *move_job_run(const struct move_request *request, const struct job_listener *listener,
                                bool dry_run, GError **error)
{
    struct live_job job = {.base = {.method = &method_storage,
                                    .listener = listener,
                                    .dry_run = dry_run,
                                    .report = job_report_new()},
                           .request = request,
                           .tag = g_random_int(),
                           .steps = g_string_new(NULL)};

    job.base.report->command = "move";
    job.base.report->verified = request->verify;
    job.disks = g_ptr_array_new_with_free_func((GDestroyNotify)live_disk_free);
    job_run(&job.base, request->state_dir, error);
    g_ptr_array_unref(job.disks);
    g_string_free(job.steps, true);
    vm_description_free(job.description);
    guard_stop(job.guard);
    vm_close(job.vm);
    job_clear(&job.base);
    return job.base.report;
}

/* After the pivot nothing is cancelled: what is begun there ends on the target. */
static bool cancelled(void *opaque)
{
    const struct live_job *job = opaque;
    const struct job_listener *listener = job->base.listener;

    return !job->pivoted && listener->cancelled && listener->cancelled(listener->opaque);
}

bool live_is_cancelled(const struct live_job *job, GError **error)
{
    if (!cancelled((void *)job))
        return false;
    g_set_error_literal(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_CANCELLED, "cancelled");
    return true;
}

static void progress(void *opaque, const struct copy_counters *counters)
{
    const struct live_job *job = opaque;
    const struct job_listener *listener = job->base.listener;

    if (listener->progress && !job->paused)
        listener->progress(listener->opaque, job->base.report->phase, counters);
}

void live_copy_options(const struct live_job *job, struct copy_options *options)
{
    options->cancelled = cancelled;
    options->progress = progress;
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
    if (listener->phase)
        listener->phase(listener->opaque, job->base.report->phase, text);
}

/* Beyond this the guard takes a pause for one that hangs, and ends us. */
static unsigned guard_limit(const struct live_job *job)
{
    return 2 * job->request->max_pause + GUARD_GRACE;
}

static bool arm(struct live_job *job, live_node_fn from, live_node_fn to, GError **error)
{
    g_autofree struct guard_device *devices = g_new0(struct guard_device, job->disks->len);
    g_autofree char *log = g_build_filename(journal_directory(job->base.journal), "guard.log", NULL);
    g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);

    if (!job->guard && !(job->guard = guard_start(job->vm, log, error)))
        return false;
    for (guint i = 0; i < job->disks->len; i++) {
        const struct live_disk *disk = live_disk_at(job, i);

        devices[i] =
            (struct guard_device){.qdev = disk->vm->qdev, .from = from(job, disk), .to = to(job, disk)};
        g_ptr_array_add(names, (char *)devices[i].from);
        g_ptr_array_add(names, (char *)devices[i].to);
    }
    return guard_arm(job->guard, devices, job->disks->len, guard_limit(job), error);
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
    if (!arm(job, from, to, error))
        return false;
    job->paused = true;
    be_urgent(true);
    g_string_truncate(job->steps, 0);
    job->pause_begin = job->step_begin = g_get_monotonic_time();
    if (!vm_pause(job->vm, PAUSE_TIMEOUT, time, error))
        return false;
    live_step(job, "stop");
    return true;
}

void live_step(struct live_job *job, const char *name)
{
    int64_t now = g_get_monotonic_time();

    g_string_append_printf(job->steps, "%s%s %.1f", job->steps->len ? ", " : "", name,
                           (double)(now - job->step_begin) / 1000);
    job->step_begin = now;
}

bool live_pause_merged(struct live_job *job, GError **error)
{
    return guard_merged(job->guard, error);
}

bool live_resume(struct live_job *job, int64_t *time, GError **error)
{
    g_autoptr(GError) local = NULL;

    be_urgent(false);
    if (!job->paused)
        return true;
    if (!vm_resume(job->vm, time, error))
        return false;
    live_step(job, "resume");
    job->paused = false;
    if (!guard_disarm(job->guard, &local))
        job_notice(&job->base, "%s", local->message);
    return true;
}
