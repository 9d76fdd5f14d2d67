/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/remote/credentials.h"
#include "blockmig/remote/machines.h"
#include "blockmig/remote/rate.h"
#include "blockmig/remote/server-internal.h"
#include "blockmig/remote/sockets.h"
#include "blockmig/remote/watch.h"
#include "blockmig/storage/agent-client.h"
#include "formats/error.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define PRIORITY                                                                                             \
    "NORMAL:%SERVER_PRECEDENCE:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2:-CIPHER-ALL:+AES-128-GCM:+AES-256-GCM:+"  \
    "CHACHA20-POLY1305"
#define MAX_CONNECTIONS 512
#define MAX_PER_ADDRESS 64
#define MEMORY          (256u << 10) /* of a connection, for its buffers */

/* What answers at a listener.  What was read anew holds for new connections, so they get a new one. */
struct front {
    struct MHD_Daemon *daemon;
    int fd; /* that it does not listen at any more, but may still look at; or -1 */
    struct credentials *credentials;
};

struct listener {
    struct server *server;
    int fd;
    bool local;
    bool inherited; /* from whoever started us */
    char *path;     /* of the socket that is ours */
    struct front *front;
    GPtrArray *old; /* of struct front *, which only have their connections */
};

struct server {
    GRWLock lock; /* of these three */
    struct agent_config *config;
    struct credentials *credentials; /* NULL: no TLS */
    unsigned generation;             /* of both */
    struct agent_config *first;      /* what the process was confined for */
    struct handle_table *handles;
    GPtrArray *listeners; /* of struct listener * */
    struct rates *rates;
    struct watch *watch;
    gint under_way; /* requests */
    gint ending;
};

/* What is known of a connection, from its first request on. */
struct guest {
    char *peer, *session;
    GError *refusal;
    unsigned generation;     /* of what it was let in by */
    struct watched *watched; /* NULL on a Unix socket */
};

/* ---- who asks ----------------------------------------------------------------------------------- */

/* With the server's lock. */
static void meet(const struct listener *listener, struct MHD_Connection *connection, struct guest *guest)
{
    const struct server *server = listener->server;
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(
        connection, listener->local ? MHD_CONNECTION_INFO_CONNECTION_FD : MHD_CONNECTION_INFO_GNUTLS_SESSION);

    g_clear_pointer(&guest->peer, g_free);
    g_clear_error(&guest->refusal);
    guest->generation = server->generation;
    if (listener->local) {
        guest->peer = peer_of_socket(info->connect_fd, &guest->refusal);
        return;
    }
    guest->peer = peer_of_session(server->credentials->trust, info->tls_session, &guest->refusal);
    if (guest->peer && !agent_config_allows(server->config->allow, guest->peer))
        blockmig_fail(&guest->refusal, BLOCKMIG_ERROR_REFUSED, "'%s' may not use this agent", guest->peer);
}

/* Also who was let in before, if that was by what no longer holds.  What holds now, to be given back. */
static struct agent_config *meet_anew(const struct listener *listener, struct MHD_Connection *connection,
                                      struct guest *guest)
{
    struct server *server = listener->server;
    g_autoptr(GRWLockReaderLocker) locker = g_rw_lock_reader_locker_new(&server->lock);

    if (guest->generation != server->generation)
        meet(listener, connection, guest);
    return agent_config_ref(server->config);
}

/* A process's connections belong together; a client without a name of its own gets one per connection. */
static void join_session(const struct listener *listener, struct MHD_Connection *connection,
                         struct guest *guest)
{
    const char *name = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, AGENT_SESSION_HEADER);

    if (guest->session)
        return;
    guest->session = name && agent_is_id(name) ? g_strdup_printf("%s %s", guest->peer, name)
                                               : g_strdup_printf("%s %p", guest->peer, (void *)guest);
    handle_session_enter(listener->server->handles, guest->session);
}

/* A client whose host or link is gone says no goodbye; its files are closed after 20 seconds all the same. */
static void mind_silence(int fd)
{
    int on = 1, seconds = 5, count = 3;
    unsigned milliseconds = 20000;

    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &seconds, sizeof(seconds));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &seconds, sizeof(seconds));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count));
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &milliseconds, sizeof(milliseconds));
}

static void begin_watching(const struct server *server, struct MHD_Connection *connection,
                           struct guest *guest)
{
    int fd = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;

    mind_silence(fd);
    guest->watched = watch_add(server->watch, fd);
}

static void connection_changed(void *opaque, struct MHD_Connection *connection, void **context,
                               enum MHD_ConnectionNotificationCode code)
{
    const struct listener *listener = opaque;
    struct guest *guest = *context;

    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        *context = g_new0(struct guest, 1);
        if (!listener->local)
            begin_watching(listener->server, connection, *context);
        return;
    }
    watch_remove(listener->server->watch, guest->watched);
    if (guest->session)
        handle_session_leave(listener->server->handles, guest->session);
    g_free(guest->peer);
    g_free(guest->session);
    g_clear_error(&guest->refusal);
    g_free(guest);
    *context = NULL;
}

