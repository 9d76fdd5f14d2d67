/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* blockmig copy and blockmig plan copy: the request that the command line makes. */
#include "formats/error.h"
#include "formats/image.h"
#include "tools/command.h"
#include "tools/job-output.h"
#include "tools/output.h"

#include <string.h>

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

static struct copy_request *make_request(const struct options *options, const char *source,
                                         const char *target)
{
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

static void print_format_options(const struct format *format)
{
    if (!(format->flags & FORMAT_CREATE))
        return;
    printf("%s:\n", format->name);
    for (const struct format_option *option = format->options; option && option->name; option++)
        printf("  %-18s  %s\n", option->name, option->help);
}

/* -o help: the options of the format of -O, or of every format that can be written. */
static void print_target_options(const struct options *options, GError **error)
{
    const struct format *one = options->target_format ? format_by_name(options->target_format, error) : NULL;
    if (one)
        print_format_options(one);
    for (const struct format *const *format = formats; !options->target_format && *format; format++)
        print_format_options(*format);
}

int cmd_copy(const struct options *options, GError **error)
{
    if (g_strcmp0(options->target_options, "help") == 0) {
        print_target_options(options, error);
        return 0;
    }
    if (!command_arguments(options, 2, 2, error))
        return 0;
    char **arguments = (char **)options->arguments->pdata;
    g_autoptr(copy_request_t) request = make_request(options, arguments[0], arguments[1]);
    return job_output_run(options, request, options->dry_run, error);
}

int cmd_plan(const struct options *options, GError **error)
{
    char **arguments = (char **)options->arguments->pdata;
    if (options->argument_count && strcmp(arguments[0], "copy") != 0) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE,
                    "plan: \"%s\" cannot be planned; known: copy", arguments[0]);
        return 0;
    }
    if (!command_arguments(options, 3, 3, error))
        return 0;
    g_autoptr(copy_request_t) request = make_request(options, arguments[1], arguments[2]);
    return job_output_run(options, request, true, error);
}
