/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* blockmig job: what the journal knows; resuming a job, giving one up. */
#include "blockmig/store/journal.h"
#include "formats/error.h"
#include "tools/command.h"
#include "tools/job-output.h"
#include "tools/output.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/pidfd.h>
#include <unistd.h>

/* How long `cancel` waits for a running job to stop in order, in milliseconds. */
#define STOP_TIMEOUT 60000

/* The way back of a move, while it is open; or NULL. */
static struct journal_window *open_window(struct journal *journal, const struct journal_job *job)
{
    g_autoptr(journal_window_t) window = job->result ? NULL : journal_window_load(journal, job, NULL);
    return window && window->deadline ? g_steal_pointer(&window) : NULL;
}

static bool is_move(const struct journal_job *job)
{
    return strcmp(job->command, "move") == 0 || strcmp(job->command, "migrate") == 0;
}

static const char *job_state(const struct journal_job *job, const struct journal_window *window)
{
    if (journal_job_alive(job))
        return "running";
    if (window)
        return window->deadline > g_get_real_time() ? "failback" : "overdue";
    /* A move that was killed before it could say so. */
    if (!job->result && is_move(job) && strcmp(job->phase, "done") == 0)
        return "done";
    return job->result ? job->result : "unfinished";
}

/* Stopped, by whatever, before its end.  A copy that salvaged has failed, but nothing is left to do. */
static bool is_resumable(struct journal *journal, const struct journal_job *job)
{
    g_autoptr(journal_window_t) window = open_window(journal, job);
    if (job->result && strcmp(job->phase, "done") == 0)
        return false;
    if (is_move(job) && g_strcmp0(job->result, "rolled-back") == 0)
        return false; /* nothing is left of it */
    const char *const states[] = {"unfinished", "parked", "failed", "rolled-back", NULL};
    return g_strv_contains(states, job_state(job, window));
}

static json_t *window_to_json(const struct journal_window *window)
{
    if (!window)
        return json_null();
    return json_pack("{s:o, s:o}", "until", output_json_time(window->deadline), "keeper",
                     journal_window_kept(window) ? json_integer((json_int_t)window->keeper_pid)
                                                 : json_null());
}

static json_t *job_to_json(struct journal *journal, const struct journal_job *job)
{
    g_autoptr(journal_window_t) window = open_window(journal, job);
    json_t *object = json_object();
    json_object_set_new(object, "job", output_json_string(job->id));
    json_object_set_new(object, "command", output_json_string(job->command));
    json_object_set_new(object, "method", output_json_string(job->method));
    json_object_set_new(object, "phase", output_json_string(job->phase));
    json_object_set_new(object, "state", output_json_string(job_state(job, window)));
    json_object_set_new(object, "failback", window_to_json(window));
    json_object_set_new(object, "result", output_json_string(job->result));
    json_object_set_new(object, "error", output_json_string(job->error));
    json_object_set_new(object, "source", output_json_string(job->source));
    json_object_set_new(object, "target", output_json_string(job->target));
    json_object_set_new(object, "started", output_json_time(job->started));
    json_object_set_new(object, "updated", output_json_time(job->updated));
    json_object_set_new(object, "finished", output_json_time(job->finished));
    json_object_set_new(object, "pid",
                        journal_job_alive(job) ? json_integer((json_int_t)job->owner_pid) : json_null());
    return object;
}

static char *time_text(int64_t time)
{
    if (time == 0)
        return g_strdup("-");
    g_autoptr(GDateTime) local = g_date_time_new_from_unix_local(time / G_USEC_PER_SEC);
    return local ? g_date_time_format(local, "%Y-%m-%d %H:%M:%S") : g_strdup("-");
}

static void print_job_row(struct journal *journal, const struct journal_job *job)
{
    g_autoptr(journal_window_t) window = open_window(journal, job);
    g_autofree char *source = output_printable(job->source), *target = output_printable(job->target);
    g_autofree char *started = time_text(job->started);
    printf("%-14s  %-7s  %-11s  %-10s  %-19s  %s -> %s\n", job->id, job->command, job_state(job, window),
           job->phase, started, source, target);
    if (window) {
        g_autofree char *until = time_text(window->deadline);
        printf("%-14s  %s %s: blockmig job failback %s, blockmig job finish %s\n", "",
               strcmp(job_state(job, window), "overdue") == 0 ? "should have been closed at"
                                                              : "way back until",
               until, job->id, job->id);
    }
}

