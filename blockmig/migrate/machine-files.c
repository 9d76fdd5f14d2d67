/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The files of a domain's disks on both sides, and those that only belong to it. */
#include "blockmig/migrate/machine.h"
#include "blockmig/migrate/target.h"
#include "blockmig/storage/file.h"
#include "blockmig/storage/lock.h"
#include "blockmig/storage/names.h"
#include "blockmig/storage/uri.h"

#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <string.h>
#include <unistd.h>

/* 4 KiB of granularity, and few tables. */
#define OVERLAY_OPTIONS "extended_l2=on,cluster_size=128k"

/* ---- opening ------------------------------------------------------------------------------------- */

char *machine_layer_path(const struct machine_disk *disk, unsigned layer)
{
    return layer ? g_strdup_printf("%s.blockmig-%u", disk->stem, layer) : g_strdup(disk->path);
}

struct image *machine_open_image(const char *name, const struct format *format, unsigned flags,
                                 GError **error)
{
    struct storage *storage = storage_open(name, flags | FILE_MODEST, NULL, NULL, error);
    struct image *image = storage ? image_open(storage, format, (flags & FILE_WRITE) != 0, error) : NULL;

    if (image && image->cluster_size < 4096)
        storage_file_avoid_direct(image->storage);
    return image;
}

/* What the machine has open may be followed, whoever else locks it; one that is off is not started meanwhile.
 */
static struct chain *open_base(const struct machine_disk *disk, GError **error)
{
    unsigned flags = disk->off ? FILE_MODEST : FILE_NO_LOCK | FILE_MODEST;
    struct chain_policy policy = {.allowed_roots = (const char *const *)disk->roots->pdata,
                                  .open = storage_open_for_chain,
                                  .opaque = &flags};

    return chain_open(disk->path, disk->source_format, &policy, error);
}

struct chain *machine_open_layers(const struct machine_disk *disk, unsigned from, unsigned to, GError **error)
{
    g_autoptr(chain_t) chain = NULL, base = NULL;

    for (unsigned layer = to; layer > 0 && layer >= from; layer--) {
        g_autofree char *path = machine_layer_path(disk, layer);
        struct image *image = machine_open_image(path, &format_qcow2, FILE_NO_LOCK, error);

        if (!image)
            return NULL;
        if (chain)
            chain_append(chain, image);
        else
            chain = chain_new_single(image, true);
    }
    if (from > 0)
        return g_steal_pointer(&chain);
    base = open_base(disk, error);
    if (!chain || !base)
        return g_steal_pointer(&base);
    while (chain_depth(base) > 0)
        chain_append(chain, (struct image *)g_ptr_array_steal_index(base->layers, 0));
    chain->keep_holes = false;
    return g_steal_pointer(&chain);
}

struct chain *machine_open_target(const struct machine_job *job, const struct machine_disk *disk,
                                  GError **error)
{
    return machine_open_there(job, disk, disk->target_name, disk->target_path, disk->format, error);
}

struct chain *machine_open_target_overlay(const struct machine_disk *disk, GError **error)
{
    struct image *image = machine_open_image(disk->overlay_name, &format_qcow2, FILE_NO_LOCK, error);

    return image ? chain_new_single(image, true) : NULL;
}

bool machine_is_written(const struct machine_disk *disk)
{
    g_autofree char *path = machine_layer_path(disk, disk->top);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    bool written = fd >= 0 && image_is_written(fd);

    if (fd >= 0)
        close(fd);
    return written;
}

/* ---- overlays ------------------------------------------------------------------------------------ */

bool machine_create_overlay(const char *name, uint64_t size, const char *backing, const char *format,
                            GError **error)
{
    g_autoptr(GHashTable) values = format_parse_options(&format_qcow2, OVERLAY_OPTIONS, error);
    struct image_create_options options = {
        .size = size, .backing_name = backing, .backing_format = format, .values = values};
    g_autoptr(storage_t) storage =
        values ? storage_open(name, FILE_WRITE | FILE_CREATE, NULL, NULL, error) : NULL;

    return storage && image_create(storage, &format_qcow2, &options, error) &&
           storage_flush(storage, error) &&
           (storage_name_is_uri(name) || storage_file_sync_directory(name, error));
}

