/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Footer, dynamic header and parent locators of a VHD: read, and refused where they contradict each other. */
#include "formats/utf16.h"
#include "formats/uuid.h"
#include "formats/vhd.h"

#include <stdlib.h>
#include <string.h>

#define COOKIE_LENGTH 8

bool vhd_refuse(GError **error, const char *format, ...)
{
    g_autofree char *text = NULL;
    va_list arguments;

    va_start(arguments, format);
    text = g_strdup_vprintf(format, arguments);
    va_end(arguments);
    return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "vhd: %s", text);
}

uint32_t vhd_checksum(const uint8_t *bytes, size_t length, size_t at)
{
    uint32_t sum = 0;

    for (size_t i = 0; i < length; i++)
        sum += i - at < sizeof(uint32_t) ? 0 : bytes[i];
    return ~sum;
}

uint32_t vhd_bitmap_size(uint32_t block_size)
{
    uint32_t bytes = (block_size / VHD_SECTOR + 7) / 8;

    return (bytes + VHD_SECTOR - 1) / VHD_SECTOR * VHD_SECTOR;
}

/* ---- geometry ----------------------------------------------------------------------------------- */

/* Spec, appendix "CHS Calculation". */
uint32_t vhd_geometry(uint64_t size)
{
    uint64_t sectors = MIN(size / VHD_SECTOR, 65535u * 16 * 255), tracks;
    uint32_t heads, per_track;

    if (sectors >= 65535u * 16 * 63) {
        per_track = 255;
        heads = 16;
        tracks = sectors / per_track;
    } else {
        per_track = 17;
        tracks = sectors / per_track;
        heads = MAX((tracks + 1023) / 1024, 4);
        if (tracks >= heads * 1024 || heads > 16) {
            per_track = 31;
            heads = 16;
            tracks = sectors / per_track;
        }
        if (tracks >= heads * 1024) {
            per_track = 63;
            heads = 16;
            tracks = sectors / per_track;
        }
    }
    return (uint32_t)(tracks / heads) << 16 | heads << 8 | per_track;
}

uint64_t vhd_geometry_size(uint32_t geometry)
{
    return (uint64_t)(geometry >> 16) * (geometry >> 8 & 0xff) * (geometry & 0xff) * VHD_SECTOR;
}

/* QEMU 7.2, block/vpc.c: the geometry counts, but for some creators and for the largest one. */
uint64_t vhd_size_for_qemu(const uint8_t *footer)
{
    static const char creators[][5] = {"win ", "qem2", "d2v ", "tap\0", "CTXS"};
    uint32_t geometry = load_be32(footer + VHD_FOOTER_GEOMETRY);

    for (size_t i = 0; i < G_N_ELEMENTS(creators); i++) {
        if (strncmp((const char *)footer + VHD_FOOTER_CREATOR, creators[i], 4) == 0)
            return load_be64(footer + VHD_FOOTER_CURRENT_SIZE);
    }
    return geometry == 0xffff10ff ? load_be64(footer + VHD_FOOTER_CURRENT_SIZE) : vhd_geometry_size(geometry);
}

/* ---- footer ------------------------------------------------------------------------------------- */

static bool has_cookie(const uint8_t *bytes)
{
    return memcmp(bytes, "conectix", COOKIE_LENGTH) == 0;
}

static bool is_footer(const uint8_t *bytes)
{
    return has_cookie(bytes) &&
           load_be32(bytes + VHD_FOOTER_CHECKSUM) == vhd_checksum(bytes, VHD_SECTOR, VHD_FOOTER_CHECKSUM);
}

/* The footer at the end, or zeros.  Before 2004 Virtual PC wrote it without its last byte. */
static bool read_end(struct storage *storage, uint8_t *footer, GError **error)
{
    uint8_t bytes[VHD_SECTOR];

    memset(footer, 0, VHD_SECTOR);
    if (storage->size < VHD_SECTOR)
        return true;
    if (!storage_pread(storage, bytes, VHD_SECTOR, storage->size - VHD_SECTOR, error))
        return false;
    if (has_cookie(bytes))
        memcpy(footer, bytes, VHD_SECTOR);
    else if (has_cookie(bytes + 1))
        memcpy(footer, bytes + 1, VHD_SECTOR - 1);
    return true;
}

