/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The prove phase: the machine writes to the overlay on the target, so the whole source chain and the merged
 * target are frozen.  Chunks that an overlay touched are digested again from the source; then the whole
 * target is read past the page cache and must have the same digests.  If it has not, the machine goes back at
 * once; by the method mirror it has not been there yet.
 */
#include "blockmig/migrate/live-watch.h"
#include "blockmig/storage/file.h"

#include <glib/gstdio.h>
#include <string.h>

#define MAP_BATCH 1024
#define MAX_GAP   16 /* chunks; ranges nearer to each other are read in one go */

/* Marks the chunks in which some overlay holds anything. */
static bool mark_touched(struct chain *overlays, uint8_t *touched, GError **error)
{
    g_autofree struct extent *extents = g_new(struct extent, MAP_BATCH);
    uint64_t offset = 0;
    size_t count;

    while (offset < overlays->size) {
        if (!chain_map(overlays, offset, overlays->size - offset, extents, MAP_BATCH, &count, error))
            return false;
        for (size_t i = 0; i < count; i++)
            if (extents[i].status != EXTENT_HOLE)
                memset(touched + extents[i].offset / DIGEST_CHUNK_SIZE, 1,
                       (extent_end(&extents[i]) - 1) / DIGEST_CHUNK_SIZE -
                           extents[i].offset / DIGEST_CHUNK_SIZE + 1);
        offset = extent_end(&extents[count - 1]);
    }
    return true;
}

static bool digest_range(struct live_job *job, struct live_disk *disk, struct chain *source, uint64_t from,
                         uint64_t to, GError **error)
{
    g_autoptr(digest_table_t) table = digest_table_new(job->request->digest, disk->size);
    struct copy_options options = {0};
    struct copy_result result = {0};
    bool ok;

    live_copy_options(job, &options);
    options.progress = NULL;
    options.start = from * DIGEST_CHUNK_SIZE;
    options.end = MIN(to * DIGEST_CHUNK_SIZE, disk->size);
    options.digests = table;
    ok = copy_digest(source, &options, &result, error);
    copy_result_clear(&result);
    for (uint64_t chunk = from; ok && chunk < to; chunk++)
        digest_table_set(disk->done.digests, chunk, digest_table_get(table, chunk));
    return ok;
}

static bool digest_touched(struct live_job *job, struct live_disk *disk, GError **error)
{
    bool all = !disk->done.digests; /* an earlier run has taken what it knew with it */
    g_autofree uint8_t *touched = NULL;
    g_autoptr(chain_t) overlays = live_open_overlays(disk, 1, error);
    g_autoptr(chain_t) source = overlays ? live_open_source(disk, error) : NULL;

    uint64_t chunks;

    if (all)
        disk->done.digests = digest_table_new(job->request->digest, disk->size);
    chunks = digest_table_chunks(disk->done.digests);
    touched = g_malloc0(chunks);
    if (!source || (all && !digest_range(job, disk, source, 0, chunks, error)) ||
        (!all && !mark_touched(overlays, touched, error)))
        return false;
    for (uint64_t chunk = 0; chunk < chunks;) {
        uint64_t last = chunk;

        if (!touched[chunk]) {
            chunk++;
            continue;
        }
        for (uint64_t next = chunk; next < chunks && next - last <= MAX_GAP; next++)
            if (touched[next])
                last = next;
        if (!digest_range(job, disk, source, chunk, last + 1, error))
            return false;
        chunk = last + 1;
    }
    return true;
}

static struct chain *open_target(const struct live_job *job, const struct live_disk *disk, GError **error)
{
    return job->window ? live_open_down_from(disk->other, disk->merged, error)
                       : live_open_target(disk, error);
}

static bool compare_digests(const struct live_disk *disk, const struct digest_table *target, GError **error)
{
    size_t length = digest_length(digest_table_algorithm(target));

    for (uint64_t chunk = 0; chunk < digest_table_chunks(disk->done.digests); chunk++) {
        if (memcmp(digest_table_get(disk->done.digests, chunk), digest_table_get(target, chunk), length) == 0)
            continue;
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_DIFFERENT,
                    "%s differs from the source in the %" PRIu64 " bytes at %" PRIu64, disk->report->target,
                    (uint64_t)DIGEST_CHUNK_SIZE, chunk * DIGEST_CHUNK_SIZE);
        return false;
    }
    return true;
}

