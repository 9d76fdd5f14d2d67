/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A tunnel is two requests: the answer to the first is what comes from there, the body of the second what
 * goes there; neither has an end until one side has.  (HTTP could be left altogether, by "Upgrade";
 * libmicrohttpd 0.9.75 then carries four bytes at a time where there is TLS.)
 */
#include "blockmig/storage/agent-tunnel.h"

#include "blockmig/storage/agent-client-internal.h"
#include "blockmig/storage/agent-storage.h"
#include "blockmig/storage/frame.h"
#include "formats/error.h"

#include <errno.h>
#include <fcntl.h>
#include <glib-unix.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define BUFFER    (512L << 10)
#define HELD_TICK 1000 /* us */
/* Without an answer a link is cut; breaks that are shorter do no harm. */
#define LINK_SECONDS 8
/* Bytes that wait here for the link.  All that is on its way when a machine stands still is a part of its
 * pause, and its hypervisor, which reckons with what it hands over, does not know of it. */
#define UNSENT     (128 << 10)
#define PIECE      (128u << 10) /* of content in a frame, at most */
#define AUTO_LEVEL 1
#define AS_IT_IS   64u /* pieces, before packing is tried again */

struct relay {
    struct agent_client *client;
    char *name, *path;
    bool packed;
    int fd;
    int wake[2]; /* closing it ends the thread */
    GThread *thread;
    struct relay_state *state;
};

/* Outlives the relay as long as there are passages. */
struct relay_state {
    gatomicrefcount references;
    gint hold;  /* atomic: enum relay_hold */
    gint cut;   /* atomic: what is held goes nowhere */
    gint begun; /* atomic: something came from here */
    GMutex lock;
    char *trouble;
};

/* One connection, in the hands of the thread that receives. */
struct passage {
    struct agent_client *client;
    struct relay_state *state;
    char *name, *id;
    int fd;
    CURL *handle;
    GByteArray *refusal;
    GThread *sender; /* NULL until the other side has answered */
    gint ended;      /* atomic: the other side has */
    char last;       /* what is held back, if anything */
    bool has_last;
    bool packed;           /* what goes there may be, and */
    bool framed;           /* the other side takes frames */
    struct parcel *parcel; /* of the sender, if it sends them */
    int socket;            /* on which it does */
};

/* A frame on its way. */
struct parcel {
    GByteArray *frame;
    size_t sent;
    uint64_t offset;   /* of what comes after it, in all that goes there */
    unsigned as_it_is; /* pieces that are still to go so */
    uint64_t unread;   /* microseconds in which the other side had no room */
    char piece[PIECE];
};

static void state_unref(struct relay_state *state)
{
    if (!g_atomic_ref_count_dec(&state->references))
        return;
    g_mutex_clear(&state->lock);
    g_free(state->trouble);
    g_free(state);
}

static void set_trouble(struct relay_state *state, const char *text)
{
    g_mutex_lock(&state->lock);
    g_free(state->trouble);
    state->trouble = g_strdup(text);
    g_mutex_unlock(&state->lock);
}

/* A tunnel may be silent for hours, but whoever waits at its end may be a guest that writes: a link that is
 * cut is noticed soon. */
static int watch_link(void *opaque, curl_socket_t fd, curlsocktype purpose)
{
    const struct {
        int level, name, value;
    } options[] = {
        {SOL_SOCKET, SO_KEEPALIVE, 1},
        {IPPROTO_TCP, TCP_KEEPIDLE, LINK_SECONDS / 4},
        {IPPROTO_TCP, TCP_KEEPINTVL, LINK_SECONDS / 4},
        {IPPROTO_TCP, TCP_KEEPCNT, 3},
        {IPPROTO_TCP, TCP_USER_TIMEOUT, LINK_SECONDS * 1000},
        {IPPROTO_TCP, TCP_NOTSENT_LOWAT, UNSENT},
    };

    if (opaque)
        *(int *)opaque = fd;
    /* None of this on a Unix socket, which breaks at once. */
    for (size_t i = 0; i < G_N_ELEMENTS(options); i++)
        (void)setsockopt(fd, options[i].level, options[i].name, &options[i].value, sizeof(options[i].value));
    return CURL_SOCKOPT_OK;
}

static void set_up(const struct agent_client *client, CURL *handle, const char *url,
                   struct curl_slist *headers)
{
    agent_client_set_up(client, handle, url);
    agent_curl.easy_setopt(handle, CURLOPT_HTTPHEADER, headers);
    agent_curl.easy_setopt(handle, CURLOPT_SOCKOPTFUNCTION, watch_link);
}

