/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What follows the placing of a slot: fills, writes, reading back and comparing. */
#include "blockmig/copy/slot.h"
#include "formats/error.h"

#include <config.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MIN_CLONE   ((uint64_t)64 << 10)
#define CLONE_BLOCK ((uint64_t)4096)
#define FILL_STEP   ((uint64_t)1 << 20)

/* A request of a slot: `run` is what it writes or checks. */
struct task {
    struct ring_op op;
    struct slot *slot;
    struct write_run run;
    struct placement fill;
    uint8_t *below; /* of a fill: what the backing layer has there */
    GArray *seeds;  /* of struct storage_seed; or NULL */
};

static struct task *task_new(struct slot *slot, const struct write_run *run)
{
    struct task *task = g_new0(struct task, 1);

    task->slot = slot;
    if (run)
        task->run = *run;
    return task;
}

static void task_submit(struct task *task)
{
    task->slot->pending++;
    copier_submit(&task->slot->copy->copier, &task->op);
}

/* Frees the task; its failure becomes the slot's. */
static struct slot *task_finish(struct task *task)
{
    struct slot *slot = task->slot;

    if (task->op.error)
        slot_fail(slot, task->op.error);
    g_free(task->below);
    g_clear_pointer(&task->seeds, g_array_unref);
    g_free(task);
    slot->pending--;
    return slot;
}

/* ---- writes ---- */

static void written(struct ring_op *op)
{
    struct task *task = (struct task *)op;

    if (!op->error)
        task->slot->copy->copier.result->counters.bytes_written += task->run.length;
    struct slot *slot = task_finish(task);
    if (slot->pending == 0)
        slot_written(slot);
}

static struct write_run part_of(const struct write_run *whole, size_t at, size_t length)
{
    struct write_run run = *whole;

    run.data += at;
    run.guest += at;
    run.host += at;
    run.length = length;
    return run;
}

static void add_seed(struct task *task, const struct extent *extent)
{
    const struct write_run *run = &task->run;
    struct storage_seed seed = {run->host + (extent->offset - run->guest), extent->length, extent->storage,
                                extent->host_offset};

    if (extent->status == EXTENT_DATA && run->storage->ops->seeds(run->storage, extent->storage))
        g_array_append_val(task->seeds, seed);
}

/* Where the seed has what is written.  It may be damaged, or change meanwhile: then it is of no use. */
static void find_seeds(struct task *task)
{
    struct copy *copy = task->slot->copy;
    const struct write_run *run = &task->run;
    uint64_t end = run->guest + run->length;
    struct extent extent;

    if (copy->no_seed || run->packed || !run->storage->ops->seeds)
        return;
    task->seeds = g_array_new(FALSE, FALSE, sizeof(struct storage_seed));
    for (uint64_t guest = run->guest; guest < end && !copy->no_seed; guest = extent_end(&extent)) {
        copy->no_seed = !reader_extent(&copy->seed, guest, end, &extent, NULL);
        if (!copy->no_seed)
            add_seed(task, &extent);
    }
    task->op.seeds = (const struct storage_seed *)(void *)task->seeds->data;
    task->op.seed_count = task->seeds->len;
}

static void submit_write(struct slot *slot, const struct write_run *whole, size_t at, size_t length,
                         bool buffered)
{
    if (length == 0)
        return;
    struct write_run run = part_of(whole, at, length);
    struct task *task = task_new(slot, &run);
    task->op = (struct ring_op){
        .kind = RING_WRITE,
        .storage = run.storage,
        .buffer = (void *)run.data,
        .length = run.length,
        .offset = run.host,
        .buffered = buffered,
        .done = written,
    };
    find_seeds(task);
    task_submit(task);
}

/* Direct and buffered writes to different parts of one page can undo each other.  So only whole pages are
 * written directly; what is left at the ends goes through the page cache, where parts of a page get on. */
