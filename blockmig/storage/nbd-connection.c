/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/storage/nbd-connection.h"

#include "formats/error.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define IN_FLIGHT      32                    /* commands that the server has at a time */
#define SILENCE        (60 * G_USEC_PER_SEC) /* a server that answers nothing for so long is gone */
#define CONNECT_TIME   (30 * G_USEC_PER_SEC) /* for one try */
#define RETRY_TIME     (60 * G_USEC_PER_SEC) /* for all of them, after a connection was lost */
#define RETRY_INTERVAL (G_USEC_PER_SEC / 2)
/* Every server takes 32 MiB, unless it says less.  But servers get memory for each command: with these, 1.2
 * GiB onto a qemu-nbd with a page cache and back took 3.6 s, with 2 MiB 5.2 s. */
#define LARGEST (UINT32_C(256) << 10)
#define LEAST   UINT32_C(512) /* what every server takes, unless it says more */

enum state { CONNECTING, READY, GONE };

struct list {
    struct nbd_command *first, **last;
};

struct nbd_connection {
    GThread *thread;
    char *uri; /* NULL: it cannot be made again */
    char *context;
    const int *retry;
    struct nbd_abilities abilities;

    GMutex lock; /* for what follows */
    struct list waiting;
    enum state state;
    bool closing;
    uint64_t load;

    int event_fd; /* tells the thread to look again */

    /* The thread's. */
    struct nbd_handle *handle;
    GQueue asked;  /* what the server has */
    int64_t heard; /* when the last answer came, or the first command went out */
    struct list lost;
};

static void list_clear(struct list *list)
{
    list->first = NULL;
    list->last = &list->first;
}

static void list_add(struct list *list, struct nbd_command *command)
{
    command->next = NULL;
    *list->last = command;
    list->last = &command->next;
}

static struct nbd_command *list_take(struct list *list)
{
    struct nbd_command *command = list->first;

    if (command && !(list->first = command->next))
        list->last = &list->first;
    return command;
}

/* ---- connecting --------------------------------------------------------------------------------- */

/* libnbd puts the name of its function first. */
static const char *nbd_message(void)
{
    const char *text = nbd_get_error();
    const char *colon = text ? strstr(text, ": ") : NULL;

    return !text ? "no reason given" : g_str_has_prefix(text, "nbd_") && colon ? colon + 2 : text;
}

static struct nbd_handle *fail_to_connect(struct nbd_handle *handle, bool refused, const char *why,
                                          GError **error)
{
    g_set_error(error, BLOCKMIG_ERROR, refused ? BLOCKMIG_ERROR_REFUSED : BLOCKMIG_ERROR_UNREACHABLE,
                "connecting: %s", why);
    nbd_close(handle);
    return NULL;
}

static bool begin_to_connect(struct nbd_handle *handle, const char *uri, const char *context, int socket)
{
    if (nbd_set_uri_allow_local_file(handle, true) < 0 || nbd_add_meta_context(handle, context) < 0 ||
        nbd_set_pread_initialize(handle, false) < 0)
        return false;
    return (socket >= 0 ? nbd_aio_connect_socket(handle, socket) : nbd_aio_connect_uri(handle, uri)) == 0;
}

/* Is it the way to the server that is closed, and not the server that does not want us?  libnbd tells by what
 * its message begins with, as far as a connection did not stand yet when we looked last. */
static bool is_unreachable(const char *message)
{
    return g_str_has_prefix(message, "connect: ") || g_str_has_prefix(message, "getaddrinfo: ");
}

static bool is_connected(struct nbd_handle *handle)
{
    struct sockaddr_storage peer;
    socklen_t length = sizeof(peer);
    int fd = nbd_aio_get_fd(handle);

    return fd >= 0 && getpeername(fd, (struct sockaddr *)&peer, &length) == 0;
}

static struct nbd_handle *connect_handle(const char *uri, const char *context, int socket, GError **error)
{
    struct nbd_handle *handle = nbd_create();
    int64_t deadline = g_get_monotonic_time() + CONNECT_TIME;
    bool connected = false;

