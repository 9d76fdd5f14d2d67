/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A bounded cache of cluster-sized tables; the least recently used goes first. */
#include "formats/qcow2.h"

static void table_free(gpointer data)
{
    struct qcow2_table *table = data;

    g_free(table->bytes);
    g_free(table);
}

void qcow2_cache_init(struct qcow2_cache *cache, unsigned max,
                      bool (*evict)(struct qcow2 *, struct qcow2_table *, GError **))
{
    cache->tables = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, table_free);
    g_queue_init(&cache->used);
    cache->max = max;
    cache->evict = evict;
}

void qcow2_cache_clear(struct qcow2_cache *cache)
{
    g_queue_init(&cache->used); /* the links live inside the tables */
    g_clear_pointer(&cache->tables, g_hash_table_unref);
}

struct qcow2_table *qcow2_cache_find(struct qcow2_cache *cache, uint64_t index)
{
    struct qcow2_table *table = g_hash_table_lookup(cache->tables, &index);

    if (table && cache->used.head != &table->link) {
        g_queue_unlink(&cache->used, &table->link);
        g_queue_push_head_link(&cache->used, &table->link);
    }
    return table;
}

void qcow2_cache_drop(struct qcow2_cache *cache, struct qcow2_table *table)
{
    g_queue_unlink(&cache->used, &table->link);
    g_hash_table_remove(cache->tables, &table->index);
}

/* Takes the bytes of the table that was not used for longest; NULL: none to spare, or an error. */
static bool cache_recycle(struct qcow2 *qcow2, struct qcow2_cache *cache, uint8_t **bytes, GError **error)
{
    struct qcow2_table *oldest = g_queue_peek_tail(&cache->used);

    *bytes = NULL;
    if (!oldest || cache->used.length < cache->max)
        return true;
    if (oldest->dirty && !cache->evict(qcow2, oldest, error))
        return false;
    *bytes = g_steal_pointer(&oldest->bytes);
    qcow2_cache_drop(cache, oldest);
    return true;
}

struct qcow2_table *qcow2_cache_add(struct qcow2 *qcow2, struct qcow2_cache *cache, uint64_t index,
                                    uint64_t host, GError **error)
{
    struct qcow2_table *table;
    uint8_t *bytes;

    if (!cache_recycle(qcow2, cache, &bytes, error))
        return NULL;
    if (!bytes)
        bytes = g_try_malloc(qcow2->cluster_size);
    if (!bytes) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED, "no memory for a table of %u bytes",
                    qcow2->cluster_size);
        return NULL;
    }
    table = g_new0(struct qcow2_table, 1);
    table->index = index;
    table->host = host;
    table->bytes = bytes;
    table->link.data = table;
    g_hash_table_insert(cache->tables, &table->index, table);
    g_queue_push_head_link(&cache->used, &table->link);
    return table;
}

bool qcow2_table_write(struct qcow2 *qcow2, struct qcow2_table *table, GError **error)
{
    if (!storage_pwrite(qcow2->storage, table->bytes, qcow2->cluster_size, table->host, error))
        return false;
    table->dirty = false;
    return true;
}

static gint table_compare(gconstpointer a, gconstpointer b)
{
    const struct qcow2_table *const *left = a, *const *right = b;

    return (*left)->host < (*right)->host ? -1 : (*left)->host > (*right)->host;
}

bool qcow2_cache_write(struct qcow2 *qcow2, struct qcow2_cache *cache,
                       bool (*wanted)(struct qcow2 *, const struct qcow2_table *), bool *written,
                       GError **error)
{
    g_autoptr(GPtrArray) tables = g_ptr_array_new();

    for (GList *link = cache->used.head; link; link = link->next) {
        struct qcow2_table *table = link->data;

        if (table->dirty && (!wanted || wanted(qcow2, table)))
            g_ptr_array_add(tables, table);
    }
    g_ptr_array_sort(tables, table_compare);
    for (guint i = 0; i < tables->len; i++) {
        if (!qcow2_table_write(qcow2, tables->pdata[i], error))
            return false;
    }
    *written = *written || tables->len > 0;
    return true;
}
