/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "formats/uuid.h"

#include <string.h>

void uuid_random(uint8_t *uuid)
{
    g_autofree char *text = g_uuid_string_random();
    unsigned at = 0;

    for (const char *p = text; at < UUID_LENGTH; p += 2) {
        if (*p == '-')
            p++;
        uuid[at++] = g_ascii_xdigit_value(p[0]) << 4 | g_ascii_xdigit_value(p[1]);
    }
}

char *uuid_text(const uint8_t *uuid)
{
    GString *text = g_string_new(NULL);

    for (unsigned i = 0; i < UUID_LENGTH; i++)
        g_string_append_printf(text, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", uuid[i]);
    return g_string_free(text, FALSE);
}

bool uuid_is_zero(const uint8_t *uuid)
{
    static const uint8_t zero[UUID_LENGTH];

    return memcmp(uuid, zero, UUID_LENGTH) == 0;
}
