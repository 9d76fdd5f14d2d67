/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The guard itself.  It sleeps in poll() until its owner says something or ends.  From then on the connection
 * is its own, and what it does must be right in whatever state the owner left the machine:
 *
 *   - Commands that the owner sent are carried out by then: the monitor takes them in order, and half a
 * command is made void by vm_adopt().
 *   - Pivots on their way are ended, to whichever side.  Where a device is then, only the hypervisor knows.
 *   - As long as the guest is stopped, `from` holds everything, so going back to it is always right.
 */
#include "blockmig/vm/guard-internal.h"
#include "blockmig/vm/qmp-stream.h"
#include "formats/error.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define ADOPT_TRIES   3     /* each waits some 10 s for a monitor that does not answer */
#define PIVOT_TIMEOUT 5000u /* ms */
#define DEATH_TIMEOUT                                                                                        \
    50 /* ms; for a process in a system call that does not end, nothing more can be done                     \
        */

struct watch {
    const char *machine, *log;
    int owner;                     /* pidfd; -1: not known */
    json_t *devices;               /* as armed; NULL: not armed */
    struct guard_device *to_place; /* the same, with strings of `devices` */
    size_t count;
    gint64 deadline; /* monotonic; 0: none */
    gint64 began;    /* when it took over */
    bool merged, stay, frozen, expired;
};

/* ---- the log ---- */

