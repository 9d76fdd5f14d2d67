/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* `job failback`, `job finish` and what the keeper does: a window that was opened by an earlier process. */
#include "blockmig/migrate/keeper.h"
#include "blockmig/migrate/machine.h"
#include "blockmig/migrate/window.h"
#include "blockmig/store/receipt.h"

#include <string.h>

struct window_job {
    struct live_job live; /* must be first */
    const struct window_request *request;
    struct move_request *move; /* owned */
};

/* ---- what it is about ------------------------------------------------------------------------------ */

/* The way back is always proved in full, because the target's files are removed after it. */
static bool load_request(struct window_job *job, GError **error)
{
    struct move_request *move = move_request_from_json(job->live.base.record->request, error);

    if (!move)
        return false;
    job->move = move;
    move->keep_failback = 0;
    move->on_busy = BUSY_PARK; /* the machine stays where it is, and the window open */
    if (job->request->failback)
        move->verify = VERIFY_FULL;
    if (job->request->max_pause >= 0)
        move->max_pause = (unsigned)job->request->max_pause;
    live_set_request(&job->live, move);
    return true;
}

/* A machine that is off is remembered from the journal; its images' locks tell if it is not. */
static bool remember(struct live_job *job, GError **error)
{
    g_autoptr(GPtrArray) saved = journal_disk_list(job->base.journal, job->base.record, error);

    job->description = vm_description_new();
    for (guint i = 0; saved && i < saved->len; i++) {
        const struct journal_disk *disk = g_ptr_array_index(saved, i);
        struct vm_disk *vm = vm_disk_new();

        vm->qdev = g_strdup(disk->source_identity);
        vm->name = g_path_get_basename(disk->source);
        g_ptr_array_add(vm->layers, g_new0(struct vm_layer, 1));
        g_ptr_array_add(job->description->disks, vm);
    }
    return saved != NULL;
}

static bool reach(struct live_job *job, GError **error)
{
    if (vm_is_off(job->request->machine)) {
        job_notice(&job->base, "%s: the machine is off", job->request->machine);
        return remember(job, error);
    }
    if (!(job->vm = vm_open(job->request->machine, error)) || !vm_can_pivot(job->vm, error) ||
        !(job->description = vm_describe(job->vm, error)))
        return false;
    return job->description->running ||
           blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                         "the machine stands still (%s): let it go on, or end it", job->description->status);
}

/* ---- which way ------------------------------------------------------------------------------------- */

/* The target's layers are what is moved now, and the report tells of that. */
static void turn_back(struct live_job *job)
{
    live_turn(job);
    for (guint i = 0; i < job->disks->len; i++) {
        struct live_disk *disk = live_disk_at(job, i);
        struct disk_report *report = disk->report;
        char *source = report->source;
        g_autoptr(receipt_t) receipt = report->receipt ? receipt_read(report->receipt, NULL) : NULL;

        report->source = report->target;
        report->target = source;
        source = report->source_format;
        report->source_format = report->target_format;
        report->target_format = source;
        g_clear_pointer(&report->receipt, g_free);
        /* What it had at the switch: only what was written since has to be digested again. */
        if (receipt && receipt->size == disk->size &&
            digest_table_algorithm(receipt->digests) == job->request->digest)
            disk->done.digests = g_steal_pointer(&receipt->digests);
        disk->merged = job->vm ? disk->other->kept + 1 : 0;
    }
}

static bool choose(struct window_job *job, enum window_place place, const char *phase, GError **error)
{
    struct live_job *live = &job->live;
    bool returning = strcmp(phase, "return") == 0 || strcmp(phase, "remove") == 0;

    if (place == ON_TARGET && !job->request->failback) {
        live->base.go_on_at = live->vm ? "settle" : "settle-off";
        return true;
    }
    if (place == TARGET_SETTLED) {
        live->base.go_on_at = live->vm ? "settle" : "settle-off";
        return !job->request->failback ||
               blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "the way back is closed already: 'blockmig job finish %s' completes that",
                             live->window);
    }
    if (!job->request->failback)
        job_notice(&live->base, "job %s: the machine was brought back already; this completes it",
                   live->window);
    turn_back(live);
    live->base.go_on_at = !live->vm                              ? "return-off"
                          : place == ON_TARGET                   ? "converge"
                          : place == SOURCE_SETTLED || returning ? "return"
                                                                 : "prove";
    return true;
}

