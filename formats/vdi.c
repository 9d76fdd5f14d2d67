/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* VDI: the driver's table, header, open, map, describe and close.  See vdi.h for what lies where. */
#include "formats/vdi.h"

#include <string.h>

bool vdi_refuse(GError **error, const char *format, ...)
{
    g_autofree char *text = NULL;
    va_list arguments;

    va_start(arguments, format);
    text = g_strdup_vprintf(format, arguments);
    va_end(arguments);
    return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "vdi: %s", text);
}

static bool vdi_probe(const uint8_t *head, size_t length, struct storage *storage)
{
    return length >= VDI_HEADER && load_le32(head + VDI_AT_SIGNATURE) == VDI_SIGNATURE;
}

/* ---- header ------------------------------------------------------------------------------------- */

static bool check_kind(struct vdi *vdi, GError **error)
{
    const uint8_t *header = vdi->header;
    uint32_t version = load_le32(header + VDI_AT_VERSION), type = load_le32(header + VDI_AT_TYPE);
    uint32_t size = load_le32(header + VDI_AT_HEADER_SIZE);
    bool child = !uuid_is_zero(header + VDI_AT_PARENT);

    if (load_le32(header + VDI_AT_SIGNATURE) != VDI_SIGNATURE)
        return vdi_refuse(error, "signature 0x%08x is not 0x%08x", load_le32(header + VDI_AT_SIGNATURE),
                          VDI_SIGNATURE);
    if (version != VDI_VERSION)
        return vdi_refuse(error, "version %u.%u is not 1.1", version >> 16, version & 0xffff);
    if (size < VDI_AT_GEOMETRY - VDI_AT_HEADER_SIZE || size > load_le32(header + VDI_AT_TABLE))
        return vdi_refuse(error, "header size %u is not between %u and the offset of the block map", size,
                          VDI_AT_GEOMETRY - VDI_AT_HEADER_SIZE);
    if (type != VDI_NORMAL && type != VDI_FIXED && type != VDI_DIFFERENCING)
        return vdi_refuse(error, "image type %u is neither normal (1), fixed (2) nor differencing (4)", type);
    if (child != (type == VDI_DIFFERENCING))
        return vdi_refuse(error, "image type %u contradicts the UUID of %s parent", type, child ? "a" : "no");
    vdi->type = type;
    return true;
}

static bool check_sizes(struct vdi *vdi, GError **error)
{
    const uint8_t *header = vdi->header;
    uint32_t sector = load_le32(header + VDI_AT_SECTOR_SIZE), blocks = load_le32(header + VDI_AT_BLOCKS);
    uint64_t size = load_le64(header + VDI_AT_DISK_SIZE);

    vdi->block_size = load_le32(header + VDI_AT_BLOCK_SIZE);
    vdi->extra = load_le32(header + VDI_AT_BLOCK_EXTRA);
    if (sector != 512 && sector != 0) /* 0: there is no geometry */
        return vdi_refuse(error, "sector size %u is not 512", sector);
    if (vdi->block_size < VDI_MIN_BLOCK || vdi->block_size > VDI_MAX_BLOCK ||
        vdi->block_size & (vdi->block_size - 1))
        return vdi_refuse(error, "block size %u is not a power of two from %u to %u", vdi->block_size,
                          VDI_MIN_BLOCK, VDI_MAX_BLOCK);
    if (vdi->extra > vdi->block_size || vdi->extra % 512)
        return vdi_refuse(error, "%u extra bytes in a block are not a multiple of 512 up to its size",
                          vdi->extra);
    if (size == 0 || blocks > VDI_MAX_TABLE / sizeof(uint32_t) || size > (uint64_t)blocks * vdi->block_size)
        return vdi_refuse(
            error, "disk size %" G_GUINT64_FORMAT " does not fit into %u blocks (at most %u) of %u bytes",
            size, blocks, (unsigned)(VDI_MAX_TABLE / sizeof(uint32_t)), vdi->block_size);
    vdi->image->size = (size + 511) / 512 * 512; /* as VirtualBox: the rest of the last sector is there */
    return true;
}

/* Header, map and data follow each other. */
static bool check_layout(struct vdi *vdi, GError **error)
{
    uint64_t table = load_le32(vdi->header + VDI_AT_TABLE);
    uint64_t length = load_le32(vdi->header + VDI_AT_BLOCKS) * UINT64_C(4);

    vdi->data = load_le32(vdi->header + VDI_AT_DATA);
    if (table % 512 || table < VDI_HEADER || table > vdi->storage->size ||
        length > vdi->storage->size - table)
        return vdi_refuse(error,
                          "the block map of %" G_GUINT64_FORMAT " bytes at 0x%" G_GINT64_MODIFIER
                          "x is not between the header and the end of the file (%" G_GUINT64_FORMAT ")",
                          length, table, vdi->storage->size);
    if (vdi->data % 512 || vdi->data < table + length)
        return vdi_refuse(error,
                          "the data at 0x%" G_GINT64_MODIFIER
                          "x does not begin behind the block map (0x%" G_GINT64_MODIFIER
                          "x + %" G_GUINT64_FORMAT ")",
                          vdi->data, table, length);
    return true;
}

