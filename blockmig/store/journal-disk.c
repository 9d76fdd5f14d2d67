/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The disks of a job in the journal, and how far the copy of each has come. */
#include "blockmig/copy/copy.h"
#include "blockmig/store/journal-internal.h"
#include "formats/error.h"

#include <string.h>

void journal_disk_free(struct journal_disk *disk)
{
    if (!disk)
        return;
    g_free(disk->source);
    g_free(disk->target);
    g_free(disk->source_format);
    g_free(disk->target_format);
    g_free(disk->source_identity);
    g_free(disk->target_identity);
    g_free(disk->receipt);
    g_free(disk->frozen);
    g_free(disk->base_node);
    g_free(disk);
}

static bool save_disk(struct journal *journal, const struct journal_job *job, const struct journal_disk *disk,
                      GError **error)
{
    sqlite3_stmt *rivals = journal_bind(journal, DISK_RIVALS, "ss", disk->target, job->id);
    if (!journal_refuse_rivals(journal, rivals, disk->target, error))
        return false;
    sqlite3_stmt *stmt =
        journal_bind(journal, DISK_SAVE, "sissssssusss", job->id, (int64_t)disk->index, disk->source,
                     disk->target, disk->source_format, disk->target_format, disk->source_identity,
                     disk->target_identity, disk->size, disk->receipt, disk->frozen, disk->base_node);
    return journal_run(journal, stmt, error);
}

bool journal_disk_save(struct journal *journal, const struct journal_job *job,
                       const struct journal_disk *disk, GError **error)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&journal->lock);
    if (!journal_begin(journal, error))
        return false;
    bool ok = journal_check_owner(journal, job, error) && save_disk(journal, job, disk, error);
    return journal_end(journal, ok, error);
}

static struct journal_disk *disk_from_row(sqlite3_stmt *row)
{
    struct journal_disk *disk = g_new0(struct journal_disk, 1);
    disk->index = (unsigned)sqlite3_column_int64(row, 0);
    char **const texts[] = {&disk->source,        &disk->target,          &disk->source_format,
                            &disk->target_format, &disk->source_identity, &disk->target_identity};
    for (int i = 0; i < (int)G_N_ELEMENTS(texts); i++)
        *texts[i] = journal_text(row, 1 + i);
    disk->size = journal_u64(row, 7);
    disk->receipt = journal_text(row, 8);
    disk->frozen = journal_text(row, 9);
    disk->base_node = journal_text(row, 10);
    return disk;
}

GPtrArray *journal_disk_list(struct journal *journal, const struct journal_job *job, GError **error)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&journal->lock);
    g_autoptr(GPtrArray) disks = g_ptr_array_new_with_free_func((GDestroyNotify)journal_disk_free);
    sqlite3_stmt *stmt = journal_bind(journal, DISK_LIST, "s", job->id);
    for (bool row = true;;) {
        if (!journal_step(journal, stmt, &row, error))
            return NULL;
        if (!row)
            return g_steal_pointer(&disks);
        g_ptr_array_add(disks, disk_from_row(stmt));
    }
}

/* The last range of the checkpoint before may have grown since: it has the same offset. */
static bool save_bad_ranges(struct journal *journal, const struct journal_job *job, unsigned disk,
                            const GArray *bad, GError **error)
{
    for (guint i = 0; bad && i < bad->len; i++) {
        const struct copy_range *range = &g_array_index(bad, struct copy_range, i);
        sqlite3_stmt *stmt =
            journal_bind(journal, BAD_SAVE, "siuu", job->id, (int64_t)disk, range->offset, range->length);
        if (!journal_run(journal, stmt, error))
            return false;
    }
    return true;
}

GArray *journal_bad_ranges(struct journal *journal, const struct journal_job *job, unsigned disk,
                           GError **error)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&journal->lock);
    g_autoptr(GArray) bad = g_array_new(FALSE, FALSE, sizeof(struct copy_range));
    sqlite3_stmt *stmt = journal_bind(journal, BAD_LIST, "si", job->id, (int64_t)disk);
    for (bool row = true;;) {
        if (!journal_step(journal, stmt, &row, error))
            return NULL;
        if (!row)
            return g_steal_pointer(&bad);
        struct copy_range range = {journal_u64(stmt, 0), journal_u64(stmt, 1)};
        g_array_append_val(bad, range);
    }
}

static bool save_checkpoint(struct journal *journal, const struct journal_job *job, unsigned disk,
                            const struct journal_checkpoint *c, GBytes *digests, GError **error)
{
    sqlite3_stmt *stmt =
        journal_bind(journal, CHECKPOINT_SAVE, "siuuuuuuuuui", job->id, (int64_t)disk, c->frontier,
                     c->map_sum_low, c->map_sum_high, c->bytes_read, c->bytes_written, c->bytes_zero,
                     c->bytes_cloned, c->bytes_verified, c->data_done, (int64_t)c->merged);
    if (!journal_run(journal, stmt, error) || !save_bad_ranges(journal, job, disk, c->bad, error))
        return false;
    if (!digests || g_bytes_get_size(digests) == 0)
        return true;
    stmt = journal_bind(journal, DIGEST_APPEND, "sib", job->id, (int64_t)disk, digests);
    return journal_run(journal, stmt, error);
}

