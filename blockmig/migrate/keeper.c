/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/migrate/keeper.h"

#include "blockmig/migrate/machine.h"
#include "blockmig/storage/file.h"
#include "blockmig/vm/spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define ARGUMENT      "--keeper"  /* then the state directory and the job */
#define READY         SPAWN_FIRST /* descriptor: closed after one byte */
#define START_TIMEOUT 10000       /* ms */
#define END_TIMEOUT   5000
#define RETRY_PERIOD  (2 * G_USEC_PER_SEC)

/* ---- as others see it ------------------------------------------------------------------------------ */

static bool launch(const char *directory, const char *id, GError **error)
{
    char *argv[] = {(char *)"blockmig-keeper", (char *)ARGUMENT, (char *)directory, (char *)id, NULL};
    struct pollfd ready = {.events = POLLIN};
    int ends[2];
    pid_t pid;
    bool fine;
    char byte;

    if (pipe2(ends, O_CLOEXEC) < 0)
        return blockmig_set_errno(error, errno, "a pipe");
    ready.fd = ends[0];
    fine = spawn_self(argv, &ends[1], 1, &pid, error);
    close(ends[1]);
    if (fine && (poll(&ready, 1, START_TIMEOUT) <= 0 || read(ends[0], &byte, 1) != 1))
        fine = blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "process %d does not answer", (int)pid);
    close(ends[0]);
    return fine;
}

static bool is_parked(const struct journal_job *job)
{
    return g_strcmp0(job->result, "parked") == 0;
}

static bool waits_for_window(const struct job *job)
{
    g_autoptr(journal_window_t) window = journal_window_load(job->journal, job->record, NULL);

    return !job->record->result && window && window->deadline > g_get_real_time() &&
           !journal_window_kept(window);
}

void keeper_start(const struct job *job)
{
    g_autofree char *directory = g_canonicalize_filename(journal_directory(job->journal), NULL);
    const char *id = job->record->id;
    g_autoptr(GError) error = NULL;

    if (job->dry_run || (!is_parked(job->record) && !waits_for_window(job)) || launch(directory, id, &error))
        return;
    if (is_parked(job->record))
        job_notice(job, "nobody looks whether the source's datastore runs full while job %s is parked: %s",
                   id, error->message);
    else
        job_notice(job, "nobody will close the way back by itself ('blockmig job finish %s' does): %s", id,
                   error->message);
}

static void end_keeper(const struct journal_window *window)
{
    struct pollfd end = {.events = POLLIN};

    if (window->keeper_pid <= 0 || window->keeper_pid == getpid())
        return;
    /* The descriptor first: then the process that is asked for is the one that is ended. */
    end.fd = pidfd_open((pid_t)window->keeper_pid, 0);
    if (end.fd < 0)
        return;
    if (journal_window_kept(window)) {
        pidfd_send_signal(end.fd, SIGTERM, NULL, 0);
        if (poll(&end, 1, END_TIMEOUT) == 0)
            pidfd_send_signal(end.fd, SIGKILL, NULL, 0);
        poll(&end, 1, END_TIMEOUT);
    }
    close(end.fd);
}

bool keeper_take(struct job *base, const char *id, GError **error)
{
    GError *local = NULL;
    g_autoptr(journal_job_t) record = journal_job_load(base->journal, id, &local);
    g_autoptr(journal_window_t) window = record ? journal_window_load(base->journal, record, &local) : NULL;

    if (local) {
        g_propagate_error(error, local);
        return false;
    }
    if (!record)
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "there is no job \"%s\"", id);
    if (!window || window->deadline == 0)
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE,
                             "job %s has kept no way back: it is a %s by method %s", record->id,
                             record->command, record->method);
    if (record->result)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "the way back of job %s is closed: it is %s",
                             record->id, record->result);
    if (!journal_job_claim(base->journal, record, error))
        return false;
    end_keeper(window);
    base->record = g_steal_pointer(&record);
    return true;
}

/* ---- the process ----------------------------------------------------------------------------------- */

static void note(void *opaque, const char *text)
{
    const char *log = opaque;
    g_autoptr(GDateTime) now = g_date_time_new_now_utc();
    g_autofree char *stamp = g_date_time_format(now, "%Y-%m-%dT%H:%M:%SZ");
    g_autofree char *line = g_strdup_printf("%s %s\n", stamp, text);
    int fd = open(log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);

    if (fd >= 0 && write(fd, line, strlen(line)) < 0)
        line[0] = '\0'; /* a log that cannot be written is no reason to stop */
    if (fd >= 0)
        close(fd);
}

static void storage_release(void *storage)
{
    storage_close(storage);
}

static void hold(GPtrArray *held, const char *path)
{
    struct storage *storage =
        g_file_test(path, G_FILE_TEST_EXISTS) ? storage_file_open(path, 0, NULL, NULL, NULL) : NULL;

    if (storage)
        g_ptr_array_add(held, storage);
}

/* All layers of the source, and what is below the target's overlay.  Where a lock cannot be had somebody else
 * has one.  A domain writes to its target under its own name, and what is kept of its source is not
 * believed when it goes back. */
