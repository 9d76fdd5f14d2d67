/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Snapshot, base and converge of a domain: the disk is frozen under an overlay and copied; what was written
 * meanwhile is frozen under the next, and shipped, until that is little.
 */
#include "blockmig/migrate/live.h"
#include "blockmig/migrate/machine.h"
#include "blockmig/migrate/target.h"
#include "blockmig/migrate/units.h"
#include "blockmig/storage/file.h"
#include "blockmig/storage/names.h"
#include "blockmig/storage/uri.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <string.h>

#define MAX_PASSES  12u
#define SMALL_BYTES (UINT64_C(4) << 20)  /* what is not worth another pass */
#define SHRINKS     0.75                 /* a pass of less than this part of the one before is */
#define PATIENCE    (5 * G_USEC_PER_SEC) /* with a hypervisor that is about to leave an image */

/* ---- snapshots ----------------------------------------------------------------------------------- */

static bool create_overlays(struct machine_job *job, GError **error)
{
    for (guint i = 0; i < job->disks->len; i++) {
        struct machine_disk *disk = machine_disk_at(job, i);
        g_autofree char *path = machine_layer_path(disk, disk->top + 1);
        g_autofree char *below = machine_layer_path(disk, disk->top);
        g_autofree char *name = target_backing_name(path, below);
        const char *format = disk->top ? format_qcow2.name : disk->source_format->name;

        if (!machine_create_overlay(path, disk->size, name, format, error))
            return false;
    }
    return true;
}

/* libvirt may have failed after the hypervisor did it: whoever recovers looks at what is left. */
static void remove_next(const struct machine_job *job)
{
    for (guint i = 0; i < job->disks->len; i++) {
        const struct machine_disk *disk = machine_disk_at(job, i);

        machine_remove_spare_overlay(disk, disk->top + 1);
    }
}

static bool freeze(struct machine_job *job, bool quiesce, GError **error)
{
    g_autofree struct domain_overlay *overlays = g_new0(struct domain_overlay, job->disks->len);
    g_autoptr(GPtrArray) paths = g_ptr_array_new_with_free_func(g_free);
    int64_t begin;
    bool ok;

    for (guint i = 0; i < job->disks->len; i++) {
        const struct machine_disk *disk = machine_disk_at(job, i);

        g_ptr_array_add(paths, machine_layer_path(disk, disk->top + 1));
        overlays[i] = (struct domain_overlay){disk->name, g_ptr_array_index(paths, i)};
    }
    begin = g_get_monotonic_time();
    ok = domain_snapshot(job->domain, overlays, job->disks->len, job->others, quiesce, error);
    job->layer_time = (double)(g_get_monotonic_time() - begin) / G_USEC_PER_SEC;
    return ok;
}

/* With the guest's file systems frozen if that is asked for and can be had. */
static bool freeze_as_asked(struct machine_job *job, bool quiesce, GError **error)
{
    g_autoptr(GError) local = NULL;

    if (!quiesce || freeze(job, true, &local))
        return quiesce || freeze(job, false, error);
    if (job->request->quiesce == QUIESCE_REQUIRE) {
        g_propagate_error(error, g_steal_pointer(&local));
        return false;
    }
    job_notice(&job->base, "the guest's file systems are not frozen: %s", local->message);
    return freeze(job, false, error);
}

static bool add_layers(struct machine_job *job, bool quiesce, GError **error)
{
    if (!machine_reach_source(job, error) || !machine_check_layers(job, true, error))
        return false;
    if (!job_event(&job->base, "intent", error, "overlays %u over %u disks", machine_disk_at(job, 0)->top + 1,
                   job->disks->len))
        return false;
    if (!create_overlays(job, error) || !freeze_as_asked(job, quiesce, error)) {
        remove_next(job);
        return false;
    }
    for (guint i = 0; i < job->disks->len; i++)
        machine_disk_at(job, i)->top++;
    return machine_check_layers(job, true, error);
}

/* All of it, before the first is touched: a later run finds them all, or none. */
static bool save_machine(struct machine_job *job, GError **error)
{
    if (!machine_save_state(job, error))
        return false;
    for (guint i = 0; i < job->disks->len; i++)
        if (!machine_save_disk(job, machine_disk_at(job, i), error))
            return false;
    return true;
}

bool machine_snapshot(struct job *base, GError **error)
{
    struct machine_job *job = machine_of(base);

    if (!save_machine(job, error))
        return false;
    /* What is copied by nobody needs no freezing. */
    return job->disks->len == 0 || add_layers(job, job->request->quiesce != QUIESCE_NO, error);
}

/* ---- the base ------------------------------------------------------------------------------------ */

