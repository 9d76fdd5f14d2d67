/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Jobs: which phase follows which, and what the end is called.
 *
 *   preflight --> base --> prove --> cleanup --> done
 *       |          |         |          |
 *       v          +----+----+----------+
 *    refused            v
 *                failed | parked | rolled-back
 *
 *   refused      nothing was changed; there is no job in the journal
 *   failed       an error of the medium, or a difference (which has its own exit status)
 *   parked       no space on the target, or its name is taken: goes on once there is some, or it is free
 *   rolled-back  cancelled; goes on if asked again
 *
 * In all three lower states the source is untouched and the part file stays, so that running the same command
 * continues.  job_enter() is the only function that changes a phase: it checks the table, writes the
 * journal, then tells the listener.
 */
#include "blockmig/migrate/cold.h"

#include <string.h>

struct phase {
    const char *name;
    bool (*run)(struct cold_job *job, GError **error);
    const char *next;
};

static const struct phase cold_phases[] = {
    {"preflight", cold_preflight, "base"},
    {"base", cold_base, "prove"},
    {"prove", cold_prove, "cleanup"},
    {"cleanup", cold_cleanup, "done"},
};

static const struct phase *find_phase(const char *name)
{
    for (size_t i = 0; i < G_N_ELEMENTS(cold_phases); i++)
        if (strcmp(cold_phases[i].name, name) == 0)
            return &cold_phases[i];
    return NULL;
}

/* An entry into "preflight" starts the table; every other must be what the phase before names. */
static bool job_enter(struct cold_job *job, const char *name, GError **error)
{
    const struct phase *from = job->report->phase ? find_phase(job->report->phase) : NULL;

    g_assert(from ? strcmp(from->next, name) == 0 : strcmp(name, "preflight") == 0);
    /* What is there already stays as it was, if this process dies, until it has come to the end again. */
    if (job->record && (!job->already_there || strcmp(name, "done") == 0) &&
        !journal_job_set_phase(job->journal, job->record, name, error))
        return false;
    job->report->phase = from ? from->next : cold_phases[0].name;
    if (job->listener->phase)
        job->listener->phase(job->listener->opaque, job->report->phase, NULL);
    return true;
}

/* What an earlier job left for the same target is of no use to this one. */
static bool give_up(struct journal *journal, struct journal_job *record, const char *why, GError **error)
{
    if (!journal_job_claim(journal, record, error))
        return false;
    cold_remove_parts(journal, record);
    return journal_checkpoint_clear(journal, record, error) &&
           journal_job_finish(journal, record, "discarded", why, error);
}

/* From here on there is something to come back to. */
static bool job_record(struct cold_job *job, GError **error)
{
    const struct copy_unit *top = g_ptr_array_index(job->units, job->units->len - 1);
    g_autofree char *request = copy_request_to_json(job->request);
    struct journal_job *record;

    if (job->record)
        return true;
    if (job->given_up && !give_up(job->journal, job->given_up, "begun anew by a later job", error))
        return false;
    record = g_new0(struct journal_job, 1);
    record->command = g_strdup(job->report->command);
    record->method = g_strdup(job->report->method);
    record->phase = g_strdup(job->report->phase);
    record->request = g_steal_pointer(&request);
    record->source = g_strdup(top->source_path);
    record->target = g_strdup(top->target_path);
    if (!journal_job_create(job->journal, record, error)) {
        journal_job_free(record);
        return false;
    }
    job->record = record;
    return true;
}

