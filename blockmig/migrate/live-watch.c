/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Watching the machine: its events, ten times a second, and a look at all of it now and then. */
#include "blockmig/migrate/live-watch.h"

#include <string.h>

#define EVENTS_PERIOD (G_USEC_PER_SEC / 10)
#define SPACE_PERIOD  (G_USEC_PER_SEC / 4)
#define LOOK_PERIOD   (2 * G_USEC_PER_SEC)
#define WAIT_PERIOD   (G_USEC_PER_SEC / 5)
#define OUR_JOBS      "blockmig"

struct live_watch {
    int64_t next_events, next_space, next_look; /* monotonic */
    GError *trouble;
    bool lost, starved;
    char *status; /* the hypervisor's word, when the machine was last seen to stand still; NULL: it runs */
    char *others; /* whose job is in the way; NULL: nobody's */
    struct live_space *space;
};

struct live_watch *live_watch_new(void)
{
    struct live_watch *watch = g_new0(struct live_watch, 1);

    watch->space = live_space_new();
    return watch;
}

void live_watch_free(struct live_watch *watch)
{
    g_clear_error(&watch->trouble);
    g_free(watch->status);
    g_free(watch->others);
    live_space_free(watch->space);
    g_free(watch);
}

const GError *live_watch_trouble(const struct live_job *job)
{
    return job->watch->trouble;
}

GError *live_watch_take_trouble(const struct live_job *job)
{
    return g_steal_pointer(&job->watch->trouble);
}

double live_watch_dirty_rate(const struct live_job *job)
{
    return live_space_dirty_rate(job->watch->space);
}

bool live_watch_lost(const struct live_job *job)
{
    return job->watch->lost;
}

bool live_watch_starved(const struct live_job *job)
{
    return job->watch->starved;
}

void live_watch_say(const struct live_job *job, const char *format, ...)
{
    g_autofree char *text = NULL;
    va_list args;

    va_start(args, format);
    text = g_strdup_vprintf(format, args);
    va_end(args);
    job_notice(&job->base, "%s", text);
    if (job->base.record)
        job_event(&job->base, "notice", NULL, "%s", text);
}

void live_watch_end(const struct live_job *job, enum blockmig_error code, const char *format, ...)
{
    va_list args;

    if (job->watch->trouble)
        return;
    va_start(args, format);
    job->watch->trouble = g_error_new_valist(BLOCKMIG_ERROR, code, format, args);
    va_end(args);
}

/* ---- events ---------------------------------------------------------------------------------------- */

static bool is_device(const struct vm_disk *vm, const char *subject)
{
    return g_strcmp0(vm->device_id, subject) == 0 || strcmp(vm->qdev, subject) == 0 ||
           (g_str_has_prefix(vm->qdev, subject) && vm->qdev[strlen(subject)] == '/');
}

/* The disk of ours whose device it is, or whose node; NULL: none. */
static const struct live_disk *disk_of(const struct live_job *job, const char *subject)
{
    for (guint i = 0; subject && i < job->disks->len; i++) {
        const struct live_disk *disk = live_disk_at(job, i);
        g_autofree char *ours = g_strdup_printf("bm-%08x-%u-", job->tag, disk->index);

        if (is_device(disk->vm, subject) || g_str_has_prefix(subject, ours) ||
            g_strcmp0(disk->vm->node, subject) == 0)
            return disk;
    }
    return NULL;
}

static void unplugged(const struct live_job *job, const struct live_disk *disk)
{
    if (job->pivoted)
        live_watch_say(job, "disk %s was unplugged after the switch; its move goes on", disk->vm->name);
    else
        live_watch_end(job, BLOCKMIG_ERROR_CANCELLED, "disk %s was unplugged from the machine",
                       disk->vm->name);
}

static void io_error(const struct live_job *job, const struct vm_event *event)
{
    const struct live_disk *disk = disk_of(job, event->subject);

    if (!disk)
        return;
    live_watch_say(job, "disk %s: the machine had an I/O error: %s", disk->vm->name, event->detail);
    job->watch->starved |= event->no_space;
    if (event->no_space && !job->pivoted)
        live_watch_end(job, BLOCKMIG_ERROR_CANCELLED,
                       "disk %s: there was no space for what the machine writes beside %s", disk->vm->name,
                       disk->name);
}