bool journal_checkpoint_save(struct journal *journal, const struct journal_job *job, unsigned disk,
                             const struct journal_checkpoint *checkpoint, GBytes *digests, GError **error)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&journal->lock);
    if (!journal_begin(journal, error))
        return false;
    bool ok = journal_check_owner(journal, job, error) &&
              save_checkpoint(journal, job, disk, checkpoint, digests, error);
    return journal_end(journal, ok, error);
}

static bool load_checkpoint(struct journal *journal, const struct journal_job *job, unsigned disk,
                            struct journal_checkpoint *checkpoint, bool *found, GError **error)
{
    sqlite3_stmt *stmt = journal_bind(journal, CHECKPOINT_LOAD, "si", job->id, (int64_t)disk);
    if (!journal_step(journal, stmt, found, error))
        return false;
    if (*found) {
        *checkpoint = (struct journal_checkpoint){
            .frontier = journal_u64(stmt, 0),
            .map_sum_low = journal_u64(stmt, 1),
            .map_sum_high = journal_u64(stmt, 2),
            .bytes_read = journal_u64(stmt, 3),
            .bytes_written = journal_u64(stmt, 4),
            .bytes_zero = journal_u64(stmt, 5),
            .bytes_cloned = journal_u64(stmt, 6),
            .bytes_verified = journal_u64(stmt, 7),
            .data_done = journal_u64(stmt, 8),
            .merged = (unsigned)journal_u64(stmt, 9),
        };
        journal_reset(stmt);
    }
    return true;
}

static GBytes *load_digests(struct journal *journal, const struct journal_job *job, unsigned disk,
                            GError **error)
{
    sqlite3_stmt *stmt = journal_bind(journal, DIGEST_SIZE, "si", job->id, (int64_t)disk);
    bool row = false;
    if (!journal_step(journal, stmt, &row, error))
        return NULL;
    size_t size = row ? (size_t)sqlite3_column_int64(stmt, 0) : 0;
    journal_reset(stmt);
    g_autofree uint8_t *data = g_try_malloc(MAX(size, 1));
    if (!data) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED,
                    "job %s: no memory for %zu bytes of digests in the journal", job->id, size);
        return NULL;
    }
    size_t filled = 0;
    stmt = journal_bind(journal, DIGEST_LOAD, "si", job->id, (int64_t)disk);
    for (;;) {
        if (!journal_step(journal, stmt, &row, error))
            return NULL;
        if (!row)
            return g_bytes_new_take(g_steal_pointer(&data), filled);
        const void *blob = sqlite3_column_blob(stmt, 0);
        size_t length = (size_t)sqlite3_column_bytes(stmt, 0);
        if (length > size - filled || (length && !blob)) { /* the sum is of the same snapshot */
            journal_reset(stmt);
            g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED,
                        "job %s: the digests of disk %u in the journal are damaged", job->id, disk);
            return NULL;
        }
        if (length)
            memcpy(data + filled, blob, length);
        filled += length;
    }
}

/* In one transaction: a checkpoint and the digests below its frontier belong together. */
bool journal_checkpoint_load(struct journal *journal, const struct journal_job *job, unsigned disk,
                             struct journal_checkpoint *checkpoint, GBytes **digests, bool *found,
                             GError **error)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&journal->lock);
    if (!journal_begin(journal, error))
        return false;
    g_autoptr(GBytes) records = NULL;
    bool ok = load_checkpoint(journal, job, disk, checkpoint, found, error);
    if (ok && *found) {
        records = load_digests(journal, job, disk, error);
        ok = records != NULL;
    }
    if (!journal_end(journal, ok, error))
        return false;
    *digests = g_steal_pointer(&records);
    return true;
}

static bool forget_disk(struct journal *journal, const struct journal_job *job, int64_t disk, GError **error)
{
    return journal_run(journal, journal_bind(journal, CHECKPOINT_FORGET, "si", job->id, disk), error) &&
           journal_run(journal, journal_bind(journal, DIGEST_FORGET, "si", job->id, disk), error) &&
           journal_run(journal, journal_bind(journal, BAD_FORGET, "si", job->id, disk), error);
}

bool journal_checkpoint_forget(struct journal *journal, const struct journal_job *job, unsigned disk,
                               GError **error)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&journal->lock);
    if (!journal_begin(journal, error))
        return false;
    bool ok = journal_check_owner(journal, job, error) && forget_disk(journal, job, disk, error);
    return journal_end(journal, ok, error);
}

bool journal_checkpoint_clear(struct journal *journal, const struct journal_job *job, GError **error)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&journal->lock);
    if (!journal_begin(journal, error))
        return false;
    bool ok = journal_run(journal, journal_bind(journal, CHECKPOINT_CLEAR, "s", job->id), error) &&
              journal_run(journal, journal_bind(journal, DIGEST_CLEAR, "s", job->id), error) &&
              journal_run(journal, journal_bind(journal, BAD_CLEAR, "s", job->id), error);
    return journal_end(journal, ok, error);
}
