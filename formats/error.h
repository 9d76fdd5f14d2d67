/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The one error domain of the project.  A code says which exit status the failure deserves. */
#ifndef FORMATS_ERROR_H
#define FORMATS_ERROR_H

#include <glib.h>

#define BLOCKMIG_ERROR blockmig_error_quark()
GQuark blockmig_error_quark(void);

enum blockmig_error {
    BLOCKMIG_ERROR_FAILED,      /* exit 1: the operation failed, the source is untouched */
    BLOCKMIG_ERROR_USAGE,       /* exit 2 */
    BLOCKMIG_ERROR_REFUSED,     /* exit 3: preflight, policy, lock or an invalid image; nothing changed */
    BLOCKMIG_ERROR_CANCELLED,   /* exit 4 */
    BLOCKMIG_ERROR_PARKED,      /* exit 5: stopped in order, resumable */
    BLOCKMIG_ERROR_DIFFERENT,   /* exit 6: verification found a difference, or bad ranges were salvaged */
    BLOCKMIG_ERROR_PARTIAL,     /* exit 7 */
    BLOCKMIG_ERROR_UNREACHABLE, /* exit 8 */
    BLOCKMIG_ERROR_UNCERTAIN,   /* exit 9 */
    BLOCKMIG_ERROR_IO,          /* exit 1: the medium failed (EIO); the message names the range */
    BLOCKMIG_ERROR_NOSPACE,     /* exit 5: ENOSPC or EDQUOT on the target, resumable after space is made */
};

/* Sets `error` to the formatted text.  Always returns FALSE, so that a caller can write `return
 * blockmig_fail(...)`. */
gboolean blockmig_fail(GError **error, enum blockmig_error code, const char *format, ...) G_GNUC_PRINTF(3, 4);

/* Sets `error` from an errno: ENOSPC and EDQUOT become NOSPACE, the rest IO.
 * The message is the formatted text, ": " and strerror(errnum).  Always returns FALSE, too. */
gboolean blockmig_set_errno(GError **error, int errnum, const char *format, ...) G_GNUC_PRINTF(3, 4);

#endif
