/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "formats/create-options.h"

#include <errno.h>
#include <string.h>

bool create_option_refuse(const char *format, const char *key, const char *value, const char *allowed,
                          GError **error)
{
    return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "%s: option %s=%s: must be %s", format, key, value,
                         allowed);
}

const char *create_option(const struct image_create_options *options, const char *key, const char *fallback)
{
    const char *value = options->values ? g_hash_table_lookup(options->values, key) : NULL;

    return value ? value : fallback;
}

bool create_option_reserves(GHashTable *values)
{
    const char *preallocation = g_hash_table_lookup(values, "preallocation");

    return preallocation && (strcmp(preallocation, "full") == 0 || strcmp(preallocation, "falloc") == 0);
}

int create_option_choose(const char *format, const struct image_create_options *options, const char *key,
                         const char *fallback, const char *const *names, GError **error)
{
    const char *value = create_option(options, key, fallback);
    g_autofree char *allowed = NULL;

    for (int i = 0; names[i]; i++) {
        if (g_ascii_strcasecmp(names[i], value) == 0)
            return i;
    }
    allowed = g_strjoinv(", ", (char **)names);
    create_option_refuse(format, key, value, allowed, error);
    return -1;
}

bool create_option_size(const char *format, const struct image_create_options *options, const char *key,
                        const char *fallback, uint64_t min, uint64_t max, uint64_t *size, GError **error)
{
    const char *value = create_option(options, key, fallback);
    g_autofree char *allowed = NULL;
    unsigned shift = 0;
    char *suffix;

    errno = 0;
    *size = g_ascii_strtoull(value, &suffix, 10);
    if (g_ascii_tolower(*suffix) == 'k' || g_ascii_tolower(*suffix) == 'm')
        shift = g_ascii_tolower(*suffix++) == 'k' ? 10 : 20;
    if (!errno && !*suffix && g_ascii_isdigit(*value) && *size <= max >> shift) {
        *size <<= shift;
        if (*size >= min && !(*size & (*size - 1)))
            return true;
    }
    allowed = g_strdup_printf("a power of two from %" G_GUINT64_FORMAT " to %" G_GUINT64_FORMAT, min, max);
    return create_option_refuse(format, key, value, allowed, error);
}
