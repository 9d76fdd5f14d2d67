/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Whoever suspends a domain may die before it is resumed.  So a second process, our own program again, waits
 * for that: when we are gone while it is armed, it resumes the domain, once no migration of it is under way,
 * if it stands still.  That is right as long as the domain is where it was: disarm it before it leaves.
 */
#ifndef BLOCKMIG_VM_DOMAIN_GUARD_H
#define BLOCKMIG_VM_DOMAIN_GUARD_H

#include <glib.h>
#include <stdbool.h>

struct domain_guard;

/* `uri` of the domain's libvirt; NULL: its default.  REFUSED: it could not be started. */
struct domain_guard *domain_guard_start(const char *uri, const char *uuid, GError **error);
void domain_guard_stop(struct domain_guard *guard); /* NULL is allowed; disarms it */
/* FAILED if it does not live any more: nothing may be suspended then. */
bool domain_guard_arm(struct domain_guard *guard, GError **error);
void domain_guard_disarm(struct domain_guard *guard); /* NULL is allowed */

/* Is this process to be one?  Then main() does nothing but this. */
bool domain_guard_wanted(int argc, char **argv);
int domain_guard_main(char **argv);

#endif
