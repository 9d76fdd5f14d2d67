/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tools/look.h"

#include "blockmig/storage/foreign.h"

struct chain *look_open(const struct options *options, const char *path, const char *format, unsigned flags,
                        bool top_only, size_t *parents_used, GError **error)
{
    size_t before = parents_used ? *parents_used : 0, used = 0;

    g_autoptr(GArray) parents = chain_parents((const char *const *)options->parents->pdata + before);
    struct chain_policy policy = {
        .allowed_roots = (const char *const *)options->roots->pdata,
        .parents = (const struct chain_parent *)parents->data,
        .parent_count = top_only ? 0 : parents->len,
        .parents_used = parents_used ? &used : NULL,
        .top_only = top_only,
    };
    struct chain *chain = source_open(path, format, options->secret, flags, &policy, error);
    if (parents_used)
        *parents_used = before + used;
    return chain;
}
