/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The headers of sparse extents and their grain directories: hosted (Virtual Disk Format 5.0), COWD (the
 * same, "ESX Server Sparse Extents") and seSparse, which is documented nowhere.
 */
#include "formats/vmdk.h"

#include <string.h>

#define FOOTER_SEARCH  (64u << 10) /* padding that may follow the end of a stream */
#define MARKER_FOOTER  3u
#define COWD_ENTRIES   4096u
#define SE_ENTRIES     4096u
#define SE_VERSION     UINT64_C(0x0000000200000001)
#define SE_VOLATILE    UINT64_C(0x00000000cafecafe)
#define SE_GRAIN       UINT64_C(8) /* sectors */
#define SE_TABLE       UINT64_C(64)
#define SE_GD_PRESENT  UINT64_C(0x10000000)
#define UNCLEAN_OFFSET 72u

static bool is_power(uint64_t value)
{
    return value && (value & (value - 1)) == 0;
}

static bool check_grain(uint64_t sectors, GError **error)
{
    return (is_power(sectors) && sectors <= VMDK_MAX_GRAIN / VMDK_SECTOR) ||
           vmdk_refuse(error,
                       "grainSize %" G_GUINT64_FORMAT
                       " is not a power of two between 1 and %" G_GUINT64_FORMAT " sectors",
                       sectors, VMDK_MAX_GRAIN / VMDK_SECTOR);
}

/* ---- the hosted header -------------------------------------------------------------------------- */

static bool check_compression(const struct vmdk_header *header, GError **error)
{
    bool packed = header->flags & VMDK_PACKED;

    if (header->compression > 1 || packed != (header->compression == 1))
        return vmdk_refuse(error, "compressAlgorithm %u does not go with flags 0x%x", header->compression,
                           header->flags);
    if (header->flags & VMDK_MARKERS && !packed)
        return vmdk_refuse(error, "flags 0x%x: markers without compression", header->flags);
    return true;
}

static bool check_header(const struct vmdk_header *header, const uint8_t *bytes, GError **error)
{
    static const uint8_t newlines[4] = {'\n', ' ', '\r', '\n'};
    uint64_t capacity = load_le64(bytes + 12);

    if (header->version < 1 || header->version > 3)
        return vmdk_refuse(error, "version %u is not between 1 and 3", header->version);
    if (header->flags & VMDK_NEWLINES && memcmp(bytes + 73, newlines, sizeof newlines) != 0)
        return vmdk_refuse(error, "the line ends in the header were changed: it was sent as text");
    if (!check_grain(load_le64(bytes + 20), error))
        return false;
    if (capacity == 0 || capacity > VMDK_MAX_SIZE / VMDK_SECTOR)
        return vmdk_refuse(error, "capacity %" G_GUINT64_FORMAT " is out of range", capacity);
    if (header->entries < 1 || header->entries > 512)
        return vmdk_refuse(error, "numGTEsPerGT %u is not between 1 and 512", header->entries);
    return check_compression(header, error);
}

/* What is too large for bytes is too large for any file. */
static uint64_t sectors_to_bytes(uint64_t sectors)
{
    return MIN(sectors, VMDK_MAX_SIZE / VMDK_SECTOR) * VMDK_SECTOR;
}

bool vmdk_header_parse(const uint8_t *bytes, struct vmdk_header *header, GError **error)
{
    uint16_t compression;

    if (load_le32(bytes) != VMDK_MAGIC)
        return vmdk_refuse(error, "magic 0x%08x is not that of a sparse extent", load_le32(bytes));
    memcpy(&compression, bytes + 77, sizeof compression);
    *header = (struct vmdk_header){.version = load_le32(bytes + 4),
                                   .flags = load_le32(bytes + 8),
                                   .capacity = sectors_to_bytes(load_le64(bytes + 12)),
                                   .grain = sectors_to_bytes(load_le64(bytes + 20)),
                                   .text_offset = sectors_to_bytes(load_le64(bytes + 28)),
                                   .text_size = sectors_to_bytes(load_le64(bytes + 36)),
                                   .entries = load_le32(bytes + 44),
                                   .rgd_sector = load_le64(bytes + 48),
                                   .gd_sector = load_le64(bytes + 56),
                                   .overhead = sectors_to_bytes(load_le64(bytes + 64)),
                                   .unclean = bytes[UNCLEAN_OFFSET],
                                   .compression = GUINT16_FROM_LE(compression)};
    return check_header(header, bytes, error);
}

