/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/storage/nbd-export.h"

#include "blockmig/storage/file.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>

#define CONNECTIONS     4
#define WAITING_THREADS 4

/* A range that is asked for in as many commands as the server wants. */
struct parts {
    int left;
    GError *error; /* the first one */
    void (*done)(void *opaque, GError *error);
    void *opaque;
    struct nbd_command commands[];
};

/* ---- commands ----------------------------------------------------------------------------------- */

static struct nbd_connection *least_busy(struct nbd *nbd)
{
    struct nbd_connection *best = g_ptr_array_index(nbd->connections, 0);
    uint64_t least = UINT64_MAX;

    for (guint i = 0; i < nbd->connections->len; i++) {
        struct nbd_connection *connection = g_ptr_array_index(nbd->connections, i);
        uint64_t load = nbd_connection_load(connection);

        if (load < least && nbd_connection_is_ready(connection)) {
            best = connection;
            least = load;
        }
    }
    return best;
}

static bool changes(enum nbd_kind kind)
{
    return kind == NBD_WRITE || kind == NBD_ZERO || kind == NBD_TRIM;
}

void nbd_forget_status(struct nbd *nbd)
{
    g_mutex_lock(&nbd->status.lock);
    nbd->status.generation++;
    g_mutex_unlock(&nbd->status.lock);
}

static void part_done(struct nbd_command *command, GError *error)
{
    struct parts *parts = command->opaque;

    if (error && !g_atomic_pointer_compare_and_exchange(&parts->error, NULL, error))
        g_error_free(error);
    if (!g_atomic_int_dec_and_test(&parts->left))
        return;
    parts->done(parts->opaque, parts->error);
    g_free(parts);
}

static uint64_t largest_part(const struct nbd *nbd, enum nbd_kind kind)
{
    return kind == NBD_READ || kind == NBD_WRITE ? nbd->abilities.largest : NBD_LARGEST_COMMAND;
}

void nbd_submit(struct nbd *nbd, const struct nbd_command *range, void (*done)(void *, GError *),
                void *opaque)
{
    uint64_t largest = largest_part(nbd, range->kind), at = 0;
    unsigned count = (unsigned)MAX((range->length + largest - 1) / largest, 1);
    struct parts *parts = g_malloc0(sizeof(*parts) + count * sizeof(parts->commands[0]));

    parts->left = (int)count;
    parts->done = done;
    parts->opaque = opaque;
    for (unsigned i = 0; i < count; i++) {
        struct nbd_command *command = &parts->commands[i];

        *command = *range;
        command->offset += at;
        command->length = MIN(range->length - at, largest);
        command->buffer = range->buffer ? (uint8_t *)range->buffer + at : NULL;
        command->done = part_done;
        command->opaque = parts;
        at += command->length;
    }
    for (unsigned i = 0; i < count; i++) /* the last of them may be over before this is */
        nbd_connection_submit(least_busy(nbd), &parts->commands[i]);
}

struct waiter {
    GMutex lock;
    GCond over;
    bool finished;
    GError *error;
};

static void wake(void *opaque, GError *error)
{
    struct waiter *waiter = opaque;

    g_mutex_lock(&waiter->lock);
    waiter->finished = true;
    waiter->error = error;
    g_cond_signal(&waiter->over);
    g_mutex_unlock(&waiter->lock);
}

bool nbd_run(struct nbd *nbd, const struct nbd_command *range, GError **error)
{
    struct waiter waiter = {0};

    if (changes(range->kind))
        nbd_forget_status(nbd);
    g_mutex_init(&waiter.lock);
    g_cond_init(&waiter.over);
    nbd_submit(nbd, range, wake, &waiter);
    g_mutex_lock(&waiter.lock);
    while (!waiter.finished)
        g_cond_wait(&waiter.over, &waiter.lock);
    g_mutex_unlock(&waiter.lock);
    g_mutex_clear(&waiter.lock);
    g_cond_clear(&waiter.over);
    if (changes(range->kind))
        nbd_forget_status(nbd);
    if (waiter.error)
        g_propagate_error(error, waiter.error);
    return waiter.error == NULL;
}

/* ---- opening ------------------------------------------------------------------------------------ */

static GMutex exports_lock;
static GHashTable *exports; /* URI -> struct nbd; kept to the end of the process */

void nbd_end_child(GPid child)
{
    kill(child, SIGTERM);
    while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
        ;
    g_spawn_close_pid(child);
}

static void nbd_free(struct nbd *nbd)
{
    g_ptr_array_unref(nbd->connections);
    if (nbd->child)
        nbd_end_child(nbd->child);
    g_thread_pool_free(nbd->waiting, FALSE, TRUE);
    g_array_unref(nbd->status.extents);
    g_mutex_clear(&nbd->status.lock);
    g_mutex_clear(&nbd->edges);
    g_free(nbd);
}

void nbd_unref(struct nbd *nbd)
{
    if (g_atomic_int_dec_and_test(&nbd->users))
        nbd_free(nbd);
}

static void run_work(void *opaque, void *unused)
{
    struct nbd_work *work = opaque;

    work->run(work);
}

struct nbd *nbd_new(const struct nbd_way *how, unsigned connections, GError **error)
{
    struct nbd *nbd = g_new0(struct nbd, 1);
    struct nbd_way way = *how;
    struct nbd_connection *first;

    way.retry = &nbd->retry;
    first = nbd_connection_open(&way, &nbd->abilities, error);
    if (!first) {
        g_free(nbd);
        return NULL;
    }
    nbd->users = 1;
    nbd->retry = 1;
    nbd->connections = g_ptr_array_new_with_free_func((GDestroyNotify)nbd_connection_close);
    nbd->waiting = g_thread_pool_new(run_work, NULL, WAITING_THREADS, FALSE, NULL);
    nbd->status.extents = g_array_new(FALSE, FALSE, sizeof(struct nbd_extent));
    nbd->status.generation = 1;
    g_mutex_init(&nbd->status.lock);
    g_mutex_init(&nbd->edges);
    g_ptr_array_add(nbd->connections, first);
    for (unsigned i = 1; way.uri && nbd->abilities.many && i < connections; i++)
        g_ptr_array_add(nbd->connections, nbd_connection_open_another(&way, &nbd->abilities));
    return nbd;
}

static bool is_alive(const struct nbd *nbd)
{
    return nbd_connection_is_ready(g_ptr_array_index(nbd->connections, 0));
}

static void close_exports(void)
{
    g_clear_pointer(&exports, g_hash_table_unref);
}

/* One reference is the table's, if it is there, one the caller's. */
struct nbd *nbd_for(const char *uri, unsigned flags, GError **error)
{
    g_autoptr(GMutexLocker) locked = g_mutex_locker_new(&exports_lock);
    struct nbd_way way = {.uri = uri, .socket = -1};
    struct nbd *nbd;

    if (flags & FILE_ALONE)
        return nbd_new(&way, 1, error);
    if (!exports) {
        exports = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, (GDestroyNotify)nbd_unref);
        atexit(close_exports);
    }
    nbd = g_hash_table_lookup(exports, uri);
    if (!nbd || !is_alive(nbd)) {
        nbd = nbd_new(&way, flags & FILE_MODEST ? 1 : CONNECTIONS, error);
        if (!nbd)
            return NULL;
        g_hash_table_replace(exports, g_strdup(uri), nbd);
    }
    g_atomic_int_inc(&nbd->users);
    return nbd;
}
