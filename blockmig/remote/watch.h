/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Cuts off clients that hold a connection of TCP and do nothing with it.
 *
 *   waiting   for the whole head of the first request: for the patience of the agent
 *   moving    a body or an answer: some KiB in every patience, by the kernel's account
 *   working   the agent is, on a disk: for as long as that takes
 *   idle      between requests: for five minutes, to the whole head of the next one
 *   free      of all this, for good: a tunnel is silent as long as both sides are
 *
 * Any thread may call.
 */
#ifndef BLOCKMIG_REMOTE_WATCH_H
#define BLOCKMIG_REMOTE_WATCH_H

#include <glib.h>

enum watch_state { WATCH_WAITING, WATCH_MOVING, WATCH_WORKING, WATCH_IDLE, WATCH_FREE };

#define WATCH_IDLE_SECONDS 300

struct watch;   /* of all connections */
struct watched; /* one of them */

/* In a thread of its own. */
struct watch *watch_new(void);
void watch_free(struct watch *watch); /* once nothing is watched any more; NULL is allowed */
void watch_patience(struct watch *watch, unsigned seconds);

/* `fd` stays open until watch_remove(). */
struct watched *watch_add(struct watch *watch, int fd);
/* NULL is allowed. */
void watch_remove(struct watch *watch, struct watched *watched);
void watch_note(struct watch *watch, struct watched *watched, enum watch_state state);

#endif
