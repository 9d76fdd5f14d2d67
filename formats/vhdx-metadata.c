/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The metadata region ([MS-VHDX] 2.6): a table of items in its first 64 KiB, the items behind it. */
#include "formats/vhdx.h"

#include <string.h>

#define MAX_ITEMS      2047u
#define MAX_USER_ITEMS 1024u
#define MAX_ITEM       (1u << 20)
#define IS_USER        1u
#define IS_DISK        2u
#define IS_REQUIRED    4u

struct item {
    struct vhdx_guid id;
    uint32_t offset, length, flags;
    uint32_t entry; /* its number in the table */
};

enum known { FILE_PARAMETERS, DISK_SIZE, DISK_ID, LOGICAL_SECTOR, PHYSICAL_SECTOR, PARENT_LOCATOR, KNOWN };

static const struct {
    const char *name;
    struct vhdx_guid id;
    uint32_t length; /* exactly; 0: any */
    uint32_t flags;
} known_items[KNOWN] = {
    [FILE_PARAMETERS] = {"File Parameters",
                         {{0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d, 0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44,
                           0xe7, 0x6b}},
                         8,
                         IS_REQUIRED},
    [DISK_SIZE] = {"Virtual Disk Size",
                   {{0x24, 0x42, 0xa5, 0x2f, 0x1b, 0xcd, 0x76, 0x48, 0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4,
                     0xb8}},
                   8,
                   IS_REQUIRED | IS_DISK},
    [DISK_ID] = {"Virtual Disk ID",
                 {{0xab, 0x12, 0xca, 0xbe, 0xe6, 0xb2, 0x23, 0x45, 0x93, 0xef, 0xc3, 0x09, 0xe0, 0x00, 0xc7,
                   0x46}},
                 16,
                 IS_REQUIRED | IS_DISK},
    [LOGICAL_SECTOR] = {"Logical Sector Size",
                        {{0x1d, 0xbf, 0x41, 0x81, 0x6f, 0xa9, 0x09, 0x47, 0xba, 0x47, 0xf2, 0x33, 0xa8, 0xfa,
                          0xab, 0x5f}},
                        4,
                        IS_REQUIRED | IS_DISK},
    [PHYSICAL_SECTOR] = {"Physical Sector Size",
                         {{0xc7, 0x48, 0xa3, 0xcd, 0x5d, 0x44, 0x71, 0x44, 0x9c, 0xc9, 0xe9, 0x88, 0x52, 0x51,
                           0xc5, 0x56}},
                         4,
                         IS_REQUIRED | IS_DISK},
    [PARENT_LOCATOR] = {"Parent Locator",
                        {{0x2d, 0x5f, 0xd3, 0xa8, 0x0b, 0xb3, 0x4d, 0x45, 0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34,
                          0xab, 0x0c}},
                        0,
                        IS_REQUIRED},
};

static struct item decode_item(const uint8_t *entry)
{
    struct item item = {
        .offset = load_le32(entry + 16), .length = load_le32(entry + 20), .flags = load_le32(entry + 24)};

    memcpy(&item.id, entry, sizeof item.id);
    return item;
}

static int find_known(const struct item *item)
{
    for (int i = 0; i < KNOWN; i++) {
        if (!(item->flags & IS_USER) && vhdx_guid_equal(&item->id, &known_items[i].id))
            return i;
    }
    return -1;
}

static const char *item_wrong(const struct vhdx *vhdx, const struct item *item)
{
    if (item->length > MAX_ITEM)
        return "is longer than 1 MiB";
    if (item->length == 0)
        return item->offset ? "has an offset but no length" : NULL;
    if (item->offset < VHDX_TABLE)
        return "begins inside the metadata table";
    if ((uint64_t)item->offset + item->length > vhdx->metadata_region.length)
        return "ends behind the metadata region";
    return NULL;
}

static gint compare_offsets(gconstpointer a, gconstpointer b)
{
    const struct item *left = a, *right = b;

    return left->offset < right->offset ? -1 : left->offset > right->offset;
}

/* Items with content must not overlap. Sorts `items`. */
static bool check_overlap(GArray *items, GError **error)
{
    g_array_sort(items, compare_offsets);
    for (guint i = 1; i < items->len; i++) {
        const struct item *item = &g_array_index(items, struct item, i);

        if (item[-1].length && item[-1].offset + item[-1].length > item->offset)
            return vhdx_refuse(error, "two metadata items overlap at offset %u of their region",
                               item->offset);
    }
    return true;
}

