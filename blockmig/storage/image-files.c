/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/storage/image-files.h"

#include "blockmig/storage/file.h"

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
