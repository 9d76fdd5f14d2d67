/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/migrate/lower.h"

#include "blockmig/migrate/target.h"
#include "blockmig/storage/file.h"
#include "blockmig/storage/names.h"

#include <string.h>

void lower_free(struct lower *lower)
{
    g_clear_pointer(&lower->options, g_hash_table_unref);
    g_free(lower->identity);
    g_free(lower->source_path);
    g_free(lower->target_name);
    g_free(lower->target_path);
    g_free(lower);
}

struct lower *lower_find(const GPtrArray *lowers, const struct image *image)
{
    for (guint i = 0; i < lowers->len; i++) {
        struct lower *lower = g_ptr_array_index(lowers, i);

        if (strcmp(lower->identity, image->storage->identity) == 0)
            return lower;
    }
    return NULL;
}

struct lower *lower_add(GPtrArray *lowers, const struct chain *source, unsigned layer,
                        const char *target_name, const char *target_path)
{
    struct image *image = chain_layer(source, layer);
    struct lower *lower = g_new0(struct lower, 1);

    lower->index = lowers->len;
    lower->identity = g_strdup(image->storage->identity);
    lower->source_path = g_strdup(g_ptr_array_index(source->paths, layer));
    lower->target_name = g_strdup(target_name);
    lower->target_path = g_strdup(target_path);
    lower->source_format = image->format;
    lower->size = image->size;
    lower->allocated = storage_file_allocated(image->storage);
    g_ptr_array_add(lowers, lower);
    return lower;
}

struct image_create_options lower_create_options(const struct lower *lower, char **backing)
{
    struct image_create_options options = {.size = lower->size, .values = lower->options};

    *backing = lower->below ? target_backing_name(lower->target_path, lower->below->target_path) : NULL;
    if (lower->below) {
        options.backing_name = *backing;
        options.backing_format = lower->below->format->name;
    }
    return options;
}

bool lower_choose(struct lower *lower, const struct move_request *request, struct image *image,
                  struct lower *below, GError **error)
{
    g_autofree char *backing = NULL;
    struct image_create_options options;

    lower->below = below;
    if (!target_format(request->target_format, request->target_options, image, below != NULL, false,
                       &lower->format, &lower->options, error))
        return false;
    options = lower_create_options(lower, &backing);
    return image_measure(lower->format, &options, MIN(lower->allocated, lower->size), &lower->needed, error);
}

bool lower_copy(const struct chain *base, unsigned layer, struct image *target, struct copy_options *options,
                struct job_report *report, struct disk_report *of, struct copy_map_sum *sum, GError **error)
{
    unsigned above = layer + 1, depth = chain_depth(base);
    g_autoptr(chain_t) source = above < depth ? chain_view_units(base, layer, target->granularity)
                                              : chain_view(base, layer, 1, false);
    g_autoptr(chain_t) below = above < depth ? chain_view(base, above, depth - above, false) : NULL;
    struct copy_result result = {0};
    bool ok;

    options->target_backing = below;
    ok = copy_run(source, target, options, &result, error);
    options->target_backing = NULL;
    of->counters = result.counters;
    of->engine = result.engine;
    report->bytes_read += result.counters.bytes_read;
    *sum = result.map_sum;
    copy_result_clear(&result);
    return ok;
}

bool lower_prove(const struct lower *lower, struct image *image, enum verify_mode verify,
                 struct digest_table *digests, const struct copy_map_sum *sum,
                 const struct copy_options *options, GError **error)
{
    struct copy_result result = {0};
    struct name_info info;
    bool ok;

    if (name_look(lower->target_name, &info, NULL))
        lower->report->target_allocated = info.allocated;
    ok = verify != VERIFY_FULL || copy_prove(image, digests, sum, options, &result, error);
    copy_result_clear(&result);
    return ok;
}

void lower_describe(struct lower *lower, struct job_report *report, enum digest_algorithm algorithm)
{
    struct disk_report *disk = g_new0(struct disk_report, 1);

    disk->disk = g_path_get_basename(lower->target_path);
    disk->source = g_strdup(lower->source_path);
    disk->target = g_strdup(lower->target_name);
    disk->source_format = g_strdup(lower->source_format->name);
    disk->target_format = g_strdup(lower->format->name);
    disk->virtual_size = lower->size;
    disk->source_allocated = lower->allocated;
    disk->algorithm = algorithm;
    disk->layer = true;
    lower->report = disk;
    g_ptr_array_add(report->disks, disk);
}
