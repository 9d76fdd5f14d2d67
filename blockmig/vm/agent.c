/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The agent's protocol has no ids: before each command both sides are brought into step by
 * guest-sync-delimited with a fresh number, whose reply follows a byte 0xff; whatever came before it is old.
 * The mutex covers the socket and the state, for the watchdog uses both.
 */
#include "blockmig/vm/agent.h"

#include "blockmig/vm/qmp-stream.h"
#include "formats/error.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define DELIMITER    "\xff"
#define READ_SIZE    4096
#define THAW_TIMEOUT 5000u

struct agent {
    char *path;
    int fd;
    GMutex mutex;
    GCond changed;
    GThread *watchdog; /* while frozen */
    gint64 expires;    /* monotonic: when the watchdog thaws */
    bool frozen;
    bool expired; /* the watchdog did */
};

static bool wait_fd(int fd, short events, gint64 deadline, GError **error)
{
    for (;;) {
        gint64 left = (deadline - g_get_monotonic_time() + 999) / 1000;
        struct pollfd poll_fd = {.fd = fd, .events = events};
        int ready = left > 0 ? poll(&poll_fd, 1, (int)left) : 0;

        if (ready > 0)
            return true;
        if (ready == 0)
            return blockmig_fail(error, BLOCKMIG_ERROR_UNREACHABLE, "the guest agent does not answer");
        if (errno != EINTR)
            return blockmig_fail(error, BLOCKMIG_ERROR_UNREACHABLE, "poll: %s", g_strerror(errno));
    }
}

static bool send_text(struct agent *agent, const char *text, gint64 deadline, GError **error)
{
    size_t length = strlen(text);

    while (length > 0) {
        ssize_t put = send(agent->fd, text, length, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (put > 0) {
            text += put;
            length -= put;
        } else if (errno != EAGAIN && errno != EINTR) {
            return blockmig_fail(error, BLOCKMIG_ERROR_UNREACHABLE, "the guest agent's socket: %s",
                                 g_strerror(errno));
        } else if (!wait_fd(agent->fd, POLLOUT, deadline, error)) {
            return false;
        }
    }
    return true;
}

static json_t *read_message(struct agent *agent, struct qmp_stream *stream, gint64 deadline, GError **error)
{
    json_t *message;

    for (;;) {
        char bytes[READ_SIZE];
        ssize_t got;

        if (!qmp_stream_next(stream, &message, error))
            return NULL;
        if (message)
            return message;
        if (!wait_fd(agent->fd, POLLIN, deadline, error))
            return NULL;
        got = recv(agent->fd, bytes, sizeof(bytes), MSG_DONTWAIT);
        if (got > 0) {
            qmp_stream_feed(stream, bytes, got);
        } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
            blockmig_fail(error, BLOCKMIG_ERROR_UNREACHABLE, "the guest agent's socket: %s",
                          got ? g_strerror(errno) : "closed");
            return NULL;
        }
    }
}

/* Both sides in step.  The stream is ready for the next command's reply. */
static struct qmp_stream *synchronise(struct agent *agent, gint64 deadline, GError **error)
{
    g_autoptr(qmp_stream_t) stream = qmp_stream_new();
    json_int_t number = g_random_int();
    g_autofree char *text = g_strdup_printf(
        DELIMITER "{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":%" JSON_INTEGER_FORMAT "}}\n",
        number);

    if (!send_text(agent, text, deadline, error))
        return NULL;
    qmp_stream_skip_to_delimiter(stream);
    for (;;) {
        g_autoptr(json_t) message = read_message(agent, stream, deadline, error);

        if (!message)
            return NULL;
        if (json_integer_value(json_object_get(message, "return")) == number)
            return g_steal_pointer(&stream);
        /* The answer to somebody's older question, or the complaint about our first byte. */
    }
}

static json_t *command(struct agent *agent, const char *name, gint64 deadline, GError **error)
{
    g_autoptr(qmp_stream_t) stream = synchronise(agent, deadline, error);
    g_autofree char *text = g_strdup_printf("{\"execute\":\"%s\"}\n", name);
    g_autoptr(json_t) reply = NULL;
    json_t *fault, *value;

    if (!stream || !send_text(agent, text, deadline, error))
        return NULL;
    reply = read_message(agent, stream, deadline, error);
    if (!reply)
        return NULL;
    fault = json_object_get(reply, "error");
    value = json_object_get(reply, "return");
    if (!value) {
        const char *why = json_string_value(json_object_get(fault, "desc"));

        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED, "the guest agent refused \"%s\": %s", name,
                    why ? why : "no reason was given");
    }
    return json_incref(value);
}

static gint64 in_ms(unsigned timeout)
{
    return g_get_monotonic_time() + (gint64)timeout * 1000;
}

/* The mutex is held.  If the agent hangs, the thaw has been sent at least. */
static bool thaw(struct agent *agent, GError **error)
{
    g_autoptr(json_t) value = command(agent, "guest-fsfreeze-thaw", in_ms(THAW_TIMEOUT), error);

    if (!value)
        agent_thaw_now(agent->fd);
    return value != NULL;
}

