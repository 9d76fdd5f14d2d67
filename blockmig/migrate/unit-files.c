/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The files that a unit consists of: the image itself, and those that hold its data where the format has
 * such.
 *
 * They all grow under part names beside their final ones.  In the image stand the final names: so who opens
 * it while it grows finds its data by the list of the unit and not by these.  The image itself takes its name
 * last: before, nothing leads to the others, and after it, all are there.
 */
#include "blockmig/migrate/cold.h"
#include "blockmig/storage/file.h"
#include "blockmig/storage/names.h"
#include "blockmig/storage/uri.h"

#include <string.h>

#define PART_SUFFIX  ".blockmig-part"
#define LONGEST_NAME 255 /* NAME_MAX of every file system that is worth a disk */

/* A name as long as names may be is cut, and told from others with the same beginning by its digest. */
char *unit_part_path(const char *target)
{
    g_autofree char *directory = g_path_get_dirname(target);
    g_autofree char *base = g_path_get_basename(target);
    g_autofree char *sum = g_compute_checksum_for_string(G_CHECKSUM_SHA256, base, -1);
    g_autofree char *name = NULL;

    if (strlen(base) + strlen(PART_SUFFIX) <= LONGEST_NAME)
        return g_strconcat(target, PART_SUFFIX, NULL);
    name = g_strdup_printf("%.128s-%.32s" PART_SUFFIX, base, sum);
    return g_build_filename(directory, name, NULL);
}

static void file_free(gpointer data)
{
    struct unit_file *file = data;

    storage_close(file->replaced);
    g_free(file->target_path);
    g_free(file->part_path);
    g_free(file);
}

static struct unit_file *add_file(struct copy_unit *unit, char *target_path, bool device)
{
    struct unit_file *file = g_new0(struct unit_file, 1);

    file->target_path = target_path;
    file->part_path = device ? g_strdup(target_path) : unit_part_path(target_path);
    g_ptr_array_add(unit->files, file);
    return file;
}

void unit_set_target(struct copy_unit *unit, char *target_path, bool device)
{
    const struct unit_file *file;

    unit->files = g_ptr_array_new_with_free_func(file_free);
    file = add_file(unit, target_path, device);
    unit->target_path = file->target_path;
    unit->part_path = file->part_path;
    unit->name = storage_base_name(target_path);
    unit->device = device;
}

struct image_create_options unit_create_options(const struct copy_unit *unit)
{
    return (struct image_create_options){.name = unit->name,
                                         .size = unit->chain->size,
                                         .backing_name = unit->backing_name,
                                         .backing_format = unit->backing_format,
                                         .values = unit->options};
}

bool unit_plan_files(struct copy_unit *unit, GError **error)
{
    struct image_create_options options = unit_create_options(unit);
    g_autofree char *directory = g_path_get_dirname(unit->target_path);
    g_autoptr(GPtrArray) data = image_data_files_new();

    if (!image_plan_data(unit->format, &options, data, error))
        return false;
    if (data->len && unit->device)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "%s: a device cannot hold an image of several files", unit->target_path);
    for (guint i = 0; i < data->len; i++) {
        const struct data_file *planned = g_ptr_array_index(data, i);

        add_file(unit, g_build_filename(directory, planned->name, NULL), false)->longest = planned->size;
    }
    return true;
}

/* ---- opening ------------------------------------------------------------------------------------ */

/* The part's name may have been somebody else's: a link would lead the copy elsewhere, and between opening
 * and locking another job may have given the file its final name. */
static bool is_our_part(const char *path, const struct storage *storage, GError **error)
{
    struct name_info named;

    if (!name_look(path, &named, error))
        return false;
    if (name_is_of(&named, storage))
        return true;
    return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                         "%s is not a file that this job made: it is a link, or was renamed meanwhile", path);
}

static struct storage *open_part(const char *path, bool fresh, GError **error)
{
    g_autofree char *real = NULL;
    bool create = fresh && !name_exists(path);
    g_autoptr(storage_t) storage =
        storage_open(path, create ? FILE_WRITE | FILE_CREATE : FILE_WRITE, NULL, &real, error);

