/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Changes of the mapping.  Grains are allocated at the end of their file and never moved. */
#include "formats/vmdk.h"

/* A grain of a sparse extent. */
struct grain {
    struct vmdk_extent *extent;
    struct vmdk_table *table;
    uint32_t index;      /* in the table */
    uint64_t start, end; /* in the disk; the last one of an extent may be cut */
    enum vmdk_entry entry;
    uint64_t host;
};

static bool find_grain(struct vmdk *vmdk, uint64_t offset, struct grain *grain, GError **error)
{
    struct vmdk_extent *extent = vmdk_find(vmdk, offset);
    uint64_t number = (offset - extent->start) / extent->grain, index = number / extent->entries;

    *grain = (struct grain){.extent = extent, .index = number % extent->entries};
    grain->start = extent->start + number * extent->grain;
    grain->end = MIN(grain->start + extent->grain, extent->start + extent->size);
    if (!vmdk_table_load(extent, index, &grain->table, error))
        return false;
    if (!grain->table)
        return vmdk_refuse(error,
                           "%s: grain table %" G_GUINT64_FORMAT " is not there: such extents are only read",
                           extent->storage->name, index);
    return vmdk_decode(extent, grain->table->bytes, grain->index, grain->start, &grain->entry, &grain->host,
                       error);
}

static void set_entry(struct grain *grain, uint32_t value)
{
    store_le32(grain->table->bytes + grain->index * 4, value);
    vmdk_table_dirty(grain->extent, grain->table);
}

static bool allocate(struct grain *grain, GError **error)
{
    struct vmdk_extent *extent = grain->extent;
    uint64_t end = extent->end + extent->grain;

    if (end > VMDK_SECTOR << 32 || (!extent->storage->growable && end > extent->storage->size))
        return blockmig_fail(error, BLOCKMIG_ERROR_NOSPACE,
                             "vmdk: %s: there is no place for a grain at %" G_GUINT64_FORMAT,
                             extent->storage->name, extent->end);
    grain->host = extent->end;
    extent->end = extent->reached = end;
    set_entry(grain, grain->host / VMDK_SECTOR);
    return true;
}

static void add(GArray *to, const struct vmdk_extent *extent, uint64_t offset, uint64_t end, uint64_t host,
                const struct extent *from)
{
    struct placement placement = {.to = {.offset = offset,
                                         .length = end - offset,
                                         .status = EXTENT_DATA,
                                         .storage = extent->storage,
                                         .host_offset = host},
                                  .fill = from != NULL};

    if (offset >= end)
        return;
    if (from)
        placement.from = *from;
    placement.from.offset = offset;
    placement.from.length = end - offset;
    g_array_append_val(to, placement);
}

/* [offset, end) of one grain. */
static bool place_grain(struct vmdk *vmdk, struct grain *grain, uint64_t offset, uint64_t end,
                        GArray *placements, GArray *fills, GError **error)
{
    bool hole = grain->entry == VMDK_ENTRY_NONE && !vmdk_is_base(vmdk->descriptor);
    struct extent from = {.status = hole ? EXTENT_HOLE : EXTENT_ZERO};
    bool fresh = grain->entry != VMDK_ENTRY_GRAIN;

    if (fresh && !allocate(grain, error))
        return false;
    add(placements, grain->extent, offset, end, grain->host + (offset - grain->start), NULL);
    if (!fresh)
        return true;
    add(fills, grain->extent, grain->start, offset, grain->host, &from);
    add(fills, grain->extent, end, grain->end, grain->host + (end - grain->start), &from);
    return true;
}

static bool check_extent(const struct vmdk *vmdk, const struct vmdk_extent *extent, GError **error)
{
    if (vmdk->stream)
        return vmdk_refuse(error, "a stream takes whole grains only, compressed and in order");
    if (extent->kind == VMDK_ZERO)
        return vmdk_refuse(error, "the extent at %" G_GUINT64_FORMAT " consists of zeros for good",
                           extent->start);
    return !extent->readonly ||
           vmdk_refuse(error, "%s: the descriptor says that this extent is only read", extent->storage->name);
}

/* Before anything is changed.  `zeros`: nothing else is to be written. */
static bool check_range(struct vmdk *vmdk, uint64_t offset, uint64_t end, bool zeros, GError **error)
{
    while (offset < end) {
        const struct vmdk_extent *extent = vmdk_find(vmdk, offset);

        if (!(zeros && extent->kind == VMDK_ZERO) && !check_extent(vmdk, extent, error))
            return false;
        offset = extent->start + extent->size;
    }
    return true;
}

/* One grain, or what lies in one flat extent; moves *offset behind it. */
static bool place_some(struct vmdk *vmdk, uint64_t *offset, uint64_t end, GArray *placements, GArray *fills,
                       GError **error)
{
    struct vmdk_extent *extent = vmdk_find(vmdk, *offset);
    uint64_t stop = MIN(end, extent->start + extent->size);
    struct grain grain;

    if (extent->kind == VMDK_FLAT) {
        add(placements, extent, *offset, stop, extent->host + (*offset - extent->start), NULL);
    } else {
        if (!find_grain(vmdk, *offset, &grain, error))
            return false;
        stop = MIN(stop, grain.end);
        if (!place_grain(vmdk, &grain, *offset, stop, placements, fills, error))
            return false;
    }
    *offset = stop;
    return true;
}

