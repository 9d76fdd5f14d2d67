/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The program: finds the subcommand, reads its options, runs it, turns an error into a message and a status.
 */
#include "blockmig/migrate/keeper.h"
#include "blockmig/vm/domain-guard.h"
#include "blockmig/vm/guard.h"
#include "formats/error.h"
#include "tools/command.h"
#include "tools/output.h"

#include <config.h>
#include <fcntl.h>
#include <locale.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

static int cmd_help(const struct options *options, GError **error);

const struct command commands[] = {
    {"info", COMMAND_INFO, cmd_info, "IMAGE",
     "format, size, chain and features of an image; who has it open"},
    {"map", COMMAND_MAP, cmd_map, "IMAGE", "where the data of an image is, through its chain"},
    {"copy", COMMAND_COPY, cmd_copy, "SOURCE TARGET",
     "copy an image or chain and prove the copy; the source is kept"},
    {"create", COMMAND_CREATE, cmd_create, "FILE [SIZE]", "make an empty image, or a child of another one"},
    {"commit", COMMAND_COMMIT, cmd_commit, "OVERLAY", "merge an image into the one below it"},
    {"move", COMMAND_MOVE, cmd_move, "VM TARGET",
     "move disks of a running machine on this host, and prove the move"},
    {"migrate", COMMAND_MIGRATE, cmd_migrate, "MACHINE blockmig://HOST[/DATASTORE]",
     "bring a machine of libvirt to another host, with its disks, and prove it"},
    {"verify", COMMAND_VERIFY, cmd_verify, "A B  |  IMAGE --receipt FILE",
     "compare two images, or an image with the receipt of its copy"},
    {"plan", COMMAND_PLAN, cmd_plan, "copy | move | migrate  ARGUMENTS",
     "preflight: say what a copy, move or migration would do; change nothing"},
    {"job", COMMAND_JOB, cmd_job, "list|show|resume|cancel|failback|finish [ID]",
     "look at, resume or give up jobs"},
    {"reservation", COMMAND_RESERVATION, cmd_reservation, "show | take | release  UNIT",
     "say or change which host may write to a shared LUN"},
    {"completion", COMMAND_OTHER, cmd_completion, "bash", "print a completion script for the shell"},
    {"help", COMMAND_OTHER, cmd_help, "[COMMAND]", "show what a command does and its options"},
    {NULL},
};

static const struct command *find_command(const char *name, GError **error)
{
    g_autoptr(GPtrArray) names = g_ptr_array_new();
    for (const struct command *command = commands; command->name; command++) {
        if (strcmp(command->name, name) == 0)
            return command;
        g_ptr_array_add(names, (char *)command->name);
    }
    g_ptr_array_add(names, NULL);
    const char *nearest = options_nearest(name, (const char *const *)names->pdata);
    if (nearest)
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE,
                    "unknown command \"%s\"; did you mean \"%s\"?", name, nearest);
    else
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE,
                    "unknown command \"%s\"; \"blockmig help\" lists the commands", name);
    return NULL;
}

static void print_usage(FILE *out)
{
    fprintf(out, "Usage: blockmig COMMAND [OPTION]... [ARGUMENT]...\n"
                 "Moves virtual machine disks and proves that what arrived is what left.\n\n");
    for (const struct command *command = commands; command->name; command++)
        fprintf(out, "  %-10s  %s\n", command->name, command->description);
    fprintf(out, "\n\"blockmig help COMMAND\" shows the options of a command; blockmig(1) tells all.\n");
}

static void print_help(const struct command *command)
{
    printf("Usage: blockmig %s [OPTION]... %s\n%c%s.\n\n", command->name, command->synopsis,
           g_ascii_toupper(command->description[0]), command->description + 1);
    options_print_help(command->bit, stdout);
}

static int cmd_help(const struct options *options, GError **error)
{
    if (!command_arguments(options, 0, 1, error))
        return 0;
    if (options->argument_count == 0) {
        print_usage(stdout);
        return 0;
    }
    const struct command *command = find_command(options->arguments->pdata[0], error);
    if (command)
        print_help(command);
    return 0;
}

/* A variable of a script that was not set. */
static bool check_empty(const struct options *options, GError **error)
{
    for (unsigned i = 0; i < options->argument_count; i++)
        if (*(const char *)options->arguments->pdata[i] == '\0')
            return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "argument %u is empty", i + 1);
    return true;
}

