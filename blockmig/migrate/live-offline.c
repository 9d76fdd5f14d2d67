/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Recovery without the machine: it was switched off or killed in the middle of a move, and what is left are
 * files.  Before the switch the overlays go into the source and the source gets its name back; after it, the
 * overlay of the target goes into the target.  All by our own copier, under the images' locks, and each step
 * such that it can be repeated.
 *
 * Which side the machine was on is certain from the phase, except within the switch: there the target's
 * overlay tells, which is empty unless the machine has written to it; if it is empty, nothing is missing in
 * the source, whichever it was.
 */
#include "blockmig/migrate/live.h"
#include "blockmig/storage/file.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/stat.h>

/* ---- is it really off? ---- */

/* A machine that writes to the file holds its lock; one without locks has it open. */
static bool is_free(const struct live_job *job, const char *path, GError **error)
{
    g_autoptr(GError) local = NULL;
    g_autoptr(storage_t) storage = NULL;
    g_autoptr(GPtrArray) users = NULL;

    if (storage_name_is_uri(path))
        return blockmig_fail(
            error, BLOCKMIG_ERROR_UNREACHABLE,
            "%s does not answer, and nobody can tell whether %s is in use. Nothing was touched",
            job->request->machine, path);
    storage = storage_file_open(path, 0, NULL, NULL, &local);
    users = storage_file_users(path);
    if (storage && users->len == 0)
        return true;
    return blockmig_fail(error, BLOCKMIG_ERROR_UNREACHABLE,
                         "%s does not answer, but it may still run: %s%s%s. Nothing was touched",
                         job->request->machine, storage ? path : local->message,
                         users->len ? " is open in process " : "",
                         users->len ? (const char *)g_ptr_array_index(users, 0) : "");
}

static bool check_file(const struct live_job *job, const char *path, GError **error)
{
    return !g_file_test(path, G_FILE_TEST_EXISTS) || is_free(job, path, error);
}

static bool check_files(const struct live_job *job, const struct journal_disk *saved, GError **error)
{
    struct live_disk *disk = live_rebuild_paths(job, saved);
    unsigned highest = 0;
    /* A machine that runs on a target on a server holds the overlay above it, or has left nothing to do. */
    bool ok = (!live_exists(saved->source) || is_free(job, saved->source, error)) &&
              check_file(job, saved->target, error) && check_file(job, disk->target_overlay, error);

    live_highest_file(disk, &highest);
    for (unsigned n = 0; ok && n <= highest; n++) {
        g_autofree char *path = live_numbered(disk, n);

        ok = check_file(job, path, error);
    }
    live_disk_free(disk);
    return ok;
}

/* ---- what is there ---- */

static struct vm_disk *stand_in(const struct journal_disk *saved)
{
    struct vm_disk *vm = vm_disk_new();
    struct vm_layer *layer = g_new0(struct vm_layer, 1);

    vm->name = g_path_get_basename(saved->source);
    vm->qdev = g_strdup(saved->source_identity);
    vm->node = g_strdup("");
    vm->virtual_size = saved->size;
    layer->node = g_strdup("#");
    layer->filename = g_strdup(saved->source);
    g_ptr_array_add(vm->layers, layer);
    return vm;
}

static void describe(struct live_job *job, GPtrArray *disks)
{
    vm_description_free(job->description);
    job->description = vm_description_new();
    for (guint i = 0; i < disks->len; i++)
        g_ptr_array_add(job->description->disks, stand_in(g_ptr_array_index(disks, i)));
}

static struct storage *open_anywhere(void *opaque, const char *path, const char *const *roots, bool writable,
                                     char **real_path, GError **error)
{
    return storage_file_open(path, FILE_NO_LOCK, NULL, real_path, error);
}

