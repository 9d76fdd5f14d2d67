/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * VHDX ([MS-VHDX]): what its files share.  Nothing outside formats/vhdx*.c includes this.
 *
 *   vhdx.c            the driver's table, open, describe, close
 *   vhdx-guid.c       GUIDs, which are identities here
 *   vhdx-header.c     the two headers and the two region tables
 *   vhdx-metadata.c   metadata table and items
 *   vhdx-parent.c     the parent locator, and whether a parent is the right one
 *   vhdx-log.c        which entries of the log are to be replayed
 *   vhdx-replay.c     the storage as it is with them replayed, without writing to it
 *   vhdx-space.c      which megabytes of the file are in use
 *   vhdx-bat.c        the block allocation table
 *   vhdx-bitmap.c     sector bitmaps of differencing images
 *   vhdx-map.c        from guest offsets to extents
 *   vhdx-place.c      changes of the mapping: place, zero, discard
 *   vhdx-flush.c      the write order
 *   vhdx-create.c     new images
 *
 * All offsets and lengths are bytes, little endian in the file.  A block is a payload block; a chunk is what
 * one sector bitmap block describes, `chunk_ratio` blocks.
 */
#ifndef FORMATS_VHDX_H
#define FORMATS_VHDX_H

#include "formats/bytes.h"
#include "formats/image.h"

#define VHDX_MIB             (UINT64_C(1) << 20)
#define VHDX_SECTOR          4096u /* of headers and of the log, whatever the disk has */
#define VHDX_HEADER_OFFSET   (UINT64_C(64) << 10)
#define VHDX_REGION_OFFSET   (UINT64_C(192) << 10)
#define VHDX_TABLE           (UINT64_C(64) << 10) /* a region table, and the table of metadata items */
#define VHDX_MAX_SIZE        (UINT64_C(64) << 40)
#define VHDX_MIN_BLOCK       (1u << 20)
#define VHDX_MAX_BLOCK       (256u << 20)
#define VHDX_CHUNK_SECTORS   (UINT64_C(1) << 23)  /* bits of a sector bitmap block */
#define VHDX_MAX_HOST        (UINT64_C(1) << 49)  /* blocks of the file lie below */
#define VHDX_MAX_REPLAY_LOG  (UINT64_C(64) << 20) /* a log of more is not replayed */
#define VHDX_MAX_ITEM_CHANGE (256u << 10)         /* bytes of a metadata item that is changed */
#define VHDX_BITMAP_PIECE    65536u               /* bytes of a sector bitmap that are cached together */

/* States of a block in the BAT (2.5.1); sector bitmap blocks are NOT_PRESENT or PRESENT. */
enum vhdx_state {
    VHDX_NOT_PRESENT,
    VHDX_UNDEFINED,
    VHDX_ZERO,
    VHDX_UNMAPPED,
    VHDX_UNMAPPED_DRAFT = 5, /* of version 0.95 */
    VHDX_PRESENT,
    VHDX_PARTIAL,
};

/* As it lies in the file: the first three fields little endian. */
struct vhdx_guid {
    uint8_t bytes[16];
};

struct vhdx_header {
    uint64_t sequence;
    struct vhdx_guid file_write, data_write, log;
    uint16_t log_version, version;
    uint32_t log_length;
    uint64_t log_offset;
};

struct vhdx_range {
    uint64_t offset, length;
};

/* Which megabytes of the file are in use; one bit each. */
struct vhdx_space {
    uint64_t *words;
    uint64_t count;      /* words; behind them everything is free */
    uint64_t end;        /* first byte behind all that is in use */
    uint64_t first_free; /* no megabyte below this number is free */
    uint64_t first_run;  /* no run of `run` megabytes that is free begins below this one */
    uint64_t run;
};

/* 64 KiB of a sector bitmap. A block's bits never lie in two of them. */
struct vhdx_piece {
    uint64_t index; /* number of the piece on the disk: of chunk index / pieces per chunk */
    uint32_t dirty; /* bit i: its i-th 4 KiB differ from the medium */
    uint8_t *bytes;
    GList link; /* in the order of use */
};

struct vhdx {
    struct image *image;
    struct storage *storage; /* what is read: the image's, or `replay` */
    struct storage *replay;  /* owned: the image's storage with the log replayed; NULL: the log is empty */
    bool replayed_data;      /* the log changes payload blocks: they are read through `replay` too */

