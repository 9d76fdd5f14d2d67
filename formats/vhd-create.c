/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * New VHDs.  From the start of a file that is not fixed: copy of the footer, dynamic header, names of the
 * parent, BAT, footer.
 */
#include "formats/create-options.h"
#include "formats/utf16.h"
#include "formats/uuid.h"
#include "formats/vhd.h"

#include <string.h>
#include <time.h>

#define EPOCH         946684800u  /* 2000-01-01, from which VHD counts seconds */
#define LARGEST       0xffff10ffu /* geometry 65535/16/255: the size does not follow from it */
#define BAT_PIECE     (1u << 20)
#define MIN_BLOCK     4096u /* QEMU 7.2 takes the bitmap of a smaller one for empty */
#define DEFAULT_BLOCK "2M"

const struct format_option vhd_options[] = {
    {"subformat", "dynamic (default) or fixed"},
    {"block_size", "4k to 256M, a power of two (default 2M), of dynamic and differencing disks"},
    {NULL, NULL},
};

typedef struct plan {
    enum vhd_type type;
    uint64_t size;
    uint64_t block_size, entries;
    const struct vhd *parent;
    GByteArray *locator; /* the name of the parent in UTF-16 LE, or NULL */
    uint32_t code;       /* what kind of name */
    GByteArray *name;    /* the same without a directory in UTF-16 BE, or NULL */
    uint64_t table, end; /* offsets: BAT, and the first byte behind it */
} plan_t;                /* for g_auto(plan_t) only */

static void plan_clear(struct plan *plan)
{
    g_clear_pointer(&plan->locator, g_byte_array_unref);
    g_clear_pointer(&plan->name, g_byte_array_unref);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(plan_t, plan_clear)

/* A relative name counts from the child; an absolute one is ours, for Windows has no such directories. */
static bool plan_parent(const struct image_create_options *options, struct plan *plan, GError **error)
{
    const char *name = options->backing_name;
    g_autofree char *base = NULL, *windows = NULL;
    bool absolute = name && name[0] == '/';

    if (!name)
        return true;
    if (g_strcmp0(options->backing_format, "vhd") != 0)
        return vhd_refuse(error, "the parent of a VHD must be a VHD, but \"%s\" is %s", name,
                          options->backing_format);
    if (strchr(name, '\\'))
        return vhd_refuse(error, "the name \"%s\" of the parent has a backslash, which VHD takes for a slash",
                          name);
    base = g_path_get_basename(name);
    windows = absolute ? g_strdup(name) : g_strdelimit(g_strconcat("./", name, NULL), "/", '\\');
    plan->code = absolute ? VHD_W2KU : VHD_W2RU;
    plan->locator = utf16_encode(windows, UTF16_LITTLE, error);
    plan->name = plan->locator ? utf16_encode(base, UTF16_BIG, error) : NULL;
    if (!plan->name)
        return false;
    if (plan->name->len >= VHD_PARENT_NAME || plan->locator->len > VHD_MAX_LOCATOR)
        return vhd_refuse(error, "the name \"%s\" of the parent is too long", name);
    plan->type = VHD_DIFFERENCING;
    plan->parent = options->parent ? options->parent->opaque : NULL;
    return true;
}

static bool plan_layout(struct plan *plan, GError **error)
{
    if (plan->type == VHD_FIXED) {
        plan->end = plan->size;
        return true;
    }
    plan->entries = round_up(plan->size, plan->block_size) / plan->block_size;
    if (plan->size > VHD_MAX_SIZE)
        return vhd_refuse(error,
                          "a disk of %" G_GUINT64_FORMAT " bytes is larger than %" G_GUINT64_FORMAT
                          ", the most that a VHD with blocks can have",
                          plan->size, VHD_MAX_SIZE);
    if (plan->entries > VHD_MAX_TABLE / sizeof(uint32_t))
        return vhd_refuse(error,
                          "a disk of %" G_GUINT64_FORMAT " bytes in blocks of %" G_GUINT64_FORMAT
                          " needs a table of more than %u bytes: choose a larger block_size",
                          plan->size, plan->block_size, VHD_MAX_TABLE);
    plan->table = VHD_SECTOR + VHD_HEADER + (plan->locator ? round_up(plan->locator->len, VHD_SECTOR) : 0);
    plan->end = plan->table + round_up(plan->entries * sizeof(uint32_t), VHD_SECTOR);
    return true;
}

static bool make_plan(const struct image_create_options *options, struct plan *plan, GError **error)
{
    static const char *const subformats[] = {"dynamic", "fixed", NULL};
    int subformat = create_option_choose("vhd", options, "subformat", "dynamic", subformats, error);

    if (subformat < 0 || !create_option_size("vhd", options, "block_size", DEFAULT_BLOCK, MIN_BLOCK,
                                             VHD_MAX_BLOCK, &plan->block_size, error))
        return false;
    if (options->size == 0 || options->size > G_MAXINT64 - VHD_SECTOR)
        return vhd_refuse(error, "a disk of %" G_GUINT64_FORMAT " bytes is impossible", options->size);
    if (subformat == 1 && options->backing_name)
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "vhd: subformat=fixed cannot have a parent");
    plan->size = round_up(options->size, VHD_SECTOR); /* the disk consists of sectors */
    plan->type = subformat == 1 ? VHD_FIXED : VHD_DYNAMIC;
    return plan_parent(options, plan, error) && plan_layout(plan, error);
}

