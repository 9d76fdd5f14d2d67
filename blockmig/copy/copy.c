/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The loop of a copy: which slot does its next step when.  See slot.h for the states. */
#include "blockmig/copy/slot.h"
#include "formats/error.h"

#include <config.h>

#define CHECKPOINT_BYTES (UINT64_C(2) << 30)
#define CHECKPOINT_TIME  (5 * G_USEC_PER_SEC)
#define EARLY_FLUSH      (UINT64_C(128) << 20)
#define FEED_STEPS       1000 /* gaps passed over before somebody looks at the clock again */

/* ---- slots ---- */

uint8_t *slot_at(const struct slot *slot, uint64_t guest)
{
    return slot->load.buffer + (guest - slot->offset);
}

static struct slot *slot_new(struct copy *copy, uint64_t offset, uint64_t end)
{
    struct slot *slot = g_new0(struct slot, 1);

    slot->copy = copy;
    slot->offset = slot->cursor = slot->settled = offset;
    slot->end = end;
    slot->fills = g_array_new(FALSE, FALSE, sizeof(struct placement));
    slot->writes = g_array_new(FALSE, FALSE, sizeof(struct write_run));
    slot->checks = g_array_new(FALSE, FALSE, sizeof(struct write_run));
    return slot;
}

static void slot_give_buffers(struct slot *slot)
{
    struct copier *copier = &slot->copy->copier;

    if (slot->load.buffer)
        slot->copy->loaded_slots--;
    copier_give_buffer(copier, g_steal_pointer(&slot->load.buffer));
    g_clear_pointer(&slot->pack_buffer, g_free);
    copier_give_buffer(copier, g_steal_pointer(&slot->back));
}

static void slot_free(struct slot *slot)
{
    if (!slot)
        return;
    slot_give_buffers(slot);
    load_clear(&slot->load);
    g_array_unref(slot->fills);
    g_array_unref(slot->writes);
    g_array_unref(slot->checks);
    g_free(slot->packed);
    g_free(slot);
}

void slot_fail(struct slot *slot, GError *error)
{
    slot->state = SLOT_FAILED;
    slot->copy->target_failed = true;
    copier_fail(&slot->copy->copier, error);
}

void slot_prepared(struct slot *slot)
{
    slot->state = SLOT_READY;
}

static void slot_step_prepared(struct slot *slot)
{
    if (--slot->pending == 0 && slot->state == SLOT_PREPARING)
        slot_prepared(slot);
}

static void hash_ready(struct hash *hash)
{
    slot_step_prepared((struct slot *)hash->load);
}

static void slot_loaded(struct load *load)
{
    struct slot *slot = (struct slot *)load;

    if (slot->copy->copier.error) {
        slot->state = SLOT_FAILED;
        return;
    }
    slot->state = SLOT_PREPARING;
    slot->pending = 1;
    if (slot->copy->packed_unit)
        slot_pack(slot);
    if (slot->copy->copier.options->patch)
        slot_step_prepared(slot);
    else
        hash_start(&slot->hash, load, slot->copy->copier.options->digests, hash_ready);
}

void slot_written(struct slot *slot)
{
    if (slot->state == SLOT_FAILED)
        return;
    if (slot->checks->len)
        slot->state = SLOT_WRITTEN;
    else
        slot_done(slot);
}

void slot_done(struct slot *slot)
{
    if (slot->state == SLOT_FAILED)
        return;
    map_sum_add(&slot->sum_done, &slot->sum);
    slot->sum = (struct copy_map_sum){0};
    slot->settled = slot->cursor;
    if (slot->gap && slot->cursor < slot->end) {
        slot->state = SLOT_READY;
        return;
    }
    slot->state = SLOT_DONE;
    slot_give_buffers(slot);
}

/* ---- feeding ---- */

/* Buffers for reading back are set aside, or the loaded slots could wait for each other for ever. */
static unsigned max_loaded(const struct copy *copy)
{
    unsigned count = copy->copier.buffer_count;

    if (copy->copier.options->read_back)
        count -= count / 3;
    return copy->packed_unit ? count / 2 : count;
}

static void push_slot(struct copy *copy, struct slot *slot)
{
    g_queue_push_tail(&copy->slots, slot);
    if (!copy->unstaged)
        copy->unstaged = copy->slots.tail;
    copy->feed = slot->end;
}

static void push_gap(struct copy *copy, uint64_t end)
{
    struct slot *slot = slot_new(copy, copy->feed, end);

    slot->gap = true;
    slot->state = SLOT_READY;
    push_slot(copy, slot);
}

