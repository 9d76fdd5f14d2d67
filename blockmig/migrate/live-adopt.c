/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Adopting a machine that has opened layers by their names: it was started anew in the middle of a move, or
 * the snapshot was interrupted.
 *
 * It reads and writes what it should, but the hypervisor opens files again by name, and these names are about
 * to change.  So it gets one more overlay and, below that, the same chain a second time, from nodes of ours
 * by descriptor: now it is as if nothing had happened.
 */
#include "blockmig/migrate/live.h"
#include "blockmig/storage/file.h"

#include <unistd.h>

static struct vm_layer *layer_at(const struct live_disk *disk, unsigned i)
{
    return g_ptr_array_index(disk->vm->layers, i);
}

static bool is_needed(const struct live_disk *disk)
{
    return disk->by_name || disk->topped;
}

static char *present_node(const struct live_job *job, const struct live_disk *disk)
{
    return disk->topped    ? live_next_node(job, disk)
           : disk->by_name ? g_strdup(layer_at(disk, 0)->node)
                           : live_top_node(job, disk);
}

static char *adopted_node(const struct live_job *job, const struct live_disk *disk)
{
    return is_needed(disk) ? live_next_node(job, disk) : live_top_node(job, disk);
}

/* Where the next overlay stands before it takes the disk's name. */
static char *next_path(const struct live_disk *disk)
{
    return live_numbered(disk, disk->by_exchange ? disk->top : disk->top + 1);
}

static bool put_on(struct live_job *job, struct live_disk *disk, GError **error)
{
    g_autofree char *path = next_path(disk), *node = live_next_node(job, disk);
    struct vm_snapshot snapshot = {.node = layer_at(disk, 0)->node};
    bool ok;
    int file;

    if (!live_descriptor(path, &file, error))
        return false;
    snapshot.overlay = live_node(disk, node, path, format_qcow2.name, NULL, &file, false);
    ok = vm_snapshot(job->vm, &snapshot, 1, error);
    live_close_descriptor(file);
    return ok;
}

/* What an interrupted run had opened. */
static void remove_layers(struct live_job *job, struct live_disk *disk)
{
    for (unsigned layer = disk->top + 1; layer-- > 0;) {
        g_autofree char *node = live_layer_node(job, disk, layer);

        vm_remove_node(job->vm, node, NULL);
    }
}

/* From the base up, each over the one before. */
static bool open_layers(struct live_job *job, struct live_disk *disk, GError **error)
{
    const struct vm_layer *below =
        disk->vm->layers->len > disk->top + 1 ? layer_at(disk, disk->top + 1) : NULL;
    g_autofree char *backing = below ? g_strdup(below->node) : NULL;

    remove_layers(job, disk);
    for (unsigned layer = 0; layer <= disk->top; layer++) {
        g_autofree char *path = live_layer_path(disk, layer);
        char *node = live_layer_node(job, disk, layer);
        bool ok = live_add_node(job, disk, node, path, layer ? format_qcow2.name : disk->source_format->name,
                                backing, true, error);

        g_free(backing);
        backing = node;
        if (!ok)
            return false;
    }
    return true;
}

static bool replace_layers(struct live_job *job, struct live_disk *disk, GError **error)
{
    g_autofree char *next = live_next_node(job, disk), *top = live_top_node(job, disk);

    disk->based = (disk->topped || put_on(job, disk, error)) && open_layers(job, disk, error) &&
                  live_set_backing(job, disk, next, top, error);
    return disk->based;
}

static bool take_over(struct live_job *job, struct live_disk *disk, GError **error)
{
    if ((disk->by_name && !replace_layers(job, disk, error)) ||
        !live_layer_take_name(disk, disk->top + 1, error))
        return false;
    disk->top++;
    return true;
}

/* They were the machine's own.  Those that it made up itself vanish by themselves. */
static void close_own(struct live_job *job, struct live_disk *disk)
{
    for (unsigned i = 0; i < disk->top; i++) {
        const struct vm_layer *layer = layer_at(disk, i);

        if (layer->node[0] != '#')
            vm_remove_node(job->vm, layer->node, NULL);
        if (layer->node[0] != '#' && layer->protocol_node && layer->protocol_node[0] != '#')
            vm_remove_node(job->vm, layer->protocol_node, NULL);
    }
    g_ptr_array_remove_range(disk->vm->layers, 0, disk->top - 1);
}

static bool any_needed(const struct live_job *job)
{
    for (guint i = 0; i < job->disks->len; i++)
        if (is_needed(live_disk_at(job, i)))
            return true;
    return false;
}

/* What lies there is empty: the machine's chain ends with what has the disk's name. */
static bool prepare(struct live_job *job, struct live_disk *disk, GError **error)
{
    g_autofree char *path = next_path(disk);

    if (disk->topped)
        return true;
    unlink(path);
    return live_layer_create(job, disk, disk->top + 1, error);
}

bool live_adopt(struct live_job *job, GError **error)
{
    bool ok = true;

    if (!any_needed(job))
        return true;
    if (!job_event(&job->base, "intent", error, "replace the layers that the machine opened by name"))
        return false;
    for (guint i = 0; i < job->disks->len; i++)
        if (is_needed(live_disk_at(job, i)) && !prepare(job, live_disk_at(job, i), error))
            return false;
    /* As long as the machine stands still, what it was on is as good as the overlay. */
    ok = live_pause(job, present_node, adopted_node, NULL, error) && live_pause_merged(job, error);
    for (guint i = 0; ok && i < job->disks->len; i++)
        if (is_needed(live_disk_at(job, i)))
            ok = take_over(job, live_disk_at(job, i), error);
    if (!live_resume(job, NULL, ok ? error : NULL) || !ok)
        return false;
    for (guint i = 0; i < job->disks->len; i++) {
        struct live_disk *disk = live_disk_at(job, i);

        if (disk->by_name)
            close_own(job, disk);
        disk->by_name = disk->topped = false;
    }
    return job_event(&job->base, "result", error, "the machine writes to an overlay of ours again");
}
