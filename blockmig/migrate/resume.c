/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Going on where an earlier run was stopped, at whatever moment.  checkpoint.h says what is trusted; that the
 * source is still the same is found out here: its identity is compared, a device is read again.
 */
#include "blockmig/migrate/cold.h"
#include "blockmig/storage/names.h"
#include "blockmig/store/receipt.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/stat.h>

bool cold_first_difference(const struct cold_job *job, struct copy_unit *unit, struct chain *chain,
                           uint64_t to, uint64_t *differs, GError **error)
{
    struct copy_options how = {.salvage = job->request->salvage};

    cold_copy_options(job, &how);
    return checkpoint_first_difference(chain, unit->done.digests, 0, to, &how, differs, error);
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
            !(unit->device || name_exists(unit->target_path) || name_exists(unit->part_path)))
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
        unit->done.digests = g_steal_pointer(&receipt->digests);
        unit->done.before = receipt->counters;
        unit->done.bad = g_steal_pointer(&receipt->bad);
        unit->done.frontier = unit->chain->size;
    }
    return true;
}

void cold_forget_units(struct cold_job *job)
{
    for (guint i = 0; i < job->units->len; i++) {
        struct copy_unit *unit = g_ptr_array_index(job->units, i);

        checkpoint_clear(&unit->done);
        g_clear_pointer(&unit->report->receipt, g_free);
        g_clear_pointer(&unit->report->root, g_free);
        g_clear_pointer(&unit->report->bad, g_array_unref);
    }
}

static bool load_checkpoint(struct cold_job *job, struct copy_unit *unit, GError **error)
{
    return !(unit->device || name_exists(unit->part_path)) ||
           checkpoint_load(&unit->done, &job->base, unit->index, job->request->digest, unit->chain->size,
                           error);
}

/* A device has no mtime: what was copied from it is read once more and must be the same. */
static bool check_device_source(struct cold_job *job, struct copy_unit *unit, GError **error)
{
    bool certain;
    uint64_t differs;

    g_free(checkpoint_source_identity(unit->chain, &certain, NULL));
    if (certain || unit->done.frontier == 0)
        return true;
    if (!cold_first_difference(job, unit, unit->chain, unit->done.frontier, &differs, error))
        return false;
    if (differs < unit->done.frontier) {
        job_notice(&job->base,
                   "%s changed at byte %" PRIu64 " since it was copied: what was copied is not used",
                   unit->source_path, differs);
        unit->done.frontier = 0;
    }
    return true;
}

bool cold_adopt_record(struct cold_job *job, struct journal_job *record, GError **error)
{
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

/* The source may be a device, of which only its content tells whether it is the same. */
static bool adopt_finished(struct cold_job *job, struct journal_job *record, GPtrArray *disks, GError **error)
{
    if (!load_receipts(job, disks, error))
        return false;
    for (guint i = 0; i < job->units->len; i++) {
        struct copy_unit *unit = g_ptr_array_index(job->units, i);

        if (!check_device_source(job, unit, error))
            return false;
        if (unit->done.frontier != unit->chain->size) {
            cold_forget_units(job);
            return true;
        }
    }
    return cold_adopt_record(job, record, error);
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
        job->base.report->resumed |= unit->done.frontier > 0;
    }
    return true;
}

/* Layers are copied from the base up: the top's part is the last to come. */
static bool left_something(const struct cold_job *job)
{
    for (guint i = 0; i < job->units->len; i++) {
        const struct copy_unit *unit = g_ptr_array_index(job->units, i);

        if (unit->device || name_exists(unit->part_path))
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
