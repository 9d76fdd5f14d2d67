/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a job leaves for its caller to print. */
#include "blockmig/migrate/job.h"

static void disk_report_free(struct disk_report *disk)
{
    g_free(disk->disk);
    g_free(disk->source);
    g_free(disk->target);
    g_free(disk->source_format);
    g_free(disk->target_format);
    g_free(disk->root);
    g_clear_pointer(&disk->bad, g_array_unref);
    g_free(disk->receipt);
    g_free(disk);
}

struct job_report *job_report_new(void)
{
    struct job_report *report = g_new0(struct job_report, 1);

    report->started = g_get_real_time();
    report->source = "kept";
    report->passes = 1;
    report->pause_ms = report->pause_forecast_ms = report->snapshot_pause_ms = -1;
    report->dirty_rate = report->ship_rate = report->max_pause_ms = -1;
    report->frozen_ms = report->snapshot_frozen_ms = -1;
    report->disks = g_ptr_array_new_with_free_func((GDestroyNotify)disk_report_free);
    report->plan = g_ptr_array_new_with_free_func(g_free);
    return report;
}

void job_report_free(struct job_report *report)
{
    if (!report)
        return;
    g_free(report->id);
    g_free(report->advice);
    g_ptr_array_unref(report->disks);
    g_ptr_array_unref(report->plan);
    g_free(report);
}
