/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "formats/utf16.h"

#include "formats/error.h"

#include <string.h>

static void swap_units(void *bytes, size_t count, enum utf16_order order)
{
    guint16 *units = bytes;

    if (order == (G_BYTE_ORDER == G_BIG_ENDIAN ? UTF16_BIG : UTF16_LITTLE))
        return;
    for (size_t i = 0; i < count; i++)
        units[i] = GUINT16_SWAP_LE_BE(units[i]);
}

char *utf16_decode(const void *bytes, size_t length, enum utf16_order order, GError **error)
{
    g_autofree gunichar2 *units = g_malloc(length + 1); /* not NULL for an empty name */
    g_autoptr(GError) local = NULL;
    char *text;

    if (length % 2) {
        blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "a name in UTF-16 has an odd length: %zu bytes", length);
        return NULL;
    }
    if (length) /* `bytes` of an empty name may be NULL */
        memcpy(units, bytes, length);
    swap_units(units, length / 2, order);
    text = g_utf16_to_utf8(units, length / 2, NULL, NULL, &local);
    if (!text)
        blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "a name of %zu bytes is not UTF-16: %s", length,
                      local->message);
    return text;
}

GByteArray *utf16_encode(const char *text, enum utf16_order order, GError **error)
{
    g_autoptr(GError) local = NULL;
    glong count = 0;
    gunichar2 *units = g_utf8_to_utf16(text, -1, NULL, &count, &local);

    if (!units) {
        g_autofree char *shown = g_strescape(text, NULL);

        blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                      "the name \"%s\" is not UTF-8, and the format stores names as UTF-16", shown);
        return NULL;
    }
    swap_units(units, count, order);
    return g_byte_array_new_take((guint8 *)units, count * 2);
}
