/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The converge phase: passes.  Each puts a new overlay under the machine's writes and ships the one before
 * it, so that each has less to ship, until shipping takes no longer than one pass's fixed cost.
 *
 * The pause that is forecast is the time of the quickest pass, enlarged if the machine has written more
 * meanwhile than that pass had, plus what a pause costs without any shipping, seen from what the hypervisor
 * needs for as many commands in each pass.
 *
 * judge() says after each pass whether that is enough, worth another pass, or hopeless as it is; about the
 * last, on_busy() does what was asked for.  Without a pause there is nothing to fit into: there, enough is
 * when passes do not shrink any more.
 */
#include "blockmig/migrate/live-watch.h"
#include "blockmig/migrate/units.h"

#define MAX_LAYERS 48u /* of all runs: a parked job that is resumed goes on with the overlays that it has */
/* Stopping, opening the target, the pivot and going on take so many times as long as putting layers on, which
 * are as many commands to the same hypervisor (measured: 1.2 to 1.8). */
#define OVERHEAD    1.5
#define SMALL_BYTES (UINT64_C(8) << 20)
#define DISTURBED   1.25
#define SHRINKS     0.75 /* a pass of less than this part of the one before is worth another */
#define PATIENCE    3u   /* passes before the machine is called busy, if something can be done about it */
#define MARGIN      0.7  /* of the pause that is allowed: what a limit aims at */
#define LEAST_LIMIT (16 << 10) /* bytes per second: below this the guest is as good as stopped */

/* Shipping has flushed the target: the journal may know it. */
static bool save_merged(struct live_job *job, struct live_disk *disk, GError **error)
{
    const struct copy_result nothing = {.map_sum = disk->done.map_sum};

    disk->done.merged = disk->top - 1;
    /* A way back, and a chain that is kept, begin anew if they are interrupted. */
    return disk->merged > 0 || disk->backing_name ||
           checkpoint_save(&disk->done, &job->base, disk->index, disk->size, &nothing, error);
}

/* All that is below the top and not on the target yet: one overlay, or those that an interrupted run left. */
static bool ship_frozen(struct live_job *job, struct live_shipment *shipment, GError **error)
{
    for (guint i = 0; i < job->disks->len; i++) {
        struct live_disk *disk = live_disk_at(job, i);
        g_autoptr(chain_t) overlays = live_open_layers(disk, disk->done.merged + 1, disk->top - 1, error);
        g_autoptr(chain_t) below = live_source_below(disk);

        shipment->below = below;
        if (!overlays || !live_ship(job, disk, overlays, disk->target, shipment, error) ||
            !save_merged(job, disk, error))
            return false;
    }
    return true;
}

/* What shipping `bytes` would take, by the least disturbed pass so far: nothing disturbs it in a pause. */
static double ship_time(const struct live_pace *pace, double bytes)
{
    double part = pace->quick_bytes > 0 ? bytes / (double)pace->quick_bytes : 1;

    return pace->quick_time * MAX(part, 1);
}

/* A pause without shipping. */
static double fixed_time(const struct live_pace *pace)
{
    return OVERHEAD * pace->layer_time;
}

void live_pace_measure(struct live_pace *pace, const struct live_shipment *shipment, double written_in,
                       double since_layered)
{
    pace->ship_bytes = shipment->bytes;
    if (written_in > 0)
        pace->dirty_rate = (double)shipment->bytes / written_in;
    if (pace->quick_time == 0 || shipment->time < ship_time(pace, (double)shipment->bytes)) {
        pace->quick_time = shipment->time;
        pace->quick_bytes = shipment->bytes;
    }
    pace->forecast = fixed_time(pace) + ship_time(pace, pace->dirty_rate * since_layered);
}

static bool is_without_pause(const struct live_job *job)
{
    return job->base.method == &method_mirror;
}

static bool tell_pass(struct live_job *job, const struct live_shipment *shipment, GError **error)
{
    const struct live_pace *pace = &job->pace;
    g_autofree char *size = units_format_size(shipment->bytes);

    live_tell(job, "shipped %s in %.0f ms", size, shipment->time * 1000);
    return job_event(&job->base, "result", error,
                     "pass %u: layers in %.1f ms, %s shipped in %.1f ms, pause forecast %.1f ms",
                     job->base.report->passes, pace->layer_time * 1000, size, shipment->time * 1000,
                     pace->forecast * 1000);
}

static void note_pace(struct live_job *job, const struct live_shipment *shipment)
{
    struct job_report *report = job->base.report;

    report->dirty_rate = job->pace.dirty_rate;
    report->ship_rate = shipment->time > 0 ? (double)shipment->bytes / shipment->time : -1;
    report->pause_forecast_ms = is_without_pause(job) ? -1 : job->pace.forecast * 1000;
}

/* The machine must never meet a full disk: what the target lacks is waited for, what the source lacks is not.
 */
static bool add_layer(struct live_job *job, GError **error)
{
    GError *local = NULL;
    unsigned top = live_disk_at(job, 0)->top;

    if (top >= MAX_LAYERS)
        return blockmig_fail(error, BLOCKMIG_ERROR_CANCELLED,
                             "%u overlays lie over the source already, and it does not converge", top);
    if (live_layers_add(job, &local))
        return true;
    if (g_error_matches(local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_NOSPACE))
        local->code = BLOCKMIG_ERROR_CANCELLED;
    g_propagate_error(error, local);
    return false;
}

