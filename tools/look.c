/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tools/look.h"

#include <string.h>

/* "[FORMAT:]FILE": what stands before the first colon is a format only if there is one of that name. */
static void parse_parent(const char *text, struct chain_parent *parent)
{
    const char *colon = strchr(text, ':');
    g_autofree char *name = colon ? g_strndup(text, colon - text) : NULL;
    bool is_format = name && format_by_name(name, NULL);
    parent->format = is_format ? g_steal_pointer(&name) : NULL;
    parent->path = g_strdup(is_format ? colon + 1 : text);
}

static void parent_clear(void *opaque)
{
    struct chain_parent *parent = opaque;
    g_free(parent->path);
    g_free(parent->format);
}

struct chain *look_open(const struct options *options, const char *path, const char *format, unsigned flags,
                        bool top_only, GError **error)
{
    const struct format *known = NULL;
    if (format && !(known = format_by_name(format, error)))
        return NULL;

    g_autoptr(GArray) parents = g_array_new(false, true, sizeof(struct chain_parent));
    g_array_set_clear_func(parents, parent_clear);
    for (char **text = (char **)options->parents->pdata; *text; text++) {
        struct chain_parent parent;
        parse_parent(*text, &parent);
        g_array_append_val(parents, parent);
    }
    struct chain_policy policy = {
        .allowed_roots = (const char *const *)options->roots->pdata,
        .parents = (const struct chain_parent *)parents->data,
        .parent_count = top_only ? 0 : parents->len,
        .top_only = top_only,
        .open = storage_file_open_for_chain,
        .opaque = &flags,
    };
    return chain_open(path, known, &policy, error);
}
