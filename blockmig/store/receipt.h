/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Receipts: the proof of a move as a JSON file that anyone can check later.
 *
 * Written to a temporary name in the same directory, fsynced and renamed. Digests stand in
 * runs of consecutive non-zero chunks, so that the file grows with data; the writer and the reader work
 * in bounded memory beyond the digest table itself (a run is at most 256 chunks).
 */
#ifndef BLOCKMIG_STORE_RECEIPT_H
#define BLOCKMIG_STORE_RECEIPT_H

#include "blockmig/copy/copy.h"

struct receipt {
    char *job, *command, *method;
    char *source, *target, *source_format, *target_format;
    char *verified;            /* "full", "written", "none" */
    int64_t started, finished; /* microseconds since the epoch */
    uint64_t size;
    bool layer; /* of one layer alone, holes as zeros; false: what the guest sees through the chain */
    struct copy_counters counters;
    GArray *bad;                  /* of struct copy_range (salvage), or NULL */
    struct digest_table *digests; /* owned */
};

/* The file is complete and durable under its name, or not there (what was there before stays). */
bool receipt_write(const struct receipt *receipt, const char *path, GError **error);
/* Every number and string is checked, what is unknown is skipped, absurd sizes are REFUSED as anything
 * malformed is; the root must match the chunks: DIFFERENT if it does not. */
struct receipt *receipt_read(const char *path, GError **error);
void receipt_free(struct receipt *receipt);

typedef struct receipt receipt_t; /* for g_autoptr only */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(receipt_t, receipt_free)

#endif
