/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What unit tests share: assertions about errors, temporary directories, and seeds that are printed. */
#ifndef TESTS_UNIT_HARNESS_H
#define TESTS_UNIT_HARNESS_H

#include "formats/error.h"

#include <glib.h>
#include <glib/gstdio.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

/* `call` is an expression that uses a GError *error variable of the caller's. */
#define assert_ok(call)                                                                                      \
    do {                                                                                                     \
        bool assert_ok_result = (call);                                                                      \
        g_assert_no_error(error);                                                                            \
        g_assert_true(assert_ok_result);                                                                     \
    } while (0)

/* `call` fails with this code, and the message contains this text. Clears `error`. */
#define assert_fails(call, wanted_code, text)                                                                \
    do {                                                                                                     \
        g_assert_false(call);                                                                                \
        harness_check_error(&error, wanted_code, text, __LINE__);                                            \
    } while (0)

static inline void harness_check_error(GError **error, int code, const char *text, int line)
{
    if (!*error || !g_error_matches(*error, BLOCKMIG_ERROR, code) || !strstr((*error)->message, text))
        g_error("line %d: wanted code %d and \"%s\", got %s code %d: %s", line, code, text,
                *error ? g_quark_to_string((*error)->domain) : "nothing", *error ? (*error)->code : -1,
                *error ? (*error)->message : "");
    g_clear_error(error);
}

/* A directory on a real disk; to be removed with harness_remove(). */
static inline char *harness_directory(void)
{
    const char *parent = g_getenv("TMPDIR") ? g_getenv("TMPDIR") : "/var/tmp";
    char *path = g_strdup_printf("%s/blockmig-unit.XXXXXX", parent);

    g_assert_nonnull(g_mkdtemp(path));
    return path;
}

static inline void harness_remove(const char *directory)
{
    const char *argv[] = {"rm", "-rf", "--", directory, NULL};

    g_assert_true(
        g_spawn_sync(NULL, (char **)argv, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, NULL, NULL, NULL, NULL));
}

/* Runs a command for its exit status; what it says is returned in *output if that is not NULL. */
static inline int harness_run(char **output, const char *const *argv)
{
    g_autofree char *out = NULL;
    g_autofree char *err = NULL;
    int status = -1;

    if (!g_spawn_sync(NULL, (char **)argv, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, &out, &err, &status, NULL))
        return -1;
    if (output)
        *output = g_strconcat(out, err, NULL);
    return status;
}

/* A missing tool or privilege skips, but on the reference machine it is a failure. */
static inline void harness_skip(const char *reason)
{
    if (g_strcmp0(g_getenv("BLOCKMIG_REFERENCE"), "1") == 0)
        g_error("cannot run: %s", reason);
    g_test_skip(reason);
}

static inline bool harness_is_set(const char *variable)
{
    return g_strcmp0(g_getenv(variable), "1") == 0;
}

/* How many of a series are tried: with BLOCKMIG_LONG=1 all; with BLOCKMIG_SHORT=1, where everything takes ten
 * times as long (sanitizers, valgrind), a third of the usual number. */
static inline unsigned harness_sample(unsigned usual, unsigned all)
{
    if (harness_is_set("BLOCKMIG_LONG"))
        return all;
    return MIN(harness_is_set("BLOCKMIG_SHORT") ? (usual + 2) / 3 : usual, all);
}

/* BLOCKMIG_SEED repeats a random test. */
static inline GRand *harness_rand(void)
{
    const char *given = g_getenv("BLOCKMIG_SEED");
    guint32 seed = given ? (guint32)g_ascii_strtoull(given, NULL, 0) : g_random_int();

    g_test_message("seed %u (BLOCKMIG_SEED repeats it)", seed);
    return g_rand_new_with_seed(seed);
}

#endif
