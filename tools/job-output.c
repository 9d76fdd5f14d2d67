/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tools/job-output.h"

#include "blockmig/migrate/units.h"
#include "blockmig/storage/names.h"
#include "tools/command.h"
#include "tools/confine.h"
#include "tools/output.h"
#include "tools/progress.h"
#include "tools/signals.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

static void on_phase(void *opaque, const char *phase, const char *what)
{
    progress_phase(opaque, phase, what);
}

static void on_progress(void *opaque, const char *phase, const struct copy_counters *counters)
{
    progress_update(opaque, counters);
}

static void on_pace(void *opaque, const struct job_pace *pace)
{
    progress_pace(opaque, pace);
}

static void on_notice(void *opaque, const char *text)
{
    progress_message(opaque, text);
}

/* ---- JSON: section "JSON" of blockmig(1) --------------------------------------------------------- */

static json_t *digest_to_json(const struct disk_report *disk)
{
    if (!disk->root)
        return json_null();
    return json_pack("{s:s, s:I, s:s}", "algorithm", digest_algorithm_name(disk->algorithm), "chunk_size",
                     (json_int_t)DIGEST_CHUNK_SIZE, "root", disk->root);
}

static void set_integer(json_t *object, const char *key, uint64_t value)
{
    json_object_set_new(object, key, json_integer((json_int_t)value));
}

static void set_string(json_t *object, const char *key, const char *value)
{
    json_object_set_new(object, key, output_json_string(value));
}

/* null: there was no guest, or it did not stand still. */
static void set_pause(json_t *object, const char *key, double milliseconds)
{
    json_object_set_new(object, key,
                        milliseconds < 0 ? json_null() : json_real(round(milliseconds * 1000) / 1000));
}

/* null: not measured. */
static void set_rate(json_t *object, const char *key, double bytes_per_second)
{
    json_object_set_new(object, key,
                        bytes_per_second < 0 ? json_null() : json_integer((json_int_t)bytes_per_second));
}

static json_t *disk_to_json(const struct disk_report *disk, const struct job_report *report)
{
    json_t *object = json_object();
    set_string(object, "disk", disk->disk);
    set_string(object, "source", disk->source);
    set_string(object, "target", disk->target);
    set_string(object, "source_format", disk->source_format);
    set_string(object, "target_format", disk->target_format);
    set_integer(object, "virtual_size", disk->virtual_size);
    set_integer(object, "source_allocated", disk->source_allocated);
    set_integer(object, "target_allocated", disk->target_allocated);
    set_integer(object, "bytes_read", disk->counters.bytes_read);
    set_integer(object, "bytes_written", disk->counters.bytes_written);
    set_integer(object, "bytes_cloned", disk->counters.bytes_cloned);
    set_integer(object, "bytes_zero", disk->counters.bytes_zero);
    set_integer(object, "bytes_verified", disk->counters.bytes_verified);
    set_integer(object, "bytes_in_pause", disk->bytes_in_pause);
    set_integer(object, "bytes_wire", disk->bytes_wire);
    set_integer(object, "bytes_seeded", disk->bytes_seeded);
    json_object_set_new(object, "digest", digest_to_json(disk));
    json_object_set_new(object, "digest_of_layer", json_boolean(disk->layer));
    set_string(object, "verified", verify_mode_name(report->verified));
    json_object_set_new(object, "bad_ranges", output_json_ranges(disk->bad));
    set_string(object, "engine", disk->engine);
    set_string(object, "receipt", disk->receipt);
    return object;
}

static json_t *forecast_to_json(const struct job_forecast *forecast)
{
    if (forecast->copy_rate <= 0)
        return json_null();
    return json_pack("{s:f, s:f, s:I, s:I, s:I, s:f}", "dirty_rate", forecast->dirty_rate, "copy_rate",
                     forecast->copy_rate, "passes", (json_int_t)forecast->passes, "source_bytes",
                     (json_int_t)forecast->source_bytes, "target_bytes", (json_int_t)forecast->target_bytes,
                     "duration_s", forecast->seconds);
}

/* The receipt of the disk itself: with --chain=keep the layers below come first. */
static const char *main_receipt(const struct job_report *report)
{
    const struct disk_report *last =
        report->disks && report->disks->len ? report->disks->pdata[report->disks->len - 1] : NULL;
    return last ? last->receipt : NULL;
}

