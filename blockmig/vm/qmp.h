/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A client of QEMU's monitor protocol.  One thread per connection; nothing here polls: a wait sleeps in
 * poll() until bytes arrive or its time is over.
 *
 * Errors: UNREACHABLE if the peer is gone, silent beyond the timeout, or sends what no monitor sends (the
 * connection is then dead and every further call says the same); FAILED if it refused a command, with its own
 * words.  Timeouts are milliseconds.
 */
#ifndef BLOCKMIG_VM_QMP_H
#define BLOCKMIG_VM_QMP_H

#include "blockmig/vm/qmp-stream.h"

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>
#include <sys/types.h>

#define QMP_TIMEOUT          10000u     /* for a command that does no I/O worth speaking of */
#define QMP_EVENTS_MAX       4096u      /* queued; then the oldest is dropped and counted */
#define QMP_EVENTS_BYTES_MAX (4u << 20) /* the same for their text */

struct qmp;

/* Connects to the monitor's unix socket and negotiates.  A monitor talks to one client at a time: a
 * second one is accepted by the kernel and then hears nothing, which the error says. */
struct qmp *qmp_connect(const char *path, unsigned timeout, GError **error);
/* Goes on with a connection that was inherited in any state: a half-written command is made void, a
 * half-read reply is dropped.  Takes the descriptor, also on failure.  Whoever else has it must not use it.
 */
struct qmp *qmp_adopt(int fd, unsigned timeout, GError **error);
void qmp_close(struct qmp *qmp);

int qmp_fd(const struct qmp *qmp);
/* The process at the other end, 0 if the kernel does not say. */
pid_t qmp_peer(const struct qmp *qmp);

/*
 * Runs a command; `arguments` is taken over, NULL for none.  Returns what the peer returned, owned by the
 * caller.  After a timeout the connection still works, a late reply is dropped.
 */
json_t *qmp_command(struct qmp *qmp, const char *name, json_t *arguments, unsigned timeout, GError **error);
/* The same, and a descriptor travels with it; the caller's stays the caller's. */
json_t *qmp_command_fd(struct qmp *qmp, const char *name, json_t *arguments, int fd, unsigned timeout,
                       GError **error);
/* The same as qmp_command() for a command whose result is of no interest. */
bool qmp_do(struct qmp *qmp, const char *name, json_t *arguments, unsigned timeout, GError **error);

/* The same in two halves, so that several commands are on their way at once.  An id is received once. */
bool qmp_send(struct qmp *qmp, const char *name, json_t *arguments, guint64 *id, GError **error);
json_t *qmp_receive(struct qmp *qmp, const char *name, guint64 id, unsigned timeout, GError **error);

/* Does the caller want this event? */
typedef bool (*qmp_match)(const char *name, json_t *data, void *opaque);

/*
 * Takes the oldest event that matches (NULL: any), waiting for one up to `timeout`; others stay queued.
 * *event (owned by the caller) is NULL if none came in time, which is no error.
 */
bool qmp_wait_event(struct qmp *qmp, qmp_match match, void *opaque, unsigned timeout, json_t **event,
                    GError **error);
/* Is one queued? What the peer sent before a reply that was received is. */
bool qmp_has_event(struct qmp *qmp, qmp_match match, void *opaque);
/* Forgets what is queued: a caller who is about to start something waits only for what comes after. */
void qmp_drop_events(struct qmp *qmp, qmp_match match, void *opaque);
/* Events dropped so far because nobody took them. */
guint64 qmp_events_lost(const struct qmp *qmp);

const char *qmp_event_name(json_t *event);
/* May be NULL. */
json_t *qmp_event_data(json_t *event);
/* By the peer's clock, microseconds since the epoch; 0: it did not say. */
gint64 qmp_event_time(json_t *event);

/* Abilities by query-qmp-schema, asked for once per connection. `value` is a member of the argument's
 * enumeration, or a branch of the command's union.  False with no error set: it is not there. */
bool qmp_has_command(struct qmp *qmp, const char *command, GError **error);
bool qmp_has_argument(struct qmp *qmp, const char *command, const char *argument, GError **error);
bool qmp_has_value(struct qmp *qmp, const char *command, const char *argument, const char *value,
                   GError **error);

typedef struct qmp qmp_t; /* for g_autoptr only */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(qmp_t, qmp_close)

#endif
