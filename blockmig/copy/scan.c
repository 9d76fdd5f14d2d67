/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/copy/scan.h"

#include "formats/error.h"

#include <config.h>

struct scan_slot {
    struct load load; /* first */
    struct hash hash;
    struct scan *scan;
};

static void slot_free(struct scan_slot *slot)
{
    copier_give_buffer(&slot->scan->copier, slot->load.buffer);
    slot->scan->slots--;
    load_clear(&slot->load);
    g_free(slot);
}

static void slot_hashed(struct hash *hash)
{
    struct scan_slot *slot = (struct scan_slot *)hash->load;
    struct scan *scan = slot->scan;

    if (!scan->copier.error)
        scan->visit(scan, hash);
    scan->copier.result->counters.data_done += slot->load.data;
    slot_free(slot);
}

static void slot_loaded(struct load *load)
{
    struct scan_slot *slot = (struct scan_slot *)load;

    load_report_bad(load);
    if (slot->scan->copier.error)
        slot_free(slot);
    else
        hash_start(&slot->hash, load, slot->scan->table, slot_hashed);
}

static bool plan(struct scan *scan, GError **error)
{
    uint64_t found;

    if (!reader_next(&scan->reader, scan->position, scan->end, &found, error))
        return false;
    scan->position = MAX(scan->position, found / SLOT_SIZE * SLOT_SIZE);
    if (found == scan->end) {
        scan->position = scan->end;
        return true;
    }
    uint64_t end = MIN(scan->end, (scan->position / SLOT_SIZE + 1) * SLOT_SIZE);
    struct scan_slot *slot = g_new0(struct scan_slot, 1);
    slot->scan = scan;
    slot->load.done = slot_loaded;
    scan->slots++;
    scan->planned = slot;
    return load_plan(&slot->load, &scan->reader, scan->position, (size_t)(end - scan->position),
                     copier_take_buffer(&scan->copier), error);
}

static void feed(struct scan *scan)
{
    GError *error = NULL;

    while (!scan->copier.error && (scan->planned || scan->position < scan->end)) {
        struct scan_slot *slot = scan->planned;
        if (!slot && !scan->copier.free_count)
            return;
        if (!slot && !plan(scan, &error)) {
            copier_fail(&scan->copier, error);
            return;
        }
        slot = scan->planned;
        if (!slot)
            return; /* nothing but zeros is left */
        if (!copier_may_read(&scan->copier, slot->load.data))
            return;
        scan->planned = NULL;
        scan->position = slot->load.offset + slot->load.length;
        load_start(&slot->load);
    }
}

bool scan_run(struct scan *scan, GError **error)
{
    struct copy_counters *counters = &scan->copier.result->counters;

    scan->position = scan->begin;
    counters->total = scan->end - scan->begin;
    if (scan->copier.options->progress &&
        !reader_count(&scan->reader, scan->begin, scan->end, &counters->data_total, error))
        return false;
    while (!scan->copier.error && (scan->position < scan->end || scan->slots)) {
        feed(scan);
        counters->position = scan->position;
        if (scan->slots)
            copier_wait(&scan->copier);
    }
    copier_drain(&scan->copier);
    g_clear_pointer(&scan->planned, slot_free);
    copier_tell_progress(&scan->copier);
    if (scan->copier.error)
        g_propagate_error(error, g_steal_pointer(&scan->copier.error));
    else
        return true;
    return false;
}

static void store(struct scan *scan, const struct hash *hash)
{
    hash_store(hash, scan->opaque);
}

bool copy_digest(struct chain *chain, const struct copy_options *options, struct copy_result *result,
                 GError **error)
{
    struct scan scan = {.begin = options->start,
                        .end = options->end ? options->end : chain->size,
                        .visit = store,
                        .table = options->digests,
                        .opaque = options->digests};

    if (!copier_init(&scan.copier, options, result, error))
        return false;
    digest_table_truncate(options->digests, scan.begin / DIGEST_CHUNK_SIZE);
    reader_init(&scan.reader, &scan.copier, chain, NULL);
    scan.reader.past_cache = true;
    scan.end = MIN(scan.end, chain->size);
    bool ok = scan_run(&scan, error);
    copier_clear(&scan.copier);
    return ok;
}
