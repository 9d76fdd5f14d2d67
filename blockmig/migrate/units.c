/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/migrate/units.h"

#include "formats/error.h"

#include <string.h>

/* Enough for any unit here: 10^9 fractions of an EiB are smaller than a rounding of its prints. */
#define FRACTION_DIGITS 9

struct unit {
    const char *name;
    uint64_t scale;
};

static const struct unit size_units[] = {
    {"B", 1},
    {"K", UINT64_C(1) << 10},
    {"KiB", UINT64_C(1) << 10},
    {"M", UINT64_C(1) << 20},
    {"MiB", UINT64_C(1) << 20},
    {"G", UINT64_C(1) << 30},
    {"GiB", UINT64_C(1) << 30},
    {"T", UINT64_C(1) << 40},
    {"TiB", UINT64_C(1) << 40},
    {"P", UINT64_C(1) << 50},
    {"PiB", UINT64_C(1) << 50},
    {"E", UINT64_C(1) << 60},
    {"EiB", UINT64_C(1) << 60},
    {NULL},
};

/* In bytes: a kilobit is 125 of them. */
static const struct unit bit_units[] = {
    {"Kbit", UINT64_C(125)},
    {"Mbit", UINT64_C(125000)},
    {"Gbit", UINT64_C(125000000)},
    {"Tbit", UINT64_C(125000000000)},
    {NULL},
};

/* Largest first: the parts of "1h30m" stand in this order. */
static const struct unit time_units[] = {
    {"d", UINT64_C(86400000000)}, {"h", UINT64_C(3600000000)},
    {"min", UINT64_C(60000000)},  {"m", UINT64_C(60000000)},
    {"s", UINT64_C(1000000)},     {"ms", UINT64_C(1000)},
    {"us", UINT64_C(1)},          {NULL},
};

struct number {
    uint64_t whole;
    uint64_t fraction; /* of 10^FRACTION_DIGITS */
    bool fractional;
};

static bool refuse(const char *text, const char *why, GError **error)
{
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE, "'%s': %s", text, why);
    return false;
}

static const char *skip_spaces(const char *at)
{
    while (*at == ' ')
        at++;
    return at;
}

static bool parse_fraction(const char *text, const char **at, struct number *number, GError **error)
{
    unsigned digits = 0;
    number->fractional = true;
    for (; g_ascii_isdigit(**at); (*at)++, digits++)
        if (digits < FRACTION_DIGITS)
            number->fraction = number->fraction * 10 + (uint64_t)(**at - '0');
    if (digits == 0 || digits > FRACTION_DIGITS)
        return refuse(text, digits ? "too many digits" : "a digit must follow the point", error);
    for (; digits < FRACTION_DIGITS; digits++)
        number->fraction *= 10;
    return true;
}

/* Reads a number at *at, which lies in `text`, and moves *at behind it. */
static bool parse_number(const char *text, const char **at, struct number *number, GError **error)
{
    *number = (struct number){0};
    if (**at == '-')
        return refuse(text, "must not be negative", error);
    if (!g_ascii_isdigit(**at))
        return refuse(text, "not a number", error);
    for (; g_ascii_isdigit(**at); (*at)++)
        if (__builtin_mul_overflow(number->whole, 10, &number->whole) ||
            __builtin_add_overflow(number->whole, (uint64_t)(**at - '0'), &number->whole))
            return refuse(text, "too large", error);
    if (**at != '.')
        return true;
    (*at)++;
    return parse_fraction(text, at, number, error);
}

/* The unit of exactly `length` characters at `name`, in either case. */
static const struct unit *find_unit(const struct unit *units, const char *name, size_t length)
{
    for (const struct unit *unit = units; unit->name; unit++)
        if (strlen(unit->name) == length && g_ascii_strncasecmp(unit->name, name, length) == 0)
            return unit;
    return NULL;
}

/* number * scale, at most `max`, cut off to a whole. */
static bool scale_number(const char *text, const struct number *number, uint64_t scale, uint64_t max,
                         uint64_t *result, GError **error)
{
    const uint64_t one = UINT64_C(1000000000);
    unsigned __int128 value = (unsigned __int128)number->whole * scale;
    value += (unsigned __int128)number->fraction * scale / one;
    if (value > max)
        return refuse(text, "too large", error);
    *result = (uint64_t)value;
    return true;
}

static bool refuse_unit(const char *text, const char *unit, const char *use, GError **error)
{
    /* Half of the world means 1000 by KB, the other half 1024. */
    if (strlen(unit) == 2 && strchr("KMGTPEkmgtpe", unit[0]) && g_ascii_tolower(unit[1]) == 'b') {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE,
                    "'%s': %s may mean 1000s, 1024s or bits; say %ciB (1024) or, for rates, %cbit/s", text,
                    unit, g_ascii_toupper(unit[0]), g_ascii_toupper(unit[0]));
        return false;
    }
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE, "'%s': unknown unit '%s'; use %s", text, unit,
                use);
    return false;
}

bool units_parse_size(const char *text, uint64_t *bytes, GError **error)
{
    const char *at = skip_spaces(text);
    struct number number;
    if (!parse_number(text, &at, &number, error))
        return false;
    at = skip_spaces(at);
    const struct unit *unit = find_unit(size_units, *at ? at : "B", *at ? strlen(at) : 1);
    if (!unit)
        return refuse_unit(text, at, "B, KiB, MiB, GiB, TiB or PiB", error);
    if (number.fractional && unit->scale == 1)
        return refuse(text, "there are no fractions of a byte", error);
    return scale_number(text, &number, unit->scale, UINT64_MAX, bytes, error);
}

