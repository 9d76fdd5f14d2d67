/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Image locks: the byte ranges by which QEMU processes tell each other what they do to an image. */
#ifndef BLOCKMIG_STORAGE_LOCK_H
#define BLOCKMIG_STORAGE_LOCK_H

#include <glib.h>
#include <stdbool.h>

/* Takes the locks of a reader or a writer on an open file.  They last as long as the open file
 * description.  A conflict is a REFUSED error that names the lock; *supported becomes false, without an
 * error, where the file system has no locks. */
bool image_lock(int fd, bool writer, bool *supported, GError **error);
/* Does somebody hold the lock of a writer?  Where there are no locks nobody does. */
bool image_is_written(int fd);

#endif
