/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/remote/sockets.h"

#include "blockmig/storage/agent-client.h"
#include "formats/error.h"

#include <errno.h>
#include <gio/gio.h>
#include <netdb.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/* Nobody else may connect, not for a moment. */
static bool bind_local(int fd, const struct sockaddr_un *address)
{
    mode_t old = umask(0177);
    int rc = bind(fd, (const struct sockaddr *)address, sizeof(*address));

    umask(old);
    return rc == 0 && listen(fd, SOMAXCONN) == 0;
}

int socket_local(const char *path, GError **error)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd;

    if (strlen(path) >= sizeof(address.sun_path)) {
        blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "%s: the name of a socket is shorter", path);
        return -1;
    }
    strcpy(address.sun_path, path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0) {
        blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s: another agent answers there", path);
    } else {
        if (errno == ECONNREFUSED)
            unlink(path); /* of one that is gone */
        if (bind_local(fd, &address))
            return fd;
        blockmig_set_errno(error, errno, "%s", path);
    }
    if (fd >= 0)
        close(fd);
    return -1;
}

static bool bind_one(const struct addrinfo *at, const char *text, GArray *sockets, GError **error)
{
    int on = 1, fd = socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return blockmig_set_errno(error, errno, "%s", text);
    g_array_append_val(sockets, fd);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (at->ai_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on));
    return (bind(fd, at->ai_addr, at->ai_addrlen) == 0 && listen(fd, SOMAXCONN) == 0) ||
           blockmig_set_errno(error, errno, "%s", text);
}

bool sockets_listen(const char *text, GArray *sockets, GError **error)
{
    g_autoptr(GError) reason = NULL;
    g_autoptr(GSocketConnectable) parsed = g_network_address_parse(text, AGENT_PORT, &reason);
    struct addrinfo hints = {.ai_flags = AI_PASSIVE, .ai_socktype = SOCK_STREAM}, *found = NULL;
    g_autofree char *port = NULL;
    bool ok = true;
    int rc;

    if (!parsed)
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "listen=%s: %s", text, reason->message);
    port = g_strdup_printf("%u", g_network_address_get_port(G_NETWORK_ADDRESS(parsed)));
    rc = getaddrinfo(g_network_address_get_hostname(G_NETWORK_ADDRESS(parsed)), port, &hints, &found);
    if (rc != 0)
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "listen=%s: %s", text, gai_strerror(rc));
    for (const struct addrinfo *at = found; at && ok; at = at->ai_next)
        ok = bind_one(at, text, sockets, error);
    freeaddrinfo(found);
    return ok;
}

bool socket_inspect(int fd, bool *local, GError **error)
{
    struct sockaddr_storage address = {0};
    socklen_t length = sizeof(address), size = sizeof(int);
    int type = 0, listening = 0;

    if (getsockname(fd, (struct sockaddr *)&address, &length) < 0 ||
        getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) < 0 ||
        getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) < 0)
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "descriptor %d, which is to be listened at: %s", fd,
                             g_strerror(errno));
    *local = address.ss_family == AF_UNIX;
    return (type == SOCK_STREAM && listening &&
            (*local || address.ss_family == AF_INET || address.ss_family == AF_INET6)) ||
           blockmig_fail(error, BLOCKMIG_ERROR_USAGE,
                         "descriptor %d is not a socket of TCP or a Unix socket that listens", fd);
}
