/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Going back: a move of the target's layers onto the source, whose base pass is already known to be
 * identical. Passes, forecast, pause, pivot and proof are those of any move; what differs is where it ships
 * to, which is a fresh layer over the source's.
 */
#include "blockmig/migrate/window.h"
#include "blockmig/storage/file.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <stdio.h>
#include <string.h>

/* ---- sides ---------------------------------------------------------------------------------------- */

struct live_disk *live_other(struct live_disk *disk)
{
    struct live_disk *other = disk->other;

    if (other)
        return other;
    other = g_new0(struct live_disk, 1);
    other->index = disk->index;
    other->side = disk->side == 's' ? 't' : 's';
    other->vm = disk->vm;
    other->name = g_strdup(disk->target_path);
    other->device = disk->target_device;
    other->stem = g_strndup(disk->target_overlay, strlen(disk->target_overlay) - strlen(LIVE_NEW));
    other->size = disk->size;
    other->source_format = disk->format;
    other->top = other->files = 1;
    other->snapshotted = other->based = true;
    other->report = disk->report;
    other->other = disk;
    disk->other = other;
    return other;
}

void live_turn(struct live_job *job)
{
    GPtrArray *disks = job->disks;

    if (!job->others)
        job->others = g_ptr_array_new_with_free_func((GDestroyNotify)live_disk_free);
    for (guint i = job->others->len; i < disks->len; i++)
        g_ptr_array_add(job->others, live_other(live_disk_at(job, i)));
    job->disks = job->others;
    job->others = disks;
    job->pivoted = !job->pivoted;
}

/* A fresh layer over the other side's becomes the target, and another one above it. */
static void aim(struct live_disk *disk)
{
    struct live_disk *other = disk->other;

    g_free(disk->target_path);
    g_free(disk->target_overlay);
    g_free(disk->takes_name);
    disk->merged = other->top + 1;
    disk->format = &format_qcow2;
    disk->target_path = live_numbered(other, disk->merged);
    disk->target_overlay = live_numbered(other, disk->merged + 1);
    disk->takes_name = other->by_exchange ? g_strdup(other->name) : NULL;
    disk->created = disk->overlay_created = false;
    other->files = disk->merged + 1;
}

/* ---- there ---------------------------------------------------------------------------------------- */

/* The top layer was closed after the switch, as it was open for writing. */
static bool reopen_top(struct live_job *job, struct live_disk *disk, GError **error)
{
    g_autofree char *path = live_layer_path(disk, disk->top), *node = live_top_node(job, disk);
    g_autofree char *below =
        disk->top > 1 ? live_layer_node(job, disk, disk->top - 1) : live_base_node(job, disk);

    return live_add_node(job, disk, node, path, format_qcow2.name, below, true, error);
}

static bool create_target(struct live_job *job, struct live_disk *disk, GError **error)
{
    g_autofree char *below = live_layer_path(disk->other, disk->other->top);
    g_autofree char *name = g_path_get_basename(below);
    struct storage *storage;

    disk->created = true;
    if (!live_overlay_create(job, disk->target_path, disk->size, name, format_qcow2.name, below, error))
        return false;
    storage = storage_file_open(disk->target_path, FILE_WRITE, NULL, NULL, error);
    disk->target = storage ? image_open(storage, disk->format, true, error) : NULL;
    return disk->target != NULL;
}

/* What an earlier attempt froze, apart from the top. */
static bool ship_lower(struct live_job *job, struct live_disk *disk, GError **error)
{
    struct live_shipment shipment = {0};

    for (unsigned layer = 1; layer < disk->top; layer++) {
        g_autofree char *path = live_layer_path(disk, layer);
        g_autoptr(chain_t) overlay = live_open_overlay(path, 0, error);

        if (!overlay || !live_ship(job, disk, overlay, disk->target, &shipment, error))
            return false;
    }
    return true;
}

static bool set_out(struct live_job *job, GError **error)
{
    if (!job_event(&job->base, "intent", error, "bring the machine back"))
        return false;
    job->pace = (struct live_pace){.layered = g_get_monotonic_time()};
    for (guint i = 0; i < job->disks->len; i++) {
        struct live_disk *disk = live_disk_at(job, i);

        aim(disk);
        if (disk->takes_name && g_file_test(disk->takes_name, G_FILE_TEST_EXISTS))
            return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                                 "%s is there meanwhile: the disk's old name must be free", disk->takes_name);
        if (!reopen_top(job, disk->other, error) || !create_target(job, disk, error) ||
            !ship_lower(job, disk, error))
            return false;
    }
    return true;
}

/* ---- a side that is not used any more -------------------------------------------------------------- */

static bool remove_file(const char *path, GError **error)
{
    return g_unlink(path) == 0 || errno == ENOENT || blockmig_set_errno(error, errno, "removing %s", path);
}

