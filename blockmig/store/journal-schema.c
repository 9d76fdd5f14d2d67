/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The journal's tables and statements.
 *
 * A database is ours by its application_id; its user_version counts the migrations that it has
 * seen.  A new version appends one string to migrations[]; what was released never changes.
 * Unsigned 64-bit numbers are kept as the signed number with the same bits.  Text is whatever bytes
 * a file name has; SQLite keeps them as they are.
 */
#include "blockmig/store/journal-internal.h"
#include "formats/error.h"

#define APPLICATION_ID 1112361287 /* "BMIG" */

static const char *const migrations[] = {
    "CREATE TABLE job ("
    "  number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, command TEXT, method TEXT, phase TEXT,"
    "  result TEXT, error TEXT, request TEXT, source TEXT, target TEXT,"
    "  started INTEGER NOT NULL, updated INTEGER NOT NULL, finished INTEGER NOT NULL DEFAULT 0,"
    "  owner_pid INTEGER NOT NULL DEFAULT 0, owner_process TEXT);"
    "CREATE INDEX job_target ON job (target);"
    "CREATE TABLE disk ("
    "  job TEXT NOT NULL REFERENCES job (id) ON DELETE CASCADE, disk INTEGER NOT NULL,"
    "  source TEXT, target TEXT, source_format TEXT, target_format TEXT,"
    "  source_identity TEXT, target_identity TEXT, size INTEGER NOT NULL, receipt TEXT,"
    "  PRIMARY KEY (job, disk)) WITHOUT ROWID;"
    "CREATE INDEX disk_target ON disk (target);"
    "CREATE TABLE checkpoint ("
    "  job TEXT NOT NULL, disk INTEGER NOT NULL, frontier INTEGER NOT NULL,"
    "  map_sum_low INTEGER NOT NULL, map_sum_high INTEGER NOT NULL, bytes_read INTEGER NOT NULL,"
    "  bytes_written INTEGER NOT NULL, bytes_zero INTEGER NOT NULL,"
    "  PRIMARY KEY (job, disk), FOREIGN KEY (job, disk) REFERENCES disk (job, disk) ON DELETE CASCADE"
    ") WITHOUT ROWID;"
    "CREATE TABLE digest ("
    "  number INTEGER PRIMARY KEY, job TEXT NOT NULL, disk INTEGER NOT NULL, records BLOB NOT NULL,"
    "  FOREIGN KEY (job, disk) REFERENCES disk (job, disk) ON DELETE CASCADE);"
    "CREATE INDEX digest_disk ON digest (job, disk);"
    "CREATE TABLE event ("
    "  number INTEGER PRIMARY KEY, job TEXT NOT NULL REFERENCES job (id) ON DELETE CASCADE,"
    "  time INTEGER NOT NULL, kind TEXT NOT NULL, text TEXT);"
    "CREATE INDEX event_job ON event (job);",
    "ALTER TABLE checkpoint ADD COLUMN bytes_cloned INTEGER NOT NULL DEFAULT 0;"
    "ALTER TABLE checkpoint ADD COLUMN bytes_verified INTEGER NOT NULL DEFAULT 0;"
    "ALTER TABLE checkpoint ADD COLUMN data_done INTEGER NOT NULL DEFAULT 0;"
    "CREATE TABLE bad_range ("
    "  job TEXT NOT NULL, disk INTEGER NOT NULL, offset INTEGER NOT NULL, length INTEGER NOT NULL,"
    "  PRIMARY KEY (job, disk, offset), FOREIGN KEY (job, disk) REFERENCES disk (job, disk) ON DELETE CASCADE"
    ") WITHOUT ROWID;",
    "ALTER TABLE checkpoint ADD COLUMN merged INTEGER NOT NULL DEFAULT 0;"
    "ALTER TABLE disk ADD COLUMN frozen TEXT; ALTER TABLE disk ADD COLUMN base_node TEXT;",
    "CREATE TABLE failback_window ("
    "  job TEXT PRIMARY KEY REFERENCES job (id) ON DELETE CASCADE, deadline INTEGER NOT NULL,"
    "  keeper_pid INTEGER NOT NULL DEFAULT 0, keeper_process TEXT, facts TEXT) WITHOUT ROWID;",
};

/* The order in which job_from_row() reads them. */
#define JOB_COLUMNS                                                                                          \
    "id, command, method, phase, result, error, request, source, target,"                                    \
    " started, updated, finished, owner_pid, owner_process"

