/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * VMDK: what its files share.  Nothing outside formats/vmdk*.c includes this.
 *
 *   vmdk.c             the driver's table, open, describe, close
 *   vmdk-descriptor.c  the text that says what the disk consists of
 *   vmdk-parent.c      whether a parent is the right one
 *   vmdk-sparse.c      headers of sparse extents: hosted, COWD, seSparse
 *   vmdk-table.c       grain tables: cache and entries
 *   vmdk-map.c         from guest offsets to places
 *   vmdk-place.c       changes of the mapping
 *   vmdk-verify.c      what must be so before the first change; check
 *   vmdk-flush.c       the write order
 *   vmdk-pack.c        compressed grains
 *   vmdk-stream.c      streamOptimized: appending, the tables at the end
 *   vmdk-create.c      new images
 *
 * A disk is a row of extents, each a file beside the descriptor or, in a file of its own, together with it.
 * All numbers in files are little endian, most in sectors of 512 bytes; here everything is in bytes unless
 * its name says _sectors.
 */
#ifndef FORMATS_VMDK_H
#define FORMATS_VMDK_H

#include "formats/bytes.h"
#include "formats/image.h"

#define VMDK_SECTOR       UINT64_C(512)
#define VMDK_MAX_TEXT     (1u << 20) /* of a descriptor */
#define VMDK_MAX_EXTENTS  4096u
#define VMDK_MAX_GRAIN    (2u << 20)
#define VMDK_MAX_TABLES   (8u << 20) /* of one extent: 32 MiB of directory */
#define VMDK_MAX_SIZE     (UINT64_C(1) << 62)
#define VMDK_NO_PARENT    0xffffffffu
#define VMDK_UNKNOWN_CID  0xfffffffeu
#define VMDK_GD_AT_END    UINT64_C(0xffffffffffffffff)
#define VMDK_TEXT_SECTORS 20u /* of an embedded descriptor */
#define VMDK_RECORD       12u /* bytes before the data of a compressed grain: its sector and length */

#define VMDK_MAGIC          0x564d444bu
#define VMDK_COWD_MAGIC     0x44574f43u
#define VMDK_SESPARSE_MAGIC UINT64_C(0x00000000cafebabe)

#define VMDK_NEWLINES (1u << 0) /* flags of a hosted header */
#define VMDK_TWO_GDS  (1u << 1)
#define VMDK_ZEROED   (1u << 2)
#define VMDK_PACKED   (1u << 16)
#define VMDK_MARKERS  (1u << 17)

enum vmdk_kind { VMDK_FLAT, VMDK_ZERO, VMDK_SPARSE, VMDK_COWD, VMDK_SESPARSE };

/* A part of the text: where a value stands that may be overwritten in place. */
struct vmdk_span {
    size_t offset, length;
};

/* One line of the descriptor. */
struct vmdk_line {
    enum vmdk_kind kind;
    bool readonly;
    uint64_t size;
    char *file;    /* NULL: zeros */
    uint64_t host; /* of a flat extent: where it begins in the file */
};

struct vmdk_descriptor {
    char *create_type;
    uint32_t cid, parent_cid;
    struct vmdk_span cid_span, parent_cid_span;
    char *parent_hint; /* or NULL */
    char *adapter;     /* ddb.adapterType, or NULL */
    char *image_uuid;  /* ddb.uuid.*: lower case, NULL if not there or all zero */
    char *modification_uuid;
    struct vmdk_span modification_span;
    char *parent_uuid;
    char *parent_modification_uuid;
    struct vmdk_span parent_modification_span;
    char *encoding; /* or NULL */
    GArray *lines;  /* of struct vmdk_line */
    uint64_t size;
};

/* The hosted sparse header (Virtual Disk Format 5.0, "Hosted Sparse Extent Header"); offsets in bytes, but
 * for gd_sector, which may be VMDK_GD_AT_END. */
struct vmdk_header {
    uint32_t version, flags;
    uint64_t capacity;
    uint64_t grain;
    uint64_t text_offset, text_size;
    uint32_t entries; /* per grain table */
    uint64_t rgd_sector, gd_sector;
    uint64_t overhead;
    bool unclean;
    uint16_t compression;
};

