/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Is there room? Asked before anything is written. */
#ifndef BLOCKMIG_MIGRATE_SPACE_H
#define BLOCKMIG_MIGRATE_SPACE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

struct space_report {
    uint64_t available;        /* bytes that this process may still write there, quotas included */
    uint64_t available_inodes; /* UINT64_MAX: not limited */
    uint64_t total;            /* of the file system or device */
    const char *limit;         /* what sets `available`: "file system", "user quota", "group quota",
                                * "project quota", "device" */
};

/* `path` is a directory (or a file in it that may not exist yet) or a block device.  Fills `report` whenever
 * the question could be asked; REFUSED, with needed and available, if the bytes or inodes do not fit, or if
 * a device is smaller than `bytes`. */
bool space_check(const char *path, uint64_t bytes, unsigned inodes, struct space_report *report,
                 GError **error);

/* The same for what is `size` bytes large and stays so, whatever it is. */
bool space_check_device(const char *name, uint64_t bytes, uint64_t size, struct space_report *report,
                        GError **error);

/* Are there quotas for new files here that the kernel tells only to who has CAP_SYS_ADMIN? */
bool space_needs_admin(const char *path);

/* May one file in this directory (or at this path) become `size` bytes long? Always true for a block device.
 * REFUSED with the limit if the file system or a resource limit of this process says no, or if no file can be
 * created there.  Leaves nothing behind. */
bool space_check_file_size(const char *directory, uint64_t size, GError **error);

#endif