void vmdk_header_write(const struct vmdk_header *header, uint8_t *bytes)
{
    memset(bytes, 0, VMDK_SECTOR);
    store_le32(bytes, VMDK_MAGIC);
    store_le32(bytes + 4, header->version);
    store_le32(bytes + 8, header->flags);
    store_le64(bytes + 12, header->capacity / VMDK_SECTOR);
    store_le64(bytes + 20, header->grain / VMDK_SECTOR);
    store_le64(bytes + 28, header->text_offset / VMDK_SECTOR);
    store_le64(bytes + 36, header->text_size / VMDK_SECTOR);
    store_le32(bytes + 44, header->entries);
    store_le64(bytes + 48, header->rgd_sector);
    store_le64(bytes + 56, header->gd_sector);
    store_le64(bytes + 64, header->overhead / VMDK_SECTOR);
    bytes[UNCLEAN_OFFSET] = header->unclean;
    memcpy(bytes + UNCLEAN_OFFSET + 1, "\n \r\n", 4);
    bytes[77] = header->compression;
}

/* ---- directories -------------------------------------------------------------------------------- */

static gint by_value(gconstpointer a, gconstpointer b)
{
    uint32_t first = *(const uint32_t *)a, second = *(const uint32_t *)b;

    return first < second ? -1 : first > second;
}

/* Two entries that lead to one table would show the same bytes in two places. */
static bool check_distinct(const uint32_t *gd, uint64_t count, GError **error)
{
    g_autofree uint32_t *sorted = g_try_new(uint32_t, count);

    if (!sorted)
        return vmdk_corrupt(error, "no memory for a directory of %" G_GUINT64_FORMAT " entries", count);
    memcpy(sorted, gd, count * sizeof *gd);
    qsort(sorted, count, sizeof *sorted, by_value);
    for (uint64_t i = 1; i < count; i++)
        if (sorted[i] && sorted[i] == sorted[i - 1])
            return vmdk_refuse(error, "the grain directory has the grain table 0x%x twice", sorted[i]);
    return true;
}

static bool check_directory(const struct vmdk_extent *extent, const uint32_t *gd, GError **error)
{
    for (uint64_t i = 0; i < extent->table_count; i++) {
        uint64_t offset = vmdk_table_offset(extent, gd, i), bytes = vmdk_table_bytes(extent);

        if (gd[i] && (offset < VMDK_SECTOR || offset > extent->storage->size ||
                      bytes > extent->storage->size - offset))
            return vmdk_refuse(error,
                               "entry %" G_GUINT64_FORMAT
                               " of the grain directory leads to offset %" G_GUINT64_FORMAT
                               ", outside of the file",
                               i, offset);
    }
    return check_distinct(gd, extent->table_count, error);
}

static bool inside(const struct vmdk_extent *extent, uint64_t offset, uint64_t length)
{
    return offset >= VMDK_SECTOR && offset <= extent->storage->size &&
           length <= extent->storage->size - offset;
}

