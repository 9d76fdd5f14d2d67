/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What each command may open.  To be called when all names from the command line are known, before a thread
 * is started and before the first byte of an image is read; see blockmig/storage/sandbox.h.  With -v it is
 * said on standard error how far the kernel confines the process.
 */
#ifndef TOOLS_CONFINE_H
#define TOOLS_CONFINE_H

#include "blockmig/migrate/job.h"
#include "tools/options.h"

/* info, map, verify: reads the images that are the arguments, and a receipt. */
bool confine_look(const struct options *options, GError **error);
/* copy, plan copy, job resume: reads the source, writes the target and the state directory. */
bool confine_copy(const struct options *options, const struct copy_request *request, bool dry_run,
                  GError **error);
/* create: reads the parents, makes the first argument. */
bool confine_create(const struct options *options, GError **error);
/* commit: writes into the parent, which may be any of the images that can be read. */
bool confine_commit(const struct options *options, GError **error);

#endif
