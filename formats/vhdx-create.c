/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * New images, in the order of Hyper-V: header section, log, metadata, BAT, blocks.  The headers are written
 * last: what is there before them is not an image.
 */
#include "formats/create-options.h"
#include "formats/utf16.h"
#include "formats/vhdx.h"

#include <string.h>

#define CREATOR       "blockmig"
#define BAT_TARGET    (UINT64_C(16) << 20) /* larger tables are avoided by larger blocks */
#define SMALL_BLOCK   (UINT64_C(2) << 20)
#define METADATA_USED (2 * VHDX_TABLE) /* a locator of ours has less than 64 KiB */
#define WRITE_PIECE   (UINT64_C(1) << 20)

const struct format_option vhdx_options[] = {
    {"subformat", "dynamic or fixed (default dynamic)"},
    {"block_size", "1M to 256M, a power of two (default 2M, more for disks above 4 TiB)"},
    {"logical_sector_size", "512 or 4096 (default 512, or as the parent)"},
    {"physical_sector_size", "512 or 4096 (default 4096, or as the parent)"},
    {"log_size", "1M to 64M, a power of two (default 1M)"},
    {NULL, NULL},
};

/* What the options say and what follows from it. */
struct plan {
    struct image image; /* for its size */
    struct vhdx vhdx;
    GByteArray *locator; /* or NULL */
    uint64_t end;        /* first byte behind the tables: blocks may follow */
};

/* Small blocks keep thin disks thin; a huge table is slow to open for everybody. */
static const char *default_block_size(uint64_t size)
{
    static const char *const sizes[] = {"2M", "4M", "8M", "16M", "32M"};
    uint64_t block = SMALL_BLOCK;
    size_t i = 0;

    while (i + 1 < G_N_ELEMENTS(sizes) && size / block * 8 > BAT_TARGET) {
        block *= 2;
        i++;
    }
    return sizes[i];
}

static const char *sector_default(const struct image_create_options *options, bool logical)
{
    const struct vhdx *parent = options->parent ? options->parent->opaque : NULL;
    uint32_t size = !parent   ? (logical ? 512 : 4096)
                    : logical ? parent->logical_sector
                              : parent->physical_sector;

    return size == 512 ? "512" : "4096";
}

static bool parse_sizes(const struct image_create_options *options, struct vhdx *vhdx, GError **error)
{
    static const char *const sectors[] = {"512", "4096", NULL};
    uint64_t block, log;
    int logical, physical;

    if (!create_option_size("vhdx", options, "block_size", default_block_size(options->size), VHDX_MIN_BLOCK,
                            VHDX_MAX_BLOCK, &block, error) ||
        !create_option_size("vhdx", options, "log_size", "1M", VHDX_MIB, VHDX_MAX_REPLAY_LOG, &log, error) ||
        (logical = create_option_choose("vhdx", options, "logical_sector_size", sector_default(options, true),
                                        sectors, error)) < 0 ||
        (physical = create_option_choose("vhdx", options, "physical_sector_size",
                                         sector_default(options, false), sectors, error)) < 0)
        return false;
    vhdx->block_size = block;
    vhdx->header.log_length = log;
    vhdx->logical_sector = logical ? 4096 : 512;
    vhdx->physical_sector = physical ? 4096 : 512;
    return true;
}

