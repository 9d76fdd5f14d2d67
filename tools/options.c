/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tools/options.h"

#include "blockmig/migrate/job.h"
#include "blockmig/migrate/units.h"
#include "formats/error.h"

#include <fcntl.h>
#include <getopt.h>
#include <stddef.h>
#include <string.h>

enum option_kind {
    OPTION_FLAG,    /* bool */
    OPTION_STRING,  /* char * */
    OPTION_FILE,    /* char *, not empty */
    OPTION_LIST,    /* GPtrArray * of char *, not empty */
    OPTION_CHOICE,  /* unsigned: index into choices */
    OPTION_RATE,    /* uint64_t, bytes per second */
    OPTION_TIME,    /* int64_t, milliseconds */
    OPTION_PERCENT, /* int, 0 to 100 */
    OPTION_FD,      /* int; the argument is optional */
};

struct option_spec {
    const char *name;     /* long, without dashes */
    char letter;          /* short, or 0 */
    const char *argument; /* what stands for the value in help, or NULL */
    const char *help;
    unsigned commands; /* of enum command_bit */
    enum option_kind kind;
    size_t offset;              /* of the value in struct options */
    const char *const *choices; /* OPTION_CHOICE: NULL-terminated, [0] is the default */
};

#define LONGEST_TIME      (INT64_C(30) * 24 * 3600 * G_USEC_PER_SEC)
#define LONGEST_TIME_TEXT "30 days"

#define IMAGES (COMMAND_INFO | COMMAND_MAP | COMMAND_VERIFY | COMMAND_COPY | COMMAND_PLAN)
#define COPIES (COMMAND_COPY | COMMAND_PLAN)
#define HERE   (COMMAND_MOVE | COMMAND_PLAN)
#define ACROSS (COMMAND_MIGRATE | COMMAND_PLAN)
#define MOVES  (COMMAND_MOVE | COMMAND_MIGRATE | COMMAND_PLAN)
#define BOTH   (COMMAND_COPY | MOVES)
#define RUNS   (BOTH | COMMAND_JOB)
#define TELLS                                                                                                \
    (IMAGES | COMMAND_MOVE | COMMAND_MIGRATE | COMMAND_JOB | COMMAND_CREATE | COMMAND_COMMIT |               \
     COMMAND_RESERVATION)
#define AT(x) offsetof(struct options, x)

static const char *const chain_choices[] = {"flatten", "keep", "shallow", NULL};
static const char *const verify_choices[] = {"full", "written", "none", NULL};
static const char *const digest_choices[] = {"xxh3", "sha256", NULL};
G_STATIC_ASSERT(CHAIN_FLATTEN == 0 && CHAIN_KEEP == 1 && CHAIN_SHALLOW == 2);
G_STATIC_ASSERT(VERIFY_FULL == 0 && VERIFY_WRITTEN == 1 && VERIFY_NONE == 2);
G_STATIC_ASSERT(DIGEST_XXH3_128 == 0 && DIGEST_SHA256 == 1);
static const char *const method_choices[] = {"auto",  "cold",    "storage", "mirror", "live",
                                             "quick", "restart", "san",     NULL};
static const char *const cdrom_choices[] = {"copy", "keep", "eject", NULL};
G_STATIC_ASSERT(CDROM_COPY == 0 && CDROM_KEEP == 1 && CDROM_EJECT == 2);
static const char *const busy_choices[] = {"park", "mirror", "throttle", NULL};
static const char *const quiesce_choices[] = {"no", "try", "require", NULL};
G_STATIC_ASSERT(BUSY_PARK == 0 && BUSY_MIRROR == 1 && BUSY_THROTTLE == 2);
G_STATIC_ASSERT(QUIESCE_NO == 0 && QUIESCE_TRY == 1 && QUIESCE_REQUIRE == 2);