    if (!handle) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED, "libnbd: %s", nbd_message());
        return NULL;
    }
    if (!begin_to_connect(handle, uri, context, socket))
        return fail_to_connect(handle, !is_unreachable(nbd_message()), nbd_message(), error);
    while (nbd_aio_is_ready(handle) != 1) {
        int left = (int)((deadline - g_get_monotonic_time()) / 1000);

        connected = connected || is_connected(handle);
        if (left <= 0)
            return fail_to_connect(handle, false, "no answer", error);
        if (nbd_poll(handle, left) < 0)
            return fail_to_connect(handle, connected || !is_unreachable(nbd_message()), nbd_message(), error);
        if (nbd_aio_is_dead(handle) == 1 || nbd_aio_is_closed(handle) == 1)
            return fail_to_connect(handle, connected || !is_unreachable(nbd_message()), nbd_message(), error);
    }
    return handle;
}

static uint32_t block_size(struct nbd_handle *handle, uint64_t size)
{
    int64_t least = nbd_get_block_size(handle, LIBNBD_SIZE_MINIMUM);

    return least > 0 ? (uint32_t)least : size % LEAST == 0 ? LEAST : 1;
}

static bool look_at(struct nbd_handle *handle, const char *context, struct nbd_abilities *abilities,
                    GError **error)
{
    int64_t size = nbd_get_size(handle);
    int64_t largest = nbd_get_block_size(handle, LIBNBD_SIZE_MAXIMUM);

    if (size < 0)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "its size: %s", nbd_message());
    *abilities = (struct nbd_abilities){.size = (uint64_t)size,
                                        .block = block_size(handle, (uint64_t)size),
                                        .largest = largest > 0 ? (uint32_t)MIN(largest, LARGEST) : LARGEST,
                                        .read_only = nbd_is_read_only(handle) != 0,
                                        .flush = nbd_can_flush(handle) == 1,
                                        .zero = nbd_can_zero(handle) == 1,
                                        .trim = nbd_can_trim(handle) == 1,
                                        .many = nbd_can_multi_conn(handle) == 1,
                                        .status = nbd_can_meta_context(handle, context) == 1};
    abilities->largest -= abilities->largest % abilities->block;
    if (abilities->largest == 0 || (abilities->block & (abilities->block - 1)) != 0)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "its block sizes contradict each other");
    if (abilities->size % abilities->block != 0)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "it has %" G_GUINT64_FORMAT " bytes and takes only multiples of %u: the rest "
                             "cannot be reached",
                             abilities->size, abilities->block);
    return true;
}

/* ---- commands ----------------------------------------------------------------------------------- */

static const char *kind_name(enum nbd_kind kind)
{
    static const char *const names[] = {
        [NBD_READ] = "reading",    [NBD_WRITE] = "writing",  [NBD_ZERO] = "zeroing",
        [NBD_TRIM] = "discarding", [NBD_FLUSH] = "flushing", [NBD_STATUS] = "block status of"};

    return names[kind];
}

static char *describe(const struct nbd_command *command)
{
    if (command->kind == NBD_FLUSH)
        return g_strdup(kind_name(command->kind));
    return g_strdup_printf("%s %" G_GUINT64_FORMAT " bytes at offset %" G_GUINT64_FORMAT,
                           kind_name(command->kind), command->length, command->offset);
}

static void finish(struct nbd_connection *connection, struct nbd_command *command, GError *error)
{
    g_mutex_lock(&connection->lock);
    connection->load -= command->length;
    g_mutex_unlock(&connection->lock);
    command->done(command, error);
}

static void finish_errno(struct nbd_connection *connection, struct nbd_command *command, int errnum)
{
    g_autofree char *what = describe(command);
    GError *error = NULL;

    blockmig_set_errno(&error, errnum, "%s", what);
    finish(connection, command, error);
}

static void finish_unreachable(struct nbd_connection *connection, struct nbd_command *command,
                               const char *why)
{
    g_autofree char *what = describe(command);

    finish(connection, command,
           g_error_new(BLOCKMIG_ERROR, BLOCKMIG_ERROR_UNREACHABLE, "%s: the server is gone: %s", what, why));
}

