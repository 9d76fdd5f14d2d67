/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The proof of a domain's disks while it runs again: the source's layers and the merged image, both frozen,
 * byte for byte; where the target's host can tell whether its medium holds what we have, nothing is sent
 * back.
 */
#include "blockmig/migrate/live.h"
#include "blockmig/migrate/machine.h"
#include "blockmig/storage/file.h"
#include "blockmig/storage/uri.h"
#include "formats/bytes.h"
#include "formats/xxh3.h"

#include <glib/gstdio.h>
#include <string.h>

#define WORKERS       4
#define PROGRESS_STEP (64 * DIGEST_CHUNK_SIZE)
#define REST_TICK     (G_USEC_PER_SEC / 100)

/* A part of the disk: what the source has, and where the target has it. */
struct piece {
    struct proof *proof;
    uint64_t offset;
    size_t length;
    struct extent *theirs;
    size_t count;
    uint8_t *data;
};

struct proof {
    struct machine_job *job;
    struct chain *target;
    const char *name; /* of it */
    GMutex lock;
    GCond done;
    unsigned pending;
    GError *error;
};

static void fail(struct proof *proof, GError *error)
{
    g_mutex_lock(&proof->lock);
    if (proof->error)
        g_error_free(error);
    else
        proof->error = error;
    g_mutex_unlock(&proof->lock);
}

static bool check_extent(const struct piece *piece, const struct extent *extent, GError **error)
{
    const uint8_t *data = piece->data + (extent->offset - piece->offset);
    g_autofree uint8_t *theirs = NULL;
    bool same;

    if (extent->status == EXTENT_DATA && extent->storage->ops->check)
        return storage_check(extent->storage, data, (size_t)extent->length, extent->host_offset, error);
    if (extent->status == EXTENT_ZERO) {
        same = is_zero(data, (size_t)extent->length);
    } else {
        theirs = g_malloc((size_t)extent->length);
        if (!chain_read_extent(piece->proof->target, extent, theirs, error))
            return false;
        same = memcmp(theirs, data, (size_t)extent->length) == 0;
    }
    return same ||
           blockmig_fail(error, BLOCKMIG_ERROR_DIFFERENT, "bytes %" PRIu64 "+%" PRIu64 " of the disk differ",
                         extent->offset, extent->length);
}

static void check_piece(gpointer data, gpointer unused)
{
    struct piece *piece = data;
    struct proof *proof = piece->proof;
    GError *local = NULL;

    for (size_t i = 0; i < piece->count && !local; i++)
        check_extent(piece, &piece->theirs[i], &local);
    if (local) {
        g_prefix_error(&local, "%s: ", proof->name);
        fail(proof, local);
    }
    g_free(piece->theirs);
    g_free(piece->data);
    g_free(piece);
    g_mutex_lock(&proof->lock);
    proof->pending--;
    g_cond_signal(&proof->done);
    g_mutex_unlock(&proof->lock);
}

static bool wait_for_room(struct proof *proof, unsigned most)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&proof->lock);

    while (proof->pending > most)
        g_cond_wait(&proof->done, &proof->lock);
    return !proof->error;
}

/* To where the first extent ends, if that is of zeros. */
static bool skip_zeros(struct chain *chain, uint64_t *offset, GError **error)
{
    struct extent extent;
    size_t count;

    if (!chain_map(chain, *offset, chain->size - *offset, &extent, 1, &count, error))
        return false;
    if (extent.status == EXTENT_ZERO)
        *offset = extent_end(&extent);
    return true;
}

/* Nothing on both sides is proved by the maps alone; large disks are mostly that. */
static bool skip_empty(const struct proof *proof, struct chain *source, uint64_t *offset, GError **error)
{
    uint64_t ours = *offset, theirs = *offset;

    if (!skip_zeros(source, &ours, error) || (ours > *offset && !skip_zeros(proof->target, &theirs, error)))
        return false;
    *offset = MIN(ours, theirs) / DIGEST_CHUNK_SIZE * DIGEST_CHUNK_SIZE;
    return true;
}

static bool is_empty(const struct extent *extents, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (extents[i].status != EXTENT_ZERO)
            return false;
    return true;
}

static bool map_piece(struct chain *chain, uint64_t offset, size_t length, GArray *extents, GError **error)
{
    struct extent batch[64];
    size_t count;

    for (uint64_t at = offset; at < offset + length;) {
        if (!chain_map(chain, at, offset + length - at, batch, G_N_ELEMENTS(batch), &count, error))
            return false;
        g_array_append_vals(extents, batch, (guint)count);
        at = extent_end(&batch[count - 1]);
    }
    return true;
}

