/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/migrate/place.h"

#include "blockmig/storage/signature.h"
#include "formats/bytes.h"
#include "formats/error.h"

#include <string.h>

#define MBR_BYTES   512
#define MBR_ENTRIES 446
#define TABLE_BYTES (2 * 4096)

bool place_is_empty(struct storage *target, GError **error)
{
    g_autofree char *what = NULL;

    if (!signature_find(target, &what, error))
        return false;
    return !what || blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s holds %s: --force overwrites it",
                                  target->name, what);
}

/* The boot sector of a file system ends with the same two bytes, but has no such entries. */
static bool is_mbr(const uint8_t *sector)
{
    bool used = false;

    if (sector[510] != 0x55 || sector[511] != 0xaa)
        return false;
    for (size_t i = 0; i < 4; i++) {
        const uint8_t *entry = sector + MBR_ENTRIES + 16 * i;

        if (entry[0] != 0 && entry[0] != 0x80)
            return false;
        used = used || (entry[4] != 0 && load_le32(entry + 12) != 0);
    }
    return used;
}

/* Bytes of the sectors that the partition table counts in; 0: there is none. An MBR alone does not say; on a
 * disk of unknown kind it counts in those of 512. */
static uint32_t table_sector(const uint8_t *head, uint32_t own)
{
    if (memcmp(head + 4096, "EFI PART", 8) == 0)
        return 4096;
    if (memcmp(head + 512, "EFI PART", 8) == 0)
        return 512;
    return !is_mbr(head) ? 0 : own ? own : 512;
}

bool place_fits_sectors(struct chain *source, const struct storage *target, GError **error)
{
    g_autofree uint8_t *head = g_malloc0(TABLE_BYTES);
    const struct image *top = chain_layer(source, 0);
    uint32_t own =
        chain_depth(source) == 1 && top->format->flags & FORMAT_IDENTITY ? top->storage->sector : 0;
    uint32_t table;

    if (target->sector == 0 || source->size < TABLE_BYTES)
        return true;
    if (!chain_read(source, head, TABLE_BYTES, 0, error))
        return false;
    table = table_sector(head, own);
    return table == 0 || table == target->sector ||
           blockmig_fail(
               error, BLOCKMIG_ERROR_REFUSED,
               "%s has sectors of %u bytes, but the partition table of the disk counts in sectors of %u: "
               "whoever sees the device's own sectors finds no partitions; --force writes it nevertheless",
               target->name, target->sector, table);
}
