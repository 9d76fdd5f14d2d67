/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The resume phase: a machine that a killed or parked move left on our overlays is brought to where the base
 * phase can go on.  Whatever was half done around the layers is undone, for it holds nothing yet; the
 * snapshot alone is finished, because the machine writes to it.
 */
#include "blockmig/migrate/live.h"
#include "blockmig/storage/file.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <string.h>

/* An overlay that was to be the next, and what stood ready for the switch. */
static void close_prepared(struct live_job *job, struct live_disk *disk)
{
    g_autofree char *next = live_next_node(job, disk), *overlay = live_new_node(job, disk);
    g_autofree char *merged = live_merged_node(job, disk);

    vm_remove_node(job->vm, next, NULL);
    vm_remove_node(job->vm, overlay, NULL);
    vm_remove_node(job->vm, merged, NULL);
}

static bool restore_names(struct live_disk *disk, GError **error)
{
    if (disk->fresh && !live_layer_return_name(disk, disk->top + 1, error))
        return false;
    disk->fresh = false;
    return live_layer_set_aside(disk, false, error);
}

/* Behind the top one there are only empty ones. */
static void remove_spare_files(struct live_disk *disk)
{
    unsigned first = disk->by_exchange && disk->base_renamed ? disk->top : disk->top + 1;

    for (unsigned n = first; n <= disk->files; n++) {
        g_autofree char *path = live_numbered(disk, n);

        g_unlink(path);
    }
    disk->files = disk->top;
}

bool live_put_in_order(struct live_job *job, GError **error)
{
    if (!live_adopt(job, error))
        return false;
    for (guint i = 0; i < job->disks->len; i++) {
        struct live_disk *disk = live_disk_at(job, i);

        if (!disk->snapshotted || disk->straddles)
            continue;
        close_prepared(job, disk);
        if (!restore_names(disk, error))
            return false;
        remove_spare_files(disk);
    }
    return true;
}

static bool remove_target_overlay(struct live_disk *disk, GError **error)
{
    if (g_unlink(disk->target_overlay) < 0 && errno != ENOENT)
        return blockmig_set_errno(error, errno, "removing %s", disk->target_overlay);
    disk->overlay_created = false;
    return true;
}

/* Nothing is written to an overlay before the machine is on it. */
static bool begin_anew(struct live_job *job, GError **error)
{
    for (guint i = 0; i < job->disks->len; i++) {
        struct live_disk *disk = live_disk_at(job, i);
        g_autofree char *next = live_next_node(job, disk);

        vm_remove_node(job->vm, next, NULL);
        if (!live_layer_restore_name(disk, error))
            return false;
        live_layers_forget(job, disk);
        disk->files = 0;
    }
    return live_snapshot(&job->base, error);
}

bool live_take_up(struct job *base, GError **error)
{
    struct live_job *job = live_of(base);
    unsigned on = 0;

    for (guint i = 0; i < job->disks->len; i++)
        on += live_disk_at(job, i)->snapshotted;
    if (on == 0)
        return begin_anew(job, error);
    if (on < job->disks->len)
        return blockmig_fail(error, BLOCKMIG_ERROR_UNCERTAIN,
                             "job %s: some disks have their overlays and some do not", base->record->id);
    if (!live_put_in_order(job, error))
        return false;
    for (guint i = 0; i < job->disks->len; i++)
        if (!remove_target_overlay(live_disk_at(job, i), error) ||
            !live_save_disk(job, live_disk_at(job, i), error))
            return false;
    return job_event(base, "result", error, "taken up on %u overlays", live_disk_at(job, 0)->top);
}
