/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* From a name to the one object that is checked and then opened; used by file.c alone. */
#ifndef BLOCKMIG_STORAGE_RESOLVE_H
#define BLOCKMIG_STORAGE_RESOLVE_H

#include <glib.h>
#include <stdbool.h>
#include <sys/stat.h>

/* A descriptor (O_PATH, or of the file just created) from which /proc/self/fd/N opens the object again; -1 on
 * error.  Only regular files and block devices; with `roots` only regular files that lie beneath one
 * of them.  `create` as FILE_CREATE, never together with `roots`.  *real_path: where it is, without symbolic
 * links; owned by the caller.
 */
int resolve_open(const char *path, bool create, const char *const *roots, struct stat *st, char **real_path,
                 GError **error);

#endif
