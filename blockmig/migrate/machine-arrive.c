/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A machine goes to another host with its memory, by the methods live, quick and san.
 *
 * libvirt carries it in a thread of its own.  What we have to do meanwhile is done as soon as it can be, and
 * each step has to be true before the next (enum stage).
 *
 * libvirt ends the process here last of all, and looks only every 200 ms whether it has; the kernel tells at
 * once.  A process that is gone cannot go on, whatever libvirt's daemons still say to each other: so then
 * nobody has to wait for them.  Where the process cannot be seen, what libvirt returns is waited for.
 */
#include "blockmig/migrate/machine.h"

#include <poll.h>
#include <string.h>
#include <unistd.h>

#define TICK           1000 /* us */
#define PROGRESS_TICKS 200u
#define PATIENCE       G_USEC_PER_SEC
/* Milliseconds that the hypervisor may take for the last of the memory; more, if that is not enough. */
#define FIRST_DOWNTIME 20u

enum stage {
    TRAVELS, /* it runs here, or is being carried */
    STANDS,  /* it stands still for good, and nobody can start it here any more; by quick, its disks are whole
                on the target, which its memory waits for with its last byte; else they need not be whole here
              */
    THERE,   /* the target has all of it, standing still */
    COMPARED, /* and what was mirrored is what is here; once its process here is gone, it goes on there: */
    RELEASED,
};

struct journey {
    struct machine_job *job;
    struct domain_journey what;
    bool barred, removed; /* the source's definition */
    enum stage stage;
    struct comparison *comparison; /* by live; NULL: nothing is compared */
    struct relay *state;           /* by quick, of its memory; borrowed */
    int process;                   /* of the source; -1: not to be seen */
    int64_t began, since[RELEASED + 1];
    /* Of the thread, until it is over. */
    GError *error;
    bool ok;
    gint over; /* atomic */
};

static bool is_quick(const struct machine_job *job)
{
    return job->base.method == &method_machine_quick;
}

/* ---- its steps ----------------------------------------------------------------------------------- */

static bool is_over(const struct journey *journey)
{
    return g_atomic_int_get(&journey->over) != 0;
}

/* libvirt has said that it is on the target, and nothing of it here. */
static bool is_done(const struct journey *journey)
{
    return is_over(journey) && journey->ok;
}

static void reach(struct journey *journey, enum stage stage)
{
    journey->stage = stage;
    journey->since[stage] = g_get_monotonic_time();
}

/* The event comes before what the guest wrote is in its images: QEMU sends it, then it drains and flushes. By
 * quick all of this is over when the first of the memory comes. */
static bool stands_still(const struct journey *journey)
{
    const struct machine_job *job = journey->job;
    int64_t stopped = domain_host_times(job->here, machine_uuid(job)).stopped;

    if (is_over(journey))
        return journey->ok;
    if (journey->state)
        return relay_has_begun(journey->state);
    /* One that stood still before has no such moment: once the target expects it, it is as good. */
    return job->state.running ? stopped > journey->began
                              : domain_host_times(job->there, machine_uuid(job)).started > journey->began;
}

/* The target says that it stands still there when it has all of it, and has defined it. */
static bool is_there(struct journey *journey)
{
    struct machine_job *job = journey->job;
    struct domain_state now;

    if (is_over(journey))
        return journey->ok;
    if (domain_host_times(job->there, machine_uuid(job)).stopped <= journey->began)
        return false;
    if (!job->arrived)
        job->arrived = domain_open(job->there, machine_uuid(job), NULL);
    return job->arrived && domain_look(job->arrived, &now, NULL) && now.active && !now.running &&
           now.persistent == job->state.persistent;
}

/* Nobody can go on with it here any more, nor start it. */
static bool is_gone_here(const struct journey *journey)
{
    struct pollfd process = {.fd = journey->process, .events = POLLIN};

    return journey->removed || (journey->barred && journey->process >= 0 && poll(&process, 1, 0) == 1 &&
                                process.revents & POLLIN);
}

static bool compare(struct journey *journey, GError **error)
{
    struct machine_job *job = journey->job;

    if (!journey->comparison || machine_comparison_end(journey->comparison, error))
        return true;
    job->uncertain = !g_error_matches(*error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_DIFFERENT);
    job->base.report->advice =
        g_strdup("the machine stands still on the target; the source's disks are kept with "
                 "all that it wrote");
    return false;
}

/* libvirt lets a definition be replaced while the machine leaves, and removed afterwards. */
static bool close_door(struct journey *journey, GError **error)
{
    struct machine_job *job = journey->job;

    if (!is_done(journey)) {
        journey->barred = journey->barred || machine_bar_definition(job, NULL);
        return true;
    }
    journey->removed = journey->removed || machine_remove_definition(job, error);
    return journey->removed;
}

