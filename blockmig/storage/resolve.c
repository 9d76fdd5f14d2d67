/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which object a name means, and whether it may be opened.  The object is held by an O_PATH descriptor, which
 * has no side effects (a FIFO does not block, a device does not start), judged by what the kernel says about
 * that descriptor, and opened again through /proc/self/fd: nobody can change it between check and use.
 */
#include "blockmig/storage/resolve.h"

#include "formats/error.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool refuse(GError **error, const char *what)
{
    g_set_error_literal(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED, what);
    return false;
}

static bool beneath(const char *path, const char *root)
{
    size_t length = strlen(root);

    while (length > 0 && root[length - 1] == '/')
        length--;
    return strncmp(path, root, length) == 0 && path[length] == '/';
}

/* `real` is where the kernel says that the open object is: no symbolic link is left in it. */
static bool roots_check(const char *real, const struct stat *st, const char *const *roots, GError **error)
{
    g_autoptr(GString) list = g_string_new(NULL);

    if (!S_ISREG(st->st_mode))
        return refuse(error, "not a regular file, which alone may be named inside an image");
    if (st->st_nlink == 0 || real[0] != '/')
        return refuse(error, "the file has no name any more");
    for (size_t i = 0; roots[i]; i++) {
        g_autofree char *root = realpath(roots[i], NULL);

        if (root && beneath(real, root))
            return true;
        g_string_append_printf(list, "%s%s", i ? ", " : "", roots[i]);
    }
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED,
                "%s lies outside the allowed directories (%s); --allow-root allows more", real, list->str);
    return false;
}

/* An O_PATH descriptor of what `path` names now; every check and the real open are about that object. */
static int open_path(const char *path, bool create, GError **error)
{
    int fd = -1;

    if (create)
        fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 && (!create || errno == EEXIST))
        fd = open(path, O_PATH | O_CLOEXEC);
    if (fd < 0 && (errno == ENOENT || errno == ENOTDIR || errno == ELOOP || errno == EACCES))
        g_set_error_literal(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED, g_strerror(errno));
    else if (fd < 0)
        blockmig_set_errno(error, errno, "opening");
    return fd;
}

static bool type_check(const struct stat *st, bool create, GError **error)
{
    if (S_ISREG(st->st_mode))
        return true;
    if (S_ISBLK(st->st_mode))
        return !create || refuse(error, "is a block device, not a file to be created");
    return refuse(error,
                  S_ISDIR(st->st_mode) ? "is a directory" : "neither a regular file nor a block device");
}

int resolve_open(const char *path, bool create, const char *const *roots, struct stat *st, char **real_path,
                 GError **error)
{
    int fd = open_path(path, create, error);
    g_autofree char *self = g_strdup_printf("/proc/self/fd/%d", fd);
    g_autofree char *real = NULL;
    bool ok;

    if (fd < 0)
        return -1;
    real = g_file_read_link(self, NULL);
    if (!real || fstat(fd, st) < 0)
        ok = blockmig_set_errno(error, errno, "looking up what it is");
    else
        ok = type_check(st, create, error) && (!roots || roots_check(real, st, roots, error));
    if (!ok) {
        close(fd);
        return -1;
    }
    *real_path = g_steal_pointer(&real);
    return fd;
}
