/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/storage/file.h"

#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

/* A file or device, and a process that has it open. */
struct opened {
    mode_t type;
    dev_t device; /* of a device its own number: it may have several nodes */
    ino_t inode;  /* 0 for a device */
    int pid;
};

static GArray *remembered; /* of struct opened; or NULL */

static struct opened identify(const struct stat *st, int pid)
{
    bool device = S_ISBLK(st->st_mode);

    return (struct opened){.type = st->st_mode & S_IFMT,
                           .device = device ? st->st_rdev : st->st_dev,
                           .inode = device ? 0 : st->st_ino,
                           .pid = pid};
}

static bool same_object(const struct opened *a, const struct opened *b)
{
    return a->type == b->type && a->device == b->device && a->inode == b->inode;
}

/* Processes come and go while /proc is read: whatever is not there any more is nobody. */
static void add_process(GArray *all, const char *pid)
{
    g_autofree char *path = g_strdup_printf("/proc/%s/fd", pid);
    g_autoptr(GDir) fds = g_dir_open(path, 0, NULL);
    const char *fd;

    while (fds && (fd = g_dir_read_name(fds))) {
        g_autofree char *link = g_build_filename(path, fd, NULL);
        struct stat st;

        if (stat(link, &st) == 0 && (S_ISREG(st.st_mode) || S_ISBLK(st.st_mode))) {
            struct opened opened = identify(&st, atoi(pid));

            g_array_append_val(all, opened);
        }
    }
}

static GArray *look_at_all(void)
{
    GArray *all = g_array_new(FALSE, FALSE, sizeof(struct opened));
    g_autoptr(GDir) processes = g_dir_open("/proc", 0, NULL);
    const char *pid;

    while (processes && (pid = g_dir_read_name(processes)))
        if (g_ascii_isdigit(pid[0]) && atol(pid) != (long)getpid())
            add_process(all, pid);
    return all;
}

void storage_file_users_remember(void)
{
    g_clear_pointer(&remembered, g_array_unref);
    remembered = look_at_all();
}

static char *describe(int pid)
{
    g_autofree char *name = g_strdup_printf("/proc/%d/comm", pid);
    g_autofree char *command = NULL;

    if (g_file_get_contents(name, &command, NULL, NULL))
        g_strchomp(command);
    return g_strdup_printf("%d (%s)", pid, command ? command : "?");
}

GPtrArray *storage_file_users(const char *path)
{
    GPtrArray *users = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GArray) all = NULL;
    int last = -1; /* what a process has open stands together */
    struct stat st;

    if (stat(path, &st) < 0)
        return users;
    all = remembered ? g_array_ref(remembered) : look_at_all();
    struct opened wanted = identify(&st, last);
    for (guint i = 0; i < all->len; i++) {
        const struct opened *opened = &g_array_index(all, struct opened, i);

        if (opened->pid == last || !same_object(opened, &wanted))
            continue;
        last = opened->pid;
        g_ptr_array_add(users, describe(last));
    }
    return users;
}