static bool check_entry(struct vdi *vdi, uint64_t block, uint8_t *seen, uint64_t limit, GError **error)
{
    uint32_t number = vdi->map.entries[block];
    uint64_t needed = MIN(vdi->block_size, vdi->image->size - block * vdi->block_size);

    if (number >= limit || vdi_host(vdi, number) + needed > vdi->storage->size)
        return vdi_refuse(error, "block %" G_GUINT64_FORMAT ": number %u lies behind the end of the file",
                          block, number);
    if (seen[number / 8] & 1 << number % 8)
        return vdi_refuse(error, "block %" G_GUINT64_FORMAT ": number %u is used twice", block, number);
    seen[number / 8] |= 1 << number % 8;
    vdi->next = MAX(vdi->next, number + UINT64_C(1));
    return true;
}

/* No place for two blocks, and none behind the end.  The last block of the file may be cut behind the disk.
 */
static bool check_map(struct vdi *vdi, GError **error)
{
    uint64_t room = vdi->storage->size > vdi->data ? vdi->storage->size - vdi->data : 0;
    uint64_t limit = room / ((uint64_t)vdi->block_size + vdi->extra) + 1, inside;
    g_autofree uint8_t *seen = g_try_malloc0(limit / 8 + 1);

    if (!seen)
        return blockmig_fail(error, BLOCKMIG_ERROR_FAILED,
                             "no memory to look at %" G_GUINT64_FORMAT " blocks", limit);
    inside = (vdi->image->size + vdi->block_size - 1) / vdi->block_size;
    for (uint64_t block = 0; block < inside; block++) {
        if (vdi->map.entries[block] < VDI_ZERO && !check_entry(vdi, block, seen, limit, error))
            return false;
    }
    return true;
}

static bool read_header(struct vdi *vdi, GError **error)
{
    if (vdi->storage->size < VDI_HEADER)
        return vdi_refuse(error, "the file of %" G_GUINT64_FORMAT " bytes is shorter than a header",
                          vdi->storage->size);
    if (!storage_pread(vdi->storage, vdi->header, VDI_HEADER, 0, error) || !check_kind(vdi, error) ||
        !check_sizes(vdi, error) || !check_layout(vdi, error))
        return false;
    return block_table_read(&vdi->map, vdi->storage, load_le32(vdi->header + VDI_AT_TABLE),
                            (vdi->image->size + vdi->block_size - 1) / vdi->block_size, false, error) &&
           check_map(vdi, error);
}

static void vdi_close(struct image *image)
{
    struct vdi *vdi = g_steal_pointer(&image->opaque);

    block_table_clear(&vdi->map);
    g_clear_pointer(&vdi->unused, g_array_unref);
    g_clear_pointer(&vdi->dropped, g_array_unref);
    g_free(vdi);
}

static bool vdi_open(struct image *image, GError **error)
{
    struct vdi *vdi = g_new0(struct vdi, 1);

    vdi->image = image;
    vdi->storage = image->storage;
    image->opaque = vdi;
    if (!read_header(vdi, error)) {
        vdi_close(image);
        return false;
    }
    image->granularity = vdi->type == VDI_DIFFERENCING ? vdi->block_size : 1;
    image->cluster_size =
        (vdi->data + vdi->extra) % VDI_MIN_BLOCK || vdi->extra % VDI_MIN_BLOCK ? 512 : VDI_MIN_BLOCK;
    image->wants_parent = vdi->type == VDI_DIFFERENCING;
    image->reads_zero = vdi->type == VDI_NORMAL || (vdi->type == VDI_FIXED && image->storage->reads_zero);
    return true;
}

/* ---- the parent ---------------------------------------------------------------------------------- */

void vdi_merge_uuid(const struct vdi *child, const uint8_t *modification, uint8_t *uuid)
{
    g_autoptr(GChecksum) sum = g_checksum_new(G_CHECKSUM_SHA256);
    uint8_t digest[32];
    gsize length = sizeof digest;

    g_checksum_update(sum, modification, UUID_LENGTH);
    g_checksum_update(sum, child->header + VDI_AT_UUID, UUID_LENGTH);
    g_checksum_get_digest(sum, digest, &length);
    memcpy(uuid, digest, UUID_LENGTH);
}

/* The child of a merge that was killed early knows already what its parent will have. */
static bool is_known_state(const struct vdi *child, const uint8_t *modification)
{
    const uint8_t *known = child->header + VDI_AT_PARENT_MODIFICATION;
    uint8_t merged[UUID_LENGTH];

    vdi_merge_uuid(child, modification, merged);
    return uuid_is_zero(known) || memcmp(modification, known, UUID_LENGTH) == 0 ||
           memcmp(merged, known, UUID_LENGTH) == 0;
}

