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

/* Nothing of the source may be locked by us while the hypervisor writes to it again. */
static bool start_commit(struct live_job *job, struct live_disk *disk, GError **error)
{
    g_autofree char *active = live_top_node(job, disk), *base = floor_node(job, disk);
    bool there;
    char name[32];

    g_clear_pointer(&disk->base, chain_close);
    if (!disk->snapshotted)
        return true;
    job_name(disk, name);
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

/* The machine stands still from before the hypervisor leaves the overlay until the name is the base's again,
 * so at every instant the name leads to all that was written. */
static bool complete(struct live_job *job, struct live_disk *disk, GError **error)
{
    char name[32];

    if (!disk->snapshotted)
        return true;
    job_name(disk, name);
    return vm_job_complete(job->vm, name, error) && wait_for(job, disk, VM_JOB_DONE, error);
}

static bool restore_name(struct live_disk *disk, GError **error)
{
    return !disk->exchanged || live_layer_return_name(disk, disk->floor + 1, error);
}

static bool leave_overlays(struct live_job *job, GError **error)
{
    bool ok = live_pause(job, live_top_node, floor_node, NULL, error) && live_pause_merged(job, error);

    for (guint i = 0; ok && i < job->disks->len; i++)
        ok = complete(job, live_disk_at(job, i), error) && restore_name(live_disk_at(job, i), error);
    return live_resume(job, NULL, ok ? error : NULL) && ok;
}

/* By exchange what had the disk's name stands where the floor was; the base must not be there any more. */
static void forget_overlays(struct live_job *job, struct live_disk *disk)
{
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

static bool any_snapshotted(const struct live_job *job)
{
    for (guint i = 0; i < job->disks->len; i++)
        if (live_disk_at(job, i)->snapshotted)
            return true;
    return false;
}

static bool leave_all(struct live_job *job, GError **error)
{
    for (guint i = 0; i < job->disks->len; i++)
        if (!live_layer_set_aside(live_disk_at(job, i), false, error) ||
            !start_commit(job, live_disk_at(job, i), error))
            return false;
    if (!any_snapshotted(job)) {
        for (guint i = 0; i < job->disks->len; i++)
            if (!restore_name(live_disk_at(job, i), error))
                return false;
        return true;
    }
    for (guint i = 0; i < job->disks->len; i++)
        if (!wait_for(job, live_disk_at(job, i), VM_JOB_READY, error))
            return false;
    return leave_overlays(job, error);
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
    if (job->paused && !live_resume(job, NULL, error))
        return false;
    if (!live_leave(job, error))
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