/* Whole slots of zeros or holes from `feed` on: passed over where they cost nothing. */
static void pass_gap(struct copy *copy, uint64_t end, enum extent_status status)
{
    if (status == EXTENT_ZERO && !copy->zero_is_free) {
        push_gap(copy, end);
        return;
    }
    if (status == EXTENT_ZERO)
        copy->copier.result->counters.bytes_zero += end - copy->feed;
    copy->feed = end;
}

static bool plan_slot(struct copy *copy, uint64_t end)
{
    struct slot *slot;
    GError *error = NULL;

    if (copy->loaded_slots >= max_loaded(copy) || !copy->copier.free_count)
        return false;
    slot = slot_new(copy, copy->feed, end);
    slot->load.done = slot_loaded;
    if (copy->packed_unit)
        slot->pack_buffer = g_malloc(SLOT_SIZE / copy->packed_unit * image_pack_room(copy->target));
    copy->loaded_slots++;
    if (!load_plan(&slot->load, &copy->reader, copy->feed, (size_t)(end - copy->feed),
                   copier_take_buffer(&copy->copier), &error))
        copier_fail(&copy->copier, error);
    copy->planned = slot;
    return true;
}

static bool start_planned(struct copy *copy)
{
    struct slot *slot = copy->planned;

    if (!copier_may_read(&copy->copier, slot->load.data))
        return false;
    copy->planned = NULL;
    push_slot(copy, slot);
    load_start(&slot->load);
    return true;
}

/* One slot or one gap; false: not now. */
static bool feed_one(struct copy *copy)
{
    enum extent_status status;
    uint64_t run_end, end;
    GError *error = NULL;

    if (copy->planned)
        return start_planned(copy);
    if (copy->feed >= copy->end) {
        pass_gap(copy, copy->target_end, EXTENT_ZERO);
        return true;
    }
    if (!reader_run(&copy->reader, copy->feed, copy->end, &status, &run_end, &error)) {
        copier_fail(&copy->copier, error);
        return false;
    }
    end = MIN(copy->end, (copy->feed / SLOT_SIZE + 1) * SLOT_SIZE);
    if (run_end >= end &&
        (status == EXTENT_HOLE || (status == EXTENT_ZERO && !copy->copier.options->write_zeroes))) {
        pass_gap(copy, run_end == copy->end ? run_end : run_end / SLOT_SIZE * SLOT_SIZE, status);
        return true;
    }
    return plan_slot(copy, end);
}

static void feed(struct copy *copy)
{
    for (unsigned i = 0; i < FEED_STEPS && copy->feed < copy->target_end && !copy->copier.error; i++) {
        if (!feed_one(copy))
            return;
    }
}

/* ---- the steps after it ---- */

static uint64_t frontier(const struct copy *copy)
{
    const struct slot *slot = g_queue_peek_head((GQueue *)&copy->slots);
    uint64_t offset = !slot ? copy->feed : slot->gap ? slot->settled : slot->offset;

    return MIN(offset, copy->end);
}

/* By the data that was placed since the last one, or by time. */
static bool is_due(const struct copy *copy)
{
    const struct copy_options *options = copy->copier.options;
    uint64_t bytes = options->checkpoint_bytes ? options->checkpoint_bytes : CHECKPOINT_BYTES;

    if (!options->checkpoint)
        return false;
    return copy->staged_data >= bytes ||
           (!options->checkpoint_bytes && frontier(copy) != copy->checkpoint_position &&
            g_get_monotonic_time() - copy->checkpoint_time >= CHECKPOINT_TIME);
}

/* In guest order, which is what makes the layout of a target the same every time. */
static void stage(struct copy *copy)
{
    while (copy->unstaged && !copy->draining && !copy->copier.error) {
        struct slot *slot = copy->unstaged->data;
        if (slot->state != SLOT_READY)
            return;
        if (slot->gap)
            gap_stage(slot);
        else
            slot_stage(slot);
        copy->staged_data += slot->load.data;
        copy->draining = is_due(copy);
        if (slot->gap && slot->cursor < slot->end)
            return; /* its next step when this one is done, and after a look at the clock */
        copy->unstaged = copy->unstaged->next;
    }
}

static void check(struct copy *copy)
{
    for (GList *link = copy->slots.head; link && link->data; link = link->next) {
        struct slot *slot = link->data;
        if (slot->state != SLOT_WRITTEN)
            continue;
        if (!slot->gap && !(slot->back = copier_take_buffer(&copy->copier)))
            return;
        slot_check(slot);
    }
}

