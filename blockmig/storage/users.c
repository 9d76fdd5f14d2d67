/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/storage/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static bool same_object(const struct stat *a, const struct stat *b)
{
    if (S_ISBLK(a->st_mode))
        return S_ISBLK(b->st_mode) && a->st_rdev == b->st_rdev;
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/* Processes come and go while /proc is read: whatever is not there any more is nobody. */
static bool process_has_open(const char *pid, const struct stat *wanted)
{
    g_autofree char *path = g_strdup_printf("/proc/%s/fd", pid);
    g_autoptr(GDir) fds = g_dir_open(path, 0, NULL);
    const char *fd;

    while (fds && (fd = g_dir_read_name(fds))) {
        g_autofree char *link = g_build_filename(path, fd, NULL);
        struct stat st;

        if (stat(link, &st) == 0 && same_object(wanted, &st))
            return true;
    }
    return false;
}

GPtrArray *storage_file_users(const char *path)
{
    GPtrArray *users = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GDir) processes = g_dir_open("/proc", 0, NULL);
    const char *pid;
    struct stat st;

    if (stat(path, &st) < 0)
        return users;
    while (processes && (pid = g_dir_read_name(processes))) {
        g_autofree char *name = g_build_filename("/proc", pid, "comm", NULL);
        g_autofree char *command = NULL;

        if (!g_ascii_isdigit(pid[0]) || atol(pid) == (long)getpid() || !process_has_open(pid, &st))
            continue;
        if (g_file_get_contents(name, &command, NULL, NULL))
            g_strchomp(command);
        g_ptr_array_add(users, g_strdup_printf("%s (%s)", pid, command ? command : "?"));
    }
    return users;
}
