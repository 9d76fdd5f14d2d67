/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * URIs as QEMU's block drivers want them: as members of blockdev-add, and back from what QEMU calls its nodes
 * (docs/system/qemu-block-drivers, NBD's URI specification).  Names may come from a machine that somebody
 * else started: whatever cannot be said as one of our URIs has none.
 */
#include "blockmig/vm/qemu.h"
#include "formats/error.h"
#include "formats/storage.h"

#include <string.h>

#define NBD_PORT  "10809"
#define URI_FLAGS (G_URI_FLAGS_NON_DNS | G_URI_FLAGS_HAS_PASSWORD | G_URI_FLAGS_SCHEME_NORMALIZE)

/* ---- to QEMU ---- */

static json_t *nbd_server(GUri *uri, const char *scheme, GError **error)
{
    g_autofree char *port = g_uri_get_port(uri) > 0 ? g_strdup_printf("%d", g_uri_get_port(uri)) : NULL;
    g_autoptr(GHashTable) values = NULL;
    const char *query = g_uri_get_query(uri), *socket;

    if (!g_str_has_suffix(scheme, "+unix"))
        return json_pack("{s:s, s:s, s:s}", "type", "inet", "host", g_uri_get_host(uri), "port",
                         port ? port : NBD_PORT);
    values = g_uri_parse_params(query ? query : "", -1, "&;", G_URI_PARAMS_NONE, error);
    if (!values)
        return NULL;
    socket = g_hash_table_lookup(values, "socket");
    if (socket)
        return json_pack("{s:s, s:s}", "type", "unix", "path", socket);
    blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "the URI names no socket");
    return NULL;
}

static json_t *nbd_arguments(GUri *uri, const char *scheme, GError **error)
{
    const char *path = g_uri_get_path(uri), *name = *path == '/' ? path + 1 : path;
    json_t *server = nbd_server(uri, scheme, error);

    return server ? json_pack("{s:s, s:o, s:s}", "driver", "nbd", "server", server, "export", name) : NULL;
}

json_t *qemu_uri_arguments(const char *text, GError **error)
{
    g_autoptr(GUri) uri = g_uri_parse(text, URI_FLAGS, error);
    const char *scheme = uri ? g_uri_get_scheme(uri) : NULL;

    if (!uri)
        return NULL;
    if (strcmp(scheme, "nbd") == 0 || strcmp(scheme, "nbd+unix") == 0)
        return nbd_arguments(uri, scheme, error);
    blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "a running machine cannot be given %s://", scheme);
    return NULL;
}

/* ---- from QEMU ---- */

/* "json:{...}" has flat members ("server.path") or nested ones. */
static const char *option(json_t *options, const char *group, const char *key)
{
    g_autofree char *flat = g_strdup_printf("%s.%s", group, key);
    const char *value = member_text(options, flat);

    return value ? value : member_text(json_object_get(options, group), key);
}

static char *nbd_uri(json_t *options)
{
    const char *name = member_text(options, "export"), *path = option(options, "server", "path");
    const char *host = option(options, "server", "host"), *port = option(options, "server", "port");
    g_autofree char *export = g_uri_escape_string(name ? name : "", "/", false);

    if (member_text(options, "tls-creds") || (!path && !host))
        return NULL;
    if (path) {
        g_autofree char *socket = g_uri_escape_string(path, "/", false);

        return g_strdup_printf("nbd+unix:///%s?socket=%s", export, socket);
    }
    return g_strdup_printf(strchr(host, ':') ? "nbd://[%s]:%s/%s" : "nbd://%s:%s/%s", host,
                           port ? port : NBD_PORT, export);
}

/* An empty export name may end the authority without a slash, as in "nbd://host:port". */
char *qemu_uri_of(const char *filename)
{
    g_autoptr(json_t) options = NULL;

    if (!g_str_has_prefix(filename, "json:"))
        return g_str_has_prefix(filename, "nbd://") || g_str_has_prefix(filename, "nbd+unix://")
                   ? g_strdup(filename)
                   : NULL;
    options = json_loads(filename + strlen("json:"), JSON_REJECT_DUPLICATES, NULL);
    return g_strcmp0(member_text(options, "driver"), "nbd") == 0 ? nbd_uri(options) : NULL;
}
