/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The copier: extents in, verified extents out, many in flight.
 *
 *     map -> read -> digest, find zeros -> place -> write -> read back -> compare
 *
 * A slot is a run of guest bytes with its buffer.  Slots read and write out of order, but
 * the step between (digest, zero detection, place) happens in guest order: so a fresh target is
 * laid out in order, its tables are written once, and the same input gives the same file.
 * The copier knows no format, no hypervisor and no phase.
 */
#ifndef BLOCKMIG_COPY_COPY_H
#define BLOCKMIG_COPY_COPY_H

#include "blockmig/copy/digest.h"
#include "blockmig/copy/throttle.h"
#include "formats/chain.h"

struct copy_range {
    uint64_t offset, length;
};

/* All in bytes; written by the copying thread, given to the progress callback. */
struct copy_counters {
    uint64_t total;      /* guest bytes to go through (the virtual size of the range) */
    uint64_t position;   /* all below it is finished */
    uint64_t data_total; /* guest bytes that the map says hold data; 0: not known */
    uint64_t data_done;
    uint64_t bytes_read;     /* from the source storages */
    uint64_t bytes_written;  /* to the target storage */
    uint64_t bytes_cloned;   /* shared with the source by reflink instead of being written */
    uint64_t bytes_zero;     /* guest bytes that are zero and were not written */
    uint64_t bytes_verified; /* read back from the medium and compared */
};

/* What another run moved besides: its bytes_, not how far it is. */
void copy_counters_add(struct copy_counters *total, const struct copy_counters *more);

/*
 * An order-independent sum over (guest, host) pairs of everything that was placed, in which the
 * mapping that was read back while copying can be recognised in the metadata of the finished image: see
 * copy_prove().  It does not depend on how the runs are cut (map-sum.c), and costs nothing for long ones.
 */
struct copy_map_sum {
    uint64_t low, high;
};

struct copy_options {
    uint64_t start;    /* guest offset to begin at: a checkpoint, a multiple of DIGEST_CHUNK_SIZE */
    uint64_t end;      /* guest offset to stop at, likewise; 0: the end of the source */
    bool read_back;    /* read every written byte back past the page cache and compare it */
    bool write_zeroes; /* write zeros as data (preallocation=full) */
    bool compress;     /* pack what gets smaller; the target must have FORMAT_PACKS */
    bool salvage;      /* go on after read errors with zeros, listing the ranges */
    bool no_reflink;   /* never share blocks with the source */
    /* The target is there, and the source is a layer with holes: what it holds is put into the target, soon.
     * No digests, no map_sum, no shared blocks; nothing is done for what is a hole. */
    bool patch;
    bool no_uring;       /* use the thread pool */
    size_t buffer_bytes; /* 0: 64 MiB; of a patch, only so much of it is touched as there is to ship */
    struct chain *target_backing; /* what the target's holes show: fills come from there; or NULL: zeros */
    struct chain *seed;           /* an older copy, which the target's side has: see storage_seed; or NULL */
    struct throttle *throttle;    /* or NULL; takes bytes that are read */
    struct digest_table *digests; /* of the source as the guest sees it (keep_holes: holes as zeros), or NULL;
                                   * complete below `start` */
    struct copy_map_sum map_sum;  /* of what was placed below `start` */
    uint64_t checkpoint_bytes;    /* guest data between checkpoints; 0: 2 GiB or 5 s, whichever is first */

    /* Called with the target flushed and everything below `frontier` written and, if asked,
     * read back; `frontier` is a multiple of DIGEST_CHUNK_SIZE or the end.  May be NULL. false: stop. */
    bool (*checkpoint)(void *opaque, uint64_t frontier, const struct copy_map_sum *sum, GError **error);
    void (*progress)(void *opaque,
                     const struct copy_counters *counters); /* about 10 times a second; or NULL */
    bool (*cancelled)(void *opaque); /* polled often; true: finish what is in flight, checkpoint, CANCELLED */
    void *opaque;
};

struct copy_result {
    struct copy_counters counters;
    struct copy_map_sum map_sum;
    GArray *bad;        /* of struct copy_range: unreadable guest ranges (salvage), merged, ascending */
    const char *engine; /* "io_uring" or "threads", for the report */
};
void copy_result_clear(struct copy_result *result);

/* Copies `source` into `target` (same size or larger; opened for writing; fresh or resumed).  Holes of a
 * keep_holes source stay holes; what reads as zeros is zeroed on a target that does not read as zeros by
 * itself, or hides a backing layer there.  Flushes the target at the end.  Errors: IO with the exact guest
 * and host range of the read error; NOSPACE after an orderly stop and a checkpoint; DIFFERENT if a read-back
 * differs (with the range); CANCELLED.  `result` is filled also on failure. */
bool copy_run(struct chain *source, struct image *target, const struct copy_options *options,
              struct copy_result *result, GError **error);

/* Proves that `target`, opened anew, leads every guest byte to what copy_run() read back: its map has the
 * sum, and whatever it maps in chunks that are zero really reads as zeros (past the page cache). DIFFERENT
 * otherwise, naming the first range that is wrong where that can be said. */
bool copy_prove(struct image *target, const struct digest_table *digests, const struct copy_map_sum *sum,
                const struct copy_options *options, struct copy_result *result, GError **error);

/* Reads a whole chain past the page cache and fills `digests` (of its size). */
bool copy_digest(struct chain *chain, const struct copy_options *options, struct copy_result *result,
                 GError **error);

/* Compares what two chains show.  Beyond the end of the shorter one the other must read as zeros.
 * Calls `different` for every differing range (sector-exact, merged); false from it stops the comparison.
 * Returns false only on errors: the callback is how differences are told. */
bool copy_compare(struct chain *a, struct chain *b, const struct copy_options *options,
                  bool (*different)(void *opaque, uint64_t offset, uint64_t length),
                  struct copy_result *result, GError **error);

#endif
