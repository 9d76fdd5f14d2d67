/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/migrate/request-json.h"

#include "formats/error.h"

#include <string.h>

void request_set_string(json_t *object, const char *key, const char *value)
{
    if (value) {
        g_autofree char *escaped = g_uri_escape_string(value, "/:,=+ ", true);
        json_object_set_new(object, key, json_string(escaped));
    }
}

void request_set_strings(json_t *object, const char *key, GPtrArray *values)
{
    json_t *array;

    if (!values || values->len == 0)
        return;
    array = json_array();
    for (guint i = 0; i < values->len; i++) {
        g_autofree char *escaped = g_uri_escape_string(g_ptr_array_index(values, i), "/:,=+ ", true);
        json_array_append_new(array, json_string(escaped));
    }
    json_object_set_new(object, key, array);
}

char *request_get_string(json_t *object, const char *key)
{
    const char *value = json_string_value(json_object_get(object, key));

    return value ? g_uri_unescape_string(value, NULL) : NULL;
}

GPtrArray *request_get_strings(json_t *object, const char *key)
{
    json_t *array = json_object_get(object, key);
    GPtrArray *strings;
    size_t index;
    json_t *value;

    if (!json_is_array(array))
        return NULL;
    strings = g_ptr_array_new_with_free_func(g_free);
    json_array_foreach(array, index, value)
    {
        const char *text = json_string_value(value);
        char *plain = text ? g_uri_unescape_string(text, NULL) : NULL;

        if (plain)
            g_ptr_array_add(strings, plain);
    }
    return strings;
}

char *request_to_text(json_t *object)
{
    char *text = json_dumps(object, JSON_COMPACT | JSON_SORT_KEYS);

    json_decref(object);
    return text;
}

json_t *request_from_text(const char *text, GError **error)
{
    json_error_t where;
    json_t *object = json_loads(text, JSON_REJECT_DUPLICATES, &where);

    if (json_is_object(object))
        return object;
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED, "the journal's request is not JSON: %s",
                where.text);
    json_decref(object);
    return NULL;
}

bool request_parse_word(const char *text, const char *const *words, const char *what, unsigned *value,
                        GError **error)
{
    g_autoptr(GString) known = g_string_new(NULL);

    for (unsigned i = 0; words[i]; i++) {
        if (strcmp(text, words[i]) == 0) {
            *value = i;
            return true;
        }
        g_string_append_printf(known, "%s%s", i ? ", " : "", words[i]);
    }
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE, "%s '%s' is not known: use one of %s", what,
                text, known->str);
    return false;
}

bool request_same(const char *a, const char *b, const char *const *free_keys)
{
    json_t *left = json_loads(a, 0, NULL);
    json_t *right = json_loads(b, 0, NULL);
    bool same = false;

    if (left && right) {
        for (; *free_keys; free_keys++) {
            json_object_del(left, *free_keys);
            json_object_del(right, *free_keys);
        }
        same = json_equal(left, right);
    }
    json_decref(left);
    json_decref(right);
    return same;
}
