/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* blockmig migrate. */
#include "tools/command.h"
#include "tools/job-output.h"
#include "tools/requests.h"

int cmd_migrate(const struct options *options, GError **error)
{
    if (!command_arguments(options, 2, 2, error))
        return 0;
    char **arguments = (char **)options->arguments->pdata;
    g_autoptr(move_request_t) request = requests_migrate(options, arguments[0], arguments[1], error);
    return request ? job_output_move(options, request, options->dry_run, error) : 0;
}
