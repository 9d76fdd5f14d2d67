/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Writes of a guest, at any offset and of any length, into the top layer of a chain. */
#include "formats/chain.h"

#include <string.h>

#define STEP      ((uint64_t)1 << 20) /* of what is copied or zeroed: bounds the memory */
#define MAP_BATCH 32

bool chain_check_failed(const struct chain *chain, GError **error)
{
    return !chain->failed ||
           blockmig_fail(error, BLOCKMIG_ERROR_FAILED,
                         "%s: an earlier write stopped half way; the image must be opened again",
                         chain_layer(chain, 0)->name);
}

bool chain_check_writable(const struct chain *chain, GError **error)
{
    const struct image *top = chain_layer(chain, 0);

    if (!top->writable || chain->keep_holes)
        return blockmig_fail(error, BLOCKMIG_ERROR_FAILED,
                             "%s: the chain was not opened whole and for writing", top->name);
    /* The image would forget that its zeros hide something. */
    if (chain_depth(chain) > 1 && !image_is_differencing(top))
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "%s: the parent that was given for it does not stand in the image: such a chain "
                             "is only read",
                             top->name);
    return chain_check_failed(chain, error);
}

/* Only what fails after this leaves something half done. */
static bool check_range(const struct chain *chain, const char *what, uint64_t offset, uint64_t length,
                        GError **error)
{
    const struct image *top = chain_layer(chain, 0);

    if (!chain_check_writable(chain, error))
        return false;
    return (offset <= chain->size && length <= chain->size - offset) ||
           blockmig_fail(error, BLOCKMIG_ERROR_FAILED,
                         "%s: %s of %" G_GUINT64_FORMAT " bytes at offset %" G_GUINT64_FORMAT
                         " is out of bounds (virtual size %" G_GUINT64_FORMAT ")",
                         top->name, what, length, offset, chain->size);
}

/* ---- fills -------------------------------------------------------------------------------------- */

/* Brings `from` to the place `host` of the top layer's storage.  Zeros stay thin. */
static bool bring_extent(struct chain *chain, struct extent from, struct storage *storage, uint64_t host,
                         GError **error)
{
    uint64_t left = from.length;
    g_autofree uint8_t *buffer = NULL;

    if (from.status == EXTENT_ZERO)
        return storage_zero(storage, host, left, true, error);
    buffer = g_malloc(MIN(left, STEP));
    for (; left > 0; left -= from.length, host += from.length) {
        from.length = MIN(left, STEP);
        if (!chain_read_extent(chain, &from, buffer, error) ||
            !storage_pwrite(storage, buffer, from.length, host, error))
            return false;
        from.offset += from.length;
        if (from.status == EXTENT_PACKED)
            from.skip += from.length;
        else
            from.host_offset += from.length;
    }
    return true;
}

/* The top layer has nothing there: the ones below show it. */
static bool bring_below(struct chain *chain, const struct extent *to, GError **error)
{
    struct extent extents[MAP_BATCH];
    size_t count;

    for (uint64_t at = to->offset, end = extent_end(to); at < end; at = extent_end(&extents[count - 1])) {
        if (!chain_map_from(chain, 1, at, end - at, extents, MAP_BATCH, &count, error))
            return false;
        for (size_t i = 0; i < count; i++) {
            uint64_t host = to->host_offset + (extents[i].offset - to->offset);

            if (!bring_extent(chain, extents[i], to->storage, host, error))
                return false;
        }
    }
    return true;
}

static bool bring(struct chain *chain, const struct placement *fill, GError **error)
{
    struct extent from = fill->from;

    if (fill->clean)
        return true;
    if (from.status == EXTENT_HOLE && chain_depth(chain) > 1)
        return bring_below(chain, &fill->to, error);
    if (from.status == EXTENT_HOLE)
        from.status = EXTENT_ZERO;
    return bring_extent(chain, from, fill->to.storage, fill->to.host_offset, error);
}

/* ---- writes ------------------------------------------------------------------------------------- */

static bool write_range(struct chain *chain, const uint8_t *bytes, uint64_t length, uint64_t offset,
                        GError **error)
{
    g_autoptr(GArray) placements = g_array_new(FALSE, FALSE, sizeof(struct placement));

    if (!image_place(chain_layer(chain, 0), offset, length, placements, error))
        return false;
    for (guint i = 0; i < placements->len; i++) {
        const struct placement *placement = &g_array_index(placements, struct placement, i);
        const struct extent *to = &placement->to;

        if (!(placement->fill ? bring(chain, placement, error)
                              : storage_pwrite(to->storage, bytes + (to->offset - offset), to->length,
                                               to->host_offset, error)))
            return false;
    }
    return true;
}

static bool write_zeros(struct chain *chain, uint64_t offset, uint64_t end, GError **error)
{
    g_autofree uint8_t *zeros = offset < end ? g_malloc0(MIN(end - offset, STEP)) : NULL;
    struct extent extent;
    size_t count;

    for (; offset < end; offset = extent_end(&extent)) {
        if (!chain_map(chain, offset, end - offset, &extent, 1, &count, error))
            return false;
        extent.length = extent.status == EXTENT_ZERO ? extent.length : MIN(extent.length, STEP);
        if (extent.status != EXTENT_ZERO && !write_range(chain, zeros, extent.length, offset, error))
            return false;
    }
    return true;
}

/* What the format cannot do by its tables: `rest` writes zeros there, or leaves it. */
static bool zero_range(struct chain *chain, uint64_t offset, uint64_t end, bool rest, GError **error)
{
    uint64_t done, length;

    for (; offset < end; offset = done + length) {
        if (!image_discard(chain_layer(chain, 0), offset, end - offset, &done, &length, error))
            return false;
        if (length == 0)
            done = end;
        if (rest && !write_zeros(chain, offset, done, error))
            return false;
    }
    return true;
}

bool chain_write(struct chain *chain, const void *buffer, size_t length, uint64_t offset, GError **error)
{
    if (!check_range(chain, "write", offset, length, error))
        return false;
    chain->failed = !write_range(chain, buffer, length, offset, error);
    return !chain->failed;
}

bool chain_zero(struct chain *chain, uint64_t offset, uint64_t length, GError **error)
{
    if (!check_range(chain, "zero", offset, length, error))
        return false;
    chain->failed = !zero_range(chain, offset, offset + length, true, error);
    return !chain->failed;
}

bool chain_discard(struct chain *chain, uint64_t offset, uint64_t length, GError **error)
{
    if (!check_range(chain, "discard", offset, length, error))
        return false;
    chain->failed = !zero_range(chain, offset, offset + length, false, error);
    return !chain->failed;
}

bool chain_flush(struct chain *chain, GError **error)
{
    return check_range(chain, "flush", 0, 0, error) && image_flush(chain_layer(chain, 0), error);
}
