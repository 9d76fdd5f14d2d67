/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Reads all data of a disk, many slots at a time, in no order.  Inside blockmig/copy only. */
#ifndef BLOCKMIG_COPY_SCAN_H
#define BLOCKMIG_COPY_SCAN_H

#include "blockmig/copy/hash.h"

struct scan {
    struct copier copier;
    struct reader reader;
    const struct digest_table
        *table; /* for the algorithm: slots are digested; NULL: only looked at for zeros */
    uint64_t begin, end;
    /* Once for every slot that has data; failures go to copier_fail(). */
    void (*visit)(struct scan *scan, const struct hash *hash);
    void *opaque;

    uint64_t position; /* the walk's own */
    struct scan_slot *planned;
    unsigned slots;
};

/* copier and reader are initialised.  Fails with what failed the copier. */
bool scan_run(struct scan *scan, GError **error);

#endif
