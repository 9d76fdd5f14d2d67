/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* GUIDs as VHDX stores them: 4, 2 and 2 bytes little endian, then 8 bytes as they are written. */
#include "formats/uuid.h"
#include "formats/vhdx.h"

#include <string.h>

/* Which byte of the file each pair of digits of the text is. */
static const uint8_t order[16] = {3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15};

const struct vhdx_guid vhdx_no_guid;
const struct vhdx_guid vhdx_bat_guid = {
    {0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0x00, 0x42, 0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08}};
const struct vhdx_guid vhdx_metadata_guid = {
    {0x06, 0xa2, 0x7c, 0x8b, 0x90, 0x47, 0x9a, 0x4b, 0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e}};

bool vhdx_guid_equal(const struct vhdx_guid *a, const struct vhdx_guid *b)
{
    return memcmp(a, b, sizeof *a) == 0;
}

bool vhdx_guid_is_zero(const struct vhdx_guid *guid)
{
    return vhdx_guid_equal(guid, &vhdx_no_guid);
}

static bool is_dash(unsigned pair)
{
    return pair == 4 || pair == 6 || pair == 8 || pair == 10;
}

bool vhdx_guid_parse(const char *text, struct vhdx_guid *guid)
{
    if (*text++ != '{')
        return false;
    for (unsigned i = 0; i < 16; i++) {
        if (is_dash(i) && *text++ != '-')
            return false;
        if (!g_ascii_isxdigit(text[0]) || !g_ascii_isxdigit(text[1]))
            return false;
        guid->bytes[order[i]] = g_ascii_xdigit_value(text[0]) << 4 | g_ascii_xdigit_value(text[1]);
        text += 2;
    }
    return strcmp(text, "}") == 0;
}

char *vhdx_guid_format(const struct vhdx_guid *guid)
{
    GString *text = g_string_new("{");

    for (unsigned i = 0; i < 16; i++)
        g_string_append_printf(text, "%s%02x", is_dash(i) ? "-" : "", guid->bytes[order[i]]);
    g_string_append_c(text, '}');
    return g_string_free(text, FALSE);
}

struct vhdx_guid vhdx_guid_random(void)
{
    struct vhdx_guid guid;
    uint8_t uuid[UUID_LENGTH];

    uuid_random(uuid);
    for (unsigned i = 0; i < UUID_LENGTH; i++)
        guid.bytes[order[i]] = uuid[i];
    return guid;
}
