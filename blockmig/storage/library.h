/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Libraries that few commands need are loaded when they are needed: linked, libcurl and libvirt would bring
 * dozens of others with them into every start of the program.
 */
#ifndef BLOCKMIG_STORAGE_LIBRARY_H
#define BLOCKMIG_STORAGE_LIBRARY_H

#include <glib.h>
#include <stdbool.h>

struct library_symbol {
    const char *name;
    void **address; /* where its address goes */
};

/* Loads the first of `files` (NULL-terminated) that is there, and finds `symbols` (the last has no name) in
 * it. It stays to the end of the process.  REFUSED. */
bool library_load(const char *const *files, const struct library_symbol *symbols, GError **error);

#endif
