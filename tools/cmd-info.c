/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* blockmig info: a read-only look that takes no locks, so that it works on a disk in use. */
#include "blockmig/migrate/units.h"
#include "blockmig/storage/image-files.h"
#include "tools/command.h"
#include "tools/confine.h"
#include "tools/look.h"
#include "tools/output.h"

#include <string.h>

struct view {
    const struct options *options;
    struct chain *chain;
    const char *chain_error; /* why the layers below the top are missing, or NULL */
};

static const char *layer_path(const struct view *view, unsigned layer)
{
    return view->chain->paths->pdata[layer];
}

static void add_feature(void *opaque, const char *key, const char *value)
{
    json_object_set_new(opaque, key, output_json_string(value));
}

/* A file that holds data of the image; opened only if that was allowed. */
static json_t *data_file_to_json(const struct data_file *file)
{
    struct storage *data = file->storage;
    json_t *object = json_pack("{s:o, s:b}", "name", output_json_string(file->name), "opened", data != NULL);
    if (data)
        json_object_update_new(object, json_pack("{s:o, s:I, s:I}", "path", output_json_string(data->name),
                                                 "file_size", (json_int_t)data->size, "allocated",
                                                 (json_int_t)storage_file_allocated(data)));
    return object;
}

static json_t *data_files_to_json(const struct image *image)
{
    json_t *files = json_array();
    for (guint i = 0; i < image->data_files->len; i++)
        json_array_append_new(files, data_file_to_json(image_data_file(image, i)));
    return files;
}

static json_t *layer_to_json(const struct view *view, unsigned layer)
{
    struct image *image = chain_layer(view->chain, layer);
    g_autoptr(GPtrArray) users = storage_file_users(layer_path(view, layer));
    json_t *features = json_object();
    image_describe(image, add_feature, features);
    return json_pack("{s:i, s:o, s:s, s:I, s:I, s:I, s:o, s:o, s:o, s:o, s:o, s:o}", "layer", (int)layer,
                     "path", output_json_string(layer_path(view, layer)), "format", image->format->name,
                     "virtual_size", (json_int_t)image->size, "file_size", (json_int_t)image->storage->size,
                     "allocated", (json_int_t)image_files_allocated(image), "backing_name",
                     output_json_string(image->backing_name), "backing_format",
                     output_json_string(image->backing_format), "data_files", data_files_to_json(image),
                     "features", features, "notices", output_json_strings(image->notices), "open_by",
                     output_json_strings(users));
}

static json_t *view_to_json(const struct view *view)
{
    struct image *top = chain_layer(view->chain, 0);
    json_t *layers = json_array();
    for (unsigned i = 0; i < chain_depth(view->chain); i++)
        json_array_append_new(layers, layer_to_json(view, i));
    return json_pack("{s:i, s:s, s:o, s:s, s:b, s:I, s:I, s:o, s:o}", "schema", 1, "command", "info", "image",
                     output_json_string(layer_path(view, 0)), "format", top->format->name, "probed",
                     view->options->format == NULL, "virtual_size", (json_int_t)top->size, "allocated",
                     (json_int_t)image_files_allocated(top), "chain", layers, "chain_error",
                     output_json_string(view->chain_error));
}

static void print_size(const char *key, uint64_t bytes)
{
    g_autofree char *size = units_format_size_exact(bytes);
    output_pair(key, "%s", size);
}

static void print_feature(void *opaque, const char *key, const char *value)
{
    output_pair(key, "%s", value);
}

static void print_list(const char *key, const GPtrArray *values)
{
    for (guint i = 0; values && i < values->len; i++)
        output_pair(i ? "" : key, "%s", (char *)values->pdata[i]);
}

static void print_layer(const struct view *view, unsigned layer)
{
    struct image *image = chain_layer(view->chain, layer);
    g_autoptr(GPtrArray) users = storage_file_users(layer_path(view, layer));
    if (layer > 0)
        printf("\nlayer %u\n", layer);
    output_pair("image", "%s", layer_path(view, layer));
    bool probed = layer == 0 && !view->options->format;
    output_pair("format", "%s%s", image->format->name, probed ? " (probed)" : "");
    print_size("virtual size", image->size);
    print_size("allocated", image_files_allocated(image));
    if (image->backing_name)
        output_pair("backing file", "%s", image->backing_name);
    for (guint i = 0; i < image->data_files->len; i++)
        output_pair(i ? "" : "data files", "%s%s", image_data_file(image, i)->name,
                    image_data_file(image, i)->storage ? "" : " (not opened)");
    if (layer == 0 || view->options->verbose)
        image_describe(image, print_feature, NULL);
    print_list("notice", image->notices);
    print_list("open by", users);
}

int cmd_info(const struct options *options, GError **error)
{
    g_autoptr(GError) chain_error = NULL;
    if (!command_arguments(options, 1, 1, error) || !confine_look(options, error))
        return 0;
    const char *path = options->arguments->pdata[0];
    g_autoptr(chain_t) chain =
        look_open(options, path, options->format, FILE_NO_LOCK, LOOK_CHAIN, NULL, &chain_error);
    /* What is wrong may lie below the top: show what there is, and end with the error all the same. */
    if (!chain &&
        !(chain = look_open(options, path, options->format, FILE_NO_LOCK, LOOK_ALONE, NULL, NULL))) {
        g_propagate_error(error, g_steal_pointer(&chain_error));
        return 0;
    }
    struct view view = {options, chain, chain_error ? chain_error->message : NULL};
    if (options->json) {
        if (!output_json(view_to_json(&view), error))
            return 0;
    } else {
        for (unsigned i = 0; i < chain_depth(chain); i++)
            print_layer(&view, i);
    }
    if (chain_error)
        g_propagate_error(error, g_steal_pointer(&chain_error));
    return 0;
}
