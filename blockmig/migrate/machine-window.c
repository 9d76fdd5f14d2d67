/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The failback window of a domain.  The machine is on its merged target, which anyone may start, and the
 * source's images are kept as NAME.blockmig-source; so nothing has to be held together, and the way back is a
 * move or a migration in the other direction, a job of its own (machine-back.c: led by the other host).
 *
 *   preflight --> close --> done                           (job finish; the keeper)
 *       |
 *       +-------> return --> remove --> done               (job failback)
 *                    +--> window
 */
#include "blockmig/migrate/machine-window.h"

#include "blockmig/migrate/keeper.h"
#include "blockmig/migrate/machine-look.h"
#include "blockmig/migrate/request-json.h"
#include "blockmig/migrate/units.h"
#include "blockmig/storage/names.h"
#include "blockmig/storage/uri.h"

#include <string.h>
#include <sys/stat.h>

/* An event of the job: from then on it is known where the machine is. */
#define BACK "the machine is back"

static bool window_preflight(struct job *base, GError **error);
static bool close_window(struct job *base, GError **error);
static bool come_back(struct job *base, GError **error);
static bool remove_kept(struct job *base, GError **error);
static bool stay_open(struct job *base, GError **error);
static char *advise(const struct job *base, const GError *error);

static const struct method method_machine_window = {
    .name = "window",
    .phases =
        (const struct phase[]){
            {"preflight", window_preflight, NULL, NULL},
            {"close", close_window, "done", NULL},
            {"return", come_back, "remove", "window"},
            {"remove", remove_kept, "done", NULL},
            {"window", stay_open, NULL, NULL},
            {NULL},
        },
    .keeps = true,
    .advise = advise,
};

/* ---- whether there will be a way back --------------------------------------------------------------- */

static bool check_disk(struct machine_job *job, const struct machine_disk *disk, const char *directory,
                       GError **error)
{
    g_autofree char *place = g_path_get_dirname(disk->path);
    g_autofree char *in_the_way = g_strconcat(disk->target_name, MACHINE_SOURCE, NULL);
    struct name_info info;

    if (disk->device)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "disk %s is on a block device, to which nothing is moved", disk->name);
    if (strcmp(place, directory) != 0)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "its disks are in %s and in %s: they could only go back to one directory",
                             directory, place);
    if (job->request->target_format && disk->source_format != machine_disk_at(job, 0)->source_format)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "its disks have different formats, of which -O makes one");
    if (!(disk->source_format->flags & FORMAT_RUNS))
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "disk %s: nothing is moved to format %s",
                             disk->name, disk->source_format->name);
    return name_look(in_the_way, &info, error) &&
           (info.kind == NAME_FREE ||
            blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s is there, and would be in the way", in_the_way));
}

static bool check_disks(struct machine_job *job, const char *directory, GError **error)
{
    for (guint i = 0; i < job->disks->len; i++)
        if (!check_disk(job, machine_disk_at(job, i), directory, error))
            return false;
    return true;
}

bool machine_check_way_back(struct machine_job *job, GError **error)
{
    g_autofree char *directory = NULL;

    if (job->request->keep_failback == 0)
        return true;
    if (job->shared || job->disks->len == 0)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "--keep-failback: what both hosts reach is not kept; a migration brings the "
                             "machine back");
    directory = g_path_get_dirname(machine_disk_at(job, 0)->path);
    if (check_disks(job, directory, error) &&
        (!job->across || machine_check_reach(job, job->request->failback_to, directory, error))) {
        g_autofree char *time = units_format_duration((int64_t)job->request->keep_failback * 1000);

        job_plan(&job->base, "the way back to %s stays open for %s",
                 job->across ? job->request->failback_to : directory, time);
        return true;
    }
    g_prefix_error(error, "--keep-failback: there would be no way back: ");
    return false;
}

/* ---- facts ------------------------------------------------------------------------------------------ */

/* The names of what is kept on the source: the disks, in their order, and then what else the machine wrote
 * to; the caller's. */
