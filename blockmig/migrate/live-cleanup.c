/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The cleanup phase: the source becomes one valid image again, as of the switch, under another name; or it is
 * deleted.  Nothing else stays.
 */
#include "blockmig/migrate/live.h"
#include "blockmig/storage/file.h"
#include "blockmig/storage/uri.h"

#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <stdio.h>

static bool write_overlays(struct live_job *job, struct chain *overlays, struct image *base,
                           struct chain *below, GError **error)
{
    struct copy_options options = {0};
    struct copy_result result = {0};
    bool ok;

    base->reads_zero = false; /* there is data already: zeros have to be written */
    live_copy_options(job, &options);
    options.progress = NULL;
    options.target_backing = below;
    ok = copy_run(overlays, base, &options, &result, error);
    copy_result_clear(&result);
    return ok;
}

/* The lowest overlay that is still there: an interrupted run may have removed some, from below. */
static unsigned lowest(const struct live_disk *disk)
{
    for (unsigned layer = 1; layer <= disk->top; layer++) {
        g_autofree char *path = live_layer_path(disk, layer);

        if (g_file_test(path, G_FILE_TEST_EXISTS))
            return layer;
    }
    return disk->top + 1;
}

/* With what a machine wrote to the target's overlay while that stood on the source. */
static struct chain *open_overlays(const struct live_disk *disk, unsigned from, GError **error)
{
    g_autoptr(chain_t) own = live_open_overlays(disk, from, error);
    g_autoptr(chain_t) all = NULL;

    if (!own || !disk->straddles)
        return g_steal_pointer(&own);
    if (!(all = live_open_overlay(disk->target_overlay, 0, error)))
        return NULL;
    while (chain_depth(own) > 0)
        chain_append(all, (struct image *)g_ptr_array_steal_index(own->layers, 0));
    return g_steal_pointer(&all);
}

bool live_merge_into_base(struct live_job *job, struct live_disk *disk, struct chain *overlays,
                          GError **error)
{
    g_autofree char *path = live_layer_path(disk, 0);
    /* Only what is below layer 0 is read through this; layer 0 itself is about to be locked for writing. */
    g_autoptr(chain_t) chain = live_open_base(disk, FILE_NO_LOCK, error);
    unsigned depth = chain ? chain_depth(chain) : 0;
    g_autoptr(chain_t) below = depth > 1 ? chain_view(chain, 1, depth - 1, false) : NULL;
    g_autoptr(image_t) base = NULL;
    struct storage *storage;

    if (!chain)
        return false;
    g_clear_pointer(&disk->base, chain_close);
    live_device_freeze(disk, false);
    storage = live_storage_open(path, FILE_WRITE, NULL, NULL, error);
    base = storage ? image_open(storage, disk->source_format, true, error) : NULL;
    if (base && base->cluster_size < 4096)
        storage_file_avoid_direct(base->storage);
    return base && write_overlays(job, overlays, base, below, error);
}

bool live_merge_source(struct live_job *job, struct live_disk *disk, GError **error)
{
    unsigned from = disk->device ? lowest(disk) : 1; /* a file that was merged has another name */
    g_autoptr(chain_t) overlays = open_overlays(disk, from, error);

    return overlays && live_merge_into_base(job, disk, overlays, error);
}

/* From below: as long as any are there, merging them once more gives the content of the switch. */
static bool remove_overlays(struct live_disk *disk, GError **error)
{
    for (unsigned layer = 1; layer <= disk->top; layer++)
        if (!live_layer_remove(disk, layer, error))
            return false;
    disk->top = 0;
    return true;
}

/* A device keeps its name, so it is read-only again before it is the only copy: a start from the old command
 * line fails. */
static bool keep_device(struct live_job *job, struct live_disk *disk, GError **error)
{
    bool frozen;

    if (lowest(disk) <= disk->top && !live_merge_source(job, disk, error))
        return false;
    frozen = live_device_freeze(disk, true);
    if (!remove_overlays(disk, error))
        return false;
    if (frozen)
        job_notice(&job->base,
                   "the source of %s is kept on %s, read-only until this host is booted: "
                   "\"blockdev --setrw\" frees it",
                   disk->vm->name, disk->name);
    else
        job_notice(&job->base,
                   "the source of %s is kept on %s, which cannot be made read-only: the machine must not be "
                   "started from it",
                   disk->vm->name, disk->name);
    return true;
}

/* Whoever starts the machine from its old command line finds nothing under the old name, and no stale data.
 */
static bool keep_file(struct live_job *job, struct live_disk *disk, const char *base, GError **error)
{
    g_autofree char *kept = g_strconcat(disk->name, ".blockmig-source", NULL);

    /* An interrupted run may have come as far as this. */
    if (!job->interrupted || g_file_test(base, G_FILE_TEST_EXISTS)) {
        if (!live_merge_source(job, disk, error))
            return false;
        if (renameat2(AT_FDCWD, base, AT_FDCWD, kept, RENAME_NOREPLACE) < 0)
            return blockmig_set_errno(error, errno, "renaming %s to %s", base, kept);
    }
    if (!remove_overlays(disk, error))
        return false;
    job_notice(&job->base, "the source of %s is kept as %s", disk->vm->name, kept);
    return true;
}

static bool delete_source(struct live_job *job, struct live_disk *disk, const char *base, GError **error)
{
    g_clear_pointer(&disk->base, chain_close);
    if (!job_event(&job->base, "intent", error, "delete %s", base))
        return false;
    if (g_unlink(base) < 0 && errno != ENOENT)
        return blockmig_set_errno(error, errno, "removing %s", base);
    for (guint i = 1; i < disk->vm->layers->len; i++)
        job_notice(&job->base, "%s is kept: other images may stand on it",
                   ((const struct vm_layer *)g_ptr_array_index(disk->vm->layers, i))->filename);
    return remove_overlays(disk, error);
}

static bool clean_disk(struct live_job *job, struct live_disk *disk, GError **error)
{
    g_autofree char *base = live_layer_path(disk, 0);
    bool ok = job->request->delete_source ? delete_source(job, disk, base, error)
              : disk->device              ? keep_device(job, disk, error)
                                          : keep_file(job, disk, base, error);
    g_autoptr(storage_t) target = NULL;

    if (!ok || !storage_file_sync_directory(disk->stem, error))
        return false;
    target = live_storage_open(disk->target_path, FILE_NO_LOCK, NULL, NULL, error);
    if (!target)
        return false;
    if (!storage_name_is_uri(disk->target_path))
        disk->report->target_allocated = storage_file_allocated(target);
    return true;
}

bool live_cleanup(struct job *base, GError **error)
{
    struct live_job *job = live_of(base);

    for (guint i = 0; i < job->disks->len; i++)
        if (!clean_disk(job, live_disk_at(job, i), error))
            return false;
    if (job->request->delete_source)
        base->report->source = "deleted";
    return true;
}