/* null: there is no way back. */
static json_t *failback_to_json(const struct job_report *report)
{
    g_autofree char *back = g_strdup_printf("blockmig job failback %s", report->id);
    g_autofree char *finish = g_strdup_printf("blockmig job finish %s", report->id);

    if (report->failback_until == 0)
        return json_null();
    return json_pack("{s:o, s:s, s:s}", "until", output_json_time(report->failback_until), "failback", back,
                     "finish", finish);
}

static bool is_pause_longer(const struct job_report *report)
{
    return report->pause_ms > report->max_pause_ms;
}

static json_t *report_to_json(const struct job_report *report, const GError *failure)
{
    json_t *object = json_object(), *disks = json_array();
    for (guint i = 0; report->disks && i < report->disks->len; i++)
        json_array_append_new(disks, disk_to_json(report->disks->pdata[i], report));
    set_integer(object, "schema", 1);
    set_string(object, "job", report->id);
    set_string(object, "command", report->command);
    set_string(object, "method", report->method);
    set_string(object, "result", report->result);
    set_string(object, "phase", report->phase);
    json_object_set_new(object, "started", output_json_time(report->started));
    json_object_set_new(object, "duration_s", output_json_seconds(report->duration_s));
    set_integer(object, "passes", report->passes);
    set_pause(object, "pause_ms", report->pause_ms);
    set_pause(object, "pause_forecast_ms", report->pause_forecast_ms);
    set_pause(object, "snapshot_pause_ms", report->snapshot_pause_ms);
    set_pause(object, "max_pause_ms", report->max_pause_ms);
    json_object_set_new(object, "pause_kept",
                        report->pause_ms < 0 ? json_null() : json_boolean(!is_pause_longer(report)));
    set_pause(object, "frozen_ms", report->frozen_ms);
    set_pause(object, "snapshot_frozen_ms", report->snapshot_frozen_ms);
    set_rate(object, "dirty_rate", report->dirty_rate);
    set_rate(object, "ship_rate", report->ship_rate);
    json_object_set_new(object, "on_busy", report->on_busy ? json_string(report->on_busy) : json_null());
    json_object_set_new(object, "write_limit",
                        report->write_limit ? json_integer((json_int_t)report->write_limit) : json_null());
    json_object_set_new(object, "resumed", json_boolean(report->resumed));
    json_object_set_new(object, "disks", disks);
    set_string(object, "source", report->source);
    set_string(object, "receipt", main_receipt(report));
    json_object_set_new(object, "failback", failback_to_json(report));
    json_object_set_new(object, "plan", output_json_strings(report->plan));
    set_integer(object, "space_needed", report->space_needed);
    set_integer(object, "space_available", report->space_available);
    json_object_set_new(object, "forecast", forecast_to_json(&report->forecast));
    if (failure)
        set_string(object, "error", failure->message);
    if (report->advice)
        set_string(object, "advice", report->advice);
    return object;
}

/* ---- text ----------------------------------------------------------------------------------------- */

/* What a server returns may come from its memory; only of this host's media is more known. */
static char *verified_text(const struct job_report *report)
{
    const struct disk_report *disk = report->disks->len ? report->disks->pdata[0] : NULL;
    bool remote = disk && storage_name_is_uri(disk->target);
    bool by_digests = remote && name_has_files(disk->target);

    if (report->verified == VERIFY_NONE)
        return g_strdup("not verified (--verify=none); the digests are those of what was read");
    return g_strdup_printf("all that was written was %s%s",
                           by_digests
                               ? "read from its medium by the agent, and has the same digests here and there"
                           : remote ? "read back from the server and compared"
                                    : "read back from the medium and compared",
                           report->verified == VERIFY_FULL ? "; the finished image was proved" : "");
}

