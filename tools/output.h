/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the subcommands print with: messages, text that is safe on a terminal, JSON. */
#ifndef TOOLS_OUTPUT_H
#define TOOLS_OUTPUT_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/* "blockmig: TEXT" on standard error. */
void output_message(const char *format, ...) G_GNUC_PRINTF(1, 2);

/* Names may come from an image or another user: control characters and bytes that are not UTF-8 become
 * \xNN. Owned by the caller. */
char *output_printable(const char *text);

/* "KEY      VALUE" on standard output; the value may come from anywhere. */
void output_pair(const char *key, const char *format, ...) G_GNUC_PRINTF(2, 3);

/* A JSON string of any bytes (output_printable); null for NULL. */
json_t *output_json_string(const char *text);
/* RFC 3339, UTC, seconds; null for 0. `time` is microseconds since the epoch. */
json_t *output_json_time(int64_t time);
/* Rounded to milliseconds. */
json_t *output_json_seconds(double seconds);
json_t *output_json_strings(GPtrArray *strings); /* of char *; NULL: empty */

/* Of struct copy_range: objects with offset and length; NULL: empty. */
json_t *output_json_ranges(const GArray *ranges);

/* Prints the object (and releases it) as the one result on standard output, and in it how this process is
 * confined. */
bool output_json(json_t *object, GError **error);
/* One that is printed by other means, piece by piece, counts as well. */
void output_json_begun(void);
/* Whether there was one: a failure prints one, too. */
bool output_json_printed(void);
/* Standard output has really been written. */
bool output_flush(GError **error);

#endif
