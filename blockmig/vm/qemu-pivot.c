/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The pivot: a mirror with sync=none copies nothing, it only swaps the node under a device.  Commands for
 * several disks are sent together and their replies collected afterwards; what counts is milliseconds.
 *
 * The guest is stopped, but others may resume it.  What it writes before the mirrors run is only on the side
 * that it is to leave: then it does not go.  What it writes while they run is on both sides, and what it
 * writes after them is brought back with it, by mirrors with sync=top: that is all that the layer holds.
 */
#include "blockmig/vm/qemu.h"
#include "formats/error.h"

#include <string.h>

#define JOB_NAME_MAX 48
#define JOB_PREFIX   "blockmig-" /* then the way, and the number of the disk */
#define WAY_THERE    "pivot"
#define WAY_BACK     "return"

struct pivot {
    struct vm *vm;
    struct qmp *qmp;
    const struct vm_pivot *disks;
    unsigned count;
    const char *way, *sync; /* `way` is part of the jobs' names */
    gint64 deadline;
};

static void job_name(const struct pivot *pivot, unsigned i, char name[JOB_NAME_MAX])
{
    g_snprintf(name, JOB_NAME_MAX, JOB_PREFIX "%s-%u", pivot->way, i);
}

static unsigned time_left(const struct pivot *pivot)
{
    gint64 left = (pivot->deadline - g_get_monotonic_time()) / 1000;

    return left > 0 ? (unsigned)left : 0;
}

static json_t *mirror_arguments(const struct pivot *pivot, unsigned i)
{
    char name[JOB_NAME_MAX];

    job_name(pivot, i, name);
    return json_pack("{s:s, s:s, s:s, s:s, s:b}", "job-id", name, "device", pivot->disks[i].from, "target",
                     pivot->disks[i].to, "sync", pivot->sync, "auto-dismiss", false);
}

static json_t *complete_arguments(const struct pivot *pivot, unsigned i)
{
    char name[JOB_NAME_MAX];

    job_name(pivot, i, name);
    return json_pack("{s:s}", "id", name);
}

/* One command per disk, all sent before the first reply is waited for.  Every reply is collected, also after
 * a failure; the first failure is told. */
static bool for_all(struct pivot *pivot, const char *command,
                    json_t *(*arguments)(const struct pivot *pivot, unsigned i), GError **error)
{
    g_autofree guint64 *ids = g_new0(guint64, pivot->count);
    unsigned sent = 0;
    bool all = true;

    while (sent < pivot->count &&
           (all = qmp_send(pivot->qmp, command, arguments(pivot, sent), &ids[sent], error)))
        sent++;
    for (unsigned i = 0; i < sent; i++) {
        GError *fault = NULL;
        g_autoptr(json_t) value = qmp_receive(pivot->qmp, command, ids[i], time_left(pivot), &fault);

        if (!value && all)
            g_propagate_prefixed_error(error, fault, "\"%s\": ", pivot->disks[i].from);
        else if (!value)
            g_error_free(fault);
        all &= value != NULL;
    }
    return all;
}

static bool wait_all(struct pivot *pivot, enum vm_job_state wanted, GError **error)
{
    for (unsigned i = 0; i < pivot->count; i++) {
        g_auto(vm_job_t) job = {0};
        char name[JOB_NAME_MAX];

        job_name(pivot, i, name);
        if (!qemu_job_wait(pivot->vm, name, wanted, time_left(pivot), &job, error))
            return false;
        if (job.state < wanted) {
            g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED, "the pivot of \"%s\" is not %s in time",
                        pivot->disks[i].from, vm_job_state_name(wanted));
            return false;
        }
    }
    return true;
}

static bool start(struct pivot *pivot, GError **error)
{
    return for_all(pivot, "blockdev-mirror", mirror_arguments, error) && wait_all(pivot, VM_JOB_READY, error);
}

static bool finish(struct pivot *pivot, GError **error)
{
    return for_all(pivot, "job-complete", complete_arguments, error) && wait_all(pivot, VM_JOB_DONE, error);
}

static bool stands_still(const struct pivot *pivot, GError **error)
{
    return !qemu_was_resumed(pivot->vm) ||
           blockmig_fail(error, BLOCKMIG_ERROR_CANCELLED, "somebody resumed the machine in the pause");
}

/* Ends what is still running after a failure; a job may also have gone all the way by now. */
static bool stop_jobs(const struct pivot *pivot, GError **error)
{
    for (unsigned i = 0; i < pivot->count; i++) {
        char name[JOB_NAME_MAX];

        job_name(pivot, i, name);
        if (!qemu_job_cancel(pivot->vm, name, QMP_TIMEOUT, error))
            return false;
    }
    return true;
}

