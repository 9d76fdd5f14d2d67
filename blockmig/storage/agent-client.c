/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/storage/agent-client-internal.h"
#include "blockmig/storage/library.h"
#include "formats/error.h"

#include <errno.h>
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DEFAULT_TLS      "/etc/pki/blockmig"
#define DEFAULT_SOCKET   "/run/blockmig/agent.sock"
#define DEFAULT_PATIENCE 30
#define CONNECT_SECONDS  10L
#define JUST_NOW         G_USEC_PER_SEC
#define UPLOAD_BUFFER    (1L << 20)
#define RECEIVE_BUFFER   (512L << 10)
#define FIRST_WAIT       (G_USEC_PER_SEC / 10)
#define LONGEST_LATER    60 /* seconds that an agent may wish for */
#define LONGEST_WAIT     (2 * G_USEC_PER_SEC)
#define MAX_WORDS        2000 /* of an agent's error */
#define STATUS_OFTEN     429
#define STATUS_LATER     503

struct agent_curl agent_curl;
static GMutex clients_lock;
static GHashTable *clients; /* authority -> struct agent_client */
static uint64_t wire_bytes;

/* ---- addresses ---------------------------------------------------------------------------------- */

void agent_address_clear(struct agent_address *address)
{
    g_clear_pointer(&address->authority, g_free);
    g_clear_pointer(&address->datastore, g_free);
    g_clear_pointer(&address->path, g_free);
}

static char *with_port(const char *host)
{
    const char *last = strrchr(host, ':'), *bracket = strrchr(host, ']');

    return last && last > bracket ? g_strdup(host) : g_strconcat(host, ":" G_STRINGIFY(AGENT_PORT), NULL);
}

/* Host names and addresses have no others. */
static bool is_authority(const char *text)
{
    return *text && strlen(text) < 256 &&
           strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:[]") ==
               strlen(text);
}

bool agent_address_parse(const char *uri, struct agent_address *address, GError **error)
{
    bool local = g_str_has_prefix(uri, "blockmig+unix://");
    const char *rest = strstr(uri, "://") + strlen("://"), *slash = strchr(rest, '/');
    g_autofree char *host = slash ? g_strndup(rest, (gsize)(slash - rest)) : g_strdup(rest);
    const char *name = slash ? slash + 1 : "", *end = strchrnul(name, '/');

    *address = (struct agent_address){NULL};
    if (local ? *host != '\0' : !is_authority(host))
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "'%s' is not the name of a host%s", host,
                             local ? ": a Unix socket has none" : "");
    if (end == name)
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE,
                             "no datastore is named: blockmig%s/DATASTORE/FILE is expected",
                             local ? "+unix://" : "://HOST");
    address->authority = local ? g_strdup("unix") : with_port(host);
    address->datastore = g_strndup(name, (gsize)(end - name));
    address->path = g_strdup(*end ? end + 1 : "");
    if (g_str_has_suffix(address->path, "/"))
        address->path[strlen(address->path) - 1] = '\0';
    return true;
}

/* ---- clients ------------------------------------------------------------------------------------ */

static const char *from_environment(const char *name, const char *otherwise)
{
    const char *value = g_getenv(name);

    return value && *value ? value : otherwise;
}

char *agent_new_id(void)
{
    uint8_t bytes[AGENT_ID_LENGTH / 2];
    GString *text = g_string_new(NULL);

    gnutls_rnd(GNUTLS_RND_NONCE, bytes, sizeof(bytes));
    for (size_t i = 0; i < sizeof(bytes); i++)
        g_string_append_printf(text, "%02x", bytes[i]);
    return g_string_free(text, FALSE);
}

bool agent_is_id(const char *text)
{
    return strlen(text) == AGENT_ID_LENGTH && strspn(text, "0123456789abcdef") == AGENT_ID_LENGTH;
}

static char *new_session(void)
{
    g_autofree char *id = agent_new_id();

    return g_strconcat(AGENT_SESSION_HEADER ": ", id, NULL);
}

