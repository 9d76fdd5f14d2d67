/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Running a copy or a move for the command line: listening to it, and printing its report. */
#ifndef TOOLS_JOB_OUTPUT_H
#define TOOLS_JOB_OUTPUT_H

#include "blockmig/migrate/job.h"
#include "tools/options.h"

/* Runs or plans the job and prints what came of it; returns the exit status. Only an error that left no
 * report (standard output) is returned in `error`. */
int job_output_copy(const struct options *options, const struct copy_request *request, bool dry_run,
                    GError **error);
int job_output_move(const struct options *options, const struct move_request *request, bool dry_run,
                    GError **error);
int job_output_window(const struct options *options, const struct window_request *request, GError **error);
/* Goes on with the unfinished move `id`. */
int job_output_resumed_move(const struct options *options, const struct move_request *request, const char *id,
                            GError **error);
/* Gives it up; prints no report. */
bool job_output_cancel_move(const struct options *options, const struct move_request *request, const char *id,
                            GError **error);

#endif
