/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/remote/credentials.h"

#include "formats/error.h"

#define LARGEST_KEY (64u << 10)

const char *const credentials_files[] = {"ca-cert.pem", "server-cert.pem", "server-key.pem", "ca-crl.pem",
                                         NULL};

static char *read_pem(const char *directory, const char *name, GError **error)
{
    g_autofree char *path = g_build_filename(directory, name, NULL);
    g_autoptr(GError) reason = NULL;
    char *text = NULL;
    gsize length;

    if (g_file_get_contents(path, &text, &length, &reason) && length < LARGEST_KEY)
        return text;
    g_free(text);
    blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "%s: %s", path, reason ? reason->message : "too large");
    return NULL;
}

static void clear(gpointer data)
{
    struct credentials *credentials = data;

    peer_trust_free(credentials->trust);
    g_free(credentials->certificate);
    g_free(credentials->key);
    g_free(credentials->authority);
}

struct credentials *credentials_read(const char *directory, GError **error)
{
    struct credentials *credentials = g_atomic_rc_box_new0(struct credentials);

    if ((credentials->trust = peer_trust_read(directory, error)) &&
        (credentials->authority = read_pem(directory, "ca-cert.pem", error)) &&
        (credentials->certificate = read_pem(directory, "server-cert.pem", error)) &&
        (credentials->key = read_pem(directory, "server-key.pem", error)))
        return credentials;
    credentials_unref(credentials);
    return NULL;
}

struct credentials *credentials_ref(struct credentials *credentials)
{
    return credentials ? g_atomic_rc_box_acquire(credentials) : NULL;
}

void credentials_unref(struct credentials *credentials)
{
    if (credentials)
        g_atomic_rc_box_release_full(credentials, clear);
}
