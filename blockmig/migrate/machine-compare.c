/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the hypervisor mirrored onto the overlays of the target, compared while the machine stands still.
 *
 * Each side digests the file of its overlay in blocks of 4 KiB, which is what overlays are made of, and as
 * programs of its host see it, for that is what the machine will read.  The maps of both say which blocks of
 * the files are the same block of the disk.  A mirror has granules of 64 KiB, so most of what the target's
 * overlay holds is not in the source's: it is what the frozen layers below say.  Digests of those are made
 * while the machine still runs, by a thread that looks where it writes; what that finds is a hint and no
 * more: the tables of an image in use need not be consistent.  In the pause each block is looked up in what
 * stands still, and what has no digest yet is read.
 *
 * QEMU 7.2's write-blocking mirror loses a block now and then (HACKING): such blocks are written again.
 */
#include "blockmig/migrate/machine.h"
#include "blockmig/storage/file.h"
#include "blockmig/storage/uri.h"
#include "formats/xxh3.h"

#include <string.h>

#define BLOCK      4096u
#define UNIT       65536u               /* of what is digested beforehand */
#define MOST_UNITS 65536u               /* that are remembered of a disk: 16 MiB of digests */
#define PIECE      (UINT64_C(16) << 20) /* of what is digested in the pause, before it may be given up */
#define TICK       (G_USEC_PER_SEC / 20)

typedef uint8_t digest[XXH3_DIGEST];

/* A block that is not on the target what it is here. */
struct difference {
    uint64_t offset, host_offset;
    bool there; /* the target has a place for it */
};

struct disk_proof {
    struct comparison *comparison;
    const struct machine_disk *disk;
    struct chain *below; /* the layers under the top one, which are frozen; NULL: not opened yet */
    GHashTable *known;   /* number of a unit -> the digests of its blocks in `below` */
    /* The source's overlay, and digests of the blocks of its file, once the machine stands still. */
    struct chain *own;
    GByteArray *own_digests;
    struct chain *other; /* the target's */
    GByteArray *other_digests;
    struct chain *source, *merged;   /* all of the source, and below the target's overlay; NULL: not opened */
    GArray *found;                   /* of struct difference */
    GError *own_error, *other_error; /* of threads */
};

struct comparison {
    struct machine_job *job;
    GPtrArray *disks; /* of struct disk_proof */
    GThread *thread;  /* looks ahead; then digests the source's side */
    gint stands;      /* atomic: the machine does */
    gint asked;       /* atomic: for a rehearsal, which is not over yet */
    double rehearsed; /* the seconds that the last took; negative: it could not be told.  Once it is over */
};

/* ---- while the machine runs ---------------------------------------------------------------------- */

static void digest_unit(const uint8_t *data, digest *digests)
{
    for (size_t i = 0; i < UNIT / BLOCK; i++)
        xxh3_digest(data + i * BLOCK, BLOCK, digests[i]);
}

/* The digests of a unit of the frozen layers; what is behind the end of the disk counts as zeros. */
static const digest *know(struct disk_proof *proof, uint64_t unit, GError **error)
{
    digest *digests = g_hash_table_lookup(proof->known, GSIZE_TO_POINTER(unit));
    uint64_t size = proof->below->size, offset = unit * UNIT;
    g_autofree uint8_t *data = NULL;

    if (digests)
        return digests;
    data = g_malloc0(UNIT);
    if (!chain_read(proof->below, data, (size_t)MIN(UNIT, size - offset), offset, error))
        return NULL;
    if (g_hash_table_size(proof->known) == MOST_UNITS)
        g_hash_table_remove_all(proof->known);
    digests = g_malloc(UNIT / BLOCK * sizeof(digest));
    digest_unit(data, digests);
    g_hash_table_insert(proof->known, GSIZE_TO_POINTER(unit), digests);
    return digests;
}

static bool is_over(const struct disk_proof *proof)
{
    return g_atomic_int_get(&proof->comparison->stands) != 0;
}

static bool look_ahead(struct disk_proof *proof, GError **error)
{
    g_autoptr(chain_t) own = machine_open_layers(proof->disk, proof->disk->top, proof->disk->top, error);
    struct extent extent;
    size_t count;

    if (!own ||
        (!proof->below && !(proof->below = machine_open_layers(proof->disk, 0, proof->disk->top - 1, error))))
        return false;
    for (uint64_t at = 0; at < own->size; at = extent_end(&extent)) {
        if (is_over(proof) || !chain_map(own, at, own->size - at, &extent, 1, &count, error))
            return false;
        for (uint64_t unit = at / UNIT; extent.status != EXTENT_HOLE && unit * UNIT < extent_end(&extent);
             unit++)
            if (is_over(proof) || g_hash_table_size(proof->known) == MOST_UNITS || !know(proof, unit, error))
                return false;
    }
    return true;
}

