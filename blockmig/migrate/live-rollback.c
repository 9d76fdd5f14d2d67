/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Rollback: the overlays are committed live into the source, names and files are as they were before; and
 * failing back, which brings a machine that was switched already to where rollback can begin.
 */
#include "blockmig/migrate/live-watch.h"
#include "blockmig/storage/file.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <string.h>

#define WAIT     1000
#define COMPLETE 60000
#define PATIENCE 60 /* s, with a job of somebody else that is in the way */

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
    live_device_freeze(disk, false);
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

/* The machine has left its overlays for good: nobody writes to them any more. */
static bool note_left(const struct live_disk *disk, GError **error)
{
    g_autofree char *top = live_layer_path(disk, disk->top);

    return live_mark_merged(top, error) &&
           (!disk->straddles || live_mark_merged(disk->target_overlay, error));
}

/* From before the hypervisor leaves the overlay until the base has the name again, it leads nowhere: the
 * machine runs on, and only the hypervisor knows which of them is the truth. */
static bool leave_overlay(struct live_job *job, struct live_disk *disk, GError **error)
{
    if (!disk->snapshotted)
        return live_layer_restore_name(disk, error);
    if (disk->base_renamed && !live_layer_set_aside(disk, true, error))
        return false;
    if (job_event(&job->base, "intent", error, LIVE_LEAVE "%s", disk->name) && complete(job, disk, error))
        return note_left(disk, error) && live_layer_restore_name(disk, error);
    if (!disk->straddles)
        live_layer_set_aside(disk, false, NULL);
    return false;
}

/* Its end was perhaps never looked at, and its nodes are busy until then. */
static void forget_job(struct live_job *job, struct live_disk *disk)
{
    char name[32];

    job_name(disk, name);
    vm_job_cancel(job->vm, name, COMPLETE, NULL);
}

static void forget_nodes(struct live_job *job, struct live_disk *disk)
{
    g_autofree char *overlay = live_new_node(job, disk), *merged = live_merged_node(job, disk);

    vm_remove_node(job->vm, overlay, NULL);
    vm_remove_node(job->vm, merged, NULL);
    disk->straddles = false;
    for (unsigned layer = disk->files + 1; layer > disk->floor; layer--) {
        g_autofree char *node = live_layer_node(job, disk, layer);

        vm_remove_node(job->vm, node, NULL);
    }
}

/* Of a device nothing is wiped: by now it may belong to somebody else. */
static void remove_target(struct live_job *job, struct live_disk *disk)
{
    g_clear_pointer(&disk->target, image_close);
    if (disk->overlay_created)
        g_unlink(disk->target_overlay);
    if (disk->created && disk->target_device)
        job_notice(&job->base, "%s holds an unfinished copy: nothing may be started from it",
                   disk->target_path);
    else if (disk->created)
        g_unlink(disk->target_path);
    if (disk->created)
        storage_file_sync_directory(disk->target_overlay, NULL);
    disk->created = disk->overlay_created = false;
}

/* A disk that cannot go back keeps no other from it. */
static bool leave_all(struct live_job *job, GError **error)
{
    GError *first = NULL;

    for (guint i = 0; i < job->disks->len; i++)
        if (!start_commit(job, live_disk_at(job, i), error))
            return false;
    for (guint i = 0; i < job->disks->len; i++)
        if (!wait_for(job, live_disk_at(job, i), VM_JOB_READY, error))
            return false;
    for (guint i = 0; i < job->disks->len; i++)
        leave_overlay(job, live_disk_at(job, i), first ? NULL : &first);
    if (first)
        g_propagate_error(error, first);
    return !first;
}

/* Nothing may be touched by who cannot see what the machine does with it.  What is told then; NULL: it can be
 * seen. */
static const char *out_of_reach(const struct live_job *job)
{
    if (live_watch_lost(job))
        return "nothing more was touched: the overlays and the target are kept, and the disk's name leads to "
               "what the machine wrote or to nothing. Once the machine answers, or is off, 'blockmig job "
               "resume' "
               "goes on and 'blockmig job cancel' rolls back";
    if (job->uncertain || g_error_matches(live_watch_trouble(job), BLOCKMIG_ERROR, BLOCKMIG_ERROR_UNCERTAIN))
        return "it is not known on which disk the machine runs: everything is kept";
    return NULL;
}

/* The reason of the failure is known already, but for a run that only came to roll back. */
static bool leave_untouched(struct live_job *job, const char *advice, GError **error)
{
    const GError *trouble = live_watch_trouble(job);

    g_free(job->base.report->advice);
    job->base.report->advice = g_strdup(advice);
    if (job->interrupted && trouble)
        g_propagate_error(error, g_error_copy(trouble));
    return !job->interrupted || !trouble;
}

/* The machine stopped itself when its overlay met the end of the datastore; now there is room, and the write
 * that waits is done again. */
static void feed(struct live_job *job)
{
    g_autofree char *status = NULL;
    bool running = true;

    if (vm_status(job->vm, &running, &status, NULL) && !running && g_strcmp0(status, "io-error") == 0 &&
        vm_resume(job->vm, NULL, NULL))
        live_watch_say(job, "there is room again: the machine goes on");
}

bool live_leave(struct live_job *job, GError **error)
{
    if (!leave_all(job, error))
        return false;
    for (guint i = 0; i < job->disks->len; i++) {
        struct live_disk *disk = live_disk_at(job, i);

        forget_job(job, disk);
        forget_nodes(job, disk);
        live_layers_forget(job, disk);
        disk->top = disk->files = disk->floor;
        disk->snapshotted = disk->floor > 0;
    }
    return true;
}

/* Of a job that was interrupted and only had to be rolled back. */
static bool tell_end(const struct live_job *job, GError **error)
{
    return blockmig_fail(error, BLOCKMIG_ERROR_CANCELLED,
                         "%s%sjob %s was interrupted before the switch; it is rolled back",
                         job->resized ? job->resized : "", job->resized ? ": " : "", job->base.record->id);
}

/* A machine that does not answer is left alone: what it has open must not change. */
static bool leave(struct live_job *job, GError **error)
{
    bool running;

    if (!vm_status(job->vm, &running, NULL, error))
        return false;
    if (job->paused && !live_resume(job, NULL, error))
        return false;
    if (!live_wait_for_others(job, PATIENCE, error) || !live_put_in_order(job, error) ||
        !live_leave(job, error) || !live_unthrottle(job, error))
        return false;
    if (live_watch_starved(job))
        feed(job);
    return true;
}

bool live_rollback(struct job *base, GError **error)
{
    struct live_job *job = live_of(base);
    const char *advice;

    live_watch_now(job, NULL);
    advice = out_of_reach(job);
    if (advice)
        return leave_untouched(job, advice, error);
    if (job->pivoted)
        return true; /* the reason was told */
    if (!(job->vm ? leave(job, error) : live_leave_offline(job, error)))
        return false;
    for (guint i = 0; i < job->disks->len; i++)
        if (live_disk_at(job, i)->other)
            live_remove_side(job, live_disk_at(job, i)->other, NULL);
    if (job->vm)
        live_remove_target_nodes(job);
    for (guint i = 0; i < job->disks->len; i++)
        remove_target(job, live_disk_at(job, i));
    live_remove_below(job);
    base->undone = true;
    if (!base->report->advice)
        base->report->advice =
            g_strdup(job->vm ? "the machine runs on the source as before; nothing is left of the move"
                             : "the disk has its name again and all that the machine wrote; nothing is left "
                               "of the move");
    return !job->going_back || tell_end(job, error);
}
