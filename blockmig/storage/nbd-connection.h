/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Connections to an NBD export: commands go in, answers come out, in any order.  Used by nbd-export.c alone.
 *
 * Each connection has a thread of its own, to which its handle of libnbd belongs.
 */
#ifndef BLOCKMIG_STORAGE_NBD_CONNECTION_H
#define BLOCKMIG_STORAGE_NBD_CONNECTION_H

#include <glib.h>
#include <libnbd.h>
#include <stdbool.h>
#include <stdint.h>

enum nbd_kind { NBD_READ, NBD_WRITE, NBD_ZERO, NBD_TRIM, NBD_FLUSH, NBD_STATUS };

/* One request to the server, within what it takes at a time.  The caller's; untouched by it until done(). */
struct nbd_command {
    enum nbd_kind kind;
    void *buffer; /* READ, WRITE */
    uint64_t offset, length;
    bool no_hole; /* ZERO: the space stays allocated */
    /* In the thread of a connection.  `error`: NULL, or a failure; done() owns it. */
    void (*done)(struct nbd_command *command, GError *error);
    void *opaque; /* done()'s */

    GArray *extents; /* STATUS: of struct nbd_extent, from `offset` on; the caller's, empty before */

    /* The connection's. */
    struct nbd_connection *connection;
    struct nbd_command *next;
};

struct nbd_extent {
    uint64_t length;
    uint32_t flags; /* what they mean is the context's business */
};

/* How an export is reached. */
struct nbd_way {
    const char *uri;
    const char *context; /* what block status is asked for; NULL: base:allocation */
    int socket;          /* connected already, instead of the URI; -1: none.  Taken. */
    const int *retry; /* while it is not 0, a lost connection is made again, and what was on its way is asked
                       * once more; outlives the connection.  NULL: never */
};

/* What the server said about the export. */
struct nbd_abilities {
    uint64_t size;
    uint32_t block;   /* what offsets and lengths must be multiples of; a power of two */
    uint32_t largest; /* bytes in one read or write; a multiple of `block` */
    bool read_only, flush, zero, trim, many;
    bool status; /* it has the context */
};

struct nbd_connection;

/* Connects and waits for it; UNREACHABLE or, if the server does not want us, REFUSED. */
struct nbd_connection *nbd_connection_open(const struct nbd_way *way, struct nbd_abilities *abilities,
                                           GError **error);
/* Connects in the background to what has these abilities; a server that does not want more connections is not
 * asked again. */
struct nbd_connection *nbd_connection_open_another(const struct nbd_way *way,
                                                   const struct nbd_abilities *abilities);
/* Nothing may be on its way. */
void nbd_connection_close(struct nbd_connection *connection);

/* Can commands be given to it now? */
bool nbd_connection_is_ready(struct nbd_connection *connection);
/* Bytes that are on their way. */
uint64_t nbd_connection_load(struct nbd_connection *connection);
/* What is given to a connection that is gone fails. */
void nbd_connection_submit(struct nbd_connection *connection, struct nbd_command *command);

#endif
