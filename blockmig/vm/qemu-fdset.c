/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Files that QEMU knows by descriptor and not by name: a set of descriptors is opened as "/dev/fdset/N". QEMU
 * chooses N; which node a set belongs to stands in the tag of its descriptor, so that a later run of ours
 * finds it.
 *
 * There is one descriptor in a set, and its node never changes its access mode.  With two, O_RDONLY and
 * O_RDWR, QEMU changes from one to the other and leaves the image locks on the one that it left, which is
 * still open in the set; it then meets its own lock and aborts ("Failed to get shared "write" lock", 7.2).
 */
#include "blockmig/vm/qemu.h"
#include "formats/error.h"

#include <string.h>

#define TAG_PREFIX "blockmig "

char *qemu_fdset_add(struct qmp *qmp, const char *node, int fd, GError **error)
{
    g_autofree char *tag = g_strconcat(TAG_PREFIX, node, NULL);
    g_autoptr(json_t) value =
        qmp_command_fd(qmp, "add-fd", json_pack("{s:s}", "opaque", tag), fd, QMP_TIMEOUT, error);
    json_t *set = json_object_get(value, "fdset-id");

    if (!value)
        return NULL;
    if (!json_is_integer(set) || json_integer_value(set) < 0) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_UNREACHABLE, "\"add-fd\" returned no \"fdset-id\"");
        return NULL;
    }
    return g_strdup_printf("/dev/fdset/%" JSON_INTEGER_FORMAT, json_integer_value(set));
}

static bool is_tagged(json_t *set, const char *node)
{
    json_t *fds = json_object_get(set, "fds");
    size_t i;
    json_t *fd;

    json_array_foreach(fds, i, fd)
    {
        const char *tag = member_text(fd, "opaque");

        if (tag && g_str_has_prefix(tag, TAG_PREFIX) && strcmp(tag + strlen(TAG_PREFIX), node) == 0)
            return true;
    }
    return false;
}

bool qemu_fdset_exists(struct qmp *qmp, const char *node, bool *there, GError **error)
{
    g_autoptr(json_t) sets = qmp_command(qmp, "query-fdsets", NULL, QMP_TIMEOUT, error);
    size_t i;
    json_t *set;

    *there = false;
    json_array_foreach(sets, i, set)
    {
        *there |= is_tagged(set, node);
    }
    return sets != NULL;
}

/* A stopped QEMU keeps a removed set in the list until it runs again; removing it twice is no error there. */
bool qemu_fdset_remove(struct qmp *qmp, const char *node, GError **error)
{
    g_autoptr(json_t) sets = qmp_command(qmp, "query-fdsets", NULL, QMP_TIMEOUT, error);
    size_t i;
    json_t *set;

    json_array_foreach(sets, i, set)
    {
        json_int_t id = json_integer_value(json_object_get(set, "fdset-id"));

        if (is_tagged(set, node) &&
            !qmp_do(qmp, "remove-fd", json_pack("{s:I}", "fdset-id", id), QMP_TIMEOUT, error))
            return false;
    }
    return sets != NULL;
}

/* The numbers in query-fdsets are QEMU's own descriptors, and the kernel knows what they are called now. */
char *qemu_fdset_file(json_t *sets, const char *name, pid_t pid)
{
    gint64 wanted = g_ascii_strtoll(name + strlen("/dev/fdset/"), NULL, 10);
    size_t i;
    json_t *set;

    json_array_foreach(sets, i, set)
    {
        json_t *fd = json_array_get(json_object_get(set, "fds"), 0);
        g_autofree char *path = NULL;
        g_autofree char *target = NULL;

        if (!fd || pid <= 0 || json_integer_value(json_object_get(set, "fdset-id")) != wanted)
            continue;
        path = g_strdup_printf("/proc/%d/fd/%" JSON_INTEGER_FORMAT, (int)pid,
                               json_integer_value(json_object_get(fd, "fd")));
        target = g_file_read_link(path, NULL);
        if (target && g_path_is_absolute(target) && !g_str_has_suffix(target, " (deleted)"))
            return g_steal_pointer(&target);
    }
    return NULL;
}