bool live_remove_side(struct live_job *job, struct live_disk *disk, GError **error)
{
    for (unsigned layer = disk->files + 1; job->vm && layer-- > 0;) {
        g_autofree char *node = live_layer_node(job, disk, layer);

        vm_remove_node(job->vm, node, NULL);
    }
    for (unsigned layer = disk->files + 1; layer-- > 0;) {
        g_autofree char *path = live_numbered(disk, layer);

        if (!remove_file(path, error))
            return false;
    }
    return disk->device || (remove_file(disk->name, error) && storage_file_sync_directory(disk->name, error));
}

/* Layers that were begun over a side, and those of the passes over the other: as it was before. */
static bool forget_attempt(struct live_job *job, GError **error)
{
    bool deep = false;

    for (guint i = 0; i < job->disks->len; i++) {
        struct live_disk *disk = live_disk_at(job, i);

        g_clear_pointer(&disk->target, image_close);
        window_trim(job, disk->other);
        disk->floor = 1;
        deep |= disk->top > disk->floor;
    }
    return !deep || live_leave(job, error);
}

/* ---- back after a proof that failed ---------------------------------------------------------------- */

/* For whoever has to go on with it. */
static bool note_sides(struct live_job *job, GError **error)
{
    for (guint i = 0; i < job->disks->len; i++) {
        struct live_disk *disk = live_disk_at(job, i);

        live_other(disk);
        if (!disk->kept)
            disk->kept = disk->top;
    }
    return window_save(job, 0, error);
}

bool live_recover_return(struct live_job *job, bool *returning, GError **error)
{
    GError *local = NULL;
    g_autoptr(window_facts_t) facts = window_facts_load(job, &local);
    enum window_place place = ON_TARGET;

    *returning = facts != NULL;
    if (!facts && local)
        g_propagate_error(error, local);
    if (!facts)
        return !local;
    if (!window_look(job, facts, &place, error)) {
        *returning = false;
        return false;
    }
    job->pivoted = place == ON_TARGET || place == TARGET_SETTLED;
    job->base.go_on_at = job->pivoted ? "prove" : "rollback";
    return true;
}

bool live_fail_back(struct live_job *job, GError **error)
{
    bool ok;

    if (!job->window && !note_sides(job, error))
        return false;
    for (guint i = 0; i < job->disks->len; i++)
        if (!live_disk_at(job, i)->merged && !window_name_layers(job, live_disk_at(job, i)->other,
                                                                 live_disk_at(job, i)->target_overlay, error))
            return false;
    live_turn(job);
    job->at_any_price = true;
    ok = set_out(job, error) && live_converge(&job->base, error) && live_switchover(&job->base, error);
    live_turn(job);
    job->at_any_price = false;
    job->interrupted &= !ok; /* what is rolled back next is this run's */
    return ok && job_event(&job->base, "result", error, "the machine is back");
}

/* ---- the phases ------------------------------------------------------------------------------------ */

/* A machine that was started anew does not have the source's layers open. */
static bool open_source(struct live_job *job, GError **error)
{
    for (guint i = 0; i < job->disks->len; i++) {
        struct live_disk *source = live_disk_at(job, i)->other;

        if (source->vm->layers->len > 1)
            return blockmig_fail(
                error, BLOCKMIG_ERROR_REFUSED,
                "the machine was started anew, and %s stands on other images: power it off, and "
                "give the command again",
                source->name);
        if (!window_open_layers(job, source, source->top, error))
            return false;
        source->based = true;
    }
    return true;
}

bool failback_converge(struct job *base, GError **error)
{
    struct live_job *job = live_of(base);
    bool anew = !live_disk_at(job, 0)->based;

    return (!anew || (open_source(job, error) && window_adopt(job, error))) && set_out(job, error) &&
           live_converge(base, error);
}

bool failback_undo(struct job *base, GError **error)
{
    struct live_job *job = live_of(base);

    if (job->uncertain || job->pivoted) {
        base->report->advice = g_strdup_printf(
            job->uncertain ? "it is not known on which side the machine runs: everything is kept"
                           : "the machine runs on the source; 'blockmig job failback %s' goes on",
            job->window);
        return true;
    }
    if (job->paused && !live_resume(job, NULL, error))
        return false;
    base->report->advice = g_strdup("the machine runs on the target as before, and the way back is open");
    return forget_attempt(job, error);
}

/* The source's layers become one image again, which has the disk's name. */
bool failback_return(struct job *base, GError **error)
{
    struct live_job *job = live_of(base);
    bool ok;

    base->end = "failed-back";
    live_turn(job);
    ok = live_leave(job, error);
    live_turn(job);
    return ok && job_event(base, "result", error, "the machine runs on the source as before the move");
}

/* It is proved that the source has all that they have. */
bool failback_remove(struct job *base, GError **error)
{
    struct live_job *job = live_of(base);

    base->end = "failed-back";
    for (guint i = 0; i < job->disks->len; i++) {
        struct live_disk *disk = live_disk_at(job, i);

        if (!live_remove_side(job, disk, error))
            return false;
        job_notice(base, "%s is removed", disk->name);
    }
    return true;
}
