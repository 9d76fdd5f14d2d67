/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * nbdkit-blockmig-plugin: serves an image with all that lies below it as one disk.
 *
 * get_ready opens the chain for a look, so that what is wrong with it is told before nbdkit goes into the
 * background. The first connection opens it for good, for reading, and the first one that may write for
 * writing: only then does a plugin learn whether nbdkit runs with -r.  All connections share it, and it stays
 * open until nbdkit ends.
 *
 * An image belongs to one thread at a time, but what its map says can be read by many: readers hold `bytes`
 * for sharing and take `map` only to ask the map; whoever changes anything holds `bytes` alone, for what was
 * mapped may lie elsewhere afterwards.
 */
#include "blockmig/storage/file.h"
#include "blockmig/storage/image-files.h"
#include "formats/chain.h"

#include <config.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>
#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

#define MAP_BATCH     256
#define MAX_PREFERRED (UINT32_C(32) << 20) /* NBD protocol, "Block size constraints" */

static struct {
    /* as given */
    char *path;
    const struct format *format; /* NULL: probe it */
    GPtrArray *roots, *texts;    /* of char *, NULL-terminated when all is given; texts: of the parents */
    GArray *parents;             /* of struct chain_parent */

    struct chain *chain; /* NULL: not yet, or opening it failed */
    pthread_rwlock_t bytes;
    pthread_mutex_t map;
} disk = {.map = PTHREAD_MUTEX_INITIALIZER};

/* Tells the client, and takes the error. Always -1. */
static int fail(GError *error)
{
    nbdkit_error("%s", error->message);
    nbdkit_set_error(g_error_matches(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_NOSPACE) ? ENOSPC : EIO);
    g_error_free(error);
    return -1;
}

/* ---- parameters --------------------------------------------------------------------------------- */

static void blockmig_load(void)
{
    pthread_rwlockattr_t attributes;

    /* Or a client that reads all the time would keep the others from writing. */
    pthread_rwlockattr_init(&attributes);
    pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&disk.bytes, &attributes);
    pthread_rwlockattr_destroy(&attributes);
    disk.roots = g_ptr_array_new_with_free_func(g_free);
    disk.texts = g_ptr_array_new_with_free_func(g_free);
}

static void blockmig_unload(void)
{
    g_ptr_array_unref(disk.roots);
    g_ptr_array_unref(disk.texts);
    g_clear_pointer(&disk.parents, g_array_unref);
    g_free(disk.path);
    pthread_rwlock_destroy(&disk.bytes);
}

/* nbdkit leaves the directory that it was started in. */
static char *absolute(const char *path)
{
    return g_canonicalize_filename(path, NULL);
}

static int blockmig_config(const char *key, const char *value)
{
    g_autoptr(GError) error = NULL;

    if (*value == '\0') {
        nbdkit_error("%s=: the value is empty", key);
        return -1;
    }
    if (strcmp(key, "file") == 0) {
        g_free(disk.path);
        disk.path = absolute(value);
    } else if (strcmp(key, "format") == 0) {
        if (!(disk.format = format_by_name(value, &error)))
            return fail(g_steal_pointer(&error));
    } else if (strcmp(key, "allow-root") == 0) {
        g_ptr_array_add(disk.roots, absolute(value));
    } else if (strcmp(key, "parent") == 0) {
        g_ptr_array_add(disk.texts, g_strdup(value));
    } else {
        nbdkit_error("unknown parameter \"%s\"", key);
        return -1;
    }
    return 0;
}

static int blockmig_config_complete(void)
{
    if (!disk.path) {
        nbdkit_error("the image is missing: file=PATH");
        return -1;
    }
    g_ptr_array_add(disk.roots, NULL);
    g_ptr_array_add(disk.texts, NULL);
    disk.parents = chain_parents((const char *const *)disk.texts->pdata);
    for (guint i = 0; i < disk.parents->len; i++) {
        char **path = &g_array_index(disk.parents, struct chain_parent, i).path;
        g_autofree char *given = *path;

        *path = absolute(given);
    }
    return 0;
}

/* ---- opening ------------------------------------------------------------------------------------ */

static struct chain *open_chain(bool writable, GError **error)
{
    unsigned flags = FILE_NO_DIRECT;
    const struct chain_policy policy = {
        .allowed_roots = (const char *const *)disk.roots->pdata,
        .parents = (const struct chain_parent *)disk.parents->data,
        .parent_count = disk.parents->len,
        .writable_top = writable,
        .open = storage_file_open_for_chain,
        .opaque = &flags,
    };

    return chain_open(disk.path, disk.format, &policy, error);
}

/* What a server that was killed left counted but unused is given back. */
static bool prepare_write(struct chain *chain, GError **error)
{
    struct image *top = chain_layer(chain, 0);

    if (!chain_check_writable(chain, error) || !image_repair(top, error))
        return false;
    if (!image_files_lockable(top))
        nbdkit_error("warning: %s: the file system has no locks: nothing keeps others from writing to it",
                     top->name);
    return true;
}

static bool is_writable(const struct chain *chain)
{
    return chain && chain_layer(chain, 0)->writable;
}