bool vhd_probe(const uint8_t *head, size_t length, struct storage *storage)
{
    uint8_t footer[VHD_SECTOR];

    if (length >= COOKIE_LENGTH && has_cookie(head))
        return true;
    return read_end(storage, footer, NULL) && has_cookie(footer);
}

/* The one at the end counts; the copy at the start is for when it is lost. */
static bool choose_footer(struct vhd *vhd, GError **error)
{
    uint8_t end[VHD_SECTOR], start[VHD_SECTOR] = {0};
    struct storage *storage = vhd->storage;

    if (!read_end(storage, end, error) ||
        (storage->size >= VHD_SECTOR && !storage_pread(storage, start, VHD_SECTOR, 0, error)))
        return false;
    vhd->end_missing = !is_footer(end);
    if (vhd->end_missing && !is_footer(start)) {
        const uint8_t *bytes = has_cookie(end) ? end : start;

        if (!has_cookie(bytes))
            return vhd_refuse(error, "there is no footer, neither at the end nor a copy at the start");
        return vhd_refuse(error, "the footer's checksum 0x%08x is wrong (0x%08x), and there is no other",
                          load_be32(bytes + VHD_FOOTER_CHECKSUM),
                          vhd_checksum(bytes, VHD_SECTOR, VHD_FOOTER_CHECKSUM));
    }
    memcpy(vhd->footer, vhd->end_missing ? start : end, VHD_SECTOR);
    vhd->copy_differs = memcmp(vhd->footer, start, VHD_SECTOR) != 0;
    return true;
}

static void announce_footers(struct vhd *vhd)
{
    if (vhd->end_missing)
        image_notice(vhd->image,
                     "the footer at the end of the file is damaged: its copy at the start is used");
    else if (vhd->copy_differs && vhd->type != VHD_FIXED)
        image_notice(vhd->image,
                     "the copy of the footer at the start of the file differs: the one at the end "
                     "is used");
}

static void announce_size(struct vhd *vhd)
{
    uint64_t others = vhd_size_for_qemu(vhd->footer);
    const uint8_t *creator = vhd->footer + VHD_FOOTER_CREATOR;
    uint32_t geometry = load_be32(vhd->footer + VHD_FOOTER_GEOMETRY);
    g_autofree char *shown = g_strndup((const char *)creator, 4);
    g_autofree char *escaped = g_strescape(shown, NULL);

    if (others == vhd->image->size)
        return;
    image_notice(vhd->image,
                 "the disk has %" G_GUINT64_FORMAT " bytes; QEMU shows %" G_GUINT64_FORMAT
                 " of them, because it goes by the geometry %u/%u/%u where the creator is \"%s\"",
                 vhd->image->size, others, geometry >> 16, geometry >> 8 & 0xff, geometry & 0xff, escaped);
}

static bool check_footer(struct vhd *vhd, GError **error)
{
    uint32_t version = load_be32(vhd->footer + VHD_FOOTER_VERSION);
    uint32_t type = load_be32(vhd->footer + VHD_FOOTER_TYPE);
    uint64_t size = load_be64(vhd->footer + VHD_FOOTER_CURRENT_SIZE);

    if (version >> 16 != 1)
        return vhd_refuse(error, "file format version 0x%08x is not 1.x", version);
    if (type != VHD_FIXED && type != VHD_DYNAMIC && type != VHD_DIFFERENCING)
        return vhd_refuse(error, "disk type %u is neither fixed (2), dynamic (3) nor differencing (4)", type);
    vhd->type = type;
    if (size == 0 || size % VHD_SECTOR || (type != VHD_FIXED && size > VHD_MAX_SIZE))
        return vhd_refuse(error,
                          "current size %" G_GUINT64_FORMAT
                          " is not a multiple of 512 between 512 and %" G_GUINT64_FORMAT,
                          size, type == VHD_FIXED ? G_MAXINT64 : VHD_MAX_SIZE);
    vhd->image->size = size;
    return true;
}

