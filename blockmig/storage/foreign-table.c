/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Both have a header and one table of le32, an entry for each piece of the disk (QEMU:
 * docs/interop/parallels.txt, block/bochs.c). */
#include "blockmig/storage/foreign-table.h"

#include "formats/bytes.h"
#include "formats/error.h"

#include <string.h>

#define SECTOR           UINT64_C(512)
#define PARALLELS_HEADER 64u
#define BOCHS_HEADER     96u
#define CHUNK            16384u /* entries read at a time */

struct table {
    struct storage *file;
    const char *format;
    uint64_t offset, count; /* where it lies in the file; entries */
    uint64_t size;          /* of the disk */
    uint64_t piece;         /* bytes of the disk for each entry */
    uint64_t base, unit;    /* an entry's piece begins at base + entry * unit */
    uint64_t room;   /* bytes of a whole piece in the file, with what belongs to it; 0: as of the disk */
    uint32_t absent; /* an entry of no piece */
};

static bool check_entry(const struct table *table, uint64_t index, uint32_t entry, GError **error)
{
    uint64_t left = table->size - index * table->piece, size = table->file->size;
    uint64_t length = table->room ? table->room : MIN(table->piece, left);
    uint64_t begin = table->offset + table->count * 4, at;

    if (entry == table->absent)
        return true;
    /* The product may be larger than 64 bits. */
    at = entry > size / table->unit ? size : table->base + entry * table->unit;
    return (at >= begin && at <= size && length <= size - at) ||
           blockmig_fail(
               error, BLOCKMIG_ERROR_REFUSED,
               "%s: %s: entry %" G_GUINT64_FORMAT " of the table, %u, leads to %" G_GUINT64_FORMAT
               " bytes that are not between the table and the end of the file at %" G_GUINT64_FORMAT,
               table->file->name, table->format, index, entry, length, size);
}

static bool check_entries(const struct table *table, uint64_t needed, GError **error)
{
    g_autofree uint8_t *entries = g_malloc(CHUNK * 4);

    for (uint64_t at = 0; at < needed; at += CHUNK) {
        uint64_t count = MIN(CHUNK, needed - at);

        if (!storage_pread(table->file, entries, count * 4, table->offset + at * 4, error))
            return false;
        for (uint64_t i = 0; i < count; i++)
            if (!check_entry(table, at + i, load_le32(entries + i * 4), error))
                return false;
    }
    return true;
}

static bool check(const struct table *table, GError **error)
{
    uint64_t needed = table->piece ? table->size / table->piece + (table->size % table->piece > 0) : 0;

    if (table->piece == 0 || table->unit == 0 || needed > table->count)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "%s: %s: %" G_GUINT64_FORMAT " entries for pieces of %" G_GUINT64_FORMAT
                             " bytes do not make a disk of %" G_GUINT64_FORMAT,
                             table->file->name, table->format, table->count, table->piece, table->size);
    if (table->offset > table->file->size || table->count > (table->file->size - table->offset) / 4)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "%s: %s: a table of %" G_GUINT64_FORMAT " entries at offset %" G_GUINT64_FORMAT
                             " is not in the file",
                             table->file->name, table->format, table->count, table->offset);
    return check_entries(table, needed, error);
}

bool parallels_check(struct storage *file, GError **error)
{
    struct table table = {.file = file, .format = "parallels", .offset = PARALLELS_HEADER};
    uint8_t header[PARALLELS_HEADER];
    uint64_t sectors;
    bool extended;

    if (!storage_pread(file, header, sizeof(header), 0, error))
        return false;
    extended = memcmp(header, "WithouFreSpacExt", 16) == 0; /* entries count pieces, not sectors */
    sectors = extended ? load_le64(header + 36) : load_le32(header + 36);
    if (sectors > UINT64_MAX / SECTOR)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "%s: parallels: a disk of %" G_GUINT64_FORMAT " sectors is too large",
                             file->name, sectors);
    table.size = sectors * SECTOR;
    table.piece = load_le32(header + 28) * SECTOR;
    table.count = load_le32(header + 32);
    table.unit = extended ? table.piece : SECTOR;
    return check(&table, error);
}

bool bochs_check(struct storage *file, GError **error)
{
    struct table table = {.file = file, .format = "bochs", .absent = UINT32_MAX};
    uint8_t header[BOCHS_HEADER];
    uint64_t bitmap;

    if (!storage_pread(file, header, sizeof(header), 0, error))
        return false;
    table.offset = load_le32(header + 68);
    table.count = load_le32(header + 72);
    bitmap = (load_le32(header + 76) + SECTOR - 1) / SECTOR * SECTOR;
    table.piece = load_le32(header + 80);
    if (load_le32(header + 76) * 8 * SECTOR < table.piece)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "%s: bochs: a bitmap of %u bytes is too small for extents of %" G_GUINT64_FORMAT,
                             file->name, load_le32(header + 76), table.piece);
    table.size = load_le64(header + (load_le32(header + 64) == 0x10000 ? 84 : 88));
    table.base = table.offset + table.count * 4;
    table.unit = table.room = bitmap + (table.piece + SECTOR - 1) / SECTOR * SECTOR;
    return check(&table, error);
}
