/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * streamOptimized, as it is written: records of grains in ascending order, behind the last grain of each
 * table that table, and at the end the directory and the footer that leads to it (Virtual Disk Format 5.0,
 * "Stream-Optimized Compressed Sparse Extents").
 *
 * A flush writes a whole end; what is appended later overwrites it.  So the footer goes first, and comes
 * last: a file with a footer is complete.  One without is read only by whoever goes on writing it, marker by
 * marker.
 */
#include "formats/vmdk.h"

#include <string.h>

enum { MARKER_EOS, MARKER_TABLE, MARKER_DIRECTORY, MARKER_FOOTER };

static void put_marker(uint8_t *at, uint64_t sectors, uint32_t type)
{
    memset(at, 0, VMDK_SECTOR);
    store_le64(at, sectors);
    store_le32(at + 12, type);
}

static uint64_t span_of(const struct vmdk_extent *extent)
{
    return extent->grain * extent->entries;
}

/* ---- going on ----------------------------------------------------------------------------------- */

/* What is known while the markers are read. */
struct walk {
    struct vmdk_extent *extent;
    uint64_t at;  /* of the next marker */
    uint64_t end; /* of what is known to be good */
    uint8_t head[VMDK_RECORD + 4];
};

static bool is_table(const struct walk *walk)
{
    return load_le32(walk->head + 8) == 0 && load_le32(walk->head + 12) == MARKER_TABLE &&
           load_le64(walk->head) == round_up(vmdk_table_bytes(walk->extent), VMDK_SECTOR) / VMDK_SECTOR;
}

/* A grain of the table that is being filled, or of a later one if that one is complete. */
static bool is_grain(const struct walk *walk, bool complete)
{
    const struct vmdk_extent *extent = walk->extent;
    uint64_t sector = load_le64(walk->head), length = load_le32(walk->head + 8);
    uint64_t inside = sector * VMDK_SECTOR, index = inside / span_of(extent);
    bool fits =
        !extent->current || (complete ? index > extent->current->index : index == extent->current->index);

    if (!fits || sector >= extent->size / VMDK_SECTOR || inside % extent->grain || inside < extent->next)
        return false;
    return length > 0 && length <= vmdk_record_max(extent->grain) - VMDK_RECORD &&
           length <= extent->storage->size - walk->at - VMDK_RECORD;
}

static void set_entry(struct vmdk_extent *extent, uint64_t inside, uint64_t host)
{
    if (!extent->current)
        extent->current = vmdk_table_new(extent, inside / span_of(extent));
    store_le32(extent->current->bytes + inside / extent->grain % extent->entries * 4, host / VMDK_SECTOR);
    vmdk_table_dirty(extent, extent->current);
    extent->next = inside + extent->grain;
}

/* A table in the file and in memory. */
static void complete_table(struct vmdk_extent *extent, uint64_t marker)
{
    extent->gd[extent->current->index] = marker / VMDK_SECTOR + 1;
    extent->current->dirty = false;
    extent->clean++;
    extent->current = NULL;
}

/* A table counts only if a grain follows it: the one at the end is written again. */
static void take_grain(struct walk *walk, uint64_t table)
{
    struct vmdk_extent *extent = walk->extent;

    if (table)
        complete_table(extent, table);
    set_entry(extent, load_le64(walk->head) * VMDK_SECTOR, walk->at);
    walk->at += round_up(VMDK_RECORD + load_le32(walk->head + 8), VMDK_SECTOR);
    walk->end = walk->at;
}

static bool read_head(struct walk *walk, bool *there, GError **error)
{
    const struct storage *storage = walk->extent->storage;

    *there = walk->at <= storage->size && storage->size - walk->at >= VMDK_SECTOR;
    return !*there || storage_pread(walk->extent->storage, walk->head, sizeof walk->head, walk->at, error);
}

static bool walk_markers(struct walk *walk, GError **error)
{
    struct vmdk_extent *extent = walk->extent;
    uint64_t table = 0;
    bool there;

    for (;;) {
        if (!read_head(walk, &there, error))
            return false;
        if (there && !table && extent->current && is_table(walk)) {
            table = walk->at;
            walk->at += VMDK_SECTOR + round_up(vmdk_table_bytes(extent), VMDK_SECTOR);
            continue;
        }
        if (!there || !is_grain(walk, table > 0))
            return true;
        take_grain(walk, table);
        table = 0;
    }
}

