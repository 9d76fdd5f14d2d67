/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "formats/error.h"

#include <errno.h>
#include <stdarg.h>

G_DEFINE_QUARK(blockmig - error - quark, blockmig_error)

gboolean blockmig_fail(GError **error, enum blockmig_error code, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    if (error)
        *error = g_error_new_valist(BLOCKMIG_ERROR, code, format, args);
    va_end(args);
    return FALSE;
}

gboolean blockmig_set_errno(GError **error, int errnum, const char *format, ...)
{
    g_autofree char *text = NULL;
    va_list args;

    va_start(args, format);
    text = g_strdup_vprintf(format, args);
    va_end(args);
    g_set_error(error, BLOCKMIG_ERROR,
                errnum == ENOSPC || errnum == EDQUOT ? BLOCKMIG_ERROR_NOSPACE : BLOCKMIG_ERROR_IO, "%s: %s",
                text, g_strerror(errnum));
    return FALSE;
}
