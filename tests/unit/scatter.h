/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An image format that exists for tests only: clusters anywhere on the storage, its table in memory.
 *
 * A compressed unit is a cluster of one repeated byte, packed into eight of them.
 */
#ifndef TESTS_UNIT_SCATTER_H
#define TESTS_UNIT_SCATTER_H

#include "formats/image.h"

#include <string.h>

struct scatter_cluster {
    enum extent_status status;
    uint64_t host;
};

struct scatter {
    uint64_t size;
    uint32_t cluster;
    struct scatter_cluster *clusters;
    uint64_t count, next_host;
    bool preallocated;        /* reads_zero although everything is mapped */
    const char *backing_name; /* or NULL */
    unsigned zero_calls;
};

static struct scatter *scatter_opening; /* what the next image_open() finds */

static inline struct scatter *scatter_new(uint64_t size, uint32_t cluster)
{
    struct scatter *scatter = g_new0(struct scatter, 1);

    scatter->size = size;
    scatter->cluster = cluster;
    scatter->count = (size + cluster - 1) / cluster;
    scatter->clusters = g_new0(struct scatter_cluster, scatter->count);
    for (uint64_t i = 0; i < scatter->count; i++)
        scatter->clusters[i].status = EXTENT_HOLE;
    scatter->next_host = 3 * cluster;
    return scatter;
}

static inline void scatter_free(struct scatter *scatter)
{
    g_free(scatter->clusters);
    g_free(scatter);
}

static bool scatter_open(struct image *image, GError **error)
{
    struct scatter *scatter = scatter_opening;

    image->opaque = scatter;
    image->size = scatter->size;
    image->granularity = image->cluster_size = image->packed_unit = scatter->cluster;
    image->backing_name = g_strdup(scatter->backing_name);
    image->reads_zero = !scatter->backing_name;
    return true;
}

static struct extent scatter_extent(struct image *image, uint64_t offset, uint64_t end)
{
    struct scatter *scatter = image->opaque;
    uint64_t i = offset / scatter->cluster, skip = offset % scatter->cluster;
    struct extent extent = {.offset = offset,
                            .length = MIN(end, (i + 1) * scatter->cluster) - offset,
                            .status = scatter->clusters[i].status,
                            .storage = image->storage,
                            .host_offset = scatter->clusters[i].host};

    if (extent.status == EXTENT_DATA) {
        extent.host_offset += skip;
    } else if (extent.status == EXTENT_PACKED) {
        extent.skip = (uint32_t)skip;
        extent.packed_length = 8;
    }
    return extent;
}

static bool scatter_map(struct image *image, uint64_t offset, uint64_t length, struct extent *out, size_t max,
                        size_t *count, GError **error)
{
    uint64_t end = offset + length;

    *count = 0;
    while (offset < end) {
        struct extent next = scatter_extent(image, offset, end);
        struct extent *last = *count ? &out[*count - 1] : NULL;
        offset = extent_end(&next);
        if (last && last->status == next.status &&
            (next.status == EXTENT_ZERO || next.status == EXTENT_HOLE ||
             (next.status == EXTENT_DATA && last->host_offset + last->length == next.host_offset)))
            last->length += next.length;
        else if (*count < max)
            out[(*count)++] = next;
        else
            break;
    }
    return true;
}

static bool scatter_unpack(struct image *image, uint64_t offset, const void *packed, size_t length, void *out,
                           GError **error)
{
    const uint8_t *bytes = packed;

    if (length < 8 || memcmp(bytes, bytes + 1, 7)) {
        g_set_error_literal(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED, "damaged unit");
        return false;
    }
    memset(out, bytes[0], image->packed_unit);
    return true;
}

static void scatter_add(struct image *image, GArray *to, uint64_t offset, uint64_t end, uint64_t host,
                        const struct extent *fill)
{
    struct placement placement = {.to = {.offset = offset,
                                         .length = end - offset,
                                         .status = EXTENT_DATA,
                                         .storage = image->storage,
                                         .host_offset = host}};

    if (offset >= end)
        return;
    if (fill) {
        placement.fill = true;
        placement.from = *fill;
    }
    g_array_append_val(to, placement);
}

