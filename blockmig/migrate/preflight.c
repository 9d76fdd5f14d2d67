/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Preflight: everything that can be found out before anything is changed.
 *
 * The source chain is opened (and locked) here and stays open to the end of the job.  Every
 * failure here is REFUSED: nothing happened yet.
 */
#include "blockmig/migrate/cold.h"
#include "blockmig/migrate/place.h"
#include "blockmig/migrate/request-json.h"
#include "blockmig/migrate/space.h"
#include "blockmig/migrate/target.h"
#include "blockmig/migrate/units.h"
#include "blockmig/storage/file.h"
#include "blockmig/storage/foreign.h"
#include "blockmig/storage/image-files.h"
#include "blockmig/storage/names.h"
#include "blockmig/storage/uri.h"
#include "formats/create-options.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAP_BATCH 1024

static bool open_source(struct cold_job *job, GError **error)
{
    const struct copy_request *request = job->request;
    g_autoptr(GPtrArray) roots = request_terminated(request->allowed_roots);
    g_autoptr(GPtrArray) names = request_terminated(request->parents);
    g_autoptr(GArray) parents = chain_parents((const char *const *)names->pdata);
    struct chain_policy policy = {.allowed_roots = (const char *const *)roots->pdata,
                                  .parents = (const struct chain_parent *)parents->data,
                                  .parent_count = parents->len};

    /* LUKS is not looked for: what looks so may be what a guest wrote. */
    if (request->secret && !source_is_foreign(request->source, request->source_format))
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "%s would be copied as it is, without the passphrase: -f luks decrypts it",
                             request->source);
    job->source = source_open(request->source, request->source_format, request->secret, 0, &policy, error);
    return job->source != NULL;
}

static void announce_source(struct cold_job *job)
{
    for (unsigned i = 0; i < chain_depth(job->source); i++) {
        const struct image *image = chain_layer(job->source, i);

        for (guint k = 0; k < image->notices->len; k++)
            job_notice(&job->base, "%s: %s", image->name, (const char *)g_ptr_array_index(image->notices, k));
    }
}

/* Guest bytes that hold data: the cost of the copy. */
static bool count_data(struct copy_unit *unit, GError **error)
{
    g_autofree struct extent *extents = g_new(struct extent, MAP_BATCH);
    uint64_t offset = 0;
    size_t count;

    while (offset < unit->chain->size) {
        if (!chain_map(unit->chain, offset, unit->chain->size - offset, extents, MAP_BATCH, &count, error))
            return false;
        for (size_t i = 0; i < count; i++)
            if (extents[i].status == EXTENT_DATA || extents[i].status == EXTENT_PACKED)
                unit->data += extents[i].length;
        offset = extent_end(&extents[count - 1]);
    }
    return true;
}

/* Of what is written in place. */
static bool look_up_capacity(struct copy_unit *unit, GError **error)
{
    struct space_report device = {0};

    if (storage_name_is_uri(unit->target_path)) {
        g_autoptr(storage_t) storage = storage_open(unit->target_path, FILE_NO_LOCK, NULL, NULL, error);

        unit->capacity = storage ? storage->size : 0;
        return storage != NULL;
    }
    if (!space_check(unit->target_path, 0, 0, &device, error))
        return false;
    unit->capacity = device.total;
    return true;
}

static bool measure(const struct cold_job *job, struct copy_unit *unit, GError **error)
{
    struct image_create_options options;
    uint64_t data;

    if (!count_data(unit, error) || (unit->device && !look_up_capacity(unit, error)))
        return false;
    options = unit_create_options(unit);
    options.device_size = unit->capacity;
    options.parent = cold_parent_of(job, unit);
    data = create_option_reserves(unit->options) ? unit->chain->size : unit->data;
    return image_measure(unit->format, &options, data, &unit->needed, error);
}

static bool identify_source(struct copy_unit *unit, GError **error)
{
    bool certain;

    unit->source_identity = checkpoint_source_identity(unit->chain, &certain, error);
    return unit->source_identity != NULL;
}

static void describe_unit(struct cold_job *job, struct copy_unit *unit)
{
    struct disk_report *disk = g_new0(struct disk_report, 1);
    struct image *image = chain_layer(unit->chain, 0);

    disk->disk = g_strdup(unit->name);
    disk->source = g_strdup(unit->source_path);
    disk->target = g_strdup(unit->target_path);
    disk->source_format = g_strdup(image->format->name);
    disk->target_format = g_strdup(unit->format->name);
    disk->virtual_size = unit->chain->size;
    disk->algorithm = job->request->digest;
    disk->layer = unit->layer;
    for (unsigned i = 0; i < (unit->below ? 1 : chain_depth(unit->chain)); i++)
        disk->source_allocated += image_files_allocated(chain_layer(unit->chain, i));
    unit->report = disk;
    g_ptr_array_add(job->base.report->disks, disk);
}

/* --force replaces a file, but not the disk of a machine, which would go on writing to a file without a name.
 * The lock is kept to the end, so that none is started on it meanwhile. */
