/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Storages by name: a path of this host, or a URI, whose scheme says who opens it.
 *
 * A URI names an object that exists already, as large as it is: it is written in place, as a device is.  But
 * where its scheme has names (names.h), it names a file.
 */
#ifndef BLOCKMIG_STORAGE_URI_H
#define BLOCKMIG_STORAGE_URI_H

#include "blockmig/storage/bitmap.h"
#include "formats/storage.h"

struct name_ops;

/* One line for each scheme, in uri.c. */
struct uri_scheme {
    const char *name; /* what stands before "://" */
    /* `flags` of enum file_flags, of which FILE_WRITE and FILE_MODEST count.  The storage's name is the URI,
     * without a password if one may stand in it; errors do not name it. */
    struct storage *(*open)(const char *uri, unsigned flags, GError **error);
    /* Optional: always. */
    bool (*takes_another)(const char *uri, GError **error);
    /* Optional: there are no bitmaps. */
    bool (*read_bitmap)(const char *uri, const char *bitmap, const struct bitmap_reader *reader,
                        GError **error);
    /* Optional: it names one object, which is there already. */
    const struct name_ops *names;
};

/* Opens what the user named: a URI by its scheme, everything else as storage_file_open(). With `roots` the
 * name comes from inside an image: then it is always a file's. */
struct storage *storage_open(const char *name, unsigned flags, const char *const *roots, char **real_path,
                             GError **error);
/* The chain_policy.open callback, as storage_file_open_for_chain(). */
struct storage *storage_open_for_chain(void *opaque, const char *name, const char *const *roots,
                                       bool writable, char **real_path, GError **error);

/* Would whoever serves this URI serve one more client, a machine, beside those that are there? */
bool storage_takes_another(const char *uri, GError **error);

/* Tells `reader` what is dirty in the bitmap called `bitmap`.  USAGE if nothing of that kind has bitmaps,
 * REFUSED if this one has not that bitmap, UNREACHABLE.  After an error, what was told is not all. */
bool storage_read_bitmap(const char *name, const char *bitmap, const struct bitmap_reader *reader,
                         GError **error);

/* NULL: there are none, which is no error, or the scheme is not known. */
const struct name_ops *storage_uri_names(const char *uri, GError **error);

/* What a file for this object would be called: the last part of a path; "disk" where a URI has none.  The
 * caller's. */
char *storage_base_name(const char *name);
/* The chain_policy.beside callback: of files in an agent's datastores. */
char *storage_name_beside(const char *uri, const char *name);
/* The URI without its password, for messages; a path as it is.  The caller's. */
char *storage_shown_name(const char *name);
/* A name that means the same from any directory.  The caller's. */
char *storage_absolute_name(const char *name);

#endif
