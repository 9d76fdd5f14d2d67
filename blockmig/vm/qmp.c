/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What arrives is sorted at once: a reply goes to the id that waits for it (or is dropped, so that a peer
 * cannot fill memory with answers to nothing), an event goes to the end of a bounded queue.  Callers look
 * there first and only then sleep.
 */
#include "blockmig/vm/qmp.h"

#include "blockmig/vm/qmp-internal.h"
#include "blockmig/vm/qmp-stream.h"
#include "formats/error.h"

#include <errno.h>
#include <gio/gio.h>
#include <gio/gunixsocketaddress.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define READ_SIZE 65536
#define OVERTIME  (G_USEC_PER_SEC / 10)

static gint64 deadline_in(unsigned timeout)
{
    return g_get_monotonic_time() + (gint64)timeout * 1000;
}

/* The connection is over; says so now and in every later call. */
static bool die(struct qmp *qmp, GError *fault, GError **error)
{
    if (!qmp->dead) {
        qmp->dead = g_error_new(BLOCKMIG_ERROR, BLOCKMIG_ERROR_UNREACHABLE, "the monitor is gone: %s",
                                fault->message);
    }
    g_error_free(fault);
    g_propagate_error(error, g_error_copy(qmp->dead));
    return false;
}

static bool alive(struct qmp *qmp, GError **error)
{
    if (qmp->dead)
        g_propagate_error(error, g_error_copy(qmp->dead));
    return !qmp->dead;
}

/* The event is the caller's now. */
static json_t *take_event(struct qmp *qmp, GList *link)
{
    struct queued *queued = link->data;
    json_t *event = queued->event;

    qmp->queued_bytes -= queued->size;
    g_queue_delete_link(&qmp->events, link);
    g_free(queued);
    return event;
}

static void queue_event(struct qmp *qmp, json_t *event)
{
    struct queued *queued = g_new(struct queued, 1);

    *queued = (struct queued){event, qmp_stream_message_size(qmp->stream)};
    g_queue_push_tail(&qmp->events, queued);
    qmp->queued_bytes += queued->size;
    while (g_queue_get_length(&qmp->events) > QMP_EVENTS_MAX || qmp->queued_bytes > QMP_EVENTS_BYTES_MAX) {
        json_decref(take_event(qmp, qmp->events.head));
        qmp->lost++;
    }
}

/* Takes the message over. */
static void sort_message(struct qmp *qmp, json_t *message)
{
    json_t *id = json_object_get(message, "id");
    gint64 key = json_is_integer(id) ? json_integer_value(id) : 0;

    if (json_is_string(json_object_get(message, "event"))) {
        queue_event(qmp, message);
    } else if (json_is_object(json_object_get(message, "QMP")) && !qmp->greeting) {
        qmp->greeting = message;
    } else if (key > 0 && g_hash_table_contains(qmp->replies, &key)) {
        g_hash_table_insert(qmp->replies, g_memdup2(&key, sizeof(key)), message);
    } else {
        json_decref(message);
    }
}

/* Sleeps until the socket can be read or written, or the time is over (*ready is then false).  What has come
 * by then is read all the same, but a peer that never stops does not hold us for more than OVERTIME. */
static bool wait_socket(struct qmp *qmp, GIOCondition condition, gint64 deadline, bool *ready, GError **error)
{
    gint64 left = deadline - g_get_monotonic_time();
    GError *fault = NULL;

    if (left <= 0) {
        *ready = left > -OVERTIME && g_socket_condition_check(qmp->socket, condition);
        return true;
    }
    /* poll() counts in milliseconds: rounded up, or the last one would be spent in a busy loop. */
    *ready = g_socket_condition_timed_wait(qmp->socket, condition, (left + 999) / 1000 * 1000, NULL, &fault);
    if (*ready)
        return true;
    if (g_error_matches(fault, G_IO_ERROR, G_IO_ERROR_TIMED_OUT)) {
        g_error_free(fault);
        return true;
    }
    return die(qmp, fault, error);
}

static bool read_some(struct qmp *qmp, GError **error)
{
    char bytes[READ_SIZE];
    GError *fault = NULL;
    gssize got = g_socket_receive(qmp->socket, bytes, sizeof(bytes), NULL, &fault);

    if (got > 0) {
        qmp_stream_feed(qmp->stream, bytes, got);
        return true;
    }
    if (got == 0)
        fault = g_error_new(BLOCKMIG_ERROR, BLOCKMIG_ERROR_UNREACHABLE, "it closed the connection");
    else if (g_error_matches(fault, G_IO_ERROR, G_IO_ERROR_WOULD_BLOCK)) {
        g_error_free(fault);
        return true;
    }
    return die(qmp, fault, error);
}

