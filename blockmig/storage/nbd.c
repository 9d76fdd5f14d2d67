/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/storage/nbd.h"

#include "blockmig/storage/file.h"
#include "blockmig/storage/nbd-connection.h"
#include "formats/error.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#define NBD_PORT       10809
#define CONNECTIONS    4
#define EDGE_THREADS   4
#define BITMAP_CONTEXT "qemu:dirty-bitmap:" /* docs/interop/nbd.txt of QEMU, as is the flag */
#define BITMAP_DIRTY   1
#define ZERO_PIECE     (UINT64_C(1) << 20)
#define LARGEST_COMMAND                                                                                      \
    (UINT64_C(1) << 30) /* without bytes: 32 bits are the limit, a waiting user the reason */

/* What was last heard of the block status. */
struct status_cache {
    GMutex lock;
    unsigned generation; /* counts changes of the export by us */
    unsigned valid_for;  /* the generation that `extents` are of */
    uint64_t offset;
    GArray *extents; /* of struct nbd_extent */
};

/* An export with its connections: shared by the storages of one URI. */
struct nbd {
    int users;
    int retry;
    GPid child; /* the server, if it is one of ours; 0: it is not */
    struct nbd_abilities abilities;
    GPtrArray *connections;
    GThreadPool *unaligned; /* requests that begin or end inside a block of the server's */
    GMutex edges;           /* held while such a block is read, changed and written */
    struct status_cache status;
};

/* A range that is asked for in as many commands as the server wants. */
struct parts {
    int left;
    GError *error; /* the first one */
    void (*done)(void *opaque, GError *error);
    void *opaque;
    struct nbd_command commands[];
};

static struct nbd *nbd_of(struct storage *storage)
{
    return storage->opaque;
}

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

/* What is known of the block status does not hold while something changes, nor after it. */
static void forget_status(struct nbd *nbd)
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
    return kind == NBD_READ || kind == NBD_WRITE ? nbd->abilities.largest : LARGEST_COMMAND;
}

/* `range` says what is wanted, aligned to the server's blocks; only its length may be too much for it. */
static void submit(struct nbd *nbd, const struct nbd_command *range, void (*done)(void *, GError *),
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

static bool wait_for(struct nbd *nbd, const struct nbd_command *range, GError **error)
{
    struct waiter waiter = {0};

    if (changes(range->kind))
        forget_status(nbd);
    g_mutex_init(&waiter.lock);
    g_cond_init(&waiter.over);
    submit(nbd, range, wake, &waiter);
    g_mutex_lock(&waiter.lock);
    while (!waiter.finished)
        g_cond_wait(&waiter.over, &waiter.lock);
    g_mutex_unlock(&waiter.lock);
    g_mutex_clear(&waiter.lock);
    g_cond_clear(&waiter.over);
    if (changes(range->kind))
        forget_status(nbd);
    if (waiter.error)
        g_propagate_error(error, waiter.error);
    return waiter.error == NULL;
}

static bool command(struct nbd *nbd, enum nbd_kind kind, void *buffer, uint64_t offset, uint64_t length,
                    GError **error)
{
    struct nbd_command range = {.kind = kind, .buffer = buffer, .offset = offset, .length = length};

    return length == 0 || wait_for(nbd, &range, error);
}

/* ---- any alignment ------------------------------------------------------------------------------ */

static uint64_t round_down(const struct nbd *nbd, uint64_t at)
{
    return at & ~(uint64_t)(nbd->abilities.block - 1);
}

static uint64_t round_up(const struct nbd *nbd, uint64_t at)
{
    return round_down(nbd, at + nbd->abilities.block - 1);
}

static bool is_aligned(const struct nbd *nbd, uint64_t offset, uint64_t length)
{
    return ((offset | length) & (nbd->abilities.block - 1)) == 0;
}

static bool export_pread(struct storage *storage, void *buffer, size_t length, uint64_t offset,
                         GError **error)
{
    struct nbd *nbd = nbd_of(storage);
    uint64_t begin = round_down(nbd, offset), end = round_up(nbd, offset + length);
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
    uint64_t begin = round_down(nbd, offset);
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
    uint64_t begin = round_up(nbd, offset), end = round_down(nbd, offset + length);

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
    struct storage *storage;
    struct storage_request *request;
};

static void started_done(void *opaque, GError *error)
{
    g_autofree struct started *started = opaque;

    if (started->request->write)
        forget_status(nbd_of(started->storage));
    started->request->done(started->request, error);
}

static void run_unaligned(void *opaque, void *nbd)
{
    g_autofree struct started *started = opaque;
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

    *started = (struct started){storage, request};
    if (!is_aligned(nbd, request->offset, request->length)) {
        g_thread_pool_push(nbd->unaligned, started, NULL);
        return; /* cppcheck-suppress memleak ; the thread has it */
    }
    if (request->write)
        forget_status(nbd);
    submit(nbd, &range, started_done, started);
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
    uint64_t begin = round_down(nbd, offset), end = round_up(nbd, offset + length);
    struct nbd_command range = {
        .kind = NBD_STATUS, .offset = begin, .length = MIN(end - begin, LARGEST_COMMAND), .extents = extents};
    struct status_cache *cache = &nbd->status;
    unsigned generation;

    g_mutex_lock(&cache->lock);
    generation = cache->generation;
    g_mutex_unlock(&cache->lock);
    if (!wait_for(nbd, &range, error))
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
        run = MIN(MAX(round_down(nbd_of(storage), run), nbd_of(storage)->abilities.block), end - offset);
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
        return wait_for(nbd, &range, error);
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

    return !nbd_of(storage)->abilities.flush || wait_for(nbd_of(storage), &range, error);
}

/* ---- opening ------------------------------------------------------------------------------------ */

static GMutex exports_lock;
static GHashTable *exports; /* URI -> struct nbd; kept to the end of the process */

static void end_child(GPid child)
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
        end_child(nbd->child);
    g_thread_pool_free(nbd->unaligned, FALSE, TRUE);
    g_array_unref(nbd->status.extents);
    g_mutex_clear(&nbd->status.lock);
    g_mutex_clear(&nbd->edges);
    g_free(nbd);
}

