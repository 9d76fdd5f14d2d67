/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A layer below a disk's image that is copied as it is (--chain=keep), for machines of any kind; nobody
 * writes to it, and several disks may stand on it. */
#ifndef BLOCKMIG_MIGRATE_LOWER_H
#define BLOCKMIG_MIGRATE_LOWER_H

#include "blockmig/copy/copy.h"
#include "blockmig/migrate/job.h"
#include "formats/chain.h"

struct lower {
    unsigned index; /* among all of the job */
    char *identity; /* of the source's storage */
    char *source_path;
    char *target_name; /* how we open it: a path, or a URI of an agent */
    char *target_path; /* how a machine does */
    const struct format *source_format, *format;
    GHashTable *options;
    struct lower *below;        /* borrowed; NULL: it is the lowest that is copied */
    uint64_t size;              /* virtual; in bytes, as are */
    uint64_t allocated, needed; /* on the source; on the target at most */
    bool there;                 /* the target had the same before: it is used, and stays as it is */
    bool created, open;         /* as a file; as a node of the hypervisor */
    struct disk_report *report; /* borrowed from the job's report */
};

void lower_free(struct lower *lower);
/* That of `lowers` which `image` becomes, or NULL. */
struct lower *lower_find(const GPtrArray *lowers, const struct image *image);
/* A new one of `lowers`: layer `layer` of `source`. */
struct lower *lower_add(GPtrArray *lowers, const struct chain *source, unsigned layer,
                        const char *target_name, const char *target_path);
/* What it becomes, on `below` (NULL: on nothing), and how much room that takes. */
bool lower_choose(struct lower *lower, const struct move_request *request, struct image *image,
                  struct lower *below, GError **error);
/* As its target is created.  *backing, the caller's, has to live as long. */
struct image_create_options lower_create_options(const struct lower *lower, char **backing);
/* Copies layer `layer` of `base` alone, in units of `target`; what those need besides is filled up from the
 * layers below.  options->digests, if any, are of that layer.  In *sum what was placed. */
bool lower_copy(const struct chain *base, unsigned layer, struct image *target, struct copy_options *options,
                struct job_report *report, struct disk_report *of, struct copy_map_sum *sum, GError **error);
/* By `verify` full: the finished metadata of `image`, the layer opened anew, leads to what was written and
 * read back. */
bool lower_prove(const struct lower *lower, struct image *image, enum verify_mode verify,
                 struct digest_table *digests, const struct copy_map_sum *sum,
                 const struct copy_options *options, GError **error);
/* In the job's report. */
void lower_describe(struct lower *lower, struct job_report *report, enum digest_algorithm algorithm);

#endif
