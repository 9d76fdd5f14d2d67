/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/remote/peer.h"

#include "formats/error.h"

#include <gnutls/x509.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_CHAIN 8
#define MAX_NAME  256

struct peer_trust {
    gnutls_x509_trust_list_t list;
};

void peer_trust_free(struct peer_trust *trust)
{
    if (!trust)
        return;
    gnutls_x509_trust_list_deinit(trust->list, 1);
    g_free(trust);
}

struct peer_trust *peer_trust_read(const char *directory, GError **error)
{
    g_autofree char *authority = g_build_filename(directory, "ca-cert.pem", NULL);
    g_autofree char *revoked = g_build_filename(directory, "ca-crl.pem", NULL);
    bool has_revoked = g_file_test(revoked, G_FILE_TEST_EXISTS);
    struct peer_trust *trust = g_new0(struct peer_trust, 1);
    int added;

    gnutls_x509_trust_list_init(&trust->list, 0);
    added = gnutls_x509_trust_list_add_trust_file(trust->list, authority, NULL, GNUTLS_X509_FMT_PEM, 0, 0);
    if (added <= 0) {
        blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "%s: %s", authority,
                      added < 0 ? gnutls_strerror(added) : "there is no certificate in it");
        peer_trust_free(trust);
        return NULL;
    }
    added = has_revoked ? gnutls_x509_trust_list_add_trust_file(trust->list, NULL, revoked,
                                                                GNUTLS_X509_FMT_PEM, 0, GNUTLS_TL_VERIFY_CRL)
                        : 1;
    if (added <= 0) {
        blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "%s: %s", revoked,
                      added < 0 ? gnutls_strerror(added) : "there is no list in it");
        peer_trust_free(trust);
        return NULL;
    }
    return trust;
}

/* ---- certificates ------------------------------------------------------------------------------- */

struct chain {
    gnutls_x509_crt_t certificates[MAX_CHAIN];
    unsigned count;
};

static void chain_clear(struct chain *chain)
{
    for (unsigned i = 0; i < chain->count; i++)
        gnutls_x509_crt_deinit(chain->certificates[i]);
}

static bool read_chain(gnutls_session_t session, struct chain *chain, GError **error)
{
    unsigned count = 0;
    const gnutls_datum_t *list = gnutls_certificate_get_peers(session, &count);

    chain->count = 0;
    if (!list || count == 0)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "the client shows no certificate");
    if (count > MAX_CHAIN)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "the client shows %u certificates", count);
    for (unsigned i = 0; i < count; i++) {
        gnutls_x509_crt_init(&chain->certificates[chain->count++]);
        if (gnutls_x509_crt_import(chain->certificates[i], &list[i], GNUTLS_X509_FMT_DER) < 0)
            return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "the client's certificate cannot be read");
    }
    return true;
}

static bool check_chain(const struct peer_trust *trust, struct chain *chain, GError **error)
{
    gnutls_typed_vdata_st purpose = {.type = GNUTLS_DT_KEY_PURPOSE_OID,
                                     .data = (unsigned char *)GNUTLS_KP_TLS_WWW_CLIENT};
    gnutls_datum_t text = {0};
    unsigned status = 0;

    if (gnutls_x509_trust_list_verify_crt2(trust->list, chain->certificates, chain->count, &purpose, 1, 0,
                                           &status, NULL) == 0 &&
        status == 0)
        return true;
    gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509, &text, 0);
    blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "the client's certificate: %s",
                  text.data ? (const char *)text.data : "it cannot be verified");
    gnutls_free(text.data);
    return false;
}

char *peer_of_session(const struct peer_trust *trust, gnutls_session_t session, GError **error)
{
    struct chain chain = {.count = 0};
    char name[MAX_NAME];
    size_t length = sizeof(name);
    bool ok = read_chain(session, &chain, error) && check_chain(trust, &chain, error);

    if (ok && (gnutls_x509_crt_get_dn_by_oid(chain.certificates[0], GNUTLS_OID_X520_COMMON_NAME, 0, 0, name,
                                             &length) < 0 ||
               !g_utf8_validate(name, -1, NULL) || !*name))
        ok = blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "the client's certificate has no common name");
    chain_clear(&chain);
    return ok ? g_strdup(name) : NULL;
}

char *peer_of_socket(int fd, GError **error)
{
    struct ucred who;
    socklen_t length = sizeof(who);

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &length) < 0 ||
        (who.uid != 0 && who.uid != geteuid())) {
        blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "the socket is for root and the user of the agent");
        return NULL;
    }
    return g_strdup_printf("user %u", who.uid);
}
