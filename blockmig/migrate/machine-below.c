/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the target of a domain's disk stands on, if the chain is not made one image.
 *
 * keep: every layer below the machine's image is copied under its own name, from the lowest up, before the
 * image itself, and proved at once: nobody writes to it.  Where the target has an image of that name which
 * shows the same, that one is used and left alone; whatever it stands on is its own business.  shallow: on
 * one host the layers stay where they are, and the target names them; on another host each has to be there.
 * Deltas go into the target's own top image and never into what is below it.
 *
 * What a job copied goes again if it is rolled back, and until then nobody else may stand on it: a file
 * LAYER.blockmig-job says so.  It is there before the layer, and goes after it, or with the job's end.
 */
#include "blockmig/migrate/live.h"
#include "blockmig/migrate/lower.h"
#include "blockmig/migrate/machine-look.h"
#include "blockmig/migrate/target.h"
#include "blockmig/storage/names.h"
#include "blockmig/storage/uri.h"

#include <string.h>

/* ---- what is on the target ------------------------------------------------------------------------- */

/* Is it a layer of the source, which is of this host?  What it stands on, and the layer itself, are put under
 * `chain`. */
static bool add_own_layers(const struct machine_disk *disk, const char *path, struct chain *chain,
                           bool *found, GError **error)
{
    g_autoptr(chain_t) own = machine_open_layers(disk, 0, 0, error);
    unsigned layer = 1;

    if (!own)
        return false;
    while (layer < chain_depth(own) && strcmp(g_ptr_array_index(own->paths, layer), path) != 0)
        layer++;
    *found = layer < chain_depth(own);
    while (layer < chain_depth(own))
        chain_append(chain, (struct image *)g_ptr_array_steal_index(own->layers, layer));
    return true;
}

/* How we open the target's file at `path`; NULL: it is in no directory that we know. */
static char *name_of(const struct machine_job *job, const char *path)
{
    g_autofree char *directory = g_path_get_dirname(path);

    if (job->across)
        return machine_name_there(job, path);
    return strcmp(directory, job->directory) == 0 ? g_strdup(path) : NULL;
}

/* Puts the image under the last layer, which is at *path, that it names, and *path follows; NULL: it names
 * none, or all is there. */
static bool add_below(const struct machine_job *job, const struct machine_disk *disk, struct chain *chain,
                      char **path, GError **error)
{
    const struct image *last = chain_layer(chain, chain_depth(chain) - 1);
    g_autofree char *directory = g_path_get_dirname(*path), *name = NULL;
    const struct format *format;
    struct image *image;
    bool own = false;

    g_clear_pointer(path, g_free);
    if (!last->backing_name)
        return true;
    if (!last->backing_format)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "%s does not say of which format its backing file is", last->name);
    if (chain_depth(chain) == CHAIN_MAX_DEPTH)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s: more than %d layers",
                             chain_layer(chain, 0)->name, CHAIN_MAX_DEPTH);
    if (!chain_name_is_plain(last->backing_name, error))
        return false;
    *path = g_canonicalize_filename(last->backing_name, directory);
    name = name_of(job, *path);
    if (!name && !job->across && !add_own_layers(disk, *path, chain, &own, error))
        return false;
    if (!name && !own)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s stands on %s, which is in no %s", last->name,
                             *path, job->across ? "datastore of the agent there" : "directory of the move");
    if (own) {
        g_clear_pointer(path, g_free);
        return true;
    }
    format = format_by_name(last->backing_format, error);
    image = format ? machine_open_image(name, format, FILE_NO_LOCK, error) : NULL;
    if (image)
        chain_append(chain, image);
    return image != NULL;
}

struct chain *machine_open_there(const struct machine_job *job, const struct machine_disk *disk,
                                 const char *name, const char *path, const struct format *format,
                                 GError **error)
{
    struct image *image = machine_open_image(name, format, FILE_NO_LOCK, error);
    g_autoptr(chain_t) chain = image ? chain_new_single(image, false) : NULL;
    g_autofree char *at = g_strdup(path);

    while (chain && at)
        if (!add_below(job, disk, chain, &at, error))
            return NULL;
    return g_steal_pointer(&chain);
}

/* ---- preflight ------------------------------------------------------------------------------------- */

