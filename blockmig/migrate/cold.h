/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Inside the cold method: what its phases share.  One file per phase; job.c runs them.
 *
 * A unit is one image to be written.  It grows under "NAME.blockmig-part" and takes its name only when it is
 * whole and proven, so a half-copied disk never carries the target's name.  A block device has no such name:
 * it is written in place.
 */
#ifndef BLOCKMIG_MIGRATE_COLD_H
#define BLOCKMIG_MIGRATE_COLD_H

#include "blockmig/migrate/checkpoint.h"

#include <inttypes.h>

/* A file of a unit. */
struct unit_file {
    char *target_path;        /* final name, or the device */
    char *part_path;          /* where it grows */
    struct storage *replaced; /* the file that has the name now, locked; or NULL */
    uint64_t longest;         /* of a file that holds data: bytes that it has at most */
};

struct copy_unit {
    unsigned index;      /* in the journal; units are copied in this order, the base first */
    char *what;          /* "disk.qcow2" or "layer 1 of 3: base.qcow2" */
    struct chain *chain; /* what is copied: all layers as one, or one layer with its holes; that one in units
                          * of the target's, which has the rest of each from the layers below */
    bool layer;
    struct chain *below; /* what lies under the layer in the source, for filling up clusters; NULL: nothing */
    char *source_path;   /* of the topmost image in it */
    char *source_identity; /* see checkpoint_source_identity() */
    GPtrArray *files;      /* of struct unit_file *: the image itself, then those that hold its data */
    char *target_path;     /* of the image itself: borrowed from there */
    char *part_path;
    char *name;        /* final, without directory */
    bool device;       /* written in place: a block device, or what a URI names */
    uint64_t capacity; /* of such */
    const struct format *format;
    GHashTable *options;                 /* create options */
    char *backing_name, *backing_format; /* to be recorded in the image, or NULL */
    uint64_t data;                       /* guest bytes that hold data */
    uint64_t needed;                     /* bytes that the target storage will hold at most */

    /* while it is being written */
    struct image *target;
    struct checkpoint done;

    struct disk_report *report; /* borrowed from the job's report */
};

struct cold_job {
    struct job base; /* must be first */
    const struct copy_request *request;
    struct journal_job
        *given_up;        /* an unfinished job for the same target, which this one replaces; or NULL */
    GPtrArray *units;     /* of struct copy_unit */
    struct chain *source; /* open until the end: its locks keep writers away */
    struct chain *seed;   /* without locks: whoever uses it may go on; or NULL */
    GPtrArray *deleted;   /* of struct journal_disk: copies whose source an earlier run deleted; then there
                           * are no units and no source; or NULL */
};

static inline struct cold_job *cold_of(struct job *base)
{
    return (struct cold_job *)base;
}

bool cold_preflight(struct job *base, GError **error);
bool cold_base(struct job *base, GError **error);
bool cold_prove(struct job *base, GError **error);
bool cold_cleanup(struct job *base, GError **error);
/* prove.c: the source is what it was in preflight, as far as that can be told: before a copy is called
 * proved, and before the source is deleted. */
bool cold_check_sources(const struct cold_job *job, GError **error);
/* cleanup.c: DIFFERENT if a finished copy has zeros where the source could not be read. */
bool cold_tell_bad(const struct cold_job *job, GError **error);

/* target.c: fills job->units from the request and the open source chain.  REFUSED and USAGE errors. */
bool cold_choose_targets(struct cold_job *job, GError **error);
/* The name that is asked for, of the topmost image; the caller's.  `*device`: it is written in place. */
char *cold_place_to_write(const struct copy_request *request, bool *device, GError **error);
/* seed.c: opens what the request names as a seed, if it does.  REFUSED and USAGE errors. */
bool cold_open_seed(struct cold_job *job, GError **error);
/* May what the seed has be at other places of the unit?  A disk keeps its size, a file whose content shifts
 * hardly does. */
bool cold_seed_shifts(const struct cold_job *job, const struct copy_unit *unit);
/* Then it is searched for: job->seed has what is found at its new places.  CANCELLED; anything else is a
 * notice. */
