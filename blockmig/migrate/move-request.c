/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The request of a move: defaults, and its text in the journal from which it can go on. */
#include "blockmig/migrate/job.h"
#include "blockmig/migrate/request-json.h"
#include "blockmig/storage/uri.h"

#define DEFAULT_MAX_PAUSE   500    /* ms */
#define DEFAULT_GUEST_SHARE 80     /* % */
#define DEFAULT_SHUTDOWN    180000 /* ms */

static const char *const methods[] = {"auto",  "storage", "mirror", "cold", "live",
                                      "quick", "restart", "san",    NULL};
static const char *const cdrom_modes[] = {"copy", "keep", "eject", NULL};
static const char *const busy_policies[] = {"park", "mirror", "throttle", NULL};
static const char *const quiesce_modes[] = {"no", "try", "require", NULL};

const char *busy_policy_name(enum busy_policy policy)
{
    return busy_policies[policy];
}

struct move_request *move_request_new(void)
{
    struct move_request *request = g_new0(struct move_request, 1);

    request->disks = g_ptr_array_new_with_free_func(g_free);
    request->max_pause = DEFAULT_MAX_PAUSE;
    request->guest_share = DEFAULT_GUEST_SHARE;
    request->shutdown = DEFAULT_SHUTDOWN;
    return request;
}

void move_request_free(struct move_request *request)
{
    if (!request)
        return;
    g_free(request->machine);
    g_free(request->target);
    g_free(request->connection);
    g_ptr_array_unref(request->disks);
    g_clear_pointer(&request->allowed_roots, g_ptr_array_unref);
    g_free(request->target_format);
    g_free(request->target_options);
    g_free(request->scratch);
    g_free(request->failback_to);
    g_free(request->state_dir);
    g_free(request);
}

static char *absolute(const char *path)
{
    return path ? g_canonicalize_filename(path, NULL) : NULL;
}

char *move_request_to_json(const struct move_request *request)
{
    g_autofree char *target = request->target ? storage_absolute_name(request->target) : NULL,
                    *scratch = absolute(request->scratch);
    GPtrArray *roots = request_absolute_all(request->allowed_roots, storage_absolute_name);
    json_t *object = json_pack(
        "{s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:b}", "method", methods[request->method],
        "on_busy", busy_policies[request->on_busy], "quiesce", quiesce_modes[request->quiesce], "chain",
        chain_mode_name(request->chain), "verify", verify_mode_name(request->verify), "digest",
        digest_algorithm_name(request->digest), "bandwidth", (json_int_t)request->bandwidth, "guest_share",
        (json_int_t)request->guest_share, "max_pause", (json_int_t)request->max_pause, "keep_failback",
        (json_int_t)request->keep_failback, "delete_source", request->delete_source);

    json_object_set_new(object, "across", json_boolean(request->across));
    json_object_set_new(object, "force", json_boolean(request->force));
    json_object_set_new(object, "cdrom", json_string(cdrom_modes[request->cdrom]));
    json_object_set_new(object, "shutdown", json_integer((json_int_t)request->shutdown));
    request_set_string(object, "connection", request->connection);
    request_set_string(object, "machine", request->machine);
    request_set_string(object, "target", target);
    request_set_strings(object, "disks", request->disks);
    request_set_strings(object, "allowed_roots", roots);
    g_clear_pointer(&roots, g_ptr_array_unref);
    request_set_string(object, "target_format", request->target_format);
    request_set_string(object, "target_options", request->target_options);
    request_set_string(object, "scratch", scratch);
    request_set_string(object, "failback_to", request->failback_to);
    return request_to_text(object);
}

/* A word that is not there is as good as an unknown one. */
static bool get_word(json_t *object, const char *key, const char *const *words, unsigned *value,
                     GError **error)
{
    const char *text = json_string_value(json_object_get(object, key));

    return request_parse_word(text ? text : "", words, key, value, error);
}

static bool get_modes(struct move_request *request, json_t *object, GError **error)
{
    g_autofree char *chain = request_get_string(object, "chain");
    g_autofree char *verify = request_get_string(object, "verify");
    g_autofree char *digest = request_get_string(object, "digest");
    unsigned method, on_busy, quiesce, cdrom = CDROM_COPY;

    if (!get_word(object, "method", methods, &method, error) ||
        !get_word(object, "on_busy", busy_policies, &on_busy, error) ||
        !get_word(object, "quiesce", quiesce_modes, &quiesce, error) ||
        (json_object_get(object, "cdrom") && !get_word(object, "cdrom", cdrom_modes, &cdrom, error)))
        return false;
    request->cdrom = (enum cdrom_mode)cdrom;
    request->method = (enum move_method)method;
    request->on_busy = (enum busy_policy)on_busy;
    request->quiesce = (enum quiesce_mode)quiesce;
    return chain_mode_parse(chain ? chain : "", &request->chain, error) &&
           verify_mode_parse(verify ? verify : "", &request->verify, error) &&
           digest_algorithm_parse(digest ? digest : "", &request->digest, error);
}

static bool request_from_object(struct move_request *request, json_t *object, GError **error)
{
    GPtrArray *disks = request_get_strings(object, "disks");

    request->across = json_is_true(json_object_get(object, "across"));
    if (json_object_get(object, "shutdown"))
        request->shutdown = (uint64_t)json_integer_value(json_object_get(object, "shutdown"));
    request->connection = request_get_string(object, "connection");
    request->machine = request_get_string(object, "machine");
    request->target = request_get_string(object, "target");
    request->target_format = request_get_string(object, "target_format");
    request->target_options = request_get_string(object, "target_options");
    request->scratch = request_get_string(object, "scratch");
    request->allowed_roots = request_get_strings(object, "allowed_roots");
    request->failback_to = request_get_string(object, "failback_to");
    request->bandwidth = (uint64_t)json_integer_value(json_object_get(object, "bandwidth"));
    if (json_object_get(object, "guest_share"))
        request->guest_share = (unsigned)json_integer_value(json_object_get(object, "guest_share"));
    request->max_pause = (unsigned)json_integer_value(json_object_get(object, "max_pause"));
    request->keep_failback = (uint64_t)json_integer_value(json_object_get(object, "keep_failback"));
    request->delete_source = json_is_true(json_object_get(object, "delete_source"));
    request->force = json_is_true(json_object_get(object, "force"));
    if (disks) {
        g_ptr_array_unref(request->disks);
        request->disks = disks;
    }
    if (request->machine && request->target)
        return get_modes(request, object, error);
    g_set_error_literal(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED, "the journal's request is incomplete");
    return false;
}

struct move_request *move_request_from_json(const char *text, GError **error)
{
    json_t *object = request_from_text(text, error);
    g_autoptr(move_request_t) request = move_request_new();
    bool ok = object && request_from_object(request, object, error);

    json_decref(object);
    return ok ? g_steal_pointer(&request) : NULL;
}

/* They do not change what is written to the target. */
static const char *const free_keys[] = {
    "bandwidth", "guest_share",   "max_pause", "method", "on_busy",     "quiesce", "keep_failback",
    "verify",    "delete_source", "shutdown",  "force",  "failback_to", NULL};

bool move_request_same(const char *a, const char *b)
{
    return request_same(a, b, free_keys);
}
