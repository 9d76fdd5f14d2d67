/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/storage/image-files.h"

#include "blockmig/storage/file.h"
#include "blockmig/storage/names.h"
#include "blockmig/storage/uri.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <sys/stat.h>

uint64_t image_files_allocated(const struct image *image)
{
    uint64_t bytes = storage_file_allocated(image->storage);

    for (guint i = 0; i < image->data_files->len; i++)
        if (image_data_file(image, i)->storage)
            bytes += storage_file_allocated(image_data_file(image, i)->storage);
    return bytes;
}

bool image_files_lockable(const struct image *image)
{
    bool all = storage_file_lockable(image->storage);

    for (guint i = 0; i < image->data_files->len; i++)
        all = all && storage_file_lockable(image_data_file(image, i)->storage);
    return all;
}

void image_files_avoid_direct(const struct image *image)
{
    storage_file_avoid_direct(image->storage);
    for (guint i = 0; i < image->data_files->len; i++)
        storage_file_avoid_direct(image_data_file(image, i)->storage);
}

bool image_files_remove_data(const struct image *image, GError **error)
{
    for (guint i = 0; i < image->data_files->len && image->data_beside; i++) {
        const char *name = image_data_file(image, i)->storage->name;

        if (g_unlink(name) < 0)
            return blockmig_set_errno(error, errno, "%s: removing it", name);
    }
    return true;
}

/* ---- creating ----------------------------------------------------------------------------------- */

/* What is to be made: the paths of all files, the image first. */
struct making {
    const struct format *format;
    struct image_create_options options;
    GPtrArray *paths; /* of char * */
    bool device;
    bool (*cancelled)(void *opaque);
    void *opaque;
    guint made; /* so many of them are ours */
};

static bool plan(struct making *making, const char *path, GError **error)
{
    g_autofree char *directory = g_path_get_dirname(path);
    g_autoptr(GPtrArray) data = image_data_files_new();
    struct stat st;

    making->device = stat(path, &st) == 0 && S_ISBLK(st.st_mode);
    if (!name_has_files(path))
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s: no files are made there", path);
    g_ptr_array_add(making->paths, g_strdup(path));
    if (!image_plan_data(making->format, &making->options, data, error))
        return false;
    if (data->len && making->device)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "%s: a device cannot hold an image of several files", path);
    for (guint i = 0; i < data->len; i++)
        g_ptr_array_add(making->paths,
                        g_build_filename(directory, ((const struct data_file *)data->pdata[i])->name, NULL));
    return true;
}

static bool make(struct making *making, guint index, GError **error)
{
    const char *path = g_ptr_array_index(making->paths, index);
    g_autoptr(storage_t) storage =
        storage_open(path, making->device ? FILE_WRITE : FILE_WRITE | FILE_CREATE, NULL, NULL, error);

    if (!storage)
        return false;
    if (!making->device && storage->size > 0)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s exists already", path);
    making->made += !making->device;
    storage_stop_if(storage, making->cancelled, making->opaque);
    return index == 0 ? image_create(storage, making->format, &making->options, error)
                      : image_create_data(storage, making->format, &making->options, index - 1, error);
}

static bool make_all(struct making *making, GError **error)
{
    for (guint i = 0; i < making->paths->len; i++)
        if (!make(making, i, error))
            return false;
    return making->device || storage_name_is_uri(making->paths->pdata[0]) ||
           storage_file_sync_directory(making->paths->pdata[0], error);
}

bool image_files_create(const char *path, const struct format *format,
                        const struct image_create_options *options, bool (*cancelled)(void *opaque),
                        void *opaque, GError **error)
{
    g_autofree char *name = g_path_get_basename(path);
    g_autoptr(GPtrArray) paths = g_ptr_array_new_with_free_func(g_free);
    struct making making = {
        .format = format, .options = *options, .paths = paths, .cancelled = cancelled, .opaque = opaque};

    making.options.name = name;
    if (!plan(&making, path, error))
        return false;
    if (make_all(&making, error))
        return true;
    for (guint i = 0; i < making.made; i++)
        name_remove(paths->pdata[i], NULL);
    return false;
}
