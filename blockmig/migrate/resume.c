/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Going on where an earlier run was stopped, at whatever moment.
 *
 * What is trusted: a checkpoint, because the target was flushed before it was written.  What is
 * not: that the source is still the same (its identity is compared, a device is read again), and that the
 * medium kept its word (the stretch before the checkpoint is read again and compared with its digests).
 */
#include "blockmig/migrate/cold.h"
#include "blockmig/storage/file.h"
#include "blockmig/store/receipt.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/stat.h>

#define WINDOW_BYTES (UINT64_C(256) << 20)

/* Adds what `storage`, which lies at `path`, is and when it was written to last. */
static bool add_identity(GString *text, const struct storage *storage, const char *path, bool *certain,
                         GError **error)
{
    struct stat st;

    if (stat(path, &st) < 0)
        return blockmig_set_errno(error, errno, "%s", path);
    if (S_ISBLK(st.st_mode)) {
        *certain = false;
        memset(&st.st_mtim, 0, sizeof(st.st_mtim));
    }
    g_string_append_printf(text, "%s size %" PRIu64 " mtime %" PRId64 ".%09ld;", storage->identity,
                           storage->size, (int64_t)st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
    return true;
}

char *cold_source_identity(const struct chain *chain, bool *certain, GError **error)
{
    g_autoptr(GString) text = g_string_new(NULL);

    *certain = true;
    for (unsigned i = 0; i < chain_depth(chain); i++) {
        const struct image *image = chain_layer(chain, i);
        const char *path = g_ptr_array_index(chain->paths, i);

        if (!add_identity(text, image->storage, path, certain, error))
            return NULL;
        for (guint k = 0; k < image->data_files->len; k++) {
            const struct storage *data = image_data_file(image, k)->storage;

            if (!add_identity(text, data, data->name, certain, error))
                return NULL;
        }
    }
    return g_string_free(g_steal_pointer(&text), false);
}

bool cold_first_difference(const struct cold_job *job, struct chain *chain,
                           const struct digest_table *expected, uint64_t from, uint64_t to, uint64_t *differs,
                           GError **error)
{
    g_autoptr(digest_table_t) table =
        digest_table_new(digest_table_algorithm(expected), digest_table_size(expected));
    struct copy_options options = {0};
    struct copy_result result = {0};
    size_t length = digest_length(digest_table_algorithm(expected));
    bool ok;

    cold_copy_options(job, &options);
    options.salvage = job->request->salvage; /* what cannot be read counts as the zeros that stand for it */
    options.start = from;
    options.end = to;
    options.digests = table;
    ok = copy_digest(chain, &options, &result, error);
    copy_result_clear(&result);
    *differs = to;
    if (!ok)
        return false;
    for (uint64_t chunk = from / DIGEST_CHUNK_SIZE; chunk * DIGEST_CHUNK_SIZE < to; chunk++) {
        if (digest_table_is_zero(table, chunk) && digest_table_is_zero(expected, chunk)) {
            /* Empty stretches are skipped: cost grows with data. */
            uint64_t a = chunk, b = chunk;
            bool more_a = digest_table_next(table, &a), more_b = digest_table_next(expected, &b);

            if (!more_a && !more_b)
                break;
            chunk = MIN(more_a ? a : UINT64_MAX, more_b ? b : UINT64_MAX);
            if (chunk * DIGEST_CHUNK_SIZE >= to)
                break;
        }
        if (memcmp(digest_table_get(table, chunk), digest_table_get(expected, chunk), length) != 0) {
            *differs = chunk * DIGEST_CHUNK_SIZE;
            break;
        }
    }
    return true;
}

bool cold_prove_window(struct cold_job *job, struct copy_unit *unit, GError **error)
{
    uint64_t from = unit->frontier > WINDOW_BYTES ? unit->frontier - WINDOW_BYTES : 0;
    struct image *image = cold_reopen(unit, error);
    g_autoptr(chain_t) chain = NULL;
    uint64_t differs;

    if (!image)
        return false;
    chain = chain_new_single(image, true);
    from -= from % DIGEST_CHUNK_SIZE;
    if (!cold_first_difference(job, chain, unit->digests, from, unit->frontier, &differs, error))
        return false;
    if (differs < unit->frontier) {
        job_notice(&job->base,
                   "%s: what was written before the checkpoint at %" PRIu64
                   " is not on the medium from byte %" PRIu64 " on: copying it again from the beginning",
                   unit->part_path, unit->frontier, differs);
        unit->frontier = 0;
    }
    return true;
}

static struct journal_disk *find_disk(GPtrArray *disks, unsigned index)
{
    for (guint i = 0; i < disks->len; i++) {
        struct journal_disk *disk = g_ptr_array_index(disks, i);

        if (disk->index == index)
            return disk;
    }
    return NULL;
}

static bool same_source(const struct copy_unit *unit, const struct journal_disk *disk)
{
    return disk && strcmp(disk->source_identity, unit->source_identity) == 0 &&
           strcmp(disk->target_format, unit->format->name) == 0 && disk->size == unit->chain->size;
}

/* Its files have their names.  One that salvaged has "failed" all the same. */
static bool is_finished(const struct journal_job *record)
{
    return record->result && strcmp(record->phase, "done") == 0;
}

/* Everything was proven: the job was done, or was stopped while its files took their names; and the source is
 * what it was. */
static bool is_already_there(const struct cold_job *job, const struct journal_job *record, GPtrArray *disks)
{
    if (strcmp(record->phase, "cleanup") != 0 && strcmp(record->phase, "done") != 0)
        return false;
    for (guint i = 0; i < job->units->len; i++) {
        struct copy_unit *unit = g_ptr_array_index(job->units, i);
        const struct journal_disk *disk = find_disk(disks, unit->index);

        if (!same_source(unit, disk) || !disk->receipt || !g_file_test(disk->receipt, G_FILE_TEST_EXISTS) ||
            !(g_file_test(unit->target_path, G_FILE_TEST_EXISTS) ||
              g_file_test(unit->part_path, G_FILE_TEST_EXISTS)))
            return false;
    }
    return true;
}

static bool load_receipts(struct cold_job *job, GPtrArray *disks, GError **error)
{
    for (guint i = 0; i < job->units->len; i++) {
        struct copy_unit *unit = g_ptr_array_index(job->units, i);
        const char *path = find_disk(disks, unit->index)->receipt;
        g_autoptr(receipt_t) receipt = receipt_read(path, error);

        if (!receipt)
            return false;
        unit->report->receipt = g_strdup(path);
        unit->digests = g_steal_pointer(&receipt->digests);
        unit->before = receipt->counters;
        unit->bad = g_steal_pointer(&receipt->bad);
        unit->frontier = unit->chain->size;
    }
    return true;
}

/* As if there had been no earlier run. */
static void forget_units(struct cold_job *job)
{
    for (guint i = 0; i < job->units->len; i++) {
        struct copy_unit *unit = g_ptr_array_index(job->units, i);

        g_clear_pointer(&unit->digests, digest_table_free);
        g_clear_pointer(&unit->bad, g_array_unref);
        g_clear_pointer(&unit->report->receipt, g_free);
        unit->before = (struct copy_counters){0};
        unit->frontier = 0;
    }
}

static bool load_checkpoint(struct cold_job *job, struct copy_unit *unit, GError **error)
{
    struct journal_checkpoint checkpoint = {0};
    g_autoptr(GBytes) digests = NULL;
    bool found = false;
    size_t length;
    const void *data;

    if (!journal_checkpoint_load(job->base.journal, job->base.record, unit->index, &checkpoint, &digests,
                                 &found, error))
        return false;
    if (!found || !g_file_test(unit->part_path, G_FILE_TEST_EXISTS))
        return true;
    data = g_bytes_get_data(digests, &length);
    unit->digests = digest_table_new(job->request->digest, unit->chain->size);
    if (!digest_table_unpack(unit->digests, data, length, error))
        return false;
    digest_table_truncate(unit->digests, (checkpoint.frontier + DIGEST_CHUNK_SIZE - 1) / DIGEST_CHUNK_SIZE);
    unit->frontier = checkpoint.frontier;
    unit->saved = checkpoint.frontier;
    unit->map_sum = (struct copy_map_sum){checkpoint.map_sum_low, checkpoint.map_sum_high};
    unit->before.bytes_read = checkpoint.bytes_read;
    unit->before.bytes_written = checkpoint.bytes_written;
    unit->before.bytes_zero = checkpoint.bytes_zero;
    unit->before.bytes_cloned = checkpoint.bytes_cloned;
    unit->before.bytes_verified = checkpoint.bytes_verified;
    unit->before.data_done = checkpoint.data_done;
    unit->bad = journal_bad_ranges(job->base.journal, job->base.record, unit->index, error);
    return unit->bad != NULL;
}

/* A device has no mtime: what was copied from it is read once more and must be the same. */
static bool check_device_source(struct cold_job *job, struct copy_unit *unit, GError **error)
{
    bool certain;
    uint64_t differs;

    g_free(cold_source_identity(unit->chain, &certain, NULL));
    if (certain || unit->frontier == 0)
        return true;
    if (!cold_first_difference(job, unit->chain, unit->digests, 0, unit->frontier, &differs, error))
        return false;
    if (differs < unit->frontier) {
        job_notice(&job->base,
                   "%s changed at byte %" PRIu64 " since it was copied: what was copied is not used",
                   unit->source_path, differs);
        unit->frontier = 0;
    }
    return true;
}

/* The source may be a device, of which only its content tells whether it is the same. */
static bool adopt_finished(struct cold_job *job, struct journal_job *record, GPtrArray *disks, GError **error)
{
    if (!load_receipts(job, disks, error))
        return false;
    for (guint i = 0; i < job->units->len; i++) {
        struct copy_unit *unit = g_ptr_array_index(job->units, i);

        if (!check_device_source(job, unit, error))
            return false;
        if (unit->frontier != unit->chain->size) {
            forget_units(job);
            return true;
        }
    }
    if (is_finished(record)) {
        job->base.ended = g_strdup(record->result);
        job->base.ended_error = g_strdup(record->error);
    }
    if (!job->base.dry_run && !journal_job_claim(job->base.journal, record, error))
        return false;
    job->base.record = record;
    job->base.already_there = true;
    return true;
}

static bool adopt(struct cold_job *job, struct journal_job *record, GPtrArray *disks, GError **error)
{
    for (guint i = 0; i < job->units->len; i++) {
        struct copy_unit *unit = g_ptr_array_index(job->units, i);

        if (!same_source(unit, find_disk(disks, unit->index))) {
            job_notice(&job->base, "%s changed since job %s was stopped: starting over", unit->source_path,
                       record->id);
            return true;
        }
    }
    if (!job->base.dry_run && !journal_job_claim(job->base.journal, record, error))
        return false;
    job->base.record = record;
    for (guint i = 0; i < job->units->len; i++) {
        struct copy_unit *unit = g_ptr_array_index(job->units, i);

        if (!load_checkpoint(job, unit, error) || !check_device_source(job, unit, error))
            return false;
        job->base.report->resumed |= unit->frontier > 0;
    }
    return true;
}

/* Layers are copied from the base up: the top's part is the last to come. */
static bool left_something(const struct cold_job *job)
{
    for (guint i = 0; i < job->units->len; i++) {
        const struct copy_unit *unit = g_ptr_array_index(job->units, i);

        if (unit->device || g_file_test(unit->part_path, G_FILE_TEST_EXISTS))
            return true;
    }
    return false;
}

/* What there is of `record` that helps: job->base.record and the state of the units, or nothing. */
static bool take_up(struct cold_job *job, struct journal_job *record, GError **error)
{
    g_autofree char *text = copy_request_to_json(job->request);
    bool same = copy_request_same(record->request, text);
    g_autoptr(GPtrArray) disks = journal_disk_list(job->base.journal, record, error);

    if (!disks)
        return false;
    if (is_finished(record) && job->request->force)
        return true;
    if (same && is_already_there(job, record, disks))
        return adopt_finished(job, record, disks, error);
    if (is_finished(record) || !left_something(job))
        return true;
    if (same)
        return adopt(job, record, disks, error);
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED,
                "%s belongs to the unfinished job %s, which was started with other options: finish it with "
                "'blockmig job resume %s', or give --restart to forget it",
                record->target, record->id, record->id);
    return false;
}

bool cold_look_for_earlier_run(struct cold_job *job, GError **error)
{
    const struct copy_unit *top = g_ptr_array_index(job->units, job->units->len - 1);
    g_autoptr(GError) local = NULL;
    g_autoptr(journal_job_t) record = journal_job_find_target(job->base.journal, top->target_path, &local);
    bool ok;

    if (local) {
        g_propagate_error(error, g_steal_pointer(&local));
        return false;
    }
    if (!record)
        return true;
    if (journal_job_alive(record)) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED,
                    "%s is being written by job %s (process %" PRId64 ")", top->target_path, record->id,
                    record->owner_pid);
        return false;
    }
    ok = job->request->restart || take_up(job, record, error);
    if (!ok)
        job->base.record = NULL;
    else if (!job->base.record && !is_finished(record))
        job->given_up = g_steal_pointer(&record);
    else if (job->base.record)
        g_steal_pointer(&record);
    return ok;
}
