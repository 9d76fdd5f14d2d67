/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The snapshot phase: an overlay over every disk, so that what lies below is frozen.
 *
 * The hypervisor opens the old image again by its name when it becomes read-only.  Where it can be told to
 * keep the file open (vm_keep_open), names may change at any time: the overlay takes the disk's name first,
 * empty, over an image that the machine still writes, and then the machine is put on it while it runs.
 *
 * Where it cannot, the machine stands still for a few milliseconds and the order is the other one: the
 * overlay is put on, the old image is replaced by a node of our own descriptors, and the names change last.
 * Until then nothing was written to the overlay and the name leads to the whole truth.
 */
#include "blockmig/migrate/live.h"

#include <unistd.h>

bool live_save_disk(struct live_job *job, const struct live_disk *disk, GError **error)
{
    g_autofree char *tag = g_strdup_printf("%08x", job->tag), *base = live_base_node(job, disk);
    struct journal_disk record = {.index = disk->index,
                                  .source = disk->name,
                                  .target = disk->target_path,
                                  .source_format = (char *)disk->source_format->name,
                                  .target_format = (char *)disk->format->name,
                                  .source_identity = disk->vm->qdev,
                                  .target_identity = tag,
                                  .size = disk->size,
                                  .receipt = disk->report->receipt,
                                  .frozen = disk->frozen,
                                  .base_node = base};

    return journal_disk_save(job->base.journal, job->base.record, &record, error);
}

static bool create_overlays(struct live_job *job, GError **error)
{
    if (!live_save_lowers(job, error))
        return false;
    for (guint i = 0; i < job->disks->len; i++)
        if (!live_save_disk(job, live_disk_at(job, i), error) ||
            !live_layer_create(job, live_disk_at(job, i), 1, error))
            return false;
    return true;
}

bool live_overlays_add(struct live_job *job, live_node_fn below, live_node_fn node, live_path_fn path,
                       GError **error)
{
    unsigned count = job->disks->len, open = 0;
    g_autofree struct vm_snapshot *snapshots = g_new0(struct vm_snapshot, count);
    g_autofree int *files = g_new(int, count);
    g_autoptr(GPtrArray) strings = g_ptr_array_new_with_free_func(g_free);
    bool ok = true;

    for (; ok && open < count; open += ok) {
        struct live_disk *disk = live_disk_at(job, open);
        char *under = below(job, disk), *name = node(job, disk), *file = path(disk);

        g_ptr_array_add(strings, under);
        g_ptr_array_add(strings, name);
        g_ptr_array_add(strings, file);
        ok = live_descriptor(file, &files[open], error);
        snapshots[open].node = under;
        snapshots[open].overlay = live_node(disk, name, file, format_qcow2.name, NULL, &files[open], false);
    }
    ok = ok && vm_snapshot(job->vm, snapshots, count, error);
    while (open-- > 0)
        live_close_descriptor(files[open]);
    return ok;
}

static char *present_node(const struct live_job *job, const struct live_disk *disk)
{
    return disk->top ? live_top_node(job, disk) : live_base_node(job, disk);
}

static char *next_path(const struct live_disk *disk)
{
    return live_layer_path(disk, disk->top + 1);
}

/* Overlay `top + 1` of every disk. */
static bool add_overlays(struct live_job *job, GError **error)
{
    if (!live_overlays_add(job, present_node, live_next_node, next_path, error))
        return false;
    job->pace.layered = g_get_monotonic_time();
    for (guint i = 0; i < job->disks->len; i++) {
        live_disk_at(job, i)->snapshotted = true;
        live_disk_at(job, i)->top++;
    }
    return true;
}

/* Undoes take_names() for the first `count` disks. */
static void return_names(struct live_job *job, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        live_layer_return_name(live_disk_at(job, i), live_disk_at(job, i)->top + 1, NULL);
}

/* For the overlays that are about to be put on. */
static bool take_names(struct live_job *job, GError **error)
{
    for (guint i = 0; i < job->disks->len; i++) {
        struct live_disk *disk = live_disk_at(job, i);

        if (!live_layer_take_name(disk, disk->top + 1, error)) {
            return_names(job, i);
            return false;
        }
    }
    return true;
}

/* The machine runs: the fresh overlay takes the name first, and both it and what it stands on are the truth.
 */
