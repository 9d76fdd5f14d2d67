/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/storage/nbd.h"

#include "blockmig/storage/file.h"
#include "blockmig/storage/nbd-export.h"
#include "formats/error.h"

#include <string.h>

#define NBD_PORT   10809
#define ZERO_PIECE (UINT64_C(1) << 20)

static struct nbd *nbd_of(struct storage *storage)
{
    return storage->opaque;
}

static bool command(struct nbd *nbd, enum nbd_kind kind, void *buffer, uint64_t offset, uint64_t length,
                    GError **error)
{
    struct nbd_command range = {.kind = kind, .buffer = buffer, .offset = offset, .length = length};

    return length == 0 || nbd_run(nbd, &range, error);
}

/* ---- any alignment ------------------------------------------------------------------------------ */

static bool is_aligned(const struct nbd *nbd, uint64_t offset, uint64_t length)
{
    return ((offset | length) & (nbd->abilities.block - 1)) == 0;
}

static bool export_pread(struct storage *storage, void *buffer, size_t length, uint64_t offset,
                         GError **error)
{
    struct nbd *nbd = nbd_of(storage);
    uint64_t begin = nbd_round_down(nbd, offset), end = nbd_round_up(nbd, offset + length);
    g_autofree uint8_t *bounce = NULL;

    if (is_aligned(nbd, offset, length))
        return command(nbd, NBD_READ, buffer, offset, length, error);
    bounce = g_try_malloc(end - begin);
    if (!bounce)
        return blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "no memory for %zu bytes", length);
    if (!command(nbd, NBD_READ, bounce, begin, end - begin, error))
        return false;
    memcpy(buffer, bounce + (offset - begin), length);
    return true;
}

/* A part of one block; `data` NULL: zeros. */
static bool change_block(struct nbd *nbd, const uint8_t *data, uint64_t length, uint64_t offset,
                         GError **error)
{
    g_autofree uint8_t *block = g_malloc(nbd->abilities.block);
    uint64_t begin = nbd_round_down(nbd, offset);
    bool ok;

    g_mutex_lock(&nbd->edges);
    ok = command(nbd, NBD_READ, block, begin, nbd->abilities.block, error);
    if (ok && data)
        memcpy(block + (offset - begin), data, length);
    else
        memset(block + (offset - begin), 0, length);
    ok = ok && command(nbd, NBD_WRITE, block, begin, nbd->abilities.block, error);
    g_mutex_unlock(&nbd->edges);
    return ok;
}

/* A range as whole blocks with a part of a block before and behind them. */
struct split {
    uint64_t head, middle, tail; /* lengths */
};

static struct split split_blocks(const struct nbd *nbd, uint64_t offset, uint64_t length)
{
    uint64_t begin = nbd_round_up(nbd, offset), end = nbd_round_down(nbd, offset + length);

    if (begin > end) /* inside one block */
        return (struct split){.head = length};
    return (struct split){begin - offset, end - begin, offset + length - end};
}

static bool export_pwrite(struct storage *storage, const void *buffer, size_t length, uint64_t offset,
                          GError **error)
{
    struct nbd *nbd = nbd_of(storage);
    struct split split = split_blocks(nbd, offset, length);
    const uint8_t *data = buffer;
    uint64_t tail = split.head + split.middle;

    return (!split.head || change_block(nbd, data, split.head, offset, error)) &&
           command(nbd, NBD_WRITE, (void *)(data + split.head), offset + split.head, split.middle, error) &&
           (!split.tail || change_block(nbd, data + tail, split.tail, offset + tail, error));
}

/* ---- requests that nobody waits for ------------------------------------------------------------- */

struct started {
    struct nbd_work work; /* of an unaligned one */
    struct storage *storage;
    struct storage_request *request;
};

static void started_done(void *opaque, GError *error)
{
    g_autofree struct started *started = opaque;

    if (started->request->write)
        nbd_forget_status(nbd_of(started->storage));
    started->request->done(started->request, error);
}

static void run_unaligned(struct nbd_work *work)
{
    g_autofree struct started *started = (struct started *)work;
    struct storage_request *request = started->request;
    GError *error = NULL;

    if (request->write)
        export_pwrite(started->storage, request->buffer, request->length, request->offset, &error);
    else
        export_pread(started->storage, request->buffer, request->length, request->offset, &error);
    request->done(request, error);
}

static void export_start(struct storage *storage, struct storage_request *request)
{
    struct nbd *nbd = nbd_of(storage);
    struct nbd_command range = {.kind = request->write ? NBD_WRITE : NBD_READ,
                                .buffer = request->buffer,
                                .offset = request->offset,
                                .length = request->length};
    struct started *started = g_new(struct started, 1);

    *started = (struct started){{run_unaligned}, storage, request};
    if (!is_aligned(nbd, request->offset, request->length)) {
        g_thread_pool_push(nbd->waiting, &started->work, NULL);
        return; /* cppcheck-suppress memleak ; the thread has it */
    }
    if (request->write)
        nbd_forget_status(nbd);
    nbd_submit(nbd, &range, started_done, started);
}