static GPtrArray *kept_names(const struct machine_job *job, GError **error)
{
    GPtrArray *names = machine_written_files(job, error);

    for (guint i = 0; names && i < job->disks->len; i++)
        g_ptr_array_insert(names, (gint)i, g_strdup(machine_disk_at(job, i)->path));
    for (guint i = 0; names && i < names->len; i++) {
        g_autofree char *path = g_ptr_array_index(names, i);

        g_ptr_array_index(names, i) = g_strconcat(path, MACHINE_SOURCE, NULL);
    }
    return names;
}

static char *mark_of(const char *name);

static int compare(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Those of what is in it, each with its name; the caller's. */
static char *mark_of_directory(const char *path)
{
    g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
    g_autoptr(GPtrArray) marks = g_ptr_array_new_with_free_func(g_free);
    const char *name;

    while (dir && (name = g_dir_read_name(dir))) {
        g_autofree char *inner = g_build_filename(path, name, NULL), *mark = mark_of(inner);

        g_ptr_array_add(marks, g_strdup_printf("%s (%s)", name, mark ? mark : ""));
    }
    g_ptr_array_sort(marks, compare);
    g_ptr_array_add(marks, NULL);
    return dir ? g_strjoinv(" ", (char **)marks->pdata) : NULL;
}

/* Of a file that nobody writes to, or a directory of such; a boot of the host does not change it, as it does
 * the number of the device. The caller's; NULL: it cannot be looked at. */
static char *mark_of(const char *name)
{
    struct stat st;

    if (lstat(name, &st) < 0)
        return NULL;
    if (S_ISDIR(st.st_mode))
        return mark_of_directory(name);
    return !S_ISREG(st.st_mode)
               ? NULL
               : g_strdup_printf("%" G_GUINT64_FORMAT " %" G_GINT64_FORMAT " %" G_GINT64_FORMAT ".%09ld",
                                 (uint64_t)st.st_ino, (int64_t)st.st_size, (int64_t)st.st_mtim.tv_sec,
                                 st.st_mtim.tv_nsec);
}

/* How to go back, and the marks of the files that are kept until then: nothing else of these names is ever
 * removed. */
static char *describe(const struct machine_job *job, GError **error)
{
    g_autofree char *directory = g_path_get_dirname(machine_disk_at(job, 0)->path);
    g_autoptr(GPtrArray) names = kept_names(job, error);
    json_t *facts, *kept;

    if (!names)
        return NULL;
    facts = json_object();
    kept = json_object();
    request_set_string(facts, "to", job->across ? job->request->failback_to : directory);
    if (job->request->target_format)
        request_set_string(facts, "format", machine_disk_at(job, 0)->source_format->name);
    json_object_set_new(facts, "delete_source", json_boolean(job->request->delete_source));
    json_object_set_new(facts, "kept", kept);
    for (guint i = 0; i < names->len; i++) {
        const char *name = g_ptr_array_index(names, i);
        g_autofree char *mark = mark_of(name);

        if (mark)
            json_object_set_new(kept, name, json_string(mark));
    }
    return request_to_text(facts);
}

bool machine_window(struct job *base, GError **error)
{
    struct machine_job *job = machine_of(base);
    int64_t deadline = g_get_real_time() + (int64_t)job->request->keep_failback * 1000;
    g_autofree char *facts = describe(job, error);

    if (!facts || !journal_window_save(base->journal, base->record,
                                       &(struct journal_window){.deadline = deadline, .facts = facts}, error))
        return false;
    base->report->failback_until = deadline;
    return job_event(base, "result", error, "the way back is open");
}

bool machine_refuse_window(const struct machine_job *job, const struct journal_job *record, GError **error)
{
    g_autoptr(journal_window_t) window =
        record->result ? NULL : journal_window_load(job->base.journal, record, NULL);

    return !window || blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                                    "the way back of job %s is open: 'blockmig job finish %s' closes it, "
                                    "'blockmig job failback %s' goes back",
                                    record->id, record->id, record->id);
}

/* ---- the job ---------------------------------------------------------------------------------------- */

