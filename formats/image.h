/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A disk image: translates guest addresses into places on a storage.
 *
 * An image never moves bulk data.  map() says where guest bytes are, place() where new ones go;
 * the caller (blockmig/copy) reads and writes them.  Metadata lives in memory until flush(),
 * which makes it durable in the order that keeps the image valid at every instant.
 *
 * An image belongs to one thread at a time, except that unpack() and pack() may be called from
 * any thread.  A driver is one file (or room of files) that ends in its `struct format`.
 */
#ifndef FORMATS_IMAGE_H
#define FORMATS_IMAGE_H

#include "formats/error.h"
#include "formats/extent.h"
#include "formats/storage.h"

#include <stdbool.h>

struct image;

/* One answer of place(): where bytes of the guest go. */
struct placement {
    struct extent to;   /* status DATA: write guest bytes [offset, +length) to storage:host_offset */
    bool fill;          /* outside the request: the caller must bring `from` here */
    bool clean;         /* with fill: `from` is ZERO and it reads so already, nothing has to be written */
    struct extent from; /* if fill: what the guest reads there now, in terms of this image: DATA,
                         * ZERO, PACKED, or HOLE (read the backing layer); same offset and length */
};

/* A file beside the image that guest data lies in: the external data file of a qcow2 image, an extent of a
 * VMDK.  Its content may be read and written only through the image. */
struct data_file {
    char *name;              /* as it stands in the image */
    uint64_t size;           /* it must have at least so many bytes */
    struct storage *storage; /* owned; NULL before image_attach_data() */
};

struct image_create_options {
    const char *name;     /* the file name that the image will have, for the names of its data files; may be
                           * NULL for formats without such */
    uint64_t size;        /* virtual size in bytes */
    uint64_t device_size; /* measure: of a storage that does not grow; 0: it grows */
    const char *backing_name;   /* as it is to stand in the image, or NULL */
    const char *backing_format; /* required if backing_name is set */
    struct image *parent;       /* with backing_name: that image, open; its identity is recorded. NULL: not
                                 * there yet (measure), or none is wanted */
    GHashTable *values;         /* -o: string -> string, or NULL; keys were checked against options */
};

struct format_option {
    const char *name;
    const char *help;   /* values and default, one line */
    bool not_inherited; /* a copy of an image of the same format has the default, not what the source has */
};

enum format_flags {
    FORMAT_BACKING = 1 << 0,        /* can have a backing layer */
    FORMAT_IDENTITY = 1 << 1,       /* every image is as long as its disk, see image->identity */
    FORMAT_PACKED = 1 << 2,         /* may return EXTENT_PACKED */
    FORMAT_PACKS = 1 << 3,          /* pack() and place_packed() exist */
    FORMAT_CREATE = 1 << 4,         /* create() and place() exist */
    FORMAT_NO_PARENT_NAME = 1 << 5, /* children do not name their parent: --parent is needed */
    FORMAT_SAME_SIZE = 1 << 6,      /* a child is as large as its parent */
    FORMAT_RUNS = 1 << 7,           /* QEMU knows it by this name, and machines are moved to it */
    FORMAT_BLIND = 1 << 8,          /* QEMU does not see what lies below a differencing image */
};

struct image_check {
    uint64_t leaks;       /* host clusters with a count but without a user: wasted space */
    uint64_t corruptions; /* anything that can lose or mix up data */
    uint64_t repaired;    /* leaks that were given back */
    char finding[200];    /* the first of the corruptions, in words; perhaps cut off */
};

typedef void (*image_describe_fn)(void *opaque, const char *key, const char *value);

/* The callbacks in the order in which they are used. */
struct format {
    const char *name;
    const char *qemu_name; /* how images for QEMU call it; NULL: the same */
    unsigned flags;
    const struct format_option *options; /* for create, ends with a NULL name; or NULL */

    /* Does this storage hold this format? `head` are its first bytes (up to 4096).  Reads nothing
     * else but what it finds through `storage` at the end of the file, where a format keeps its
     * magic there.  Optional: never (raw). */
    bool (*probe)(const uint8_t *head, size_t length, struct storage *storage);