/* Where the tables are not of 32-bit sectors, `convert` makes them so. */
static uint32_t *read_directory(const struct vmdk_extent *extent, uint64_t offset, const char *what,
                                bool (*convert)(const uint8_t *at, uint32_t *entry), GError **error)
{
    uint64_t length = extent->table_count * extent->entry_size;
    g_autofree uint8_t *bytes = NULL;
    g_autofree uint32_t *gd = NULL;

    if (!inside(extent, offset, length)) {
        vmdk_refuse(error,
                    "%s %" G_GUINT64_FORMAT ": a directory of %" G_GUINT64_FORMAT
                    " entries there does not lie inside the file",
                    what, offset / VMDK_SECTOR, extent->table_count);
        return NULL;
    }
    bytes = g_try_malloc(length);
    gd = g_try_new(uint32_t, extent->table_count);
    if (!bytes || !gd) {
        vmdk_corrupt(error, "no memory for a directory of %" G_GUINT64_FORMAT " entries",
                     extent->table_count);
        return NULL;
    }
    if (!storage_pread(extent->storage, bytes, length, offset, error))
        return NULL;
    for (uint64_t i = 0; i < extent->table_count; i++) {
        if (!convert(bytes + i * extent->entry_size, &gd[i])) {
            vmdk_refuse(error,
                        "entry %" G_GUINT64_FORMAT " of the grain directory, 0x%" G_GINT64_MODIFIER "x, "
                        "is not valid",
                        i, load_le64(bytes + i * extent->entry_size));
            return NULL;
        }
    }
    return check_directory(extent, gd, error) ? g_steal_pointer(&gd) : NULL;
}

static bool plain_entry(const uint8_t *at, uint32_t *entry)
{
    *entry = load_le32(at);
    return true;
}

static bool count_tables(struct vmdk_extent *extent, uint64_t capacity, GError **error)
{
    if (capacity < extent->size)
        return vmdk_refuse(error,
                           "capacity %" G_GUINT64_FORMAT " is less than the %" G_GUINT64_FORMAT
                           " sectors of the descriptor",
                           capacity / VMDK_SECTOR, extent->size / VMDK_SECTOR);
    extent->table_count = divide_up(capacity, extent->grain * extent->entries);
    return extent->table_count <= VMDK_MAX_TABLES ||
           vmdk_refuse(error,
                       "capacity %" G_GUINT64_FORMAT ": a grain directory of %" G_GUINT64_FORMAT
                       " entries is larger than %u",
                       capacity / VMDK_SECTOR, extent->table_count, VMDK_MAX_TABLES);
}

/* ---- hosted ------------------------------------------------------------------------------------- */

/* The footer of a stream: a header with the place of the directory, behind its marker.  Padding may follow.
 */
static bool find_footer(const struct vmdk_extent *extent, struct vmdk_header *footer, bool *found,
                        GError **error)
{
    uint64_t end = extent->storage->size / VMDK_SECTOR * VMDK_SECTOR, length = MIN(end, FOOTER_SEARCH);
    g_autofree uint8_t *tail = g_malloc(length);

    *found = false;
    if (!storage_pread(extent->storage, tail, length, end - length, error))
        return false;
    for (uint64_t at = length; at >= 2 * VMDK_SECTOR && !*found; at -= VMDK_SECTOR) {
        const uint8_t *header = tail + at - VMDK_SECTOR, *marker = header - VMDK_SECTOR;

        *found = load_le32(header) == VMDK_MAGIC && load_le32(marker + 8) == 0 &&
                 load_le32(marker + 12) == MARKER_FOOTER && end - length + at > 2 * VMDK_SECTOR;
        if (*found && !vmdk_header_parse(header, footer, error)) {
            g_prefix_error(error, "footer: ");
            return false;
        }
    }
    return true;
}

static bool use_footer(struct vmdk_extent *extent, GError **error)
{
    struct vmdk_header *header = &extent->header, footer;
    bool found;

    if (!find_footer(extent, &footer, &found, error))
        return false;
    if (!found)
        return vmdk_refuse(error,
                           "gdOffset says that the grain directory is at the end, but there is no footer: "
                           "the file is cut or was not finished");
    if (footer.gd_sector == VMDK_GD_AT_END || footer.capacity != header->capacity ||
        footer.grain != header->grain || footer.entries != header->entries)
        return vmdk_refuse(error, "the footer contradicts the header");
    header->gd_sector = footer.gd_sector;
    return true;
}

