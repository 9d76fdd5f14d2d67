/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/storage/names.h"

#include "blockmig/storage/agent-client.h"
#include "blockmig/storage/file.h"
#include "blockmig/storage/uri.h"
#include "formats/error.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PROBE ".blockmig-probe-"

char *name_new_probe(void)
{
    g_autofree char *id = agent_new_id();

    return g_strconcat(PROBE, id, NULL);
}

bool name_is_probe(const char *name)
{
    return g_str_has_prefix(name, PROBE) && agent_is_id(name + strlen(PROBE));
}

/* ---- of this host ------------------------------------------------------------------------------- */

static void describe(const struct stat *st, struct name_info *info)
{
    info->kind = S_ISREG(st->st_mode) ? NAME_FILE : S_ISDIR(st->st_mode) ? NAME_DIRECTORY : NAME_OTHER;
    if (info->kind != NAME_FILE)
        return;
    info->size = (uint64_t)st->st_size;
    info->allocated = (uint64_t)st->st_blocks * 512;
    info->single = st->st_nlink == 1;
    storage_file_identity(st, info->identity, sizeof(info->identity));
}

bool name_look_at(int directory, const char *name, struct name_info *info)
{
    struct stat st;

    *info = (struct name_info){.kind = NAME_FREE};
    if (fstatat(directory, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT || errno == ENOTDIR;
    describe(&st, info);
    return true;
}

static bool has_identity(int directory, const char *name, const char *identity)
{
    struct name_info info;

    return identity && name_look_at(directory, name, &info) && strcmp(info.identity, identity) == 0;
}

bool name_take_at(int from_directory, const char *from, int to_directory, const char *to,
                  const char *replaces, bool *taken)
{
    bool may_replace = has_identity(to_directory, to, replaces);
    int rc = renameat2(from_directory, from, to_directory, to, may_replace ? 0 : RENAME_NOREPLACE);
    struct name_info info;

    *taken = rc < 0 && errno == EEXIST;
    /* Not every file system can promise not to replace: then a look has to do. */
    if (rc < 0 && errno == EINVAL && !may_replace) {
        *taken = !name_look_at(to_directory, to, &info) || info.kind != NAME_FREE;
        rc = *taken ? -1 : renameat(from_directory, from, to_directory, to);
    }
    return *taken || (rc == 0 && fsync(to_directory) == 0);
}

static bool look_here(const char *name, struct name_info *info, GError **error)
{
    return name_look_at(AT_FDCWD, name, info) || blockmig_set_errno(error, errno, "%s", name);
}

static bool remove_here(const char *name, GError **error)
{
    return unlink(name) == 0 || errno == ENOENT || blockmig_set_errno(error, errno, "%s: removing it", name);
}

static bool take_here(const char *from, const char *to, const char *replaces, bool *taken, GError **error)
{
    g_autofree char *path = g_path_get_dirname(to), *old = g_path_get_basename(from);
    g_autofree char *new = g_path_get_basename(to);
    int directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool ok = directory >= 0 && name_take_at(directory, old, directory, new, replaces, taken);
    int reason = errno;

    if (directory >= 0)
        close(directory);
    return ok || blockmig_set_errno(error, reason, "%s: cannot take the name %s", from, to);
}

static const struct name_ops here = {look_here, remove_here, take_here, NULL};

/* ---- wherever they are -------------------------------------------------------------------------- */

static const struct name_ops *ops_of(const char *name, GError **error)
{
    const struct name_ops *ops = storage_name_is_uri(name) ? storage_uri_names(name, error) : &here;

    if (!ops && error && !*error)
        blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s: there are no names to be given", name);
    return ops;
}

bool name_is_plain(const struct name_info *info)
{
    return info->kind == NAME_FILE && info->single;
}

bool name_is_of(const struct name_info *info, const struct storage *storage)
{
    return name_is_plain(info) && strcmp(info->identity, storage->identity) == 0;
}

bool name_has_files(const char *name)
{
    return ops_of(name, NULL) != NULL;
}

bool name_look(const char *name, struct name_info *info, GError **error)
{
    const struct name_ops *ops = ops_of(name, error);

    *info = (struct name_info){.kind = NAME_FREE};
    return ops && ops->look(name, info, error);
}

static char *life_here(const char *name, GError **error)
{
    struct statx stx = {0};

    if (statx(AT_FDCWD, name, AT_SYMLINK_NOFOLLOW, STATX_INO | STATX_BTIME, &stx) == 0)
        return g_strdup_printf("%" PRIu64 "-%" PRId64 ".%09u", (uint64_t)stx.stx_ino,
                               (int64_t)stx.stx_btime.tv_sec, stx.stx_btime.tv_nsec);
    blockmig_set_errno(error, errno, "%s", name);
    return NULL;
}

/* Of what an agent has only the inode is known, at the end of its identity; of a directory there, nothing. */
char *name_life(const char *name, GError **error)
{
    const char *inode;
    struct name_info info;

    if (!storage_name_is_uri(name))
        return life_here(name, error);
    if (!name_look(name, &info, error))
        return NULL;
    if (info.kind == NAME_FREE) {
        blockmig_set_errno(error, ENOENT, "%s", name);
        return NULL;
    }
    inode = strrchr(info.identity, ':');
    return g_strdup(inode ? inode + 1 : "-");
}

bool name_exists(const char *name)
{
    struct name_info info;

    return name_look(name, &info, NULL) && info.kind != NAME_FREE;
}

bool name_check_deletable(const char *path, GError **error)
{
    struct stat st;

    return stat(path, &st) < 0 || !S_ISBLK(st.st_mode) ||
           blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                         "%s is a block device: --delete-source cannot delete it", path);
}

bool name_remove(const char *name, GError **error)
{
    const struct name_ops *ops = ops_of(name, error);

    return ops && ops->remove(name, error);
}

bool name_take(const char *from, const char *to, const char *replaces, bool *taken, GError **error)
{
    const struct name_ops *ops = ops_of(from, error);

    *taken = false;
    return ops && ops->take(from, to, replaces, taken, error);
}

bool name_room(const char *directory, uint64_t *available, GError **error)
{
    const struct name_ops *ops = ops_of(directory, error);

    return ops && ops->room(directory, available, error);
}
