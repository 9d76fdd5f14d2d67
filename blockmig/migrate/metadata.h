/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Owner, group, mode, POSIX ACL and extended attributes of one file onto another. */
#ifndef BLOCKMIG_MIGRATE_METADATA_H
#define BLOCKMIG_MIGRATE_METADATA_H

#include <glib.h>
#include <stdbool.h>

/*
 * Carries the metadata of the file behind descriptor `source` to the one behind `target`, and returns what
 * could not be carried: an array of char *, one phrase each ("owner 107: Operation not permitted"), never
 * NULL; owned by the caller.  Both must be regular files, otherwise nothing is carried: the owner of a device
 * node is the business of its host.  Not carried on purpose and not reported: times, security labels and
 * measurements (selinux, ima, evm), libvirt's and overlayfs' bookkeeping (trusted.libvirt.*,
 * trusted.overlay.*), and the system.* views of other kinds of ACL.
 */
GPtrArray *metadata_carry(int source, int target);
/* Has the file attributes to be carried that only who has CAP_SYS_ADMIN sees?  Others are not even told. */
bool metadata_needs_admin(const char *path);

#endif
