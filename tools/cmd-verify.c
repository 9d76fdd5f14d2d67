/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * blockmig verify: two images, or an image and the receipt of its copy, range by range.
 * The status is that of cmp: 0 same, 1 different, above 1 trouble.
 */
#include "blockmig/migrate/units.h"
#include "blockmig/store/receipt.h"
#include "formats/bytes.h"
#include "formats/error.h"
#include "tools/command.h"
#include "tools/confine.h"
#include "tools/look.h"
#include "tools/output.h"
#include "tools/progress.h"
#include "tools/signals.h"

#include <inttypes.h>
#include <string.h>

#define LISTED      20
#define LISTED_JSON 1000
#define MAX_SECTOR  4096

struct comparison {
    const struct options *options;
    struct progress *progress;
    struct throttle *throttle;
    int64_t started; /* monotonic */
    uint64_t sizes[2];
    bool rounded;     /* by a receipt: the image only has what makes its last sector whole */
    uint64_t granule; /* what a range is a multiple of: 0 exact, or the chunk size */
    GArray *listed;   /* of struct copy_range: the first ones, all with -v */
    uint64_t ranges, bytes;
};

static void list_range(struct comparison *comparison, const struct copy_range *range)
{
    unsigned limit = comparison->options->json ? LISTED_JSON : LISTED;
    if (comparison->options->verbose || comparison->listed->len < limit)
        g_array_append_val(comparison->listed, *range);
}

static bool on_difference(void *opaque, uint64_t offset, uint64_t length)
{
    struct comparison *comparison = opaque;
    struct copy_range range = {offset, length};
    comparison->ranges++;
    comparison->bytes += length;
    list_range(comparison, &range);
    return true;
}

static void on_progress(void *opaque, const struct copy_counters *counters)
{
    progress_update(((struct comparison *)opaque)->progress, counters);
}

static void make_copy_options(struct comparison *comparison, struct copy_options *copy)
{
    *copy = (struct copy_options){
        .throttle = comparison->throttle,
        .progress = on_progress,
        .cancelled = signals_cancelled,
        .opaque = comparison,
    };
}

static bool compare_images(struct comparison *comparison, struct copy_result *result, GError **error)
{
    const struct options *options = comparison->options;
    char **paths = (char **)options->arguments->pdata;
    size_t used = 0;
    g_autoptr(chain_t) a = look_open(options, paths[0], options->format, 0, LOOK_CHAIN, &used, error);
    g_autoptr(chain_t) b =
        a ? look_open(options, paths[1], options->second_format, 0, LOOK_CHAIN, &used, error) : NULL;
    if (!b)
        return false;
    if (options->parents->pdata[used])
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "verify: --parent=%s is not wanted by either image",
                             (char *)options->parents->pdata[used]);
    struct copy_options copy;
    make_copy_options(comparison, &copy);
    comparison->sizes[0] = a->size;
    comparison->sizes[1] = b->size;
    return copy_compare(a, b, &copy, on_difference, result, error);
}

/* Merges differing chunks that touch; `open` is the range that may still grow. */
static void add_chunk(struct comparison *comparison, struct copy_range *open, uint64_t chunk, uint64_t size)
{
    uint64_t offset = chunk * DIGEST_CHUNK_SIZE, end = MIN(offset + DIGEST_CHUNK_SIZE, size);
    if (open->length && open->offset + open->length == offset) {
        open->length = end - open->offset;
        return;
    }
    if (open->length)
        on_difference(comparison, open->offset, open->length);
    *open = (struct copy_range){offset, end - offset};
}

/* One of the tables may end earlier: beyond its end there is nothing, which is as good as zeros. */
static bool same_chunk(const struct digest_table *a, const struct digest_table *b, uint64_t chunk)
{
    bool in_a = chunk < digest_table_chunks(a), in_b = chunk < digest_table_chunks(b);
    bool zero_a = !in_a || digest_table_is_zero(a, chunk), zero_b = !in_b || digest_table_is_zero(b, chunk);
    if (zero_a || zero_b)
        return zero_a && zero_b;
    return memcmp(digest_table_get(a, chunk), digest_table_get(b, chunk),
                  digest_length(digest_table_algorithm(a))) == 0;
}

/* Only chunks that are stored in one of the tables can differ, so time follows data, not size. */
static void compare_tables(struct comparison *comparison, const struct digest_table *a,
                           const struct digest_table *b)
{
    struct copy_range open = {0, 0};
    uint64_t size = MAX(digest_table_size(a), digest_table_size(b));
    for (uint64_t chunk = 0;; chunk++) {
        uint64_t next_a = chunk, next_b = chunk;
        bool more_a = digest_table_next(a, &next_a), more_b = digest_table_next(b, &next_b);
        if (!more_a && !more_b)
            break;
        chunk = !more_b || (more_a && next_a < next_b) ? next_a : next_b;
        if (!same_chunk(a, b, chunk))
            add_chunk(comparison, &open, chunk, size);
    }
    if (open.length)
        on_difference(comparison, open.offset, open.length);
}

/* What a target has behind the end of its source, in formats whose disks consist of sectors, is zeros. */
static bool compare_rest(struct comparison *comparison, struct chain *chain, GError **error)
{
    uint8_t bytes[MAX_SECTOR];
    uint64_t offset = comparison->sizes[1], length = chain->size - offset;

    if (!chain_read(chain, bytes, length, offset, error))
        return false;
    if (!is_zero(bytes, length))
        on_difference(comparison, offset, length);
    return true;
}

