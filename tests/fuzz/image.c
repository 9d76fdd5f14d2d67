/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/fuzz/image.h"

#include "tests/fuzz/container.h"

#include <string.h>

#define MAX_BYTES   (8u << 20)
#define MAX_IMAGE   (16u << 20) /* of the copy: what hostile tables make grow is an error, not memory */
#define MAX_EXTENTS 4096

static void ignore(void *opaque, const char *key, const char *value)
{
    *(size_t *)opaque += strlen(key) + strlen(value);
}

static void unpack(struct image *image, const struct extent *extent)
{
    g_autofree uint8_t *packed = g_malloc(extent->packed_length), *unit = g_malloc(image->packed_unit);

    g_assert_cmpuint(extent->packed_length, <=, 2 * image->packed_unit + 8192);
    if (storage_pread(extent->storage, packed, extent->packed_length, extent->host_offset, NULL))
        image_unpack(image, extent->offset - extent->skip, packed, extent->packed_length, unit, NULL);
}

static void map_all(struct image *image)
{
    struct extent extents[16];
    size_t count, total = 0, unpacked = 0;

    for (uint64_t offset = 0; offset < image->size && total < MAX_EXTENTS; total += count) {
        if (!image_map(image, offset, image->size - offset, extents, G_N_ELEMENTS(extents), &count, NULL))
            return;
        g_assert_cmpuint(count, >, 0);
        for (size_t i = 0; i < count; i++) {
            g_assert_cmpuint(extents[i].offset, ==, offset);
            g_assert_cmpuint(extents[i].length, >, 0);
            offset = extent_end(&extents[i]);
            if (extents[i].status == EXTENT_PACKED && unpacked++ < 16)
                unpack(image, &extents[i]);
        }
    }
}

static void place(struct image *image, uint64_t offset, uint64_t length)
{
    g_autoptr(GArray) placements = g_array_new(false, false, sizeof(struct placement));

    if (offset >= image->size ||
        !image_place(image, offset, MIN(length, image->size - offset), placements, NULL))
        return;
    for (guint i = 0; i < placements->len; i++) {
        struct extent *to = &g_array_index(placements, struct placement, i).to;

        g_assert_true(image->identity || to->storage != image->storage || to->host_offset > 0);
        storage_pwrite(to->storage, (const uint8_t[1]){0x55}, 1, to->host_offset, NULL);
    }
}

static void change(struct image *image)
{
    uint64_t step = MAX(image->size / 7, 1), done, length;
    struct extent to;

    for (uint64_t i = 0; i < 7; i++)
        place(image, i * step, MIN(image->cluster_size + 100, 300000));
    image_flush(image, NULL);
    image_zero(image, step / 2, MIN(image->size - step / 2, 8u << 20), &done, &length, NULL);
    if (image->size && image->packed_unit)
        image_place_packed(image, 0, 300, &to, NULL);
    place(image, 1, 1000);
    image_flush(image, NULL);
    map_all(image);
}

/* Of a size that sometimes is enough. */
static bool attach(struct image *image, const uint8_t *data, size_t size)
{
    for (guint i = 0; i < image->data_files->len; i++) {
        if (!image_attach_data(image, i, fuzz_container_new(data, size, MAX_IMAGE), NULL))
            return false;
    }
    return true;
}

static struct image *open_image(const struct format *format, const uint8_t *data, size_t size,
                                const uint8_t *extent, size_t extent_size, bool writable)
{
    struct image *image = image_open(fuzz_container_new(data, size, MAX_IMAGE), format, writable, NULL);

    if (!image || attach(image, extent, extent_size))
        return image;
    image_close(image);
    return NULL;
}

int fuzz_image(const struct format *format, const uint8_t *data, size_t size)
{
    return fuzz_image_with_data(format, data, size, data, size);
}

int fuzz_image_with_data(const struct format *format, const uint8_t *data, size_t size, const uint8_t *extent,
                         size_t extent_size)
{
    struct image_check result;
    struct image *image;
    size_t told = 0;

    if (size == 0 || size > MAX_BYTES)
        return 0;
    image = open_image(format, data, size, extent, extent_size, false);
    if (image) {
        image_describe(image, ignore, &told);
        map_all(image);
        image_check(image, false, &result, NULL);
        g_assert_cmpuint(fuzz_container_changes(image->storage), ==, 0);
    }
    image_close(image);
    image = open_image(format, data, size, extent, extent_size, true);
    if (image && data[size - 1] & 1)
        image_check(image, true, &result, NULL);
    if (image)
        change(image);
    image_close(image);
    return 0;
}