/* A device has its footer at its end, and a fixed VHD its footer behind the disk. */
static bool check_end(const struct plan *plan, uint64_t size, GError **error)
{
    uint64_t needed = plan->end + VHD_SECTOR;

    return plan->type != VHD_FIXED || size == needed ||
           vhd_refuse(error,
                      "a fixed VHD ends where its storage ends: %" G_GUINT64_FORMAT
                      " bytes are needed, there are %" G_GUINT64_FORMAT,
                      needed, size);
}

/* In the worst case every piece of 4 KiB is in a block of its own, which costs a bitmap and its alignment. */
bool vhd_measure(const struct image_create_options *options, uint64_t data, uint64_t *bytes, GError **error)
{
    g_auto(plan_t) plan = {0};
    uint64_t blocks;

    if (!make_plan(options, &plan, error) ||
        (options->device_size && !check_end(&plan, options->device_size, error)))
        return false;
    blocks = MIN(plan.entries, data / VHD_DATA_ALIGNMENT + 1);
    *bytes = plan.end + VHD_SECTOR;
    if (plan.type != VHD_FIXED)
        *bytes += data + blocks * (vhd_bitmap_size(plan.block_size) + VHD_DATA_ALIGNMENT);
    return true;
}

/* A geometry that says less than the size would make QEMU cut the disk. */
static uint32_t choose_geometry(uint64_t size)
{
    uint32_t geometry = vhd_geometry(size);

    return vhd_geometry_size(geometry) == size ? geometry : LARGEST;
}

static void make_footer(const struct plan *plan, uint8_t *footer)
{
    memset(footer, 0, VHD_SECTOR);
    memcpy(footer, "conectix", 8);
    store_be32(footer + VHD_FOOTER_FEATURES, 2); /* always set */
    store_be32(footer + VHD_FOOTER_VERSION, 0x00010000);
    store_be64(footer + VHD_FOOTER_DATA_OFFSET, plan->type == VHD_FIXED ? UINT64_MAX : VHD_SECTOR);
    store_be32(footer + VHD_FOOTER_TIMESTAMP, time(NULL) - EPOCH);
    memcpy(footer + VHD_FOOTER_CREATOR, "bmig", 4);
    store_be32(footer + VHD_FOOTER_CREATOR_VERSION, 0x00010000);
    memcpy(footer + VHD_FOOTER_CREATOR_OS, "Wi2k", 4);
    store_be64(footer + VHD_FOOTER_ORIGINAL_SIZE, plan->size);
    store_be64(footer + VHD_FOOTER_CURRENT_SIZE, plan->size);
    store_be32(footer + VHD_FOOTER_GEOMETRY, choose_geometry(plan->size));
    store_be32(footer + VHD_FOOTER_TYPE, plan->type);
    uuid_random(footer + VHD_FOOTER_UUID);
    store_be32(footer + VHD_FOOTER_CHECKSUM, vhd_checksum(footer, VHD_SECTOR, VHD_FOOTER_CHECKSUM));
}

