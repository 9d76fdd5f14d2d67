/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A table of 32-bit entries, one for each block of the guest, as VHD (BAT) and VDI (block map) have it.
 * It is held in memory in host order; changed sectors of 512 bytes are remembered until they are written.
 */
#ifndef FORMATS_BLOCK_TABLE_H
#define FORMATS_BLOCK_TABLE_H

#include "formats/storage.h"

struct block_table {
    struct storage *storage; /* borrowed */
    uint64_t offset;         /* on the storage; a multiple of 512 */
    uint64_t count;
    bool big_endian;
    uint32_t *entries;
    uint8_t *dirty; /* one byte per sector of the table */
    bool any_dirty;
};

/* The caller has checked that the table lies inside the storage and is not too large.  FAILED: no memory. */
bool block_table_read(struct block_table *table, struct storage *storage, uint64_t offset, uint64_t count,
                      bool big_endian, GError **error);
void block_table_set(struct block_table *table, uint64_t index, uint32_t value);
/* Writes what was changed; does not flush. */
bool block_table_write(struct block_table *table, GError **error);
/* How many entries from `index` on, at most up to `end`, are `value`? */
uint64_t block_table_run(const struct block_table *table, uint64_t index, uint64_t end, uint32_t value);
void block_table_clear(struct block_table *table);

#endif
