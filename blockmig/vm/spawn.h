/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Processes that outlive us: our own program again. */
#ifndef BLOCKMIG_VM_SPAWN_H
#define BLOCKMIG_VM_SPAWN_H

#include <glib.h>
#include <stdbool.h>
#include <sys/types.h>

#define SPAWN_FIRST 3 /* descriptor */

/*
 * By exec of our own program and not by a fork alone: threads, rings and locked images are not for it.  It
 * gets a session of its own, no blocked signals, /dev/null for the first three descriptors, and the `count`
 * of `fds` as SPAWN_FIRST and those that follow; nothing else is open, for an image that it held open would
 * stay locked.
 */
bool spawn_self(char *const argv[], const int *fds, unsigned count, pid_t *pid, GError **error);

#endif
