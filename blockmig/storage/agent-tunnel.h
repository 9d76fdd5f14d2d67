/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Through an agent to the sockets of its host: libvirt's, and those on which a machine is received.  What
 * goes through is encrypted as all that goes to an agent, and needs its leave (the group [machines]).
 */
#ifndef BLOCKMIG_STORAGE_AGENT_TUNNEL_H
#define BLOCKMIG_STORAGE_AGENT_TUNNEL_H

#include "blockmig/storage/agent-client.h"

struct relay;

enum relay_flags {
    RELAY_HELD = 1,   /* the other side gets all but the last byte, until relay_let() */
    RELAY_PACKED = 2, /* what goes there may be compressed, as was chosen (agent-storage.h) */
};

/* A socket at `path` of this host; who connects to it is connected to what the agent's host has under `name`.
 * The directory must be there; what stands at `path` is replaced. */
struct relay *relay_open(struct agent_client *client, const char *name, const char *path, unsigned flags,
                         GError **error);
void relay_let(struct relay *relay);
/* Who connected here has sent something. */
bool relay_has_begun(const struct relay *relay);
/* Connections that are open come to their own end. */
void relay_close(struct relay *relay); /* NULL is allowed */
/* Why the last connection could not be passed on, the caller's; NULL: all could. */
char *relay_trouble(struct relay *relay);

typedef struct relay relay_t; /* for g_autoptr only */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(relay_t, relay_close)

#endif
