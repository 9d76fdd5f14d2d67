/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/remote/datastore.h"

#include "blockmig/storage/file.h"
#include "formats/error.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_NAME 1024

/* A directory below the datastore, and the last part of a name in it. */
struct place {
    int directory;
    char *base, *path; /* the path from the root */
};

static void place_clear(struct place *place)
{
    if (place->directory >= 0)
        close(place->directory);
    g_free(place->base);
    g_free(place->path);
}

typedef struct place place_t; /* for g_auto only */
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(place_t, place_clear)

static bool is_a_name(const char *name, GError **error)
{
    g_auto(GStrv) parts = g_strsplit(name, "/", -1);

    if (strlen(name) > MAX_NAME || !g_utf8_validate(name, -1, NULL))
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "not a name: more than %u bytes, or not UTF-8",
                             MAX_NAME);
    for (char **part = parts; *part; part++)
        if (!**part || strcmp(*part, ".") == 0 || strcmp(*part, "..") == 0)
            return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "'%s' is not a name below a datastore", name);
    return *parts != NULL || blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "an empty name");
}

static bool find_place(const struct agent_datastore *datastore, const char *name, struct place *place,
                       GError **error)
{
    g_autofree char *directory = g_path_get_dirname(name);
    struct open_how how = {.flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC,
                           .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS};

    *place = (struct place){.directory = -1};
    if (!is_a_name(name, error))
        return false;
    place->base = g_path_get_basename(name);
    place->path = g_build_filename(datastore->directory, name, NULL);
    place->directory = (int)syscall(SYS_openat2, datastore->fd, directory, &how, sizeof(how));
    return place->directory >= 0 || blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s/%s: its directory: %s",
                                                  datastore->name, name, g_strerror(errno));
}

/* One name, a plain file: what can be written into without surprises. */
static bool is_plain(const struct agent_datastore *datastore, const char *name, const struct stat *st,
                     GError **error)
{
    return (S_ISREG(st->st_mode) && st->st_nlink == 1) ||
           blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s/%s is not a plain file, or has a second name",
                         datastore->name, name);
}

struct storage *datastore_open(const struct agent_datastore *datastore, const char *name, unsigned flags,
                               GError **error)
{
    g_auto(place_t) place;
    g_autoptr(storage_t) storage = NULL;
    g_autofree char *real = NULL;
    struct stat named, opened;

    if (!find_place(datastore, name, &place, error))
        return NULL;
    if (fstatat(place.directory, place.base, &named, AT_SYMLINK_NOFOLLOW) == 0) {
        if (!is_plain(datastore, name, &named, error))
            return NULL;
    } else if (errno != ENOENT || !(flags & FILE_CREATE)) {
        blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s/%s: %s", datastore->name, name, g_strerror(errno));
        return NULL;
    }
    storage = storage_file_open(place.path, flags, NULL, &real, error);
    if (!storage)
        return NULL;
    /* What was opened is what has the name, and no link was followed on the way. */
    if (fstat(storage->buffered_fd, &opened) < 0 ||
        fstatat(place.directory, place.base, &named, AT_SYMLINK_NOFOLLOW) < 0 ||
        named.st_ino != opened.st_ino || named.st_dev != opened.st_dev) {
        blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s/%s was renamed while it was opened", datastore->name,
                      name);
        return NULL;
    }
    if (!is_plain(datastore, name, &opened, error))
        return NULL;
    /* A file that was made must be found again after a crash. */
    if (flags & FILE_CREATE && fsync(place.directory) < 0) {
        blockmig_set_errno(error, errno, "%s/%s: flushing its directory", datastore->name, name);
        return NULL;
    }
    return g_steal_pointer(&storage);
}

bool datastore_look(const struct agent_datastore *datastore, const char *name, struct name_info *info,
                    GError **error)
{
    g_auto(place_t) place = {.directory = -1};

    *info = (struct name_info){.kind = NAME_DIRECTORY};
    return !*name || (find_place(datastore, name, &place, error) &&
                      (name_look_at(place.directory, place.base, info) ||
                       blockmig_set_errno(error, errno, "%s/%s", datastore->name, name)));
}

bool datastore_remove(const struct agent_datastore *datastore, const char *name, GError **error)
{
    g_auto(place_t) place;
    struct stat st;

    if (!find_place(datastore, name, &place, error))
        return false;
    if (fstatat(place.directory, place.base, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT || blockmig_set_errno(error, errno, "%s/%s", datastore->name, name);
    if (!is_plain(datastore, name, &st, error))
        return false;
    return (unlinkat(place.directory, place.base, 0) == 0 && fsync(place.directory) == 0) ||
           blockmig_set_errno(error, errno, "%s/%s: removing it", datastore->name, name);
}

bool datastore_rename(const struct agent_datastore *datastore, const char *from, const char *to,
                      const char *replaces, bool *taken, GError **error)
{
    g_auto(place_t) old = {.directory = -1};
    g_auto(place_t) new = {.directory = -1};

    *taken = false;
    if (!find_place(datastore, from, &old, error) || !find_place(datastore, to, &new, error))
        return false;
    return name_take_at(old.directory, old.base, new.directory, new.base, replaces, taken) ||
           (*taken
                ? blockmig_fail(error, BLOCKMIG_ERROR_PARKED, "%s/%s: somebody else has the name",
                                datastore->name, to)
                : blockmig_set_errno(error, errno, "%s/%s: taking the name %s", datastore->name, from, to));
}
