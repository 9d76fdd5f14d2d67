/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One calm progress display on standard error.
 *
 * On a terminal one line is rewritten, at most five times a second.  Elsewhere there is a plain line every
 * five seconds if -v or --progress asks for it.  With -v each step begins with a line that stays.  SIGUSR1
 * gets one line at once, also under -q. No colours and no escape sequences are used, so NO_COLOR has nothing
 * to turn off.
 *
 * A thread of its own draws, so that a rate falls to zero when nothing moves any more.
 */
#ifndef TOOLS_PROGRESS_H
#define TOOLS_PROGRESS_H

#include "blockmig/migrate/job.h"
#include "tools/options.h"

struct progress;

struct progress *progress_new(const struct options *options);
/* A new step begins; `what` says more ("layer 2 of 3: base.qcow2") or is NULL. */
void progress_phase(struct progress *progress, const char *phase, const char *what);
/* Thread-safe; only keeps the numbers. */
void progress_update(struct progress *progress, const struct copy_counters *counters);
/* The same; what is not known is not shown. */
void progress_pace(struct progress *progress, const struct job_pace *pace);
/* A message that does not get mixed up with the line. */
void progress_message(struct progress *progress, const char *text);
/* Takes the line away; writes 100/100 to --progress=FD if all is done. NULL is allowed. */
void progress_end(struct progress *progress, bool done);

#endif
