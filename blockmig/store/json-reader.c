/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/store/json-reader.h"

#include "formats/error.h"

#include <errno.h>
#include <string.h>

#define MAX_DEPTH 32
#define MAX_KEY   64

void json_reader_init(struct json_reader *reader, FILE *file, const char *name)
{
    *reader = (struct json_reader){.file = file, .name = name, .text = g_string_new(NULL)};
}

void json_reader_clear(struct json_reader *reader)
{
    g_string_free(reader->text, TRUE);
}

bool json_reader_refuse(const struct json_reader *reader, GError **error, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *what = g_strdup_vprintf(format, args);
    va_end(args);
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED, "%s: byte %" G_GUINT64_FORMAT ": %s",
                reader->name, reader->position, what);
    return false;
}

static int next(struct json_reader *reader)
{
    int c = getc_unlocked(reader->file);
    if (c != EOF)
        reader->position++;
    return c;
}

static void put_back(struct json_reader *reader, int c)
{
    if (c == EOF)
        return;
    ungetc(c, reader->file);
    reader->position--;
}

static int next_visible(struct json_reader *reader)
{
    int c;
    do
        c = next(reader);
    while (c == ' ' || c == '\t' || c == '\n' || c == '\r');
    return c;
}

static int peek_visible(struct json_reader *reader)
{
    int c = next_visible(reader);
    put_back(reader, c);
    return c;
}

static bool refuse_character(struct json_reader *reader, int c, const char *expected, GError **error)
{
    if (c == EOF && ferror(reader->file))
        return blockmig_set_errno(error, errno, "%s", reader->name);
    if (c == EOF)
        return json_reader_refuse(reader, error, "ends where %s should be", expected);
    if (c > ' ' && c < 127)
        return json_reader_refuse(reader, error, "'%c' where %s should be", c, expected);
    return json_reader_refuse(reader, error, "byte 0x%02x where %s should be", (unsigned)c, expected);
}

static bool expect(struct json_reader *reader, char wanted, GError **error)
{
    const char name[] = {'\'', wanted, '\'', '\0'};
    int c = next_visible(reader);
    return c == wanted ? true : refuse_character(reader, c, name, error);
}

bool json_reader_open(struct json_reader *reader, char bracket, GError **error)
{
    return expect(reader, bracket, error);
}

/* Before each item of a container: its end, or a comma unless it is the first. */
static bool item(struct json_reader *reader, char closing, bool *first, bool *more, GError **error)
{
    int c = next_visible(reader);
    *more = c != closing;
    if (!*more)
        return true;
    if (*first)
        put_back(reader, c);
    else if (c != ',')
        return refuse_character(reader, c, closing == '}' ? "',' or '}'" : "',' or ']'", error);
    *first = false;
    return true;
}

bool json_reader_element(struct json_reader *reader, bool *first, bool *more, GError **error)
{
    return item(reader, ']', first, more, error);
}

bool json_reader_member(struct json_reader *reader, bool *first, const char **key, GError **error)
{
    bool more = false;
    *key = NULL;
    if (!item(reader, '}', first, &more, error))
        return false;
    return !more || (json_reader_string(reader, MAX_KEY, key, error) && expect(reader, ':', error));
}

static bool hex4(struct json_reader *reader, uint32_t *value, GError **error)
{
    *value = 0;
    for (unsigned i = 0; i < 4; i++) {
        int c = next(reader);
        int digit = c == EOF ? -1 : g_ascii_xdigit_value((char)c);
        if (digit < 0)
            return refuse_character(reader, c, "a hexadecimal digit", error);
        *value = *value << 4 | (uint32_t)digit;
    }
    return true;
}

/* After "\u": one UTF-16 unit, or two that are a pair. */
static bool unicode_escape(struct json_reader *reader, GError **error)
{
    uint32_t code = 0, low = 0;
    if (!hex4(reader, &code, error))
        return false;
    if (code >= 0xd800 && code < 0xdc00) {
        if (next(reader) != '\\' || next(reader) != 'u')
            return json_reader_refuse(reader, error, "half a surrogate pair");
        if (!hex4(reader, &low, error))
            return false;
        if (low < 0xdc00 || low > 0xdfff)
            return json_reader_refuse(reader, error, "half a surrogate pair");
        code = 0x10000 + ((code - 0xd800) << 10 | (low - 0xdc00));
    } else if (code == 0 || (code >= 0xdc00 && code <= 0xdfff)) {
        return json_reader_refuse(reader, error, "\\u%04x in a string", code);
    }
    g_string_append_unichar(reader->text, code);
    return true;
}

static bool escape(struct json_reader *reader, GError **error)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    int c = next(reader);
    if (c == 'u')
        return unicode_escape(reader, error);
    const char *at = c > 0 ? strchr(from, c) : NULL;
    if (!at)
        return refuse_character(reader, c, "an escape", error);
    g_string_append_c(reader->text, to[at - from]);
    return true;
}

