/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * streamOptimized: grains packed with zlib, each in a record that says which one it is (Virtual Disk
 * Format 5.0, "Stream-Optimized Compressed Sparse Extents").  pack and unpack run on any thread.
 */
#include "formats/inflate.h"
#include "formats/vmdk.h"

#include <string.h>

#define RECORD_SLACK 4096u /* what a grain that cannot be compressed grows by, at most */

uint32_t vmdk_record_max(uint64_t grain)
{
    return round_up(VMDK_RECORD + 2 * grain + RECORD_SLACK, VMDK_SECTOR);
}

/* Of the last grain as much as the disk shows is needed. */
static bool inflate_grain(const struct vmdk_extent *extent, uint64_t inside, const uint8_t *packed,
                          size_t length, uint8_t *out, GError **error)
{
    uint64_t needed = MIN(extent->grain, extent->size - inside);
    size_t got = 0;

    /* What is more is not shown: the last grain may have more than the disk. */
    if (inflate_bytes(INFLATE_ZLIB, packed, length, out, extent->grain, &got) == INFLATE_DAMAGED)
        return vmdk_corrupt(error, "the packed grain at offset %" G_GUINT64_FORMAT " is damaged",
                            extent->start + inside);
    if (got < needed)
        return vmdk_corrupt(error,
                            "the grain at offset %" G_GUINT64_FORMAT
                            " unpacks to %zu bytes instead of %" G_GUINT64_FORMAT,
                            extent->start + inside, got, needed);
    memset(out + got, 0, extent->grain - got);
    return true;
}

/* What is packed, behind a record of which grain it is and how long. */
static bool unpack_record(const struct vmdk_extent *extent, uint64_t offset, const uint8_t *packed,
                          size_t packed_length, uint8_t *out, GError **error)
{
    uint64_t inside = offset - extent->start, sector, length;

    if (packed_length < VMDK_RECORD)
        return vmdk_corrupt(error, "the grain at offset %" G_GUINT64_FORMAT " is cut", offset);
    sector = load_le64(packed);
    length = load_le32(packed + 8);
    if (sector != inside / VMDK_SECTOR)
        return vmdk_corrupt(error,
                            "where the grain of sector %" G_GUINT64_FORMAT " should be is that of sector "
                            "%" G_GUINT64_FORMAT,
                            inside / VMDK_SECTOR, sector);
    if (length == 0 || length > vmdk_record_max(extent->grain) - VMDK_RECORD ||
        length > packed_length - VMDK_RECORD)
        return vmdk_corrupt(error,
                            "the grain at offset %" G_GUINT64_FORMAT " says that it has %" G_GUINT64_FORMAT
                            " packed bytes, there are %zu",
                            offset, length, packed_length - VMDK_RECORD);
    return inflate_grain(extent, inside, packed + VMDK_RECORD, length, out, error);
}

/* Without markers nothing stands before what is packed, and that says itself where it ends. */
bool vmdk_unpack(struct image *image, uint64_t offset, const void *packed, size_t packed_length, void *out,
                 GError **error)
{
    const struct vmdk_extent *extent = vmdk_find(image->opaque, offset);

    if (!extent->packed)
        return vmdk_corrupt(error, "the grain at offset %" G_GUINT64_FORMAT " is not packed", offset);
    if (extent->header.flags & VMDK_MARKERS)
        return unpack_record(extent, offset, packed, packed_length, out, error);
    return inflate_grain(extent, offset - extent->start, packed, packed_length, out, error);
}

/* The record as it will stand in the file, with the padding behind it. */
bool vmdk_pack(struct image *image, uint64_t offset, const void *data, void *out, size_t *packed_length,
               GError **error)
{
    const struct vmdk_extent *extent = vmdk_find(image->opaque, offset);
    uint8_t *record = out;
    size_t room = vmdk_record_max(extent->grain) - VMDK_RECORD, end;
    size_t length = deflate_bytes(data, extent->grain, record + VMDK_RECORD, room);

    if (length == 0)
        return vmdk_corrupt(error, "the grain at offset %" G_GUINT64_FORMAT " could not be packed", offset);
    store_le64(record, (offset - extent->start) / VMDK_SECTOR);
    store_le32(record + 8, length);
    end = VMDK_RECORD + length;
    *packed_length = round_up(end, VMDK_SECTOR);
    memset(record + end, 0, *packed_length - end);
    return true;
}
