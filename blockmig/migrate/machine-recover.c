/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An interrupted job of a domain.  The journal says which files are its own; where the machine is, both
 * libvirts are asked.  As long as only the source has it, all is rolled back; once only the target has it,
 * the job goes on there.  If both have it, and it runs on neither, the target's is ended first.  Once it was
 * let go there, what it wrote last is there, whether it runs, is off, or is not to be found any more.
 */
#include "blockmig/migrate/machine.h"
#include "blockmig/storage/names.h"

#include <string.h>

#define PATIENCE (30 * G_USEC_PER_SEC) /* with a daemon that still ends what our death interrupted */

bool machine_save_disk(struct machine_job *job, const struct machine_disk *disk, GError **error)
{
    struct journal_disk record = {.index = disk->index,
                                  .source = disk->path,
                                  .target = disk->target_name,
                                  .source_format = (char *)disk->source_format->name,
                                  .target_format = (char *)disk->format->name,
                                  .source_identity = disk->name,
                                  .target_identity = disk->target_path,
                                  .size = disk->size,
                                  .receipt = disk->report->receipt,
                                  .frozen = disk->frozen};

    return journal_disk_save(job->base.journal, job->base.record, &record, error);
}

/* ---- which job ----------------------------------------------------------------------------------- */

static bool record_has_event(const struct machine_job *job, const struct journal_job *record,
                             const char *kind, const char *beginning)
{
    g_autoptr(GPtrArray) told = journal_told(job->base.journal, record, kind, beginning, NULL);

    return told && told->len > 0;
}

/* What was undone has nothing that could be found again: files under its names are somebody else's.  What was
 * rolled back may have left something on a target that did not answer. */
static bool is_unfinished(const struct machine_job *job, const struct journal_job *record)
{
    static const char *const ends[] = {"done", "failed-back", NULL};

    return (!record->result || !g_strv_contains(ends, record->result)) &&
           record_has_event(job, record, "intent", "") &&
           !record_has_event(job, record, "result", MACHINE_UNDONE);
}

/* Whatever it was called then. `names`: those that it has now. */
static bool is_of_machine(const struct journal_job *record, char *const *names)
{
    const char *command = record->command;

    return (strcmp(command, "migrate") == 0 || strcmp(command, "move") == 0) &&
           g_strv_contains((const char *const *)names, record->source);
}

/* Of the machine that is asked for; the caller's.  It may be gone already, or its host is not asked yet. */
static char **names_of(const struct machine_job *job)
{
    const char *asked = job->request->machine;
    g_autoptr(domain_t) domain = job->here ? domain_open(job->here, asked, NULL) : NULL;
    const char *const names[] = {asked, domain ? domain_name(domain) : NULL,
                                 domain ? domain_uuid(domain) : NULL, NULL};

    return g_strdupv((char **)names);
}

/* Nothing else is done to a machine while one runs.  What is older than the job whose machine goes back is
 * over. */
struct journal_job *machine_find_unfinished(struct machine_job *job, GError **error)
{
    g_autoptr(GPtrArray) list = journal_job_list(job->base.journal, error);
    const char *command = job->across ? "migrate" : "move";
    g_auto(GStrv) names = names_of(job);

    for (guint i = 0; list && i < list->len; i++) {
        const struct journal_job *record = g_ptr_array_index(list, i);

        if (g_strcmp0(record->id, job->back_of) == 0)
            return NULL;
        if (job->wanted ? strcmp(record->id, job->wanted) != 0 : !is_of_machine(record, names))
            continue;
        if (journal_job_alive(record)) {
            blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "job %s moves this machine (process %" PRId64 ")",
                          record->id, record->owner_pid);
            return NULL;
        }
        if (!machine_refuse_window(job, record, error))
            return NULL;
        if (job->wanted || strcmp(record->command, command) == 0)
            return is_unfinished(job, record) ? journal_job_load(job->base.journal, record->id, error) : NULL;
    }
    return NULL;
}

bool machine_has_event(const struct machine_job *job, const char *kind, const char *beginning)
{
    return record_has_event(job, job->base.record, kind, beginning);
}