/* The directory, or its copy if that is all that there is. */
static bool open_directories(struct vmdk_extent *extent, GError **error)
{
    const struct vmdk_header *header = &extent->header;
    bool redundant = header->flags & VMDK_TWO_GDS && header->rgd_sector;
    uint64_t length = extent->table_count * 4;

    extent->gd_offset = sectors_to_bytes(header->gd_sector);
    extent->rgd_offset = redundant ? sectors_to_bytes(header->rgd_sector) : 0;
    if (redundant && !inside(extent, extent->gd_offset, length))
        extent->gd_offset = extent->rgd_offset;
    extent->gd = read_directory(extent, extent->gd_offset, "gdOffset", plain_entry, error);
    if (extent->gd && redundant && extent->gd_offset != extent->rgd_offset)
        extent->rgd = read_directory(extent, extent->rgd_offset, "rgdOffset", plain_entry, error);
    extent->merge = header->unclean && extent->rgd;
    return extent->gd && (extent->rgd || !redundant || extent->gd_offset == extent->rgd_offset);
}

static bool open_hosted(struct vmdk *vmdk, struct vmdk_extent *extent, const uint8_t *bytes, GError **error)
{
    struct vmdk_header *header = &extent->header;

    if (!vmdk_header_parse(bytes, header, error))
        return false;
    if (header->overhead > extent->storage->size)
        return vmdk_refuse(error,
                           "overHead %" G_GUINT64_FORMAT ": the file of %" G_GUINT64_FORMAT " bytes is cut",
                           header->overhead / VMDK_SECTOR, extent->storage->size);
    extent->grain = header->grain;
    extent->entries = header->entries;
    extent->entry_size = 4;
    extent->zeroed = header->flags & VMDK_ZEROED;
    extent->packed = header->flags & VMDK_PACKED;
    if (!count_tables(extent, header->capacity, error))
        return false;
    if (extent->packed && vmdk->image->writable)
        return vmdk_stream_recover(extent, error);
    if (extent->packed && header->gd_sector == VMDK_GD_AT_END && !use_footer(extent, error))
        return false;
    return open_directories(extent, error);
}

/* ---- COWD --------------------------------------------------------------------------------------- */

static bool open_cowd(struct vmdk_extent *extent, const uint8_t *bytes, GError **error)
{
    uint32_t grain = load_le32(bytes + 16), count = load_le32(bytes + 24);

    if (load_le32(bytes) != VMDK_COWD_MAGIC)
        return vmdk_refuse(error, "magic 0x%08x is not that of a COWD extent", load_le32(bytes));
    if (load_le32(bytes + 4) != 1)
        return vmdk_refuse(error, "COWD version %u is not 1", load_le32(bytes + 4));
    if (!check_grain(grain, error))
        return false;
    extent->grain = grain * VMDK_SECTOR;
    extent->entries = COWD_ENTRIES;
    extent->entry_size = 4;
    if (!count_tables(extent, load_le32(bytes + 12) * VMDK_SECTOR, error))
        return false;
    if (count < extent->table_count)
        return vmdk_refuse(error,
                           "numGDEntries %u is less than the %" G_GUINT64_FORMAT " that the disk needs",
                           count, extent->table_count);
    extent->gd_offset = load_le32(bytes + 20) * VMDK_SECTOR;
    extent->gd = read_directory(extent, extent->gd_offset, "gdOffset", plain_entry, error);
    return extent->gd != NULL;
}

/* ---- seSparse ----------------------------------------------------------------------------------- */

static bool se_entry(const uint8_t *at, uint32_t *entry)
{
    uint64_t value = load_le64(at);

    *entry = value ? (uint32_t)value + 1 : 0;
    return value == 0 || (value >> 32 == SE_GD_PRESENT && (uint32_t)value != UINT32_MAX);
}

