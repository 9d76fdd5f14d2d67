/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* VMDK: the driver's table, open, describe and close. See vmdk.h for what lies where. */
#include "formats/vmdk.h"

#include <stdarg.h>
#include <string.h>

#define MOST_LOST_DIGITS 7

static bool G_GNUC_PRINTF(3, 0)
    fail(GError **error, enum blockmig_error code, const char *format, va_list arguments)
{
    g_autofree char *text = g_strdup_vprintf(format, arguments);

    return blockmig_fail(error, code, "vmdk: %s", text);
}

bool vmdk_refuse(GError **error, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    fail(error, BLOCKMIG_ERROR_REFUSED, format, arguments);
    va_end(arguments);
    return false;
}

bool vmdk_corrupt(GError **error, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    fail(error, BLOCKMIG_ERROR_FAILED, format, arguments);
    va_end(arguments);
    return false;
}

/* An extent alone is a part of a disk of which nobody knows the rest, or even whether it has a parent. */
static bool vmdk_probe(const uint8_t *head, size_t length, struct storage *storage)
{
    if (length >= 8 && (load_le32(head) == VMDK_MAGIC || load_le32(head) == VMDK_COWD_MAGIC ||
                        load_le64(head) == VMDK_SESPARSE_MAGIC))
        return true;
    return vmdk_is_text(head, length);
}

struct vmdk_extent *vmdk_find(struct vmdk *vmdk, uint64_t offset)
{
    unsigned low = 0, high = vmdk->extent_count;

    while (high - low > 1) {
        unsigned middle = (low + high) / 2;

        if (vmdk->extents[middle].start <= offset)
            low = middle;
        else
            high = middle;
    }
    return &vmdk->extents[low];
}

/* ---- the descriptor ----------------------------------------------------------------------------- */

/* QEMU leaves out leading zeros of a content id (vmdk_write_cid), does not shorten the file, and so leaves
 * behind the text a NUL and the end of the text before: as many bytes as the id has lost digits. */
static bool is_padding(const char *text, size_t length)
{
    const char *nul = memchr(text, '\0', length);

    for (const char *p = nul; p && p < text + length; p++)
        if (*p && p - nul >= MOST_LOST_DIGITS)
            return false;
    return true;
}

static bool read_text(struct vmdk *vmdk, uint64_t offset, uint64_t length, GError **error)
{
    g_autofree char *text = NULL;

    if (length == 0 || length > VMDK_MAX_TEXT || offset > vmdk->image->storage->size ||
        length > vmdk->image->storage->size - offset)
        return vmdk_refuse(error,
                           "a descriptor of %" G_GUINT64_FORMAT " bytes at %" G_GUINT64_FORMAT
                           " is larger than %u or does not lie inside the file",
                           length, offset, VMDK_MAX_TEXT);
    text = g_malloc(length);
    if (!storage_pread(vmdk->image->storage, text, length, offset, error))
        return false;
    if (offset == 0 && !is_padding(text, length))
        return vmdk_refuse(error, "descriptor: there is a NUL byte in the text");
    vmdk->text_offset = offset;
    vmdk->text_room = length;
    vmdk->descriptor = vmdk_descriptor_parse(text, length, error);
    return vmdk->descriptor != NULL;
}

static void add_extents(struct vmdk *vmdk)
{
    uint64_t start = 0;

    vmdk->extent_count = vmdk->descriptor->lines->len;
    vmdk->extents = g_new0(struct vmdk_extent, vmdk->extent_count);
    for (unsigned i = 0; i < vmdk->extent_count; i++) {
        const struct vmdk_line *line = &g_array_index(vmdk->descriptor->lines, struct vmdk_line, i);

        vmdk->extents[i] = (struct vmdk_extent){.kind = line->kind,
                                                .readonly = line->readonly,
                                                .start = start,
                                                .size = line->size,
                                                .host = line->host};
        start += line->size;
    }
    vmdk->image->size = start;
}

static bool set_parent(struct vmdk *vmdk, GError **error)
{
    const struct vmdk_descriptor *descriptor = vmdk->descriptor;
    struct image *image = vmdk->image;

    if (vmdk_is_base(descriptor))
        return true;
    image->wants_parent = true;
    image->backing_format = g_strdup("vmdk");
    if (descriptor->parent_hint)
        image_add_parent_name(image, descriptor->parent_hint);
    if (image->writable && vmdk->stream)
        return vmdk_refuse(error, "a stream with a parent is only read");
    return true;
}

