/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Proofs for a domain.
 *
 * In the pause: what the overlays on both sides hold.  The target's host digests its overlay in blocks of 4
 * KiB, which is what an overlay is made of, in one request; what the source has at the same place of the disk
 * must have the same digests, and whatever the source's overlay holds must be somewhere in the target's.
 * QEMU 7.2's write-blocking mirror loses a block now and then (HACKING): such blocks are written again.
 *
 * Afterwards: the source's layers and the merged image, both frozen, byte for byte; where the target's host
 * can tell whether its medium holds what we have, nothing is sent back.
 */
#include "blockmig/migrate/live.h"
#include "blockmig/migrate/machine.h"
#include "blockmig/storage/file.h"
#include "blockmig/storage/uri.h"
#include "formats/bytes.h"
#include "formats/xxh3.h"

#include <glib/gstdio.h>
#include <string.h>

#define BLOCK   4096u
#define PIECE   (1u << 20)
#define WORKERS 4

/* ---- in the pause -------------------------------------------------------------------------------- */

/* Digests of a storage's blocks from its beginning. */
static GByteArray *digest_blocks(struct storage *storage, GError **error)
{
    GByteArray *digests = g_byte_array_new();

    g_byte_array_set_size(digests, (guint)(storage->size / BLOCK * XXH3_DIGEST));
    if (storage_digests(storage, 0, storage->size / BLOCK * BLOCK, BLOCK, digests->data, error))
        return digests;
    g_byte_array_unref(digests);
    return NULL;
}

/* Blocks that are not on the target what they are here. */
struct difference {
    uint64_t offset, host_offset;
    bool there; /* the target has a place for it */
};

static void add_difference(GArray *found, uint64_t offset, uint64_t host_offset, bool there)
{
    struct difference one = {offset, host_offset, there};

    g_array_append_val(found, one);
}

static bool is_digest(const GByteArray *digests, uint64_t place, const uint8_t *block)
{
    uint8_t digest[XXH3_DIGEST];

    xxh3_digest(block, BLOCK, digest);
    return (place + 1) * XXH3_DIGEST <= digests->len &&
           memcmp(digests->data + place * XXH3_DIGEST, digest, XXH3_DIGEST) == 0;
}

/* What the target's overlay has at `at` in the extent, against the source's bytes. */
static void compare_block(const struct extent *extent, uint64_t at, const uint8_t *data, size_t length,
                          const GByteArray *digests, GArray *found)
{
    uint64_t host_offset = extent->host_offset + at;
    uint8_t block[BLOCK] = {0};
    bool same;

    memcpy(block, data, length);
    same = extent->status == EXTENT_ZERO ? is_zero(data, length)
                                         : is_digest(digests, host_offset / BLOCK, block);
    if (!same)
        add_difference(found, extent->offset + at, host_offset,
                       extent->status == EXTENT_DATA && length == BLOCK);
}

static bool compare_extent(struct chain *source, const struct extent *extent, const GByteArray *digests,
                           GArray *found, GError **error)
{
    g_autofree uint8_t *data = g_malloc(MIN(PIECE, extent->length));
    size_t length;

    for (uint64_t at = 0; at < extent->length; at += length) {
        length = (size_t)MIN(PIECE, extent->length - at);
        if (!chain_read(source, data, length, extent->offset + at, error))
            return false;
        for (size_t block = 0; block < length; block += BLOCK)
            compare_block(extent, at + block, data + block, MIN(BLOCK, length - block), digests, found);
    }
    return true;
}

/* What is compared of one disk in the pause. */
struct pause_proof {
    const struct machine_disk *disk;
    struct chain *source, *own; /* all of the source; its top layer alone */
    struct chain *other;        /* the target's overlay */
    struct chain *merged;       /* what is below that; opened when it is needed */
    GArray *found;
};

static bool check_block(struct pause_proof *proof, uint64_t offset, size_t length, GError **error)
{
    uint8_t mine[BLOCK], theirs[BLOCK];

    if (!proof->merged && !(proof->merged = machine_open_target(proof->disk, error)))
        return false;
    if (!chain_read(proof->source, mine, length, offset, error) ||
        !chain_read(proof->merged, theirs, length, offset, error))
        return false;
    if (memcmp(mine, theirs, length) != 0)
        add_difference(proof->found, offset, 0, false);
    return true;
}

