/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Raw: the guest's bytes are the storage's bytes.  Any size, also not a multiple of 512. */
#include "formats/raw.h"

#include <string.h>

enum raw_preallocation { RAW_OFF, RAW_FALLOC, RAW_FULL };

static const struct format_option raw_options[] = {
    {"preallocation", "off (default), falloc (reserve the space), full (and write zeros)"},
    {NULL, NULL},
};

static bool raw_preallocation(const struct image_create_options *options, enum raw_preallocation *out,
                              GError **error)
{
    static const char *const names[] = {[RAW_OFF] = "off", [RAW_FALLOC] = "falloc", [RAW_FULL] = "full"};
    const char *value = options->values ? g_hash_table_lookup(options->values, "preallocation") : NULL;

    *out = RAW_OFF;
    for (size_t i = 0; value && i < G_N_ELEMENTS(names); i++) {
        if (strcmp(value, names[i]) == 0) {
            *out = i;
            return true;
        }
    }
    if (!value)
        return true;
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE,
                "preallocation=%s is not one of off, falloc, full for format raw", value);
    return false;
}

static bool raw_measure(const struct image_create_options *options, uint64_t data, uint64_t *bytes,
                        GError **error)
{
    enum raw_preallocation preallocation;

    if (!raw_preallocation(options, &preallocation, error))
        return false;
    if (options->size > G_MAXINT64)
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE,
                             "raw: a disk of %" G_GUINT64_FORMAT " bytes is too large for a file",
                             options->size);
    *bytes = preallocation == RAW_OFF ? MIN(data, options->size) : options->size;
    return true;
}

/* QEMU learns from reading the first block which alignment O_DIRECT wants.  A hole does not tell, nor does
 * space that is only reserved: then it takes 4096, and refuses to write to an image whose size is no multiple
 * of that. So the first block of such a file is always written. */
static bool write_first_block(struct storage *storage, uint64_t length, GError **error)
{
    static const uint8_t zeros[4096];

    if (!storage->growable || storage->size % sizeof(zeros) == 0)
        return true;
    return storage_pwrite(storage, zeros, (size_t)MIN(length, sizeof(zeros)), 0, error);
}

static bool raw_create(struct storage *storage, const struct image_create_options *options, GError **error)
{
    enum raw_preallocation preallocation;

    if (!raw_preallocation(options, &preallocation, error))
        return false;
    if (!storage->growable && storage->size < options->size) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED,
                    "%" G_GUINT64_FORMAT " bytes are too few for a disk of %" G_GUINT64_FORMAT, storage->size,
                    options->size);
        return false;
    }
    if (storage->growable && !storage_resize(storage, options->size, error))
        return false;
    if (preallocation != RAW_OFF && !storage_allocate(storage, 0, options->size, error))
        return false;
    return write_first_block(storage, options->size, error) && storage_flush(storage, error);
}

static bool raw_open(struct image *image, GError **error)
{
    image->size = image->storage->size;
    image->identity = true;
    image->granularity = 1;
    image->cluster_size = 4096;
    image->reads_zero = image->storage->reads_zero;
    return true;
}

bool raw_map(struct image *image, uint64_t offset, uint64_t length, struct extent *out, size_t max,
             size_t *count, GError **error)
{
    size_t n = 0;

    while (length > 0) {
        struct extent next = {.offset = offset, .storage = image->storage, .host_offset = offset};
        bool data;

        if (!storage_status(image->storage, offset, length, &data, &next.length, error))
            return false;
        next.status = data ? EXTENT_DATA : EXTENT_ZERO;
        if (n > 0 && out[n - 1].status == next.status)
            out[n - 1].length += next.length;
        else if (n < max)
            out[n++] = next;
        else
            break;
        offset += next.length;
        length -= next.length;
    }
    *count = n;
    return true;
}

bool raw_place(struct image *image, uint64_t offset, uint64_t length, GArray *placements, GError **error)
{
    struct placement placement = {
        .to = {.offset = offset,
               .length = length,
               .status = EXTENT_DATA,
               .storage = image->storage,
               .host_offset = offset},
    };

    g_array_append_val(placements, placement);
    return true;
}

/* Holes where the storage can have them: thin stays thin. */
bool raw_zero(struct image *image, uint64_t offset, uint64_t length, uint64_t *done_offset,
              uint64_t *done_length, GError **error)
{
    if (!storage_zero(image->storage, offset, length, true, error) ||
        (offset == 0 && !write_first_block(image->storage, length, error)))
        return false;
    *done_offset = offset;
    *done_length = length;
    return true;
}

bool raw_flush(struct image *image, GError **error)
{
    return storage_flush(image->storage, error);
}

const struct format format_raw = {
    .name = "raw",
    .flags = FORMAT_IDENTITY | FORMAT_CREATE | FORMAT_RUNS,
    .options = raw_options,
    .measure = raw_measure,
    .create = raw_create,
    .open = raw_open,
    .map = raw_map,
    .place = raw_place,
    .zero = raw_zero,
    .discard = raw_zero,
    .flush = raw_flush,
};
