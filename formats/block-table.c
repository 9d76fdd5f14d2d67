/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "formats/block-table.h"

#include "formats/error.h"

#include <string.h>

#define PER_SECTOR (512 / sizeof(uint32_t))

static uint32_t swap(const struct block_table *table, uint32_t value)
{
    return table->big_endian ? GUINT32_FROM_BE(value) : GUINT32_FROM_LE(value);
}

bool block_table_read(struct block_table *table, struct storage *storage, uint64_t offset, uint64_t count,
                      bool big_endian, GError **error)
{
    *table =
        (struct block_table){.storage = storage, .offset = offset, .count = count, .big_endian = big_endian};
    table->entries = g_try_new(uint32_t, count + 1);
    table->dirty = g_try_malloc0(count / PER_SECTOR + 1);
    if (!table->entries || !table->dirty) {
        block_table_clear(table);
        return blockmig_fail(error, BLOCKMIG_ERROR_FAILED,
                             "no memory for a table of %" G_GUINT64_FORMAT " entries", count);
    }
    if (count > 0 && !storage_pread(storage, table->entries, count * sizeof(uint32_t), offset, error)) {
        block_table_clear(table);
        return false;
    }
    for (uint64_t i = 0; i < count; i++)
        table->entries[i] = swap(table, table->entries[i]);
    return true;
}

void block_table_set(struct block_table *table, uint64_t index, uint32_t value)
{
    table->entries[index] = value;
    table->dirty[index / PER_SECTOR] = 1;
    table->any_dirty = true;
}

static bool write_entries(struct block_table *table, uint64_t first, uint64_t end, GError **error)
{
    g_autofree uint32_t *bytes = g_try_new(uint32_t, end - first);

    if (!bytes)
        return blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "no memory to write a table");
    for (uint64_t i = first; i < end; i++)
        bytes[i - first] = swap(table, table->entries[i]);
    return storage_pwrite(table->storage, bytes, (end - first) * sizeof(uint32_t),
                          table->offset + first * sizeof(uint32_t), error);
}

bool block_table_write(struct block_table *table, GError **error)
{
    uint64_t sectors = (table->count + PER_SECTOR - 1) / PER_SECTOR;

    if (!table->any_dirty)
        return true;
    for (uint64_t i = 0, next; i < sectors; i = next + 1) {
        for (next = i; next < sectors && table->dirty[next]; next++)
            continue;
        if (next == i)
            continue;
        if (!write_entries(table, i * PER_SECTOR, MIN(next * PER_SECTOR, table->count), error))
            return false;
        memset(table->dirty + i, 0, next - i);
    }
    table->any_dirty = false;
    return true;
}

uint64_t block_table_run(const struct block_table *table, uint64_t index, uint64_t end, uint32_t value)
{
    uint64_t i = index;

    while (i < end && table->entries[i] == value)
        i++;
    return i - index;
}

void block_table_clear(struct block_table *table)
{
    g_clear_pointer(&table->entries, g_free);
    g_clear_pointer(&table->dirty, g_free);
}
