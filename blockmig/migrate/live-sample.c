/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The sample of a plan: what the machine writes, how fast a copy would be, and what a move would make of
 * both.
 *
 * In the first half of the time part of the largest image file is copied as a move would do it, with all that
 * is read back, into a file without a name on the target, of which nothing is left; then the machine is only
 * watched. The passes are gone through with these figures in the place of those that a move measures, by the
 * same functions.
 *
 * How often the same blocks are written again cannot be seen from outside, so what is forecast for overlays
 * and passes is what there will be at most.
 */
#include "blockmig/migrate/live-watch.h"
#include "blockmig/migrate/space.h"
#include "blockmig/migrate/units.h"
#include "blockmig/storage/file.h"
#include "blockmig/storage/uri.h"

#include <glib/gstdio.h>

#define TICK        (G_USEC_PER_SEC / 20)
#define BLOCK       4096                  /* bytes that one write of the guest takes in an overlay at least */
#define MOST        (UINT64_C(512) << 20) /* bytes that are copied */
#define TRIPS       9
#define LAYER_TRIPS 12 /* questions to the hypervisor that putting one layer on is (measured) */
#define ROUNDS      3
#define SCATTERED   128 /* blocks in a round, far from each other */
#define DISTANCE    (UINT64_C(256) << 10)
#define COPY_FIXED  0.003                 /* seconds that the shortest copy takes, besides its flush */
#define LAYER_BYTES (UINT64_C(512) << 10) /* of tables in an overlay */
#define AFTERWARDS  1.0                   /* seconds for committing and cleaning up, besides the proof */

struct sample {
    struct live_job *job;
    int64_t until;     /* monotonic */
    double dirty_rate; /* bytes per second */
    double writes;     /* per second */
    double copy_rate;  /* bytes per second */
    double
        scattered_rate; /* of blocks that are far from each other; passes do not leave the machine a share */
    double flush_time, trip_time;
};

/* ---- the machine ------------------------------------------------------------------------------------- */

static bool count_writes(const struct live_job *job, double *bytes, double *writes, GError **error)
{
    *bytes = *writes = 0;
    for (guint i = 0; i < job->disks->len; i++) {
        struct vm_stats stats;

        if (!vm_disk_stats(job->vm, live_disk_at(job, i)->vm->qdev, &stats, error))
            return false;
        *writes += (double)stats.write_operations;
        *bytes += MAX((double)stats.write_bytes, (double)stats.write_operations * BLOCK);
    }
    return true;
}

static bool watch_writes(struct sample *sample, int64_t until, GError **error)
{
    int64_t begin = g_get_monotonic_time();
    double bytes, writes, more_bytes, more_writes, seconds;

    if (!count_writes(sample->job, &bytes, &writes, error))
        return false;
    while (g_get_monotonic_time() < until) {
        if (live_is_cancelled(sample->job, error))
            return false;
        g_usleep(TICK);
    }
    if (!count_writes(sample->job, &more_bytes, &more_writes, error))
        return false;
    seconds = (double)(g_get_monotonic_time() - begin) / G_USEC_PER_SEC;
    sample->dirty_rate = (more_bytes - bytes) / seconds;
    sample->writes = (more_writes - writes) / seconds;
    return true;
}