    /* Bytes that the storage will need at most for `data` bytes of guest data.  REFUSED if create() would
     * refuse a storage of options->device_size; whether the bytes fit is the caller's to say. */
    bool (*measure)(const struct image_create_options *options, uint64_t data, uint64_t *bytes,
                    GError **error);
    /* image->granularity of an image with a backing layer that is made so.  Optional: 512. */
    bool (*child_unit)(const struct image_create_options *options, uint32_t *unit, GError **error);
    /* Writes a valid empty image onto an empty or reusable storage, and flushes it. */
    bool (*create)(struct storage *storage, const struct image_create_options *options, GError **error);
    /* The files that an image made so will have its data in, appended to `files` (of struct data_file *,
     * without storages), in the order of image->data_files; their names are plain.  Optional: none. */
    bool (*plan_data)(const struct image_create_options *options, GPtrArray *files, GError **error);
    /* After create: writes a valid empty data file number `index` onto an empty storage, and flushes it. */
    bool (*create_data)(struct storage *data, const struct image_create_options *options, unsigned index,
                        GError **error);

    /* Sets size, granularity, ..., opaque; reads and validates everything that later calls rely on.
     * image->writable says what is wanted.  On error leaves nothing behind. */
    bool (*open)(struct image *image, GError **error);
    /* All data files are attached: reads and validates what open could not.  Optional: nothing. */
    bool (*open_data)(struct image *image, GError **error);
    /* Is `parent` what `image` was made over, unchanged?  The REFUSED error names both identities.  Optional:
     * for formats that record it.  Their names of the parent are hints only. */
    bool (*check_parent)(struct image *image, struct image *parent, GError **error);
    /* `child`, whose storage can be written to, is about to be merged into this image, which is writable. The
     * child learns, durably, of the new identity before the first change gives it to this image:
     * check_parent() accepts both for `child` at every instant, or a merge that was killed could not go on.
     * Other children are not told: to them the parent has changed.  Optional: changes do not touch the
     * identity. */
    bool (*begin_merge)(struct image *image, struct image *child, GError **error);
    /* Fills out[0..max) with extents that follow each other without gaps from `offset`; neighbours
     * that can be merged are.  0 < *count <= max; may stop before offset + length, never after. */
    bool (*map)(struct image *image, uint64_t offset, uint64_t length, struct extent *out, size_t max,
                size_t *count, GError **error);
    /* Unpacks the whole unit (image->packed_unit bytes) of guest offset `offset` that PACKED bytes hold.
     * Thread-safe. */
    bool (*unpack)(struct image *image, uint64_t offset, const void *packed, size_t packed_length, void *out,
                   GError **error);

    /* Appends to `placements` (of struct placement) where [offset, +length) goes, in guest order,
     * followed by the fills.  Allocates as needed; ascending calls on a fresh image get ascending
     * host offsets. What is not COPIED/owned alone is moved. */
    bool (*place)(struct image *image, uint64_t offset, uint64_t length, GArray *placements, GError **error);
    /* Packs the unit at `offset`, of packed_unit bytes, into `out` (of image_pack_room() bytes);
     * *packed_length 0 means that it does not get smaller: place() it instead. Thread-safe. */
    bool (*pack)(struct image *image, uint64_t offset, const void *data, void *out, size_t *packed_length,
                 GError **error);
    /* Where the packed bytes of the unit at `offset` go. */
    bool (*place_packed)(struct image *image, uint64_t offset, size_t packed_length, struct extent *to,
                         GError **error);
    /* Makes the inner, aligned part of the range read as zeros by metadata and says which part that
     * is (*done_length may be 0); the caller writes zeros to the rest.  Hides a backing layer. */
    bool (*zero)(struct image *image, uint64_t offset, uint64_t length, uint64_t *done_offset,
                 uint64_t *done_length, GError **error);
    /* The content may become anything that shows no deleted data: here it becomes zeros, with space
     * given back where possible. Same answer as zero. */
    bool (*discard)(struct image *image, uint64_t offset, uint64_t length, uint64_t *done_offset,
                    uint64_t *done_length, GError **error);
    /* All data that was written to places before this call was already acknowledged by the storage.
     * Afterwards data and metadata are durable. */
    bool (*flush)(struct image *image, GError **error);
    /* Compares counts with users; gives leaked space back if `repair` and nothing else is wrong. Optional:
     * all is well. */
    bool (*check)(struct image *image, bool repair, struct image_check *result, GError **error);
    /* Calls `describe` for every feature worth telling: cluster size, compression, snapshots ... */
    void (*describe)(struct image *image, image_describe_fn describe, void *opaque);
    void (*close)(struct image *image); /* frees opaque; does not flush */
};

