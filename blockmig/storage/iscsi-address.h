/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Where a unit is, as whom we ask for it, and with which secret. */
#ifndef BLOCKMIG_STORAGE_ISCSI_ADDRESS_H
#define BLOCKMIG_STORAGE_ISCSI_ADDRESS_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

/* A user name and a password of CHAP; empty: none. */
struct iscsi_secret {
    char *user, *password;
};

struct iscsi_address {
    char *name;   /* the URI, which has no password: for messages and the journal */
    char *portal; /* "host:port" or "host" */
    char *target; /* the target's iSCSI name */
    int lun;
    struct iscsi_secret ours, theirs; /* what we show to the target, and what it has to show to us */
    char *initiator;                  /* our iSCSI name */
    unsigned patience;                /* seconds that a target may be gone */
};

/*
 * Reads "iscsi://[USER@]HOST[:PORT]/TARGET/LUN" and what belongs to it:
 *
 *   BLOCKMIG_ISCSI_CREDENTIALS  a file that only its owner can read, with lines user=, password=,
 *                               target-user= and target-password=
 *   LIBISCSI_CHAP_USERNAME, LIBISCSI_CHAP_PASSWORD, LIBISCSI_CHAP_TARGET_USERNAME,
 *   LIBISCSI_CHAP_TARGET_PASSWORD   the same, where the file and the URI say nothing
 *   BLOCKMIG_ISCSI_INITIATOR    our name; otherwise that of this host (/etc/iscsi/initiatorname.iscsi)
 *   BLOCKMIG_ISCSI_TIMEOUT      seconds of patience (30)
 *
 * A password in the URI is a USAGE error: everybody on the host can read command lines, and the journal keeps
 * URIs.  Errors do not name the URI.
 */
struct iscsi_address *iscsi_address_parse(const char *uri, GError **error);
void iscsi_address_free(struct iscsi_address *address); /* NULL is allowed */

/* The same on this host every time, and not on any other: from its machine-id and its name. `purpose` makes
 * different numbers. Never 0. */
uint64_t iscsi_host_number(const char *purpose);

typedef struct iscsi_address iscsi_address_t; /* for g_autoptr only */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(iscsi_address_t, iscsi_address_free)

#endif
