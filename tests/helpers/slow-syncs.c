/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Preloaded into a hypervisor: as long as there is a file SLOW_SYNCS, fdatasync() takes 200 ms longer, as on
 * a datastore that is busy.  What waits for it in memory is not in the file until then.  As long as there is
 * a file SLOW_SYNCS.hold, which has the end of a name, it does not return once a file of such a name is open.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A hypervisor's descriptors are small numbers. */
enum { DESCRIPTORS = 4096 };

static bool is_open(const char *end)
{
    for (int fd = 0; fd < DESCRIPTORS; fd++) {
        char path[64], name[PATH_MAX];
        ssize_t length;

        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        length = readlink(path, name, sizeof(name));
        if (length >= (ssize_t)strlen(end) && memcmp(name + length - strlen(end), end, strlen(end)) == 0)
            return true;
    }
    return false;
}

/* Is the sync to be held any longer? */
static bool is_held(const char *path)
{
    char name[PATH_MAX], end[200];
    FILE *file;
    bool held;

    snprintf(name, sizeof(name), "%s.hold", path);
    file = fopen(name, "re");
    if (!file)
        return false;
    held = fscanf(file, "%199s", end) == 1 && is_open(end);
    fclose(file);
    return held;
}

int fdatasync(int fd)
{
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    const char *path = getenv("SLOW_SYNCS");

    if (path && access(path, F_OK) == 0)
        usleep(200000);
    while (path && is_held(path))
        usleep(10000);
    return real(fd);
}
