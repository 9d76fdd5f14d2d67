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

#define TICK (G_USEC_PER_SEC / 50)
#define FIRST_DOWNTIME                                                                                       \
    20u /* ms that the hypervisor may take for the last of the memory; more, if that is not enough */
#define PATIENCE G_USEC_PER_SEC

/* ---- the pause ----------------------------------------------------------------------------------- */

static bool stop(struct machine_job *job, GError **error)
{
    if (!job->state.running)
        return true;
    if (!job->guard &&
        !(job->guard = domain_guard_start(job->request->connection, domain_uuid(job->domain), error)))
        return false;
    if (!domain_guard_arm(job->guard, error))
        return false;
    job->stopped = true;
    return domain_suspend(job->domain, error);
}

/* The machine goes on where it was. */
static void go_on(struct machine_job *job)
{
    g_autoptr(GError) local = NULL;

    if (job->stopped && !domain_resume(job->domain, &local))
        job_notice(&job->base, "the machine stands still on the source: %s", local->message);
    job->stopped = false;
    domain_guard_disarm(job->guard);
}

/* Between libvirt's own words for "suspended" and "resumed", as they reach us. */
static void note_pause(struct machine_job *job, const struct domain *from, const struct domain *to)
{
    int64_t stopped = from ? domain_stopped_at(from) : 0, resumed;

    if (!job->state.running)
        return;
    for (int tries = 0; (resumed = domain_resumed_at(to)) <= stopped && tries < 50; tries++)
        g_usleep(TICK / 4);
    if (stopped > 0 && resumed > stopped)
        job->base.report->pause_ms = (double)(resumed - stopped) / 1000;
}

static bool release(struct machine_job *job, GError **error)
{
    if (job->state.running && !domain_resume(job->arrived, error))
        return false;
    job->released = true;
    note_pause(job, job->domain, job->arrived);
    return job_event(&job->base, "result", error, MACHINE_ARRIVED);
}

/* ---- the source's definition --------------------------------------------------------------------- */

static char *definition_path(const struct machine_job *job)
{
    g_autofree char *name = g_strconcat(job->base.record->id, ".xml", NULL);

    return g_build_filename(journal_directory(job->base.journal), "definitions", name, NULL);
}

/* Whoever wants it back finds it in the state directory. */
static bool save_definition(struct machine_job *job, GError **error)
{
    g_autofree char *path = definition_path(job), *directory = g_path_get_dirname(path);
    g_autoptr(GError) local = NULL;

    if (g_mkdir_with_parents(directory, 0700) == 0 &&
        g_file_set_contents_full(path, job->definition, -1, G_FILE_SET_CONTENTS_DURABLE, 0600, &local))
        return true;
    return blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "%s: %s", path,
                         local ? local->message : "no directory");
}

/* From here on nobody can start it here. */
static bool remove_definition(struct machine_job *job, GError **error)
{
    struct domain_state now;

    if (!save_definition(job, error) ||
        !job_event(&job->base, "intent", error, "remove the source's definition"))
        return false;
    job->gone = true;
    if (!job->state.persistent || !job->domain)
        return true;
    if (!domain_look(job->domain, &now, error))
        return false;
    if (now.active)
        return blockmig_fail(error, BLOCKMIG_ERROR_UNCERTAIN,
                             "the machine is active on the source, although it left: nothing more is done");
    return domain_undefine(job->domain, error);
}

/* The target did not take it: it is defined here again, as it was, its disks on their top layers. */
static bool restore_definition(struct machine_job *job, GError **error)
{
    struct domain *again = domain_define(job->here, job->definition, error);

    if (!again)
        return false;
    domain_close(job->domain);
    job->domain = again;
    job->gone = false;
    return true;
}

/* ---- live and quick ------------------------------------------------------------------------------ */

struct journey {
    struct machine_job *job;
    struct domain_journey what;
    GError *error;
    bool ok;
    gint over; /* atomic */
};

static gpointer travel(gpointer data)
{
    struct journey *journey = data;

    journey->ok = domain_migrate(journey->job->domain, journey->job->there, &journey->what,
                                 &journey->job->arrived, &journey->error);
    g_atomic_int_set(&journey->over, 1);
    return NULL;
}

static void tell_progress(const struct machine_job *job, const struct domain_progress *now)
{
    const struct job_listener *listener = job->base.listener;
    uint64_t total = now->memory_total + now->disk_total;
    struct copy_counters counters = {.total = total,
                                     .data_total = total,
                                     .position = total - MIN(total, now->memory_left + now->disk_left)};

    counters.data_done = counters.position;
    if (listener->progress)
        listener->progress(listener->opaque, job->base.report->phase, &counters);
}