/* ---- from here ----------------------------------------------------------------------------------- */

static bool holds(const struct passage *passage, enum relay_hold least)
{
    return g_atomic_int_get(&passage->state->hold) >= (gint)least;
}

static bool is_ended(const struct passage *passage)
{
    return g_atomic_int_get(&passage->ended) || g_atomic_int_get(&passage->state->cut);
}

static ssize_t receive(const struct passage *passage, char *buffer, size_t room, int flags)
{
    ssize_t done;

    do {
        done = recv(passage->fd, buffer, room, flags);
    } while (done < 0 && errno == EINTR);
    return done;
}

static bool has_more(const struct passage *passage)
{
    char next;

    return receive(passage, &next, 1, MSG_PEEK | MSG_DONTWAIT) > 0;
}

/* Until something may go; false: there is nobody to go to. */
static bool wait_to_begin(const struct passage *passage)
{
    while (holds(passage, RELAY_HOLDS_ALL)) {
        if (is_ended(passage))
            return false;
        if (has_more(passage))
            g_atomic_int_set(&passage->state->begun, 1);
        g_usleep(HELD_TICK);
    }
    return true;
}

/* Until there is more behind the byte that is held back, or all may go. */
static bool wait_for_more(const struct passage *passage)
{
    while (holds(passage, RELAY_HOLDS_LAST_BYTE)) {
        if (is_ended(passage))
            return false;
        if (has_more(passage))
            return true;
        g_usleep(HELD_TICK);
    }
    return true;
}

/* Waits for something; -1: it broke.  While the last byte is held, what came last waits for the next. */
static ssize_t fetch(struct passage *passage, char *buffer, size_t room)
{
    size_t have;

    do {
        ssize_t done;

        if (!wait_to_begin(passage) || (passage->has_last && !wait_for_more(passage)))
            return -1;
        have = passage->has_last ? 1 : 0;
        buffer[0] = passage->last;
        done = receive(passage, buffer + have, room - have, have ? MSG_DONTWAIT : 0);
        if (done < 0 && !(have && (errno == EAGAIN || errno == EWOULDBLOCK)))
            return -1;
        have += (size_t)MAX(done, 0);
        if (have > 0)
            g_atomic_int_set(&passage->state->begun, 1);
        passage->has_last = have > 0 && holds(passage, RELAY_HOLDS_LAST_BYTE);
        if (passage->has_last)
            passage->last = buffer[--have];
    } while (have == 0 && passage->has_last);
    return (ssize_t)have;
}

/* Does something here wait for the link, and the link not for who reads at its other end? */
static bool is_link_busy(struct passage *passage)
{
    struct parcel *parcel = passage->parcel;
    struct tcp_info info = {0};
    socklen_t length = sizeof(info);
    uint64_t before = parcel->unread;

    /* A Unix socket has none of this. */
    if (getsockopt(passage->socket, IPPROTO_TCP, TCP_INFO, &info, &length) < 0)
        return false;
    parcel->unread = info.tcpi_rwnd_limited;
    return info.tcpi_notsent_bytes > 0 && parcel->unread == before;
}

/* By itself, a piece is packed only while others wait for the link. */
static int choose_level(struct passage *passage)
{
    struct parcel *parcel = passage->parcel;
    int wanted = storage_agent_compression();

    if (wanted >= 0)
        return wanted;
    if (parcel->as_it_is > 0) {
        parcel->as_it_is--;
        return 0;
    }
    return is_link_busy(passage) ? AUTO_LEVEL : 0;
}

/* If those that waited did not last until it was packed, the link is too fast for it. */
static void put_piece(struct passage *passage, size_t length)
{
    struct parcel *parcel = passage->parcel;
    int level = choose_level(passage);

    frame_put_data(parcel->frame, parcel->offset, parcel->piece, length, level);
    if (level && !is_link_busy(passage))
        parcel->as_it_is = AS_IT_IS;
}

static bool make_parcel(struct passage *passage)
{
    struct parcel *parcel = passage->parcel;
    ssize_t length = fetch(passage, parcel->piece, PIECE);

    g_byte_array_set_size(parcel->frame, 0);
    parcel->sent = 0;
    if (length > 0)
        put_piece(passage, (size_t)length);
    parcel->offset += (uint64_t)MAX(length, 0);
    return length >= 0;
}

static size_t take_parcel(char *buffer, size_t size, size_t count, void *opaque)
{
    struct passage *passage = opaque;
    struct parcel *parcel = passage->parcel;
    size_t length;

    if (parcel->sent == parcel->frame->len && !make_parcel(passage))
        return CURL_READFUNC_ABORT;
    length = MIN(size * count, parcel->frame->len - parcel->sent);
    memcpy(buffer, parcel->frame->data + parcel->sent, length);
    parcel->sent += length;
    return length;
}