bool machine_create_target_overlays(struct machine_job *job, GError **error)
{
    for (guint i = 0; i < job->disks->len; i++) {
        struct machine_disk *disk = machine_disk_at(job, i);
        g_autofree char *below = target_backing_name(disk->overlay_path, disk->target_path);

        if (!job_event(&job->base, "intent", error, JOB_CREATES "%s", disk->overlay_name))
            return false;
        disk->overlay_created = true;
        if (!machine_create_overlay(disk->overlay_name, disk->size, below, disk->format->name, error))
            return false;
    }
    return true;
}

void machine_remove_overlays(const struct machine_disk *disk)
{
    for (unsigned layer = disk->top; layer > 0; layer--) {
        g_autofree char *path = machine_layer_path(disk, layer);

        g_unlink(path);
    }
    storage_file_sync_directory(disk->stem, NULL);
}

static bool remove_one(const struct machine_job *job, const char *name)
{
    g_autoptr(GError) local = NULL;

    if (name_remove(name, &local))
        return true;
    job_notice(&job->base, "%s is left: %s", name, local->message);
    return false;
}

bool machine_remove_target(struct machine_job *job)
{
    bool all = true;

    for (guint i = 0; i < job->disks->len; i++) {
        struct machine_disk *disk = machine_disk_at(job, i);

        g_clear_pointer(&disk->target, image_close);
        if (disk->overlay_created)
            all = remove_one(job, disk->overlay_name) && all;
        if (disk->created)
            all = remove_one(job, disk->target_name) && all;
        disk->created = disk->overlay_created = false;
    }
    for (guint i = job->lowers->len; i-- > 0;) {
        struct lower *lower = g_ptr_array_index(job->lowers, i);

        if (lower->created)
            all = remove_one(job, lower->target_name) && all;
        lower->created = false;
    }
    /* The claim on a layer goes after it, or stays with it. */
    for (guint i = job->files->len; all && i-- > 0;) {
        struct machine_file *file = g_ptr_array_index(job->files, i);

        if (file->created)
            all = remove_one(job, file->target_name) && all;
        file->created = false;
    }
    return all;
}

static bool write_overlays(struct machine_job *job, struct chain *overlays, struct image *base,
                           struct chain *below, GError **error)
{
    struct copy_options options = {0};
    struct copy_result result = {0};
    bool ok;

    base->reads_zero = false; /* there is data already: zeros have to be written */
    machine_copy_options(job, &options);
    options.cancelled = NULL;
    options.progress = NULL;
    options.throttle = NULL;
    options.target_backing = below;
    ok = copy_run(overlays, base, &options, &result, error);
    copy_result_clear(&result);
    return ok;
}

bool machine_merge_overlays(struct machine_job *job, struct machine_disk *disk, GError **error)
{
    g_autoptr(chain_t) overlays = disk->top ? machine_open_layers(disk, 1, disk->top, error) : NULL;
    g_autoptr(chain_t) chain = overlays ? open_base(disk, error) : NULL;
    unsigned depth = chain ? chain_depth(chain) : 0;
    g_autoptr(chain_t) below = depth > 1 ? chain_view(chain, 1, depth - 1, false) : NULL;
    g_autoptr(image_t) base = NULL;

    if (disk->top == 0)
        return true;
    g_clear_pointer(&disk->base, chain_close);
    base = chain ? machine_open_image(disk->path, disk->source_format, FILE_WRITE, error) : NULL;
    if (!base || !write_overlays(job, overlays, base, below, error))
        return false;
    machine_remove_overlays(disk);
    disk->top = 0;
    return true;
}

bool machine_merge_target(struct machine_job *job, struct machine_disk *disk, GError **error)
{
    g_autoptr(image_t) overlay = machine_open_image(disk->overlay_name, &format_qcow2, 0, error);
    g_autoptr(chain_t) chain = NULL, whole = NULL, below = NULL;

    g_clear_pointer(&disk->target, image_close);
    disk->target = overlay ? machine_open_image(disk->target_name, disk->format, FILE_WRITE, error) : NULL;
    /* A commit that was interrupted leaves space counted that nobody uses. */
    if (!disk->target || !image_repair(disk->target, error))
        return false;
    if (!(whole = machine_open_target(job, disk, error)))
        return false;
    if (chain_depth(whole) > 1)
        below = chain_view(whole, 1, chain_depth(whole) - 1, false);
    chain = chain_new_single(g_steal_pointer(&overlay), true);
    return write_overlays(job, chain, disk->target, below, error);
}

