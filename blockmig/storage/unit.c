/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/storage/unit.h"

#include "blockmig/storage/device.h"
#include "blockmig/storage/direct.h"
#include "blockmig/storage/file.h"
#include "blockmig/storage/reservation.h"
#include "blockmig/storage/uri.h"
#include "formats/error.h"
#include "formats/xxh3.h"

#include <errno.h>
#include <ifaddrs.h>
#include <inttypes.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

const char *const unit_acts[] = {"look", "register", "take", "give-up", NULL};

void unit_free(struct unit *unit)
{
    if (!unit)
        return;
    g_free(unit->identity);
    g_free(unit->unreserved);
    g_free(unit);
}

/* ---- servers ------------------------------------------------------------------------------------- */

static char *numeric(const struct sockaddr *address)
{
    socklen_t length = address->sa_family == AF_INET    ? sizeof(struct sockaddr_in)
                       : address->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6)
                                                        : 0;
    char text[NI_MAXHOST];

    return length && getnameinfo(address, length, text, sizeof(text), NULL, 0, NI_NUMERICHOST) == 0
               ? g_strdup(text)
               : NULL;
}

static bool is_of_this_host(const char *address)
{
    struct ifaddrs *all = NULL;
    bool found = false;

    getifaddrs(&all);
    for (struct ifaddrs *one = all; one && !found; one = one->ifa_next) {
        g_autofree char *own = one->ifa_addr ? numeric(one->ifa_addr) : NULL;

        found = g_strcmp0(own, address) == 0;
    }
    freeifaddrs(all);
    return found;
}

static gint by_text(gconstpointer a, gconstpointer b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* A name may mean other addresses to other hosts. */
static char *addresses_of(const char *host, bool *local, GError **error)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found = NULL;
    g_autoptr(GPtrArray) texts = g_ptr_array_new_with_free_func(g_free);
    int reason = getaddrinfo(host, NULL, &hints, &found);

    if (reason != 0) {
        blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s: %s", host, gai_strerror(reason));
        return NULL;
    }
    for (struct addrinfo *one = found; one; one = one->ai_next)
        g_ptr_array_add(texts, numeric(one->ai_addr));
    freeaddrinfo(found);
    g_ptr_array_sort(texts, by_text);
    for (guint i = 0; i < texts->len; i++)
        *local |= is_of_this_host(texts->pdata[i]);
    g_ptr_array_add(texts, NULL);
    return g_strjoinv(",", (char **)texts->pdata);
}

/* "ADDRESSES port PORT". */
static char *server_of(const char *name, bool *local, GError **error)
{
    g_autoptr(GUri) uri = g_uri_parse(name, G_URI_FLAGS_NON_DNS | G_URI_FLAGS_PARSE_RELAXED, NULL);
    const char *host = uri ? g_uri_get_host(uri) : NULL;
    g_autofree char *addresses = NULL;
    int port;

    if (!host || !*host) {
        blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "it is reached by a socket of its host");
        return NULL;
    }
    port = g_uri_get_port(uri) > 0 ? g_uri_get_port(uri) : g_str_has_prefix(name, "iscsi:") ? 3260 : 10809;
    addresses = addresses_of(host, local, error);
    return addresses ? g_strdup_printf("%s port %d", addresses, port) : NULL;
}

/* ---- looking ------------------------------------------------------------------------------------- */

static bool is_device(const char *name, struct stat *st, GError **error)
{
    if (stat(name, st) < 0)
        return blockmig_set_errno(error, errno, "%s", name);
    return S_ISBLK(st->st_mode) ||
           blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s is not a block device", name);
}

/* What a server calls its unit may be its own invention, so its address belongs to the name. */
static bool name_unit(struct unit *unit, const char *name, const struct storage *storage, GError **error)
{
    g_autofree char *server = NULL;
    struct stat st;

    if (!storage_name_is_uri(name)) {
        if (!is_device(name, &st, error))
            return false;
        unit->identity = device_identity(&st);
        return true;
    }
    server = server_of(name, &unit->local, error);
    if (!server)
        return false;
    unit->identity = g_strdup_printf("%s at %s", storage->identity, server);
    return true;
}

static bool take_samples(struct unit *unit, struct storage *storage, GError **error)
{
    uint64_t blocks = storage->size / UNIT_SAMPLE;
    uint8_t *block = NULL;
    bool ok = true;

    if (blocks == 0)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "it has less than %u bytes", UNIT_SAMPLE);
    if (posix_memalign((void **)&block, UNIT_SAMPLE, UNIT_SAMPLE) != 0)
        return blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "no memory for %u bytes", UNIT_SAMPLE);
    for (unsigned i = 0; ok && i < UNIT_SAMPLES; i++) {
        ok = direct_read(storage, block, UNIT_SAMPLE, (blocks - 1) * i / (UNIT_SAMPLES - 1) * UNIT_SAMPLE,
                         true, error);
        if (ok)
            xxh3_digest(block, UNIT_SAMPLE, unit->samples + i * STORAGE_DIGEST);
    }
    free(block);
    return ok;
}

/* Sessions of QEMU's own are not the host's, which alone could be registered: see HACKING. */
static void look_at_reservation(struct unit *unit, const char *name)
{
    g_autoptr(GError) reason = NULL;
    g_autoptr(reservation_t) reservation = storage_name_is_uri(name) ? NULL : reservation_open(name, &reason);
    g_autoptr(reservation_state_t) state = reservation ? reservation_read(reservation, &reason) : NULL;

    unit->key = reservation_host_key();
    if (!state) {
        unit->unreserved = g_strdup(reason ? reason->message : "a hypervisor has a session of its own there");
        return;
    }
    unit->reserved = state->reserved;
    unit->holder = state->reserved ? reservation_holder_key(state) : 0;
}