static void job_list(const struct options *options, struct journal *journal, GError **error)
{
    g_autoptr(GPtrArray) jobs = journal_job_list(journal, error);
    if (!jobs)
        return;
    if (options->json) {
        json_t *array = json_array();
        for (guint i = 0; i < jobs->len; i++)
            json_array_append_new(array, job_to_json(journal, jobs->pdata[i]));
        output_json(json_pack("{s:i, s:s, s:o}", "schema", 1, "command", "job list", "jobs", array), error);
        return;
    }
    if (jobs->len && !options->quiet)
        printf("%-14s  %-7s  %-11s  %-10s  %-19s  %s\n", "job", "command", "state", "phase", "started",
               "source -> target");
    for (guint i = 0; i < jobs->len; i++)
        print_job_row(journal, jobs->pdata[i]);
}

/* ---- show ---------------------------------------------------------------------------------------- */

static bool load_progress(struct journal *journal, const struct journal_job *job, unsigned disk,
                          struct journal_checkpoint *checkpoint, bool *found, GError **error)
{
    g_autoptr(GBytes) digests = NULL;
    return journal_checkpoint_load(journal, job, disk, checkpoint, &digests, found, error);
}

static bool add_disk_json(json_t *disks, struct journal *journal, const struct journal_job *job,
                          const struct journal_disk *disk, GError **error)
{
    struct journal_checkpoint checkpoint;
    bool found;
    if (!load_progress(journal, job, disk->index, &checkpoint, &found, error))
        return false;
    json_array_append_new(
        disks, json_pack("{s:o, s:o, s:o, s:o, s:I, s:o, s:o}", "source", output_json_string(disk->source),
                         "target", output_json_string(disk->target), "source_format",
                         output_json_string(disk->source_format), "target_format",
                         output_json_string(disk->target_format), "virtual_size", (json_int_t)disk->size,
                         "checkpoint", found ? json_integer((json_int_t)checkpoint.frontier) : json_null(),
                         "receipt", output_json_string(disk->receipt)));
    return true;
}

static void show_json(struct journal *journal, const struct journal_job *job, const GPtrArray *disks,
                      const GPtrArray *events, GError **error)
{
    json_t *disk_array = json_array(), *event_array = json_array(), *object = job_to_json(journal, job);
    for (guint i = 0; i < events->len; i++) {
        const struct journal_event *event = events->pdata[i];
        json_array_append_new(event_array, json_pack("{s:o, s:o, s:o}", "time", output_json_time(event->time),
                                                     "kind", output_json_string(event->kind), "text",
                                                     output_json_string(event->text)));
    }
    json_object_set_new(object, "schema", json_integer(1));
    json_object_set_new(object, "disks", disk_array);
    json_object_set_new(object, "events", event_array);
    for (guint i = 0; i < disks->len; i++) {
        if (add_disk_json(disk_array, journal, job, disks->pdata[i], error))
            continue;
        json_decref(object);
        return;
    }
    output_json(object, error);
}

static bool print_disk(struct journal *journal, const struct journal_job *job,
                       const struct journal_disk *disk, GError **error)
{
    struct journal_checkpoint checkpoint;
    bool found;
    if (!load_progress(journal, job, disk->index, &checkpoint, &found, error))
        return false;
    output_pair("disk", "%s (%s) -> %s (%s)", disk->source, disk->source_format, disk->target,
                disk->target_format);
    if (found)
        output_pair("checkpoint", "%" PRIu64 " of %" PRIu64 " bytes", checkpoint.frontier, disk->size);
    if (disk->receipt)
        output_pair("receipt", "%s", disk->receipt);
    return true;
}

static void show_text(const struct options *options, struct journal *journal, const struct journal_job *job,
                      const GPtrArray *disks, const GPtrArray *events, GError **error)
{
    g_autofree char *started = time_text(job->started), *finished = time_text(job->finished);
    g_autoptr(journal_window_t) window = open_window(journal, job);
    output_pair("job", "%s", job->id);
    output_pair("command", "%s", job->command);
    output_pair("method", "%s", job->method);
    output_pair("state", "%s", job_state(job, window));
    output_pair("phase", "%s", job->phase);
    if (window) {
        g_autofree char *until = time_text(window->deadline);
        output_pair("failback", "%s %s: blockmig job failback %s",
                    window->deadline > g_get_real_time() ? "until" : "still possible; was to end at", until,
                    job->id);
        output_pair("finish", "%s; at once: blockmig job finish %s",
                    journal_window_kept(window) ? "by itself then" : "not by itself: its keeper is gone",
                    job->id);
    }
    output_pair("started", "%s", started);
    output_pair("finished", "%s", finished);
    if (job->error)
        output_pair("error", "%s", job->error);
    for (guint i = 0; i < disks->len; i++)
        if (!print_disk(journal, job, disks->pdata[i], error))
            return;
    for (guint i = 0; options->verbose && i < events->len; i++) {
        const struct journal_event *event = events->pdata[i];
        g_autofree char *time = time_text(event->time),
                        *text = output_printable(event->text ? event->text : "");
        printf("%s  %-10s  %s\n", time, event->kind, text);
    }
}

