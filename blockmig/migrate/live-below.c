/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the target stands on, if the chain is not made one image.
 *
 * keep: every layer below the machine's image is copied under its own name, from the lowest up, before the
 * image itself.  Nobody writes to these layers, so each is proved right after it was copied.  One that
 * several disks stand on is copied once.  shallow: the layers stay where they are, and the target names
 * them.  In both cases deltas go into the target's own top image and never into what is below it.
 */
#include "blockmig/migrate/live.h"
#include "blockmig/migrate/target.h"
#include "blockmig/storage/file.h"

#include <glib/gstdio.h>
#include <string.h>

static struct lower *lower_at(const GPtrArray *lowers, unsigned i)
{
    return g_ptr_array_index(lowers, i);
}

/* ---- preflight ---- */

static bool new_lower(struct live_job *job, struct live_disk *disk, const struct chain *source,
                      unsigned layer, struct lower *below, struct lower **out, GError **error)
{
    g_autofree char *directory = g_path_get_dirname(disk->target_path);
    g_autofree char *name = g_path_get_basename(g_ptr_array_index(source->paths, layer));
    g_autofree char *path = g_build_filename(directory, name, NULL);
    struct lower *lower;

    if (!live_is_free(job, path, job->disks->len, error))
        return false;
    lower = *out = lower_add(job->lowers, source, layer, path, path);
    if (!lower_choose(lower, job->request, chain_layer(source, layer), below, error) ||
        !live_runs_on(lower->format, error))
        return false;
    lower_describe(lower, job->base.report, job->request->digest);
    return true;
}

static bool keep_layers(struct live_job *job, struct live_disk *disk, const struct chain *source,
                        GError **error)
{
    struct lower *lower = NULL;

    if (disk->target_device)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "%s: a device holds one image: use --chain=flatten", disk->target_path);
    for (unsigned layer = chain_depth(source); layer-- > 1;) {
        struct lower *below = lower;

        lower = lower_find(job->lowers, chain_layer(source, layer));
        if (!lower && !new_lower(job, disk, source, layer, below, &lower, error))
            return false;
    }
    disk->lower = lower;
    disk->backing_name = target_backing_name(disk->target_path, lower->target_path);
    disk->backing_format = lower->format->name;
    return true;
}

bool live_choose_below(struct live_job *job, struct live_disk *disk, const struct chain *source,
                       GError **error)
{
    if (job->request->chain == CHAIN_FLATTEN || chain_depth(source) == 1)
        return true;
    if (job->request->chain == CHAIN_KEEP)
        return keep_layers(job, disk, source, error);
    disk->backing_name = target_backing_name(disk->target_path, g_ptr_array_index(source->paths, 1));
    disk->backing_format = chain_layer(source, 1)->format->name;
    return true;
}

/* ---- copying ---- */

bool live_save_lowers(struct live_job *job, GError **error)
{
    g_autofree char *tag = g_strdup_printf("%08x", job->tag);

    for (guint i = 0; i < job->lowers->len; i++) {
        const struct lower *lower = lower_at(job->lowers, i);
        /* No device is on it: that tells it from a disk. */
        struct journal_disk record = {.index = job->disks->len + lower->index,
                                      .source = lower->source_path,
                                      .target = lower->target_path,
                                      .source_format = (char *)lower->source_format->name,
                                      .target_format = (char *)lower->format->name,
                                      .target_identity = tag,
                                      .size = lower->size,
                                      .receipt = lower->report->receipt};

        if (!journal_disk_save(job->base.journal, job->base.record, &record, error))
            return false;
    }
    return true;
}

static bool finish_lower(struct live_job *job, struct lower *lower, struct digest_table *digests,
                         const struct copy_map_sum *sum, GError **error)
{
    struct storage *storage = storage_file_open(lower->target_path, 0, NULL, NULL, error);
    g_autoptr(image_t) image = storage ? image_open(storage, lower->format, false, error) : NULL;
    struct copy_options options = {0};

    live_copy_options(job, &options);
    return image && lower_prove(lower, image, job->request->verify, digests, sum, &options, error) &&
           live_write_receipt(job, lower->report, job->disks->len + lower->index, digests, error) &&
           live_save_lowers(job, error);
}

static bool copy_lower(struct live_job *job, struct live_disk *disk, struct lower *lower, unsigned layer,
                       GError **error)
{
    g_autoptr(digest_table_t) digests = digest_table_new(job->request->digest, lower->size);
    g_autofree char *backing = NULL;
    struct image_create_options options = lower_create_options(lower, &backing);
    struct copy_map_sum sum;
    struct image *target;
    bool ok;

    live_tell(job, "layer %u of %u: %s", lower->index + 1, job->lowers->len, lower->source_path);
    target = target_create(&job->base, lower->target_name, false, lower->format, &options,
                           chain_layer(disk->base, layer)->storage, &lower->created, error);
    ok = target && live_copy_layer(job, disk, target, layer, digests, lower->report, &sum, error);
    image_close(target);
    return ok && finish_lower(job, lower, digests, &sum, error);
}

/* Layer `layer` of the source and what it stands on, the lowest first. */
static bool copy_from(struct live_job *job, struct live_disk *disk, struct lower *lower, unsigned layer,
                      GError **error)
{
    return !lower || lower->created ||
           (copy_from(job, disk, lower->below, layer + 1, error) &&
            copy_lower(job, disk, lower, layer, error));
}

bool live_copy_below(struct live_job *job, struct live_disk *disk, GError **error)
{
    return copy_from(job, disk, disk->lower, 1, error);
}

/* ---- in the hypervisor ---- */

static char *lower_node(const struct live_job *job, const struct lower *lower)
{
    return g_strdup_printf("bm-%08x-below%u", job->tag, lower->index);
}

static bool add_from(struct live_job *job, struct live_disk *disk, struct lower *lower, GError **error)
{
    g_autofree char *node = NULL, *below = NULL;

    if (!lower || lower->open)
        return true;
    node = lower_node(job, lower);
    below = lower->below ? lower_node(job, lower->below) : NULL;
    lower->open = add_from(job, disk, lower->below, error) &&
                  live_add_node(job, disk, node, lower->target_path, lower->format->name, below, true, error);
    return lower->open;
}

bool live_add_below(struct live_job *job, struct live_disk *disk, GError **error)
{
    return add_from(job, disk, disk->lower, error);
}

/* Of the shallow target it is the machine's own node. */
char *live_below_node(const struct live_job *job, const struct live_disk *disk)
{
    if (disk->lower)
        return lower_node(job, disk->lower);
    return disk->backing_name
               ? g_strdup(((const struct vm_layer *)g_ptr_array_index(disk->vm->layers, 1))->node)
               : NULL;
}

void live_remove_target_nodes(struct live_job *job)
{
    for (guint i = 0; i < job->disks->len; i++) {
        g_autofree char *overlay = live_new_node(job, live_disk_at(job, i));
        g_autofree char *merged = live_merged_node(job, live_disk_at(job, i));

        vm_remove_node(job->vm, overlay, NULL);
        vm_remove_node(job->vm, merged, NULL);
    }
    for (guint i = job->lowers->len; i-- > 0;) {
        g_autofree char *node = lower_node(job, lower_at(job->lowers, i));

        vm_remove_node(job->vm, node, NULL);
        lower_at(job->lowers, i)->open = false;
    }
}

void live_remove_below(struct live_job *job)
{
    for (guint i = job->lowers->len; i-- > 0;) {
        struct lower *lower = lower_at(job->lowers, i);

        if (lower->created)
            g_unlink(lower->target_path);
        lower->created = false;
    }
}
