/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The machine's share of its disks while we read and write beside it: --guest-share. */
#include "blockmig/migrate/live-watch.h"
#include "blockmig/migrate/share.h"

void live_share_begin(struct live_job *job)
{
    if (job->vm && !job->share && job->request->guest_share)
        job->share = share_new(job->request->guest_share);
}

void live_share_look(const struct live_job *job)
{
    int64_t now = g_get_monotonic_time();
    struct vm_stats stats;
    size_t window;

    if (!job->share || !share_is_due(job->share, now))
        return;
    if (vm_disk_stats(job->vm, NULL, &stats, NULL))
        window = share_step(job->share, now, stats.read_operations + stats.write_operations,
                            stats.read_time_ns + stats.write_time_ns);
    else
        window = share_skip(job->share, now);
    throttle_set_window(job->throttle, window);
}

void live_share_end(struct live_job *job)
{
    g_clear_pointer(&job->share, share_free);
    if (job->throttle) /* it may have ended before it had one */
        throttle_set_window(job->throttle, G_MAXSIZE);
}