static bool check_fixed(struct vhd *vhd, GError **error)
{
    uint64_t data_offset = load_be64(vhd->footer + VHD_FOOTER_DATA_OFFSET);

    if (vhd->end_missing)
        return vhd_refuse(error, "a fixed disk has no valid footer at the end of the file");
    /* The specification has 32 bits of ones for this field of 64. */
    if (data_offset != UINT64_MAX && data_offset != UINT32_MAX)
        return vhd_refuse(error, "data offset 0x%" G_GINT64_MODIFIER "x of a fixed disk is not -1",
                          data_offset);
    /* The footer may lack its last byte. */
    if (vhd->image->size > vhd->storage->size - (VHD_SECTOR - 1))
        return vhd_refuse(error,
                          "current size %" G_GUINT64_FORMAT
                          " does not fit before the footer of a file of %" G_GUINT64_FORMAT " bytes",
                          vhd->image->size, vhd->storage->size);
    return true;
}

/* ---- dynamic header ------------------------------------------------------------------------------ */

/* Where the blocks must not be.  A part lies in the file, behind the copy of the footer. */
static bool add_part(struct vhd *vhd, const char *what, uint64_t offset, uint64_t length, GError **error)
{
    struct vhd_range range = {offset, length};

    if (offset < VHD_SECTOR || offset > vhd->storage->size || length > vhd->storage->size - offset)
        return vhd_refuse(
            error,
            "%s of %" G_GUINT64_FORMAT " bytes at 0x%" G_GINT64_MODIFIER
            "x is not between the copy of the footer and the end of the file (%" G_GUINT64_FORMAT ")",
            what, length, offset, vhd->storage->size);
    for (guint i = 0; i < vhd->fixed->len; i++) {
        const struct vhd_range *other = &g_array_index(vhd->fixed, struct vhd_range, i);

        if (offset < other->offset + other->length && other->offset < offset + length)
            return vhd_refuse(error, "%s at 0x%" G_GINT64_MODIFIER "x overlaps another part of the header",
                              what, offset);
    }
    g_array_append_val(vhd->fixed, range);
    return true;
}

static bool check_blocks(struct vhd *vhd, const uint8_t *header, uint64_t *needed, GError **error)
{
    uint32_t entries = load_be32(header + VHD_HEADER_MAX_ENTRIES);
    uint32_t block_size = load_be32(header + VHD_HEADER_BLOCK_SIZE);

    if (block_size < VHD_SECTOR || block_size > VHD_MAX_BLOCK || block_size & (block_size - 1))
        return vhd_refuse(error, "block size %u is not a power of two from %u to %u", block_size, VHD_SECTOR,
                          VHD_MAX_BLOCK);
    *needed = (vhd->image->size + block_size - 1) / block_size;
    if (entries < *needed)
        return vhd_refuse(error,
                          "max table entries %u: %" G_GUINT64_FORMAT " are needed for %" G_GUINT64_FORMAT
                          " bytes in blocks of %u",
                          entries, *needed, vhd->image->size, block_size);
    if (*needed > VHD_MAX_TABLE / sizeof(uint32_t))
        return vhd_refuse(error, "a table of %" G_GUINT64_FORMAT " entries is larger than %u bytes", *needed,
                          VHD_MAX_TABLE);
    vhd->block_size = block_size;
    vhd->bitmap_size = vhd_bitmap_size(block_size);
    return true;
}

static bool check_header(struct vhd *vhd, const uint8_t *header, GError **error)
{
    uint32_t version = load_be32(header + VHD_HEADER_VERSION);
    uint32_t sum = vhd_checksum(header, VHD_HEADER, VHD_HEADER_CHECKSUM);

    if (memcmp(header, "cxsparse", COOKIE_LENGTH) != 0)
        return vhd_refuse(
            error, "there is no dynamic header where the footer says (data offset 0x%" G_GINT64_MODIFIER "x)",
            load_be64(vhd->footer + VHD_FOOTER_DATA_OFFSET));
    if (load_be32(header + VHD_HEADER_CHECKSUM) != sum)
        return vhd_refuse(error, "the dynamic header's checksum 0x%08x is wrong (0x%08x)",
                          load_be32(header + VHD_HEADER_CHECKSUM), sum);
    if (version >> 16 != 1)
        return vhd_refuse(error, "dynamic header version 0x%08x is not 1.x", version);
    return true;
}

/* ---- the parent ---------------------------------------------------------------------------------- */

