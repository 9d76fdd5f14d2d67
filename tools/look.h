/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Opening images for reading as the options of the command line say. */
#ifndef TOOLS_LOOK_H
#define TOOLS_LOOK_H

#include "blockmig/storage/file.h"
#include "formats/chain.h"
#include "tools/options.h"

enum look {
    LOOK_CHAIN, /* with all that is below */
    LOOK_LAYER, /* the top only, with its data files */
    LOOK_ALONE, /* the one file */
};

/* `format` NULL: probe; `flags`: of enum file_flags.  `parents_used`: so many of --parent belong to images
 * that were opened before, and then to this one, too; NULL: all of them are for this image. */
struct chain *look_open(const struct options *options, const char *path, const char *format, unsigned flags,
                        enum look look, size_t *parents_used, GError **error);

#endif
