/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "formats/xxh3.h"

#include <config.h>
#include <string.h>
#ifdef HAVE_XXH_DISPATCH
#include <xxh_x86dispatch.h>
#else
#include <xxhash.h>
#endif

void xxh3_digest(const void *data, size_t length, uint8_t *digest)
{
    XXH128_canonical_t canonical;

    XXH128_canonicalFromHash(&canonical, XXH3_128bits(data, length));
    memcpy(digest, canonical.digest, XXH3_DIGEST);
}