/* ---- the source's side --------------------------------------------------------------------------- */

static bool is_given_up(const struct disk_proof *proof, GError **error)
{
    return g_atomic_int_get(&proof->comparison->job->given_up) &&
           !blockmig_fail(error, BLOCKMIG_ERROR_CANCELLED, "the comparison was given up");
}

/* Digests of a storage's blocks from its beginning. */
static GByteArray *digest_blocks(const struct disk_proof *proof, struct storage *storage, GError **error)
{
    GByteArray *digests = g_byte_array_new();
    uint64_t end = storage->size / BLOCK * BLOCK, length;
    bool ok = true;

    g_byte_array_set_size(digests, (guint)(end / BLOCK * XXH3_DIGEST));
    for (uint64_t at = 0; ok && at < end; at += length) {
        length = MIN(PIECE, end - at);
        ok = !is_given_up(proof, error) &&
             storage_digests(storage, at, length, BLOCK, digests->data + at / BLOCK * XXH3_DIGEST, error);
    }
    if (ok)
        return digests;
    g_byte_array_unref(digests);
    return NULL;
}

static bool look_here(struct disk_proof *proof, GError **error)
{
    const struct machine_disk *disk = proof->disk;

    return (proof->below || (proof->below = machine_open_layers(disk, 0, disk->top - 1, error))) &&
           (proof->own = machine_open_layers(disk, disk->top, disk->top, error)) &&
           (proof->own_digests = digest_blocks(proof, chain_layer(proof->own, 0)->storage, error));
}

static gpointer look_here_all(gpointer data)
{
    struct comparison *comparison = data;

    for (guint i = 0; i < comparison->disks->len; i++) {
        struct disk_proof *proof = g_ptr_array_index(comparison->disks, i);

        look_here(proof, &proof->own_error);
    }
    return NULL;
}

/* ---- both ---------------------------------------------------------------------------------------- */

static void add_difference(struct disk_proof *proof, uint64_t offset, uint64_t host_offset, bool there)
{
    struct difference one = {offset, host_offset, there};

    g_array_append_val(proof->found, one);
}

static bool open_whole(struct disk_proof *proof, GError **error)
{
    const struct machine_disk *disk = proof->disk;

    return (proof->source || (proof->source = machine_open_layers(disk, 0, disk->top, error))) &&
           (proof->merged || (proof->merged = machine_open_target(proof->comparison->job, disk, error)));
}

/* A block for which maps and digests are not enough: it is read on both sides. */
static bool read_block(struct disk_proof *proof, const struct extent *there, uint64_t offset, size_t length,
                       GError **error)
{
    uint8_t mine[BLOCK], theirs[BLOCK];

    if (!open_whole(proof, error) || !chain_read(proof->source, mine, length, offset, error) ||
        !chain_read(there->status == EXTENT_HOLE ? proof->merged : proof->other, theirs, length, offset,
                    error))
        return false;
    if (memcmp(mine, theirs, length) != 0)
        add_difference(proof, offset, 0, false);
    return true;
}

static const digest *digest_of(const GByteArray *digests, const struct extent *extent, uint64_t offset)
{
    static digest zero;
    static gsize once;
    uint64_t place = (extent->host_offset + (offset - extent->offset)) / BLOCK;

    if (g_once_init_enter(&once)) {
        const uint8_t zeros[BLOCK] = {0};

        xxh3_digest(zeros, BLOCK, zero);
        g_once_init_leave(&once, 1);
    }
    if (extent->status == EXTENT_ZERO)
        return &zero;
    return (place + 1) * XXH3_DIGEST <= digests->len ? (const digest *)(digests->data + place * XXH3_DIGEST)
                                                     : NULL;
}

/* Can it be told by digests of whole blocks what this extent has? */
static bool has_blocks(const struct extent *extent)
{
    return extent->status == EXTENT_ZERO ||
           (extent->status == EXTENT_DATA && extent->host_offset % BLOCK == 0 && extent->offset % BLOCK == 0);
}

/* One block of the disk, of which `mine` and `there` say where both sides have it. */
static bool compare_block(struct disk_proof *proof, const struct extent *mine, const struct extent *there,
                          uint64_t offset, size_t length, GError **error)
{
    const digest *ours = NULL, *theirs;

    if (length < BLOCK || !has_blocks(there) || (mine->status != EXTENT_HOLE && !has_blocks(mine)))
        return read_block(proof, there, offset, length, error);
    if (mine->status == EXTENT_HOLE) {
        const digest *unit = know(proof, offset / UNIT, error);

        if (!unit)
            return false;
        ours = &unit[offset % UNIT / BLOCK];
    } else {
        ours = digest_of(proof->own_digests, mine, offset);
    }
    theirs = digest_of(proof->other_digests, there, offset);
    if (!ours || !theirs)
        return read_block(proof, there, offset, length, error);
    if (memcmp(ours, theirs, sizeof(*ours)) != 0)
        add_difference(proof, offset, there->host_offset + (offset - there->offset),
                       there->status == EXTENT_DATA);
    return true;
}

