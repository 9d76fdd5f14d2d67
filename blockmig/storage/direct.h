/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Reads and writes past the page cache, where a storage can that, and through it where it cannot.  They wait
 * for the medium; any thread may call them.
 */
#ifndef BLOCKMIG_STORAGE_DIRECT_H
#define BLOCKMIG_STORAGE_DIRECT_H

#include "formats/storage.h"

/* Can O_DIRECT take this?  `storage` may be NULL: no. */
bool direct_fits(const struct storage *storage, const void *buffer, size_t length, uint64_t offset);

/* How a range falls apart for O_DIRECT: an aligned middle with what is before and behind it.  All in the
 * first part if memory and offset do not fit together; parts may be empty. */
struct split {
    size_t head, middle, tail;
};
struct split split_range(const struct storage *storage, const void *memory, size_t length, uint64_t offset,
                         size_t unit);

/* Any alignment.  `past_cache`: from the medium also where there is no O_DIRECT: drops the range from the
 * cache.
 */
bool direct_read(struct storage *storage, void *buffer, size_t length, uint64_t offset, bool past_cache,
                 GError **error);
/* Any alignment; as far as O_DIRECT can, and the rest through the page cache.  Who writes parts of one page
 * both ways loses some of them: see split_range(). */
bool direct_write(struct storage *storage, const void *buffer, size_t length, uint64_t offset,
                  GError **error);

#endif
