/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Jobs in the journal: creating, finding, owning, finishing, and what happened to them. */
#include "blockmig/store/journal-internal.h"
#include "formats/error.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

void journal_job_free(struct journal_job *job)
{
    if (!job)
        return;
    g_free(job->id);
    g_free(job->command);
    g_free(job->method);
    g_free(job->phase);
    g_free(job->result);
    g_free(job->error);
    g_free(job->request);
    g_free(job->source);
    g_free(job->target);
    g_free(job->owner_process);
    g_free(job);
}

static void event_free(gpointer data)
{
    struct journal_event *event = data;
    g_free(event->kind);
    g_free(event->text);
    g_free(event);
}

static struct journal_job *job_from_row(sqlite3_stmt *row)
{
    struct journal_job *job = g_new0(struct journal_job, 1);
    char **const texts[] = {&job->id,    &job->command, &job->method, &job->phase, &job->result,
                            &job->error, &job->request, &job->source, &job->target};
    for (int i = 0; i < (int)G_N_ELEMENTS(texts); i++)
        *texts[i] = journal_text(row, i);
    job->started = sqlite3_column_int64(row, 9);
    job->updated = sqlite3_column_int64(row, 10);
    job->finished = sqlite3_column_int64(row, 11);
    job->owner_pid = sqlite3_column_int64(row, 12);
    job->owner_process = journal_text(row, 13);
    return job;
}

/* All rows of a bound SELECT with JOB_COLUMNS. */
static GPtrArray *collect_jobs(struct journal *journal, sqlite3_stmt *stmt, GError **error)
{
    g_autoptr(GPtrArray) jobs = g_ptr_array_new_with_free_func((GDestroyNotify)journal_job_free);
    for (bool row = true;;) {
        if (!journal_step(journal, stmt, &row, error))
            return NULL;
        if (!row)
            return g_steal_pointer(&jobs);
        g_ptr_array_add(jobs, job_from_row(stmt));
    }
}

/* The first of the jobs, or NULL without an error if there is none. */
static struct journal_job *take_first(GPtrArray *jobs)
{
    return jobs && jobs->len ? g_ptr_array_steal_index(jobs, 0) : NULL;
}

static bool is_self(int64_t pid, const char *process)
{
    g_autofree char *self = journal_process_self();
    return pid == getpid() && g_strcmp0(self, process) == 0;
}

bool journal_job_alive(const struct journal_job *job)
{
    return journal_process_alive(job->owner_pid, job->owner_process);
}

bool journal_check_owner(struct journal *journal, const struct journal_job *job, GError **error)
{
    sqlite3_stmt *stmt = journal_bind(journal, JOB_OWNED, "s", job->id);
    bool row = false;
    if (!journal_step(journal, stmt, &row, error))
        return false;
    bool ours = row && is_self(sqlite3_column_int64(stmt, 0), (const char *)sqlite3_column_text(stmt, 1));
    if (!ours)
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED,
                    row ? "job %s is not run by this process" : "there is no job %s in the journal", job->id);
    journal_reset(stmt);
    return ours;
}

/* REFUSED if a row (id, pid, process) of a bound statement belongs to a live process. */
bool journal_refuse_rivals(struct journal *journal, sqlite3_stmt *stmt, const char *target, GError **error)
{
    for (bool row = true;;) {
        if (!journal_step(journal, stmt, &row, error))
            return false;
        if (!row)
            return true;
        int64_t pid = sqlite3_column_int64(stmt, 1);
        if (!journal_process_alive(pid, (const char *)sqlite3_column_text(stmt, 2)))
            continue;
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED,
                    "%s: job %s (process %" G_GINT64_FORMAT ") is working on this target", target,
                    sqlite3_column_text(stmt, 0), pid);
        journal_reset(stmt);
        return false;
    }
}

/* 4 random digits are enough for a day's jobs; a collision takes more. */
static char *new_id(int64_t now, unsigned attempt)
{
    uint32_t bits = g_random_int();
    (void)!getrandom(&bits, sizeof bits, GRND_NONBLOCK);
    g_autoptr(GDateTime) time = g_date_time_new_from_unix_utc(now / G_USEC_PER_SEC);
    g_autofree char *date = g_date_time_format(time, "%Y%m%d");
    if (attempt < 4)
        return g_strdup_printf("%s-%04x", date, bits & 0xffff);
    return g_strdup_printf("%s-%08x", date, bits);
}

