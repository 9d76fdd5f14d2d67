/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Where the layer below an image may be, by the names that the image gives it. */
#include "formats/chain.h"

#include <string.h>

static void add_name(GPtrArray *names, const char *name)
{
    if (!g_ptr_array_find_with_equal_func(names, name, g_str_equal, NULL))
        g_ptr_array_add(names, g_strdup(name));
}

GPtrArray *chain_names_below(const struct image *image)
{
    GPtrArray *names = g_ptr_array_new_with_free_func(g_free);
    guint stated;

    g_ptr_array_add(names, g_strdup(image->backing_name));
    for (guint i = 0; image->parent_names && i < image->parent_names->len; i++)
        add_name(names, g_ptr_array_index(image->parent_names, i));
    stated = image->format->check_parent ? names->len : 0;
    for (guint i = 0; i < stated; i++) {
        g_autofree char *base = g_path_get_basename(g_ptr_array_index(names, i));

        add_name(names, base);
    }
    return names;
}

/* The same for all ways to write a name that is one name for Windows or macOS; NULL: not UTF-8. */
static char *folded(const char *name)
{
    g_autofree char *normal = g_utf8_normalize(name, -1, G_NORMALIZE_ALL);

    return normal ? g_utf8_casefold(normal, -1) : NULL;
}

static bool is_among(const char *entry, const GPtrArray *names)
{
    g_autofree char *mine = folded(entry);
    bool found = false;

    for (guint i = 0; mine && i < names->len && !found; i++) {
        g_autofree char *base = g_path_get_basename(g_ptr_array_index(names, i));
        g_autofree char *other = folded(base);

        found = g_strcmp0(mine, other) == 0;
    }
    return found;
}

static gint by_name(gconstpointer a, gconstpointer b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

GPtrArray *chain_names_in_other_case(const struct image *image, const GPtrArray *names, const char *path)
{
    GPtrArray *others = g_ptr_array_new_with_free_func(g_free);
    g_autofree char *directory = g_path_get_dirname(path);
    g_autoptr(GDir) entries = image->format->check_parent ? g_dir_open(directory, 0, NULL) : NULL;
    const char *entry;

    while (entries && (entry = g_dir_read_name(entries))) {
        if (is_among(entry, names))
            g_ptr_array_add(others, g_strdup(entry));
    }
    g_ptr_array_sort(others, by_name);
    return others;
}
