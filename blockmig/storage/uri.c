/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/storage/uri.h"

#include "blockmig/storage/agent-storage.h"
#include "blockmig/storage/file.h"
#include "blockmig/storage/iscsi.h"
#include "blockmig/storage/nbd.h"
#include "formats/error.h"

#include <string.h>

static const struct uri_scheme schemes[] = {
    {"blockmig", storage_agent_open, .names = &storage_agent_names},
    {"blockmig+unix", storage_agent_open, .names = &storage_agent_names},
    {"iscsi", storage_iscsi_open},
    {"nbd", storage_nbd_open, storage_nbd_takes_another, storage_nbd_read_bitmap},
    {"nbds", storage_nbd_open, storage_nbd_takes_another, storage_nbd_read_bitmap},
    {"nbd+unix", storage_nbd_open, storage_nbd_takes_another, storage_nbd_read_bitmap},
    {"nbds+unix", storage_nbd_open, storage_nbd_takes_another, storage_nbd_read_bitmap},
    {NULL},
};

static const struct uri_scheme *find_scheme(const char *uri, GError **error)
{
    g_autofree char *wanted = g_ascii_strdown(uri, strstr(uri, "://") - uri);
    g_autoptr(GString) known = g_string_new(NULL);

    for (const struct uri_scheme *scheme = schemes; scheme->name; scheme++) {
        if (strcmp(scheme->name, wanted) == 0)
            return scheme;
        g_string_append_printf(known, "%s%s://", known->len ? ", " : "", scheme->name);
    }
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED, "%s:// is not a kind of storage (known: %s)",
                wanted, known->len ? known->str : "none");
    return NULL;
}

static struct storage *open_uri(const char *uri, unsigned flags, GError **error)
{
    const struct uri_scheme *scheme = find_scheme(uri, error);
    struct storage *storage = scheme ? scheme->open(uri, flags, error) : NULL;

    if (!storage) {
        g_autofree char *shown = storage_shown_name(uri);

        g_prefix_error(error, "%s: ", shown);
    }
    return storage;
}

struct storage *storage_open(const char *name, unsigned flags, const char *const *roots, char **real_path,
                             GError **error)
{
    struct storage *storage;

    if (roots || !storage_name_is_uri(name))
        return storage_file_open(name, flags, roots, real_path, error);
    storage = open_uri(name, flags, error);
    if (storage && real_path)
        *real_path = g_strdup(storage->name);
    return storage;
}

struct storage *storage_open_for_chain(void *opaque, const char *name, const char *const *roots,
                                       bool writable, char **real_path, GError **error)
{
    unsigned flags = opaque ? *(const unsigned *)opaque : 0;

    flags &= (unsigned)(FILE_NO_LOCK | FILE_NO_DIRECT | FILE_MODEST);
    return storage_open(name, flags | (writable ? FILE_WRITE : 0), roots, real_path, error);
}

const struct name_ops *storage_uri_names(const char *uri, GError **error)
{
    const struct uri_scheme *scheme = find_scheme(uri, error);

    return scheme ? scheme->names : NULL;
}

bool storage_takes_another(const char *uri, GError **error)
{
    const struct uri_scheme *scheme = find_scheme(uri, error);

    return scheme && (!scheme->takes_another || scheme->takes_another(uri, error));
}

static bool read_bitmap(const char *name, const char *bitmap, const struct bitmap_reader *reader,
                        GError **error)
{
    const struct uri_scheme *scheme = NULL;

    if (storage_name_is_uri(name) && !(scheme = find_scheme(name, error)))
        return false;
    if (!scheme || !scheme->read_bitmap)
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "bitmaps are read from NBD servers only");
    return scheme->read_bitmap(name, bitmap, reader, error);
}

bool storage_read_bitmap(const char *name, const char *bitmap, const struct bitmap_reader *reader,
                         GError **error)
{
    g_autofree char *shown = storage_shown_name(name);

    if (read_bitmap(name, bitmap, reader, error))
        return true;
    g_prefix_error(error, "%s: ", shown);
    return false;
}

char *storage_base_name(const char *name)
{
    g_autofree char *path = NULL, *plain = NULL, *base = NULL;
    const char *begin;

    if (!storage_name_is_uri(name))
        return g_path_get_basename(name);
    begin = strstr(name, "://") + strlen("://");
    begin += strcspn(begin, "/?#"); /* past the host */
    path = g_strndup(begin, strcspn(begin, "?#"));
    plain = g_uri_unescape_string(path, NULL);
    if (!plain || !*plain || g_str_has_suffix(plain, "/"))
        return g_strdup("disk");
    base = g_path_get_basename(plain);
    return g_strdup(strcmp(base, ".") == 0 || strcmp(base, "..") == 0 ? "disk" : base);
}

char *storage_name_beside(const char *uri, const char *name)
{
    g_autofree char *directory = g_path_get_dirname(uri);

    if (g_str_has_prefix(name, "./"))
        name += strlen("./");
    if (!storage_uri_names(uri, NULL) || strchr(name, '/') || strcmp(name, ".") == 0 ||
        strcmp(name, "..") == 0)
        return NULL;
    return g_strconcat(directory, "/", name, NULL);
}

char *storage_shown_name(const char *name)
{
    const char *begin, *at;
    size_t user;

    if (!storage_name_is_uri(name))
        return g_strdup(name);
    begin = strstr(name, "://") + strlen("://");
    at = memchr(begin, '@', strcspn(begin, "/?#"));
    if (!at)
        return g_strdup(name);
    user = strcspn(begin, ":%@"); /* iSCSI puts a % before the password */
    return g_strdup_printf("%.*s%s", (int)(begin + user - name), name, at);
}

char *storage_absolute_name(const char *name)
{
    return storage_name_is_uri(name) ? storage_shown_name(name) : g_canonicalize_filename(name, NULL);
}
