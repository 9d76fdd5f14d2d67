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
 *
 * By live the memory waits in our tunnel twice.  Nothing of it passes until the mirrors run and the
 * comparison that comes in the pause is expected to fit.  And the last byte does not until the source's
 * hypervisor has given its images up, so that both sides stay as they are, and they were compared: without
 * that byte the target never has the machine, and until then it may go on here.
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
    TRAVELS,  /* it runs here, or is being carried */
    STANDS,   /* it stands still, and nobody can start it here any more; by quick its disks are whole on the
                 target; else they need not be whole here */
    COMPARED, /* what was mirrored is what is here; where locks do not tell when, only once it is there */
    THERE,    /* the target has all of it, standing still; once its process here is gone, it goes on there: */
    RELEASED,
};

struct journey {
    struct machine_job *job;
    struct domain_journey what;
    bool barred, removed; /* the source's definition */
    enum stage stage;
    struct comparison *comparison; /* by live; NULL: nothing is compared (any more) */
    struct relay *state;           /* of its memory, as long as that is held; borrowed */
    bool set_out;                  /* the memory has */
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

static int64_t stopped_at(const struct machine_job *job)
{
    return domain_host_times(job->here, machine_uuid(job)).stopped;
}

/* The event comes before what the guest wrote is in its images: QEMU sends it, then it drains and flushes. By
 * quick all of this is over when the first of the memory comes. */
static bool stands_still(const struct journey *journey)
{
    const struct machine_job *job = journey->job;

    if (is_over(journey))
        return journey->ok;
    if (is_quick(job))
        return relay_has_begun(journey->state);
    /* One that stood still before has no such moment: once the target expects it, it is as good. */
    return job->state.running ? stopped_at(job) > journey->began
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

/* What waited for it gets all of the memory: from here on nothing is given up. */
static void let_go(struct journey *journey)
{
    relay_hold(g_steal_pointer(&journey->state), RELAY_HOLDS_NOTHING);
}

/* The target's hypervisor reads the tables of its images again when it has all of the memory; before that
 * they have to be as they stay. */
static bool ship(struct journey *journey, GError **error)
{
    journey->job->stopped = true;
    if (!machine_ship_last(journey->job, error) || !machine_close_targets(journey->job, error))
        return false;
    let_go(journey);
    return true;
}

/* From any thread; without the end of the memory it goes on here. */
static void turn_back(struct journey *journey)
{
    if (journey->state)
        relay_cut(journey->state);
    domain_migration_abort(journey->job->domain);
}

static void give_up(void *opaque)
{
    struct journey *journey = opaque;

    g_atomic_int_set(&journey->job->given_up, 1);
    turn_back(journey);
}

/* The first of the memory comes when the mirrors run. */
static bool set_out(struct journey *journey, GError **error)
{
    if (journey->set_out || !journey->state || is_quick(journey->job) || !relay_has_begun(journey->state))
        return true;
    if (!machine_look_forward(journey->job, journey->comparison, &journey->set_out, error))
        return false;
    if (journey->set_out)
        relay_hold(journey->state, RELAY_HOLDS_LAST_BYTE);
    return true;
}

/* Does nobody write here any more, and nothing wait for it in the hypervisor's memory?  Then the mirrors have
 * ended, too. */
static bool has_given_up_images(const struct machine_job *job)
{
    for (guint i = 0; i < job->disks->len; i++)
        if (machine_is_written(machine_disk_at(job, i)))
            return false;
    return true;
}

static bool compare(struct journey *journey, GError **error)
{
    struct comparison *comparison = g_steal_pointer(&journey->comparison);
    bool ok = !comparison || machine_comparison_end(comparison, error);

    machine_comparison_free(comparison);
    return ok;
}

static bool compare_before(struct journey *journey, GError **error)
{
    struct machine_job *job = journey->job;
    struct pause_limit *limit = machine_limit_begin(job, stopped_at(job), give_up, journey);
    bool ok = compare(journey, error);

    if (!machine_limit_end(job, limit, error) || !ok)
        return false;
    let_go(journey);
    return true;
}

static bool compare_there(struct journey *journey, GError **error)
{
    struct machine_job *job = journey->job;

    if (compare(journey, error))
        return true;
    job->uncertain = !g_error_matches(*error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_DIFFERENT);
    job->base.report->advice =
        g_strdup("the machine stands still on the target; the source's disks are kept with "
                 "all that it wrote");
    return false;
}

/* While its memory is held, as soon as that can be said; else when it is there. */
static bool compare_in_time(struct journey *journey, GError **error)
{
    if (!journey->state) {
        if (!is_there(journey))
            return true;
        if (!compare_there(journey, error))
            return false;
    } else {
        if (!has_given_up_images(journey->job))
            return true;
        if (!compare_before(journey, error))
            return false;
    }
    reach(journey, COMPARED);
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

    return job->arrived || (machine_reach_target(job, error) &&
                            (job->arrived = domain_open(job->there, machine_uuid(job), error)));
}

/* Goes as far as it can go by now.  After an error nothing more is to be done. */
static bool advance(struct journey *journey, GError **error)
{
    struct machine_job *job = journey->job;

    if (is_done(journey) && (!meet(journey, error) || !close_door(journey, error))) {
        job->uncertain = journey->stage < RELEASED;
        return false;
    }
    if (!set_out(journey, error))
        return false;
    if (journey->stage == TRAVELS && stands_still(journey)) {
        close_door(journey, NULL);
        if ((!is_over(journey) && !is_on_our_layers(job, error)) || (is_quick(job) && !ship(journey, error)))
            return false;
        reach(journey, STANDS);
    }
    if (journey->stage == STANDS && !compare_in_time(journey, error))
        return false;
    if (journey->stage == COMPARED && is_there(journey))
        reach(journey, THERE);
    if (journey->stage == THERE && is_gone_here(journey)) {
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

/* What the rest of the pause leaves of it for the last of the memory. */
static unsigned longest_downtime(const struct machine_job *job)
{
    double left = job->request->max_pause - MAX(job->base.report->pause_forecast_ms, 0);

    return left > FIRST_DOWNTIME ? (unsigned)left : FIRST_DOWNTIME;
}

/* The longer it lasts, the longer the last step may be. */
static void allow_more(struct journey *journey, unsigned *downtime, int64_t *next)
{
    const struct machine_job *job = journey->job;

    if (*downtime == 0 || *downtime >= longest_downtime(job) || g_get_monotonic_time() <= *next)
        return;
    *downtime = MIN(2 * *downtime, longest_downtime(job));
    domain_migration_allow(job->domain, *downtime);
    *next += PATIENCE;
}

/* QEMU 7.2 waits for ever, with the machine, if it is told to cancel between its stop and the end of the
 * mirrors. */
static bool may_turn_back(const struct journey *journey)
{
    if (is_quick(journey->job) || !journey->state || !stands_still(journey))
        return journey->stage == TRAVELS;
    return has_given_up_images(journey->job);
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
        }
        /* Once there is something that can be ended. */
        if ((told || !ok) && !ended && may_turn_back(journey) &&
            domain_migration_progress(job->domain, &now)) {
            turn_back(journey);
            ended = true;
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

/* What is certain after a journey that failed: if the source runs, or can, it is the owner; and if the target
 * did not get all of its memory. */
static void judge_failure(const struct journey *journey, GError **error)
{
    struct machine_job *job = journey->job;
    struct domain_state now;
    g_autoptr(GError) local = NULL;

    if (!domain_look(job->domain, &now, &local)) {
        job->uncertain = true;
        g_prefix_error(
            error,
            "the source cannot be asked any more (%s): the machine may be there, or on its way; look "
            "at both hosts before it is started anywhere. This was after: ",
            local->message);
    } else if (now.active ? job->state.running && !now.running : !journey->state) {
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
    judge_failure(journey, error);
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
    ways->state = relay_open(job->agent, job->id, state_path, true, error);
    ways->disks = ways->state ? relay_open(job->agent, disks, disks_path, true, error) : NULL;
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

/* What quick ships, and what live compares, comes before its end.  When it may be compared only locks tell.
 */
static void hold_memory(struct journey *journey, struct relay *state)
{
    const struct machine_job *job = journey->job;
    bool told = job->disks->len > 0;

    for (guint i = 0; told && i < job->disks->len; i++)
        told = machine_is_written(machine_disk_at(job, i));
    if (!is_quick(job) && !told)
        return;
    relay_hold(state, is_quick(job) ? RELAY_HOLDS_LAST_BYTE : RELAY_HOLDS_ALL);
    journey->state = state;
}

static bool travel_by(struct journey *journey, const struct ways *ways, GError **error)
{
    struct machine_job *job = journey->job;

    if (!machine_read_again(job, error) || !machine_keep_definition(job, error) ||
        !describe(job, ways, &journey->what, error))
        return false;
    journey->process = domain_process_open(job->domain);
    if (journey->what.live)
        journey->comparison = machine_comparison_start(job);
    hold_memory(journey, ways->state);
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

    return job_event(
        &job->base, "result", error,
        "the pause: %.1f ms until it was known, %.1f ms until it was compared, %.1f ms until it was "
        "there, %.1f ms until it went on",
        milliseconds(stopped_at(job), since[STANDS]), milliseconds(since[STANDS], since[COMPARED]),
        milliseconds(since[COMPARED], since[THERE]), milliseconds(since[THERE], since[RELEASED]));
}

static bool depart(struct machine_job *job, GError **error)
{
    struct journey journey = {.job = job, .process = -1};
    struct ways ways = {NULL};
    bool ok = machine_reach_hosts(job, error) && machine_may_leave(job, error) &&
              machine_create_target_overlays(job, error) && machine_claim_units(job, error) &&
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
    GError *failure = NULL;

    if (job->arrived)
        return finish(job, error);
    return depart(job, &failure) || machine_try_again(job, failure, error);
}