/* Called inside libnbd.  A connection that breaks fails all its commands with ENOTCONN, which no server can
 * say. */
static int answered(void *opaque, int *error)
{
    struct nbd_command *command = opaque;
    struct nbd_connection *connection = command->connection;

    g_queue_remove(&connection->asked, command);
    connection->heard = g_get_monotonic_time();
    if (*error == ENOTCONN)
        list_add(&connection->lost, command);
    else if (*error == ESHUTDOWN)
        finish_unreachable(connection, command, "it is being shut down");
    else if (*error)
        finish_errno(connection, command, *error);
    else
        finish(connection, command, NULL);
    return 1;
}

static int got_status(void *opaque, const char *context, uint64_t offset, uint32_t *entries, size_t count,
                      int *error)
{
    struct nbd_command *command = opaque;

    for (size_t i = 0; i + 1 < count; i += 2) {
        struct nbd_extent extent = {entries[i], entries[i + 1]};

        g_array_append_val(command->extents, extent);
    }
    return 0;
}

static int ignore_chunk(void *opaque, const void *chunk, size_t length, uint64_t offset, unsigned status,
                        int *error)
{
    return 0;
}

/* A qemu-nbd that meets an error while it answers in pieces breaks the connection; in one piece it tells. Of
 * ours it is known that it takes any length so; others may have limits. */
static bool issue_read(struct nbd_connection *connection, struct nbd_command *command,
                       nbd_completion_callback done)
{
    struct nbd_handle *handle = connection->handle;
    nbd_chunk_callback chunk = {.callback = ignore_chunk};

    if (!connection->uri && nbd_can_df(handle) == 1)
        return nbd_aio_pread_structured(handle, command->buffer, command->length, command->offset, chunk,
                                        done, LIBNBD_CMD_FLAG_DF) >= 0;
    return nbd_aio_pread(handle, command->buffer, command->length, command->offset, done, 0) >= 0;
}

static bool issue(struct nbd_connection *connection, struct nbd_command *command)
{
    struct nbd_handle *handle = connection->handle;
    nbd_completion_callback done = {.callback = answered, .user_data = command};
    nbd_extent_callback extent = {.callback = got_status, .user_data = command};
    uint64_t offset = command->offset, length = command->length;
    uint32_t flags = command->no_hole ? LIBNBD_CMD_FLAG_NO_HOLE : 0;

    switch (command->kind) {
    case NBD_READ:
        return issue_read(connection, command, done);
    case NBD_WRITE:
        return nbd_aio_pwrite(handle, command->buffer, length, offset, done, 0) >= 0;
    case NBD_ZERO:
        return nbd_aio_zero(handle, length, offset, done, flags) >= 0;
    case NBD_TRIM:
        return nbd_aio_trim(handle, length, offset, done, 0) >= 0;
    case NBD_FLUSH:
        return nbd_aio_flush(handle, done, 0) >= 0;
    case NBD_STATUS:
        g_array_set_size(command->extents, 0);
        return nbd_aio_block_status(handle, length, offset, extent, done, 0) >= 0;
    }
    return false;
}

static struct nbd_command *take_waiting(struct nbd_connection *connection)
{
    struct nbd_command *command;

    g_mutex_lock(&connection->lock);
    command = list_take(&connection->waiting);
    g_mutex_unlock(&connection->lock);
    return command;
}

static bool is_broken(struct nbd_connection *connection)
{
    return nbd_aio_is_dead(connection->handle) == 1 || nbd_aio_is_closed(connection->handle) == 1;
}

/* A command that libnbd does not take is not answered either. */
static void issue_waiting(struct nbd_connection *connection)
{
    struct nbd_command *command;

    while (connection->asked.length < IN_FLIGHT && !is_broken(connection) &&
           (command = take_waiting(connection))) {
        if (connection->asked.length == 0)
            connection->heard = g_get_monotonic_time();
        command->connection = connection;
        g_queue_push_tail(&connection->asked, command);
        if (issue(connection, command))
            continue;
        g_queue_remove(&connection->asked, command);
        if (is_broken(connection))
            list_add(&connection->lost, command);
        else
            finish_errno(connection, command, nbd_get_errno() ? nbd_get_errno() : EIO);
    }
}

