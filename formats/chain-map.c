/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One map through all layers.  It goes down hole by hole, so that its cost is that of the extents that are
 * seen, and needs a fixed room per layer.
 */
#include "formats/chain.h"

#include <string.h>

/* Extents asked of a layer at once: bounds the stack of a map through CHAIN_MAX_DEPTH layers. */
#define MAP_BATCH 32

struct mapping {
    struct chain *chain;
    struct extent *out;
    size_t max, count;
    bool keep_holes; /* of the last layer */
    bool full;       /* an extent was left out: the answer ends before it */
};

static bool follows(const struct extent *last, const struct extent *next)
{
    if (last->status != next->status || last->status == EXTENT_PACKED)
        return false;
    return last->status != EXTENT_DATA || (last->layer == next->layer && last->storage == next->storage &&
                                           last->host_offset + last->length == next->host_offset);
}

static void emit(struct mapping *mapping, const struct extent *extent)
{
    if (mapping->count > 0 && follows(&mapping->out[mapping->count - 1], extent))
        mapping->out[mapping->count - 1].length += extent->length;
    else if (mapping->count < mapping->max)
        mapping->out[mapping->count++] = *extent;
    else
        mapping->full = true;
}

static void emit_nothing(struct mapping *mapping, unsigned layer, uint64_t offset, uint64_t length,
                         enum extent_status status)
{
    struct extent extent = {.offset = offset, .length = length, .status = status, .layer = layer};

    emit(mapping, &extent);
}

/*
 * A long hole of an upper layer is asked for again by every call while the layers below it are walked
 * through: the last one of each layer is remembered, or a sparse overlay over a fragmented base would cost
 * the product of both. A layer that is written to can change and is asked every time.
 */
static bool layer_map(struct chain *chain, unsigned layer, uint64_t offset, uint64_t length,
                      struct extent *out, size_t max, size_t *count, GError **error)
{
    struct image *image = chain_layer(chain, layer);
    struct extent *hole = &g_array_index(chain->holes, struct extent, layer);

    if (hole->length > 0 && hole->offset <= offset && offset < extent_end(hole)) {
        *out = (struct extent){
            .offset = offset, .length = MIN(length, extent_end(hole) - offset), .status = EXTENT_HOLE};
        *count = 1;
        return true;
    }
    if (!image_map(image, offset, length, out, max, count, error))
        return false;
    if (!image->writable && out[*count - 1].status == EXTENT_HOLE)
        *hole = out[*count - 1];
    return true;
}

static bool map_layer(struct mapping *mapping, unsigned layer, uint64_t offset, uint64_t length,
                      GError **error);

/* One extent of `layer`, or what lies below it. */
static bool map_extent(struct mapping *mapping, unsigned layer, struct extent *extent, GError **error)
{
    extent->layer = layer;
    if (extent->status == EXTENT_HOLE && layer + 1 < chain_depth(mapping->chain))
        return map_layer(mapping, layer + 1, extent->offset, extent->length, error);
    if (extent->status == EXTENT_HOLE || extent->status == EXTENT_ZERO)
        emit_nothing(mapping, layer, extent->offset, extent->length,
                     extent->status == EXTENT_HOLE && mapping->keep_holes ? EXTENT_HOLE : EXTENT_ZERO);
    else
        emit(mapping, extent);
    return true;
}

static bool map_layer(struct mapping *mapping, unsigned layer, uint64_t offset, uint64_t length,
                      GError **error)
{
    uint64_t size = chain_layer(mapping->chain, layer)->size;
    uint64_t end = offset + length;
    uint64_t inside = MAX(MIN(end, size), offset);
    struct extent part[MAP_BATCH];
    size_t count;

    while (offset < inside && !mapping->full) {
        size_t room = MAX(mapping->max - mapping->count, 1);

        if (!layer_map(mapping->chain, layer, offset, inside - offset, part, MIN(room, MAP_BATCH), &count,
                       error))
            return false;
        for (size_t i = 0; i < count && !mapping->full; i++) {
            if (!map_extent(mapping, layer, &part[i], error))
                return false;
        }
        offset = extent_end(&part[count - 1]);
    }
    if (inside < end && !mapping->full) /* a layer reads as zeros beyond its end, whatever is below */
        emit_nothing(mapping, layer, inside, end - inside, EXTENT_ZERO);
    return true;
}

/* The first thing from `offset` on that the top layer has itself is [*from, *to); both `limit`: there is
 * none. */