static char *item_name(const struct item *item, int known)
{
    return known >= 0 ? g_strdup(known_items[known].name) : vhdx_guid_format(&item->id);
}

/* One entry of the table; known ones go into `found`. */
static bool take_item(struct vhdx *vhdx, const struct item *item, struct item *found, GError **error)
{
    int known = find_known(item);
    g_autofree char *name = item_name(item, known);
    const char *wrong = item_wrong(vhdx, item);

    if (wrong)
        return vhdx_refuse(error, "metadata item %s of %u bytes at offset %u of its region %s", name,
                           item->length, item->offset, wrong);
    vhdx->user_items += item->flags & IS_USER;
    if (known < 0)
        return !(item->flags & IS_REQUIRED) ||
               vhdx_refuse(error, "metadata item %s is required but not known", name);
    if (found[known].length)
        return vhdx_refuse(error, "metadata item %s is there twice", name);
    if (item->length == 0 || (known_items[known].length && item->length != known_items[known].length))
        return vhdx_refuse(error, "metadata item %s has %u bytes instead of %u", name, item->length,
                           known_items[known].length);
    found[known] = *item;
    return true;
}

static bool read_table(struct vhdx *vhdx, struct item *found, GError **error)
{
    g_autoptr(GArray) items = g_array_new(FALSE, FALSE, sizeof(struct item));
    g_autofree uint8_t *table = g_malloc(VHDX_TABLE);
    uint16_t count;

    if (!storage_pread(vhdx->storage, table, VHDX_TABLE, vhdx->metadata_region.offset, error))
        return false;
    if (memcmp(table, "metadata", 8) != 0)
        return vhdx_refuse(error, "the metadata region does not begin with \"metadata\"");
    count = load_le16(table + 10);
    if (count > MAX_ITEMS)
        return vhdx_refuse(error, "EntryCount %u of the metadata table is more than %u", count, MAX_ITEMS);
    for (unsigned i = 0; i < count; i++) {
        struct item item = decode_item(table + 32 + i * 32);

        item.entry = i;
        vhdx->items_end = MAX(vhdx->items_end, (uint64_t)item.offset + item.length);
        if (!take_item(vhdx, &item, found, error))
            return false;
        g_array_append_val(items, item);
    }
    if (vhdx->user_items > MAX_USER_ITEMS)
        return vhdx_refuse(error, "%u user metadata items are more than %u", vhdx->user_items,
                           MAX_USER_ITEMS);
    for (int i = 0; i < PARENT_LOCATOR; i++) {
        if (!found[i].length)
            return vhdx_refuse(error, "metadata item %s is missing", known_items[i].name);
    }
    return check_overlap(items, error);
}

/* A new buffer with the content of the item. */
static uint8_t *read_item(struct vhdx *vhdx, const struct item *item, GError **error)
{
    g_autofree uint8_t *bytes = g_malloc(item->length);

    if (!storage_pread(vhdx->storage, bytes, item->length, vhdx->metadata_region.offset + item->offset,
                       error))
        return NULL;
    return g_steal_pointer(&bytes);
}

static bool is_sector_size(uint32_t size)
{
    return size == 512 || size == 4096;
}

static bool check_values(struct vhdx *vhdx, GError **error)
{
    uint64_t size = vhdx->image->size;

    if (vhdx->block_size < VHDX_MIN_BLOCK || vhdx->block_size > VHDX_MAX_BLOCK ||
        vhdx->block_size & (vhdx->block_size - 1))
        return vhdx_refuse(error, "BlockSize %u is not a power of two from 1 MiB to 256 MiB",
                           vhdx->block_size);
    if (!is_sector_size(vhdx->logical_sector))
        return vhdx_refuse(error, "LogicalSectorSize %u is neither 512 nor 4096", vhdx->logical_sector);
    if (!is_sector_size(vhdx->physical_sector))
        return vhdx_refuse(error, "PhysicalSectorSize %u is neither 512 nor 4096", vhdx->physical_sector);
    if (size > VHDX_MAX_SIZE || size % vhdx->logical_sector)
        return vhdx_refuse(
            error, "VirtualDiskSize %" G_GUINT64_FORMAT " is more than 64 TiB or no multiple of %u bytes",
            size, vhdx->logical_sector);
    return true;
}