/* The cluster around part [offset, end) moves to a new place; what is around the part is filled. */
static void scatter_allocate(struct image *image, uint64_t offset, uint64_t end, GArray *fills)
{
    struct scatter *scatter = image->opaque;
    uint64_t i = offset / scatter->cluster, begin = i * scatter->cluster;
    uint64_t stop = MIN(begin + scatter->cluster, scatter->size), host = scatter->next_host;

    scatter->next_host += scatter->cluster;
    if (offset > begin) {
        struct extent from = scatter_extent(image, begin, offset);
        scatter_add(image, fills, begin, offset, host, &from);
    }
    if (end < stop) {
        struct extent from = scatter_extent(image, end, stop);
        scatter_add(image, fills, end, stop, host + (end - begin), &from);
    }
    scatter->clusters[i] = (struct scatter_cluster){EXTENT_DATA, host};
}

static bool scatter_place(struct image *image, uint64_t offset, uint64_t length, GArray *placements,
                          GError **error)
{
    struct scatter *scatter = image->opaque;
    g_autoptr(GArray) fills = g_array_new(FALSE, FALSE, sizeof(struct placement));

    for (uint64_t end = offset + length, next; offset < end; offset = next) {
        uint64_t i = offset / scatter->cluster;
        next = MIN(end, (i + 1) * scatter->cluster);
        if (scatter->clusters[i].status != EXTENT_DATA)
            scatter_allocate(image, offset, next, fills);
        scatter_add(image, placements, offset, next, scatter->clusters[i].host + offset % scatter->cluster,
                    NULL);
    }
    g_array_append_vals(placements, fills->data, fills->len);
    return true;
}

static bool scatter_pack(struct image *image, uint64_t offset, const void *data, void *out, size_t *length,
                         GError **error)
{
    const uint8_t *bytes = data;

    *length = memcmp(bytes, bytes + 1, image->packed_unit - 1) ? 0 : 8;
    memset(out, bytes[0], *length);
    return true;
}

static bool scatter_place_packed(struct image *image, uint64_t offset, size_t length, struct extent *to,
                                 GError **error)
{
    struct scatter *scatter = image->opaque;

    scatter->clusters[offset / scatter->cluster] =
        (struct scatter_cluster){EXTENT_PACKED, scatter->next_host + 13};
    *to = scatter_extent(image, offset, MIN(scatter->size, offset + scatter->cluster));
    scatter->next_host += 512;
    return true;
}

static bool scatter_zero(struct image *image, uint64_t offset, uint64_t length, uint64_t *done_offset,
                         uint64_t *done_length, GError **error)
{
    struct scatter *scatter = image->opaque;
    uint64_t begin = (offset + scatter->cluster - 1) / scatter->cluster;
    uint64_t end = (offset + length) / scatter->cluster;

    if (offset + length == scatter->size)
        end = scatter->count;
    scatter->zero_calls++;
    *done_length = 0;
    if (begin >= end)
        return true;
    for (uint64_t i = begin; i < end; i++)
        scatter->clusters[i] = (struct scatter_cluster){.status = EXTENT_ZERO};
    *done_offset = begin * scatter->cluster;
    *done_length = MIN(end * scatter->cluster, scatter->size) - *done_offset;
    return true;
}

static bool scatter_flush(struct image *image, GError **error)
{
    return storage_flush(image->storage, error);
}

static const struct format format_scatter = {
    .name = "scatter",
    .flags = FORMAT_BACKING | FORMAT_PACKED | FORMAT_PACKS | FORMAT_CREATE,
    .open = scatter_open,
    .map = scatter_map,
    .unpack = scatter_unpack,
    .place = scatter_place,
    .pack = scatter_pack,
    .place_packed = scatter_place_packed,
    .zero = scatter_zero,
    .flush = scatter_flush,
};

#endif