/* Anything else of that name is left alone. */
static bool check_same(struct machine_job *job, const struct machine_disk *disk, const struct lower *lower,
                       const struct chain *source, unsigned layer, GError **error)
{
    g_autoptr(chain_t) mine = chain_view(source, layer, chain_depth(source) - layer, false);
    g_autoptr(digest_table_t) digests = digest_table_new(job->request->digest, lower->size);
    g_autoptr(GError) local = NULL;
    g_autoptr(chain_t) theirs =
        machine_open_there(job, disk, lower->target_name, lower->target_path, lower->format, &local);

    if (theirs && theirs->size != mine->size)
        blockmig_fail(&local, BLOCKMIG_ERROR_DIFFERENT, "it has %" PRIu64 " bytes, and not %" PRIu64,
                      theirs->size, mine->size);
    if (theirs && !local && machine_prove_same(job, mine, theirs, lower->target_name, digests, &local))
        return true;
    if (g_error_matches(local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_UNREACHABLE) ||
        g_error_matches(local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_CANCELLED)) {
        g_propagate_error(error, g_steal_pointer(&local));
        return false;
    }
    return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                         "%s is there already, and does not show what %s does: %s", lower->target_name,
                         lower->source_path, local->message);
}

static char *claim_on(const char *name)
{
    return g_strconcat(name, MACHINE_CLAIM, NULL);
}

static bool check_unclaimed(const char *name, GError **error)
{
    g_autofree char *claim = claim_on(name);
    struct name_info info;

    return name_look(claim, &info, error) &&
           (info.kind == NAME_FREE ||
            blockmig_fail(
                error, BLOCKMIG_ERROR_REFUSED,
                "%s is there: a job that is not finished makes this layer, and may remove it again. "
                "That one comes first; if its journal is lost, remove that file",
                claim));
}

/* Where a layer goes, or is: in the target's directory; by shallow better under the very name that it has
 * here. */
static bool find_place(struct machine_job *job, const char *source, char **name, char **path, bool *there,
                       GError **error)
{
    g_autofree char *base = g_path_get_basename(source);
    struct name_info info = {.kind = NAME_FREE};

    *path = g_strdup(source);
    *name = job->request->chain == CHAIN_SHALLOW ? machine_name_there(job, source) : NULL;
    if (*name && !name_look(*name, &info, error))
        return false;
    if (info.kind == NAME_FREE) {
        g_free(*name);
        g_free(*path);
        *name = g_strconcat(job->prefix, "/", base, NULL);
        *path = g_strconcat(job->directory, "/", base, NULL);
        if (!name_look(*name, &info, error))
            return false;
    }
    *there = info.kind != NAME_FREE;
    return *there || job->request->chain == CHAIN_KEEP ||
           blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                         "--chain=shallow: %s is not there, and the disk stands on it", *name);
}

/* What is there already by shallow is what it is. */
static bool choose_format(const struct machine_job *job, struct lower *lower, struct image *image,
                          struct lower *below, GError **error)
{
    if (job->request->chain == CHAIN_SHALLOW)
        lower->format = lower->source_format;
    else if (!lower_choose(lower, job->request, image, below, error))
        return false;
    return lower->format->flags & FORMAT_RUNS ||
           blockmig_fail(
               error, BLOCKMIG_ERROR_REFUSED,
               "%s: no machine stands on format %s: choose --chain=flatten, or raw or qcow2 with -O",
               lower->source_path, lower->format->name);
}

/* Layer `layer` and, if it is not there, those below it: *out is what the one above will stand on. */
static bool find_lower(struct machine_job *job, struct machine_disk *disk, const struct chain *source,
                       unsigned layer, struct lower **out, GError **error)
{
    g_autofree char *name = NULL, *path = NULL;
    struct lower *lower, *below = NULL;
    bool there;

    if (layer == chain_depth(source) || (*out = lower_find(job->lowers, chain_layer(source, layer))))
        return true;
    if (!find_place(job, g_ptr_array_index(source->paths, layer), &name, &path, &there, error) ||
        !machine_is_nobodys(job, name, job->disks->len, error) || !check_unclaimed(name, error) ||
        (!there && !find_lower(job, disk, source, layer + 1, &below, error)))
        return false;
    lower = *out = lower_add(job->lowers, source, layer, name, path);
    lower->there = there;
    if (!choose_format(job, lower, chain_layer(source, layer), below, error) ||
        (there && !check_same(job, disk, lower, source, layer, error)))
        return false;
    if (!there)
        lower_describe(lower, job->base.report, job->request->digest);
    return true;
}

static void stand_on(struct machine_disk *disk, const char *path, const struct format *format)
{
    disk->backing_name = target_backing_name(disk->target_path, path);
    disk->backing_format = format->name;
}