bool cold_shift_seed(struct cold_job *job, const struct copy_unit *unit, bool (*cancelled)(void *opaque),
                     void *opaque, GError **error);
/* resume.c: finds what an earlier run left for these targets and decides: nothing, go on with it
 * (job->base.record, unit->done.frontier, digests, ...), or it is already done (job->base.already_there). */
bool cold_look_for_earlier_run(struct cold_job *job, GError **error);
/* As if there had been no earlier run. */
void cold_forget_units(struct cold_job *job);
/* What is there was proven, and the job is `record`, which it takes: all that follows is to prove it again.
 */
bool cold_adopt_record(struct cold_job *job, struct journal_job *record, GError **error);
/* As checkpoint_first_difference(), from the beginning; what cannot be read and is salvaged counts as the
 * zeros that stand for it. */
bool cold_first_difference(const struct cold_job *job, struct copy_unit *unit, struct chain *chain,
                           uint64_t to, uint64_t *differs, GError **error);

/* How the intent begins to delete a file of the source. */
#define COLD_DELETES "delete "
/* And the one that says in which directory they are: its life. */
#define COLD_DELETES_IN "source in "
/* deleted.c: sets job->deleted, and the job's record with it, if the source is not there because an earlier
 * run was stopped behind that; proves those copies by their receipts; and does the rest. */
bool cold_look_for_deleted(struct cold_job *job, GError **error);
bool cold_prove_deleted(struct cold_job *job, GError **error);
bool cold_finish_deletion(struct cold_job *job, GError **error);

/* unit-files.c */
/* Takes ownership of `target_path`. */
void unit_set_target(struct copy_unit *unit, char *target_path, bool device);
/* Once format, options and backing are known: which other files the image will have. */
bool unit_plan_files(struct copy_unit *unit, GError **error);
struct image_create_options unit_create_options(const struct copy_unit *unit);
/* Creates all files of the unit, and has the image open for writing. */
struct image *unit_create_parts(const struct cold_job *job, const struct copy_unit *unit,
                                const struct image_create_options *options, GError **error);
/* All files of the unit for writing. */
struct image *unit_open_parts(const struct copy_unit *unit, GError **error);
/* Opens what the unit has written so far once more, read-only, past everything that is in memory. */
struct image *cold_reopen(const struct copy_unit *unit, GError **error);
/* Where the file grows that will be `target`; the caller's. */
char *unit_part_path(const char *target);

/* given-up.c */
/* Told to the journal: the directory of the unit's files; a part, as long as it is empty; and a file before
 * it takes its final name. */
bool cold_tell_place(const struct cold_job *job, const struct copy_unit *unit, GError **error);
bool cold_tell_part(const struct cold_job *job, const char *path, GError **error);
bool cold_tell_name(const struct cold_job *job, const struct unit_file *file, GError **error);
/* Is it the file that got this name from the job, unchanged since? */
bool cold_has_named(struct journal *journal, const struct journal_job *record, const char *path);
/* FAILED if a directory that the job wrote to is gone, or another one has its name: what it left cannot be
 * found. */
bool cold_check_places(struct journal *journal, const struct journal_job *record, GError **error);
/* Remove what has its name from an unfinished job, and its parts.  `stays` (of char *) gets what is not known
 * to be the job's. */
bool cold_remove_named(struct journal *journal, const struct journal_job *record, GPtrArray *stays,
                       GError **error);
bool cold_remove_parts(struct journal *journal, const struct journal_job *record, GPtrArray *stays,
                       GError **error);

/* base.c: what the unit will be a child of: the layer that was copied before it (NULL: it was not yet), or
 * the one that stays where it is. */
struct image *cold_parent_of(const struct cold_job *job, const struct copy_unit *unit);
/* What the journal knows of a unit; its receipt once there is one. */
bool cold_save_disk(struct cold_job *job, const struct copy_unit *unit, GError **error);
void copy_unit_free(struct copy_unit *unit);
/* Options for the copier that every pass of this job shares. */
void cold_copy_options(const struct cold_job *job, struct copy_options *options);

#endif
