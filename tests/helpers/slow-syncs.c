/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Preloaded into a hypervisor: as long as there is a file SLOW_SYNCS, fdatasync() takes 200 ms longer, as on
 * a datastore that is busy.  What waits for it in memory is not in the file until then. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

int fdatasync(int fd)
{
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    const char *path = getenv("SLOW_SYNCS");

    if (path && access(path, F_OK) == 0)
        usleep(200000);
    return real(fd);
}