bool machine_choose_below(struct machine_job *job, struct machine_disk *disk, const struct chain *source,
                          GError **error)
{
    if (job->request->chain == CHAIN_FLATTEN || chain_depth(source) == 1)
        return true;
    if (job->request->chain == CHAIN_SHALLOW && !job->across) {
        stand_on(disk, g_ptr_array_index(source->paths, 1), chain_layer(source, 1)->format);
        return true;
    }
    if (!find_lower(job, disk, source, 1, &disk->lower, error))
        return false;
    stand_on(disk, disk->lower->target_path, disk->lower->format);
    return true;
}

/* ---- copying --------------------------------------------------------------------------------------- */

struct chain *machine_below(const struct machine_disk *disk)
{
    unsigned depth = disk->base ? chain_depth(disk->base) : 0;

    return disk->backing_name && depth > 1 ? chain_view(disk->base, 1, depth - 1, false) : NULL;
}

bool machine_copy_layer(struct machine_job *job, struct machine_disk *disk, struct image *target,
                        unsigned layer, struct digest_table *digests, struct disk_report *report,
                        struct copy_map_sum *sum, GError **error)
{
    uint64_t wire = agent_wire_bytes(), seeded = agent_seeded_bytes();
    struct copy_options options = {0};
    bool ok;

    machine_copy_options(job, &options);
    options.digests = digests;
    options.seed = layer == 0 ? disk->seed : NULL;
    ok = lower_copy(disk->base, layer, target, &options, job->base.report, report, sum, error);
    report->bytes_wire += agent_wire_bytes() - wire;
    report->bytes_seeded = agent_seeded_bytes() - seeded;
    return ok;
}

static bool finish_lower(struct machine_job *job, const struct lower *lower, struct digest_table *digests,
                         const struct copy_map_sum *sum, GError **error)
{
    g_autoptr(image_t) image = machine_open_image(lower->target_name, lower->format, FILE_NO_LOCK, error);
    struct copy_options options = {0};

    machine_copy_options(job, &options);
    options.progress = NULL;
    return image && lower_prove(lower, image, job->request->verify, digests, sum, &options, error) &&
           job_write_receipt(&job->base, lower->report, job->disks->len + lower->index, "", digests, error);
}

static bool claim_layer(struct machine_job *job, const struct lower *lower, GError **error)
{
    g_autofree char *claim = claim_on(lower->target_name);
    struct machine_file *file;
    struct storage *storage;

    if (!job_event(&job->base, "intent", error, JOB_CREATES "%s", claim))
        return false;
    storage = storage_open(claim, FILE_WRITE | FILE_CREATE, NULL, NULL, error);
    if (!storage)
        return false;
    storage_close(storage);
    file = g_new0(struct machine_file, 1);
    file->target_name = g_steal_pointer(&claim);
    file->created = true;
    g_ptr_array_add(job->files, file);
    return true;
}

bool machine_release_layers(struct machine_job *job, GError **error)
{
    g_autoptr(GPtrArray) names = machine_created_files(job, error);

    for (guint i = 0; names && i < names->len; i++)
        if (g_str_has_suffix(g_ptr_array_index(names, i), MACHINE_CLAIM) &&
            !name_remove(g_ptr_array_index(names, i), error))
            return false;
    return names != NULL;
}

static bool copy_lower(struct machine_job *job, struct machine_disk *disk, struct lower *lower,
                       unsigned layer, GError **error)
{
    g_autoptr(digest_table_t) digests = digest_table_new(job->request->digest, lower->size);
    g_autofree char *backing = NULL;
    struct image_create_options options = lower_create_options(lower, &backing);
    struct copy_map_sum sum;
    struct image *target;
    bool ok;

    if (!claim_layer(job, lower, error))
        return false;
    machine_tell(job, "%s", lower->source_path);
    target = target_create(&job->base, lower->target_name, false, lower->format, &options,
                           chain_layer(disk->base, layer)->storage, &lower->created, error);
    ok = target && machine_copy_layer(job, disk, target, layer, digests, lower->report, &sum, error);
    image_close(target);
    return ok && finish_lower(job, lower, digests, &sum, error);
}

/* Layer `layer` of the source and what it stands on, the lowest first. */
static bool copy_from(struct machine_job *job, struct machine_disk *disk, struct lower *lower, unsigned layer,
                      GError **error)
{
    return !lower || lower->there || lower->created ||
           (copy_from(job, disk, lower->below, layer + 1, error) &&
            copy_lower(job, disk, lower, layer, error));
}

bool machine_copy_below(struct machine_job *job, struct machine_disk *disk, GError **error)
{
    return copy_from(job, disk, disk->lower, 1, error);
}