/* What is DONE at the head is finished in every respect; its part of the sum counts from now on. */
static void retire(struct copy *copy)
{
    struct copy_counters *counters = &copy->copier.result->counters;
    struct slot *slot;

    while ((slot = g_queue_peek_head(&copy->slots)) != NULL) {
        map_sum_add(&copy->sum, &slot->sum_done);
        slot->sum_done = (struct copy_map_sum){0};
        if (slot->state != SLOT_DONE)
            break;
        counters->data_done += slot->load.data;
        slot_free(g_queue_pop_head(&copy->slots));
    }
    counters->position = frontier(copy);
}

/* ---- checkpoints ---- */

/* Everything that was placed is done. */
static bool is_drained(const struct copy *copy)
{
    const struct slot *slot = copy->unstaged ? copy->unstaged->data : NULL;

    return copy->slots.head == copy->unstaged && (!slot || !slot->gap || slot->state == SLOT_READY);
}

/* The order: data is on its way to the medium, the flush makes it and then the metadata durable, and
 * only then may anybody write down that it is there.  Reads go on meanwhile. */
static bool take_checkpoint(struct copy *copy, GError **error)
{
    const struct copy_options *options = copy->copier.options;

    ring_kick(copy->copier.ring);
    if (!image_flush(copy->target, error))
        return false;
    copy->staged_data = 0;
    copy->checkpoint_position = frontier(copy);
    copy->checkpoint_time = g_get_monotonic_time();
    return !options->checkpoint || options->checkpoint(options->opaque, frontier(copy), &copy->sum, error);
}

static void checkpoint_when_due(struct copy *copy)
{
    GError *error = NULL;

    if (!copy->draining || !is_drained(copy) || copy->copier.error)
        return;
    copy->draining = false;
    if (!take_checkpoint(copy, &error)) {
        copy->target_failed = true;
        copier_fail(&copy->copier, error);
    }
}

/* ---- flushing early ---- */

static bool flush_early(struct ring_op *op, GError **error)
{
    return storage_flush(op->storage, error);
}

/* A cache may tell only once that it could not write: so its failure is the copy's. */
static void flushed_early(struct ring_op *op)
{
    struct copy *copy = (struct copy *)((char *)op - offsetof(struct copy, flush));

    copy->flushing = false;
    if (!op->error)
        return;
    copy->target_failed = true;
    copier_fail(&copy->copier, op->error);
}

/* What a server keeps in its cache goes to its medium meanwhile: else all of it is waited for at the end. */
static void flush_early_when_due(struct copy *copy)
{
    struct storage *storage = copy->target->storage;
    uint64_t written = copy->copier.result->counters.bytes_written;

    if (!storage->cached || copy->flushing || copy->copier.error || written - copy->flushed < EARLY_FLUSH)
        return;
    copy->flushing = true;
    copy->flushed = written;
    copy->flush =
        (struct ring_op){.kind = RING_CALL, .storage = storage, .call = flush_early, .done = flushed_early};
    copier_submit(&copy->copier, &copy->flush);
}

/* ---- the run ---- */

/* For g_queue_find_custom(): 0 is what is looked for. */
static gint not_checked_yet(gconstpointer slot, gconstpointer unused)
{
    return ((const struct slot *)slot)->state != SLOT_WRITTEN;
}

/* After a failure nothing new is read or placed.  If the target is in order (no space, cancelled, a source
 * that cannot be read), what was placed is finished and recorded, so that it need not be done again. */
static void wind_down(struct copy *copy)
{
    GError *cause = copy->copier.error;
    bool orderly = !copy->target_failed || g_error_matches(cause, BLOCKMIG_ERROR, BLOCKMIG_ERROR_NOSPACE);

    do {
        if (orderly)
            check(copy);
        copier_drain(&copy->copier);
        retire(copy);
    } while (orderly && g_queue_find_custom(&copy->slots, NULL, not_checked_yet));
    if (orderly && copy->copier.options->checkpoint)
        take_checkpoint(copy, NULL);
}

static void run(struct copy *copy)
{
    GError *error = NULL;

    while (!copy->copier.error && (copy->feed < copy->target_end || !g_queue_is_empty(&copy->slots))) {
        feed(copy);
        stage(copy);
        check(copy);
        retire(copy);
        checkpoint_when_due(copy);
        flush_early_when_due(copy);
        if (copy->feed < copy->target_end || !g_queue_is_empty(&copy->slots))
            copier_wait(&copy->copier);
    }
    if (!copy->copier.error)
        copier_drain(&copy->copier);
    if (!copy->copier.error && !take_checkpoint(copy, &error))
        copier_fail(&copy->copier, error);
    else if (copy->copier.error)
        wind_down(copy);
}

static bool refuse(GError **error, const char *why)
{
    g_set_error_literal(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE, why);
    return false;
}