static bool go(struct machine_job *job, const struct domain_journey *what, GError **error)
{
    struct journey journey = {.job = job, .what = *what};
    GThread *thread = g_thread_new("journey", travel, &journey);
    int64_t next = g_get_monotonic_time() + PATIENCE;
    unsigned downtime = what->max_downtime;
    bool told = false;

    for (unsigned tick = 0; !g_atomic_int_get(&journey.over); tick++) {
        struct domain_progress now;

        if (tick % 10 == 9 && domain_migration_progress(job->domain, &now))
            tell_progress(job, &now);
        if (downtime && downtime < job->request->max_pause && g_get_monotonic_time() > next) {
            downtime = MIN(2 * downtime, job->request->max_pause);
            domain_migration_allow(job->domain, downtime);
            next += PATIENCE;
        }
        if (!told && machine_is_cancelled(job, NULL)) {
            domain_migration_abort(job->domain);
            told = true;
        }
        g_usleep(TICK / 20);
    }
    g_thread_join(thread);
    if (journey.error)
        g_propagate_error(error, journey.error);
    if (!journey.ok && told)
        (*error)->code = BLOCKMIG_ERROR_CANCELLED;
    return journey.ok;
}

/* What is certain after a journey that failed: if the source runs, or can, it is the owner. */
static void judge_failure(struct machine_job *job, GError **error)
{
    struct domain_state now;
    g_autoptr(GError) local = NULL;

    if (!domain_look(job->domain, &now, &local)) {
        job->uncertain = true;
        g_prefix_error(
            error,
            "the source cannot be asked any more (%s): the machine may be there, or on its way; look "
            "at both hosts before it is started anywhere. This was after: ",
            local->message);
    } else if (!now.active || (job->state.running && !now.running && !job->stopped)) {
        job->uncertain = true;
        g_prefix_error(error,
                       "the machine does not run on the source any more, and the target did not say that it "
                       "has it: look at both hosts before it is started anywhere. This was after: ");
    }
    if (job->uncertain)
        (*error)->code = BLOCKMIG_ERROR_UNCERTAIN;
}

struct ways {
    struct relay *state, *disks;
    char *state_uri, *disks_uri;
};

static void ways_clear(struct ways *ways)
{
    relay_close(ways->state);
    relay_close(ways->disks);
    g_free(ways->state_uri);
    g_free(ways->disks_uri);
}

/* Hypervisors meet at a socket of the same name on both sides; between them is our tunnel. */
static bool open_ways(struct machine_job *job, struct ways *ways, GError **error)
{
    g_autofree char *disks = g_strconcat(job->id, "-disks", NULL);
    g_autofree char *state_path = g_build_filename(job->sockets, job->id, NULL);
    g_autofree char *disks_path = g_build_filename(job->sockets, disks, NULL);

    ways->state_uri = g_strconcat("unix://", state_path, NULL);
    ways->disks_uri = g_strconcat("unix://", disks_path, NULL);
    ways->state = relay_open(job->agent, job->id, state_path, error);
    ways->disks = ways->state ? relay_open(job->agent, disks, disks_path, error) : NULL;
    return ways->disks != NULL;
}

static char **disk_names(const struct machine_job *job)
{
    GPtrArray *names = g_ptr_array_new();

    for (guint i = 0; i < job->disks->len; i++)
        g_ptr_array_add(names, g_strdup(machine_disk_at(job, i)->name));
    g_ptr_array_add(names, NULL);
    return (char **)g_ptr_array_free(names, FALSE);
}

static bool ship_last(struct machine_job *job, GError **error)
{
    for (guint i = 0; i < job->disks->len; i++) {
        struct machine_disk *disk = machine_disk_at(job, i);

        if (!machine_ship(job, disk, disk->top, error))
            return false;
    }
    return true;
}

static bool travel_by(struct machine_job *job, const struct ways *ways, GError **error)
{
    bool live = job->base.method != &method_machine_quick;
    g_autofree char *active = domain_definition(job->domain, DOMAIN_MIGRATABLE, error);
    g_autofree char *xml = active ? machine_rewrite(job, active, MACHINE_ARRIVES, error) : NULL;
    g_autofree char *persistent =
        xml && job->state.persistent ? machine_rewrite(job, job->definition, MACHINE_ARRIVES, error) : NULL;
    g_auto(GStrv) disks = live && job->disks->len ? disk_names(job) : NULL;

    if (!xml || (job->state.persistent && !persistent))
        return false;
    return go(job,
              &(struct domain_journey){.xml = xml,
                                       .persistent_xml = persistent,
                                       .uri = ways->state_uri,
                                       .disks_uri = ways->disks_uri,
                                       .disks = disks,
                                       .bandwidth = job->request->bandwidth,
                                       .max_downtime = live ? FIRST_DOWNTIME : 0,
                                       .live = live,
                                       .cautious = job->cached},
              error);
}

/* By "quick" it stands still from here on, and the last layers are ours to ship; by "live" the hypervisors
 * mirror them. */
static bool leave(struct machine_job *job, GError **error)
{
    bool quick = job->base.method == &method_machine_quick;

    return (!quick || (stop(job, error) && ship_last(job, error))) && machine_close_targets(job, error);
}

