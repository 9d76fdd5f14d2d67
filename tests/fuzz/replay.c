/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Runs every file of a corpus once through the fuzz target that it is linked with, and prints TAP: what a
 * fuzzer once found stays found, without a fuzzer.
 *
 * Arguments: directories or files; none: $srcdir/tests/fuzz/corpus/NAME for a program called NAME.t.
 */
#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static unsigned tests;

static void run_file(const char *path)
{
    g_autofree char *data = NULL;
    gsize size = 0;
    g_autoptr(GError) error = NULL;
    if (!g_file_get_contents(path, &data, &size, &error)) {
        printf("not ok %u - %s\n", ++tests, error->message);
        return;
    }
    /* Exactly the input's size, so that a sanitizer sees a read beyond it. */
    g_autofree uint8_t *exact = g_memdup2(data, size);
    LLVMFuzzerTestOneInput(exact ? exact : (const uint8_t *)"", size);
    printf("ok %u - %s\n", ++tests, path);
    fflush(stdout);
}

static gint by_name(gconstpointer a, gconstpointer b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void run_path(const char *path)
{
    g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
    if (!dir) {
        run_file(path);
        return;
    }
    g_autoptr(GPtrArray) files = g_ptr_array_new_with_free_func(g_free);
    for (const char *name; (name = g_dir_read_name(dir));)
        g_ptr_array_add(files, g_build_filename(path, name, NULL));
    g_ptr_array_sort(files, by_name);
    for (guint i = 0; i < files->len; i++)
        run_path(files->pdata[i]);
}

int main(int argc, char **argv)
{
    bool named = false;
    for (int i = 1; i < argc; i++) {
        if (argv[i][0] == '-')
            continue;
        run_path(argv[i]);
        named = true;
    }
    if (!named) {
        g_autofree char *name = g_path_get_basename(argv[0]);
        if (g_str_has_suffix(name, ".t"))
            name[strlen(name) - 2] = '\0';
        const char *srcdir = g_getenv("srcdir");
        g_autofree char *corpus = g_build_filename(srcdir ? srcdir : ".", "tests/fuzz/corpus", name, NULL);
        run_path(corpus);
    }
    printf("1..%u\n", tests);
    return tests ? 0 : 1;
}
