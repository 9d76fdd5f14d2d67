/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the files of the journal share: the connection, its prepared statements, and how they are run. */
#ifndef BLOCKMIG_STORE_JOURNAL_INTERNAL_H
#define BLOCKMIG_STORE_JOURNAL_INTERNAL_H

#include "blockmig/store/journal.h"

#include <sqlite3.h>

enum journal_statement {
    BEGIN_WRITE,
    COMMIT,
    ROLLBACK,
    JOB_INSERT,
    JOB_BY_ID,
    JOB_BY_PREFIX,
    JOB_BY_TARGET,
    JOB_LIST,
    JOB_RIVALS,
    JOB_CLAIM,
    JOB_PHASE,
    JOB_FINISH,
    JOB_OWNED,
    DISK_SAVE,
    DISK_LIST,
    DISK_RIVALS,
    CHECKPOINT_SAVE,
    CHECKPOINT_LOAD,
    CHECKPOINT_FORGET,
    CHECKPOINT_CLEAR,
    DIGEST_APPEND,
    DIGEST_SIZE,
    DIGEST_LOAD,
    DIGEST_FORGET,
    DIGEST_CLEAR,
    BAD_SAVE,
    BAD_LIST,
    BAD_FORGET,
    BAD_CLEAR,
    JOB_REST,
    WINDOW_SAVE,
    WINDOW_LOAD,
    WINDOW_KEEPER,
    EVENT_INSERT,
    EVENT_LIST,
    STATEMENT_COUNT,
};

struct journal {
    char *directory, *path;
    sqlite3 *db;
    sqlite3_stmt *statements[STATEMENT_COUNT];
    GMutex lock; /* a statement is used by one thread at a time; held by every public function */
};

/* Text of every statement, in journal-schema.c. */
extern const char *const journal_sql[STATEMENT_COUNT];
/* Recognises, creates or migrates the schema; errors as journal_open. */
bool journal_schema_prepare(struct journal *journal, GError **error);

/* Sets `error` from the connection's last result `rc` (`what` begins the message). Always returns false. */
bool journal_set_error(const struct journal *journal, int rc, const char *what, GError **error);

/* Resets a statement and binds its parameters in order: 's' const char * or NULL, 'i' int64_t,
 * 'u' uint64_t (kept as the same 64 bits), 'b' GBytes *.  Errors of a bind surface when it is stepped. */
sqlite3_stmt *journal_bind(struct journal *journal, enum journal_statement statement, const char *types, ...);
/* One row at a time: *row false at the end. The statement is reset by the end, an error or journal_reset().
 */
bool journal_step(struct journal *journal, sqlite3_stmt *statement, bool *row, GError **error);
void journal_reset(sqlite3_stmt *statement);
/* Steps a statement that returns no rows to its end. */
bool journal_run(struct journal *journal, sqlite3_stmt *statement, GError **error);

/* BEGIN IMMEDIATE: from here to journal_end() no other process writes. */
bool journal_begin(struct journal *journal, GError **error);
/* Commits if `ok`, else rolls back and leaves `error` as it is. Returns whether it was committed. */
bool journal_end(struct journal *journal, bool ok, GError **error);

char *journal_text(sqlite3_stmt *statement, int column); /* a copy, or NULL */
uint64_t journal_u64(sqlite3_stmt *statement, int column);

/* FAILED unless this process owns the job in the database; inside a transaction. */
bool journal_check_owner(struct journal *journal, const struct journal_job *job, GError **error);

/* Takes the rows (id, pid, process) of a bound statement: REFUSED if one of the processes
 * lives. */
bool journal_refuse_rivals(struct journal *journal, sqlite3_stmt *stmt, const char *target, GError **error);

/* This process as an owner: boot id and start time. Owned by the caller. */
char *journal_process_self(void);
/* Does process `pid`, started as `process` says, still run? */
bool journal_process_alive(int64_t pid, const char *process);

#endif
