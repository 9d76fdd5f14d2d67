/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The cleanup phase: what is proven takes its name and its owner; the source goes only if asked, and only
 * now. */
#include "blockmig/migrate/cold.h"
#include "blockmig/migrate/target.h"
#include "blockmig/storage/file.h"
#include "blockmig/storage/image-files.h"
#include "blockmig/storage/names.h"

#include <errno.h>
#include <glib/gstdio.h>

/* All files of the image get what the image that was copied has. */
static bool carry_metadata(struct cold_job *job, const struct copy_unit *unit, const struct unit_file *file,
                           GError **error)
{
    const struct storage *source = chain_layer(unit->chain, 0)->storage;
    g_autofree char *real = NULL;
    g_autoptr(storage_t) storage = NULL;

    if (source->buffered_fd < 0 || storage_name_is_uri(file->part_path)) /* one of them is not of this host */
        return true;
    storage = storage_file_open(file->part_path, FILE_NO_LOCK, NULL, &real, error);
    if (!storage)
        return false;
    target_carry_metadata(&job->base, source, storage, file->target_path);
    return true;
}

/* A name that somebody took while the disk was copied is theirs; what is replaced is the file whose lock this
 * job holds. */
static bool take_name(const struct unit_file *file, GError **error)
{
    const char *replaces = file->replaced ? file->replaced->identity : NULL;
    bool taken;

    if (!name_take(file->part_path, file->target_path, replaces, &taken, error))
        return false;
    return !taken ||
           blockmig_fail(error, BLOCKMIG_ERROR_PARKED,
                         "%s has come into being while its copy was made: the copy is proved and waits as %s",
                         file->target_path, file->part_path);
}

/* The image itself comes last: its name always leads to all of it. */
static bool take_names(struct cold_job *job, const struct copy_unit *unit, GError **error)
{
    for (guint i = unit->files->len; !unit->device && i-- > 0;) {
        const struct unit_file *file = g_ptr_array_index(unit->files, i);

        if (name_exists(file->part_path) && (!carry_metadata(job, unit, file, error) ||
                                             !cold_tell_name(job, file, error) || !take_name(file, error)))
            return false;
    }
    return true;
}

/* Where an image consists of several files it goes with them, and first: no image is left without its data. A
 * file that the image only refers to may serve others, too. */
static bool delete_data(struct cold_job *job, const struct image *image, GError **error)
{
    for (guint i = 0; i < image->data_files->len && !image->data_beside; i++)
        job_notice(&job->base, "%s is kept: it held the data of %s", image_data_file(image, i)->storage->name,
                   image->name);
    return image_files_remove_data(image, error);
}

/* Is the file that was copied still the one of that name? */
static bool check_name(const struct image *image, const char *path, GError **error)
{
    char identity[NAME_IDENTITY];
    struct stat st;

    if (image->storage->buffered_fd < 0)
        return true;
    if (stat(path, &st) < 0)
        return blockmig_set_errno(error, errno, "%s", path);
    storage_file_identity(&st, identity, sizeof(identity));
    return strcmp(identity, image->storage->identity) == 0 ||
           blockmig_fail(error, BLOCKMIG_ERROR_FAILED,
                         "%s is another file now, and not deleted; the copy of the one before is complete",
                         path);
}

/* All of them before the first: when the image is gone nothing else says what belonged to it. */
static bool announce_deletion(const struct cold_job *job, const char *path, const struct image *image,
                              GError **error)
{
    g_autofree char *directory = g_path_get_dirname(path), *life = name_life(directory, error);

    if (!life || !job_event(&job->base, "intent", error, COLD_DELETES_IN "%s", life) ||
        !job_event(&job->base, "intent", error, COLD_DELETES "%s", path))
        return false;
    for (guint i = 0; i < image->data_files->len && image->data_beside; i++)
        if (!job_event(&job->base, "intent", error, COLD_DELETES "%s",
                       image_data_file(image, i)->storage->name))
            return false;
    return true;
}

/* Backing files stay: other overlays may stand on them. */
static bool delete_source(struct cold_job *job, GError **error)
{
    const char *path = g_ptr_array_index(job->source->paths, 0);

    if (!cold_check_sources(job, error) || !check_name(chain_layer(job->source, 0), path, error) ||
        !announce_deletion(job, path, chain_layer(job->source, 0), error))
        return false;
    if (g_unlink(path) < 0)
        return blockmig_set_errno(error, errno, "%s: cannot delete the source", path);
    job->base.report->source = "deleted";
    if (!delete_data(job, chain_layer(job->source, 0), error))
        return false;
    for (guint i = 1; i < job->source->paths->len; i++)
        job_notice(&job->base, "%s is kept: other images may stand on it",
                   (const char *)g_ptr_array_index(job->source->paths, i));
    return storage_file_sync_directory(path, error);
}

static uint64_t count_bad(const struct copy_unit *unit)
{
    uint64_t bytes = 0;

    for (guint i = 0; unit->report->bad && i < unit->report->bad->len; i++)
        bytes += g_array_index(unit->report->bad, struct copy_range, i).length;
    return bytes;
}

bool cold_cleanup(struct job *base, GError **error)
{
    struct cold_job *job = cold_of(base);

    if (job->deleted)
        return cold_finish_deletion(job, error);
    for (guint i = 0; i < job->units->len; i++) {
        struct copy_unit *unit = g_ptr_array_index(job->units, i);
        struct image *image;

        if (!take_names(job, unit, error))
            return false;
        if (!(image = cold_reopen(unit, error)))
            return false;
        unit->report->target_allocated = image_files_allocated(image);
        image_close(image);
    }
    return journal_checkpoint_clear(job->base.journal, job->base.record, error) &&
           (!job->request->delete_source || delete_source(job, error));
}

bool cold_tell_bad(const struct cold_job *job, GError **error)
{
    uint64_t bad = 0;

    for (guint i = 0; i < job->units->len; i++)
        bad += count_bad(g_ptr_array_index(job->units, i));
    if (bad == 0)
        return true;
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_DIFFERENT,
                "%" PRIu64 " bytes of the source could not be read and stand as zeros in the target", bad);
    return false;
}
