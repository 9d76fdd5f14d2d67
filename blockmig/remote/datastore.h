/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Files of a datastore by their names.  A name is a path below the datastore's directory; nothing outside of
 * it is ever reached: no "..", no link, no device, no second name of a file.
 *
 * Errors: USAGE for what is no name, REFUSED for what may not be, else as the system says.
 */
#ifndef BLOCKMIG_REMOTE_DATASTORE_H
#define BLOCKMIG_REMOTE_DATASTORE_H

#include "blockmig/remote/server-config.h"
#include "blockmig/storage/names.h"
#include "formats/storage.h"

/* `flags` of enum file_flags. */
struct storage *datastore_open(const struct agent_datastore *datastore, const char *name, unsigned flags,
                               GError **error);
bool datastore_look(const struct agent_datastore *datastore, const char *name, struct name_info *info,
                    GError **error);
bool datastore_remove(const struct agent_datastore *datastore, const char *name, GError **error);
/* As name_take(). */
bool datastore_rename(const struct agent_datastore *datastore, const char *from, const char *to,
                      const char *replaces, bool *taken, GError **error);

#endif
