/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What goes on around a move while it lasts: in the machine (live-watch.c) and on the datastores
 * (live-space.c).  Everything that polls hangs off live_watch(), which the copier's callbacks and
 * live_is_cancelled() call; nothing is looked at while the machine stands still.
 *
 *   goes on, and says so     reset, shutdown and panic of the guest; a machine that somebody stops or
 * continues (it is left as it is, in the switch too); an I/O error that is not for want of space waits for a
 * block job of somebody else, before the next change of the layers rolls back (exit 4)      a disk was
 * unplugged or resized; the source's datastore runs full parks (exit 5)           the target's datastore runs
 * full before the switch; after it the machine goes back touches nothing more     the monitor is gone (exit
 * 8); somebody changed the layers of a disk (exit 9)
 */
#ifndef BLOCKMIG_MIGRATE_LIVE_WATCH_H
#define BLOCKMIG_MIGRATE_LIVE_WATCH_H

#include "blockmig/migrate/live.h"

/* In the journal too, for whoever finds the machine standing still. */
#define LIVE_PAUSED_BY_OTHERS "somebody paused the machine: it stays so, and the move goes on"
#define LIVE_RUNS_AGAIN       "the machine runs again"

struct live_watch;

struct live_watch *live_watch_new(void);
void live_watch_free(struct live_watch *watch);

/* Looks, if it is time to.  False: the move must end, for live_watch_trouble(). */
bool live_watch(const struct live_job *job);
/* The same at once: before what cannot be taken back easily. */
bool live_watch_now(const struct live_job *job, GError **error);
const GError *live_watch_trouble(const struct live_job *job); /* NULL: none */
/* Takes it away, the caller's: what comes next is the way back, which it must not end. */
GError *live_watch_take_trouble(const struct live_job *job);
/* The monitor does not answer any more, and never will on this connection. */
bool live_watch_lost(const struct live_job *job);
/* As long as a block job of somebody else uses a disk of ours its layers cannot be changed.  `patience` in
 * seconds, 0: until it ends or we are cancelled. */
bool live_wait_for_others(const struct live_job *job, unsigned patience, GError **error);
/* The machine stopped itself because there was no space in our overlay. */
bool live_watch_starved(const struct live_job *job);

/* What the machine writes, by the growth of its overlays, in bytes per second of late; negative: not known.
 */
double live_watch_dirty_rate(const struct live_job *job);

/* For live-space.c: what must be known, said and written down; and the end of the move, if none is set yet.
 */
void live_watch_say(const struct live_job *job, const char *format, ...) G_GNUC_PRINTF(2, 3);
void live_watch_end(const struct live_job *job, enum blockmig_error code, const char *format, ...)
    G_GNUC_PRINTF(3, 4);

/* live-share.c: between begin and end what is copied leaves the machine its share of the disks. */
void live_share_begin(struct live_job *job);
void live_share_look(const struct live_job *job);
void live_share_end(struct live_job *job);

/* live-space.c */
struct live_space;
struct live_space *live_space_new(void);
void live_space_free(struct live_space *space);
void live_space_look(const struct live_job *job, struct live_space *space);
/* Only needs the names of the layers. */
void live_space_look_at_sources(const struct live_job *job, struct live_space *space);
double live_space_dirty_rate(const struct live_space *space);
/* Will the target's datastore hold what the machine writes until the move is over?  PARKED if not. */
bool live_space_allows_switch(const struct live_job *job, GError **error);

#endif
