/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/migrate/checkpoint.h"

#include <errno.h>
#include <string.h>

#define WINDOW_BYTES (UINT64_C(256) << 20)
#define MAP_BATCH    256

/* ---- in the journal ------------------------------------------------------------------------------- */

void checkpoint_clear(struct checkpoint *done)
{
    digest_table_free(done->digests);
    g_clear_pointer(&done->bad, g_array_unref);
    *done = (struct checkpoint){0};
}

void checkpoint_begin(struct checkpoint *done, enum digest_algorithm algorithm, uint64_t size)
{
    checkpoint_clear(done);
    done->digests = digest_table_new(algorithm, size);
}

bool checkpoint_load(struct checkpoint *done, const struct job *job, unsigned index,
                     enum digest_algorithm algorithm, uint64_t size, GError **error)
{
    struct journal_checkpoint record = {0};
    g_autoptr(GBytes) digests = NULL;
    bool found = false;
    size_t length;
    const void *data;

    if (!journal_checkpoint_load(job->journal, job->record, index, &record, &digests, &found, error))
        return false;
    if (!found)
        return true;
    data = g_bytes_get_data(digests, &length);
    checkpoint_begin(done, algorithm, size);
    if (!digest_table_unpack(done->digests, data, length, error))
        return false;
    digest_table_truncate(done->digests, (record.frontier + DIGEST_CHUNK_SIZE - 1) / DIGEST_CHUNK_SIZE);
    done->frontier = done->saved = record.frontier;
    done->merged = record.merged;
    done->map_sum = (struct copy_map_sum){record.map_sum_low, record.map_sum_high};
    done->before = (struct copy_counters){.bytes_read = record.bytes_read,
                                          .bytes_written = record.bytes_written,
                                          .bytes_zero = record.bytes_zero,
                                          .bytes_cloned = record.bytes_cloned,
                                          .bytes_verified = record.bytes_verified,
                                          .data_done = record.data_done};
    done->bad = journal_bad_ranges(job->journal, job->record, index, error);
    return done->bad != NULL;
}

void checkpoint_add_counters(const struct checkpoint *done, const struct copy_counters *now,
                             struct copy_counters *total)
{
    *total = *now;
    total->data_done += done->before.data_done;
    copy_counters_add(total, &done->before);
}

/* Ranges ascend: an earlier run stopped below where this one began.  One that was cut there is whole again.
 */
GArray *checkpoint_all_bad(const struct checkpoint *done, const GArray *now)
{
    GArray *all = g_array_new(FALSE, FALSE, sizeof(struct copy_range));

    if (done->bad)
        g_array_append_vals(all, done->bad->data, done->bad->len);
    for (guint i = 0; now && i < now->len; i++) {
        const struct copy_range *range = &g_array_index(now, struct copy_range, i);
        struct copy_range *last = all->len ? &g_array_index(all, struct copy_range, all->len - 1) : NULL;

        if (last && last->offset + last->length == range->offset)
            last->length += range->length;
        else
            g_array_append_val(all, *range);
    }
    return all;
}

bool checkpoint_save(struct checkpoint *done, const struct job *job, unsigned index, uint64_t frontier,
                     const struct copy_result *now, GError **error)
{
    struct copy_counters total;
    uint64_t to = (frontier + DIGEST_CHUNK_SIZE - 1) / DIGEST_CHUNK_SIZE;
    g_autoptr(GBytes) digests = digest_table_pack(done->digests, done->saved / DIGEST_CHUNK_SIZE, to);
    g_autoptr(GArray) bad = checkpoint_all_bad(done, now->bad);
    struct journal_checkpoint record;

    checkpoint_add_counters(done, &now->counters, &total);
    record = (struct journal_checkpoint){.frontier = frontier,
                                         .merged = done->merged,
                                         .map_sum_low = now->map_sum.low,
                                         .map_sum_high = now->map_sum.high,
                                         .bytes_read = total.bytes_read,
                                         .bytes_written = total.bytes_written,
                                         .bytes_zero = total.bytes_zero,
                                         .bytes_cloned = total.bytes_cloned,
                                         .bytes_verified = total.bytes_verified,
                                         .data_done = total.data_done,
                                         .bad = bad};
    if (!journal_checkpoint_save(job->journal, job->record, index, &record, digests, error))
        return false;
    done->saved = done->frontier = frontier;
    return true;
}

/* ---- on the medium -------------------------------------------------------------------------------- */