static bool pair_is_good(const struct agent_client *client, GError **error)
{
    gnutls_certificate_credentials_t pair;
    int result = gnutls_certificate_allocate_credentials(&pair);

    if (result >= 0) {
        result =
            gnutls_certificate_set_x509_key_file(pair, client->certificate, client->key, GNUTLS_X509_FMT_PEM);
        gnutls_certificate_free_credentials(pair);
    }
    return result >= 0 || blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s with the key %s: %s",
                                        client->certificate, client->key, gnutls_strerror(result));
}

/* Said here, for who is told only that the handshake failed looks elsewhere. */
static bool has_credentials(const struct agent_client *client, GError **error)
{
    const char *const files[] = {client->authority, client->certificate, client->key};

    for (unsigned i = 0; i < G_N_ELEMENTS(files); i++)
        if (access(files[i], R_OK) < 0)
            return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                                 "%s: %s (BLOCKMIG_AGENT_TLS names its directory)", files[i],
                                 g_strerror(errno));
    return pair_is_good(client, error);
}

static void client_free(struct agent_client *client)
{
    g_ptr_array_unref(client->idle);
    g_mutex_clear(&client->lock);
    g_free(client->base);
    g_free(client->socket);
    g_free(client->authority);
    g_free(client->certificate);
    g_free(client->key);
    g_free(client->session);
    g_free(client);
}

static bool load_curl(GError **error)
{
    static const char *const files[] = {"libcurl-gnutls.so.4", "libcurl.so.4", NULL};
    const struct library_symbol symbols[] = {
        {"curl_global_init", (void **)&agent_curl.global_init},
        {"curl_easy_init", (void **)&agent_curl.easy_init},
        {"curl_easy_reset", (void **)&agent_curl.easy_reset},
        {"curl_easy_setopt", (void **)&agent_curl.easy_setopt},
        {"curl_easy_perform", (void **)&agent_curl.easy_perform},
        {"curl_easy_getinfo", (void **)&agent_curl.easy_getinfo},
        {"curl_easy_cleanup", (void **)&agent_curl.easy_cleanup},
        {"curl_easy_strerror", (void **)&agent_curl.easy_strerror},
        {"curl_slist_append", (void **)&agent_curl.slist_append},
        {"curl_slist_free_all", (void **)&agent_curl.slist_free_all},
        {NULL},
    };

    if (!library_load(files, symbols, error))
        return false;
    agent_curl.global_init(CURL_GLOBAL_DEFAULT);
    agent_curl.loaded = true;
    return true;
}

static struct agent_client *client_new(const struct agent_address *address, GError **error)
{
    struct agent_client *client;
    const char *text = from_environment("BLOCKMIG_AGENT_TIMEOUT", NULL);
    const char *directory = from_environment("BLOCKMIG_AGENT_TLS", DEFAULT_TLS);
    bool local = strcmp(address->authority, "unix") == 0;
    guint64 patience = DEFAULT_PATIENCE;

    if (text && !g_ascii_string_to_unsigned(text, 10, 1, 86400, &patience, NULL)) {
        blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "BLOCKMIG_AGENT_TIMEOUT=%s: not a number of seconds",
                      text);
        return NULL;
    }
    if (!agent_curl.loaded && !load_curl(error))
        return NULL;
    client = g_new0(struct agent_client, 1);
    client->base = local ? g_strdup("http://agent") : g_strconcat("https://", address->authority, NULL);
    client->socket = local ? g_strdup(from_environment("BLOCKMIG_AGENT_SOCKET", DEFAULT_SOCKET)) : NULL;
    client->authority = g_build_filename(directory, "ca-cert.pem", NULL);
    client->certificate = g_build_filename(directory, "client-cert.pem", NULL);
    client->key = g_build_filename(directory, "client-key.pem", NULL);
    client->session = new_session();
    client->patience = (int64_t)patience * G_USEC_PER_SEC;
    client->idle = g_ptr_array_new();
    g_mutex_init(&client->lock);
    if (local || has_credentials(client, error))
        return client;
    client_free(client);
    return NULL;
}

