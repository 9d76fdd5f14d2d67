/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Command-line options: one table, from which parsing, `--help`, completion and the check of the
 * manual page come.  What stands on a command line is read once into struct options.
 */
#ifndef TOOLS_OPTIONS_H
#define TOOLS_OPTIONS_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* Which subcommands take an option; a subcommand is one bit. */
enum command_bit {
    COMMAND_INFO = 1 << 0,
    COMMAND_MAP = 1 << 1,
    COMMAND_VERIFY = 1 << 2,
    COMMAND_COPY = 1 << 3,
    COMMAND_PLAN = 1 << 4,
    COMMAND_JOB = 1 << 5,
    COMMAND_MOVE = 1 << 6,
    COMMAND_OTHER = 1 << 7, /* help, completion */
    COMMAND_CREATE = 1 << 8,
    COMMAND_COMMIT = 1 << 9,
    COMMAND_RESERVATION = 1 << 10,
    COMMAND_MIGRATE = 1 << 11,
    COMMAND_ALL = (1 << 12) - 1,
};

/* Values of --progress=FD: a descriptor, or one of these. */
enum { PROGRESS_DEFAULT = -1, PROGRESS_WANTED = -2 };

struct options {
    unsigned command; /* enum command_bit */
    bool help, version;

    char *format;
    char *second_format;
    char *secret;
    char *bitmap;
    char *target_format;
    char *target_options;
    unsigned chain;     /* enum chain_mode */
    GPtrArray *parents; /* of char *, as given; NULL-terminated, as are roots and disks */
    GPtrArray *roots;
    GPtrArray *disks;
    /* Milliseconds; negative: not given. */
    int64_t max_pause, keep_failback, sample, shutdown;
    int guest_share;
    unsigned on_busy; /* enum busy_policy */
    unsigned quiesce; /* enum quiesce_mode */
    char *scratch;
    char *failback_to;
    char *connection; /* URI of a libvirt */
    unsigned cdrom;   /* enum cdrom_mode */
    char *seed;
    char *compress;     /* NULL: auto */
    uint64_t bandwidth; /* bytes per second; 0: no limit */
    unsigned verify;    /* enum verify_mode */
    unsigned digest;    /* enum digest_algorithm */
    unsigned method;    /* 0: auto, then as in the table of options.c */
    bool compressed, salvage, delete_source, force, restart, dry_run;
    bool force_share, strict, list;
    char *receipt;
    char *key, *preempt; /* of a reservation */
    char *state_dir;
    bool json, quiet, verbose;
    int progress;

    GPtrArray *arguments; /* of char *: what is not an option; NULL-terminated */
    unsigned argument_count;
};

/* Reads argv[1..argc) for one subcommand, named `name` in messages.  USAGE errors say what is wrong and,
 * for an unknown option, which known one is nearest. */
struct options *options_parse(unsigned command, const char *name, int argc, char **argv, GError **error);
void options_free(struct options *options); /* NULL is allowed */

/* The options of one subcommand as the part of its help; all of them, one "COMMANDS OPTION" a line. */
void options_print_help(unsigned command, FILE *out);
/* Calls `each` with every spelling ("-f", "--format") that the subcommands in `commands` take. */
void options_each(unsigned commands, void (*each)(void *opaque, const char *spelling), void *opaque);

/* The nearest of `names` (NULL-terminated) to a mistyped `name`; NULL if none is near. */
const char *options_nearest(const char *name, const char *const *names);

typedef struct options options_t; /* for g_autoptr only */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(options_t, options_free)

#endif