const char *const journal_sql[STATEMENT_COUNT] = {
    [BEGIN_WRITE] = "BEGIN IMMEDIATE",
    [COMMIT] = "COMMIT",
    [ROLLBACK] = "ROLLBACK",
    [JOB_INSERT] = "INSERT OR IGNORE INTO job (" JOB_COLUMNS ") VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
    [JOB_BY_ID] = "SELECT " JOB_COLUMNS " FROM job WHERE id = ?",
    [JOB_BY_PREFIX] = "SELECT " JOB_COLUMNS " FROM job WHERE substr(id, 1, length(?1)) = ?1"
                      " ORDER BY number DESC LIMIT 4",
    [JOB_BY_TARGET] = "SELECT " JOB_COLUMNS " FROM job WHERE target = ? ORDER BY number DESC LIMIT 1",
    [JOB_LIST] = "SELECT " JOB_COLUMNS " FROM job ORDER BY number DESC",
    [JOB_RIVALS] = "SELECT id, owner_pid, owner_process FROM job"
                   " WHERE source IS ? AND target IS ? AND owner_pid <> 0",
    [JOB_CLAIM] = "UPDATE job SET owner_pid = ?2, owner_process = ?3, updated = ?4,"
                  " result = NULL, error = NULL, finished = 0 WHERE id = ?1",
    [JOB_PHASE] = "UPDATE job SET phase = ?2, updated = ?3, method = ?4 WHERE id = ?1",
    [JOB_FINISH] = "UPDATE job SET result = ?2, error = ?3, finished = ?4, updated = ?4,"
                   " owner_pid = 0, owner_process = NULL WHERE id = ?1",
    [JOB_OWNED] = "SELECT owner_pid, owner_process FROM job WHERE id = ?",
    [DISK_SAVE] = "INSERT INTO disk (job, disk, source, target, source_format, target_format,"
                  " source_identity, target_identity, size, receipt, frozen, base_node) VALUES"
                  " (?,?,?,?,?,?,?,?,?,?,?,?)"
                  " ON CONFLICT (job, disk) DO UPDATE SET source = excluded.source,"
                  " target = excluded.target, source_format = excluded.source_format,"
                  " target_format = excluded.target_format, source_identity = excluded.source_identity,"
                  " target_identity = excluded.target_identity, size = excluded.size,"
                  " receipt = excluded.receipt, frozen = excluded.frozen,"
                  " base_node = excluded.base_node",
    [DISK_LIST] = "SELECT disk, source, target, source_format, target_format, source_identity,"
                  " target_identity, size, receipt, frozen, base_node FROM disk WHERE job = ? ORDER BY disk",
    [DISK_RIVALS] = "SELECT job.id, owner_pid, owner_process FROM disk JOIN job ON job.id = disk.job"
                    " WHERE disk.target = ? AND job.id <> ? AND owner_pid <> 0",
    [CHECKPOINT_SAVE] = "INSERT OR REPLACE INTO checkpoint (job, disk, frontier, map_sum_low, map_sum_high,"
                        " bytes_read, bytes_written, bytes_zero, bytes_cloned, bytes_verified, data_done,"
                        " merged) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
    [CHECKPOINT_LOAD] =
        "SELECT frontier, map_sum_low, map_sum_high, bytes_read, bytes_written, bytes_zero,"
        " bytes_cloned, bytes_verified, data_done, merged FROM checkpoint WHERE job = ? AND disk = ?",
    [CHECKPOINT_FORGET] = "DELETE FROM checkpoint WHERE job = ? AND disk = ?",
    [CHECKPOINT_CLEAR] = "DELETE FROM checkpoint WHERE job = ?",
    [DIGEST_APPEND] = "INSERT INTO digest (job, disk, records) VALUES (?,?,?)",
    [DIGEST_SIZE] = "SELECT total(length(records)) FROM digest WHERE job = ? AND disk = ?",
    [DIGEST_LOAD] = "SELECT records FROM digest WHERE job = ? AND disk = ? ORDER BY number",
    [DIGEST_FORGET] = "DELETE FROM digest WHERE job = ? AND disk = ?",
    [DIGEST_CLEAR] = "DELETE FROM digest WHERE job = ?",
    [BAD_SAVE] = "INSERT OR REPLACE INTO bad_range (job, disk, offset, length) VALUES (?,?,?,?)",
    [BAD_LIST] = "SELECT offset, length FROM bad_range WHERE job = ? AND disk = ? ORDER BY offset",
    [BAD_FORGET] = "DELETE FROM bad_range WHERE job = ? AND disk = ?",
    [BAD_CLEAR] = "DELETE FROM bad_range WHERE job = ?",
    [JOB_REST] = "UPDATE job SET updated = ?2, owner_pid = 0, owner_process = NULL WHERE id = ?1",
    [WINDOW_SAVE] = "INSERT OR REPLACE INTO failback_window (job, deadline, facts) VALUES (?,?,?)",
    [WINDOW_LOAD] = "SELECT deadline, keeper_pid, keeper_process, facts FROM failback_window WHERE job = ?",
    [WINDOW_KEEPER] = "UPDATE failback_window SET keeper_pid = ?2, keeper_process = ?3 WHERE job = ?1",
    [EVENT_INSERT] = "INSERT INTO event (job, time, kind, text) VALUES (?,?,?,?)",
    [EVENT_LIST] = "SELECT time, kind, text FROM event WHERE job = ? ORDER BY number",
};