/* 2.6.2.4: the child is the same disk, which the guest knows by its ID. */
static bool adopt_parent(const struct image_create_options *options, struct plan *plan, GError **error)
{
    struct vhdx *vhdx = &plan->vhdx, *parent;

    if (!options->backing_name)
        return true;
    if (strcmp(options->backing_format, "vhdx") != 0)
        return vhdx_refuse(error, "the parent of a differencing image must be vhdx, not %s",
                           options->backing_format);
    vhdx->differencing = true;
    if (!options->parent) { /* only measured */
        plan->locator = vhdx_make_locator(&vhdx_no_guid, options->backing_name, error);
        return plan->locator != NULL;
    }
    parent = options->parent->opaque;
    if (vhdx->logical_sector != parent->logical_sector)
        return vhdx_refuse(error, "the parent has logical sectors of %u bytes, the child cannot have %u",
                           parent->logical_sector, vhdx->logical_sector);
    if (plan->image.size != options->parent->size)
        return vhdx_refuse(
            error, "the parent has %" G_GUINT64_FORMAT " bytes, the child would have %" G_GUINT64_FORMAT,
            options->parent->size, plan->image.size);
    vhdx->disk_id = parent->disk_id;
    plan->locator = vhdx_make_locator(&parent->header.data_write, options->backing_name, error);
    return plan->locator != NULL;
}

static bool check_plan(const struct image_create_options *options, const struct plan *plan, GError **error)
{
    const struct vhdx *vhdx = &plan->vhdx;

    if (vhdx->fixed && vhdx->differencing)
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE,
                             "vhdx: subformat=fixed is not possible with a parent");
    if (options->size == 0)
        return vhdx_refuse(error, "a disk without a sector cannot be written");
    if (options->size > VHDX_MAX_SIZE)
        return vhdx_refuse(error, "a disk of %" G_GUINT64_FORMAT " bytes is larger than 64 TiB",
                           options->size);
    return true;
}

static bool make_plan(const struct image_create_options *options, struct plan *plan, GError **error)
{
    static const char *const subformats[] = {"dynamic", "fixed", NULL};
    struct vhdx *vhdx = &plan->vhdx;
    int subformat = create_option_choose("vhdx", options, "subformat", "dynamic", subformats, error);

    if (subformat < 0 || (options->parent && options->parent->format != &format_vhdx &&
                          !vhdx_refuse(error, "the parent %s is not vhdx, but %s", options->parent->name,
                                       options->parent->format->name)))
        return false;
    vhdx->image = &plan->image;
    vhdx->fixed = subformat;
    vhdx->disk_id = vhdx_guid_random();
    if (!parse_sizes(options, vhdx, error))
        return false;
    plan->image.size = round_up(options->size, vhdx->logical_sector); /* the disk consists of sectors */
    if (!adopt_parent(options, plan, error) || !check_plan(options, plan, error))
        return false;
    vhdx_set_geometry(vhdx);
    vhdx->header.version = 1;
    vhdx->header.log_offset = VHDX_MIB;
    vhdx->metadata_region = (struct vhdx_range){VHDX_MIB + vhdx->header.log_length, VHDX_MIB};
    vhdx->bat_region = (struct vhdx_range){vhdx->metadata_region.offset + VHDX_MIB,
                                           MAX(round_up(vhdx->entries * 8, VHDX_MIB), VHDX_MIB)};
    plan->end = vhdx->bat_region.offset + vhdx->bat_region.length;
    return true;
}

static void plan_clear(struct plan *plan)
{
    g_clear_pointer(&plan->locator, g_byte_array_unref);
}

bool vhdx_child_unit(const struct image_create_options *options, uint32_t *unit, GError **error)
{
    struct plan plan = {0};
    bool ok = make_plan(options, &plan, error);

    *unit = plan.vhdx.logical_sector;
    plan_clear(&plan);
    return ok;
}

bool vhdx_measure(const struct image_create_options *options, uint64_t data, uint64_t *bytes, GError **error)
{
    struct plan plan = {0};
    const struct vhdx *vhdx = &plan.vhdx;
    bool ok = make_plan(options, &plan, error);

    if (ok) {
        uint64_t full = vhdx->blocks * vhdx->block_size;
        uint64_t bitmaps =
            vhdx->differencing ? (vhdx->entries + vhdx->chunk_ratio) / (vhdx->chunk_ratio + 1) : 0;

        *bytes = plan.end + bitmaps * VHDX_MIB +
                 (vhdx->fixed ? full : MIN(full, round_up(data, vhdx->block_size)));
    }
    plan_clear(&plan);
    return ok;
}