static bool run_phases(struct cold_job *job, GError **error)
{
    for (const struct phase *phase = cold_phases; phase; phase = find_phase(phase->next)) {
        if (!job_enter(job, phase->name, error) || !phase->run(job, error))
            return false;
        if (job->dry_run)
            return true;
        if (!job_record(job, error))
            return false;
    }
    return job_enter(job, "done", error) && cold_tell_bad(job, error);
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

/* To run it again continues what is not there yet; what is there needs leave to be replaced. */
static char *advise(const struct cold_job *job, const GError *error)
{
    if (strcmp(job->report->phase, "done") == 0)
        return g_strdup("everything else was copied; the receipt lists what is missing. --force copies it "
                        "again once the source can be read");
    if (job->already_there && g_error_matches(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_DIFFERENT))
        return g_strdup("the source is untouched; --force copies it again");
    return g_strdup_printf("the source is untouched; run the same command again, or 'blockmig job resume "
                           "%s', to continue",
                           job->record->id);
}

/* What the journal calls the end.  A finished job that is looked at again has ended otherwise only if it is
 * found to be different; one that is refused now (no room, in use) can go on later. */
static const char *recorded_result(const struct cold_job *job, const GError *failure)
{
    bool different = g_error_matches(failure, BLOCKMIG_ERROR, BLOCKMIG_ERROR_DIFFERENT);

    if (job->ended && failure && !different)
        return job->ended;
    return strcmp(job->report->result, "refused") == 0 ? "parked" : job->report->result;
}

static bool record_end(struct cold_job *job, const GError *failure, GError **error)
{
    const char *result = recorded_result(job, failure);
    const char *message = failure ? failure->message : NULL;

    return journal_job_finish(job->journal, job->record, result,
                              result == job->ended ? job->ended_error : message, error);
}

/* The end is written down even if that fails too: then the error says both. */
static void job_close(struct cold_job *job, GError **error)
{
    struct job_report *report = job->report;
    g_autoptr(GError) local = NULL;

    report->result = result_of(*error, job->dry_run);
    if (!job->record)
        return;
    report->id = g_strdup(job->record->id);
    report->started = job->record->started;
    if (*error && !report->advice)
        report->advice = advise(job, *error);
    if (!job->dry_run && !record_end(job, *error, &local)) {
        if (*error)
            g_prefix_error(error, "%s; ", local->message);
        else
            g_propagate_error(error, g_steal_pointer(&local));
        report->result = "failed";
    }
}

static void cold_job_clear(struct cold_job *job)
{
    g_clear_pointer(&job->units, g_ptr_array_unref);
    chain_close(job->source);
    journal_job_free(job->record);
    journal_job_free(job->given_up);
    g_free(job->ended);
    g_free(job->ended_error);
    journal_close(job->journal);
}

/* A plan changes nothing: it looks into a journal but makes none. */
static bool open_journal(struct cold_job *job, GError **error)
{
    if (job->dry_run && !journal_exists(job->request->state_dir))
        return true;
    job->journal = journal_open(job->request->state_dir, error);
    if (!job->journal && (*error)->domain == BLOCKMIG_ERROR)
        (*error)->code = BLOCKMIG_ERROR_REFUSED; /* whatever it is: nothing has happened */
    return job->journal != NULL;
}

struct job_report *copy_job_run(const struct copy_request *request, const struct job_listener *listener,
                                bool dry_run, GError **error)
{
    struct job_report *report = job_report_new();
    struct cold_job job = {.request = request, .listener = listener, .dry_run = dry_run, .report = report};
    g_autoptr(GError) local = NULL;
    int64_t begin = g_get_monotonic_time();

    report->command = "copy";
    report->method = "cold";
    report->verified = request->verify;
    job.units = g_ptr_array_new_with_free_func((GDestroyNotify)copy_unit_free);
    if (open_journal(&job, &local))
        run_phases(&job, &local);
    job_close(&job, &local);
    report->duration_s = (double)(g_get_monotonic_time() - begin) / G_USEC_PER_SEC;
    cold_job_clear(&job);
    if (local)
        g_propagate_error(error, g_steal_pointer(&local));
    return report;
}

bool copy_job_discard(const char *state_dir, const char *id, GError **error)
{
    g_autoptr(journal_t) journal = journal_open(state_dir, error);
    g_autoptr(journal_job_t) record = journal ? journal_job_load(journal, id, error) : NULL;

    if (!journal)
        return false;
    if (!record) {
        if (error && !*error)
            g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE, "there is no job %s", id);
        return false;
    }
    if (record->result && strcmp(record->phase, "done") == 0) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED,
                    "job %s is done: there is nothing to give up", record->id);
        return false;
    }
    return give_up(journal, record, "given up", error);
}

void cold_copy_options(const struct cold_job *job, struct copy_options *options)
{
    options->cancelled = job->listener->cancelled;
    options->opaque = job->listener->opaque;
}

void cold_notice(const struct cold_job *job, const char *format, ...)
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
