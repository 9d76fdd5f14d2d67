/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/remote/datastore.h"

#include "blockmig/storage/file.h"
#include "formats/error.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_NAME  1024
#define NOT_PLAIN "is not a plain file, or has a second name"

/* A directory below the datastore, and the last part of a name in it. */
struct place {
    int directory;     /* -1: it is not there, and neither is the file */
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

static bool is_a_name(const struct agent_datastore *datastore, const char *name, GError **error)
{
    g_auto(GStrv) parts = g_strsplit(name, "/", -1);

    if (strlen(name) > MAX_NAME || !g_utf8_validate(name, -1, NULL))
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "not a name: more than %u bytes, or not UTF-8",
                             MAX_NAME);
    for (char **part = parts; *part; part++)
        if (!**part || strcmp(*part, ".") == 0 || strcmp(*part, "..") == 0)
            return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "'%s' is not a name below a datastore", name);
    if (datastore->is_name && !datastore->is_name(name))
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "'%s' is no name in %s", name, datastore->name);
    return *parts != NULL || blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "an empty name");
}

/* No link is followed, and nothing outside reached. */
static int open_below(const struct agent_datastore *datastore, const char *directory)
{
    struct open_how how = {.flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC,
                           .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS};

    return (int)syscall(SYS_openat2, datastore->fd, directory, &how, sizeof(how));
}

/* With those above it.  Others may pass, if they know the names. */
static bool make_directory(const struct agent_datastore *datastore, const char *directory)
{
    g_autofree char *above = g_path_get_dirname(directory), *base = g_path_get_basename(directory);
    int fd = -1;
    bool made;

    if (strcmp(directory, ".") == 0)
        return true;
    made = make_directory(datastore, above) && (fd = open_below(datastore, above)) >= 0 &&
           (mkdirat(fd, base, 0711) == 0 ? fsync(fd) == 0 : errno == EEXIST);
    if (fd >= 0)
        close(fd);
    return made;
}

/* To `create` a file in it? */
static bool find_place(const struct agent_datastore *datastore, const char *name, bool create,
                       struct place *place, GError **error)
{
    g_autofree char *directory = g_path_get_dirname(name);

    *place = (struct place){.directory = -1};
    if (!is_a_name(datastore, name, error))
        return false;
    place->base = g_path_get_basename(name);
    place->path = g_build_filename(datastore->directory, name, NULL);
    if (create && datastore->is_name && !make_directory(datastore, directory))
        return blockmig_set_errno(error, errno, "%s/%s: making its directory", datastore->name, name);
    place->directory = open_below(datastore, directory);
    if (place->directory < 0 && errno == ENOENT && datastore->is_name)
        return true;
    return place->directory >= 0 || blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s/%s: its directory: %s",
                                                  datastore->name, name, g_strerror(errno));
}

static bool look_at(const struct agent_datastore *datastore, const char *name, const struct place *place,
                    struct name_info *info, GError **error)
{
    *info = (struct name_info){.kind = NAME_FREE};
    return place->directory < 0 || name_look_at(place->directory, place->base, info) ||
           blockmig_set_errno(error, errno, "%s/%s", datastore->name, name);
}

static bool refuse(const struct agent_datastore *datastore, const char *name, const char *why, GError **error)
{
    return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s/%s %s", datastore->name, name, why);
}

/* Is there such a file, or may it be made? */
static bool may_open(const struct agent_datastore *datastore, const char *name, const struct place *place,
                     unsigned flags, GError **error)
{
    struct name_info info;

    if (!look_at(datastore, name, place, &info, error))
        return false;
    if (info.kind == NAME_FREE)
        return flags & FILE_CREATE || refuse(datastore, name, "is not there", error);
    return name_is_plain(&info) || refuse(datastore, name, NOT_PLAIN, error);
}

struct storage *datastore_open(const struct agent_datastore *datastore, const char *name, unsigned flags,
                               GError **error)
{
    g_auto(place_t) place;
    g_autoptr(storage_t) storage = NULL;
    g_autofree char *real = NULL;
    struct name_info named;

    if (!find_place(datastore, name, flags & FILE_CREATE, &place, error) ||
        !may_open(datastore, name, &place, flags, error))
        return NULL;
    storage = storage_file_open(place.path, flags, NULL, &real, error);
    if (!storage || !look_at(datastore, name, &place, &named, error))
        return NULL;
    /* What was opened is what has the name, and no link was followed on the way. */
    if (!name_is_of(&named, storage)) {
        refuse(datastore, name, "became another file while it was opened", error);
        return NULL;
    }
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
    return !*name || (find_place(datastore, name, false, &place, error) &&
                      look_at(datastore, name, &place, info, error));
}

bool datastore_remove(const struct agent_datastore *datastore, const char *name, GError **error)
{
    g_auto(place_t) place;
    struct name_info info;

    if (!find_place(datastore, name, false, &place, error) || !look_at(datastore, name, &place, &info, error))
        return false;
    if (info.kind == NAME_FREE)
        return true;
    if (!name_is_plain(&info))
        return refuse(datastore, name, NOT_PLAIN, error);
    return (unlinkat(place.directory, place.base, 0) == 0 && fsync(place.directory) == 0) ||
           blockmig_set_errno(error, errno, "%s/%s: removing it", datastore->name, name);
}

bool datastore_rename(const struct agent_datastore *datastore, const char *from, const char *to,
                      const char *replaces, bool *taken, GError **error)
{
    g_auto(place_t) old = {.directory = -1};
    g_auto(place_t) new = {.directory = -1};

    *taken = false;
    if (!find_place(datastore, from, false, &old, error) || !find_place(datastore, to, false, &new, error))
        return false;
    return name_take_at(old.directory, old.base, new.directory, new.base, replaces, taken) ||
           blockmig_set_errno(error, errno, "%s/%s: taking the name %s", datastore->name, from, to);
}
