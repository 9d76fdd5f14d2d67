/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What concerns all files of an image at once: that of the image itself and those of its data. */
#ifndef BLOCKMIG_STORAGE_IMAGE_FILES_H
#define BLOCKMIG_STORAGE_IMAGE_FILES_H

#include "formats/image.h"

/* Bytes that the file systems have allocated for those that are open. */
uint64_t image_files_allocated(const struct image *image);
/* As storage_file_lockable: false if any is not. */
bool image_files_lockable(const struct image *image);
/* As storage_file_avoid_direct. */
void image_files_avoid_direct(const struct image *image);

/* Creates the image `path` and the files that hold its data beside it; none of them may exist, and on failure
 * none is left.  A device is there already and cannot have such files.  options->name is taken from the path.
 * `cancelled` is polled, and may be NULL: true ends it with CANCELLED.
 */
bool image_files_create(const char *path, const struct format *format,
                        const struct image_create_options *options, bool (*cancelled)(void *opaque),
                        void *opaque, GError **error);
/* Removes the data files of an image that consists of several (data_beside). Others: nothing. */
bool image_files_remove_data(const struct image *image, GError **error);

#endif
