/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Base-plus-delta chains: safe resolution of backing files, and one map through all layers.
 *
 * The policy is chosen by the caller, the file system work is done by its `open` callback
 * (blockmig/storage/file.c): formats/ has no opinion about paths beyond the syntax of names.
 */
#ifndef FORMATS_CHAIN_H
#define FORMATS_CHAIN_H

#include "formats/image.h"

#define CHAIN_MAX_DEPTH 64

/* A parent named by the user (--parent [FORMAT:]FILE), top to base. */
struct chain_parent {
    char *path;
    char *format; /* or NULL: probe; what then looks raw is refused */
};

struct chain_policy {
    const char *const
        *allowed_roots; /* directories besides that of the image; NULL-terminated or NULL.
                         * For external data files that of the image counts only if data_beside. */
    const struct chain_parent *parents;
    size_t parent_count;
    size_t *parents_used; /* how many were: only images that want a parent take one. NULL: all must be used */
    unsigned max_depth;   /* 0: CHAIN_MAX_DEPTH */
    bool top_only;        /* open only the top image, without data files; holes stay EXTENT_HOLE */
    bool data;            /* with top_only: its data files all the same */
    bool writable_top;
    bool writable_link; /* the top's storage can be written to, the image not: for image_begin_merge() */
    /* Opens `path` as a storage.  If `roots` is not NULL (NULL-terminated) the object must be a regular
     * file whose real path lies beneath one of them, checked on the opened object, not on the name;
     * if it is NULL the user named the path.  *real_path is set to the resolved path (owned by the
     * caller), from which the directory of relative backing names is taken. */
    struct storage *(*open)(void *opaque, const char *path, const char *const *roots, bool writable,
                            char **real_path, GError **error);
    /* The name of the file `name` beside the one that the URI `image` names, to be opened without roots; the
     * caller's.  NULL: there are no files, or it would not be in the same directory.  Optional: there are
     * none. */
    char *(*beside)(const char *image, const char *name);
    void *opaque;
};

struct chain {
    GPtrArray *layers; /* of struct image *, 0 = top; owned */
    GPtrArray *paths;  /* of char *: the real path of each layer */
    uint64_t size;     /* of the top */
    bool keep_holes;   /* from top_only: do not turn a hole of the last layer into zeros */
    uint32_t unit;     /* of chain_view_units(); 0: of any other chain */
    GArray *holes;     /* of struct extent, one per layer: chain_map's own memory */
    bool failed;       /* a write stopped half way: what the top layer shows is in doubt */
};

/* Opens `path` and, unless top_only, everything below it.  `format` NULL: probe the top.
 * REFUSED errors: outside the allowed roots, loop, too deep, backing format missing or unknown,
 * json: or protocol or control characters in a name, a parent or data file that is not there. */
struct chain *chain_open(const char *path, const struct format *format, const struct chain_policy *policy,
                         GError **error);
/* A chain of one image that is already open; takes ownership of `image`. */
struct chain *chain_new_single(struct image *image, bool keep_holes);
/* Puts `image` (now owned) under the last layer of such a chain. */
void chain_append(struct chain *chain, struct image *image);
/* Layers [first, first + count) of a chain as one of their own; they stay owned by `chain`, which must live
 * longer. */
struct chain *chain_view(const struct chain *chain, unsigned first, unsigned count, bool keep_holes);
/* What the top layer of a chain is in an image that holds whole units (a power of two, in bytes) over the
 * same layers: of a unit that the layer has anything of, all that the chain shows; any other is a hole.  A
 * view as those above. */
struct chain *chain_view_units(const struct chain *chain, unsigned first, uint32_t unit);
void chain_close(struct chain *chain); /* NULL is allowed */

/* Is a parent that the user gives for this image?  It stands above a name that is only a hint, or that does
 * not say of which format the file is. */
bool chain_takes_parent(const struct image *image);

/* chain-names.c: arrays of char *, in the order to try.  The names of what lies below `image`.  If the image
 * can tell whether that is the right one, the directory does not count: disks are moved together, and their
 * names still say where they were. */
GPtrArray *chain_names_below(const struct image *image);
/* For such images, the files beside the image, which is at `path`, that differ from `names` only in upper and
 * lower case or in how accents are written: that is one name to the hosts which they come from. */
GPtrArray *chain_names_in_other_case(const struct image *image, const GPtrArray *names, const char *path);

struct image *chain_layer(const struct chain *chain, unsigned layer);
unsigned chain_depth(const struct chain *chain);

/* As image_map, through all layers: HOLE appears only with keep_holes.  A layer shorter than the
 * one above it reads as zeros beyond its end.  extent.layer says where data comes from. */
bool chain_map(struct chain *chain, uint64_t offset, uint64_t length, struct extent *out, size_t max,
               size_t *count, GError **error);

/* The same from `layer` down: what shows where the layers above it have holes. */
bool chain_map_from(struct chain *chain, unsigned layer, uint64_t offset, uint64_t length, struct extent *out,
                    size_t max, size_t *count, GError **error);

/* Convenience for metadata-sized reads, tests and fills: reads guest bytes through the chain. */
bool chain_read(struct chain *chain, void *buffer, size_t length, uint64_t offset, GError **error);
/* Reads what chain_map() answered, or a part of it.  Thread-safe, but the chain must not have been written to
 * since. */
bool chain_read_extent(struct chain *chain, const struct extent *extent, void *buffer, GError **error);

/*
 * Guest writes: into the top layer, which is open for writing; the layers below are never changed. What a
 * format takes along with the bytes that are written, as the rest of a new cluster, comes from where the
 * chain has it.  All of it is durable after chain_flush(), and a crash before that leaves what the flush
 * before it left, and perhaps some of the bytes written since.
 *
 * A failure half way leaves bytes in doubt that nobody wrote: from then on everything that is asked of the
 * chain fails, and on the medium nothing leads there.  Opened anew it shows the last flush.
 */
bool chain_write(struct chain *chain, const void *buffer, size_t length, uint64_t offset, GError **error);
/* The range reads as zeros afterwards and takes as little space as the format can do. */
bool chain_zero(struct chain *chain, uint64_t offset, uint64_t length, GError **error);
/* The guest does not need the range any more: what the format can take away cheaply becomes zeros, the rest
 * stays. */
bool chain_discard(struct chain *chain, uint64_t offset, uint64_t length, GError **error);
bool chain_flush(struct chain *chain, GError **error);
/* REFUSED: a parent that the user gave stands below an image that knows of none. */
bool chain_check_writable(const struct chain *chain, GError **error);
bool chain_check_failed(const struct chain *chain, GError **error);

/* What the user wrote as [FORMAT:]FILE (NULL-terminated; NULL: none): an array of struct chain_parent.  What
 * stands before the first colon is a format only if there is one of that name. */
GArray *chain_parents(const char *const *texts);

/* Is `name`, found inside an image, a plain file name that may be looked up?
 * REFUSED error says why not (json:, protocol, control characters, empty). */
bool chain_name_is_plain(const char *name, GError **error);

typedef struct chain chain_t; /* for g_autoptr(chain_t) only */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(chain_t, chain_close)

#endif
