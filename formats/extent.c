/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "formats/extent.h"

const char *extent_status_name(enum extent_status status)
{
    static const char *const names[] = {
        [EXTENT_DATA] = "data",
        [EXTENT_ZERO] = "zero",
        [EXTENT_HOLE] = "hole",
        [EXTENT_PACKED] = "packed",
    };

    return status < G_N_ELEMENTS(names) ? names[status] : "unknown";
}