/* Whoever stopped it: it stays so, also after pauses of ours. */
static void note_state(const struct live_job *job, bool running, const char *status)
{
    struct live_watch *watch = job->watch;

    if (g_strcmp0(watch->status, running ? NULL : status) == 0)
        return;
    g_free(watch->status);
    watch->status = running ? NULL : g_strdup(status);
    if (running)
        live_watch_say(job, LIVE_RUNS_AGAIN);
    else if (strcmp(status, "paused") == 0)
        live_watch_say(job, LIVE_PAUSED_BY_OTHERS);
    else
        live_watch_say(job, "the machine stands still (%s): it stays so, and the move goes on", status);
}

static void ask_state(const struct live_job *job)
{
    g_autofree char *status = NULL;
    bool running;

    if (vm_status(job->vm, &running, &status, NULL))
        note_state(job, running, status);
}

static void handle(const struct live_job *job, const struct vm_event *event)
{
    const struct live_disk *disk;

    switch (event->type) {
    case VM_EVENT_STOP:
    case VM_EVENT_RESUME:
        ask_state(job);
        break;
    case VM_EVENT_SHUTDOWN:
        live_watch_say(job, "the guest shuts down (%s)", event->subject ? event->subject : "no reason given");
        break;
    case VM_EVENT_RESET:
        live_watch_say(job, "the guest was reset (%s): the move goes on",
                       event->subject ? event->subject : "no reason given");
        break;
    case VM_EVENT_PANIC:
        live_watch_say(job, "the guest panicked (%s)", event->subject ? event->subject : "no action");
        break;
    case VM_EVENT_DEVICE_DELETED:
        if ((disk = disk_of(job, event->subject)))
            unplugged(job, disk);
        break;
    case VM_EVENT_MEDIUM_CHANGED:
        if ((disk = disk_of(job, event->subject)))
            live_watch_end(job, BLOCKMIG_ERROR_CANCELLED, "the medium of disk %s was changed",
                           disk->vm->name);
        break;
    case VM_EVENT_IO_ERROR:
        io_error(job, event);
        break;
    case VM_EVENT_WRITE_THRESHOLD:
        job->watch->next_space = 0;
        break;
    case VM_EVENT_JOB:
        if (event->subject && !g_str_has_prefix(event->subject, OUR_JOBS))
            job->watch->next_look = 0;
        break;
    }
}

/* What the machine said before the connection ended comes before the end. */
static void take_events(const struct live_job *job)
{
    GError *local = NULL;

    for (;;) {
        g_autoptr(vm_event_t) event = NULL;

        if (!vm_next_event(job->vm, 0, &event, &local))
            break;
        if (!event)
            return;
        handle(job, event);
    }
    job->watch->lost = true;
    live_watch_end(job, (enum blockmig_error)local->code, "%s", local->message);
    g_error_free(local);
}

/* ---- the whole machine ----------------------------------------------------------------------------- */

static const struct vm_disk *find_device(const struct vm_description *description, const char *qdev)
{
    for (guint i = 0; i < description->disks->len; i++) {
        const struct vm_disk *vm = g_ptr_array_index(description->disks, i);

        if (strcmp(vm->qdev, qdev) == 0)
            return vm;
    }
    return NULL;
}

static void check_layers(const struct live_job *job, const struct live_disk *disk, const struct vm_disk *vm)
{
    g_autofree char *active = live_active_node(job, disk);

    if (disk->snapshotted && !job->pivoted && g_strcmp0(vm->node, active) != 0)
        live_watch_end(job, BLOCKMIG_ERROR_UNCERTAIN,
                       "disk %s is on node \"%s\" now, which is not of this move: somebody else changed its "
                       "layers",
                       disk->vm->name, vm->node);
}

