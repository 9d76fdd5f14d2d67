/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Bulk reads and writes of an agent: whole pages go past the page cache where the file can that, the rest
 * through it, where parts of one page get on with each other.
 */
#ifndef BLOCKMIG_REMOTE_MEDIUM_H
#define BLOCKMIG_REMOTE_MEDIUM_H

#include "formats/storage.h"

#define MEDIUM_ALIGNMENT 4096 /* of buffers */

/* `data` is aligned. */
bool medium_write(struct storage *storage, const uint8_t *data, size_t length, uint64_t offset,
                  GError **error);
/* `buffer` is aligned.  `proved`: what the medium holds, not what the page cache thinks it does, also where
 * that costs more. */
bool medium_read(struct storage *storage, uint8_t *buffer, size_t length, uint64_t offset, bool proved,
                 GError **error);

#endif
