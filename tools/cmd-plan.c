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

int cmd_plan(const struct options *options, GError **error)
{
    char **arguments = (char **)options->arguments->pdata;
    bool move = options->argument_count && strcmp(arguments[0], "move") == 0;
    if (options->argument_count && !move && strcmp(arguments[0], "copy") != 0) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE,
                    "plan: \"%s\" cannot be planned; known: copy, move", arguments[0]);
        return 0;
    }
    if (!command_arguments(options, 3, 3, error))
        return 0;
    return move ? plan_move(options, arguments, error) : plan_copy(options, arguments, error);
}
