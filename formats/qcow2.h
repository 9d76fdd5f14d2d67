/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2 versions 2 and 3: what its files share.  Nothing outside formats/qcow2*.c includes this.
 *
 *   qcow2.c           the driver's table, open, describe, close
 *   qcow2-header.c    header, header extensions, snapshot table: all that is validated at open
 *   qcow2-bitmaps.c   dirty bitmaps, which are only validated
 *   qcow2-cache.c     bounded cache of cluster-sized tables, one for L2 and one for refcount blocks
 *   qcow2-map.c       L1 and L2: from guest offsets to extents
 *   qcow2-refcount.c  refcounts of host clusters
 *   qcow2-alloc.c     which host cluster is next; growth of the refcount table
 *   qcow2-guard.c     where metadata lies, and what must happen before the first change
 *   qcow2-l2.c        the life of an L2 table that is changed
 *   qcow2-place.c     changes of the mapping: place, zero, packed clusters
 *   qcow2-flush.c     the write order
 *   qcow2-create.c    new images
 *   qcow2-check.c     recounts all references; repairs leaks and dirty refcounts
 *   qcow2-pack.c      deflate and zstd
 *
 * All offsets and lengths are bytes; a "cluster" number is a host offset >> cluster_bits.  Tables in a
 * cache keep the byte order of the file (big endian); l1[] and reftable[] are in host order.
 */
#ifndef FORMATS_QCOW2_H
#define FORMATS_QCOW2_H

#include "formats/bytes.h"
#include "formats/image.h"

#define QCOW2_MAGIC             0x514649fbu
#define QCOW2_MIN_CLUSTER_BITS  9
#define QCOW2_MAX_CLUSTER_BITS  21
#define QCOW2_MAX_L1_BYTES      (32u << 20)
#define QCOW2_MAX_REFTABLE      (8u << 20)
#define QCOW2_MAX_SNAPSHOTS     65536u
#define QCOW2_MAX_SNAPSHOT_META (64u << 20)

#define QCOW2_DIRTY       (UINT64_C(1) << 0) /* incompatible features */
#define QCOW2_CORRUPT     (UINT64_C(1) << 1)
#define QCOW2_DATA_FILE   (UINT64_C(1) << 2)
#define QCOW2_COMPRESSION (UINT64_C(1) << 3)
#define QCOW2_EXTENDED_L2 (UINT64_C(1) << 4)
#define QCOW2_LAZY        (UINT64_C(1) << 0) /* compatible features */
#define QCOW2_BITMAPS     (UINT64_C(1) << 0) /* autoclear features */
#define QCOW2_RAW_DATA    (UINT64_C(1) << 1)

#define QCOW2_COPIED   (UINT64_C(1) << 63) /* L1 and L2 entries */
#define QCOW2_PACKED   (UINT64_C(1) << 62)
#define QCOW2_ZERO     (UINT64_C(1) << 0)
#define QCOW2_HOST     UINT64_C(0x00fffffffffffe00)
#define QCOW2_L1_ZEROS UINT64_C(0x7f000000000001ff) /* reserved bits */
#define QCOW2_L2_ZEROS UINT64_C(0x3f000000000001fe)

#define QCOW2_BITMAP_FIXED 24u /* bytes of an entry of the bitmap directory before extra data and name */

#define QCOW2_EXT_END      0x00000000u
#define QCOW2_EXT_BACKING  0xe2792acau
#define QCOW2_EXT_FEATURES 0x6803f857u
#define QCOW2_EXT_BITMAPS  0x23852875u
#define QCOW2_EXT_CRYPTO   0x0537be77u
#define QCOW2_EXT_DATA     0x44415441u

enum qcow2_compression { QCOW2_ZLIB, QCOW2_ZSTD };

/* One cluster-sized table in a cache. */
struct qcow2_table {
    uint64_t index; /* L1 index of an L2 table, refcount table index of a refcount block */
    uint64_t host;  /* where it lies on the storage */
    bool dirty;
    uint8_t *bytes;
    GList link; /* in the cache's order of use */
};

struct qcow2;

struct qcow2_cache {
    GHashTable *tables; /* &index -> struct qcow2_table */
    GQueue used;        /* most recently used first */
    unsigned max;
    /* Makes a dirty table clean so that it can be thrown out. */
    bool (*evict)(struct qcow2 *qcow2, struct qcow2_table *table, GError **error);
};

