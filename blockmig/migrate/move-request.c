/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The request of a move: defaults, and its text in the journal. */
#include "blockmig/migrate/job.h"

#include <jansson.h>

#define DEFAULT_MAX_PAUSE 500 /* ms */

struct move_request *move_request_new(void)
{
    struct move_request *request = g_new0(struct move_request, 1);

    request->disks = g_ptr_array_new_with_free_func(g_free);
    request->max_pause = DEFAULT_MAX_PAUSE;
    return request;
}

void move_request_free(struct move_request *request)
{
    if (!request)
        return;
    g_free(request->machine);
    g_free(request->target);
    g_ptr_array_unref(request->disks);
    g_free(request->target_format);
    g_free(request->target_options);
    g_free(request->state_dir);
    g_free(request);
}

/* JSON strings are UTF-8, file names are bytes: they travel percent-escaped. */
static json_t *escaped(const char *text)
{
    g_autofree char *escaped = text ? g_uri_escape_string(text, "/:,=+ ", true) : NULL;

    return escaped ? json_string(escaped) : json_null();
}

char *move_request_to_json(const struct move_request *request)
{
    g_autofree char *target = g_canonicalize_filename(request->target, NULL);
    json_t *disks = json_array();
    json_t *object;
    char *text;

    for (guint i = 0; i < request->disks->len; i++)
        json_array_append_new(disks, escaped(g_ptr_array_index(request->disks, i)));
    object = json_pack("{s:o, s:o, s:o, s:o, s:o, s:s, s:s, s:I, s:I, s:b}", "machine",
                       escaped(request->machine), "target", escaped(target), "disks", disks, "target_format",
                       escaped(request->target_format), "target_options", escaped(request->target_options),
                       "verify", verify_mode_name(request->verify), "digest",
                       digest_algorithm_name(request->digest), "bandwidth", (json_int_t)request->bandwidth,
                       "max_pause", (json_int_t)request->max_pause, "delete_source", request->delete_source);
    text = json_dumps(object, JSON_COMPACT | JSON_SORT_KEYS);
    json_decref(object);
    return text;
}
