/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Checkpoints: how far the copy of one image has come, in the journal, and going on from there after whatever
 * ended the run, for disks that nobody uses and for those of running machines.
 *
 * What is trusted: a checkpoint, because the target was flushed before it was written.  What is not: that the
 * medium kept its word (the stretch before the checkpoint is read again and compared with its digests).  That
 * the source is still the same is for the caller to know.
 */
#ifndef BLOCKMIG_MIGRATE_CHECKPOINT_H
#define BLOCKMIG_MIGRATE_CHECKPOINT_H

#include "blockmig/migrate/phase.h"

#include <sys/stat.h>

struct checkpoint {
    struct digest_table *digests;
    struct copy_map_sum map_sum;
    struct copy_counters before; /* what earlier runs of the job did */
    GArray *bad;                 /* of struct copy_range: what they salvaged; or NULL */
    uint64_t frontier;           /* everything below it is on the target */
    uint64_t saved;              /* digests below it are in the journal */
    unsigned merged;             /* overlays of a running machine that are on the target, too */
};

/* Nothing is done yet. */
void checkpoint_begin(struct checkpoint *done, enum digest_algorithm algorithm, uint64_t size);
void checkpoint_clear(struct checkpoint *done);
/* Fills a cleared checkpoint with what the journal has of disk `index`; nothing: frontier 0. */
bool checkpoint_load(struct checkpoint *done, const struct job *job, unsigned index,
                     enum digest_algorithm algorithm, uint64_t size, GError **error);
/* The target is flushed up to `frontier`: only now may the journal say so.  `now`: what this run did. */
bool checkpoint_save(struct checkpoint *done, const struct job *job, unsigned index, uint64_t frontier,
                     const struct copy_result *now, GError **error);
/* What all runs of the job did to this image: the copier knows only of its own. */
void checkpoint_add_counters(const struct checkpoint *done, const struct copy_counters *now,
                             struct copy_counters *total);
/* What all of them could not read; the caller's. */
GArray *checkpoint_all_bad(const struct checkpoint *done, const GArray *now);

/* Digests [from, to) of `chain` anew and says at which byte the first chunk differs from `expected` (`to`:
 * none).  Of `how` counts how to stop, and what to do about what cannot be read. */
bool checkpoint_first_difference(struct chain *chain, const struct digest_table *expected, uint64_t from,
                                 uint64_t to, const struct copy_options *how, uint64_t *differs,
                                 GError **error);
/* The image that an earlier run wrote to. */
struct checkpoint_target {
    struct image *(*open)(void *opaque, bool writable, GError **error);
    void *opaque;
    uint64_t size;             /* of the disk */
    struct image *parent;      /* it was created as a child of this; or NULL */
    const char *preallocation; /* of its options, or NULL */
    bool device;
    bool changed; /* on purpose, since the checkpoint: by overlays that were merged into it */
};

/* Opens it for writing, and makes it ready to be gone on with.  Leaks are repaired; the stretch before the
 * frontier is compared with its digests, on the medium; from the frontier on it becomes as it was when it was
 * created (not so a child: zeros in it would hide its parent where the source has holes; what an earlier run
 * left there came from the same source, which has not changed, and is written once more).  What is no image
 * of this size any more, is damaged, no child of the parent, or not as promised is of no use: that is told,
 * *target is NULL, and the frontier 0.  A medium that does not answer is an error.  Of `how` counts how to
 * stop, and what to do about what cannot be read. */
bool checkpoint_take_up(struct checkpoint *done, const struct job *job, const struct checkpoint_target *left,
                        const struct copy_options *how, struct image **target, GError **error);

/* Copies from the frontier to the end, with checkpoints.  `how` has all but where to begin; its callbacks are
 * told what all runs did.  The counters of the disk's report, too, and of done->before. */
bool checkpoint_copy(struct checkpoint *done, const struct job *job, unsigned index, struct chain *source,
                     struct image *target, const struct copy_options *how, struct disk_report *report,
                     GError **error);

/* What that has of one file, whose storage has this identity; the caller's. */
char *checkpoint_file_identity(const char *identity, const struct stat *st);
/* How the journal recognises that a source did not change: identity, size and mtime of every layer; a device
 * has no mtime that means anything, `*certain` is false then.  An error if one of them lost its name to
 * another file. The caller's. */
char *checkpoint_source_identity(const struct chain *chain, bool *certain, GError **error);

#endif
