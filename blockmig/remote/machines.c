/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/remote/machines.h"

#include "blockmig/storage/agent-client.h"
#include "formats/error.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define BLOCK       (256u << 10) /* bytes of an answer at a time */
#define MAX_TUNNELS 64u

struct tunnel {
    char *id, *peer;
    int fd;
    gatomicrefcount references;
};

static GMutex lock;
static GHashTable *tunnels; /* id -> struct tunnel; not owned */

/* ---- sockets of this host ----------------------------------------------------------------------- */

static int connect_to(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = -1;

    if (strlen(path) < sizeof(address.sun_path)) {
        strcpy(address.sun_path, path);
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    } else {
        errno = ENAMETOOLONG;
    }
    if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        int reason = errno;

        close(fd);
        errno = reason;
        fd = -1;
    }
    return fd;
}

static void remove_if_unused(const char *path)
{
    int fd = connect_to(path);

    if (fd >= 0)
        close(fd);
    else if (errno == ECONNREFUSED)
        unlink(path);
}

static void remove_sockets(const char *directory)
{
    GDir *dir = g_dir_open(directory, 0, NULL);
    const char *name;

    while (dir && (name = g_dir_read_name(dir))) {
        g_autofree char *path = g_build_filename(directory, name, NULL);

        remove_if_unused(path);
    }
    if (dir)
        g_dir_close(dir);
}

/* As libvirt does at the first machine that has one. */
static void prepare_tpm(struct agent_datastore *tpm)
{
    if (tpm->fd < 0 && g_mkdir(tpm->directory, 0711) == 0)
        agent_datastore_reach(tpm);
}

bool machines_prepare(struct agent_machines *machines, GError **error)
{
    struct stat st;

    if (g_mkdir_with_parents(machines->directory, 0700) < 0 || stat(machines->directory, &st) < 0)
        return blockmig_set_errno(error, errno, "%s", machines->directory);
    if (st.st_uid != geteuid() || (st.st_mode & 0022))
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s: others may write there",
                             machines->directory);
    remove_sockets(machines->directory);
    prepare_tpm(machines->tpm);
    return true;
}

/* "ID" or "ID-WORD": no name that leads out of the directory. */
static bool is_socket_name(const char *name)
{
    g_autofree char *id = g_strndup(name, AGENT_ID_LENGTH);
    const char *rest = name + strlen(id);

    return agent_is_id(id) && strlen(rest) < 16 &&
           strspn(rest, "-abcdefghijklmnopqrstuvwxyz") == strlen(rest);
}

static int connect_by_name(const struct agent_machines *machines, const char *name, GError **error)
{
    bool libvirt = strcmp(name, "libvirt") == 0;
    g_autofree char *path =
        libvirt ? g_strdup(machines->libvirt) : g_build_filename(machines->directory, name, NULL);
    int fd;

    if (!libvirt && !is_socket_name(name)) {
        blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "no tunnel is called '%.64s'", name);
        return -1;
    }
    fd = connect_to(path);
    if (fd < 0)
        blockmig_fail(error, BLOCKMIG_ERROR_UNREACHABLE, "%s: %s", path, g_strerror(errno));
    return fd;
}

/* ---- tunnels ------------------------------------------------------------------------------------ */

static bool add(struct tunnel *tunnel, GError **error)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&lock);

    if (!tunnels)
        tunnels = g_hash_table_new(g_str_hash, g_str_equal);
    if (g_hash_table_size(tunnels) >= MAX_TUNNELS)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "there are %u tunnels already", MAX_TUNNELS);
    if (g_hash_table_contains(tunnels, tunnel->id))
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "there is a tunnel of this id");
    g_hash_table_insert(tunnels, tunnel->id, tunnel);
    return true;
}

struct tunnel *tunnel_open(const struct agent_machines *machines, const char *name, const char *id,
                           const char *peer, GError **error)
{
    struct tunnel *tunnel;
    int fd;

    if (!agent_is_id(id)) {
        blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "'%.64s': %u hexadecimal digits are expected", id,
                      AGENT_ID_LENGTH);
        return NULL;
    }
    fd = connect_by_name(machines, name, error);
    if (fd < 0)
        return NULL;
    tunnel = g_new0(struct tunnel, 1);
    tunnel->id = g_strdup(id);
    tunnel->peer = g_strdup(peer);
    tunnel->fd = fd;
    g_atomic_ref_count_init(&tunnel->references);
    if (add(tunnel, error))
        return tunnel;
    close(fd);
    g_free(tunnel->id);
    g_free(tunnel->peer);
    g_free(tunnel);
    return NULL;
}

struct tunnel *tunnel_find(const char *id, const char *peer, GError **error)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&lock);
    struct tunnel *tunnel = tunnels ? g_hash_table_lookup(tunnels, id) : NULL;

    if (tunnel && strcmp(tunnel->peer, peer) == 0) {
        g_atomic_ref_count_inc(&tunnel->references);
        return tunnel;
    }
    blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "there is no such tunnel");
    return NULL;
}

void tunnel_unref(struct tunnel *tunnel)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&lock);

    if (!tunnel || !g_atomic_ref_count_dec(&tunnel->references))
        return;
    g_hash_table_remove(tunnels, tunnel->id);
    close(tunnel->fd);
    g_free(tunnel->id);
    g_free(tunnel->peer);
    g_free(tunnel);
}

bool tunnel_write(struct tunnel *tunnel, const void *data, size_t length, GError **error)
{
    for (size_t at = 0; at < length;) {
        ssize_t done = send(tunnel->fd, (const char *)data + at, length - at, MSG_NOSIGNAL);

        if (done < 0 && errno != EINTR)
            return blockmig_set_errno(error, errno, "the tunnel");
        at += (size_t)MAX(done, 0);
    }
    return true;
}

void tunnel_finish(struct tunnel *tunnel)
{
    shutdown(tunnel->fd, SHUT_WR);
}

/* Waits for something: the connection has a thread to itself. */
static ssize_t read_on(void *opaque, uint64_t position, char *buffer, size_t most)
{
    struct tunnel *tunnel = opaque;
    ssize_t done;

    do {
        done = recv(tunnel->fd, buffer, most, 0);
    } while (done < 0 && errno == EINTR);
    return done > 0 ? done : done == 0 ? MHD_CONTENT_READER_END_OF_STREAM : MHD_CONTENT_READER_END_WITH_ERROR;
}

/* Nobody hears any more what comes from there: then nothing more is to be said, either. */
static void answered(void *opaque)
{
    struct tunnel *tunnel = opaque;

    shutdown(tunnel->fd, SHUT_RDWR);
    tunnel_unref(tunnel);
}

struct MHD_Response *tunnel_answer(struct tunnel *tunnel)
{
    struct MHD_Response *response =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, BLOCK, read_on, tunnel, answered);

    MHD_add_response_header(response, AGENT_TUNNEL_HEADER, AGENT_TUNNEL_FRAMED);
    return response;
}
