/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who is at the other end of a connection.  With TLS that is the common name of a certificate that our
 * authority signed for clients and has not revoked; on a Unix socket, the user.
 */
#ifndef BLOCKMIG_REMOTE_PEER_H
#define BLOCKMIG_REMOTE_PEER_H

#include <glib.h>
#include <gnutls/gnutls.h>
#include <stdbool.h>

struct peer_trust;

/* The authority and, if there is one, its list of revoked certificates.  USAGE. */
struct peer_trust *peer_trust_read(const char *directory, GError **error);
void peer_trust_free(struct peer_trust *trust); /* NULL is allowed */

/* The caller's.  REFUSED, with the reason. */
char *peer_of_session(const struct peer_trust *trust, gnutls_session_t session, GError **error);
/* "user root".  REFUSED for others than this process's user and root. */
char *peer_of_socket(int fd, GError **error);

#endif
