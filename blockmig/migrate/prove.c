/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The prove phase: what stands on the target is opened anew and held against the digests, then the receipts
 * are written.
 *
 * While copying, every written byte was read back where it had been placed.  What is left to prove is
 * that the finished metadata leads every guest byte to those places, and that the rest reads as zeros:
 * copy_prove(). A target that an earlier run finished is read in full instead: nobody knows what happened to
 * it since.
 */
#include "blockmig/migrate/cold.h"
#include "blockmig/storage/names.h"
#include "blockmig/store/receipt.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <string.h>

static bool prove_map(struct cold_job *job, struct copy_unit *unit, GError **error)
{
    g_autoptr(image_t) image = cold_reopen(unit, error);
    struct copy_options options = {0};
    struct copy_result result = {0};
    bool ok;

    if (!image)
        return false;
    cold_copy_options(job, &options);
    ok = copy_prove(image, unit->done.digests, &unit->done.map_sum, &options, &result, error);
    copy_result_clear(&result);
    return ok;
}

/* Reads all of an existing target and compares it with the receipt's digests. */
static bool prove_content(struct cold_job *job, struct copy_unit *unit, GError **error)
{
    struct image *image = cold_reopen(unit, error);
    g_autoptr(chain_t) chain = image ? chain_new_single(image, true) : NULL;
    uint64_t differs;

    if (!chain || !cold_first_difference(job, unit, chain, unit->chain->size, &differs, error))
        return false;
    if (differs == unit->chain->size)
        return true;
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_DIFFERENT,
                "%s was changed since it was copied: it differs at byte %" PRIu64, unit->target_path,
                differs);
    return false;
}

/* The receipt borrows everything: it is cleared, not freed. */
static bool write_receipt(struct cold_job *job, struct copy_unit *unit, GError **error)
{
    struct disk_report *report = unit->report;
    g_autofree char *directory = journal_receipts(journal_directory(job->base.journal));
    g_autofree char *path = g_strdup_printf("%s/%s-%u.json", directory, job->base.record->id, unit->index);
    struct receipt receipt = {.job = job->base.record->id,
                              .command = job->base.record->command,
                              .method = job->base.record->method,
                              .source = report->source,
                              .target = report->target,
                              .source_format = report->source_format,
                              .target_format = report->target_format,
                              .verified = (char *)verify_mode_name(job->request->verify),
                              .started = job->base.record->started,
                              .finished = g_get_real_time(),
                              .size = unit->chain->size,
                              .layer = unit->layer,
                              .counters = report->counters,
                              .bad = report->bad,
                              .digests = unit->done.digests};

    if (g_mkdir_with_parents(directory, 0700) < 0)
        return blockmig_set_errno(error, errno, "creating %s", directory);
    if (!receipt_write(&receipt, path, error))
        return false;
    report->receipt = g_strdup(path);
    return cold_save_disk(job, unit, error);
}

static void report_root(struct copy_unit *unit)
{
    uint8_t root[DIGEST_MAX_LENGTH];

    digest_table_root(unit->done.digests, root);
    unit->report->root = digest_to_hex(digest_table_algorithm(unit->done.digests), root);
}

static bool prove_unit(struct cold_job *job, struct copy_unit *unit, GError **error)
{
    const struct job_listener *listener = job->base.listener;

    if (listener->phase)
        listener->phase(listener->opaque, "prove", unit->what);
    report_root(unit);
    if (job->base.already_there) {
        unit->report->counters = unit->done.before;
        unit->report->bad = unit->done.bad ? g_array_ref(unit->done.bad) : NULL;
        return prove_content(job, unit, error);
    }
    if (job->request->verify == VERIFY_FULL && !prove_map(job, unit, error))
        return false;
    return write_receipt(job, unit, error);
}

