/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The machine's share of its disks while we read and write beside it: --guest-share. */
#include "blockmig/migrate/live-watch.h"
#include "blockmig/migrate/share.h"

void live_share_begin(struct live_job *job)
{
    if (job->vm && !job->share && job->request->guest_share)
        job->share = share_new(job->request->guest_share);
}

static bool ask(void *opaque, uint64_t *requests, uint64_t *time_ns)
{
    struct vm_stats stats;

    if (!vm_disk_stats(opaque, NULL, &stats, NULL))
        return false;
    *requests = stats.read_operations + stats.write_operations;
    *time_ns = stats.read_time_ns + stats.write_time_ns;
    return true;
}

void live_share_look(const struct live_job *job)
{
    if (job->share)
        share_look(job->share, job->throttle, ask, job->vm);
}

void live_share_end(struct live_job *job)
{
    g_clear_pointer(&job->share, share_free);
    if (job->throttle) /* it may have ended before it had one */
        throttle_set_window(job->throttle, G_MAXSIZE);
}