static GPtrArray *hold_frozen(struct journal *journal, const struct journal_job *job)
{
    GPtrArray *held = g_ptr_array_new_with_free_func(storage_release);
    g_autoptr(GPtrArray) disks =
        machine_is_domain(job->source) ? NULL : journal_disk_list(journal, job, NULL);

    for (guint i = 0; disks && i < disks->len; i++) {
        const struct journal_disk *disk = g_ptr_array_index(disks, i);
        g_autofree char *base = g_strconcat(disk->target, ".blockmig-0", NULL);

        hold(held, g_file_test(base, G_FILE_TEST_EXISTS) ? base : disk->target);
        hold(held, disk->source);
        for (unsigned n = 0; n <= CHAIN_MAX_DEPTH; n++) {
            g_autofree char *path = g_strdup_printf("%s.blockmig-%u", disk->source, n);

            hold(held, path);
        }
    }
    return held;
}

static void sleep_until(int64_t time)
{
    struct timespec until = {.tv_sec = time / G_USEC_PER_SEC, .tv_nsec = time % G_USEC_PER_SEC * 1000};

    while (clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &until, NULL) == EINTR)
        ;
}

static void tell_ready(void)
{
    if (write(READY, "", 1) == 1)
        close(READY);
}

static int tell_end(const char *id, const char *what, const GError *error, char *log)
{
    g_autofree char *text = g_strdup_printf("job %s: %s", id, error ? error->message : what);

    note(log, text);
    return error != NULL;
}

static int keep_window(struct journal *journal, const struct journal_job *job,
                       const struct journal_window *window, const struct job_listener *listener)
{
    g_autofree char *directory = g_strdup(journal_directory(journal));
    struct window_request request = {.state_dir = directory, .job = job->id, .max_pause = -1};
    GPtrArray *held = hold_frozen(journal, job);
    g_autoptr(job_report_t) report = NULL;
    g_autoptr(GError) error = NULL;

    if (!journal_window_keep(journal, job, NULL)) {
        g_ptr_array_unref(held);
        return 1;
    }
    tell_ready();
    sleep_until(window->deadline);
    g_ptr_array_unref(held);
    if (!journal_exists(directory))
        return 1;
    report = window_job_run(&request, listener, &error);
    return tell_end(job->id, "the way back is closed", error, listener->opaque);
}

static bool give_up(struct journal *journal, const struct journal_job *job,
                    const struct job_listener *listener, GError **error)
{
    g_autoptr(move_request_t) request = move_request_from_json(job->request, error);
    g_autoptr(job_report_t) report = NULL;
    GError *local = NULL;

    if (!request)
        return false;
    request->state_dir = g_strdup(journal_directory(journal));
    report = parked_give_up(request, job->id, listener, &local);
    if (!local)
        return true;
    g_propagate_error(error, local);
    return false;
}

/* What cannot be given up now, because somebody else uses the monitor, perhaps can a moment later; such an
 * attempt ends as "failed".  Whoever takes the job over does what is left to do. */
static bool can_try_again(const struct journal_job *job)
{
    return !journal_job_alive(job) && (is_parked(job) || g_strcmp0(job->result, "failed") == 0);
}

static int keep_parked(struct journal *journal, const char *id, const struct job_listener *listener)
{
    tell_ready();
    for (bool tried = false;; tried = true) {
        g_autoptr(journal_job_t) job = journal_job_load(journal, id, NULL);
        g_autoptr(GError) full = NULL, error = NULL;

        if (!job || (tried ? !can_try_again(job) : !is_parked(job)))
            return 0;
        if (is_parked(job)) {
            if (!parked_watch(journal, job, listener, &full))
                return 0;
            tell_end(id, NULL, full, listener->opaque);
        }
        if (give_up(journal, job, listener, &error))
            return tell_end(id, "given up", NULL, listener->opaque);
        tell_end(id, NULL, error, listener->opaque);
        g_usleep(RETRY_PERIOD);
        if (!journal_exists(journal_directory(journal)))
            return 1;
    }
}

bool keeper_wanted(int argc, char **argv)
{
    return argc == 4 && strcmp(argv[1], ARGUMENT) == 0;
}

int keeper_main(char **argv)
{
    g_autofree char *log = g_build_filename(argv[2], "keeper.log", NULL);
    struct job_listener listener = {.notice = note, .opaque = log};
    g_autoptr(journal_t) journal = NULL;
    g_autoptr(journal_job_t) job = NULL;
    g_autoptr(journal_window_t) window = NULL;

    prctl(PR_SET_NAME, "blockmig-keeper");
    journal = chdir("/") == 0 && journal_exists(argv[2]) ? journal_open(argv[2], NULL) : NULL;
    job = journal ? journal_job_load(journal, argv[3], NULL) : NULL;
    if (job && is_parked(job))
        return keep_parked(journal, job->id, &listener);
    window = job && !job->result ? journal_window_load(journal, job, NULL) : NULL;
    return window ? keep_window(journal, job, window, &listener) : 1;
}