static void make_header(const struct plan *plan, uint8_t *header)
{
    uint8_t *locator = header + VHD_HEADER_LOCATORS;

    memset(header, 0, VHD_HEADER);
    memcpy(header, "cxsparse", 8);
    store_be64(header + VHD_HEADER_DATA_OFFSET, UINT64_MAX);
    store_be64(header + VHD_HEADER_TABLE_OFFSET, plan->table);
    store_be32(header + VHD_HEADER_VERSION, 0x00010000);
    store_be32(header + VHD_HEADER_MAX_ENTRIES, plan->entries);
    store_be32(header + VHD_HEADER_BLOCK_SIZE, plan->block_size);
    if (plan->parent) {
        memcpy(header + VHD_HEADER_PARENT_UUID, plan->parent->footer + VHD_FOOTER_UUID, UUID_LENGTH);
        memcpy(header + VHD_HEADER_PARENT_NAME, plan->name->data, plan->name->len);
        store_be32(locator, plan->code);
        store_be32(locator + 4, round_up(plan->locator->len, VHD_SECTOR)); /* bytes, as all writers do */
        store_be32(locator + 8, plan->locator->len);
        store_be64(locator + 16, VHD_SECTOR + VHD_HEADER);
    }
    store_be32(header + VHD_HEADER_CHECKSUM, vhd_checksum(header, VHD_HEADER, VHD_HEADER_CHECKSUM));
}

/* No block is there. */
static bool write_table(struct storage *storage, const struct plan *plan, GError **error)
{
    g_autofree uint8_t *absent = g_malloc(BAT_PIECE);

    memset(absent, 0xff, BAT_PIECE);
    for (uint64_t at = plan->table; at < plan->end; at += BAT_PIECE) {
        if (!storage_pwrite(storage, absent, MIN(BAT_PIECE, plan->end - at), at, error))
            return false;
    }
    return true;
}

/* The copy of the footer comes last: what is there before it is not an image. */
static bool write_sparse(struct storage *storage, const struct plan *plan, const uint8_t *footer,
                         GError **error)
{
    uint8_t header[VHD_HEADER];

    make_header(plan, header);
    return storage_pwrite(storage, header, VHD_HEADER, VHD_SECTOR, error) &&
           (!plan->locator || storage_pwrite(storage, plan->locator->data, plan->locator->len,
                                             VHD_SECTOR + VHD_HEADER, error)) &&
           write_table(storage, plan, error) &&
           storage_pwrite(storage, footer, VHD_SECTOR, storage->size - VHD_SECTOR, error) &&
           storage_flush(storage, error) && storage_pwrite(storage, footer, VHD_SECTOR, 0, error) &&
           storage_flush(storage, error);
}

static bool check_device(const struct storage *storage, const struct plan *plan, GError **error)
{
    uint64_t needed = plan->end + VHD_SECTOR;

    if (!check_end(plan, storage->size, error))
        return false;
    if (storage->size >= needed)
        return true;
    return blockmig_fail(error, BLOCKMIG_ERROR_NOSPACE,
                         "vhd: the tables alone need %" G_GUINT64_FORMAT
                         " bytes, the storage has %" G_GUINT64_FORMAT,
                         needed, storage->size);
}

bool vhd_create(struct storage *storage, const struct image_create_options *options, GError **error)
{
    g_auto(plan_t) plan = {0};
    uint8_t footer[VHD_SECTOR];

    if (!make_plan(options, &plan, error))
        return false;
    if (options->backing_name && !plan.parent)
        return vhd_refuse(error, "the parent \"%s\" must be there, for its identity is recorded",
                          options->backing_name);
    if (plan.parent && options->parent->size != plan.size)
        return vhd_refuse(error, "a child has the size of its parent, %" G_GUINT64_FORMAT " bytes",
                          options->parent->size);
    if (!storage->growable && !check_device(storage, &plan, error))
        return false;
    if (storage->growable && ((storage->size && !storage_resize(storage, 0, error)) ||
                              !storage_resize(storage, plan.end + VHD_SECTOR, error)))
        return false;
    make_footer(&plan, footer);
    if (plan.type != VHD_FIXED)
        return write_sparse(storage, &plan, footer, error);
    return storage_pwrite(storage, footer, VHD_SECTOR, plan.size, error) && storage_flush(storage, error);
}