/* Sorts one message, if one comes before the deadline (*got).  A message that is here already is taken
 * even when the time is over. */
static bool pump(struct qmp *qmp, gint64 deadline, bool *got, GError **error)
{
    bool ready = true;

    *got = false;
    while (alive(qmp, error)) {
        json_t *message;
        GError *fault = NULL;

        if (!qmp_stream_next(qmp->stream, &message, &fault))
            return die(qmp, fault, error);
        if (message) {
            sort_message(qmp, message);
            return *got = true;
        }
        if (!wait_socket(qmp, G_IO_IN, deadline, &ready, error))
            return false;
        if (!ready)
            return true;
        if (!read_some(qmp, error))
            return false;
    }
    return false;
}

/* What a peer said before it went is still to be read. */
static void hear_out(struct qmp *qmp)
{
    bool got = true;

    while (got && pump(qmp, deadline_in(0), &got, NULL))
        ;
}

/* A descriptor that is not -1 travels with the first byte. */
static gssize write_some(struct qmp *qmp, const char *bytes, gsize length, int fd, GError **error)
{
    struct iovec vector = {(void *)bytes, length};
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {.header = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
    ssize_t put;

    if (fd >= 0) {
        message.msg_control = &control;
        message.msg_controllen = sizeof(control);
        memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
    }
    do
        put = sendmsg(qmp_fd(qmp), &message, MSG_NOSIGNAL);
    while (put < 0 && errno == EINTR);
    if (put < 0)
        g_set_error_literal(error, G_IO_ERROR, g_io_error_from_errno(errno), g_strerror(errno));
    return put;
}

static bool write_all(struct qmp *qmp, const char *bytes, gsize length, int fd, gint64 deadline,
                      GError **error)
{
    while (length > 0) {
        GError *fault = NULL;
        bool ready;
        gssize put = write_some(qmp, bytes, length, fd, &fault);

        if (put >= 0) {
            bytes += put;
            length -= put;
            fd = -1;
            continue;
        }
        if (!g_error_matches(fault, G_IO_ERROR, G_IO_ERROR_WOULD_BLOCK)) {
            hear_out(qmp);
            return die(qmp, fault, error);
        }
        g_clear_error(&fault);
        if (!wait_socket(qmp, G_IO_OUT, deadline, &ready, error))
            return false;
        if (!ready)
            return die(qmp, g_error_new(BLOCKMIG_ERROR, BLOCKMIG_ERROR_UNREACHABLE, "it reads nothing"),
                       error);
    }
    return true;
}

static bool send_command(struct qmp *qmp, const char *name, json_t *arguments, int fd, guint64 *id,
                         GError **error)
{
    g_autoptr(json_t) command = json_pack("{s:s}", "execute", name);
    g_autofree char *text = NULL;
    g_autofree char *line = NULL;
    gint64 key = qmp->next_id++;

    if (arguments)
        json_object_set_new(command, "arguments", arguments);
    json_object_set_new(command, "id", json_integer(key));
    text = json_dumps(command, JSON_COMPACT);
    if (!text) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED, "\"%s\": an argument is not UTF-8", name);
        return false;
    }
    line = g_strconcat(text, "\n", NULL);
    if (!alive(qmp, error) || !write_all(qmp, line, strlen(line), fd, deadline_in(QMP_TIMEOUT), error))
        return false;
    g_hash_table_insert(qmp->replies, g_memdup2(&key, sizeof(key)), NULL);
    *id = key;
    return true;
}

bool qmp_send(struct qmp *qmp, const char *name, json_t *arguments, guint64 *id, GError **error)
{
    return send_command(qmp, name, arguments, -1, id, error);
}

/* The value of a reply, which is taken over. */
static json_t *reply_value(const char *name, json_t *reply, GError **error)
{
    g_autoptr(json_t) owned = reply;
    json_t *fault = json_object_get(reply, "error");
    json_t *value = json_object_get(reply, "return");
    const char *description = json_string_value(json_object_get(fault, "desc"));

    if (fault) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED, "\"%s\" was refused: %s", name,
                    description ? description : "no reason was given");
        return NULL;
    }
    if (!value)
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_UNREACHABLE,
                    "\"%s\": the reply has neither \"return\" nor \"error\"", name);
    return json_incref(value);
}