/* What a larger device shows behind the disk. */
static bool compare_rest(const struct live_disk *disk, struct chain *target, GError **error)
{
    g_autofree uint8_t *buffer = g_malloc(DIGEST_CHUNK_SIZE);
    size_t length;

    for (uint64_t offset = disk->size; offset < target->size; offset += length) {
        length = MIN(target->size - offset, DIGEST_CHUNK_SIZE);
        if (!chain_read(target, buffer, length, offset, error))
            return false;
        if (buffer[0] || memcmp(buffer, buffer + 1, length - 1) != 0) {
            g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_DIFFERENT,
                        "%s is not zero in the %zu bytes at %" PRIu64 ", behind the end of the disk",
                        disk->target_path, length, offset);
            return false;
        }
    }
    return true;
}

static bool compare_target(struct live_job *job, struct live_disk *disk, GError **error)
{
    g_autoptr(digest_table_t) table = digest_table_new(job->request->digest, disk->size);
    g_autoptr(chain_t) target = open_target(job, disk, error);
    struct copy_options options = {0};
    struct copy_result result = {0};
    bool ok;

    if (!target)
        return false;
    live_copy_options(job, &options);
    options.digests = table;
    options.end = disk->size;
    ok = copy_digest(target, &options, &result, error);
    copy_result_clear(&result);
    return ok && compare_digests(disk, table, error) && compare_rest(disk, target, error);
}

bool live_write_receipt(struct live_job *job, struct disk_report *report, unsigned index,
                        struct digest_table *digests, GError **error)
{
    return job_write_receipt(&job->base, report, index, job->window ? "-back" : "", digests, error);
}

static bool prove_disk(struct live_job *job, struct live_disk *disk, GError **error)
{
    live_tell(job, "%s", disk->vm->name);
    if (!digest_touched(job, disk, error))
        return false;
    if (job->request->verify == VERIFY_FULL && !compare_target(job, disk, error))
        return false;
    if (!live_write_receipt(job, disk->report, disk->index, disk->done.digests, error))
        return false;
    /* The journal's disk is that of the way there. */
    return job->window ? job_event(&job->base, "result", error, "receipt %s", disk->report->receipt)
                       : live_save_disk(job, disk, error);
}

/* The target is wrong, or has no room for what the machine writes. */
static bool must_go_back(const GError *error)
{
    return g_error_matches(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_DIFFERENT) ||
           g_error_matches(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_PARKED);
}

bool live_prove(struct job *base, GError **error)
{
    struct live_job *job = live_of(base);
    g_autoptr(GError) local = NULL, worse = NULL;

    if (job->give_up)
        return live_stop_settling(job, error) && live_fail_back(job, error) &&
               blockmig_fail(error, BLOCKMIG_ERROR_CANCELLED, "job %s is given up", base->record->id);
    if (!job->window && live_disk_at(job, 0)->other)
        g_set_error(&local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_DIFFERENT,
                    "%s differs from the source, as an earlier run has found",
                    live_disk_at(job, 0)->target_path);
    live_share_begin(job);
    for (guint i = 0; !local && i < job->disks->len; i++)
        prove_disk(job, live_disk_at(job, i), &local);
    live_share_end(job);
    if (!local && job->pivoted && !job->window && job->request->keep_failback)
        base->go_on_at = "window";
    if (!local)
        return true;
    if (!job->pivoted) {
        g_propagate_error(error, g_steal_pointer(&local));
        return false;
    }
    if (live_watch_trouble(job) && !live_watch_lost(job)) {
        g_error_free(local);
        local = live_watch_take_trouble(job);
    }
    if (!must_go_back(local)) {
        base->report->advice =
            g_strdup("the machine runs on the target; it could not be proved: the source is "
                     "kept as it was at the switch");
    } else if (!job->vm) {
        base->report->advice =
            g_strdup("the machine ran on the target, which differs; both are kept as they are");
    } else if (!live_fail_back(job, &worse)) {
        base->report->advice =
            g_strdup_printf("the machine still runs on the target and could not be brought back "
                            "(%s); everything is kept",
                            worse->message);
    }
    g_propagate_error(error, g_steal_pointer(&local));
    return false;
}
