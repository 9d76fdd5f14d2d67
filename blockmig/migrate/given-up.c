/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a copy that is given up leaves on the target, and how it is known to be this job's.
 *
 * The journal has the life of every part, told when the file was still empty, and the state of every file
 * before it took its final name.  What is something else by now is somebody else's, or in use: it stays.
 */
#include "blockmig/migrate/cold.h"
#include "blockmig/storage/file.h"
#include "blockmig/storage/names.h"
#include "blockmig/storage/uri.h"

#include <string.h>
#include <sys/stat.h>

/* How the intents begin: life and path of a part; state and final path of a file. */
#define COLD_MAKES "make "
#define COLD_NAMES "name "
/* And life and path of the directory that the parts are in. */
#define COLD_PLACE "place "

/* ---- telling ------------------------------------------------------------------------------------ */

bool cold_tell_part(const struct cold_job *job, const char *path, GError **error)
{
    g_autofree char *life = name_life(path, error);

    return life && job_event(&job->base, "intent", error, COLD_MAKES "%s %s", life, path);
}

/* Changes with every write to it; NULL: there is no such file, or that cannot be told. */
static char *state_of(const char *path)
{
    g_autofree char *life = NULL;
    struct stat st;

    if (storage_name_is_uri(path) || lstat(path, &st) < 0 || !(life = name_life(path, NULL)))
        return NULL;
    return g_strdup_printf("%s/%" PRIu64 "/%" PRId64 ".%09ld", life, (uint64_t)st.st_size,
                           (int64_t)st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
}

bool cold_tell_name(const struct cold_job *job, const struct unit_file *file, GError **error)
{
    g_autofree char *state = state_of(file->part_path);

    return job_event(&job->base, "intent", error, COLD_NAMES "%s %s", state ? state : "-", file->target_path);
}

bool cold_tell_place(const struct cold_job *job, const struct copy_unit *unit, GError **error)
{
    g_autofree char *directory = g_path_get_dirname(unit->target_path);
    g_autofree char *life = unit->device ? NULL : name_life(directory, error);

    return unit->device ||
           (life && job_event(&job->base, "intent", error, COLD_PLACE "%s %s", life, directory));
}

/* ---- knowing ------------------------------------------------------------------------------------ */

static bool was_told(struct journal *journal, const struct journal_job *record, const char *beginning,
                     const char *what, const char *path)
{
    g_autofree char *text = what ? g_strconcat(beginning, what, " ", path, NULL) : NULL;

    return text && journal_has_told(journal, record, "intent", text);
}

bool cold_has_named(struct journal *journal, const struct journal_job *record, const char *path)
{
    g_autofree char *state = state_of(path);

    return was_told(journal, record, COLD_NAMES, state, path);
}

static bool has_made(struct journal *journal, const struct journal_job *record, const char *path)
{
    g_autofree char *life = name_life(path, NULL);

    return was_told(journal, record, COLD_MAKES, life, path);
}

/* Its own part. */
static bool is_device(const struct journal_disk *disk)
{
    return !disk->target_identity || strcmp(disk->target_identity, disk->target) == 0;
}

static bool check_place(struct journal *journal, const struct journal_job *record, const char *target,
                        GPtrArray *places, GError **error)
{
    g_autofree char *directory = g_path_get_dirname(target);
    g_autofree char *life = name_life(directory, error);

    if (!life)
        return false;
    return !g_ptr_array_find_with_equal_func(places, directory, g_str_equal, NULL) ||
           was_told(journal, record, COLD_PLACE, life, directory) ||
           blockmig_fail(error, BLOCKMIG_ERROR_FAILED,
                         "%s is not the directory that job %s wrote to: is its datastore mounted?", directory,
                         record->id);
}

/* The paths that were told so, each once, the last one first; the caller's. */
static GPtrArray *paths_told(struct journal *journal, const struct journal_job *record, const char *beginning,
                             GError **error)
{
    g_autoptr(GPtrArray) told = journal_told(journal, record, "intent", beginning, error);
    GPtrArray *paths = told ? g_ptr_array_new_with_free_func(g_free) : NULL;

    for (guint i = told ? told->len : 0; i-- > 0;) {
        const char *space = strchr(g_ptr_array_index(told, i), ' ');

        if (space && !g_ptr_array_find_with_equal_func(paths, space + 1, g_str_equal, NULL))
            g_ptr_array_add(paths, g_strdup(space + 1));
    }
    return paths;
}

/* ---- removing ----------------------------------------------------------------------------------- */

/* Not while somebody uses it. */
static bool remove_named(struct journal *journal, const struct journal_job *record, const char *path,
                         GPtrArray *stays, GError **error)
{
    g_autofree char *part = unit_part_path(path), *real = NULL;
    g_autoptr(storage_t) storage = NULL;
    struct name_info info;

    if (!name_look(path, &info, error))
        return false;
    if (info.kind == NAME_FREE || name_exists(part)) /* it did not come to that */
        return true;
    if (!cold_has_named(journal, record, path)) {
        g_ptr_array_add(stays, g_strdup(path));
        return true;
    }
    storage = storage_open(path, FILE_WRITE, NULL, &real, error);
    if (!storage)
        return false;
    if (cold_has_named(journal, record, path) && name_look(path, &info, NULL) && name_is_of(&info, storage))
        return name_remove(path, error);
    g_ptr_array_add(stays, g_strdup(path));
    return true;
}

/* An empty one may have been made by a run that was killed before it could say so. */
static bool remove_part(struct journal *journal, const struct journal_job *record, const char *path,
                        GPtrArray *stays, GError **error)
{
    struct name_info info;

    if (!name_look(path, &info, error))
        return false;
    if (info.kind == NAME_FREE)
        return true;
    if ((info.kind == NAME_FILE && info.size == 0) || has_made(journal, record, path))
        return name_remove(path, error);
    g_ptr_array_add(stays, g_strdup(path));
    return true;
}

typedef bool remove_one(struct journal *journal, const struct journal_job *record, const char *path,
                        GPtrArray *stays, GError **error);

static bool remove_all(struct journal *journal, const struct journal_job *record, const char *beginning,
                       remove_one *one, GPtrArray *stays, GError **error)
{
    g_autoptr(GPtrArray) paths = paths_told(journal, record, beginning, error);

    for (guint i = 0; paths && i < paths->len; i++)
        if (!one(journal, record, g_ptr_array_index(paths, i), stays, error))
            return false;
    return paths != NULL;
}

/* Those of which no more is known than that the job was about to make them. */
static bool remove_untold(struct journal *journal, const struct journal_job *record, GPtrArray *stays,
                          GError **error)
{
    g_autoptr(GPtrArray) disks = journal_disk_list(journal, record, error);

    for (guint i = 0; disks && i < disks->len; i++) {
        const struct journal_disk *disk = g_ptr_array_index(disks, i);
        const char *part = disk->target_identity;

        if (!is_device(disk) && !g_ptr_array_find_with_equal_func(stays, part, g_str_equal, NULL) &&
            !remove_part(journal, record, part, stays, error))
            return false;
    }
    return disks != NULL;
}

bool cold_check_places(struct journal *journal, const struct journal_job *record, GError **error)
{
    g_autoptr(GPtrArray) disks = journal_disk_list(journal, record, error);
    g_autoptr(GPtrArray) places = disks ? paths_told(journal, record, COLD_PLACE, error) : NULL;

    for (guint i = 0; places && i < disks->len; i++) {
        const struct journal_disk *disk = g_ptr_array_index(disks, i);

        if (!is_device(disk) && !check_place(journal, record, disk->target, places, error))
            return false;
    }
    return places != NULL;
}

bool cold_remove_named(struct journal *journal, const struct journal_job *record, GPtrArray *stays,
                       GError **error)
{
    return remove_all(journal, record, COLD_NAMES, remove_named, stays, error);
}

bool cold_remove_parts(struct journal *journal, const struct journal_job *record, GPtrArray *stays,
                       GError **error)
{
    return remove_all(journal, record, COLD_MAKES, remove_part, stays, error) &&
           remove_untold(journal, record, stays, error);
}