static bool insert_job(struct journal *journal, struct journal_job *job, GError **error)
{
    sqlite3_stmt *rivals = journal_bind(journal, JOB_RIVALS, "ss", job->source, job->target);
    if (!journal_refuse_rivals(journal, rivals, job->target, error))
        return false;
    for (unsigned attempt = 0; attempt < 16; attempt++) {
        g_free(job->id);
        job->id = new_id(job->started, attempt);
        sqlite3_stmt *stmt =
            journal_bind(journal, JOB_INSERT, "sssssssssiiiis", job->id, job->command, job->method,
                         job->phase, job->result, job->error, job->request, job->source, job->target,
                         job->started, job->updated, job->finished, job->owner_pid, job->owner_process);
        if (!journal_run(journal, stmt, error))
            return false;
        if (sqlite3_changes(journal->db) == 1)
            return true;
    }
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED, "%s: no free job number", journal->path);
    return false;
}

static void own(struct journal_job *job, int64_t now)
{
    job->updated = now;
    job->owner_pid = getpid();
    g_free(job->owner_process);
    job->owner_process = journal_process_self();
}

bool journal_job_create(struct journal *journal, struct journal_job *job, GError **error)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&journal->lock);
    job->started = g_get_real_time();
    own(job, job->started);
    if (!journal_begin(journal, error))
        return false;
    return journal_end(journal, insert_job(journal, job, error), error);
}

static void set_ambiguous(const char *id, GPtrArray *jobs, GError **error)
{
    g_autoptr(GString) names = g_string_new(NULL);
    for (guint i = 0; i < jobs->len && i < 3; i++)
        g_string_append_printf(names, "%s%s", i ? ", " : "",
                               ((struct journal_job *)g_ptr_array_index(jobs, i))->id);
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE, "job '%s' is ambiguous: %s%s", id, names->str,
                jobs->len > 3 ? ", ..." : "");
}

struct journal_job *journal_job_load(struct journal *journal, const char *id, GError **error)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&journal->lock);
    g_autoptr(GPtrArray) exact = collect_jobs(journal, journal_bind(journal, JOB_BY_ID, "s", id), error);
    if (!exact || exact->len)
        return take_first(exact);
    g_autoptr(GPtrArray) jobs = collect_jobs(journal, journal_bind(journal, JOB_BY_PREFIX, "s", id), error);
    if (jobs && (jobs->len > 1 || (jobs->len && !*id))) {
        set_ambiguous(id, jobs, error);
        return NULL;
    }
    return take_first(jobs);
}

struct journal_job *journal_job_find_target(struct journal *journal, const char *target, GError **error)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&journal->lock);
    g_autoptr(GPtrArray) jobs =
        collect_jobs(journal, journal_bind(journal, JOB_BY_TARGET, "s", target), error);
    return take_first(jobs);
}

GPtrArray *journal_job_list(struct journal *journal, GError **error)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&journal->lock);
    return collect_jobs(journal, journal_bind(journal, JOB_LIST, ""), error);
}

/* Under the write lock, so that of two that find a dead owner only one becomes the next: also if the other
 * one has ended by now, for what was decided by `seen` is not so any more. */
static struct journal_job *claim(struct journal *journal, const struct journal_job *seen, GError **error)
{
    const char *id = seen->id;
    g_autoptr(GPtrArray) jobs = collect_jobs(journal, journal_bind(journal, JOB_BY_ID, "s", id), error);
    if (!jobs)
        return NULL;
    g_autoptr(journal_job_t) job = take_first(jobs);
    if (!job) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED, "there is no job %s in the journal", id);
        return NULL;
    }
    if (journal_job_alive(job) && !is_self(job->owner_pid, job->owner_process)) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED,
                    "job %s is run by process %" G_GINT64_FORMAT, id, job->owner_pid);
        return NULL;
    }
    if (job->updated != seen->updated) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED, "job %s was gone on with meanwhile", id);
        return NULL;
    }
    sqlite3_stmt *rivals = journal_bind(journal, JOB_RIVALS, "ss", job->source, job->target);
    if (!is_self(job->owner_pid, job->owner_process) &&
        !journal_refuse_rivals(journal, rivals, job->target, error))
        return NULL;
    own(job, g_get_real_time());
    g_clear_pointer(&job->result, g_free);
    g_clear_pointer(&job->error, g_free);
    job->finished = 0;
    sqlite3_stmt *stmt =
        journal_bind(journal, JOB_CLAIM, "sisi", id, job->owner_pid, job->owner_process, job->updated);
    return journal_run(journal, stmt, error) ? g_steal_pointer(&job) : NULL;
}

