/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Asking an agent: requests of HTTP, over TLS or a Unix socket, by libcurl.
 *
 * An agent that does not answer is asked again for a while: what is asked must bear to be done twice.  Any
 * thread may ask; each request under way has a connection, and connections are kept.
 */
#ifndef BLOCKMIG_STORAGE_AGENT_CLIENT_H
#define BLOCKMIG_STORAGE_AGENT_CLIENT_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define AGENT_PORT 16600 /* where none is given */
/* Counts changes that the other side must know of; what it need not know is offered by headers. */
#define AGENT_API 1

struct agent_client;

/*
 * "blockmig://HOST[:PORT]/DATASTORE/PATH" or "blockmig+unix:///DATASTORE/PATH".  What belongs to it:
 *
 *   BLOCKMIG_AGENT_TLS      a directory with ca-cert.pem, client-cert.pem and client-key.pem
 * (/etc/pki/blockmig) BLOCKMIG_AGENT_SOCKET   of blockmig+unix:// (/run/blockmig/agent.sock)
 *   BLOCKMIG_AGENT_TIMEOUT  seconds that an agent may be silent before that is an error (30)
 */
struct agent_address {
    char *authority; /* "HOST:PORT"; "unix" */
    char *datastore;
    char *path; /* below it; "": the datastore itself */
};

/* USAGE. */
bool agent_address_parse(const char *uri, struct agent_address *address, GError **error);
void agent_address_clear(struct agent_address *address);

/* The one of this process for that agent, which stays to the end.  Nothing is sent yet. */
struct agent_client *agent_client_get(const struct agent_address *address, GError **error);

struct agent_request {
    const char *method, *path; /* from "/v1" on, with its query */
    const void *head, *data;   /* the body, in two parts; NULL: none */
    size_t head_length, data_length;
    size_t most; /* bytes of an answer that are taken */
    bool once;   /* who does not answer is not asked again */
};

/* The answer, the caller's.  The agent's own errors keep their code; UNREACHABLE if nobody answers, or if
 * there is no such handle (*gone, which may be NULL); REFUSED if it speaks another version than we do. */
GByteArray *agent_ask(struct agent_client *client, const struct agent_request *request, bool *gone,
                      GError **error);
/* The same with JSON both ways; `arguments` is taken, NULL: none.  An answer that is no object is FAILED. */
json_t *agent_ask_json(struct agent_client *client, const char *method, const char *path, json_t *arguments,
                       bool *gone, GError **error);
/* Numbers of sessions and handles: 128 bits that nobody guesses, as hexadecimal digits; the caller's. */
#define AGENT_ID_LENGTH      32u
#define AGENT_SESSION_HEADER "Blockmig-Session"
/* With the answer of a tunnel, from an agent that takes frames (frame.h) for what goes there, too. */
#define AGENT_TUNNEL_HEADER "Blockmig-Tunnel"
#define AGENT_TUNNEL_FRAMED "framed"
char *agent_new_id(void);
bool agent_is_id(const char *text);
/* A part of a path, escaped; the caller's. */
char *agent_escape(const char *text, bool with_slashes);

/* Bytes of bodies that were sent and received so far, by all clients. */
uint64_t agent_wire_bytes(void);
/* Bytes of content that agents had already, so that they were not sent (storage_seed). */
uint64_t agent_seeded_bytes(void);

typedef struct agent_address agent_address_t; /* for g_auto only */
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(agent_address_t, agent_address_clear)

#endif
