/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tools/output.h"

#include "blockmig/copy/copy.h"
#include "blockmig/storage/sandbox.h"
#include "formats/error.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

void output_message(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    g_autofree char *text = g_strdup_vprintf(format, arguments);
    va_end(arguments);
    g_autofree char *printable = output_printable(text);
    fprintf(stderr, "blockmig: %s\n", printable);
}

char *output_printable(const char *text)
{
    GString *out = g_string_new(NULL);
    while (*text) {
        gunichar c = g_utf8_get_char_validated(text, -1);
        bool valid = c != (gunichar)-1 && c != (gunichar)-2;
        if (!valid || g_unichar_iscntrl(c)) {
            g_string_append_printf(out, "\\x%02x", (unsigned char)*text++);
            continue;
        }
        g_string_append_unichar(out, c);
        text = g_utf8_next_char(text);
    }
    return g_string_free(out, FALSE);
}

void output_pair(const char *key, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    g_autofree char *text = g_strdup_vprintf(format, arguments);
    va_end(arguments);
    g_autofree char *printable = output_printable(text);
    printf("%-16s  %s\n", key, printable);
}

json_t *output_json_string(const char *text)
{
    if (!text)
        return json_null();
    g_autofree char *printable = output_printable(text);
    return json_string(printable);
}

json_t *output_json_time(int64_t time)
{
    if (time == 0)
        return json_null();
    g_autoptr(GDateTime) utc = g_date_time_new_from_unix_utc(time / G_USEC_PER_SEC);
    if (!utc)
        return json_null();
    g_autofree char *text = g_date_time_format(utc, "%Y-%m-%dT%H:%M:%SZ");
    return json_string(text);
}

json_t *output_json_seconds(double seconds)
{
    return json_real(round(seconds * 1000) / 1000);
}

json_t *output_json_strings(GPtrArray *strings)
{
    json_t *array = json_array();
    for (guint i = 0; strings && i < strings->len; i++)
        json_array_append_new(array, output_json_string(strings->pdata[i]));
    return array;
}

json_t *output_json_ranges(const GArray *ranges)
{
    json_t *array = json_array();
    for (guint i = 0; ranges && i < ranges->len; i++) {
        const struct copy_range *range = &g_array_index(ranges, struct copy_range, i);
        json_array_append_new(array, json_pack("{s:I, s:I}", "offset", (json_int_t)range->offset, "length",
                                               (json_int_t)range->length));
    }
    return array;
}

static bool object_printed;

void output_json_begun(void)
{
    object_printed = true;
}

bool output_json_printed(void)
{
    return object_printed;
}

bool output_json(json_t *object, GError **error)
{
    output_json_begun();
    json_object_set_new(object, "sandbox", json_string(sandbox_name()));
    /* 15 digits print 12.3 as 12.3; an unwritable stdout is told by output_flush(). */
    json_dumpf(object, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(15));
    putchar('\n');
    json_decref(object);
    return output_flush(error);
}

bool output_flush(GError **error)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return true;
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED, "standard output: %s", g_strerror(errno));
    return false;
}
