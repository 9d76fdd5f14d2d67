/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The switch of a domain, by every method.  What they have in common: before it, the source runs and may be
 * gone back to; then the machine stands still; then the source can not be started any more; then what was
 * shipped last is compared; and only then the target goes on.
 */
#include "blockmig/migrate/machine.h"
#include "blockmig/migrate/units.h"

#include <glib/gstdio.h>
#include <string.h>

#define TICK     (G_USEC_PER_SEC / 50)
#define PATIENCE (30 * G_USEC_PER_SEC) /* with a libvirt that does not answer */

bool machine_is_active(struct domain *domain, bool *active, GError **error)
{
    struct domain_state now;
    GError *local = NULL;

    *active = domain && domain_look(domain, &now, &local) && now.active;
    if (local && !g_error_matches(local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED)) {
        g_propagate_error(error, local);
        return false;
    }
    g_clear_error(&local);
    return true;
}

/* With a daemon that is just being started anew; as long as `go_on` says so, NULL: always. */
static bool reach(struct machine_job *job, struct domain_host *host,
                  bool (*go_on)(const struct machine_job *job), GError **error)
{
    int64_t until = g_get_monotonic_time() + PATIENCE;

    for (;;) {
        GError *local = NULL;

        if (domain_host_renew(host, &local))
            return true;
        if (g_get_monotonic_time() > until || (go_on && !go_on(job))) {
            g_propagate_error(error, local);
            return false;
        }
        g_error_free(local);
        g_usleep(TICK);
    }
}

static bool is_wanted(const struct machine_job *job)
{
    return !machine_is_cancelled(job, NULL);
}

bool machine_reach_source(struct machine_job *job, GError **error)
{
    return reach(job, job->here, NULL, error);
}

bool machine_reach_target(struct machine_job *job, GError **error)
{
    return reach(job, job->there, is_wanted, error);
}

bool machine_reach_hosts(struct machine_job *job, GError **error)
{
    return machine_reach_source(job, error) && machine_reach_target(job, error);
}

bool machine_look_again(struct machine_job *job, GError **error)
{
    struct domain_state now;
    bool active;

    if (!machine_is_active(job->domain, &active, error))
        return false;
    if (!active)
        return blockmig_fail(error, BLOCKMIG_ERROR_CANCELLED, "the machine has gone off meanwhile");
    if (!domain_look(job->domain, &now, error))
        return false;
    job->state.running = now.running;
    return true;
}

/* On another host a hypervisor takes its images only when the machine goes on. */
bool machine_may_leave(struct machine_job *job, GError **error)
{
    return machine_look_again(job, error) &&
           (job->state.running || job->disks->len == 0 ||
            blockmig_fail(error, BLOCKMIG_ERROR_CANCELLED, "the machine was stopped meanwhile"));
}

/* ---- the pause ----------------------------------------------------------------------------------- */

static bool stop(struct machine_job *job, GError **error)
{
    if (!machine_look_again(job, error))
        return false;
    if (!job->state.running)
        return true;
    if (!job->guard &&
        !(job->guard = domain_guard_start(job->request->connection, domain_uuid(job->domain), error)))
        return false;
    if (!domain_guard_arm(job->guard, error))
        return false;
    job->stopped = true;
    job->stopped_at = g_get_monotonic_time();
    return domain_suspend(job->domain, error);
}

/* By whatever libvirt there is by then. */
static bool resume(struct machine_job *job, GError **error)
{
    int64_t until = g_get_monotonic_time() + PATIENCE;

    for (;;) {
        GError *local = NULL;

        if (domain_resume(job->domain, &local)) {
            job->stopped = false;
            return true;
        }
        if (!g_error_matches(local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_UNREACHABLE) ||
            g_get_monotonic_time() > until) {
            g_propagate_error(error, local);
            return false;
        }
        g_error_free(local);
        g_usleep(TICK);
    }
}

