/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Inside agent-client.h: libcurl's functions, and what requests and tunnels share. */
#ifndef BLOCKMIG_STORAGE_AGENT_CLIENT_INTERNAL_H
#define BLOCKMIG_STORAGE_AGENT_CLIENT_INTERNAL_H

#include "blockmig/storage/agent-client.h"

#define CURL_DISABLE_TYPECHECK
#include <curl/curl.h>

#define SILENT_SECONDS 20 /* a connection on which nothing moves for so long is given up, or earlier */
#define MAX_JSON       (1u << 20)

struct agent_client {
    char *base;   /* "https://HOST:PORT" */
    char *socket; /* or NULL */
    char *authority, *certificate, *key;
    char *session;    /* the header */
    int64_t patience; /* microseconds */
    int known;        /* it has answered before: its certificate is in order */
    int agreed;       /* it speaks our version, and was there ever since.  Atomic */
    GMutex lock;
    GPtrArray *idle; /* of CURL *, with their connections */
    int64_t silent;  /* since when nothing was answered; 0: the last request was.  Atomic, as is: */
    int64_t failed;  /* when a request failed last */
};

/*
 * libcurl brings thirty libraries with it, which made every start of the program half as long again: so it is
 * loaded when the first agent is asked.
 */
extern struct agent_curl {
    bool loaded; /* all of them */
    __typeof__(&curl_global_init) global_init;
    __typeof__(&curl_easy_init) easy_init;
    __typeof__(&curl_easy_reset) easy_reset;
    __typeof__(&curl_easy_setopt) easy_setopt;
    __typeof__(&curl_easy_perform) easy_perform;
    __typeof__(&curl_easy_getinfo) easy_getinfo;
    __typeof__(&curl_easy_cleanup) easy_cleanup;
    __typeof__(&curl_easy_strerror) easy_strerror;
    __typeof__(&curl_slist_append) slist_append;
    __typeof__(&curl_slist_free_all) slist_free_all;
} agent_curl;

/* Where the agent is, and how it is known. */
void agent_client_set_up(const struct agent_client *client, CURL *handle, const char *url);
/* The agent's refusal, in its words as far as they are fit to be shown; *gone (may be NULL): there is no such
 * handle.  Always false. */
bool agent_client_pass_on(const GByteArray *answer, long status, bool *gone, GError **error);
/* Why there is no answer; `detail` as libcurl has it, or "".  Always false. */
bool agent_client_explain(const struct agent_client *client, CURLcode result, const char *detail,
                          GError **error);

#endif