    struct vhdx_header header;
    unsigned current; /* 0 or 1: which header that is */
    struct vhdx_range bat_region, metadata_region;

    /* metadata */
    uint32_t block_size, logical_sector, physical_sector;
    bool fixed, differencing;
    struct vhdx_guid disk_id;
    struct vhdx_guid linkage, linkage2; /* DataWriteGuids of the parent; linkage2 may be all zero */
    unsigned user_items;
    struct vhdx_range locator; /* the parent's, in the metadata region; like `items_end` from its beginning */
    uint32_t locator_entry;    /* of the table of items */
    uint64_t items_end;        /* first byte behind all items */

    uint64_t chunk_ratio; /* blocks per chunk */
    uint64_t blocks;
    uint64_t entries; /* of the BAT that mean something */
    uint32_t *bat;    /* host megabyte << 3 | state; see vhdx_entry_host() */

    struct vhdx_space space;
    GHashTable *pieces; /* &index -> struct vhdx_piece */
    GQueue used;        /* most recently used first */

    /* Below: only after vhdx_begin_write(), but for `failed`. */
    struct vhdx_guid next_data_write; /* the identity that the first change gives it; zero: a new one */
    bool writing;
    bool failed;         /* an operation stopped half way: nothing more may be made durable */
    uint64_t *bat_dirty; /* one bit per 4 KiB of the BAT */
    GArray *new_bitmaps; /* of uint64_t: chunks whose bitmap block the medium does not know yet */
    GArray *frees;       /* of struct vhdx_range: to be given back after the next flush */
};

static inline enum vhdx_state vhdx_entry_state(uint32_t entry)
{
    return entry & 7;
}

static inline uint64_t vhdx_entry_host(uint32_t entry)
{
    return (uint64_t)(entry >> 3) << 20;
}

static inline bool vhdx_entry_present(uint32_t entry)
{
    return vhdx_entry_state(entry) >= VHDX_PRESENT;
}

/* vhdx.c */
/* Sets a REFUSED error that begins with the format.  Always returns false. */
bool vhdx_refuse(GError **error, const char *format, ...) G_GNUC_PRINTF(2, 3);

/* vhdx-guid.c */
extern const struct vhdx_guid vhdx_no_guid, vhdx_bat_guid, vhdx_metadata_guid;
bool vhdx_guid_equal(const struct vhdx_guid *a, const struct vhdx_guid *b);
bool vhdx_guid_is_zero(const struct vhdx_guid *guid);
/* "{01234567-89ab-...}" in either case; false: it is none. */
bool vhdx_guid_parse(const char *text, struct vhdx_guid *guid);
char *vhdx_guid_format(const struct vhdx_guid *guid); /* in lower case, with braces */
struct vhdx_guid vhdx_guid_random(void);

/* vhdx-header.c */
bool vhdx_probe(const uint8_t *head, size_t length, struct storage *storage);
bool vhdx_read_headers(struct vhdx *vhdx, GError **error);
bool vhdx_read_regions(struct vhdx *vhdx, GError **error);
/* Makes `vhdx->header` the current one on the medium: both copies, one after the other, each flushed. */
bool vhdx_update_headers(struct vhdx *vhdx, GError **error);
/* The 4 KiB of a header; `out` is zeroed first. */
void vhdx_encode_header(const struct vhdx_header *header, uint8_t *out);
void vhdx_encode_regions(const struct vhdx *vhdx, uint8_t *out); /* VHDX_TABLE bytes */

/* vhdx-metadata.c */
bool vhdx_read_metadata(struct vhdx *vhdx, GError **error);
/* Table and items of a new image; `locator` may be NULL. */
void vhdx_encode_metadata(const struct vhdx *vhdx, const GByteArray *locator, uint8_t *out, size_t length);
/* Block count and size of the BAT, from sizes that were checked. */
void vhdx_set_geometry(struct vhdx *vhdx);

/* vhdx-parent.c */
bool vhdx_parse_locator(struct vhdx *vhdx, const uint8_t *item, uint32_t length, GError **error);
/* linkage2 is that of no parent. */
GByteArray *vhdx_make_locator(const struct vhdx_guid *linkage, const char *name, GError **error);
bool vhdx_check_parent(struct image *image, struct image *parent, GError **error);
bool vhdx_begin_merge(struct image *image, struct image *child, GError **error);