static bool add_name(struct vhd *vhd, const void *bytes, size_t length, enum utf16_order order,
                     GError **error)
{
    g_autofree char *name = utf16_decode(bytes, length, order, error);

    if (!name) {
        g_prefix_error(error, "vhd: name of the parent: ");
        return false;
    }
    image_add_parent_name(vhd->image, name);
    return true;
}

/* The names that locators of one kind give. */
static bool read_locators(struct vhd *vhd, const uint8_t *header, uint32_t code, GError **error)
{
    for (unsigned i = 0; i < VHD_LOCATORS; i++) {
        const uint8_t *locator = header + VHD_HEADER_LOCATORS + i * VHD_LOCATOR;
        uint32_t length = load_be32(locator + 8);
        g_autofree uint8_t *bytes = NULL;

        if (load_be32(locator) != code)
            continue;
        if (length > VHD_MAX_LOCATOR)
            return vhd_refuse(error, "parent locator %u: %u bytes are more than %u", i, length,
                              VHD_MAX_LOCATOR);
        if (!add_part(vhd, "a parent locator", load_be64(locator + 16), length, error))
            return false;
        bytes = g_malloc(length);
        if (!storage_pread(vhd->storage, bytes, length, load_be64(locator + 16), error) ||
            !add_name(vhd, bytes, length, UTF16_LITTLE, error))
            return false;
    }
    return true;
}

/* Relative names first: they still hold when the chain was moved as a whole. */
static bool read_parent(struct vhd *vhd, const uint8_t *header, GError **error)
{
    struct image *image = vhd->image;

    memcpy(vhd->parent_uuid, header + VHD_HEADER_PARENT_UUID, UUID_LENGTH);
    image->backing_format = g_strdup("vhd");
    image->wants_parent = true;
    return read_locators(vhd, header, VHD_W2RU, error) && read_locators(vhd, header, VHD_W2KU, error) &&
           add_name(vhd, header + VHD_HEADER_PARENT_NAME, VHD_PARENT_NAME, UTF16_BIG, error);
}

/* Its disks grow by their last child alone. */
static bool is_by_xenserver(const uint8_t *footer)
{
    return memcmp(footer + VHD_FOOTER_CREATOR, "tap", 4) == 0 ||
           memcmp(footer + VHD_FOOTER_CREATOR, "CTXS", 4) == 0;
}

static bool check_uuid(const struct vhd *vhd, const struct image *parent, GError **error)
{
    const struct vhd *other = parent->opaque;
    g_autofree char *wanted = uuid_text(vhd->parent_uuid);
    g_autofree char *got = NULL;

    if (parent->format != vhd->image->format)
        return vhd_refuse(error, "the parent of a VHD is a VHD (%s), but %s is %s", wanted, parent->name,
                          parent->format->name);
    got = uuid_text(other->footer + VHD_FOOTER_UUID);
    return strcmp(wanted, got) == 0 ||
           vhd_refuse(error, "it was made over the disk %s, but %s is %s", wanted, parent->name, got);
}

bool vhd_check_parent(struct image *image, struct image *parent, GError **error)
{
    const struct vhd *vhd = image->opaque;

    /* XenServer makes children of raw disks, which have no UUID. Only the user can say which one it is. */
    if (parent->format == &format_raw && uuid_is_zero(vhd->parent_uuid))
        image_notice(image, "whether %s is its parent cannot be told: it is raw", parent->name);
    else if (!check_uuid(vhd, parent, error))
        return false;
    if (image->size == parent->size)
        return true;
    if (!is_by_xenserver(vhd->footer))
        return vhd_refuse(error,
                          "it has %" G_GUINT64_FORMAT " bytes, but its parent %s has %" G_GUINT64_FORMAT,
                          image->size, parent->name, parent->size);
    image_notice(image, "it has %" G_GUINT64_FORMAT " bytes, its parent %" G_GUINT64_FORMAT, image->size,
                 parent->size);
    return true;
}

/* ---- the block allocation table ------------------------------------------------------------------ */

static int by_value(const void *a, const void *b)
{
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;

    return left < right ? -1 : left > right;
}

