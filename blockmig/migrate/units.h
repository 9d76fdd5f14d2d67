/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Sizes, rates and times as people write and read them.
 *
 * K, M, G, T, P and E are powers of 1024, with or without "iB"; bits are decimal, as networks count them.
 * All parsers give USAGE errors that quote the text, and leave the result alone.
 */
#ifndef BLOCKMIG_MIGRATE_UNITS_H
#define BLOCKMIG_MIGRATE_UNITS_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

/* "4096", "512KiB", "4G", "1.5T": bytes.  A fraction that is not a whole number of bytes is cut off. */
bool units_parse_size(const char *text, uint64_t *bytes, GError **error);
/* "100M", "100MiB/s", "1Gbit/s": bytes per second.  A unit is required, except for 0 (no limit). */
bool units_parse_rate(const char *text, uint64_t *bytes_per_second, GError **error);
/* "500ms", "5s", "2h", "1h30m", "1.5s": microseconds.  A unit is required, except for 0. */
bool units_parse_time(const char *text, int64_t *microseconds, GError **error);

/* "4.5 GiB", "512 bytes". Owned by the caller, as all of these. */
char *units_format_size(uint64_t bytes);
/* "4.5 GiB (4831838208 bytes)" */
char *units_format_size_exact(uint64_t bytes);
/* "913 MiB/s" */
char *units_format_rate(double bytes_per_second);
/* "18 ms", "3.4 s", "2 min 5 s", "1 h 12 min", "3 d 4 h" */
char *units_format_duration(int64_t microseconds);

#endif