struct agent_client *agent_client_get(const struct agent_address *address, GError **error)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&clients_lock);
    struct agent_client *client;

    if (!clients)
        clients = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    client = g_hash_table_lookup(clients, address->authority);
    if (!client && (client = client_new(address, error)))
        g_hash_table_insert(clients, g_strdup(address->authority), client);
    return client;
}

uint64_t agent_wire_bytes(void)
{
    return __atomic_load_n(&wire_bytes, __ATOMIC_RELAXED);
}

/* ---- one request -------------------------------------------------------------------------------- */

struct exchange {
    const struct agent_request *request;
    size_t sent;
    GByteArray *answer;
    int64_t later; /* microseconds after which the agent wants to be asked again */
    bool too_long;
    char trouble[CURL_ERROR_SIZE]; /* what libcurl says about a failure, or "" */
};

static size_t send_part(char *buffer, size_t size, size_t count, void *opaque)
{
    struct exchange *exchange = opaque;
    const struct agent_request *request = exchange->request;
    bool in_head = exchange->sent < request->head_length;
    size_t at = in_head ? exchange->sent : exchange->sent - request->head_length;
    size_t left = (in_head ? request->head_length : request->data_length) - at;
    size_t length = MIN(size * count, left);

    if (length)
        memcpy(buffer, (const char *)(in_head ? request->head : request->data) + at, length);
    exchange->sent += length;
    return length;
}

static int send_again(void *opaque, curl_off_t offset, int origin)
{
    struct exchange *exchange = opaque;

    exchange->sent = (size_t)offset;
    return origin == SEEK_SET ? CURL_SEEKFUNC_OK : CURL_SEEKFUNC_CANTSEEK;
}

static size_t take_part(char *data, size_t size, size_t count, void *opaque)
{
    struct exchange *exchange = opaque;

    exchange->too_long = exchange->answer->len + size * count > exchange->request->most;
    if (exchange->too_long)
        return 0;
    g_byte_array_append(exchange->answer, (const guint8 *)data, (guint)(size * count));
    return size * count;
}

static CURL *take_connection(struct agent_client *client)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&client->lock);

    return client->idle->len ? g_ptr_array_remove_index_fast(client->idle, client->idle->len - 1)
                             : agent_curl.easy_init();
}

static void give_connection(struct agent_client *client, CURL *handle)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&client->lock);

    g_ptr_array_add(client->idle, handle);
}

