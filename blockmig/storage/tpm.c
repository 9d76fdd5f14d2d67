/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/storage/tpm.h"

#include "blockmig/storage/names.h"

#include <glib.h>
#include <string.h>

const char *const tpm_files[] = {"tpm2/tpm2-00.permall",        "tpm2/tpm2-00.volatilestate",
                                 "tpm1.2/tpm-00.permall",       "tpm1.2/tpm-00.savestate",
                                 "tpm1.2/tpm-00.volatilestate", NULL};

const char *tpm_directory(void)
{
    const char *named = g_getenv("BLOCKMIG_TPM_DIRECTORY");

    return named && *named ? named : TPM_DIRECTORY;
}

bool tpm_is_name(const char *name)
{
    const char *slash = strchr(name, '/');
    g_autofree char *uuid = slash ? g_strndup(name, (gsize)(slash - name)) : NULL;

    return slash ? g_uuid_string_is_valid(uuid) && g_strv_contains(tpm_files, slash + 1)
                 : name_is_probe(name);
}