/* A run of host clusters, or of bytes. */
struct qcow2_range {
    uint64_t first, count;
};

struct qcow2_snapshot {
    uint64_t l1_offset;
    uint32_t l1_size;
};

struct qcow2_bitmap {
    uint64_t table_offset;
    uint32_t table_size;
};

struct qcow2 {
    struct image *image;
    struct storage *storage;

    /* from the header */
    uint32_t version;
    bool external;   /* the data lies in image->data_files[0] */
    char *data_name; /* of that file, or NULL */
    unsigned cluster_bits;
    uint32_t cluster_size;
    unsigned refcount_order; /* refcounts have 1 << order bits */
    uint32_t header_length;
    uint64_t incompatible, compatible, autoclear;
    enum qcow2_compression compression;
    uint64_t l1_offset;
    uint32_t l1_size; /* entries */
    uint64_t reftable_offset;
    uint32_t reftable_clusters;
    uint64_t snapshots_offset, snapshots_length;
    GArray *snapshots; /* of struct qcow2_snapshot */
    uint32_t bitmap_count;
    uint64_t bitmaps_offset, bitmaps_length; /* the bitmap directory */
    GArray *bitmaps;                         /* of struct qcow2_bitmap */

    /* what follows from it */
    unsigned words;     /* of 64 bits per L2 entry: 1, or 2 with extended L2 */
    unsigned l2_bits;   /* log2 of the entries of an L2 table */
    unsigned sub_count; /* subclusters per cluster: 1, or 32 with extended L2 */
    uint32_t sub_size;
    unsigned block_bits; /* log2 of the refcounts in a block */

    uint64_t *l1;
    struct qcow2_cache l2;
    uint8_t *read_ahead; /* buffer for adjacent L2 tables */
    uint64_t prefetched; /* L1 index up to which tables were asked for in advance */
    uint64_t last_read;  /* L1 index of the table that was read last */

    /* Below: only after qcow2_refcounts_load(). */
    uint64_t *reftable; /* NULL: not loaded */
    uint64_t reftable_size;
    struct qcow2_cache blocks;

    /* Below: only after qcow2_prepare_write(), but for `failed`. */
    bool writing;         /* qcow2_begin_write() was done */
    bool verified;        /* counts and flags were right when they were looked at last */
    bool failed;          /* an operation stopped half way: nothing more may be made durable */
    uint64_t *l1_changed; /* bitmap: in-memory L1 entries that differ from the durable ones */
    struct qcow2_range l1_dirty, reftable_dirty; /* of entries; count 0: none */
    bool reftable_moved;                         /* the header does not point to the new one yet */
    GHashTable *metadata;                        /* host clusters of L2 tables and refcount blocks */
    GArray *fixed;       /* of struct qcow2_range, clusters of all other metadata, sorted */
    uint64_t *full;      /* bitmap: refcount blocks that have no free cluster */
    uint64_t free_hint;  /* no cluster below it is free */
    uint64_t end;        /* first byte after the highest allocated cluster */
    uint64_t packed_end; /* where the next packed cluster may go; 0: nowhere yet */
    GArray *frees;       /* of struct qcow2_range: references to drop after the next flush */
};

/* A decoded L2 entry.  A standard cluster is a cluster with one subcluster. */
struct qcow2_entry {
    uint64_t host; /* 0: no host cluster */
    bool copied;   /* refcount is exactly 1: may be written in place */
    bool packed;
    uint32_t packed_length;
    uint32_t data, zero; /* one bit per subcluster; neither: ask the backing layer */
};

static inline uint32_t qcow2_all_subclusters(const struct qcow2 *qcow2)
{
    return qcow2->sub_count == 32 ? UINT32_MAX : 1;
}

static inline bool qcow2_bit(const uint64_t *bitmap, uint64_t bit)
{
    return bitmap[bit / 64] >> (bit % 64) & 1;
}

static inline void qcow2_set_bit(uint64_t *bitmap, uint64_t bit, bool value)
{
    uint64_t mask = UINT64_C(1) << (bit % 64);

    bitmap[bit / 64] = value ? bitmap[bit / 64] | mask : bitmap[bit / 64] & ~mask;
}