static int by_size(gconstpointer a, gconstpointer b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

static double median(double *values, size_t count)
{
    qsort(values, count, sizeof(*values), by_size);
    return values[count / 2];
}

static bool measure_trips(struct sample *sample, GError **error)
{
    double times[TRIPS];

    for (unsigned i = 0; i < TRIPS; i++) {
        int64_t begin = g_get_monotonic_time();
        bool running;

        if (!vm_status(sample->job->vm, &running, NULL, error))
            return false;
        times[i] = (double)(g_get_monotonic_time() - begin) / G_USEC_PER_SEC;
    }
    sample->trip_time = median(times, TRIPS);
    return true;
}

/* ---- the copy ---------------------------------------------------------------------------------------- */

static bool copied_enough(void *opaque)
{
    const struct sample *sample = opaque;

    return g_get_monotonic_time() > sample->until || live_is_cancelled(sample->job, NULL);
}

static struct chain *open_file(const char *path, GError **error)
{
    struct storage *storage = live_storage_open(path, FILE_NO_LOCK, NULL, NULL, error);
    struct image *image = storage ? image_open(storage, &format_raw, false, error) : NULL;

    return image ? chain_new_single(image, false) : NULL;
}

/* A file on the target without a name. */
static struct image *open_scratch(const struct live_disk *disk, uint64_t size, GError **error)
{
    g_autofree char *path = g_strconcat(disk->target_path, ".blockmig-sample", NULL);
    struct storage *storage = storage_file_open(path, FILE_WRITE | FILE_CREATE, NULL, NULL, error);
    struct image_create_options options = {.size = size};

    if (!storage)
        return NULL;
    g_unlink(path);
    if (image_create(storage, &format_raw, &options, error))
        return image_open(storage, &format_raw, true, error);
    storage_close(storage);
    return NULL;
}

static double since(int64_t begin)
{
    return (double)(g_get_monotonic_time() - begin) / G_USEC_PER_SEC;
}

/* Writes blocks as a pass does and makes them durable; *flush: what of the time that took. */
static bool write_scattered(struct storage *storage, unsigned round, double *all, double *flush,
                            GError **error)
{
    char block[BLOCK] = {(char)(round + 1)};
    int64_t begin = g_get_monotonic_time(), written;

    for (unsigned i = 0; i < SCATTERED; i++) {
        uint64_t offset = i * DISTANCE + (uint64_t)round * BLOCK;

        if (!storage_pwrite(storage, block, BLOCK, offset, error))
            return false;
    }
    written = g_get_monotonic_time();
    if (!storage_flush(storage, error))
        return false;
    *flush = since(written);
    for (unsigned i = 0; i < SCATTERED; i++)
        if (!storage_pread(storage, block, BLOCK, i * DISTANCE + (uint64_t)round * BLOCK, error))
            return false;
    *all = since(begin);
    return true;
}

static bool measure_small(struct sample *sample, struct storage *storage, GError **error)
{
    double all[ROUNDS], flush[ROUNDS];

    for (unsigned i = 0; i < ROUNDS; i++)
        if (!write_scattered(storage, i, &all[i], &flush[i], error))
            return false;
    sample->scattered_rate = (double)SCATTERED * BLOCK / median(all, ROUNDS);
    sample->flush_time = median(flush, ROUNDS);
    return true;
}

/* The file is copied as it lies there, whatever its format: the machine changes it meanwhile, so its tables
 * mean nothing.  Up to MOST of it, or half of what is not spoken for on the target. */
static bool measure_copy(struct sample *sample, const struct live_disk *disk, const char *path,
                         GError **error)
{
    struct live_job *job = sample->job;
    struct job_report *report = job->base.report;
    uint64_t spare = report->space_available - report->space_needed;
    g_autoptr(chain_t) source = open_file(path, error);
    g_autoptr(image_t) scratch = source ? open_scratch(disk, source->size, error) : NULL;
    g_autoptr(digest_table_t) digests = source ? digest_table_new(job->request->digest, source->size) : NULL;
    struct copy_options options = {.read_back = job->request->verify != VERIFY_NONE,
                                   .end = (MIN(MOST, spare / 2) + 1) & ~(uint64_t)(DIGEST_CHUNK_SIZE - 1),
                                   .digests = digests,
                                   .throttle = job->throttle,
                                   .cancelled = copied_enough,
                                   .opaque = sample};
    struct copy_result result = {0};
    GError *local = NULL;
    int64_t begin;
    bool ok;

    if (!scratch)
        return false;
    options.end = options.end < source->size ? options.end : 0;
    begin = g_get_monotonic_time();
    live_share_begin(job);
    ok = copy_run(source, scratch, &options, &result, &local);
    live_share_end(job);
    sample->copy_rate = (double)MAX(result.counters.bytes_read, result.counters.data_done) * G_USEC_PER_SEC /
                        (double)MAX(g_get_monotonic_time() - begin, 1);
    copy_result_clear(&result);
    if (!ok && !g_error_matches(local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_CANCELLED)) {
        g_propagate_error(error, local);
        return false;
    }
    g_clear_error(&local);
    return measure_small(sample, scratch->storage, error);
}

/* Of all layers of all disks. */
static const char *largest_file(const struct live_job *job, const struct live_disk **disk)
{
    const struct vm_layer *largest = g_ptr_array_index(live_disk_at(job, 0)->vm->layers, 0);

    *disk = live_disk_at(job, 0);
    for (guint i = 0; i < job->disks->len; i++) {
        const GPtrArray *layers = live_disk_at(job, i)->vm->layers;

        for (guint k = 0; k < layers->len; k++) {
            const struct vm_layer *layer = g_ptr_array_index(layers, k);

            if (layer->allocated <= largest->allocated)
                continue;
            largest = layer;
            *disk = live_disk_at(job, i);
        }
    }
    return largest->filename;
}

/* ---- what follows ------------------------------------------------------------------------------------ */

static uint64_t written_in(const struct sample *sample, double seconds)
{
    uint64_t most = 0;

    for (guint i = 0; i < sample->job->disks->len; i++)
        most += live_disk_at(sample->job, i)->size;
    return (uint64_t)MIN(sample->dirty_rate * seconds, (double)most);
}

static void tell_pass(const struct live_job *job, unsigned pass, const struct live_shipment *shipment)
{
    g_autofree char *size = units_format_size(shipment->bytes);

    job_plan(&job->base, "  pass %u: at most %s in %.0f ms", pass, size, shipment->time * 1000);
}

/* The passes as live_converge() would go through them. */
static void forecast_passes(const struct sample *sample, double base_time, struct job_forecast *forecast)
{
    const struct live_job *job = sample->job;
    double layer_time = sample->trip_time * LAYER_TRIPS * job->disks->len, written = base_time;
    struct live_pace pace = {.layer_time = layer_time};
    double best = G_MAXDOUBLE;

    for (unsigned pass = 1; pass <= LIVE_MAX_PASSES; pass++) {
        struct live_shipment shipment = {.bytes = written_in(sample, written)};
        uint64_t before = pace.ship_bytes;

        shipment.time = (double)shipment.bytes / sample->scattered_rate +
                        (COPY_FIXED + sample->flush_time) * job->disks->len;
        live_pace_measure(&pace, &shipment, written, shipment.time);
        tell_pass(job, pass + 1, &shipment);
        forecast->source_bytes += shipment.bytes + LAYER_BYTES * job->disks->len;
        forecast->seconds += shipment.time + layer_time;
        forecast->passes = pass + 1;
        best = MIN(best, pace.forecast);
        written = shipment.time + layer_time;
        if (pass > 1 && live_pace_is_settled(&pace, before, best))
            break;
    }
    job->base.report->pause_forecast_ms = pace.forecast * 1000;
}

static void tell_pause(const struct live_job *job)
{
    double pause = job->base.report->pause_forecast_ms;

    if (pause <= job->request->max_pause)
        job_plan(&job->base, "  then a pause of about %.0f ms; %u ms are allowed", pause,
                 job->request->max_pause);
    else
        job_plan(&job->base,
                 "  then a pause of about %.0f ms, but only %u ms are allowed: the machine would be too busy",
                 pause, job->request->max_pause);
}

static void tell_space(const struct live_job *job, const struct job_forecast *forecast)
{
    g_autofree char *source = units_format_size(forecast->source_bytes);
    g_autofree char *target = units_format_size(forecast->target_bytes);
    g_autofree char *time = units_format_duration((int64_t)(forecast->seconds * G_USEC_PER_SEC));

    job_plan(&job->base,
             "  in all about %s; at most %s of overlays beside the source, at most %s on the target", time,
             source, target);
}

static void tell_sample(const struct sample *sample, uint64_t data, double base_time)
{
    g_autofree char *dirty = units_format_rate(sample->dirty_rate);
    g_autofree char *copy = units_format_rate(sample->copy_rate), *size = units_format_size(data);

    job_plan(&sample->job->base, "forecast, from a sample of %.1f s:", sample->job->request->sample / 1000.0);
    job_plan(&sample->job->base,
             "  the machine writes %s (%.0f writes/s), the copy makes %s, its monitor answers in %.1f ms",
             dirty, sample->writes, copy, sample->trip_time * 1000);
    job_plan(&sample->job->base, "  pass 1: at most %s in %.1f s", size, base_time);
}

static void forecast_move(const struct sample *sample)
{
    const struct live_job *job = sample->job;
    struct job_forecast *forecast = &job->base.report->forecast;
    uint64_t data = 0;
    double base_time;

    for (guint i = 0; i < job->disks->len; i++)
        data += MIN(live_disk_at(job, i)->report->source_allocated, live_disk_at(job, i)->size);
    base_time = (double)data / sample->copy_rate;
    tell_sample(sample, data, base_time);
    *forecast = (struct job_forecast){.dirty_rate = sample->dirty_rate, .copy_rate = sample->copy_rate};
    forecast_passes(sample, base_time, forecast);
    /* The proof reads what the copy has read and written. */
    forecast->seconds += 2 * base_time + AFTERWARDS;
    forecast->target_bytes = job->base.report->space_needed + written_in(sample, base_time);
    tell_pause(job);
    tell_space(job, forecast);
}

bool live_sample(struct live_job *job, GError **error)
{
    int64_t length = (int64_t)job->request->sample * 1000, begin = g_get_monotonic_time();
    struct sample sample = {.job = job, .until = begin + length / 2};
    const struct live_disk *disk = NULL;
    g_autoptr(GError) local = NULL;
    const char *path;

    path = largest_file(job, &disk);
    measure_copy(&sample, disk, path, &local);
    if (!measure_trips(&sample, error) || !watch_writes(&sample, begin + length, error))
        return false;
    if (local)
        job_plan(&job->base, "no forecast: %s", local->message);
    else if (sample.copy_rate > 0)
        forecast_move(&sample);
    else
        job_plan(&job->base, "no forecast: nothing could be copied in the time of the sample");
    return true;
}
