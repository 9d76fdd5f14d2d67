/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* VHDX: the driver's table, open, describe, close. */
#include "formats/vhdx.h"

#include <stdarg.h>

/* Zeros of this size inside a block are not written: the file has holes there. */
#define ZERO_UNIT 65536u

bool vhdx_refuse(GError **error, const char *format, ...)
{
    g_autofree char *text = NULL;
    va_list args;

    va_start(args, format);
    text = g_strdup_vprintf(format, args);
    va_end(args);
    return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "VHDX: %s", text);
}

static void announce(const struct vhdx *vhdx)
{
    if (vhdx->replay)
        image_notice(vhdx->image,
                     "its log holds changes that were not applied yet; they are taken into account");
    if (vhdx->user_items)
        image_notice(vhdx->image, "%u user metadata items are not copied", vhdx->user_items);
}

static bool open_image(struct vhdx *vhdx, GError **error)
{
    struct image *image = vhdx->image;

    if (!vhdx_read_headers(vhdx, error) || !vhdx_replay_log(vhdx, error) || !vhdx_read_regions(vhdx, error) ||
        !vhdx_read_metadata(vhdx, error) || !vhdx_read_bat(vhdx, error))
        return false;
    vhdx_bitmaps_init(vhdx);
    image->granularity = vhdx->differencing ? vhdx->logical_sector : 1;
    image->cluster_size = ZERO_UNIT;
    image->reads_zero = !vhdx->differencing;
    announce(vhdx);
    return true;
}

static void vhdx_close(struct image *image)
{
    struct vhdx *vhdx = g_steal_pointer(&image->opaque);

    if (vhdx->pieces)
        vhdx_bitmaps_clear(vhdx);
    g_clear_pointer(&vhdx->new_bitmaps, g_array_unref);
    g_clear_pointer(&vhdx->frees, g_array_unref);
    storage_close(vhdx->replay);
    g_free(vhdx->bat);
    g_free(vhdx->bat_dirty);
    g_free(vhdx->space.words);
    g_free(vhdx);
}

static bool vhdx_open(struct image *image, GError **error)
{
    struct vhdx *vhdx = g_new0(struct vhdx, 1);

    vhdx->image = image;
    vhdx->storage = image->storage;
    image->opaque = vhdx;
    if (open_image(vhdx, error))
        return true;
    vhdx_close(image);
    g_clear_pointer(&image->backing_name, g_free);
    g_clear_pointer(&image->backing_format, g_free);
    g_clear_pointer(&image->parent_names, g_ptr_array_unref);
    return false;
}

static void describe_number(image_describe_fn describe, void *opaque, const char *key, uint64_t number)
{
    char text[24];

    g_snprintf(text, sizeof text, "%" G_GUINT64_FORMAT, number);
    describe(opaque, key, text);
}

static void describe_guid(image_describe_fn describe, void *opaque, const char *key,
                          const struct vhdx_guid *guid)
{
    g_autofree char *text = vhdx_guid_format(guid);

    describe(opaque, key, text);
}

/* What a copy shall have too is called as the option of create is. */
static void vhdx_describe(struct image *image, image_describe_fn describe, void *opaque)
{
    const struct vhdx *vhdx = image->opaque;

    if (vhdx->differencing)
        describe_guid(describe, opaque, "parent_linkage", &vhdx->linkage);
    else
        describe(opaque, "subformat", vhdx->fixed ? "fixed" : "dynamic");
    describe_number(describe, opaque, "block_size", vhdx->block_size);
    describe_number(describe, opaque, "logical_sector_size", vhdx->logical_sector);
    describe_number(describe, opaque, "physical_sector_size", vhdx->physical_sector);
    describe_number(describe, opaque, "log_size", vhdx->header.log_length);
    describe(opaque, "dirty", vhdx->replay ? "yes" : "no");
    describe_guid(describe, opaque, "disk_id", &vhdx->disk_id);
    describe_guid(describe, opaque, "data_write_guid", &vhdx->header.data_write);
}

const struct format format_vhdx = {
    .name = "vhdx",
    .flags = FORMAT_BACKING | FORMAT_CREATE | FORMAT_SAME_SIZE | FORMAT_BLIND,
    .options = vhdx_options,
    .probe = vhdx_probe,
    .measure = vhdx_measure,
    .child_unit = vhdx_child_unit,
    .create = vhdx_create,
    .open = vhdx_open,
    .check_parent = vhdx_check_parent,
    .begin_merge = vhdx_begin_merge,
    .map = vhdx_map,
    .place = vhdx_place,
    .zero = vhdx_zero,
    .discard = vhdx_discard,
    .flush = vhdx_flush,
    .describe = vhdx_describe,
    .close = vhdx_close,
};