static bool use_method(struct machine_job *job)
{
    const struct method *const methods[] = {&method_machine_mirror, &method_machine_live,
                                            &method_machine_quick,  &method_machine_restart,
                                            &method_machine_cold,   &method_machine_san};

    for (unsigned i = 0; i < G_N_ELEMENTS(methods); i++)
        if (strcmp(methods[i]->name, job->base.record->method) == 0)
            job_set_method(&job->base, methods[i]);
    return true;
}

/* ---- its disks ----------------------------------------------------------------------------------- */

static unsigned highest_overlay(const struct machine_disk *disk)
{
    unsigned top = 0;

    for (unsigned n = 1; n < 64; n++) {
        g_autofree char *path = machine_layer_path(disk, n);

        if (g_file_test(path, G_FILE_TEST_EXISTS))
            top = n;
    }
    return top;
}

GPtrArray *machine_created_files(const struct machine_job *job, GError **error)
{
    return journal_told(job->base.journal, job->base.record, "intent", JOB_CREATES, error);
}

/* What the journal had announced it would create is ours, if it is there: that very name. */
static bool was_created(const struct machine_job *job, const char *name)
{
    g_autofree char *text = g_strconcat(JOB_CREATES, name, NULL);

    return journal_has_told(job->base.journal, job->base.record, "intent", text);
}

static bool rebuild(struct machine_job *job, const struct journal_disk *saved, GError **error)
{
    struct machine_disk *disk = machine_disk_new(job, saved->source_identity, saved->source, error);
    bool mirrored = job->base.method == &method_machine_live || job->base.method == &method_machine_mirror;

    if (!disk)
        return false;
    disk->index = saved->index;
    disk->target_name = g_strdup(saved->target);
    disk->target_path = g_strdup(saved->target_identity);
    disk->overlay_name = g_strconcat(disk->target_name, MACHINE_NEW, NULL);
    disk->overlay_path = g_strconcat(disk->target_path, MACHINE_NEW, NULL);
    disk->size = saved->size;
    disk->frozen = g_strdup(saved->frozen);
    if (!(disk->source_format = format_by_name(saved->source_format, error)) ||
        !(disk->format = format_by_name(saved->target_format, error)))
        return false;
    disk->top = highest_overlay(disk);
    disk->merged = disk->top - (mirrored && disk->top > 0 ? 1 : 0);
    disk->created = was_created(job, disk->target_name);
    disk->overlay_created = was_created(job, disk->overlay_name);
    machine_describe_disk(job, disk);
    return true;
}

void machine_add_root(struct machine_job *job, const char *directory)
{
    if (!g_ptr_array_find_with_equal_func(job->roots, directory, g_str_equal, NULL))
        g_ptr_array_add(job->roots, g_strdup(directory));
}

static bool rebuild_roots(struct machine_job *job, GError **error)
{
    g_autoptr(GPtrArray) roots =
        journal_told(job->base.journal, job->base.record, "fact", MACHINE_ROOT, error);

    for (guint i = 0; roots && i < roots->len; i++)
        machine_add_root(job, g_ptr_array_index(roots, i));
    return roots != NULL;
}

bool machine_rebuild_disks(struct machine_job *job, GError **error)
{
    g_autoptr(GPtrArray) disks = journal_disk_list(job->base.journal, job->base.record, error);

    if (!rebuild_roots(job, error))
        return false;
    for (guint i = 0; disks && i < disks->len; i++)
        if (!rebuild(job, g_ptr_array_index(disks, i), error))
            return false;
    return disks != NULL;
}

static bool is_of_disk(const struct machine_job *job, const char *name)
{
    for (guint i = 0; i < job->disks->len; i++) {
        const struct machine_disk *disk = machine_disk_at(job, i);

        if (strcmp(name, disk->target_name) == 0 || strcmp(name, disk->overlay_name) == 0)
            return true;
    }
    return false;
}

/* Other files that it created: only to be removed again. */
static void rebuild_files(struct machine_job *job)
{
    g_autoptr(GPtrArray) names = machine_created_files(job, NULL);

    for (guint i = 0; names && i < names->len; i++) {
        const char *name = g_ptr_array_index(names, i);
        struct machine_file *file;

        if (is_of_disk(job, name))
            continue;
        file = g_new0(struct machine_file, 1);
        file->target_name = g_strdup(name);
        file->created = true;
        g_ptr_array_add(job->files, file);
    }
}

