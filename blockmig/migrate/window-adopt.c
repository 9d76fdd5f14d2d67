/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A machine that was started anew from the target's names while the way back was open has opened the same
 * layers as nodes of its own, by names.  They are put under a fresh layer of ours, as in the snapshot phase
 * and for the same reasons in the same order; then there is no difference any more.
 */
#include "blockmig/migrate/window.h"

#include <unistd.h>

static char *own_node(const struct live_job *job, const struct live_disk *disk)
{
    return g_strdup(disk->vm->node);
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

    for (; ok && open < count; open += ok) {
        struct live_disk *disk = live_disk_at(job, open);
        char *path = live_numbered(disk, disk->top), *node = live_next_node(job, disk);

        g_ptr_array_add(strings, path);
        g_ptr_array_add(strings, node);
        ok = live_descriptor(path, &files[open], error);
        snapshots[open].node = disk->vm->node;
        snapshots[open].overlay = live_node(disk, node, path, format_qcow2.name, NULL, &files[open], false);
    }
    ok = ok && vm_snapshot(job->vm, snapshots, count, error);
    while (open-- > 0)
        live_close_descriptor(files[open]);
    return ok;
}

bool window_open_layers(struct live_job *job, const struct live_disk *disk, unsigned count, GError **error)
{
    for (unsigned layer = 0; layer < count; layer++) {
        const char *format = layer > 0 ? format_qcow2.name : disk->source_format->name;
        g_autofree char *node = live_layer_node(job, disk, layer), *path = live_layer_path(disk, layer);
        g_autofree char *below = layer > 0 ? live_layer_node(job, disk, layer - 1) : NULL;

        if (!live_add_node(job, disk, node, path, format, below, true, error))
            return false;
    }
    return true;
}

static bool take_over(struct live_job *job, GError **error)
{
    if (!add_overlays(job, error))
        return false;
    for (guint i = 0; i < job->disks->len; i++) {
        struct live_disk *disk = live_disk_at(job, i);
        g_autofree char *top = live_top_node(job, disk), *fresh = live_next_node(job, disk);

        if (!window_open_layers(job, disk, disk->top + 1, error) ||
            !live_set_backing(job, disk, fresh, top, error) ||
            !live_layer_take_name(disk, disk->top + 1, error))
            return false;
        disk->top++;
        disk->based = true;
    }
    return true;
}

bool window_adopt(struct live_job *job, GError **error)
{
    bool ok = true;

    if (live_disk_at(job, 0)->based)
        return true;
    for (guint i = 0; ok && i < job->disks->len; i++) {
        struct live_disk *disk = live_disk_at(job, i);

        ok = live_layer_create(job, disk, disk->top + 1, error);
    }
    if (!ok)
        return false;
    /* While the machine stands still the fresh layer and what it stands on are equally good. */
    ok = live_pause(job, own_node, live_next_node, NULL, error) && live_pause_merged(job, error) &&
         take_over(job, error);
    if (!live_resume(job, NULL, ok ? error : NULL) || !ok)
        return false;
    for (guint i = 0; i < job->disks->len; i++) {
        const struct vm_layer *own = g_ptr_array_index(live_disk_at(job, i)->vm->layers, 0);

        if (own->node[0] != '#')
            vm_remove_node(job->vm, own->node, NULL);
        if (own->protocol_node && own->protocol_node[0] != '#')
            vm_remove_node(job->vm, own->protocol_node, NULL);
    }
    return job_event(&job->base, "result", error,
                     "the layers of the machine, which was started anew, are ours");
}