bool checkpoint_first_difference(struct chain *chain, const struct digest_table *expected, uint64_t from,
                                 uint64_t to, const struct copy_options *how, uint64_t *differs,
                                 GError **error)
{
    g_autoptr(digest_table_t) table =
        digest_table_new(digest_table_algorithm(expected), digest_table_size(expected));
    struct copy_options options = *how;
    struct copy_result result = {0};
    size_t length = digest_length(digest_table_algorithm(expected));
    bool ok;

    options.start = from;
    options.end = to;
    options.digests = table;
    ok = copy_digest(chain, &options, &result, error);
    copy_result_clear(&result);
    *differs = to;
    if (!ok)
        return false;
    for (uint64_t chunk = from / DIGEST_CHUNK_SIZE; chunk * DIGEST_CHUNK_SIZE < to; chunk++) {
        if (digest_table_is_zero(table, chunk) && digest_table_is_zero(expected, chunk)) {
            /* Empty stretches are skipped: cost grows with data. */
            uint64_t a = chunk, b = chunk;
            bool more_a = digest_table_next(table, &a), more_b = digest_table_next(expected, &b);

            if (!more_a && !more_b)
                break;
            chunk = MIN(more_a ? a : UINT64_MAX, more_b ? b : UINT64_MAX);
            if (chunk * DIGEST_CHUNK_SIZE >= to)
                break;
        }
        if (memcmp(digest_table_get(table, chunk), digest_table_get(expected, chunk), length) != 0) {
            *differs = chunk * DIGEST_CHUNK_SIZE;
            break;
        }
    }
    return true;
}

/* Checks the last stretch before the frontier, in the image as it is opened anew. */
static bool prove_window(struct checkpoint *done, const struct job *job, const struct checkpoint_target *left,
                         const struct copy_options *how, bool *same, GError **error)
{
    uint64_t from = done->frontier > WINDOW_BYTES ? done->frontier - WINDOW_BYTES : 0;
    struct image *written = left->open(left->opaque, false, error);
    g_autoptr(chain_t) chain = written ? chain_new_single(written, true) : NULL;
    uint64_t differs;

    from -= from % DIGEST_CHUNK_SIZE;
    if (!chain ||
        !checkpoint_first_difference(chain, done->digests, from, done->frontier, how, &differs, error))
        return false;
    *same = differs == done->frontier;
    if (!*same)
        job_notice(job,
                   "%s: what was written before the checkpoint at %" PRIu64
                   " is not on the medium from byte %" PRIu64 " on: copying it again from the beginning",
                   written->name, done->frontier, differs);
    return true;
}

/* *why, the caller's: what is there is of no use. */
static struct image *open_left(const struct checkpoint_target *left, char **why, GError **error)
{
    struct image_check check = {0};
    g_autoptr(GError) local = NULL;
    g_autoptr(image_t) image = left->open(left->opaque, true, &local);

    if (image && image->size < left->size)
        *why = g_strdup_printf("%s has only %" PRIu64 " bytes", image->name, image->size);
    else if (image && image_check(image, true, &check, &local) && check.corruptions > 0)
        *why = g_strdup_printf("%s has %" PRIu64 " damaged entries: %s", image->name, check.corruptions,
                               check.finding);
    else if (image && !local && left->parent)
        image_check_parent(image, left->parent, &local);
    if (!local)
        return *why ? NULL : g_steal_pointer(&image);
    if (g_error_matches(local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED) ||
        g_error_matches(local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED))
        *why = g_strdup(local->message);
    else
        g_propagate_error(error, g_steal_pointer(&local));
    return NULL;
}

/* What was preallocated stays allocated: it is emptied in place.  Only falloc has reserved the blocks
 * themselves. */
static bool empty_in_place(const struct checkpoint *done, struct image *target, bool keep_blocks,
                           GError **error)
{
    struct extent extents[MAP_BATCH];
    uint64_t done_offset, done_length;
    size_t count;

    for (uint64_t at = done->frontier; at < target->size; at = extent_end(&extents[count - 1])) {
        if (!image_map(target, at, target->size - at, extents, MAP_BATCH, &count, error))
            return false;
        for (size_t i = 0; i < count; i++) {
            const struct extent *extent = &extents[i];
            bool ok = true;

            if (extent->status == EXTENT_DATA)
                ok = storage_zero(extent->storage, extent->host_offset, extent->length, !keep_blocks, error);
            else if (extent->status == EXTENT_PACKED)
                ok = image_discard(target, extent->offset, extent->length, &done_offset, &done_length, error);
            if (!ok)
                return false;
        }
    }
    return true;
}

static bool empty_rest(const struct checkpoint *done, const struct checkpoint_target *left,
                       struct image *target, GError **error)
{
    bool falloc = g_strcmp0(left->preallocation, "falloc") == 0;
    uint64_t size = left->size, done_offset, done_length;

    if (done->frontier >= size || image_is_differencing(target))
        return true;
    if (!left->device && (falloc || g_strcmp0(left->preallocation, "metadata") == 0)) {
        target->reads_zero = true;
        return empty_in_place(done, target, falloc, error) && image_flush(target, error);
    }
    if (!image_discard(target, done->frontier, size - done->frontier, &done_offset, &done_length, error))
        return false;
    target->reads_zero = !left->device && done_offset <= done->frontier && done_offset + done_length >= size;
    return image_flush(target, error);
}

