/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * VDI (VirtualBox Disk Image, version 1.1): what its files share.
 *
 *   vdi.c         the driver's table, header, open, map, describe, close
 *   vdi-place.c   changes, the write order, check
 *   vdi-create.c  new images
 *
 * Everything is little endian.  The block map has an entry for each block of the guest: a number of a block
 * in the file, or one of the two words below.  A differencing image knows its parent by two UUIDs and by no
 * name.
 */
#ifndef FORMATS_VDI_H
#define FORMATS_VDI_H

#include "formats/block-table.h"
#include "formats/bytes.h"
#include "formats/image.h"
#include "formats/uuid.h"

#define VDI_HEADER    512u
#define VDI_SIGNATURE 0xbeda107fu
#define VDI_VERSION   0x00010001u
#define VDI_FREE      UINT32_MAX       /* not here: zeros, or the parent's */
#define VDI_ZERO      (UINT32_MAX - 1) /* zeros, also over a parent */
#define VDI_BLOCK     "1M"             /* of new images: QEMU knows no other */
#define VDI_MIN_BLOCK 4096u
#define VDI_MAX_BLOCK (64u << 20)
#define VDI_MAX_TABLE (256u << 20) /* bytes: 64 TiB in blocks of 1 MiB */

enum vdi_type { VDI_NORMAL = 1, VDI_FIXED = 2, VDI_DIFFERENCING = 4 };

/* Offsets in the header. */
enum {
    VDI_AT_SIGNATURE = 64,
    VDI_AT_VERSION = 68,
    VDI_AT_HEADER_SIZE = 72, /* counted from here */
    VDI_AT_TYPE = 76,
    VDI_AT_TABLE = 340,
    VDI_AT_DATA = 344,
    VDI_AT_SECTOR_SIZE = 360,
    VDI_AT_DISK_SIZE = 368,
    VDI_AT_BLOCK_SIZE = 376,
    VDI_AT_BLOCK_EXTRA = 380,
    VDI_AT_BLOCKS = 384,
    VDI_AT_ALLOCATED = 388,
    VDI_AT_UUID = 392,
    VDI_AT_MODIFICATION = 408,
    VDI_AT_PARENT = 424,
    VDI_AT_PARENT_MODIFICATION = 440,
    VDI_AT_GEOMETRY = 456, /* cylinders, heads, sectors, sector size */
};

struct vdi {
    struct image *image;
    struct storage *storage;
    uint8_t header[VDI_HEADER];
    enum vdi_type type;
    uint32_t block_size, extra; /* bytes of a block, and of what stands before it */
    uint64_t data;              /* where block 0 of the file begins */
    struct block_table map;
    uint64_t next; /* no block of the file with this number or a higher one is in use */

    /* Below: only after the first change. */
    bool writing;
    bool merging;    /* the modification UUID in memory is the one that the first change gives it */
    bool failed;     /* an operation stopped half way: nothing more may be made durable */
    GArray *unused;  /* of uint32_t: blocks of the file below `next` that may be used again */
    GArray *dropped; /* the same, after the next flush */
};

/* Where the data of a block of the file lies. */
static inline uint64_t vdi_host(const struct vdi *vdi, uint64_t number)
{
    return vdi->data + number * ((uint64_t)vdi->block_size + vdi->extra) + vdi->extra;
}

/* vdi.c */
bool vdi_refuse(GError **error, const char *format, ...) G_GNUC_PRINTF(2, 3);
/* The modification UUID of a parent with `modification` after `child` was merged into it.  It follows from
 * both: so a merge that was killed is recognised, and to every other child the parent has changed. */
void vdi_merge_uuid(const struct vdi *child, const uint8_t *modification, uint8_t *uuid);

/* vdi-place.c */
bool vdi_begin_merge(struct image *image, struct image *child, GError **error);
bool vdi_place(struct image *image, uint64_t offset, uint64_t length, GArray *placements, GError **error);
bool vdi_zero(struct image *image, uint64_t offset, uint64_t length, uint64_t *done_offset,
              uint64_t *done_length, GError **error);
bool vdi_flush(struct image *image, GError **error);
bool vdi_check(struct image *image, bool repair, struct image_check *result, GError **error);

/* vdi-create.c */
extern const struct format_option vdi_options[];
bool vdi_child_unit(const struct image_create_options *options, uint32_t *unit, GError **error);
bool vdi_measure(const struct image_create_options *options, uint64_t data, uint64_t *bytes, GError **error);
bool vdi_create(struct storage *storage, const struct image_create_options *options, GError **error);

#endif
