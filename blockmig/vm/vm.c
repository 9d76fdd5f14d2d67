/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Finds the hypervisor that a name means and puts the machine's name in front of what it says. */
#include "blockmig/vm/vm.h"

#include "formats/error.h"

#include <string.h>
#include <unistd.h>

static const struct vm_ops *const hypervisors[] = {&vm_qemu_ops};

/* Passes a result on; a failed one gets the machine's name. */
static bool said(struct vm *vm, bool fine, GError **error)
{
    if (!fine)
        g_prefix_error(error, "%s: ", vm->name);
    return fine;
}

/* The part of "SCHEME:ADDRESS" that the hypervisor understands. */
static const struct vm_ops *find_ops(const char *name, const char **address, GError **error)
{
    for (guint i = 0; i < G_N_ELEMENTS(hypervisors); i++) {
        const char *scheme = hypervisors[i]->scheme;
        size_t length = strlen(scheme);

        if (strncmp(name, scheme, length) == 0 && name[length] == ':' && name[length + 1]) {
            *address = name + length + 1;
            return hypervisors[i];
        }
    }
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE,
                "%s: a machine is named qmp:SOCKET, or as libvirt calls it", name);
    return NULL;
}

static struct vm *named(struct vm *vm, const struct vm_ops *ops, const char *name, GError **error)
{
    if (!vm) {
        g_prefix_error(error, "%s: ", name);
        return NULL;
    }
    vm->ops = ops;
    vm->name = g_strdup(name);
    return vm;
}

struct vm *vm_open(const char *name, GError **error)
{
    const char *address;
    const struct vm_ops *ops = find_ops(name, &address, error);

    return ops ? named(ops->open(address, error), ops, name, error) : NULL;
}

struct vm *vm_adopt(const char *name, int fd, GError **error)
{
    const char *address;
    const struct vm_ops *ops = find_ops(name, &address, error);

    if (!ops) {
        close(fd);
        return NULL;
    }
    return named(ops->adopt(fd, error), ops, name, error);
}

bool vm_is_off(const char *name)
{
    const char *address;
    const struct vm_ops *ops = find_ops(name, &address, NULL);

    return ops && ops->is_off(address);
}

void vm_close(struct vm *vm)
{
    if (!vm)
        return;
    g_free(vm->name);
    vm->ops->close(vm);
}

int vm_fd(struct vm *vm)
{
    return vm->ops->fd(vm);
}

/* ---- descriptions ---- */

static void layer_free(gpointer value)
{
    struct vm_layer *layer = value;

    g_free(layer->node);
    g_free(layer->format);
    g_free(layer->filename);
    g_free(layer->protocol);
    g_free(layer->protocol_node);
    g_free(layer);
}

static void bitmap_free(gpointer value)
{
    struct vm_bitmap *bitmap = value;

    g_free(bitmap->node);
    g_free(bitmap->name);
    g_free(bitmap);
}

static void disk_free(gpointer value)
{
    struct vm_disk *disk = value;

    g_free(disk->name);
    g_free(disk->device_id);
    g_free(disk->drive);
    g_free(disk->qdev);
    g_free(disk->device_type);
    g_free(disk->root);
    g_free(disk->node);
    g_free(disk->detect_zeroes);
    g_free(disk->limits.group);
    g_free(disk->refusal);
    g_ptr_array_unref(disk->layers);
    g_ptr_array_unref(disk->filters);
    g_ptr_array_unref(disk->bitmaps);
    g_ptr_array_unref(disk->jobs);
    g_ptr_array_unref(disk->exports);
    g_ptr_array_unref(disk->notices);
    g_free(disk);
}

struct vm_disk *vm_disk_new(void)
{
    struct vm_disk *disk = g_new0(struct vm_disk, 1);

    disk->layers = g_ptr_array_new_with_free_func(layer_free);
    disk->filters = g_ptr_array_new_with_free_func(g_free);
    disk->bitmaps = g_ptr_array_new_with_free_func(bitmap_free);
    disk->jobs = g_ptr_array_new_with_free_func(g_free);
    disk->exports = g_ptr_array_new_with_free_func(g_free);
    disk->notices = g_ptr_array_new_with_free_func(g_free);
    return disk;
}

struct vm_description *vm_description_new(void)
{
    struct vm_description *description = g_new0(struct vm_description, 1);

    description->disks = g_ptr_array_new_with_free_func(disk_free);
    return description;
}

struct vm_description *vm_describe(struct vm *vm, GError **error)
{
    g_autoptr(vm_description_t) description = vm_description_new();