struct image {
    const struct format *format;
    struct storage *storage; /* owned */
    char *name;              /* what messages call it */
    bool writable;

    /* set by open */
    uint64_t size;         /* virtual size */
    uint32_t granularity;  /* place() on multiples of it needs no fill; power of two; 1 for raw */
    uint32_t cluster_size; /* allocation unit on the storage, for zero detection; power of two */
    uint32_t packed_unit;  /* bytes of one packed unit; 0 if the format does not pack */
    uint32_t packed_max; /* every unit has to be packed, in at most so many bytes: place() does not exist; 0:
                          * what does not get smaller stays as it is */
    bool identity;      /* every guest byte has its place for good; what was not written there is known to the
                         * storage alone */
    bool reads_zero;    /* what was never placed reads as zeros (fresh image without backing) */
    char *backing_name; /* as it stands in the image; NULL: no backing layer */
    char *backing_format;    /* as it stands in the image, or follows from the format; NULL: not said */
    GPtrArray *parent_names; /* of char *: file names where the parent may be, in the order to try, the first
                              * is backing_name too; see image_add_parent_name(). NULL: no others */
    bool wants_parent;       /* a differencing image that names no parent */
    GPtrArray *data_files;   /* of struct data_file *, see image_add_data_file(): nothing is mapped before
                              * image_attach_data() has had all of them.  Created by image_open. */
    bool data_beside;        /* by the nature of the format they lie beside the image: it may lead there */
    GPtrArray *notices;      /* of char *: what a copy does not carry, or what an administrator must
                              * know: internal snapshots, bitmaps, dirty bit. Created by image_open. */
    void *opaque;            /* the driver's */
};

/* Takes ownership of `storage` in every case, also on failure. */
struct image *image_open(struct storage *storage, const struct format *format, bool writable, GError **error);
void image_close(struct image *image); /* NULL is allowed; does not flush; closes the storage */
/* Gives an image the file of data_files[index]; with the last one the image is open in full.  The caller has
 * decided that this name may be followed.  Takes ownership of `data` in every case. */
bool image_attach_data(struct image *image, unsigned index, struct storage *data, GError **error);

/* The wrappers check bounds against image->size (an error, not an assertion), that the image is
 * writable and that the driver has the callback; errors come prefixed with the image's name. */
bool image_create(struct storage *storage, const struct format *format,
                  const struct image_create_options *options, GError **error);
bool image_plan_data(const struct format *format, const struct image_create_options *options,
                     GPtrArray *files, GError **error);
bool image_create_data(struct storage *data, const struct format *format,
                       const struct image_create_options *options, unsigned index, GError **error);
bool image_measure(const struct format *format, const struct image_create_options *options, uint64_t data,
                   uint64_t *bytes, GError **error);
bool image_child_unit(const struct format *format, const struct image_create_options *options, uint32_t *unit,
                      GError **error);
bool image_map(struct image *image, uint64_t offset, uint64_t length, struct extent *out, size_t max,
               size_t *count, GError **error);
bool image_unpack(struct image *image, uint64_t offset, const void *packed, size_t packed_length, void *out,
                  GError **error);
