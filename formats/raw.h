/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Guest offset == host offset: raw, and what other formats keep in the same way.  Callbacks of struct format.
 */
#ifndef FORMATS_RAW_H
#define FORMATS_RAW_H

#include "formats/image.h"

bool raw_map(struct image *image, uint64_t offset, uint64_t length, struct extent *out, size_t max,
             size_t *count, GError **error);
bool raw_place(struct image *image, uint64_t offset, uint64_t length, GArray *placements, GError **error);
bool raw_zero(struct image *image, uint64_t offset, uint64_t length, uint64_t *done_offset,
              uint64_t *done_length, GError **error);
bool raw_flush(struct image *image, GError **error);

#endif
