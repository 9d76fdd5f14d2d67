/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Rollback: the overlays are committed live into the source, names and files are as they were before; and
 * failing back, which brings a machine that was switched already to where rollback can begin.
 */
#include "blockmig/migrate/live.h"
#include "blockmig/storage/file.h"

#include <errno.h>
#include <glib/gstdio.h>

#define WAIT          1000
#define COMPLETE      60000
#define PIVOT_TIMEOUT 5000

static void job_name(const struct live_disk *disk, char name[32])
{
    g_snprintf(name, 32, "blockmig-rollback-%u", disk->index);
}

/* Nothing of the source may be locked by us while the hypervisor writes to it again. */
static bool start_commit(struct live_job *job, struct live_disk *disk, GError **error)
{
    g_autofree char *active = live_top_node(job, disk), *base = live_base_node(job, disk);
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
    return !disk->exchanged || live_layer_return_name(disk, 1, error);
}

static bool leave_overlays(struct live_job *job, GError **error)
{
    bool ok = live_pause(job, live_top_node, live_base_node, NULL, error) && live_pause_merged(job, error);

    for (guint i = 0; ok && i < job->disks->len; i++)
        ok = complete(job, live_disk_at(job, i), error) && restore_name(live_disk_at(job, i), error);
    return live_resume(job, NULL, ok ? error : NULL) && ok;
}

/* By exchange what had the disk's name stands as NAME.blockmig-0 now; the base must not be there any more. */
static void forget_overlays(struct live_job *job, struct live_disk *disk)
{
    for (unsigned layer = disk->files; layer > 0; layer--) {
        g_autofree char *node = live_layer_node(job, disk, layer);

        vm_remove_node(job->vm, node, NULL);
    }
    if (!g_file_test(disk->name, G_FILE_TEST_EXISTS) || live_is_overlay(disk, disk->name)) {
        job_notice(&job->base, "%s is not what it was before: all beside it is kept", disk->name);
        return;
    }
    for (unsigned n = disk->by_exchange ? 0 : 1; n <= disk->files; n++) {
        g_autofree char *path = g_strdup_printf("%s.blockmig-%u", disk->name, n);

        g_unlink(path);
    }
    storage_file_sync_directory(disk->name, NULL);
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
    if (!leave_all(job, error))
        return false;
    for (guint i = 0; i < job->disks->len; i++) {
        forget_overlays(job, live_disk_at(job, i));
        remove_target(live_disk_at(job, i));
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

/* ---- back from the target ------------------------------------------------------------------------- */

static bool reopen_top(struct live_job *job, struct live_disk *disk, GError **error)
{
    g_autofree char *path = live_layer_path(disk, disk->top), *node = live_top_node(job, disk);
    g_autofree char *below = live_layer_node(job, disk, disk->top - 1);

    return live_add_node(job, disk, node, path, format_qcow2.name, below, true, error);
}

/* What the machine wrote since the switch becomes one more layer of the source. */
static bool take_back(struct live_job *job, struct live_disk *disk, const char *path, GError **error)
{
    g_autoptr(chain_t) written = live_open_overlay(disk->target_overlay, FILE_NO_LOCK, error);
    struct storage *storage = written ? storage_file_open(path, FILE_WRITE, NULL, NULL, error) : NULL;
    g_autoptr(image_t) layer = storage ? image_open(storage, &format_qcow2, true, error) : NULL;
    struct live_shipment shipment = {0};

    return layer && live_ship(job, disk, written, layer, &shipment, error);
}

static bool add_layer(struct live_job *job, struct live_disk *disk, const char *path, GError **error)
{
    g_autofree char *node = live_next_node(job, disk);
    g_autofree char *below = live_top_node(job, disk);

    return live_add_node(job, disk, node, path, format_qcow2.name, below, false, error);
}

/* The layer that will be on top; by exchange it has the disk's name from the beginning, which is free. */
static char *next_path(const struct live_disk *disk)
{
    return disk->by_exchange ? g_strdup(disk->name)
                             : g_strdup_printf("%s.blockmig-%u", disk->name, disk->top + 1);
}

static bool create_next(struct live_job *job, struct live_disk *disk, GError **error)
{
    g_autofree char *path = next_path(disk), *below = live_layer_path(disk, disk->top);
    g_autofree char *name = g_path_get_basename(below);

    disk->files = disk->top + 1;
    return live_overlay_create(job, path, disk->size, name, format_qcow2.name, disk->target_path, error);
}

static bool bring_back(struct live_job *job, GError **error)
{
    unsigned count = job->disks->len;
    g_autofree struct vm_pivot *pivots = g_new0(struct vm_pivot, count);
    g_autoptr(GPtrArray) strings = g_ptr_array_new_with_free_func(g_free);

    for (unsigned i = 0; i < count; i++) {
        struct live_disk *disk = live_disk_at(job, i);
        g_autofree char *path = next_path(disk);
        char *from = live_new_node(job, disk), *to = live_next_node(job, disk);

        g_ptr_array_add(strings, from);
        g_ptr_array_add(strings, to);
        pivots[i] = (struct vm_pivot){.from = from, .to = to};
        if (!take_back(job, disk, path, error) || !add_layer(job, disk, path, error))
            return false;
    }
    return live_pause_merged(job, error) && vm_pivot(job->vm, pivots, count, PIVOT_TIMEOUT, error);
}

static void after_return(struct live_job *job, struct live_disk *disk)
{
    g_autofree char *overlay = live_new_node(job, disk), *merged = live_merged_node(job, disk);

    disk->top++;
    disk->set_aside = false;
    vm_remove_node(job->vm, overlay, NULL);
    vm_remove_node(job->vm, merged, NULL);
}

bool live_fail_back(struct live_job *job, GError **error)
{
    bool ok = job_event(&job->base, "intent", error, "bring the machine back to the source");

    for (guint i = 0; ok && i < job->disks->len; i++)
        ok = reopen_top(job, live_disk_at(job, i), error) && create_next(job, live_disk_at(job, i), error);
    if (!ok)
        return false;
    ok = live_pause(job, live_new_node, live_next_node, NULL, error) && bring_back(job, error);
    job->pivoted = !ok;
    if (!live_resume(job, NULL, ok ? error : NULL) || !ok)
        return false;
    for (guint i = 0; i < job->disks->len; i++)
        after_return(job, live_disk_at(job, i));
    return job_event(&job->base, "result", error, "the machine runs on the source again");
}