json_t *qmp_receive(struct qmp *qmp, const char *name, guint64 id, unsigned timeout, GError **error)
{
    gint64 deadline = deadline_in(timeout), key = id;
    bool got = true, working = true;
    gpointer kept_key = NULL, reply = NULL;

    while (working && got && !g_hash_table_lookup(qmp->replies, &key))
        working = pump(qmp, deadline, &got, error);
    /* Nobody waits for this id any more: a late reply will be dropped. */
    g_hash_table_steal_extended(qmp->replies, &key, &kept_key, &reply);
    g_free(kept_key);
    if (!working)
        return NULL;
    if (!reply) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_UNREACHABLE, "\"%s\": no reply in %u ms", name,
                    timeout);
        return NULL;
    }
    return reply_value(name, reply, error);
}

json_t *qmp_command(struct qmp *qmp, const char *name, json_t *arguments, unsigned timeout, GError **error)
{
    guint64 id;

    if (!qmp_send(qmp, name, arguments, &id, error))
        return NULL;
    return qmp_receive(qmp, name, id, timeout, error);
}

json_t *qmp_command_fd(struct qmp *qmp, const char *name, json_t *arguments, int fd, unsigned timeout,
                       GError **error)
{
    guint64 id;

    if (!send_command(qmp, name, arguments, fd, &id, error))
        return NULL;
    return qmp_receive(qmp, name, id, timeout, error);
}

bool qmp_do(struct qmp *qmp, const char *name, json_t *arguments, unsigned timeout, GError **error)
{
    g_autoptr(json_t) value = qmp_command(qmp, name, arguments, timeout, error);

    return value != NULL;
}

/* ---- events ---- */

static bool wanted(const GList *link, qmp_match match, void *opaque)
{
    const struct queued *queued = link->data;

    return !match || match(qmp_event_name(queued->event), qmp_event_data(queued->event), opaque);
}

static GList *find_event(struct qmp *qmp, qmp_match match, void *opaque)
{
    for (GList *link = qmp->events.head; link; link = link->next)
        if (wanted(link, match, opaque))
            return link;
    return NULL;
}

bool qmp_wait_event(struct qmp *qmp, qmp_match match, void *opaque, unsigned timeout, json_t **event,
                    GError **error)
{
    gint64 deadline = deadline_in(timeout);
    GList *link = find_event(qmp, match, opaque);
    bool got = true;

    *event = NULL;
    while (!link && got) {
        if (!pump(qmp, deadline, &got, error))
            return false;
        /* Only the newest one has not been looked at. */
        link = got ? qmp->events.tail : NULL;
        if (link && !wanted(link, match, opaque))
            link = NULL;
    }
    if (link)
        *event = take_event(qmp, link);
    return true;
}

bool qmp_has_event(struct qmp *qmp, qmp_match match, void *opaque)
{
    return find_event(qmp, match, opaque) != NULL;
}

void qmp_drop_events(struct qmp *qmp, qmp_match match, void *opaque)
{
    GList *link;

    while ((link = find_event(qmp, match, opaque)))
        json_decref(take_event(qmp, link));
}

guint64 qmp_events_lost(const struct qmp *qmp)
{
    return qmp->lost;
}

const char *qmp_event_name(json_t *event)
{
    return json_string_value(json_object_get(event, "event"));
}

json_t *qmp_event_data(json_t *event)
{
    return json_object_get(event, "data");
}

gint64 qmp_event_time(json_t *event)
{
    json_t *stamp = json_object_get(event, "timestamp");
    gint64 seconds = json_integer_value(json_object_get(stamp, "seconds"));
    gint64 microseconds = json_integer_value(json_object_get(stamp, "microseconds"));

    /* QEMU says -1 when it could not read its clock; anything else absurd is no time either. */
    if (seconds <= 0 || seconds > G_MAXINT64 / G_USEC_PER_SEC - 1 || microseconds < 0 ||
        microseconds >= G_USEC_PER_SEC)
        return 0;
    return seconds * G_USEC_PER_SEC + microseconds;
}

/* ---- connections ---- */

static void value_free(gpointer value)
{
    json_decref(value);
}

