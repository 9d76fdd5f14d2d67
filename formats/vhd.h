/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * VHD (Virtual Hard Disk Image Format Specification 1.0): what its files share.
 *
 *   vhd.c         the driver's table, open, describe, close
 *   vhd-header.c  footer, dynamic header, parent locators: all that is validated at open
 *   vhd-map.c     block allocation table and sector bitmaps: from guest offsets to extents
 *   vhd-place.c   changes of them, the write order, check
 *   vhd-create.c  new images
 *
 * Everything is big endian.  A sector is 512 bytes.  A block is `bitmap_size` bytes of bitmap and
 * `block_size` bytes of data behind it.
 */
#ifndef FORMATS_VHD_H
#define FORMATS_VHD_H

#include "formats/block-table.h"
#include "formats/bytes.h"
#include "formats/image.h"
#include "formats/uuid.h"

#define VHD_SECTOR         512u
#define VHD_HEADER         1024u /* bytes of the dynamic header */
#define VHD_LOCATORS       8u
#define VHD_ABSENT         UINT32_MAX             /* BAT: no such block */
#define VHD_MAX_SIZE       (UINT64_C(2040) << 30) /* of a disk that is not fixed: as Windows and QEMU have it */
#define VHD_MAX_BLOCK      (256u << 20)
#define VHD_MAX_TABLE      (64u << 20) /* bytes of the BAT */
#define VHD_MAX_LOCATOR    (64u << 10)
#define VHD_DATA_ALIGNMENT 4096u /* of the data of new blocks: direct writes go in whole pages */

enum vhd_type { VHD_FIXED = 2, VHD_DYNAMIC = 3, VHD_DIFFERENCING = 4 };

/* Offsets in the footer. */
enum {
    VHD_FOOTER_FEATURES = 8,
    VHD_FOOTER_VERSION = 12,
    VHD_FOOTER_DATA_OFFSET = 16,
    VHD_FOOTER_TIMESTAMP = 24,
    VHD_FOOTER_CREATOR = 28,
    VHD_FOOTER_CREATOR_VERSION = 32,
    VHD_FOOTER_CREATOR_OS = 36,
    VHD_FOOTER_ORIGINAL_SIZE = 40,
    VHD_FOOTER_CURRENT_SIZE = 48,
    VHD_FOOTER_GEOMETRY = 56,
    VHD_FOOTER_TYPE = 60,
    VHD_FOOTER_CHECKSUM = 64,
    VHD_FOOTER_UUID = 68,
    VHD_FOOTER_SAVED_STATE = 84,
};

/* Offsets in the dynamic header. */
enum {
    VHD_HEADER_DATA_OFFSET = 8,
    VHD_HEADER_TABLE_OFFSET = 16,
    VHD_HEADER_VERSION = 24,
    VHD_HEADER_MAX_ENTRIES = 28,
    VHD_HEADER_BLOCK_SIZE = 32,
    VHD_HEADER_CHECKSUM = 36,
    VHD_HEADER_PARENT_UUID = 40,
    VHD_HEADER_PARENT_NAME = 64,
    VHD_HEADER_LOCATORS = 576, /* of 24 bytes: code, space, length, 0, offset (64 bits) */
};

#define VHD_PARENT_NAME 512u /* bytes */
#define VHD_LOCATOR     24u
#define VHD_W2RU        0x57327275u /* relative name, UTF-16 little endian */
#define VHD_W2KU        0x57326b75u /* absolute name, the same */

/* A part of the file that is neither data nor bitmap. */
struct vhd_range {
    uint64_t offset, length;
};

/* One bit per sector of a block, the first is 0x80 of the first byte. */
struct vhd_bitmap {
    uint64_t block;
    bool fresh; /* of a block to which the BAT on the medium does not lead yet */
    uint8_t *bits;
};

struct vhd {
    struct image *image;
    struct storage *storage;
    uint8_t footer[VHD_SECTOR]; /* the one that counts */
    bool copy_differs;          /* of the footer at the start of the file */
    bool end_missing;           /* there is no valid footer at the end */
    enum vhd_type type;
    uint8_t parent_uuid[UUID_LENGTH]; /* of a differencing disk */

