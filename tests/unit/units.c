/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Sizes, rates and times: what is understood, what is refused, and how numbers are told. */
#include "blockmig/migrate/units.h"

#include "formats/error.h"

#include <string.h>

#define KIB UINT64_C(1024)
#define MIB (KIB * KIB)
#define GIB (KIB * MIB)
#define S   UINT64_C(1000000)

struct row {
    const char *text;
    uint64_t value;
    const char *refused; /* a part of the message; NULL: understood */
};

static const struct row sizes[] = {
    {"0", 0},
    {"1", 1},
    {"4096", 4096},
    {"4096B", 4096},
    {"512K", 512 * KIB},
    {"512KiB", 512 * KIB},
    {"512kib", 512 * KIB},
    {"4G", 4 * GIB},
    {"4g", 4 * GIB},
    {"4 GiB", 4 * GIB},
    {"4.5GiB", 4 * GIB + GIB / 2},
    {"0.1K", 102},
    {"2T", 2048 * GIB},
    {"3P", 3 * MIB *GIB},
    {"15E", 15 * GIB *GIB},
    {"15.999999999E", UINT64_C(18446744072556630111)},
    {"18446744073709551615", UINT64_MAX},
    {"18446744073709551616", 0, "too large"},
    {"99999999999999999999999", 0, "too large"},
    {"16E", 0, "too large"},
    {"16777216T", 0, "too large"},
    {"-1", 0, "negative"},
    {"+1", 0, "not a number"},
    {"", 0, "not a number"},
    {" ", 0, "not a number"},
    {"G", 0, "not a number"},
    {".5G", 0, "not a number"},
    {"5.G", 0, "digit"},
    {"1.5", 0, "fractions"},
    {"1.5B", 0, "fractions"},
    {"1.0000000001G", 0, "too many digits"},
    {"4GB", 0, "GiB"},
    {"4Gb", 0, "GiB"},
    {"4X", 0, "unknown unit 'X'"},
    {"4GG", 0, "unknown unit"},
    {"4G ", 0, "unknown unit"},
    {"4G 1M", 0, "unknown unit"},
    {"0x10", 0, "unknown unit"},
    {"1e3", 0, "unknown unit"},
    {"\xff", 0, "not a number"},
};

static const struct row rates[] = {
    {"100M", 100 * MIB},
    {"100MiB/s", 100 * MIB},
    {"100M/s", 100 * MIB},
    {"100mib/S", 100 * MIB},
    {"1.5 GiB/s", GIB + GIB / 2},
    {"512B/s", 512},
    {"1Gbit/s", 125000000},
    {"1Gbit", 125000000},
    {"10gbit/s", 1250000000},
    {"2.5Gbit/s", 312500000},
    {"1Kbit/s", 125},
    {"0", 0},
    {"0M", 0},
    {"100", 0, "100MiB/s (virsh counts MiB/s, rsync and qm KiB/s)"},
    {"1.5", 0, "needs a unit"},
    {"0.001B", 0, "less than one byte"},
    {"100MB/s", 0, "MiB"},
    {"100Mb/s", 0, "Mbit/s"},
    {"100Mbps", 0, "unknown unit"},
    {"100/s", 0, "unknown unit"},
    {"100M/h", 0, "unknown unit"},
    {"-5M", 0, "negative"},
    {"16E/s", 0, "too large"},
    {"fast", 0, "not a number"},
};

static const struct row times[] = {
    {"500ms", 500000},
    {"5s", 5 * S},
    {"2h", 7200 * S},
    {"1h30m", 5400 * S},
    {"1h 30min 5s", 5405 * S},
    {"1d", 86400 * S},
    {"1.5s", 1500000},
    {"0.5ms", 500},
    {"250us", 250},
    {"2M", 120 * S},
    {"0", 0},
    {"0.0", 0},
    {"0s", 0},
    {"5", 0, "needs a unit"},
    {"1h30", 0, "needs a unit"},
    {"1h0", 0, "needs a unit"},
    {"30m1h", 0, "largest first"},
    {"1m1min", 0, "largest first"},
    {"1min1m", 0, "largest first"},
    {"1s1s", 0, "largest first"},
    {"1w", 0, "use ms"},
    {"1h-30m", 0, "negative"},
    {"1h,30m", 0, "not a number"},
    {"-5s", 0, "negative"},
    {"s", 0, "not a number"},
    {"", 0, "not a number"},
    {"9223372036854775807us", INT64_MAX},
    {"9223372036854775808us", 0, "too large"},
    {"106751991d4h54s775808us", 0, "too large"},
};

