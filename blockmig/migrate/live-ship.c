/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Shipping: what an overlay holds is written into the merged target, in place, and read back. */
#include "blockmig/migrate/live.h"

/* In a pause only its limit counts. */
static bool is_over(void *opaque)
{
    struct live_job *job = opaque;

    return g_atomic_int_get(&job->given_up) || (!job->paused && live_is_cancelled(job, NULL));
}

static void progress(void *opaque, const struct copy_counters *counters)
{
    live_progress(opaque, counters);
}

bool live_ship(struct live_job *job, struct live_disk *disk, struct chain *overlay, struct image *target,
               struct live_shipment *shipment, GError **error)
{
    struct copy_options options = {.read_back = job->request->verify != VERIFY_NONE,
                                   .patch = true,
                                   .target_backing = shipment->below,
                                   .cancelled = is_over,
                                   .progress = progress,
                                   .opaque = job};
    struct copy_result result = {0};
    int64_t begin = g_get_monotonic_time();
    bool ok;

    options.throttle = job->paused ? NULL : job->throttle;
    target->reads_zero = false; /* there is data already: zeros have to be written */
    ok = copy_run(overlay, target, &options, &result, error);
    shipment->bytes += result.counters.bytes_written;
    shipment->time += (double)(g_get_monotonic_time() - begin) / G_USEC_PER_SEC;
    copy_counters_add(&disk->report->counters, &result.counters);
    job->base.report->bytes_read += result.counters.bytes_read;
    copy_result_clear(&result);
    return ok;
}