/* ---- where the machine is ------------------------------------------------------------------------ */

struct side {
    bool there; /* it is defined or active */
    struct domain_state state;
};

/* One that its daemon ends just now is there for the first question only. */
static bool ask(struct domain_host *host, const char *name, struct domain **domain, struct side *side,
                GError **error)
{
    GError *local = NULL;

    *side = (struct side){false};
    g_clear_pointer(domain, domain_close);
    *domain = domain_open(host, name, &local);
    side->there = *domain && domain_look(*domain, &side->state, &local);
    if (side->there)
        return true;
    g_clear_pointer(domain, domain_close);
    if (!g_error_matches(local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED)) {
        g_propagate_error(error, local);
        return false;
    }
    g_error_free(local);
    return true;
}

/* A daemon needs a moment to notice that we died. */
static bool ask_both(struct machine_job *job, struct side *here, struct side *there, GError **error)
{
    int64_t until = g_get_monotonic_time() + PATIENCE;

    for (;;) {
        struct domain_progress ignored;

        if (!ask(job->here, job->request->machine, &job->domain, here, error) ||
            !ask(job->there, job->request->machine, &job->arrived, there, error))
            return false;
        if (!here->state.active || !there->state.active || g_get_monotonic_time() > until)
            break;
        if (!domain_migration_progress(job->domain, &ignored) && here->state.running && !there->state.running)
            break;
        g_usleep(G_USEC_PER_SEC / 4);
    }
    return true;
}

static char *saved_definition(const struct machine_job *job)
{
    g_autofree char *path = machine_definition_path(job);
    char *text = NULL;

    g_file_get_contents(path, &text, NULL, NULL);
    return text;
}

static void note_state(struct machine_job *job)
{
    job->state = (struct domain_state){.active = machine_has_event(job, "fact", "active"),
                                       .running = machine_has_event(job, "fact", "running"),
                                       .persistent = machine_has_event(job, "fact", "persistent"),
                                       .autostart = machine_has_event(job, "fact", "autostart")};
    job->let_go = machine_has_event(job, "intent", MACHINE_LETS_GO) ||
                  machine_has_event(job, "result", MACHINE_ARRIVED);
}

bool machine_save_state(struct machine_job *job, GError **error)
{
    const struct {
        bool set;
        const char *word;
    } facts[] = {{job->state.active, "active"},
                 {job->state.running, "running"},
                 {job->state.persistent, "persistent"},
                 {job->state.autostart, "autostart"}};

    for (unsigned i = 0; i < G_N_ELEMENTS(facts); i++)
        if (facts[i].set && !job_event(&job->base, "fact", error, "%s", facts[i].word))
            return false;
    for (guint i = 0; i < job->roots->len; i++)
        if (!job_event(&job->base, "fact", error, MACHINE_ROOT "%s",
                       (const char *)g_ptr_array_index(job->roots, i)))
            return false;
    return true;
}

static bool uncertain(struct machine_job *job, const char *text, GError **error)
{
    job->uncertain = true;
    return blockmig_fail(error, BLOCKMIG_ERROR_UNCERTAIN, "job %s: %s", job->base.record->id, text);
}

/* Its process ends.  Its daemon may be about to do the same, or be busy with it. */
static bool end_process(struct machine_job *job, struct domain_host *host, struct domain **domain,
                        struct side *side, GError **error)
{
    int64_t until = g_get_monotonic_time() + PATIENCE;

    for (;;) {
        GError *local = NULL;

        if (!ask(host, job->request->machine, domain, side, error))
            return false;
        if (side->state.running)
            return uncertain(job, "the machine is active on both hosts and went on: nothing is done", error);
        if (!side->state.active)
            return true;
        if (!domain_kill(*domain, &local) && g_get_monotonic_time() > until) {
            g_propagate_error(error, local);
            return false;
        }
        g_clear_error(&local);
        g_usleep(G_USEC_PER_SEC / 4);
    }
}