static bool read_values(struct vhdx *vhdx, const struct item *found, GError **error)
{
    g_autofree uint8_t *values[PARENT_LOCATOR] = {NULL};
    bool ok = true;

    for (int i = 0; ok && i < PARENT_LOCATOR; i++)
        ok = (values[i] = read_item(vhdx, &found[i], error)) != NULL;
    if (ok) {
        uint32_t bits = load_le32(values[FILE_PARAMETERS] + 4);

        vhdx->block_size = load_le32(values[FILE_PARAMETERS]);
        vhdx->differencing = bits & 2;
        vhdx->fixed = bits & 1 && !vhdx->differencing;
        vhdx->image->size = load_le64(values[DISK_SIZE]);
        memcpy(&vhdx->disk_id, values[DISK_ID], sizeof vhdx->disk_id);
        vhdx->logical_sector = load_le32(values[LOGICAL_SECTOR]);
        vhdx->physical_sector = load_le32(values[PHYSICAL_SECTOR]);
    }
    for (int i = 0; i < PARENT_LOCATOR; i++)
        g_clear_pointer(&values[i], g_free);
    return ok && check_values(vhdx, error);
}

static bool read_locator(struct vhdx *vhdx, const struct item *item, GError **error)
{
    g_autofree uint8_t *bytes = NULL;

    if (!vhdx->differencing)
        return true;
    if (!item->length)
        return vhdx_refuse(error, "HasParent is set, but there is no Parent Locator");
    vhdx->locator = (struct vhdx_range){item->offset, item->length};
    vhdx->locator_entry = item->entry;
    bytes = read_item(vhdx, item, error);
    return bytes && vhdx_parse_locator(vhdx, bytes, item->length, error);
}

bool vhdx_read_metadata(struct vhdx *vhdx, GError **error)
{
    struct item found[KNOWN] = {0};

    if (!read_table(vhdx, found, error) || !read_values(vhdx, found, error) ||
        !read_locator(vhdx, &found[PARENT_LOCATOR], error))
        return false;
    vhdx_set_geometry(vhdx);
    return true;
}

/* 2.5: after the blocks of each chunk comes the entry of its sector bitmap, in images without a parent too.
 * Only differencing ones need the last of them. */
void vhdx_set_geometry(struct vhdx *vhdx)
{
    uint64_t size = vhdx->image->size;

    vhdx->chunk_ratio = VHDX_CHUNK_SECTORS * vhdx->logical_sector / vhdx->block_size;
    vhdx->blocks = size / vhdx->block_size + (size % vhdx->block_size != 0);
    if (vhdx->blocks == 0)
        vhdx->entries = 0;
    else if (vhdx->differencing)
        vhdx->entries = vhdx_bitmap_index(vhdx, (vhdx->blocks - 1) / vhdx->chunk_ratio) + 1;
    else
        vhdx->entries = vhdx_block_index(vhdx, vhdx->blocks - 1) + 1;
}

void vhdx_encode_metadata(const struct vhdx *vhdx, const GByteArray *locator, uint8_t *out, size_t length)
{
    uint8_t values[PARENT_LOCATOR][16] = {{0}};
    uint32_t at = VHDX_TABLE;
    int count = locator ? KNOWN : PARENT_LOCATOR;

    store_le32(values[FILE_PARAMETERS], vhdx->block_size);
    store_le32(values[FILE_PARAMETERS] + 4, (vhdx->differencing ? 2 : 0) | (vhdx->fixed ? 1 : 0));
    store_le64(values[DISK_SIZE], vhdx->image->size);
    memcpy(values[DISK_ID], &vhdx->disk_id, sizeof vhdx->disk_id);
    store_le32(values[LOGICAL_SECTOR], vhdx->logical_sector);
    store_le32(values[PHYSICAL_SECTOR], vhdx->physical_sector);
    memset(out, 0, length);
    memcpy(out, "metadata", 8);
    store_le16(out + 10, count);
    for (int i = 0; i < count; i++) {
        uint8_t *entry = out + 32 + i * 32;
        uint32_t bytes = i == PARENT_LOCATOR ? locator->len : known_items[i].length;

        memcpy(entry, &known_items[i].id, sizeof known_items[i].id);
        store_le32(entry + 16, at);
        store_le32(entry + 20, bytes);
        store_le32(entry + 24, known_items[i].flags);
        memcpy(out + at, i == PARENT_LOCATOR ? locator->data : values[i], bytes);
        at += bytes;
    }
}
