/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Preloaded into who compares: as long as there is a file WAITING_READS, pread() of what a machine is to
 * arrive on (NAME.blockmig-new) ends only when the machine whose monitor is WAITING_QMP does not stand still.
 */
#define _GNU_SOURCE
#include "stands-still.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/types.h>

static bool is_overlay(int fd)
{
    static const char end[] = ".blockmig-new";
    char link[64], path[4096];
    ssize_t got;

    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    got = readlink(link, path, sizeof(path) - 1);
    return got >= (ssize_t)strlen(end) && memcmp(path + got - strlen(end), end, strlen(end)) == 0;
}

ssize_t pread(int fd, void *buffer, size_t count, off_t offset)
{
    ssize_t (*real)(int, void *, size_t, off_t) =
        (ssize_t(*)(int, void *, size_t, off_t))dlsym(RTLD_NEXT, "pread");
    const char *path = getenv("WAITING_READS"), *qmp = getenv("WAITING_QMP");

    if (path && qmp && strlen(qmp) < sizeof(address.sun_path) && is_overlay(fd) && access(path, F_OK) == 0) {
        strcpy(address.sun_path, qmp);
        wait_while_it_stands_still();
    }
    return real(fd, buffer, count, offset);
}
