/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What block devices do in their own way; mostly for file.c. */
#ifndef BLOCKMIG_STORAGE_DEVICE_H
#define BLOCKMIG_STORAGE_DEVICE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

/* All return 0 or an errno. */
int device_size(int fd, uint64_t *size);
int device_sector_size(int fd, uint32_t *sector_size);
/* The device is there but takes no writes, which open() does not tell. */
int device_is_readonly(int fd, bool *readonly);
/* Until the host is booted, for everybody who opens it by this name or another. */
int device_set_readonly(int fd, bool readonly);
/* Zeros by the device itself, or by the kernel for it.  EOPNOTSUPP: it must be written.  The range is a
 * multiple of the sector size. */
int device_zero(int fd, uint64_t offset, uint64_t length, bool may_unmap);
int device_discard(int fd, uint64_t offset, uint64_t length);

/* Do two different objects, of which at least one is a device, share bytes: a disk and its partition, a loop
 * device and the file under it?  false also where this host does not tell. */
bool device_overlaps(const struct stat *a, const struct stat *b);

/* The multipath map of which the device with this directory in sysfs is one path, or whose disk is: "mpatha";
 * NULL: of none.  The caller's. */
char *device_multipath_map(const char *sysfs);
/* What the device with this directory in sysfs is called on every host that reaches it: the name of its unit
 * (WWN, VPD page 83h), "naa.6001405..."; of a partition with its place, of a logical volume with its own UUID
 * and what it lies on.  NULL: it has no name that no other device in the world has.  The caller's. */
char *device_unit_name(const char *sysfs);
/* The same of a device that was opened; where there is none, what only this running kernel can say:
 * "block:7:1 of boot UUID". */
char *device_identity(const struct stat *st);
/* REFUSED if the device, or the disk of this partition, is one path of a multipath map: what is written by
 * one path alone is lost with it, and the others know nothing of it. */
bool device_is_no_path(const struct stat *st, GError **error);
/* What the system uses a busy device for, for a message: "mounted at /srv, part of dm-3 (vg-lv)".  The
 * caller's. */
char *device_users(const struct stat *st);

#endif
