/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The proof of a finished image.
 *
 * While copying, every byte that was placed was read back from the host offset that place() gave.  What is
 * left to prove is that the metadata that came to the medium leads there: the map of the image,
 * opened anew, must have the sum of what was placed.
 * Chunks that are all zero are different, and what lies behind the end of the source: preallocation may map
 * some of them, and a used device maps all of them. They are left out of the sum and read instead.  An image
 * over a backing layer has neither; there everything counts that the source has, and zeros too, because they
 * hide what is below.
 */
#include "blockmig/copy/map-sum.h"
#include "blockmig/copy/scan.h"
#include "formats/bytes.h"
#include "formats/error.h"

#include <config.h>

struct prove {
    struct image *target;
    const struct digest_table *digests;
    bool overlay;
    struct copy_map_sum sum;
};

static void add_data(struct prove *prove, const struct extent *extent)
{
    uint64_t end = extent_end(extent), next;

    if (prove->overlay) {
        map_sum_data(&prove->sum, extent->offset, extent->host_offset, extent->length);
        return;
    }
    for (uint64_t at = extent->offset; at < end; at = next) {
        uint64_t chunk = at / DIGEST_CHUNK_SIZE;
        bool skip = digest_table_is_zero(prove->digests, chunk);
        if (skip && digest_table_next(prove->digests, &chunk))
            next = MIN(end, chunk * DIGEST_CHUNK_SIZE);
        else
            next = skip ? end : MIN(end, (chunk + 1) * DIGEST_CHUNK_SIZE);
        if (!skip)
            map_sum_data(&prove->sum, at, extent->host_offset + (at - extent->offset), next - at);
    }
}

static void add_extent(struct prove *prove, const struct extent *extent)
{
    if (extent->status == EXTENT_DATA)
        add_data(prove, extent);
    else if (extent->status == EXTENT_PACKED && extent->skip == 0)
        map_sum_packed(&prove->sum, extent->offset, extent->host_offset);
    else if (extent->status == EXTENT_ZERO && prove->overlay)
        map_sum_zero(&prove->sum, extent->offset, extent->length);
}

static bool sum_map(struct prove *prove, const struct copy_options *options, GError **error)
{
    struct extent extents[READER_BATCH];
    uint64_t size = digest_table_size(prove->digests);
    size_t count;

    for (uint64_t at = 0; at < size;) {
        if (options && options->cancelled && options->cancelled(options->opaque)) {
            g_set_error_literal(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_CANCELLED, "cancelled");
            return false;
        }
        if (!image_map(prove->target, at, size - at, extents, READER_BATCH, &count, error))
            return false;
        for (size_t i = 0; i < count; i++)
            add_extent(prove, &extents[i]);
        at = extent_end(&extents[count - 1]);
    }
    return true;
}

static bool check_map(struct prove *prove, const struct copy_map_sum *expected,
                      const struct copy_options *options, GError **error)
{
    if (!sum_map(prove, options, error))
        return false;
    if (prove->sum.low == expected->low && prove->sum.high == expected->high)
        return true;
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_DIFFERENT,
                "%s: the tables of the finished image do not lead to what was written and read back",
                prove->target->name);
    return false;
}

/* What the image maps in chunks that are zero: nothing else is read here. */
static void expect_zeros(struct scan *scan, const struct hash *hash)
{
    const struct load *load = hash->load;
    size_t at = 0;

    scan->copier.result->counters.bytes_verified += load->data;
    while (at < load->length && is_zero(load->buffer + at, MIN(512, load->length - at)))
        at += 512;
    if (at >= load->length)
        return;
    copier_fail(&scan->copier, g_error_new(BLOCKMIG_ERROR, BLOCKMIG_ERROR_DIFFERENT,
                                           "%s: guest bytes at offset %" G_GUINT64_FORMAT
                                           " are not zero, but are zero in the source",
                                           scan->reader.image->name, load->offset + at));
}

static bool check_zeros(struct image *target, const struct digest_table *digests,
                        const struct copy_options *options, struct copy_result *result, GError **error)
{
    struct scan scan = {.visit = expect_zeros, .end = target->size};

    if (!copier_init(&scan.copier, options, result, error))
        return false;
    reader_init(&scan.reader, &scan.copier, NULL, target);
    scan.reader.past_cache = true;
    scan.reader.only_zero = digests;
    bool ok = scan_run(&scan, error);
    copier_clear(&scan.copier);
    return ok;
}

bool copy_prove(struct image *target, const struct digest_table *digests, const struct copy_map_sum *sum,
                const struct copy_options *options, struct copy_result *result, GError **error)
{
    struct prove prove = {.target = target, .digests = digests, .overlay = image_is_differencing(target)};

    *result = (struct copy_result){0};
    if (!target->identity && !check_map(&prove, sum, options, error))
        return false;
    return prove.overlay || check_zeros(target, digests, options, result, error);
}
