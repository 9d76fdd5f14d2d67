/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Merging an image into the layer below it, while no machine uses either.
 *
 * What the image holds, zeros included, is written into its parent; what it does not hold is the parent's
 * already.  The image itself is not changed, and it goes on hiding what is merged: whenever the merge
 * is killed, image and parent still show the disk, and the merge can be run again.
 */
#ifndef BLOCKMIG_MIGRATE_COMMIT_H
#define BLOCKMIG_MIGRATE_COMMIT_H

#include "blockmig/migrate/job.h"

struct commit_request {
    const char *overlay;
    const char *format;                        /* NULL: probe it */
    const char *const *parents, *const *roots; /* as given, NULL-terminated */
    uint64_t bandwidth;                        /* bytes per second; 0: no limit */
    enum verify_mode verify;
    bool delete_overlay; /* once it is proved */
    bool dry_run;
};

struct commit_report {
    char *overlay, *parent; /* real paths; NULL: not known yet */
    const char *overlay_format, *parent_format;
    uint64_t size;
    uint64_t data, zeros; /* guest bytes that the overlay holds */
    struct copy_counters counters;
    bool deleted;
};

/* Fills `report` also on failure.  REFUSED, before anything is changed: in use, no parent, a parent that
 * cannot be written or is too small. */
bool commit_run(const struct commit_request *request, const struct job_listener *listener,
                struct commit_report *report, GError **error);
void commit_report_clear(struct commit_report *report);

#endif