/* In the order in which help shows them. */
static const struct option_spec specs[] = {
    {"format", 'f', "FORMAT", "format of the image; otherwise it is probed", IMAGES | COMMAND_COMMIT,
     OPTION_STRING, AT(format)},
    {"second-format", 'F', "FORMAT", "format of the second image", COMMAND_VERIFY, OPTION_STRING,
     AT(second_format)},
    {"secret", 0, "FILE", "the passphrase of an encrypted image (luks)", IMAGES, OPTION_FILE, AT(secret)},
    {"disk", 0, "DISK", "a disk by its id; repeatable; default: all", MOVES, OPTION_LIST, AT(disks)},
    {"target-format", 'O', "FORMAT", "format of the target; default: the source's", BOTH | COMMAND_CREATE,
     OPTION_STRING, AT(target_format)},
    {"options", 'o', "KEY=VALUE,...", "options of the target format; \"help\" lists them",
     BOTH | COMMAND_CREATE, OPTION_STRING, AT(target_options)},
    {"compressed", 0, NULL, "write compressed clusters", COPIES, OPTION_FLAG, AT(compressed)},
    {"chain", 0, "MODE", "flatten (one image), keep (all) or shallow (top)", BOTH, OPTION_CHOICE, AT(chain),
     chain_choices},
    {"parent", 0, "[FORMAT:]FILE", "parent of an image that names none; repeatable",
     IMAGES | COMMAND_CREATE | COMMAND_COMMIT, OPTION_LIST, AT(parents)},
    {"allow-root", 0, "DIR", "also follow backing files below DIR; repeatable",
     IMAGES | COMMAND_CREATE | COMMAND_COMMIT | MOVES, OPTION_LIST, AT(roots)},
    {"force-share", 'U', NULL, "look at an image that a machine holds open", COMMAND_MAP, OPTION_FLAG,
     AT(force_share)},
    {"bitmap", 0, "NAME", "dirty ranges, by a bitmap of an NBD server", COMMAND_MAP, OPTION_STRING,
     AT(bitmap)},
    {"receipt", 0, "FILE", "compare one image with the receipt of a copy", COMMAND_VERIFY, OPTION_FILE,
     AT(receipt)},
    {"strict", 0, NULL, "a different virtual size is a difference", COMMAND_VERIFY, OPTION_FLAG, AT(strict)},
    {"method", 0, "METHOD", "see the manual; by itself the least disturbing", BOTH, OPTION_CHOICE, AT(method),
     method_choices},
    {"max-pause", 0, "TIME", "longest pause of the machine (500ms); 0: none", MOVES | COMMAND_JOB,
     OPTION_TIME, AT(max_pause)},
    {"on-busy", 0, "POLICY", "if too busy: park, mirror or throttle", MOVES, OPTION_CHOICE, AT(on_busy),
     busy_choices},
    {"quiesce", 0, "WHEN", "freeze the guest: no, try or require", MOVES, OPTION_CHOICE, AT(quiesce),
     quiesce_choices},
    {"connect", 'c', "URI", "the libvirt that has the machine", MOVES, OPTION_STRING, AT(connection)},
    {"cdrom", 0, "WHAT", "media that are only read: copy, keep or eject", ACROSS, OPTION_CHOICE, AT(cdrom),
     cdrom_choices},
    {"shutdown-timeout", 0, "TIME", "how long a guest may take to shut down (3min)", ACROSS, OPTION_TIME,
     AT(shutdown)},
    {"keep-failback", 0, "TIME", "how long the way back stays open (0)", MOVES, OPTION_TIME,
     AT(keep_failback)},
    {"failback-to", 0, "URI", "how the other host names the way back", ACROSS | COMMAND_JOB, OPTION_STRING,
     AT(failback_to)},
    {"scratch", 0, "DIR", "for overlays with no place beside the source", MOVES, OPTION_FILE, AT(scratch)},
    {"sample", 0, "TIME", "watch the machine for so long, for a forecast", COMMAND_PLAN, OPTION_TIME,
     AT(sample)},
    {"verify", 0, "WHAT", "full (read back and prove), written or none", BOTH | COMMAND_COMMIT, OPTION_CHOICE,
     AT(verify), verify_choices},
    {"digest", 0, "ALGORITHM", "xxh3 or sha256", BOTH, OPTION_CHOICE, AT(digest), digest_choices},
    {"bandwidth", 0, "RATE", "read no faster than RATE, as in 100MiB/s",
     BOTH | COMMAND_VERIFY | COMMAND_COMMIT, OPTION_RATE, AT(bandwidth)},
    {"compress", 0, "HOW", "to and from agents: auto, off or zstd[:LEVEL]", COPIES | COMMAND_MIGRATE,
     OPTION_STRING, AT(compress)},
    {"seed", 0, "FILE", "an older copy there: what it has is not sent", COPIES, OPTION_FILE, AT(seed)},
    {"guest-share", 0, "PERCENT", "requests that the machine keeps (80); 0: any", MOVES, OPTION_PERCENT,
     AT(guest_share)},
    {"salvage", 0, NULL, "go on after read errors, list them and exit 6", COPIES, OPTION_FLAG, AT(salvage)},
    {"delete-source", 0, NULL, "remove the source after the copy is proved", BOTH | COMMAND_COMMIT,
     OPTION_FLAG, AT(delete_source)},
    {"force", 0, NULL, "overwrite a target; take another's reservation", COPIES | HERE | COMMAND_RESERVATION,
     OPTION_FLAG, AT(force)},
    {"key", 0, "KEY", "another key than that of this host", COMMAND_RESERVATION, OPTION_STRING, AT(key)},
    {"preempt", 0, "KEY", "take it from whoever has registered KEY", COMMAND_RESERVATION, OPTION_STRING,
     AT(preempt)},
    {"restart", 0, NULL, "begin anew instead of resuming", COPIES, OPTION_FLAG, AT(restart)},
    {"dry-run", 'n', NULL, "preflight only; change nothing", BOTH | COMMAND_COMMIT, OPTION_FLAG, AT(dry_run)},
    {"state-dir", 0, "DIR", "directory of the journal and the receipts", RUNS, OPTION_FILE, AT(state_dir)},
    {"json", 0, NULL, "print one JSON object", TELLS, OPTION_FLAG, AT(json)},
    {"progress", 0, "FD", "show progress; with FD, write N/100 lines to it",
     RUNS | COMMAND_VERIFY | COMMAND_COMMIT, OPTION_FD, AT(progress)},
    {"quiet", 'q', NULL, "errors only", TELLS, OPTION_FLAG, AT(quiet)},
    {"verbose", 'v', NULL, "more detail", TELLS, OPTION_FLAG, AT(verbose)},
    {"help", 'h', NULL, "show this help", COMMAND_ALL, OPTION_FLAG, AT(help)},
    {"version", 'V', NULL, "show the version", COMMAND_ALL, OPTION_FLAG, AT(version)},
};

