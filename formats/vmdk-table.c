/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Grain tables.  Those that were changed stay in memory until a flush has written them; of the others a
 * bounded number does, for whoever walks through the disk.
 */
#include "formats/vmdk.h"

#include <string.h>

#define CACHE_BYTES (4u << 20) /* of tables that were not changed, per extent */

uint64_t vmdk_table_bytes(const struct vmdk_extent *extent)
{
    return (uint64_t)extent->entries * extent->entry_size;
}

uint64_t vmdk_table_offset(const struct vmdk_extent *extent, const uint32_t *gd, uint64_t index)
{
    if (extent->kind == VMDK_SESPARSE)
        return extent->tables_offset + (gd[index] - UINT64_C(1)) * vmdk_table_bytes(extent);
    return gd[index] * VMDK_SECTOR;
}

static gboolean is_clean(gpointer key, gpointer value, gpointer unused)
{
    return !((const struct vmdk_table *)value)->dirty;
}

static void make_room(struct vmdk_extent *extent)
{
    if (extent->clean < CACHE_BYTES / vmdk_table_bytes(extent))
        return;
    g_hash_table_foreach_remove(extent->tables, is_clean, NULL);
    extent->clean = 0;
}

struct vmdk_table *vmdk_table_new(struct vmdk_extent *extent, uint64_t index)
{
    struct vmdk_table *table = g_malloc0(sizeof *table + vmdk_table_bytes(extent));

    make_room(extent);
    table->index = index;
    g_hash_table_insert(extent->tables, &table->index, table);
    extent->clean++;
    return table;
}

/* The update of an entry was interrupted between both tables: the one that stands there counts. */
static bool merge_tables(struct vmdk_extent *extent, struct vmdk_table *table, GError **error)
{
    uint64_t bytes = vmdk_table_bytes(extent);
    g_autofree uint8_t *other = g_malloc(bytes);

    if (!extent->rgd[table->index])
        return true;
    if (!storage_pread(extent->storage, other, bytes, vmdk_table_offset(extent, extent->rgd, table->index),
                       error))
        return false;
    for (uint32_t i = 0; i < extent->entries; i++) {
        uint32_t entry = load_le32(other + i * 4);

        if (!load_le32(table->bytes + i * 4) && entry * VMDK_SECTOR + extent->grain <= extent->storage->size)
            store_le32(table->bytes + i * 4, entry);
    }
    return true;
}

bool vmdk_table_load(struct vmdk_extent *extent, uint64_t index, struct vmdk_table **table, GError **error)
{
    *table = g_hash_table_lookup(extent->tables, &index);
    if (*table || !extent->gd[index])
        return true;
    *table = vmdk_table_new(extent, index);
    if (storage_pread(extent->storage, (*table)->bytes, vmdk_table_bytes(extent),
                      vmdk_table_offset(extent, extent->gd, index), error) &&
        (!extent->merge || merge_tables(extent, *table, error)))
        return true;
    extent->clean--;
    g_hash_table_remove(extent->tables, &index);
    return false;
}

void vmdk_table_dirty(struct vmdk_extent *extent, struct vmdk_table *table)
{
    if (!table->dirty)
        extent->clean--;
    table->dirty = true;
    extent->changed = true;
}

void vmdk_tables_cleaned(struct vmdk_extent *extent)
{
    GHashTableIter iter;
    struct vmdk_table *table;

    g_hash_table_iter_init(&iter, extent->tables);
    while (g_hash_table_iter_next(&iter, NULL, (gpointer *)&table))
        table->dirty = false;
    extent->clean = g_hash_table_size(extent->tables);
}

/* ---- entries ------------------------------------------------------------------------------------ */

static bool overlaps(uint64_t offset, uint64_t length, uint64_t table, uint64_t table_length)
{
    return offset < table + table_length && table < offset + length;
}

/* Header, descriptor and directories: what the guest must not read and never write. */
static bool touches_metadata(const struct vmdk_extent *extent, uint64_t host, uint64_t length)
{
    const struct vmdk_header *header = &extent->header;
    uint64_t directory = extent->table_count * extent->entry_size;

    return host < VMDK_SECTOR || overlaps(host, length, header->text_offset, header->text_size) ||
           overlaps(host, length, extent->gd_offset, directory) ||
           (extent->rgd && overlaps(host, length, extent->rgd_offset, directory));
}

static const char *decode_sesparse(const struct vmdk_extent *extent, uint64_t value, enum vmdk_entry *entry,
                                   uint64_t *host)
{
    uint64_t grain = (value >> 48 & 0xfff) | (value & UINT64_C(0x0000ffffffffffff)) << 12;

    *entry = VMDK_ENTRY_GRAIN;
    switch (value >> 60) {
    case 0:
        *entry = VMDK_ENTRY_NONE;
        return value ? "has a grain, but is not allocated" : NULL;
    case 1:
    case 2:
        *entry = VMDK_ENTRY_ZERO;
        return NULL;
    case 3:
        break;
    default:
        return "has an unknown state";
    }
    if (grain > (VMDK_MAX_SIZE - extent->grains_offset) / extent->grain)
        return "points behind the end of the file";
    *host = extent->grains_offset + grain * extent->grain;
    return NULL;
}

static const char *decode_plain(const struct vmdk_extent *extent, uint64_t value, enum vmdk_entry *entry,
                                uint64_t *host)
{
    *entry = value == 0 ? VMDK_ENTRY_NONE : value == 1 && extent->zeroed ? VMDK_ENTRY_ZERO : VMDK_ENTRY_GRAIN;
    *host = value * VMDK_SECTOR;
    return value == 1 && !extent->zeroed && extent->kind == VMDK_SPARSE
               ? "is 1, but the header does not have the flag of zeroed grains"
               : NULL;
}

/* Of the last grain of an extent only what the disk shows has to be there. */
static const char *check_place(const struct vmdk_extent *extent, uint64_t host, uint64_t length)
{
    uint64_t end = MAX(extent->storage->size, extent->reached);

    if (host >= end || length > end - host)
        return "points behind the end of the file";
    return touches_metadata(extent, host, length) ? "points into the header or a directory" : NULL;
}

bool vmdk_decode(const struct vmdk_extent *extent, const uint8_t *table, uint32_t i, uint64_t guest,
                 enum vmdk_entry *entry, uint64_t *host, GError **error)
{
    uint64_t value = extent->entry_size == 8 ? load_le64(table + i * 8) : load_le32(table + i * 4);
    uint64_t left = extent->start + extent->size - guest;
    const char *why;

    if (value == 0) {
        *entry = VMDK_ENTRY_NONE;
        return true;
    }
    why = extent->kind == VMDK_SESPARSE ? decode_sesparse(extent, value, entry, host)
                                        : decode_plain(extent, value, entry, host);
    if (!why && *entry == VMDK_ENTRY_GRAIN)
        why = check_place(extent, *host, extent->packed ? VMDK_RECORD : MIN(extent->grain, left));
    return !why || vmdk_corrupt(error,
                                "%s: grain table entry 0x%" G_GINT64_MODIFIER
                                "x of guest offset %" G_GUINT64_FORMAT " %s",
                                extent->storage->name, value, guest, why);
}
