/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Two chains side by side.  Pairs of loads are read in any order and compared in guest order, so that
 * differences come ascending and merged. */
#include "blockmig/copy/reader.h"
#include "formats/error.h"

#include <config.h>
#include <string.h>

#define SECTOR 512

struct compare {
    struct copier copier;
    struct reader a, b;
    uint64_t position, end;
    struct pair *planned;
    GQueue pairs;              /* in guest order */
    struct copy_range pending; /* a difference that may go on; length 0: none */
    bool stopped;              /* by the callback */
    bool (*different)(void *opaque, uint64_t offset, uint64_t length);
};

struct side {
    struct load load; /* first */
    struct pair *pair;
};

struct pair {
    struct compare *compare;
    struct side a, b;
    unsigned loading;
};

static void pair_free(struct pair *pair)
{
    if (!pair)
        return;
    copier_give_buffer(&pair->compare->copier, pair->a.load.buffer);
    copier_give_buffer(&pair->compare->copier, pair->b.load.buffer);
    load_clear(&pair->a.load);
    load_clear(&pair->b.load);
    g_free(pair);
}

static void side_loaded(struct load *load)
{
    ((struct side *)load)->pair->loading--;
}

/* ---- differences ---- */

static void flush_difference(struct compare *compare)
{
    struct copy_range range = compare->pending;

    compare->pending.length = 0;
    if (range.length && !compare->stopped &&
        !compare->different(compare->copier.options->opaque, range.offset, range.length))
        compare->stopped = true;
}

static void add_difference(struct compare *compare, uint64_t offset, uint64_t length)
{
    struct copy_range *pending = &compare->pending;

    if (pending->length && pending->offset + pending->length == offset) {
        pending->length += length;
        return;
    }
    flush_difference(compare);
    *pending = (struct copy_range){offset, length};
}

static void compare_pair(struct compare *compare, const struct pair *pair)
{
    const uint8_t *a = pair->a.load.buffer, *b = pair->b.load.buffer;
    size_t length = pair->a.load.length;

    if (!memcmp(a, b, length))
        return;
    for (size_t at = 0; at < length && !compare->stopped; at += SECTOR) {
        size_t sector = MIN(SECTOR, length - at);
        if (memcmp(a + at, b + at, sector))
            add_difference(compare, pair->a.load.offset + at, sector);
    }
}

static void finish_pairs(struct compare *compare)
{
    struct pair *pair;

    while ((pair = g_queue_peek_head(&compare->pairs)) != NULL && !pair->loading) {
        if (!compare->copier.error)
            compare_pair(compare, pair);
        compare->copier.result->counters.data_done += MAX(pair->a.load.data, pair->b.load.data);
        pair_free(g_queue_pop_head(&compare->pairs));
    }
}

/* ---- feeding ---- */

static bool plan_pair(struct compare *compare, uint64_t found, GError **error)
{
    struct pair *pair = g_new0(struct pair, 1);
    uint64_t begin = MAX(compare->position, found / SLOT_SIZE * SLOT_SIZE);
    size_t length = (size_t)(MIN(compare->end, (begin / SLOT_SIZE + 1) * SLOT_SIZE) - begin);

    compare->position = begin;
    compare->planned = pair;
    pair->compare = compare;
    pair->a.pair = pair->b.pair = pair;
    pair->a.load.done = pair->b.load.done = side_loaded;
    return load_plan(&pair->a.load, &compare->a, begin, length, copier_take_buffer(&compare->copier),
                     error) &&
           load_plan(&pair->b.load, &compare->b, begin, length, copier_take_buffer(&compare->copier), error);
}

static bool plan(struct compare *compare, GError **error)
{
    uint64_t a, b;

    if (!reader_next(&compare->a, compare->position, compare->end, &a, error) ||
        !reader_next(&compare->b, compare->position, a, &b, error))
        return false;
    if (MIN(a, b) < compare->end)
        return plan_pair(compare, MIN(a, b), error);
    compare->copier.result->counters.bytes_zero += compare->end - compare->position;
    compare->position = compare->end;
    return true;
}

static void start_pair(struct compare *compare)
{
    struct pair *pair = g_steal_pointer(&compare->planned);

    compare->position = pair->a.load.offset + pair->a.load.length;
    g_queue_push_tail(&compare->pairs, pair);
    pair->loading = 2;
    load_start(&pair->a.load);
    load_start(&pair->b.load);
}

static void feed(struct compare *compare)
{
    GError *error = NULL;

    while (!compare->copier.error && (compare->planned || compare->position < compare->end)) {
        if (!compare->planned && compare->copier.free_count < 2)
            return;
        if (!compare->planned && !plan(compare, &error)) {
            copier_fail(&compare->copier, error);
            return;
        }
        if (!compare->planned ||
            !copier_may_read(&compare->copier, compare->planned->a.load.data + compare->planned->b.load.data))
            return;
        start_pair(compare);
    }
}

static void run(struct compare *compare)
{
    struct copy_counters *counters = &compare->copier.result->counters;

    while (!compare->copier.error && !compare->stopped &&
           (compare->position < compare->end || !g_queue_is_empty(&compare->pairs))) {
        feed(compare);
        finish_pairs(compare);
        counters->position = compare->position;
        if (!g_queue_is_empty(&compare->pairs) || compare->planned)
            copier_wait(&compare->copier);
    }
    copier_drain(&compare->copier);
    if (!compare->copier.error)
        flush_difference(compare);
    copier_tell_progress(&compare->copier);
}

static bool count(struct compare *compare, GError **error)
{
    struct copy_counters *counters = &compare->copier.result->counters;
    uint64_t a, b;

    counters->total = compare->end - compare->position;
    if (!compare->copier.options->progress)
        return true;
    if (!reader_count(&compare->a, compare->position, compare->end, &a, error) ||
        !reader_count(&compare->b, compare->position, compare->end, &b, error))
        return false;
    counters->data_total = MAX(a, b);
    return true;
}

bool copy_compare(struct chain *a, struct chain *b, const struct copy_options *options,
                  bool (*different)(void *opaque, uint64_t offset, uint64_t length),
                  struct copy_result *result, GError **error)
{
    struct compare compare = {.pairs = G_QUEUE_INIT, .different = different, .end = MAX(a->size, b->size)};

    if (!copier_init(&compare.copier, options, result, error))
        return false;
    if (compare.copier.options->end)
        compare.end = MIN(compare.end, compare.copier.options->end);
    compare.position = compare.copier.options->start;
    reader_init(&compare.a, &compare.copier, a, NULL);
    reader_init(&compare.b, &compare.copier, b, NULL);
    compare.a.past_cache = compare.b.past_cache = true;
    bool ok = count(&compare, error);
    if (ok) {
        run(&compare);
        ok = !compare.copier.error;
        if (!ok)
            g_propagate_error(error, g_steal_pointer(&compare.copier.error));
    }
    pair_free(compare.planned);
    g_queue_clear_full(&compare.pairs, (GDestroyNotify)pair_free);
    copier_clear(&compare.copier);
    return ok;
}
