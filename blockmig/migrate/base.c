/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The base phase: every unit is created or taken up again, and filled by the copier. */
#include "blockmig/migrate/cold.h"
#include "blockmig/storage/file.h"
#include "blockmig/storage/image-files.h"

#include <string.h>

#define MAP_BATCH 256

struct base_pass {
    struct cold_job *job;
    struct copy_unit *unit;
    struct copy_result result;  /* of this run, while it goes on */
    struct copy_counters total; /* of all runs */
};

/* What the unit will be a child of: the layer that was copied before it, or the one that stays where it is.
 */
static struct image *parent_of(const struct cold_job *job, const struct copy_unit *unit)
{
    const struct copy_unit *before = unit->index > 0 ? g_ptr_array_index(job->units, unit->index - 1) : NULL;

    if (!unit->backing_name)
        return NULL;
    return before ? before->target : chain_layer(unit->below, 0);
}

static bool create_target(struct cold_job *job, struct copy_unit *unit, GError **error)
{
    struct image_create_options options = unit_create_options(unit);

    options.parent = parent_of(job, unit);
    if (!unit_create_parts(unit, &options, error))
        return false;
    unit->frontier = 0;
    unit->map_sum = (struct copy_map_sum){0};
    memset(&unit->before, 0, sizeof(unit->before));
    g_clear_pointer(&unit->bad, g_array_unref);
    g_clear_pointer(&unit->digests, digest_table_free);
    unit->digests = digest_table_new(job->request->digest, unit->chain->size);
    unit->target = unit_open_parts(unit, error);
    if (unit->target && unit->target->size != unit->chain->size)
        job_notice(&job->base,
                   "%s: the disk has %" PRIu64 " bytes where the source has %" PRIu64 ": the rest is zeros",
                   unit->target_path, unit->target->size, unit->chain->size);
    return unit->target != NULL;
}

/* What was preallocated stays allocated: it is emptied in place.  Only falloc has reserved the blocks
 * themselves. */
static bool empty_in_place(struct copy_unit *unit, bool keep_blocks, GError **error)
{
    struct extent extents[MAP_BATCH];
    uint64_t done_offset, done_length;
    size_t count;

    for (uint64_t at = unit->frontier; at < unit->target->size; at = extent_end(&extents[count - 1])) {
        if (!image_map(unit->target, at, unit->target->size - at, extents, MAP_BATCH, &count, error))
            return false;
        for (size_t i = 0; i < count; i++) {
            const struct extent *extent = &extents[i];
            bool ok = true;

            if (extent->status == EXTENT_DATA)
                ok = storage_zero(extent->storage, extent->host_offset, extent->length, !keep_blocks, error);
            else if (extent->status == EXTENT_PACKED)
                ok = image_discard(unit->target, extent->offset, extent->length, &done_offset, &done_length,
                                   error);
            if (!ok)
                return false;
        }
    }
    return true;
}

/* From the frontier on the target shall be as it was when it was created.  `reads_zero`: it is, without a
 * byte of rest.  Zeros in a child would hide its parent where the source has holes; what an earlier run left
 * there came from the same source, which has not changed, and is written once more. */
static bool empty_rest(struct copy_unit *unit, bool *reads_zero, GError **error)
{
    const char *preallocation = g_hash_table_lookup(unit->options, "preallocation");
    bool falloc = preallocation && strcmp(preallocation, "falloc") == 0;
    uint64_t done_offset, done_length;

    *reads_zero = !unit->device && !image_is_differencing(unit->target);
    if (image_is_differencing(unit->target))
        return true;
    if (!unit->device && (falloc || (preallocation && strcmp(preallocation, "metadata") == 0)))
        return empty_in_place(unit, falloc, error);
    if (!image_discard(unit->target, unit->frontier, unit->chain->size - unit->frontier, &done_offset,
                       &done_length, error))
        return false;
    *reads_zero =
        !unit->device && done_offset <= unit->frontier && done_offset + done_length >= unit->chain->size;
    return true;
}

/* What is no image of this size any more, or has damaged tables, is of no use; *why says so then.  A medium
 * that does not answer is an error. */
static bool open_again(const struct cold_job *job, struct copy_unit *unit, char **why, GError **error)
{
    struct image *parent = parent_of(job, unit);
    struct image_check check = {0};
    g_autoptr(GError) local = NULL;

    unit->target = unit_open_parts(unit, &local);
    if (unit->target && unit->target->size < unit->chain->size)
        *why = g_strdup_printf("%s has only %" PRIu64 " bytes", unit->part_path, unit->target->size);
    else if (unit->target && image_check(unit->target, true, &check, &local) && check.corruptions > 0)
        *why = g_strdup_printf("%s has %" PRIu64 " damaged entries", unit->part_path, check.corruptions);
    else if (unit->target && !local && parent)
        image_check_parent(unit->target, parent, &local);
    if (!local)
        return true;
    if (g_error_matches(local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED) ||
        g_error_matches(local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED)) {
        *why = g_strdup(local->message);
        return true;
    }
    g_propagate_error(error, g_steal_pointer(&local));
    return false;
}

/* Space that a crash left counted but unused is given back, and whatever was written behind the
 * checkpoint is forgotten: from there on the image is as fresh as on the first run. */
