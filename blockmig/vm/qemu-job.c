/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Jobs are started with auto-dismiss=false: one that ends while nobody listens stays in the list with its
 * error until it is dismissed, so nothing is lost when we die, and its nodes stay busy until then.
 * The truth is what query-jobs says; events only wake us to ask.
 */
#include "blockmig/vm/qemu.h"
#include "formats/error.h"

#include <string.h>

static enum vm_job_state state_of(const char *status, const char *fault)
{
    if (!status || strcmp(status, "null") == 0 || strcmp(status, "undefined") == 0)
        return VM_JOB_ABSENT;
    if (strcmp(status, "ready") == 0 || strcmp(status, "standby") == 0)
        return VM_JOB_READY;
    if (strcmp(status, "concluded") == 0)
        return fault ? VM_JOB_FAILED : VM_JOB_DONE;
    return VM_JOB_RUNNING;
}

static void fill_job(struct vm_job *job, json_t *entry)
{
    const char *fault = member_text(entry, "error");

    vm_job_clear(job);
    job->id = g_strdup(member_text(entry, "id"));
    job->type = g_strdup(member_text(entry, "type"));
    job->status = g_strdup(member_text(entry, "status"));
    job->error = g_strdup(fault);
    job->current = member_size(entry, "current-progress");
    job->total = member_size(entry, "total-progress");
    job->state = state_of(job->status, fault);
}

GPtrArray *qemu_jobs(struct vm *vm, GError **error)
{
    g_autoptr(json_t) list = qmp_command(qemu_of(vm)->qmp, "query-jobs", NULL, QMP_TIMEOUT, error);
    GPtrArray *jobs;
    size_t i;
    json_t *entry;

    if (!list)
        return NULL;
    jobs = g_ptr_array_new_with_free_func((GDestroyNotify)vm_job_free);
    json_array_foreach(list, i, entry)
    {
        struct vm_job *job = g_new0(struct vm_job, 1);

        fill_job(job, entry);
        g_ptr_array_add(jobs, job);
    }
    return jobs;
}

static bool query_job(struct qmp *qmp, const char *id, struct vm_job *job, GError **error)
{
    g_autoptr(json_t) list = qmp_command(qmp, "query-jobs", NULL, QMP_TIMEOUT, error);
    size_t i;
    json_t *entry;

    if (!list)
        return false;
    vm_job_clear(job);
    job->state = VM_JOB_ABSENT;
    json_array_foreach(list, i, entry)
    {
        if (g_strcmp0(member_text(entry, "id"), id) == 0)
            fill_job(job, entry);
    }
    return true;
}

static bool is_status_of(const char *name, json_t *data, void *id)
{
    return strcmp(name, "JOB_STATUS_CHANGE") == 0 && g_strcmp0(member_text(data, "id"), id) == 0;
}

bool qemu_job_dismiss(struct vm *vm, const char *id, GError **error)
{
    return qmp_do(qemu_of(vm)->qmp, "job-dismiss", json_pack("{s:s}", "id", id), QMP_TIMEOUT, error);
}

/* Sleeps until the job has at least the wanted state, or has ended, or the time is over. */
static bool wait_job(struct qmp *qmp, const char *id, enum vm_job_state wanted, unsigned timeout,
                     struct vm_job *job, GError **error)
{
    gint64 deadline = g_get_monotonic_time() + (gint64)timeout * 1000;

    for (;;) {
        g_autoptr(json_t) event = NULL;
        gint64 left;

        /* What changed before the question needs no second one. */
        qmp_drop_events(qmp, is_status_of, (void *)id);
        if (!query_job(qmp, id, job, error))
            return false;
        left = deadline - g_get_monotonic_time();
        if (job->state == VM_JOB_ABSENT || job->state >= wanted || left <= 0)
            return true;
        if (!qmp_wait_event(qmp, is_status_of, (void *)id, (left + 999) / 1000, &event, error))
            return false;
    }
}

bool qemu_job_wait(struct vm *vm, const char *id, enum vm_job_state wanted, unsigned timeout,
                   struct vm_job *job, GError **error)
{
    if (!wait_job(qemu_of(vm)->qmp, id, wanted, timeout, job, error))
        return false;
    if (job->state == VM_JOB_ABSENT) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED, "there is no job \"%s\"", id);
        return false;
    }
    if (job->state >= VM_JOB_DONE && !qemu_job_dismiss(vm, id, error))
        return false;
    if (job->state == VM_JOB_FAILED)
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED, "job \"%s\" (%s) failed: %s", id, job->type,
                    job->error);
    return job->state != VM_JOB_FAILED;
}

bool qemu_job_complete(struct vm *vm, const char *id, GError **error)
{
    return qmp_do(qemu_of(vm)->qmp, "job-complete", json_pack("{s:s}", "id", id), QMP_TIMEOUT, error);
}

/* block-job-cancel with force: without it, and with job-cancel before QEMU 6, a READY mirror would complete
 * instead. */
bool qemu_job_cancel(struct vm *vm, const char *id, unsigned timeout, GError **error)
{
    struct qmp *qmp = qemu_of(vm)->qmp;
    g_auto(vm_job_t) job = {0};

    if (!query_job(qmp, id, &job, error))
        return false;
    if (job.state == VM_JOB_ABSENT)
        return true;
    if (job.state < VM_JOB_DONE) {
        json_t *arguments = json_pack("{s:s, s:b}", "device", id, "force", true);

        if (!qmp_do(qmp, "block-job-cancel", arguments, QMP_TIMEOUT, error) ||
            !wait_job(qmp, id, VM_JOB_DONE, timeout, &job, error))
            return false;
    }
    if (job.state >= VM_JOB_DONE)
        return qemu_job_dismiss(vm, id, error);
    if (job.state != VM_JOB_ABSENT)
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_UNREACHABLE,
                    "job \"%s\" did not end in %u ms after it was cancelled", id, timeout);
    return job.state == VM_JOB_ABSENT;
}

/* ---- starting them ---- */

static bool start(struct qmp *qmp, const char *command, json_t *arguments, uint64_t speed, GError **error)
{
    if (speed)
        json_object_set_new(arguments, "speed", json_integer(speed));
    json_object_set_new(arguments, "auto-dismiss", json_false());
    return qmp_do(qmp, command, arguments, QMP_TIMEOUT, error);
}

bool qemu_commit(struct vm *vm, const struct vm_commit *commit, GError **error)
{
    const char *top = commit->top ? commit->top : commit->active;
    json_t *arguments = json_pack("{s:s, s:s, s:s, s:s}", "job-id", commit->id, "device", commit->active,
                                  "top-node", top, "base-node", commit->base);

    if (commit->backing_file)
        json_object_set_new(arguments, "backing-file", json_string(commit->backing_file));
    if (start(qemu_of(vm)->qmp, "block-commit", arguments, commit->speed, error))
        return true;
    g_prefix_error(error, "commit of \"%s\" into \"%s\": ", top, commit->base);
    return false;
}