struct vmdk_table {
    uint64_t index; /* in the directory of its extent */
    bool dirty;
    uint8_t bytes[];
};

struct vmdk_extent {
    enum vmdk_kind kind;
    bool readonly;
    uint64_t start, size;    /* in the disk */
    struct storage *storage; /* borrowed; NULL: zeros */
    uint64_t host;           /* flat: where it begins there */

    /* sparse */
    struct vmdk_header header; /* hosted only */
    uint64_t grain;
    uint32_t entries;     /* per table */
    uint32_t entry_size;  /* bytes */
    uint64_t table_count; /* of the directory */
    uint32_t *gd;         /* sector of each table, 0: none; seSparse: its number + 1 */
    uint32_t *rgd;        /* of the redundant tables, or NULL */
    uint64_t gd_offset;   /* where the directory lies */
    uint64_t rgd_offset;
    uint64_t tables_offset; /* seSparse: of table number 0 */
    uint64_t grains_offset; /* seSparse: of grain number 0 */
    bool zeroed;            /* entry 1: reads as zeros */
    bool packed;
    bool merge;         /* not closed cleanly: an entry may stand in one of both tables only */
    GHashTable *tables; /* &index -> struct vmdk_table */
    unsigned clean;     /* of them, that can be thrown out */

    /* being written, after vmdk_begin_write() */
    uint64_t end;               /* where the next grain goes */
    uint64_t reached;           /* end of what was placed so far: the file may still be shorter */
    GArray *frees;              /* of uint64_t: grains to be given back after the next flush */
    bool changed;               /* since the last flush */
    uint64_t next;              /* stream: guest offset in the extent that grains may be appended from */
    uint64_t footer;            /* stream: where a valid footer lies; 0: there is none */
    struct vmdk_table *current; /* stream: the table that is not complete yet, or NULL; dirty */
};

struct vmdk {
    struct image *image;
    struct vmdk_descriptor *descriptor;
    uint64_t text_offset; /* of the descriptor in image->storage */
    uint64_t text_room;   /* bytes that it may take there */
    struct vmdk_extent *extents;
    unsigned extent_count;
    bool stream;             /* the only extent is packed */
    bool writing;            /* vmdk_begin_write() was done */
    bool failed;             /* an operation stopped half way: nothing more may be made durable */
    uint32_t next_cid;       /* what the first change makes of the identity; 0: anything new */
    char *next_modification; /* the same, or NULL */
};

/* vmdk.c */
/* Sets a REFUSED or FAILED error that begins with the format.  Always returns false. */
bool vmdk_refuse(GError **error, const char *format, ...) G_GNUC_PRINTF(2, 3);
bool vmdk_corrupt(GError **error, const char *format, ...) G_GNUC_PRINTF(2, 3);
/* The extent that the guest offset lies in. */
struct vmdk_extent *vmdk_find(struct vmdk *vmdk, uint64_t offset);

/* vmdk-descriptor.c */
bool vmdk_is_text(const uint8_t *head, size_t length);
/* `text` need not end with a NUL; one in it ends it. */
struct vmdk_descriptor *vmdk_descriptor_parse(const char *text, size_t length, GError **error);
void vmdk_descriptor_free(struct vmdk_descriptor *descriptor);
bool vmdk_is_base(const struct vmdk_descriptor *descriptor);
uint32_t vmdk_new_cid(void);

/* vmdk-parent.c */
bool vmdk_check_parent(struct image *image, struct image *parent, GError **error);
bool vmdk_begin_merge(struct image *image, struct image *child, GError **error);

/* vmdk-sparse.c */
bool vmdk_header_parse(const uint8_t *bytes, struct vmdk_header *header, GError **error);
void vmdk_header_write(const struct vmdk_header *header, uint8_t *bytes);
/* Reads and validates the header and directories of a sparse extent, whose storage and size are set. */
bool vmdk_sparse_open(struct vmdk *vmdk, struct vmdk_extent *extent, GError **error);
void vmdk_extent_clear(struct vmdk_extent *extent);

