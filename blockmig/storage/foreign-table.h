/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Images whose tables QEMU believes: what lies behind the end of the file it reads as zeros, without a word.
 */
#ifndef BLOCKMIG_STORAGE_FOREIGN_TABLE_H
#define BLOCKMIG_STORAGE_FOREIGN_TABLE_H

#include "formats/storage.h"

/* REFUSED, with field and value, if the disk is not whole in the file. */
bool parallels_check(struct storage *file, GError **error);
bool bochs_check(struct storage *file, GError **error);

#endif