/* Is some device on this node now?  QEMU's word counts, not what we remember of the jobs. */
static bool in_use(json_t *blocks, const char *node)
{
    size_t i;
    json_t *block;

    json_array_foreach(blocks, i, block)
    {
        if (g_strcmp0(member_text(json_object_get(block, "inserted"), "node-name"), node) == 0)
            return true;
    }
    return false;
}

/* The same for the disks that went, in the other direction. */
static bool bring_back(const struct pivot *pivot, GError **error)
{
    g_autoptr(json_t) blocks = qmp_command(pivot->qmp, "query-block", NULL, QMP_TIMEOUT, error);
    g_autofree struct vm_pivot *disks = g_new(struct vm_pivot, pivot->count);
    struct pivot back = {
        .vm = pivot->vm,
        .qmp = pivot->qmp,
        .disks = disks,
        .way = WAY_BACK,
        .sync = qemu_was_resumed(pivot->vm) ? "top" : "none",
        .deadline = g_get_monotonic_time() + QMP_TIMEOUT * G_GINT64_CONSTANT(1000),
    };

    if (!blocks)
        return false;
    for (unsigned i = 0; i < pivot->count; i++)
        if (in_use(blocks, pivot->disks[i].to))
            disks[back.count++] = (struct vm_pivot){.from = pivot->disks[i].to, .to = pivot->disks[i].from};
    return back.count == 0 || (start(&back, error) && finish(&back, error));
}

bool qemu_pivot(struct vm *vm, const struct vm_pivot *disks, unsigned count, unsigned timeout, GError **error)
{
    struct pivot pivot = {
        .vm = vm,
        .qmp = qemu_of(vm)->qmp,
        .disks = disks,
        .count = count,
        .way = WAY_THERE,
        .sync = "none",
        .deadline = g_get_monotonic_time() + (gint64)timeout * 1000,
    };
    GError *fault = NULL, *worse = NULL;

    if (start(&pivot, &fault) && stands_still(&pivot, &fault) && finish(&pivot, &fault) &&
        stands_still(&pivot, &fault))
        return true;
    if (stop_jobs(&pivot, &worse) && bring_back(&pivot, &worse)) {
        g_propagate_prefixed_error(error, fault, "pivot of %u disks: ", count);
        return false;
    }
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_UNCERTAIN,
                "pivot of %u disks: %s; bringing them back: %s", count, fault->message, worse->message);
    g_error_free(fault);
    g_error_free(worse);
    return false;
}

static bool is_pivot(const struct vm_job *job)
{
    return job->id && (g_str_has_prefix(job->id, JOB_PREFIX WAY_THERE "-") ||
                       g_str_has_prefix(job->id, JOB_PREFIX WAY_BACK "-"));
}

/* Tells all of them at once.  One that was told to complete may refuse, for it is ending: that is as good. */
static void cancel_pivots(struct qmp *qmp, const GPtrArray *jobs)
{
    g_autofree guint64 *ids = g_new0(guint64, jobs->len + 1);

    for (guint i = 0; i < jobs->len; i++) {
        const struct vm_job *job = jobs->pdata[i];

        if (is_pivot(job) && job->state < VM_JOB_DONE &&
            !qmp_send(qmp, "block-job-cancel", json_pack("{s:s, s:b}", "device", job->id, "force", true),
                      &ids[i], NULL))
            return;
    }
    for (guint i = 0; i < jobs->len; i++)
        if (ids[i])
            json_decref(qmp_receive(qmp, "block-job-cancel", ids[i], QMP_TIMEOUT, NULL));
}

bool qemu_end_pivots(struct vm *vm, unsigned timeout, GError **error)
{
    g_autoptr(GPtrArray) jobs = qemu_jobs(vm, error);

    if (!jobs)
        return false;
    cancel_pivots(qemu_of(vm)->qmp, jobs);
    for (guint i = 0; i < jobs->len; i++) {
        const struct vm_job *pivot = jobs->pdata[i];
        g_auto(vm_job_t) job = {0};
        GError *fault = NULL;

        if (!is_pivot(pivot) ||
            (qemu_job_wait(vm, pivot->id, VM_JOB_DONE, timeout, &job, &fault) && job.state >= VM_JOB_DONE))
            continue;
        /* A failure of the job is an end as well, and so is that it is not there any more. */
        if (!g_error_matches(fault, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED)) {
            if (!fault)
                fault = g_error_new(BLOCKMIG_ERROR, BLOCKMIG_ERROR_UNREACHABLE, "job \"%s\" does not end",
                                    pivot->id);
            g_propagate_error(error, fault);
            return false;
        }
        g_error_free(fault);
    }
    return true;
}