/* Formats that are only read are served so, as are streams that nothing can be written into. */
static bool may_write(const struct chain *chain)
{
    const struct image *top = chain_layer(chain, 0);

    return format_check_writable(top->format, NULL) && top->packed_max == 0;
}

static bool open_for_writing(GError **error)
{
    if (!disk.format && chain_layer(disk.chain, 0)->format == &format_raw)
        return blockmig_fail(
            error, BLOCKMIG_ERROR_REFUSED,
            "%s looks raw, and what is written to it could make it look like something else: "
            "say format=raw, or serve it with -r",
            disk.path);
    g_clear_pointer(&disk.chain, chain_close); /* its locks are in our own way */
    disk.chain = open_chain(true, error);
    if (disk.chain && prepare_write(disk.chain, error))
        return true;
    g_clear_pointer(&disk.chain, chain_close);
    return false;
}

/* Only a look: with --run, and as long as the command lives, another process would keep what is open here,
 * and with it the locks. */
static int blockmig_get_ready(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(chain_t) chain = open_chain(false, &error);

    if (!chain)
        return fail(g_steal_pointer(&error));
    for (unsigned i = 0; i < chain_depth(chain); i++) {
        const struct image *image = chain_layer(chain, i);

        for (guint k = 0; k < image->notices->len; k++)
            nbdkit_debug("%s: %s", image->name, (const char *)image->notices->pdata[k]);
    }
    return 0;
}

static void *blockmig_open(int readonly)
{
    g_autoptr(GError) error = NULL;
    bool ok;

    pthread_rwlock_wrlock(&disk.bytes);
    if (!disk.chain)
        disk.chain = open_chain(false, &error);
    ok = disk.chain &&
         (readonly || is_writable(disk.chain) || !may_write(disk.chain) || open_for_writing(&error));
    pthread_rwlock_unlock(&disk.bytes);
    if (ok)
        return NBDKIT_HANDLE_NOT_NEEDED;
    fail(g_steal_pointer(&error));
    return NULL;
}

/* ---- access ------------------------------------------------------------------------------------- */

static bool is_open(GError **error)
{
    return disk.chain ||
           blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "%s could not be opened again", disk.path);
}

static bool flush(GError **error)
{
    return !is_writable(disk.chain) || chain_flush(disk.chain, error);
}

static bool map(uint64_t offset, uint64_t length, struct extent *out, size_t *count, GError **error)
{
    bool ok;

    pthread_mutex_lock(&disk.map);
    ok = is_open(error) && chain_map(disk.chain, offset, length, out, MAP_BATCH, count, error);
    pthread_mutex_unlock(&disk.map);
    return ok;
}

/* Calls `each` with the extents of the range, as long as it returns true; for those who read. */
static int walk(uint64_t offset, uint64_t length,
                bool (*each)(const struct extent *extent, void *opaque, GError **error), void *opaque)
{
    struct extent extents[MAP_BATCH];
    uint64_t end = offset + length;
    GError *error = NULL;
    bool more = true;
    size_t count;

    pthread_rwlock_rdlock(&disk.bytes);
    while (more && offset < end && map(offset, end - offset, extents, &count, &error)) {
        for (size_t i = 0; more && i < count; i++)
            more = each(&extents[i], opaque, &error);
        offset = extent_end(&extents[count - 1]);
    }
    pthread_rwlock_unlock(&disk.bytes);
    return error ? fail(error) : 0;
}

/* `error` by its address, for it is set while the other argument is computed. */
static int change(bool ok, GError **error)
{
    pthread_rwlock_unlock(&disk.bytes);
    return ok ? 0 : fail(*error);
}

/* ---- what a client is told ---------------------------------------------------------------------- */

static int64_t blockmig_get_size(void *handle)
{
    int64_t size = -1;

    pthread_rwlock_rdlock(&disk.bytes);
    if (disk.chain && disk.chain->size <= INT64_MAX)
        size = (int64_t)disk.chain->size;
    pthread_rwlock_unlock(&disk.bytes);
    if (size < 0)
        nbdkit_error("%s has no size that can be served", disk.path);
    return size;
}

/* Any bytes can be written; preferred are those that need nothing brought along. */
static int blockmig_block_size(void *handle, uint32_t *minimum, uint32_t *preferred, uint32_t *maximum)
{
    pthread_rwlock_rdlock(&disk.bytes);
    *minimum = 1;
    *preferred = disk.chain ? CLAMP(chain_layer(disk.chain, 0)->granularity, 4096, MAX_PREFERRED) : 4096;
    *maximum = UINT32_MAX;
    pthread_rwlock_unlock(&disk.bytes);
    return 0;
}

static int blockmig_can_write(void *handle)
{
    bool writable;

    pthread_rwlock_rdlock(&disk.bytes);
    writable = is_writable(disk.chain);
    pthread_rwlock_unlock(&disk.bytes);
    return writable;
}

/* They all look at the same chain, and a flush is one of everything. */
static int blockmig_can_multi_conn(void *handle)
{
    return 1;
}

/* ---- reading ------------------------------------------------------------------------------------ */

