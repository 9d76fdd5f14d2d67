/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The step in guest order: what is data, what is zero, and where it goes on the target. */
#include "blockmig/copy/slot.h"
#include "formats/bytes.h"
#include "formats/error.h"

#include <config.h>
#include <string.h>

/* On raw targets a shorter run of zeros is written with the data around it: cheaper than two requests. */
#define SHORT_ZEROS ((uint64_t)32 << 10)
/* How much of a gap is zeroed in one go: short enough to notice a cancellation where a device is slow. */
#define GAP_STEP ((uint64_t)256 << 20)

enum run_kind { RUN_DATA, RUN_ZERO, RUN_SKIP };

struct run {
    uint64_t offset, end;
    enum run_kind kind;
};

/* ---- what is where ---- */

static void add_run(GArray *runs, enum run_kind kind, uint64_t offset, uint64_t end)
{
    struct run run = {offset, end, kind};
    struct run *last = runs->len ? &g_array_index(runs, struct run, runs->len - 1) : NULL;

    if (last && last->kind == kind)
        last->end = end;
    else
        g_array_append_val(runs, run);
}

static void scan_zeros(struct slot *slot, uint64_t offset, uint64_t end, GArray *runs)
{
    struct copy *copy = slot->copy;

    for (uint64_t next; offset < end; offset = next) {
        next = MIN(end, (offset / copy->granule + 1) * copy->granule);
        bool zero = !copy->copier.options->write_zeroes && is_zero(slot_at(slot, offset), next - offset);
        add_run(runs, zero ? RUN_ZERO : RUN_DATA, offset, next);
    }
}

/* Zeros between two runs of data, too short to be worth a hole. */
static GArray *join_short(GArray *runs)
{
    GArray *joined = g_array_new(FALSE, FALSE, sizeof(struct run));

    for (guint i = 0; i < runs->len; i++) {
        struct run *run = &g_array_index(runs, struct run, i);
        bool between = i > 0 && i + 1 < runs->len && run->kind == RUN_ZERO && run[-1].kind == RUN_DATA &&
                       run[1].kind == RUN_DATA;
        bool small = between && run->end - run->offset < SHORT_ZEROS;
        add_run(joined, small ? RUN_DATA : run->kind, run->offset, run->end);
    }
    g_array_unref(runs);
    return joined;
}

static GArray *find_runs(struct slot *slot)
{
    GArray *runs = g_array_new(FALSE, FALSE, sizeof(struct run));
    uint64_t from = slot->offset;

    for (guint i = 0; i < slot->load.extents->len; i++) {
        const struct extent *extent = &g_array_index(slot->load.extents, struct extent, i);
        if (extent->status != EXTENT_HOLE)
            continue;
        scan_zeros(slot, from, extent->offset, runs);
        add_run(runs, RUN_SKIP, extent->offset, extent_end(extent));
        from = extent_end(extent);
    }
    scan_zeros(slot, from, slot->end, runs);
    return slot->copy->identity ? join_short(runs) : runs;
}

/* ---- the sum ---- */

/* Is the chunk at `guest` all zeros?  Then copy_prove() reads it, and the sum leaves it out. So it is with
 * what a cluster has behind the end of the source, and with gaps. */
static bool chunk_is_zero(const struct slot *slot, uint64_t guest)
{
    uint64_t chunk = (guest - slot->offset) / DIGEST_CHUNK_SIZE;

    if (slot->gap || guest < slot->offset || chunk * DIGEST_CHUNK_SIZE >= slot->end - slot->offset)
        return true;
    return slot->hash.zero[chunk];
}

static void sum_data(const struct slot *slot, struct copy_map_sum *sum, uint64_t guest, uint64_t host,
                     uint64_t length)
{
    if (slot->copy->identity || slot->copy->copier.options->patch)
        return;
    length = MIN(length, slot->copy->reader.size - MIN(guest, slot->copy->reader.size));
    if (slot->copy->overlay) {
        map_sum_data(sum, guest, host, length);
        return;
    }
    for (uint64_t end = guest + length, next; guest < end; host += next - guest, guest = next) {
        next = MIN(end, (guest / DIGEST_CHUNK_SIZE + 1) * DIGEST_CHUNK_SIZE);
        if (!chunk_is_zero(slot, guest))
            map_sum_data(sum, guest, host, next - guest);
    }
}

