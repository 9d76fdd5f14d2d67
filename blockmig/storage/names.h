/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Files by their names, wherever they are: a path of this host, or a URI of an agent's datastore.
 * storage_open() with FILE_CREATE makes them.
 */
#ifndef BLOCKMIG_STORAGE_NAMES_H
#define BLOCKMIG_STORAGE_NAMES_H

#include "formats/storage.h"

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#define NAME_IDENTITY 384 /* bytes, with the NUL */

enum name_kind { NAME_FREE, NAME_FILE, NAME_DIRECTORY, NAME_OTHER };

struct name_info {
#define NAME_IDENTITY 384 /* bytes, with the NUL */

    enum name_kind kind;
    uint64_t size, allocated;     /* bytes, of a file */
    bool single;                  /* a file that has no second name */
    char identity[NAME_IDENTITY]; /* of a file: equal to that of a storage on it */
};

/* How files of one kind of name are asked for; each as the function below that has its name. */
struct name_ops {
    bool (*look)(const char *name, struct name_info *info, GError **error);
    bool (*remove)(const char *name, GError **error);
    bool (*take)(const char *from, const char *to, const char *replaces, bool *taken, GError **error);
    bool (*room)(const char *directory, uint64_t *available, GError **error);
};

/* Are there files behind names like this one, that can be made, removed and renamed?  A path: yes.  A URI
 * that names one object, which is there already, as a device is: no. */
bool name_has_files(const char *name);
/* What has the name? Links are not followed. */
bool name_look(const char *name, struct name_info *info, GError **error);
/* Of a file or directory of that name: one word that it keeps as long as it is there, also if its device gets
 * another number, and that another one of this name hardly has; the caller's. */
char *name_life(const char *name, GError **error);
/* A file that can be written into without surprises: a link is none, nor one with a second name. */
bool name_is_plain(const struct name_info *info);
/* Is it plain, and the file that `storage` is on? */
bool name_is_of(const struct name_info *info, const struct storage *storage);
/* Is there anything of that name?  Who cannot be asked is taken to have nothing. */
bool name_exists(const char *name);
/* Is deleting the source a thing that can be done?  REFUSED: the path is that of a block device, of which
 * only the name would go. */
bool name_check_deletable(const char *path, GError **error);
/* One that nobody guesses, for a file that tells whether two hosts see the same directory; the caller's. */
char *name_new_probe(void);
bool name_is_probe(const char *name);
/* A file; one that is not there is no error. */
bool name_remove(const char *name, GError **error);
/* The file `from` gets the name `to` in the same directory, durably.  Nothing loses its name by that but the
 * file with the identity `replaces` (NULL: none); *taken: somebody else has it, and nothing happened, which
 * is no error. */
bool name_take(const char *from, const char *to, const char *replaces, bool *taken, GError **error);
/* Bytes that may still be written into this directory on a server; space_check() asks for those here. */
bool name_room(const char *directory, uint64_t *available, GError **error);

/* ---- of this host, below a directory that is open ---- */

/* false: see errno. */
bool name_look_at(int directory, const char *name, struct name_info *info);
/* As name_take(); false: see errno. */
bool name_take_at(int from_directory, const char *from, int to_directory, const char *to,
                  const char *replaces, bool *taken);

#endif