bool units_parse_rate(const char *text, uint64_t *bytes_per_second, GError **error)
{
    const char *at = skip_spaces(text);
    struct number number;
    if (!parse_number(text, &at, &number, error))
        return false;
    at = skip_spaces(at);
    if (!*at && (number.whole || number.fraction)) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE,
                    "'%s': a rate needs a unit; say %sMiB/s (virsh counts MiB/s, rsync and qm KiB/s)", text,
                    text);
        return false;
    }
    g_autofree char *name = g_strdup(*at ? at : "B");
    if (strlen(name) > 2 && g_ascii_strcasecmp(name + strlen(name) - 2, "/s") == 0)
        name[strlen(name) - 2] = '\0';
    const struct unit *unit = find_unit(size_units, name, strlen(name));
    if (!unit)
        unit = find_unit(bit_units, name, strlen(name));
    if (!unit)
        return refuse_unit(text, name, "KiB/s, MiB/s, GiB/s, Mbit/s or Gbit/s", error);
    uint64_t rate = 0;
    if (!scale_number(text, &number, unit->scale, UINT64_MAX, &rate, error))
        return false;
    /* 0 means no limit: a tiny rate must not become that. */
    if (rate == 0 && (number.whole || number.fraction))
        return refuse(text, "less than one byte per second", error);
    *bytes_per_second = rate;
    return true;
}

bool units_parse_time(const char *text, int64_t *microseconds, GError **error)
{
    const char *at = skip_spaces(text);
    const struct unit *allowed = time_units;
    uint64_t total = 0;
    do {
        struct number number;
        uint64_t part = 0;
        if (!parse_number(text, &at, &number, error))
            return false;
        at = skip_spaces(at);
        if (!*at && allowed == time_units && !number.whole && !number.fraction)
            break; /* a plain 0 */
        if (!*at)
            return refuse(text, "a time needs a unit: ms, s, m, h or d", error);
        size_t length = strspn(at, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ");
        const struct unit *unit = find_unit(allowed, at, length);
        if (!unit)
            return refuse(text, "use ms, s, m (minutes), h or d, the largest first", error);
        if (!scale_number(text, &number, unit->scale, INT64_MAX - total, &part, error))
            return false;
        total += part;
        at = skip_spaces(at + length);
        /* "min" and "m" are one unit: neither may follow the other. */
        allowed = unit + 1;
        if (allowed->name && allowed->scale == unit->scale)
            allowed++;
    } while (*at);
    *microseconds = (int64_t)total;
    return true;
}

/* Three significant digits, or the whole number of four, as "4.5", "18.2", "913", "1023". */
static char *format_scaled(double value)
{
    if (value < 9.95)
        return g_strdup_printf("%.2f", value);
    if (value < 99.5)
        return g_strdup_printf("%.1f", value);
    return g_strdup_printf("%.0f", value);
}

static char *format_binary(double value, const char *suffix)
{
    static const char *const names[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    unsigned i = 0;
    for (value /= 1024; value >= 1023.5 && i + 1 < G_N_ELEMENTS(names); i++)
        value /= 1024;
    g_autofree char *digits = format_scaled(value);
    /* "4.50" says no more than "4.5". */
    if (strchr(digits, '.')) {
        for (size_t n = strlen(digits); digits[n - 1] == '0'; n--)
            digits[n - 1] = '\0';
        if (digits[strlen(digits) - 1] == '.')
            digits[strlen(digits) - 1] = '\0';
    }
    return g_strdup_printf("%s %s%s", digits, names[i], suffix);
}

char *units_format_size(uint64_t bytes)
{
    if (bytes < 1024)
        return g_strdup_printf("%" G_GUINT64_FORMAT " byte%s", bytes, bytes == 1 ? "" : "s");
    return format_binary((double)bytes, "");
}

char *units_format_size_exact(uint64_t bytes)
{
    g_autofree char *human = units_format_size(bytes);
    return bytes < 1024 ? g_steal_pointer(&human)
                        : g_strdup_printf("%s (%" G_GUINT64_FORMAT " bytes)", human, bytes);
}

char *units_format_rate(double bytes_per_second)
{
    if (!(bytes_per_second >= 1023.5))
        return g_strdup_printf("%.0f bytes/s", bytes_per_second > 0 ? bytes_per_second : 0);
    return format_binary(bytes_per_second, "/s");
}

char *units_format_duration(int64_t microseconds)
{
    int64_t us = MAX(microseconds, 0);
    if (us < 1000)
        return g_strdup_printf("%d us", (int)us);
    if (us < 999500)
        return g_strdup_printf(us < 9950 ? "%.1f ms" : "%.0f ms", (double)us / 1e3);
    if (us < 59950000)
        return g_strdup_printf("%.1f s", (double)us / 1e6);
    int64_t seconds = us / G_USEC_PER_SEC + (us % G_USEC_PER_SEC >= G_USEC_PER_SEC / 2);
    if (seconds < 3600)
        return g_strdup_printf("%d min %d s", (int)(seconds / 60), (int)(seconds % 60));
    int64_t minutes = seconds / 60;
    if (minutes < 24 * 60)
        return g_strdup_printf("%d h %d min", (int)(minutes / 60), (int)(minutes % 60));
    return g_strdup_printf("%" G_GINT64_FORMAT " d %d h", minutes / (24 * 60), (int)(minutes / 60 % 24));
}