/* What was a fill a moment ago, and is written or found now, counts once. */
static void sum_placed(struct slot *slot, const struct extent *to)
{
    struct copy_map_sum twice = {0};

    sum_data(slot, &slot->sum, to->offset, to->host_offset, to->length);
    for (guint i = 0; i < slot->fills->len; i++) {
        const struct extent *fill = &g_array_index(slot->fills, struct placement, i).to;
        uint64_t begin = MAX(fill->offset, to->offset), end = MIN(extent_end(fill), extent_end(to));
        if (begin < end)
            sum_data(slot, &twice, begin, fill->host_offset + (begin - fill->offset), end - begin);
    }
    map_sum_subtract(&slot->sum, &twice);
}

/* ---- placing ---- */

static void add_write(GArray *writes, const struct write_run *run)
{
    struct write_run *last = writes->len ? &g_array_index(writes, struct write_run, writes->len - 1) : NULL;

    if (last && !last->packed && !run->packed && last->storage == run->storage &&
        last->guest + last->length == run->guest && last->host + last->length == run->host &&
        last->data + last->length == run->data)
        last->length += run->length;
    else
        g_array_append_vals(writes, run, 1);
}

/* Where whole units are copied, all of a fill is written by this slot or another, but for what the source
 * does not have. */
static void add_fill(struct slot *slot, const struct placement *fill)
{
    const struct copy *copy = slot->copy;
    uint64_t from = fill->to.offset, to = extent_end(&fill->to);
    struct placement part = fill_part(fill, copy->whole ? CLAMP(copy->end, from, to) : from, to);

    if (part.to.length == 0)
        return;
    sum_placed(slot, &part.to);
    g_array_append_val(slot->fills, part);
}

/* `data` are the bytes that belong at `offset`; NULL: zeros, at most SLOT_SIZE of them. */
static bool place(struct slot *slot, uint64_t offset, uint64_t length, const uint8_t *data, GError **error)
{
    g_autoptr(GArray) placements = g_array_new(FALSE, FALSE, sizeof(struct placement));

    if (!image_place(slot->copy->target, offset, length, placements, error))
        return false;
    for (guint i = 0; i < placements->len; i++) {
        const struct placement *placement = &g_array_index(placements, struct placement, i);
        const struct extent *to = &placement->to;
        if (placement->fill) {
            add_fill(slot, placement);
            continue;
        }
        sum_placed(slot, to);
        struct write_run run = {to->storage,     data + (to->offset - offset), to->offset,
                                to->host_offset, (size_t)to->length,           false};
        add_write(slot->writes, &run);
    }
    return true;
}

static uint8_t *packed_at(const struct slot *slot, uint64_t at)
{
    return slot->pack_buffer + at / slot->copy->packed_unit * image_pack_room(slot->copy->target);
}

/* Places the unit at `offset` compressed, if it got smaller. */
static bool place_packed(struct slot *slot, uint64_t offset, bool *done, GError **error)
{
    uint64_t at = offset - slot->offset;
    uint32_t length = slot->packed[at / slot->copy->packed_unit];
    struct extent to;

    *done = length > 0;
    if (!*done)
        return true;
    if (!image_place_packed(slot->copy->target, offset, length, &to, error))
        return false;
    struct write_run run = {to.storage, packed_at(slot, at), offset, to.host_offset, length, true};
    map_sum_packed(&slot->sum, offset, to.host_offset);
    add_write(slot->writes, &run);
    return true;
}

/* Whole units compressed, the rest as it is. Behind the end of the source, the last one is filled with zeros.
 */
static bool place_units(struct slot *slot, const struct run *run, GError **error)
{
    uint64_t unit = slot->copy->packed_unit, next;

    for (uint64_t offset = run->offset; offset < run->end; offset = next) {
        bool done = false;
        next = (offset / unit + 1) * unit;
        bool whole = offset % unit == 0 && (next <= run->end || run->end == slot->copy->reader.size);
        next = MIN(next, run->end);
        if (whole && !place_packed(slot, offset, &done, error))
            return false;
        if (!done && !place(slot, offset, next - offset, slot_at(slot, offset), error))
            return false;
    }
    return true;
}

