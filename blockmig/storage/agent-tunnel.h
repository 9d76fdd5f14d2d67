/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Through an agent to the sockets of its host: libvirt's, and those on which a machine is received.  What
 * goes through is encrypted as all that goes to an agent, and needs its leave (the group [machines]).
 */
#ifndef BLOCKMIG_STORAGE_AGENT_TUNNEL_H
#define BLOCKMIG_STORAGE_AGENT_TUNNEL_H

#include "blockmig/storage/agent-client.h"

struct relay;

/* What the other side does not get yet of what comes from here. */
enum relay_hold { RELAY_HOLDS_NOTHING, RELAY_HOLDS_LAST_BYTE, RELAY_HOLDS_ALL };

/* A socket at `path` of this host; who connects to it is connected to what the agent's host has under `name`.
 * The directory must be there; what stands at `path` is replaced.  `packed`: what goes there may be
 * compressed, as was chosen (agent-storage.h). */
struct relay *relay_open(struct agent_client *client, const char *name, const char *path, bool packed,
                         GError **error);
/* At first it holds nothing; less may be held later, from any thread. */
void relay_hold(struct relay *relay, enum relay_hold hold);
/* What is held now never gets there; who waits for it there sees the end.  From any thread. */
void relay_cut(struct relay *relay);
/* Who connected here has sent something. */
bool relay_has_begun(const struct relay *relay);
/* Connections that are open come to their own end. */
void relay_close(struct relay *relay); /* NULL is allowed */
/* Why the last connection could not be passed on, the caller's; NULL: all could. */
char *relay_trouble(struct relay *relay);

typedef struct relay relay_t; /* for g_autoptr only */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(relay_t, relay_close)

#endif
