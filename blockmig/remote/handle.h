/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Files that clients have open, by numbers that nobody guesses.
 *
 * A handle belongs to the client that opened it and to its session: all connections of one process.  It is
 * closed when the last of them is gone, and with it the image locks: a client that was killed does not keep
 * anybody waiting.  Who makes a new connection for each request asks for handles that linger.  Any thread may
 * call.
 */
#ifndef BLOCKMIG_REMOTE_HANDLE_H
#define BLOCKMIG_REMOTE_HANDLE_H

#include "formats/storage.h"

struct handle {
    char *id, *peer, *session;
    struct storage *storage;
    GMutex alone;    /* for what a storage does not bear from several threads */
    int64_t linger;  /* microseconds that it outlives its session */
    int64_t expires; /* when that is over, monotonic; 0: the session is there */
    gint references;
};

struct handle_table;

struct handle_table *handle_table_new(void);
void handle_table_free(struct handle_table *table); /* NULL is allowed */

#define HANDLE_MAX_LINGER 600 /* seconds */

/* Takes the storage.  `id`: its number, which must be free; NULL: one that nobody guesses.  `linger`:
 * seconds. To be given back with handle_unref(). REFUSED: there are too many.
 */
struct handle *handle_add(struct handle_table *table, const char *peer, const char *session,
                          struct storage *storage, const char *id, uint64_t linger, GError **error);
/* UNREACHABLE: there is none of that number for this client. */
struct handle *handle_find(struct handle_table *table, const char *id, const char *peer, GError **error);
void handle_unref(struct handle *handle); /* NULL is allowed */
/* It can not be found any more; what is under way on it comes to its end. */
void handle_close(struct handle_table *table, struct handle *handle);

/* A connection of this session has come, or is gone. */
void handle_session_enter(struct handle_table *table, const char *session);
void handle_session_leave(struct handle_table *table, const char *session);

typedef struct handle handle_t; /* for g_autoptr only */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(handle_t, handle_unref)

#endif