/* vmdk-table.c */
enum vmdk_entry { VMDK_ENTRY_NONE, VMDK_ENTRY_ZERO, VMDK_ENTRY_GRAIN };
uint64_t vmdk_table_bytes(const struct vmdk_extent *extent);
uint64_t vmdk_table_offset(const struct vmdk_extent *extent, const uint32_t *gd, uint64_t index);
/* *table NULL: there is none.  Valid until the next call. */
bool vmdk_table_load(struct vmdk_extent *extent, uint64_t index, struct vmdk_table **table, GError **error);
/* Where grain number `i` of a table lies; `guest` (its offset in the disk) is for messages. */
bool vmdk_decode(const struct vmdk_extent *extent, const uint8_t *table, uint32_t i, uint64_t guest,
                 enum vmdk_entry *entry, uint64_t *host, GError **error);
void vmdk_table_dirty(struct vmdk_extent *extent, struct vmdk_table *table);
void vmdk_tables_cleaned(struct vmdk_extent *extent);
/* An empty table where there is none in the file yet. */
struct vmdk_table *vmdk_table_new(struct vmdk_extent *extent, uint64_t index);

/* vmdk-map.c */
bool vmdk_map(struct image *image, uint64_t offset, uint64_t length, struct extent *out, size_t max,
              size_t *count, GError **error);

/* vmdk-place.c */
bool vmdk_place(struct image *image, uint64_t offset, uint64_t length, GArray *placements, GError **error);
bool vmdk_zero(struct image *image, uint64_t offset, uint64_t length, uint64_t *done_offset,
               uint64_t *done_length, GError **error);

/* vmdk-flush.c */
/* Before the first change: nothing is used twice, and the image gets a new content id. */
bool vmdk_begin_write(struct vmdk *vmdk, GError **error);
/* Text of the same length over what stands there in the descriptor; does not flush. */
bool vmdk_overwrite(struct vmdk *vmdk, struct vmdk_span span, const char *text, GError **error);
/* The same for a content id, with as many digits as stand there. */
bool vmdk_put_cid(struct vmdk *vmdk, struct vmdk_span span, uint32_t cid, GError **error);
bool vmdk_flush(struct image *image, GError **error);

/* vmdk-verify.c */
/* REFUSED or FAILED, and nothing is written, if the tables of a sparse extent are wrong anywhere.  *end:
 * where its last grain ends. Tables that differ from their copies become dirty. */
bool vmdk_verify(struct vmdk_extent *extent, uint64_t *end, GError **error);
bool vmdk_check(struct image *image, bool repair, struct image_check *result, GError **error);

/* vmdk-pack.c */
bool vmdk_unpack(struct image *image, uint64_t offset, const void *packed, size_t packed_length, void *out,
                 GError **error);
bool vmdk_pack(struct image *image, uint64_t offset, const void *data, void *out, size_t *packed_length,
               GError **error);
uint32_t vmdk_record_max(uint64_t grain); /* bytes that the record of one grain takes at most */

/* vmdk-stream.c */
bool vmdk_place_packed(struct image *image, uint64_t offset, size_t packed_length, struct extent *to,
                       GError **error);
/* Finds what a stream that is to be written to holds: by its markers, up to the first that does not fit. */
bool vmdk_stream_recover(struct vmdk_extent *extent, GError **error);
bool vmdk_stream_flush(struct vmdk_extent *extent, GError **error);
/* What was not appended yet is zero, and the end can be cut off. */
bool vmdk_stream_zero(struct vmdk *vmdk, uint64_t offset, uint64_t length, uint64_t *done_offset,
                      uint64_t *done_length, GError **error);

/* vmdk-create.c */
extern const struct format_option vmdk_options[];
bool vmdk_is_writable_type(const char *create_type);
bool vmdk_child_unit(const struct image_create_options *options, uint32_t *unit, GError **error);
bool vmdk_measure(const struct image_create_options *options, uint64_t data, uint64_t *bytes, GError **error);
bool vmdk_plan_data(const struct image_create_options *options, GPtrArray *files, GError **error);
bool vmdk_create(struct storage *storage, const struct image_create_options *options, GError **error);
bool vmdk_create_data(struct storage *data, const struct image_create_options *options, unsigned index,
                      GError **error);

#endif
