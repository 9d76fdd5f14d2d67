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
/* Checks the last stretch before the frontier against its digests, on the medium; takes `written`, which was
 * opened anew.  If it is not as promised, that is told and the frontier becomes 0. */
bool checkpoint_prove(struct checkpoint *done, const struct job *job, struct image *written,
                      const struct copy_options *how, GError **error);
/* What an earlier run left: `opened` for writing (taken), or the `failure` to do so (taken).  What is no
 * image of this size any more, has damaged tables or is no child of `parent` (NULL: need not be one) is of no
 * use: *why says so then, and *target is NULL.  A medium that does not answer is an error. */
bool checkpoint_use_target(struct image *opened, GError *failure, uint64_t size, struct image *parent,
                           struct image **target, char **why, GError **error);
/* From the frontier on the target becomes as it was when it was created.  `preallocation` of its options, or
 * NULL.  Not so a child: zeros in it would hide its parent where the source has holes; what an earlier run
 * left there came from the same source, which has not changed, and is written once more. */
bool checkpoint_empty_rest(const struct checkpoint *done, struct image *target, uint64_t size,
                           const char *preallocation, bool device, GError **error);

/* How the journal recognises that a source did not change: identity, size and mtime of every layer; a device
 * has no mtime that means anything, `*certain` is false then.  An error if one of them lost its name to
 * another file. The caller's. */
char *checkpoint_source_identity(const struct chain *chain, bool *certain, GError **error);

#endif
