/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The keeper of a failback window: our own program again, in a session of its own, that sleeps until the
 * window ends and then closes it.  Meanwhile it holds the image locks of what is frozen on both sides.  The
 * journal knows it; if it dies, the window is overdue some time, and closed by the next command.
 */
#ifndef BLOCKMIG_MIGRATE_KEEPER_H
#define BLOCKMIG_MIGRATE_KEEPER_H

#include "blockmig/migrate/phase.h"

/* A program that runs moves is also what keeps their windows: its main() must ask this first. */
bool keeper_wanted(int argc, char **argv);
int keeper_main(char **argv);
/* Returns when the keeper is there.  A job that waits for nothing, or has a keeper, gets none. */
void keeper_start(const struct job *job);
/* Ends it, unless it is this process. */
void keeper_end(const struct journal_window *window);

#endif
