/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Jobs: which phase follows which, and what the end is called.
 *
 * cold:
 *   preflight --> base --> prove --> cleanup --> done
 *       |          |         |          |
 *       v          +----+----+----------+
 *    refused            v
 *                failed | parked | rolled-back
 *
 * storage (a running machine; "|" is the pivot, after which the target is the truth):
 *   preflight --> snapshot --> base --> converge --> switchover --|--> prove --> settle --> cleanup --> done
 *       |   |         |        ^ |          |            |             |  |         |          |
 *       |   +-> resume --------+ |          |            |             |  |         |          |
 *       v         |   |          |          |            |             |  |         |          |
 *    refused      +---+----------+-----+----+------------+<-- differs -+  +----+----+----------+
 *                                      v                                       v
 *                                  rollback                    failed (the machine runs on the target)
 *                                      v
 *                       rolled-back | failed (the machine runs on the source)
 *
 * From base to switchover a job may also park: the machine stays on its overlays and the target as it is.
 *
 * With --keep-failback prove leads to "window" instead of settle: both sides are kept, nobody owns the job,
 * and it waits.  From there it goes on by a command, or by the keeper when the window ends (method_window):
 *   preflight --> settle --> cleanup --> done                                         (job finish; the
 * keeper)
 *       |
 *       +-------> converge --> switchover --|--> prove --> return --> remove --> done    (job failback)
 *                     +------------+--> window <-- differs -+
 * and the same without passes and pause for a machine that is off: settle-off, return-off.
 *
 * mirror (the same without a pause; the proof comes before the switch, and the method may still be chosen in
 * converge, or when a pause was given up: then straddle follows switchover):
 *   ... converge --> straddle --> prove --> switchover --|--> settle --> cleanup --> done
 *           |            |          |           |        |       |          |
 *           +------------+-----+----+-----------+        |       +----+-----+
 *                              v                                      v
 *                          rollback                      failed (the machine runs on the target)
 *
 *   refused      nothing was changed; there is no job in the journal
 *   failed       an error of the medium or the hypervisor, or a difference (which has its own exit status)
 *   parked       no space, a target's name is taken, or too busy for the pause that was allowed: goes on once
 *                asked again
 *   rolled-back  cancelled, or the source has no room for another overlay
 *
 * A cold job leaves its part file, so that running the same command continues; the source is untouched.
 * A move that was killed or parked is found by the next one of the same machine: preflight then leads to
 * resume, or to rollback if that was begun or asked for, or, if the machine runs on the target already, to
 * prove or settle.  job_enter() is the only function that changes a phase: it checks the table, writes the
 * journal, then tells the listener.
 */
#include "blockmig/migrate/cold.h"
#include "blockmig/migrate/live.h"

#include <string.h>

const struct method method_cold = {
    .name = "cold",
    .phases =
        (const struct phase[]){
            {"preflight", cold_preflight, "base", NULL},
            {"base", cold_base, "prove", NULL},
            {"prove", cold_prove, "cleanup", NULL},
            {"cleanup", cold_cleanup, "done", NULL},
            {NULL},
        },
    .describe = cold_describe,
    .begin = cold_begin,
    .finish = cold_finish,
    .advise = cold_advise,
};

/* What is the same in every move, whichever way it switches.  Preflight is first. */
/* clang-format off */
#define PHASES_OF_A_MOVE                                        \
    {"preflight", live_preflight, "snapshot", NULL},            \
    {"snapshot", live_snapshot, "base", "rollback"},            \
    {"resume", live_take_up, "base", "rollback"},               \
    {"base", live_base, "converge", "rollback", .parks = true}, \
    {"settle", live_settle, "cleanup", NULL},                   \
    {"cleanup", live_cleanup, "done", NULL},                    \
    {"rollback", live_rollback, "failed", NULL}
/* clang-format on */

const struct method method_storage = {
    .name = "storage",
    .phases =
        (const struct phase[]){
            PHASES_OF_A_MOVE,
            {"converge", live_converge, "switchover", "rollback", .parks = true},
            {"switchover", live_switchover, "prove", "rollback", .parks = true},
            {"prove", live_prove, "settle", "rollback"},
            {"window", live_window, NULL, NULL},
            {NULL},
        },
    .describe = live_describe,
    .advise = live_advise,
    .explain = live_explain,
    .park = live_park,
};

const struct method method_window = {
    .name = "storage",
    .phases =
        (const struct phase[]){
            {"preflight", window_preflight, NULL, NULL},
            {"settle", window_settle, "cleanup", NULL},
            {"settle-off", offline_settle, "cleanup", NULL},
            {"cleanup", live_cleanup, "done", NULL},
            {"converge", failback_converge, "switchover", "window"},
            {"switchover", live_switchover, "prove", "window"},
            {"prove", live_prove, "return", "window"},
            {"return", failback_return, "remove", NULL},
            {"return-off", offline_return, "remove", NULL},
            {"remove", failback_remove, "done", NULL},
            {"window", failback_undo, NULL, NULL},
            {NULL},
        },
    .keeps = true,
    .advise = live_advise,
};

