/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A subcommand: one row of the table in blockmig.c and one file cmd-NAME.c. */
#ifndef TOOLS_COMMAND_H
#define TOOLS_COMMAND_H

#include "tools/options.h"

struct command {
    const char *name;
    unsigned bit; /* enum command_bit */
    /* Returns the exit status.  If `error` was set, the status comes from its code instead and the message
     * is printed by main. */
    int (*run)(const struct options *options, GError **error);
    const char *synopsis;
    const char *description;
};

int cmd_commit(const struct options *options, GError **error);
int cmd_completion(const struct options *options, GError **error);
int cmd_copy(const struct options *options, GError **error);
int cmd_create(const struct options *options, GError **error);
int cmd_info(const struct options *options, GError **error);
int cmd_job(const struct options *options, GError **error);
int cmd_map(const struct options *options, GError **error);
int cmd_migrate(const struct options *options, GError **error);
int cmd_move(const struct options *options, GError **error);
int cmd_plan(const struct options *options, GError **error);
int cmd_reservation(const struct options *options, GError **error);
int cmd_verify(const struct options *options, GError **error);

/* The table, for help and completion; ends with a NULL name. */
extern const struct command commands[];

/* The exit status that an error deserves in this subcommand: the only place where codes become statuses. */
int command_exit_status(unsigned bit, const GError *error);
/* A USAGE error unless there are `least` to `most` arguments besides options. */
bool command_arguments(const struct options *options, unsigned least, unsigned most, GError **error);
/* -o help: prints the options of the format of -O, or of every format that can be written.  False: something
 * else is wanted. */
bool command_target_options(const struct options *options, GError **error);

#endif