/* Of a resumed job nobody knows how long its overlay lies there. */
bool live_pass(struct live_job *job, GError **error)
{
    struct live_shipment shipment = {0};
    int64_t since = job->pace.layered, layered;

    if (!add_layer(job, error))
        return false;
    layered = job->pace.layered;
    if (!ship_frozen(job, &shipment, error))
        return false;
    live_pace_measure(&job->pace, &shipment, since ? (double)(layered - since) / G_USEC_PER_SEC : 0,
                      (double)(g_get_monotonic_time() - layered) / G_USEC_PER_SEC);
    job->base.report->passes++;
    note_pace(job, &shipment);
    return tell_pass(job, &shipment, error);
}

bool live_pace_is_settled(const struct live_pace *pace, uint64_t before, double best)
{
    return pace->ship_bytes < SMALL_BYTES && (double)pace->ship_bytes >= SHRINKS * (double)before &&
           pace->forecast <= DISTURBED * best;
}

/* ---- the decision --------------------------------------------------------------------------------- */

enum verdict { ENOUGH, GO_ON, TOO_BUSY };

struct history {
    unsigned pass;
    unsigned limited; /* the pass after which the last limit was set; 0: none */
    uint64_t before;  /* bytes of the pass before the last */
    double best;      /* forecast */
};

static bool fits(const struct live_job *job)
{
    return job->pace.forecast * 1000 <= live_max_pause(job);
}

static enum verdict judge(const struct live_job *job, const struct history *history)
{
    const struct live_pace *pace = &job->pace;
    bool shrinks = (double)pace->ship_bytes < SHRINKS * (double)history->before;
    bool last = history->pass == LIVE_MAX_PASSES;

    if (is_without_pause(job))
        return last || pace->ship_bytes < SMALL_BYTES || (history->pass > 1 && !shrinks) ? ENOUGH : GO_ON;
    if (fits(job))
        return last || (history->pass > 1 && live_pace_is_settled(pace, history->before, history->best))
                   ? ENOUGH
                   : GO_ON;
    if (last)
        return TOO_BUSY;
    /* The pass after a limit was set still ships what was written before. */
    return job->request->on_busy != BUSY_PARK && history->pass >= PATIENCE && !shrinks &&
                   history->pass > history->limited + 1
               ? TOO_BUSY
               : GO_ON;
}

static char *why_busy(const struct live_job *job, unsigned pass)
{
    return g_strdup_printf("after %u passes a pause would take %.0f ms, and --max-pause allows %u ms%s", pass,
                           job->pace.forecast * 1000, live_max_pause(job),
                           job->base.report->write_limit ? ", even with the machine's writes limited" : "");
}

/* What the machine may write so that the forecast is well inside the limit: at most half of what it writes.
 */
static uint64_t fitting_rate(const struct live_job *job)
{
    const struct live_pace *pace = &job->pace;
    double wanted = MARGIN * live_max_pause(job) / 1000 - fixed_time(pace);
    double part = CLAMP(wanted / (pace->forecast - fixed_time(pace)), 1.0 / 16, 1.0 / 2);
    uint64_t limit = job->base.report->write_limit;
    double rate = limit ? MIN((double)limit, pace->dirty_rate) : pace->dirty_rate;

    return MAX((uint64_t)(rate * part), LEAST_LIMIT);
}

void live_choose_mirror(struct live_job *job, const char *reason)
{
    job_notice(&job->base, "%s: the switch is made without a pause (--on-busy=mirror)", reason);
    job->base.report->on_busy = busy_policy_name(BUSY_MIRROR);
    job_set_method(&job->base, &method_mirror);
}

/* *go_on: are there more passes to come? */
static bool on_busy(struct live_job *job, struct history *history, bool *go_on, GError **error)
{
    g_autofree char *reason = why_busy(job, history->pass);
    uint64_t rate = fitting_rate(job);

    switch (job->request->on_busy) {
    case BUSY_MIRROR:
        live_choose_mirror(job, reason);
        *go_on = false;
        return true;
    case BUSY_THROTTLE:
        if (history->pass == LIVE_MAX_PASSES || job->base.report->write_limit == LEAST_LIMIT)
            break;
        job->base.report->on_busy = busy_policy_name(BUSY_THROTTLE);
        history->limited = history->pass;
        *go_on = true;
        return live_throttle(job, rate, error);
    case BUSY_PARK:
        break;
    }
    job->base.report->on_busy = busy_policy_name(BUSY_PARK);
    g_set_error_literal(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_PARKED, reason);
    return false;
}

bool live_converge(struct job *base, GError **error)
{
    struct live_job *job = live_of(base);
    struct history history = {.best = G_MAXDOUBLE};
    bool go_on = true;

    while (go_on) {
        enum verdict verdict;

        history.before = job->pace.ship_bytes;
        if (!live_watch_now(job, error) || live_is_cancelled(job, error) ||
            !live_wait_for_others(job, 0, error) || !live_pass(job, error))
            return false;
        history.pass++;
        history.best = MIN(history.best, job->pace.forecast);
        verdict = judge(job, &history);
        go_on = verdict == GO_ON;
        if (verdict == TOO_BUSY && !on_busy(job, &history, &go_on, error))
            return false;
    }
    return true;
}