const struct method method_mirror = {
    .name = "mirror",
    .phases =
        (const struct phase[]){
            PHASES_OF_A_MOVE,
            {"converge", live_converge, "straddle", "rollback", .parks = true},
            {"straddle", live_straddle, "prove", "rollback"},
            {"prove", live_prove, "switchover", "rollback"},
            {"switchover", live_rebase, "settle", "rollback"},
            {NULL},
        },
    .describe = live_describe,
    .advise = live_advise,
    .explain = live_explain,
    .park = live_park,
};

static const struct phase *find_phase(const struct method *method, const char *name)
{
    for (const struct phase *phase = method->phases; phase->name; phase++)
        if (g_strcmp0(phase->name, name) == 0)
            return phase;
    return NULL;
}

/* The first entry starts the table; every other must be what the phase before names. */
static bool job_enter(struct job *job, const char *name, GError **error)
{
    const struct phase *from = find_phase(job->method, job->report->phase);

    g_assert(from ? g_strcmp0(from->next, name) == 0 || g_strcmp0(from->undo, name) == 0 ||
                        g_strcmp0(job->go_on_at, name) == 0
                  : job->method->phases == find_phase(job->method, name));
    /* What is there already stays as it was, if this process dies, until it has come to the end again. */
    if (job->record && (!job->already_there || strcmp(name, "done") == 0) &&
        !journal_job_set_phase(job->journal, job->record, name, error))
        return false;
    job->report->phase = name;
    if (job->listener->phase)
        job->listener->phase(job->listener->opaque, name, NULL);
    return true;
}

void job_set_method(struct job *job, const struct method *method)
{
    job->method = method;
    job->report->method = method->name;
    if (!job->record)
        return;
    g_free(job->record->method);
    job->record->method = g_strdup(method->name);
}

/* From here on there is something to come back to. */
static bool job_record(struct job *job, GError **error)
{
    struct journal_job *record;

    if (job->record)
        return true;
    if (job->method->begin && !job->method->begin(job, error))
        return false;
    record = g_new0(struct journal_job, 1);
    record->command = g_strdup(job->report->command);
    record->method = g_strdup(job->report->method);
    record->phase = g_strdup(job->report->phase);
    job->method->describe(job, record);
    if (!journal_job_create(job->journal, record, error)) {
        journal_job_free(record);
        return false;
    }
    job->record = record;
    return true;
}

static bool is_parked(const GError *error)
{
    return g_error_matches(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_PARKED) ||
           g_error_matches(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_NOSPACE);
}

/* After a failure: undone is what can be, whatever the journal says about it. */
static void job_undo(struct job *job, const struct phase *failed, GError **error)
{
    const struct phase *undo = find_phase(job->method, failed->undo);
    g_autoptr(GError) journal = NULL, local = NULL;

    if (undo && failed->parks && is_parked(*error)) {
        if (job->method->park)
            job->method->park(job);
        return;
    }
    if (!undo)
        return;
    if (!job_enter(job, undo->name, &journal))
        job_notice(job, "%s", journal->message);
    if (undo->run(job, &local)) {
        /* There is nothing any more that could be gone on with. */
        if (is_parked(*error) && !job->method->keeps)
            (*error)->code = BLOCKMIG_ERROR_CANCELLED;
        return;
    }
    g_prefix_error(error, "rolling back failed: %s; this was necessary because: ", local->message);
    if (error && *error && local->domain == BLOCKMIG_ERROR)
        (*error)->code =
            local->code == BLOCKMIG_ERROR_UNREACHABLE ? BLOCKMIG_ERROR_UNREACHABLE : BLOCKMIG_ERROR_UNCERTAIN;
}

static bool run_phases(struct job *job, GError **error)
{
    const struct phase *phase = job->method->phases;

    while (phase) {
        bool entered = job_enter(job, phase->name, error);
        const char *next;

        job->go_on_at = NULL;
        if (!entered || !phase->run(job, error)) {
            if (job->method->explain)
                job->method->explain(job, error);
            job_undo(job, phase, error);
            return false;
        }
        if (job->dry_run)
            return true;
        if (!job_record(job, error))
            return false;
        phase = find_phase(job->method, phase->name); /* it may have chosen another method */
        next = job->go_on_at ? job->go_on_at : phase->next;
        if (!next)
            return true;
        phase = find_phase(job->method, next);
    }
    return job_enter(job, "done", error) && (!job->method->finish || job->method->finish(job, error));
}

