/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/remote/handle.h"

#include "blockmig/storage/agent-client.h"
#include "formats/error.h"

#include <string.h>

#define MAX_HANDLES 1024 /* of all clients */

struct handle_table {
    GMutex lock;
    GHashTable *handles;  /* id -> struct handle */
    GHashTable *sessions; /* name -> number of connections */
    GThread *closer;      /* of what lingered long enough; from the first one that lingers on */
    GCond changed;        /* for it: something lingers, or: */
    bool ending;
};

static void handle_free(struct handle *handle)
{
    storage_close(handle->storage);
    g_mutex_clear(&handle->alone);
    g_free(handle->id);
    g_free(handle->peer);
    g_free(handle->session);
    g_free(handle);
}

void handle_unref(struct handle *handle)
{
    if (handle && g_atomic_int_dec_and_test(&handle->references))
        handle_free(handle);
}

struct handle_table *handle_table_new(void)
{
    struct handle_table *table = g_new0(struct handle_table, 1);

    g_mutex_init(&table->lock);
    g_cond_init(&table->changed);
    table->handles = g_hash_table_new_full(g_str_hash, g_str_equal, NULL, (GDestroyNotify)handle_unref);
    table->sessions = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    return table;
}

void handle_table_free(struct handle_table *table)
{
    if (!table)
        return;
    g_mutex_lock(&table->lock);
    table->ending = true;
    g_cond_signal(&table->changed);
    g_mutex_unlock(&table->lock);
    if (table->closer)
        g_thread_join(table->closer);
    g_hash_table_unref(table->handles);
    g_hash_table_unref(table->sessions);
    g_cond_clear(&table->changed);
    g_mutex_clear(&table->lock);
    g_free(table);
}

struct handle *handle_add(struct handle_table *table, const char *peer, const char *session,
                          struct storage *storage, const char *id, uint64_t linger, GError **error)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&table->lock);
    struct handle *handle;

    if (g_hash_table_size(table->handles) >= MAX_HANDLES ||
        (id && g_hash_table_contains(table->handles, id))) {
        storage_close(storage);
        blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%u files are open already, or there is a handle %s",
                      MAX_HANDLES, id ? id : "");
        return NULL;
    }
    handle = g_new0(struct handle, 1);
    handle->id = id ? g_strdup(id) : agent_new_id();
    handle->peer = g_strdup(peer);
    handle->session = g_strdup(session);
    handle->storage = storage;
    g_mutex_init(&handle->alone);
    handle->linger = (int64_t)linger * G_USEC_PER_SEC;
    handle->references = 2;
    g_hash_table_insert(table->handles, handle->id, handle);
    return handle;
}

struct handle *handle_find(struct handle_table *table, const char *id, const char *peer, GError **error)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&table->lock);
    struct handle *handle = g_hash_table_lookup(table->handles, id);

    if (!handle || strcmp(handle->peer, peer) != 0) {
        blockmig_fail(error, BLOCKMIG_ERROR_UNREACHABLE, "there is no handle %.40s", id);
        return NULL;
    }
    if (handle->expires)
        handle->expires = g_get_monotonic_time() + handle->linger;
    g_atomic_int_inc(&handle->references);
    return handle;
}

void handle_close(struct handle_table *table, struct handle *handle)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&table->lock);

    if (g_hash_table_lookup(table->handles, handle->id) == handle)
        g_hash_table_remove(table->handles, handle->id);
}

/* ---- what lingers ------------------------------------------------------------------------------- */

/* Who is taken out of the table, to be closed without its lock. */
struct leaving {
    const char *session; /* that is over */
    int64_t now;
    int64_t next; /* the first of the others is over, or INT64_MAX */
    GPtrArray *handles;
};

static GPtrArray *new_leaving(void)
{
    return g_ptr_array_new_with_free_func((GDestroyNotify)handle_unref);
}

/* What is being used is not over. */
static gboolean is_over(gpointer id, gpointer value, gpointer opaque)
{
    struct handle *handle = value;
    struct leaving *leaving = opaque;

    if (!handle->expires)
        return false;
    if (g_atomic_int_get(&handle->references) > 1)
        handle->expires = leaving->now + handle->linger;
    if (handle->expires <= leaving->now) {
        g_ptr_array_add(leaving->handles, handle);
        return true;
    }
    leaving->next = MIN(leaving->next, handle->expires);
    return false;
}

static gpointer close_in_time(gpointer opaque)
{
    struct handle_table *table = opaque;
    g_autoptr(GPtrArray) over = new_leaving();
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&table->lock);

    while (!table->ending) {
        struct leaving leaving = {.now = g_get_monotonic_time(), .next = INT64_MAX, .handles = over};

        g_hash_table_foreach_steal(table->handles, is_over, &leaving);
        if (over->len == 0) {
            g_cond_wait_until(&table->changed, &table->lock, leaving.next);
            continue;
        }
        g_mutex_unlock(&table->lock);
        g_ptr_array_set_size(over, 0);
        g_mutex_lock(&table->lock);
    }
    return NULL;
}

/* ---- sessions ----------------------------------------------------------------------------------- */

void handle_session_enter(struct handle_table *table, const char *session)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&table->lock);
    guint count = GPOINTER_TO_UINT(g_hash_table_lookup(table->sessions, session));
    GHashTableIter iter;
    gpointer value;

    g_hash_table_replace(table->sessions, g_strdup(session), GUINT_TO_POINTER(count + 1));
    g_hash_table_iter_init(&iter, table->handles);
    while (count == 0 && g_hash_table_iter_next(&iter, NULL, &value)) {
        struct handle *handle = value;

        if (strcmp(handle->session, session) == 0)
            handle->expires = 0;
    }
}

/* One that lingers may be used meanwhile, by whoever knows its number. */
static gboolean ends_with_session(gpointer id, gpointer value, gpointer opaque)
{
    struct handle *handle = value;
    struct leaving *leaving = opaque;

    if (strcmp(handle->session, leaving->session) != 0)
        return false;
    if (handle->linger == 0) {
        g_ptr_array_add(leaving->handles, handle);
        return true;
    }
    handle->expires = leaving->now + handle->linger;
    leaving->next = MIN(leaving->next, handle->expires);
    return false;
}

void handle_session_leave(struct handle_table *table, const char *session)
{
    g_autoptr(GPtrArray) over = new_leaving();
    struct leaving leaving = {
        .session = session, .now = g_get_monotonic_time(), .next = INT64_MAX, .handles = over};
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&table->lock);
    guint count = GPOINTER_TO_UINT(g_hash_table_lookup(table->sessions, session));

    if (count > 1) {
        g_hash_table_replace(table->sessions, g_strdup(session), GUINT_TO_POINTER(count - 1));
        return;
    }
    g_hash_table_remove(table->sessions, session);
    g_hash_table_foreach_steal(table->handles, ends_with_session, &leaving);
    if (leaving.next == INT64_MAX)
        return;
    if (!table->closer)
        table->closer = g_thread_new("closer", close_in_time, table);
    g_cond_signal(&table->changed);
}
