/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A driver on the command line, for tests that compare it with other programs.
 *
 *   image-driver read FORMAT IMAGE RAW         the guest's view, through the chain, into RAW
 *   image-driver map FORMAT IMAGE              number of extents and of bytes by status
 *   image-driver create FORMAT IMAGE SIZE OPTIONS [BACKING BACKING-FORMAT]
 *   image-driver check FORMAT IMAGE repair|look    exit 0 clean, 3 leaks, 4 corruptions
 *   image-driver random FORMAT IMAGE RAW SEED STEPS [PARENT-FORMAT:PARENT]
 *                      random writes, zeros, discards, packed clusters, flushes, reopenings; the
 *                      expected content goes to RAW
 */
#include "blockmig/storage/file.h"
#include "blockmig/storage/image-files.h"
#include "formats/chain.h"
#include "tests/helpers/image-writer.h"

#include <stdio.h>
#include <string.h>

#define BUFFER   (1u << 20)
#define MAX_DISK (1u << 28)

static const struct format *format;
static int exit_status;

static struct chain *open_chain(const char *path, GError **error)
{
    static unsigned flags = FILE_NO_LOCK;
    const struct chain_policy policy = {.open = storage_file_open_for_chain, .opaque = &flags};

    return chain_open(path, format, &policy, error);
}

/* Leaves holes where the map knows zeros, so that huge disks stay small. */
static bool command_read(char **argv, GError **error)
{
    g_autoptr(chain_t) chain = open_chain(argv[0], error);
    g_autoptr(storage_t) out = NULL;
    g_autofree uint8_t *buffer = g_malloc(BUFFER);
    struct extent extent;
    size_t count;

    if (!chain)
        return false;
    out = storage_file_open(argv[1], FILE_WRITE | FILE_CREATE, NULL, NULL, error);
    if (!out || !storage_resize(out, chain->size, error))
        return false;
    for (uint64_t offset = 0; offset < chain->size; offset = extent_end(&extent)) {
        if (!chain_map(chain, offset, chain->size - offset, &extent, 1, &count, error))
            return false;
        for (uint64_t at = offset; extent.status != EXTENT_ZERO && at < extent_end(&extent); at += BUFFER) {
            size_t length = MIN(BUFFER, extent_end(&extent) - at);

            if (!chain_read(chain, buffer, length, at, error) ||
                !storage_pwrite(out, buffer, length, at, error))
                return false;
        }
    }
    return true;
}

static bool command_map(char **argv, GError **error)
{
    g_autoptr(chain_t) chain = open_chain(argv[0], error);
    static struct extent extents[1024];
    uint64_t total = 0, bytes[4] = {0};
    size_t count;

    if (!chain)
        return false;
    for (uint64_t offset = 0; offset < chain->size; offset = extent_end(&extents[count - 1])) {
        if (!chain_map(chain, offset, chain->size - offset, extents, G_N_ELEMENTS(extents), &count, error))
            return false;
        total += count;
        for (size_t i = 0; i < count; i++)
            bytes[extents[i].status] += extents[i].length;
    }
    printf("%" G_GUINT64_FORMAT " extents", total);
    for (unsigned i = 0; i < 4; i++)
        printf(", %s %" G_GUINT64_FORMAT, extent_status_name(i), bytes[i]);
    printf("\n");
    return true;
}

/* Its data files lie beside it. */
static bool attach_data(struct image *image, const char *path, unsigned flags, GError **error)
{
    g_autofree char *directory = g_path_get_dirname(path);

    for (guint i = 0; i < image->data_files->len; i++) {
        g_autofree char *name = g_build_filename(directory, image_data_file(image, i)->name, NULL);
        struct storage *storage = storage_file_open(name, flags, NULL, NULL, error);

        if (!storage || !image_attach_data(image, i, storage, error))
            return false;
    }
    return true;
}

static struct image *open_parent(const char *child, const char *name, const char *format_name, GError **error)
{
    const struct format *below = format_by_name(format_name, error);
    g_autofree char *directory = g_path_get_dirname(child), *path = g_build_filename(directory, name, NULL);
    struct storage *storage = below ? storage_file_open(path, 0, NULL, NULL, error) : NULL;

    return storage ? image_open(storage, below, false, error) : NULL;
}

static bool command_create(char **argv, GError **error)
{
    g_autoptr(image_t) parent = NULL;
    struct image_create_options options = {.size = g_ascii_strtoull(argv[1], NULL, 0)};
    g_autoptr(GHashTable) values = format_parse_options(format, argv[2], error);

    if (!values)
        return false;
    options.values = values;
    options.backing_name = argv[3];
    options.backing_format = argv[3] ? argv[4] : NULL;
    if (argv[3] && !(parent = open_parent(argv[0], argv[3], argv[4], error)))
        return false;
    options.parent = parent;
    return image_files_create(argv[0], format, &options, NULL, NULL, error);
}