/* Neighbours become one. */
static void append(GArray *placements, const GArray *some)
{
    for (guint i = 0; i < some->len; i++) {
        const struct placement *next = &g_array_index(some, struct placement, i);
        struct placement *last =
            placements->len ? &g_array_index(placements, struct placement, placements->len - 1) : NULL;

        if (i > 0 && !next->fill && last->to.storage == next->to.storage &&
            extent_end(&last->to) == next->to.offset &&
            last->to.host_offset + last->to.length == next->to.host_offset)
            last->to.length += next->to.length;
        else
            g_array_append_val(placements, *next);
    }
}

/* Tables are holes in the file until they are written: they get their space before anything is placed, so
 * that a flush needs none when the file system is full. */
static bool reserve_table(struct vmdk_extent *extent, uint64_t index, GError **error)
{
    uint64_t bytes = vmdk_table_bytes(extent);
    struct vmdk_table *table;

    if (!vmdk_table_load(extent, index, &table, error))
        return false;
    return !table || table->dirty ||
           (storage_allocate(extent->storage, vmdk_table_offset(extent, extent->gd, index), bytes, error) &&
            (!extent->rgd || !extent->rgd[index] ||
             storage_allocate(extent->storage, vmdk_table_offset(extent, extent->rgd, index), bytes, error)));
}

static bool reserve_tables(struct vmdk *vmdk, uint64_t offset, uint64_t end, GError **error)
{
    while (offset < end) {
        struct vmdk_extent *extent = vmdk_find(vmdk, offset);
        uint64_t stop = extent->start + extent->size, span = extent->grain * extent->entries;

        if (extent->tables && !extent->packed && !extent->readonly) {
            uint64_t index = (offset - extent->start) / span;

            if (!reserve_table(extent, index, error))
                return false;
            stop = MIN(stop, extent->start + (index + 1) * span);
        }
        offset = stop;
    }
    return true;
}

bool vmdk_place(struct image *image, uint64_t offset, uint64_t length, GArray *placements, GError **error)
{
    struct vmdk *vmdk = image->opaque;
    g_autoptr(GArray) places = g_array_new(FALSE, FALSE, sizeof(struct placement));
    g_autoptr(GArray) fills = g_array_new(FALSE, FALSE, sizeof(struct placement));
    uint64_t end = offset + length;

    if (!check_range(vmdk, offset, end, false, error) || !vmdk_begin_write(vmdk, error) ||
        !reserve_tables(vmdk, offset, end, error))
        return false;
    while (offset < end) {
        if (!place_some(vmdk, &offset, end, places, fills, error)) {
            vmdk->failed = true; /* the caller will not fill what was placed before */
            return false;
        }
    }
    append(placements, places);
    append(placements, fills);
    return true;
}

/* ---- zero --------------------------------------------------------------------------------------- */

/* A delta without the flag of zeroed grains has no word for zeros that hide its parent: *done false. */
static bool zero_grain(struct vmdk *vmdk, uint64_t offset, bool *done, GError **error)
{
    bool base = vmdk_is_base(vmdk->descriptor);
    struct grain grain;

    if (!find_grain(vmdk, offset, &grain, error))
        return false;
    *done = base || grain.extent->zeroed;
    if (!*done || grain.entry == VMDK_ENTRY_ZERO || (base && grain.entry == VMDK_ENTRY_NONE))
        return true;
    if (grain.entry == VMDK_ENTRY_GRAIN)
        g_array_append_val(grain.extent->frees, grain.host);
    set_entry(&grain, grain.extent->zeroed ? 1 : 0);
    return true;
}

/* What begins at *stop: *done false if it has to be written. */
static bool zero_some(struct vmdk *vmdk, uint64_t *stop, uint64_t end, bool *done, GError **error)
{
    struct vmdk_extent *extent = vmdk_find(vmdk, *stop);
    uint64_t extent_stop = extent->start + extent->size, offset = *stop, inside = offset - extent->start;
    uint64_t grain_end;

    *done = true;
    if (extent->kind == VMDK_ZERO || extent->kind == VMDK_FLAT) {
        *stop = MIN(end, extent_stop);
        return extent->kind == VMDK_ZERO ||
               storage_zero(extent->storage, extent->host + inside, *stop - offset, true, error);
    }
    grain_end = MIN(extent_stop, offset - inside % extent->grain + extent->grain);
    *stop = MIN(end, grain_end);
    *done = inside % extent->grain == 0 && end >= grain_end;
    return !*done || zero_grain(vmdk, offset, done, error);
}

/* Moves *offset to the first piece that could be zeroed and *stop behind the last one that follows it. */
static bool zero_range(struct vmdk *vmdk, uint64_t *offset, uint64_t end, uint64_t *stop, GError **error)
{
    uint64_t next;
    bool done;

    for (*stop = *offset; *stop < end;) {
        next = *stop;
        if (!zero_some(vmdk, &next, end, &done, error))
            return false;
        if (!done && *stop != *offset)
            return true;
        *stop = next;
        if (!done)
            *offset = next;
    }
    return true;
}

bool vmdk_zero(struct image *image, uint64_t offset, uint64_t length, uint64_t *done_offset,
               uint64_t *done_length, GError **error)
{
    struct vmdk *vmdk = image->opaque;
    uint64_t stop;

    *done_offset = offset;
    *done_length = 0;
    if ((!vmdk->stream && !check_range(vmdk, offset, offset + length, true, error)) ||
        !vmdk_begin_write(vmdk, error))
        return false;
    if (vmdk->stream)
        return vmdk_stream_zero(vmdk, offset, length, done_offset, done_length, error);
    if (!zero_range(vmdk, &offset, offset + length, &stop, error)) {
        vmdk->failed = true;
        return false;
    }
    *done_offset = offset;
    *done_length = stop - offset;
    return true;
}