/* ---- open --------------------------------------------------------------------------------------- */

/* The disk as a whole, from its extents. */
static bool set_geometry(struct vmdk *vmdk, GError **error)
{
    struct image *image = vmdk->image;
    uint64_t grain = 1, unit = 0;

    image->identity = true;
    image->reads_zero = true;
    for (unsigned i = 0; i < vmdk->extent_count; i++) {
        const struct vmdk_extent *extent = &vmdk->extents[i];

        if (extent->packed && unit && unit != extent->grain)
            return vmdk_refuse(error, "compressed extents have grains of different sizes");
        if (extent->packed)
            unit = extent->grain;
        grain = MAX(grain, extent->grain);
        image->identity = image->identity && (extent->kind == VMDK_FLAT || extent->kind == VMDK_ZERO);
        if (extent->kind == VMDK_FLAT)
            image->reads_zero = image->reads_zero && extent->storage->reads_zero;
    }
    image->granularity = grain;
    image->cluster_size = MAX(grain, image->identity ? 4096 : 1);
    image->packed_unit = unit;
    image->packed_max = vmdk->stream ? vmdk_record_max(unit) : 0;
    image->reads_zero = image->reads_zero && vmdk_is_base(vmdk->descriptor);
    return true;
}

static bool check_writable(const struct vmdk *vmdk, GError **error)
{
    for (unsigned i = 0; vmdk->image->writable && i < vmdk->extent_count; i++) {
        const struct vmdk_extent *extent = &vmdk->extents[i];

        if (extent->kind == VMDK_COWD)
            return vmdk_refuse(error, "COWD extents are only read");
        if (extent->packed && !vmdk->stream)
            return vmdk_refuse(error, "compressed extents of several files are only read");
        if (extent->header.version == 3 && !extent->packed)
            return vmdk_refuse(error, "an extent of version 3 without compression is only read");
    }
    return true;
}

/* What is needed beside the descriptor is there. */
static bool open_extents(struct vmdk *vmdk, GError **error)
{
    for (unsigned i = 0; i < vmdk->extent_count; i++) {
        struct vmdk_extent *extent = &vmdk->extents[i];

        if (extent->kind == VMDK_FLAT || extent->kind == VMDK_ZERO)
            continue;
        if (!vmdk_sparse_open(vmdk, extent, error)) {
            g_prefix_error(error, "%s: ", extent->storage->name);
            return false;
        }
        if (extent->header.unclean)
            image_notice(vmdk->image, "%s was not closed cleanly", extent->storage->name);
    }
    vmdk->stream = vmdk->extent_count == 1 && vmdk->extents[0].packed &&
                   vmdk->extents[0].storage == vmdk->image->storage;
    return check_writable(vmdk, error) && set_geometry(vmdk, error);
}

/* Header, descriptor and data in one file: the name in the text may be older than that of the file. */
static bool open_monolithic(struct vmdk *vmdk, const uint8_t *head, GError **error)
{
    struct vmdk_header header;

    if (!vmdk_header_parse(head, &header, error))
        return false;
    if (header.text_offset == 0 || header.text_size == 0)
        return vmdk_refuse(error,
                           "this is an extent of a disk, without a descriptor: name the descriptor's file");
    if (!read_text(vmdk, header.text_offset, header.text_size, error))
        return false;
    add_extents(vmdk);
    if (vmdk->extent_count != 1 || vmdk->extents[0].kind != VMDK_SPARSE)
        return vmdk_refuse(error, "the descriptor in the image says that its data lies elsewhere");
    vmdk->extents[0].storage = vmdk->image->storage;
    vmdk->extents[0].readonly = false; /* streams are RDONLY for whoever exports them */
    return open_extents(vmdk, error);
}

static bool open_text(struct vmdk *vmdk, GError **error)
{
    struct image *image = vmdk->image;

    if (!read_text(vmdk, 0, image->storage->size, error))
        return false;
    add_extents(vmdk);
    image->data_beside = true;
    for (unsigned i = 0; i < vmdk->extent_count; i++) {
        const struct vmdk_line *line = &g_array_index(vmdk->descriptor->lines, struct vmdk_line, i);

        if (line->kind == VMDK_ZERO)
            continue;
        image_add_data_file(image->data_files, line->file,
                            line->kind == VMDK_FLAT ? line->host + line->size : VMDK_SECTOR);
    }
    return image->data_files->len > 0 || set_geometry(vmdk, error);
}

