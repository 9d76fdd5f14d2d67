/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* blockmig copy: the request that the command line makes. */
#include "formats/error.h"
#include "formats/image.h"
#include "tools/command.h"
#include "tools/job-output.h"
#include "tools/output.h"
#include "tools/requests.h"

#include <string.h>

static void print_format_options(const struct format *format)
{
    if (!(format->flags & FORMAT_CREATE))
        return;
    printf("%s:\n", format->name);
    for (const struct format_option *option = format->options; option && option->name; option++)
        printf("  %-18s  %s\n", option->name, option->help);
}

bool command_target_options(const struct options *options, GError **error)
{
    if (g_strcmp0(options->target_options, "help") != 0)
        return false;
    const struct format *one = options->target_format ? format_by_name(options->target_format, error) : NULL;
    if (one)
        print_format_options(one);
    for (const struct format *const *format = formats; !options->target_format && *format; format++)
        print_format_options(*format);
    return true;
}

int cmd_copy(const struct options *options, GError **error)
{
    if (command_target_options(options, error) || !command_arguments(options, 2, 2, error))
        return 0;
    char **arguments = (char **)options->arguments->pdata;
    g_autoptr(copy_request_t) request = requests_copy(options, arguments[0], arguments[1], error);
    if (!request)
        return 0;
    return job_output_copy(options, request, options->dry_run, error);
}
