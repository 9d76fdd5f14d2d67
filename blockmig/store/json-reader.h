/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Reads JSON (RFC 8259) value by value from a file, in memory that does not grow with it.
 *
 * The caller says what it expects next.  Stricter than the standard where laxness only helps an attacker:
 * numbers are unsigned integers of 64 bits, strings are valid UTF-8 without U+0000, names in one object
 * are the caller's to count.  Errors are REFUSED, with the byte where it happened, or IO.
 */
#ifndef BLOCKMIG_STORE_JSON_READER_H
#define BLOCKMIG_STORE_JSON_READER_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct json_reader {
    FILE *file;       /* borrowed */
    const char *name; /* borrowed; what messages call it */
    uint64_t position;
    GString *text; /* the last string */
};

void json_reader_init(struct json_reader *reader, FILE *file, const char *name);
void json_reader_clear(struct json_reader *reader);

/* An object is json_reader_open('{'), then json_reader_member() until *key is NULL, reading the value after
 * each; an array is json_reader_open('['), then json_reader_element() until *more is false.  `*first` starts
 * as true. */
bool json_reader_open(struct json_reader *reader, char bracket, GError **error);
bool json_reader_member(struct json_reader *reader, bool *first, const char **key, GError **error);
bool json_reader_element(struct json_reader *reader, bool *first, bool *more, GError **error);

/* At most `max` bytes; *text is valid until the next call. */
bool json_reader_string(struct json_reader *reader, size_t max, const char **text, GError **error);
/* As json_reader_string, but null is allowed and gives NULL. */
bool json_reader_string_or_null(struct json_reader *reader, size_t max, const char **text, GError **error);
bool json_reader_number(struct json_reader *reader, uint64_t *number, GError **error);
bool json_reader_bool(struct json_reader *reader, bool *value, GError **error);
/* Any value, which is thrown away. */
bool json_reader_skip(struct json_reader *reader, GError **error);
/* Nothing but white space follows. */
bool json_reader_end(struct json_reader *reader, GError **error);

/* Sets a REFUSED error with name and position; always returns false. */
bool json_reader_refuse(const struct json_reader *reader, GError **error, const char *format, ...)
    G_GNUC_PRINTF(3, 4);

#endif
