/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tools/requests.h"

#include "formats/error.h"

enum { METHOD_AUTO, METHOD_COLD, METHOD_STORAGE }; /* as in the option table */

/* The table of arguments ends with a NULL that does not belong to the request. */
static GPtrArray *copy_strings(char **strings)
{
    GPtrArray *copy = g_ptr_array_new_with_free_func(g_free);
    for (; *strings; strings++)
        g_ptr_array_add(copy, g_strdup(*strings));
    return copy;
}

static void set_string(char **field, const char *value)
{
    g_free(*field);
    *field = g_strdup(value);
}

static void set_strings(GPtrArray **field, const GPtrArray *value)
{
    if (*field)
        g_ptr_array_unref(*field);
    *field = copy_strings((char **)value->pdata);
}

struct copy_request *requests_copy(const struct options *options, const char *source, const char *target,
                                   GError **error)
{
    if (options->method == METHOD_STORAGE) {
        g_set_error_literal(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE,
                            "copy: --method=storage is for running machines: see blockmig move");
        return NULL;
    }
    struct copy_request *request = copy_request_new();
    set_string(&request->source, source);
    set_string(&request->target, target);
    set_string(&request->source_format, options->format);
    set_string(&request->target_format, options->target_format);
    set_string(&request->target_options, options->target_options);
    set_string(&request->state_dir, options->state_dir);
    set_strings(&request->parents, options->parents);
    set_strings(&request->allowed_roots, options->roots);
    request->chain = options->chain;
    request->bandwidth = options->bandwidth;
    request->verify = options->verify;
    request->digest = options->digest;
    request->compressed = options->compressed;
    request->salvage = options->salvage;
    request->delete_source = options->delete_source;
    request->force = options->force;
    request->restart = options->restart;
    return request;
}

struct move_request *requests_move(const struct options *options, const char *machine, const char *target,
                                   GError **error)
{
    if (options->method == METHOD_COLD) {
        g_set_error_literal(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE,
                            "move: --method=cold is for images that nobody uses: see blockmig copy");
        return NULL;
    }
    struct move_request *request = move_request_new();
    set_string(&request->machine, machine);
    set_string(&request->target, target);
    set_string(&request->target_format, options->target_format);
    set_string(&request->target_options, options->target_options);
    set_string(&request->state_dir, options->state_dir);
    set_strings(&request->disks, options->disks);
    request->bandwidth = options->bandwidth;
    request->verify = options->verify;
    request->digest = options->digest;
    request->delete_source = options->delete_source;
    if (options->max_pause)
        request->max_pause = options->max_pause;
    return request;
}