bool window_preflight(struct job *base, GError **error)
{
    struct window_job *job = (struct window_job *)base;
    struct live_job *live = &job->live;
    g_autoptr(window_facts_t) facts = NULL;
    enum window_place place = ON_TARGET;

    if (!keeper_take(base, job->request->job, error))
        return false;
    live->window = base->record->id;
    if (!load_request(job, error) || !reach(live, error) || !(facts = window_facts_load(live, error)) ||
        !window_look(live, facts, &place, error))
        return false;
    live->interrupted = true; /* whatever this does may have been begun by an earlier run */
    live->pivoted = place == ON_TARGET || place == TARGET_SETTLED;
    return choose(job, place, base->record->phase, error);
}

/* ---- closing it ------------------------------------------------------------------------------------ */

bool window_settle(struct job *base, GError **error)
{
    struct live_job *job = live_of(base);
    bool ok;

    if (!job_event(base, "intent", error, "commit the target's overlays"))
        return false;
    live_turn(job);
    ok = window_adopt(job, error) && live_leave(job, error);
    live_turn(job);
    for (guint i = 0; ok && i < job->disks->len; i++)
        live_remove_source_nodes(job, live_disk_at(job, i));
    return ok && job_event(base, "result", error, "the machine writes to the merged target");
}

/* ---- the job --------------------------------------------------------------------------------------- */

static struct job_report *run(const struct window_request *request, const struct job_listener *listener,
                              GError **error)
{
    struct window_job job = {
        .live = {.base = {.method = &method_window, .listener = listener, .report = job_report_new()}},
        .request = request};
    struct job_report *report = job.live.base.report;

    report->command = request->failback ? "job failback" : "job finish";
    live_run(&job.live, request->state_dir, error);
    move_request_free(job.move);
    return report;
}

/* The move of a domain that the window is of; NULL: it is of something else. */
static struct move_request *move_of_domain(const struct window_request *request)
{
    g_autoptr(journal_t) journal =
        journal_exists(request->state_dir) ? journal_open(request->state_dir, NULL) : NULL;
    g_autoptr(journal_job_t) job = journal ? journal_job_load(journal, request->job, NULL) : NULL;
    struct move_request *move = NULL;

    if (job && job->request && strcmp(job->command, "copy") != 0 && machine_is_domain(job->source))
        move = move_request_from_json(job->request, NULL);
    if (move)
        move->state_dir = g_strdup(request->state_dir);
    return move;
}

struct job_report *window_job_run(const struct window_request *request, const struct job_listener *listener,
                                  GError **error)
{
    g_autoptr(move_request_t) move = move_of_domain(request);

    return move ? machine_window_run(request, move, listener, error) : run(request, listener, error);
}

/* Whoever should have closed it is not there any more. */
void window_close_overdue(const struct move_request *request, const struct job_listener *listener)
{
    g_autoptr(journal_t) journal =
        journal_exists(request->state_dir) ? journal_open(request->state_dir, NULL) : NULL;
    g_autoptr(GPtrArray) list = journal ? journal_job_list(journal, NULL) : NULL;

    for (guint i = 0; list && i < list->len; i++) {
        const struct journal_job *job = g_ptr_array_index(list, i);
        g_autoptr(journal_window_t) window = journal_window_load(journal, job, NULL);
        struct window_request finish = {.state_dir = request->state_dir, .job = job->id, .max_pause = -1};
        g_autoptr(GError) error = NULL;

        if (!window || window->deadline == 0 || window->deadline > g_get_real_time() || job->result ||
            journal_job_alive(job) || strcmp(job->source, request->machine) != 0)
            continue;
        job_report_free(window_job_run(&finish, listener, &error));
        if (error && listener->notice)
            listener->notice(listener->opaque, error->message);
    }
}