/* getopt_long returns the index of the specification plus this, out of the way of letters. */
#define FIRST_LONG 256

/* What cannot be wanted together, and why. */
static const struct {
    size_t one, other;
    const char *reason;
} conflicts[] = {
    {AT(quiet), AT(verbose), "-q and -v contradict each other"},
    {AT(salvage), AT(delete_source),
     "--delete-source is not possible with --salvage: a source with unreadable "
     "ranges is kept"},
};

/* Damerau-free edit distance; names are short, so a row on the stack is enough. */
static unsigned edit_distance(const char *a, const char *b)
{
    unsigned row[64];
    size_t width = strlen(b);
    if (width >= G_N_ELEMENTS(row))
        return G_MAXUINT;
    for (size_t i = 0; i <= width; i++)
        row[i] = i;
    for (size_t line = 1; a[line - 1]; line++) {
        unsigned diagonal = row[0];
        row[0] = line;
        for (size_t i = 1; i <= width; i++) {
            unsigned above = row[i];
            unsigned replaced = diagonal + (a[line - 1] != b[i - 1]);
            row[i] = MIN(replaced, MIN(above, row[i - 1]) + 1);
            diagonal = above;
        }
    }
    return row[width];
}

const char *options_nearest(const char *name, const char *const *names)
{
    const char *nearest = NULL;
    unsigned best = 2 + strlen(name) / 4; /* at most: beyond that a hint misleads */
    for (; *names; names++) {
        unsigned distance = g_str_has_prefix(*names, name) ? 1 : edit_distance(name, *names);
        if (distance < best) {
            best = distance;
            nearest = *names;
        }
    }
    return nearest;
}

