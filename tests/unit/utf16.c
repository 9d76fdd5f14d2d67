/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "formats/utf16.h"

#include "tests/unit/harness.h"

static void decodes(const char *bytes, size_t length, enum utf16_order order, const char *expected)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *text = utf16_decode(bytes, length, order, &error);

    if (expected)
        g_assert_no_error(error);
    else
        g_assert_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED);
    g_assert_cmpstr(text, ==, expected);
}

static void test_decode(void)
{
    decodes("a\0\\\0", 4, UTF16_LITTLE, "a\\");
    decodes("\0a\0\xe9", 4, UTF16_BIG, "a\xc3\xa9");
    decodes("\xd8\x3d\xde\x00", 4, UTF16_BIG, "\xf0\x9f\x98\x80");
    decodes("a\0\0\0b\0", 6, UTF16_LITTLE, "a"); /* padding */
    decodes("", 0, UTF16_LITTLE, "");
    decodes("a\0b", 3, UTF16_LITTLE, NULL);
    decodes("\x3d\xd8", 2, UTF16_LITTLE, NULL);
    decodes("\x00\xde"
            "a\0",
            4, UTF16_LITTLE, NULL);
}

static void test_encode(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GByteArray) little = utf16_encode("a\xc3\xa9", UTF16_LITTLE, &error);
    g_autoptr(GByteArray) big = utf16_encode("\xf0\x9f\x98\x80", UTF16_BIG, &error);

    g_assert_no_error(error);
    g_assert_cmpmem(little->data, little->len, "a\0\xe9\0", 4);
    g_assert_cmpmem(big->data, big->len, "\xd8\x3d\xde\x00", 4);
    g_assert_null(utf16_encode("\xff", UTF16_LITTLE, &error));
    g_assert_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/utf16/decode", test_decode);
    g_test_add_func("/utf16/encode", test_encode);
    return g_test_run();
}