static void nbd_unref(struct nbd *nbd)
{
    if (g_atomic_int_dec_and_test(&nbd->users))
        nbd_free(nbd);
}

static struct nbd *nbd_new(const struct nbd_way *how, unsigned connections, GError **error)
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
    nbd->unaligned = g_thread_pool_new(run_unaligned, nbd, EDGE_THREADS, FALSE, NULL);
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

/* One reference is the table's, one the caller's. */
static struct nbd *nbd_for(const char *uri, unsigned flags, GError **error)
{
    g_autoptr(GMutexLocker) locked = g_mutex_locker_new(&exports_lock);
    struct nbd_way way = {.uri = uri, .socket = -1};
    struct nbd *nbd;

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
        end_child(child);
        return NULL;
    }
    nbd->child = child;
    return export_new(nbd, name, g_strdup(identity), false);
}

/* ---- dirty bitmaps ------------------------------------------------------------------------------ */

/* The last dirty range, which may go on in what comes next. */
struct dirty_range {
    const struct bitmap_reader *reader;
    uint64_t begin, end;
};

static void tell_range(const struct dirty_range *last)
{
    if (last->begin < last->end)
        last->reader->dirty(last->reader->opaque, last->begin, last->end - last->begin);
}

static void add_range(struct dirty_range *last, uint64_t begin, uint64_t end)
{
    if (begin != last->end) {
        tell_range(last);
        last->begin = begin;
    }
    last->end = end;
}

/* What is behind `known`.  Returns where the answer ends, which need not be where the question did. */
static uint64_t add_answer(struct dirty_range *last, const struct nbd_command *asked, uint64_t known,
                           uint64_t size)
{
    uint64_t at = asked->offset;

    for (guint i = 0; i < asked->extents->len; i++) {
        const struct nbd_extent *extent = &g_array_index(asked->extents, struct nbd_extent, i);
        uint64_t end = at + MIN(extent->length, size - at);

        if (extent->flags & BITMAP_DIRTY && end > known)
            add_range(last, MAX(at, known), end);
        at = end;
    }
    return at;
}

/* An answer may end inside a block of the server's, where no question may begin. */
static bool read_bitmap(struct nbd *nbd, struct dirty_range *last, GError **error)
{
    g_autoptr(GArray) extents = g_array_new(FALSE, FALSE, sizeof(struct nbd_extent));
    uint64_t size = nbd->abilities.size;

    for (uint64_t known = 0, end; known < size; known = end) {
        uint64_t begin = round_down(nbd, known);
        struct nbd_command range = {.kind = NBD_STATUS,
                                    .offset = begin,
                                    .length = MIN(size - begin, LARGEST_COMMAND),
                                    .extents = extents};

        if (!wait_for(nbd, &range, error))
            return false;
        end = add_answer(last, &range, known, size);
        if (end <= known)
            return blockmig_fail(error, BLOCKMIG_ERROR_FAILED,
                                 "the server does not say what is dirty from offset %" G_GUINT64_FORMAT " on",
                                 known);
    }
    return true;
}

/* Never connected again: a server that was started anew may have other bits. */
bool storage_nbd_read_bitmap(const char *uri, const char *bitmap, const struct bitmap_reader *reader,
                             GError **error)
{
    g_autofree char *context = g_strconcat(BITMAP_CONTEXT, bitmap, NULL);
    struct nbd_way way = {.uri = uri, .context = context, .socket = -1};
    struct dirty_range last = {.reader = reader};
    struct nbd *nbd = nbd_new(&way, 1, error);
    bool ok;

    if (!nbd)
        return false;
    g_atomic_int_set(&nbd->retry, 0);
    ok = nbd->abilities.status;
    if (ok) {
        reader->begin(reader->opaque, nbd->abilities.size);
        ok = read_bitmap(nbd, &last, error);
        tell_range(&last);
    } else {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED, "the server has no dirty bitmap \"%s\"",
                    bitmap);
    }
    nbd_unref(nbd);
    return ok;
}