static void job_show(const struct options *options, struct journal *journal, const struct journal_job *job,
                     GError **error)
{
    g_autoptr(GPtrArray) disks = journal_disk_list(journal, job, error);
    g_autoptr(GPtrArray) events = disks ? journal_events(journal, job, error) : NULL;
    if (!events)
        return;
    if (options->json)
        show_json(journal, job, disks, events, error);
    else
        show_text(options, journal, job, disks, events, error);
}

/* ---- resume and cancel --------------------------------------------------------------------------- */

static bool refuse_window(struct journal *journal, const struct journal_job *job, GError **error)
{
    g_autoptr(journal_window_t) window = open_window(journal, job);
    return !window || blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                                    "the way back of job %s is open: 'blockmig job finish %s' closes it, "
                                    "'blockmig job failback %s' goes back",
                                    job->id, job->id, job->id);
}

static bool need_request(const struct journal_job *job, GError **error)
{
    if (!job->request)
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED, "job %s holds no request", job->id);
    return job->request != NULL;
}

static move_request_t *move_of(struct journal *journal, const struct journal_job *job, GError **error)
{
    move_request_t *request = need_request(job, error) ? move_request_from_json(job->request, error) : NULL;
    if (request)
        request->state_dir = g_strdup(journal_directory(journal));
    return request;
}

static int resume_copy(const struct options *options, struct journal *journal, const struct journal_job *job,
                       GError **error)
{
    g_autoptr(copy_request_t) request =
        need_request(job, error) ? copy_request_from_json(job->request, error) : NULL;
    if (!request)
        return 0;
    g_free(request->state_dir);
    request->state_dir = g_strdup(journal_directory(journal));
    return job_output_copy(options, request, false, error);
}

static int resume_move(const struct options *options, struct journal *journal, const struct journal_job *job,
                       GError **error)
{
    g_autoptr(move_request_t) request = move_of(journal, job, error);
    return request ? job_output_resumed_move(options, request, job->id, error) : 0;
}

static int job_resume(const struct options *options, struct journal *journal, const struct journal_job *job,
                      GError **error)
{
    g_autoptr(journal_window_t) window = open_window(journal, job);
    if (!window && !is_resumable(journal, job) && !journal_job_alive(job)) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED, "job %s is %s; there is nothing to resume",
                    job->id, strcmp(job->phase, "done") == 0 ? "done" : job->result);
        return 0;
    }
    if (!refuse_window(journal, job, error))
        return 0;
    return is_move(job) ? resume_move(options, journal, job, error)
                        : resume_copy(options, journal, job, error);
}

/* Asks the owner of a running job to stop and waits until it has gone.  The descriptor is taken before the
 * owner is checked again, so that no stranger with the same process number is ever hit. */
static bool stop_owner(const struct journal_job *job, GError **error)
{
    int fd = pidfd_open((pid_t)job->owner_pid, 0);
    if (fd < 0)
        return errno == ESRCH || blockmig_set_errno(error, errno, "process %" PRId64, job->owner_pid);
    bool asked = journal_job_alive(job) && pidfd_send_signal(fd, SIGTERM, NULL, 0) == 0;
    struct pollfd end = {.fd = fd, .events = POLLIN};
    bool gone = !asked || poll(&end, 1, STOP_TIMEOUT) > 0;
    close(fd);
    if (!gone || (!asked && journal_job_alive(job))) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED, "job %s: process %" PRId64 " does not stop",
                    job->id, job->owner_pid);
        return false;
    }
    return true;
}

static int tell_cancelled(const struct options *options, const struct journal_job *job, GError **error)
{
    if (options->json)
        output_json(json_pack("{s:i, s:s, s:o, s:s}", "schema", 1, "command", "job cancel", "job",
                              output_json_string(job->id), "result", "cancelled"),
                    error);
    else if (!options->quiet)
        printf(is_move(job) ? "job %s is given up; the machine's disks are where they were\n"
                            : "job %s is given up; what it left on the target is removed\n",
               job->id);
    return 0;
}

