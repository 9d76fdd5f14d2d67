/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What an older file has of a newer one's content, at other places: for files whose content shifts, by
 * librsync's signatures.  Nothing that is found is certain; who uses it compares digests.
 */
#ifndef BLOCKMIG_STORAGE_SHIFT_H
#define BLOCKMIG_STORAGE_SHIFT_H

#include "formats/chain.h"

#define SHIFT_LARGEST    (UINT64_C(8) << 30) /* file */
#define SHIFT_PART       (64u << 20)         /* bytes whose signature is made in one go, at most */
#define SHIFT_HEADER     12u /* of a signature: magic, length of a block, and of its hash, big-endian */
#define SHIFT_HASHES     20u /* behind it, of each block */
#define SHIFT_SMALLEST   2048u
#define SHIFT_BLOCK_MOST (256u << 10)

/* The length of the blocks that a file of this size is cut into. */
uint32_t shift_block(uint64_t size);
/* Of a range inside the storage, in blocks of this length; the caller's. Those of ranges that follow each
 * other and end with a block, without their headers one behind the other, are that of all of them. */
GByteArray *shift_signature(struct storage *storage, uint64_t offset, uint64_t length, uint32_t block,
                            GError **error);

/* Reads all of `chain` and returns a chain of its size, the caller's, whose data are those parts of it that
 * the file `seed` with this signature has, where it has them.  Takes `seed` in every case; it is never read.
 * `cancelled` may be NULL; then CANCELLED. */
struct chain *shift_find(struct chain *chain, struct storage *seed, const GByteArray *signature,
                         bool (*cancelled)(void *opaque), void *opaque, GError **error);

#endif
