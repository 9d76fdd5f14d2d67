/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Inside the agent: server.c has the sockets and who may ask, server-request.c what may be asked. */
#ifndef BLOCKMIG_REMOTE_SERVER_INTERNAL_H
#define BLOCKMIG_REMOTE_SERVER_INTERNAL_H

#include "blockmig/remote/handle.h"
#include "blockmig/remote/server.h"
#include "blockmig/storage/frame.h"

#include <jansson.h>
#include <microhttpd.h>

#define COME_BACK_IN "1" /* seconds, for who is told to come back later */

/* Who asks, over a connection that was let in. */
struct caller {
    struct agent_config *config; /* a request has its own reference */
    struct handle_table *handles;
    const char *peer, *session;
    bool local; /* on a Unix socket: may do everything that the agent may */
};

struct request;

/* Begins a request; never fails: what is wrong is in its answer. */
struct request *request_new(const struct caller *caller, const char *method, const char *url);
/* One that is answered with this error, which is taken, once its body is over. */
struct request *request_new_refused(unsigned status, GError *error);
/* A part of its body. */
void request_feed(struct request *request, const void *data, size_t length);
/* The body is whole.  `look`: a parameter of the query, or NULL. */
struct MHD_Response *request_answer(struct request *request, struct MHD_Connection *connection,
                                    unsigned *status);
/* A part of a tunnel: it may be silent for as long as it likes. */
bool request_has_no_end(const struct request *request);
void request_free(struct request *request); /* NULL is allowed */

/* server-seed.c: writes what the file that `frame`, of FRAME_SAME, names has, if that is what it has to be.
 * *same false: it is not, or cannot be read; *gone: there is no such handle. */
bool seed_take(const struct caller *caller, struct storage *target, const struct frame *frame, bool *same,
               bool *gone, GError **error);
/* A frame's content. */
bool write_content(struct storage *storage, const struct frame *frame, const uint8_t *content,
                   GError **error);

/* {"error": ..., "code": ...}, and the status that goes with it. */
struct MHD_Response *answer_error(const GError *error, unsigned *status);

#endif
