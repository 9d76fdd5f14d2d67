/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The guard as its owner sees it: started, told, asked whether it lives, ended. */
#include "blockmig/vm/guard.h"

#include "blockmig/vm/guard-internal.h"
#include "blockmig/vm/qmp-stream.h"
#include "blockmig/vm/spawn.h"
#include "formats/error.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define START_TIMEOUT  10000u /* ms; an exec on a machine that swaps */
#define ANSWER_TIMEOUT 2000u
#define BUSY_TIMEOUT   ((GUARD_LIFE_MAX + 5) * 1000)

struct guard {
    pid_t pid;
    int channel;
    int dumpable; /* of this process, before it was armed */
    bool armed, freezing, dead;
};

static bool gone(struct guard *guard, const char *why, GError **error)
{
    guard->dead = true;
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED, "the pause guard (process %d) is gone: %s",
                (int)guard->pid, why);
    return false;
}

static bool answered(struct guard *guard, unsigned timeout, GError **error)
{
    gint64 deadline = g_get_monotonic_time() + (gint64)timeout * 1000;
    struct pollfd poll_fd = {.fd = guard->channel, .events = POLLIN};
    char packet[1024];
    g_autoptr(json_t) answer = NULL;
    const char *fault;
    int ready;
    ssize_t got;

    do
        ready = poll(&poll_fd, 1, MAX(0, (int)((deadline - g_get_monotonic_time() + 999) / 1000)));
    while (ready < 0 && errno == EINTR);
    if (ready <= 0)
        return gone(guard, ready ? g_strerror(errno) : "it does not answer", error);
    got = recv(guard->channel, packet, sizeof(packet), MSG_DONTWAIT);
    if (got <= 0)
        return gone(guard, got ? g_strerror(errno) : "it ended", error);
    answer = json_loadb(packet, got, JSON_REJECT_DUPLICATES, NULL);
    fault = json_string_value(json_object_get(answer, "error"));
    if (json_is_object(answer) && !fault)
        return true;
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED, "the pause guard refused: %s",
                fault ? fault : "it said something else");
    return false;
}

/* Takes the message over. */
static bool tell(struct guard *guard, json_t *message, GError **error)
{
    g_autoptr(json_t) owned = message;
    g_autofree char *packet = message ? json_dumps(message, JSON_COMPACT) : NULL;

    if (guard->dead)
        return gone(guard, "as was said before", error);
    if (!packet || strlen(packet) > GUARD_PACKET_MAX) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED, "what the pause guard must know is %s",
                    packet ? "too long" : "not UTF-8");
        return false;
    }
    /* Nothing is written before everything before it was read, so there is room, or the guard hangs. */
    if (send(guard->channel, packet, strlen(packet), MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
        return gone(guard, g_strerror(errno), error);
    return true;
}

static bool tell_word(struct guard *guard, const char *word, GError **error)
{
    return tell(guard, json_pack("{s:s}", "do", word), error);
}

/* ---- starting ---- */

static bool launch(struct guard *guard, struct vm *vm, const char *log, GError **error)
{
    g_autofree char *path = g_canonicalize_filename(log, NULL);
    char *argv[] = {(char *)"blockmig-guard", (char *)GUARD_ARGUMENT, vm->name, path, NULL};
    int pair[2];
    bool fine;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED, "starting the pause guard: %s",
                    g_strerror(errno));
        return false;
    }
    guard->channel = pair[0];
    fine = spawn_self(argv, (const int[]){pair[1], vm_fd(vm)}, 2, &guard->pid, error);
    close(pair[1]);
    return fine && answered(guard, START_TIMEOUT, error);
}

struct guard *guard_start(struct vm *vm, const char *log, GError **error)
{
    g_autoptr(guard_t) guard = g_new0(struct guard, 1);

    guard->channel = -1;
    if (!launch(guard, vm, log, error)) {
        guard->dead = true;
        return NULL;
    }
    return g_steal_pointer(&guard);
}

/* ---- telling ---- */

/* NULL: a name is not UTF-8. */
static json_t *device_list(const struct guard_device *devices, unsigned count)
{
    g_autoptr(json_t) list = json_array();

    for (unsigned i = 0; i < count; i++)
        if (json_array_append_new(list, json_pack("{s:s, s:s, s:s}", "qdev", devices[i].qdev, "from",
                                                  devices[i].from, "to", devices[i].to)) < 0)
            return NULL;
    return g_steal_pointer(&list);
}

/* The kernel closes the channel of a process that crashes only after it has written its core: that would be a
 * pause of seconds.  So there is none while the guest is stopped. */
static void set_armed(struct guard *guard, bool armed)
{
    if (armed && !guard->armed)
        guard->dumpable = prctl(PR_GET_DUMPABLE);
    if (armed || guard->armed)
        prctl(PR_SET_DUMPABLE, !armed && guard->dumpable == 1);
    guard->armed = armed;
}

bool guard_arm(struct guard *guard, const struct guard_device *devices, unsigned count, unsigned limit,
               GError **error)
{
    json_t *list = device_list(devices, count);
    json_t *message =
        list ? json_pack("{s:s, s:I, s:o}", "do", "arm", "limit", (json_int_t)limit, "devices", list) : NULL;

    if (!tell(guard, message, error) || !answered(guard, ANSWER_TIMEOUT, error))
        return false;
    set_armed(guard, true);
    return true;
}

bool guard_stay(struct guard *guard, GError **error)
{
    return tell_word(guard, "stay", error);
}

bool guard_merged(struct guard *guard, GError **error)
{
    return tell_word(guard, "merged", error);
}

bool guard_disarm(struct guard *guard, GError **error)
{
    set_armed(guard, false);
    return tell_word(guard, "disarm", error);
}

bool guard_freezing(struct guard *guard, GError **error)
{
    if (!tell_word(guard, "freezing", error) || !answered(guard, ANSWER_TIMEOUT, error))
        return false;
    guard->freezing = true;
    return true;
}

bool guard_thawed(struct guard *guard, GError **error)
{
    guard->freezing = false;
    return tell_word(guard, "thawed", error);
}

/* Collects it, when it has ended by itself or in `timeout`. */
static void collect(struct guard *guard, int timeout)
{
    struct pollfd poll_fd = {.fd = pidfd_open(guard->pid, 0), .events = POLLIN};
    int ready;

    do
        ready = poll_fd.fd < 0 ? 0 : poll(&poll_fd, 1, timeout);
    while (ready < 0 && errno == EINTR);
    if (ready <= 0)
        kill(guard->pid, SIGKILL);
    while (waitpid(guard->pid, NULL, 0) < 0 && errno == EINTR)
        ;
    if (poll_fd.fd >= 0)
        close(poll_fd.fd);
}

void guard_stop(struct guard *guard)
{
    bool busy;

    if (!guard)
        return;
    busy = guard->armed || guard->freezing;
    if (!busy && !guard->dead)
        tell_word(guard, "goodbye", NULL);
    set_armed(guard, false);
    if (guard->channel >= 0)
        close(guard->channel);
    if (guard->pid > 0)
        collect(guard, busy ? BUSY_TIMEOUT : guard->dead ? 0 : ANSWER_TIMEOUT);
    g_free(guard);
}

pid_t guard_pid(const struct guard *guard)
{
    return guard->pid;
}