    description->name = g_strdup(vm->name);
    if (!said(vm, vm->ops->describe(vm, description, error), error))
        return NULL;
    return g_steal_pointer(&description);
}

void vm_description_free(struct vm_description *description)
{
    if (!description)
        return;
    g_free(description->name);
    g_free(description->status);
    g_ptr_array_unref(description->disks);
    g_free(description);
}

static bool is_called(const struct vm_disk *disk, const char *name)
{
    const char *names[] = {disk->name, disk->device_id, disk->drive, disk->node, disk->root, disk->qdev};

    for (guint i = 0; i < G_N_ELEMENTS(names); i++)
        if (g_strcmp0(names[i], name) == 0)
            return true;
    return false;
}

struct vm_disk *vm_find_disk(const struct vm_description *description, const char *name, GError **error)
{
    struct vm_disk *found = NULL;

    for (guint i = 0; i < description->disks->len; i++) {
        struct vm_disk *disk = description->disks->pdata[i];

        if (!is_called(disk, name))
            continue;
        if (found) {
            g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED, "%s: both %s and %s are called \"%s\"",
                        description->name, found->qdev, disk->qdev, name);
            return NULL;
        }
        found = disk;
    }
    if (!found)
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED, "%s: no disk is called \"%s\"",
                    description->name, name);
    return found;
}

bool vm_status(struct vm *vm, bool *running, char **status, GError **error)
{
    return said(vm, vm->ops->status(vm, running, status, error), error);
}

bool vm_active_node(struct vm *vm, const char *qdev, char **node, GError **error)
{
    if (!vm_active_nodes(vm, &qdev, 1, node, error))
        return false;
    if (!*node)
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED, "%s: device %s is on no node", vm->name,
                    qdev);
    return *node != NULL;
}

bool vm_active_nodes(struct vm *vm, const char *const *qdevs, unsigned count, char **nodes, GError **error)
{
    return said(vm, vm->ops->active_nodes(vm, qdevs, count, nodes, error), error);
}

bool vm_can_pivot(struct vm *vm, GError **error)
{
    return said(vm, vm->ops->can_pivot(vm, error), error);
}

/* ---- nodes, jobs, the machine ---- */

bool vm_add_node(struct vm *vm, const struct vm_node *node, GError **error)
{
    return said(vm, vm->ops->add_node(vm, node, error), error);
}

bool vm_hand_over(struct vm *vm, const struct vm_node *node, char **name, GError **error)
{
    return said(vm, vm->ops->hand_over(vm, node, name, error), error);
}

bool vm_remove_node(struct vm *vm, const char *node, GError **error)
{
    return said(vm, vm->ops->remove_node(vm, node, error), error);
}

bool vm_set_backings(struct vm *vm, const struct vm_rebase *disks, unsigned count, GError **error)
{
    return said(vm, vm->ops->set_backings(vm, disks, count, error), error);
}

bool vm_set_backing(struct vm *vm, const struct vm_node *node, const char *backing, GError **error)
{
    return vm_set_backings(vm, &(struct vm_rebase){*node, backing}, 1, error);
}

bool vm_keep_open(struct vm *vm, const struct vm_disk *disk, GError **error)
{
    return said(vm, vm->ops->keep_open(vm, disk, error), error);
}

bool vm_forget_file(struct vm *vm, const char *path, GError **error)
{
    return said(vm, vm->ops->forget_file(vm, path, error), error);
}

bool vm_snapshot(struct vm *vm, const struct vm_snapshot *disks, unsigned count, GError **error)
{
    return said(vm, vm->ops->snapshot(vm, disks, count, error), error);
}

bool vm_pause(struct vm *vm, unsigned timeout, int64_t *time, GError **error)
{
    return said(vm, vm->ops->pause(vm, timeout, time, error), error);
}

bool vm_resume(struct vm *vm, int64_t *time, GError **error)
{
    return said(vm, vm->ops->resume(vm, time, error), error);
}

bool vm_pivot(struct vm *vm, const struct vm_pivot *disks, unsigned count, unsigned timeout, GError **error)
{
    return said(vm, vm->ops->pivot(vm, disks, count, timeout, error), error);
}

bool vm_end_pivots(struct vm *vm, unsigned timeout, GError **error)
{
    return said(vm, vm->ops->end_pivots(vm, timeout, error), error);
}

bool vm_commit(struct vm *vm, const struct vm_commit *commit, GError **error)
{
    return said(vm, vm->ops->commit(vm, commit, error), error);
}

GPtrArray *vm_jobs(struct vm *vm, GError **error)
{
    GPtrArray *jobs = vm->ops->jobs(vm, error);

    said(vm, jobs != NULL, error);
    return jobs;
}

