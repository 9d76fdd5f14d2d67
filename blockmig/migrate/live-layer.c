/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The source's layers: their names on disk and in the hypervisor.  The rules are in live.h. */
#include "blockmig/migrate/live.h"
#include "blockmig/migrate/target.h"
#include "blockmig/storage/device.h"
#include "blockmig/storage/file.h"
#include "blockmig/storage/uri.h"

#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* 4 KiB of granularity, and few tables. */
#define OVERLAY_OPTIONS "extended_l2=on,cluster_size=128k"

/* ---- names ---- */

/* "/dev/vg/disk" becomes "SCRATCH/vg-disk", "nbd://host/disk" "SCRATCH/disk-" with a digest of all of it. */
char *live_stem(const struct live_job *job, const char *image, bool device)
{
    return device ? target_scratch_stem(job->scratch, image) : g_strdup(image);
}

char *live_numbered(const struct live_disk *disk, unsigned n)
{
    return g_strdup_printf("%s.blockmig-%u", disk->stem, n);
}

/* Before the first exchange the base still has the name, and overlay 1 stands where the base will. */
char *live_layer_path(const struct live_disk *disk, unsigned layer)
{
    if (!disk->base_renamed && layer == 0)
        return g_strdup(disk->name);
    if (!disk->by_exchange)
        return live_numbered(disk, layer);
    if (!disk->base_renamed)
        return live_numbered(disk, 0);
    return layer >= disk->top && !disk->set_aside ? g_strdup(disk->name) : live_numbered(disk, layer);
}

static char *node_name(const struct live_job *job, const struct live_disk *disk, char side, unsigned layer)
{
    return g_strdup_printf("bm-%08x-%u-%c%u", job->tag, disk->index, side, layer);
}

static char other_side(const struct live_disk *disk)
{
    return disk->side == 's' ? 't' : 's';
}

char *live_layer_node(const struct live_job *job, const struct live_disk *disk, unsigned layer)
{
    return node_name(job, disk, disk->side, layer);
}

char *live_top_node(const struct live_job *job, const struct live_disk *disk)
{
    return live_layer_node(job, disk, disk->top);
}

char *live_next_node(const struct live_job *job, const struct live_disk *disk)
{
    return live_layer_node(job, disk, disk->top + 1);
}

char *live_active_node(const struct live_job *job, const struct live_disk *disk)
{
    return disk->straddles ? live_new_node(job, disk)
           : disk->topped  ? live_next_node(job, disk)
                           : live_top_node(job, disk);
}

char *live_base_node(const struct live_job *job, const struct live_disk *disk)
{
    return disk->based ? live_layer_node(job, disk, 0) : g_strdup(disk->base_node);
}

char *live_merged_node(const struct live_job *job, const struct live_disk *disk)
{
    return node_name(job, disk, other_side(disk), disk->merged);
}

char *live_new_node(const struct live_job *job, const struct live_disk *disk)
{
    return node_name(job, disk, other_side(disk), disk->merged + 1);
}

char *live_below_merged(const struct live_job *job, const struct live_disk *disk)
{
    return live_layer_node(job, disk->other, disk->merged - 1);
}

char *live_target_name(const struct live_job *job, const struct live_disk *disk)
{
    g_autofree char *name = target_backing_name(disk->target_overlay, disk->target_path);

    return job->request->keep_failback ? g_strconcat(name, ".blockmig-0", NULL) : g_steal_pointer(&name);
}

static bool rename_synced(const struct live_disk *disk, const char *from, const char *to, unsigned flags,
                          GError **error)
{
    if (renameat2(AT_FDCWD, from, AT_FDCWD, to, flags) < 0)
        return blockmig_set_errno(error, errno, "renaming %s to %s", from, to);
    return storage_file_sync_directory(disk->name, error);
}

bool live_layer_take_name(struct live_disk *disk, unsigned layer, GError **error)
{
    g_autofree char *below = live_numbered(disk, layer - 1);

    if (disk->device)
        return true;
    if ((disk->by_exchange || layer == 1) &&
        !rename_synced(disk, disk->name, below, disk->by_exchange ? RENAME_EXCHANGE : RENAME_NOREPLACE,
                       error))
        return false;
    disk->base_renamed = true;
    return true;
}

