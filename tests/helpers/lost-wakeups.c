/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Preloaded into a client of libvirt: whoever begins to wait for an answer takes its time, and a second
 * caller on the same connection that wants to be heard meanwhile is noted in the file LOST_WAKEUPS.  What it
 * says is lost in libvirt 9.0: GLib's loop forgets that it was told to end before it began. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#define LOOPS 64

static void *waiting[LOOPS];

static void replace(void *old, void *new)
{
    for (int i = 0; i < LOOPS; i++) {
        void *expected = old;
        if (__atomic_compare_exchange_n(&waiting[i], &expected, new, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
            return;
    }
}

void g_main_loop_run(void *loop)
{
    void (*real)(void *) = (void (*)(void *))dlsym(RTLD_NEXT, "g_main_loop_run");
    replace(NULL, loop);
    usleep(3000);
    replace(loop, NULL);
    real(loop);
}

void g_main_loop_quit(void *loop)
{
    void (*real)(void *) = (void (*)(void *))dlsym(RTLD_NEXT, "g_main_loop_quit");
    const char *path = getenv("LOST_WAKEUPS");
    for (int i = 0; path && i < LOOPS; i++)
        if (__atomic_load_n(&waiting[i], __ATOMIC_SEQ_CST) == loop) {
            int fd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0644);
            if (fd < 0 || write(fd, "lost\n", 5) != 5)
                abort();
            close(fd);
        }
    real(loop);
}
