/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* blockmig commit: an image is merged into the one below it. */
#include "blockmig/migrate/commit.h"
#include "blockmig/migrate/units.h"
#include "tools/command.h"
#include "tools/confine.h"
#include "tools/output.h"
#include "tools/progress.h"
#include "tools/signals.h"

static void on_phase(void *opaque, const char *phase, const char *what)
{
    progress_phase(opaque, phase, what);
}

static void on_progress(void *opaque, const char *phase, const struct copy_counters *counters)
{
    progress_update(opaque, counters);
}

static json_t *report_to_json(const struct options *options, const struct commit_report *report,
                              double seconds, const GError *error)
{
    const struct copy_counters *counters = &report->counters;
    json_t *object = json_pack(
        "{s:i, s:s, s:s, s:o, s:o, s:s?, s:s?, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:o}", "schema", 1,
        "command", "commit", "result",
        error              ? "failed"
        : options->dry_run ? "planned"
                           : "done",
        "overlay", output_json_string(report->overlay), "parent", output_json_string(report->parent),
        "overlay_format", report->overlay_format, "parent_format", report->parent_format, "virtual_size",
        (json_int_t)report->size, "data", (json_int_t)report->data, "zeros", (json_int_t)report->zeros,
        "bytes_read", (json_int_t)counters->bytes_read, "bytes_written", (json_int_t)counters->bytes_written,
        "bytes_zero", (json_int_t)counters->bytes_zero, "bytes_verified",
        (json_int_t)counters->bytes_verified, "source", report->deleted ? "deleted" : "kept", "duration_s",
        output_json_seconds(seconds));
    if (error)
        json_object_set_new(object, "error", output_json_string(error->message));
    return object;
}

static void print_report(const struct options *options, const struct commit_report *report)
{
    g_autofree char *data = units_format_size(report->data), *zeros = units_format_size(report->zeros);
    g_autofree char *overlay = output_printable(report->overlay);

    output_pair(options->dry_run ? "would merge" : "merged", "%s (%s)", overlay, report->overlay_format);
    output_pair("into", "%s (%s)", report->parent, report->parent_format);
    output_pair("data", "%s, and %s of zeros", data, zeros);
    if (!options->dry_run)
        output_pair("overlay", "%s", report->deleted ? "deleted" : "kept; it still shows the same disk");
}

int cmd_commit(const struct options *options, GError **error)
{
    struct commit_report report;
    GError *failure = NULL;
    int64_t started = g_get_monotonic_time();

    if (!command_arguments(options, 1, 1, error) || !confine_commit(options, error))
        return 0;
    struct commit_request request = {
        .overlay = options->arguments->pdata[0],
        .format = options->format,
        .parents = (const char *const *)options->parents->pdata,
        .roots = (const char *const *)options->roots->pdata,
        .bandwidth = options->bandwidth,
        .verify = (enum verify_mode)options->verify,
        .delete_overlay = options->delete_source,
        .dry_run = options->dry_run,
    };
    signals_install();
    struct progress *progress = progress_new(options);
    struct job_listener listener = {
        .phase = on_phase, .progress = on_progress, .cancelled = signals_cancelled, .opaque = progress};
    bool done = commit_run(&request, &listener, &report, &failure);
    progress_end(progress, done);
    double seconds = (double)(g_get_monotonic_time() - started) / G_USEC_PER_SEC;
    if (options->json)
        output_json(report_to_json(options, &report, seconds, failure), failure ? NULL : &failure);
    else if (done && !options->quiet)
        print_report(options, &report);
    commit_report_clear(&report);
    if (failure)
        g_propagate_error(error, failure);
    return 0;
}
