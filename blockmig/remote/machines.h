/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Tunnels to what receives machines on this host: "libvirt", its daemon's socket; or the name of a socket in
 * the directory of the group [machines], on which a hypervisor waits for a machine.  What comes from there is
 * the answer to one request, what goes there the body of another, and an id that the client makes up binds
 * them.
 */
#ifndef BLOCKMIG_REMOTE_MACHINES_H
#define BLOCKMIG_REMOTE_MACHINES_H

#include "blockmig/remote/server-config.h"

#include <microhttpd.h>

/* Makes the directory if it is not there, for this user alone, and removes sockets in it that nobody listens
 * to.  Makes that for the state of TPMs, too, if libvirt has not yet; where that cannot be, none are taken.
 */
bool machines_prepare(struct agent_machines *machines, GError **error);

struct tunnel;

/* Connects, under this id, for this client.  USAGE, REFUSED (there are too many) or UNREACHABLE; the
 * caller's. */
struct tunnel *tunnel_open(const struct agent_machines *machines, const char *name, const char *id,
                           const char *peer, GError **error);
/* REFUSED: this client has none of that id. */
struct tunnel *tunnel_find(const char *id, const char *peer, GError **error);
void tunnel_unref(struct tunnel *tunnel); /* NULL is allowed */
/* All of it; waits as long as the other side makes it wait. */
bool tunnel_write(struct tunnel *tunnel, const void *data, size_t length, GError **error);
/* The client has said all. */
void tunnel_finish(struct tunnel *tunnel);
/* An answer without an end; takes the tunnel. */
struct MHD_Response *tunnel_answer(struct tunnel *tunnel);

typedef struct tunnel tunnel_t; /* for g_autoptr only */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(tunnel_t, tunnel_unref)

#endif
