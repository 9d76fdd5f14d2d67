/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tools/look.h"

#include "blockmig/storage/foreign.h"

struct chain *look_open(const struct options *options, const char *path, const char *format, unsigned flags,
                        enum look look, size_t *parents_used, GError **error)
{
    size_t before = parents_used ? *parents_used : 0, used = 0;

    g_autoptr(GArray) parents = chain_parents((const char *const *)options->parents->pdata + before);
    struct chain_policy policy = {
        .allowed_roots = (const char *const *)options->roots->pdata,
        .parents = (const struct chain_parent *)parents->data,
        .parent_count = look == LOOK_CHAIN ? parents->len : 0,
        .parents_used = parents_used ? &used : NULL,
        .top_only = look != LOOK_CHAIN,
        .data = look == LOOK_LAYER,
    };
    struct chain *chain = source_open(path, format, options->secret, flags, &policy, error);
    if (parents_used)
        *parents_used = before + used;
    return chain;
}
