/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Cold copies from the outside: running one, giving one up. */
#include "blockmig/migrate/cold.h"

#include <string.h>

void cold_describe(const struct job *base, struct journal_job *record)
{
    const struct cold_job *job = (const struct cold_job *)base;
    const struct copy_unit *top = g_ptr_array_index(job->units, job->units->len - 1);

    record->request = copy_request_to_json(job->request);
    record->source = g_strdup(top->source_path);
    record->target = g_strdup(top->target_path);
}

/* With what has its name already, if that is `named`. */
static bool give_up(struct journal *journal, struct journal_job *record, const char *why, bool named,
                    GPtrArray *stays, GError **error)
{
    if (!journal_job_claim(journal, record, error))
        return false;
    if ((named && !cold_remove_named(journal, record, stays, error)) ||
        !cold_remove_parts(journal, record, stays, error)) {
        journal_job_rest(journal, record, NULL);
        return false;
    }
    return journal_checkpoint_clear(journal, record, error) &&
           journal_job_finish(journal, record, "discarded", why, error);
}

/* What an earlier job left for the same target is of no use to this one.  Preflight knows what may be
 * replaced. */
bool cold_begin(struct job *base, GError **error)
{
    struct cold_job *job = cold_of(base);
    g_autoptr(GPtrArray) stays = g_ptr_array_new_with_free_func(g_free);

    return !job->given_up || give_up(base->journal, job->given_up, "begun anew by a later job",
                                     job->request->restart, stays, error);
}

bool cold_finish(struct job *base, GError **error)
{
    return cold_tell_bad(cold_of(base), error);
}

/* To run it again continues what is not there yet; what is there needs leave to be replaced. */
char *cold_advise(const struct job *job, const GError *error)
{
    if (cold_of((struct job *)job)->deleted)
        return g_strdup("an earlier run has deleted the source");
    if (strcmp(job->report->phase, "done") == 0)
        return g_strdup("everything else was copied; the receipt lists what is missing. --force copies it "
                        "again once the source can be read");
    if (job->already_there && g_error_matches(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_DIFFERENT))
        return g_strdup("the source is untouched; --force copies it again");
    return g_strdup_printf("the source is untouched; run the same command again, or 'blockmig job resume "
                           "%s', to continue",
                           job->record->id);
}

struct job_report *copy_job_run(const struct copy_request *request, const struct job_listener *listener,
                                bool dry_run, GError **error)
{
    struct cold_job job = {.base = {.method = &method_cold,
                                    .listener = listener,
                                    .dry_run = dry_run,
                                    .report = job_report_new()},
                           .request = request};

    job.base.report->command = "copy";
    job.base.report->verified = request->verify;
    job.units = g_ptr_array_new_with_free_func((GDestroyNotify)copy_unit_free);
    job_run(&job.base, request->state_dir, error);
    g_clear_pointer(&job.units, g_ptr_array_unref);
    chain_close(job.seed);
    chain_close(job.source);
    journal_job_free(job.given_up);
    g_clear_pointer(&job.deleted, g_ptr_array_unref);
    job_clear(&job.base);
    return job.base.report;
}

bool copy_job_discard(const char *state_dir, const char *id, GError **error)
{
    g_autoptr(journal_t) journal = journal_open(state_dir, error);
    g_autoptr(journal_job_t) record = journal ? journal_job_load(journal, id, error) : NULL;
    g_autoptr(GPtrArray) stays = g_ptr_array_new_with_free_func(g_free);
    g_autofree char *names = NULL;

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
    if (!cold_check_places(journal, record, error) ||
        !give_up(journal, record, "given up", true, stays, error))
        return false;
    if (stays->len == 0)
        return true;
    g_ptr_array_add(stays, NULL);
    names = g_strjoinv(", ", (char **)stays->pdata);
    return blockmig_fail(error, BLOCKMIG_ERROR_FAILED,
                         "job %s is given up; not removed, as they are not known to be what it left: %s",
                         record->id, names);
}

void cold_copy_options(const struct cold_job *job, struct copy_options *options)
{
    options->cancelled = job->base.listener->cancelled;
    options->opaque = job->base.listener->opaque;
}