bool command_arguments(const struct options *options, unsigned least, unsigned most, GError **error)
{
    if (!check_empty(options, error))
        return false;
    if (options->argument_count >= least && options->argument_count <= most)
        return true;
    for (const struct command *command = commands; command->name; command++)
        if (command->bit == options->command && options->argument_count < least)
            g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE,
                        "%s: too few arguments; usage: blockmig %s %s", command->name, command->name,
                        command->synopsis);
    if (options->argument_count > most)
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE, "unexpected argument \"%s\"",
                    (char *)options->arguments->pdata[most]);
    return false;
}

int command_exit_status(unsigned bit, const GError *error)
{
    static const int statuses[] = {
        [BLOCKMIG_ERROR_FAILED] = 1,    [BLOCKMIG_ERROR_USAGE] = 2,       [BLOCKMIG_ERROR_REFUSED] = 3,
        [BLOCKMIG_ERROR_CANCELLED] = 4, [BLOCKMIG_ERROR_PARKED] = 5,      [BLOCKMIG_ERROR_DIFFERENT] = 6,
        [BLOCKMIG_ERROR_PARTIAL] = 7,   [BLOCKMIG_ERROR_UNREACHABLE] = 8, [BLOCKMIG_ERROR_UNCERTAIN] = 9,
        [BLOCKMIG_ERROR_IO] = 1,        [BLOCKMIG_ERROR_NOSPACE] = 5,
    };
    bool ours =
        error->domain == BLOCKMIG_ERROR && error->code >= 0 && (size_t)error->code < G_N_ELEMENTS(statuses);
    int status = ours ? statuses[error->code] : 1;
    /* As with cmp and qemu-img compare, 1 says "different": trouble is anything above it. */
    return bit == COMMAND_VERIFY && status == 1 ? 2 : status;
}

static int run_command(int argc, char **argv, GError **error)
{
    const struct command *command = find_command(argv[0], error);
    if (!command)
        return 0;
    g_autoptr(options_t) options = options_parse(command->bit, command->name, argc, argv, error);
    if (!options)
        return 0;
    if (options->version) {
        printf("blockmig %s\n", PACKAGE_VERSION);
        return 0;
    }
    if (options->help) {
        print_help(command);
        return 0;
    }
    return command->run(options, error);
}

/* What stands before a subcommand: --help and --version alone. */
static bool run_global_option(const char *word, GError **error)
{
    if (g_str_equal(word, "--help") || g_str_equal(word, "-h"))
        print_usage(stdout);
    else if (g_str_equal(word, "--version") || g_str_equal(word, "-V"))
        printf("blockmig %s\n", PACKAGE_VERSION);
    else
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE,
                    "option %s before a command; \"blockmig help\" lists the commands", word);
    return !*error;
}

static unsigned command_bit(const char *name)
{
    const struct command *command = find_command(name, NULL);
    return command ? command->bit : 0;
}

/* Even if the options could not be read: who wants an object gets one. */
static bool wants_json(char **argv)
{
    for (; *argv && strcmp(*argv, "--") != 0; argv++)
        if (strcmp(*argv, "--json") == 0)
            return true;
    return false;
}

static void print_failure(const char *command, int status, const GError *failure)
{
    static const char *const words[] = {
        [2] = "refused", [3] = "refused", [4] = "rolled-back", [5] = "parked"};
    const char *word = (size_t)status < G_N_ELEMENTS(words) ? words[status] : NULL;

    output_json(json_pack("{s:i, s:o, s:s, s:o}", "schema", 1, "command", output_json_string(command),
                          "result", word ? word : "failed", "error", output_json_string(failure->message)),
                NULL);
}

/* A file that takes the place of a closed stream would get its text.  Opened for reading, so that whoever
 * writes is told. */
static void keep_streams(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDONLY) < 0)
            _exit(1);
}

int main(int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    int status = 0;

    keep_streams();
    signal(SIGXFSZ, SIG_IGN); /* a write beyond ulimit -f fails with EFBIG, and is told */
    if (guard_wanted(argc, argv))
        return guard_main(argv);
    if (keeper_wanted(argc, argv))
        return keeper_main(argv);
    if (domain_guard_wanted(argc, argv))
        return domain_guard_main(argv);
    setlocale(LC_CTYPE, ""); /* widths and names only: numbers and messages stay the same everywhere */
    if (argc < 2) {
        print_usage(stderr);
        return 2;
    }
    if (argv[1][0] == '-')
        run_global_option(argv[1], &error);
    else
        status = run_command(argc - 1, argv + 1, &error);
    if (!error)
        output_flush(&error);
    if (!error)
        return status;
    output_message("%s", error->message);
    status = command_exit_status(command_bit(argv[1]), error);
    if (wants_json(argv + 1) && !output_json_printed())
        print_failure(argv[1], status, error);
    return status;
}