/* With a journal to be replayed the tables are not what they should be. */
static bool check_volatile(const struct vmdk_extent *extent, uint64_t offset, GError **error)
{
    uint8_t bytes[VMDK_SECTOR];

    if (!inside(extent, offset, sizeof bytes))
        return vmdk_refuse(error,
                           "the volatile header at sector %" G_GUINT64_FORMAT " lies outside of the file",
                           offset / VMDK_SECTOR);
    if (!storage_pread(extent->storage, bytes, sizeof bytes, offset, error))
        return false;
    if (load_le64(bytes) != SE_VOLATILE)
        return vmdk_refuse(error, "magic 0x%" G_GINT64_MODIFIER "x is not that of a volatile header",
                           load_le64(bytes));
    return load_le64(bytes + 24) == 0 ||
           vmdk_refuse(error, "replay_journal %" G_GUINT64_FORMAT ": the extent was not closed cleanly",
                       load_le64(bytes + 24));
}

static bool open_sesparse(struct vmdk *vmdk, struct vmdk_extent *extent, const uint8_t *bytes, GError **error)
{
    if (load_le64(bytes) != VMDK_SESPARSE_MAGIC)
        return vmdk_refuse(error, "magic 0x%" G_GINT64_MODIFIER "x is not that of a seSparse extent",
                           load_le64(bytes));
    if (load_le64(bytes + 8) != SE_VERSION)
        return vmdk_refuse(error, "seSparse version 0x%" G_GINT64_MODIFIER "x is not known",
                           load_le64(bytes + 8));
    if (load_le64(bytes + 24) != SE_GRAIN || load_le64(bytes + 32) != SE_TABLE)
        return vmdk_refuse(error,
                           "grain_size %" G_GUINT64_FORMAT " and grain_table_size %" G_GUINT64_FORMAT
                           " are not 8 and 64",
                           load_le64(bytes + 24), load_le64(bytes + 32));
    if (load_le64(bytes + 40))
        return vmdk_refuse(error, "seSparse flags 0x%" G_GINT64_MODIFIER "x are not known",
                           load_le64(bytes + 40));
    if (vmdk->image->writable)
        return vmdk_refuse(error, "seSparse extents are only read");
    extent->grain = SE_GRAIN * VMDK_SECTOR;
    extent->entries = SE_ENTRIES;
    extent->entry_size = 8;
    extent->gd_offset = sectors_to_bytes(load_le64(bytes + 128));
    extent->tables_offset = sectors_to_bytes(load_le64(bytes + 144));
    extent->grains_offset = sectors_to_bytes(load_le64(bytes + 192));
    if (!count_tables(extent, sectors_to_bytes(load_le64(bytes + 16)), error) ||
        !check_volatile(extent, sectors_to_bytes(load_le64(bytes + 80)), error))
        return false;
    if (extent->table_count * 8 > sectors_to_bytes(load_le64(bytes + 136)))
        return vmdk_refuse(error, "the grain directory of %" G_GUINT64_FORMAT " sectors is too small",
                           load_le64(bytes + 136));
    extent->gd = read_directory(extent, extent->gd_offset, "the grain directory's offset", se_entry, error);
    return extent->gd != NULL;
}

/* ---- all ---------------------------------------------------------------------------------------- */

bool vmdk_sparse_open(struct vmdk *vmdk, struct vmdk_extent *extent, GError **error)
{
    uint8_t bytes[VMDK_SECTOR] = {0};

    extent->tables = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, g_free);
    if (extent->storage->size < sizeof bytes)
        return vmdk_refuse(error, "the file of %" G_GUINT64_FORMAT " bytes is shorter than a header",
                           extent->storage->size);
    if (!storage_pread(extent->storage, bytes, sizeof bytes, 0, error))
        return false;
    if (extent->kind == VMDK_COWD)
        return open_cowd(extent, bytes, error);
    if (extent->kind == VMDK_SESPARSE)
        return open_sesparse(vmdk, extent, bytes, error);
    return open_hosted(vmdk, extent, bytes, error);
}

void vmdk_extent_clear(struct vmdk_extent *extent)
{
    g_clear_pointer(&extent->tables, g_hash_table_unref);
    g_clear_pointer(&extent->frees, g_array_unref);
    g_clear_pointer(&extent->gd, g_free);
    g_clear_pointer(&extent->rgd, g_free);
}