static gpointer watch(gpointer opaque)
{
    struct agent *agent = opaque;

    g_mutex_lock(&agent->mutex);
    while (agent->frozen && g_cond_wait_until(&agent->changed, &agent->mutex, agent->expires))
        ;
    if (agent->frozen) {
        agent->expired = true;
        agent->frozen = !thaw(agent, NULL);
    }
    g_mutex_unlock(&agent->mutex);
    return NULL;
}

static int connect_to(const char *path, GError **error)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd;

    if (strlen(path) >= sizeof(address.sun_path)) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE, "a socket's path has at most %zu bytes",
                    sizeof(address.sun_path) - 1);
        return -1;
    }
    g_strlcpy(address.sun_path, path, sizeof(address.sun_path));
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        blockmig_fail(error, BLOCKMIG_ERROR_UNREACHABLE, "connecting: %s", g_strerror(errno));
        if (fd >= 0)
            close(fd);
        return -1;
    }
    return fd;
}

struct agent *agent_open(const char *path, GError **error)
{
    g_autoptr(agent_t) agent = g_new0(struct agent, 1);
    g_autoptr(qmp_stream_t) stream = NULL;

    agent->path = g_strdup(path);
    g_mutex_init(&agent->mutex);
    g_cond_init(&agent->changed);
    agent->fd = connect_to(path, error);
    if (agent->fd >= 0)
        stream = synchronise(agent, in_ms(AGENT_SYNC_TIMEOUT), error);
    if (!stream) {
        g_prefix_error(error, "guest agent at %s: ", path);
        return NULL;
    }
    return g_steal_pointer(&agent);
}

/* The watchdog has nothing to do any more: wakes it and waits for its end. */
static void end_watchdog(struct agent *agent)
{
    g_cond_signal(&agent->changed);
    if (agent->watchdog)
        g_thread_join(g_steal_pointer(&agent->watchdog));
}

void agent_close(struct agent *agent)
{
    if (!agent)
        return;
    if (agent->watchdog)
        agent_thaw(agent, NULL);
    if (agent->fd >= 0)
        close(agent->fd);
    g_mutex_clear(&agent->mutex);
    g_cond_clear(&agent->changed);
    g_free(agent->path);
    g_free(agent);
}

int agent_fd(const struct agent *agent)
{
    return agent->fd;
}

bool agent_freeze(struct agent *agent, unsigned limit, unsigned *filesystems, GError **error)
{
    g_autoptr(json_t) value = NULL;

    if (limit == 0 || limit > AGENT_LIMIT_MAX)
        limit = AGENT_LIMIT_MAX;
    g_mutex_lock(&agent->mutex);
    agent->expires = in_ms(limit);
    agent->expired = false;
    value = command(agent, "guest-fsfreeze-freeze", agent->expires, error);
    agent->frozen = value != NULL;
    if (!value) /* it may have frozen some, or be about to */
        thaw(agent, NULL);
    else
        agent->watchdog = g_thread_new("freeze-watchdog", watch, agent);
    g_mutex_unlock(&agent->mutex);
    if (!value)
        g_prefix_error(error, "guest agent at %s: ", agent->path);
    else if (filesystems)
        *filesystems = json_integer_value(value) > 0 ? json_integer_value(value) : 0;
    return value != NULL;
}

bool agent_thaw(struct agent *agent, GError **error)
{
    bool fine = true, expired;

    g_mutex_lock(&agent->mutex);
    if (agent->frozen)
        fine = thaw(agent, error);
    expired = agent->expired;
    agent->frozen = agent->expired = false;
    g_mutex_unlock(&agent->mutex);
    end_watchdog(agent);
    if (fine && expired) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED,
                    "the guest was frozen longer than its limit and has been thawed");
        fine = false;
    }
    if (!fine)
        g_prefix_error(error, "guest agent at %s: ", agent->path);
    return fine;
}

bool agent_thaw_left(struct agent *agent, GError **error)
{
    bool fine;

    g_mutex_lock(&agent->mutex);
    fine = thaw(agent, error);
    g_mutex_unlock(&agent->mutex);
    if (!fine)
        g_prefix_error(error, "guest agent at %s: ", agent->path);
    return fine;
}

bool agent_status(struct agent *agent, bool *frozen, GError **error)
{
    g_autoptr(json_t) value = NULL;

    g_mutex_lock(&agent->mutex);
    value = command(agent, "guest-fsfreeze-status", in_ms(AGENT_SYNC_TIMEOUT), error);
    g_mutex_unlock(&agent->mutex);
    if (!value)
        g_prefix_error(error, "guest agent at %s: ", agent->path);
    else
        *frozen = g_strcmp0(json_string_value(value), "frozen") == 0;
    return value != NULL;
}

void agent_thaw_now(int fd)
{
    static const char text[] = DELIMITER "{\"execute\":\"guest-fsfreeze-thaw\"}\n";
    ssize_t put = send(fd, text, sizeof(text) - 1, MSG_NOSIGNAL | MSG_DONTWAIT);

    (void)put;
}
