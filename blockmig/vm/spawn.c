/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/vm/spawn.h"

#include "formats/error.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <unistd.h>

static int spawn(char *const argv[], const int *fds, unsigned count, pid_t *pid)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none;
    int fault;

    sigemptyset(&none);
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK);
    posix_spawnattr_setsigmask(&attributes, &none);
    for (int fd = 0; fd < SPAWN_FIRST; fd++)
        posix_spawn_file_actions_addopen(&actions, fd, "/dev/null", O_RDWR, 0);
    for (unsigned i = 0; i < count; i++)
        posix_spawn_file_actions_adddup2(&actions, fds[i], SPAWN_FIRST + (int)i);
    posix_spawn_file_actions_addclosefrom_np(&actions, SPAWN_FIRST + (int)count);
    fault = posix_spawn(pid, "/proc/self/exe", &actions, &attributes, argv, environ);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    return fault;
}

bool spawn_self(char *const argv[], const int *fds, unsigned count, pid_t *pid, GError **error)
{
    g_autofree int *lifted = g_new(int, count + 1);
    unsigned open = 0;
    int fault = 0;

    /* Above those that they are moved to, so that no move hits another's. */
    while (open < count && (lifted[open] = fcntl(fds[open], F_DUPFD_CLOEXEC, SPAWN_FIRST + (int)count)) >= 0)
        open++;
    fault = open < count ? errno : spawn(argv, lifted, count, pid);
    while (open-- > 0)
        close(lifted[open]);
    return fault == 0 ||
           blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "starting %s: %s", argv[0], g_strerror(fault));
}