/* Two blocks in one place: what is written to one would appear in the other. */
static bool check_overlaps(struct vhd *vhd, GError **error)
{
    uint64_t count = vhd->bat.count, length = (vhd->bitmap_size + vhd->block_size) / VHD_SECTOR, used = 0;
    g_autofree uint32_t *sorted = g_try_new(uint32_t, count);
    bool ascending = true;

    if (!sorted)
        return blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "no memory for %" G_GUINT64_FORMAT " entries",
                             count);
    for (uint64_t i = 0; i < count; i++) {
        if (vhd->bat.entries[i] == VHD_ABSENT)
            continue;
        ascending = ascending && (used == 0 || sorted[used - 1] <= vhd->bat.entries[i]);
        sorted[used++] = vhd->bat.entries[i];
    }
    if (!ascending)
        qsort(sorted, used, sizeof *sorted, by_value);
    for (uint64_t i = 1; i < used; i++) {
        if (sorted[i] - sorted[i - 1] < length)
            return vhd_refuse(error, "two blocks, at sectors %u and %u, overlap", sorted[i - 1], sorted[i]);
    }
    return true;
}

static bool check_entry(struct vhd *vhd, uint64_t block, uint64_t limit, GError **error)
{
    uint64_t start = (uint64_t)vhd->bat.entries[block] * VHD_SECTOR, end;

    end = start + vhd->bitmap_size + vhd->block_size;
    vhd->unaligned |= (start + vhd->bitmap_size) % VHD_DATA_ALIGNMENT != 0;
    if (start < VHD_SECTOR || end > limit)
        return vhd_refuse(error,
                          "block %" G_GUINT64_FORMAT
                          " at sector %u is not between the copy of the footer and the "
                          "footer at %" G_GUINT64_FORMAT,
                          block, vhd->bat.entries[block], limit);
    for (guint i = 0; i < vhd->fixed->len; i++) {
        const struct vhd_range *part = &g_array_index(vhd->fixed, struct vhd_range, i);

        if (start < part->offset + part->length && part->offset < end)
            return vhd_refuse(error, "block %" G_GUINT64_FORMAT " at sector %u lies on the header", block,
                              vhd->bat.entries[block]);
    }
    return true;
}

static bool check_table(struct vhd *vhd, GError **error)
{
    uint64_t limit = vhd->storage->size - (vhd->end_missing ? 0 : VHD_SECTOR - 1);

    for (uint64_t block = 0; block < vhd->bat.count; block++) {
        if (vhd->bat.entries[block] != VHD_ABSENT && !check_entry(vhd, block, limit, error))
            return false;
    }
    return check_overlaps(vhd, error);
}

static bool read_sparse(struct vhd *vhd, GError **error)
{
    uint64_t offset = load_be64(vhd->footer + VHD_FOOTER_DATA_OFFSET), table, needed = 0;
    uint8_t header[VHD_HEADER];

    vhd->fixed = g_array_new(FALSE, FALSE, sizeof(struct vhd_range));
    if (!add_part(vhd, "the dynamic header", offset, VHD_HEADER, error) ||
        !storage_pread(vhd->storage, header, VHD_HEADER, offset, error) ||
        !check_header(vhd, header, error) || !check_blocks(vhd, header, &needed, error))
        return false;
    table = load_be64(header + VHD_HEADER_TABLE_OFFSET);
    if (table % VHD_SECTOR)
        return vhd_refuse(error, "table offset 0x%" G_GINT64_MODIFIER "x is not a multiple of 512", table);
    if (!add_part(vhd, "the block allocation table", table,
                  load_be32(header + VHD_HEADER_MAX_ENTRIES) * UINT64_C(4), error))
        return false;
    if (vhd->type == VHD_DIFFERENCING && !read_parent(vhd, header, error))
        return false;
    return block_table_read(&vhd->bat, vhd->storage, table, needed, true, error) && check_table(vhd, error);
}

bool vhd_read_header(struct vhd *vhd, GError **error)
{
    if (!choose_footer(vhd, error) || !check_footer(vhd, error) ||
        !(vhd->type == VHD_FIXED ? check_fixed(vhd, error) : read_sparse(vhd, error)))
        return false;
    announce_footers(vhd);
    announce_size(vhd);
    if (vhd->footer[VHD_FOOTER_SAVED_STATE])
        image_notice(vhd->image, "it belongs to the saved state of a machine, which a copy does not carry");
    return true;
}