/* ---- the thread --------------------------------------------------------------------------------- */

static void set_state(struct nbd_connection *connection, enum state state)
{
    g_mutex_lock(&connection->lock);
    connection->state = state;
    g_mutex_unlock(&connection->lock);
}

static bool is_closing(struct nbd_connection *connection)
{
    bool closing;

    g_mutex_lock(&connection->lock);
    closing = connection->closing;
    g_mutex_unlock(&connection->lock);
    return closing;
}

/* One turn: whatever comes or can go. False: the connection is broken. */
static bool exchange(struct nbd_connection *connection)
{
    unsigned direction = nbd_aio_get_direction(connection->handle);
    struct pollfd fds[] = {{.fd = nbd_aio_get_fd(connection->handle)},
                           {.fd = connection->event_fd, .events = POLLIN}};
    eventfd_t count;

    if (direction & LIBNBD_AIO_DIRECTION_READ)
        fds[0].events |= POLLIN;
    if (direction & LIBNBD_AIO_DIRECTION_WRITE)
        fds[0].events |= POLLOUT;
    poll(fds, 2, 1000);
    if (fds[1].revents)
        eventfd_read(connection->event_fd, &count);
    if (fds[0].revents & (POLLIN | POLLHUP | POLLERR))
        nbd_aio_notify_read(connection->handle);
    else if (fds[0].revents & POLLOUT)
        nbd_aio_notify_write(connection->handle);
    return !is_broken(connection) &&
           (connection->asked.length == 0 || g_get_monotonic_time() - connection->heard < SILENCE);
}

/* The same export as before, as far as can be told. */
static bool connect_again(struct nbd_connection *connection)
{
    struct nbd_abilities abilities;

    connection->handle = connect_handle(connection->uri, connection->context, -1, NULL);
    if (!connection->handle)
        return false;
    if (look_at(connection->handle, connection->context, &abilities, NULL) &&
        abilities.size == connection->abilities.size && abilities.block <= connection->abilities.block &&
        abilities.largest >= connection->abilities.largest)
        return true;
    g_clear_pointer(&connection->handle, nbd_close);
    return false;
}

/* What was on its way is asked again, before anything else. */
static void put_back_lost(struct nbd_connection *connection)
{
    g_mutex_lock(&connection->lock);
    if (connection->lost.first) {
        *connection->lost.last = connection->waiting.first;
        if (connection->waiting.first)
            connection->lost.last = connection->waiting.last;
        connection->waiting = connection->lost;
    }
    if (!connection->waiting.first)
        list_clear(&connection->waiting);
    list_clear(&connection->lost);
    g_mutex_unlock(&connection->lock);
}

static bool may_retry(const struct nbd_connection *connection)
{
    return connection->uri && connection->retry && g_atomic_int_get(connection->retry);
}

static bool recover(struct nbd_connection *connection)
{
    int64_t deadline = g_get_monotonic_time() + RETRY_TIME;
    struct nbd_command *command;

    g_clear_pointer(&connection->handle, nbd_close);
    while ((command = g_queue_pop_head(&connection->asked)))
        list_add(&connection->lost, command); /* of a server that is silent; else libnbd gave them back */
    while (may_retry(connection) && !is_closing(connection) && g_get_monotonic_time() < deadline) {
        if (connect_again(connection)) {
            put_back_lost(connection);
            return true;
        }
        g_usleep(RETRY_INTERVAL);
    }
    return false;
}

static void fail_all(struct nbd_connection *connection, const char *why)
{
    struct nbd_command *command;

    set_state(connection, GONE); /* from now on nothing is added */
    while ((command = list_take(&connection->lost)) || (command = take_waiting(connection)))
        finish_unreachable(connection, command, why);
}

static char *reason(struct nbd_connection *connection)
{
    return g_strdup(is_broken(connection) ? "the connection was closed" : "no answer");
}