/* What the target maps here although nothing was placed (preallocation) belongs to the map too. */
static bool adopt_allocated(struct slot *slot, uint64_t offset, uint64_t end, GError **error)
{
    struct extent extents[16];
    size_t count;

    while (offset < end) {
        if (!image_map(slot->copy->target, offset, end - offset, extents, G_N_ELEMENTS(extents), &count,
                       error))
            return false;
        for (size_t i = 0; i < count; i++) {
            const struct extent *extent = &extents[i];
            offset = extent_end(extent);
            if (extent->status != EXTENT_DATA)
                continue;
            sum_placed(slot, extent);
            struct write_run run = {extent->storage,     slot_at(slot, extent->offset), extent->offset,
                                    extent->host_offset, (size_t)extent->length,        false};
            add_write(slot->checks, &run);
        }
    }
    return true;
}

/* Zeros by metadata where the format can, written where it cannot. `data`: as many zeros. */
static bool make_zeros(struct slot *slot, uint64_t offset, uint64_t end, const uint8_t *data, GError **error)
{
    struct copy *copy = slot->copy;
    uint64_t done = offset, length = 0;

    if (copy->target->format->zero && !image_zero(copy->target, offset, end - offset, &done, &length, error))
        return false;
    if (length == 0)
        done = offset;
    copy->copier.result->counters.bytes_zero += length;
    if (copy->overlay && length)
        map_sum_zero(&slot->sum, done, length);
    for (uint64_t at = offset, next; at < end; at = next) {
        if (at == done && length) {
            next = done + length;
            continue;
        }
        next = MIN(at < done ? done : end, at + SLOT_SIZE);
        if (!place(slot, at, next - at, slot->gap ? data : slot_at(slot, at), error))
            return false;
    }
    return true;
}

static bool place_run(struct slot *slot, const struct run *run, GError **error)
{
    struct copy *copy = slot->copy;

    if (run->kind == RUN_SKIP)
        return true;
    if (run->kind == RUN_DATA)
        return copy->packed_unit
                   ? place_units(slot, run, error)
                   : place(slot, run->offset, run->end - run->offset, slot_at(slot, run->offset), error);
    if (!copy->zero_is_free)
        return make_zeros(slot, run->offset, run->end, NULL, error);
    copy->copier.result->counters.bytes_zero += run->end - run->offset;
    return copy->identity || adopt_allocated(slot, run->offset, run->end, error);
}

/* ---- what will be read back ---- */

static bool touches(const GArray *runs, uint64_t offset, uint64_t end, enum run_kind kind)
{
    for (guint i = 0; i < runs->len; i++) {
        const struct run *run = &g_array_index(runs, struct run, i);
        if (run->kind == kind && run->offset < end && run->end > offset)
            return true;
    }
    return false;
}

/* Reads back [offset, +length), which need not have been written: the target is in place. */
static bool check_place(struct slot *slot, uint64_t offset, uint64_t length, GError **error)
{
    g_autoptr(GArray) placements = g_array_new(FALSE, FALSE, sizeof(struct placement));

    if (!image_place(slot->copy->target, offset, length, placements, error))
        return false;
    for (guint i = 0; i < placements->len; i++) {
        const struct extent *to = &g_array_index(placements, struct placement, i).to;
        struct write_run run = {to->storage,     slot_at(slot, to->offset), to->offset,
                                to->host_offset, (size_t)to->length,        false};
        add_write(slot->checks, &run);
    }
    return true;
}

/* Whole chunks around what was written. */
static bool check_chunks(struct slot *slot, const GArray *runs, GError **error)
{
    for (uint64_t at = slot->offset, next; at < slot->end; at = next) {
        next = MIN(slot->end, (at / DIGEST_CHUNK_SIZE + 1) * DIGEST_CHUNK_SIZE);
        if (touches(runs, at, next, RUN_DATA) && !check_place(slot, at, next - at, error))
            return false;
    }
    return true;
}

/* Everything that was written.  Where everything has its place, with the zeros around it: so what the target
 * shows there is proved and not only what was written.  Not beside holes that are kept: what is in them is
 * not known. */
