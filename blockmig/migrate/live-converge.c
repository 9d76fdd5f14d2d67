/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The converge phase: passes.  Each puts a new overlay under the machine's writes and ships the one before
 * it, so that each has less to ship, until shipping takes no longer than one pass's fixed cost.
 *
 * The pause that is forecast is the time of the quickest pass, enlarged if the machine has written more
 * meanwhile than that pass had, plus what a pause costs without any shipping, seen from what the hypervisor
 * needs for as many commands in each pass.
 */
#include "blockmig/migrate/live-watch.h"
#include "blockmig/migrate/units.h"

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
    pace->forecast = OVERHEAD * pace->layer_time + ship_time(pace, pace->dirty_rate * since_layered);
}

static void note_pace(struct live_job *job, const struct live_shipment *shipment)
{
    struct job_report *report = job->base.report;

    report->dirty_rate = job->pace.dirty_rate;
    report->ship_rate = shipment->time > 0 ? (double)shipment->bytes / shipment->time : -1;
    report->pause_forecast_ms = job->pace.forecast * 1000;
}

bool live_pass(struct live_job *job, GError **error)
{
    struct live_shipment shipment = {0};
    int64_t since = job->pace.layered, layered;
    g_autofree char *size = NULL;

    if (!live_layers_add(job, error))
        return false;
    layered = job->pace.layered;
    if (!ship_frozen(job, &shipment, error))
        return false;
    live_pace_measure(&job->pace, &shipment, (double)(layered - since) / G_USEC_PER_SEC,
                      (double)(g_get_monotonic_time() - layered) / G_USEC_PER_SEC);
    job->base.report->passes++;
    size = units_format_size(shipment.bytes);
    note_pace(job, &shipment);
    live_tell(job, "shipped %s in %.0f ms", size, shipment.time * 1000);
    return job_event(&job->base, "result", error,
                     "pass %u: layers in %.1f ms, %s shipped in %.1f ms, pause forecast %.1f ms",
                     job->base.report->passes, job->pace.layer_time * 1000, size, shipment.time * 1000,
                     job->pace.forecast * 1000);
}

bool live_pace_is_settled(const struct live_pace *pace, uint64_t before, double best)
{
    return pace->ship_bytes < SMALL_BYTES && (double)pace->ship_bytes >= SHRINKS * (double)before &&
           pace->forecast <= DISTURBED * best;
}

bool live_converge(struct job *base, GError **error)
{
    struct live_job *job = live_of(base);
    struct live_pace *pace = &job->pace;
    double best = G_MAXDOUBLE;

    for (unsigned pass = 1; pass <= LIVE_MAX_PASSES; pass++) {
        uint64_t before = pace->ship_bytes;

        if (!live_watch_now(job, error) || live_is_cancelled(job, error) ||
            !live_wait_for_others(job, 0, error) || !live_pass(job, error))
            return false;
        best = MIN(best, pace->forecast);
        if (pace->forecast * 1000 <= job->request->max_pause &&
            ((pass > 1 && live_pace_is_settled(pace, before, best)) || pass == LIVE_MAX_PASSES))
            return true;
    }
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_PARKED,
                "after %u passes a pause would take %.0f ms, and --max-pause allows %u ms", LIVE_MAX_PASSES,
                pace->forecast * 1000, job->request->max_pause);
    return false;
}
