/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/storage/host.h"

#include <glib.h>

static gpointer read_boot_id(gpointer unused)
{
    char *text = NULL;

    if (!g_file_get_contents("/proc/sys/kernel/random/boot_id", &text, NULL, NULL))
        return g_strdup("unknown");
    return g_strstrip(text);
}

const char *host_boot_id(void)
{
    static GOnce once = G_ONCE_INIT;

    return g_once(&once, read_boot_id, NULL);
}
