/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A trailer ("koly") at the end of the file leads to the tables ("mish"), each a list of chunks: in base64 in
 * a property list, or, in old images, in a resource fork.  They are looked for exactly as QEMU does
 * (block/dmg.c), so that what is checked is what it reads.
 */
#include "blockmig/storage/dmg.h"

#include "formats/bytes.h"
#include "formats/error.h"

#include <string.h>

#define SECTOR       512u
#define SEARCHED     (SECTOR + 3) /* the trailer may begin anywhere in the last sector but one */
#define MAX_LIST     (16u << 20)  /* QEMU's, for a property list */
#define MAX_SECTORS  (UINT64_C(64) << 40 >> 9)
#define TABLE_HEADER 204u
#define CHUNK        40u

enum { KIND_ZERO = 0, KIND_RAW = 1, KIND_IGNORE = 2, KIND_ZLIB = 0x80000005 };
enum { KIND_COMMENT = 0x7ffffffe, KIND_END = 0xffffffff };

struct dmg {
    struct storage *file;
    uint64_t trailer;      /* offset in the file */
    uint64_t data;         /* where the data fork begins */
    uint64_t fork[2];      /* offset and length of the resource fork */
    uint64_t list[2];      /* of the property list */
    uint64_t sectors;      /* of the disk */
    uint64_t covered;      /* sectors that have a chunk */
    unsigned table, chunk; /* the one that is looked at */
};

static bool refuse(const struct dmg *dmg, GError **error, const char *format, ...) G_GNUC_PRINTF(3, 4);

static bool refuse(const struct dmg *dmg, GError **error, const char *format, ...)
{
    g_autofree char *text = NULL;
    va_list arguments;

    va_start(arguments, format);
    text = g_strdup_vprintf(format, arguments);
    va_end(arguments);
    return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s: dmg: %s", dmg->file->name, text);
}

/* ---- chunks ------------------------------------------------------------------------------------- */

static const char *kind_name(uint32_t kind)
{
    return kind == 0x80000004   ? " (ADC)"
           : kind == 0x80000006 ? " (bzip2)"
           : kind == 0x80000007 ? " (LZFSE)"
           : kind == 0x80000008 ? " (LZMA)"
                                : "";
}

static bool check_data(const struct dmg *dmg, const uint8_t *chunk, uint64_t data, GError **error)
{
    uint32_t kind = load_be32(chunk);
    uint64_t sectors = load_be64(chunk + 16), length = load_be64(chunk + 32);
    uint64_t offset = data + load_be64(chunk + 24), size = dmg->file->size;

    if (kind != KIND_RAW && kind != KIND_ZLIB)
        return refuse(dmg, error, "chunk %u of table %u is of type 0x%08x%s, which is not read", dmg->chunk,
                      dmg->table, kind, kind_name(kind));
    if (data > size || load_be64(chunk + 24) > size || offset > size || length > size - offset)
        return refuse(dmg, error,
                      "chunk %u of table %u: %" G_GUINT64_FORMAT " bytes at offset %" G_GUINT64_FORMAT
                      " are not in the file, which has %" G_GUINT64_FORMAT,
                      dmg->chunk, dmg->table, length, offset, size);
    if (kind == KIND_RAW && length / SECTOR < sectors)
        return refuse(dmg, error,
                      "chunk %u of table %u has %" G_GUINT64_FORMAT " bytes for %" G_GUINT64_FORMAT
                      " sectors",
                      dmg->chunk, dmg->table, length, sectors);
    return true;
}

/* Chunks follow each other without gaps: QEMU looks for a sector by halving. */
static bool check_chunk(struct dmg *dmg, const uint8_t *chunk, uint64_t base, uint64_t data, GError **error)
{
    uint32_t kind = load_be32(chunk);
    uint64_t first = base + load_be64(chunk + 8), count = load_be64(chunk + 16);

    if (kind == KIND_COMMENT || kind == KIND_END)
        return true;
    if (first != dmg->covered || count == 0 || count > MAX_SECTORS - dmg->covered)
        return refuse(dmg, error,
                      "chunk %u of table %u has %" G_GUINT64_FORMAT " sectors from %" G_GUINT64_FORMAT
                      " on, the one before it ends at %" G_GUINT64_FORMAT,
                      dmg->chunk, dmg->table, count, first, dmg->covered);
    dmg->covered += count;
    return kind == KIND_ZERO || kind == KIND_IGNORE || check_data(dmg, chunk, data, error);
}

/* What is no table is none for QEMU either. */
static bool check_table(struct dmg *dmg, const uint8_t *table, size_t length, GError **error)
{
    if (length < TABLE_HEADER + CHUNK || memcmp(table, "mish", 4) != 0)
        return true;
    for (dmg->chunk = 0; dmg->chunk < (length - TABLE_HEADER) / CHUNK; dmg->chunk++)
        if (!check_chunk(dmg, table + TABLE_HEADER + (size_t)dmg->chunk * CHUNK, load_be64(table + 8),
                         dmg->data + load_be64(table + 24), error))
            return false;
    dmg->table++;
    return true;
}