bool vm_job_wait(struct vm *vm, const char *id, enum vm_job_state wanted, unsigned timeout,
                 struct vm_job *job, GError **error)
{
    return said(vm, vm->ops->job_wait(vm, id, wanted, timeout, job, error), error);
}

bool vm_job_complete(struct vm *vm, const char *id, GError **error)
{
    return said(vm, vm->ops->job_complete(vm, id, error), error);
}

bool vm_job_cancel(struct vm *vm, const char *id, unsigned timeout, GError **error)
{
    return said(vm, vm->ops->job_cancel(vm, id, timeout, error), error);
}

bool vm_job_dismiss(struct vm *vm, const char *id, GError **error)
{
    return said(vm, vm->ops->job_dismiss(vm, id, error), error);
}

bool vm_disk_stats(struct vm *vm, const char *qdev, struct vm_stats *stats, GError **error)
{
    return said(vm, vm->ops->stats(vm, qdev, stats, error), error);
}

bool vm_set_limits(struct vm *vm, const char *qdev, const struct vm_limits *limits, GError **error)
{
    return said(vm, vm->ops->set_limits(vm, qdev, limits, error), error);
}

bool vm_set_write_threshold(struct vm *vm, const char *node, uint64_t offset, GError **error)
{
    return said(vm, vm->ops->set_write_threshold(vm, node, offset, error), error);
}

bool vm_next_event(struct vm *vm, unsigned timeout, struct vm_event **event, GError **error)
{
    return said(vm, vm->ops->next_event(vm, timeout, event, error), error);
}

bool vm_find_agent(struct vm *vm, GError **error)
{
    return said(vm, vm->ops->find_agent(vm, error), error);
}

bool vm_freeze(struct vm *vm, unsigned limit, unsigned *filesystems, GError **error)
{
    return said(vm, vm->ops->freeze(vm, limit, filesystems, error), error);
}

bool vm_thaw(struct vm *vm, GError **error)
{
    return said(vm, vm->ops->thaw(vm, error), error);
}

bool vm_thaw_left(struct vm *vm, GError **error)
{
    return said(vm, vm->ops->thaw_left(vm, error), error);
}

int vm_agent_fd(struct vm *vm)
{
    return vm->ops->agent_fd(vm);
}

/* ---- limits ---- */

#define LIMIT(name)                                                                                          \
    {                                                                                                        \
#name, offsetof(struct vm_limits, name)                                                              \
    }

const struct vm_limit vm_limit_table[] = {
    LIMIT(bps),
    LIMIT(bps_rd),
    LIMIT(bps_wr),
    LIMIT(iops),
    LIMIT(iops_rd),
    LIMIT(iops_wr),
    LIMIT(bps_max),
    LIMIT(bps_rd_max),
    LIMIT(bps_wr_max),
    LIMIT(iops_max),
    LIMIT(iops_rd_max),
    LIMIT(iops_wr_max),
    LIMIT(iops_size),
    LIMIT(bps_max_length),
    LIMIT(bps_rd_max_length),
    LIMIT(bps_wr_max_length),
    LIMIT(iops_max_length),
    LIMIT(iops_rd_max_length),
    LIMIT(iops_wr_max_length),
    {NULL, 0},
};

bool vm_limits_equal(const struct vm_limits *a, const struct vm_limits *b)
{
    for (const struct vm_limit *limit = vm_limit_table; limit->name; limit++)
        if (*vm_limit_of((struct vm_limits *)a, limit) != *vm_limit_of((struct vm_limits *)b, limit))
            return false;
    return g_strcmp0(a->group, b->group) == 0;
}

/* ---- what is returned ---- */

void vm_job_clear(struct vm_job *job)
{
    g_clear_pointer(&job->id, g_free);
    g_clear_pointer(&job->type, g_free);
    g_clear_pointer(&job->status, g_free);
    g_clear_pointer(&job->error, g_free);
}

void vm_job_free(struct vm_job *job)
{
    if (!job)
        return;
    vm_job_clear(job);
    g_free(job);
}

void vm_event_free(struct vm_event *event)
{
    if (!event)
        return;
    g_free(event->subject);
    g_free(event->detail);
    g_free(event);
}

const char *vm_job_state_name(enum vm_job_state state)
{
    static const char *const names[] = {
        [VM_JOB_ABSENT] = "absent", [VM_JOB_RUNNING] = "running", [VM_JOB_READY] = "ready",
        [VM_JOB_DONE] = "done",     [VM_JOB_FAILED] = "failed",
    };

    return names[state];
}