static bool query_number(struct journal *journal, const char *sql, int64_t *value, GError **error)
{
    sqlite3_stmt *statement = NULL;
    int rc = sqlite3_prepare_v2(journal->db, sql, -1, &statement, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_step(statement);
    if (rc == SQLITE_ROW)
        *value = sqlite3_column_int64(statement, 0);
    sqlite3_finalize(statement);
    return rc == SQLITE_ROW ? true : journal_set_error(journal, rc, "cannot be read", error);
}

static bool execute(struct journal *journal, const char *sql, GError **error)
{
    int rc = sqlite3_exec(journal->db, sql, NULL, NULL, NULL);
    return rc == SQLITE_OK ? true : journal_set_error(journal, rc, "cannot be prepared", error);
}

/* Reads the version; refuses what is not ours before anything is written to it. */
static bool read_version(struct journal *journal, int64_t *version, GError **error)
{
    int64_t application = 0, objects = 0;
    if (!query_number(journal, "PRAGMA application_id", &application, error) ||
        !query_number(journal, "PRAGMA user_version", version, error) ||
        !query_number(journal, "SELECT count(*) FROM sqlite_schema", &objects, error))
        return false;
    bool fresh = application == 0 && *version == 0 && objects == 0;
    if (application != APPLICATION_ID && !fresh) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED,
                    "%s: this is a database of another program; use another --state-dir", journal->path);
        return false;
    }
    if (*version < 0 || *version > (int64_t)G_N_ELEMENTS(migrations)) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED,
                    "%s: written by a newer blockmig (schema %" G_GINT64_FORMAT
                    ", this one knows up to %zu); use that version",
                    journal->path, *version, G_N_ELEMENTS(migrations));
        return false;
    }
    return true;
}

static bool migrate(struct journal *journal, int64_t version, GError **error)
{
    if (!execute(journal, "PRAGMA application_id = " G_STRINGIFY(APPLICATION_ID), error))
        return false;
    for (size_t i = (size_t)version; i < G_N_ELEMENTS(migrations); i++)
        if (!execute(journal, migrations[i], error))
            return false;
    g_autofree char *stamp = g_strdup_printf("PRAGMA user_version = %zu", G_N_ELEMENTS(migrations));
    return execute(journal, stamp, error);
}

/* In one snapshot: another process may be creating the schema at this moment. */
static bool read_version_at_once(struct journal *journal, int64_t *version, GError **error)
{
    if (!execute(journal, "BEGIN", error))
        return false;
    bool ok = read_version(journal, version, error);
    sqlite3_exec(journal->db, "ROLLBACK", NULL, NULL, NULL);
    return ok;
}

/* Processes that open a new journal together all want to switch it, and SQLite does not always wait for
 * the others here. */
static bool switch_to_wal(struct journal *journal, GError **error)
{
    int rc = SQLITE_BUSY;
    for (unsigned attempt = 0; attempt < 200 && (rc & 0xff) == SQLITE_BUSY; attempt++) {
        if (attempt)
            g_usleep(50 * 1000);
        rc = sqlite3_exec(journal->db, "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL", NULL, NULL,
                          NULL);
    }
    return rc == SQLITE_OK ? true : journal_set_error(journal, rc, "cannot be switched to WAL", error);
}

bool journal_schema_prepare(struct journal *journal, GError **error)
{
    int64_t version = 0;
    if (!read_version_at_once(journal, &version, error) || !switch_to_wal(journal, error))
        return false;
    if (version == (int64_t)G_N_ELEMENTS(migrations))
        return true;
    /* Another process may have done it meanwhile: ask again under the write lock. */
    if (!execute(journal, "BEGIN IMMEDIATE", error))
        return false;
    bool ok = read_version(journal, &version, error) && migrate(journal, version, error) &&
              execute(journal, "COMMIT", error);
    if (!ok)
        sqlite3_exec(journal->db, "ROLLBACK", NULL, NULL, NULL);
    return ok;
}
