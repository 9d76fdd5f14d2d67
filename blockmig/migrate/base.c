/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The base phase: every unit is created or taken up again, and filled by the copier. */
#include "blockmig/migrate/cold.h"
#include "blockmig/storage/file.h"

#include <glib/gstdio.h>
#include <string.h>

struct base_pass {
    struct cold_job *job;
    struct copy_unit *unit;
    struct copy_counters now;
};

static struct storage *open_storage(const struct copy_unit *unit, bool fresh, GError **error)
{
    g_autofree char *real = NULL;
    unsigned flags = FILE_WRITE;

    if (fresh && !unit->device)
        flags |= g_file_test(unit->part_path, G_FILE_TEST_EXISTS) ? FILE_TRUNCATE : FILE_CREATE;
    return storage_file_open(unit->part_path, flags, NULL, &real, error);
}

static bool create_target(struct cold_job *job, struct copy_unit *unit, GError **error)
{
    struct image_create_options options = {.size = unit->chain->size,
                                           .backing_name = unit->backing_name,
                                           .backing_format = unit->backing_format,
                                           .values = unit->options};
    struct storage *storage = open_storage(unit, true, error);

    if (!storage)
        return false;
    if (!image_create(storage, unit->format, &options, error)) {
        storage_close(storage);
        return false;
    }
    unit->frontier = 0;
    unit->map_sum = (struct copy_map_sum){0};
    memset(&unit->before, 0, sizeof(unit->before));
    g_clear_pointer(&unit->digests, digest_table_free);
    unit->digests = digest_table_new(job->request->digest, unit->chain->size);
    unit->target = image_open(storage, unit->format, true, error);
    return unit->target != NULL;
}

/* Space that a crash left counted but unused is given back, and whatever was written behind the
 * checkpoint is forgotten: from there on the image is as fresh as on the first run. */
static bool reopen_target(struct cold_job *job, struct copy_unit *unit, GError **error)
{
    struct image_check check = {0};
    struct storage *storage = open_storage(unit, false, error);
    uint64_t done_offset, done_length;

    if (!storage || !(unit->target = image_open(storage, unit->format, true, error)) ||
        !image_check(unit->target, true, &check, error))
        return false;
    if (check.corruptions > 0) {
        cold_notice(job, "%s has %" PRIu64 " damaged entries: copying it from the beginning", unit->part_path,
                    check.corruptions);
        unit->frontier = 0;
        return true;
    }
    if (!cold_prove_window(job, unit, error))
        return false;
    if (unit->frontier == unit->chain->size)
        return true;
    if (!image_discard(unit->target, unit->frontier, unit->chain->size - unit->frontier, &done_offset,
                       &done_length, error))
        return false;
    unit->target->reads_zero =
        !unit->device && done_offset <= unit->frontier && done_offset + done_length >= unit->chain->size;
    return image_flush(unit->target, error);
}

/* What the storage cannot do and the administrator should know; and what the copier must not do on it. */
static void prepare_storage(const struct cold_job *job, const struct image *target)
{
    if (target->cluster_size < 4096)
        storage_file_avoid_direct(target->storage);
    if (!storage_file_lockable(target->storage))
        cold_notice(job, "%s: its file system has no locks: nothing keeps other programs from writing to it",
                    target->name);
}

static bool open_target(struct cold_job *job, struct copy_unit *unit, GError **error)
{
    if (unit->frontier > 0) {
        if (!reopen_target(job, unit, error))
            return false;
        if (unit->frontier > 0)
            return true;
        g_clear_pointer(&unit->target, image_close);
    }
    unit->saved = 0;
    return journal_checkpoint_forget(job->journal, job->record, unit->index, error) &&
           create_target(job, unit, error);
}

static void add_counters(struct copy_counters *sum, const struct copy_counters *more)
{
    sum->total = more->total;
    sum->position = more->position;
    sum->data_total = more->data_total;
    sum->data_done = more->data_done;
    sum->bytes_read += more->bytes_read;
    sum->bytes_written += more->bytes_written;
    sum->bytes_cloned += more->bytes_cloned;
    sum->bytes_zero += more->bytes_zero;
    sum->bytes_verified += more->bytes_verified;
}

