/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Moves and migrations of libvirt domains from the outside, and what every phase of them needs.
 *
 *   preflight --> snapshot --> base --> converge --> switchover --|--> prove --> settle --> cleanup --> done
 *                     +---------+----------+-------------+             +---------+----------+
 *                                    v                                            v
 *                                rollback                         failed (the machine is on the target)
 *
 * With --keep-failback "window" follows cleanup (machine-window.c).
 *
 * "|": from here on the target is the truth.  An interrupted job is rolled back, or goes on behind the "|",
 * by what both hosts say (machine-recover.c).  A machine that is off has neither snapshot nor converge.
 */
#include "blockmig/migrate/machine.h"

#include "blockmig/migrate/keeper.h"
#include "blockmig/migrate/target.h"

#include <string.h>
#include <sys/stat.h>

/* clang-format off */
#define PHASES_OF_A_MACHINE                                  \
    {"preflight", machine_preflight, "snapshot", NULL},      \
    {"snapshot", machine_snapshot, "base", "rollback"},      \
    {"base", machine_base, "converge", "rollback"},          \
    {"converge", machine_converge, "switchover", "rollback"}, \
    {"prove", machine_prove, "settle", NULL},                \
    {"settle", machine_settle, "cleanup", NULL},             \
    {"cleanup", machine_cleanup, "done", NULL},              \
    {"window", machine_window, NULL, NULL},                  \
    {"rollback", machine_rollback, "failed", NULL}
/* clang-format on */

#define HOOKS .describe = machine_describe, .advise = machine_advise, .explain = machine_explain

const struct method method_machine_mirror = {
    .name = "mirror",
    .phases = (const struct phase[]){PHASES_OF_A_MACHINE,
                                     {"switchover", machine_mirror, "prove", "rollback"},
                                     {NULL}},
    HOOKS,
};

const struct method method_machine_live = {
    .name = "live",
    .phases = (const struct phase[]){PHASES_OF_A_MACHINE,
                                     {"switchover", machine_arrive, "prove", "rollback"},
                                     {NULL}},
    HOOKS,
};

const struct method method_machine_quick = {
    .name = "quick",
    .phases = (const struct phase[]){PHASES_OF_A_MACHINE,
                                     {"switchover", machine_arrive, "prove", "rollback"},
                                     {NULL}},
    HOOKS,
};

const struct method method_machine_san = {
    .name = "san",
    .phases = (const struct phase[]){PHASES_OF_A_MACHINE,
                                     {"switchover", machine_change_hands, "prove", "rollback"},
                                     {NULL}},
    HOOKS,
};

const struct method method_machine_restart = {
    .name = "restart",
    .phases = (const struct phase[]){PHASES_OF_A_MACHINE,
                                     {"switchover", machine_restart, "prove", "rollback"},
                                     {NULL}},
    HOOKS,
};

const struct method method_machine_cold = {
    .name = "cold",
    .phases =
        (const struct phase[]){
            {"preflight", machine_preflight, "base", NULL},
            {"base", machine_base, "prove", "rollback"},
            {"prove", machine_prove, "switchover", "rollback"},
            {"switchover", machine_hand_over, "cleanup", "rollback"},
            {"cleanup", machine_cleanup, "done", NULL},
            {"window", machine_window, NULL, NULL},
            {"rollback", machine_rollback, "failed", NULL},
            {NULL},
        },
    HOOKS,
};

bool machine_is_domain(const char *name)
{
    return !g_str_has_prefix(name, "qmp:") && !strchr(name, '/');
}

void machine_describe(const struct job *base, struct journal_job *record)
{
    const struct machine_job *job = (const struct machine_job *)base;

    record->request = move_request_to_json(job->request);
    record->source = g_strdup(job->request->machine);
    record->target = g_strdup(job->prefix);
}

char *machine_advise(const struct job *base, const GError *error)
{
    const struct machine_job *job = (const struct machine_job *)base;
    const char *id = base->record->id;

    if (job->released)
        return g_strdup_printf(
            "the machine runs on the target; 'blockmig job resume %s' finishes what is left", id);
    if (g_error_matches(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_CANCELLED))
        return NULL;
    if (job->left && !job->stopped)
        return g_strdup_printf(
            "the machine is where it was; 'blockmig job resume %s' goes on with what is copied, "
            "'blockmig job cancel %s' gives it up",
            id, id);
    return g_strdup_printf(
        "look at the machine on both hosts ('virsh list --all'); 'blockmig job resume %s' goes "
        "on from what it finds there",
        id);
}