static bool layer_running(struct live_job *job, GError **error)
{
    double *average = &job->pace.layer_time, time;
    int64_t begin;

    if (!take_names(job, error))
        return false;
    begin = g_get_monotonic_time();
    if (add_overlays(job, error)) {
        time = (double)(g_get_monotonic_time() - begin) / G_USEC_PER_SEC;
        *average = *average > 0 ? (*average + time) / 2 : time;
        return true;
    }
    return_names(job, job->disks->len);
    return false;
}

/* Layer 0 becomes a node of ours, whatever was made of its name. */
static bool rebase(struct live_job *job, struct live_disk *disk, GError **error)
{
    g_autofree char *base = live_layer_node(job, disk, 0), *overlay = live_layer_node(job, disk, 1);
    const struct vm_layer *below = disk->vm->layers->len > 1 ? g_ptr_array_index(disk->vm->layers, 1) : NULL;

    if (!live_add_node(job, disk, base, disk->name, disk->source_format->name, below ? below->node : NULL,
                       true, error))
        return false;
    disk->based = live_set_backing(job, disk, overlay, base, error);
    if (!disk->based)
        vm_remove_node(job->vm, base, NULL);
    return disk->based;
}

static bool freeze(struct live_job *job, GError **error)
{
    if (!add_overlays(job, error))
        return false;
    live_step(job, "overlay");
    for (guint i = 0; i < job->disks->len; i++)
        if (!rebase(job, live_disk_at(job, i), error))
            return false;
    live_step(job, "base");
    for (guint i = 0; i < job->disks->len; i++)
        if (!live_layer_take_name(live_disk_at(job, i), 1, error))
            return false;
    live_step(job, "name");
    return true;
}

static bool layer_stopped(struct live_job *job, GError **error)
{
    int64_t stopped, resumed;
    bool ok;

    /* While the machine stands still the overlay and what it stands on are equally good. */
    ok = live_pause(job, live_base_node, live_next_node, &stopped, error) && live_pause_merged(job, error) &&
         freeze(job, error);
    if (!live_resume(job, &resumed, ok ? error : NULL) || !ok)
        return false;
    if (stopped && resumed)
        job->base.report->snapshot_pause_ms = (double)(resumed - stopped) / 1000;
    for (guint i = 0; i < job->disks->len; i++)
        vm_forget_file(job->vm, live_disk_at(job, i)->name, NULL); /* the machine's own nodes of layer 0 */
    return job_event(&job->base, "result", error, "overlays are on; the machine stood still for %.1f ms (%s)",
                     job->base.report->snapshot_pause_ms, job->steps->str);
}

/* Can all of them be had without standing still? */
static bool hold_files(struct live_job *job)
{
    for (guint i = 0; i < job->disks->len; i++) {
        g_autoptr(GError) local = NULL;

        if (vm_keep_open(job->vm, live_disk_at(job, i)->vm, &local))
            continue;
        live_tell(job, "the machine stands still for a moment: %s", local->message);
        return false;
    }
    return true;
}

static bool layer_first(struct live_job *job, GError **error)
{
    if (!hold_files(job))
        return layer_stopped(job, error);
    return layer_running(job, error) &&
           job_event(&job->base, "result", error, "overlays are on; the machine ran on");
}

bool live_snapshot(struct job *base, GError **error)
{
    struct live_job *job = live_of(base);
    bool ok;

    if (!create_overlays(job, error) ||
        !job_event(base, "intent", error, "overlays over %u disks", job->disks->len))
        return false;
    if (!live_freeze(job, error))
        return false;
    ok = layer_first(job, error) && live_held(job, error);
    live_thaw(job, &base->report->snapshot_frozen_ms);
    for (guint i = 0; ok && i < job->disks->len; i++)
        if (!live_device_freeze(live_disk_at(job, i), true))
            job_notice(base,
                       "%s: cannot be made read-only: until the move is over, only %s keeps others from "
                       "writing to it",
                       live_disk_at(job, i)->name,
                       storage_name_is_uri(live_disk_at(job, i)->name) ? "its server"
                                                                       : "this process's lock");
    return ok;
}

bool live_layers_add(struct live_job *job, GError **error)
{
    for (guint i = 0; i < job->disks->len; i++) {
        struct live_disk *disk = live_disk_at(job, i);

        if (!live_layer_create(job, disk, disk->top + 1, error))
            return false;
    }
    return layer_running(job, error);
}