    if (!storage || !is_our_part(path, storage, error))
        return NULL;
    if (fresh && storage->size > 0 && !storage_resize(storage, 0, error))
        return NULL;
    return g_steal_pointer(&storage);
}

static struct storage *open_to_write(const struct copy_unit *unit, unsigned index, bool fresh, GError **error)
{
    const struct unit_file *file = g_ptr_array_index(unit->files, index);
    g_autofree char *real = NULL;

    return unit->device ? storage_open(file->target_path, FILE_WRITE, NULL, &real, error)
                        : open_part(file->part_path, fresh, error);
}

/* Wherever it is by now. */
static struct storage *open_to_read(const struct copy_unit *unit, unsigned index, bool fresh, GError **error)
{
    const struct unit_file *file = g_ptr_array_index(unit->files, index);
    bool growing = name_exists(file->part_path);
    g_autofree char *real = NULL;

    return storage_open(growing ? file->part_path : file->target_path, FILE_NO_LOCK, NULL, &real, error);
}

static struct storage *steal(GPtrArray *storages, guint index)
{
    return g_steal_pointer(&g_ptr_array_index(storages, index));
}

/* Takes the storages: that of the image, then those of its data. */
static struct image *assemble(const struct copy_unit *unit, bool writable, GPtrArray *storages,
                              GError **error)
{
    g_autoptr(image_t) image = image_open(steal(storages, 0), unit->format, writable, error);

    if (!image)
        return NULL;
    if (image->data_files->len + 1 != storages->len) {
        blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s has %u data files, not %u", image->name,
                      image->data_files->len, storages->len - 1);
        return NULL;
    }
    for (guint i = 1; i < storages->len; i++)
        if (!image_attach_data(image, i - 1, steal(storages, i), error))
            return NULL;
    return g_steal_pointer(&image);
}

static GPtrArray *storages_new(void)
{
    return g_ptr_array_new_with_free_func((GDestroyNotify)storage_close);
}

static struct image *open_image(const struct copy_unit *unit, bool writable,
                                struct storage *(*open)(const struct copy_unit *, unsigned, bool, GError **),
                                GError **error)
{
    g_autoptr(GPtrArray) storages = storages_new();

    for (guint i = 0; i < unit->files->len; i++) {
        struct storage *storage = open(unit, i, false, error);

        if (!storage)
            return NULL;
        g_ptr_array_add(storages, storage);
    }
    return assemble(unit, writable, storages, error);
}

struct image *unit_open_parts(const struct copy_unit *unit, GError **error)
{
    return open_image(unit, true, open_to_write, error);
}

struct image *cold_reopen(const struct copy_unit *unit, GError **error)
{
    return open_image(unit, false, open_to_read, error);
}

/* ---- creating ----------------------------------------------------------------------------------- */

static bool create_one(const struct cold_job *job, const struct copy_unit *unit,
                       const struct image_create_options *options, unsigned index, GPtrArray *storages,
                       GError **error)
{
    const struct unit_file *file = g_ptr_array_index(unit->files, index);
    struct storage *storage = open_to_write(unit, index, true, error);

    if (!storage)
        return false;
    g_ptr_array_add(storages, storage);
    if (!unit->device && !cold_tell_part(job, file->part_path, error))
        return false;
    return index == 0 ? image_create(storage, unit->format, options, error)
                      : image_create_data(storage, unit->format, options, index - 1, error);
}

/* The image first: whatever happens, it knows the names of the others.  The files stay open, with their locks
 * and with what is known of them: that they were created empty. */
struct image *unit_create_parts(const struct cold_job *job, const struct copy_unit *unit,
                                const struct image_create_options *options, GError **error)
{
    g_autoptr(GPtrArray) storages = storages_new();

    for (guint i = 0; i < unit->files->len; i++)
        if (!create_one(job, unit, options, i, storages, error))
            return NULL;
    return assemble(unit, true, storages, error);
}
