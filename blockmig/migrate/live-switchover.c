/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The switchover: the last delta is written straight into the merged target while the machine stands still,
 * then the machine goes on over there.
 *
 * In the pause, in this order: ship and read back (one flush in it); give the target to the hypervisor; take
 * the disk's name away from the source, so that nobody can boot what is about to become stale; pivot; resume.
 * Whatever fails before the pivot is undone and the machine goes on where it was.
 */
#include "blockmig/migrate/live-watch.h"
#include "blockmig/migrate/target.h"
#include "blockmig/storage/file.h"
#include "blockmig/storage/uri.h"

#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <stdio.h>
#include <unistd.h>

#define PIVOT_TIMEOUT 5000 /* ms */

bool live_hand_over(struct live_job *job, struct live_disk *disk, GError **error)
{
    g_autofree char *merged = live_merged_node(job, disk);
    struct vm_node node;
    bool ok;
    int fd;

    g_clear_pointer(&disk->handed_over, g_free);
    if (!live_add_below(job, disk, error) || !live_descriptor(disk->target_path, &fd, error))
        return false;
    node = live_node(disk, merged, disk->target_path, NULL, NULL, &fd, true);
    ok = vm_hand_over(job->vm, &node, &disk->handed_over, error);
    live_close_descriptor(fd);
    return ok;
}

/* What can be done already.  The overlay waits with nothing below it, of the merged image there is a
 * descriptor only: it can be looked at when nobody writes to it any more, and the hypervisor would remember
 * even the size that its file has now. */
static bool add_target(struct live_job *job, struct live_disk *disk, GError **error)
{
    g_autofree char *overlay = live_new_node(job, disk);

    return live_add_node(job, disk, overlay, disk->target_overlay, format_qcow2.name, NULL, false, error) &&
           live_hand_over(job, disk, error);
}

static bool prepare(struct live_job *job, GError **error)
{
    for (guint i = 0; i < job->disks->len; i++) {
        struct live_disk *disk = live_disk_at(job, i);
        g_autofree char *name = live_target_name(job, disk);

        disk->overlay_created = true;
        if (!live_overlay_create(job, disk->target_overlay, disk->size, name, disk->format->name,
                                 disk->target_path, error) ||
            !add_target(job, disk, error))
            return false;
    }
    return job_event(&job->base, "intent", error, "switch %u disks to the target", job->disks->len);
}

bool live_ship_last(struct live_job *job, struct live_disk *disk, GError **error)
{
    g_autofree char *path = live_layer_path(disk, disk->top);
    g_autoptr(chain_t) overlay = live_open_overlay(path, FILE_NO_LOCK, error);
    g_autoptr(chain_t) below = live_source_below(disk);
    struct live_shipment shipment = {.below = below};

    if (!overlay || !live_ship(job, disk, overlay, disk->target, &shipment, error))
        return false;
    disk->report->bytes_in_pause = job->paused ? shipment.bytes : 0;
    g_clear_pointer(&disk->target, image_close);
    return true;
}

bool live_open_merged(struct live_job *job, struct live_disk *disk, GError **error)
{
    g_autofree char *merged = live_merged_node(job, disk);
    g_autofree char *below = disk->merged ? live_below_merged(job, disk) : live_below_node(job, disk);
    const int closed = -1;
    struct vm_node node =
        live_node(disk, merged, disk->target_path, disk->format->name, below, &closed, true);

    node.block_device = disk->target_device;
    node.handed_over = disk->handed_over;
    return vm_add_node(job->vm, &node, error);
}

static bool add_merged(struct live_job *job, struct live_disk *disk, GError **error)
{
    g_autofree char *merged = live_merged_node(job, disk), *overlay = live_new_node(job, disk);

    return live_open_merged(job, disk, error) && live_set_backing(job, disk, overlay, merged, error);
}

static bool pivot(struct live_job *job, GError **error)
{
    unsigned count = job->disks->len;
    g_autofree struct vm_pivot *pivots = g_new0(struct vm_pivot, count);
    g_autoptr(GPtrArray) strings = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GError) local = NULL;

    for (unsigned i = 0; i < count; i++) {
        char *from = live_top_node(job, live_disk_at(job, i));
        char *to = live_new_node(job, live_disk_at(job, i));

        g_ptr_array_add(strings, from);
        g_ptr_array_add(strings, to);
        pivots[i] = (struct vm_pivot){.from = from, .to = to};
    }
    if (vm_pivot(job->vm, pivots, count, PIVOT_TIMEOUT, &local)) {
        live_step(job, "pivot");
        return true;
    }
    job->uncertain = g_error_matches(local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_UNCERTAIN) ||
                     g_error_matches(local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_UNREACHABLE);
    if (job->uncertain)
        local->code = BLOCKMIG_ERROR_UNCERTAIN;
    g_propagate_error(error, g_steal_pointer(&local));
    return false;
}

static bool ship_all(struct live_job *job, GError **error)
{
    struct pause_limit *limit = live_limit_begin(job);
    bool ok = true;

    for (guint i = 0; ok && i < job->disks->len; i++)
        ok = live_ship_last(job, live_disk_at(job, i), error);
    ok &= live_limit_end(job, limit, error);
    live_step(job, "ship");
    return ok;
}

