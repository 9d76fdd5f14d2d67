/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Requests as JSON objects in the journal.  JSON strings are UTF-8 and file names are bytes, so every string
 * travels percent-escaped.
 */
#ifndef BLOCKMIG_MIGRATE_REQUEST_JSON_H
#define BLOCKMIG_MIGRATE_REQUEST_JSON_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

/* NULL or no strings: the key is left out. */
void request_set_string(json_t *object, const char *key, const char *value);
void request_set_strings(json_t *object, const char *key, GPtrArray *values);
/* The caller's; NULL: the key is not there. */
char *request_get_string(json_t *object, const char *key);
GPtrArray *request_get_strings(json_t *object, const char *key);
/* The texts by which a user named files, as absolute ones, the caller's; NULL for none. */
GPtrArray *request_absolute_all(const GPtrArray *values, char *(*absolute)(const char *));
/* The same strings, borrowed, and ended by NULL; NULL: none. */
GPtrArray *request_terminated(const GPtrArray *values);
/* One line; takes `object` over.  The text is the caller's. */
char *request_to_text(json_t *object);
/* FAILED if it is not a JSON object. */
json_t *request_from_text(const char *text, GError **error);
/* Are both texts the same object, but for `free_keys` (NULL-terminated)? */
bool request_same(const char *a, const char *b, const char *const *free_keys);
/* The index of `text` among `words` (NULL-terminated) into *value; USAGE names them: "WHAT 'text' is not ..."
 */
bool request_parse_word(const char *text, const char *const *words, const char *what, unsigned *value,
                        GError **error);

#endif