/* One stretch that the source's overlay has: where the target's has a hole, the image below must say the
 * same. */
static bool check_stretch(struct pause_proof *proof, const struct extent *extent, GError **error)
{
    struct extent there;
    size_t count;

    for (uint64_t at = extent->offset; at < extent_end(extent); at = extent_end(&there)) {
        if (!chain_map(proof->other, at, extent_end(extent) - at, &there, 1, &count, error))
            return false;
        for (uint64_t block = at; there.status == EXTENT_HOLE && block < extent_end(&there); block += BLOCK)
            if (!check_block(proof, block, (size_t)MIN(BLOCK, extent_end(&there) - block), error))
                return false;
    }
    return true;
}

static bool check_holes(struct pause_proof *proof, GError **error)
{
    struct chain *own = proof->own;
    struct extent extent;
    size_t count;

    for (uint64_t at = 0; at < own->size; at = extent_end(&extent)) {
        if (!chain_map(own, at, own->size - at, &extent, 1, &count, error))
            return false;
        if (extent.status != EXTENT_HOLE && !check_stretch(proof, &extent, error))
            return false;
    }
    return true;
}

static bool check_data(struct pause_proof *proof, GError **error)
{
    struct chain *other = proof->other;
    g_autoptr(GByteArray) digests = digest_blocks(chain_layer(other, 0)->storage, error);
    struct extent extent;
    size_t count;

    for (uint64_t at = 0; digests && at < other->size; at = extent_end(&extent)) {
        if (!chain_map(other, at, other->size - at, &extent, 1, &count, error))
            return false;
        if (extent.status != EXTENT_HOLE &&
            !compare_extent(proof->source, &extent, digests, proof->found, error))
            return false;
    }
    return digests != NULL;
}

static bool compare_disk(const struct machine_disk *disk, struct chain *source, GArray *found, GError **error)
{
    struct pause_proof proof = {.disk = disk, .source = source, .found = found};
    bool ok = (proof.own = machine_open_layers(disk, disk->top, disk->top, error)) &&
              (proof.other = machine_open_target_overlay(disk, error)) && check_data(&proof, error) &&
              check_holes(&proof, error);

    chain_close(proof.own);
    chain_close(proof.other);
    chain_close(proof.merged);
    return ok;
}

static bool mend_block(const struct machine_disk *disk, struct chain *source, struct storage *overlay,
                       const struct difference *one, GError **error)
{
    uint8_t block[BLOCK];

    if (!one->there)
        return blockmig_fail(error, BLOCKMIG_ERROR_DIFFERENT,
                             "%s differs from the source in what was written last, at %" PRIu64,
                             disk->overlay_name, one->offset);
    return chain_read(source, block, BLOCK, one->offset, error) &&
           storage_pwrite(overlay, block, BLOCK, one->host_offset, error);
}

/* The machine stands still, and data that has a place is nothing that a hypervisor keeps in memory. */
static bool mend(struct machine_job *job, const struct machine_disk *disk, struct chain *source,
                 GArray *found, GError **error)
{
    g_autoptr(storage_t) overlay =
        storage_open(disk->overlay_name, FILE_WRITE | FILE_NO_LOCK | FILE_MODEST, NULL, NULL, error);

    for (guint i = 0; overlay && i < found->len; i++)
        if (!mend_block(disk, source, overlay, &g_array_index(found, struct difference, i), error))
            return false;
    if (!overlay || !storage_flush(overlay, error))
        return false;
    job_notice(&job->base,
               "disk %s: the hypervisor's mirror had lost %u blocks of 4 KiB; they were written again",
               disk->name, found->len);
    return job_event(&job->base, "notice", error, "disk %s: %u blocks of the mirror were wrong", disk->name,
                     found->len);
}

