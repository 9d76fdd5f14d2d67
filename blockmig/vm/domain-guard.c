/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/vm/domain-guard.h"

#include "blockmig/vm/domain.h"
#include "blockmig/vm/spawn.h"
#include "formats/error.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define NAME    "blockmig-domain-guard"
#define DEFAULT "-" /* instead of a URI */
#define TICK    (G_USEC_PER_SEC / 20)
#define TRIES   (60 * 20)

struct domain_guard {
    int fd; /* each byte is "armed" or not, and is answered */
    pid_t pid;
};

/* ---- the owner's side ---------------------------------------------------------------------------- */

struct domain_guard *domain_guard_start(const char *uri, const char *uuid, GError **error)
{
    char *argv[] = {(char *)NAME, (char *)(uri ? uri : DEFAULT), (char *)uuid, NULL};
    struct domain_guard *guard;
    int pair[2];
    pid_t pid;
    bool ok;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) {
        blockmig_set_errno(error, errno, "a guard for the domain");
        return NULL;
    }
    ok = spawn_self(argv, &pair[1], 1, &pid, error);
    close(pair[1]);
    if (!ok) {
        close(pair[0]);
        return NULL;
    }
    guard = g_new0(struct domain_guard, 1);
    guard->fd = pair[0];
    guard->pid = pid;
    return guard;
}

static bool tell(struct domain_guard *guard, char word)
{
    char answer;

    return send(guard->fd, &word, 1, MSG_NOSIGNAL) == 1 && recv(guard->fd, &answer, 1, 0) == 1;
}

bool domain_guard_arm(struct domain_guard *guard, GError **error)
{
    return tell(guard, 'a') ||
           blockmig_fail(error, BLOCKMIG_ERROR_FAILED,
                         "the guard does not answer: the machine is not stopped without it");
}

void domain_guard_disarm(struct domain_guard *guard)
{
    if (guard)
        tell(guard, 'd');
}

void domain_guard_stop(struct domain_guard *guard)
{
    if (!guard)
        return;
    tell(guard, 'd');
    close(guard->fd);
    waitpid(guard->pid, NULL, 0);
    g_free(guard);
}

/* ---- the guard ----------------------------------------------------------------------------------- */

bool domain_guard_wanted(int argc, char **argv)
{
    return argc == 3 && strcmp(argv[0], NAME) == 0;
}

/* True: there is nothing (more) to be done. */
static bool let_go_on(struct domain *domain)
{
    struct domain_progress ignored;
    struct domain_state now;

    if (!domain_look(domain, &now, NULL))
        return false;
    if (!now.active || now.running)
        return true;
    return !domain_migration_progress(domain, &ignored) && domain_resume(domain, NULL);
}

static void release(const char *uri, const char *uuid)
{
    for (unsigned tries = 0; tries < TRIES; tries++) {
        g_autoptr(domain_host_t) host =
            domain_host_open(strcmp(uri, DEFAULT) == 0 ? NULL : uri, "this host", NULL);
        struct domain *domain = host ? domain_open(host, uuid, NULL) : NULL;
        bool done = domain && let_go_on(domain);

        domain_close(domain);
        if (done)
            return;
        g_usleep(TICK);
    }
}

int domain_guard_main(char **argv)
{
    bool armed = false;
    char word;

    while (recv(SPAWN_FIRST, &word, 1, 0) == 1) {
        armed = word == 'a';
        if (send(SPAWN_FIRST, &word, 1, MSG_NOSIGNAL) != 1)
            break;
    }
    if (armed)
        release(argv[1], argv[2]);
    return 0;
}
