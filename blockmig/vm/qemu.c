/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A machine behind QEMU's monitor: "qmp:SOCKET".  Running, stopping, counting, limiting; the table. */
#include "blockmig/vm/qemu.h"

#include "formats/error.h"

#include <string.h>

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
    return switch_state(qemu_of(vm)->qmp, "stop", "STOP", timeout, time, error);
}

static bool qemu_resume(struct vm *vm, int64_t *time, GError **error)
{
    return switch_state(qemu_of(vm)->qmp, "cont", "RESUME", QMP_TIMEOUT, time, error);
}

/* ---- counting and limiting ---- */

static bool qemu_stats(struct vm *vm, const char *qdev, struct vm_stats *stats, GError **error)
{
    g_autoptr(json_t) list = qmp_command(qemu_of(vm)->qmp, "query-blockstats", NULL, QMP_TIMEOUT, error);
    json_t *entry = json_object_get(qemu_find_device(list, qdev), "stats");

    if (!list)
        return false;
    if (!entry) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED, "there is no block device %s", qdev);
        return false;
    }
    *stats = (struct vm_stats){
        .read_bytes = member_size(entry, "rd_bytes"),
        .read_operations = member_size(entry, "rd_operations"),
        .read_time_ns = member_size(entry, "rd_total_time_ns"),
        .write_bytes = member_size(entry, "wr_bytes"),
        .write_operations = member_size(entry, "wr_operations"),
        .write_time_ns = member_size(entry, "wr_total_time_ns"),
        .failed_writes = member_size(entry, "failed_wr_operations"),
        .flush_operations = member_size(entry, "flush_operations"),
        .flush_time_ns = member_size(entry, "flush_total_time_ns"),
        .discard_bytes = member_size(entry, "unmap_bytes"),
    };
    return true;
}

static void set_size(json_t *arguments, const char *name, uint64_t value)
{
    json_object_set_new(arguments, name, json_integer((json_int_t)value));
}

/* A maximum without a limit is refused by QEMU, so 0 is left out. */
static void set_optional(json_t *arguments, const char *name, uint64_t value)
{
    if (value)
        set_size(arguments, name, value);
}

/* A device is named by its QOM path, which QEMU takes in place of an id, also of devices that have none. */
static bool qemu_set_limits(struct vm *vm, const char *qdev, const struct vm_limits *limits, GError **error)
{
    json_t *arguments = json_pack("{s:s}", "id", qdev);

    set_size(arguments, "bps", limits->bps);
    set_size(arguments, "bps_rd", limits->bps_rd);
    set_size(arguments, "bps_wr", limits->bps_wr);
    set_size(arguments, "iops", limits->iops);
    set_size(arguments, "iops_rd", limits->iops_rd);
    set_size(arguments, "iops_wr", limits->iops_wr);
    set_optional(arguments, "bps_max", limits->bps_max);
    set_optional(arguments, "bps_rd_max", limits->bps_rd_max);
    set_optional(arguments, "bps_wr_max", limits->bps_wr_max);
    set_optional(arguments, "iops_max", limits->iops_max);
    set_optional(arguments, "iops_rd_max", limits->iops_rd_max);
    set_optional(arguments, "iops_wr_max", limits->iops_wr_max);
    set_optional(arguments, "iops_size", limits->iops_size);
    if (limits->group)
        json_object_set_new(arguments, "group", json_string(limits->group));
    if (qmp_do(qemu_of(vm)->qmp, "block_set_io_throttle", arguments, QMP_TIMEOUT, error))
        return true;
    g_prefix_error(error, "limits of %s: ", qdev);
    return false;
}

/* ---- the guest's file systems ---- */

static bool qemu_freeze(struct vm *vm, unsigned limit, unsigned *filesystems, GError **error)
{
    struct qemu *qemu = qemu_of(vm);
    g_autofree char *path = NULL;

    if (!qemu_agent_path(qemu, &path, error))
        return false;
    if (!path) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED,
                    "the machine has no guest agent behind a unix socket");
        return false;
    }
    g_clear_pointer(&qemu->agent, agent_close);
    qemu->agent = agent_open(path, error);
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
    .close = qemu_close,
    .fd = qemu_fd,
    .describe = qemu_describe,
    .status = qemu_status,
    .active_nodes = qemu_active_nodes,
    .can_pivot = qemu_can_pivot,
    .can_mirror = qemu_can_mirror,
    .add_node = qemu_add_node,
    .hand_over = qemu_hand_over,
    .remove_node = qemu_remove_node,
    .set_backing = qemu_set_backing,
    .keep_open = qemu_keep_open,
    .forget_file = qemu_forget_file,
    .snapshot = qemu_snapshot,
    .pause = qemu_pause,
    .resume = qemu_resume,
    .pivot = qemu_pivot,
    .end_pivots = qemu_end_pivots,
    .mirror = qemu_mirror,
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
    .freeze = qemu_freeze,
    .thaw = qemu_thaw,
    .thaw_left = qemu_thaw_left,
    .agent_fd = qemu_agent_fd,
};