static json_t *load_facts(const struct machine_job *job, GError **error)
{
    g_autoptr(journal_window_t) window = journal_window_load(job->base.journal, job->base.record, error);

    return window ? request_from_text(window->facts ? window->facts : "", error) : NULL;
}

/* Is it under way, or half done? */
static bool has_set_out(struct machine_job *job, bool *begun, GError **error)
{
    GError *local = NULL;
    g_autofree char *run = machine_open_run(job);
    g_autoptr(journal_job_t) move = job->across ? NULL : machine_find_unfinished(job, &local);

    *begun = run || move || local;
    if (!local)
        return true;
    g_propagate_error(error, local);
    return false;
}

static bool window_preflight(struct job *base, GError **error)
{
    struct machine_job *job = machine_of(base);
    bool back, begun;

    if (!keeper_take(base, job->window->job, error))
        return false;
    job->back_of = base->record->id;
    base->report->method = g_intern_string(base->record->method);
    if (!machine_rebuild_disks(job, error) || !(job->facts = load_facts(job, error)) ||
        !has_set_out(job, &begun, error))
        return false;
    back = machine_has_event(job, "result", BACK);
    base->go_on_at = back ? "remove" : job->window->failback ? "return" : "close";
    if (back && !job->window->failback)
        job_notice(base, "job %s: the machine was brought back already; this completes it", base->record->id);
    return back || job->window->failback || !begun ||
           blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                         "the machine is on its way back: 'blockmig job failback %s' goes on with that",
                         base->record->id);
}

struct job_report *machine_window_run(const struct window_request *window, const struct move_request *request,
                                      const struct job_listener *listener, GError **error)
{
    struct machine_job job = {.request = request, .window = window};

    return machine_run(&job, &method_machine_window, window->failback ? "job failback" : "job finish",
                       listener, error);
}

static bool stay_open(struct job *base, GError **error)
{
    return job_event(base, "result", error, "the way back stays open");
}

static char *advise(const struct job *base, const GError *error)
{
    return g_strdup_printf(
        "the way back stays open: 'blockmig job failback %s' goes on, 'blockmig job finish "
        "%s' closes it",
        base->record->id, base->record->id);
}

/* ---- closing it ------------------------------------------------------------------------------------- */

/* Nothing but what was kept; if that was removed already, all is well. */
static bool remove_one(struct machine_job *job, const char *name, GError **error)
{
    const char *kept = json_string_value(json_object_get(json_object_get(job->facts, "kept"), name));
    g_autofree char *mark = mark_of(name);

    if (mark && g_strcmp0(mark, kept) == 0)
        return machine_remove_path(name, error);
    if (name_exists(name))
        job_notice(&job->base, "%s is not as it was when it was kept: it is left", name);
    return true;
}

static bool is_on_target(struct machine_job *job, const struct machine_disk *disk, bool *there,
                         GError **error)
{
    struct name_info info;

    if (!name_look(disk->target_name, &info, error))
        return false;
    *there = info.kind == NAME_FILE;
    if (!*there)
        job_notice(&job->base, "%s is not there any more: the source of %s is kept as %s" MACHINE_SOURCE,
                   disk->target_name, disk->name, disk->path);
    return true;
}

static bool close_window(struct job *base, GError **error)
{
    struct machine_job *job = machine_of(base);
    g_autoptr(GPtrArray) names = NULL;
    bool all = true;

    if (!json_is_true(json_object_get(job->facts, "delete_source")))
        return true;
    if (!(names = kept_names(job, error)))
        return false;
    for (guint i = 0; i < names->len; i++) {
        bool there = all; /* what is no disk goes with all of them */

        if (i < job->disks->len && !is_on_target(job, machine_disk_at(job, i), &there, error))
            return false;
        if (there && !remove_one(job, g_ptr_array_index(names, i), error))
            return false;
        all = all && there;
    }
    if (all)
        base->report->source = "deleted";
    return true;
}

/* ---- going back ------------------------------------------------------------------------------------- */