static void note(const struct watch *watch, const char *format, ...) G_GNUC_PRINTF(2, 3);
static void note(const struct watch *watch, const char *format, ...)
{
    g_autoptr(GDateTime) now = g_date_time_new_now_utc();
    g_autofree char *stamp = g_date_time_format(now, "%Y-%m-%dT%H:%M:%S.%fZ");
    g_autofree char *text = NULL;
    g_autofree char *line = NULL;
    int fd = open(watch->log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    va_list arguments;

    va_start(arguments, format);
    text = g_strdup_vprintf(format, arguments);
    va_end(arguments);
    line = g_strdup_printf("%s %s: %s\n", stamp, watch->machine, text);
    /* A log that cannot be written must not keep a guest stopped. */
    if (fd >= 0 && write(fd, line, strlen(line)) < 0)
        text[0] = '\0';
    if (fd >= 0)
        close(fd);
}

/* ---- what the owner says ---- */

static void disarm(struct watch *watch)
{
    json_decref(g_steal_pointer(&watch->devices));
    g_clear_pointer(&watch->to_place, g_free);
    watch->count = 0;
    watch->deadline = 0;
    watch->merged = watch->stay = false;
}

static bool is_device(json_t *entry)
{
    return json_is_string(json_object_get(entry, "qdev")) && json_is_string(json_object_get(entry, "from")) &&
           json_is_string(json_object_get(entry, "to"));
}

/* NULL, or what is wrong with it; then nothing has changed. */
static const char *arm(struct watch *watch, json_t *message)
{
    json_t *devices = json_object_get(message, "devices"), *limit = json_object_get(message, "limit");
    size_t i;
    json_t *entry;

    if (!json_is_array(devices) || json_array_size(devices) > GUARD_DEVICES_MAX)
        return "\"devices\" is no list, or too long";
    if (!json_is_integer(limit) || json_integer_value(limit) < 0 || json_integer_value(limit) > G_MAXINT)
        return "\"limit\" is no time";
    json_array_foreach(devices, i, entry)
    {
        if (!is_device(entry))
            return "a device lacks \"qdev\", \"from\" or \"to\"";
    }
    disarm(watch);
    watch->devices = json_incref(devices);
    watch->count = json_array_size(devices);
    watch->to_place = g_new0(struct guard_device, watch->count + 1);
    json_array_foreach(devices, i, entry)
    {
        watch->to_place[i] = (struct guard_device){json_string_value(json_object_get(entry, "qdev")),
                                                   json_string_value(json_object_get(entry, "from")),
                                                   json_string_value(json_object_get(entry, "to"))};
    }
    if (json_integer_value(limit) > 0)
        watch->deadline = g_get_monotonic_time() + json_integer_value(limit) * 1000;
    return NULL;
}

static void answer(const char *fault)
{
    g_autoptr(json_t) reply = fault ? json_pack("{s:s}", "error", fault) : json_object();
    g_autofree char *packet = json_dumps(reply, JSON_COMPACT);

    if (send(GUARD_CHANNEL, packet, strlen(packet), MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
        return; /* the owner is gone, which poll() will say */
}

/* False: the owner needs us no more. */
static bool obey(struct watch *watch, const char *packet, size_t length)
{
    g_autoptr(json_t) message =
        length <= GUARD_PACKET_MAX ? json_loadb(packet, length, JSON_REJECT_DUPLICATES, NULL) : NULL;
    const char *word = json_string_value(json_object_get(message, "do"));

    if (g_strcmp0(word, "arm") == 0) {
        answer(arm(watch, message));
    } else if (g_strcmp0(word, "merged") == 0) {
        watch->merged = watch->devices != NULL;
    } else if (g_strcmp0(word, "stay") == 0) {
        watch->stay = watch->devices != NULL;
    } else if (g_strcmp0(word, "disarm") == 0) {
        disarm(watch);
    } else if (g_strcmp0(word, "freezing") == 0) {
        watch->frozen = true;
        answer(NULL);
    } else if (g_strcmp0(word, "thawed") == 0) {
        watch->frozen = false;
    } else if (g_strcmp0(word, "goodbye") == 0) {
        return watch->devices || watch->frozen;
    } else {
        answer("it was told something that it does not know");
    }
    return true;
}

static int time_left(const struct watch *watch)
{
    gint64 left = (watch->deadline - g_get_monotonic_time() + 999) / 1000;

    return watch->deadline == 0 ? -1 : (int)CLAMP(left, 0, G_MAXINT);
}

/* Until the owner ends, says goodbye (false: there is nothing to do), or exceeds its limit. */
static bool listen_to_owner(struct watch *watch)
{
    g_autofree char *packet = g_malloc(GUARD_PACKET_MAX);

    for (;;) {
        struct pollfd poll_fd = {.fd = GUARD_CHANNEL, .events = POLLIN};
        int ready = poll(&poll_fd, 1, time_left(watch));
        ssize_t got;

        if (ready < 0 && errno == EINTR)
            continue;
        watch->expired = ready == 0;
        if (ready <= 0)
            return true;
        got = recv(GUARD_CHANNEL, packet, GUARD_PACKET_MAX, MSG_DONTWAIT | MSG_TRUNC);
        if (got < 0 && (errno == EAGAIN || errno == EINTR))
            continue;
        if (got <= 0)
            return watch->devices || watch->frozen;
        if (!obey(watch, packet, got))
            return false;
    }
}

/* ---- taking over ---- */

/* Its threads run no instruction of its own any more once the signal is there; one in a system call that does
 * not return is as good as dead. */
static void end_owner(const struct watch *watch)
{
    struct pollfd poll_fd = {.fd = watch->owner, .events = POLLIN};

    if (watch->owner < 0 || pidfd_send_signal(watch->owner, SIGKILL, NULL, 0) < 0)
        return;
    while (poll(&poll_fd, 1, DEATH_TIMEOUT) < 0 && errno == EINTR)
        ;
}

/* A hypervisor that is busy with itself may answer later. */
static struct vm *adopt(const struct watch *watch)
{
    for (int i = 0; i < ADOPT_TRIES; i++) {
        g_autoptr(GError) fault = NULL;
        struct vm *vm = vm_adopt(watch->machine, fcntl(GUARD_MONITOR, F_DUPFD_CLOEXEC, 0), &fault);

        if (vm)
            return vm;
        note(watch, "%s", fault->message);
    }
    return NULL;
}

/* How many devices are on their `to`; *pivots is filled with their way back. */
static unsigned on_the_other_side(const struct watch *watch, struct vm *vm, struct vm_pivot *pivots)
{
    g_autofree const char **qdevs = g_new0(const char *, watch->count + 1);
    g_auto(GStrv) nodes = g_new0(char *, watch->count + 1);
    g_autoptr(GError) fault = NULL;
    unsigned count = 0;

    for (size_t i = 0; i < watch->count; i++)
        qdevs[i] = watch->to_place[i].qdev;
    if (!vm_active_nodes(vm, qdevs, watch->count, nodes, &fault))
        note(watch, "%s", fault->message);
    for (size_t i = 0; !fault && i < watch->count; i++) {
        const struct guard_device *device = &watch->to_place[i];
        const char *node = nodes[i];

        if (!node)
            note(watch, "device %s is on no node", device->qdev);
        else if (strcmp(node, device->to) == 0)
            pivots[count++] = (struct vm_pivot){.from = device->to, .to = device->from};
        else if (strcmp(node, device->from) != 0)
            note(watch, "device %s is on node \"%s\": neither \"%s\" nor \"%s\"", device->qdev, node,
                 device->from, device->to);
    }
    return count;
}

/* Of a stopped machine.  False: some device stays on a node that lacks the last delta. */
static bool choose_side(const struct watch *watch, struct vm *vm)
{
    g_autofree struct vm_pivot *pivots = g_new0(struct vm_pivot, watch->count + 1);
    unsigned count = on_the_other_side(watch, vm, pivots);
    g_autoptr(GError) fault = NULL;

    if (count == 0 || (count == watch->count && watch->merged)) {
        note(watch, "%s", count ? "all devices are on the new nodes" : "no device is on a new node");
        return true;
    }
    if (vm_pivot(vm, pivots, count, PIVOT_TIMEOUT, &fault)) {
        note(watch, "%u of %zu devices were brought back to the old nodes", count, watch->count);
        return true;
    }
    note(watch, "%s", fault->message);
    return watch->merged || on_the_other_side(watch, vm, pivots) == 0;
}

static void resume(const struct watch *watch, struct vm *vm)
{
    g_autoptr(GError) fault = NULL;

    if (vm_resume(vm, NULL, &fault) || (g_clear_error(&fault), vm_resume(vm, NULL, &fault)))
        note(watch, "the guest runs again, %.1f ms after the guard took over",
             (g_get_monotonic_time() - watch->began) / 1e3);
    else
        note(watch, "THE GUEST IS STILL PAUSED: %s", fault->message);
}

static void take_over(const struct watch *watch, struct vm *vm)
{
    g_autoptr(GError) fault = NULL;
    g_autofree char *status = NULL;
    bool running = false;

    if (!vm_status(vm, &running, &status, &fault) || !vm_end_pivots(vm, PIVOT_TIMEOUT, &fault))
        note(watch, "%s", fault->message);
    if (running)
        note(watch, "the guest runs already");
    else if (!choose_side(watch, vm))
        note(watch, "THE GUEST STAYS PAUSED: a device is on a target that is not complete and cannot be "
                    "brought back");
    else if (watch->stay || (status && strcmp(status, "paused") != 0))
        /* Not by our stop: it is off, has crashed, or waits for an administrator. */
        note(watch, "the guest is \"%s\" and stays so", status ? status : "stopped");
    else
        resume(watch, vm);
}

static int act(struct watch *watch)
{
    g_autoptr(vm_t) vm = NULL;

    watch->began = g_get_monotonic_time();
    alarm(GUARD_LIFE_MAX);
    if (watch->expired) {
        note(watch, "the limit of the pause is exceeded: process %d is ended", (int)getppid());
        end_owner(watch);
    }
    vm = adopt(watch);
    if (!vm) {
        note(watch, "THE GUEST MAY BE PAUSED: its monitor cannot be reached");
        return 1;
    }
    if (watch->devices)
        take_over(watch, vm);
    if (watch->frozen) {
        g_autoptr(GError) fault = NULL;
        bool thawed = vm_thaw_left(vm, &fault);

        note(watch, "%s%s", thawed ? "the guest's file systems are thawed" : "THE GUEST MAY BE FROZEN: ",
             thawed ? "" : fault->message);
    }
    return 0;
}

/* ---- the process ---- */

/* It must not end before its time, and when the time comes it must not wait for others.  What is not
 * permitted is left as it is. */
static void harden(void)
{
    static const int ignored[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE, SIGUSR1, SIGUSR2, SIGTSTP};
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

    for (guint i = 0; i < G_N_ELEMENTS(ignored); i++)
        signal(ignored[i], SIG_IGN);
    prctl(PR_SET_NAME, "blockmig-guard");
    if (fd >= 0) {
        if (write(fd, "-1000", 5) < 0)
            errno = 0;
        close(fd);
    }
    setpriority(PRIO_PROCESS, 0, -15);
    if (chdir("/") < 0)
        errno = 0;
}

/* The process at the other end of the channel, if it is still what it was. */
static int open_owner(void)
{
    struct ucred peer;
    socklen_t length = sizeof(peer);
    int owner;

    if (getsockopt(GUARD_CHANNEL, SOL_SOCKET, SO_PEERCRED, &peer, &length) < 0)
        return -1;
    owner = pidfd_open(peer.pid, 0);
    /* Nobody else has got its number if it is our parent now. */
    if (owner >= 0 && getppid() != peer.pid) {
        close(owner);
        return -1;
    }
    return owner;
}

bool guard_wanted(int argc, char **argv)
{
    return argc == 4 && strcmp(argv[1], GUARD_ARGUMENT) == 0;
}

int guard_main(char **argv)
{
    struct watch watch = {.machine = argv[2], .log = argv[3], .owner = open_owner()};
    int status = 0;

    harden();
    answer(NULL);
    if (listen_to_owner(&watch))
        status = act(&watch);
    disarm(&watch);
    return status;
}