/* The machine had all of it open, wherever it is. */
bool live_describe_base(struct live_disk *disk, GError **error)
{
    const struct chain_policy policy = {.open = open_anywhere};
    g_autofree char *path = live_layer_path(disk, 0);
    g_autoptr(chain_t) chain = NULL;

    g_ptr_array_set_size(disk->vm->layers, 0);
    if (!g_file_test(path, G_FILE_TEST_EXISTS))
        return true; /* it was given its last name already */
    if (!(chain = chain_open(path, disk->source_format, &policy, error)))
        return false;
    for (unsigned i = 0; i < chain_depth(chain); i++) {
        struct vm_layer *layer = g_new0(struct vm_layer, 1);

        layer->node = g_strdup("#");
        layer->format = g_strdup(chain_layer(chain, i)->format->name);
        layer->filename = g_strdup(g_ptr_array_index(chain->paths, i));
        g_ptr_array_add(disk->vm->layers, layer);
    }
    return true;
}

/* Who has the disk's name: the top layer, nobody, or layer 0. */
static void look_at_source(const struct live_job *job, struct live_disk *disk)
{
    unsigned below;

    disk->base_renamed = true;
    if (live_stands_on(disk, disk->name, &below)) {
        disk->top = below + 1;
    } else if (!g_file_test(disk->name, G_FILE_TEST_EXISTS)) {
        disk->top = disk->files;
        disk->set_aside = disk->by_exchange;
    } else if (disk->by_exchange) {
        g_autofree char *first = g_strconcat(disk->name, ".blockmig-0", NULL);

        disk->base_renamed = false;
        disk->top = live_is_overlay(disk, first) && !live_is_merged(first);
    } else {
        disk->base_renamed = false;
        disk->top = disk->files;
    }
    disk->straddles = disk->overlay_created && !live_overlay_is_empty(disk->target_overlay) &&
                      !live_has_event(job, "result", LIVE_RETURNED);
    disk->snapshotted = disk->top > 0;
    disk->files = MAX(disk->files, disk->top);
}

static void look_at_target(struct live_disk *disk)
{
    disk->top = disk->files;
    disk->snapshotted = disk->created = true;
    disk->base_renamed = !disk->device;
    disk->set_aside = disk->by_exchange;
    disk->settled = !disk->overlay_created;
}

static bool was_switched(const struct live_job *job)
{
    static const char *const after[] = {"settle", "cleanup", NULL};
    const char *phase = job->base.record->phase;
    /* Its proof came first: both sides are the same below the target's overlay. */
    bool straddled = live_has_event(job, "result", LIVE_STRADDLES);

    if (g_strv_contains(after, phase) || strcmp(phase, straddled ? "switchover" : "prove") == 0)
        return !live_has_event(job, "result", LIVE_RETURNED);
    if (straddled || strcmp(phase, "switchover") != 0)
        return false;
    for (guint i = 0; i < job->disks->len; i++) {
        const struct live_disk *disk = live_disk_at(job, i);

        if (disk->overlay_created && !live_overlay_is_empty(disk->target_overlay))
            return true;
    }
    return false;
}

bool live_look_offline(struct live_job *job, GPtrArray *disks, GError **error)
{
    for (guint i = 0; i < disks->len; i++)
        if (!check_files(job, g_ptr_array_index(disks, i), error))
            return false;
    job_notice(&job->base, "the machine does not run any more: only its files are looked after");
    describe(job, disks);
    for (guint i = 0; i < disks->len; i++) {
        struct live_disk *disk = live_rebuild(job, g_ptr_array_index(disks, i), error);

        if (!disk)
            return false;
        live_describe_disk(job, disk);
    }
    job->pivoted = was_switched(job);
    if (job->pivoted && live_has_event(job, "intent", LIVE_RETURN))
        return blockmig_fail(error, BLOCKMIG_ERROR_UNCERTAIN,
                             "job %s: the machine was being brought back to the source as it ended: on which "
                             "side it wrote last is not known, and both are kept",
                             job->base.record->id);
    for (guint i = 0; i < job->disks->len; i++) {
        struct live_disk *disk = live_disk_at(job, i);

        if (job->pivoted)
            look_at_target(disk);
        else
            look_at_source(job, disk);
        if (!live_describe_base(disk, error))
            return false;
    }
    if (!job->pivoted)
        job->give_up = true;
    else if (job->give_up)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "the machine ran on the target: 'blockmig job resume %s' finishes the move",
                             job->base.record->id);
    return true;
}