/* ---- status and zeros --------------------------------------------------------------------------- */

/* What the cache says about `offset`. */
static bool cached_status(struct nbd *nbd, uint64_t offset, bool *data, uint64_t *run)
{
    struct status_cache *cache = &nbd->status;
    uint64_t at = cache->offset;

    if (cache->valid_for != cache->generation || offset < at)
        return false;
    for (guint i = 0; i < cache->extents->len; i++) {
        const struct nbd_extent *extent = &g_array_index(cache->extents, struct nbd_extent, i);

        at += extent->length;
        if (offset < at) {
            *data = !(extent->flags & LIBNBD_STATE_ZERO);
            *run = at - offset;
            return true;
        }
    }
    return false;
}

static bool ask_status(struct nbd *nbd, uint64_t offset, uint64_t length, GError **error)
{
    g_autoptr(GArray) extents = g_array_new(FALSE, FALSE, sizeof(struct nbd_extent));
    uint64_t begin = nbd_round_down(nbd, offset), end = nbd_round_up(nbd, offset + length);
    struct nbd_command range = {.kind = NBD_STATUS,
                                .offset = begin,
                                .length = MIN(end - begin, NBD_LARGEST_COMMAND),
                                .extents = extents};
    struct status_cache *cache = &nbd->status;
    unsigned generation;

    g_mutex_lock(&cache->lock);
    generation = cache->generation;
    g_mutex_unlock(&cache->lock);
    if (!nbd_run(nbd, &range, error))
        return false;
    g_mutex_lock(&cache->lock);
    cache->valid_for = generation;
    cache->offset = begin;
    g_array_unref(cache->extents);
    cache->extents = g_steal_pointer(&extents);
    g_mutex_unlock(&cache->lock);
    return true;
}

static bool look_up_status(struct nbd *nbd, uint64_t offset, bool *data, uint64_t *run)
{
    bool found;

    g_mutex_lock(&nbd->status.lock);
    found = cached_status(nbd, offset, data, run);
    g_mutex_unlock(&nbd->status.lock);
    return found;
}

/* What is changed while the answer is on its way counts as data. */
static bool export_status(struct storage *storage, uint64_t offset, uint64_t length, bool *data,
                          uint64_t *run, GError **error)
{
    struct nbd *nbd = nbd_of(storage);

    *data = true;
    *run = length;
    if (!nbd->abilities.status)
        return true;
    if (!look_up_status(nbd, offset, data, run)) {
        if (!ask_status(nbd, offset, length, error))
            return false;
        if (!look_up_status(nbd, offset, data, run)) {
            *data = true;
            *run = MIN(length, nbd->abilities.block);
        }
    }
    *run = MIN(*run, length);
    return true;
}

static bool write_zeros(struct nbd *nbd, uint64_t offset, uint64_t length, GError **error)
{
    uint64_t piece = MAX(ZERO_PIECE, nbd->abilities.block);
    g_autofree uint8_t *zeros = length ? g_malloc0(MIN(length, piece)) : NULL;

    for (uint64_t done = 0; done < length; done += piece)
        if (!command(nbd, NBD_WRITE, zeros, offset + done, MIN(length - done, piece), error))
            return false;
    return true;
}

/* By writing, but not where the server says that zeros are read: thin stays thin without its help. */
static bool write_zeros_where_needed(struct storage *storage, uint64_t offset, uint64_t length,
                                     GError **error)
{
    uint64_t run;
    bool data;

    for (uint64_t end = offset + length; offset < end; offset += run) {
        if (!export_status(storage, offset, end - offset, &data, &run, error))
            return false;
        run = MIN(MAX(nbd_round_down(nbd_of(storage), run), nbd_of(storage)->abilities.block), end - offset);
        if (data && !write_zeros(nbd_of(storage), offset, run, error))
            return false;
    }
    return true;
}

static bool zero_blocks(struct storage *storage, uint64_t offset, uint64_t length, bool may_unmap,
                        GError **error)
{
    struct nbd *nbd = nbd_of(storage);
    struct nbd_command range = {.kind = NBD_ZERO, .offset = offset, .length = length, .no_hole = !may_unmap};

    if (length == 0)
        return true;
    if (nbd->abilities.zero)
        return nbd_run(nbd, &range, error);
    return may_unmap ? write_zeros_where_needed(storage, offset, length, error)
                     : write_zeros(nbd, offset, length, error);
}

static bool export_zero(struct storage *storage, uint64_t offset, uint64_t length, bool may_unmap,
                        GError **error)
{
    struct nbd *nbd = nbd_of(storage);
    struct split split = split_blocks(nbd, offset, length);
    uint64_t tail = split.head + split.middle;

    return (!split.head || change_block(nbd, NULL, split.head, offset, error)) &&
           zero_blocks(storage, offset + split.head, split.middle, may_unmap, error) &&
           (!split.tail || change_block(nbd, NULL, split.tail, offset + tail, error));
}