static void progress(void *opaque, const struct copy_counters *counters)
{
    struct base_pass *pass = opaque;
    const struct job_listener *listener = pass->job->listener;

    pass->now = *counters;
    pass->now.data_total = pass->unit->data;
    if (listener->progress)
        listener->progress(listener->opaque, "base", &pass->now);
}

static bool cancelled(void *opaque)
{
    struct base_pass *pass = opaque;
    const struct job_listener *listener = pass->job->listener;

    return listener->cancelled && listener->cancelled(listener->opaque);
}

/* The copier calls this with the target flushed up to `frontier`: only now may the journal say so. */
static bool checkpoint(void *opaque, uint64_t frontier, const struct copy_map_sum *sum, GError **error)
{
    struct base_pass *pass = opaque;
    struct copy_unit *unit = pass->unit;
    struct copy_counters total = unit->before;
    uint64_t to = (frontier + DIGEST_CHUNK_SIZE - 1) / DIGEST_CHUNK_SIZE;
    g_autoptr(GBytes) digests = digest_table_pack(unit->digests, unit->saved / DIGEST_CHUNK_SIZE, to);
    struct journal_checkpoint record;

    add_counters(&total, &pass->now);
    record = (struct journal_checkpoint){.frontier = frontier,
                                         .map_sum_low = sum->low,
                                         .map_sum_high = sum->high,
                                         .bytes_read = total.bytes_read,
                                         .bytes_written = total.bytes_written,
                                         .bytes_zero = total.bytes_zero};
    if (!journal_checkpoint_save(pass->job->journal, pass->job->record, unit->index, &record, digests, error))
        return false;
    unit->saved = frontier;
    unit->frontier = frontier;
    return true;
}

static bool copy_unit(struct cold_job *job, struct copy_unit *unit, GError **error)
{
    struct base_pass pass = {.job = job, .unit = unit};
    const char *preallocation = g_hash_table_lookup(unit->options, "preallocation");
    struct copy_options options = {0};
    struct copy_result result = {0};
    g_autoptr(throttle_t) throttle = throttle_new(job->request->bandwidth);
    bool ok;

    cold_copy_options(job, &options);
    options.start = unit->frontier;
    options.read_back = job->request->verify != VERIFY_NONE;
    options.write_zeroes = preallocation && strcmp(preallocation, "full") == 0;
    options.compress = job->request->compressed;
    options.salvage = job->request->salvage;
    options.throttle = throttle;
    options.digests = unit->digests;
    options.map_sum = unit->map_sum;
    options.target_backing = unit->below;
    options.checkpoint = checkpoint;
    options.progress = progress;
    options.cancelled = cancelled;
    options.opaque = &pass;
    ok = copy_run(unit->chain, unit->target, &options, &result, error);
    unit->map_sum = result.map_sum;
    unit->report->counters = unit->before;
    unit->report->engine = result.engine;
    unit->report->bad = g_steal_pointer(&result.bad);
    add_counters(&unit->report->counters, &result.counters);
    copy_result_clear(&result);
    return ok;
}

static bool save_disks(struct cold_job *job, GError **error)
{
    for (guint i = 0; i < job->units->len; i++) {
        const struct copy_unit *unit = g_ptr_array_index(job->units, i);
        struct journal_disk disk = {.index = unit->index,
                                    .source = unit->source_path,
                                    .target = unit->target_path,
                                    .source_format = unit->report->source_format,
                                    .target_format = unit->report->target_format,
                                    .source_identity = unit->source_identity,
                                    .target_identity = unit->part_path,
                                    .size = unit->chain->size};

        if (!journal_disk_save(job->journal, job->record, &disk, error))
            return false;
    }
    return true;
}

bool cold_base(struct cold_job *job, GError **error)
{
    const struct job_listener *listener = job->listener;

    if (job->already_there)
        return true;
    if (!save_disks(job, error))
        return false;
    for (guint i = 0; i < job->units->len; i++) {
        struct copy_unit *unit = g_ptr_array_index(job->units, i);

        if (listener->phase)
            listener->phase(listener->opaque, "base", unit->what);
        if (!open_target(job, unit, error))
            return false;
        prepare_storage(job, unit->target);
        if (!copy_unit(job, unit, error))
            return false;
    }
    return true;
}