static bool hold_replaced(struct unit_file *file, GError **error)
{
    g_autofree char *real = NULL;

    file->replaced = storage_open(file->target_path, FILE_WRITE, NULL, &real, error);
    return file->replaced != NULL;
}

/* Is what lies on the target what an earlier run of this copy has written there? */
static bool is_ours(const struct cold_job *job)
{
    return job->base.record || job->given_up || job->base.already_there;
}

/* Not mounted, not read-only, not the disk of a machine, and nothing on it that somebody may miss: found out
 * before, and not while it is written. */
static bool device_is_free(const struct cold_job *job, const struct copy_unit *unit, GError **error)
{
    g_autofree char *real = NULL;
    g_autoptr(storage_t) storage = storage_open(unit->target_path, FILE_WRITE, NULL, &real, error);

    if (!storage || !target_is_another(storage, job->source, error))
        return false;
    if (job->request->force || is_ours(job))
        return true;
    if (unit->format->flags & FORMAT_IDENTITY && !place_fits_sectors(unit->chain, storage, error))
        return false;
    return place_is_empty(storage, error);
}

static bool name_is_free(const struct cold_job *job, struct unit_file *file, GError **error)
{
    struct name_info info;

    if (!name_look(file->target_path, &info, error))
        return false;
    if (info.kind == NAME_FREE)
        return true;
    if (job->base.already_there && !name_exists(file->part_path) && !job->request->force)
        return true; /* it is ours, and has its name */
    if (job->request->restart && job->given_up &&
        cold_has_named(job->base.journal, job->given_up, file->target_path))
        return true; /* it goes with the job that is given up */
    if (job->request->force || (info.kind == NAME_FILE && info.size == 0))
        return hold_replaced(file, error);
    return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s exists already: --force replaces it",
                         file->target_path);
}

/* Whatever else began a part may want to go on with it: a job of another target, or of another journal. */
static bool part_is_free(const struct cold_job *job, const struct unit_file *file, GError **error)
{
    struct name_info info;

    if (is_ours(job) || job->request->force || job->request->restart)
        return true;
    if (!name_look(file->part_path, &info, error))
        return false;
    if (info.kind == NAME_FREE || (info.kind == NAME_FILE && info.size == 0))
        return true;
    return blockmig_fail(
        error, BLOCKMIG_ERROR_REFUSED,
        "%s exists, and no earlier run of this copy began it: remove it, or --force replaces it",
        file->part_path);
}

static bool target_is_free(const struct cold_job *job, struct copy_unit *unit, GError **error)
{
    if (unit->device)
        return device_is_free(job, unit, error);
    for (guint i = 0; i < unit->files->len; i++) {
        struct unit_file *file = g_ptr_array_index(unit->files, i);

        if (!part_is_free(job, file, error) || !name_is_free(job, file, error))
            return false;
    }
    return true;
}

/* What an earlier run wrote is already paid for. */
static uint64_t already_allocated(const struct copy_unit *unit)
{
    uint64_t bytes = 0;

    for (guint i = 0; !unit->device && i < unit->files->len; i++) {
        const struct unit_file *file = g_ptr_array_index(unit->files, i);
        struct name_info info;

        if (name_look(file->part_path, &info, NULL))
            bytes += info.allocated;
    }
    return bytes;
}

/* A raw image is as long as the disk, however thin. */
static uint64_t longest_file(const struct copy_unit *unit)
{
    uint64_t longest = unit->format->flags & FORMAT_IDENTITY ? unit->chain->size : unit->needed;

    if (unit->files->len > 1)
        longest = 0;
    for (guint i = 1; i < unit->files->len; i++)
        longest = MAX(longest, ((const struct unit_file *)g_ptr_array_index(unit->files, i))->longest);
    return longest;
}

/* The longest file that will come into being. */
static bool file_sizes_are_possible(const struct cold_job *job, const char *directory, GError **error)
{
    for (guint i = 0; i < job->units->len; i++) {
        const struct copy_unit *unit = g_ptr_array_index(job->units, i);

        if (!space_check_file_size(directory, longest_file(unit), error))
            return false;
    }
    return true;
}

static bool check_space(struct cold_job *job, GError **error)
{
    const struct copy_unit *top = g_ptr_array_index(job->units, job->units->len - 1);
    g_autofree char *directory = g_path_get_dirname(top->target_path);
    struct space_report space = {0};
    uint64_t needed = 0, have = 0;
    unsigned files = 0;
    bool ok;

    for (guint i = 0; i < job->units->len; i++) {
        const struct copy_unit *unit = g_ptr_array_index(job->units, i);

        needed += unit->needed;
        have += MIN(already_allocated(unit), unit->needed);
        files += unit->files->len;
    }
    job->base.report->space_needed = needed;
    if (top->device && top->format->flags & FORMAT_IDENTITY)
        needed = top->chain->size;
    if (top->device)
        ok = space_check_device(top->target_path, needed, top->capacity, &space, error);
    else
        ok = space_check(directory, needed - have, files, &space, error) &&
             file_sizes_are_possible(job, directory, error);
    job->base.report->space_available = space.available;
    return ok;
}

