/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The base phase: the frozen chain becomes one image on the target, while the machine writes to its overlay.
 */
#include "blockmig/migrate/live.h"
#include "blockmig/migrate/metadata.h"
#include "blockmig/storage/file.h"

struct image *live_create_target(struct live_job *job, const char *path, const struct format *format,
                                 const struct image_create_options *options, const struct storage *like,
                                 bool *created, GError **error)
{
    g_autoptr(image_t) target = NULL;
    g_autoptr(GPtrArray) left = NULL;
    struct storage *storage;
    bool device = g_file_test(path, G_FILE_TEST_EXISTS); /* by preflight nothing else may be there */

    if (!job_event(&job->base, "intent", error, "create %s", path))
        return NULL;
    storage = storage_file_open(path, device ? FILE_WRITE : FILE_WRITE | FILE_CREATE, NULL, NULL, error);
    if (!storage)
        return NULL;
    *created = true;
    left = metadata_carry(like->buffered_fd, storage->buffered_fd);
    for (guint i = 0; i < left->len; i++)
        job_notice(&job->base, "%s: not carried over: %s", path, (const char *)g_ptr_array_index(left, i));
    if (!image_create(storage, format, options, error)) {
        storage_close(storage);
        return NULL;
    }
    target = image_open(storage, format, true, error);
    if (target && target->cluster_size < 4096)
        storage_file_avoid_direct(target->storage);
    return target && storage_file_sync_directory(path, error) ? g_steal_pointer(&target) : NULL;
}

struct chain *live_source_below(const struct live_disk *disk)
{
    return disk->backing_name ? chain_view(disk->base, 1, chain_depth(disk->base) - 1, false) : NULL;
}

bool live_copy_layers(struct live_job *job, struct live_disk *disk, struct image *target, unsigned first,
                      unsigned count, struct digest_table *digests, struct disk_report *report,
                      struct copy_map_sum *sum, GError **error)
{
    unsigned end = first + count, depth = chain_depth(disk->base);
    g_autoptr(throttle_t) throttle = throttle_new(job->request->bandwidth);
    g_autoptr(chain_t) source = chain_view(disk->base, first, count, end < depth);
    g_autoptr(chain_t) below = end < depth ? chain_view(disk->base, end, depth - end, false) : NULL;
    struct copy_options options = {0};
    struct copy_result result = {0};
    bool ok;

    live_copy_options(job, &options);
    options.throttle = throttle;
    options.digests = digests;
    options.target_backing = below;
    ok = copy_run(source, target, &options, &result, error);
    report->counters = result.counters;
    job->base.report->bytes_read += result.counters.bytes_read;
    report->engine = result.engine;
    *sum = result.map_sum;
    copy_result_clear(&result);
    return ok;
}

/* The digests are of what the guest sees: with layers below they cannot be had by reading the top one. */
static bool copy_disk(struct live_job *job, struct live_disk *disk, GError **error)
{
    struct image_create_options options = {.size = disk->size,
                                           .backing_name = disk->backing_name,
                                           .backing_format = disk->backing_format,
                                           .values = disk->options};
    unsigned count = disk->backing_name ? 1 : chain_depth(disk->base);
    struct copy_map_sum sum;

    disk->target = live_create_target(job, disk->target_path, disk->format, &options,
                                      chain_layer(disk->base, 0)->storage, &disk->created, error);
    if (!disk->target)
        return false;
    if (!disk->backing_name)
        disk->digests = digest_table_new(job->request->digest, disk->size);
    return live_copy_layers(job, disk, disk->target, 0, count, disk->digests, disk->report, &sum, error);
}

bool live_base(struct job *base, GError **error)
{
    struct live_job *job = live_of(base);

    for (guint i = 0; i < job->disks->len; i++) {
        struct live_disk *disk = live_disk_at(job, i);

        /* The lock of this chain keeps writers away from the base until the end. */
        disk->base = live_open_base(disk, 0, error);
        if (!disk->base || !live_copy_below(job, disk, error))
            return false;
        live_tell(job, "%s", disk->vm->name);
        if (!copy_disk(job, disk, error))
            return false;
    }
    return true;
}