bool live_layer_return_name(struct live_disk *disk, unsigned layer, GError **error)
{
    g_autofree char *below = live_numbered(disk, layer - 1);
    bool taken = disk->by_exchange && !disk->set_aside;

    if (disk->device)
        return true;
    if ((disk->by_exchange || layer == 1) &&
        !rename_synced(disk, below, disk->name, taken ? RENAME_EXCHANGE : RENAME_NOREPLACE, error))
        return false;
    disk->base_renamed = layer > 1;
    disk->set_aside = false;
    return true;
}

bool live_layer_set_aside(struct live_disk *disk, bool aside, GError **error)
{
    g_autofree char *other = live_numbered(disk, disk->top);
    const char *from = aside ? disk->name : other, *to = aside ? other : disk->name;

    if (!disk->by_exchange || !disk->base_renamed || disk->set_aside == aside)
        return true;
    if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) < 0)
        return blockmig_set_errno(error, errno, "renaming %s to %s", from, to);
    disk->set_aside = aside;
    return true;
}

bool live_device_freeze(struct live_disk *disk, bool frozen)
{
    int fd, errnum;

    if (!disk->device || (!frozen && !disk->read_only))
        return true;
    if (storage_name_is_uri(disk->name))
        return false;
    fd = open(disk->name, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    errnum = device_set_readonly(fd, frozen);
    close(fd);
    if (errnum == 0)
        disk->read_only = frozen;
    return errnum == 0;
}

bool live_layer_restore_name(struct live_disk *disk, GError **error)
{
    return !disk->base_renamed || live_layer_return_name(disk, disk->floor + 1, error);
}

bool live_layer_remove(struct live_disk *disk, unsigned layer, GError **error)
{
    g_autofree char *path = live_layer_path(disk, layer);

    if (g_unlink(path) < 0 && errno != ENOENT)
        return blockmig_set_errno(error, errno, "removing %s", path);
    return true;
}

static void forget_files(const struct live_disk *disk, bool marked)
{
    for (unsigned layer = disk->by_exchange ? disk->floor : disk->floor + 1; layer <= disk->files; layer++) {
        g_autofree char *path = live_numbered(disk, layer);

        if (live_is_merged(path) == marked)
            g_unlink(path);
    }
    storage_file_sync_directory(disk->stem, NULL);
}

void live_layers_forget(const struct live_job *job, const struct live_disk *disk)
{
    if (disk->floor == 0 && (!live_exists(disk->name) || live_is_overlay(disk, disk->name))) {
        job_notice(&job->base, "%s is not what it was before: all beside it is kept", disk->name);
        return;
    }
    /* As long as there is any, there is the mark. */
    forget_files(disk, false);
    forget_files(disk, true);
}

bool live_has_unmerged(const struct live_disk *disk)
{
    bool any = false;

    for (unsigned layer = disk->by_exchange ? 0 : 1; layer <= disk->files; layer++) {
        g_autofree char *path = live_numbered(disk, layer);

        if (live_is_merged(path))
            return false;
        any |= g_file_test(path, G_FILE_TEST_EXISTS) && !live_overlay_is_empty(path);
    }
    return any;
}

/* No time of the present is this one, and every write sets the present. */
static const struct timespec merged_mark = {.tv_sec = 1};

bool live_mark_merged(const char *path, GError **error)
{
    const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, merged_mark};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    bool ok = fd >= 0 && futimens(fd, times) == 0 && fsync(fd) == 0;

    if (!ok)
        blockmig_set_errno(error, errno, "marking %s as merged", path);
    if (fd >= 0)
        close(fd);
    return ok;
}

bool live_is_merged(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && st.st_mtim.tv_sec == merged_mark.tv_sec &&
           st.st_mtim.tv_nsec == merged_mark.tv_nsec;
}

/* ---- files ---- */

static bool carry_metadata(const struct live_job *job, const char *like, struct storage *storage,
                           GError **error)
{
    g_autofree char *real = NULL;
    struct storage *model = NULL;

    if (storage_name_is_uri(like))
        return true;
    model = storage_file_open(like, FILE_NO_LOCK, NULL, &real, error);
    if (!model)
        return false;
    target_carry_metadata(&job->base, model, storage, storage->name);
    storage_close(model);
    return true;
}

bool live_overlay_create(const struct live_job *job, const char *path, uint64_t size,
                         const char *backing_name, const char *backing_format, const char *like,
                         GError **error)
{
    g_autoptr(GHashTable) values = format_parse_options(&format_qcow2, OVERLAY_OPTIONS, error);
    struct image_create_options options = {
        .size = size, .backing_name = backing_name, .backing_format = backing_format, .values = values};
    struct storage *storage = NULL;
    bool ok;

    if (values)
        storage = storage_file_open(path, FILE_WRITE | FILE_CREATE, NULL, NULL, error);
    if (!storage)
        return false;
    ok = image_create(storage, &format_qcow2, &options, error) && carry_metadata(job, like, storage, error);
    storage_close(storage);
    if (!ok)
        g_unlink(path);
    return ok && storage_file_sync_directory(path, error);
}