static struct qmp *qmp_new(GSocket *socket)
{
    struct qmp *qmp = g_new0(struct qmp, 1);
    struct ucred peer;
    socklen_t length = sizeof(peer);

    g_socket_set_blocking(socket, FALSE);
    qmp->socket = socket;
    qmp->stream = qmp_stream_new();
    qmp->replies = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, value_free);
    qmp->next_id = 1;
    g_queue_init(&qmp->events);
    if (getsockopt(g_socket_get_fd(socket), SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0)
        qmp->peer = peer.pid;
    return qmp;
}

static GSocket *connect_unix(const char *path, GError **error)
{
    g_autoptr(GSocket) socket = g_socket_new(G_SOCKET_FAMILY_UNIX, G_SOCKET_TYPE_STREAM, 0, error);
    g_autoptr(GSocketAddress) address = NULL;

    if (!socket)
        return NULL;
    if (strlen(path) > 107) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE, "a socket's path has at most 107 bytes");
        return NULL;
    }
    address = g_unix_socket_address_new(path);
    if (!g_socket_connect(socket, address, NULL, error))
        return NULL;
    return g_steal_pointer(&socket);
}

static bool negotiate(struct qmp *qmp, unsigned timeout, GError **error)
{
    gint64 deadline = deadline_in(timeout);
    bool got = true;

    while (got && !qmp->greeting)
        if (!pump(qmp, deadline, &got, error))
            return false;
    if (!qmp->greeting) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_UNREACHABLE,
                    "no greeting in %u ms: another client may hold this monitor, or it is none", timeout);
        return false;
    }
    return qmp_do(qmp, "qmp_capabilities", NULL, timeout, error);
}

struct qmp *qmp_connect(const char *path, unsigned timeout, GError **error)
{
    GError *fault = NULL;
    GSocket *socket = connect_unix(path, &fault);
    g_autoptr(qmp_t) qmp = NULL;

    if (!socket) {
        /* GIO's own codes mean nothing to a caller. */
        int code = fault->domain == BLOCKMIG_ERROR ? fault->code : BLOCKMIG_ERROR_UNREACHABLE;

        g_set_error(error, BLOCKMIG_ERROR, code, "%s: %s", path, fault->message);
        g_error_free(fault);
        return NULL;
    }
    qmp = qmp_new(socket);
    if (!negotiate(qmp, timeout, error)) {
        g_prefix_error(error, "%s: ", path);
        return NULL;
    }
    return g_steal_pointer(&qmp);
}

/* 0xff ends whatever half a command the peer has; it complains once, without an id.  Ids of the former owner
 * may still be answered: ours begin far above them. */
static bool synchronise(struct qmp *qmp, unsigned timeout, GError **error)
{
    bool fine;

    qmp->next_id = (gint64)1 << 48;
    qmp_stream_set_lenient(qmp->stream, true);
    fine = write_all(qmp, "\xff\n", 2, -1, deadline_in(timeout), error) &&
           qmp_do(qmp, "query-status", NULL, timeout, error);
    qmp_stream_set_lenient(qmp->stream, false);
    return fine;
}

struct qmp *qmp_adopt(int fd, unsigned timeout, GError **error)
{
    GError *fault = NULL;
    GSocket *socket = g_socket_new_from_fd(fd, &fault);
    g_autoptr(qmp_t) qmp = NULL;

    if (!socket) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_UNREACHABLE, "descriptor %d: %s", fd,
                    fault->message);
        g_error_free(fault);
        close(fd);
        return NULL;
    }
    qmp = qmp_new(socket);
    if (!synchronise(qmp, timeout, error))
        return NULL;
    return g_steal_pointer(&qmp);
}

void qmp_close(struct qmp *qmp)
{
    if (!qmp)
        return;
    g_object_unref(qmp->socket);
    qmp_stream_free(qmp->stream);
    g_hash_table_unref(qmp->replies);
    qmp_drop_events(qmp, NULL, NULL);
    json_decref(qmp->greeting);
    json_decref(qmp->schema);
    g_clear_pointer(&qmp->schema_index, g_hash_table_unref);
    g_clear_error(&qmp->dead);
    g_free(qmp);
}

int qmp_fd(const struct qmp *qmp)
{
    return g_socket_get_fd(qmp->socket);
}

pid_t qmp_peer(const struct qmp *qmp)
{
    return qmp->peer;
}