static bool export_discard(struct storage *storage, uint64_t offset, uint64_t length, GError **error)
{
    struct nbd *nbd = nbd_of(storage);
    struct split split = split_blocks(nbd, offset, length);

    return !nbd->abilities.trim || command(nbd, NBD_TRIM, NULL, offset + split.head, split.middle, error);
}

/* One is enough: there are several connections only where the server says that a flush is for all. */
static bool export_flush(struct storage *storage, GError **error)
{
    struct nbd_command range = {.kind = NBD_FLUSH};

    return !nbd_of(storage)->abilities.flush || nbd_run(nbd_of(storage), &range, error);
}

/* ---- opening ------------------------------------------------------------------------------------ */

static void export_close(struct storage *storage)
{
    nbd_unref(nbd_of(storage));
}

static const struct storage_ops export_ops = {
    .name = "nbd",
    .pread = export_pread,
    .pwrite = export_pwrite,
    .start = export_start,
    .zero = export_zero,
    .discard = export_discard,
    .flush = export_flush,
    .status = export_status,
    .close = export_close,
};

static struct storage *export_new(struct nbd *nbd, const char *name, char *identity, bool writable)
{
    struct storage *storage = storage_new(&export_ops, name, nbd);

    storage->identity = identity;
    storage->size = nbd->abilities.size;
    storage->writable = writable;
    storage->cached = nbd->abilities.flush;
    storage->notice = nbd->abilities.flush ? NULL
                                           : "the server does not flush: after a power cut, what it has "
                                             "acknowledged may be lost";
    return storage;
}

/* Then no zeros have to be written to it, each of which would be waited for. */
static bool is_all_zero(struct storage *storage)
{
    uint64_t run = 0;
    bool data = !nbd_of(storage)->abilities.status;

    for (uint64_t at = 0; at < storage->size && !data; at += run)
        if (!export_status(storage, at, storage->size - at, &data, &run, NULL))
            return false;
    return !data;
}

/* The same for every way to write the URI of one export: its TLS, its port if that is the usual one, and what
 * is escaped make no difference. */
static char *identity_of(const char *text)
{
    g_autoptr(GUri) uri = g_uri_parse(text, G_URI_FLAGS_NON_DNS | G_URI_FLAGS_ENCODED_QUERY, NULL);
    const char *query = uri ? g_uri_get_query(uri) : NULL, *path = uri ? g_uri_get_path(uri) : "", *socket;
    g_autoptr(GHashTable) values =
        query ? g_uri_parse_params(query, -1, "&;", G_URI_PARAMS_NONE, NULL) : NULL;
    g_autofree char *host = NULL, *real = NULL;

    if (!uri)
        return g_strdup_printf("nbd:%s", text);
    path += *path == '/';
    if ((socket = values ? g_hash_table_lookup(values, "socket") : NULL)) {
        real = g_canonicalize_filename(socket, NULL);
        return g_strdup_printf("nbd:%s:%s", real, path);
    }
    host = g_ascii_strdown(g_uri_get_host(uri) ? g_uri_get_host(uri) : "", -1);
    return g_strdup_printf("nbd:%s:%d:%s", host, g_uri_get_port(uri) > 0 ? g_uri_get_port(uri) : NBD_PORT,
                           path);
}

struct storage *storage_nbd_open(const char *uri, unsigned flags, GError **error)
{
    bool writable = flags & FILE_WRITE;
    struct nbd *nbd = nbd_for(uri, flags, error);
    struct storage *storage;

    if (!nbd)
        return NULL;
    if (writable && nbd->abilities.read_only) {
        nbd_unref(nbd);
        g_set_error_literal(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED, "the server gives it read-only");
        return NULL;
    }
    if (writable)
        g_atomic_int_set(&nbd->retry, 0);
    storage = export_new(nbd, uri, identity_of(uri), writable);
    storage->reads_zero = writable && is_all_zero(storage);
    return storage;
}

bool storage_nbd_takes_another(const char *uri, GError **error)
{
    const struct nbd_way way = {.uri = uri, .socket = -1};
    struct nbd_abilities abilities;
    struct nbd_connection *another = nbd_connection_open(&way, &abilities, error);

    nbd_connection_close(another);
    return another != NULL;
}

struct storage *storage_nbd_open_child(int socket, GPid child, const char *name, const char *identity,
                                       GError **error)
{
    struct nbd_way way = {.socket = socket};
    struct nbd *nbd = nbd_new(&way, 1, error);

    if (!nbd) {
        nbd_end_child(child);
        return NULL;
    }
    nbd->child = child;
    return export_new(nbd, name, g_strdup(identity), false);
}