/* ---- files that are copied as they are ----------------------------------------------------------- */

static bool copy_bytes(struct machine_job *job, const struct machine_file *file, GError **error)
{
    struct storage *from = storage_open(file->path, FILE_NO_LOCK, NULL, NULL, error);
    g_autoptr(image_t) source = from ? image_open(from, &format_raw, false, error) : NULL;
    struct image_create_options options = {.size = source ? source->size : 0};
    g_autoptr(image_t) target = NULL;
    g_autoptr(chain_t) chain = NULL;
    struct copy_options how = {0};
    struct copy_result result = {0};
    struct storage *to;
    bool ok;

    to = source ? storage_open(file->target_name, FILE_WRITE | FILE_CREATE, NULL, NULL, error) : NULL;
    if (!to)
        return false;
    if (!image_create(to, &format_raw, &options, error)) {
        storage_close(to);
        return false;
    }
    target = image_open(to, &format_raw, true, error);
    if (!target)
        return false;
    chain = chain_new_single(g_steal_pointer(&source), false);
    machine_copy_options(job, &how);
    how.progress = NULL;
    ok = copy_run(chain, target, &how, &result, error);
    copy_result_clear(&result);
    return ok;
}

/* Whoever creates it on the target: what is rolled back goes. */
static bool announce(struct machine_job *job, struct machine_file *file, GError **error)
{
    file->created = true;
    return job_event(&job->base, "intent", error, JOB_CREATES "%s", file->target_name);
}

static bool is_written(const struct machine_file *file)
{
    return file->written || file->late;
}

/* What the machine writes may not be there before its first start. */
static bool copy_file(struct machine_job *job, struct machine_file *file, GError **error)
{
    if (is_written(file) && !g_file_test(file->path, G_FILE_TEST_EXISTS))
        return true;
    machine_tell(job, "%s", file->path);
    return announce(job, file, error) && copy_bytes(job, file, error);
}

/* A hypervisor writes all of the NVRAM when it takes a running machine over, and the TPM its files; before
 * one is started, they have to be copied when nobody writes to them any more (machine_copy_written_files()).
 */
static bool bring_file(struct machine_job *job, struct machine_file *file, GError **error)
{
    if (!file->target_name) /* it is ejected */
        return true;
    if (file->late && job->state.active)
        return announce(job, file, error);
    return (!file->written || job_event(&job->base, "fact", error, MACHINE_WRITES "%s", file->path)) &&
           (file->there || file->created || copy_file(job, file, error));
}

bool machine_copy_files(struct machine_job *job, GError **error)
{
    if (job->tpm && !job_event(&job->base, "fact", error, MACHINE_WRITES "%s", job->tpm))
        return false;
    for (guint i = 0; i < job->files->len; i++)
        if (!bring_file(job, g_ptr_array_index(job->files, i), error))
            return false;
    return true;
}

GPtrArray *machine_written_files(const struct machine_job *job, GError **error)
{
    return journal_told(job->base.journal, job->base.record, "fact", MACHINE_WRITES, error);
}

bool machine_copy_written_files(struct machine_job *job, GError **error)
{
    for (guint i = 0; i < job->files->len; i++) {
        struct machine_file *file = g_ptr_array_index(job->files, i);

        if (is_written(file) && (!name_remove(file->target_name, error) || !copy_file(job, file, error)))
            return false;
    }
    return true;
}

static bool remove_content(const char *path, GError **error)
{
    g_autoptr(GDir) dir = g_dir_open(path, 0, error);
    const char *name;

    while (dir && (name = g_dir_read_name(dir))) {
        g_autofree char *inner = g_build_filename(path, name, NULL);

        if (!machine_remove_path(inner, error))
            return false;
    }
    return dir != NULL;
}

bool machine_remove_path(const char *path, GError **error)
{
    struct name_info info;

    if (!name_look(path, &info, error))
        return false;
    if (info.kind != NAME_DIRECTORY)
        return name_remove(path, error);
    return remove_content(path, error) &&
           (g_rmdir(path) == 0 || blockmig_set_errno(error, errno, "removing %s", path));
}