static const struct option_spec *find_long(const char *name)
{
    for (size_t i = 0; i < G_N_ELEMENTS(specs); i++)
        if (strcmp(specs[i].name, name) == 0)
            return &specs[i];
    return NULL;
}

static const struct option_spec *find_letter(char letter)
{
    for (size_t i = 0; i < G_N_ELEMENTS(specs); i++)
        if (letter && specs[i].letter == letter)
            return &specs[i];
    return NULL;
}

static bool unknown_option(unsigned command, const char *name, const char *word, int letter, GError **error)
{
    bool is_long = letter == 0;
    g_autofree char *spelling =
        is_long ? g_strndup(word, strcspn(word, "=")) : g_strdup_printf("-%c", letter);
    const struct option_spec *elsewhere = is_long ? find_long(spelling + 2) : find_letter(letter);
    if (elsewhere && !(elsewhere->commands & command))
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "%s: option %s does not apply here", name,
                             spelling);

    g_autoptr(GPtrArray) known = g_ptr_array_new();
    unsigned beginnings = 0;
    for (size_t i = 0; i < G_N_ELEMENTS(specs); i++) {
        if (!(specs[i].commands & command))
            continue;
        g_ptr_array_add(known, (char *)specs[i].name);
        beginnings += is_long && g_str_has_prefix(specs[i].name, spelling + 2);
    }
    g_ptr_array_add(known, NULL);
    if (beginnings > 1)
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "%s: option %s could be several", name, spelling);
    const char *nearest = is_long ? options_nearest(spelling + 2, (const char *const *)known->pdata) : NULL;
    if (nearest)
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "%s: unknown option %s; did you mean --%s?", name,
                             spelling, nearest);
    return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "%s: unknown option %s", name, spelling);
}

/* Says what getopt_long() found wrong.  It leaves in optopt the letter, FIRST_LONG + index for a known long
 * option, or 0 for a long one that it does not know. */
static bool bad_option(unsigned command, const char *name, int result, char **argv, GError **error)
{
    if (result == ':' && optopt < FIRST_LONG)
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "%s: option -%c needs a value", name, optopt);
    if (result == ':')
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "%s: option --%s needs a value", name,
                             specs[optopt - FIRST_LONG].name);
    if (optopt >= FIRST_LONG)
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "%s: option --%s takes no value", name,
                             specs[optopt - FIRST_LONG].name);
    return unknown_option(command, name, argv[optind - 1], optopt, error);
}

static bool set_choice(const struct option_spec *spec, const char *value, unsigned *index, GError **error)
{
    for (*index = 0; spec->choices[*index]; ++*index)
        if (strcmp(spec->choices[*index], value) == 0)
            return true;
    g_autofree char *known = g_strjoinv(", ", (char **)spec->choices);
    *index = 0;
    return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "--%s: \"%s\" is not one of %s", spec->name, value,
                         known);
}

