/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Images on memory, as the tests of the drivers need them.  What goes wrong here ends the test. */
#ifndef TESTS_UNIT_MEMORY_IMAGE_H
#define TESTS_UNIT_MEMORY_IMAGE_H

#include "blockmig/storage/memory.h"
#include "formats/image.h"
#include "tests/helpers/image-writer.h"
#include "tests/unit/harness.h"

/* With a parent it becomes a child, which knows that as "base.FORMAT".  The storage is the caller's. */
static inline struct storage *memory_image_create(const struct format *format, const char *name,
                                                  uint64_t size, const char *options, struct image *parent)
{
    g_autoptr(GHashTable) values = format_parse_options(format, options, NULL);
    g_autofree char *below = g_strdup_printf("base.%s", format->name);
    struct storage *storage = storage_memory_new(name, NULL, 0, 0);
    struct image_create_options create_options = {.name = name,
                                                  .size = size,
                                                  .values = values,
                                                  .parent = parent,
                                                  .backing_name = parent ? below : NULL,
                                                  .backing_format = parent ? format->name : NULL};
    g_autoptr(GError) error = NULL;

    assert_ok(image_create(storage, format, &create_options, &error));
    return storage;
}

/* Takes ownership of `storage`. */
static inline struct image *memory_image_open(const struct format *format, struct storage *storage,
                                              bool writable)
{
    g_autoptr(GError) error = NULL;
    struct image *image = image_open(storage, format, writable, &error);

    g_assert_no_error(error);
    return image;
}

/* All of the disk gets bytes that tell where they are. */
static inline void memory_image_fill(struct image *image)
{
    g_autofree uint8_t *content = g_malloc(image->size);
    g_autoptr(GError) error = NULL;

    for (uint64_t i = 0; i < image->size; i++)
        content[i] = i * 7 + i / 4096;
    assert_ok(writer_write(image, NULL, content, image->size, 0, &error));
    assert_ok(image_flush(image, &error));
}

#endif