static const char *result_of(const GError *error, bool dry_run)
{
    if (!error)
        return dry_run ? "planned" : "done";
    if (error->domain != BLOCKMIG_ERROR)
        return "failed";
    switch ((enum blockmig_error)error->code) {
    case BLOCKMIG_ERROR_USAGE:
    case BLOCKMIG_ERROR_REFUSED:
        return "refused";
    case BLOCKMIG_ERROR_CANCELLED:
        return "rolled-back";
    case BLOCKMIG_ERROR_PARKED:
    case BLOCKMIG_ERROR_NOSPACE:
        return "parked";
    default:
        return "failed";
    }
}

/* What the journal calls the end.  A finished job that is looked at again has ended otherwise only if it is
 * found to be different; one that is refused now (no room, in use) can go on later. */
static const char *recorded_result(const struct job *job, const GError *failure)
{
    bool different = g_error_matches(failure, BLOCKMIG_ERROR, BLOCKMIG_ERROR_DIFFERENT);

    if (job->ended && failure && !different)
        return job->ended;
    if (!failure && job->end)
        return job->end;
    if (job->undone)
        return "rolled-back";
    return strcmp(job->report->result, "refused") == 0 ? "parked" : job->report->result;
}

/* Does it wait for somebody to go on with it?  A way back that is open stays open, whatever failed. */
static bool is_waiting(const struct job *job, const GError *failure)
{
    const struct phase *phase = find_phase(job->method, job->report->phase);

    return phase && (!phase->next || (failure && job->method->keeps));
}

static bool record_end(struct job *job, const GError *failure, GError **error)
{
    const char *result = recorded_result(job, failure);
    const char *message = failure ? failure->message : NULL;

    if (is_waiting(job, failure))
        return (!message || job_event(job, "error", error, "%s", message)) &&
               journal_job_rest(job->journal, job->record, error);
    return journal_job_finish(job->journal, job->record, result,
                              result == job->ended ? job->ended_error : message, error);
}

/* The end is written down even if that fails too: then the error says both. */
static void job_close(struct job *job, GError **error)
{
    struct job_report *report = job->report;
    g_autoptr(GError) local = NULL;

    report->result = result_of(*error, job->dry_run);
    if (!job->record)
        return;
    report->id = g_strdup(job->record->id);
    report->started = job->record->started;
    if (*error && !report->advice && job->method->advise)
        report->advice = job->method->advise(job, *error);
    if (!job->dry_run && !record_end(job, *error, &local)) {
        if (*error)
            g_prefix_error(error, "%s; ", local->message);
        else
            g_propagate_error(error, g_steal_pointer(&local));
        report->result = "failed";
    }
}

void job_clear(struct job *job)
{
    g_clear_pointer(&job->record, journal_job_free);
    g_clear_pointer(&job->journal, journal_close);
    g_free(job->ended);
    g_free(job->ended_error);
}

/* A plan changes nothing: it looks into a journal but makes none. */
static bool open_journal(struct job *job, const char *state_dir, GError **error)
{
    if (job->dry_run && !journal_exists(state_dir))
        return true;
    job->journal = journal_open(state_dir, error);
    if (!job->journal && (*error)->domain == BLOCKMIG_ERROR)
        (*error)->code = BLOCKMIG_ERROR_REFUSED; /* whatever it is: nothing has happened */
    return job->journal != NULL;
}

bool job_run(struct job *job, const char *state_dir, GError **error)
{
    g_autoptr(GError) local = NULL;
    int64_t begin = g_get_monotonic_time();

    job->report->method = job->method->name;
    if (open_journal(job, state_dir, &local))
        run_phases(job, &local);
    job_close(job, &local);
    job->report->duration_s = (double)(g_get_monotonic_time() - begin) / G_USEC_PER_SEC;
    if (!local)
        return true;
    g_propagate_error(error, g_steal_pointer(&local));
    return false;
}

void job_notice(const struct job *job, const char *format, ...)
{
    g_autofree char *text = NULL;
    va_list args;

    if (!job->listener->notice)
        return;
    va_start(args, format);
    text = g_strdup_vprintf(format, args);
    va_end(args);
    job->listener->notice(job->listener->opaque, text);
}

void job_storage_notice(const struct job *job, const struct storage *storage, const char *told)
{
    if (storage->notice && storage->notice != told)
        job_notice(job, "%s: %s", storage->name, storage->notice);
}

void job_plan(const struct job *job, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    g_ptr_array_add(job->report->plan, g_strdup_vprintf(format, args));
    va_end(args);
}

bool job_event(const struct job *job, const char *kind, GError **error, const char *format, ...)
{
    g_autofree char *text = NULL;
    va_list args;

    va_start(args, format);
    text = g_strdup_vprintf(format, args);
    va_end(args);
    return journal_event(job->journal, job->record, kind, text, error);
}
