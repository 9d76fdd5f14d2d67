/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The journal's connection: where it lies, how it is opened, and how statements are run on it.
 *
 * Every write happens between journal_begin() and journal_end(); with WAL and synchronous=FULL
 * the commit has reached the disk when journal_end() returns.
 */
#include "blockmig/store/journal.h"

#include "blockmig/storage/file.h"
#include "blockmig/store/journal-internal.h"
#include "formats/error.h"

#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <stdarg.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define BUSY_TIMEOUT_MS 15000
#define TURN_MS         5

static int error_code(int rc)
{
    switch (rc & 0xff) {
    case SQLITE_NOTADB:
    case SQLITE_CANTOPEN:
    case SQLITE_READONLY:
    case SQLITE_PERM:
        return BLOCKMIG_ERROR_REFUSED;
    case SQLITE_FULL:
        return BLOCKMIG_ERROR_NOSPACE;
    case SQLITE_IOERR:
        return BLOCKMIG_ERROR_IO;
    default:
        return BLOCKMIG_ERROR_FAILED;
    }
}

static const char *error_advice(int rc)
{
    switch (rc & 0xff) {
    case SQLITE_NOTADB:
        return "; this file is no journal: move it away or use another --state-dir";
    case SQLITE_CORRUPT:
        return "; the journal is damaged: move it and its -wal and -shm files away, receipts are not "
               "affected";
    case SQLITE_BUSY:
        return "; another process holds the journal";
    case SQLITE_FULL:
        return "; make space in the state directory";
    default:
        return "";
    }
}

bool journal_set_error(const struct journal *journal, int rc, const char *what, GError **error)
{
    const char *message = sqlite3_errstr(rc);
    /* The shared memory of the WAL that cannot grow is an "I/O error". */
    if (journal->db && (rc & 0xff) == SQLITE_IOERR && sqlite3_system_errno(journal->db) == ENOSPC)
        rc = SQLITE_FULL;
    if (journal->db && (sqlite3_errcode(journal->db) & 0xff) == (rc & 0xff))
        message = sqlite3_errmsg(journal->db);
    g_set_error(error, BLOCKMIG_ERROR, error_code(rc), "%s: %s: %s%s", journal->path, what, message,
                error_advice(rc));
    return false;
}

sqlite3_stmt *journal_bind(struct journal *journal, enum journal_statement statement, const char *types, ...)
{
    sqlite3_stmt *stmt = journal->statements[statement];
    journal_reset(stmt);
    va_list args;
    va_start(args, types);
    for (int i = 0; types[i]; i++) {
        switch (types[i]) {
        case 's':
            sqlite3_bind_text(stmt, i + 1, va_arg(args, const char *), -1, SQLITE_STATIC);
            break;
        case 'i':
            sqlite3_bind_int64(stmt, i + 1, va_arg(args, int64_t));
            break;
        case 'u':
            sqlite3_bind_int64(stmt, i + 1, (int64_t)va_arg(args, uint64_t));
            break;
        case 'b': {
            gsize length = 0;
            const void *data = g_bytes_get_data(va_arg(args, GBytes *), &length);
            sqlite3_bind_blob64(stmt, i + 1, data ? data : "", length, SQLITE_STATIC);
            break;
        }
        default:
            g_assert_not_reached();
        }
    }
    va_end(args);
    return stmt;
}

void journal_reset(sqlite3_stmt *statement)
{
    sqlite3_reset(statement);
    sqlite3_clear_bindings(statement);
}

bool journal_step(struct journal *journal, sqlite3_stmt *statement, bool *row, GError **error)
{
    int rc = sqlite3_step(statement);
    *row = rc == SQLITE_ROW;
    if (rc == SQLITE_ROW)
        return true;
    bool ok = rc == SQLITE_DONE || journal_set_error(journal, rc, "the journal cannot be used", error);
    journal_reset(statement);
    return ok;
}

bool journal_run(struct journal *journal, sqlite3_stmt *statement, GError **error)
{
    bool row = true;
    while (row)
        if (!journal_step(journal, statement, &row, error))
            return false;
    return true;
}

bool journal_begin(struct journal *journal, GError **error)
{
    return journal_run(journal, journal_bind(journal, BEGIN_WRITE, ""), error);
}

bool journal_end(struct journal *journal, bool ok, GError **error)
{
    if (ok && journal_run(journal, journal_bind(journal, COMMIT, ""), error))
        return true;
    /* Some errors (a full disk) have rolled back by themselves. */
    if (!sqlite3_get_autocommit(journal->db))
        journal_run(journal, journal_bind(journal, ROLLBACK, ""), NULL);
    return false;
}

char *journal_text(sqlite3_stmt *statement, int column)
{
    return g_strdup((const char *)sqlite3_column_text(statement, column));
}

uint64_t journal_u64(sqlite3_stmt *statement, int column)
{
    return (uint64_t)sqlite3_column_int64(statement, column);
}

static char *default_directory(void)
{
    const char *named = g_getenv("BLOCKMIG_STATE_DIR");
    if (named && *named)
        return g_strdup(named);
    if (geteuid() == 0)
        return g_strdup("/var/lib/blockmig");
    const char *state = g_getenv("XDG_STATE_HOME");
    if (state && g_path_is_absolute(state))
        return g_build_filename(state, "blockmig", NULL);
    return g_build_filename(g_get_home_dir(), ".local", "state", "blockmig", NULL);
}

