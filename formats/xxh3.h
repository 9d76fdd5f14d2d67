/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* XXH3-128, as digests of content have it everywhere: in receipts, in frames to agents, of ranges. */
#ifndef FORMATS_XXH3_H
#define FORMATS_XXH3_H

#include <stddef.h>
#include <stdint.h>

#define XXH3_DIGEST 16u /* bytes */

/* In its canonical (big-endian) form.  Thread-safe. */
void xxh3_digest(const void *data, size_t length, uint8_t *digest);

#endif
