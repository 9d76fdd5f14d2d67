/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* From options and arguments to what a job is asked for. */
#ifndef TOOLS_REQUESTS_H
#define TOOLS_REQUESTS_H

#include "blockmig/migrate/job.h"
#include "tools/options.h"

/* USAGE errors if the options do not go with it. */
struct copy_request *requests_copy(const struct options *options, const char *source, const char *target,
                                   GError **error);
struct move_request *requests_move(const struct options *options, const char *machine, const char *target,
                                   GError **error);

struct move_request *requests_migrate(const struct options *options, const char *machine, const char *target,
                                      GError **error);

#endif