/* ---- requests ----------------------------------------------------------------------------------- */

static enum MHD_Result send_answer(struct MHD_Connection *connection, struct MHD_Response *response,
                                   unsigned status)
{
    enum MHD_Result result = MHD_queue_response(connection, status, response);

    MHD_destroy_response(response);
    return result;
}

static struct guest *guest_of(struct MHD_Connection *connection)
{
    return MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT)->socket_context;
}

/* Who is to come back later.  NULL: nobody. */
static struct request *put_off(const struct server *server, const struct agent_config *config,
                               const struct guest *guest)
{
    unsigned status = MHD_HTTP_SERVICE_UNAVAILABLE;
    GError *error = NULL;

    if (g_atomic_int_get(&server->ending)) {
        blockmig_fail(&error, BLOCKMIG_ERROR_FAILED, "it is ending");
    } else if (!rates_allow(server->rates, guest->peer, config->requests_per_second)) {
        status = MHD_HTTP_TOO_MANY_REQUESTS;
        blockmig_fail(&error, BLOCKMIG_ERROR_FAILED, "more than %u requests in a second",
                      config->requests_per_second);
    }
    return error ? request_new_refused(status, error) : NULL;
}

/* Before the body is read: a stranger's is not. */
static enum MHD_Result begin_request(struct listener *listener, struct MHD_Connection *connection,
                                     const char *url, const char *method, void **request)
{
    struct guest *guest = guest_of(connection);
    g_autoptr(agent_config_t) config = meet_anew(listener, connection, guest);
    unsigned status = 0;

    watch_note(listener->server->watch, guest->watched, WATCH_MOVING);

    if (guest->refusal) {
        struct MHD_Response *response = answer_error(guest->refusal, &status);

        MHD_add_response_header(response, MHD_HTTP_HEADER_CONNECTION, "close");
        return send_answer(connection, response, MHD_HTTP_FORBIDDEN);
    }
    g_atomic_int_inc(&listener->server->under_way);
    if ((*request = put_off(listener->server, config, guest)))
        return MHD_YES;
    join_session(listener, connection, guest);
    *request = request_new(&(struct caller){.config = config,
                                            .handles = listener->server->handles,
                                            .peer = guest->peer,
                                            .session = guest->session,
                                            .local = listener->local},
                           method, url);
    return MHD_YES;
}

static enum MHD_Result do_next(struct request *request, struct MHD_Connection *connection, const char *data,
                               size_t *length, enum watch_state *next)
{
    struct MHD_Response *response;
    unsigned status = 0;

    *next = WATCH_MOVING;
    if (request_has_no_end(request)) {
        *next = WATCH_FREE;
        MHD_set_connection_option(connection, MHD_CONNECTION_OPTION_TIMEOUT, 0u);
    }
    if (*length > 0) {
        request_feed(request, data, *length);
        *length = 0;
        return MHD_YES;
    }
    response = request_answer(request, connection, &status);
    return send_answer(connection, response, status);
}

/* The time that we work is not the client's. */
static enum MHD_Result asked(void *opaque, struct MHD_Connection *connection, const char *url,
                             const char *method, const char *version, const char *data, size_t *length,
                             void **request)
{
    struct listener *listener = opaque;
    struct watched *watched = guest_of(connection)->watched;
    enum watch_state next;
    enum MHD_Result result;

    if (!*request)
        return begin_request(listener, connection, url, method, request);
    watch_note(listener->server->watch, watched, WATCH_WORKING);
    result = do_next(*request, connection, data, length, &next);
    watch_note(listener->server->watch, watched, next);
    return result;
}

static void request_over(void *opaque, struct MHD_Connection *connection, void **request,
                         enum MHD_RequestTerminationCode code)
{
    const struct listener *listener = opaque;

    if (!*request)
        return;
    request_free(g_steal_pointer(request));
    watch_note(listener->server->watch, guest_of(connection)->watched, WATCH_IDLE);
    g_atomic_int_add(&listener->server->under_way, -1);
}

/* ---- sockets ------------------------------------------------------------------------------------ */

static void front_free(gpointer data)
{
    struct front *front = data;

    MHD_stop_daemon(front->daemon);
    if (front->fd >= 0)
        close(front->fd);
    credentials_unref(front->credentials);
    g_free(front);
}

static void listener_free(gpointer data)
{
    struct listener *listener = data;

    g_ptr_array_unref(listener->old);
    g_clear_pointer(&listener->front, front_free);
    if (listener->fd >= 0)
        close(listener->fd);
    if (listener->path)
        unlink(listener->path);
    g_free(listener->path);
    g_free(listener);
}

