/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The base phase: every unit is created or taken up again, and filled by the copier. */
#include "blockmig/migrate/cold.h"
#include "blockmig/storage/agent-client.h"
#include "blockmig/storage/image-files.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

struct base_pass {
    struct cold_job *job;
    struct copy_unit *unit;
    struct copy_result result;  /* of this run, while it goes on */
    struct copy_counters total; /* of all runs */
};

struct image *cold_parent_of(const struct cold_job *job, const struct copy_unit *unit)
{
    const struct copy_unit *before = unit->index > 0 ? g_ptr_array_index(job->units, unit->index - 1) : NULL;

    if (!unit->backing_name)
        return NULL;
    return before ? before->target : chain_layer(unit->below, 0);
}

static bool create_target(struct cold_job *job, struct copy_unit *unit, GError **error)
{
    struct image_create_options options = unit_create_options(unit);

    options.parent = cold_parent_of(job, unit);
    checkpoint_begin(&unit->done, job->request->digest, unit->chain->size);
    unit->target = unit_create_parts(job, unit, &options, error);
    if (unit->target && unit->target->size != unit->chain->size)
        job_notice(
            &job->base,
            "%s: the disk has %" PRIu64 " bytes where the source has %" PRIu64
            ": the rest is zeros; if it has a GPT, the copy of its header must be moved to the new end",
            unit->target_path, unit->target->size, unit->chain->size);
    return unit->target != NULL;
}

static struct image *open_parts(void *opaque, bool writable, GError **error)
{
    return writable ? unit_open_parts(opaque, error) : cold_reopen(opaque, error);
}

static bool take_up_target(struct cold_job *job, struct copy_unit *unit, GError **error)
{
    const struct checkpoint_target left = {.open = open_parts,
                                           .opaque = unit,
                                           .size = unit->chain->size,
                                           .parent = cold_parent_of(job, unit),
                                           .preallocation =
                                               g_hash_table_lookup(unit->options, "preallocation"),
                                           .device = unit->device};
    struct copy_options how = {.salvage = job->request->salvage};

    cold_copy_options(job, &how);
    return checkpoint_take_up(&unit->done, &job->base, &left, &how, &unit->target, error);
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
    job_storage_notice(&job->base, target->storage, NULL);
}

static bool open_target(struct cold_job *job, struct copy_unit *unit, GError **error)
{
    if (unit->done.frontier > 0 && !take_up_target(job, unit, error))
        return false;
    if (unit->target)
        return true;
    return journal_checkpoint_forget(job->base.journal, job->base.record, unit->index, error) &&
           create_target(job, unit, error);
}

/* What all runs of the job did to this unit. */
static void add_counters(const struct copy_unit *unit, const struct copy_counters *now,
                         struct copy_counters *total)
{
    checkpoint_add_counters(&unit->done, now, total);
    total->total = unit->chain->size;
    total->data_total = unit->data;
}

static void progress(void *opaque, const struct copy_counters *counters)
{
    struct base_pass *pass = opaque;
    const struct job_listener *listener = pass->job->base.listener;

    add_counters(pass->unit, counters, &pass->total);
    if (listener->progress)
        listener->progress(listener->opaque, "base", &pass->total);
}

static bool cancelled(void *opaque)
{
    struct base_pass *pass = opaque;
    const struct job_listener *listener = pass->job->base.listener;

    return listener->cancelled && listener->cancelled(listener->opaque);
}

/* The copier calls this with the target flushed up to `frontier`. */
static bool checkpoint(void *opaque, uint64_t frontier, const struct copy_map_sum *sum, GError **error)
{
    struct base_pass *pass = opaque;

    pass->result.map_sum = *sum;
    return checkpoint_save(&pass->unit->done, &pass->job->base, pass->unit->index, frontier, &pass->result,
                           error);
}

static bool copy_unit(struct cold_job *job, struct copy_unit *unit, GError **error)
{
    struct base_pass pass = {.job = job, .unit = unit};
    const char *preallocation = g_hash_table_lookup(unit->options, "preallocation");
    struct copy_options options = {0};
    struct copy_result *result = &pass.result;
    g_autoptr(throttle_t) throttle = throttle_new(job->request->bandwidth);
    uint64_t wire = agent_wire_bytes(), seeded = agent_seeded_bytes();
    bool ok;

    if (!cold_shift_seed(job, unit, cancelled, &pass, error))
        return false;
    cold_copy_options(job, &options);
    options.start = unit->done.frontier;
    options.read_back = job->request->verify != VERIFY_NONE;
    options.write_zeroes = preallocation && strcmp(preallocation, "full") == 0;
    options.compress = job->request->compressed;
    options.salvage = job->request->salvage;
    options.throttle = throttle;
    options.seed = job->seed;
    options.digests = unit->done.digests;
    options.map_sum = unit->done.map_sum;
    options.target_backing = unit->below;
    options.checkpoint = checkpoint;
    options.progress = progress;
    options.cancelled = cancelled;
    options.opaque = &pass;
    ok = copy_run(unit->chain, unit->target, &options, result, error);
    unit->done.map_sum = result->map_sum;
    unit->report->engine = result->engine;
    unit->report->bytes_wire = agent_wire_bytes() - wire;
    unit->report->bytes_seeded = agent_seeded_bytes() - seeded;
    unit->report->bad = checkpoint_all_bad(&unit->done, result->bad);
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
        if (!cold_save_disk(job, unit, error) || !cold_tell_place(job, unit, error))
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
        const char *told;

        if (listener->phase)
            listener->phase(listener->opaque, "base", unit->what);
        if (!open_target(job, unit, error))
            return false;
        prepare_storage(job, unit->target);
        told = unit->target->storage->notice;
        if (!copy_unit(job, unit, error))
            return false;
        job_storage_notice(&job->base, unit->target->storage, told);
    }
    return true;
}