static void write_run(struct slot *slot, const struct write_run *run)
{
    size_t page = MAX((size_t)sysconf(_SC_PAGESIZE), run->storage->alignment);
    struct split split = split_range(run->storage, run->data, run->length, run->host, page);

    submit_write(slot, run, 0, split.head, true);
    submit_write(slot, run, split.head, split.middle, false);
    submit_write(slot, run, split.head + split.middle, split.tail, true);
}

/* ---- sharing blocks ----
 * Only reflink: copy_file_range() without it is a copy through the page cache of what we have already read.
 * The digests come from the data that was read, and the read-back looks at the shared blocks all the same. */

static bool can_share(struct copy *copy, struct storage *from, struct storage *to)
{
    struct stat a, b;
    gpointer known;

    if (copy->no_reflink || from->buffered_fd < 0 || to->buffered_fd < 0)
        return false;
    if (!g_hash_table_lookup_extended(copy->reflinks, from, NULL, &known)) {
        bool same = fstat(from->buffered_fd, &a) == 0 && fstat(to->buffered_fd, &b) == 0 &&
                    S_ISREG(a.st_mode) && S_ISREG(b.st_mode) && a.st_dev == b.st_dev;
        known = GINT_TO_POINTER(same);
        g_hash_table_insert(copy->reflinks, from, known);
    }
    return GPOINTER_TO_INT(known);
}

/* The first refusal is the last attempt; what was refused is written. */
static void cloned(struct ring_op *op)
{
    struct task *task = (struct task *)op;
    struct copy *copy = task->slot->copy;

    if (op->error) {
        copy->no_reflink = true;
        g_clear_error(&op->error);
        write_run(task->slot, &task->run);
    } else {
        copy->copier.result->counters.bytes_cloned += task->run.length;
    }
    struct slot *slot = task_finish(task);
    if (slot->pending == 0)
        slot_written(slot);
}

/* Clones the whole blocks of part [at, at + length) of a run, which the source has at `host`; false: not
 * worth it or not possible. */
static bool clone_part(struct slot *slot, const struct write_run *whole, size_t at, size_t length,
                       const struct extent *source, uint64_t host)
{
    uint64_t begin = (whole->host + at + CLONE_BLOCK - 1) & ~(CLONE_BLOCK - 1);
    uint64_t end = (whole->host + at + length) & ~(CLONE_BLOCK - 1);
    uint64_t skip = begin - (whole->host + at);

    if (begin >= end || end - begin < MIN_CLONE || (host + skip) % CLONE_BLOCK ||
        !can_share(slot->copy, source->storage, whole->storage))
        return false;
    struct write_run run = *whole;
    run.data += at + skip;
    run.guest += at + skip;
    run.host = begin;
    run.length = (size_t)(end - begin);
    struct task *task = task_new(slot, &run);
    task->op = (struct ring_op){
        .kind = RING_CLONE,
        .storage = whole->storage,
        .offset = begin,
        .length = run.length,
        .from = source->storage,
        .from_offset = host + skip,
        .done = cloned,
    };
    task_submit(task);
    submit_write(slot, whole, at, skip, true);
    submit_write(slot, whole, at + skip + run.length, length - skip - run.length, true);
    return true;
}

/* Writes a run, or shares what of it the source has in raw form on the same file system. */
static void write_or_share(struct slot *slot, const struct write_run *run)
{
    size_t at = 0;

    for (guint i = 0; !slot->copy->no_reflink && i < slot->load.extents->len && at < run->length; i++) {
        const struct extent *extent = &g_array_index(slot->load.extents, struct extent, i);
        uint64_t begin = MAX(extent->offset, run->guest + at);
        uint64_t end = MIN(extent_end(extent), run->guest + run->length);
        if (extent->status != EXTENT_DATA || begin >= end)
            continue;
        if (!clone_part(slot, run, begin - run->guest, end - begin, extent,
                        extent->host_offset + (begin - extent->offset)))
            continue;
        struct write_run before = *run;
        before.data += at;
        before.guest += at;
        before.host += at;
        before.length = begin - run->guest - at;
        if (before.length)
            write_run(slot, &before);
        at = end - run->guest;
    }
    struct write_run rest = *run;
    rest.data += at;
    rest.guest += at;
    rest.host += at;
    rest.length -= at;
    if (rest.length)
        write_run(slot, &rest);
}