static bool create_target(struct machine_job *job, struct machine_disk *disk, GError **error)
{
    struct image_create_options options = {.size = disk->size,
                                           .values = disk->options,
                                           .backing_name = disk->backing_name,
                                           .backing_format = disk->backing_format};

    disk->target = target_create(&job->base, disk->target_name, false, disk->format, &options,
                                 chain_layer(disk->base, 0)->storage, &disk->created, error);
    return disk->target != NULL;
}

/* ---- one that an earlier run began --- */

static struct image *open_left(void *opaque, bool writable, GError **error)
{
    const struct machine_disk *disk = opaque;

    return machine_open_image(disk->target_name, disk->format, writable ? FILE_WRITE : FILE_NO_LOCK, error);
}

/* What it had shipped of overlays is shipped once more. */
static bool take_up_target(struct machine_job *job, struct machine_disk *disk, GError **error)
{
    const struct checkpoint_target left = {.open = open_left,
                                           .opaque = disk,
                                           .size = disk->size,
                                           .preallocation =
                                               g_hash_table_lookup(disk->options, "preallocation"),
                                           .changed = disk->done.frontier == disk->size};
    struct copy_options how = {0};

    machine_copy_options(job, &how);
    how.progress = NULL;
    return checkpoint_take_up(&disk->done, &job->base, &left, &how, &disk->target, error);
}

/* Nobody may have written below the overlays, if there are any. */
static bool check_source(struct machine_job *job, struct machine_disk *disk, GError **error)
{
    bool certain;
    g_autofree char *identity = checkpoint_source_identity(disk->base, &certain, error);

    if (!identity)
        return false;
    if (disk->done.frontier > 0 && (!certain || g_strcmp0(identity, disk->frozen) != 0)) {
        job_notice(&job->base, "%s may have changed since it was copied: copying it from the beginning",
                   disk->path);
        disk->done.frontier = 0;
    }
    g_free(disk->frozen);
    disk->frozen = g_steal_pointer(&identity);
    return machine_save_disk(job, disk, error);
}

static bool open_target(struct machine_job *job, struct machine_disk *disk, GError **error)
{
    if (disk->done.frontier > 0 && !take_up_target(job, disk, error))
        return false;
    if (disk->target)
        return true;
    checkpoint_begin(&disk->done, job->request->digest, disk->size);
    return journal_checkpoint_forget(job->base.journal, job->base.record, disk->index, error) &&
           (!disk->created || name_remove(disk->target_name, error)) && create_target(job, disk, error);
}

/* ---- copying --- */

/* It is of no use any more. */
static void leave_seed(const struct machine_job *job, struct machine_disk *disk)
{
    g_autofree char *all = units_format_size(disk->report->counters.bytes_written);
    g_autofree char *seeded = units_format_size(disk->report->bytes_seeded);

    if (disk->seed)
        machine_tell(job, "%s: %s of %s were in %s already", disk->name, seeded, all,
                     chain_layer(disk->seed, 0)->name);
    g_clear_pointer(&disk->seed, chain_close);
}

static bool copy_base(struct machine_job *job, struct machine_disk *disk, GError **error)
{
    struct copy_options options = {0};
    uint64_t wire = agent_wire_bytes(), seeded = agent_seeded_bytes();
    bool ok;

    machine_copy_options(job, &options);
    options.seed = disk->seed;
    ok = checkpoint_copy(&disk->done, &job->base, disk->index, disk->base, disk->target, &options,
                         disk->report, error);
    disk->report->bytes_wire += agent_wire_bytes() - wire;
    disk->report->bytes_seeded = agent_seeded_bytes() - seeded;
    return ok;
}

/* The digests are of what the guest sees: with layers below they cannot be had by reading the top one. */
static bool copy_top(struct machine_job *job, struct machine_disk *disk, GError **error)
{
    struct copy_map_sum sum;

    checkpoint_clear(&disk->done);
    return machine_copy_layer(job, disk, disk->target, 0, NULL, disk->report, &sum, error);
}

static bool copy_disk(struct machine_job *job, struct machine_disk *disk, GError **error)
{
    bool ok = disk->backing_name ? copy_top(job, disk, error)
                                 : disk->done.frontier == disk->size || copy_base(job, disk, error);

    if (ok)
        leave_seed(job, disk);
    return ok;
}

static bool copy_bases(struct machine_job *job, GError **error)
{
    for (guint i = 0; i < job->disks->len; i++) {
        struct machine_disk *disk = machine_disk_at(job, i);

        disk->base = machine_open_layers(disk, 0, 0, error);
        if (!disk->base || !check_source(job, disk, error) || !machine_copy_below(job, disk, error))
            return false;
        machine_tell(job, "%s", disk->name);
        if (!open_target(job, disk, error) || !copy_disk(job, disk, error))
            return false;
    }
    return true;
}