bool machine_end_there(struct machine_job *job, GError **error)
{
    struct side there;
    GError *local = NULL;

    if (!end_process(job, job->there, &job->arrived, &there, error))
        return false;
    if (there.there && !domain_undefine(job->arrived, &local) &&
        !g_error_matches(local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED)) {
        g_propagate_error(error, local);
        return false;
    }
    g_clear_error(&local);
    g_clear_pointer(&job->arrived, domain_close);
    return true;
}

/* The target's, which never ran, is ended before the source's is let go on. */
static bool take_back(struct machine_job *job, const struct side *here, GError **error)
{
    return machine_end_there(job, error) &&
           (here->state.running || !job->state.running || domain_resume(job->domain, error));
}

static bool define_again(struct machine_job *job, GError **error)
{
    g_autofree char *text = saved_definition(job);

    return text ? machine_restore_definition(job, text, error)
                : uncertain(job, "neither host has the machine, nor the journal its definition", error);
}

/* Its definition may be there and barred. */
static bool back_home(struct machine_job *job, const struct side *here, GError **error)
{
    bool barred = machine_has_event(job, "intent", MACHINE_REMOVES);

    if (here->there && job->domain && !machine_check_astray(job, here->state.active, error))
        return false;
    if ((!here->there || (job->state.persistent && barred)) && !define_again(job, error))
        return false;
    if (here->state.active && !here->state.running && job->state.running &&
        !domain_resume(job->domain, error))
        return false;
    job->off = !here->state.active && machine_has_event(job, "intent", "shut the guest down");
    rebuild_files(job);
    job->base.go_on_at = "rollback";
    return true;
}

/* Which of the last phases.  What settle does may be done twice; what is cold has nothing to settle. */
static bool go_on_there(struct machine_job *job, const struct side *there, GError **error)
{
    bool settled = job->disks->len == 0 || job->base.method == &method_machine_cold ||
                   machine_has_event(job, "result", MACHINE_MERGED);

    job->gone = true;
    if (!settled && job->state.persistent && !there->there)
        return uncertain(job, "the machine went on, on the target, and is not there any more", error);
    if (!(job->definition = saved_definition(job)) && job->state.persistent &&
        !(job->definition =
              domain_definition(job->domain ? job->domain : job->arrived, DOMAIN_PERSISTENT, error)))
        return false;
    job->released = !job->across || there->state.running || (job->let_go && !there->state.active) ||
                    machine_has_event(job, "result", MACHINE_ARRIVED);
    job->base.go_on_at = !job->released                                     ? "switchover"
                         : settled                                          ? "cleanup"
                         : machine_has_event(job, "result", MACHINE_PROVED) ? "settle"
                                                                            : "prove";
    return true;
}

/* The target defines it when all of it has come, and lets nobody but us go on; until then what it has is good
 * for nothing.  The source's, which stands still then, is what is left over. */
static bool choose(struct machine_job *job, struct side *here, const struct side *there, GError **error)
{
    if (here->state.running || !(there->state.running || (there->state.persistent && job->state.persistent)))
        return take_back(job, here, error) && back_home(job, here, error);
    return end_process(job, job->here, &job->domain, here, error) && go_on_there(job, there, error);
}

static bool decide(struct machine_job *job, GError **error)
{
    struct side here, there;

    if (!ask_both(job, &here, &there, error))
        return false;
    if (job->let_go)
        return end_process(job, job->here, &job->domain, &here, error) && go_on_there(job, &there, error);
    if (here.state.active && there.state.active)
        return choose(job, &here, &there, error);
    if (there.state.active || (there.there && !here.there))
        return go_on_there(job, &there, error);
    return back_home(job, &here, error);
}

/* A mirror that was to be ended on the target is still one, whoever led it. */
static bool bring_over(struct machine_job *job, const struct machine_disk *disk, GError **error)
{
    bool there, ready;

    if (!domain_job_look(job->domain, disk->name, &there, &ready, error))
        return false;
    if (!there || !ready)
        return uncertain(job, "some disks are on the target, and others cannot follow", error);
    return domain_job_end(job->domain, disk->name, true, error);
}

