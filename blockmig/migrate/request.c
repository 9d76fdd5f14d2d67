/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The request of a copy: its words, and its text in the journal from which it can be run again. */
#include "blockmig/migrate/job.h"
#include "blockmig/migrate/request-json.h"
#include "blockmig/storage/uri.h"

#include <jansson.h>
#include <string.h>

static const char *const chain_modes[] = {"flatten", "keep", "shallow", NULL};
static const char *const verify_modes[] = {"full", "written", "none", NULL};

const char *chain_mode_name(enum chain_mode mode)
{
    return chain_modes[mode];
}

const char *verify_mode_name(enum verify_mode mode)
{
    return verify_modes[mode];
}

bool chain_mode_parse(const char *text, enum chain_mode *mode, GError **error)
{
    unsigned value;

    if (!request_parse_word(text, chain_modes, "chain mode", &value, error))
        return false;
    *mode = (enum chain_mode)value;
    return true;
}

bool verify_mode_parse(const char *text, enum verify_mode *mode, GError **error)
{
    unsigned value;

    if (!request_parse_word(text, verify_modes, "verify mode", &value, error))
        return false;
    *mode = (enum verify_mode)value;
    return true;
}

struct copy_request *copy_request_new(void)
{
    return g_new0(struct copy_request, 1);
}

void copy_request_free(struct copy_request *request)
{
    if (!request)
        return;
    g_free(request->source);
    g_free(request->target);
    g_free(request->source_format);
    g_free(request->target_format);
    g_free(request->target_options);
    g_clear_pointer(&request->parents, g_ptr_array_unref);
    g_clear_pointer(&request->allowed_roots, g_ptr_array_unref);
    g_free(request->secret);
    g_free(request->seed);
    g_free(request->state_dir);
    g_free(request);
}

/* A name from the command line that means the same from any directory; "raw:base.img" keeps its format. */
static char *absolute_parent(const char *text)
{
    const char *colon = strchr(text, ':');

    if (colon && !memchr(text, '/', colon - text) && !storage_name_is_uri(text)) {
        g_autofree char *path = storage_absolute_name(colon + 1);
        return g_strdup_printf("%.*s:%s", (int)(colon - text), text, path);
    }
    return storage_absolute_name(text);
}

GPtrArray *request_terminated(const GPtrArray *values)
{
    GPtrArray *copy = g_ptr_array_new();

    for (guint i = 0; values && i < values->len; i++)
        g_ptr_array_add(copy, values->pdata[i]);
    g_ptr_array_add(copy, NULL);
    return copy;
}

GPtrArray *request_absolute_all(const GPtrArray *values, char *(*absolute)(const char *))
{
    GPtrArray *paths = values ? g_ptr_array_new_with_free_func(g_free) : NULL;

    for (guint i = 0; values && i < values->len; i++)
        g_ptr_array_add(paths, absolute(g_ptr_array_index(values, i)));
    return paths;
}

char *copy_request_to_json(const struct copy_request *request)
{
    json_t *object = json_object();
    g_autofree char *source = storage_absolute_name(request->source);
    g_autofree char *target = storage_absolute_name(request->target);
    g_autofree char *secret = request->secret ? storage_absolute_name(request->secret) : NULL;
    GPtrArray *parents = request_absolute_all(request->parents, absolute_parent);
    GPtrArray *roots = request_absolute_all(request->allowed_roots, storage_absolute_name);

    request_set_string(object, "source", source);
    request_set_string(object, "target", target);
    request_set_string(object, "source_format", request->source_format);
    request_set_string(object, "target_format", request->target_format);
    request_set_string(object, "target_options", request->target_options);
    request_set_string(object, "secret", secret);
    request_set_string(object, "seed", request->seed);
    request_set_string(object, "chain", chain_mode_name(request->chain));
    request_set_string(object, "verify", verify_mode_name(request->verify));
    request_set_string(object, "digest", digest_algorithm_name(request->digest));
    request_set_strings(object, "parents", parents);
    request_set_strings(object, "allowed_roots", roots);
    json_object_set_new(object, "bandwidth", json_integer((json_int_t)request->bandwidth));
    json_object_set_new(object, "compressed", json_boolean(request->compressed));
    json_object_set_new(object, "salvage", json_boolean(request->salvage));
    json_object_set_new(object, "delete_source", json_boolean(request->delete_source));
    json_object_set_new(object, "force", json_boolean(request->force));
    g_clear_pointer(&parents, g_ptr_array_unref);
    g_clear_pointer(&roots, g_ptr_array_unref);
    return request_to_text(object);
}

static bool request_from_object(struct copy_request *request, json_t *object, GError **error)
{
    g_autofree char *chain = request_get_string(object, "chain");
    g_autofree char *verify = request_get_string(object, "verify");
    g_autofree char *digest = request_get_string(object, "digest");

    request->source = request_get_string(object, "source");
    request->target = request_get_string(object, "target");
    request->source_format = request_get_string(object, "source_format");
    request->target_format = request_get_string(object, "target_format");
    request->target_options = request_get_string(object, "target_options");
    request->secret = request_get_string(object, "secret");
    request->seed = request_get_string(object, "seed");
    request->parents = request_get_strings(object, "parents");
    request->allowed_roots = request_get_strings(object, "allowed_roots");
    request->bandwidth = (uint64_t)json_integer_value(json_object_get(object, "bandwidth"));
    request->compressed = json_is_true(json_object_get(object, "compressed"));
    request->salvage = json_is_true(json_object_get(object, "salvage"));
    request->delete_source = json_is_true(json_object_get(object, "delete_source"));
    request->force = json_is_true(json_object_get(object, "force"));
    if (!request->source || !request->target || !chain || !verify || !digest) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED, "the journal's request is incomplete");
        return false;
    }
    return chain_mode_parse(chain, &request->chain, error) &&
           verify_mode_parse(verify, &request->verify, error) &&
           digest_algorithm_parse(digest, &request->digest, error);
}

struct copy_request *copy_request_from_json(const char *text, GError **error)
{
    json_t *object = request_from_text(text, error);
    g_autoptr(copy_request_t) request = copy_request_new();
    bool ok = object && request_from_object(request, object, error);

    json_decref(object);
    return ok ? g_steal_pointer(&request) : NULL;
}

/* They do not change what is written. */
static const char *const free_keys[] = {"bandwidth", "force", "seed", NULL};

bool copy_request_same(const char *a, const char *b)
{
    return request_same(a, b, free_keys);
}
