/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Migrations that are led from here because another host asks for them: `blockmig migrate`, as processes of
 * their own, which outlive the agent.
 *
 * The agent is confined, and what leads a migration must not be.  So a second process is started before that,
 * which does nothing but this, ends with the agent, and takes JSON from it that it looks at itself.  No shell
 * has a part in it.
 */
#ifndef BLOCKMIG_REMOTE_LEAD_H
#define BLOCKMIG_REMOTE_LEAD_H

#include "blockmig/remote/server-config.h"

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

/* Before there are threads: a process that is forked then calls lead_main() with *theirs, exits with what
 * that returns, and the other closes it.  For blockmig and libvirt as `machines` has them; `directory` is
 * made when it is needed. */
bool lead_begin(const struct agent_machines *machines, const char *directory, int *theirs, GError **error);
int lead_main(int theirs);

/*
 * Any thread may ask; the answer is the caller's, `arguments` are taken (NULL: none).
 *
 *   begin   {id, machine, target, ...}   an id that was there before does nothing
 *   look    {id, offset}                 {running, log, offset; status and report once it has ended}
 *   stop    {id}                         as SIGTERM: before the switch it is rolled back
 *   reach   {file}                       {seen}: does this host see the file of another agent, to which it
 * may also bring machines?
 */
json_t *lead_ask(const char *act, json_t *arguments, GError **error);

#endif
