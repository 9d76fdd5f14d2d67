/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "formats/crc32c.h"

#include <glib.h>

#define POLYNOMIAL 0x82f63b78u

/* One table per byte of a word: eight bytes are folded at a time. */
static uint32_t tables[8][256];

static void make_tables(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;

        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? crc >> 1 ^ POLYNOMIAL : crc >> 1;
        tables[0][i] = crc;
    }
    for (uint32_t i = 0; i < 256; i++) {
        for (int t = 1; t < 8; t++)
            tables[t][i] = tables[t - 1][i] >> 8 ^ tables[0][tables[t - 1][i] & 0xff];
    }
}

static uint32_t fold(uint64_t word)
{
    uint32_t crc = 0;

    for (int t = 0; t < 8; t++)
        crc ^= tables[7 - t][word >> (8 * t) & 0xff];
    return crc;
}

uint32_t crc32c(uint32_t crc, const void *bytes, size_t length)
{
    static gsize once;
    const uint8_t *p = bytes;

    if (g_once_init_enter(&once)) {
        make_tables();
        g_once_init_leave(&once, 1);
    }
    crc = ~crc;
    for (; length >= 8; p += 8, length -= 8) {
        uint64_t word;

        __builtin_memcpy(&word, p, 8);
        crc = fold(GUINT64_FROM_LE(word) ^ crc);
    }
    for (; length > 0; p++, length--)
        crc = crc >> 8 ^ tables[0][(crc ^ *p) & 0xff];
    return ~crc;
}