static size_t take_as_it_is(char *buffer, size_t size, size_t count, void *opaque)
{
    ssize_t length = fetch(opaque, buffer, size * count);

    return length < 0 ? CURL_READFUNC_ABORT : (size_t)length;
}

static size_t ignore(char *data, size_t size, size_t count, void *opaque)
{
    return size * count;
}

static gpointer send_all(gpointer data)
{
    struct passage *passage = data;
    struct agent_client *client = passage->client;
    bool framed = passage->packed && passage->framed && storage_agent_compression() != 0;
    g_autofree char *url = g_strdup_printf("%s/v1/%s/%s/%s", client->base,
                                           framed ? "framed-tunnels" : "tunnels", passage->name, passage->id);
    struct curl_slist *headers = agent_curl.slist_append(NULL, client->session);
    CURL *handle = agent_curl.easy_init();

    if (framed) {
        passage->parcel = g_new0(struct parcel, 1);
        passage->parcel->frame = g_byte_array_sized_new(PIECE);
    }
    headers = agent_curl.slist_append(headers, "Expect:");
    headers = agent_curl.slist_append(headers, "Transfer-Encoding: chunked");
    set_up(client, handle, url, headers);
    agent_curl.easy_setopt(handle, CURLOPT_CUSTOMREQUEST, "POST");
    agent_curl.easy_setopt(handle, CURLOPT_SOCKOPTDATA, &passage->socket);
    agent_curl.easy_setopt(handle, CURLOPT_UPLOAD, 1L);
    agent_curl.easy_setopt(handle, CURLOPT_UPLOAD_BUFFERSIZE, BUFFER);
    agent_curl.easy_setopt(handle, CURLOPT_READFUNCTION, framed ? take_parcel : take_as_it_is);
    agent_curl.easy_setopt(handle, CURLOPT_READDATA, passage);
    agent_curl.easy_setopt(handle, CURLOPT_WRITEFUNCTION, ignore);
    agent_curl.easy_perform(handle);
    agent_curl.easy_cleanup(handle);
    agent_curl.slist_free_all(headers);
    return NULL;
}

/* ---- from there ---------------------------------------------------------------------------------- */

static long status_of(const struct passage *passage)
{
    long status = 0;

    agent_curl.easy_getinfo(passage->handle, CURLINFO_RESPONSE_CODE, &status);
    return status;
}

/* With the end of the answer's head the tunnel is open on the other side. */
static size_t take_header(char *line, size_t size, size_t count, void *opaque)
{
    static const char framed[] = AGENT_TUNNEL_HEADER ": " AGENT_TUNNEL_FRAMED;
    struct passage *passage = opaque;

    passage->framed |=
        size * count >= strlen(framed) && g_ascii_strncasecmp(line, framed, strlen(framed)) == 0;
    if (size * count == 2 && memcmp(line, "\r\n", 2) == 0 && status_of(passage) == 200 && !passage->sender)
        passage->sender = g_thread_new("tunnel", send_all, passage);
    return size * count;
}

static size_t give_here(char *data, size_t size, size_t count, void *opaque)
{
    struct passage *passage = opaque;
    size_t length = size * count;

    if (status_of(passage) != 200) {
        g_byte_array_append(passage->refusal, (const guint8 *)data, (guint)length);
        return passage->refusal->len > MAX_JSON ? 0 : length;
    }
    for (size_t at = 0; at < length;) {
        ssize_t done = send(passage->fd, data + at, length - at, MSG_NOSIGNAL);

        if (done < 0 && errno != EINTR)
            return 0;
        at += (size_t)MAX(done, 0);
    }
    return length;
}

static void note_end(struct passage *passage, CURLcode result)
{
    g_autoptr(GError) local = NULL;
    long status = status_of(passage);

    if (passage->sender)
        return;
    if (result == CURLE_OK)
        agent_client_pass_on(passage->refusal, status, NULL, &local);
    else
        agent_client_explain(passage->client, result, "", &local);
    set_trouble(passage->state, local->message);
}

