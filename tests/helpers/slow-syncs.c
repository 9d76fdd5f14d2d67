/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Preloaded into a hypervisor: as long as there is a file SLOW_SYNCS, fdatasync() takes 200 ms longer, as on
 * a datastore that is busy.  What waits for it in memory is not in the file until then.  As long as there is
 * a file SLOW_SYNCS.hold, which has the end of a name, it does not return once a file of such a name is open;
 * nor does a lock of any other file: nothing may have been written that is to be synced, but when a
 * hypervisor goes over to an overlay, it always takes other locks of what lies below.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A hypervisor's descriptors are small numbers. */
enum { DESCRIPTORS = 4096 };

static bool has_end(int fd, const char *end)
{
    char path[64], name[PATH_MAX];
    ssize_t length;

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    length = readlink(path, name, sizeof(name));
    return length >= (ssize_t)strlen(end) && memcmp(name + length - strlen(end), end, strlen(end)) == 0;
}

static bool is_open(const char *end)
{
    for (int fd = 0; fd < DESCRIPTORS; fd++)
        if (has_end(fd, end))
            return true;
    return false;
}

/* Is this to be held any longer?  -1: whatever file it is about. */
static bool is_held(const char *path, int other_than)
{
    char name[PATH_MAX], end[200];
    FILE *file;
    bool held;

    snprintf(name, sizeof(name), "%s.hold", path);
    file = fopen(name, "re");
    if (!file)
        return false;
    held = fscanf(file, "%199s", end) == 1 && is_open(end) && (other_than < 0 || !has_end(other_than, end));
    fclose(file);
    return held;
}

int fdatasync(int fd)
{
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    const char *path = getenv("SLOW_SYNCS");

    if (path && access(path, F_OK) == 0)
        usleep(200000);
    while (path && is_held(path, -1))
        usleep(10000);
    return real(fd);
}

/* What programs call that are built for large files.  Every command's argument is of the size of a pointer at
 * most. */
int fcntl64(int fd, int command, ...)
{
    int (*real)(int, int, ...) = (int (*)(int, int, ...))dlsym(RTLD_NEXT, "fcntl64");
    const char *path = getenv("SLOW_SYNCS");
    void *argument;
    va_list list;

    va_start(list, command);
    argument = va_arg(list, void *);
    va_end(list);
    while (path && command == F_OFD_SETLK && is_held(path, fd))
        usleep(10000);
    return real(fd, command, argument);
}