static bool switch_disks(struct live_job *job, GError **error)
{
    if (!ship_all(job, error))
        return false;
    for (guint i = 0; i < job->disks->len; i++)
        if (!add_merged(job, live_disk_at(job, i), error))
            return false;
    live_step(job, "open");
    for (guint i = 0; i < job->disks->len; i++)
        if (!live_layer_set_aside(live_disk_at(job, i), true, error))
            return false;
    live_step(job, "name");
    return live_pause_merged(job, error) && pivot(job, error);
}

/* Back to where the machine was. */
static void undo(struct live_job *job)
{
    if (job->uncertain)
        return;
    for (guint i = 0; i < job->disks->len; i++)
        live_layer_set_aside(live_disk_at(job, i), false, NULL);
    live_resume(job, NULL, NULL);
    live_thaw(job, NULL);
    live_remove_target_nodes(job);
}

/* Where the target is more layers over those of its side: they are its top now, and what the guest is about
 * to write to gets the disk's name.  If somebody has taken that meanwhile it stays theirs. */
static void take_place(struct live_job *job, struct live_disk *disk)
{
    if (!disk->merged)
        return;
    disk->other->top = disk->other->files = disk->merged + 1;
    if (!disk->takes_name)
        return;
    if (renameat2(AT_FDCWD, disk->target_overlay, AT_FDCWD, disk->takes_name, RENAME_NOREPLACE) == 0)
        disk->other->set_aside = false;
    else
        job_notice(&job->base, "renaming %s to %s: %s", disk->target_overlay, disk->takes_name,
                   g_strerror(errno));
}

void live_close_top(struct live_job *job, struct live_disk *disk)
{
    g_autofree char *node = live_top_node(job, disk);
    g_autoptr(GError) local = NULL;

    if (!vm_remove_node(job->vm, node, &local))
        job_notice(&job->base, "%s", local->message);
}

/* What the guest writes when it is frozen is shipped while it still runs. */
static bool quiesce(struct live_job *job, GError **error)
{
    return live_freeze(job, error) && (!job->frozen || live_pass(job, error));
}

/* What was shipped in the pause is shipped once more. */
static bool reopen_target(struct live_disk *disk, GError **error)
{
    struct storage *storage;

    if (g_unlink(disk->target_overlay) < 0 && errno != ENOENT)
        return blockmig_set_errno(error, errno, "removing %s", disk->target_overlay);
    if (disk->target)
        return true;
    storage = live_storage_open(disk->target_path, FILE_WRITE, NULL, NULL, error);
    disk->target = storage ? image_open(storage, disk->format, true, error) : NULL;
    if (disk->target && disk->target->cluster_size < 4096)
        storage_file_avoid_direct(disk->target->storage);
    return disk->target != NULL;
}

/* The machine runs where it was.  Was the pause too long, and is there another way? */
static bool go_without_pause(struct live_job *job, GError *failure, GError **error)
{
    g_autofree char *reason = g_strdup(failure->message);

    if (job->uncertain || job->request->on_busy != BUSY_MIRROR ||
        !g_error_matches(failure, BLOCKMIG_ERROR, BLOCKMIG_ERROR_PARKED)) {
        g_propagate_error(error, failure);
        return false;
    }
    g_error_free(failure);
    for (guint i = 0; i < job->disks->len; i++)
        if (!reopen_target(live_disk_at(job, i), error))
            return false;
    live_choose_mirror(job, reason);
    job->base.go_on_at = "straddle";
    return true;
}

bool live_switchover(struct job *base, GError **error)
{
    struct live_job *job = live_of(base);
    int64_t stopped = 0, resumed = 0;
    GError *failure = NULL;

    if (!live_watch_now(job, error) || live_is_cancelled(job, error) ||
        !live_wait_for_others(job, 0, error) || !live_space_allows_switch(job, error))
        return false;
    if (!quiesce(job, error) || !prepare(job, error)) {
        undo(job);
        return false;
    }
    if (!live_pause(job, live_top_node, live_new_node, &stopped, &failure) || !live_held(job, &failure) ||
        !switch_disks(job, &failure)) {
        undo(job);
        return go_without_pause(job, failure, error);
    }
    job->pivoted = true;
    for (guint i = 0; i < job->disks->len; i++)
        take_place(job, live_disk_at(job, i));
    if (!live_resume(job, &resumed, error)) {
        job->uncertain = true;
        return false;
    }
    live_thaw(job, &base->report->frozen_ms);
    if (stopped && resumed)
        base->report->pause_ms = (double)(resumed - stopped) / 1000;
    live_tell(job, "the machine runs on the target");
    for (guint i = 0; i < job->disks->len; i++)
        live_close_top(job, live_disk_at(job, i));
    return live_unthrottle(job, error) &&
           job_event(base, "result", error, "the machine runs on the target after %.1f ms (%s)",
                     base->report->pause_ms, job->steps->str);
}
