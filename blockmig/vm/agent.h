/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The guest agent, as far as a quiesced snapshot needs it.  Whatever happens, a frozen guest is thawed:
 * by agent_thaw(), by agent_close(), by a watchdog thread after the limit, or, if this process dies, by a
 * guard that inherited agent_fd() and calls agent_thaw_now().
 */
#ifndef BLOCKMIG_VM_AGENT_H
#define BLOCKMIG_VM_AGENT_H

#include <glib.h>
#include <stdbool.h>

#define AGENT_LIMIT_MAX    10000u /* ms; the longest that a guest stays frozen */
#define AGENT_SYNC_TIMEOUT 3000u  /* ms; an agent that is there answers in a few */

struct agent;

/* Connects to the agent's unix socket and makes sure that somebody answers: UNREACHABLE if not. */
struct agent *agent_open(const char *path, GError **error);
/* Thaws if frozen. */
void agent_close(struct agent *agent);
int agent_fd(const struct agent *agent);

/* `limit` in milliseconds counts from this call; 0 or more than AGENT_LIMIT_MAX means AGENT_LIMIT_MAX.  After
 * an error the guest is thawed. */
bool agent_freeze(struct agent *agent, unsigned limit, unsigned *filesystems, GError **error);
/* REFUSED if the watchdog was faster: then the guest wrote in between. UNREACHABLE if the agent does not
 * answer; the guest may then be frozen still. */
bool agent_thaw(struct agent *agent, GError **error);
/* Thaws whatever another connection froze; none frozen is no error. */
bool agent_thaw_left(struct agent *agent, GError **error);
/* What the agent says of itself, whoever froze it. */
bool agent_status(struct agent *agent, bool *frozen, GError **error);

/* Sends a thaw and waits for nothing.  Async-signal-safe. */
void agent_thaw_now(int fd);

typedef struct agent agent_t; /* for g_autoptr only */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(agent_t, agent_close)

#endif
