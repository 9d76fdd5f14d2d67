/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A machine behind QEMU's monitor: "qmp:SOCKET".  Running, stopping, counting, limiting; the table. */
#include "blockmig/vm/qemu.h"

#include "formats/error.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define REQUIRED_LIMITS 6 /* of block_set_io_throttle; a maximum of 0 is refused */

static struct vm *wrap(struct qmp *qmp)
{
    struct qemu *qemu;

    if (!qmp)
        return NULL;
    qemu = g_new0(struct qemu, 1);
    qemu->qmp = qmp;
    return &qemu->vm;
}

static struct vm *qemu_open(const char *address, GError **error)
{
    return wrap(qmp_connect(address, QMP_TIMEOUT, error));
}

static struct vm *qemu_adopt(int fd, GError **error)
{
    return wrap(qmp_adopt(fd, QMP_TIMEOUT, error));
}

/* A busy monitor is not one that nobody listens to. */
static bool qemu_is_off(const char *address)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    bool off;

    if (fd < 0)
        return false;
    g_strlcpy(name.sun_path, address, sizeof(name.sun_path));
    off =
        connect(fd, (struct sockaddr *)&name, sizeof(name)) < 0 && (errno == ENOENT || errno == ECONNREFUSED);
    close(fd);
    return off;
}

static void qemu_close(struct vm *vm)
{
    struct qemu *qemu = qemu_of(vm);

    agent_close(qemu->agent);
    qmp_close(qemu->qmp);
    g_free(qemu);
}

static int qemu_fd(struct vm *vm)
{
    return qmp_fd(qemu_of(vm)->qmp);
}

static bool qemu_status(struct vm *vm, bool *running, char **status, GError **error)
{
    g_autoptr(json_t) value = qmp_command(qemu_of(vm)->qmp, "query-status", NULL, QMP_TIMEOUT, error);

    if (!value)
        return false;
    *running = member_flag(value, "running");
    if (status)
        *status = g_strdup(member_text(value, "status"));
    return true;
}

/* ---- stop and go ---- */

static bool is_called(const char *name, json_t *data, void *wanted)
{
    return strcmp(name, wanted) == 0;
}

static bool is_resume(const char *name, json_t *data, void *unused)
{
    return strcmp(name, "RESUME") == 0;
}

/* QEMU sends the event before the reply.  No event: the machine was in that state already; *time is 0. */
static bool switch_state(struct qmp *qmp, const char *command, const char *name, unsigned timeout,
                         int64_t *time, GError **error)
{
    g_autoptr(json_t) event = NULL;

    qmp_drop_events(qmp, is_called, (void *)name);
    if (!qmp_do(qmp, command, NULL, timeout, error) ||
        !qmp_wait_event(qmp, is_called, (void *)name, 0, &event, error))
        return false;
    if (time)
        *time = event ? qmp_event_time(event) : 0;
    return true;
}

static bool qemu_pause(struct vm *vm, unsigned timeout, int64_t *time, GError **error)
{
    bool ok = switch_state(qemu_of(vm)->qmp, "stop", "STOP", timeout, time, error);

    qmp_drop_events(qemu_of(vm)->qmp, is_resume, NULL); /* those before the reply were before the stop */
    return ok;
}

static bool qemu_resume(struct vm *vm, int64_t *time, GError **error)
{
    return switch_state(qemu_of(vm)->qmp, "cont", "RESUME", QMP_TIMEOUT, time, error);
}

bool qemu_was_resumed(struct vm *vm)
{
    return qmp_has_event(qemu_of(vm)->qmp, is_resume, NULL);
}

/* ---- counting and limiting ---- */

static void add_stats(struct vm_stats *sum, json_t *entry)
{
    sum->read_bytes += member_size(entry, "rd_bytes");
    sum->read_operations += member_size(entry, "rd_operations");
    sum->read_time_ns += member_size(entry, "rd_total_time_ns");
    sum->write_bytes += member_size(entry, "wr_bytes");
    sum->write_operations += member_size(entry, "wr_operations");
    sum->write_time_ns += member_size(entry, "wr_total_time_ns");
    sum->failed_writes += member_size(entry, "failed_wr_operations");
    sum->flush_operations += member_size(entry, "flush_operations");
    sum->flush_time_ns += member_size(entry, "flush_total_time_ns");
    sum->discard_bytes += member_size(entry, "unmap_bytes");
}