static void start_writes(struct slot *slot)
{
    /* A salvaged slot is not what its source holds; zeros of a gap and packed units are nowhere to be shared.
     */
    bool share = !slot->gap;

    slot->pending++; /* so that slot_written() comes once, at the end */
    for (guint i = 0; i < slot->writes->len; i++) {
        const struct write_run *run = &g_array_index(slot->writes, struct write_run, i);
        if (share && !run->packed && !slot->salvaged)
            write_or_share(slot, run);
        else
            write_run(slot, run);
    }
    g_array_set_size(slot->writes, 0);
    if (--slot->pending == 0)
        slot_written(slot);
}

/* ---- fills ---- */

static bool fill_source(struct task *task, uint64_t at, uint8_t *data, size_t length, GError **error)
{
    const struct extent *from = &task->fill.from;

    if (from->status == EXTENT_DATA)
        return direct_read(from->storage, data, length, from->host_offset + at, true, error);
    if (task->below)
        memcpy(data, task->below + at, length);
    else
        memset(data, 0, length);
    return true;
}

static bool fill_compare(struct task *task, uint64_t at, const uint8_t *data, uint8_t *back, size_t length,
                         GError **error)
{
    const struct extent *to = &task->fill.to;

    if (to->storage->ops->check)
        return storage_check(to->storage, data, length, to->host_offset + at, error);
    if (!direct_read(to->storage, back, length, to->host_offset + at, true, error))
        return false;
    if (!memcmp(data, back, length))
        return true;
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_DIFFERENT,
                "%s: what was written around guest bytes %" G_GUINT64_FORMAT "+%zu (at %" G_GUINT64_FORMAT
                ") reads back different",
                to->storage->name, to->offset + at, length, to->host_offset + at);
    return false;
}

/* In a thread: fills are small and rare.  Those that are zeros stay thin. */
static bool fill_task(struct ring_op *op, GError **error)
{
    struct task *task = (struct task *)op;
    const struct extent *to = &task->fill.to;
    bool by_zeroing =
        task->fill.from.status == EXTENT_ZERO && !task->slot->copy->copier.options->write_zeroes;
    bool read_back = task->slot->copy->copier.options->read_back;
    g_autofree uint8_t *data = g_malloc(MIN(to->length, FILL_STEP));
    g_autofree uint8_t *back = read_back ? g_malloc(MIN(to->length, FILL_STEP)) : NULL;

    for (uint64_t at = 0; at < to->length; at += FILL_STEP) {
        size_t length = (size_t)MIN(FILL_STEP, to->length - at);
        if (!fill_source(task, at, data, length, error) ||
            !(by_zeroing ? storage_zero(to->storage, to->host_offset + at, length, true, error)
                         : storage_pwrite(to->storage, data, length, to->host_offset + at, error)) ||
            (read_back && !fill_compare(task, at, data, back, length, error)))
            return false;
    }
    return true;
}

static void filled(struct ring_op *op)
{
    struct task *task = (struct task *)op;

    if (!op->error)
        task->slot->copy->copier.result->counters.bytes_written += task->fill.to.length;
    struct slot *slot = task_finish(task);
    if (slot->pending == 0)
        start_writes(slot);
}