/* VirtualBox gives a disk a new modification UUID whenever it was written to. */
static bool vdi_check_parent(struct image *image, struct image *parent, GError **error)
{
    const struct vdi *vdi = image->opaque, *other = parent->opaque;
    g_autofree char *wanted = uuid_text(vdi->header + VDI_AT_PARENT);
    g_autofree char *state = uuid_text(vdi->header + VDI_AT_PARENT_MODIFICATION);
    g_autofree char *got = NULL, *now = NULL;

    if (parent->format != image->format)
        return vdi_refuse(error, "the parent of a VDI is a VDI (%s), but %s is %s", wanted, parent->name,
                          parent->format->name);
    got = uuid_text(other->header + VDI_AT_UUID);
    now = uuid_text(other->header + VDI_AT_MODIFICATION);
    if (strcmp(wanted, got) != 0)
        return vdi_refuse(error, "it was made over the disk %s, but %s is %s", wanted, parent->name, got);
    if (!is_known_state(vdi, other->header + VDI_AT_MODIFICATION))
        return vdi_refuse(error,
                          "its parent %s was written to since it was made: modification %s instead of %s",
                          parent->name, now, state);
    return image->size == parent->size ||
           vdi_refuse(error, "it has %" G_GUINT64_FORMAT " bytes, but its parent %s has %" G_GUINT64_FORMAT,
                      image->size, parent->name, parent->size);
}

/* ---- map ---------------------------------------------------------------------------------------- */

static enum extent_status status_of(const struct vdi *vdi, uint32_t entry)
{
    if (entry < VDI_ZERO)
        return EXTENT_DATA;
    return entry == VDI_FREE && vdi->type == VDI_DIFFERENCING ? EXTENT_HOLE : EXTENT_ZERO;
}

static bool vdi_map(struct image *image, uint64_t offset, uint64_t length, struct extent *out, size_t max,
                    size_t *count, GError **error)
{
    const struct vdi *vdi = image->opaque;
    uint64_t end = offset + length;
    struct extent_sink sink = {.out = out, .max = max, .storage = vdi->storage};

    for (uint64_t next; offset < end; offset = next) {
        uint64_t block = offset / vdi->block_size;
        uint32_t entry = vdi->map.entries[block];
        struct extent extent = {.offset = offset, .status = status_of(vdi, entry)};

        next = MIN(end, (block + 1) * vdi->block_size);
        extent.length = next - offset;
        if (extent.status == EXTENT_DATA)
            extent.host_offset = vdi_host(vdi, entry) + offset % vdi->block_size;
        if (!extent_sink_add(&sink, &extent))
            break;
    }
    *count = sink.count;
    return true;
}

/* ---- describe ----------------------------------------------------------------------------------- */

static void vdi_describe(struct image *image, image_describe_fn describe, void *opaque)
{
    static const struct {
        const char *key;
        unsigned at;
        bool of_child;
    } uuids[] = {
        {"uuid", VDI_AT_UUID, false},
        {"modification_uuid", VDI_AT_MODIFICATION, false},
        {"parent_uuid", VDI_AT_PARENT, true},
        {"parent_modification_uuid", VDI_AT_PARENT_MODIFICATION, true},
    };
    const struct vdi *vdi = image->opaque;
    g_autofree char *block_size = g_strdup_printf("%u", vdi->block_size);

    /* Only what is a value of the option: a copy inherits it. */
    if (vdi->type == VDI_DIFFERENCING)
        describe(opaque, "disk_type", "differencing");
    else
        describe(opaque, "subformat", vdi->type == VDI_FIXED ? "fixed" : "dynamic");
    describe(opaque, "block_size", block_size);
    for (size_t i = 0; i < G_N_ELEMENTS(uuids); i++) {
        g_autofree char *uuid = uuid_text(vdi->header + uuids[i].at);

        if (!uuids[i].of_child || vdi->type == VDI_DIFFERENCING)
            describe(opaque, uuids[i].key, uuid);
    }
}

const struct format format_vdi = {
    .name = "vdi",
    .flags = FORMAT_BACKING | FORMAT_CREATE | FORMAT_NO_PARENT_NAME | FORMAT_SAME_SIZE | FORMAT_BLIND,
    .options = vdi_options,
    .probe = vdi_probe,
    .measure = vdi_measure,
    .child_unit = vdi_child_unit,
    .create = vdi_create,
    .open = vdi_open,
    .check_parent = vdi_check_parent,
    .begin_merge = vdi_begin_merge,
    .map = vdi_map,
    .place = vdi_place,
    .zero = vdi_zero,
    .discard = vdi_zero,
    .flush = vdi_flush,
    .check = vdi_check,
    .describe = vdi_describe,
    .close = vdi_close,
};