/* ---- where they are ----------------------------------------------------------------------------- */

static char *read_part(const struct dmg *dmg, const char *what, const uint64_t part[2], GError **error)
{
    g_autofree char *bytes = NULL;

    if (part[1] > MAX_LIST || part[0] >= dmg->trailer || part[1] > dmg->trailer - part[0]) {
        refuse(dmg, error,
               "the %s of %" G_GUINT64_FORMAT " bytes at offset %" G_GUINT64_FORMAT
               " does not lie before the trailer at %" G_GUINT64_FORMAT " or is larger than %u",
               what, part[1], part[0], dmg->trailer, MAX_LIST);
        return NULL;
    }
    bytes = g_malloc0(part[1] + 1);
    return storage_pread(dmg->file, bytes, part[1], part[0], error) ? g_steal_pointer(&bytes) : NULL;
}

static bool check_list(struct dmg *dmg, GError **error)
{
    g_autofree char *text = read_part(dmg, "property list", dmg->list, error);
    char *end;

    for (char *at = text; at && (at = strstr(at, "<data>")); at = end + 1) {
        g_autofree guchar *table = NULL;
        gsize length = 0;

        at += strlen("<data>");
        end = strstr(at, "</data>");
        if (!end)
            return refuse(dmg, error, "the property list ends within <data>");
        *end = '\0';
        table = g_base64_decode(at, &length);
        if (!check_table(dmg, table, length, error))
            return false;
    }
    return text;
}

/* A length and so many bytes, again and again. */
static bool check_fork(struct dmg *dmg, GError **error)
{
    g_autofree char *bytes = read_part(dmg, "resource fork", dmg->fork, error);
    const uint8_t *fork = (const uint8_t *)bytes;
    uint64_t length = dmg->fork[1], at, end;

    if (!bytes)
        return false;
    if (length < 16 || load_be32(fork) > length || load_be32(fork + 8) > length - load_be32(fork))
        return refuse(dmg, error, "the resource fork of %" G_GUINT64_FORMAT " bytes contradicts its header",
                      length);
    at = load_be32(fork);
    for (end = at + load_be32(fork + 8); at < end; at += load_be32(fork + at) + UINT64_C(4)) {
        if (end - at < 4 || load_be32(fork + at) == 0 || load_be32(fork + at) > end - at - 4)
            return refuse(dmg, error,
                          "a resource at offset %" G_GUINT64_FORMAT " runs past the end of the fork", at);
        if (!check_table(dmg, fork + at + 4, load_be32(fork + at), error))
            return false;
    }
    return true;
}

/* QEMU takes the first "koly" that it finds, and sees a file of whole sectors. */
static bool find_trailer(struct dmg *dmg, GError **error)
{
    uint64_t size = dmg->file->size, whole = (size + SECTOR - 1) / SECTOR * SECTOR;
    uint64_t from = whole > SECTOR ? whole - 2 * SECTOR + 1 : 0,
             length = MIN(SEARCHED, size - MIN(from, size));
    char bytes[SEARCHED];

    if (!storage_pread(dmg->file, bytes, length, from, error))
        return false;
    for (uint64_t i = 0; i + 4 <= length; i++) {
        dmg->trailer = from + i;
        if (memcmp(bytes + i, "koly", 4) == 0 && dmg->trailer + SECTOR == size)
            return true;
        if (memcmp(bytes + i, "koly", 4) == 0)
            break;
    }
    return refuse(dmg, error, "the file does not end with a trailer, \"koly\"");
}

static bool read_trailer(struct dmg *dmg, GError **error)
{
    uint8_t bytes[SECTOR];

    if (!find_trailer(dmg, error) || !storage_pread(dmg->file, bytes, SECTOR, dmg->trailer, error))
        return false;
    dmg->data = load_be64(bytes + 24);
    dmg->sectors = load_be64(bytes + 492);
    for (unsigned i = 0; i < 2; i++) {
        dmg->fork[i] = load_be64(bytes + 40 + 8 * i);
        dmg->list[i] = load_be64(bytes + 216 + 8 * i);
    }
    return dmg->data <= dmg->trailer ||
           refuse(dmg, error, "the data fork at offset %" G_GUINT64_FORMAT " is not in the file", dmg->data);
}

bool dmg_check(struct storage *file, GError **error)
{
    struct dmg dmg = {.file = file};

    if (!read_trailer(&dmg, error) || !(dmg.fork[1] ? check_fork(&dmg, error) : check_list(&dmg, error)))
        return false;
    return dmg.covered == dmg.sectors ||
           refuse(&dmg, error,
                  "the disk has %" G_GUINT64_FORMAT " sectors, its chunks have %" G_GUINT64_FORMAT,
                  dmg.sectors, dmg.covered);
}
