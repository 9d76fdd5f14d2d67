/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* File names as Windows' formats store them: UTF-16 in either byte order.  Ours are bytes, read as UTF-8. */
#ifndef FORMATS_UTF16_H
#define FORMATS_UTF16_H

#include <glib.h>
#include <stdbool.h>

enum utf16_order { UTF16_LITTLE, UTF16_BIG };

/* The text up to the first NUL or the end.  REFUSED error: an odd length or a lone surrogate. */
char *utf16_decode(const void *bytes, size_t length, enum utf16_order order, GError **error);
/* Without a NUL at the end.  REFUSED error: `text` is not UTF-8. */
GByteArray *utf16_encode(const char *text, enum utf16_order order, GError **error);

#endif