bool journal_job_claim(struct journal *journal, struct journal_job *job, GError **error)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&journal->lock);
    if (!journal_begin(journal, error))
        return false;
    g_autoptr(journal_job_t) claimed = claim(journal, job, error);
    if (!journal_end(journal, claimed != NULL, error))
        return false;
    struct journal_job old = *job;
    *job = *claimed;
    *claimed = old;
    return true;
}

bool journal_job_set_phase(struct journal *journal, struct journal_job *job, const char *phase,
                           GError **error)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&journal->lock);
    int64_t now = g_get_real_time();
    if (!journal_begin(journal, error))
        return false;
    bool ok = journal_check_owner(journal, job, error) &&
              journal_run(journal, journal_bind(journal, JOB_PHASE, "ssis", job->id, phase, now, job->method),
                          error);
    if (!journal_end(journal, ok, error))
        return false;
    char *old = job->phase; /* `phase` may be this very string */
    job->phase = g_strdup(phase);
    g_free(old);
    job->updated = now;
    return true;
}

bool journal_job_finish(struct journal *journal, struct journal_job *job, const char *result,
                        const char *message, GError **error)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&journal->lock);
    int64_t now = g_get_real_time();
    if (!journal_begin(journal, error))
        return false;
    sqlite3_stmt *stmt = NULL;
    bool ok = journal_check_owner(journal, job, error);
    if (ok) {
        stmt = journal_bind(journal, JOB_FINISH, "sssi", job->id, result, message, now);
        ok = journal_run(journal, stmt, error);
    }
    if (!journal_end(journal, ok, error))
        return false;
    char *old_result = job->result, *old_error = job->error;
    job->result = g_strdup(result);
    job->error = g_strdup(message);
    g_free(old_result);
    g_free(old_error);
    job->finished = job->updated = now;
    job->owner_pid = 0;
    g_clear_pointer(&job->owner_process, g_free);
    return true;
}

bool journal_event(struct journal *journal, const struct journal_job *job, const char *kind, const char *text,
                   GError **error)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&journal->lock);
    if (!journal_begin(journal, error))
        return false;
    sqlite3_stmt *stmt = journal_bind(journal, EVENT_INSERT, "siss", job->id, g_get_real_time(), kind, text);
    return journal_end(journal, journal_run(journal, stmt, error), error);
}

GPtrArray *journal_events(struct journal *journal, const struct journal_job *job, GError **error)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&journal->lock);
    g_autoptr(GPtrArray) events = g_ptr_array_new_with_free_func(event_free);
    sqlite3_stmt *stmt = journal_bind(journal, EVENT_LIST, "s", job->id);
    for (bool row = true;;) {
        if (!journal_step(journal, stmt, &row, error))
            return NULL;
        if (!row)
            return g_steal_pointer(&events);
        struct journal_event *event = g_new0(struct journal_event, 1);
        event->time = sqlite3_column_int64(stmt, 0);
        event->kind = journal_text(stmt, 1);
        event->text = journal_text(stmt, 2);
        g_ptr_array_add(events, event);
    }
}

GPtrArray *journal_told(struct journal *journal, const struct journal_job *job, const char *kind,
                        const char *beginning, GError **error)
{
    g_autoptr(GPtrArray) events = journal_events(journal, job, error);
    GPtrArray *told = events ? g_ptr_array_new_with_free_func(g_free) : NULL;
    for (guint i = 0; events && i < events->len; i++) {
        const struct journal_event *event = g_ptr_array_index(events, i);
        if (strcmp(event->kind, kind) != 0 || !event->text || !g_str_has_prefix(event->text, beginning))
            continue;
        const char *rest = event->text + strlen(beginning);
        if (!g_ptr_array_find_with_equal_func(told, rest, g_str_equal, NULL))
            g_ptr_array_add(told, g_strdup(rest));
    }
    return told;
}

bool journal_has_told(struct journal *journal, const struct journal_job *job, const char *kind,
                      const char *text)
{
    g_autoptr(GPtrArray) told = journal_told(journal, job, kind, text, NULL);
    return told && g_ptr_array_find_with_equal_func(told, "", g_str_equal, NULL);
}