char *journal_receipts(const char *place)
{
    return g_build_filename(place, "receipts", NULL);
}

static bool refuse(const char *directory, const char *why, GError **error)
{
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED, "state directory %s: %s", directory, why);
    return false;
}

/* A directory in which anyone may exchange files cannot hold the truth about who owns a disk.  What proves a
 * copy is written at its end, but whether it can be is seen now. */
static bool prepare_directory(const char *directory, GError **error)
{
    g_autofree char *receipts = journal_receipts(directory);

    if (g_mkdir_with_parents(directory, 0700) != 0)
        return refuse(directory, g_strerror(errno), error);
    struct stat st;
    if (stat(directory, &st) != 0)
        return refuse(directory, g_strerror(errno), error);
    if (st.st_mode & S_IWOTH)
        return refuse(directory, "writable by everyone; use a directory of your own (mode 0700)", error);
    if (access(directory, R_OK | W_OK | X_OK) != 0)
        return refuse(directory,
                      errno == EACCES ? "not writable for this user; use --state-dir" : g_strerror(errno),
                      error);
    if (g_mkdir_with_parents(receipts, 0700) != 0 || access(receipts, W_OK | X_OK) != 0)
        return refuse(receipts, g_strerror(errno), error);
    return true;
}

/* SQLite would make it readable for all; its WAL takes the mode of the database.  An existing file is never
 * opened here: closing it would drop the locks that another connection of this process holds. */
static bool prepare_file(const struct journal *journal, GError **error)
{
    struct stat st;
    if (lstat(journal->path, &st) == 0) {
        if (S_ISREG(st.st_mode))
            return true;
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED, "%s: not a regular file", journal->path);
        return false;
    }
    int fd = open(journal->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return errno == EEXIST ? true : blockmig_set_errno(error, errno, "%s", journal->path);
    close(fd);
    return storage_file_sync_directory(journal->path, error);
}

static bool prepare_statements(struct journal *journal, GError **error)
{
    for (unsigned i = 0; i < STATEMENT_COUNT; i++) {
        int rc = sqlite3_prepare_v3(journal->db, journal_sql[i], -1, SQLITE_PREPARE_PERSISTENT,
                                    &journal->statements[i], NULL);
        if (rc != SQLITE_OK)
            return journal_set_error(journal, rc, "the journal has not the expected tables", error);
    }
    return true;
}

/* SQLite's busy timeout does not cover the first and the last moments of a database (the switch to WAL,
 * recovery, the removal of the WAL by the last connection): opening and closing take turns.  The lock is on
 * the directory, because closing any descriptor of the database itself would drop SQLite's own locks. Whoever
 * was suspended in such a moment is not waited for longer than SQLite would wait. */
static int lock_directory(const char *directory)
{
    int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (unsigned waited = 0; fd >= 0 && waited < BUSY_TIMEOUT_MS; waited += TURN_MS) {
        if (flock(fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK)
            break;
        g_usleep(TURN_MS * 1000);
    }
    return fd;
}

static void unlock_directory(int fd)
{
    if (fd >= 0)
        close(fd);
}

static bool connect(struct journal *journal, GError **error)
{
    int rc =
        sqlite3_open_v2(journal->path, &journal->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_FULLMUTEX, NULL);
    if (rc != SQLITE_OK)
        return journal_set_error(journal, rc, "cannot be opened", error);
    sqlite3_busy_timeout(journal->db, BUSY_TIMEOUT_MS);
    /* A confined process has no directory for temporary files. */
    rc = sqlite3_exec(journal->db,
                      "PRAGMA foreign_keys = ON; PRAGMA trusted_schema = OFF; PRAGMA temp_store = MEMORY",
                      NULL, NULL, NULL);
    if (rc != SQLITE_OK)
        return journal_set_error(journal, rc, "cannot be opened", error);
    return journal_schema_prepare(journal, error) && prepare_statements(journal, error);
}

char *journal_place(const char *directory)
{
    g_autofree char *wanted = directory ? g_strdup(directory) : default_directory();
    return g_canonicalize_filename(wanted, NULL);
}

static char *journal_path(const char *directory)
{
    g_autofree char *absolute = journal_place(directory);
    return g_build_filename(absolute, "journal.sqlite", NULL);
}

bool journal_exists(const char *directory)
{
    g_autofree char *path = journal_path(directory);
    return g_file_test(path, G_FILE_TEST_EXISTS);
}

struct journal *journal_open(const char *directory, GError **error)
{
    g_autoptr(journal_t) journal = g_new0(struct journal, 1);
    g_mutex_init(&journal->lock);
    journal->path = journal_path(directory);
    journal->directory = g_path_get_dirname(journal->path);
    if (!prepare_directory(journal->directory, error))
        return NULL;
    int lock = lock_directory(journal->directory);
    bool ok = prepare_file(journal, error) && connect(journal, error);
    unlock_directory(lock);
    return ok ? g_steal_pointer(&journal) : NULL;
}

void journal_close(struct journal *journal)
{
    if (!journal)
        return;
    for (unsigned i = 0; i < STATEMENT_COUNT; i++)
        sqlite3_finalize(journal->statements[i]);
    int lock = journal->db ? lock_directory(journal->directory) : -1;
    sqlite3_close(journal->db);
    unlock_directory(lock);
    g_mutex_clear(&journal->lock);
    g_free(journal->directory);
    g_free(journal->path);
    g_free(journal);
}

const char *journal_directory(const struct journal *journal)
{
    return journal->directory;
}
