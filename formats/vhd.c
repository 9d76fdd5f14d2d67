/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* VHD: the driver's table, open, describe and close.  See vhd.h for what lies where. */
#include "formats/vhd.h"

#include "formats/raw.h"

static bool vhd_open(struct image *image, GError **error)
{
    struct vhd *vhd = g_new0(struct vhd, 1);

    vhd->image = image;
    vhd->storage = image->storage;
    image->opaque = vhd;
    if (!vhd_read_header(vhd, error)) {
        image->format->close(image);
        return false;
    }
    image->identity = vhd->type == VHD_FIXED;
    image->granularity = image->identity ? 1 : VHD_SECTOR;
    image->cluster_size =
        image->identity ? 4096 : MIN(vhd->block_size, vhd->unaligned ? VHD_SECTOR : VHD_DATA_ALIGNMENT);
    image->reads_zero = image->identity ? image->storage->reads_zero : vhd->type == VHD_DYNAMIC;
    return true;
}

static void vhd_close(struct image *image)
{
    struct vhd *vhd = g_steal_pointer(&image->opaque);

    vhd_cache_free(vhd);
    block_table_clear(&vhd->bat);
    g_clear_pointer(&vhd->changed, g_hash_table_unref);
    g_clear_pointer(&vhd->fixed, g_array_unref);
    g_free(vhd);
}

static void vhd_describe(struct image *image, image_describe_fn describe, void *opaque)
{
    static const char *const types[] = {
        [VHD_FIXED] = "fixed", [VHD_DYNAMIC] = "dynamic", [VHD_DIFFERENCING] = "differencing"};
    const struct vhd *vhd = image->opaque;
    g_autofree char *uuid = uuid_text(vhd->footer + VHD_FOOTER_UUID);
    g_autofree char *creator = g_strndup((const char *)vhd->footer + VHD_FOOTER_CREATOR, 4);
    g_autofree char *shown = g_strescape(creator, NULL);

    /* Only what is a value of the option: a copy inherits it. */
    describe(opaque, vhd->type == VHD_DIFFERENCING ? "disk_type" : "subformat", types[vhd->type]);
    if (vhd->type != VHD_FIXED) {
        g_autofree char *block_size = g_strdup_printf("%u", vhd->block_size);

        describe(opaque, "block_size", block_size);
    }
    describe(opaque, "creator", shown);
    describe(opaque, "uuid", uuid);
    if (vhd->type == VHD_DIFFERENCING) {
        g_autofree char *parent = uuid_text(vhd->parent_uuid);

        describe(opaque, "parent_uuid", parent);
    }
}

const struct format format_vhd = {
    .name = "vhd",
    .qemu_name = "vpc",
    .flags = FORMAT_BACKING | FORMAT_CREATE | FORMAT_SAME_SIZE | FORMAT_BLIND,
    .options = vhd_options,
    .probe = vhd_probe,
    .measure = vhd_measure,
    .create = vhd_create,
    .open = vhd_open,
    .check_parent = vhd_check_parent,
    .map = vhd_map,
    .place = vhd_place,
    .zero = vhd_zero,
    .discard = vhd_zero,
    .flush = vhd_flush,
    .check = vhd_check,
    .describe = vhd_describe,
    .close = vhd_close,
};