/* The target's hypervisor reads the tables of its images again when it has all of the memory; before that
 * they have to be as they stay. */
static bool ship(struct journey *journey, GError **error)
{
    journey->job->stopped = true;
    if (!machine_ship_last(journey->job, error) || !machine_close_targets(journey->job, error))
        return false;
    relay_let(g_steal_pointer(&journey->state));
    return true;
}

/* While it travels libvirt lets nobody change them; between the last pass and that somebody may have. */
static bool is_on_our_layers(struct machine_job *job, GError **error)
{
    g_autoptr(GError) local = NULL;

    if (machine_check_layers(job, true, &local) ||
        !g_error_matches(local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_CANCELLED))
        return true;
    g_propagate_error(error, g_steal_pointer(&local));
    return false;
}

/* It is there, if libvirt's word is to be believed. */
static bool meet(struct journey *journey, GError **error)
{
    struct machine_job *job = journey->job;

    return job->arrived || (job->arrived = domain_open(job->there, machine_uuid(job), error));
}

/* Goes as far as it can go by now.  After an error nothing more is to be done. */
static bool advance(struct journey *journey, GError **error)
{
    struct machine_job *job = journey->job;

    if (is_done(journey) && (!meet(journey, error) || !close_door(journey, error))) {
        job->uncertain = journey->stage < RELEASED;
        return false;
    }
    if (journey->stage == TRAVELS && stands_still(journey)) {
        close_door(journey, NULL);
        if ((!is_over(journey) && !is_on_our_layers(job, error)) || (journey->state && !ship(journey, error)))
            return false;
        reach(journey, STANDS);
    }
    if (journey->stage == STANDS && is_there(journey))
        reach(journey, THERE);
    if (journey->stage == THERE) {
        if (!compare(journey, error))
            return false;
        reach(journey, COMPARED);
    }
    if (journey->stage == COMPARED && is_gone_here(journey)) {
        if (!machine_fence_units(job, error)) {
            job->uncertain = true;
            return false;
        }
        if (!machine_release(job, error))
            return false;
        reach(journey, RELEASED);
    }
    return true;
}

/* ---- the way ------------------------------------------------------------------------------------- */

static gpointer travel(gpointer data)
{
    struct journey *journey = data;

    journey->ok = domain_migrate(journey->job->domain, journey->job->there, &journey->what, &journey->error);
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

/* The longer it lasts, the longer the last step may be. */
static void allow_more(struct journey *journey, unsigned *downtime, int64_t *next)
{
    const struct machine_job *job = journey->job;

    if (*downtime == 0 || *downtime >= job->request->max_pause || g_get_monotonic_time() <= *next)
        return;
    *downtime = MIN(2 * *downtime, job->request->max_pause);
    domain_migration_allow(job->domain, *downtime);
    *next += PATIENCE;
}

static bool carry(struct journey *journey, GError **error)
{
    struct machine_job *job = journey->job;
    GThread *thread = g_thread_new("journey", travel, journey);
    int64_t next = journey->began + PATIENCE;
    unsigned downtime = journey->what.max_downtime;
    bool told = false, ended = false, ok = true;

    for (unsigned tick = 1; !is_over(journey); tick++) {
        struct domain_progress now;

        ok = ok && advance(journey, error);
        if (journey->stage == TRAVELS) {
            if (tick % PROGRESS_TICKS == 0 && domain_migration_progress(job->domain, &now))
                tell_progress(job, &now);
            allow_more(journey, &downtime, &next);
            told = told || machine_is_cancelled(job, NULL);
            /* Once there is something that can be ended. */
            if ((told || !ok) && !ended && domain_migration_progress(job->domain, &now)) {
                domain_migration_abort(job->domain);
                ended = true;
            }
        }
        g_usleep(TICK);
    }
    g_thread_join(thread);
    if (told && journey->error)
        journey->error->code = BLOCKMIG_ERROR_CANCELLED;
    if (!ok && !journey->ok)
        g_clear_error(&journey->error); /* it was ours that came first */
    return ok && (!journey->ok || advance(journey, error));
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
    } else if (!now.active || (job->state.running && !now.running)) {
        job->uncertain = true;
        g_prefix_error(error,
                       "the machine does not run on the source any more, and the target did not say that it "
                       "has it: look at both hosts before it is started anywhere. This was after: ");
    }
    if (job->uncertain)
        (*error)->code = BLOCKMIG_ERROR_UNCERTAIN;
}

/* It is here; what the target has of it never ran. */
static void come_home(struct machine_job *job)
{
    g_autoptr(GError) local = NULL;

    if (job->arrived && !machine_end_there(job, &local)) {
        job_notice(&job->base, "what came to the target stands still there: %s", local->message);
        g_clear_error(&local);
    }
    job->stopped = false;
    if (job->gone && !machine_restore_definition(job, job->definition, &local))
        job_notice(&job->base, "the machine could not be defined on the source again: %s", local->message);
}

