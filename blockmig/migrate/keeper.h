/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The keeper of a move that waits: our own program again, in a session of its own.
 *
 * Of a failback window: it sleeps until the window ends and then closes it.  Meanwhile it holds the image
 * locks of what is frozen on both sides; of a domain nothing is.  The journal knows it; if it dies, the
 * window is overdue some time, and closed by the next command.
 *
 * Of a parked move: it watches the source's datastore until somebody goes on with the move, and gives the
 * move up when that runs full (live-parked.c).  If it dies, nobody does.
 *
 * What it has to tell goes into keeper.log, beside the journal.
 */
#ifndef BLOCKMIG_MIGRATE_KEEPER_H
#define BLOCKMIG_MIGRATE_KEEPER_H

#include "blockmig/migrate/phase.h"

/* A program that runs moves is also what keeps their windows: its main() must ask this first. */
bool keeper_wanted(int argc, char **argv);
int keeper_main(char **argv);
/* Returns when the keeper is there.  A job that waits for nothing, or has a keeper, gets none. */
void keeper_start(const struct job *job);
/* The job of a window that is open becomes this process's, and its keeper has ended, unless it is this
 * process.  USAGE: it has no window; REFUSED: that is closed, or somebody else is at it. */
bool keeper_take(struct job *base, const char *id, GError **error);

/* live-parked.c: returns when the parked move has to be given up, with the reason in `error`; false: when it
 * is not parked any more. */
bool parked_watch(struct journal *journal, struct journal_job *record, const struct job_listener *listener,
                  GError **error);
/* move_job_cancel() by the keeper, after which there is no other. */
struct job_report *parked_give_up(const struct move_request *request, const char *id,
                                  const struct job_listener *listener, GError **error);

#endif
