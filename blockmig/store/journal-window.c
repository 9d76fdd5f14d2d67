/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Failback windows in the journal: until when a move can be taken back, and who closes it then. */
#include "blockmig/store/journal-internal.h"

#include <unistd.h>

void journal_window_free(struct journal_window *window)
{
    if (!window)
        return;
    g_free(window->keeper_process);
    g_free(window->facts);
    g_free(window);
}

bool journal_window_kept(const struct journal_window *window)
{
    return journal_process_alive(window->keeper_pid, window->keeper_process);
}

bool journal_window_save(struct journal *journal, const struct journal_job *job,
                         const struct journal_window *window, GError **error)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&journal->lock);
    if (!journal_begin(journal, error))
        return false;
    bool ok = journal_check_owner(journal, job, error) &&
              journal_run(journal,
                          journal_bind(journal, WINDOW_SAVE, "sis", job->id, window->deadline, window->facts),
                          error);
    return journal_end(journal, ok, error);
}

struct journal_window *journal_window_load(struct journal *journal, const struct journal_job *job,
                                           GError **error)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&journal->lock);
    sqlite3_stmt *stmt = journal_bind(journal, WINDOW_LOAD, "s", job->id);
    struct journal_window *window = NULL;
    bool row = false;
    if (!journal_step(journal, stmt, &row, error) || !row)
        return NULL;
    window = g_new0(struct journal_window, 1);
    window->deadline = sqlite3_column_int64(stmt, 0);
    window->keeper_pid = sqlite3_column_int64(stmt, 1);
    window->keeper_process = journal_text(stmt, 2);
    window->facts = journal_text(stmt, 3);
    journal_reset(stmt);
    return window;
}

bool journal_window_keep(struct journal *journal, const struct journal_job *job, GError **error)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&journal->lock);
    g_autofree char *self = journal_process_self();
    if (!journal_begin(journal, error))
        return false;
    sqlite3_stmt *stmt = journal_bind(journal, WINDOW_KEEPER, "sis", job->id, (int64_t)getpid(), self);
    return journal_end(journal, journal_run(journal, stmt, error), error);
}

bool journal_job_rest(struct journal *journal, struct journal_job *job, GError **error)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&journal->lock);
    int64_t now = g_get_real_time();
    if (!journal_begin(journal, error))
        return false;
    bool ok = journal_check_owner(journal, job, error) &&
              journal_run(journal, journal_bind(journal, JOB_REST, "si", job->id, now), error);
    if (!journal_end(journal, ok, error))
        return false;
    job->updated = now;
    job->owner_pid = 0;
    g_clear_pointer(&job->owner_process, g_free);
    return true;
}