static struct image *open_image(const char *path, bool writable, GError **error)
{
    unsigned flags = writable ? FILE_WRITE : 0;
    struct storage *storage = storage_file_open(path, flags, NULL, NULL, error);
    g_autoptr(image_t) image = storage ? image_open(storage, format, writable, error) : NULL;

    return image && attach_data(image, path, flags, error) ? g_steal_pointer(&image) : NULL;
}

static bool command_check(char **argv, GError **error)
{
    bool repair = strcmp(argv[1], "repair") == 0;
    g_autoptr(image_t) image = open_image(argv[0], repair, error);
    struct image_check result;

    if (!image || !image_check(image, repair, &result, error))
        return false;
    printf("leaks %" G_GUINT64_FORMAT " corruptions %" G_GUINT64_FORMAT " repaired %" G_GUINT64_FORMAT "\n",
           result.leaks, result.corruptions, result.repaired);
    exit_status = result.corruptions ? 4 : result.leaks > result.repaired ? 3 : 0;
    return true;
}

/* The chain below an image; *backing stays NULL if there is none.  `parent`: of an image that does not name
 * it. */
static bool open_backing(const char *path, struct image *image, const char *parent, struct chain **backing,
                         GError **error)
{
    static unsigned flags = FILE_NO_LOCK;
    const struct chain_policy policy = {.open = storage_file_open_for_chain, .opaque = &flags};
    g_autofree char *directory = g_path_get_dirname(path), *name = NULL;
    const struct format *below;

    if (!image_is_differencing(image))
        return true;
    if (parent) {
        g_auto(GStrv) parts = g_strsplit(parent, ":", 2);

        below = format_by_name(parts[0], error);
        name = g_build_filename(directory, parts[1], NULL);
    } else {
        below = format_by_name(image->backing_format, error);
        name = g_build_filename(directory, image->backing_name, NULL);
    }
    *backing = below ? chain_open(name, below, &policy, error) : NULL;
    return *backing;
}

static bool compare_model(struct image *image, struct chain *backing, const uint8_t *model, GError **error)
{
    g_autofree uint8_t *content = g_malloc(image->size);

    if (!writer_read(image, backing, content, image->size, 0, error))
        return false;
    for (uint64_t i = 0; i < image->size; i++) {
        if (content[i] != model[i]) {
            g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_DIFFERENT,
                        "the content differs from the model at %" G_GUINT64_FORMAT, i);
            return false;
        }
    }
    return true;
}

/* One session with the image: it ends with a flush and a comparison. */
static bool random_session(const char *path, const char *parent, GRand *random, uint8_t **model,
                           unsigned steps, uint64_t *size, GError **error)
{
    g_autoptr(image_t) image = open_image(path, true, error);
    g_autoptr(chain_t) backing = NULL;
    uint64_t offset, length;

    if (!image || image->size > MAX_DISK || !open_backing(path, image, parent, &backing, error))
        return false;
    *size = image->size;
    if (!*model) {
        *model = g_malloc(image->size);
        if (!writer_read(image, backing, *model, image->size, 0, error))
            return false;
    }
    for (unsigned i = 0; i < steps; i++) {
        if (!writer_step(image, backing, random, *model, &offset, &length, error) ||
            (g_rand_int_range(random, 0, 12) == 0 && !image_flush(image, error)))
            return false;
    }
    return image_flush(image, error) && compare_model(image, backing, *model, error);
}

static bool command_random(char **argv, GError **error)
{
    g_autoptr(GRand) random = g_rand_new_with_seed(g_ascii_strtoull(argv[2], NULL, 0));
    unsigned steps = g_ascii_strtoull(argv[3], NULL, 0);
    g_autofree uint8_t *model = NULL;
    uint64_t size = 0;

    while (steps > 0) {
        unsigned now = g_rand_int_range(random, 1, 100);

        now = MIN(now, steps);
        if (!random_session(argv[0], argv[4], random, &model, now, &size, error))
            return false;
        steps -= now;
    }
    return g_file_set_contents(argv[1], (const char *)model, size, error);
}

static const struct {
    const char *name;
    int least, most; /* arguments */
    bool (*run)(char **argv, GError **error);
} commands[] = {
    {"check", 2, 2, command_check},   {"create", 3, 5, command_create}, {"map", 1, 1, command_map},
    {"random", 4, 5, command_random}, {"read", 2, 2, command_read},
};

int main(int argc, char **argv)
{
    g_autoptr(GError) error = NULL;

    if (argc > 2 && !(format = format_by_name(argv[2], &error))) {
        fprintf(stderr, "image-driver: %s\n", error->message);
        return 2;
    }
    for (unsigned i = 0; argc > 2 && i < G_N_ELEMENTS(commands); i++) {
        if (strcmp(argv[1], commands[i].name) != 0 || argc < 3 + commands[i].least ||
            argc > 3 + commands[i].most)
            continue;
        if (commands[i].run(argv + 3, &error))
            return exit_status;
        fprintf(stderr, "image-driver: %s\n", error ? error->message : "too large");
        return 1;
    }
    fprintf(stderr, "usage: image-driver COMMAND FORMAT ARGUMENT...\n");
    return 2;
}