static void print_disk(const struct disk_report *disk, const char *what)
{
    const struct copy_counters *counters = &disk->counters;
    g_autofree char *size = units_format_size(disk->virtual_size);
    g_autofree char *read = units_format_size(counters->bytes_read);
    g_autofree char *written = units_format_size(counters->bytes_written);
    g_autofree char *cloned = units_format_size(counters->bytes_cloned);
    g_autofree char *zero = units_format_size(counters->bytes_zero);
    g_autofree char *wire = units_format_size(disk->bytes_wire);
    g_autofree char *seeded = units_format_size(disk->bytes_seeded);
    g_autofree char *before = units_format_size(disk->source_allocated);
    g_autofree char *after = units_format_size(disk->target_allocated);

    output_pair(what, "%s (%s)", disk->source, disk->source_format);
    output_pair("to", "%s (%s), %s", disk->target, disk->target_format, size);
    if (counters->bytes_cloned)
        output_pair("data", "%s read, %s written, %s shared with the source, %s zero", read, written, cloned,
                    zero);
    else
        output_pair("data", "%s read, %s written, %s zero", read, written, zero);
    if (disk->bytes_seeded)
        output_pair("sent", "%s; %s were in the seed", wire, seeded);
    output_pair("allocated", "%s in the source, %s in the target", before, after);
    for (guint i = 0; disk->bad && i < disk->bad->len; i++) {
        const struct copy_range *range = &g_array_index(disk->bad, struct copy_range, i);
        output_pair("unreadable", "offset %" PRIu64 ", length %" PRIu64 ": zeros in the target",
                    range->offset, range->length);
    }
    if (disk->root)
        output_pair("digest", "%s %s%s", digest_algorithm_name(disk->algorithm), disk->root,
                    disk->layer ? " (of this layer alone)" : "");
    if (disk->receipt)
        output_pair("receipt", "%s", disk->receipt);
}

static void print_pause(const struct job_report *report)
{
    g_autofree char *forecast = report->pause_forecast_ms >= 0
                                    ? g_strdup_printf("forecast %.1f, ", report->pause_forecast_ms)
                                    : g_strdup("");

    if (report->pause_ms >= 0)
        output_pair("pause", "%.1f ms (%sallowed %.0f%s), after %u passes", report->pause_ms, forecast,
                    report->max_pause_ms, is_pause_longer(report) ? ": longer than that" : "",
                    report->passes);
    else if (strcmp(report->method, "mirror") == 0)
        output_pair("pause", "none for the switch, after %u passes", report->passes);
    if (report->snapshot_pause_ms >= 0)
        output_pair("snapshot", "%.1f ms of pause", report->snapshot_pause_ms);
    if (report->frozen_ms >= 0)
        output_pair("frozen", "the guest's file systems: %.0f ms for the switch, %.0f ms for the snapshot",
                    report->frozen_ms, MAX(report->snapshot_frozen_ms, 0));
}

static const char *verb(const struct job_report *report)
{
    return strcmp(report->command, "copy") == 0           ? "copied"
           : strcmp(report->command, "job failback") == 0 ? "brought back"
                                                          : "moved";
}

static void print_failback(const struct job_report *report)
{
    g_autoptr(GDateTime) until = g_date_time_new_from_unix_local(report->failback_until / G_USEC_PER_SEC);
    g_autofree char *text = until ? g_date_time_format(until, "%Y-%m-%d %H:%M:%S") : NULL;

    if (report->failback_until == 0)
        return;
    output_pair("failback", "until %s: blockmig job failback %s", text ? text : "-", report->id);
    output_pair("finish", "by itself then; at once: blockmig job finish %s", report->id);
}

static void print_end(const struct job_report *report)
{
    g_autofree char *time = units_format_duration((int64_t)(report->duration_s * G_USEC_PER_SEC));
    g_autofree char *verified = verified_text(report);
    /* The time is that of the last run, so are these bytes. */
    g_autofree char *rate =
        units_format_rate(report->duration_s > 0 ? report->bytes_read / report->duration_s : 0);
    output_pair("verified", "%s", verified);
    output_pair("time", "%s%s%s%s%s", time, report->bytes_read ? ", " : "", report->bytes_read ? rate : "",
                report->bytes_read ? " read" : "", report->resumed ? ", continued from an earlier run" : "");
    print_pause(report);
    if (report->write_limit) {
        g_autofree char *limit = units_format_rate((double)report->write_limit);

        output_pair("too busy", "the machine's writes were limited to %s until the switch", limit);
    } else if (report->on_busy) {
        output_pair("too busy", "%s", report->on_busy);
    }
    output_pair("source", "%s", report->source);
    print_failback(report);
}