    /* Below: not of fixed disks. */
    GArray *fixed; /* of struct vhd_range: header, BAT, locators */
    uint32_t block_size, bitmap_size;
    struct block_table bat; /* sectors of the bitmaps, VHD_ABSENT */
    bool unaligned;         /* the data of some block begins inside a page */
    struct vhd_bitmap *cache;
    uint64_t last_read, prefetched; /* blocks, see vhd_bitmap_load() */

    /* Below: only after the first change. */
    bool writing;
    bool failed;         /* an operation stopped half way: nothing more may be made durable */
    bool grown;          /* the footer has to move to `end` */
    uint64_t end;        /* behind the last block */
    GHashTable *changed; /* &block -> struct vhd_bitmap */
};

static inline uint64_t vhd_host(const struct vhd *vhd, uint64_t block)
{
    return (uint64_t)vhd->bat.entries[block] * VHD_SECTOR + vhd->bitmap_size;
}

static inline bool vhd_bit(const uint8_t *bits, uint64_t sector)
{
    return bits[sector / 8] & (0x80 >> sector % 8);
}

/* What a sector reads as that is not in this file. */
static inline enum extent_status vhd_nothing(const struct vhd *vhd)
{
    return vhd->type == VHD_DIFFERENCING ? EXTENT_HOLE : EXTENT_ZERO;
}

/* vhd-header.c */
bool vhd_refuse(GError **error, const char *format, ...) G_GNUC_PRINTF(2, 3);
bool vhd_probe(const uint8_t *head, size_t length, struct storage *storage);
/* Ones' complement of the sum of all bytes; the field at `at` counts as 0. */
uint32_t vhd_checksum(const uint8_t *bytes, size_t length, size_t at);
/* Bytes of the bitmap of a block, in whole sectors. */
uint32_t vhd_bitmap_size(uint32_t block_size);
/* What the geometry says (spec, "CHS Calculation"), and the disk that QEMU 7.2 would show for a footer. */
uint32_t vhd_geometry(uint64_t size);
uint64_t vhd_geometry_size(uint32_t geometry);
uint64_t vhd_size_for_qemu(const uint8_t *footer);
/* Reads and validates footer, header and locators; fills the image's fields. */
bool vhd_read_header(struct vhd *vhd, GError **error);
bool vhd_check_parent(struct image *image, struct image *parent, GError **error);

/* vhd-map.c */
bool vhd_map(struct image *image, uint64_t offset, uint64_t length, struct extent *out, size_t max,
             size_t *count, GError **error);
/* The bits of a block that is there, with what is changed; valid until the next call. */
const uint8_t *vhd_bitmap_load(struct vhd *vhd, uint64_t block, GError **error);
/* What the file holds is about to be, or was, changed. */
void vhd_cache_drop(struct vhd *vhd, uint64_t block);
void vhd_cache_free(struct vhd *vhd);
/* The first sector from `sector` on, at most `end`, whose bit is not `value`. */
uint64_t vhd_bits_run(const uint8_t *bits, uint64_t sector, uint64_t end, bool value);

/* vhd-place.c */
bool vhd_place(struct image *image, uint64_t offset, uint64_t length, GArray *placements, GError **error);
bool vhd_zero(struct image *image, uint64_t offset, uint64_t length, uint64_t *done_offset,
              uint64_t *done_length, GError **error);
bool vhd_flush(struct image *image, GError **error);
bool vhd_check(struct image *image, bool repair, struct image_check *result, GError **error);
void vhd_bitmap_free(struct vhd_bitmap *bitmap);

/* vhd-create.c */
extern const struct format_option vhd_options[];
bool vhd_measure(const struct image_create_options *options, uint64_t data, uint64_t *bytes, GError **error);
bool vhd_create(struct storage *storage, const struct image_create_options *options, GError **error);

#endif
