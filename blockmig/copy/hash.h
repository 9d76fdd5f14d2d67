/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The digests of what one load holds: at once where that is cheap, in a thread where it is not. */
#ifndef BLOCKMIG_COPY_HASH_H
#define BLOCKMIG_COPY_HASH_H

#include "blockmig/copy/reader.h"

struct hash {
    struct ring_op op;
    const struct load *load;
    const struct digest_table *table; /* says the algorithm; NULL: only `zero` is found out */
    bool zero[SLOT_CHUNKS];
    uint8_t digest[SLOT_CHUNKS][DIGEST_MAX_LENGTH]; /* of the chunks that are not zero */
    void (*ready)(struct hash *hash);
};

/* The load is complete and begins at a chunk.  ready() may come before this returns. */
void hash_start(struct hash *hash, const struct load *load, const struct digest_table *table,
                void (*ready)(struct hash *hash));
void hash_store(const struct hash *hash, struct digest_table *table);

#endif
