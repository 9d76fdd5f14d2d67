/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Abilities by introspection, never by version: distributions carry features back. */
#include "blockmig/vm/qmp-internal.h"
#include "formats/error.h"

#include <string.h>

static bool load_schema(struct qmp *qmp, GError **error)
{
    size_t i;
    json_t *entry;

    if (qmp->schema)
        return true;
    qmp->schema = qmp_command(qmp, "query-qmp-schema", NULL, QMP_TIMEOUT, error);
    if (!qmp->schema)
        return false;
    qmp->schema_index = g_hash_table_new(g_str_hash, g_str_equal);
    json_array_foreach(qmp->schema, i, entry)
    {
        const char *name = json_string_value(json_object_get(entry, "name"));

        if (name)
            g_hash_table_insert(qmp->schema_index, (char *)name, entry);
    }
    return true;
}

static json_t *lookup(struct qmp *qmp, json_t *name)
{
    const char *text = json_string_value(name);

    return text ? g_hash_table_lookup(qmp->schema_index, text) : NULL;
}

static json_t *command_entry(struct qmp *qmp, const char *command, GError **error)
{
    json_t *entry;
    const char *meta;

    if (!load_schema(qmp, error))
        return NULL;
    entry = g_hash_table_lookup(qmp->schema_index, command);
    meta = json_string_value(json_object_get(entry, "meta-type"));
    return g_strcmp0(meta, "command") == 0 ? entry : NULL;
}

/* The element of an array whose `key` is `wanted`. */
static json_t *find_member(json_t *array, const char *key, const char *wanted)
{
    size_t i;
    json_t *member;

    json_array_foreach(array, i, member)
    {
        if (g_strcmp0(json_string_value(json_object_get(member, key)), wanted) == 0)
            return member;
    }
    return NULL;
}

static bool has_string(json_t *array, const char *wanted)
{
    size_t i;
    json_t *item;

    json_array_foreach(array, i, item)
    {
        if (g_strcmp0(json_string_value(item), wanted) == 0)
            return true;
    }
    return false;
}

/* A member of the arguments' own object, or of any branch of its union. */
static json_t *find_argument(struct qmp *qmp, json_t *object, const char *argument)
{
    json_t *member = find_member(json_object_get(object, "members"), "name", argument);
    size_t i;
    json_t *variant;

    if (member)
        return member;
    json_array_foreach(json_object_get(object, "variants"), i, variant)
    {
        json_t *branch = lookup(qmp, json_object_get(variant, "type"));

        member = find_member(json_object_get(branch, "members"), "name", argument);
        if (member)
            return member;
    }
    return NULL;
}

bool qmp_has_command(struct qmp *qmp, const char *command, GError **error)
{
    return command_entry(qmp, command, error) != NULL;
}

bool qmp_has_argument(struct qmp *qmp, const char *command, const char *argument, GError **error)
{
    json_t *entry = command_entry(qmp, command, error);

    return entry && find_argument(qmp, lookup(qmp, json_object_get(entry, "arg-type")), argument);
}

bool qmp_has_value(struct qmp *qmp, const char *command, const char *argument, const char *value,
                   GError **error)
{
    json_t *entry = command_entry(qmp, command, error);
    json_t *member = NULL, *type;

    if (entry)
        member = find_argument(qmp, lookup(qmp, json_object_get(entry, "arg-type")), argument);
    type = member ? lookup(qmp, json_object_get(member, "type")) : NULL;
    return type && (has_string(json_object_get(type, "values"), value) ||
                    find_member(json_object_get(type, "members"), "name", value));
}