static gpointer carry(gpointer data)
{
    struct passage *passage = data;
    struct agent_client *client = passage->client;
    g_autofree char *url = g_strdup_printf("%s/v1/tunnels/%s/%s", client->base, passage->name, passage->id);
    struct curl_slist *headers = agent_curl.slist_append(NULL, client->session);

    passage->handle = agent_curl.easy_init();
    set_up(client, passage->handle, url, headers);
    agent_curl.easy_setopt(passage->handle, CURLOPT_BUFFERSIZE, BUFFER);
    agent_curl.easy_setopt(passage->handle, CURLOPT_HEADERFUNCTION, take_header);
    agent_curl.easy_setopt(passage->handle, CURLOPT_HEADERDATA, passage);
    agent_curl.easy_setopt(passage->handle, CURLOPT_WRITEFUNCTION, give_here);
    agent_curl.easy_setopt(passage->handle, CURLOPT_WRITEDATA, passage);
    note_end(passage, agent_curl.easy_perform(passage->handle));
    g_atomic_int_set(&passage->ended, 1);
    shutdown(passage->fd, SHUT_RDWR); /* the sender ends, too */
    if (passage->sender)
        g_thread_join(passage->sender);
    agent_curl.easy_cleanup(passage->handle);
    agent_curl.slist_free_all(headers);
    close(passage->fd);
    g_byte_array_unref(passage->refusal);
    if (passage->parcel)
        g_byte_array_unref(passage->parcel->frame);
    g_free(passage->parcel);
    state_unref(passage->state);
    g_free(passage->name);
    g_free(passage->id);
    g_free(passage);
    return NULL;
}

/* ---- the relay ----------------------------------------------------------------------------------- */

static void pass_on(struct relay *relay, int fd)
{
    struct passage *passage = g_new0(struct passage, 1);

    g_atomic_ref_count_inc(&relay->state->references);
    passage->client = relay->client;
    passage->state = relay->state;
    passage->name = g_strdup(relay->name);
    passage->id = agent_new_id();
    passage->fd = fd;
    passage->packed = relay->packed;
    passage->refusal = g_byte_array_new();
    g_thread_unref(g_thread_new("tunnel", carry, passage));
}

static gpointer serve(gpointer data)
{
    struct relay *relay = data;

    for (;;) {
        struct pollfd fds[2] = {{.fd = relay->fd, .events = POLLIN},
                                {.fd = relay->wake[0], .events = POLLIN}};
        int fd;

        if (poll(fds, 2, -1) < 0 && errno != EINTR)
            break;
        if (fds[1].revents)
            break;
        fd = fds[0].revents ? accept4(relay->fd, NULL, NULL, SOCK_CLOEXEC) : -1;
        if (fd >= 0)
            pass_on(relay, fd);
    }
    return NULL;
}

static int listen_at(const char *path, GError **error)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd;

    if (strlen(path) >= sizeof(address.sun_path)) {
        blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s: the name of a socket is shorter", path);
        return -1;
    }
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    strcpy(address.sun_path, path);
    unlink(path);
    if (fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0 && listen(fd, 16) == 0)
        return fd;
    blockmig_set_errno(error, errno, "%s", path);
    if (fd >= 0)
        close(fd);
    return -1;
}

struct relay *relay_open(struct agent_client *client, const char *name, const char *path, bool packed,
                         GError **error)
{
    struct relay *relay;
    int wake[2], fd = listen_at(path, error);

    if (fd < 0)
        return NULL;
    if (!g_unix_open_pipe(wake, FD_CLOEXEC, error)) {
        close(fd);
        return NULL;
    }
    relay = g_new0(struct relay, 1);
    relay->client = client;
    relay->name = g_strdup(name);
    relay->path = g_strdup(path);
    relay->packed = packed;
    relay->fd = fd;
    memcpy(relay->wake, wake, sizeof(wake));
    relay->state = g_new0(struct relay_state, 1);
    g_atomic_ref_count_init(&relay->state->references);
    g_mutex_init(&relay->state->lock);
    relay->thread = g_thread_new("relay", serve, relay);
    return relay;
}

void relay_hold(struct relay *relay, enum relay_hold hold)
{
    g_atomic_int_set(&relay->state->hold, (gint)hold);
}

void relay_cut(struct relay *relay)
{
    g_atomic_int_set(&relay->state->cut, 1);
}

bool relay_has_begun(const struct relay *relay)
{
    return g_atomic_int_get(&relay->state->begun) != 0;
}

void relay_close(struct relay *relay)
{
    if (!relay)
        return;
    close(relay->wake[1]);
    g_thread_join(relay->thread);
    close(relay->wake[0]);
    close(relay->fd);
    unlink(relay->path);
    state_unref(relay->state);
    g_free(relay->name);
    g_free(relay->path);
    g_free(relay);
}

char *relay_trouble(struct relay *relay)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&relay->state->lock);

    return g_strdup(relay->state->trouble);
}