static bool find_checks(struct slot *slot, const GArray *runs, GError **error)
{
    bool chunks = slot->copy->identity && !touches(runs, slot->offset, slot->end, RUN_SKIP);

    if (chunks && !check_chunks(slot, runs, error))
        return false;
    for (guint i = 0; i < slot->writes->len; i++) {
        const struct write_run *run = &g_array_index(slot->writes, struct write_run, i);
        if (!chunks || !touches(runs, run->guest, run->guest + run->length, RUN_DATA))
            add_write(slot->checks, run);
    }
    return true;
}

/* Files are grown before they are written, all at once and in order: a write that need not extend
 * the file does not wait for others. Everything in flight ends below the size by the same rule. */
static bool grow(struct slot *slot, GError **error)
{
    for (guint i = 0; i < slot->writes->len; i++) {
        const struct write_run *run = &g_array_index(slot->writes, struct write_run, i);
        uint64_t end = run->host + run->length;
        if (run->storage->direct_fd >= 0 && run->storage->growable && end > run->storage->size &&
            !storage_resize(run->storage, end, error))
            return false;
    }
    for (guint i = 0; i < slot->fills->len; i++) {
        const struct extent *to = &g_array_index(slot->fills, struct placement, i).to;
        if (to->storage->growable && to->host_offset + to->length > to->storage->size &&
            !storage_resize(to->storage, to->host_offset + to->length, error))
            return false;
    }
    return true;
}

static void start_writes(struct slot *slot, GError *error)
{
    if (!error)
        grow(slot, &error);
    if (error)
        slot_fail(slot, error);
    else
        slot_write(slot);
}

void slot_stage(struct slot *slot)
{
    struct copy *copy = slot->copy;
    GError *error = NULL;

    slot->salvaged = slot->load.bad != NULL;
    load_report_bad(&slot->load);
    if (copy->copier.options->digests)
        hash_store(&slot->hash, copy->copier.options->digests);
    slot->state = SLOT_WRITING;
    g_autoptr(GArray) runs = find_runs(slot);
    for (guint i = 0; i < runs->len && !error; i++)
        place_run(slot, &g_array_index(runs, struct run, i), &error);
    if (!copy->copier.options->read_back)
        g_array_set_size(slot->checks, 0);
    else if (!error)
        find_checks(slot, runs, &error);
    start_writes(slot, error);
}

void gap_stage(struct slot *slot)
{
    uint64_t next = MIN(slot->end, (slot->cursor / GAP_STEP + 1) * GAP_STEP);
    GError *error = NULL;

    if (!slot->copy->zeros)
        slot->copy->zeros = g_malloc0(SLOT_SIZE);
    slot->state = SLOT_WRITING;
    if (make_zeros(slot, slot->cursor, next, slot->copy->zeros, &error) &&
        slot->copy->copier.options->read_back)
        g_array_append_vals(slot->checks, slot->writes->data, slot->writes->len);
    slot->cursor = error ? slot->cursor : next;
    start_writes(slot, error);
}

/* ---- packing ---- */

struct pack_job {
    struct ring_op op;
    struct slot *slot;
    uint64_t at;
};

static bool pack(struct ring_op *op, GError **error)
{
    struct pack_job *job = (struct pack_job *)op;
    struct slot *slot = job->slot;
    uint64_t unit = slot->copy->packed_unit;
    size_t length = 0;

    if (is_zero(slot->load.buffer + job->at, unit))
        return true;
    if (!image_pack(slot->copy->target, slot->offset + job->at, slot->load.buffer + job->at,
                    packed_at(slot, job->at), &length, error))
        return false;
    slot->packed[job->at / unit] = (uint32_t)length;
    return true;
}

static void pack_done(struct ring_op *op)
{
    struct pack_job *job = (struct pack_job *)op;
    struct slot *slot = job->slot;

    if (op->error)
        slot_fail(slot, op->error);
    g_free(job);
    if (--slot->pending == 0 && slot->state == SLOT_PREPARING)
        slot_prepared(slot);
}

void slot_pack(struct slot *slot)
{
    uint64_t unit = slot->copy->packed_unit;

    slot->packed = g_new0(uint32_t, SLOT_SIZE / unit);
    for (uint64_t at = 0; at < slot->load.length; at += unit) {
        struct pack_job *job = g_new0(struct pack_job, 1);
        job->slot = slot;
        job->at = at;
        job->op = (struct ring_op){.kind = RING_CALL, .call = pack, .done = pack_done};
        slot->pending++;
        copier_submit(&slot->copy->copier, &job->op);
    }
}