static bool settle_disk(struct machine_job *job, const struct machine_disk *disk, GError **error)
{
    g_autoptr(chain_t) source = machine_open_layers(disk, 0, disk->top, error);
    g_autoptr(GArray) found = g_array_new(FALSE, FALSE, sizeof(struct difference));

    if (!source || !compare_disk(disk, source, found, error))
        return false;
    if (found->len == 0)
        return true;
    if (!mend(job, disk, source, found, error))
        return false;
    g_array_set_size(found, 0);
    return compare_disk(disk, source, found, error) &&
           (found->len == 0 ||
            blockmig_fail(error, BLOCKMIG_ERROR_DIFFERENT,
                          "%s differs from the source in what was written last, and could not be mended",
                          disk->overlay_name));
}

bool machine_compare_overlays(struct machine_job *job, GError **error)
{
    for (guint i = 0; job->request->verify != VERIFY_NONE && i < job->disks->len; i++)
        if (!settle_disk(job, machine_disk_at(job, i), error))
            return false;
    return true;
}

/* ---- afterwards ---------------------------------------------------------------------------------- */

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
    struct machine_disk *disk;
    struct chain *target;
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
        g_prefix_error(&local, "%s: ", proof->disk->target_name);
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

/* Sixteen pieces are enough to keep the workers busy. */
static bool wait_for_room(struct proof *proof, unsigned most)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&proof->lock);

    while (proof->pending > most)
        g_cond_wait(&proof->done, &proof->lock);
    return !proof->error;
}

/* Nothing on both sides is proved by the maps alone. */
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

static bool run_proof(struct proof *proof, struct chain *source, struct digest_table *digests, GError **error)
{
    GThreadPool *pool = g_thread_pool_new(check_piece, NULL, WORKERS, TRUE, NULL);
    uint64_t size = proof->disk->size;
    struct copy_options how = {0};
    bool ok = true;

    machine_copy_options(proof->job, &how);
    for (uint64_t offset = 0; ok && offset < size; offset += DIGEST_CHUNK_SIZE) {
        struct copy_counters counters = {.total = size, .position = offset};

        ok = wait_for_room(proof, 4 * WORKERS) &&
             push_piece(proof, source, pool, offset, (size_t)MIN(DIGEST_CHUNK_SIZE, size - offset), digests,
                        error);
        if (offset % (64 * DIGEST_CHUNK_SIZE) == 0)
            how.progress(how.opaque, &counters);
        if (ok && machine_is_cancelled(proof->job, error))
            ok = false;
    }
    wait_for_room(proof, 0);
    g_thread_pool_free(pool, FALSE, TRUE);
    if (!proof->error)
        return ok;
    g_clear_error(error);
    g_propagate_error(error, proof->error);
    return false;
}

static bool prove_disk(struct machine_job *job, struct machine_disk *disk, GError **error)
{
    /* By the method live the last layer is in the target's overlay, which was compared in the pause. */
    g_autoptr(chain_t) source = machine_open_layers(disk, 0, disk->merged, error);
    g_autoptr(chain_t) target = source ? machine_open_target(disk, error) : NULL;
    struct proof proof = {.job = job, .disk = disk, .target = target};
    uint64_t wire = agent_wire_bytes();
    bool ok;

    if (!target)
        return false;
    machine_tell(job, "%s", disk->name);
    g_clear_pointer(&disk->digests, digest_table_free);
    disk->digests = digest_table_new(job->request->digest, disk->size);
    g_mutex_init(&proof.lock);
    g_cond_init(&proof.done);
    ok = run_proof(&proof, source, disk->digests, error);
    g_mutex_clear(&proof.lock);
    g_cond_clear(&proof.done);
    disk->report->bytes_wire += agent_wire_bytes() - wire;
    return ok && job_write_receipt(&job->base, disk->report, disk->index, "", disk->digests, error) &&
           machine_save_disk(job, disk, error);
}

bool machine_prove(struct job *base, GError **error)
{
    struct machine_job *job = machine_of(base);

    /* What was only written and read back has the digests of the copy, as far as they go. */
    for (guint i = 0; i < job->disks->len && job->request->verify == VERIFY_FULL; i++)
        if (!prove_disk(job, machine_disk_at(job, i), error)) {
            if (job->released)
                base->report->advice =
                    g_strdup("the machine runs on the target, which could not be proved; the "
                             "source's disks are kept as they were at the switch");
            return false;
        }
    return job_event(base, "result", error, MACHINE_PROVED);
}