static void print_plan(const struct job_report *report)
{
    for (guint i = 0; report->plan && i < report->plan->len; i++) {
        g_autofree char *line = output_printable(report->plan->pdata[i]);
        printf("%s\n", line);
    }
}

static void print_report(const struct options *options, const struct job_report *report, bool dry_run)
{
    if (options->quiet)
        return;
    if (dry_run || options->verbose)
        print_plan(report);
    /* Salvage ends in an error, but there is a target to tell of. */
    bool finished = strcmp(report->result, "done") == 0;
    for (guint i = 0; !dry_run && report->disks && i < report->disks->len; i++) {
        const struct disk_report *disk = report->disks->pdata[i];
        if (finished || (disk->bad && disk->bad->len))
            print_disk(disk, verb(report));
    }
    if (finished && !dry_run && report->disks)
        print_end(report);
}

static int tell_failure(const struct options *options, const struct job_report *report, const GError *failure)
{
    output_message("%s", failure->message);
    if (report->advice && options->state_dir)
        output_message("%s (with --state-dir %s)", report->advice, options->state_dir);
    else if (report->advice)
        output_message("%s", report->advice);
    return command_exit_status(COMMAND_COPY, failure);
}

/* What runs and tells; ends with its display. */
typedef struct job_report *(*run_fn)(const void *request, const char *id, const struct job_listener *listener,
                                     bool dry_run, GError **error);

static struct job_report *run_copy(const void *request, const char *id, const struct job_listener *listener,
                                   bool dry_run, GError **error)
{
    return copy_job_run(request, listener, dry_run, error);
}

static struct job_report *run_move(const void *request, const char *id, const struct job_listener *listener,
                                   bool dry_run, GError **error)
{
    return id ? move_job_resume(request, id, listener, error)
              : move_job_run(request, listener, dry_run, error);
}

static struct job_report *run_cancel(const void *request, const char *id, const struct job_listener *listener,
                                     bool dry_run, GError **error)
{
    return move_job_cancel(request, id, listener, error);
}

static struct job_report *run_window(const void *request, const char *id, const struct job_listener *listener,
                                     bool dry_run, GError **error)
{
    return window_job_run(request, listener, error);
}

static struct job_report *run_shown(const struct options *options, run_fn function, const void *request,
                                    const char *id, bool dry_run, GError **failure)
{
    struct progress *progress = progress_new(options);
    const struct job_listener listener = {
        .phase = on_phase,
        .progress = on_progress,
        .pace = on_pace,
        .notice = on_notice,
        .cancelled = signals_cancelled,
        .opaque = progress,
    };

    signals_install();
    struct job_report *report = function(request, id, &listener, dry_run, failure);
    progress_end(progress, !*failure);
    return report;
}

static int run(const struct options *options, run_fn function, const void *request, const char *id,
               bool dry_run, GError **error)
{
    g_autoptr(GError) failure = NULL;
    g_autoptr(job_report_t) report = run_shown(options, function, request, id, dry_run, &failure);
    bool printed = true;
    if (options->json)
        printed = output_json(report_to_json(report, failure), failure ? NULL : error);
    else
        print_report(options, report, dry_run);
    if (!printed && !failure)
        return 0;
    return failure ? tell_failure(options, report, failure) : 0;
}

int job_output_copy(const struct options *options, const struct copy_request *request, bool dry_run,
                    GError **error)
{
    if (!confine_copy(options, request, dry_run, error))
        return 0;
    return run(options, run_copy, request, NULL, dry_run, error);
}

int job_output_move(const struct options *options, const struct move_request *request, bool dry_run,
                    GError **error)
{
    return run(options, run_move, request, NULL, dry_run, error);
}

int job_output_resumed_move(const struct options *options, const struct move_request *request, const char *id,
                            GError **error)
{
    return run(options, run_move, request, id, false, error);
}

bool job_output_cancel_move(const struct options *options, const struct move_request *request, const char *id,
                            GError **error)
{
    GError *failure = NULL;
    g_autoptr(job_report_t) report = run_shown(options, run_cancel, request, id, false, &failure);
    if (failure && report->advice)
        output_message("%s", report->advice);
    if (failure)
        g_propagate_error(error, failure);
    return !failure;
}

int job_output_window(const struct options *options, const struct window_request *request, GError **error)
{
    return run(options, run_window, request, NULL, false, error);
}