static bool qemu_stats(struct vm *vm, const char *qdev, struct vm_stats *stats, GError **error)
{
    g_autoptr(json_t) list = qmp_command(qemu_of(vm)->qmp, "query-blockstats", NULL, QMP_TIMEOUT, error);
    json_t *entry;
    size_t i;

    *stats = (struct vm_stats){0};
    if (!list)
        return false;
    if (qdev) {
        if (!(entry = qemu_find_device(list, qdev)))
            return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "there is no block device %s", qdev);
        add_stats(stats, json_object_get(entry, "stats"));
        return true;
    }
    json_array_foreach(list, i, entry) add_stats(stats, json_object_get(entry, "stats"));
    return true;
}

/* A device is named by its QOM path, which QEMU takes in place of an id, also of devices that have none. What
 * is left out is 0, and the six that must be there are the first. */
static bool qemu_set_limits(struct vm *vm, const char *qdev, const struct vm_limits *limits, GError **error)
{
    json_t *arguments = json_pack("{s:s}", "id", qdev);

    for (const struct vm_limit *limit = vm_limit_table; limit->name; limit++) {
        uint64_t value = *vm_limit_of((struct vm_limits *)limits, limit);

        if (value || limit < vm_limit_table + REQUIRED_LIMITS)
            json_object_set_new(arguments, limit->name, json_integer((json_int_t)value));
    }
    if (limits->group)
        json_object_set_new(arguments, "group", json_string(limits->group));
    if (qmp_do(qemu_of(vm)->qmp, "block_set_io_throttle", arguments, QMP_TIMEOUT, error))
        return true;
    g_prefix_error(error, "limits of %s: ", qdev);
    return false;
}

/* ---- the guest's file systems ---- */

/* The agent, the caller's, if there is one that answers. */
static struct agent *find_agent(struct qemu *qemu, GError **error)
{
    g_autofree char *path = NULL;

    if (!qemu_agent_path(qemu, &path, error))
        return NULL;
    if (path)
        return agent_open(path, error);
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED,
                "the machine has no guest agent behind a unix socket");
    return NULL;
}

static bool qemu_agent_answers(struct vm *vm, GError **error)
{
    g_autoptr(agent_t) agent = find_agent(qemu_of(vm), error);

    return agent != NULL;
}

static bool qemu_freeze(struct vm *vm, unsigned limit, unsigned *filesystems, GError **error)
{
    struct qemu *qemu = qemu_of(vm);

    g_clear_pointer(&qemu->agent, agent_close);
    qemu->agent = find_agent(qemu, error);
    if (qemu->agent && agent_freeze(qemu->agent, limit, filesystems, error))
        return true;
    g_clear_pointer(&qemu->agent, agent_close);
    return false;
}

static bool qemu_thaw(struct vm *vm, GError **error)
{
    struct qemu *qemu = qemu_of(vm);
    bool fine = !qemu->agent || agent_thaw(qemu->agent, error);

    g_clear_pointer(&qemu->agent, agent_close);
    return fine;
}

static bool qemu_thaw_left(struct vm *vm, GError **error)
{
    g_autofree char *path = NULL;
    g_autoptr(agent_t) agent = NULL;

    if (!qemu_agent_path(qemu_of(vm), &path, error))
        return false;
    if (!path)
        return true;
    agent = agent_open(path, error);
    return agent && agent_thaw_left(agent, error);
}

static int qemu_agent_fd(struct vm *vm)
{
    struct qemu *qemu = qemu_of(vm);

    return qemu->agent ? agent_fd(qemu->agent) : -1;
}

const struct vm_ops vm_qemu_ops = {
    .scheme = "qmp",
    .open = qemu_open,
    .adopt = qemu_adopt,
    .is_off = qemu_is_off,
    .close = qemu_close,
    .fd = qemu_fd,
    .describe = qemu_describe,
    .status = qemu_status,
    .active_nodes = qemu_active_nodes,
    .can_pivot = qemu_can_pivot,
    .add_node = qemu_add_node,
    .hand_over = qemu_hand_over,
    .remove_node = qemu_remove_node,
    .set_backings = qemu_set_backings,
    .keep_open = qemu_keep_open,
    .forget_file = qemu_forget_file,
    .snapshot = qemu_snapshot,
    .pause = qemu_pause,
    .resume = qemu_resume,
    .pivot = qemu_pivot,
    .end_pivots = qemu_end_pivots,
    .commit = qemu_commit,
    .jobs = qemu_jobs,
    .job_wait = qemu_job_wait,
    .job_complete = qemu_job_complete,
    .job_cancel = qemu_job_cancel,
    .job_dismiss = qemu_job_dismiss,
    .stats = qemu_stats,
    .set_limits = qemu_set_limits,
    .set_write_threshold = qemu_set_write_threshold,
    .next_event = qemu_next_event,
    .find_agent = qemu_agent_answers,
    .freeze = qemu_freeze,
    .thaw = qemu_thaw,
    .thaw_left = qemu_thaw_left,
    .agent_fd = qemu_agent_fd,
};