/* ---- writing ------------------------------------------------------------------------------------ */

static bool make_room(struct storage *storage, const struct plan *plan, GError **error)
{
    const struct vhdx *vhdx = &plan->vhdx;
    uint64_t end = plan->end + (vhdx->fixed ? vhdx->blocks * vhdx->block_size : 0);

    if (storage->growable)
        return storage_resize(storage, 0, error) && storage_resize(storage, end, error) &&
               storage_allocate(storage, plan->end, end - plan->end, error);
    if (storage->size < end)
        return blockmig_fail(error, BLOCKMIG_ERROR_NOSPACE,
                             "VHDX: %" G_GUINT64_FORMAT
                             " bytes are needed, the storage has %" G_GUINT64_FORMAT,
                             end, storage->size);
    return storage_zero(storage, 0, end, true, error);
}

/* All blocks of a fixed image, in the order of the disk. */
static bool write_blocks(struct storage *storage, const struct plan *plan, GError **error)
{
    const struct vhdx *vhdx = &plan->vhdx;
    g_autofree uint8_t *bytes = g_malloc(WRITE_PIECE);

    for (uint64_t block = 0; vhdx->fixed && block < vhdx->blocks;) {
        uint64_t first = vhdx_block_index(vhdx, block) / (WRITE_PIECE / 8) * (WRITE_PIECE / 8);

        memset(bytes, 0, WRITE_PIECE);
        for (; block < vhdx->blocks; block++) {
            uint64_t at = vhdx_block_index(vhdx, block) - first;

            if (at >= WRITE_PIECE / 8)
                break;
            store_le64(bytes + at * 8, (plan->end + block * vhdx->block_size) | VHDX_PRESENT);
        }
        if (!storage_pwrite(storage, bytes, WRITE_PIECE, vhdx->bat_region.offset + first * 8, error))
            return false;
    }
    return true;
}

static bool write_tables(struct storage *storage, const struct plan *plan, GError **error)
{
    g_autofree uint8_t *table = g_malloc(VHDX_TABLE), *metadata = g_malloc(METADATA_USED);

    vhdx_encode_regions(&plan->vhdx, table);
    vhdx_encode_metadata(&plan->vhdx, plan->locator, metadata, METADATA_USED);
    return storage_pwrite(storage, table, VHDX_TABLE, VHDX_REGION_OFFSET, error) &&
           storage_pwrite(storage, table, VHDX_TABLE, VHDX_REGION_OFFSET + VHDX_TABLE, error) &&
           storage_pwrite(storage, metadata, METADATA_USED, plan->vhdx.metadata_region.offset, error) &&
           write_blocks(storage, plan, error) && storage_flush(storage, error);
}

static bool write_headers(struct storage *storage, const struct plan *plan, GError **error)
{
    g_autoptr(GByteArray) creator = utf16_encode(CREATOR, UTF16_LITTLE, error);
    struct vhdx_header header = plan->vhdx.header;
    uint8_t id[520] = "vhdxfile", bytes[VHDX_SECTOR];

    if (!creator)
        return false;
    memcpy(id + 8, creator->data, creator->len);
    header.file_write = vhdx_guid_random();
    header.data_write = vhdx_guid_random();
    for (unsigned i = 0; i < 2; i++) {
        header.sequence = i + 1;
        vhdx_encode_header(&header, bytes);
        if (!storage_pwrite(storage, bytes, sizeof bytes, VHDX_HEADER_OFFSET * (i + 1), error))
            return false;
    }
    return storage_flush(storage, error) && storage_pwrite(storage, id, sizeof id, 0, error) &&
           storage_flush(storage, error);
}

bool vhdx_create(struct storage *storage, const struct image_create_options *options, GError **error)
{
    struct plan plan = {0};
    bool ok = make_plan(options, &plan, error) && make_room(storage, &plan, error) &&
              write_tables(storage, &plan, error) && write_headers(storage, &plan, error);

    plan_clear(&plan);
    return ok;
}