static bool set_descriptor(const struct option_spec *spec, const char *value, int *fd, GError **error)
{
    guint64 number;
    *fd = PROGRESS_WANTED;
    if (!value)
        return true;
    if (!g_ascii_string_to_unsigned(value, 10, 0, G_MAXINT, &number, NULL))
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "--%s: \"%s\" is not a file descriptor", spec->name,
                             value);
    if (fcntl((int)number, F_GETFD) < 0)
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "--%s: file descriptor %s is not open", spec->name,
                             value);
    *fd = number;
    return true;
}

static bool set_percent(const struct option_spec *spec, const char *value, int *percent, GError **error)
{
    guint64 number;

    if (!g_ascii_string_to_unsigned(value, 10, 0, 100, &number, NULL))
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "--%s: \"%s\" is not a number from 0 to 100",
                             spec->name, value);
    *percent = (int)number;
    return true;
}

static bool set_time(const struct option_spec *spec, const char *value, int64_t *milliseconds, GError **error)
{
    int64_t time;
    if (!units_parse_time(value, &time, error)) {
        g_prefix_error(error, "--%s: ", spec->name);
        return false;
    }
    if ((time != 0 && time < 1000) || time > LONGEST_TIME)
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "--%s: \"%s\" is not between 1ms and %s",
                             spec->name, value, LONGEST_TIME_TEXT);
    *milliseconds = time / 1000;
    return true;
}

static bool set_option(struct options *options, const struct option_spec *spec, const char *value,
                       GError **error)
{
    void *field = (char *)options + spec->offset;
    /* A variable of a script that was not set would mean the current directory. */
    if ((spec->kind == OPTION_FILE || spec->kind == OPTION_LIST) && *value == '\0')
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "--%s: the value is empty", spec->name);
    switch (spec->kind) {
    case OPTION_FLAG:
        *(bool *)field = true;
        return true;
    case OPTION_FILE:
    case OPTION_STRING:
        g_free(*(char **)field);
        *(char **)field = g_strdup(value);
        return true;
    case OPTION_LIST:
        g_ptr_array_add(*(GPtrArray **)field, g_strdup(value));
        return true;
    case OPTION_CHOICE:
        return set_choice(spec, value, field, error);
    case OPTION_RATE:
        if (units_parse_rate(value, field, error))
            return true;
        g_prefix_error(error, "--%s: ", spec->name);
        return false;
    case OPTION_TIME:
        return set_time(spec, value, field, error);
    case OPTION_PERCENT:
        return set_percent(spec, value, field, error);
    case OPTION_FD:
        return set_descriptor(spec, value, field, error);
    }
    g_assert_not_reached();
}

static bool check_conflicts(const struct options *options, const char *name, GError **error)
{
    for (size_t i = 0; i < G_N_ELEMENTS(conflicts); i++)
        if (*(const bool *)((const char *)options + conflicts[i].one) &&
            *(const bool *)((const char *)options + conflicts[i].other))
            return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "%s: %s", name, conflicts[i].reason);
    if (options->delete_source && options->verify != VERIFY_FULL)
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE,
                             "%s: --delete-source needs --verify=full: a source is removed only after proof",
                             name);
    return true;
}

/* The options of one subcommand in the form that getopt_long() wants. */
static void make_getopt_tables(unsigned command, GString *letters, GArray *longs)
{
    g_string_append_c(letters, ':'); /* tell a missing value from an unknown option, print nothing */
    for (size_t i = 0; i < G_N_ELEMENTS(specs); i++) {
        const struct option_spec *spec = &specs[i];
        if (!(spec->commands & command))
            continue;
        struct option entry = {.name = spec->name, .val = FIRST_LONG + i};
        if (spec->argument)
            entry.has_arg = spec->kind == OPTION_FD ? optional_argument : required_argument;
        g_array_append_val(longs, entry);
        if (spec->letter)
            g_string_append_printf(letters, "%c%s", spec->letter, spec->argument ? ":" : "");
    }
}