static void check_size(const struct live_job *job, const struct live_disk *disk, const struct vm_disk *vm)
{
    if (vm->virtual_size != disk->size && !job->pivoted)
        live_watch_end(job, BLOCKMIG_ERROR_CANCELLED,
                       "disk %s was resized from %" PRIu64 " to %" PRIu64 " bytes", disk->vm->name,
                       disk->size, vm->virtual_size);
}

/* A name for the job of somebody else that uses the disk; NULL: none. */
static char *others_of(const struct vm_disk *vm)
{
    for (guint i = 0; i < vm->jobs->len; i++) {
        const char *id = g_ptr_array_index(vm->jobs, i);

        if (!g_str_has_prefix(id, OUR_JOBS))
            return g_strdup_printf("job \"%s\" of somebody else uses disk %s", id, vm->name);
    }
    return NULL;
}

static void note_others(const struct live_job *job, char *others)
{
    struct live_watch *watch = job->watch;

    if (others && g_strcmp0(others, watch->others) != 0)
        live_watch_say(job, "%s: the layers stay as they are until it ends", others);
    g_free(watch->others);
    watch->others = others;
}

/* One that is silent for once is asked again; if the monitor is gone, the next events say so. */
static void look(const struct live_job *job)
{
    g_autoptr(vm_description_t) now = vm_describe(job->vm, NULL);
    char *others = NULL;

    if (!now)
        return;
    note_state(job, now->running, now->status);
    for (guint i = 0; i < job->disks->len; i++) {
        const struct live_disk *disk = live_disk_at(job, i);
        const struct vm_disk *vm = find_device(now, disk->vm->qdev);

        if (!vm || !vm->has_medium) {
            unplugged(job, disk);
            continue;
        }
        check_size(job, disk, vm);
        check_layers(job, disk, vm);
        if (!others)
            others = others_of(vm);
    }
    note_others(job, others);
}

/* ---- when ------------------------------------------------------------------------------------------ */

static bool is_due(int64_t *next, int64_t period)
{
    int64_t now = g_get_monotonic_time();

    if (now < *next)
        return false;
    *next = now + period;
    return true;
}

bool live_watch(const struct live_job *job)
{
    struct live_watch *watch = job->watch;

    if (job->paused)
        return true;
    if (!job->vm || watch->lost)
        return !watch->trouble;
    live_share_look(job);
    if (is_due(&watch->next_events, EVENTS_PERIOD))
        take_events(job);
    if (is_due(&watch->next_space, SPACE_PERIOD))
        live_space_look(job, watch->space);
    if (!watch->lost && is_due(&watch->next_look, LOOK_PERIOD))
        look(job);
    return !watch->trouble;
}

bool live_watch_now(const struct live_job *job, GError **error)
{
    job->watch->next_events = job->watch->next_space = job->watch->next_look = 0;
    if (live_watch(job))
        return true;
    g_propagate_error(error, g_error_copy(job->watch->trouble));
    return false;
}

/* Asks for jobs only, as long as there are none but ours. */
static bool others_are_there(const struct live_job *job, bool *there, GError **error)
{
    g_autoptr(GPtrArray) jobs = vm_jobs(job->vm, error);

    *there = false;
    for (guint i = 0; jobs && i < jobs->len; i++)
        *there |= !g_str_has_prefix(((const struct vm_job *)g_ptr_array_index(jobs, i))->id, OUR_JOBS);
    if (*there) {
        look(job);
        *there = job->watch->others != NULL;
    }
    return jobs != NULL;
}

bool live_wait_for_others(const struct live_job *job, unsigned patience, GError **error)
{
    int64_t deadline = g_get_monotonic_time() + (int64_t)patience * G_USEC_PER_SEC;
    bool there;

    for (;;) {
        if (!others_are_there(job, &there, error))
            return false;
        if (!there)
            return true;
        if (patience == 0 && live_is_cancelled(job, error))
            return false;
        if (patience > 0 && g_get_monotonic_time() > deadline)
            return blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "%s, for more than %u s", job->watch->others,
                                 patience);
        g_usleep(WAIT_PERIOD);
    }
}
