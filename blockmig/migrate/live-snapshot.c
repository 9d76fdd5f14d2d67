/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The snapshot phase: an overlay over every disk, so that what lies below is frozen.
 *
 * The machine stands still for it, a few milliseconds.  The order in the pause matters.  The hypervisor opens
 * the old image again by its name when it becomes read-only, so the names are exchanged last, when it reads
 * that image by our descriptors.  Until then nothing was written to the overlay and the name leads to the
 * whole truth; afterwards it leads to the overlay, whose header names what it stands on.
 */
#include "blockmig/migrate/live.h"

#include <unistd.h>

bool live_save_disk(struct live_job *job, const struct live_disk *disk, GError **error)
{
    g_autofree char *tag = g_strdup_printf("%08x", job->tag);
    struct journal_disk record = {.index = disk->index,
                                  .source = disk->name,
                                  .target = disk->target_path,
                                  .source_format = (char *)disk->source_format->name,
                                  .target_format = (char *)disk->format->name,
                                  .source_identity = disk->vm->qdev,
                                  .target_identity = tag,
                                  .size = disk->size,
                                  .receipt = disk->report->receipt};

    return journal_disk_save(job->base.journal, job->base.record, &record, error);
}

static bool create_overlays(struct live_job *job, GError **error)
{
    for (guint i = 0; i < job->disks->len; i++)
        if (!live_save_disk(job, live_disk_at(job, i), error) ||
            !live_layer_create(job, live_disk_at(job, i), 1, error))
            return false;
    return true;
}

/* In one transaction. */
static bool add_overlays(struct live_job *job, GError **error)
{
    unsigned count = job->disks->len;
    g_autofree struct vm_snapshot *snapshots = g_new0(struct vm_snapshot, count);
    g_autofree int *files = g_new(int, count);
    g_autoptr(GPtrArray) strings = g_ptr_array_new_with_free_func(g_free);
    unsigned open = 0;
    bool ok = true;

    for (unsigned i = 0; ok && i < count; i++) {
        struct live_disk *disk = live_disk_at(job, i);
        unsigned layer = disk->top + 1;
        char *path = layer == 1 || !disk->by_exchange
                         ? live_numbered(disk, disk->by_exchange ? 0 : layer)
                         : g_strdup(disk->name);
        char *below = layer == 1 ? g_strdup(disk->base_node) : live_layer_node(job, disk, layer - 1);
        char *node = live_layer_node(job, disk, layer);

        g_ptr_array_add(strings, path);
        g_ptr_array_add(strings, below);
        g_ptr_array_add(strings, node);
        files[i] = live_descriptor(path, error);
        ok = files[i] >= 0;
        open += ok;
        snapshots[i].node = below;
        snapshots[i].overlay = live_node(disk, node, path, format_qcow2.name, NULL, &files[i], false);
    }
    ok = ok && vm_snapshot(job->vm, snapshots, count, error);
    for (unsigned i = 0; i < open; i++)
        close(files[i]);
    return ok;
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
    job->pace.layered = g_get_monotonic_time();
    for (guint i = 0; i < job->disks->len; i++) {
        live_disk_at(job, i)->snapshotted = true;
        live_disk_at(job, i)->top = 1;
    }
    for (guint i = 0; i < job->disks->len; i++)
        if (!rebase(job, live_disk_at(job, i), error))
            return false;
    live_step(job, "base");
    for (guint i = 0; i < job->disks->len; i++) {
        struct live_disk *disk = live_disk_at(job, i);

        if (!disk->by_exchange)
            continue;
        if (!live_layer_exchange(disk, 1, error))
            return false;
        disk->exchanged = true;
    }
    live_step(job, "name");
    return true;
}

/* They were the machine's own; it has no use for them any more.  Those of -drive have gone by themselves. */
static void remove_old_nodes(struct live_job *job, const struct live_disk *disk)
{
    const struct vm_layer *top = g_ptr_array_index(disk->vm->layers, 0);

    if (top->node[0] != '#')
        vm_remove_node(job->vm, top->node, NULL);
    if (top->protocol_node && top->protocol_node[0] != '#')
        vm_remove_node(job->vm, top->protocol_node, NULL);
}

static void protect_base(struct live_job *job, struct live_disk *disk)
{
    remove_old_nodes(job, disk);
    if (!live_layer_set_immutable(disk, true))
        job_notice(
            &job->base,
            "%s: cannot be made %s: until the move is over, only this process's lock keeps others from "
            "writing to it",
            disk->name, disk->device ? "read-only" : "immutable");
}

bool live_snapshot(struct job *base, GError **error)
{
    struct live_job *job = live_of(base);
    int64_t stopped, resumed;
    bool ok;

    if (!create_overlays(job, error) ||
        !job_event(base, "intent", error, "overlays over %u disks", job->disks->len))
        return false;
    /* While the machine stands still the overlay and what it stands on are equally good. */
    ok = live_pause(job, live_base_node, live_next_node, &stopped, error) && live_pause_merged(job, error) &&
         freeze(job, error);
    if (!live_resume(job, &resumed, ok ? error : NULL) || !ok)
        return false;
    job->pace.overhead = (double)(g_get_monotonic_time() - job->pause_begin) / G_USEC_PER_SEC;
    if (stopped && resumed)
        base->report->snapshot_pause_ms = (double)(resumed - stopped) / 1000;
    for (guint i = 0; i < job->disks->len; i++)
        protect_base(job, live_disk_at(job, i));
    return job_event(base, "result", error, "overlays are on; the machine stood still for %.1f ms (%s)",
                     base->report->snapshot_pause_ms, job->steps->str);
}

/* Undoes the exchange of the first `count` disks. */
static void exchange_back(struct live_job *job, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        struct live_disk *disk = live_disk_at(job, i);

        if (disk->by_exchange)
            live_layer_exchange(disk, disk->top + 1, NULL);
    }
}

/* The machine runs: the fresh overlay takes the name first, and both it and what it stands on are the truth.
 */
bool live_layers_add(struct live_job *job, GError **error)
{
    unsigned exchanged = 0;

    for (guint i = 0; i < job->disks->len; i++) {
        struct live_disk *disk = live_disk_at(job, i);

        if (!live_layer_create(job, disk, disk->top + 1, error))
            return false;
    }
    for (; exchanged < job->disks->len; exchanged++) {
        struct live_disk *disk = live_disk_at(job, exchanged);

        if (disk->by_exchange && !live_layer_exchange(disk, disk->top + 1, error)) {
            exchange_back(job, exchanged);
            return false;
        }
    }
    if (!add_overlays(job, error)) {
        exchange_back(job, exchanged);
        return false;
    }
    job->pace.layered = g_get_monotonic_time();
    for (guint i = 0; i < job->disks->len; i++)
        live_disk_at(job, i)->top++;
    return true;
}