/* It stands where it can take the disk's name from, and names what will be below it by then. */
bool live_layer_create(struct live_job *job, struct live_disk *disk, unsigned layer, GError **error)
{
    const char *format = layer > 1 ? format_qcow2.name : disk->source_format->name;
    g_autofree char *path = live_numbered(disk, disk->by_exchange ? layer - 1 : layer);
    g_autofree char *below =
        disk->device && layer == 1 ? g_strdup(disk->name) : live_numbered(disk, layer - 1);
    g_autofree char *name = target_backing_name(path, below);
    g_autofree char *like = live_layer_path(disk, disk->top);

    if (!live_overlay_create(job, path, disk->size, name, format, like, error))
        return false;
    disk->files = layer;
    return true;
}

/* ---- opening them ---- */

struct opening {
    const struct live_disk *disk;
    unsigned flags;
};

/* A device below the machine's disk lies under no directory of images. */
static bool is_device_of(const struct live_disk *disk, const char *path)
{
    struct stat wanted, st;

    if (stat(path, &wanted) < 0 || !S_ISBLK(wanted.st_mode))
        return false;
    for (guint i = 1; i < disk->vm->layers->len; i++) {
        const struct vm_layer *layer = g_ptr_array_index(disk->vm->layers, i);

        if (stat(layer->filename, &st) == 0 && S_ISBLK(st.st_mode) && st.st_rdev == wanted.st_rdev)
            return true;
    }
    return false;
}

static struct storage *open_for_chain(void *opaque, const char *path, const char *const *roots, bool writable,
                                      char **real_path, GError **error)
{
    struct opening *opening = opaque;

    if (roots && is_device_of(opening->disk, path))
        roots = NULL;
    return storage_open_for_chain(&opening->flags, path, roots, writable, real_path, error);
}

static struct chain *open_chain(const struct live_disk *disk, const char *path, const struct format *format,
                                unsigned flags, GError **error)
{
    g_autoptr(GPtrArray) roots = g_ptr_array_new_with_free_func(g_free);
    struct opening opening = {.disk = disk, .flags = flags | FILE_MODEST};
    struct chain_policy policy = {.open = open_for_chain, .opaque = &opening};

    /* What the machine has open may be followed. */
    for (guint i = 1; i < disk->vm->layers->len; i++) {
        const struct vm_layer *layer = g_ptr_array_index(disk->vm->layers, i);

        g_ptr_array_add(roots, g_path_get_dirname(layer->filename));
    }
    g_ptr_array_add(roots, NULL);
    policy.allowed_roots = (const char *const *)roots->pdata;
    return chain_open(path, format, &policy, error);
}

struct chain *live_open_base(const struct live_disk *disk, unsigned flags, GError **error)
{
    g_autofree char *path = live_layer_path(disk, 0);

    return open_chain(disk, path, disk->source_format, flags, error);
}

struct chain *live_open_target(const struct live_disk *disk, GError **error)
{
    return open_chain(disk, disk->target_path, disk->format, 0, error);
}

static struct image *open_image(const char *path, unsigned flags, GError **error)
{
    struct storage *storage = storage_file_open(path, flags, NULL, NULL, error);

    return storage ? image_open(storage, &format_qcow2, false, error) : NULL;
}

struct chain *live_open_overlay(const char *path, unsigned flags, GError **error)
{
    struct image *image = open_image(path, flags, error);

    return image ? chain_new_single(image, true) : NULL;
}

bool live_stands_on(const struct live_disk *disk, const char *path, unsigned *layer)
{
    g_autofree char *stem = g_strconcat(disk->stem, ".blockmig-", NULL);
    g_autofree char *prefix = target_backing_name(stem, stem);
    g_autoptr(image_t) image = NULL;

    /* A raw disk may look like whatever its guest wrote. */
    if (!disk->by_exchange && strcmp(path, disk->name) == 0)
        return false;
    image = open_image(path, FILE_NO_LOCK, NULL);
    if (!image || !image->backing_name || !g_str_has_prefix(image->backing_name, prefix))
        return false;
    *layer = (unsigned)g_ascii_strtoull(image->backing_name + strlen(prefix), NULL, 10);
    return true;
}

