/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The method mirror: a switch without a pause, in two steps with the proof between them.
 *
 * straddle     The disks give their names up; then the machine writes to overlays on the target that stand on
 *              the source's top layers, all disks in one transaction.  Now the whole source is frozen while
 *              the machine runs, and its last layer is shipped as those before it.
 * prove        The source against the merged target, before the machine reads one byte of it.
 * switchover   The overlays are put onto the merged targets, all disks in one transaction.
 *
 * Whatever fails before the last step is rolled back: the overlay on the target is committed into the source
 * like any other layer.  Its header names the source's top layer from beginning to end.  That is right before
 * the switch, and after it as well: what is below is the same on both sides, and the source is kept as it is
 * until the overlay is gone.
 */
#include "blockmig/migrate/live-watch.h"

static bool create_overlay(struct live_job *job, struct live_disk *disk, GError **error)
{
    g_autofree char *below = live_layer_path(disk, disk->top);

    disk->overlay_created = true;
    return live_overlay_create(job, disk->target_overlay, disk->size, below, format_qcow2.name,
                               disk->target_path, error);
}

/* Until the transaction the top layers are the truth, which no name leads to; after it the overlays are. */
static bool give_names_up(struct live_job *job, GError **error)
{
    for (guint i = 0; i < job->disks->len; i++)
        if (!live_layer_set_aside(live_disk_at(job, i), true, error) ||
            !create_overlay(job, live_disk_at(job, i), error))
            return false;
    return true;
}

static char *overlay_path(const struct live_disk *disk)
{
    return g_strdup(disk->target_overlay);
}

static bool write_to_target(struct live_job *job, GError **error)
{
    if (!live_overlays_add(job, live_top_node, live_new_node, overlay_path, error))
        return false;
    for (guint i = 0; i < job->disks->len; i++)
        live_disk_at(job, i)->straddles = true;
    return job_event(&job->base, "result", error, LIVE_STRADDLES);
}

bool live_straddle(struct job *base, GError **error)
{
    struct live_job *job = live_of(base);
    bool ok;

    if (!live_watch_now(job, error) || live_is_cancelled(job, error) ||
        !live_wait_for_others(job, 0, error) || !live_space_allows_switch(job, error) ||
        !job_event(base, "intent", error, "let the machine write %u disks to the target", job->disks->len) ||
        !live_freeze(job, error))
        return false;
    ok = give_names_up(job, error) && write_to_target(job, error) && live_held(job, error);
    live_thaw(job, &base->report->frozen_ms);
    if (!ok)
        return false;
    base->report->passes++;
    for (guint i = 0; i < job->disks->len; i++) {
        live_tell(job, "%s", live_disk_at(job, i)->vm->name);
        if (!live_ship_last(job, live_disk_at(job, i), error))
            return false;
    }
    return true;
}

/* ---- the switchover ------------------------------------------------------------------------------- */

static bool open_merged(struct live_job *job, GError **error)
{
    for (guint i = 0; i < job->disks->len; i++)
        if (!live_hand_over(job, live_disk_at(job, i), error) ||
            !live_open_merged(job, live_disk_at(job, i), error))
            return false;
    return true;
}

static bool rebase(struct live_job *job, GError **error)
{
    static const int added_by_descriptor = -1;
    unsigned count = job->disks->len;
    g_autofree struct vm_rebase *nodes = g_new0(struct vm_rebase, count);
    g_autoptr(GPtrArray) strings = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GError) local = NULL;

    for (unsigned i = 0; i < count; i++) {
        const struct live_disk *disk = live_disk_at(job, i);
        char *overlay = live_new_node(job, disk), *merged = live_merged_node(job, disk);

        g_ptr_array_add(strings, overlay);
        g_ptr_array_add(strings, merged);
        nodes[i].node =
            live_node(disk, overlay, overlay, format_qcow2.name, NULL, &added_by_descriptor, false);
        nodes[i].backing = merged;
    }
    if (vm_set_backings(job->vm, nodes, count, &local))
        return true;
    job->uncertain = g_error_matches(local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_UNREACHABLE);
    if (job->uncertain)
        local->code = BLOCKMIG_ERROR_UNCERTAIN;
    g_propagate_error(error, g_steal_pointer(&local));
    return false;
}

bool live_rebase(struct job *base, GError **error)
{
    struct live_job *job = live_of(base);

    if (!live_watch_now(job, error) || live_is_cancelled(job, error) ||
        !live_wait_for_others(job, 0, error) ||
        !job_event(base, "intent", error, "switch %u disks to the target", job->disks->len) ||
        !open_merged(job, error) || !rebase(job, error))
        return false;
    job->pivoted = true;
    for (guint i = 0; i < job->disks->len; i++) {
        live_disk_at(job, i)->straddles = false;
        live_close_top(job, live_disk_at(job, i));
    }
    return job_event(base, "result", error, "the machine runs on the target; it did not stand still");
}
