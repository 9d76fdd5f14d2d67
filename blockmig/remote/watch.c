/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/remote/watch.h"

#include <linux/tcp.h> /* that of the C library ends before the counters of bytes */
#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#define PERIOD     (G_USEC_PER_SEC / 2)
#define LEAST_MOVE 4096u /* bytes in a patience */

struct watched {
    int fd;
    enum watch_state state;
    int64_t since;   /* it is in that state, or moved last, without what we worked since; monotonic */
    int64_t working; /* when that began */
    uint64_t moved;  /* bytes till `since` */
    bool cut;
};

struct watch {
    GMutex lock;
    GCond ending_soon;
    bool ending;
    int64_t patience;
    GHashTable *connections; /* of struct watched * */
    GThread *thread;
};

/* Bytes that have gone through, both ways. */
static uint64_t moved_so_far(int fd)
{
    struct tcp_info info = {0};
    socklen_t length = sizeof(info);

    getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length);
    return info.tcpi_bytes_acked + info.tcpi_bytes_received;
}

static bool is_over(const struct watch *watch, struct watched *watched, int64_t now)
{
    uint64_t moved;

    switch (watched->state) {
    case WATCH_WAITING:
        return now - watched->since > watch->patience;
    case WATCH_MOVING:
        moved = moved_so_far(watched->fd);
        if (moved - watched->moved >= LEAST_MOVE) {
            watched->moved = moved;
            watched->since = now;
        }
        return now - watched->since > watch->patience;
    case WATCH_IDLE:
        return now - watched->since > WATCH_IDLE_SECONDS * G_USEC_PER_SEC;
    default:
        return false;
    }
}

/* Its own thread finds it closed, and cleans up. */
static void look_at_all(struct watch *watch)
{
    int64_t now = g_get_monotonic_time();
    GHashTableIter iter;
    gpointer key;

    g_hash_table_iter_init(&iter, watch->connections);
    while (g_hash_table_iter_next(&iter, &key, NULL)) {
        struct watched *watched = key;

        if (watched->cut || !is_over(watch, watched, now))
            continue;
        watched->cut = true;
        shutdown(watched->fd, SHUT_RDWR);
    }
}

static gpointer watch_all(gpointer opaque)
{
    struct watch *watch = opaque;
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&watch->lock);

    while (!watch->ending) {
        g_cond_wait_until(&watch->ending_soon, &watch->lock, g_get_monotonic_time() + PERIOD);
        look_at_all(watch);
    }
    return NULL;
}

struct watch *watch_new(void)
{
    struct watch *watch = g_new0(struct watch, 1);

    g_mutex_init(&watch->lock);
    g_cond_init(&watch->ending_soon);
    watch->patience = INT64_MAX;
    watch->connections = g_hash_table_new(NULL, NULL);
    watch->thread = g_thread_new("watch", watch_all, watch);
    return watch;
}

void watch_free(struct watch *watch)
{
    if (!watch)
        return;
    g_mutex_lock(&watch->lock);
    watch->ending = true;
    g_cond_signal(&watch->ending_soon);
    g_mutex_unlock(&watch->lock);
    g_thread_join(watch->thread);
    g_hash_table_unref(watch->connections);
    g_cond_clear(&watch->ending_soon);
    g_mutex_clear(&watch->lock);
    g_free(watch);
}

void watch_patience(struct watch *watch, unsigned seconds)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&watch->lock);

    watch->patience = (int64_t)seconds * G_USEC_PER_SEC;
}

struct watched *watch_add(struct watch *watch, int fd)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&watch->lock);
    struct watched *watched = g_new0(struct watched, 1);

    watched->fd = fd;
    watched->since = g_get_monotonic_time();
    g_hash_table_add(watch->connections, watched);
    return watched;
}

void watch_remove(struct watch *watch, struct watched *watched)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&watch->lock);

    if (watched)
        g_hash_table_remove(watch->connections, watched);
    g_free(watched);
}

void watch_note(struct watch *watch, struct watched *watched, enum watch_state state)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&watch->lock);
    int64_t now = g_get_monotonic_time();

    if (!watched || watched->state == WATCH_FREE)
        return;
    if (state == WATCH_WORKING)
        watched->working = now;
    else if (watched->state == WATCH_WORKING && state == WATCH_MOVING)
        watched->since += now - watched->working;
    else
        watched->since = now;
    watched->state = state;
}
