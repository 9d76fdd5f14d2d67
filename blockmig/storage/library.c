/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/storage/library.h"

#include "formats/error.h"

#include <dlfcn.h>

bool library_load(const char *const *files, const struct library_symbol *symbols, GError **error)
{
    void *library = NULL;

    for (const char *const *file = files; *file && !library; file++)
        library = dlopen(*file, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "loading a library: %s", dlerror());
    for (const struct library_symbol *symbol = symbols; symbol->name; symbol++)
        if (!(*symbol->address = dlsym(library, symbol->name)))
            return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s: %s", *files, dlerror());
    return true;
}
