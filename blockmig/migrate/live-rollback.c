/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Rollback: the overlays are committed live into the source, names and files are as they were before.
 */
#include "blockmig/migrate/live.h"
#include "blockmig/storage/file.h"

#include <errno.h>
#include <glib/gstdio.h>

#define WAIT     1000
#define COMPLETE 60000

static void job_name(const struct live_disk *disk, char name[32])
{
    g_snprintf(name, 32, "blockmig-%s-%u", disk->floor ? "collapse" : "rollback", disk->index);
}

static char *floor_node(const struct live_job *job, const struct live_disk *disk)
{
    return disk->floor ? live_layer_node(job, disk, disk->floor) : live_base_node(job, disk);
}

/* Nothing of the source may be locked by us while the hypervisor writes to it again.  Of a disk that an
 * earlier run took back the job's end may be left. */
static bool start_commit(struct live_job *job, struct live_disk *disk, GError **error)
{
    g_autofree char *active = live_active_node(job, disk), *base = floor_node(job, disk);
    bool there;
    char name[32];

    g_clear_pointer(&disk->base, chain_close);
    job_name(disk, name);
    if (!disk->snapshotted)
        return vm_job_cancel(job->vm, name, COMPLETE, error);
    if (!live_has_job(job, name, &there, error))
        return false;
    if (there)
        return true;
    return vm_commit(job->vm, &(struct vm_commit){.id = name, .active = active, .base = base}, error);
}

static bool wait_for(struct live_job *job, struct live_disk *disk, enum vm_job_state wanted, GError **error)
{
    g_auto(vm_job_t) state = {0};
    char name[32];

    if (!disk->snapshotted)
        return true;
    job_name(disk, name);
    do {
        if (!vm_job_wait(job->vm, name, wanted, WAIT, &state, error))
            return false;
    } while (state.state < wanted);
    return true;
}

static bool complete(struct live_job *job, struct live_disk *disk, GError **error)
{
    char name[32];

    job_name(disk, name);
    return vm_job_complete(job->vm, name, error) && wait_for(job, disk, VM_JOB_DONE, error);
}

/* The base takes its name back, which is free or an empty overlay's. */
static bool restore_name(struct live_disk *disk, GError **error)
{
    return !disk->exchanged || live_layer_return_name(disk, disk->floor + 1, error);
}

/* From before the hypervisor leaves the overlay until the base has the name again, it leads nowhere: the
 * machine runs on, and only the hypervisor knows which of them is the truth. */
static bool leave_overlay(struct live_job *job, struct live_disk *disk, GError **error)
{
    if (!disk->snapshotted)
        return restore_name(disk, error);
    if (disk->exchanged && !live_layer_set_aside(disk, true, error))
        return false;
    if (complete(job, disk, error))
        return restore_name(disk, error);
    if (!disk->straddles)
        live_layer_set_aside(disk, false, NULL);
    return false;
}

/* By exchange what had the disk's name stands where the floor was; the base must not be there any more. */
static void forget_overlays(struct live_job *job, struct live_disk *disk)
{
    g_autofree char *fresh = live_new_node(job, disk), *merged = live_merged_node(job, disk);

    vm_remove_node(job->vm, fresh, NULL);
    vm_remove_node(job->vm, merged, NULL);
    disk->straddles = false;
    for (unsigned layer = disk->files; layer > disk->floor; layer--) {
        g_autofree char *node = live_layer_node(job, disk, layer);

        vm_remove_node(job->vm, node, NULL);
    }
    if (disk->floor == 0 &&
        (!g_file_test(disk->name, G_FILE_TEST_EXISTS) || live_is_overlay(disk, disk->name))) {
        job_notice(&job->base, "%s is not what it was before: all beside it is kept", disk->name);
        return;
    }
    for (unsigned n = disk->by_exchange ? disk->floor : disk->floor + 1; n <= disk->files; n++) {
        g_autofree char *path = live_layer_numbered(disk, n);

        g_unlink(path);
    }
    storage_file_sync_directory(disk->name, NULL);
    disk->top = disk->files = disk->floor;
    disk->snapshotted = disk->floor > 0;
}

static void remove_target(struct live_disk *disk)
{
    g_clear_pointer(&disk->target, image_close);
    if (disk->overlay_created)
        g_unlink(disk->target_overlay);
    if (disk->created)
        g_unlink(disk->target_path);
    if (disk->created)
        storage_file_sync_directory(disk->target_path, NULL);
    disk->created = disk->overlay_created = false;
}

/* A disk that cannot go back keeps no other from it. */
static bool leave_all(struct live_job *job, GError **error)
{
    GError *first = NULL;

    for (guint i = 0; i < job->disks->len; i++) {
        struct live_disk *disk = live_disk_at(job, i);

        if ((!disk->straddles && disk->snapshotted &&
             (!live_layer_set_aside(disk, false, error) || !live_layer_drop_next(disk, error))) ||
            !start_commit(job, disk, error))
            return false;
    }
    for (guint i = 0; i < job->disks->len; i++)
        if (!wait_for(job, live_disk_at(job, i), VM_JOB_READY, error))
            return false;
    for (guint i = 0; i < job->disks->len; i++)
        leave_overlay(job, live_disk_at(job, i), first ? NULL : &first);
    if (first)
        g_propagate_error(error, first);
    return !first;
}

bool live_leave(struct live_job *job, GError **error)
{
    if (!leave_all(job, error))
        return false;
    for (guint i = 0; i < job->disks->len; i++)
        forget_overlays(job, live_disk_at(job, i));
    return true;
}

bool live_rollback(struct job *base, GError **error)
{
    struct live_job *job = live_of(base);

    if (job->uncertain) {
        base->report->advice = g_strdup("it is not known on which disk the machine runs: everything is kept");
        return true;
    }
    if (job->pivoted)
        return true; /* the reason was told */
    if ((job->paused && !live_resume(job, NULL, error)) || !live_leave(job, error) ||
        !live_unthrottle(job, error))
        return false;
    for (guint i = 0; i < job->disks->len; i++) {
        struct live_disk *disk = live_disk_at(job, i);

        if (disk->other)
            live_remove_side(job, disk->other, NULL);
        remove_target(disk);
    }
    if (job->interrupted) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_CANCELLED,
                    "job %s was interrupted before the switch; it is rolled back", base->record->id);
        base->report->advice = g_strdup("the machine runs on the source as before: run the command again");
        return false;
    }
    if (!base->report->advice)
        base->report->advice =
            g_strdup("the machine runs on the source as before; nothing is left of the move");
    return true;
}
