/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What an older file has of a newer one's content, at other places: for files whose content shifts, by
 * librsync's signatures.  Nothing that is found is certain; who uses it compares digests.
 */
#ifndef BLOCKMIG_STORAGE_SHIFT_H
#define BLOCKMIG_STORAGE_SHIFT_H

#include "formats/chain.h"

#define SHIFT_LARGEST   (UINT64_C(8) << 30) /* file: it is read in one go */
#define SHIFT_SIGNATURE (8u << 20)          /* bytes of one, at most */

/* Of all that the storage has; the caller's. REFUSED: it is too large. */
GByteArray *shift_signature(struct storage *storage, GError **error);

/* Reads all of `chain` and returns a chain of its size, the caller's, whose data are those parts of it that
 * the file `seed` with this signature has, where it has them.  Takes `seed` in every case; it is never read.
 * `cancelled` may be NULL; then CANCELLED. */
struct chain *shift_find(struct chain *chain, struct storage *seed, const GByteArray *signature,
                         bool (*cancelled)(void *opaque), void *opaque, GError **error);

#endif