static bool reopen_target(struct cold_job *job, struct copy_unit *unit, GError **error)
{
    g_autofree char *why = NULL;

    if (!open_again(job, unit, &why, error))
        return false;
    if (why) {
        job_notice(&job->base, "%s: copying it from the beginning", why);
        unit->frontier = 0;
        return true;
    }
    if (!cold_prove_window(job, unit, error))
        return false;
    if (unit->frontier == unit->chain->size)
        return true;
    if (!empty_rest(unit, &unit->target->reads_zero, error))
        return false;
    return image_flush(unit->target, error);
}

/* What the storage cannot do and the administrator should know; and what the copier must not do on it. */
static void prepare_storage(const struct cold_job *job, const struct image *target)
{
    if (target->cluster_size < 4096)
        image_files_avoid_direct(target);
    if (!image_files_lockable(target))
        job_notice(&job->base,
                   "%s: its file system has no locks: nothing keeps other programs from writing to it",
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
    return journal_checkpoint_forget(job->base.journal, job->base.record, unit->index, error) &&
           create_target(job, unit, error);
}

/* What all runs of the job did to this unit: the copier knows only of its own. */
static void add_counters(const struct copy_unit *unit, const struct copy_counters *now,
                         struct copy_counters *total)
{
    const struct copy_counters *before = &unit->before;

    *total = *now;
    total->total = unit->chain->size;
    total->data_total = unit->data;
    total->data_done += before->data_done;
    total->bytes_read += before->bytes_read;
    total->bytes_written += before->bytes_written;
    total->bytes_cloned += before->bytes_cloned;
    total->bytes_zero += before->bytes_zero;
    total->bytes_verified += before->bytes_verified;
}

static void progress(void *opaque, const struct copy_counters *counters)
{
    struct base_pass *pass = opaque;
    const struct job_listener *listener = pass->job->base.listener;

    add_counters(pass->unit, counters, &pass->total);
    if (listener->progress)
        listener->progress(listener->opaque, "base", &pass->total);
}

/* Ranges ascend: an earlier run stopped below where this one began.  One that was cut there is whole again.
 */
static GArray *all_bad(const struct copy_unit *unit, const GArray *now)
{
    GArray *all = g_array_new(FALSE, FALSE, sizeof(struct copy_range));

    if (unit->bad)
        g_array_append_vals(all, unit->bad->data, unit->bad->len);
    for (guint i = 0; now && i < now->len; i++) {
        const struct copy_range *range = &g_array_index(now, struct copy_range, i);
        struct copy_range *last = all->len ? &g_array_index(all, struct copy_range, all->len - 1) : NULL;

        if (last && last->offset + last->length == range->offset)
            last->length += range->length;
        else
            g_array_append_val(all, *range);
    }
    return all;
}

static bool cancelled(void *opaque)
{
    struct base_pass *pass = opaque;
    const struct job_listener *listener = pass->job->base.listener;

    return listener->cancelled && listener->cancelled(listener->opaque);
}

/* The copier calls this with the target flushed up to `frontier`: only now may the journal say so. */
static bool checkpoint(void *opaque, uint64_t frontier, const struct copy_map_sum *sum, GError **error)
{
    struct base_pass *pass = opaque;
    struct copy_unit *unit = pass->unit;
    struct copy_counters total;
    uint64_t to = (frontier + DIGEST_CHUNK_SIZE - 1) / DIGEST_CHUNK_SIZE;
    g_autoptr(GBytes) digests = digest_table_pack(unit->digests, unit->saved / DIGEST_CHUNK_SIZE, to);
    g_autoptr(GArray) bad = all_bad(unit, pass->result.bad);
    struct journal_checkpoint record;

    add_counters(unit, &pass->result.counters, &total);
    record = (struct journal_checkpoint){.frontier = frontier,
                                         .map_sum_low = sum->low,
                                         .map_sum_high = sum->high,
                                         .bytes_read = total.bytes_read,
                                         .bytes_written = total.bytes_written,
                                         .bytes_zero = total.bytes_zero,
                                         .bytes_cloned = total.bytes_cloned,
                                         .bytes_verified = total.bytes_verified,
                                         .data_done = total.data_done,
                                         .bad = bad};
    if (!journal_checkpoint_save(pass->job->base.journal, pass->job->base.record, unit->index, &record,
                                 digests, error))
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
    struct copy_result *result = &pass.result;
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
    ok = copy_run(unit->chain, unit->target, &options, result, error);
    unit->map_sum = result->map_sum;
    unit->report->engine = result->engine;
    unit->report->bad = all_bad(unit, result->bad);
    add_counters(unit, &result->counters, &unit->report->counters);
    job->base.report->bytes_read += result->counters.bytes_read;
    copy_result_clear(result);
    return ok;
}

bool cold_save_disk(struct cold_job *job, const struct copy_unit *unit, GError **error)
{
    struct journal_disk disk = {.index = unit->index,
                                .source = unit->source_path,
                                .target = unit->target_path,
                                .source_format = unit->report->source_format,
                                .target_format = unit->report->target_format,
                                .source_identity = unit->source_identity,
                                .target_identity = unit->part_path,
                                .size = unit->chain->size,
                                .receipt = unit->report->receipt};

    return journal_disk_save(job->base.journal, job->base.record, &disk, error);
}

static bool save_disks(struct cold_job *job, GError **error)
{
    for (guint i = 0; i < job->units->len; i++) {
        const struct copy_unit *unit = g_ptr_array_index(job->units, i);
        if (!cold_save_disk(job, unit, error))
            return false;
    }
    return true;
}

bool cold_base(struct job *base, GError **error)
{
    struct cold_job *job = cold_of(base);
    const struct job_listener *listener = job->base.listener;

    if (job->base.already_there)
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