/* vhdx-log.c */
/* Sets vhdx->replay and vhdx->storage if the log holds something. */
bool vhdx_replay_log(struct vhdx *vhdx, GError **error);

/* vhdx-replay.c */
struct storage *vhdx_replay_new(struct storage *below); /* borrows it */
void vhdx_replay_reach(struct storage *replay, uint64_t end);
/* Later calls hide earlier ones. NULL: zeros; otherwise takes ownership of `length` bytes. */
void vhdx_replay_add(struct storage *replay, uint64_t offset, uint64_t length, uint8_t *bytes);
bool vhdx_replay_touches(const struct storage *replay, uint64_t offset, uint64_t length);
/* Writes it all to the storage below, and flushes. */
bool vhdx_replay_apply(struct storage *replay, GError **error);

/* vhdx-space.c */
/* False: part of it is in use already.  Multiples of 1 MiB below VHDX_MAX_HOST. */
bool vhdx_space_claim(struct vhdx_space *space, uint64_t offset, uint64_t length);
void vhdx_space_release(struct vhdx_space *space, uint64_t offset, uint64_t length);
/* The lowest place for `length` bytes. */
uint64_t vhdx_space_find(struct vhdx_space *space, uint64_t length);

/* vhdx-bat.c */
bool vhdx_read_bat(struct vhdx *vhdx, GError **error);
uint64_t vhdx_block_index(const struct vhdx *vhdx, uint64_t block);
uint64_t vhdx_bitmap_index(const struct vhdx *vhdx, uint64_t chunk);
void vhdx_bat_set(struct vhdx *vhdx, uint64_t index, enum vhdx_state state, uint64_t host);
/* The 4 KiB number `sector` of the table as they are in memory. */
void vhdx_encode_bat(const struct vhdx *vhdx, uint64_t sector, uint8_t *out);

/* vhdx-bitmap.c */
void vhdx_bitmaps_init(struct vhdx *vhdx);
void vhdx_bitmaps_clear(struct vhdx *vhdx);
/* Bit 0 of the block is bit *first of the piece.  The piece is valid until the next call. */
struct vhdx_piece *vhdx_bitmap_load(struct vhdx *vhdx, uint64_t block, uint64_t *first, GError **error);
bool vhdx_bitmap_get(const struct vhdx_piece *piece, uint64_t bit);
/* How many bits from `bit` on, below `end`, are like it? */
uint64_t vhdx_bitmap_run(const struct vhdx_piece *piece, uint64_t bit, uint64_t end);
void vhdx_bitmap_set(struct vhdx_piece *piece, uint64_t bit, uint64_t end, bool value);
/* Where the bytes of a piece lie in the file. */
uint64_t vhdx_piece_host(const struct vhdx *vhdx, const struct vhdx_piece *piece);

/* vhdx-map.c */
bool vhdx_map(struct image *image, uint64_t offset, uint64_t length, struct extent *out, size_t max,
              size_t *count, GError **error);

/* vhdx-place.c */
bool vhdx_place(struct image *image, uint64_t offset, uint64_t length, GArray *placements, GError **error);
bool vhdx_zero(struct image *image, uint64_t offset, uint64_t length, uint64_t *done_offset,
               uint64_t *done_length, GError **error);
bool vhdx_discard(struct image *image, uint64_t offset, uint64_t length, uint64_t *done_offset,
                  uint64_t *done_length, GError **error);

/* vhdx-flush.c */
/* Before the first change: replays the log for good, and gives the file new identities. */
bool vhdx_begin_write(struct vhdx *vhdx, GError **error);
bool vhdx_flush(struct image *image, GError **error);
/* Puts an item of `length` bytes at `at` of the metadata region, and then offset and length into entry
 * `entry` of its table; durable, and all at once up to VHDX_MAX_ITEM_CHANGE bytes. */
bool vhdx_change_item(struct vhdx *vhdx, uint32_t entry, uint64_t at, const uint8_t *item, uint32_t length,
                      GError **error);

/* vhdx-create.c */
extern const struct format_option vhdx_options[];
bool vhdx_child_unit(const struct image_create_options *options, uint32_t *unit, GError **error);
bool vhdx_measure(const struct image_create_options *options, uint64_t data, uint64_t *bytes, GError **error);
bool vhdx_create(struct storage *storage, const struct image_create_options *options, GError **error);

#endif
