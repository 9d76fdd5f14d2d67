/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/helpers/image-writer.h"

#include <string.h>

static bool read_hole(struct chain *backing, uint8_t *buffer, uint64_t length, uint64_t offset,
                      GError **error)
{
    uint64_t inside = backing && offset < backing->size ? MIN(length, backing->size - offset) : 0;

    memset(buffer + inside, 0, length - inside);
    return inside == 0 || chain_read(backing, buffer, inside, offset, error);
}

static bool read_packed(struct image *image, const struct extent *extent, uint8_t *buffer, GError **error)
{
    g_autofree uint8_t *packed = g_malloc(extent->packed_length), *unit = g_malloc(image->packed_unit);

    if (!storage_pread(extent->storage, packed, extent->packed_length, extent->host_offset, error) ||
        !image_unpack(image, extent->offset - extent->skip, packed, extent->packed_length, unit, error))
        return false;
    memcpy(buffer, unit + extent->skip, extent->length);
    return true;
}

static bool read_extent(struct image *image, struct chain *backing, const struct extent *extent,
                        uint8_t *buffer, GError **error)
{
    switch (extent->status) {
    case EXTENT_DATA:
        return storage_pread(extent->storage, buffer, extent->length, extent->host_offset, error);
    case EXTENT_PACKED:
        return read_packed(image, extent, buffer, error);
    case EXTENT_HOLE:
        return read_hole(backing, buffer, extent->length, extent->offset, error);
    default:
        memset(buffer, 0, extent->length);
        return true;
    }
}

bool writer_read(struct image *image, struct chain *backing, void *buffer, uint64_t length, uint64_t offset,
                 GError **error)
{
    uint8_t *at = buffer;
    struct extent extent;
    size_t count;

    for (uint64_t end = offset + length; offset < end; offset += extent.length, at += extent.length) {
        if (!image_map(image, offset, end - offset, &extent, 1, &count, error) ||
            !read_extent(image, backing, &extent, at, error))
            return false;
        g_assert_cmpuint(count, ==, 1);
        g_assert_cmpuint(extent.offset, ==, offset);
        g_assert_cmpuint(extent.length, >, 0);
        g_assert_cmpuint(extent_end(&extent), <=, end);
    }
    return true;
}

/* The driver said so. */
static void expect_zeros(const struct extent *to, GError **error)
{
    g_autofree uint8_t *bytes = g_malloc(to->length);

    g_assert_true(storage_pread(to->storage, bytes, to->length, to->host_offset, error));
    for (uint64_t i = 0; i < to->length; i++)
        g_assert_cmpuint(bytes[i], ==, 0);
}

bool writer_write(struct image *image, struct chain *backing, const void *data, uint64_t length,
                  uint64_t offset, GError **error)
{
    g_autoptr(GArray) placements = g_array_new(false, false, sizeof(struct placement));
    uint64_t at = offset;

    if (!image_place(image, offset, length, placements, error))
        return false;
    for (guint i = 0; i < placements->len; i++) {
        struct placement *placement = &g_array_index(placements, struct placement, i);
        struct extent *to = &placement->to;
        g_autofree uint8_t *fill = NULL;
        const uint8_t *bytes;

        g_assert_cmpint(to->status, ==, EXTENT_DATA);
        if (placement->fill) {
            g_assert_cmpuint(placement->from.offset, ==, to->offset);
            g_assert_cmpuint(placement->from.length, ==, to->length);
            g_assert_true(extent_end(to) <= offset || to->offset >= offset + length);
            bytes = fill = g_malloc(to->length);
            if (!read_extent(image, backing, &placement->from, fill, error))
                return false;
            if (placement->clean) {
                expect_zeros(to, error);
                continue;
            }
        } else {
            bytes = (const uint8_t *)data + (to->offset - offset);
            g_assert_cmpuint(to->offset, ==, at);
            at = extent_end(to);
        }
        if (!storage_pwrite(to->storage, bytes, to->length, to->host_offset, error))
            return false;
    }
    g_assert_cmpuint(at, ==, offset + length);
    return true;
}

bool writer_zero(struct image *image, struct chain *backing, bool discard, uint64_t length, uint64_t offset,
                 GError **error)
{
    g_autofree uint8_t *zeros = g_malloc0(length);
    uint64_t done = 0, done_length = 0, end = offset + length;

    if (!(discard ? image_discard : image_zero)(image, offset, length, &done, &done_length, error))
        return false;
    if (done_length == 0)
        done = end;
    g_assert_true(done >= offset && done + done_length <= end);
    if (done > offset && !writer_write(image, backing, zeros, done - offset, offset, error))
        return false;
    done += done_length;
    return done == end || writer_write(image, backing, zeros, end - done, done, error);
}

bool writer_pack(struct image *image, struct chain *backing, const void *data, uint64_t offset,
                 GError **error)
{
    g_autofree uint8_t *packed = g_malloc(image_pack_room(image));
    struct extent to;
    size_t length;

    if (!image_pack(image, offset, data, packed, &length, error))
        return false;
    if (length == 0)
        return writer_write(image, backing, data, MIN(image->packed_unit, image->size - offset), offset,
                            error);
    return image_place_packed(image, offset, length, &to, error) &&
           storage_pwrite(to.storage, packed, length, to.host_offset, error);
}

/* Lengths of every order of magnitude, often aligned. */
static void pick_range(GRand *random, const struct image *image, uint64_t *offset, uint64_t *length)
{
    uint64_t max = MIN(image->size, (uint64_t)image->cluster_size * 5 / 2 + 4096);
    uint32_t align = g_rand_boolean(random) ? 1u : g_rand_boolean(random) ? image->granularity : 512u;

    *length = g_rand_int_range(random, 1, MIN(max, G_MAXINT32)) >> g_rand_int_range(random, 0, 8);
    *length = MAX(*length, 1);
    *offset = (uint64_t)(g_rand_double(random) * (image->size - *length + 1));
    *offset = *offset / align * align;
    *length = MIN((*length + align - 1) / align * align, image->size - *offset);
}

static bool pack_step(struct image *image, struct chain *backing, GRand *random, uint8_t *model,
                      uint64_t *offset, uint64_t *length, GError **error)
{
    g_autofree uint8_t *unit = g_malloc0(image->packed_unit);

    *offset = *offset / image->packed_unit * image->packed_unit;
    *length = MIN(image->packed_unit, image->size - *offset);
    for (uint64_t i = 0; i < *length; i++)
        unit[i] = i % 7 ? (uint8_t)('a' + i % 3) : (uint8_t)g_rand_int(random);
    memcpy(model + *offset, unit, *length);
    return writer_pack(image, backing, unit, *offset, error);
}

bool writer_step(struct image *image, struct chain *backing, GRand *random, uint8_t *model, uint64_t *offset,
                 uint64_t *length, GError **error)
{
    int what = g_rand_int_range(random, 0, 10);

    pick_range(random, image, offset, length);
    if (what == 0 && image->packed_unit)
        return pack_step(image, backing, random, model, offset, length, error);
    if (what <= 3) {
        memset(model + *offset, 0, *length);
        return writer_zero(image, backing, what == 3, *length, *offset, error);
    }
    for (uint64_t i = 0; i < *length; i += 4) {
        uint32_t word = g_rand_int(random);

        memcpy(model + *offset + i, &word, MIN(4, *length - i));
    }
    return writer_write(image, backing, model + *offset, *length, *offset, error);
}
