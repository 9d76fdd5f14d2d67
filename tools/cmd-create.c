/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* blockmig create: a new, empty image, or a child of another one. */
#include "blockmig/migrate/space.h"
#include "blockmig/migrate/target.h"
#include "blockmig/migrate/units.h"
#include "blockmig/storage/image-files.h"
#include "blockmig/storage/uri.h"
#include "formats/create-options.h"
#include "tools/command.h"
#include "tools/confine.h"
#include "tools/look.h"
#include "tools/output.h"
#include "tools/signals.h"

#include <string.h>

/* What lies below the new image: the first --parent, the others are its ancestors. */
static struct chain *open_parent(const struct options *options, GError **error)
{
    g_autoptr(GArray) parents = chain_parents((const char *const *)options->parents->pdata);
    const struct chain_parent *first = &g_array_index(parents, struct chain_parent, 0);
    struct chain *chain;
    size_t used = 1;

    chain = look_open(options, first->path, first->format, 0, LOOK_CHAIN, &used, error);
    if (chain && !first->format && chain_layer(chain, 0)->format == &format_raw) {
        chain_close(chain);
        blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s: the parent looks raw; if it is, name it as raw:%s",
                      first->path, first->path);
        return NULL;
    }
    if (chain && options->parents->pdata[used]) {
        chain_close(chain);
        blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "create: --parent=%s is not wanted by any image",
                      (char *)options->parents->pdata[used]);
        return NULL;
    }
    return chain;
}

/* Relatively from its own directory, so that both can be moved together. */
static bool name_parent(const char *path, const struct chain *parent, char **name, GError **error)
{
    g_autofree char *absolute = storage_absolute_name(path), *directory = g_path_get_dirname(absolute),
                    *base = g_path_get_basename(absolute);
    g_autofree char *here = realpath(directory, NULL),
                    *image = here ? g_build_filename(here, base, NULL) : g_strdup(absolute);

    return target_name_below(image, g_ptr_array_index(parent->paths, 0), name, error);
}

static bool parse_size(const struct options *options, const struct chain *parent, uint64_t *size,
                       GError **error)
{
    if (options->argument_count > 1)
        return units_parse_size(options->arguments->pdata[1], size, error);
    if (!parent)
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "create: the size is missing");
    *size = parent->size;
    return true;
}

/* Who cannot be asked says so when the first file is made. */
static bool check_room(const char *path, uint64_t bytes, GError **error)
{
    g_autofree char *place = storage_name_is_uri(path) ? g_path_get_dirname(path) : g_strdup(path);
    struct space_report space;

    if (!space_check(place, 0, 0, &space, NULL) || bytes <= space.available)
        return true;
    g_autofree char *needed = units_format_size_exact(bytes);
    g_autofree char *available = units_format_size_exact(space.available);
    return blockmig_fail(error, BLOCKMIG_ERROR_NOSPACE, "%s: no room: %s needed, the %s allows %s", path,
                         needed, space.limit, available);
}

/* What was made: the size may have been rounded up. */
static bool read_size(const struct options *options, const struct format *format, uint64_t *size,
                      GError **error)
{
    g_autoptr(chain_t) chain =
        look_open(options, options->arguments->pdata[0], format->name, 0, LOOK_ALONE, NULL, error);

    if (chain)
        *size = chain->size;
    return chain;
}

static void print_created(const struct options *options, const struct format *format, uint64_t size,
                          const char *parent)
{
    const char *path = options->arguments->pdata[0];
    g_autofree char *text = units_format_size_exact(size);

    if (options->json)
        output_json(json_pack("{s:i, s:s, s:s, s:o, s:s, s:I, s:o}", "schema", 1, "command", "create",
                              "result", "done", "image", output_json_string(path), "format", format->name,
                              "virtual_size", (json_int_t)size, "backing_name", output_json_string(parent)),
                    NULL);
    if (options->json || options->quiet)
        return;
    output_pair("created", "%s", path);
    output_pair("format", "%s", format->name);
    output_pair("virtual size", "%s", text);
    if (parent)
        output_pair("parent", "%s%s", parent,
                    format->flags & FORMAT_NO_PARENT_NAME ? " (not recorded: --parent is needed)" : "");
}

int cmd_create(const struct options *options, GError **error)
{
    if (command_target_options(options, error) || !command_arguments(options, 1, 2, error))
        return 0;
    if (!options->target_format) {
        blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "create: -O says which format the image shall have");
        return 0;
    }
    const struct format *format = format_by_name(options->target_format, error);
    g_autoptr(GHashTable) values =
        format ? format_parse_options(format, options->target_options, error) : NULL;
    g_autoptr(chain_t) parent = NULL;
    g_autofree char *name = NULL;
    struct image_create_options create_options = {.values = values};
    if (!values || !format_check_writable(format, error) || !confine_create(options, error) ||
        (options->parents->pdata[0] && !(parent = open_parent(options, error))))
        return 0;
    if (parent) {
        if (!name_parent(options->arguments->pdata[0], parent, &name, error))
            return 0;
        create_options.backing_name = name;
        create_options.backing_format = chain_layer(parent, 0)->format->name;
        create_options.parent = chain_layer(parent, 0);
    }
    uint64_t bytes;
    signals_install();
    if (parse_size(options, parent, &create_options.size, error) &&
        image_measure(format, &create_options, 0, &bytes, error) &&
        (!create_option_reserves(values) || check_room(options->arguments->pdata[0], bytes, error)) &&
        image_files_create(options->arguments->pdata[0], format, &create_options, signals_cancelled, NULL,
                           error) &&
        read_size(options, format, &create_options.size, error))
        print_created(options, format, create_options.size, name);
    return 0;
}