bool machine_is_at(const struct machine_job *job, struct domain *domain, bool source, GError **error)
{
    g_autofree char *text = domain_definition(domain, DOMAIN_ACTIVE, error);
    g_autoptr(definition_t) definition = text ? definition_parse(text, error) : NULL;

    for (guint i = 0; definition && i < job->disks->len; i++) {
        const struct machine_disk *disk = machine_disk_at(job, i);
        g_autofree char *now = machine_source_of(definition, disk->name);

        if (g_strcmp0(now, source ? disk->path : disk->target_path) != 0)
            return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s is not where it was left: disk %s is %s",
                                 job->request->machine, disk->name, now ? now : "not there any more");
    }
    return definition != NULL;
}

struct move_request *machine_request_back(const struct machine_job *job, const char *to)
{
    const struct move_request *there = job->request;
    struct move_request *back = move_request_new();

    back->machine = g_strdup(there->machine);
    back->across = there->across;
    back->target = to ? g_strdup(to) : request_get_string(job->facts, "to");
    back->connection = g_strdup(there->connection);
    back->target_format = request_get_string(job->facts, "format");
    back->state_dir = g_strdup(job->window->state_dir);
    back->delete_source = json_is_true(json_object_get(job->facts, "delete_source"));
    back->bandwidth = there->bandwidth;
    back->guest_share = there->guest_share;
    back->cdrom = there->cdrom;
    back->shutdown = there->shutdown;
    back->digest = there->digest;
    back->chain = there->chain;
    back->allowed_roots = g_ptr_array_ref(job->roots);
    back->max_pause = job->window->max_pause >= 0 ? (unsigned)job->window->max_pause : there->max_pause;
    return back;
}

void machine_adopt_report(struct machine_job *job, struct job_report *of)
{
    struct job_report *report = job->base.report;
    GPtrArray *disks = report->disks;

    report->method = of->method;
    report->pause_ms = of->pause_ms;
    report->pause_forecast_ms = of->pause_forecast_ms;
    report->max_pause_ms = of->max_pause_ms;
    report->passes = of->passes;
    report->bytes_read = of->bytes_read;
    report->source = of->source;
    report->verified = of->verified;
    report->disks = of->disks;
    of->disks = disks;
}

/* A move of this host; one that was interrupted goes on. */
static bool move_back(struct machine_job *job, GError **error)
{
    g_autoptr(move_request_t) request = machine_request_back(job, NULL);
    struct machine_job move = {.request = request, .back_of = job->back_of};
    GError *local = NULL;
    g_autoptr(job_report_t) report = NULL;

    for (guint i = 0; i < job->disks->len; i++)
        g_ptr_array_add(request->disks, g_strdup(machine_disk_at(job, i)->name));
    report = machine_run(&move, &method_machine_mirror, "move", job->base.listener, &local);
    if (local) {
        g_propagate_error(error, local);
        return false;
    }
    machine_adopt_report(job, report);
    return true;
}

/* If a run that was killed had brought it back, only that is found. */
static bool come_back_here(struct machine_job *job, GError **error)
{
    GError *local = NULL;
    g_autoptr(journal_job_t) unfinished = machine_find_unfinished(job, &local);

    if (local) {
        g_propagate_error(error, local);
        return false;
    }
    if (unfinished)
        return move_back(job, error);
    if (!(job->here = domain_host_open(job->request->connection, "this host", error)) ||
        !(job->domain = domain_open(job->here, job->request->machine, error)))
        return false;
    return machine_is_at(job, job->domain, true, NULL) ||
           (machine_is_at(job, job->domain, false, error) && move_back(job, error));
}

static bool come_back(struct job *base, GError **error)
{
    struct machine_job *job = machine_of(base);

    return (job->across ? machine_come_back(job, error) : come_back_here(job, error)) &&
           job_event(base, "result", error, BACK);
}

/* What was kept here is older than what the machine has here now. */
static bool remove_kept(struct job *base, GError **error)
{
    struct machine_job *job = machine_of(base);
    g_autoptr(GPtrArray) names = kept_names(job, error);

    base->end = "failed-back";
    for (guint i = 0; names && i < names->len; i++)
        if (!remove_one(job, g_ptr_array_index(names, i), error))
            return false;
    return names != NULL;
}
