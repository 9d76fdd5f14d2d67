/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The names in a receipt, shared by who writes and who reads it. */
#ifndef BLOCKMIG_STORE_RECEIPT_INTERNAL_H
#define BLOCKMIG_STORE_RECEIPT_INTERNAL_H

#include "blockmig/store/receipt.h"

#define RECEIPT_SCHEMA     1
#define RECEIPT_RUN_CHUNKS 256
#define RECEIPT_MAX_BAD    2097152u /* ranges */

struct receipt_field {
    const char *name;
    size_t offset;
};

extern const struct receipt_field receipt_texts[];    /* char * in struct receipt; ends with a NULL name */
extern const struct receipt_field receipt_counters[]; /* uint64_t in struct copy_counters; likewise */

#endif