/* A server that does not read is not waited for. */
static void say_goodbye(struct nbd_handle *handle)
{
    if (nbd_aio_disconnect(handle, 0) == 0 && nbd_aio_get_direction(handle) & LIBNBD_AIO_DIRECTION_WRITE)
        nbd_poll(handle, 100);
}

static void *run(void *opaque)
{
    struct nbd_connection *connection = opaque;
    g_autofree char *why = NULL;

    if (!connection->handle && !connect_again(connection)) {
        fail_all(connection, "it takes no more connections");
        return NULL;
    }
    set_state(connection, READY);
    while (!is_closing(connection)) {
        issue_waiting(connection);
        if (exchange(connection))
            continue;
        g_free(why);
        why = reason(connection);
        if (!recover(connection)) {
            fail_all(connection, why);
            return NULL;
        }
    }
    say_goodbye(connection->handle);
    g_clear_pointer(&connection->handle, nbd_close);
    return NULL;
}

/* ---- from outside ------------------------------------------------------------------------------- */

static struct nbd_connection *connection_new(const struct nbd_way *way)
{
    struct nbd_connection *connection = g_new0(struct nbd_connection, 1);

    g_mutex_init(&connection->lock);
    list_clear(&connection->waiting);
    list_clear(&connection->lost);
    connection->uri = g_strdup(way->uri);
    connection->context = g_strdup(way->context ? way->context : LIBNBD_CONTEXT_BASE_ALLOCATION);
    connection->retry = way->retry;
    g_queue_init(&connection->asked);
    connection->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return connection;
}

static void connection_free(struct nbd_connection *connection)
{
    if (connection->handle)
        nbd_close(connection->handle);
    if (connection->event_fd >= 0)
        close(connection->event_fd);
    g_mutex_clear(&connection->lock);
    g_free(connection->uri);
    g_free(connection->context);
    g_free(connection);
}

static void start(struct nbd_connection *connection)
{
    connection->thread = g_thread_new("nbd", run, connection);
}

struct nbd_connection *nbd_connection_open(const struct nbd_way *way, struct nbd_abilities *abilities,
                                           GError **error)
{
    struct nbd_connection *connection = connection_new(way);

    connection->handle = connect_handle(way->uri, connection->context, way->socket, error);
    if (!connection->handle ||
        !look_at(connection->handle, connection->context, &connection->abilities, error)) {
        connection_free(connection);
        return NULL;
    }
    *abilities = connection->abilities;
    connection->state = READY;
    start(connection);
    return connection;
}

struct nbd_connection *nbd_connection_open_another(const struct nbd_way *way,
                                                   const struct nbd_abilities *abilities)
{
    struct nbd_connection *connection = connection_new(way);

    connection->abilities = *abilities;
    start(connection);
    return connection;
}

void nbd_connection_close(struct nbd_connection *connection)
{
    if (!connection)
        return;
    g_mutex_lock(&connection->lock);
    connection->closing = true;
    g_mutex_unlock(&connection->lock);
    eventfd_write(connection->event_fd, 1);
    g_thread_join(connection->thread);
    connection_free(connection);
}

bool nbd_connection_is_ready(struct nbd_connection *connection)
{
    bool ready;

    g_mutex_lock(&connection->lock);
    ready = connection->state == READY;
    g_mutex_unlock(&connection->lock);
    return ready;
}

uint64_t nbd_connection_load(struct nbd_connection *connection)
{
    uint64_t load;

    g_mutex_lock(&connection->lock);
    load = connection->load;
    g_mutex_unlock(&connection->lock);
    return load;
}

void nbd_connection_submit(struct nbd_connection *connection, struct nbd_command *command)
{
    bool gone;

    g_mutex_lock(&connection->lock);
    gone = connection->state == GONE;
    connection->load += command->length;
    if (!gone)
        list_add(&connection->waiting, command);
    g_mutex_unlock(&connection->lock);
    if (gone)
        finish_unreachable(connection, command, "the connection was closed");
    else
        eventfd_write(connection->event_fd, 1);
}