/* What an image has at a place is asked in this thread: images and chains belong to one. */
static bool fetch_below(struct task *task, GError **error)
{
    const struct extent *from = &task->fill.from;
    struct copy *copy = task->slot->copy;

    if (from->status == EXTENT_PACKED) {
        g_autofree uint8_t *packed = g_malloc(MAX(from->packed_length, 1));
        g_autofree uint8_t *unit = g_malloc(copy->target->packed_unit);
        uint64_t size = from->storage->size;
        size_t length = MIN(from->packed_length, size > from->host_offset ? size - from->host_offset : 0);
        if (!storage_pread(from->storage, packed, length, from->host_offset, error) ||
            !image_unpack(copy->target, from->offset - from->skip, packed, length, unit, error))
            return false;
        task->below = g_memdup2(unit + from->skip, from->length);
    } else if (from->status == EXTENT_HOLE && copy->copier.options->target_backing) {
        struct chain *below = copy->copier.options->target_backing;
        uint64_t size = MAX(below->size, from->offset);
        task->below = g_malloc0(from->length);
        return chain_read(below, task->below, MIN(from->length, size - from->offset), from->offset, error);
    } else if (from->status == EXTENT_HOLE && copy->overlay) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED,
                    "guest bytes %" G_GUINT64_FORMAT "+%" G_GUINT64_FORMAT
                    " of the backing layer are needed to fill a cluster, but it is not open",
                    from->offset, from->length);
        return false;
    }
    return true;
}

struct placement fill_part(const struct placement *fill, uint64_t from, uint64_t to)
{
    struct placement part = *fill;
    uint64_t at = from - fill->to.offset;

    part.to.offset = part.from.offset = from;
    part.to.length = part.from.length = to - from;
    part.to.host_offset += at;
    part.from.host_offset += part.from.status == EXTENT_DATA ? at : 0;
    part.from.skip += part.from.status == EXTENT_PACKED ? at : 0;
    return part;
}

/* At once: the next slots may write there as soon as they are placed.  Bounds the memory, too. */
static void fill_now(struct slot *slot, const struct placement *fill)
{
    uint64_t end = extent_end(&fill->to);
    GError *error = NULL;

    for (uint64_t at = fill->to.offset, next; at < end && !error; at = next) {
        struct task task = {.slot = slot};

        next = MIN(end, at + FILL_STEP);
        task.fill = fill_part(fill, at, next);
        if (fetch_below(&task, &error) && fill_task(&task.op, &error))
            slot->copy->copier.result->counters.bytes_written += next - at;
        g_free(task.below);
    }
    if (error)
        slot_fail(slot, error);
}

static void start_fill(struct slot *slot, const struct placement *placement)
{
    struct task *task;
    GError *error = NULL;

    if (placement->to.offset < slot->offset || extent_end(&placement->to) > slot->end) {
        fill_now(slot, placement);
        return;
    }
    task = task_new(slot, NULL);
    task->fill = *placement;
    task->op = (struct ring_op){.kind = RING_CALL, .call = fill_task, .done = filled};
    if (fetch_below(task, &error)) {
        task_submit(task);
        return;
    }
    slot_fail(slot, error);
    g_free(task->below);
    g_free(task);
}

/* Fills come first: they go through the page cache and may touch pages that the slot writes directly. */
void slot_write(struct slot *slot)
{
    slot->pending++;
    for (guint i = 0; i < slot->fills->len && slot->state != SLOT_FAILED; i++) {
        const struct placement *fill = &g_array_index(slot->fills, struct placement, i);

        if (!fill->clean)
            start_fill(slot, fill);
    }
    g_array_set_size(slot->fills, 0);
    if (--slot->pending == 0)
        start_writes(slot);
}

/* ---- reading back ---- */

static size_t first_difference(const uint8_t *a, const uint8_t *b, size_t length)
{
    size_t i = 0;
    while (i < length && a[i] == b[i])
        i++;
    return i;
}