/* ---- disks and files ------------------------------------------------------------------------------ */

void machine_disk_free(struct machine_disk *disk)
{
    chain_close(disk->base);
    chain_close(disk->seed);
    image_close(disk->target);
    checkpoint_clear(&disk->done);
    g_clear_pointer(&disk->options, g_hash_table_unref);
    g_free(disk->name);
    g_free(disk->path);
    g_free(disk->stem);
    g_free(disk->backing_name);
    g_free(disk->frozen);
    g_free(disk->target_name);
    g_free(disk->target_path);
    g_free(disk->overlay_name);
    g_free(disk->overlay_path);
    g_free(disk);
}

void machine_file_free(struct machine_file *file)
{
    g_free(file->place);
    g_free(file->path);
    g_free(file->target_name);
    g_free(file->target_path);
    g_free(file);
}

static bool find_stem(const struct machine_job *job, struct machine_disk *disk, GError **error)
{
    g_autofree char *scratch =
        job->request->scratch ? g_canonicalize_filename(job->request->scratch, NULL) : NULL;
    struct stat st;

    disk->device = stat(disk->path, &st) == 0 && S_ISBLK(st.st_mode);
    if (disk->device && !scratch)
        return blockmig_fail(
            error, BLOCKMIG_ERROR_REFUSED,
            "%s is a block device: there is no place for an overlay beside it; --scratch names "
            "a directory for it",
            disk->path);
    if (disk->device && !g_file_test(scratch, G_FILE_TEST_IS_DIR))
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "--scratch: %s: there is no such directory",
                             scratch);
    disk->stem = disk->device ? target_scratch_stem(scratch, disk->path) : g_strdup(disk->path);
    return true;
}

struct machine_disk *machine_disk_new(struct machine_job *job, const char *name, const char *path,
                                      GError **error)
{
    struct machine_disk *disk = g_new0(struct machine_disk, 1);

    disk->index = job->disks->len;
    disk->name = g_strdup(name);
    disk->path = g_strdup(path);
    disk->roots = job->roots;
    g_ptr_array_add(job->disks, disk);
    return find_stem(job, disk, error) ? disk : NULL;
}

void machine_describe_disk(struct machine_job *job, struct machine_disk *disk)
{
    struct disk_report *report = g_new0(struct disk_report, 1);

    report->disk = g_strdup(disk->name);
    report->source = g_strdup(disk->path);
    report->target = g_strdup(disk->target_name);
    report->source_format = g_strdup(disk->source_format->name);
    report->target_format = g_strdup(disk->format->name);
    report->virtual_size = disk->size;
    report->source_allocated = disk->needed;
    report->algorithm = job->request->digest;
    disk->report = report;
    g_ptr_array_add(job->base.report->disks, report);
}

/* ---- running -------------------------------------------------------------------------------------- */

static void begin(struct machine_job *job)
{
    const struct move_request *request = job->request;

    job->across = request->across;
    job->disks = g_ptr_array_new_with_free_func((GDestroyNotify)machine_disk_free);
    job->roots = g_ptr_array_new_null_terminated(8, g_free, true);
    job->lowers = g_ptr_array_new_with_free_func((GDestroyNotify)lower_free);
    job->files = g_ptr_array_new_with_free_func((GDestroyNotify)machine_file_free);
    job->units = g_ptr_array_new_with_free_func((GDestroyNotify)machine_unit_free);
    job->throttle = throttle_new(request->bandwidth);
    job->space = machine_space_new();
    job->base.report->verified = request->verify;
    job->base.report->max_pause_ms = request->max_pause;
}

static void end(struct machine_job *job)
{
    g_ptr_array_unref(job->disks);
    g_clear_pointer(&job->left, g_ptr_array_unref);
    g_ptr_array_unref(job->lowers);
    g_ptr_array_unref(job->roots);
    g_ptr_array_unref(job->files);
    g_ptr_array_unref(job->units);
    share_free(job->share);
    throttle_free(job->throttle);
    machine_space_free(job->space);
    domain_guard_stop(job->guard);
    domain_close(job->arrived);
    domain_close(job->domain);
    if (job->there != job->here)
        domain_host_close(job->there);
    domain_host_close(job->here);
    relay_close(job->libvirt);
    json_decref(job->facts);
    json_decref(job->places);
    g_strfreev(job->others);
    g_free(job->definition);
    g_free(job->prefix);
    g_free(job->directory);
    g_free(job->tpms);
    g_free(job->tpms_path);
    g_free(job->tpm);
    g_free(job->sockets);
    g_free(job->id);
}

