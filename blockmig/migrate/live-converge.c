/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The converge phase: passes.  Each puts a new overlay under the machine's writes and ships the one before
 * it, so that each has less to ship, until shipping takes no longer than one pass's fixed cost.
 *
 * The pause that is forecast is the time of the quickest pass, enlarged if the machine has written more
 * meanwhile than that pass had, plus what a pause costs without any shipping, seen from what the hypervisor
 * needs for as many commands in each pass.
 */
#include "blockmig/migrate/live.h"
#include "blockmig/migrate/units.h"

#define MAX_PASSES 12u /* of overlays: the depth of the chain is bounded by it */
/* Stopping, opening the target, the pivot and going on take so many times as long as putting layers on, which
 * are as many commands to the same hypervisor (measured: 1.2 to 1.8). */
#define OVERHEAD    1.5
#define SMALL_BYTES (UINT64_C(8) << 20)
#define DISTURBED   1.25
#define SHRINKS     0.75 /* a pass of less than this part of the one before is worth another */

static bool ship_frozen(struct live_job *job, struct live_shipment *shipment, GError **error)
{
    for (guint i = 0; i < job->disks->len; i++) {
        struct live_disk *disk = live_disk_at(job, i);
        g_autofree char *path = live_layer_path(disk, disk->top - 1);
        g_autoptr(chain_t) overlay = live_open_overlay(path, 0, error);

        if (!overlay || !live_ship(job, disk, overlay, disk->target, shipment, error))
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

static void measure(struct live_pace *pace, const struct live_shipment *shipment, double written_in,
                    double since_layered)
{
    pace->ship_bytes = shipment->bytes;
    if (written_in > 0)
        pace->dirty_rate = (double)shipment->bytes / written_in;
    if (pace->quick_time == 0 || shipment->time < ship_time(pace, (double)shipment->bytes)) {
        pace->quick_time = shipment->time;
        pace->quick_bytes = shipment->bytes;
    }
    pace->forecast = OVERHEAD * pace->layer_time + ship_time(pace, pace->dirty_rate * since_layered);
}

static bool one_pass(struct live_job *job, GError **error)
{
    struct live_shipment shipment = {0};
    int64_t since = job->pace.layered, layered;
    g_autofree char *size = NULL, *rate = NULL;

    if (!live_layers_add(job, error))
        return false;
    layered = job->pace.layered;
    if (!ship_frozen(job, &shipment, error))
        return false;
    measure(&job->pace, &shipment, (double)(layered - since) / G_USEC_PER_SEC,
            (double)(g_get_monotonic_time() - layered) / G_USEC_PER_SEC);
    job->base.report->passes++;
    size = units_format_size(shipment.bytes);
    rate = units_format_rate(job->pace.dirty_rate);
    live_tell(job, "pass %u: %s in %.0f ms, the machine writes %s, a pause would take %.0f ms of %u",
              job->base.report->passes, size, shipment.time * 1000, rate, job->pace.forecast * 1000,
              job->request->max_pause);
    return job_event(&job->base, "result", error,
                     "pass %u: layers in %.1f ms, %s shipped in %.1f ms, pause forecast %.1f ms",
                     job->base.report->passes, job->pace.layer_time * 1000, size, shipment.time * 1000,
                     job->pace.forecast * 1000);
}

/* Another pass is worth its while as long as there is less to ship each time, or the last one was disturbed.
 */
static bool is_settled(const struct live_pace *pace, uint64_t before, double best)
{
    return pace->ship_bytes < SMALL_BYTES && (double)pace->ship_bytes >= SHRINKS * (double)before &&
           pace->forecast <= DISTURBED * best;
}

bool live_converge(struct job *base, GError **error)
{
    struct live_job *job = live_of(base);
    struct live_pace *pace = &job->pace;
    double best = G_MAXDOUBLE;

    for (unsigned pass = 1; pass <= MAX_PASSES; pass++) {
        uint64_t before = pace->ship_bytes;

        if (live_is_cancelled(job, error) || !one_pass(job, error))
            return false;
        best = MIN(best, pace->forecast);
        base->report->pause_forecast_ms = pace->forecast * 1000;
        if (pace->forecast * 1000 <= job->request->max_pause &&
            ((pass > 1 && is_settled(pace, before, best)) || pass == MAX_PASSES))
            return true;
    }
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_PARKED,
                "after %u passes a pause would take %.0f ms, and --max-pause allows %u ms", MAX_PASSES,
                pace->forecast * 1000, job->request->max_pause);
    return false;
}