static bool compare_receipt(struct comparison *comparison, struct copy_result *result, GError **error)
{
    const struct options *options = comparison->options;
    g_autoptr(receipt_t) receipt = receipt_read(options->receipt, error);
    if (!receipt)
        return false;
    g_autoptr(chain_t) chain = look_open(options, options->arguments->pdata[0], options->format, 0,
                                         receipt->layer ? LOOK_LAYER : LOOK_CHAIN, NULL, error);
    if (!chain)
        return false;
    comparison->sizes[0] = chain->size;
    comparison->sizes[1] = receipt->size;
    comparison->rounded = chain->size > receipt->size && chain->size - receipt->size < MAX_SECTOR;
    comparison->granule = DIGEST_CHUNK_SIZE;
    struct copy_options copy;
    make_copy_options(comparison, &copy);
    copy.end = comparison->rounded ? receipt->size : chain->size;
    g_autoptr(digest_table_t) digests = digest_table_new(digest_table_algorithm(receipt->digests), copy.end);
    copy.digests = digests;
    if (!copy_digest(chain, &copy, result, error))
        return false;
    compare_tables(comparison, digests, receipt->digests);
    return !comparison->rounded || compare_rest(comparison, chain, error);
}

static bool sizes_differ(const struct comparison *comparison)
{
    return comparison->sizes[0] != comparison->sizes[1];
}

/* The digests of a receipt are bound to its size, so there a size is part of the content, but for the rest of
 * a sector. */
static bool is_different(const struct comparison *comparison)
{
    bool strict = comparison->options->strict || (comparison->options->receipt && !comparison->rounded);
    return comparison->ranges > 0 || (strict && sizes_differ(comparison));
}

static const char *second_name(const struct comparison *comparison)
{
    const struct options *options = comparison->options;
    return options->receipt ? options->receipt : options->arguments->pdata[1];
}

static json_t *comparison_to_json(const struct comparison *comparison, const struct copy_result *result,
                                  const GError *error)
{
    const struct options *options = comparison->options;
    const char *word = error ? "failed" : is_different(comparison) ? "different" : "same";
    double seconds = (double)(g_get_monotonic_time() - comparison->started) / G_USEC_PER_SEC;
    json_t *object =
        json_pack("{s:i, s:s, s:o, s:o, s:s, s:s, s:[I, I], s:o, s:I, s:I, s:I, s:I, s:o}", "schema", 1,
                  "command", "verify", "image", output_json_string(options->arguments->pdata[0]), "with",
                  output_json_string(second_name(comparison)), "by", options->receipt ? "receipt" : "content",
                  "result", word, "sizes", (json_int_t)comparison->sizes[0], (json_int_t)comparison->sizes[1],
                  "differences", output_json_ranges(comparison->listed), "difference_count",
                  (json_int_t)comparison->ranges, "different_bytes", (json_int_t)comparison->bytes,
                  "granularity", (json_int_t)(comparison->granule ? comparison->granule : 512), "bytes_read",
                  (json_int_t)result->counters.bytes_read, "duration_s", output_json_seconds(seconds));
    if (error)
        json_object_set_new(object, "error", output_json_string(error->message));
    return object;
}

static void print_sizes(const struct comparison *comparison)
{
    g_autofree char *a = units_format_size_exact(comparison->sizes[0]),
                    *b = units_format_size_exact(comparison->sizes[1]);
    printf("sizes differ: %s and %s%s\n", a, b,
           comparison->options->receipt ? " in the receipt" : "; compared with zeros beyond the shorter end");
}

static void print_comparison(const struct comparison *comparison)
{
    g_autofree char *a = output_printable(comparison->options->arguments->pdata[0]);
    g_autofree char *b = output_printable(second_name(comparison));
    if (sizes_differ(comparison))
        print_sizes(comparison);
    for (guint i = 0; i < comparison->listed->len; i++) {
        const struct copy_range *range = &g_array_index(comparison->listed, struct copy_range, i);
        printf("different: offset %" PRIu64 ", length %" PRIu64 "\n", range->offset, range->length);
    }
    if (comparison->ranges > comparison->listed->len)
        printf("different: %" PRIu64 " more ranges; -v lists all\n",
               comparison->ranges - comparison->listed->len);
    if (is_different(comparison)) {
        g_autofree char *bytes = units_format_size_exact(comparison->bytes);
        printf("%s and %s differ: %" PRIu64 " ranges, %s\n", a, b, comparison->ranges, bytes);
    } else {
        printf("%s and %s are the same\n", a, b);
    }
}

static bool check_usage(const struct options *options, GError **error)
{
    if (options->receipt && options->second_format) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE,
                    "verify: -F is the format of a second image; with --receipt there is none");
        return false;
    }
    unsigned images = options->receipt ? 1 : 2;
    return command_arguments(options, images, images, error);
}

int cmd_verify(const struct options *options, GError **error)
{
    struct comparison comparison = {.options = options, .started = g_get_monotonic_time()};
    struct copy_result result = {0};
    GError *failure = NULL;

    if (!check_usage(options, error) || !confine_look(options, error))
        return 0;
    g_autoptr(GArray) listed = comparison.listed = g_array_new(false, false, sizeof(struct copy_range));
    signals_install();
    comparison.throttle = options->bandwidth ? throttle_new(options->bandwidth) : NULL;
    comparison.progress = progress_new(options);
    progress_phase(comparison.progress, "compare", NULL);
    bool done = options->receipt ? compare_receipt(&comparison, &result, &failure)
                                 : compare_images(&comparison, &result, &failure);
    progress_end(comparison.progress, done);
    if (options->json)
        output_json(comparison_to_json(&comparison, &result, failure), failure ? NULL : &failure);
    else if (done && !options->quiet)
        print_comparison(&comparison);
    copy_result_clear(&result);
    if (comparison.throttle)
        throttle_free(comparison.throttle);
    if (failure)
        g_propagate_error(error, failure);
    return is_different(&comparison) ? 1 : 0;
}