static bool push_piece(struct proof *proof, struct chain *source, GThreadPool *pool, uint64_t offset,
                       size_t length, struct digest_table *digests, GError **error)
{
    g_autoptr(GArray) ours = g_array_new(FALSE, FALSE, sizeof(struct extent));
    g_autoptr(GArray) theirs = g_array_new(FALSE, FALSE, sizeof(struct extent));
    uint8_t digest[DIGEST_MAX_LENGTH];
    struct piece *piece;

    if (!map_piece(source, offset, length, ours, error) ||
        !map_piece(proof->target, offset, length, theirs, error))
        return false;
    if (is_empty((struct extent *)ours->data, ours->len) &&
        is_empty((struct extent *)theirs->data, theirs->len))
        return true;
    piece = g_new0(struct piece, 1);
    piece->proof = proof;
    piece->offset = offset;
    piece->length = length;
    piece->data = g_malloc(length);
    if (!chain_read(source, piece->data, length, offset, error)) {
        g_free(piece->data);
        g_free(piece);
        return false;
    }
    if (!is_zero(piece->data, length)) {
        digest_compute(digest_table_algorithm(digests), piece->data, length, digest);
        digest_table_set(digests, offset / DIGEST_CHUNK_SIZE, digest);
    }
    piece->count = theirs->len;
    piece->theirs = (struct extent *)g_array_free(g_steal_pointer(&theirs), FALSE);
    g_mutex_lock(&proof->lock);
    proof->pending++;
    g_mutex_unlock(&proof->lock);
    g_thread_pool_push(pool, piece, NULL);
    return true;
}

/* Sixteen pieces keep the workers busy; beside a machine that shall keep its share they are fewer, none in a
 * rest. */
static bool wait_for_turn(struct proof *proof, GError **error)
{
    size_t window;

    while (!machine_is_cancelled(proof->job, error)) {
        window = throttle_window(proof->job->throttle);
        if (window > 0)
            return wait_for_room(proof, (unsigned)CLAMP(window / DIGEST_CHUNK_SIZE, 1, 4 * WORKERS) - 1);
        g_usleep(REST_TICK);
    }
    return false;
}

static bool run_proof(struct proof *proof, struct chain *source, struct digest_table *digests, GError **error)
{
    GThreadPool *pool = g_thread_pool_new(check_piece, NULL, WORKERS, TRUE, NULL);
    uint64_t size = source->size, offset = 0, told = 0;
    struct copy_options how = {0};
    bool ok = true;

    machine_copy_options(proof->job, &how);
    while (ok && offset < size) {
        struct copy_counters counters = {.total = size, .position = offset};
        uint64_t begin = offset;

        if (begin >= told) {
            how.progress(how.opaque, &counters);
            told = begin + PROGRESS_STEP;
        }
        ok = wait_for_turn(proof, error) && skip_empty(proof, source, &offset, error);
        if (ok && offset == begin) {
            ok = push_piece(proof, source, pool, offset, (size_t)MIN(DIGEST_CHUNK_SIZE, size - offset),
                            digests, error);
            offset += DIGEST_CHUNK_SIZE;
        }
    }
    wait_for_room(proof, 0);
    g_thread_pool_free(pool, FALSE, TRUE);
    if (!proof->error)
        return ok;
    g_clear_error(error);
    g_propagate_error(error, proof->error);
    return false;
}

bool machine_prove_same(struct machine_job *job, struct chain *source, struct chain *target, const char *name,
                        struct digest_table *digests, GError **error)
{
    struct proof proof = {.job = job, .target = target, .name = name};
    bool ok;

    g_mutex_init(&proof.lock);
    g_cond_init(&proof.done);
    ok = run_proof(&proof, source, digests, error);
    g_mutex_clear(&proof.lock);
    g_cond_clear(&proof.done);
    return ok;
}

static bool prove_disk(struct machine_job *job, struct machine_disk *disk, GError **error)
{
    /* By the method live the last layer is in the target's overlay, which was compared in the pause. */
    g_autoptr(chain_t) source = machine_open_layers(disk, 0, disk->merged, error);
    g_autoptr(chain_t) target = source ? machine_open_target(job, disk, error) : NULL;
    g_autoptr(digest_table_t) digests = digest_table_new(job->request->digest, disk->size);
    uint64_t wire = agent_wire_bytes();
    bool ok;

    if (!target)
        return false;
    machine_tell(job, "%s", disk->name);
    ok = machine_prove_same(job, source, target, disk->target_name, digests, error);
    disk->report->bytes_wire += agent_wire_bytes() - wire;
    return ok && job_write_receipt(&job->base, disk->report, disk->index, "", digests, error) &&
           machine_save_disk(job, disk, error);
}

/* What was only written and read back has the digests of the copy, as far as they go. */
static bool prove_disks(struct machine_job *job, GError **error)
{
    for (guint i = 0; i < job->disks->len && job->request->verify == VERIFY_FULL; i++)
        if (!prove_disk(job, machine_disk_at(job, i), error))
            return false;
    return true;
}

bool machine_prove(struct job *base, GError **error)
{
    struct machine_job *job = machine_of(base);
    bool ok;

    machine_share_begin(job);
    ok = prove_disks(job, error);
    machine_share_end(job);
    if (!ok && job->released)
        base->report->advice = g_strdup("the machine runs on the target, which could not be proved; the "
                                        "source's disks are kept as they were at the switch");
    return ok && job_event(base, "result", error, MACHINE_PROVED);
}