static bool open_image(struct vmdk *vmdk, GError **error)
{
    struct storage *storage = vmdk->image->storage;
    uint8_t head[VMDK_SECTOR] = {0};
    bool ok;

    if (!storage_pread(storage, head, MIN(storage->size, sizeof head), 0, error))
        return false;
    if (load_le32(head) == VMDK_MAGIC)
        ok = open_monolithic(vmdk, head, error);
    else if (load_le32(head) == VMDK_COWD_MAGIC || load_le64(head) == VMDK_SESPARSE_MAGIC)
        ok = vmdk_refuse(error,
                         "this is an extent of a disk, without a descriptor: name the descriptor's file");
    else
        ok = open_text(vmdk, error);
    return ok && set_parent(vmdk, error);
}

static void vmdk_close(struct image *image)
{
    struct vmdk *vmdk = g_steal_pointer(&image->opaque);

    for (unsigned i = 0; i < vmdk->extent_count; i++)
        vmdk_extent_clear(&vmdk->extents[i]);
    g_free(vmdk->extents);
    vmdk_descriptor_free(vmdk->descriptor);
    g_free(vmdk->next_modification);
    g_free(vmdk);
}

static bool vmdk_open(struct image *image, GError **error)
{
    struct vmdk *vmdk = g_new0(struct vmdk, 1);

    vmdk->image = image;
    image->opaque = vmdk;
    if (open_image(vmdk, error))
        return true;
    vmdk_close(image);
    return false;
}

static bool vmdk_open_data(struct image *image, GError **error)
{
    struct vmdk *vmdk = image->opaque;
    unsigned file = 0;

    for (unsigned i = 0; i < vmdk->extent_count; i++)
        if (vmdk->extents[i].kind != VMDK_ZERO)
            vmdk->extents[i].storage = image_data_file(image, file++)->storage;
    return open_extents(vmdk, error);
}

/* ---- describe ----------------------------------------------------------------------------------- */

static void describe_sparse(const struct vmdk_extent *extent, image_describe_fn describe, void *opaque)
{
    char text[24];

    g_snprintf(text, sizeof text, "%" G_GUINT64_FORMAT, extent->grain);
    describe(opaque, "grain_size", text);
    if (extent->kind != VMDK_SPARSE)
        return;
    describe(opaque, "zeroed_grain", extent->zeroed ? "on" : "off");
    describe(opaque, "compressed", extent->packed ? "yes" : "no");
}

static void vmdk_describe(struct image *image, image_describe_fn describe, void *opaque)
{
    struct vmdk *vmdk = image->opaque;
    const struct vmdk_descriptor *descriptor = vmdk->descriptor;
    char text[24];

    describe(opaque, "create_type", descriptor->create_type);
    if (vmdk_is_writable_type(descriptor->create_type))
        describe(opaque, "subformat", descriptor->create_type);
    if (descriptor->adapter)
        describe(opaque, "adapter_type", descriptor->adapter);
    g_snprintf(text, sizeof text, "%08x", descriptor->cid);
    describe(opaque, "cid", text);
    if (descriptor->parent_cid != VMDK_NO_PARENT) {
        g_snprintf(text, sizeof text, "%08x", descriptor->parent_cid);
        describe(opaque, "parent_cid", text);
    }
    if (descriptor->parent_uuid)
        describe(opaque, "parent_uuid", descriptor->parent_uuid);
    g_snprintf(text, sizeof text, "%u", vmdk->extent_count);
    describe(opaque, "extents", text);
    if (vmdk->extents[0].tables)
        describe_sparse(&vmdk->extents[0], describe, opaque);
}

const struct format format_vmdk = {
    .name = "vmdk",
    .flags = FORMAT_BACKING | FORMAT_PACKED | FORMAT_CREATE,
    .options = vmdk_options,
    .probe = vmdk_probe,
    .measure = vmdk_measure,
    .child_unit = vmdk_child_unit,
    .create = vmdk_create,
    .plan_data = vmdk_plan_data,
    .create_data = vmdk_create_data,
    .open = vmdk_open,
    .open_data = vmdk_open_data,
    .check_parent = vmdk_check_parent,
    .begin_merge = vmdk_begin_merge,
    .map = vmdk_map,
    .unpack = vmdk_unpack,
    .place = vmdk_place,
    .pack = vmdk_pack,
    .place_packed = vmdk_place_packed,
    .zero = vmdk_zero,
    .discard = vmdk_zero,
    .flush = vmdk_flush,
    .check = vmdk_check,
    .describe = vmdk_describe,
    .close = vmdk_close,
};
