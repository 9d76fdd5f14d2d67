/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* DMG images of macOS (UDIF), which QEMU reads for us: is it what stands in them that it would read? */
#ifndef BLOCKMIG_STORAGE_DMG_H
#define BLOCKMIG_STORAGE_DMG_H

#include "formats/storage.h"

/* REFUSED, with field and value, for what QEMU 7.2 reads as something else without a word: raw chunks that
 * are shorter than their sectors or lie outside the file show what it had in memory before.  Also for what it
 * could only fail at in the middle of a copy: sectors without a chunk, and compressions that it does not
 * know. */
bool dmg_check(struct storage *file, GError **error);

#endif