/* qcow2.c */
/* The image contradicts itself: sets a FAILED error and, if the image is open for writing, the corrupt
 * bit, after which nothing is written any more.  Always returns false. */
bool qcow2_corrupt(struct qcow2 *qcow2, GError **error, const char *format, ...) G_GNUC_PRINTF(3, 4);
/* Writes one of the three feature words of the header (version 3). */
bool qcow2_write_features(struct qcow2 *qcow2, GError **error);
/* Reads `count` big endian words into a new array in host order. */
uint64_t *qcow2_read_words(struct qcow2 *qcow2, uint64_t offset, uint64_t count, GError **error);
bool qcow2_open(struct image *image, GError **error);
void qcow2_close(struct image *image);

/* qcow2-header.c */
void qcow2_set_geometry(struct qcow2 *qcow2);
bool qcow2_probe(const uint8_t *head, size_t length, struct storage *storage);
/* Sets a REFUSED error that begins with the format.  Always returns false. */
bool qcow2_refuse(GError **error, const char *format, ...) G_GNUC_PRINTF(2, 3);
/* A table must lie inside the file, on a cluster boundary, without overlapping the header. */
bool qcow2_check_table(struct qcow2 *qcow2, const char *field, uint64_t offset, uint64_t length,
                       GError **error);
/* Reads and validates header, extensions and snapshot table; fills the image's and the header's fields. */
bool qcow2_read_header(struct qcow2 *qcow2, GError **error);

/* qcow2-bitmaps.c */
/* Reads and validates the directory and the tables of dirty bitmaps. */
bool qcow2_read_bitmaps(struct qcow2 *qcow2, GError **error);

/* qcow2-cache.c */
void qcow2_cache_init(struct qcow2_cache *cache, unsigned max,
                      bool (*evict)(struct qcow2 *, struct qcow2_table *, GError **));
void qcow2_cache_clear(struct qcow2_cache *cache);
struct qcow2_table *qcow2_cache_find(struct qcow2_cache *cache, uint64_t index); /* NULL: not there */
/* A new entry with undefined bytes; throws out the one that was not used for longest. */
struct qcow2_table *qcow2_cache_add(struct qcow2 *qcow2, struct qcow2_cache *cache, uint64_t index,
                                    uint64_t host, GError **error);
void qcow2_cache_drop(struct qcow2_cache *cache, struct qcow2_table *table);
bool qcow2_table_write(struct qcow2 *qcow2, struct qcow2_table *table, GError **error);
/* All dirty tables for which `wanted` says so, by ascending host offset. */
bool qcow2_cache_write(struct qcow2 *qcow2, struct qcow2_cache *cache,
                       bool (*wanted)(struct qcow2 *, const struct qcow2_table *), bool *written,
                       GError **error);

/* qcow2-map.c */
bool qcow2_map(struct image *image, uint64_t offset, uint64_t length, struct extent *out, size_t max,
               size_t *count, GError **error);
/* The L2 table of an L1 entry that is not empty. Valid until the next call that touches the cache. */
struct qcow2_table *qcow2_l2_load(struct qcow2 *qcow2, uint64_t l1_index, GError **error);
/* Entry number `index` of an L2 table; `guest` (offset of its cluster) is for messages. */
bool qcow2_decode(struct qcow2 *qcow2, const uint8_t *table, uint64_t index, uint64_t guest,
                  struct qcow2_entry *entry, GError **error);
/* Is the L1 entry well formed and its table inside the file? */
bool qcow2_l1_entry_valid(struct qcow2 *qcow2, uint64_t entry, const char **why);
/* The decoding alone: *why says what is wrong. For check, which counts instead of failing. */
bool qcow2_decode_entry(struct qcow2 *qcow2, const uint8_t *table, uint64_t index, struct qcow2_entry *entry,
                        const char **why);