/* The machine goes on where it was. */
static void go_on(struct machine_job *job)
{
    g_autoptr(GError) local = NULL;

    if (job->stopped && !resume(job, &local))
        job_notice(&job->base, "the machine stands still on the source: %s", local->message);
    job->stopped = false;
    domain_guard_disarm(job->guard);
}

/* Whoever finds the machine on neither host has to know whether it went on here last, or there. */
bool machine_release(struct machine_job *job, GError **error)
{
    if (!job_event(&job->base, "intent", error, MACHINE_LETS_GO) ||
        (job->state.running && !domain_resume(job->arrived, error)))
        return false;
    job->released = true;
    machine_note_pause(job, job->there);
    return job_event(&job->base, "result", error, MACHINE_ARRIVED);
}

/* ---- the source's definition --------------------------------------------------------------------- */

char *machine_definition_path(const struct machine_job *job)
{
    g_autofree char *name = g_strconcat(job->base.record->id, ".xml", NULL);

    return g_build_filename(journal_directory(job->base.journal), "definitions", name, NULL);
}

/* Whoever wants it back finds it in the state directory. */
static bool save_definition(struct machine_job *job, GError **error)
{
    g_autofree char *path = machine_definition_path(job), *directory = g_path_get_dirname(path);
    g_autoptr(GError) local = NULL;

    if (g_mkdir_with_parents(directory, 0700) == 0 &&
        g_file_set_contents_full(path, job->definition, -1, G_FILE_SET_CONTENTS_DURABLE, 0600, &local))
        return true;
    return blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "%s: %s", path,
                         local ? local->message : "no directory");
}

bool machine_keep_definition(struct machine_job *job, GError **error)
{
    return save_definition(job, error) && job_event(&job->base, "intent", error, MACHINE_REMOVES);
}

bool machine_bar_definition(struct machine_job *job, GError **error)
{
    g_autofree char *xml = NULL;
    struct domain *barred;

    job->gone = true;
    if (!job->state.persistent)
        return true;
    xml = machine_rewrite_barred(job, error);
    barred = xml ? domain_define(job->here, xml, error) : NULL;
    if (!barred)
        return false;
    domain_close(barred); /* it is the same one */
    return true;
}

bool machine_remove_definition(struct machine_job *job, GError **error)
{
    g_autoptr(GError) local = NULL;
    struct domain_state now;

    job->gone = true;
    if (!job->state.persistent || !job->domain)
        return true;
    if (!domain_look(job->domain, &now, &local)) {
        if (g_error_matches(local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED))
            return true; /* it is not there any more */
        g_propagate_error(error, g_steal_pointer(&local));
        return false;
    }
    if (now.active)
        return blockmig_fail(error, BLOCKMIG_ERROR_UNCERTAIN,
                             "the machine is active on the source, although it left: nothing more is done");
    return domain_undefine(job->domain, error);
}

bool machine_restore_definition(struct machine_job *job, const char *text, GError **error)
{
    g_autofree char *xml = machine_rewrite_source(job->disks, text, machine_top_of, error);
    struct domain *again = xml ? domain_define(job->here, xml, error) : NULL;

    if (!again)
        return false;
    domain_close(job->domain);
    job->domain = again;
    job->gone = false;
    return true;
}

bool machine_ship_last(struct machine_job *job, GError **error)
{
    for (guint i = 0; i < job->disks->len; i++) {
        struct machine_disk *disk = machine_disk_at(job, i);

        if (!machine_ship(job, disk, disk->top, error))
            return false;
    }
    return true;
}

/* ---- restart and cold ---------------------------------------------------------------------------- */

static bool is_off(const struct machine_job *job)
{
    bool active;

    return machine_is_active(job->domain, &active, NULL) && !active;
}