struct unit *unit_look(const char *name, GError **error)
{
    g_autoptr(unit_t) unit = g_new0(struct unit, 1);
    g_autoptr(storage_t) storage = NULL;
    struct stat st;

    if (!storage_name_is_uri(name) && !is_device(name, &st, error))
        return NULL;
    storage = storage_open(name, FILE_NO_LOCK | FILE_ALONE, NULL, NULL, error);
    if (!storage)
        return NULL;
    unit->size = storage->size;
    if (!name_unit(unit, name, storage, error) || !take_samples(unit, storage, error)) {
        g_prefix_error(error, "%s: ", storage->name);
        return NULL;
    }
    look_at_reservation(unit, name);
    return g_steal_pointer(&unit);
}

/* ---- comparing ----------------------------------------------------------------------------------- */

char *unit_difference(const struct unit *here, const struct unit *there)
{
    if (strcmp(here->identity, there->identity) != 0)
        return g_strdup_printf(
            "it is another one there, or has no name by which it could be known (%s here, %s there)",
            here->identity, there->identity);
    if (here->local && there->local)
        return g_strdup_printf("%s is an address that both hosts have",
                               strrchr(here->identity, '@') ?: here->identity);
    if (here->size != there->size)
        return g_strdup_printf("it has %" PRIu64 " bytes here and %" PRIu64 " there", here->size,
                               there->size);
    return NULL;
}

bool unit_samples_differ(const struct unit *before, const struct unit *there, const struct unit *after,
                         unsigned *still)
{
    bool differ = false;

    *still = 0;
    for (unsigned i = 0; i < UNIT_SAMPLES; i++) {
        size_t at = (size_t)i * STORAGE_DIGEST;

        if (memcmp(before->samples + at, after->samples + at, STORAGE_DIGEST) != 0)
            continue;
        ++*still;
        differ |= memcmp(before->samples + at, there->samples + at, STORAGE_DIGEST) != 0;
    }
    return differ;
}

/* ---- reserving ----------------------------------------------------------------------------------- */

static bool give_up(struct reservation *reservation, uint64_t key, GError **error)
{
    g_autoptr(reservation_state_t) state = reservation_read(reservation, error);

    return state && (!reservation_is_registered(state, key) || reservation_release(reservation, key, error));
}

bool unit_reserve(const char *name, enum unit_act act, uint64_t from, bool *aborted, GError **error)
{
    g_autoptr(reservation_t) reservation = act == UNIT_LOOK ? NULL : reservation_open(name, error);
    uint64_t key = reservation_host_key();
    bool ok = act == UNIT_LOOK;

    *aborted = true;
    if (reservation && act == UNIT_REGISTER)
        ok = reservation_register(reservation, key, error);
    else if (reservation && act == UNIT_TAKE)
        ok = reservation_hand_over(reservation, key, from, aborted, error);
    else if (reservation)
        ok = give_up(reservation, key, error);
    if (!ok)
        g_prefix_error(error, "%s: ", name);
    return ok;
}

/* ---- between hosts ------------------------------------------------------------------------------- */

static json_t *key_text(uint64_t key)
{
    g_autofree char *text = g_strdup_printf("0x%016" G_GINT64_MODIFIER "x", key);

    return json_string(text);
}

static bool get_key(const json_t *object, const char *name, uint64_t *key)
{
    const char *text = json_string_value(json_object_get(object, name));

    return text && g_str_has_prefix(text, "0x") &&
           g_ascii_string_to_unsigned(text + 2, 16, 0, G_MAXUINT64, key, NULL);
}

json_t *unit_to_json(const struct unit *unit)
{
    g_autoptr(GString) samples = g_string_new(NULL);

    for (size_t i = 0; i < sizeof(unit->samples); i++)
        g_string_append_printf(samples, "%02x", unit->samples[i]);
    return json_pack("{s:s, s:b, s:I, s:s, s:s?, s:b, s:o, s:o}", "identity", unit->identity, "local",
                     unit->local, "size", (json_int_t)unit->size, "samples", samples->str, "unreserved",
                     unit->unreserved, "reserved", unit->reserved, "holder", key_text(unit->holder), "key",
                     key_text(unit->key));
}

static bool parse_samples(const char *text, uint8_t *samples)
{
    if (!text || strlen(text) != 2 * UNIT_SAMPLES * STORAGE_DIGEST ||
        strspn(text, "0123456789abcdef") != strlen(text))
        return false;
    for (size_t i = 0; text[2 * i]; i++)
        samples[i] =
            (uint8_t)(g_ascii_xdigit_value(text[2 * i]) << 4 | g_ascii_xdigit_value(text[2 * i + 1]));
    return true;
}

struct unit *unit_from_json(const json_t *object, GError **error)
{
    g_autoptr(unit_t) unit = g_new0(struct unit, 1);
    const json_t *size = json_object_get(object, "size");

    unit->identity = g_strdup(json_string_value(json_object_get(object, "identity")));
    unit->unreserved = g_strdup(json_string_value(json_object_get(object, "unreserved")));
    unit->local = json_is_true(json_object_get(object, "local"));
    unit->reserved = json_is_true(json_object_get(object, "reserved"));
    unit->size = (uint64_t)json_integer_value(size);
    if (unit->identity && json_is_integer(size) && json_integer_value(size) > 0 &&
        get_key(object, "holder", &unit->holder) && get_key(object, "key", &unit->key) && unit->key &&
        parse_samples(json_string_value(json_object_get(object, "samples")), unit->samples))
        return g_steal_pointer(&unit);
    blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "the agent's answer about a unit is incomplete");
    return NULL;
}