static void write_plan(struct cold_job *job)
{
    static const char *const proofs[] = {
        "every written byte is read back %s and compared; the finished image is opened anew and its whole "
        "map "
        "is proven",
        "every written byte is read back %s and compared",
        "nothing is read back: only the digests of what was read are recorded",
    };
    const char *where = !storage_name_is_uri(job->request->target) ? "past the page cache"
                        : name_has_files(job->request->target)     ? "from its medium by the agent"
                                                                   : "from the server";
    g_autoptr(GString) proof = g_string_new(proofs[job->request->verify]);
    g_autofree char *needed = units_format_size(job->base.report->space_needed);

    job_plan(&job->base,
             "method cold: the source is an image path; nothing may write to it meanwhile (locks are held)");
    for (guint i = 0; i < job->units->len; i++) {
        const struct copy_unit *unit = g_ptr_array_index(job->units, i);
        g_autofree char *size = units_format_size(unit->chain->size);
        g_autofree char *data = units_format_size(unit->data);

        job_plan(&job->base, "copy %s (%s, %s, %s of data) to %s as %s", unit->source_path,
                 unit->report->source_format, size, data, unit->target_path, unit->format->name);
        if (unit->backing_name && unit->format->flags & FORMAT_NO_PARENT_NAME)
            job_plan(&job->base,
                     "  its parent will be %s, which format %s does not record: --parent will be needed",
                     unit->backing_name, unit->format->name);
        else if (unit->backing_name)
            job_plan(&job->base, "  it records the backing file %s (%s)", unit->backing_name,
                     unit->backing_format);
        if (unit->done.frontier > 0)
            job_plan(&job->base, "  goes on at byte %" PRIu64 ", after the checkpoint of job %s",
                     unit->done.frontier, job->base.record->id);
    }
    if (job->seed)
        job_plan(&job->base,
                 cold_seed_shifts(job, g_ptr_array_index(job->units, 0))
                     ? "what %s has, at whatever place, is not sent"
                     : "what %s has at the same place of the disk is not sent",
                 chain_layer(job->seed, 0)->name);
    job_plan(&job->base, "space: at most %s on the target", needed);
    g_string_replace(proof, "%s", where, 0);
    job_plan(&job->base, "proof: %s", proof->str);
    job_plan(&job->base,
             job->request->delete_source ? "the source is deleted after the proof" : "the source is kept");
}

static bool means_the_same_everywhere(const char *name)
{
    return g_path_is_absolute(name) || storage_name_is_uri(name);
}

/* In a directory that was removed a relative name means nothing; GLib would look from the root instead. */
static bool names_have_a_place(const struct copy_request *request, GError **error)
{
    char here[PATH_MAX];

    if ((means_the_same_everywhere(request->source) && means_the_same_everywhere(request->target)) ||
        getcwd(here, sizeof(here)) || errno == ERANGE)
        return true;
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED,
                "the current directory: %s: use absolute names", g_strerror(errno));
    return false;
}

static bool check_request(const struct copy_request *request, GError **error)
{
    const char *wrong = NULL;

    if (request->delete_source && request->verify == VERIFY_NONE)
        wrong = "--delete-source needs a proof: it cannot go with --verify=none";
    else if (request->delete_source && request->salvage)
        wrong = "--delete-source cannot go with --salvage: the source may be all that is left";
    else if (request->delete_source && storage_name_is_uri(request->source))
        wrong = "--delete-source is for files: what a URI names cannot be deleted";
    if (wrong)
        g_set_error_literal(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE, wrong);
    return wrong == NULL && names_have_a_place(request, error);
}

static bool look(struct cold_job *job, GError **error)
{
    if (!check_request(job->request, error) || !cold_look_for_deleted(job, error))
        return false;
    if (job->deleted)
        return true;
    if (!open_source(job, error))
        return false;
    announce_source(job);
    if ((job->request->delete_source &&
         !name_check_deletable(g_ptr_array_index(job->source->paths, 0), error)) ||
        !cold_choose_targets(job, error))
        return false;
    for (guint i = 0; i < job->units->len; i++) {
        struct copy_unit *unit = g_ptr_array_index(job->units, i);

        if (!identify_source(unit, error) || !measure(job, unit, error))
            return false;
        describe_unit(job, unit);
    }
    if (job->base.journal && !cold_look_for_earlier_run(job, error))
        return false;
    for (guint i = 0; i < job->units->len; i++)
        if (!target_is_free(job, g_ptr_array_index(job->units, i), error))
            return false;
    return job->base.already_there || (check_space(job, error) && cold_open_seed(job, error));
}

bool cold_preflight(struct job *base, GError **error)
{
    struct cold_job *job = cold_of(base);
    g_autoptr(GError) local = NULL;

    if (!look(job, &local)) {
        if (!g_error_matches(local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE) &&
            !g_error_matches(local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_CANCELLED) &&
            !g_error_matches(local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_UNREACHABLE))
            local->code = BLOCKMIG_ERROR_REFUSED;
        g_propagate_error(error, g_steal_pointer(&local));
        return false;
    }
    if (!job->deleted)
        write_plan(job);
    return true;
}