/* Reads the rest of a string whose first quote is consumed into reader->text. */
static bool string_body(struct json_reader *reader, size_t max, GError **error)
{
    g_string_truncate(reader->text, 0);
    for (;;) {
        int c = next(reader);
        if (c == '"')
            break;
        if (c < ' ') /* EOF included */
            return refuse_character(reader, c, "a character of a string", error);
        if (c != '\\')
            g_string_append_c(reader->text, (char)c);
        else if (!escape(reader, error))
            return false;
        if (reader->text->len > max)
            return json_reader_refuse(reader, error, "a string of more than %zu bytes", max);
    }
    if (!g_utf8_validate(reader->text->str, (gssize)reader->text->len, NULL))
        return json_reader_refuse(reader, error, "a string that is not UTF-8");
    return true;
}

bool json_reader_string(struct json_reader *reader, size_t max, const char **text, GError **error)
{
    int c = next_visible(reader);
    if (c != '"')
        return refuse_character(reader, c, "a string", error);
    if (!string_body(reader, max, error))
        return false;
    *text = reader->text->str;
    return true;
}

static bool word(struct json_reader *reader, const char *expected, GError **error)
{
    for (const char *at = expected; *at; at++) {
        int c = at == expected ? next_visible(reader) : next(reader);
        if (c != *at)
            return refuse_character(reader, c, expected, error);
    }
    return true;
}

bool json_reader_string_or_null(struct json_reader *reader, size_t max, const char **text, GError **error)
{
    if (peek_visible(reader) != 'n')
        return json_reader_string(reader, max, text, error);
    *text = NULL;
    return word(reader, "null", error);
}

bool json_reader_bool(struct json_reader *reader, bool *value, GError **error)
{
    *value = peek_visible(reader) == 't';
    return word(reader, *value ? "true" : "false", error);
}

bool json_reader_number(struct json_reader *reader, uint64_t *number, GError **error)
{
    int c = next_visible(reader);
    if (!g_ascii_isdigit(c))
        return refuse_character(reader, c, "a whole number", error);
    uint64_t value = 0;
    bool leading_zero = c == '0';
    for (unsigned digits = 1; g_ascii_isdigit(c); c = next(reader), digits++) {
        if (leading_zero && digits > 1)
            return json_reader_refuse(reader, error, "a number with a leading zero");
        if (__builtin_mul_overflow(value, 10, &value) ||
            __builtin_add_overflow(value, (uint64_t)(c - '0'), &value))
            return json_reader_refuse(reader, error, "a number beyond 64 bits");
    }
    if (c == '.' || c == 'e' || c == 'E')
        return json_reader_refuse(reader, error, "a number that is not whole");
    put_back(reader, c);
    *number = value;
    return true;
}

static bool skip_value(struct json_reader *reader, unsigned depth, GError **error);

static bool skip_string(struct json_reader *reader, GError **error)
{
    for (int c = next_visible(reader); (c = next(reader)) != '"';) {
        if (c == '\\')
            c = next(reader);
        if (c < ' ')
            return refuse_character(reader, c, "a character of a string", error);
    }
    return true;
}

/* Numbers that a later schema may use: signs, fractions, exponents. */
static bool skip_number(struct json_reader *reader, GError **error)
{
    int c = next_visible(reader);
    if (!g_ascii_isdigit(c) && c != '-')
        return refuse_character(reader, c, "a value", error);
    while (g_ascii_isdigit(c) || (c > 0 && strchr("+-.eE", c)))
        c = next(reader);
    put_back(reader, c);
    return true;
}

static bool skip_container(struct json_reader *reader, bool object, unsigned depth, GError **error)
{
    if (depth >= MAX_DEPTH)
        return json_reader_refuse(reader, error, "more than %u levels", MAX_DEPTH);
    next_visible(reader);
    for (bool first = true, more = true;;) {
        if (!item(reader, object ? '}' : ']', &first, &more, error))
            return false;
        if (!more)
            return true;
        if (object && !(peek_visible(reader) == '"' ? skip_string(reader, error) && expect(reader, ':', error)
                                                    : expect(reader, '"', error)))
            return false;
        if (!skip_value(reader, depth + 1, error))
            return false;
    }
}

static bool skip_value(struct json_reader *reader, unsigned depth, GError **error)
{
    switch (peek_visible(reader)) {
    case '{':
        return skip_container(reader, true, depth, error);
    case '[':
        return skip_container(reader, false, depth, error);
    case '"':
        return skip_string(reader, error);
    case 't':
        return word(reader, "true", error);
    case 'f':
        return word(reader, "false", error);
    case 'n':
        return word(reader, "null", error);
    default:
        return skip_number(reader, error);
    }
}

bool json_reader_skip(struct json_reader *reader, GError **error)
{
    return skip_value(reader, 0, error);
}

bool json_reader_end(struct json_reader *reader, GError **error)
{
    int c = next_visible(reader);
    if (c == EOF && !ferror(reader->file))
        return true;
    return refuse_character(reader, c, "the end", error);
}
