/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The base phase: the frozen chain becomes one image on the target, while the machine writes to its overlay.
 * An interrupted one goes on from its checkpoint, if what was frozen is the same as then.
 */
#include "blockmig/migrate/live-watch.h"
#include "blockmig/migrate/target.h"
#include "blockmig/storage/file.h"
#include "blockmig/storage/uri.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <string.h>

/* ---- a new target ---- */

/* What an earlier run made is of no use any more. */
static bool remove_old_target(const struct live_disk *disk, GError **error)
{
    return !disk->created || disk->target_device || g_unlink(disk->target_path) == 0 || errno == ENOENT ||
           blockmig_set_errno(error, errno, "removing %s", disk->target_path);
}

static bool create_target(struct live_job *job, struct live_disk *disk, GError **error)
{
    struct image_create_options options = {.size = disk->size,
                                           .backing_name = disk->backing_name,
                                           .backing_format = disk->backing_format,
                                           .values = disk->options};

    checkpoint_begin(&disk->done, job->request->digest, disk->size);
    if (!journal_checkpoint_forget(job->base.journal, job->base.record, disk->index, error) ||
        !live_save_disk(job, disk, error) || !remove_old_target(disk, error))
        return false;
    disk->target = target_create(&job->base, disk->target_path, live_exists(disk->target_path), disk->format,
                                 &options, chain_layer(disk->base, 0)->storage, &disk->created, error);
    return disk->target != NULL;
}

/* ---- one that an earlier run began ---- */

/* A device has no time of its last change: what was copied from it is read again. */
static bool is_unchanged(struct live_job *job, struct live_disk *disk, const char *identity, bool certain,
                         bool *unchanged, GError **error)
{
    struct copy_options how = {0};
    uint64_t differs;

    *unchanged = g_strcmp0(identity, disk->frozen) == 0;
    if (!*unchanged || certain || disk->done.frontier == 0)
        return true;
    live_copy_options(job, &how);
    how.progress = NULL;
    if (!checkpoint_first_difference(disk->base, disk->done.digests, 0, disk->done.frontier, &how, &differs,
                                     error))
        return false;
    *unchanged = differs == disk->done.frontier;
    return true;
}

static bool check_source(struct live_job *job, struct live_disk *disk, GError **error)
{
    bool certain, unchanged;
    g_autofree char *identity = checkpoint_source_identity(disk->base, &certain, error);

    if (!identity || !is_unchanged(job, disk, identity, certain, &unchanged, error))
        return false;
    if (!unchanged && disk->done.frontier > 0) {
        job_notice(&job->base, "%s changed since it was copied: copying it from the beginning", disk->name);
        disk->done.frontier = 0;
    }
    g_free(disk->frozen);
    disk->frozen = g_steal_pointer(&identity);
    return true;
}

static struct image *open_left(void *opaque, bool writable, GError **error)
{
    const struct live_disk *disk = opaque;
    struct storage *storage =
        live_storage_open(disk->target_path, writable ? FILE_WRITE : FILE_NO_LOCK, NULL, NULL, error);

    return storage ? image_open(storage, disk->format, writable, error) : NULL;
}

/* The stretch before the checkpoint is compared only as long as no overlay can have been merged into it; the
 * whole target is, in the end. */
static bool take_up_target(struct live_job *job, struct live_disk *disk, GError **error)
{
    const struct checkpoint_target left = {.open = open_left,
                                           .opaque = disk,
                                           .size = disk->size,
                                           .preallocation =
                                               g_hash_table_lookup(disk->options, "preallocation"),
                                           .changed = disk->done.frontier == disk->size};
    struct copy_options how = {0};

    live_copy_options(job, &how);
    how.progress = NULL;
    return checkpoint_take_up(&disk->done, &job->base, &left, &how, &disk->target, error);
}

static bool open_target(struct live_job *job, struct live_disk *disk, GError **error)
{
    if (!check_source(job, disk, error))
        return false;
    if (disk->done.frontier > 0 && !disk->created)
        disk->done.frontier = 0;
    if (disk->done.frontier > 0 && !take_up_target(job, disk, error))
        return false;
    if (!disk->target && !create_target(job, disk, error))
        return false;
    if (disk->target->cluster_size < 4096)
        storage_file_avoid_direct(disk->target->storage);
    return true;
}

/* ---- copying ---- */

struct chain *live_source_below(const struct live_disk *disk)
{
    return disk->backing_name ? chain_view(disk->base, 1, chain_depth(disk->base) - 1, false) : NULL;
}

bool live_copy_layer(struct live_job *job, struct live_disk *disk, struct image *target, unsigned layer,
                     struct digest_table *digests, struct disk_report *report, struct copy_map_sum *sum,
                     GError **error)
{
    struct copy_options options = {0};

    live_copy_options(job, &options);
    options.digests = digests;
    return lower_copy(disk->base, layer, target, &options, job->base.report, report, sum, error);
}

/* The digests are of what the guest sees: with layers below they cannot be had by reading the top one. */
static bool copy_top(struct live_job *job, struct live_disk *disk, GError **error)
{
    struct copy_map_sum sum;

    checkpoint_clear(&disk->done);
    return live_copy_layer(job, disk, disk->target, 0, NULL, disk->report, &sum, error);
}

static bool copy_disk(struct live_job *job, struct live_disk *disk, GError **error)
{
    struct copy_options options = {0};

    live_copy_options(job, &options);
    return checkpoint_copy(&disk->done, &job->base, disk->index, disk->base, disk->target, &options,
                           disk->report, error);
}

/* Preflight has not chosen those of an interrupted job. */
static bool choose_options(const struct live_job *job, struct live_disk *disk, GError **error)
{
    return disk->options ||
           target_format(job->request->target_format, job->request->target_options,
                         chain_layer(disk->base, 0), false, true, &disk->format, &disk->options, error);
}

static bool copy_disks(struct live_job *job, GError **error)
{
    for (guint i = 0; i < job->disks->len; i++) {
        struct live_disk *disk = live_disk_at(job, i);
        const char *told;

        /* The lock of this chain keeps writers away from the base until the end. */
        disk->base = live_open_base(disk, 0, error);
        if (!disk->base || !live_copy_below(job, disk, error))
            return false;
        live_tell(job, "%s", disk->vm->name);
        if (!choose_options(job, disk, error) || !open_target(job, disk, error))
            return false;
        told = disk->target->storage->notice;
        job_storage_notice(&job->base, disk->target->storage, NULL);
        if (disk->backing_name ? !copy_top(job, disk, error)
                               : disk->done.frontier < disk->size && !copy_disk(job, disk, error))
            return false;
        job_storage_notice(&job->base, disk->target->storage, told);
    }
    return true;
}

bool live_base(struct job *base, GError **error)
{
    struct live_job *job = live_of(base);
    int64_t begin = g_get_monotonic_time();
    bool ok;

    live_share_begin(job);
    ok = copy_disks(job, error);
    live_share_end(job);
    job->pace.base_time = (double)(g_get_monotonic_time() - begin) / G_USEC_PER_SEC;
    return ok;
}