static GError *different(const struct write_run *run, const uint8_t *back)
{
    size_t first = first_difference(run->data, back, run->length), last = run->length;

    while (last > first + 1 && run->data[last - 1] == back[last - 1])
        last--;
    return g_error_new(BLOCKMIG_ERROR, BLOCKMIG_ERROR_DIFFERENT,
                       "%s: what was written reads back different: guest bytes %" G_GUINT64_FORMAT
                       "+%zu, at %" G_GUINT64_FORMAT,
                       run->storage->name, run->guest + first, last - first, run->host + first);
}

static void checked(struct ring_op *op)
{
    struct task *task = (struct task *)op;
    const struct write_run *run = &task->run;

    /* CALL, CHECK: compared already. */
    if (!op->error && op->kind == RING_READ && memcmp(run->data, op->buffer, run->length))
        op->error = different(run, op->buffer);
    if (!op->error)
        task->slot->copy->copier.result->counters.bytes_verified += run->length;
    struct slot *slot = task_finish(task);
    if (slot->pending == 0)
        slot_done(slot);
}

/* A compressed unit must be there and lead back to the guest's bytes. */
static bool check_packed(struct task *task, const uint8_t *back, GError **error)
{
    struct copy *copy = task->slot->copy;
    g_autofree uint8_t *unit = g_malloc(copy->packed_unit);

    if (!image_unpack(copy->target, task->run.guest, back, task->run.length, unit, error))
        return false;
    if (!memcmp(unit, slot_at(task->slot, task->run.guest), copy->packed_unit))
        return true;
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_DIFFERENT,
                "%s: the compressed unit at guest offset %" G_GUINT64_FORMAT " does not unpack to its data",
                task->run.storage->name, task->run.guest);
    return false;
}

/* In a thread, with a buffer of its own: compressed units, and zeros that were written into gaps. */
static bool check_apart(struct ring_op *op, GError **error)
{
    struct task *task = (struct task *)op;
    const struct write_run *run = &task->run;
    g_autofree uint8_t *back = NULL;

    if (run->storage->ops->check)
        return storage_check(run->storage, run->data, run->length, run->host, error) &&
               check_packed(task, run->data, error);
    back = g_malloc(run->length);
    if (!direct_read(run->storage, back, run->length, run->host, true, error))
        return false;
    if (memcmp(back, run->data, run->length)) {
        g_propagate_error(error, different(run, back));
        return false;
    }
    return !run->packed || check_packed(task, back, error);
}

/* CALL, CHECK: nothing is brought here to be compared. */
static enum ring_kind kind_of_check(const struct slot *slot, const struct write_run *run)
{
    if (!run->packed && run->storage->ops->check)
        return RING_CHECK;
    return run->packed || slot->gap ? RING_CALL : RING_READ;
}

static void submit_check(struct slot *slot, const struct write_run *whole, size_t at, size_t length)
{
    if (length == 0)
        return;
    struct write_run run = part_of(whole, at, length);
    struct task *task = task_new(slot, &run);
    enum ring_kind kind = kind_of_check(slot, &run);
    task->op = (struct ring_op){
        .kind = kind,
        .call = check_apart,
        .storage = run.storage,
        .buffer = kind == RING_READ ? slot->back + (run.guest - slot->offset) : (void *)run.data,
        .length = run.length,
        .offset = run.host,
        .past_cache = true,
        .done = checked,
    };
    task_submit(task);
}

void slot_check(struct slot *slot)
{
    slot->state = SLOT_CHECKING;
    slot->pending++;
    for (guint i = 0; i < slot->checks->len; i++) {
        const struct write_run *run = &g_array_index(slot->checks, struct write_run, i);
        struct split split = {.head = run->length};
        if (!run->packed && !slot->gap)
            split = split_range(run->storage, slot->back + (run->guest - slot->offset), run->length,
                                run->host, run->storage->alignment);
        submit_check(slot, run, 0, split.head);
        submit_check(slot, run, split.head, split.middle);
        submit_check(slot, run, split.head + split.middle, split.tail);
    }
    g_array_set_size(slot->checks, 0);
    if (--slot->pending == 0)
        slot_done(slot);
}