bool machine_base(struct job *base, GError **error)
{
    struct machine_job *job = machine_of(base);
    bool ok;

    if (base->method == &method_machine_cold && !job->left && !save_machine(job, error))
        return false;
    if (!machine_copy_files(job, error))
        return false;
    machine_share_begin(job);
    ok = copy_bases(job, error);
    machine_share_end(job);
    base->report->passes = 1;
    return ok;
}

/* ---- what was written meanwhile ------------------------------------------------------------------ */

bool machine_ship(struct machine_job *job, struct machine_disk *disk, unsigned to, GError **error)
{
    g_autoptr(chain_t) overlays = NULL, below = machine_below(disk);
    struct copy_options options = {0};
    struct copy_result result = {0};
    uint64_t wire = agent_wire_bytes();
    bool ok;

    if (disk->merged == to)
        return true;
    overlays = machine_open_layers(disk, disk->merged + 1, to, error);
    if (!overlays)
        return false;
    machine_copy_options(job, &options);
    options.patch = true;
    options.target_backing = below;
    disk->target->reads_zero = false; /* there is data already: zeros have to be written */
    ok = copy_run(overlays, disk->target, &options, &result, error);
    job->last_bytes += result.counters.bytes_written;
    copy_counters_add(&disk->report->counters, &result.counters);
    disk->report->bytes_wire += agent_wire_bytes() - wire;
    if (job->stopped)
        disk->report->bytes_in_pause += result.counters.bytes_written;
    copy_result_clear(&result);
    if (ok)
        disk->merged = to;
    return ok;
}

bool machine_close_targets(struct machine_job *job, GError **error)
{
    for (guint i = 0; i < job->disks->len; i++) {
        struct machine_disk *disk = machine_disk_at(job, i);

        if (disk->target && !storage_flush(disk->target->storage, error))
            return false;
        g_clear_pointer(&disk->target, image_close);
    }
    return true;
}

static bool pass(struct machine_job *job, GError **error)
{
    int64_t begin;
    g_autofree char *size = NULL;
    double time;

    if (machine_is_cancelled(job, error) || !add_layers(job, false, error))
        return false;
    begin = g_get_monotonic_time();
    job->last_bytes = 0;
    for (guint i = 0; i < job->disks->len; i++) {
        struct machine_disk *disk = machine_disk_at(job, i);

        if (!machine_ship(job, disk, disk->top - 1, error))
            return false;
    }
    time = (double)(g_get_monotonic_time() - begin) / G_USEC_PER_SEC;
    job->base.report->passes++;
    job->base.report->ship_rate = time > 0 ? (double)job->last_bytes / time : -1;
    size = units_format_size(job->last_bytes);
    machine_tell(job, "shipped %s in %.0f ms", size, time * 1000);
    return job_event(&job->base, "result", error, "pass %u: %s shipped in %.1f ms", job->base.report->passes,
                     size, time * 1000);
}

bool machine_converge(struct job *base, GError **error)
{
    struct machine_job *job = machine_of(base);
    uint64_t before = UINT64_MAX;

    for (unsigned passes = 0; job->disks->len && passes < MAX_PASSES; passes++) {
        if (!pass(job, error))
            return false;
        if (job->last_bytes < SMALL_BYTES || (double)job->last_bytes >= SHRINKS * (double)before)
            break;
        before = job->last_bytes;
    }
    return true;
}

bool machine_open_targets_again(struct machine_job *job, GError **error)
{
    for (guint i = 0; i < job->disks->len; i++) {
        struct machine_disk *disk = machine_disk_at(job, i);

        disk->target = machine_open_image(disk->target_name, disk->format, FILE_WRITE | FILE_NO_LOCK, error);
        if (!disk->target)
            return false;
    }
    return true;
}

/* Whoever had it open is about to be gone. */
static struct image *open_left_target(struct machine_disk *disk, GError **error)
{
    int64_t until = g_get_monotonic_time() + PATIENCE;

    for (;;) {
        GError *local = NULL;
        struct image *target = open_left(disk, true, &local);

        if (target || g_get_monotonic_time() > until) {
            if (local)
                g_propagate_error(error, local);
            return target;
        }
        g_error_free(local);
        g_usleep(G_USEC_PER_SEC / 20);
    }
}

bool machine_take_targets_back(struct machine_job *job, GError **error)
{
    for (guint i = 0; i < job->disks->len; i++) {
        struct machine_disk *disk = machine_disk_at(job, i);

        if (!name_remove(disk->overlay_name, error) || !(disk->target = open_left_target(disk, error)))
            return false;
        if (disk->target->cluster_size < 4096)
            storage_file_avoid_direct(disk->target->storage);
    }
    return true;
}
