/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Signals of a command that runs long: the first SIGINT, SIGTERM or SIGHUP asks it to stop in order,
 * a second one ends the process at once; SIGUSR1 asks for a progress line; SIGPIPE is ignored, so that a
 * reader of --progress=FD that goes away does not end a copy.
 */
#ifndef TOOLS_SIGNALS_H
#define TOOLS_SIGNALS_H

#include <stdbool.h>

void signals_install(void);
bool signals_cancelled(void *opaque);  /* fits the `cancelled` callbacks; opaque is not used */
bool signals_take_progress_wish(void); /* was SIGUSR1 seen since the last call? */

#endif