/* qcow2-refcount.c */
bool qcow2_refcounts_load(struct qcow2 *qcow2, GError **error);
uint64_t qcow2_refcount_max(const struct qcow2 *qcow2);
bool qcow2_refcount_get(struct qcow2 *qcow2, uint64_t cluster, uint64_t *count, GError **error);
/* The block that counts `cluster` must exist. */
bool qcow2_refcount_set(struct qcow2 *qcow2, uint64_t cluster, uint64_t count, GError **error);
/* The refcount block with that index; *block NULL: there is none, all its counts are 0. */
bool qcow2_block_load(struct qcow2 *qcow2, uint64_t index, struct qcow2_table **block, GError **error);
/* Refcount number i of a block, in its bytes as they lie in the file. */
void qcow2_block_set(const struct qcow2 *qcow2, uint8_t *block, uint64_t i, uint64_t count);
uint64_t qcow2_block_get(const struct qcow2 *qcow2, const uint8_t *block, uint64_t i);
/* Makes `cluster`, which is free, the refcount block number `index`. */
bool qcow2_block_add(struct qcow2 *qcow2, uint64_t index, uint64_t cluster, GError **error);

/* qcow2-alloc.c */
/* Takes the lowest free cluster: refcount 1. */
bool qcow2_allocate(struct qcow2 *qcow2, uint64_t *cluster, GError **error);
/* One more reference to a cluster that is in use. */
bool qcow2_reference(struct qcow2 *qcow2, uint64_t cluster, GError **error);
void qcow2_range_extend(struct qcow2_range *range, uint64_t entry);
void qcow2_ranges_append(GArray *ranges, uint64_t first, uint64_t count);
/* Drops references to `count` clusters once the next flush has made the new mapping durable. */
void qcow2_free_later(struct qcow2 *qcow2, uint64_t first, uint64_t count);
/* Drops them now; freed clusters are appended to `freed` (of struct qcow2_range). */
bool qcow2_drop_references(struct qcow2 *qcow2, GArray *freed, GError **error);

/* qcow2-guard.c */
/* May something new be written to this host cluster? A qcow2_corrupt() error if metadata is there. */
bool qcow2_guard(struct qcow2 *qcow2, uint64_t cluster, GError **error);
void qcow2_guard_move(struct qcow2 *qcow2, struct qcow2_range from, struct qcow2_range to);
/* Loads refcounts and collects where metadata lies; writes nothing. */
bool qcow2_prepare_write(struct qcow2 *qcow2, GError **error);
/* Before the first change: also rebuilds refcounts if the dirty bit is set, clears autoclear bits. */
bool qcow2_begin_write(struct qcow2 *qcow2, GError **error);

/* qcow2-l2.c */
/* The L2 table of an L1 index, to be changed: made if there is none, moved if it is shared. */
struct qcow2_table *qcow2_l2_edit(struct qcow2 *qcow2, uint64_t l1_index, GError **error);
bool qcow2_l2_evict(struct qcow2 *qcow2, struct qcow2_table *table, GError **error);
void qcow2_encode(struct qcow2 *qcow2, struct qcow2_table *table, uint64_t index,
                  const struct qcow2_entry *entry);

/* qcow2-place.c */
bool qcow2_place(struct image *image, uint64_t offset, uint64_t length, GArray *placements, GError **error);
bool qcow2_place_packed(struct image *image, uint64_t offset, size_t packed_length, struct extent *to,
                        GError **error);
bool qcow2_zero(struct image *image, uint64_t offset, uint64_t length, uint64_t *done_offset,
                uint64_t *done_length, GError **error);

/* qcow2-flush.c */
bool qcow2_flush(struct image *image, GError **error);

/* qcow2-create.c */
extern const struct format_option qcow2_options[];
bool qcow2_child_unit(const struct image_create_options *options, uint32_t *unit, GError **error);
bool qcow2_measure(const struct image_create_options *options, uint64_t data, uint64_t *bytes,
                   GError **error);
bool qcow2_create(struct storage *storage, const struct image_create_options *options, GError **error);

/* qcow2-check.c */
/* May this image be changed?  REFUSED, and nothing is written, if its counts or flags are wrong anywhere: a
 * cluster that is used twice and counted once would be overwritten. */
bool qcow2_verify(struct qcow2 *qcow2, GError **error);
bool qcow2_check(struct image *image, bool repair, struct image_check *result, GError **error);

/* qcow2-pack.c */
bool qcow2_unpack(struct image *image, uint64_t offset, const void *packed, size_t packed_length, void *out,
                  GError **error);
bool qcow2_pack(struct image *image, uint64_t offset, const void *data, void *out, size_t *packed_length,
                GError **error);

#endif
