/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "formats/image.h"

#include <stdarg.h>
#include <string.h>

/* Storages put their own name before their errors, and an image is mostly called as its storage. */
static bool finish(const char *name, bool ok, GError **error)
{
    if (!ok && error && *error) {
        size_t length = strlen(name);

        if (strncmp((*error)->message, name, length) != 0 || (*error)->message[length] != ':')
            g_prefix_error(error, "%s: ", name);
    }
    return ok;
}

static bool range_check(const struct image *image, const char *what, uint64_t offset, uint64_t length,
                        GError **error)
{
    if (offset <= image->size && length <= image->size - offset)
        return true;
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED,
                "%s: %s of %" G_GUINT64_FORMAT " bytes at offset %" G_GUINT64_FORMAT
                " is out of bounds (virtual size %" G_GUINT64_FORMAT ")",
                image->name, what, length, offset, image->size);
    return false;
}

static bool lacks(const char *name, const struct format *format, const char *what, GError **error)
{
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED, "%s: the %s driver cannot %s", name,
                format->name, what);
    return false;
}

static bool is_attached(const struct image *image)
{
    for (guint i = 0; i < image->data_files->len; i++)
        if (!image_data_file(image, i)->storage)
            return false;
    return true;
}

/* What lies in a file that was not opened is unknown; what needs no such file is no more than metadata. */
static bool data_check(const struct image *image, GError **error)
{
    return is_attached(image) || blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                                               "%s: the external data file is not open", image->name);
}

static bool write_check(const struct image *image, const char *what, bool has_callback, GError **error)
{
    if (!has_callback)
        return lacks(image->name, image->format, what, error);
    if (image->writable)
        return data_check(image, error);
    return blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "%s: cannot %s in an image opened read-only",
                         image->name, what);
}

static void data_file_free(gpointer data)
{
    struct data_file *file = data;

    storage_close(file->storage);
    g_free(file->name);
    g_free(file);
}

GPtrArray *image_data_files_new(void)
{
    return g_ptr_array_new_with_free_func(data_file_free);
}

void image_add_data_file(GPtrArray *files, const char *name, uint64_t size)
{
    struct data_file *file = g_new0(struct data_file, 1);

    file->name = g_strdup(name);
    file->size = size;
    g_ptr_array_add(files, file);
}

static void image_free(struct image *image)
{
    storage_close(image->storage);
    g_free(image->name);
    g_ptr_array_unref(image->data_files);
    g_free(image->backing_name);
    g_free(image->backing_format);
    g_clear_pointer(&image->parent_names, g_ptr_array_unref);
    g_ptr_array_unref(image->notices);
    g_free(image);
}

struct image *image_open(struct storage *storage, const struct format *format, bool writable, GError **error)
{
    struct image *image = g_new0(struct image, 1);

    image->format = format;
    image->storage = storage;
    image->name = g_strdup(storage->name);
    image->writable = writable;
    image->granularity = 1;
    image->cluster_size = 1;
    image->notices = g_ptr_array_new_with_free_func(g_free);
    image->data_files = image_data_files_new();
    if (writable && !storage->writable) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED,
                    "%s: cannot write to an image on a storage opened read-only", image->name);
        image_free(image);
        return NULL;
    }
    if (!finish(image->name, format->open(image, error), error)) {
        image_free(image);
        return NULL;
    }
    return image;
}

void image_close(struct image *image)
{
    if (!image)
        return;
    if (image->format->close)
        image->format->close(image);
    image_free(image);
}

bool image_attach_data(struct image *image, unsigned index, struct storage *data, GError **error)
{
    struct data_file *file = index < image->data_files->len ? image_data_file(image, index) : NULL;

    if (file && !file->storage && data->size >= file->size) {
        file->storage = data;
        return !is_attached(image) || !image->format->open_data ||
               finish(image->name, image->format->open_data(image, error), error);
    }
    if (!file || file->storage)
        lacks(image->name, image->format, "attach a data file to this image", error);
    else
        blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                      "%s: the data file has %" G_GUINT64_FORMAT " bytes, %" G_GUINT64_FORMAT " are needed",
                      data->name, data->size, file->size);
    storage_close(data);
    return false;
}

