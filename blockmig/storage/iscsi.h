/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Units of iSCSI targets as storages, by libiscsi: without root, and without the kernel's initiator. */
#ifndef BLOCKMIG_STORAGE_ISCSI_H
#define BLOCKMIG_STORAGE_ISCSI_H

#include "formats/storage.h"

/*
 * Opens what `uri` names (blockmig/storage/iscsi-address.h); of `flags` FILE_WRITE counts.  A unit is as
 * large as it is, and full of whatever was there before.
 *
 * Zeros are guaranteed: by WRITE SAME, which unmaps where the unit promises that unmapped blocks read as
 * zeros; by UNMAP only as far as the unit then says that blocks are unmapped; else by writing them.
 *
 * UNREACHABLE: nobody there, or lost and not back in time.  A unit that was reset while what it had answered
 * was not flushed fails the next flush: it may be gone.
 *
 * If this host has registered its key with the unit (blockmig/storage/reservation.h), a session that writes
 * registers it too, so that it may write where the host may.
 */
struct storage *storage_iscsi_open(const char *uri, unsigned flags, GError **error);

#endif