static bool shut_down(struct machine_job *job, GError **error)
{
    int64_t deadline = g_get_monotonic_time() + (int64_t)job->request->shutdown * 1000;

    if (!job_event(&job->base, "intent", error, "shut the guest down") ||
        !domain_shut_down(job->domain, error))
        return false;
    machine_tell(job, "waiting for the guest to shut down");
    while (!is_off(job)) {
        if (machine_is_cancelled(job, error))
            return false;
        if (g_get_monotonic_time() > deadline)
            return blockmig_fail(error, BLOCKMIG_ERROR_CANCELLED,
                                 "the guest did not shut down within %.0f s: it runs on",
                                 (double)job->request->shutdown / 1000);
        g_usleep(TICK);
    }
    job->stopped_at = g_get_monotonic_time();
    job->off = true;
    return true;
}

/* Nothing that fails here leaves it defined on both hosts. */
static bool take_over(struct machine_job *job, bool start, GError **error)
{
    g_autofree char *xml = NULL;

    if (!machine_read_again(job, error) ||
        !(xml = machine_rewrite(job, job->definition, MACHINE_ARRIVES, error)) ||
        !machine_keep_definition(job, error) || !machine_remove_definition(job, error))
        return false;
    job->arrived = domain_define(job->there, xml, error);
    if (job->arrived && (!start || domain_start(job->arrived, false, error)))
        return true;
    if (job->arrived) {
        domain_undefine(job->arrived, NULL);
        g_clear_pointer(&job->arrived, domain_close);
    }
    return false;
}

static bool change_host(struct machine_job *job, bool start, GError **error)
{
    g_autoptr(GError) local = NULL;

    if (take_over(job, start, error))
        return true;
    if (job->gone && !machine_restore_definition(job, job->definition, &local))
        job_notice(&job->base,
                   "the machine could not be defined on the source again (%s): its definition is %s",
                   local->message, machine_definition_path(job));
    return false;
}

bool machine_restart(struct job *base, GError **error)
{
    struct machine_job *job = machine_of(base);

    /* An interrupted run came as far as the definition. */
    if (job->arrived ? !domain_start(job->arrived, false, error)
                     : !machine_reach_hosts(job, error) || !machine_may_leave(job, error) ||
                           !machine_create_target_overlays(job, error) || !machine_claim_units(job, error) ||
                           !shut_down(job, error) || !machine_check_layers(job, true, error) ||
                           !machine_ship_last(job, error) || !machine_copy_written_files(job, error) ||
                           !machine_close_targets(job, error) || !machine_fence_units(job, error) ||
                           !change_host(job, true, error))
        return false;
    job->released = true;
    if (job->stopped_at)
        base->report->pause_ms = (double)(g_get_monotonic_time() - job->stopped_at) / 1000;
    return job_event(base, "result", error, MACHINE_ARRIVED);
}

/* On this host a definition takes the place of the one before in one step. */
static bool define_anew(struct machine_job *job, GError **error)
{
    g_autofree char *xml =
        machine_read_again(job, error) ? machine_rewrite(job, job->definition, MACHINE_ARRIVES, error) : NULL;

    job->arrived = xml ? domain_define(job->here, xml, error) : NULL;
    return job->arrived != NULL;
}

bool machine_hand_over(struct job *base, GError **error)
{
    struct machine_job *job = machine_of(base);

    if (!job->arrived && (!machine_reach_hosts(job, error) || !machine_claim_units(job, error) ||
                          !machine_fence_units(job, error) ||
                          !(job->across ? change_host(job, false, error) : define_anew(job, error))))
        return false;
    job->released = true;
    if (job->state.autostart && !domain_set_autostart(job->arrived, true, error))
        return false;
    return job_event(base, "result", error, MACHINE_ARRIVED);
}

bool machine_change_hands(struct job *base, GError **error)
{
    return machine_of(base)->state.active ? machine_arrive(base, error) : machine_hand_over(base, error);
}

/* ---- on this host -------------------------------------------------------------------------------- */

static void end_mirrors(struct machine_job *job)
{
    for (guint i = 0; i < job->disks->len; i++)
        domain_job_end(job->domain, machine_disk_at(job, i)->name, false, NULL);
}