/* "\\\\?\\C:\\dir\\x", "\\\\host\\share\\dir\\x" -> "/dir/x": a drive or a share means nothing here. */
static char *unix_name(const char *name)
{
    g_autofree char *plain = g_strdelimit(g_strdup(name), "\\", '/');
    const char *at = plain;

    bool share = g_str_has_prefix(at, "//");

    if (g_ascii_strncasecmp(at, "//?/UNC/", strlen("//?/UNC/")) == 0)
        at += strlen("//?/UNC");
    else if (g_str_has_prefix(at, "//?/")) {
        at += strlen("//?/");
        share = false;
    }
    for (unsigned i = 0; share && i < 2; i++) { /* host and share */
        at += strspn(at, "/");
        at += strcspn(at, "/");
    }
    if (g_ascii_isalpha(at[0]) && at[1] == ':')
        at += 2;
    return g_strdup(at);
}

void image_add_parent_name(struct image *image, const char *name)
{
    g_autofree char *plain = unix_name(name);

    if (!image->parent_names)
        image->parent_names = g_ptr_array_new_with_free_func(g_free);
    if (!*plain || g_ptr_array_find_with_equal_func(image->parent_names, plain, g_str_equal, NULL))
        return;
    if (!image->backing_name)
        image->backing_name = g_strdup(plain);
    g_ptr_array_add(image->parent_names, g_steal_pointer(&plain));
}

bool image_check_parent(struct image *image, struct image *parent, GError **error)
{
    return !image->format->check_parent ||
           finish(image->name, image->format->check_parent(image, parent, error), error);
}

bool image_begin_merge(struct image *image, struct image *child, GError **error)
{
    if (!write_check(image, "merge", image->format->place != NULL, error))
        return false;
    return !image->format->begin_merge || image->format != child->format ||
           finish(image->name, image->format->begin_merge(image, child, error), error);
}

bool format_check_grandchild(const char *name, const struct format *format, const char *parent_name,
                             const struct format *parent, GError **error)
{
    return format == parent || !(parent->flags & FORMAT_BLIND) ||
           blockmig_fail(
               error, BLOCKMIG_ERROR_REFUSED,
               "%s: a child of %s, which is differencing, must be of format %s, too: QEMU does not see "
               "what lies below it",
               name, parent_name, parent->name);
}

bool image_create(struct storage *storage, const struct format *format,
                  const struct image_create_options *options, GError **error)
{
    if (!format->create)
        return lacks(storage->name, format, "create images", error);
    if (options->backing_name && !(format->flags & FORMAT_BACKING))
        return lacks(storage->name, format, "have a backing file", error);
    if (options->backing_name && !options->backing_format) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE,
                    "%s: the format of backing file \"%s\" must be given", storage->name,
                    options->backing_name);
        return false;
    }
    if (options->parent && image_is_differencing(options->parent) &&
        !format_check_grandchild(storage->name, format, options->parent->name, options->parent->format,
                                 error))
        return false;
    return finish(storage->name, format->create(storage, options, error), error);
}

bool image_plan_data(const struct format *format, const struct image_create_options *options,
                     GPtrArray *files, GError **error)
{
    return !format->plan_data || format->plan_data(options, files, error);
}

bool image_create_data(struct storage *data, const struct format *format,
                       const struct image_create_options *options, unsigned index, GError **error)
{
    return finish(data->name, format->create_data(data, options, index, error), error);
}

bool image_measure(const struct format *format, const struct image_create_options *options, uint64_t data,
                   uint64_t *bytes, GError **error)
{
    if (!format->measure)
        return lacks(format->name, format, "measure", error);
    return format->measure(options, data, bytes, error);
}

bool image_child_unit(const struct format *format, const struct image_create_options *options, uint32_t *unit,
                      GError **error)
{
    *unit = 512;
    return !format->child_unit || format->child_unit(options, unit, error);
}

/* A driver that contradicts its contract must not become a copy with a gap. */
static bool map_check(const struct image *image, uint64_t offset, uint64_t length, const struct extent *out,
                      size_t max, size_t count, GError **error)
{
    uint64_t position = offset;
    bool ok = count > 0 && count <= max;

    for (size_t i = 0; ok && i < count; i++) {
        ok = out[i].offset == position && out[i].length > 0 && out[i].length <= offset + length - position;
        position += out[i].length;
    }
    if (!ok)
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED,
                    "%s: the %s driver gave an inconsistent map of %" G_GUINT64_FORMAT
                    " bytes at offset %" G_GUINT64_FORMAT,
                    image->name, image->format->name, length, offset);
    return ok;
}