static struct listener *add_listener(struct server *server, int fd, bool local)
{
    struct listener *listener = g_new0(struct listener, 1);

    listener->server = server;
    listener->fd = fd;
    listener->local = local;
    listener->old = g_ptr_array_new_with_free_func(front_free);
    g_ptr_array_add(server->listeners, listener);
    return listener;
}

static bool listen_local(struct server *server, const char *path, GError **error)
{
    int fd = socket_local(path, error);

    if (fd < 0)
        return false;
    add_listener(server, fd, true)->path = g_strdup(path);
    return true;
}

static bool listen_to(struct server *server, const char *text, GError **error)
{
    g_autoptr(GArray) sockets = g_array_new(FALSE, FALSE, sizeof(int));
    bool ok = sockets_listen(text, sockets, error);

    for (guint i = 0; i < sockets->len; i++)
        add_listener(server, g_array_index(sockets, int, i), false);
    return ok;
}

static bool listen_as_configured(struct server *server, GError **error)
{
    const struct agent_config *config = server->config;
    bool ok = !config->socket || listen_local(server, config->socket, error);

    for (char **text = config->listen; ok && text && *text; text++)
        ok = listen_to(server, *text, error);
    return ok;
}

/* Whoever opened them keeps them, for the next agent. */
static bool take_inherited(struct server *server, const int *inherited, unsigned count, GError **error)
{
    for (unsigned i = 0; i < count; i++) {
        bool local;

        if (!socket_inspect(inherited[i], &local, error))
            return false;
        add_listener(server, inherited[i], local)->inherited = true;
    }
    return true;
}

static bool needs_credentials(const struct server *server)
{
    for (guint i = 0; i < server->listeners->len; i++)
        if (!((const struct listener *)g_ptr_array_index(server->listeners, i))->local)
            return true;
    return false;
}

static bool open_all(struct server *server, const int *inherited, unsigned count, GError **error)
{
    const char *directory = server->config->tls_directory;

    if (!(count ? take_inherited(server, inherited, count, error) : listen_as_configured(server, error)))
        return false;
    if (server->listeners->len == 0)
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "[agent]: neither listen= nor socket= is given");
    if (!needs_credentials(server))
        return true;
    if (!directory)
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "[agent]: TLS needs tls-directory=");
    return (server->credentials = credentials_read(directory, error)) != NULL;
}

struct server *server_open(struct agent_config *config, const int *inherited, unsigned count, GError **error)
{
    struct server *server = g_new0(struct server, 1);

    g_rw_lock_init(&server->lock);
    server->config = agent_config_ref(config);
    server->first = agent_config_ref(config);
    server->generation = 1;
    server->handles = handle_table_new();
    server->rates = rates_new();
    server->listeners = g_ptr_array_new_with_free_func(listener_free);
    if ((!config->machines || machines_prepare(config->machines, error)) &&
        open_all(server, inherited, count, error))
        return server;
    server_close(server);
    return NULL;
}

static struct MHD_Daemon *new_daemon(struct listener *listener, int fd, const struct credentials *credentials)
{
    struct MHD_OptionItem none[] = {{MHD_OPTION_END, 0, NULL}};
    struct MHD_OptionItem tls[] = {
        {MHD_OPTION_HTTPS_MEM_CERT, 0, listener->local ? NULL : credentials->certificate},
        {MHD_OPTION_HTTPS_MEM_KEY, 0, listener->local ? NULL : credentials->key},
        {MHD_OPTION_HTTPS_MEM_TRUST, 0, listener->local ? NULL : credentials->authority},
        {MHD_OPTION_HTTPS_PRIORITIES, 0, (void *)PRIORITY},
        {MHD_OPTION_END, 0, NULL},
    };

    return MHD_start_daemon(MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_THREAD_PER_CONNECTION | MHD_USE_POLL |
                                MHD_USE_ITC | (listener->local ? 0 : MHD_USE_TLS),
                            0, NULL, NULL, asked, listener, MHD_OPTION_LISTEN_SOCKET, fd,
                            MHD_OPTION_NOTIFY_COMPLETED, request_over, listener, MHD_OPTION_NOTIFY_CONNECTION,
                            connection_changed, listener, MHD_OPTION_CONNECTION_LIMIT, MAX_CONNECTIONS,
                            MHD_OPTION_PER_IP_CONNECTION_LIMIT, listener->local ? 0 : MAX_PER_ADDRESS,
                            MHD_OPTION_CONNECTION_TIMEOUT, WATCH_IDLE_SECONDS,
                            MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)MEMORY, MHD_OPTION_ARRAY,
                            listener->local ? none : tls, MHD_OPTION_END);
}

