/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Dirty bitmaps (qcow2.txt, "Bitmaps").  A copy does not carry them; they are validated because an image that
 * lies here is not to be trusted elsewhere, and because check() follows their tables.
 */
#include "formats/qcow2.h"

#include <string.h>

#define MIN_GRANULARITY_BITS 9
#define MAX_GRANULARITY_BITS 31
#define MAX_NAME             1023
#define MAX_TABLES           (32u << 20) /* bytes of all tables together */
#define FLAG_IN_USE          (1u << 0)
#define FLAGS                7u
#define TYPE_DIRTY           1
#define CHUNK                4096u /* table entries read at once */

/* The fixed part of a directory entry. */
struct entry {
    uint64_t table_offset;
    uint32_t table_size, flags, extra_size;
    uint8_t type, granularity_bits;
    uint16_t name_size;
};

static bool read_entry(struct qcow2 *qcow2, uint64_t at, struct entry *entry, GError **error)
{
    uint8_t bytes[QCOW2_BITMAP_FIXED];

    if (!storage_pread(qcow2->storage, bytes, sizeof bytes, at, error))
        return false;
    *entry = (struct entry){.table_offset = load_be64(bytes),
                            .table_size = load_be32(bytes + 8),
                            .flags = load_be32(bytes + 12),
                            .type = bytes[16],
                            .granularity_bits = bytes[17],
                            .name_size = bytes[18] << 8 | bytes[19],
                            .extra_size = load_be32(bytes + 20)};
    return true;
}

static bool check_entry(struct qcow2 *qcow2, unsigned number, const struct entry *entry, GError **error)
{
    uint64_t length = entry->table_size * UINT64_C(8);

    if (entry->type != TYPE_DIRTY)
        return qcow2_refuse(error, "bitmap %u: type %u is unknown", number, entry->type);
    if (entry->flags & ~FLAGS)
        return qcow2_refuse(error, "bitmap %u: flags 0x%x are unknown", number, entry->flags & ~FLAGS);
    if (entry->granularity_bits < MIN_GRANULARITY_BITS || entry->granularity_bits > MAX_GRANULARITY_BITS)
        return qcow2_refuse(error, "bitmap %u: granularity_bits %u is not between %d and %d", number,
                            entry->granularity_bits, MIN_GRANULARITY_BITS, MAX_GRANULARITY_BITS);
    if (entry->name_size == 0 || entry->name_size > MAX_NAME)
        return qcow2_refuse(error, "bitmap %u: name_size %u is not between 1 and %d", number,
                            entry->name_size, MAX_NAME);
    if (length > MAX_TABLES)
        return qcow2_refuse(error, "bitmap %u: bitmap_table_size %u is larger than %u entries", number,
                            entry->table_size, MAX_TABLES / 8);
    return qcow2_check_table(qcow2, "bitmap_table_offset", entry->table_offset, length, error);
}

/* Names are told apart byte by byte: a NUL in one would hide what follows it. */
static bool check_name(struct qcow2 *qcow2, unsigned number, uint64_t at, uint16_t length, GHashTable *names,
                       GError **error)
{
    g_autofree char *name = g_malloc0(length + 1u);
    g_autofree char *shown = NULL;

    if (!storage_pread(qcow2->storage, name, length, at, error))
        return false;
    if (memchr(name, 0, length))
        return qcow2_refuse(error, "bitmap %u: the name contains a NUL byte", number);
    shown = g_strescape(name, NULL);
    return g_hash_table_add(names, g_steal_pointer(&name)) ||
           qcow2_refuse(error, "bitmap %u: the name \"%s\" appears twice", number, shown);
}

static bool check_bits(struct qcow2 *qcow2, unsigned number, const struct entry *entry, GError **error)
{
    for (uint64_t at = 0; at < entry->table_size; at += CHUNK) {
        uint64_t count = MIN(CHUNK, entry->table_size - at);
        g_autofree uint64_t *words = qcow2_read_words(qcow2, entry->table_offset + at * 8, count, error);

        if (!words)
            return false;
        for (uint64_t i = 0; i < count; i++) {
            uint64_t host = words[i] & QCOW2_HOST;

            /* Bit 0 says what a cluster that is not there would hold. */
            if (words[i] & ~(QCOW2_HOST | (host ? 0 : 1)) || host % qcow2->cluster_size ||
                (host && (host >= qcow2->storage->size || qcow2->storage->size - host < qcow2->cluster_size)))
                return qcow2_refuse(error,
                                    "bitmap %u: bitmap table entry %" G_GUINT64_FORMAT
                                    " 0x%" G_GINT64_MODIFIER "x is impossible",
                                    number, at + i, words[i]);
        }
    }
    return true;
}

/* The entry at *at, which moves behind it; `tables`: bytes of tables so far. */
static bool read_bitmap(struct qcow2 *qcow2, unsigned number, uint64_t *at, uint64_t *tables,
                        GHashTable *names, GError **error)
{
    uint64_t left = qcow2->bitmaps_offset + qcow2->bitmaps_length - *at, length;
    struct qcow2_bitmap bitmap;
    struct entry entry;

    if (left < QCOW2_BITMAP_FIXED)
        return qcow2_refuse(error, "bitmap_directory_size %" G_GUINT64_FORMAT " ends in entry %u of %u",
                            qcow2->bitmaps_length, number, qcow2->bitmap_count);
    if (!read_entry(qcow2, *at, &entry, error) || !check_entry(qcow2, number, &entry, error))
        return false;
    length = (QCOW2_BITMAP_FIXED + (uint64_t)entry.extra_size + entry.name_size + 7) & ~UINT64_C(7);
    if (length > left)
        return qcow2_refuse(error,
                            "bitmap %u: extra_data_size %u + name_size %u run past the end of the directory",
                            number, entry.extra_size, entry.name_size);
    *tables += entry.table_size * UINT64_C(8);
    if (*tables > MAX_TABLES)
        return qcow2_refuse(error, "the tables of bitmaps 0 to %u are larger than %u bytes", number,
                            MAX_TABLES);
    if (!check_name(qcow2, number, *at + QCOW2_BITMAP_FIXED + entry.extra_size, entry.name_size, names,
                    error) ||
        (!(entry.flags & FLAG_IN_USE) && !check_bits(qcow2, number, &entry, error)))
        return false; /* what was in use when a machine died is not defined */
    bitmap = (struct qcow2_bitmap){entry.table_offset, entry.table_size};
    g_array_append_val(qcow2->bitmaps, bitmap);
    *at += length;
    return true;
}

bool qcow2_read_bitmaps(struct qcow2 *qcow2, GError **error)
{
    g_autoptr(GHashTable) names = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    uint64_t at = qcow2->bitmaps_offset, end = at + qcow2->bitmaps_length, tables = 0;

    qcow2->bitmaps = g_array_new(false, false, sizeof(struct qcow2_bitmap));
    for (unsigned i = 0; i < qcow2->bitmap_count; i++) {
        if (!read_bitmap(qcow2, i, &at, &tables, names, error))
            return false;
    }
    return at == end || qcow2_refuse(error,
                                     "bitmap_directory_size %" G_GUINT64_FORMAT
                                     " contradicts its %u entries of %" G_GUINT64_FORMAT " bytes",
                                     qcow2->bitmaps_length, qcow2->bitmap_count, at - qcow2->bitmaps_offset);
}