/* The layer below the last one of `chain`, which becomes the owner; the layer must be its parent. */
static bool stack(struct chain *chain, struct image *image, GError **error)
{
    chain_append(chain, image);
    return image_check_parent(chain_layer(chain, chain_depth(chain) - 2), image, error);
}

/* The copied layers, opened anew and stacked as they will be once they have their names. */
static struct chain *reopen_chain(struct cold_job *job, GError **error)
{
    g_autoptr(chain_t) chain = NULL;

    for (guint i = job->units->len; i-- > 0;) {
        struct copy_unit *unit = g_ptr_array_index(job->units, i);
        struct image *image = cold_reopen(unit, error);

        if (!image)
            return NULL;
        if (!chain)
            chain = chain_new_single(image, false);
        else if (!stack(chain, image, error))
            return NULL;
    }
    return g_steal_pointer(&chain);
}

static bool note_difference(void *opaque, uint64_t offset, uint64_t length)
{
    struct copy_range *range = opaque;

    *range = (struct copy_range){offset, length};
    return false;
}

/* A kept chain: what the guest sees through all layers is the same on both sides. */
static bool prove_chain(struct cold_job *job, GError **error)
{
    const struct job_listener *listener = job->base.listener;
    g_autoptr(chain_t) target = reopen_chain(job, error);
    struct copy_options options = {0};
    struct copy_result result = {0};
    struct copy_range range = {0};
    bool ok;

    if (!target)
        return false;
    if (listener->phase)
        listener->phase(listener->opaque, "prove", "the whole chain");
    cold_copy_options(job, &options);
    options.opaque = &range;
    ok = copy_compare(job->source, target, &options, note_difference, &result, error);
    copy_result_clear(&result);
    if (!ok || range.length == 0)
        return ok;
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_DIFFERENT,
                "the copied chain differs from the source at bytes %" PRIu64 " to %" PRIu64, range.offset,
                range.offset + range.length);
    return false;
}

static bool check_source(const struct copy_unit *unit, GError **error)
{
    bool certain;
    g_autofree char *now = checkpoint_source_identity(unit->chain, &certain, error);

    return now && (strcmp(now, unit->source_identity) == 0 ||
                   blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "%s was written to while it was copied",
                                 unit->report->source));
}

bool cold_check_sources(const struct cold_job *job, GError **error)
{
    for (guint i = 0; i < job->units->len; i++)
        if (!check_source(g_ptr_array_index(job->units, i), error))
            return false;
    return true;
}

/* What has its name may be in use since then, whoever saw to it that it got it: it is replaced only by
 * --force.
 */
static bool may_start_over(const struct cold_job *job, const GError *failure)
{
    bool may = job->base.already_there && !job->base.ended &&
               g_error_matches(failure, BLOCKMIG_ERROR, BLOCKMIG_ERROR_DIFFERENT);

    for (guint i = 0; may && i < job->units->len; i++) {
        const struct copy_unit *unit = g_ptr_array_index(job->units, i);

        may = job->request->force || unit->device || name_exists(unit->part_path);
    }
    return may;
}

/* An earlier run had proved it and was stopped before it said so. */
static bool start_over(struct cold_job *job, GError **error)
{
    job_notice(&job->base, "%s: copying it again from the beginning", (*error)->message);
    g_clear_error(error);
    cold_forget_units(job);
    job->base.already_there = false;
    job->base.go_on_at = "base";
    return journal_checkpoint_clear(job->base.journal, job->base.record, error);
}

bool cold_prove(struct job *base, GError **error)
{
    struct cold_job *job = cold_of(base);

    if (job->deleted)
        return cold_prove_deleted(job, error);
    if (!cold_check_sources(job, error))
        return false;
    for (guint i = 0; i < job->units->len; i++)
        if (!prove_unit(job, g_ptr_array_index(job->units, i), error))
            return may_start_over(job, *error) && start_over(job, error);
    return job->units->len == 1 || job->request->verify != VERIFY_FULL || job->base.already_there ||
           prove_chain(job, error);
}