/* ---- back to the source ---- */

/* Was layer 0 written to after the overlay over it?  Then somebody has started the machine from it. */
static bool is_older(const char *overlay, const char *base)
{
    struct stat above, below;

    return stat(overlay, &above) == 0 && stat(base, &below) == 0 &&
           (above.st_mtim.tv_sec < below.st_mtim.tv_sec ||
            (above.st_mtim.tv_sec == below.st_mtim.tv_sec && above.st_mtim.tv_nsec < below.st_mtim.tv_nsec));
}

/* As long as it has not its name, nobody has written to layer 0 but us; unless the machine was about to leave
 * the overlays for it. */
static bool check_base(const struct live_job *job, const struct live_disk *disk, GError **error)
{
    g_autofree char *base = live_layer_path(disk, 0), *top = live_layer_path(disk, disk->top);
    g_autofree char *merging = g_strconcat(LIVE_MERGE, base, NULL);
    g_autofree char *leaving = g_strconcat(LIVE_LEAVE, disk->name, NULL);
    bool was_leaving = live_has_event(job, "intent", leaving);

    return (disk->base_renamed && !was_leaving) || live_has_event(job, "intent", merging) ||
           live_overlay_is_empty(top) || !is_older(top, base) ||
           blockmig_fail(
               error, BLOCKMIG_ERROR_UNCERTAIN,
               "%s was written to after %s was put over it: one of them is stale, and both are kept", base,
               top);
}

static bool merge(struct live_job *job, struct live_disk *disk, GError **error)
{
    g_autofree char *base = live_layer_path(disk, 0), *top = live_layer_path(disk, disk->top);

    if (disk->top == 0 || live_is_merged(top))
        return true;
    return check_base(job, disk, error) && job_event(&job->base, "intent", error, LIVE_MERGE "%s", base) &&
           live_merge_source(job, disk, error) && live_mark_merged(top, error);
}

bool live_leave_offline(struct live_job *job, GError **error)
{
    for (guint i = 0; i < job->disks->len; i++) {
        struct live_disk *disk = live_disk_at(job, i);

        live_tell(job, "%s", disk->vm->name);
        if (!merge(job, disk, error) || !live_layer_restore_name(disk, error))
            return false;
        live_layers_forget(job, disk);
    }
    return true;
}

/* ---- on the target ---- */

static bool merge_target(struct live_job *job, struct live_disk *disk, GError **error)
{
    g_autoptr(chain_t) overlay = live_open_overlay(disk->target_overlay, 0, error);
    struct storage *storage =
        overlay ? live_storage_open(disk->target_path, FILE_WRITE, NULL, NULL, error) : NULL;
    g_autoptr(image_t) target = storage ? image_open(storage, disk->format, true, error) : NULL;
    struct live_shipment shipment = {0};

    if (target && target->cluster_size < 4096)
        storage_file_avoid_direct(target->storage);
    return target && live_ship(job, disk, overlay, target, &shipment, error);
}

/* If the machine was about to leave the overlay when all died, it may have written to either. */
static bool check_target(const struct live_job *job, const struct live_disk *disk, GError **error)
{
    g_autofree char *leaving = g_strconcat(LIVE_LEAVE, disk->target_overlay, NULL);
    g_autofree char *merging = g_strconcat(LIVE_MERGE, disk->target_overlay, NULL);

    return !live_has_event(job, "intent", leaving) || live_has_event(job, "intent", merging) ||
           !is_older(disk->target_overlay, disk->target_path) ||
           blockmig_fail(
               error, BLOCKMIG_ERROR_UNCERTAIN,
               "%s and %s were both written to as the machine changed from one to the other: both are "
               "kept",
               disk->target_overlay, disk->target_path);
}

bool live_settle_offline(struct live_job *job, struct live_disk *disk, GError **error)
{
    if (disk->settled || live_is_merged(disk->target_overlay))
        return true;
    return check_target(job, disk, error) &&
           job_event(&job->base, "intent", error, LIVE_MERGE "%s", disk->target_overlay) &&
           merge_target(job, disk, error) && live_mark_merged(disk->target_overlay, error);
}