/* Waits until somebody says how it goes on, or the keeper does. */
static bool is_open(const struct job *base)
{
    return base->record && !base->record->result;
}

struct job_report *machine_run(struct machine_job *job, const struct method *method, const char *command,
                               const struct job_listener *listener, GError **error)
{
    struct job *base = &job->base;

    base->method = method;
    base->listener = listener;
    base->report = job_report_new();
    base->report->command = command;
    begin(job);
    job_run(base, job->request->state_dir, error);
    end(job);
    if (is_open(base))
        keeper_start(base);
    job_clear(base);
    return base->report;
}

static struct job_report *run(struct machine_job *job, const struct job_listener *listener, GError **error)
{
    bool across = job->request->across;

    return machine_run(job, across ? &method_machine_live : &method_machine_mirror,
                       across ? "migrate" : "move", listener, error);
}

struct job_report *machine_job_run(const struct move_request *request, const struct job_listener *listener,
                                   bool dry_run, GError **error)
{
    return run(&(struct machine_job){.request = request, .base.dry_run = dry_run}, listener, error);
}

struct job_report *machine_job_resume(const struct move_request *request, const char *id, bool give_up,
                                      const struct job_listener *listener, GError **error)
{
    struct machine_job job = {.request = request, .wanted = id, .give_up = give_up};
    g_autoptr(GError) local = NULL;
    struct job_report *report = run(&job, listener, &local);

    /* That it was rolled back is what was asked for. */
    if (local && !(give_up && g_error_matches(local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_CANCELLED)))
        g_propagate_error(error, g_steal_pointer(&local));
    return report;
}

/* ---- while it runs -------------------------------------------------------------------------------- */

static bool ask(void *opaque, uint64_t *requests, uint64_t *time_ns)
{
    const struct machine_job *job = opaque;
    struct domain *domain = job->arrived ? job->arrived : job->domain;

    return domain && domain_disk_stats(domain, requests, time_ns);
}

void machine_share_begin(struct machine_job *job)
{
    if (job->state.running && job->request->guest_share)
        job->share = share_new(job->request->guest_share);
}

void machine_share_end(struct machine_job *job)
{
    g_clear_pointer(&job->share, share_free);
    throttle_set_window(job->throttle, G_MAXSIZE);
}

/* Once the machine is on its way to the target, it arrives. */
static bool cancelled(void *opaque)
{
    const struct machine_job *job = opaque;
    const struct job_listener *listener = job->base.listener;

    if (job->share)
        share_look(job->share, job->throttle, ask, opaque);
    if (job->gone || job->released)
        return false;
    return !machine_has_room(job) || (listener->cancelled && listener->cancelled(listener->opaque));
}

bool machine_is_cancelled(const struct machine_job *job, GError **error)
{
    return cancelled((void *)job) && !blockmig_fail(error, BLOCKMIG_ERROR_CANCELLED, "cancelled");
}

static void progress(void *opaque, const struct copy_counters *counters)
{
    const struct machine_job *job = opaque;
    const struct job_listener *listener = job->base.listener;

    if (listener->progress)
        listener->progress(listener->opaque, job->base.report->phase, counters);
}

void machine_copy_options(const struct machine_job *job, struct copy_options *options)
{
    options->cancelled = cancelled;
    options->progress = progress;
    options->throttle = job->stopped ? NULL : job->throttle;
    options->read_back = job->request->verify != VERIFY_NONE;
    options->opaque = (void *)job;
}

void machine_tell(const struct machine_job *job, const char *format, ...)
{
    const struct job_listener *listener = job->base.listener;
    g_autofree char *text = NULL;
    va_list args;

    va_start(args, format);
    text = g_strdup_vprintf(format, args);
    va_end(args);
    if (listener->phase)
        listener->phase(listener->opaque, job->base.report->phase, text);
}