/* One that ran has rolled back by itself when it was asked to stop; unless it had passed the switch. */
static int cancel_move(const struct options *options, struct journal *journal, const char *id, GError **error)
{
    g_autoptr(journal_job_t) job = journal_job_load(journal, id, error);
    g_autoptr(move_request_t) request = job ? move_of(journal, job, error) : NULL;
    if (!request)
        return 0;
    if (g_strcmp0(job->result, "rolled-back") == 0)
        return tell_cancelled(options, job, error);
    if (!refuse_window(journal, job, error))
        return 0;
    if (!is_resumable(journal, job)) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED,
                    "job %s is %s: there is nothing to give up", job->id, job->result);
        return 0;
    }
    return job_output_cancel_move(options, request, job->id, error) ? tell_cancelled(options, job, error) : 0;
}

static int job_cancel(const struct options *options, struct journal *journal, const struct journal_job *job,
                      GError **error)
{
    if (journal_job_alive(job) && !stop_owner(job, error))
        return 0;
    if (is_move(job))
        return cancel_move(options, journal, job->id, error);
    if (!copy_job_discard(journal_directory(journal), job->id, error))
        return 0;
    return tell_cancelled(options, job, error);
}

static int job_window(const struct options *options, struct journal *journal, const struct journal_job *job,
                      bool failback, GError **error)
{
    const struct window_request request = {.state_dir = (char *)journal_directory(journal),
                                           .job = job->id,
                                           .failback = failback,
                                           .max_pause = options->max_pause,
                                           .failback_to = options->failback_to};
    return job_output_window(options, &request, error);
}

static int job_finish(const struct options *options, struct journal *journal, const struct journal_job *job,
                      GError **error)
{
    return job_window(options, journal, job, false, error);
}

static int job_failback(const struct options *options, struct journal *journal, const struct journal_job *job,
                        GError **error)
{
    return job_window(options, journal, job, true, error);
}

static int job_show_action(const struct options *options, struct journal *journal,
                           const struct journal_job *job, GError **error)
{
    job_show(options, journal, job, error);
    return 0;
}

static const struct action {
    const char *name;
    bool needs_id; /* otherwise the newest job (resume: the newest unfinished) is meant */
    int (*run)(const struct options *options, struct journal *journal, const struct journal_job *job,
               GError **error);
} actions[] = {
    {"show", false, job_show_action}, {"resume", false, job_resume},    {"cancel", true, job_cancel},
    {"finish", true, job_finish},     {"failback", true, job_failback},
};

static const struct action *find_action(const char *name, GError **error)
{
    for (size_t i = 0; i < G_N_ELEMENTS(actions); i++)
        if (strcmp(actions[i].name, name) == 0)
            return &actions[i];
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE,
                "job: \"%s\" is not one of list, show, resume, cancel, finish, failback", name);
    return NULL;
}

static struct journal_job *load_newest(struct journal *journal, bool unfinished, GError **error)
{
    g_autoptr(GPtrArray) jobs = journal_job_list(journal, error);
    for (guint i = 0; jobs && i < jobs->len; i++) {
        const struct journal_job *job = jobs->pdata[i];
        if (!unfinished || is_resumable(journal, job))
            return journal_job_load(journal, job->id, error);
    }
    if (jobs)
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE, "there is no %sjob in %s",
                    unfinished ? "unfinished " : "", journal_directory(journal));
    return NULL;
}

static struct journal_job *load_job(const struct options *options, struct journal *journal,
                                    const struct action *action, GError **error)
{
    const char *id = options->arguments->pdata[1];
    if (!id && action->needs_id) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE, "job %s: which job?", action->name);
        return NULL;
    }
    if (!id)
        return load_newest(journal, action->run == job_resume, error);
    GError *failure = NULL;
    struct journal_job *job = journal_job_load(journal, id, &failure);
    if (!job && !failure)
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE, "there is no job \"%s\" in %s", id,
                    journal_directory(journal));
    if (failure)
        g_propagate_error(error, failure);
    return job;
}

int cmd_job(const struct options *options, GError **error)
{
    if (!command_arguments(options, 1, 2, error))
        return 0;
    const char *name = options->arguments->pdata[0];
    bool list = strcmp(name, "list") == 0;
    if (list && !command_arguments(options, 1, 1, error))
        return 0;
    const struct action *action = list ? NULL : find_action(name, error);
    if (!list && !action)
        return 0;
    g_autoptr(journal_t) journal = journal_open(options->state_dir, error);
    if (!journal)
        return 0;
    if (list) {
        job_list(options, journal, error);
        return 0;
    }
    g_autoptr(journal_job_t) job = load_job(options, journal, action, error);
    return job ? action->run(options, journal, job, error) : 0;
}
