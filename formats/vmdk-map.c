/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* From guest offsets to places: extent -> grain directory -> grain table. */
#include "formats/vmdk.h"

/* A flat extent: what was not written there is known to the storage.  [offset, end) lies in it. */
static bool map_flat(const struct vmdk_extent *extent, uint64_t offset, uint64_t end,
                     struct extent_sink *sink, bool *full, GError **error)
{
    while (offset < end && !*full) {
        uint64_t host = extent->host + (offset - extent->start);
        struct extent next = {.offset = offset, .status = EXTENT_DATA, .host_offset = host};
        bool data;

        if (!storage_status(extent->storage, host, end - offset, &data, &next.length, error))
            return false;
        if (!data)
            next.status = EXTENT_ZERO;
        *full = !extent_sink_add(sink, &next);
        offset += next.length;
    }
    return true;
}

/* The record of a compressed grain ends where the next one begins, or it is as long as it may be. */
static uint32_t record_bound(const struct vmdk_extent *extent, const uint8_t *table, uint32_t i,
                             uint64_t host)
{
    uint64_t most = MIN(vmdk_record_max(extent->grain), MAX(extent->storage->size, extent->reached) - host);
    uint64_t next = 0;

    while (++i < extent->entries && next == 0)
        next = load_le32(table + i * 4) * VMDK_SECTOR;
    return next > host ? MIN(most, next - host) : most;
}

static bool map_grain(const struct vmdk_extent *extent, const uint8_t *table, uint32_t i, uint64_t offset,
                      uint64_t skip, struct extent *out, GError **error)
{
    enum vmdk_entry entry;
    uint64_t host = 0;

    if (!vmdk_decode(extent, table, i, offset - skip, &entry, &host, error))
        return false;
    out->offset = offset;
    out->status = entry == VMDK_ENTRY_NONE   ? EXTENT_HOLE
                  : entry == VMDK_ENTRY_ZERO ? EXTENT_ZERO
                  : extent->packed           ? EXTENT_PACKED
                                             : EXTENT_DATA;
    out->host_offset = out->status == EXTENT_PACKED ? host : host + skip;
    out->skip = out->status == EXTENT_PACKED ? skip : 0;
    out->packed_length = out->status == EXTENT_PACKED ? record_bound(extent, table, i, host) : 0;
    return true;
}

/* [offset, end) lies in the range of one table. */
static bool map_table(struct vmdk_extent *extent, const uint8_t *table, uint64_t offset, uint64_t end,
                      struct extent_sink *sink, bool *full, GError **error)
{
    while (offset < end && !*full) {
        uint64_t inside = offset - extent->start, skip = inside % extent->grain;
        struct extent next = {0};

        if (!map_grain(extent, table, inside / extent->grain % extent->entries, offset, skip, &next, error))
            return false;
        next.length = MIN(end - offset, extent->grain - skip);
        *full = !extent_sink_add(sink, &next);
        offset += next.length;
    }
    return true;
}

static bool map_sparse(struct vmdk_extent *extent, uint64_t offset, uint64_t end, struct extent_sink *sink,
                       bool *full, GError **error)
{
    uint64_t span = extent->grain * extent->entries;

    while (offset < end && !*full) {
        uint64_t index = (offset - extent->start) / span;
        uint64_t next = MIN(end, extent->start + (index + 1) * span);
        struct extent hole = {.offset = offset, .length = next - offset, .status = EXTENT_HOLE};
        struct vmdk_table *table = NULL;

        if (!vmdk_table_load(extent, index, &table, error))
            return false;
        if (!table)
            *full = !extent_sink_add(sink, &hole);
        else if (!map_table(extent, table->bytes, offset, next, sink, full, error))
            return false;
        offset = next;
    }
    return true;
}

static bool map_extent(struct vmdk_extent *extent, uint64_t offset, uint64_t end, struct extent_sink *sink,
                       bool *full, GError **error)
{
    struct extent zeros = {.offset = offset, .length = end - offset, .status = EXTENT_ZERO};

    sink->storage = extent->storage;
    if (extent->kind == VMDK_FLAT)
        return map_flat(extent, offset, end, sink, full, error);
    if (extent->kind != VMDK_ZERO)
        return map_sparse(extent, offset, end, sink, full, error);
    *full = !extent_sink_add(sink, &zeros);
    return true;
}

bool vmdk_map(struct image *image, uint64_t offset, uint64_t length, struct extent *out, size_t max,
              size_t *count, GError **error)
{
    struct vmdk *vmdk = image->opaque;
    struct extent_sink sink = {.out = out, .max = max};
    uint64_t end = offset + length;
    GError *failure = NULL;
    bool full = false;

    while (offset < end && !full && !failure) {
        struct vmdk_extent *extent = vmdk_find(vmdk, offset);
        uint64_t next = MIN(end, extent->start + extent->size);

        map_extent(extent, offset, next, &sink, &full, &failure);
        offset = next;
    }
    return extent_sink_end(&sink, failure, count, error);
}