bool image_map(struct image *image, uint64_t offset, uint64_t length, struct extent *out, size_t max,
               size_t *count, GError **error)
{
    if (length == 0 || max == 0) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED,
                    "%s: map of nothing at offset %" G_GUINT64_FORMAT, image->name, offset);
        return false;
    }
    if (!range_check(image, "map", offset, length, error) || !data_check(image, error))
        return false;
    if (!finish(image->name, image->format->map(image, offset, length, out, max, count, error), error))
        return false;
    return map_check(image, offset, length, out, max, *count, error);
}

bool image_unpack(struct image *image, uint64_t offset, const void *packed, size_t packed_length, void *out,
                  GError **error)
{
    if (!image->format->unpack)
        return lacks(image->name, image->format, "unpack", error);
    return finish(image->name, image->format->unpack(image, offset, packed, packed_length, out, error),
                  error);
}

bool image_place(struct image *image, uint64_t offset, uint64_t length, GArray *placements, GError **error)
{
    if (!write_check(image, "place", image->format->place != NULL, error) ||
        !range_check(image, "place", offset, length, error))
        return false;
    if (length == 0)
        return true;
    return finish(image->name, image->format->place(image, offset, length, placements, error), error);
}

bool image_pack(struct image *image, uint64_t offset, const void *data, void *out, size_t *packed_length,
                GError **error)
{
    if (!image->format->pack)
        return lacks(image->name, image->format, "pack", error);
    return finish(image->name, image->format->pack(image, offset, data, out, packed_length, error), error);
}

bool image_place_packed(struct image *image, uint64_t offset, size_t packed_length, struct extent *to,
                        GError **error)
{
    /* The last unit of an image may be shorter than packed_unit: only its begin must be inside. */
    if (!write_check(image, "place packed units", image->format->place_packed != NULL, error) ||
        !range_check(image, "place packed", offset, 1, error))
        return false;
    return finish(image->name, image->format->place_packed(image, offset, packed_length, to, error), error);
}

/* A driver without the callback has no cheaper zeros than those that the caller writes. */
static bool zero_nothing(uint64_t offset, uint64_t *done_offset, uint64_t *done_length)
{
    *done_offset = offset;
    *done_length = 0;
    return true;
}

bool image_zero(struct image *image, uint64_t offset, uint64_t length, uint64_t *done_offset,
                uint64_t *done_length, GError **error)
{
    if (!write_check(image, "zero", true, error) || !range_check(image, "zero", offset, length, error))
        return false;
    if (length == 0 || !image->format->zero)
        return zero_nothing(offset, done_offset, done_length);
    return finish(image->name, image->format->zero(image, offset, length, done_offset, done_length, error),
                  error);
}

bool image_discard(struct image *image, uint64_t offset, uint64_t length, uint64_t *done_offset,
                   uint64_t *done_length, GError **error)
{
    if (!write_check(image, "discard", true, error) || !range_check(image, "discard", offset, length, error))
        return false;
    if (length == 0 || !image->format->discard)
        return zero_nothing(offset, done_offset, done_length);
    return finish(image->name, image->format->discard(image, offset, length, done_offset, done_length, error),
                  error);
}

bool image_flush(struct image *image, GError **error)
{
    if (!write_check(image, "flush", image->format->flush != NULL, error))
        return false;
    return finish(image->name, image->format->flush(image, error), error);
}

bool image_check(struct image *image, bool repair, struct image_check *result, GError **error)
{
    memset(result, 0, sizeof(*result));
    if (repair && !write_check(image, "repair", true, error))
        return false;
    if (!image->format->check)
        return true;
    return finish(image->name, image->format->check(image, repair, result, error), error);
}

bool image_repair(struct image *image, GError **error)
{
    struct image_check check;

    if (!image_check(image, true, &check, error))
        return false;
    return check.corruptions == 0 ||
           blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s has %" G_GUINT64_FORMAT " damaged entries: %s",
                         image->name, check.corruptions, check.finding);
}

void image_describe(struct image *image, image_describe_fn describe, void *opaque)
{
    if (image->format->describe)
        image->format->describe(image, describe, opaque);
}

void image_notice(struct image *image, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    g_ptr_array_add(image->notices, g_strdup_vprintf(format, args));
    va_end(args);
}
