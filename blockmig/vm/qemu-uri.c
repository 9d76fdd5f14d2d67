/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * URIs as QEMU's block drivers want them: as members of blockdev-add, and back from what QEMU calls its nodes
 * (docs/system/qemu-block-drivers, NBD's URI specification).  Names may come from a machine that somebody
 * else started: whatever cannot be said as one of our URIs has none.
 */
#include "blockmig/storage/iscsi-address.h"
#include "blockmig/vm/qemu.h"
#include "formats/error.h"
#include "formats/storage.h"

#include <string.h>

#define NBD_PORT "10809"
#define SECRET   "blockmig-secret"
#define URI_FLAGS                                                                                            \
    (G_URI_FLAGS_NON_DNS | G_URI_FLAGS_HAS_PASSWORD | G_URI_FLAGS_SCHEME_NORMALIZE |                         \
     G_URI_FLAGS_ENCODED_QUERY)

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

/* The password goes over the monitor, as nobody else can read that, and does not stay there. */
static bool add_secret(struct qmp *qmp, const char *password, GError **error)
{
    qmp_do(qmp, "object-del", json_pack("{s:s}", "id", SECRET), QMP_TIMEOUT, NULL); /* of a killed run */
    return qmp_do(qmp, "object-add",
                  json_pack("{s:s, s:s, s:s}", "qom-type", "secret", "id", SECRET, "data", password),
                  QMP_TIMEOUT, error);
}

void qemu_uri_forget_secret(struct qmp *qmp, const json_t *arguments)
{
    if (json_object_get(arguments, "password-secret"))
        qmp_do(qmp, "object-del", json_pack("{s:s}", "id", SECRET), QMP_TIMEOUT, NULL);
}

static json_t *iscsi_arguments(struct qmp *qmp, const char *text, GError **error)
{
    g_autoptr(iscsi_address_t) address = iscsi_address_parse(text, error);
    json_t *arguments;

    if (!address)
        return NULL;
    if (address->theirs.user && *address->theirs.user) {
        blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                      "QEMU cannot ask a target for its password (mutual CHAP)");
        return NULL;
    }
    arguments = json_pack("{s:s, s:s, s:s, s:s, s:i, s:s}", "driver", "iscsi", "transport", "tcp", "portal",
                          address->portal, "target", address->target, "lun", address->lun, "initiator-name",
                          address->initiator);
    if (!arguments || !address->ours.user || !*address->ours.user)
        return arguments;
    json_object_set_new(arguments, "user", json_string(address->ours.user));
    json_object_set_new(arguments, "password-secret", json_string(SECRET));
    if (add_secret(qmp, address->ours.password ? address->ours.password : "", error))
        return arguments;
    qemu_uri_forget_secret(qmp, arguments); /* it may have been late */
    json_decref(arguments);
    return NULL;
}

json_t *qemu_uri_arguments(struct qmp *qmp, const char *text, GError **error)
{
    g_autoptr(GUri) uri = NULL;
    const char *scheme;

    if (g_str_has_prefix(text, "iscsi://"))
        return iscsi_arguments(qmp, text, error);
    uri = g_uri_parse(text, URI_FLAGS, error);
    if (!uri)
        return NULL;
    scheme = g_uri_get_scheme(uri);
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

static char *iscsi_uri(json_t *options)
{
    const char *portal = member_text(options, "portal"), *target = member_text(options, "target");
    const char *user = member_text(options, "user");
    json_t *lun = json_object_get(options, "lun");
    g_autofree char *number = json_is_string(lun)
                                  ? g_strdup(json_string_value(lun))
                                  : g_strdup_printf("%" JSON_INTEGER_FORMAT, json_integer_value(lun));

    if (!portal || !target || g_strcmp0(member_text(options, "transport"), "tcp") != 0)
        return NULL;
    return g_strdup_printf("iscsi://%s%s%s/%s/%s", user ? user : "", user ? "@" : "", portal, target, number);
}

/* "iscsi://user%password@...": what is not ours to know is left out. */
static char *without_password(const char *uri)
{
    const char *begin = uri + strlen("iscsi://"), *at = strchr(begin, '@');

    return at ? g_strdup_printf("iscsi://%.*s%s", (int)strcspn(begin, "%@"), begin, at) : g_strdup(uri);
}

/* QEMU 7.2 writes export and socket into a URI as they are.  Only where none of their characters has a
 * meaning does it say the same to others. */
static bool is_plain(const char *uri)
{
    const char *socket = strstr(uri, "?socket=");

    for (const char *at = strstr(uri, "://"); *at; at++)
        if (at == socket)
            at += strlen("?socket=") - 1;
        else if (!g_ascii_isalnum(*at) && !strchr("-._~/:[]", *at))
            return false;
    return true;
}

/* An empty export name may end the authority without a slash, as in "nbd://host:port". */
char *qemu_uri_of(const char *filename)
{
    g_autoptr(json_t) options = NULL;

    const char *driver;

    if (g_str_has_prefix(filename, "iscsi://"))
        return without_password(filename);
    if (g_str_has_prefix(filename, "nbd://") || g_str_has_prefix(filename, "nbd+unix://"))
        return is_plain(filename) ? g_strdup(filename) : NULL;
    if (!g_str_has_prefix(filename, "json:"))
        return NULL;
    options = json_loads(filename + strlen("json:"), JSON_REJECT_DUPLICATES, NULL);
    driver = member_text(options, "driver");
    return g_strcmp0(driver, "nbd") == 0     ? nbd_uri(options)
           : g_strcmp0(driver, "iscsi") == 0 ? iscsi_uri(options)
                                             : NULL;
}
