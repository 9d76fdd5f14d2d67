/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The base phase: the frozen chain becomes one image on the target, while the machine writes to its overlay.
 */
#include "blockmig/migrate/live.h"
#include "blockmig/migrate/metadata.h"
#include "blockmig/storage/file.h"

static bool create_target(struct live_job *job, struct live_disk *disk, GError **error)
{
    struct image_create_options options = {.size = disk->size, .values = disk->options};
    struct storage *storage;
    g_autoptr(GPtrArray) left = NULL;

    if (!job_event(&job->base, "intent", error, "create %s", disk->target_path))
        return false;
    storage = storage_file_open(disk->target_path, disk->target_device ? FILE_WRITE : FILE_WRITE | FILE_CREATE,
                                NULL, NULL, error);
    if (!storage)
        return false;
    disk->created = true;
    left = metadata_carry(chain_layer(disk->base, 0)->storage->buffered_fd, storage->buffered_fd);
    for (guint i = 0; i < left->len; i++)
        job_notice(&job->base, "%s: not carried over: %s", disk->target_path,
                   (const char *)g_ptr_array_index(left, i));
    if (!image_create(storage, disk->format, &options, error)) {
        storage_close(storage);
        return false;
    }
    disk->target = image_open(storage, disk->format, true, error);
    if (disk->target && disk->target->cluster_size < 4096)
        storage_file_avoid_direct(disk->target->storage);
    return disk->target && storage_file_sync_directory(disk->target_path, error);
}

static bool copy_disk(struct live_job *job, struct live_disk *disk, GError **error)
{
    g_autoptr(throttle_t) throttle = throttle_new(job->request->bandwidth);
    struct copy_options options = {0};
    struct copy_result result = {0};
    bool ok;

    disk->digests = digest_table_new(job->request->digest, disk->size);
    live_copy_options(job, &options);
    options.throttle = throttle;
    options.digests = disk->digests;
    ok = copy_run(disk->base, disk->target, &options, &result, error);
    disk->report->counters = result.counters;
    job->base.report->bytes_read += result.counters.bytes_read;
    disk->report->engine = result.engine;
    copy_result_clear(&result);
    return ok;
}

bool live_base(struct job *base, GError **error)
{
    struct live_job *job = live_of(base);

    for (guint i = 0; i < job->disks->len; i++) {
        struct live_disk *disk = live_disk_at(job, i);

        live_tell(job, "%s", disk->vm->name);
        /* The lock of this chain keeps writers away from the base until the end. */
        disk->base = live_open_base(disk, 0, error);
        if (!disk->base || !create_target(job, disk, error) || !copy_disk(job, disk, error))
            return false;
    }
    return true;
}
