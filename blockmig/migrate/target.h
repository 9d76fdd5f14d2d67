/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Where a disk goes and with which features: the same for every method. */
#ifndef BLOCKMIG_MIGRATE_TARGET_H
#define BLOCKMIG_MIGRATE_TARGET_H

#include "blockmig/migrate/phase.h"
#include "formats/chain.h"

/* The absolute name that `target` stands for; a directory is a datastore: the source's name in it.  REFUSED
 * if nothing can be written there.  The caller's. */
char *target_path(const char *target, const char *source, bool *device, GError **error);
/* The format that was asked for (NULL: none) of a target at `path`: what a server gives to others is a disk,
 * and raw unless somebody says otherwise. */
const char *target_format_wanted(const char *name, const char *path);
/* The format that `source` becomes (-O `name`; NULL: its own), which can be written and have a backing file
 * where `backed`; and its options: -o (`text`, may be NULL), and for what it leaves open the features of the
 * source where the format stays the same.  In a kept chain -o is for the images of the top's format: a raw
 * base has no cluster size. */
bool target_format(const char *name, const char *text, struct image *source, bool backed, bool is_top,
                   const struct format **format, GHashTable **options, GError **error);
/* How `image` is to name its backing file: relatively only if both lie in one directory, and so that a colon
 * does not make a protocol of it.  The caller's. */
char *target_backing_name(const char *image, const char *backing);
/* The same where files on servers come in, too.  REFUSED: `backing` is on one, and not beside the image, so
 * that no image can name it. */
bool target_name_below(const char *image, const char *backing, char **name, GError **error);
/* What overlays of an image that has no place beside it are called after, in the directory `scratch`.  The
 * caller's. */
char *target_scratch_stem(const char *scratch, const char *image);
/* Owner, mode and the like of `like`, where both are files of this host; what stays behind is told of `name`.
 */
void target_carry_metadata(const struct job *job, const struct storage *like, const struct storage *to,
                           const char *name);
/* Announced in the journal; then a new file, or, if it is `there`, a device or a server's export of which
 * preflight knows that it may be written over.  What belongs to a file beside its data comes from `like`.  As
 * soon as there is anything *created is set. */
struct image *target_create(const struct job *job, const char *name, bool there, const struct format *format,
                            const struct image_create_options *options, const struct storage *like,
                            bool *created, GError **error);
/* REFUSED if writing to `path` would destroy what is read. */
bool target_is_not_a_source(const char *path, const struct chain *source, GError **error);
/* The same for what was opened: a server's disk has many names. */
bool target_is_another(const struct storage *target, const struct chain *source, GError **error);

#endif