struct reading {
    uint8_t *buffer;
    uint64_t offset; /* of the buffer */
};

static bool read_extent(const struct extent *extent, void *opaque, GError **error)
{
    const struct reading *reading = opaque;

    return chain_read_extent(disk.chain, extent, reading->buffer + (extent->offset - reading->offset), error);
}

static int blockmig_pread(void *handle, void *buffer, uint32_t count, uint64_t offset, uint32_t flags)
{
    struct reading reading = {buffer, offset};

    return walk(offset, count, read_extent, &reading);
}

static bool prefetch_extent(const struct extent *extent, void *opaque, GError **error)
{
    if (extent->status == EXTENT_DATA)
        storage_prefetch(extent->storage, extent->host_offset, extent->length);
    else if (extent->status == EXTENT_PACKED)
        storage_prefetch(extent->storage, extent->host_offset, extent->packed_length);
    return true;
}

static int blockmig_cache(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
    return walk(offset, count, prefetch_extent, NULL);
}

struct listing {
    struct nbdkit_extents *extents;
    unsigned left; /* an answer may end anywhere; one of a million extents would be of no use */
    bool failed;
};

/* What no layer has, and what a layer says is zeros: both take no bytes. */
static bool list_extent(const struct extent *extent, void *opaque, GError **error)
{
    struct listing *listing = opaque;
    bool zero = extent->status == EXTENT_ZERO;

    listing->failed = nbdkit_add_extent(listing->extents, extent->offset, extent->length,
                                        zero ? NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO : 0) < 0;
    return !listing->failed && --listing->left > 0;
}

static int blockmig_extents(void *handle, uint32_t count, uint64_t offset, uint32_t flags,
                            struct nbdkit_extents *extents)
{
    struct listing listing = {extents, flags & NBDKIT_FLAG_REQ_ONE ? MAP_BATCH : 64 * MAP_BATCH, false};

    return walk(offset, count, list_extent, &listing) < 0 || listing.failed ? -1 : 0;
}

/* ---- writing ------------------------------------------------------------------------------------
 * Without can_fua nbdkit calls flush after what has to be durable. */

static int blockmig_pwrite(void *handle, const void *buffer, uint32_t count, uint64_t offset, uint32_t flags)
{
    GError *error = NULL;

    pthread_rwlock_wrlock(&disk.bytes);
    return change(is_open(&error) && chain_write(disk.chain, buffer, count, offset, &error), &error);
}

/* Zeros that must take their space are written: nbdkit does that on EOPNOTSUPP. */
static int blockmig_zero(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
    GError *error = NULL;

    if (!(flags & NBDKIT_FLAG_MAY_TRIM)) {
        nbdkit_set_error(EOPNOTSUPP);
        return -1;
    }
    pthread_rwlock_wrlock(&disk.bytes);
    return change(is_open(&error) && chain_zero(disk.chain, offset, count, &error), &error);
}

static int blockmig_trim(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
    GError *error = NULL;

    pthread_rwlock_wrlock(&disk.bytes);
    return change(is_open(&error) && chain_discard(disk.chain, offset, count, &error), &error);
}

static int blockmig_flush(void *handle, uint32_t flags)
{
    GError *error = NULL;

    pthread_rwlock_wrlock(&disk.bytes);
    return change(is_open(&error) && flush(&error), &error);
}

/* A client that goes without a flush loses nothing, as long as nothing is killed. */
static void blockmig_close(void *handle)
{
    (void)blockmig_flush(handle, 0);
}

static void blockmig_cleanup(void)
{
    GError *error = NULL;

    if (!flush(&error))
        fail(error);
    g_clear_pointer(&disk.chain, chain_close);
}

static struct nbdkit_plugin plugin = {
    .name = "blockmig",
    .longname = "blockmig disk images",
    .version = PACKAGE_VERSION,
    .description = "virtual machine disks of all formats of blockmig, with all that lies below them",
    .load = blockmig_load,
    .unload = blockmig_unload,
    .config = blockmig_config,
    .config_complete = blockmig_config_complete,
    .config_help = "[file=]PATH                    the image (required)\n"
                   "format=FORMAT                  its format; otherwise it is probed\n"
                   "parent=[FORMAT:]FILE           parent of an image that names none; repeatable\n"
                   "allow-root=DIR                 also follow backing files below DIR; repeatable",
    .magic_config_key = "file",
    .get_ready = blockmig_get_ready,
    .cleanup = blockmig_cleanup,
    .open = blockmig_open,
    .close = blockmig_close,
    .get_size = blockmig_get_size,
    .block_size = blockmig_block_size,
    .can_write = blockmig_can_write,
    .can_multi_conn = blockmig_can_multi_conn,
    .pread = blockmig_pread,
    .pwrite = blockmig_pwrite,
    .zero = blockmig_zero,
    .trim = blockmig_trim,
    .flush = blockmig_flush,
    .extents = blockmig_extents,
    .cache = blockmig_cache,
};

/* The macro defines it without a declaration. */
struct nbdkit_plugin *plugin_init(void);
NBDKIT_REGISTER_PLUGIN(plugin)
