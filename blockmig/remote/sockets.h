/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Sockets that an agent listens at. */
#ifndef BLOCKMIG_REMOTE_SOCKETS_H
#define BLOCKMIG_REMOTE_SOCKETS_H

#include <glib.h>
#include <stdbool.h>

/* A Unix socket for this user and root, in the place of one that nobody answers at.  -1: REFUSED if somebody
 * does, USAGE, IO. */
int socket_local(const char *path, GError **error);
/* "ADDRESS:PORT", "[ADDRESS]:PORT", "ADDRESS": adds descriptors, which are the caller's after an error, too.
 * USAGE, IO. */
bool sockets_listen(const char *text, GArray *sockets, GError **error);
/* One that somebody else has opened: is it fit for an agent?  *local: a Unix socket.  USAGE. */
bool socket_inspect(int fd, bool *local, GError **error);

#endif
