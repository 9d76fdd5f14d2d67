/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a job leaves for its caller to print. */
#include "blockmig/migrate/phase.h"
#include "blockmig/store/receipt.h"

#include <errno.h>

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

/* The receipt borrows everything: it is cleared, not freed. */
bool job_write_receipt(const struct job *job, struct disk_report *report, unsigned index, const char *suffix,
                       struct digest_table *digests, GError **error)
{
    const struct journal_job *record = job->record;
    g_autofree char *name = g_strdup_printf("%s-%u%s.json", record->id, index, suffix);
    g_autofree char *directory = journal_receipts(journal_directory(job->journal));
    g_autofree char *path = g_build_filename(directory, name, NULL);
    struct receipt receipt = {.job = record->id,
                              .command = record->command,
                              .method = record->method,
                              .source = report->source,
                              .target = report->target,
                              .source_format = report->source_format,
                              .target_format = report->target_format,
                              .verified = (char *)verify_mode_name(job->report->verified),
                              .started = record->started,
                              .finished = g_get_real_time(),
                              .size = report->virtual_size,
                              .layer = report->layer,
                              .counters = report->counters,
                              .digests = digests};
    uint8_t root[DIGEST_MAX_LENGTH];

    digest_table_root(digests, root);
    g_free(report->root);
    report->root = digest_to_hex(digest_table_algorithm(digests), root);
    if (g_mkdir_with_parents(directory, 0700) < 0)
        return blockmig_set_errno(error, errno, "creating %s", directory);
    if (!receipt_write(&receipt, path, error))
        return false;
    g_free(report->receipt);
    report->receipt = g_strdup(path);
    return true;
}
