/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What an agent shows its clients, and whom it believes: the files of its tls-directory. */
#ifndef BLOCKMIG_REMOTE_CREDENTIALS_H
#define BLOCKMIG_REMOTE_CREDENTIALS_H

#include "blockmig/remote/peer.h"

struct credentials {
    struct peer_trust *trust;
    char *certificate, *key, *authority; /* PEM */
};

/* The names of all of them, for who has to be allowed to read them; ends with NULL. */
extern const char *const credentials_files[];

/* USAGE.  To be given back with credentials_unref(). */
struct credentials *credentials_read(const char *directory, GError **error);
struct credentials *credentials_ref(struct credentials *credentials); /* NULL is allowed */
void credentials_unref(struct credentials *credentials);              /* NULL is allowed */

#endif