bool live_is_overlay(const struct live_disk *disk, const char *path)
{
    unsigned below;

    return live_stands_on(disk, path, &below);
}

/* One that cannot be read may hold anything. */
bool live_overlay_is_empty(const char *path)
{
    g_autoptr(chain_t) overlay = live_open_overlay(path, FILE_NO_LOCK, NULL);
    struct extent extent;
    size_t count;

    for (uint64_t at = 0; overlay && at < overlay->size; at = extent_end(&extent))
        if (!chain_map(overlay, at, overlay->size - at, &extent, 1, &count, NULL) ||
            extent.status != EXTENT_HOLE)
            return false;
    return overlay != NULL;
}

struct chain *live_open_overlays(const struct live_disk *disk, unsigned from, GError **error)
{
    return live_open_layers(disk, from, disk->top, error);
}

struct chain *live_open_layers(const struct live_disk *disk, unsigned from, unsigned to, GError **error)
{
    g_autoptr(chain_t) chain = NULL;

    for (unsigned layer = to; layer >= from; layer--) {
        g_autofree char *path = live_layer_path(disk, layer);
        struct image *image = open_image(path, 0, error);

        if (!image)
            return NULL;
        if (chain)
            chain_append(chain, image);
        else
            chain = chain_new_single(image, true);
    }
    return g_steal_pointer(&chain);
}

struct chain *live_open_source(const struct live_disk *disk, GError **error)
{
    return live_open_down_from(disk, disk->top, error);
}

struct chain *live_open_down_from(const struct live_disk *disk, unsigned top, GError **error)
{
    g_autoptr(chain_t) chain = top > 0 ? live_open_layers(disk, 1, top, error) : NULL;
    g_autoptr(chain_t) base = chain || top == 0 ? live_open_base(disk, 0, error) : NULL;

    if (!chain || !base)
        return g_steal_pointer(&base);
    while (chain_depth(base) > 0)
        chain_append(chain, (struct image *)g_ptr_array_steal_index(base->layers, 0));
    chain->keep_holes = false;
    return g_steal_pointer(&chain);
}

/* ---- in the hypervisor ---- */

struct storage *live_storage_open(const char *name, unsigned flags, const char *const *roots,
                                  char **real_path, GError **error)
{
    return storage_open(name, flags | FILE_MODEST, roots, real_path, error);
}

bool live_exists(const char *name)
{
    return storage_name_is_uri(name) || g_file_test(name, G_FILE_TEST_EXISTS);
}

bool live_descriptor(const char *path, int *fd, GError **error)
{
    *fd = storage_name_is_uri(path) ? -1 : open(path, O_RDWR | O_CLOEXEC);
    return *fd >= 0 || storage_name_is_uri(path) || blockmig_set_errno(error, errno, "opening %s", path);
}

void live_close_descriptor(int fd)
{
    if (fd >= 0)
        close(fd);
}

struct vm_node live_node(const struct live_disk *disk, const char *name, const char *filename,
                         const char *format, const char *backing, const int *descriptor, bool read_only)
{
    struct stat st;

    return (struct vm_node){.name = name,
                            .filename = filename,
                            .format = format,
                            .backing = backing,
                            .descriptor = descriptor,
                            .detect_zeroes = disk->vm->detect_zeroes,
                            .block_device = descriptor && fstat(*descriptor, &st) == 0 && S_ISBLK(st.st_mode),
                            .direct = disk->vm->cache.direct,
                            .no_flush = disk->vm->cache.no_flush,
                            .discard = true,
                            .read_only = read_only};
}

bool live_add_node(struct live_job *job, const struct live_disk *disk, const char *name, const char *path,
                   const char *format, const char *backing, bool read_only, GError **error)
{
    struct vm_node node;
    bool ok;
    int fd;

    if (!live_descriptor(path, &fd, error))
        return false;
    node = live_node(disk, name, path, format, backing, &fd, read_only);
    ok = vm_add_node(job->vm, &node, error);
    live_close_descriptor(fd);
    return ok;
}

bool live_set_backing(struct live_job *job, const struct live_disk *disk, const char *name,
                      const char *backing, GError **error)
{
    const int added_by_descriptor = -1;
    struct vm_node node = live_node(disk, name, name, format_qcow2.name, NULL, &added_by_descriptor, false);

    return vm_set_backing(job->vm, &node, backing, error);
}