static bool depart(struct machine_job *job, GError **error)
{
    struct ways ways = {NULL};
    bool ok = machine_create_target_overlays(job, error) && machine_claim_units(job, error) &&
              open_ways(job, &ways, error) &&
              job_event(&job->base, "intent", error, "bring the machine to the target") && leave(job, error);

    /* From here on it depends on both hosts where it may go on. */
    domain_guard_disarm(job->guard);
    if (ok && !(ok = travel_by(job, &ways, error)))
        judge_failure(job, error);
    ways_clear(&ways);
    if (!ok && !job->uncertain)
        go_on(job);
    return ok;
}

bool machine_arrive(struct job *base, GError **error)
{
    struct machine_job *job = machine_of(base);

    int64_t arrived, removed, compared;

    if (!job->arrived && !depart(job, error))
        return false;
    arrived = g_get_monotonic_time();
    if (!remove_definition(job, error) || !machine_fence_units(job, error)) {
        job->uncertain = true;
        return false;
    }
    removed = g_get_monotonic_time();
    if (base->method == &method_machine_live && !machine_compare_overlays(job, error)) {
        job->uncertain = !g_error_matches(*error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_DIFFERENT);
        base->report->advice =
            g_strdup("the machine stands still on the target; the source's disks are kept with "
                     "all that it wrote");
        return false;
    }
    compared = g_get_monotonic_time();
    return release(job, error) &&
           job_event(
               base, "result", error,
               "the pause: %.1f ms in libvirt, definition %.1f ms, comparison %.1f ms, going on %.1f ms",
               job->domain ? (double)(arrived - domain_stopped_at(job->domain)) / 1000 : 0,
               (double)(removed - arrived) / 1000, (double)(compared - removed) / 1000,
               (double)(g_get_monotonic_time() - compared) / 1000);
}

/* ---- restart and cold ---------------------------------------------------------------------------- */

/* A domain that is not persistent is gone when it is off. */
static bool is_off(struct machine_job *job)
{
    struct domain_state now;
    g_autoptr(GError) local = NULL;

    if (domain_look(job->domain, &now, &local))
        return !now.active;
    return g_error_matches(local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED);
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
    g_autofree char *xml = machine_rewrite(job, job->definition, MACHINE_ARRIVES, error);

    if (!xml || !remove_definition(job, error))
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
    if (job->gone && !restore_definition(job, &local))
        job_notice(&job->base,
                   "the machine could not be defined on the source again (%s): its definition is %s",
                   local->message, definition_path(job));
    return false;
}

bool machine_restart(struct job *base, GError **error)
{
    struct machine_job *job = machine_of(base);

    /* An interrupted run came as far as the definition. */
    if (job->arrived
            ? !domain_start(job->arrived, false, error)
            : !machine_create_target_overlays(job, error) || !machine_claim_units(job, error) ||
                  !shut_down(job, error) || !ship_last(job, error) || !machine_close_targets(job, error) ||
                  !machine_fence_units(job, error) || !change_host(job, true, error))
        return false;
    job->released = true;
    if (job->stopped_at)
        base->report->pause_ms = (double)(g_get_monotonic_time() - job->stopped_at) / 1000;
    return job_event(base, "result", error, MACHINE_ARRIVED);
}

bool machine_hand_over(struct job *base, GError **error)
{
    struct machine_job *job = machine_of(base);

    if (!job->arrived && (!machine_claim_units(job, error) || !machine_fence_units(job, error) ||
                          !change_host(job, false, error)))
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
    return true;
}

/* Both definitions name the new files at once. */
static bool set_persistent(struct machine_job *job, GError **error)
{
    g_autofree char *xml =
        job->state.persistent ? machine_rewrite(job, job->definition, MACHINE_ARRIVES, error) : NULL;
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

static bool switch_over(struct machine_job *job, GError **error)
{
    bool pause = job->request->max_pause > 0;

    if (!pause)
        job_notice(&job->base, "without a pause nobody can compare what was written last: it is as the "
                               "hypervisor's mirror has it");
    return (!pause || (stop(job, error) && machine_compare_overlays(job, error))) && pivot(job, error);
}

bool machine_mirror(struct job *base, GError **error)
{
    struct machine_job *job = machine_of(base);
    bool ok, paused = false;

    if (!machine_close_targets(job, error) || !machine_create_target_overlays(job, error) ||
        !job_event(base, "intent", error, "mirror the overlays onto the target") ||
        !begin_mirrors(job, error)) {
        end_mirrors(job);
        return false;
    }
    ok = switch_over(job, error);
    if (!ok)
        end_mirrors(job);
    job->arrived = domain_open(job->here, domain_uuid(job->domain), NULL);
    paused = job->stopped;
    go_on(job);
    if (!ok)
        return false;
    if (paused)
        note_pause(job, job->domain, job->domain);
    return set_persistent(job, error) && job_event(base, "result", error, "the machine writes to the target");
}