static bool check_options(const struct copy *copy, const struct chain *source, GError **error)
{
    const struct copy_options *options = copy->copier.options;

    if (source->size > copy->target->size) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED,
                    "%s: %" G_GUINT64_FORMAT " bytes are too few for a source of %" G_GUINT64_FORMAT,
                    copy->target->name, copy->target->size, source->size);
        return false;
    }
    if ((copy->begin % DIGEST_CHUNK_SIZE && copy->begin != source->size) || copy->begin > copy->end)
        return refuse(error, "a copy cannot begin inside a digest chunk or behind its end");
    if (copy->end % DIGEST_CHUNK_SIZE && copy->end != source->size)
        return refuse(error, "a copy cannot end inside a digest chunk");
    if (options->patch && options->digests)
        return refuse(error, "a patch has no digests");
    if (options->compress && !(copy->target->format->flags & FORMAT_PACKS))
        return refuse(error, "the target format cannot be compressed");
    if (copy->packed_unit && (copy->target->packed_unit < 512 || copy->target->packed_unit > SLOT_SIZE))
        return refuse(error, "compressed units of this size cannot be written");
    return true;
}

static void describe_target(struct copy *copy, const struct chain *source, struct image *target)
{
    const struct copy_options *options = copy->copier.options;

    copy->target = target;
    copy->identity = target->identity;
    copy->overlay = image_is_differencing(target);
    copy->whole = source->unit && source->unit % target->granularity == 0;
    copy->zero_is_free = target->reads_zero && !copy->overlay;
    copy->packed_unit = options->compress || target->packed_max ? target->packed_unit : 0;
    /* Of units that are packed, none among the data is zeros: a stream could only leave it out. */
    copy->granule = copy->packed_unit ? copy->packed_unit
                    : copy->identity  ? 4096
                                      : CLAMP(target->cluster_size, 4096, SLOT_SIZE);
    copy->no_reflink = options->no_reflink || options->patch;
}

static bool prepare(struct copy *copy, struct chain *source, struct image *target, GError **error)
{
    const struct copy_options *options = copy->copier.options;
    struct copy_counters *counters = &copy->copier.result->counters;

    describe_target(copy, source, target);
    copy->begin = copy->feed = options->start;
    copy->end = options->end ? MIN(options->end, source->size) : source->size;
    copy->target_end = copy->end;
    if (copy->end == source->size && !source->keep_holes && !copy->zero_is_free)
        copy->target_end = MAX(copy->end, target->size);
    if (!check_options(copy, source, error))
        return false;
    copy->sum = options->map_sum;
    copy->checkpoint_time = g_get_monotonic_time();
    copy->checkpoint_position = counters->position = copy->begin;
    counters->total = copy->end - copy->begin;
    copy->reflinks = g_hash_table_new(NULL, NULL);
    if (options->digests)
        digest_table_truncate(options->digests, (copy->begin + DIGEST_CHUNK_SIZE - 1) / DIGEST_CHUNK_SIZE);
    reader_init(&copy->reader, &copy->copier, source, NULL);
    copy->reader.leave_holes = options->patch;
    copy->no_seed = !options->seed;
    if (options->seed)
        reader_init(&copy->seed, &copy->copier, options->seed, NULL);
    /* Somebody who watches wants to know how much there is; the map is read once more for it. */
    return !options->progress ||
           reader_count(&copy->reader, copy->begin, copy->end, &counters->data_total, error);
}

static void copy_clear(struct copy *copy)
{
    slot_free(copy->planned);
    g_queue_clear_full(&copy->slots, (GDestroyNotify)slot_free);
    g_clear_pointer(&copy->reflinks, g_hash_table_unref);
    g_free(copy->zeros);
    copier_clear(&copy->copier);
}

bool copy_run(struct chain *source, struct image *target, const struct copy_options *options,
              struct copy_result *result, GError **error)
{
    struct copy copy = {.slots = G_QUEUE_INIT};

    if (!copier_init(&copy.copier, options, result, error))
        return false;
    bool ok = prepare(&copy, source, target, error);
    if (ok) {
        run(&copy);
        copier_tell_progress(&copy.copier);
        result->map_sum = copy.sum;
        ok = !copy.copier.error;
        if (!ok)
            g_propagate_error(error, g_steal_pointer(&copy.copier.error));
    }
    copy_clear(&copy);
    return ok;
}

void copy_counters_add(struct copy_counters *total, const struct copy_counters *more)
{
    total->bytes_read += more->bytes_read;
    total->bytes_written += more->bytes_written;
    total->bytes_cloned += more->bytes_cloned;
    total->bytes_zero += more->bytes_zero;
    total->bytes_verified += more->bytes_verified;
}

void copy_result_clear(struct copy_result *result)
{
    g_clear_pointer(&result->bad, g_array_unref);
}
