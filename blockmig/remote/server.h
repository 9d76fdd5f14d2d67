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

/* Opens the sockets, so that the process can give up what it needed for that.  Borrows `config`. */
struct server *server_open(const struct agent_config *config, GError **error);
/* Answers from now on, in threads. */
bool server_start(struct server *server, GError **error);
/* Ends all connections; what is being done on a disk comes to its end, and all files are closed. NULL is
 * allowed. */
void server_close(struct server *server);

#endif