static bool compare_range(struct disk_proof *proof, const struct extent *mine, const struct extent *there,
                          uint64_t offset, uint64_t end, GError **error)
{
    /* Neither overlay has it. */
    if (mine->status == EXTENT_HOLE && there->status == EXTENT_HOLE)
        return true;
    for (size_t length; offset < end; offset += length) {
        length = (size_t)MIN(BLOCK - offset % BLOCK, end - offset);
        if (!compare_block(proof, mine, there, offset, length, error))
            return false;
    }
    return true;
}

static bool compare_maps(struct disk_proof *proof, GError **error)
{
    uint64_t size = proof->own->size;
    struct extent mine = {0}, there = {0};
    size_t count;

    for (uint64_t at = 0, end; at < size; at = end) {
        if (is_given_up(proof, error))
            return false;
        if (at >= extent_end(&mine) && !chain_map(proof->own, at, size - at, &mine, 1, &count, error))
            return false;
        if (at >= extent_end(&there) && !chain_map(proof->other, at, size - at, &there, 1, &count, error))
            return false;
        end = MIN(extent_end(&mine), extent_end(&there));
        if (!compare_range(proof, &mine, &there, at, end, error))
            return false;
    }
    return true;
}

static gpointer digest_there(gpointer data)
{
    struct disk_proof *proof = data;

    proof->other_digests = digest_blocks(proof, chain_layer(proof->other, 0)->storage, &proof->other_error);
    return NULL;
}

/* The tables are fetched while the file is digested. */
static bool look_there(struct disk_proof *proof, GError **error)
{
    struct extent extent;
    GThread *thread;
    size_t count;
    bool ok = true;

    if (!(proof->other = machine_open_target_overlay(proof->disk, error)))
        return false;
    thread = g_thread_new("digests", digest_there, proof);
    for (uint64_t at = 0; ok && at < proof->other->size; at = extent_end(&extent))
        ok = chain_map(proof->other, at, proof->other->size - at, &extent, 1, &count, error);
    g_thread_join(thread);
    if (!proof->other_digests && ok)
        g_propagate_error(error, g_steal_pointer(&proof->other_error));
    g_clear_error(&proof->other_error);
    return ok && proof->other_digests;
}

static void forget(struct disk_proof *proof)
{
    g_clear_pointer(&proof->own, chain_close);
    g_clear_pointer(&proof->other, chain_close);
    g_clear_pointer(&proof->source, chain_close);
    g_clear_pointer(&proof->merged, chain_close);
    g_clear_pointer(&proof->own_digests, g_byte_array_unref);
    g_clear_pointer(&proof->other_digests, g_byte_array_unref);
    g_clear_error(&proof->own_error);
    g_array_set_size(proof->found, 0);
}

static bool compare_disk(struct disk_proof *proof, GError **error)
{
    return (proof->own_digests || look_here(proof, error)) &&
           (proof->other_digests || look_there(proof, error)) && compare_maps(proof, error);
}

static bool look_there_all(struct comparison *comparison, GError **error)
{
    for (guint i = 0; i < comparison->disks->len; i++)
        if (!look_there(g_ptr_array_index(comparison->disks, i), error))
            return false;
    return true;
}

/* ---- looking ahead ------------------------------------------------------------------------------- */

/* All that the comparison will do, as long as nothing has to be mended; what it finds is not believed. */
static double rehearse(struct comparison *comparison)
{
    int64_t begin = g_get_monotonic_time();
    GThread *here = g_thread_new("here", look_here_all, comparison);
    bool ok = look_there_all(comparison, NULL);

    g_thread_join(here);
    for (guint i = 0; i < comparison->disks->len; i++) {
        struct disk_proof *proof = g_ptr_array_index(comparison->disks, i);

        ok = ok && !proof->own_error && compare_maps(proof, NULL);
        forget(proof);
    }
    return ok ? (double)(g_get_monotonic_time() - begin) / G_USEC_PER_SEC : -1;
}

static gpointer watch_source(gpointer data)
{
    struct comparison *comparison = data;

    while (!g_atomic_int_get(&comparison->stands)) {
        for (guint i = 0; i < comparison->disks->len; i++)
            look_ahead(g_ptr_array_index(comparison->disks, i), NULL);
        if (g_atomic_int_get(&comparison->asked)) {
            comparison->rehearsed = rehearse(comparison);
            g_atomic_int_set(&comparison->asked, 0);
        }
        for (unsigned tick = 0; tick < 10 && !g_atomic_int_get(&comparison->stands); tick++)
            g_usleep(TICK / 10);
    }
    return look_here_all(comparison);
}

