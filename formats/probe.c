/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The table of all formats, and what is looked up in it. */
#include "formats/image.h"

#include <string.h>

#define PROBE_LENGTH 4096

const struct format *const formats[] = {
    &format_qcow, &format_qcow2, &format_vdi, &format_vhd, &format_vhdx, &format_vmdk, &format_raw, NULL,
};

const struct format *format_by_name(const char *name, GError **error)
{
    g_autoptr(GString) known = g_string_new(NULL);

    for (size_t i = 0; formats[i]; i++) {
        if (strcmp(formats[i]->name, name) == 0 || g_strcmp0(formats[i]->qemu_name, name) == 0)
            return formats[i];
        g_string_append_printf(known, "%s%s", i ? ", " : "", formats[i]->name);
    }
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE, "unknown format \"%s\" (known: %s)", name,
                known->str);
    return NULL;
}

bool format_check_writable(const struct format *format, GError **error)
{
    return format->flags & FORMAT_CREATE ||
           blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                         "format %s can be read but not written: choose another with -O", format->name);
}

/* Copied as raw such images would look like a success and be none.  Those without a mark are known only by
 * what the user says: the mark of LUKS may be that of a guest's own disk, DMG has none at its beginning. */
static const struct format_foreign foreign[] = {
    {"qed", "QED\0", 4},
    {"parallels", "WithoutFreeSpace", 16},
    {"parallels", "WithouFreSpacExt", 16},
    {"bochs", "Bochs Virtual HD Image", 22},
    {"cloop", "#!/bin/sh\n#V2.0 Format\nmodprobe cloop", 37},
    {"luks", NULL, 0},
    {"dmg", NULL, 0},
};

const struct format_foreign *format_foreign_by_name(const char *name)
{
    for (size_t i = 0; i < G_N_ELEMENTS(foreign); i++)
        if (strcmp(foreign[i].name, name) == 0)
            return &foreign[i];
    return NULL;
}

static const struct format_foreign *foreign_by_mark(const uint8_t *head, size_t length)
{
    for (size_t i = 0; i < G_N_ELEMENTS(foreign); i++)
        if (foreign[i].mark && foreign[i].length <= length &&
            memcmp(head, foreign[i].mark, foreign[i].length) == 0)
            return &foreign[i];
    return NULL;
}

const struct format_foreign *format_probe_foreign(struct storage *storage)
{
    uint8_t head[PROBE_LENGTH];
    size_t length = MIN(storage->size, sizeof(head));

    return storage_pread(storage, head, length, 0, NULL) ? foreign_by_mark(head, length) : NULL;
}

/* What disks are sent in. */
static const struct {
    const char *name;
    size_t offset;
    const char *mark;
    size_t length;
} packed[] = {
    {"a gzip file", 0, "\x1f\x8b\x08", 3},
    {"an xz file", 0, "\3757zXZ\0", 6},
    {"a bzip2 file", 4, "1AY&SY", 6},
    {"a zstd file", 0, "\x28\xb5\x2f\xfd", 4},
    {"a zip archive", 0, "PK\3\4", 4},
    {"a 7z archive", 0, "7z\xbc\xaf\x27\x1c", 6},
    {"a tar archive, as an OVA is", 257, "ustar", 5},
};

static const char *what_it_is_packed_in(const uint8_t *head, size_t length)
{
    for (size_t i = 0; i < G_N_ELEMENTS(packed); i++)
        if (packed[i].offset + packed[i].length <= length &&
            memcmp(head + packed[i].offset, packed[i].mark, packed[i].length) == 0)
            return packed[i].name;
    return NULL;
}

static bool is_raw(const uint8_t *head, size_t length, struct storage *storage, GError **error)
{
    const struct format_foreign *found = foreign_by_mark(head, length);
    const char *wrapping = what_it_is_packed_in(head, length);

    if (wrapping)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "%s: it looks like %s: unpack it first, or -f raw takes its bytes as they are",
                             storage->name, wrapping);
    return !found ||
           blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                         "%s: it looks like %s, which cannot be read here; -f raw takes its bytes as "
                         "they are",
                         storage->name, found->name);
}

const struct format *format_probe(struct storage *storage, GError **error)
{
    uint8_t head[PROBE_LENGTH];
    size_t length = MIN(storage->size, sizeof(head));

    if (!storage_pread(storage, head, length, 0, error))
        return NULL;
    for (size_t i = 0; formats[i]; i++) {
        if (formats[i]->probe && formats[i]->probe(head, length, storage))
            return formats[i];
    }
    return is_raw(head, length, storage, error) ? &format_raw : NULL;
}

static bool option_known(const struct format *format, const char *key, GError **error)
{
    g_autoptr(GString) known = g_string_new(NULL);

    for (const struct format_option *option = format->options; option && option->name; option++) {
        if (strcmp(option->name, key) == 0)
            return true;
        g_string_append_printf(known, "%s%s", known->len ? ", " : "", option->name);
    }
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE, "format %s has no option \"%s\" (known: %s)",
                format->name, key, known->len ? known->str : "none");
    return false;
}

/* The text up to the next single comma, with double commas made single; advances *text past it. */
static char *next_item(const char **text)
{
    GString *item = g_string_new(NULL);
    const char *p = *text;

    for (; *p; p++) {
        if (*p == ',' && p[1] != ',')
            break;
        if (*p == ',')
            p++;
        g_string_append_c(item, *p);
    }
    *text = *p ? p + 1 : p;
    return g_string_free(item, FALSE);
}

GHashTable *format_parse_options(const struct format *format, const char *text, GError **error)
{
    g_autoptr(GHashTable) values = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);

    while (text && *text) {
        g_autofree char *item = next_item(&text);
        char *equals = strchr(item, '=');

        if (!equals || equals == item) {
            g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE,
                        "format option \"%s\" is not of the form key=value", item);
            return NULL;
        }
        *equals = '\0';
        if (!option_known(format, item, error))
            return NULL;
        g_hash_table_replace(values, g_strdup(item), g_strdup(equals + 1));
    }
    return g_steal_pointer(&values);
}