static struct options *options_new(unsigned command)
{
    struct options *options = g_new0(struct options, 1);
    options->command = command;
    options->progress = PROGRESS_DEFAULT;
    options->max_pause = options->keep_failback = options->sample = options->shutdown = options->guest_share =
        -1;
    options->parents = g_ptr_array_new_with_free_func(g_free);
    options->roots = g_ptr_array_new_with_free_func(g_free);
    options->disks = g_ptr_array_new_with_free_func(g_free);
    options->arguments = g_ptr_array_new_with_free_func(g_free);
    return options;
}

struct options *options_parse(unsigned command, const char *name, int argc, char **argv, GError **error)
{
    g_autoptr(options_t) options = options_new(command);
    g_autoptr(GString) letters = g_string_new(NULL);
    g_autoptr(GArray) longs = g_array_new(true, true, sizeof(struct option));
    make_getopt_tables(command, letters, longs);

    int result;
    optind = 0; /* GNU: start over */
    opterr = 0;
    while ((result = getopt_long(argc, argv, letters->str, (struct option *)longs->data, NULL)) != -1) {
        if (result == '?' || result == ':') {
            bad_option(command, name, result, argv, error);
            return NULL;
        }
        const struct option_spec *spec =
            result >= FIRST_LONG ? &specs[result - FIRST_LONG] : find_letter((char)result);
        if (!set_option(options, spec, optarg, error)) {
            g_prefix_error(error, "%s: ", name);
            return NULL;
        }
    }
    for (int i = optind; i < argc; i++)
        g_ptr_array_add(options->arguments, g_strdup(argv[i]));
    options->argument_count = options->arguments->len;
    g_ptr_array_add(options->arguments, NULL);
    g_ptr_array_add(options->parents, NULL);
    g_ptr_array_add(options->roots, NULL);
    g_ptr_array_add(options->disks, NULL);
    if (!options->help && !options->version && !check_conflicts(options, name, error))
        return NULL;
    return g_steal_pointer(&options);
}

void options_free(struct options *options)
{
    if (!options)
        return;
    for (size_t i = 0; i < G_N_ELEMENTS(specs); i++) {
        void *field = (char *)options + specs[i].offset;
        if (specs[i].kind == OPTION_STRING || specs[i].kind == OPTION_FILE)
            g_free(*(char **)field);
        else if (specs[i].kind == OPTION_LIST)
            g_ptr_array_unref(*(GPtrArray **)field);
    }
    g_ptr_array_unref(options->arguments);
    g_free(options);
}

/* "-f, --format=FORMAT" */
static char *help_spelling(const struct option_spec *spec)
{
    g_autofree char *letter = spec->letter ? g_strdup_printf("-%c, ", spec->letter) : g_strdup("    ");
    const char *before = spec->kind == OPTION_FD ? "[=" : "=", *after = spec->kind == OPTION_FD ? "]" : "";
    if (!spec->argument)
        return g_strdup_printf("%s--%s", letter, spec->name);
    return g_strdup_printf("%s--%s%s%s%s", letter, spec->name, before, spec->argument, after);
}

void options_print_help(unsigned command, FILE *out)
{
    for (size_t i = 0; i < G_N_ELEMENTS(specs); i++) {
        if (!(specs[i].commands & command))
            continue;
        g_autofree char *spelling = help_spelling(&specs[i]);
        bool narrow = strlen(spelling) <= 28;
        fprintf(out, "  %-28s%s%s\n", spelling, narrow ? "  " : "\n                                ",
                specs[i].help);
    }
}

void options_each(unsigned commands, void (*each)(void *opaque, const char *spelling), void *opaque)
{
    for (size_t i = 0; i < G_N_ELEMENTS(specs); i++) {
        if (!(specs[i].commands & commands))
            continue;
        g_autofree char *name = g_strconcat("--", specs[i].name, NULL);
        char letter[] = {'-', specs[i].letter, 0};
        if (specs[i].letter)
            each(opaque, letter);
        each(opaque, name);
    }
}