/* Where it is, and how it is known.  curl_easy_reset() leaves the connection alone. */
void agent_client_set_up(const struct agent_client *client, CURL *handle, const char *url)
{
    agent_curl.easy_reset(handle);
    agent_curl.easy_setopt(handle, CURLOPT_URL, url);
    agent_curl.easy_setopt(handle, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    agent_curl.easy_setopt(handle, CURLOPT_NOSIGNAL, 1L);
    agent_curl.easy_setopt(handle, CURLOPT_NOPROXY, "*");
    agent_curl.easy_setopt(handle, CURLOPT_CONNECTTIMEOUT, CONNECT_SECONDS);
    if (client->socket) {
        agent_curl.easy_setopt(handle, CURLOPT_UNIX_SOCKET_PATH, client->socket);
        return;
    }
    agent_curl.easy_setopt(handle, CURLOPT_CAINFO, client->authority);
    agent_curl.easy_setopt(handle, CURLOPT_SSLCERT, client->certificate);
    agent_curl.easy_setopt(handle, CURLOPT_SSLKEY, client->key);
    agent_curl.easy_setopt(handle, CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
}

static void set_up(const struct agent_client *client, CURL *handle, struct exchange *exchange,
                   const char *url, struct curl_slist *headers)
{
    const struct agent_request *request = exchange->request;
    size_t length = request->head_length + request->data_length;

    agent_client_set_up(client, handle, url);
    agent_curl.easy_setopt(handle, CURLOPT_CUSTOMREQUEST, request->method);
    agent_curl.easy_setopt(handle, CURLOPT_HTTPHEADER, headers);
    agent_curl.easy_setopt(handle, CURLOPT_LOW_SPEED_LIMIT, 1L);
    agent_curl.easy_setopt(handle, CURLOPT_LOW_SPEED_TIME,
                           (long)MIN(SILENT_SECONDS, client->patience / G_USEC_PER_SEC));
    agent_curl.easy_setopt(handle, CURLOPT_BUFFERSIZE, RECEIVE_BUFFER);
    agent_curl.easy_setopt(handle, CURLOPT_WRITEFUNCTION, take_part);
    agent_curl.easy_setopt(handle, CURLOPT_WRITEDATA, exchange);
    agent_curl.easy_setopt(handle, CURLOPT_ERRORBUFFER, exchange->trouble);
    if (length == 0)
        return;
    agent_curl.easy_setopt(handle, CURLOPT_UPLOAD, 1L);
    agent_curl.easy_setopt(handle, CURLOPT_UPLOAD_BUFFERSIZE, UPLOAD_BUFFER);
    agent_curl.easy_setopt(handle, CURLOPT_INFILESIZE_LARGE, (curl_off_t)length);
    agent_curl.easy_setopt(handle, CURLOPT_READFUNCTION, send_part);
    agent_curl.easy_setopt(handle, CURLOPT_READDATA, exchange);
    agent_curl.easy_setopt(handle, CURLOPT_SEEKFUNCTION, send_again);
    agent_curl.easy_setopt(handle, CURLOPT_SEEKDATA, exchange);
}

/* All requests wait for a silent agent together: many that each wait in turn would wait for ever. */
static void note_answer(struct agent_client *client, int64_t begun, bool answered)
{
    int64_t never = 0;

    if (answered) {
        __atomic_store_n(&client->silent, 0, __ATOMIC_RELAXED);
        return;
    }
    __atomic_store_n(&client->failed, g_get_monotonic_time(), __ATOMIC_RELAXED);
    __atomic_store_n(&client->agreed, 0, __ATOMIC_RELAXED);
    __atomic_compare_exchange_n(&client->silent, &never, begun, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

/* Until when it may be asked. */
static int64_t patient_until(const struct agent_client *client)
{
    int64_t silent = __atomic_load_n(&client->silent, __ATOMIC_RELAXED);

    return (silent ? silent : g_get_monotonic_time()) + client->patience;
}

/* It has been silent for too long, and was still just now. */
static bool is_given_up(const struct agent_client *client)
{
    int64_t now = g_get_monotonic_time();

    return now > patient_until(client) && now - __atomic_load_n(&client->failed, __ATOMIC_RELAXED) < JUST_NOW;
}

/* One try: the answer of whatever status. */
static CURLcode exchange_once(struct agent_client *client, struct exchange *exchange, long *status)
{
    const struct agent_request *request = exchange->request;
    g_autofree char *url = g_strconcat(client->base, request->path, NULL);
    struct curl_slist *headers;
    int64_t begun = g_get_monotonic_time();
    curl_off_t later = 0;
    CURLcode result;
    CURL *handle;

    if (is_given_up(client))
        return CURLE_OPERATION_TIMEDOUT;
    if (!(handle = take_connection(client)))
        return CURLE_OUT_OF_MEMORY;
    headers = agent_curl.slist_append(agent_curl.slist_append(NULL, client->session), "Expect:");
    exchange->sent = 0;
    exchange->trouble[0] = '\0';
    g_byte_array_set_size(exchange->answer, 0);
    set_up(client, handle, exchange, url, headers);
    result = agent_curl.easy_perform(handle);
    agent_curl.easy_getinfo(handle, CURLINFO_RESPONSE_CODE, status);
    agent_curl.easy_getinfo(handle, CURLINFO_RETRY_AFTER, &later);
    agent_curl.easy_setopt(handle, CURLOPT_ERRORBUFFER, NULL); /* the connection outlives the exchange */
    exchange->later = result == CURLE_OK ? CLAMP(later, 0, LONGEST_LATER) * G_USEC_PER_SEC : 0;
    __atomic_add_fetch(&wire_bytes, exchange->sent + exchange->answer->len, __ATOMIC_RELAXED);
    agent_curl.slist_free_all(headers);
    if (result == CURLE_OK) {
        __atomic_store_n(&client->known, 1, __ATOMIC_RELAXED);
        give_connection(client, handle);
    } else {
        agent_curl.easy_cleanup(handle);
    }
    note_answer(client, begun, result == CURLE_OK);
    return result;
}

/* What will not get better by asking again.  A handshake that a bad link breaks off may look like a wrong
 * certificate; each is checked anew, however often it is asked. */
static bool is_hopeless(const struct agent_client *client, CURLcode result)
{
    switch (result) {
    case CURLE_PEER_FAILED_VERIFICATION:
        return !__atomic_load_n(&client->known, __ATOMIC_RELAXED);
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_CIPHER:
    case CURLE_SSL_ISSUER_ERROR:
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_URL_MALFORMAT:
    case CURLE_WRITE_ERROR: /* an answer that is too long */
        return true;
    default:
        return false;
    }
}

/* An agent that is ending says so: the next one will answer.  One that is asked too often does, too, and that
 * is no reason to leave out what would be asked only once. */
static bool may_ask_again(const struct agent_client *client, const struct exchange *exchange, CURLcode result,
                          long status)
{
    if (result == CURLE_OK && status == STATUS_OFTEN)
        return true;
    return !exchange->request->once &&
           (result == CURLE_OK ? status == STATUS_LATER : !is_hopeless(client, result));
}

/* Who says that it is asked too often is not silent: that has no end but the agent's. */
static CURLcode exchange_patiently(struct agent_client *client, struct exchange *exchange, long *status)
{
    int64_t until = 0, wait = FIRST_WAIT;
    CURLcode result;

    while ((result = exchange_once(client, exchange, status),
            may_ask_again(client, exchange, result, *status))) {
        int64_t now = g_get_monotonic_time();

        wait = MAX(wait, exchange->later);
        if (result != CURLE_OK)
            until = patient_until(client);
        else if (*status == STATUS_OFTEN || until == 0)
            until = now + wait + client->patience;
        if (now + wait >= until)
            break;
        g_usleep((gulong)wait);
        wait = MIN(2 * wait, LONGEST_WAIT);
    }
    return result;
}

static int code_named(const char *name)
{
    static const struct {
        const char *name;
        int code;
    } rows[] = {
        {"usage", BLOCKMIG_ERROR_USAGE},      {"refused", BLOCKMIG_ERROR_REFUSED},
        {"gone", BLOCKMIG_ERROR_UNREACHABLE}, {"different", BLOCKMIG_ERROR_DIFFERENT},
        {"nospace", BLOCKMIG_ERROR_NOSPACE},  {"io", BLOCKMIG_ERROR_IO},
    };

    for (unsigned i = 0; name && i < G_N_ELEMENTS(rows); i++)
        if (strcmp(rows[i].name, name) == 0)
            return rows[i].code;
    return BLOCKMIG_ERROR_FAILED;
}

/* In the agent's words, as far as they are fit to be shown. */
bool agent_client_pass_on(const GByteArray *answer, long status, bool *gone, GError **error)
{
    json_t *object = json_loadb((const char *)answer->data, answer->len, 0, NULL);
    const char *words = json_string_value(json_object_get(object, "error"));
    int code = code_named(json_string_value(json_object_get(object, "code")));
    g_autofree char *shown = words ? g_strndup(words, MAX_WORDS) : NULL;

    for (char *at = shown; at && *at; at++)
        if (g_ascii_iscntrl(*at))
            *at = '?';
    if (gone)
        *gone = code == BLOCKMIG_ERROR_UNREACHABLE;
    if (status == 403)
        code = BLOCKMIG_ERROR_REFUSED;
    else if (status == STATUS_LATER)
        code = BLOCKMIG_ERROR_UNREACHABLE;
    blockmig_fail(error, code, "the agent: %s", shown ? shown : "an answer that cannot be read");
    json_decref(object);
    return false;
}

/* Clocks that are apart make certificates bad: libcurl's words are the same for all that may be wrong with
 * one. */
static bool explain_certificate(const char *words, GError **error)
{
    g_autoptr(GDateTime) now = g_date_time_new_now_utc();
    g_autofree char *time = g_date_time_format_iso8601(now);

    return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                         "certificates: %s; they have to be valid now, and this host's clock says %s", words,
                         time);
}

bool agent_client_explain(const struct agent_client *client, CURLcode result, const char *detail,
                          GError **error)
{
    const char *words = *detail ? detail : agent_curl.easy_strerror(result);
    bool certificate = (result == CURLE_SSL_CERTPROBLEM || result == CURLE_PEER_FAILED_VERIFICATION ||
                        result == CURLE_SSL_CACERT_BADFILE) &&
                       is_hopeless(client, result);

    return certificate
               ? explain_certificate(words, error)
               : blockmig_fail(error, BLOCKMIG_ERROR_UNREACHABLE, "the agent does not answer: %s", words);
}

static bool explain(const struct agent_client *client, const struct exchange *exchange, CURLcode result,
                    GError **error)
{
    if (exchange->too_long)
        return blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "the agent's answer has more than %zu bytes",
                             exchange->request->most);
    return agent_client_explain(client, result, exchange->trouble, error);
}

static GByteArray *ask(struct agent_client *client, const struct agent_request *request, bool *gone,
                       GError **error)
{
    struct exchange exchange = {.request = request, .answer = g_byte_array_new()};
    long status = 0;
    CURLcode result = exchange_patiently(client, &exchange, &status);
    bool ok = result == CURLE_OK ? status == 200 || agent_client_pass_on(exchange.answer, status, gone, error)
                                 : explain(client, &exchange, result, error);

    if (ok)
        return exchange.answer;
    g_byte_array_unref(exchange.answer);
    return NULL;
}

/* Whoever comes back may be another. */
static bool agree(struct agent_client *client, GError **error)
{
    const struct agent_request request = {.method = "GET", .path = "/v1", .most = MAX_JSON};
    g_autoptr(GByteArray) answer = NULL;
    json_t *object;
    json_int_t version;

    if (__atomic_load_n(&client->agreed, __ATOMIC_RELAXED))
        return true;
    if (!(answer = ask(client, &request, NULL, error)))
        return false;
    object = json_loadb((const char *)answer->data, answer->len, 0, NULL);
    version = json_integer_value(json_object_get(object, "api"));
    json_decref(object);
    if (version != AGENT_API)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "the agent speaks version %" JSON_INTEGER_FORMAT
                             " of the protocol, and this blockmig version %d",
                             version, AGENT_API);
    __atomic_store_n(&client->agreed, 1, __ATOMIC_RELAXED);
    return true;
}

GByteArray *agent_ask(struct agent_client *client, const struct agent_request *request, bool *gone,
                      GError **error)
{
    return agree(client, error) ? ask(client, request, gone, error) : NULL;
}

json_t *agent_ask_json(struct agent_client *client, const char *method, const char *path, json_t *arguments,
                       bool *gone, GError **error)
{
    char *text = arguments ? json_dumps(arguments, JSON_COMPACT) : NULL;
    struct agent_request request = {.method = method,
                                    .path = path,
                                    .head = text,
                                    .head_length = text ? strlen(text) : 0,
                                    .most = MAX_JSON};
    g_autoptr(GByteArray) answer = agent_ask(client, &request, gone, error);
    json_t *object = answer ? json_loadb((const char *)answer->data, answer->len, 0, NULL) : NULL;

    json_decref(arguments);
    free(text);
    if (answer && !object)
        blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "the agent's answer is not JSON");
    return object;
}

char *agent_escape(const char *text, bool with_slashes)
{
    return g_uri_escape_string(text, with_slashes ? "/" : NULL, FALSE);
}
