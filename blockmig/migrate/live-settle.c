/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The settle phase: the overlay on the target is committed live into the image below it. */
#include "blockmig/migrate/live.h"
#include "blockmig/storage/file.h"

#include <errno.h>
#include <glib/gstdio.h>

#define WAIT     1000  /* ms between two looks at a job that runs */
#define COMPLETE 60000 /* ms */

static void job_name(const struct live_disk *disk, char name[32])
{
    g_snprintf(name, 32, "blockmig-settle-%u", disk->index);
}

bool live_stop_settling(struct live_job *job, GError **error)
{
    for (guint i = 0; i < job->disks->len; i++) {
        char name[32];

        job_name(live_disk_at(job, i), name);
        if (!vm_job_cancel(job->vm, name, COMPLETE, error))
            return false;
    }
    return true;
}

static bool start(struct live_job *job, struct live_disk *disk, GError **error)
{
    g_autofree char *merged = live_merged_node(job, disk), *overlay = live_new_node(job, disk);
    bool there;
    char name[32];

    job_name(disk, name);
    if (disk->settled) /* by an earlier run, which may have left the job's end behind */
        return vm_job_cancel(job->vm, name, COMPLETE, error);
    if (!live_has_job(job, name, &there, error))
        return false;
    if (there)
        return true;
    return vm_commit(job->vm, &(struct vm_commit){.id = name, .active = overlay, .base = merged}, error);
}

/* From the top down, as one holds the next open. */
void live_remove_source_nodes(struct live_job *job, struct live_disk *disk)
{
    g_autofree char *base = live_layer_path(disk, 0);
    g_autoptr(GError) local = NULL;

    for (unsigned layer = disk->top + 1; !local && layer-- > 0;) {
        g_autofree char *node = live_layer_node(job, disk, layer);

        vm_remove_node(job->vm, node, &local);
    }
    if (!local)
        vm_forget_file(job->vm, disk->name, &local);
    if (!local)
        vm_forget_file(job->vm, base, &local);
    /* What an earlier move left here is known by descriptors; what others stand on cannot be closed. */
    for (guint i = 0; !local && i < disk->vm->layers->len; i++) {
        const struct vm_layer *layer = g_ptr_array_index(disk->vm->layers, i);

        if (g_str_has_prefix(layer->node, "bm-"))
            vm_remove_node(job->vm, layer->node, NULL);
        vm_forget_file(job->vm, layer->filename, &local);
    }
    if (local)
        job_notice(&job->base, "%s", local->message);
}

static void remove_nodes(struct live_job *job, struct live_disk *disk)
{
    g_autofree char *overlay = live_new_node(job, disk);
    g_autoptr(GError) local = NULL;

    if (vm_remove_node(job->vm, overlay, &local))
        live_remove_source_nodes(job, disk);
    else
        job_notice(&job->base, "%s", local->message);
}

static bool finish(struct live_job *job, struct live_disk *disk, GError **error)
{
    g_auto(vm_job_t) state = {0};
    char name[32];

    job_name(disk, name);
    if (disk->settled) {
        remove_nodes(job, disk);
        return vm_job_cancel(job->vm, name, COMPLETE, error);
    }
    do {
        if (!vm_job_wait(job->vm, name, VM_JOB_READY, WAIT, &state, error))
            return false;
    } while (state.state < VM_JOB_READY);
    if (!job_event(&job->base, "intent", error, LIVE_LEAVE "%s", disk->target_overlay) ||
        !vm_job_complete(job->vm, name, error) ||
        !vm_job_wait(job->vm, name, VM_JOB_DONE, COMPLETE, &state, error))
        return false;
    if (state.state == VM_JOB_DONE) {
        remove_nodes(job, disk);
        return true;
    }
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED, "%s: job %s does not end", disk->target_overlay,
                name);
    return false;
}

bool live_settle(struct job *base, GError **error)
{
    struct live_job *job = live_of(base);

    if (!job_event(base, "intent", error, "commit the target's overlays"))
        return false;
    for (guint i = 0; i < job->disks->len; i++) {
        live_tell(job, "%s", live_disk_at(job, i)->vm->name);
        if (job->vm && !start(job, live_disk_at(job, i), error))
            return false;
    }
    for (guint i = 0; i < job->disks->len; i++) {
        struct live_disk *disk = live_disk_at(job, i);

        if (!(job->vm ? finish(job, disk, error) : live_settle_offline(job, disk, error)))
            return false;
        disk->settled = true;
        if (g_unlink(disk->target_overlay) < 0 && errno != ENOENT)
            return blockmig_set_errno(error, errno, "removing %s", disk->target_overlay);
        disk->overlay_created = false;
        if (!storage_file_sync_directory(disk->target_overlay, error))
            return false;
    }
    return job_event(base, "result", error, "the machine writes to the merged target");
}