/* All disks are on one side: a switch that was interrupted between them is ended.  *over: on the target. */
static bool put_on_one_side(struct machine_job *job, const struct definition *definition, bool *over,
                            GError **error)
{
    g_autofree bool *there = g_new0(bool, job->disks->len);
    unsigned count = 0;

    for (guint i = 0; i < job->disks->len; i++) {
        const struct machine_disk *disk = machine_disk_at(job, i);
        g_autofree char *now = machine_source_of(definition, disk->name);

        there[i] = g_strcmp0(now, disk->overlay_path) == 0 || g_strcmp0(now, disk->target_path) == 0;
        count += there[i];
    }
    *over = count > 0;
    for (guint i = 0; *over && i < job->disks->len; i++)
        if (!there[i] && !bring_over(job, machine_disk_at(job, i), error))
            return false;
    return true;
}

/* On one host the disks that the machine is on say it. */
static bool decide_here(struct machine_job *job, GError **error)
{
    struct side here;
    g_autofree char *text = NULL;
    g_autoptr(definition_t) definition = NULL;
    bool over;

    if (!ask(job->here, job->request->machine, &job->domain, &here, error))
        return false;
    if (!here.there)
        return job->let_go ? go_on_there(job, &here, error)
                           : uncertain(job, "the machine is not there any more", error);
    text = domain_definition(job->domain, DOMAIN_ACTIVE, error);
    definition = text ? definition_parse(text, error) : NULL;
    if (!definition || !put_on_one_side(job, definition, &over, error))
        return false;
    if (!over)
        return back_home(job, &here, error);
    if (here.state.active && !here.state.running && job->state.running && !domain_resume(job->domain, error))
        return false;
    job->arrived = domain_open(job->here, job->request->machine, error);
    return job->arrived && go_on_there(job, &here, error);
}

/* Rolled back and over: the command begins anew, unless it was about just this job. */
static bool begin_anew(struct machine_job *job, GError **error)
{
    struct job *base = &job->base;
    g_autofree char *id = g_strdup(base->record->id);

    job->base.report->phase = "rollback";
    if (!machine_rollback(base, error) || !journal_job_finish(base->journal, base->record, "rolled-back",
                                                              "interrupted before the switch", error))
        return false;
    job_notice(base, "job %s was interrupted before the switch; it is rolled back, and begun anew", id);
    g_clear_pointer(&base->record, journal_job_free);
    g_clear_pointer(&job->domain, domain_close);
    g_ptr_array_set_size(job->disks, 0);
    g_ptr_array_set_size(job->lowers, 0);
    g_ptr_array_set_size(job->files, 0);
    g_ptr_array_set_size(job->units, 0);
    g_ptr_array_set_size(base->report->disks, 0);
    g_clear_pointer(&base->report->advice, g_free);
    job->off = job->gone = job->let_go = job->interrupted = base->undone = false;
    base->report->phase = "preflight";
    base->go_on_at = NULL;
    return true;
}

bool machine_recover(struct machine_job *job, GError **error)
{
    struct job *base = &job->base;
    GError *local = NULL;
    g_autoptr(journal_job_t) record = base->journal ? machine_find_unfinished(job, &local) : NULL;

    if (local) {
        g_propagate_error(error, local);
        return false;
    }
    if (!record)
        return true;
    if (base->dry_run) {
        job_plan(base, "job %s of this machine is not finished (phase \"%s\"): that comes first", record->id,
                 record->phase);
        base->go_on_at = "rollback"; /* or what it is then: nothing more is looked at now */
        return true;
    }
    if (!journal_job_claim(base->journal, record, error))
        return false;
    base->record = g_steal_pointer(&record);
    base->report->resumed = job->interrupted = true;
    note_state(job);
    if (!use_method(job) || !machine_rebuild_disks(job, error) || !machine_find_units(job, error))
        return false;
    if (!(job->across       ? decide(job, error)
          : job->disks->len ? decide_here(job, error)
                            : back_home(job, &(struct side){.there = true}, error)))
        return false;
    if (!job->domain && !job->arrived && !job->let_go)
        return uncertain(job, "the machine is on neither host", error);
    if (strcmp(base->go_on_at, "rollback") != 0 || job->give_up)
        return true;
    if (!machine_take_up(job, error))
        return false;
    if (job->left || job->wanted)
        return true;
    job->interrupted = false;
    return begin_anew(job, error);
}