static bool parse_time(const char *text, uint64_t *value, GError **error)
{
    int64_t time = (int64_t)*value;
    bool ok = units_parse_time(text, &time, error);
    *value = (uint64_t)time;
    return ok;
}

static void check_rows(const struct row *rows, size_t count,
                       bool (*parse)(const char *, uint64_t *, GError **))
{
    for (size_t i = 0; i < count; i++) {
        g_autoptr(GError) error = NULL;
        uint64_t value = 12345;
        bool ok = parse(rows[i].text, &value, &error);
        g_test_message("'%s': %s", rows[i].text, error ? error->message : "understood");
        g_assert_true(ok == !rows[i].refused);
        if (ok) {
            g_assert_no_error(error);
            g_assert_cmpuint(value, ==, rows[i].value);
        } else {
            g_assert_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE);
            g_assert_nonnull(strstr(error->message, rows[i].text));
            g_assert_nonnull(strstr(error->message, rows[i].refused));
            g_assert_cmpuint(value, ==, 12345);
        }
    }
}

static void test_sizes(void)
{
    check_rows(sizes, G_N_ELEMENTS(sizes), units_parse_size);
}

static void test_rates(void)
{
    check_rows(rates, G_N_ELEMENTS(rates), units_parse_rate);
}

static void test_times(void)
{
    check_rows(times, G_N_ELEMENTS(times), parse_time);
}

static void take(char *text, const char *expected)
{
    g_assert_cmpstr(text, ==, expected);
    g_free(text);
}

static void test_formats(void)
{
    take(units_format_size(0), "0 bytes");
    take(units_format_size(1), "1 byte");
    take(units_format_size(1023), "1023 bytes");
    take(units_format_size(1024), "1 KiB");
    take(units_format_size(MIB - 1), "1 MiB");
    take(units_format_size(4 * GIB + GIB / 2), "4.5 GiB");
    take(units_format_size(10 * GIB), "10 GiB");
    take(units_format_size(100 * GIB), "100 GiB");
    take(units_format_size(1000 * GIB), "1000 GiB");
    take(units_format_size(UINT64_MAX), "16 EiB");
    take(units_format_size(GIB + 1), "1 GiB");
    take(units_format_size_exact(4831838208), "4.5 GiB (4831838208 bytes)");
    take(units_format_size_exact(5), "5 bytes");
    take(units_format_rate(913.0 * (double)MIB), "913 MiB/s");
    take(units_format_rate(0), "0 bytes/s");
    take(units_format_rate(-1.0), "0 bytes/s");
    take(units_format_rate(1.5 * (double)GIB), "1.5 GiB/s");
    take(units_format_duration(0), "0 us");
    take(units_format_duration(999), "999 us");
    take(units_format_duration(3400), "3.4 ms");
    take(units_format_duration(18400), "18 ms");
    take(units_format_duration(999499), "999 ms");
    take(units_format_duration(999500), "1.0 s");
    take(units_format_duration(3400000), "3.4 s");
    take(units_format_duration(59949999), "59.9 s");
    take(units_format_duration(59950000), "1 min 0 s");
    take(units_format_duration(125 * (int64_t)S), "2 min 5 s");
    take(units_format_duration(4320 * (int64_t)S), "1 h 12 min");
    take(units_format_duration((3 * 86400 + 4 * 3600) * (int64_t)S), "3 d 4 h");
    take(units_format_duration(-5), "0 us");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/units/sizes", test_sizes);
    g_test_add_func("/units/rates", test_rates);
    g_test_add_func("/units/times", test_times);
    g_test_add_func("/units/formats", test_formats);
    return g_test_run();
}