bool checkpoint_take_up(struct checkpoint *done, const struct job *job, const struct checkpoint_target *left,
                        const struct copy_options *how, struct image **target, GError **error)
{
    g_autofree char *why = NULL;
    GError *local = NULL;
    g_autoptr(image_t) image = open_left(left, &why, &local);
    bool usable = image != NULL;

    if (local) {
        g_propagate_error(error, local);
        return false;
    }
    if (why)
        job_notice(job, "%s: copying it from the beginning", why);
    else if (!left->changed && !prove_window(done, job, left, how, &usable, error))
        return false;
    if (usable && !empty_rest(done, left, image, error))
        return false;
    if (!usable)
        done->frontier = 0;
    *target = usable ? g_steal_pointer(&image) : NULL;
    return true;
}

/* ---- copying ------------------------------------------------------------------------------------- */

struct pass {
    struct checkpoint *done;
    const struct job *job;
    unsigned index;
    const struct copy_options *how;
    struct copy_result result;
};

static bool pass_cancelled(void *opaque)
{
    const struct pass *pass = opaque;

    return pass->how->cancelled(pass->how->opaque);
}

static void pass_progress(void *opaque, const struct copy_counters *counters)
{
    const struct pass *pass = opaque;
    struct copy_counters total;

    checkpoint_add_counters(pass->done, counters, &total);
    total.total = digest_table_size(pass->done->digests);
    pass->how->progress(pass->how->opaque, &total);
}

static bool pass_checkpoint(void *opaque, uint64_t frontier, const struct copy_map_sum *sum, GError **error)
{
    struct pass *pass = opaque;

    pass->result.map_sum = *sum;
    return checkpoint_save(pass->done, pass->job, pass->index, frontier, &pass->result, error);
}

bool checkpoint_copy(struct checkpoint *done, const struct job *job, unsigned index, struct chain *source,
                     struct image *target, const struct copy_options *how, struct disk_report *report,
                     GError **error)
{
    struct pass pass = {.done = done, .job = job, .index = index, .how = how};
    struct copy_options options = *how;
    struct copy_counters total;
    bool ok;

    options.start = done->frontier;
    options.map_sum = done->map_sum;
    options.digests = done->digests;
    options.checkpoint = pass_checkpoint;
    options.cancelled = pass_cancelled;
    options.progress = pass_progress;
    options.opaque = &pass;
    ok = copy_run(source, target, &options, &pass.result, error);
    checkpoint_add_counters(done, &pass.result.counters, &total);
    report->counters = done->before = total;
    report->engine = pass.result.engine;
    done->map_sum = pass.result.map_sum;
    job->report->bytes_read += pass.result.counters.bytes_read;
    copy_result_clear(&pass.result);
    return ok;
}

/* ---- the source ----------------------------------------------------------------------------------- */

char *checkpoint_file_identity(const char *identity, const struct stat *st)
{
    return g_strdup_printf("%s size %" PRIu64 " mtime %" PRId64 ".%09ld;", identity, (uint64_t)st->st_size,
                           (int64_t)st->st_mtim.tv_sec, st->st_mtim.tv_nsec);
}

/* Adds what `storage`, which lies at `path`, is and when it was written to last. */
static bool add_identity(GString *text, const struct storage *storage, const char *path, bool *certain,
                         GError **error)
{
    bool file = !storage_name_is_uri(path);
    g_autofree char *one = NULL;
    struct stat st = {0};

    /* Of the file that is open, whatever has its name by now. */
    if (file && (storage->buffered_fd >= 0 ? fstat(storage->buffered_fd, &st) : stat(path, &st)) < 0)
        return blockmig_set_errno(error, errno, "%s", path);
    if (!file || S_ISBLK(st.st_mode)) {
        *certain = false;
        st.st_size = (off_t)storage->size;
        memset(&st.st_mtim, 0, sizeof(st.st_mtim));
    }
    one = checkpoint_file_identity(storage->identity, &st);
    g_string_append(text, one);
    return true;
}

char *checkpoint_source_identity(const struct chain *chain, bool *certain, GError **error)
{
    g_autoptr(GString) text = g_string_new(NULL);

    *certain = true;
    for (unsigned i = 0; i < chain_depth(chain); i++) {
        const struct image *image = chain_layer(chain, i);
        const char *path = g_ptr_array_index(chain->paths, i);

        if (!add_identity(text, image->storage, path, certain, error))
            return NULL;
        for (guint k = 0; k < image->data_files->len; k++) {
            const struct storage *data = image_data_file(image, k)->storage;

            if (!add_identity(text, data, data->name, certain, error))
                return NULL;
        }
    }
    return g_string_free(g_steal_pointer(&text), false);
}