static bool find_own(struct chain *chain, uint64_t offset, uint64_t limit, uint64_t *from, uint64_t *to,
                     GError **error)
{
    struct extent extent = {.status = EXTENT_HOLE};
    size_t count;

    for (*to = *from = offset; *to < limit && extent.status == EXTENT_HOLE; *to = extent_end(&extent)) {
        *from = *to;
        if (!layer_map(chain, 0, *to, limit - *to, &extent, 1, &count, error))
            return false;
    }
    *from = extent.status == EXTENT_HOLE ? *to : *from;
    return true;
}

/* Units from that of `offset` on are holes, or are not, up to what find_own() sees. */
static bool map_units(struct mapping *mapping, uint64_t offset, uint64_t length, GError **error)
{
    struct chain *chain = mapping->chain;
    uint64_t unit = chain->unit, last = offset + length, limit = MIN(last / unit * unit + unit, chain->size);
    uint64_t from, to, end;

    for (; offset < last && !mapping->full; offset = end) {
        uint64_t begin = offset / unit * unit;

        if (!find_own(chain, begin, limit, &from, &to, error))
            return false;
        end = from < limit ? from / unit * unit : limit;
        if (end > begin) {
            end = MIN(end, last);
            emit_nothing(mapping, 0, offset, end - offset, EXTENT_HOLE);
            continue;
        }
        end = MIN((to + unit - 1) / unit * unit, last);
        if (!map_layer(mapping, 0, offset, end - offset, error))
            return false;
    }
    return true;
}

bool chain_map(struct chain *chain, uint64_t offset, uint64_t length, struct extent *out, size_t max,
               size_t *count, GError **error)
{
    return chain_map_from(chain, 0, offset, length, out, max, count, error);
}

bool chain_map_from(struct chain *chain, unsigned layer, uint64_t offset, uint64_t length, struct extent *out,
                    size_t max, size_t *count, GError **error)
{
    struct mapping mapping = {
        .chain = chain, .out = out, .max = max, .keep_holes = chain->keep_holes && !chain->unit};
    bool units = chain->unit && layer == 0;

    if (!chain_check_failed(chain, error))
        return false;
    if (length == 0 || max == 0 || offset > chain->size || length > chain->size - offset) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED,
                    "%s: map of %" G_GUINT64_FORMAT " bytes at offset %" G_GUINT64_FORMAT
                    " is out of bounds (virtual size %" G_GUINT64_FORMAT ")",
                    chain_layer(chain, 0)->name, length, offset, chain->size);
        return false;
    }
    if (!(units ? map_units(&mapping, offset, length, error)
                : map_layer(&mapping, layer, offset, length, error)))
        return false;
    *count = mapping.count;
    return true;
}

/* Reading */

static bool read_packed(struct chain *chain, const struct extent *extent, void *buffer, GError **error)
{
    struct image *image = chain_layer(chain, extent->layer);
    g_autofree uint8_t *unit = g_try_malloc(image->packed_unit);
    g_autofree uint8_t *packed = g_try_malloc(extent->packed_length);
    uint64_t left = extent->storage->size - MIN(extent->host_offset, extent->storage->size);
    size_t length = MIN(extent->packed_length, left);

    if (!unit || !packed || extent->skip > image->packed_unit ||
        extent->length > image->packed_unit - extent->skip) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED,
                    "%s: a packed unit of %u bytes in %u at offset %" G_GUINT64_FORMAT " cannot be unpacked",
                    image->name, image->packed_unit, extent->packed_length, extent->offset);
        return false;
    }
    if (!storage_pread(extent->storage, packed, length, extent->host_offset, error) ||
        !image_unpack(image, extent->offset - extent->skip, packed, length, unit, error))
        return false;
    memcpy(buffer, unit + extent->skip, extent->length);
    return true;
}

bool chain_read_extent(struct chain *chain, const struct extent *extent, void *buffer, GError **error)
{
    switch (extent->status) {
    case EXTENT_DATA:
        return storage_pread(extent->storage, buffer, extent->length, extent->host_offset, error);
    case EXTENT_PACKED:
        return read_packed(chain, extent, buffer, error);
    case EXTENT_ZERO:
    case EXTENT_HOLE:
        break;
    }
    memset(buffer, 0, extent->length);
    return true;
}

bool chain_read(struct chain *chain, void *buffer, size_t length, uint64_t offset, GError **error)
{
    uint8_t *p = buffer;

    while (length > 0) {
        struct extent extents[MAP_BATCH];
        size_t count;

        if (!chain_map(chain, offset, length, extents, MAP_BATCH, &count, error))
            return false;
        for (size_t i = 0; i < count; i++) {
            if (!chain_read_extent(chain, &extents[i], p, error))
                return false;
            p += extents[i].length;
            offset += extents[i].length;
            length -= extents[i].length;
        }
    }
    return true;
}