static struct front *front_new(struct listener *listener, struct credentials *credentials, GError **error)
{
    int fd = fcntl(listener->fd, F_DUPFD_CLOEXEC, 0);
    struct MHD_Daemon *daemon = fd < 0 ? NULL : new_daemon(listener, fd, credentials);
    struct front *front;

    if (!daemon) { /* which has closed the socket */
        blockmig_fail(error, BLOCKMIG_ERROR_FAILED,
                      "the server cannot be started: are certificate and key in order?");
        return NULL;
    }
    front = g_new0(struct front, 1);
    front->daemon = daemon;
    front->fd = -1;
    front->credentials = credentials_ref(credentials);
    return front;
}

bool server_start(struct server *server, GError **error)
{
    server->watch = watch_new();
    watch_patience(server->watch, server->config->patience);
    for (guint i = 0; i < server->listeners->len; i++) {
        struct listener *listener = g_ptr_array_index(server->listeners, i);

        if (!(listener->front = front_new(listener, server->credentials, error)))
            return false;
    }
    return true;
}

/* It lets nobody in any more. */
static void front_retire(struct listener *listener)
{
    struct front *front = g_steal_pointer(&listener->front);

    if (!front)
        return;
    front->fd = MHD_quiesce_daemon(front->daemon);
    g_ptr_array_add(listener->old, front);
}

/* ---- reading anew ------------------------------------------------------------------------------- */

/* For each listener with TLS, one that shows the new credentials. */
static GPtrArray *new_fronts(struct server *server, struct credentials *credentials, GError **error)
{
    GPtrArray *fronts = g_ptr_array_new_with_free_func(front_free);

    for (guint i = 0; i < server->listeners->len; i++) {
        struct listener *listener = g_ptr_array_index(server->listeners, i);
        struct front *front = listener->local ? NULL : front_new(listener, credentials, error);

        if (front) {
            g_ptr_array_add(fronts, front);
        } else if (!listener->local) {
            g_ptr_array_unref(fronts);
            return NULL;
        }
    }
    return fronts;
}

static void change_fronts(struct server *server, GPtrArray *fronts)
{
    for (guint i = 0, next = 0; i < server->listeners->len; i++) {
        struct listener *listener = g_ptr_array_index(server->listeners, i);

        if (listener->local)
            continue;
        front_retire(listener);
        listener->front = g_ptr_array_index(fronts, next++);
        for (guint j = listener->old->len; j-- > 0;) {
            const struct front *old = g_ptr_array_index(listener->old, j);
            const union MHD_DaemonInfo *info =
                MHD_get_daemon_info(old->daemon, MHD_DAEMON_INFO_CURRENT_CONNECTIONS);

            if (info && info->num_connections == 0)
                g_ptr_array_remove_index_fast(listener->old, j);
        }
    }
    g_ptr_array_set_free_func(fronts, NULL);
    g_ptr_array_unref(fronts);
}

bool server_change(struct server *server, struct agent_config *config, GError **error)
{
    struct credentials *credentials = NULL;
    GPtrArray *fronts;

    if (!agent_config_can_follow(config, server->first, error) ||
        (server->credentials && !(credentials = credentials_read(config->tls_directory, error))))
        return false;
    if (!(fronts = new_fronts(server, credentials, error))) {
        credentials_unref(credentials);
        return false;
    }
    g_rw_lock_writer_lock(&server->lock);
    agent_config_unref(server->config);
    credentials_unref(server->credentials);
    server->config = agent_config_ref(config);
    server->credentials = credentials;
    server->generation++;
    g_rw_lock_writer_unlock(&server->lock);
    watch_patience(server->watch, config->patience);
    change_fronts(server, fronts);
    return true;
}

/* ---- the end ------------------------------------------------------------------------------------ */

static void take_no_more(struct listener *listener)
{
    front_retire(listener);
    if (listener->path)
        unlink(listener->path);
    g_clear_pointer(&listener->path, g_free);
    if (!listener->inherited)
        shutdown(listener->fd, SHUT_RDWR);
}

void server_begin_end(struct server *server)
{
    g_atomic_int_set(&server->ending, 1);
    for (guint i = 0; i < server->listeners->len; i++)
        take_no_more(g_ptr_array_index(server->listeners, i));
}

bool server_is_busy(struct server *server)
{
    return g_atomic_int_get(&server->under_way) > 0;
}

void server_close(struct server *server)
{
    if (!server)
        return;
    g_ptr_array_unref(server->listeners);
    handle_table_free(server->handles);
    rates_free(server->rates);
    watch_free(server->watch);
    agent_config_unref(server->config);
    agent_config_unref(server->first);
    credentials_unref(server->credentials);
    g_rw_lock_clear(&server->lock);
    g_free(server);
}
