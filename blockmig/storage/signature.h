/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What lies on a storage that is about to be overwritten, as the system's own tools (libblkid) know it. */
#ifndef BLOCKMIG_STORAGE_SIGNATURE_H
#define BLOCKMIG_STORAGE_SIGNATURE_H

#include "formats/storage.h"

/* *what: "a file system (ext4 \"data\")", "a partition table (gpt)", "LVM2_member"..., or NULL: nothing that
 * is known. The caller's.  Errors are those of reading. */
bool signature_find(struct storage *storage, char **what, GError **error);

#endif
