/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The limit of a pause: at twice what was allowed the machine goes on where it was, whatever we are doing.
 *
 * What is done in a pause can hang in one read, write or fsync of a slow medium, so the limit has a thread of
 * its own.
 */
#ifndef BLOCKMIG_MIGRATE_PAUSE_H
#define BLOCKMIG_MIGRATE_PAUSE_H

#include <glib.h>
#include <stdbool.h>

struct pause_limit;

/* `begin`: when the machine stopped, monotonic; `allowed`: milliseconds.  When the limit comes before
 * pause_limit_end(), `give_up` is called in the limit's thread: it lets the machine go on. */
struct pause_limit *pause_limit_begin(int64_t begin, unsigned allowed, void (*give_up)(void *opaque),
                                      void *opaque);
/* From its return on nothing is given up any more. PARKED: it was, or is to be, as the limit has come; that
 * takes the place of what `error` has.  NULL is allowed: there is no limit. */
bool pause_limit_end(struct pause_limit *limit, GError **error);

#endif
