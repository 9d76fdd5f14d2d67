/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* May a disk be written in place, over what lies there?  All refusals are REFUSED. */
#ifndef BLOCKMIG_MIGRATE_PLACE_H
#define BLOCKMIG_MIGRATE_PLACE_H

#include "formats/chain.h"

/* Nothing lies on the target that somebody may miss. */
bool place_is_empty(struct storage *target, GError **error);
/* A raw disk with a partition table is put where the table's sectors are those of the device. */
bool place_fits_sectors(struct chain *source, const struct storage *target, GError **error);

#endif
