/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What -o says, for drivers: checked values, USAGE errors that name format, option and what is allowed. */
#ifndef FORMATS_CREATE_OPTIONS_H
#define FORMATS_CREATE_OPTIONS_H

#include "formats/image.h"

const char *create_option(const struct image_create_options *options, const char *key, const char *fallback);
/* Is space reserved for the whole disk?  `values` as those of struct image_create_options. */
bool create_option_reserves(GHashTable *values);
/* USAGE: what is `allowed` follows "must be".  Always returns false. */
bool create_option_refuse(const char *format, const char *key, const char *value, const char *allowed,
                          GError **error);
/* The index of the value in `names` (NULL-terminated; any case), -1 on error. */
int create_option_choose(const char *format, const struct image_create_options *options, const char *key,
                         const char *fallback, const char *const *names, GError **error);
/* A power of two from `min` to `max`; K and M are units. */
bool create_option_size(const char *format, const struct image_create_options *options, const char *key,
                        const char *fallback, uint64_t min, uint64_t max, uint64_t *size, GError **error);

#endif