static bool begin_mirrors(struct machine_job *job, GError **error)
{
    for (guint i = 0; i < job->disks->len; i++) {
        const struct machine_disk *disk = machine_disk_at(job, i);

        if (!domain_mirror(job->domain, disk->name, disk->overlay_path, error))
            return false;
    }
    for (guint i = 0; i < job->disks->len; i++)
        if (!machine_wait_until_ready(job, job->domain, machine_disk_at(job, i)->name, error))
            return false;
    return machine_check_layers(job, true, error);
}

/* Both definitions name the new files at once. */
static bool set_persistent(struct machine_job *job, GError **error)
{
    g_autofree char *text =
        job->state.persistent ? domain_definition(job->domain, DOMAIN_PERSISTENT, error) : NULL;
    g_autofree char *xml = text ? machine_rewrite(job, text, MACHINE_ARRIVES, error) : NULL;
    g_autoptr(domain_t) same = xml ? domain_define(job->here, xml, error) : NULL;

    return !job->state.persistent || same;
}

/* Disks that went over stay there: each of them is whole. */
static bool pivot(struct machine_job *job, GError **error)
{
    for (guint i = 0; i < job->disks->len; i++) {
        if (domain_job_end(job->domain, machine_disk_at(job, i)->name, true, error)) {
            job->released = true;
            continue;
        }
        if (job->released)
            g_prefix_error(error, "%u of %u disks are on the target: ", i, job->disks->len);
        return false;
    }
    return true;
}

/* The limit's thread: the domain is asked by nobody else meanwhile. */
static void give_up(void *opaque)
{
    struct machine_job *job = opaque;

    g_atomic_int_set(&job->given_up, 1);
    resume(job, NULL);
}

static bool wait_until_it_fits(struct machine_job *job, struct comparison *comparison, GError **error)
{
    bool fits = false;

    while (machine_look_forward(job, comparison, &fits, error)) {
        if (fits)
            return true;
        if (machine_is_cancelled(job, error))
            return false;
        g_usleep(TICK / 4);
    }
    return false;
}

static bool stop_and_compare(struct machine_job *job, struct comparison *comparison, GError **error)
{
    struct pause_limit *limit;
    bool ok;

    if (!stop(job, error))
        return false;
    limit = machine_limit_begin(job, job->stopped_at, give_up, job);
    ok = machine_comparison_end(comparison, error);
    return machine_limit_end(job, limit, error) && ok;
}

static bool prove_mirrors(struct machine_job *job, GError **error)
{
    struct comparison *comparison = machine_comparison_start(job);
    bool ok = wait_until_it_fits(job, comparison, error) && stop_and_compare(job, comparison, error);

    machine_comparison_free(comparison);
    return ok;
}

static bool switch_over(struct machine_job *job, GError **error)
{
    if (job->request->max_pause > 0 && !job->without_pause)
        return prove_mirrors(job, error) && pivot(job, error);
    job_notice(&job->base, "without a pause nobody can compare what was written last: it is as the "
                           "hypervisor's mirror has it");
    return pivot(job, error);
}

bool machine_mirror(struct job *base, GError **error)
{
    struct machine_job *job = machine_of(base);
    GError *failure = NULL;
    bool ok, paused;

    if (!machine_reach_source(job, error) || !machine_look_again(job, error) ||
        !machine_close_targets(job, error) || !machine_create_target_overlays(job, error) ||
        !job_event(base, "intent", error, "mirror the overlays onto the target") ||
        !begin_mirrors(job, error)) {
        end_mirrors(job);
        return false;
    }
    ok = switch_over(job, &failure);
    if (!ok && !job->released) {
        go_on(job);
        end_mirrors(job);
        return machine_try_again(job, failure, error);
    }
    if (!ok) {
        g_propagate_error(error, failure);
        end_mirrors(job);
    }
    job->arrived = domain_open(job->here, domain_uuid(job->domain), NULL);
    paused = job->stopped;
    go_on(job);
    if (!ok)
        return false;
    if (paused)
        machine_note_pause(job, job->here);
    return set_persistent(job, error) && job_event(base, "result", error, MACHINE_ARRIVED);
}