bool image_place(struct image *image, uint64_t offset, uint64_t length, GArray *placements, GError **error);
bool image_pack(struct image *image, uint64_t offset, const void *data, void *out, size_t *packed_length,
                GError **error);
/* Bytes that a packed unit may need. */
static inline uint32_t image_pack_room(const struct image *image)
{
    return image->packed_max ? image->packed_max : image->packed_unit;
}
bool image_place_packed(struct image *image, uint64_t offset, size_t packed_length, struct extent *to,
                        GError **error);
bool image_zero(struct image *image, uint64_t offset, uint64_t length, uint64_t *done_offset,
                uint64_t *done_length, GError **error);
bool image_discard(struct image *image, uint64_t offset, uint64_t length, uint64_t *done_offset,
                   uint64_t *done_length, GError **error);
bool image_flush(struct image *image, GError **error);
bool image_check(struct image *image, bool repair, struct image_check *result, GError **error);
/* Before an image is written to that somebody may have been killed at: leaked space is given back. REFUSED:
 * anything else is wrong with it. */
bool image_repair(struct image *image, GError **error);
void image_describe(struct image *image, image_describe_fn describe, void *opaque);
void image_notice(struct image *image, const char *format, ...) G_GNUC_PRINTF(2, 3);

/* For open and plan_data. */
void image_add_data_file(GPtrArray *files, const char *name, uint64_t size);
GPtrArray *image_data_files_new(void);
static inline struct data_file *image_data_file(const struct image *image, unsigned index)
{
    return (struct data_file *)g_ptr_array_index(image->data_files, index);
}
/* For open: one more name that the image gives its parent (UTF-8), perhaps as Windows writes names.  The
 * first becomes backing_name; what is empty or known already adds nothing. */
void image_add_parent_name(struct image *image, const char *name);
/* true if the format records no identity. */
bool image_check_parent(struct image *image, struct image *parent, GError **error);
/* Before a child is merged into its parent `image`.  What the guest sees of `child` does not change. */
bool image_begin_merge(struct image *image, struct image *child, GError **error);
/* What it does not hold is in a layer below it. */
static inline bool image_is_differencing(const struct image *image)
{
    return image->backing_name || image->wants_parent;
}

typedef struct image image_t; /* for g_autoptr(image_t) only */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(image_t, image_close)

/* probe.c: the table of all formats, raw last. */
extern const struct format *const formats[]; /* ends with NULL */
extern const struct format format_raw;
extern const struct format format_qcow;
extern const struct format format_qcow2;
extern const struct format format_vdi;
extern const struct format format_vmdk;
extern const struct format format_vhd;
extern const struct format format_vhdx;

/* By the name that users and backing-format fields give, ours or QEMU's; an error (USAGE) names the known
 * ones. */
const struct format *format_by_name(const char *name, GError **error);
/* REFUSED if it is only read. */
bool format_check_writable(const struct format *format, GError **error);
/* May an image of this name and format stand on a parent that stands on another image itself?  REFUSED. */
bool format_check_grandchild(const char *name, const struct format *format, const char *parent_name,
                             const struct format *parent, GError **error);
/* What the storage holds; raw if nothing else claims it and it is not known as a format without a driver
 * (REFUSED).  Only for an image that the user named: a backing file is never probed (CVE-2008-2004 and its
 * family). NULL on a read error. */
const struct format *format_probe(struct storage *storage, GError **error);

/* Formats that we have no driver for, but QEMU has, by the name that it gives them. */
struct format_foreign {
    const char *name;
    const char *mark; /* the first bytes of such an image; NULL: it is not probed */
    size_t length;    /* of the mark */
};
const struct format_foreign *format_foreign_by_name(const char *name);
/* NULL: it is none, or cannot be read. */
const struct format_foreign *format_probe_foreign(struct storage *storage);
/* -o: "key=value,key=value" (",," is a comma in a value) into a new hash table, checked against
 * the format's option table; USAGE errors name key, format and the known keys. `text` may be NULL. */
GHashTable *format_parse_options(const struct format *format, const char *text, GError **error);

#endif
