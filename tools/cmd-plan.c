/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* blockmig plan: what another command would do. */
#include "formats/error.h"
#include "tools/command.h"
#include "tools/job-output.h"
#include "tools/requests.h"

#include <string.h>

static int plan_copy(const struct options *options, char **arguments, GError **error)
{
    g_autoptr(copy_request_t) request = requests_copy(options, arguments[1], arguments[2], error);
    return request ? job_output_copy(options, request, true, error) : 0;
}

static int plan_move(const struct options *options, char **arguments, GError **error)
{
    g_autoptr(move_request_t) request = requests_move(options, arguments[1], arguments[2], error);
    return request ? job_output_move(options, request, true, error) : 0;
}

static int plan_migrate(const struct options *options, char **arguments, GError **error)
{
    g_autoptr(move_request_t) request = requests_migrate(options, arguments[1], arguments[2], error);
    return request ? job_output_move(options, request, true, error) : 0;
}

int cmd_plan(const struct options *options, GError **error)
{
    char **arguments = (char **)options->arguments->pdata;
    static const struct {
        const char *command;
        int (*plan)(const struct options *options, char **arguments, GError **error);
    } plans[] = {{"copy", plan_copy}, {"move", plan_move}, {"migrate", plan_migrate}};

    for (unsigned i = 0; options->argument_count && i < G_N_ELEMENTS(plans); i++)
        if (strcmp(arguments[0], plans[i].command) == 0)
            return command_arguments(options, 3, 3, error) ? plans[i].plan(options, arguments, error) : 0;
    if (options->argument_count)
        blockmig_fail(error, BLOCKMIG_ERROR_USAGE,
                      "plan: \"%s\" cannot be planned; known: copy, move, migrate", arguments[0]);
    else
        command_arguments(options, 3, 3, error);
    return 0;
}