bool vmdk_stream_recover(struct vmdk_extent *extent, GError **error)
{
    struct walk walk = {.extent = extent, .at = extent->header.overhead, .end = extent->header.overhead};

    if (extent->header.gd_sector != VMDK_GD_AT_END || !(extent->header.flags & VMDK_MARKERS))
        return vmdk_refuse(error, "only streams with markers and the directory at the end are written to");
    extent->gd = g_try_new0(uint32_t, extent->table_count);
    if (!extent->gd)
        return vmdk_corrupt(error, "no memory for a directory of %" G_GUINT64_FORMAT " entries",
                            extent->table_count);
    if (!walk_markers(&walk, error))
        return false;
    extent->end = extent->reached = walk.end;
    extent->footer = extent->end; /* wherever it is: it lies behind */
    return true;
}

/* ---- the end ------------------------------------------------------------------------------------ */

static uint64_t put_table(const struct vmdk_extent *extent, uint8_t *at)
{
    uint64_t bytes = round_up(vmdk_table_bytes(extent), VMDK_SECTOR);

    put_marker(at, bytes / VMDK_SECTOR, MARKER_TABLE);
    memcpy(at + VMDK_SECTOR, extent->current->bytes, vmdk_table_bytes(extent));
    return VMDK_SECTOR + bytes;
}

static uint64_t put_directory(const struct vmdk_extent *extent, uint8_t *at)
{
    uint64_t bytes = round_up(extent->table_count * 4, VMDK_SECTOR);

    put_marker(at, bytes / VMDK_SECTOR, MARKER_DIRECTORY);
    for (uint64_t i = 0; i < extent->table_count; i++)
        store_le32(at + VMDK_SECTOR + i * 4, extent->gd[i]);
    return VMDK_SECTOR + bytes;
}

static bool write_footer(struct vmdk_extent *extent, uint64_t directory, uint64_t offset, GError **error)
{
    struct vmdk_header header = extent->header;
    uint8_t bytes[3 * 512] = {0};

    header.gd_sector = directory / VMDK_SECTOR + 1;
    put_marker(bytes, 1, MARKER_FOOTER);
    vmdk_header_write(&header, bytes + VMDK_SECTOR);
    put_marker(bytes + 2 * VMDK_SECTOR, 0, MARKER_EOS);
    if (!storage_pwrite(extent->storage, bytes, sizeof bytes, offset, error))
        return false;
    extent->footer = offset;
    return !extent->storage->growable || storage_resize(extent->storage, offset + sizeof bytes, error);
}

/* From now on the file is not complete, and says so. */
static bool drop_footer(struct vmdk_extent *extent, GError **error)
{
    uint64_t length = MAX(extent->storage->size, extent->footer) - extent->footer;

    extent->changed = true;
    if (!extent->footer)
        return true;
    if (length && (!storage_zero(extent->storage, extent->footer, length, true, error) ||
                   !storage_flush(extent->storage, error)))
        return false;
    extent->footer = 0;
    return true;
}

/* The table that is not complete counts as if it were. */
bool vmdk_stream_flush(struct vmdk_extent *extent, GError **error)
{
    uint64_t table = VMDK_SECTOR + round_up(vmdk_table_bytes(extent), VMDK_SECTOR), length = 0, directory;
    g_autofree uint8_t *bytes =
        g_try_malloc0(table + VMDK_SECTOR + round_up(extent->table_count * 4, VMDK_SECTOR));

    if (!bytes)
        return vmdk_corrupt(error, "no memory for a directory of %" G_GUINT64_FORMAT " entries",
                            extent->table_count);
    if (extent->current) {
        extent->gd[extent->current->index] = extent->end / VMDK_SECTOR + 1;
        length = put_table(extent, bytes);
    }
    if (!drop_footer(extent, error))
        return false;
    directory = extent->end + length;
    length += put_directory(extent, bytes + length);
    if (!storage_pwrite(extent->storage, bytes, length, extent->end, error) ||
        !storage_flush(extent->storage, error) ||
        !write_footer(extent, directory, extent->end + length, error))
        return false;
    extent->changed = false;
    return storage_flush(extent->storage, error);
}

/* ---- appending ---------------------------------------------------------------------------------- */

static bool end_table(struct vmdk_extent *extent, GError **error)
{
    g_autofree uint8_t *bytes = g_malloc0(VMDK_SECTOR + round_up(vmdk_table_bytes(extent), VMDK_SECTOR));
    uint64_t length = put_table(extent, bytes);

    if (!storage_pwrite(extent->storage, bytes, length, extent->end, error))
        return false;
    complete_table(extent, extent->end);
    extent->end += length;
    return true;
}