/* ---- what differs is written again --------------------------------------------------------------- */

static bool mend_block(struct disk_proof *proof, struct storage *overlay, const struct difference *one,
                       GError **error)
{
    uint8_t block[BLOCK];

    if (is_given_up(proof, error))
        return false;
    if (!one->there)
        return blockmig_fail(error, BLOCKMIG_ERROR_DIFFERENT,
                             "%s differs from the source in what was written last, at %" PRIu64,
                             proof->disk->overlay_name, one->offset);
    return chain_read(proof->source, block, BLOCK, one->offset, error) &&
           storage_pwrite(overlay, block, BLOCK, one->host_offset, error);
}

/* The machine stands still, and data that has a place is nothing that a hypervisor keeps in memory. */
static bool mend(struct disk_proof *proof, GError **error)
{
    struct machine_job *job = proof->comparison->job;
    g_autoptr(storage_t) overlay =
        storage_open(proof->disk->overlay_name, FILE_WRITE | FILE_NO_LOCK | FILE_MODEST, NULL, NULL, error);

    if (!overlay || !open_whole(proof, error))
        return false;
    for (guint i = 0; i < proof->found->len; i++)
        if (!mend_block(proof, overlay, &g_array_index(proof->found, struct difference, i), error))
            return false;
    if (!storage_flush(overlay, error))
        return false;
    job_notice(&job->base,
               "disk %s: the hypervisor's mirror had lost %u blocks of 4 KiB; they were written again",
               proof->disk->name, proof->found->len);
    return job_event(&job->base, "notice", error, "disk %s: %u blocks of the mirror were wrong",
                     proof->disk->name, proof->found->len);
}

static bool settle_disk(struct disk_proof *proof, GError **error)
{
    if (proof->own_error) {
        g_propagate_error(error, g_steal_pointer(&proof->own_error));
        return false;
    }
    if (!compare_disk(proof, error))
        return false;
    if (proof->found->len == 0)
        return true;
    if (!mend(proof, error))
        return false;
    forget(proof);
    return compare_disk(proof, error) &&
           (proof->found->len == 0 ||
            blockmig_fail(error, BLOCKMIG_ERROR_DIFFERENT,
                          "%s differs from the source in what was written last, and could not be mended",
                          proof->disk->overlay_name));
}

/* ---- from outside -------------------------------------------------------------------------------- */

static void proof_free(gpointer data)
{
    struct disk_proof *proof = data;

    forget(proof);
    g_array_unref(proof->found);
    chain_close(proof->below);
    g_hash_table_unref(proof->known);
    g_free(proof);
}

struct comparison *machine_comparison_start(struct machine_job *job)
{
    struct comparison *comparison = g_new0(struct comparison, 1);

    comparison->job = job;
    comparison->disks = g_ptr_array_new_with_free_func(proof_free);
    for (guint i = 0; job->request->verify != VERIFY_NONE && i < job->disks->len; i++) {
        struct disk_proof *proof = g_new0(struct disk_proof, 1);

        proof->comparison = comparison;
        proof->disk = machine_disk_at(job, i);
        proof->known = g_hash_table_new_full(NULL, NULL, NULL, g_free);
        proof->found = g_array_new(FALSE, FALSE, sizeof(struct difference));
        g_ptr_array_add(comparison->disks, proof);
    }
    comparison->thread = g_thread_new("comparison", watch_source, comparison);
    return comparison;
}

static void end_thread(struct comparison *comparison)
{
    g_atomic_int_set(&comparison->stands, 1);
    if (comparison->thread)
        g_thread_join(g_steal_pointer(&comparison->thread));
}

void machine_comparison_rehearse(struct comparison *comparison)
{
    g_atomic_int_set(&comparison->asked, 1);
}

bool machine_comparison_is_rehearsed(const struct comparison *comparison, double *seconds)
{
    if (g_atomic_int_get(&comparison->asked))
        return false;
    *seconds = comparison->rehearsed;
    return true;
}

/* Both sides are digested at once. */
bool machine_comparison_end(struct comparison *comparison, GError **error)
{
    bool ok;

    g_atomic_int_set(&comparison->stands, 1);
    ok = look_there_all(comparison, error);
    end_thread(comparison);
    for (guint i = 0; ok && i < comparison->disks->len; i++)
        ok = settle_disk(g_ptr_array_index(comparison->disks, i), error);
    return ok;
}

void machine_comparison_free(struct comparison *comparison)
{
    if (!comparison)
        return;
    end_thread(comparison);
    g_ptr_array_unref(comparison->disks);
    g_free(comparison);
}
