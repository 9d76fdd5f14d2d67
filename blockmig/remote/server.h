/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The agent: an HTTP server for the files of its datastores.  tools/blockmig-agent.yaml says what can be
 * asked.
 *
 * Each connection has a thread, for what is asked takes its time on a disk.
 */
#ifndef BLOCKMIG_REMOTE_SERVER_H
#define BLOCKMIG_REMOTE_SERVER_H

#include "blockmig/remote/server-config.h"

struct server;

/* Opens the sockets, so that the process can give up what it needed for that; or takes those that it was
 * started with, which are then its own.  USAGE, REFUSED if another agent has a socket, IO. */
struct server *server_open(struct agent_config *config, const int *inherited, unsigned count, GError **error);
/* Answers from now on, in threads. */
bool server_start(struct server *server, GError **error);
/* From now on this holds, and the certificates as they are now: for new connections, and for the next request
 * on old ones.  Only one thread may do this.  USAGE, or REFUSED for what cannot change while it runs; then
 * all stays as it was. */
bool server_change(struct server *server, struct agent_config *config, GError **error);
/* From now on nobody is let in, and whoever is in is told to come back later (503); what was asked before is
 * done and answered. */
void server_begin_end(struct server *server);
/* Are there requests that were not answered yet? */
bool server_is_busy(struct server *server);
/* Ends all connections; what is being done on a disk comes to its end, and all files are closed. NULL is
 * allowed. */
void server_close(struct server *server);

#endif