static bool append(struct vmdk_extent *extent, uint64_t inside, size_t length, uint64_t *host, GError **error)
{
    if (!drop_footer(extent, error))
        return false;
    if (extent->current && extent->current->index != inside / span_of(extent) && !end_table(extent, error))
        return false;
    *host = extent->end;
    extent->end = extent->reached = extent->end + round_up(length, VMDK_SECTOR);
    if (extent->end > VMDK_SECTOR << 32 ||
        (!extent->storage->growable && extent->end > extent->storage->size))
        return blockmig_fail(error, BLOCKMIG_ERROR_NOSPACE,
                             "vmdk: %s: there is no place for a grain at %" G_GUINT64_FORMAT,
                             extent->storage->name, *host);
    set_entry(extent, inside, *host);
    return true;
}

bool vmdk_place_packed(struct image *image, uint64_t offset, size_t packed_length, struct extent *to,
                       GError **error)
{
    struct vmdk *vmdk = image->opaque;
    struct vmdk_extent *extent = &vmdk->extents[0];
    uint64_t host;

    if (!vmdk->stream || offset % extent->grain || offset < extent->next || packed_length == 0 ||
        packed_length > vmdk_record_max(extent->grain))
        return vmdk_corrupt(error,
                            "%zu packed bytes for offset %" G_GUINT64_FORMAT
                            " cannot be appended: grains come whole and in order",
                            packed_length, offset);
    if (!vmdk_begin_write(vmdk, error))
        return false;
    if (!append(extent, offset, packed_length, &host, error)) {
        vmdk->failed = true;
        return false;
    }
    *to = (struct extent){.offset = offset,
                          .length = MIN(extent->grain, image->size - offset),
                          .status = EXTENT_PACKED,
                          .storage = extent->storage,
                          .host_offset = host,
                          .packed_length = packed_length};
    return true;
}

/* ---- cutting ------------------------------------------------------------------------------------ */

/* The first grain from number `index` of a table on; it and what follows it are forgotten. */
static uint64_t cut_table(struct vmdk_extent *extent, struct vmdk_table *table, uint32_t first)
{
    uint64_t host = 0;

    for (uint32_t i = first; i < extent->entries; i++) {
        if (host == 0)
            host = load_le32(table->bytes + i * 4) * VMDK_SECTOR;
        store_le32(table->bytes + i * 4, 0);
    }
    return host;
}

static bool is_empty(const struct vmdk_extent *extent, const struct vmdk_table *table)
{
    for (uint32_t i = 0; i < extent->entries; i++)
        if (load_le32(table->bytes + i * 4))
            return false;
    return true;
}

static void forget_table(struct vmdk_extent *extent, struct vmdk_table *table)
{
    if (!table->dirty)
        extent->clean--;
    if (extent->current == table)
        extent->current = NULL;
    g_hash_table_remove(extent->tables, &table->index);
}

/* Forgets what table number `index` has from `inside` on; lowers extent->end to it. */
static bool cut_one(struct vmdk_extent *extent, uint64_t index, uint64_t inside, GError **error)
{
    uint64_t first = MAX(inside, index * span_of(extent)), host;
    struct vmdk_table *table;

    if (!vmdk_table_load(extent, index, &table, error))
        return false;
    if (!table)
        return true;
    host = cut_table(extent, table, first / extent->grain % extent->entries);
    if (!host && table != extent->current) /* nothing but the table itself is behind the cut */
        host = extent->gd[index] * VMDK_SECTOR - VMDK_SECTOR;
    if (!host)
        return true;
    extent->gd[index] = 0;
    extent->end = MIN(extent->end, host);
    if (is_empty(extent, table)) {
        forget_table(extent, table);
    } else {
        vmdk_table_dirty(extent, table);
        extent->current = table;
    }
    return true;
}

static bool cut(struct vmdk_extent *extent, uint64_t inside, GError **error)
{
    if (!drop_footer(extent, error))
        return false;
    for (uint64_t index = extent->table_count; index-- > inside / span_of(extent);)
        if (!cut_one(extent, index, inside, error))
            return false;
    extent->next = MIN(extent->next, inside);
    return true;
}

bool vmdk_stream_zero(struct vmdk *vmdk, uint64_t offset, uint64_t length, uint64_t *done_offset,
                      uint64_t *done_length, GError **error)
{
    struct vmdk_extent *extent = &vmdk->extents[0];
    uint64_t inside = round_up(offset, extent->grain);

    if (inside < extent->next && offset + length == extent->size) {
        if (!cut(extent, inside, error)) {
            vmdk->failed = true;
            return false;
        }
        *done_offset = MIN(inside, extent->size);
        *done_length = extent->size - *done_offset;
    } else if (offset >= extent->next) {
        *done_length = length;
    }
    return true;
}