/* libvirt's last word counts as long as nothing is known better. */
static bool conclude(struct journey *journey, bool ok, GError **error)
{
    struct machine_job *job = journey->job;

    if (journey->stage == RELEASED || journey->ok) {
        if (journey->error)
            job_notice(&job->base, "the machine is on the target, although libvirt said: %s",
                       journey->error->message);
        g_clear_error(&journey->error);
        return ok;
    }
    if (journey->error)
        g_propagate_error(error, g_steal_pointer(&journey->error));
    judge_failure(job, error);
    if (!job->uncertain)
        come_home(job);
    return false;
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
    ways->state =
        relay_open(job->agent, job->id, state_path, RELAY_PACKED | (is_quick(job) ? RELAY_HELD : 0), error);
    ways->disks = ways->state ? relay_open(job->agent, disks, disks_path, RELAY_PACKED, error) : NULL;
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

/* What the definitions say, and by which way. */
static bool describe(struct machine_job *job, const struct ways *ways, struct domain_journey *what,
                     GError **error)
{
    g_autofree char *active = domain_definition(job->domain, DOMAIN_MIGRATABLE, error);
    bool live = !is_quick(job);

    *what =
        (struct domain_journey){.xml = active ? machine_rewrite(job, active, MACHINE_ARRIVES, error) : NULL,
                                .uri = ways->state_uri,
                                .disks_uri = ways->disks_uri,
                                .bandwidth = job->request->bandwidth,
                                .max_downtime = live ? FIRST_DOWNTIME : 0,
                                .live = live,
                                .cautious = job->cached};
    if (what->xml && job->state.persistent)
        what->persistent_xml = machine_rewrite(job, job->definition, MACHINE_ARRIVES, error);
    if (live && job->disks->len)
        what->disks = disk_names(job);
    return what->xml && (what->persistent_xml || !job->state.persistent);
}

static void journey_clear(struct journey *journey)
{
    machine_comparison_free(journey->comparison);
    g_free((char *)journey->what.xml);
    g_free((char *)journey->what.persistent_xml);
    g_strfreev((char **)journey->what.disks);
    if (journey->process >= 0)
        close(journey->process);
}

static bool travel_by(struct journey *journey, const struct ways *ways, GError **error)
{
    struct machine_job *job = journey->job;

    if (!machine_keep_definition(job, error) || !describe(job, ways, &journey->what, error))
        return false;
    journey->process = domain_process_open(job->domain);
    if (journey->what.live)
        journey->comparison = machine_comparison_start(job);
    else
        journey->state = ways->state;
    journey->began = g_get_monotonic_time();
    return conclude(journey, carry(journey, error), error);
}

/* What the hypervisors open there must not be locked by us; and by quick there is more to be written. */
static bool leave(struct machine_job *job, GError **error)
{
    return machine_close_targets(job, error) && (!is_quick(job) || machine_open_targets_again(job, error));
}

static double milliseconds(int64_t from, int64_t to)
{
    return from > 0 && to > from ? (double)(to - from) / 1000 : 0;
}

static bool tell_pause(const struct journey *journey, GError **error)
{
    const struct machine_job *job = journey->job;
    const int64_t *since = journey->since;

    return job_event(&job->base, "result", error,
                     "the pause: %.1f ms until it was known, %.1f ms until it was there, comparison %.1f ms, "
                     "%.1f ms until it went on",
                     milliseconds(domain_host_times(job->here, machine_uuid(job)).stopped, since[STANDS]),
                     milliseconds(since[STANDS], since[THERE]), milliseconds(since[THERE], since[COMPARED]),
                     milliseconds(since[COMPARED], since[RELEASED]));
}

static bool depart(struct machine_job *job, GError **error)
{
    struct journey journey = {.job = job, .process = -1};
    struct ways ways = {NULL};
    bool ok = machine_create_target_overlays(job, error) && machine_claim_units(job, error) &&
              open_ways(job, &ways, error) &&
              job_event(&job->base, "intent", error, "bring the machine to the target") && leave(job, error);

    ok = ok && travel_by(&journey, &ways, error) && tell_pause(&journey, error);
    journey_clear(&journey);
    ways_clear(&ways);
    return ok;
}

/* It came in an earlier run, and stands still there. */
static bool finish(struct machine_job *job, GError **error)
{
    struct journey journey = {.job = job, .process = -1, .ok = true, .over = 1};
    bool ok;

    if (job->base.method == &method_machine_live && !job->let_go)
        journey.comparison = machine_comparison_start(job);
    ok = machine_keep_definition(job, error) && advance(&journey, error);
    journey_clear(&journey);
    return ok;
}

bool machine_arrive(struct job *base, GError **error)
{
    struct machine_job *job = machine_of(base);

    return job->arrived ? finish(job, error) : depart(job, error);
}
