/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* New VDIs, laid out as VirtualBox 7 does it: header, block map and data each begin on a MiB. */
#include "formats/create-options.h"
#include "formats/vdi.h"

#include <string.h>

#define MIB       (UINT64_C(1) << 20)
#define MAP_PIECE 262144u /* entries written at once */

const struct format_option vdi_options[] = {
    {"subformat", "dynamic (default) or fixed"},
    {"block_size", "4k to 64M, a power of two (default 1M; QEMU knows no other)", .not_inherited = true},
    {NULL, NULL},
};

struct plan {
    enum vdi_type type;
    uint64_t size, block_size, blocks, data;
};

static bool make_plan(const struct image_create_options *options, struct plan *plan, GError **error)
{
    static const char *const subformats[] = {"dynamic", "fixed", NULL};
    int subformat = create_option_choose("vdi", options, "subformat", "dynamic", subformats, error);
    uint64_t most;

    if (subformat < 0 || !create_option_size("vdi", options, "block_size", VDI_BLOCK, VDI_MIN_BLOCK,
                                             VDI_MAX_BLOCK, &plan->block_size, error))
        return false;
    most = VDI_MAX_TABLE / sizeof(uint32_t) * plan->block_size;
    if (options->size == 0 || options->size > most)
        return vdi_refuse(error,
                          "a disk in blocks of %" G_GUINT64_FORMAT " bytes has 1 to %" G_GUINT64_FORMAT
                          " bytes, not %" G_GUINT64_FORMAT,
                          plan->block_size, most, options->size);
    if (options->backing_name && subformat == 1)
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "vdi: subformat=fixed cannot have a parent");
    if (options->backing_name && g_strcmp0(options->backing_format, "vdi") != 0)
        return vdi_refuse(error, "the parent of a VDI must be a VDI, but \"%s\" is %s", options->backing_name,
                          options->backing_format);
    plan->type = options->backing_name ? VDI_DIFFERENCING : subformat == 1 ? VDI_FIXED : VDI_NORMAL;
    plan->size = round_up(options->size, 512); /* the disk consists of sectors */
    plan->blocks = round_up(plan->size, plan->block_size) / plan->block_size;
    plan->data = MIB + round_up(plan->blocks * sizeof(uint32_t), MIB);
    return true;
}

bool vdi_child_unit(const struct image_create_options *options, uint32_t *unit, GError **error)
{
    struct plan plan;

    if (!make_plan(options, &plan, error))
        return false;
    *unit = plan.block_size;
    return true;
}

/* New blocks are thin: what is not data in them is a hole. */
bool vdi_measure(const struct image_create_options *options, uint64_t data, uint64_t *bytes, GError **error)
{
    struct plan plan;

    if (!make_plan(options, &plan, error))
        return false;
    if (plan.type == VDI_FIXED)
        *bytes = plan.data + plan.blocks * plan.block_size;
    else
        *bytes = plan.data + MIN(round_up(data, plan.block_size), plan.blocks * plan.block_size);
    return true;
}

static void make_header(const struct plan *plan, const struct image *parent, uint8_t *header)
{
    memset(header, 0, VDI_HEADER);
    g_strlcpy((char *)header, "<<< blockmig VirtualBox Disk Image >>>\n", VDI_AT_SIGNATURE);
    store_le32(header + VDI_AT_SIGNATURE, VDI_SIGNATURE);
    store_le32(header + VDI_AT_VERSION, VDI_VERSION);
    store_le32(header + VDI_AT_HEADER_SIZE, VDI_AT_GEOMETRY + 16 - VDI_AT_HEADER_SIZE);
    store_le32(header + VDI_AT_TYPE, plan->type);
    store_le32(header + VDI_AT_TABLE, MIB);
    store_le32(header + VDI_AT_DATA, plan->data);
    store_le32(header + VDI_AT_SECTOR_SIZE, 512);
    store_le32(header + VDI_AT_DISK_SIZE, (uint32_t)plan->size);
    store_le32(header + VDI_AT_DISK_SIZE + 4, plan->size >> 32);
    store_le32(header + VDI_AT_BLOCK_SIZE, plan->block_size);
    store_le32(header + VDI_AT_BLOCKS, plan->blocks);
    store_le32(header + VDI_AT_ALLOCATED, plan->type == VDI_FIXED ? plan->blocks : 0);
    store_le32(header + VDI_AT_GEOMETRY + 12, 512);
    uuid_random(header + VDI_AT_UUID);
    uuid_random(header + VDI_AT_MODIFICATION);
    if (parent) {
        const struct vdi *vdi = parent->opaque;

        memcpy(header + VDI_AT_PARENT, vdi->header + VDI_AT_UUID, UUID_LENGTH);
        memcpy(header + VDI_AT_PARENT_MODIFICATION, vdi->header + VDI_AT_MODIFICATION, UUID_LENGTH);
    }
}

static bool write_map(struct storage *storage, const struct plan *plan, GError **error)
{
    g_autofree uint32_t *entries = g_new(uint32_t, MAP_PIECE);

    for (uint64_t first = 0; first < plan->blocks; first += MAP_PIECE) {
        uint64_t count = MIN(MAP_PIECE, plan->blocks - first);

        for (uint64_t i = 0; i < count; i++)
            entries[i] = plan->type == VDI_FIXED ? GUINT32_TO_LE(first + i) : VDI_FREE;
        if (!storage_pwrite(storage, entries, count * sizeof *entries, MIB + first * sizeof *entries, error))
            return false;
    }
    return true;
}

static bool prepare_storage(struct storage *storage, const struct plan *plan, GError **error)
{
    uint64_t end = plan->data + (plan->type == VDI_FIXED ? plan->blocks * plan->block_size : 0);

    if (storage->growable)
        return (storage->size == 0 || storage_resize(storage, 0, error)) &&
               storage_resize(storage, end, error);
    if (storage->size < end)
        return blockmig_fail(error, BLOCKMIG_ERROR_NOSPACE,
                             "vdi: %" G_GUINT64_FORMAT
                             " bytes are needed at once, the storage has %" G_GUINT64_FORMAT,
                             end, storage->size);
    return storage_zero(storage, 0, plan->data, true, error);
}

/* The header comes last: what is there before it is not an image. */
bool vdi_create(struct storage *storage, const struct image_create_options *options, GError **error)
{
    uint8_t header[VDI_HEADER];
    struct plan plan;

    if (!make_plan(options, &plan, error))
        return false;
    if (options->backing_name && !options->parent)
        return vdi_refuse(error, "the parent \"%s\" must be there, for its identity is recorded",
                          options->backing_name);
    if (options->parent && options->parent->size != plan.size)
        return vdi_refuse(error, "a child has the size of its parent, %" G_GUINT64_FORMAT " bytes",
                          options->parent->size);
    make_header(&plan, options->parent, header);
    return prepare_storage(storage, &plan, error) && write_map(storage, &plan, error) &&
           storage_flush(storage, error) && storage_pwrite(storage, header, VDI_HEADER, 0, error) &&
           storage_flush(storage, error);
}
