/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The copier against models in memory: content, layout, failures, resuming, proof, comparing. */
#include "blockmig/copy/copy.h"

#include "blockmig/storage/memory.h"
#include "tests/unit/harness.h"
#include "tests/unit/scatter.h"

#include <errno.h>

#define KIB     ((uint64_t)1024)
#define MIB     (KIB * 1024)
#define CLUSTER (64 * KIB)

/* A disk whose content is known, as a chain of one image. */
struct disk {
    uint8_t *guest;
    uint64_t size;
    struct storage *storage;
    struct scatter *scatter; /* NULL: raw */
    struct chain *chain;
};

static void disk_clear(struct disk *disk)
{
    chain_close(disk->chain);
    if (disk->scatter)
        scatter_free(disk->scatter);
    g_free(disk->guest);
}

static void fill_random(uint8_t *data, size_t length)
{
    guint32 state = g_test_rand_int() | 1;

    for (size_t i = 0; i + 4 <= length; i += 4) {
        state = state * 1664525 + 1013904223;
        memcpy(data + i, &state, 4);
    }
}

static struct image *open_image(struct storage *storage, const struct format *format, struct scatter *scatter)
{
    GError *error = NULL;

    scatter_opening = scatter;
    struct image *image = image_open(storage, format, true, &error);
    g_assert_no_error(error);
    return image;
}

/* Random runs of data and zeros of very different lengths. */
static struct disk raw_disk(uint64_t size)
{
    struct disk disk = {.size = size, .guest = g_malloc0(MAX(size, 1))};

    for (uint64_t at = 0; at < size;) {
        uint64_t length = (uint64_t)1 << g_test_rand_int_range(6, 23);
        length = MIN(length, size - at);
        if (g_test_rand_bit())
            fill_random(disk.guest + at, length);
        at += length;
    }
    disk.storage = storage_memory_new("source", disk.guest, size, 0);
    disk.chain = chain_new_single(open_image(disk.storage, &format_raw, NULL), false);
    return disk;
}

/* Clusters of all kinds at random places of the storage. */
static struct disk scatter_disk(uint64_t size, uint32_t cluster, bool keep_holes)
{
    struct disk disk = {.size = size, .guest = g_malloc0(size), .scatter = scatter_new(size, cluster)};
    struct scatter *scatter = disk.scatter;
    uint64_t slots = scatter->count + 7 + ((scatter->count + 7) % 5 == 0); /* no multiple of 5 */
    g_autofree uint8_t *host = g_malloc0(slots * cluster + 512);

    for (uint64_t i = 0; i < scatter->count; i++) {
        uint64_t offset = i * cluster, length = MIN(cluster, size - offset);
        uint64_t place = (i * 5 + 3) % slots * cluster;
        int kind = g_test_rand_int_range(0, 5);
        scatter->clusters[i].host = place + (kind == 3 ? 100 : 0);
        scatter->clusters[i].status = kind < 3            ? EXTENT_DATA
                                      : kind == 3         ? EXTENT_PACKED
                                      : g_test_rand_bit() ? EXTENT_ZERO
                                                          : EXTENT_HOLE;
        if (kind < 2)
            fill_random(disk.guest + offset, length);
        else if (kind == 3)
            memset(disk.guest + offset, g_test_rand_int_range(0, 256), length);
        if (kind < 3)
            memcpy(host + place, disk.guest + offset, length);
        else if (kind == 3)
            memset(host + place + 100, disk.guest[offset], 8);
    }
    disk.storage = storage_memory_new("source", host, slots * cluster + 512, 0);
    disk.chain = chain_new_single(open_image(disk.storage, &format_scatter, scatter), keep_holes);
    return disk;
}

static struct disk empty_target(uint64_t size, uint32_t cluster)
{
    struct disk disk = {.size = size};

    if (cluster)
        disk.scatter = scatter_new(size, cluster);
    disk.storage = storage_memory_new("target", NULL, cluster ? 0 : size, 0);
    disk.chain = chain_new_single(
        open_image(disk.storage, cluster ? &format_scatter : &format_raw, disk.scatter), false);
    return disk;
}

static struct image *image_of(const struct disk *disk)
{
    return chain_layer(disk->chain, 0);
}

static void assert_content(const struct disk *disk, const uint8_t *expected, uint64_t size)
{
    g_autofree uint8_t *data = g_malloc(disk->size);
    g_autoptr(GError) error = NULL;

    assert_ok(chain_read(disk->chain, data, disk->size, 0, &error));
    g_assert_true(memcmp(data, expected, size) == 0);
    for (uint64_t i = size; i < disk->size; i++)
        g_assert_cmpuint(data[i], ==, 0);
}

static void assert_digests(const struct digest_table *table, const uint8_t *expected, uint64_t size)
{
    uint8_t digest[DIGEST_MAX_LENGTH];

    for (uint64_t chunk = 0; chunk * MIB < size; chunk++) {
        digest_compute(digest_table_algorithm(table), expected + chunk * MIB, MIN(MIB, size - chunk * MIB),
                       digest);
        g_assert_cmpmem(digest, digest_length(digest_table_algorithm(table)), digest_table_get(table, chunk),
                        digest_length(digest_table_algorithm(table)));
    }
}

static uint64_t random_size(void)
{
    return (uint64_t)g_test_rand_int_range(1, 9) * MIB + (uint64_t)g_test_rand_int_range(-5, 6) * 512 +
           (g_test_rand_bit() ? 0 : (uint64_t)g_test_rand_int_range(0, 512));
}

/* ---- content ---- */

static void copy_and_prove(struct disk *source, struct disk *target, struct copy_options *options)
{
    struct copy_result result;
    g_autoptr(GError) error = NULL;
    g_autoptr(digest_table_t) digests =
        digest_table_new(g_test_rand_int_range(0, 4) ? DIGEST_XXH3_128 : DIGEST_SHA256, source->size);

    options->digests = digests;
    options->read_back = true;
    options->buffer_bytes = g_test_rand_bit() ? 8 * MIB : 24 * MIB; /* also to save time */
    assert_ok(copy_run(source->chain, image_of(target), options, &result, &error));
    assert_content(target, source->guest, source->size);
    assert_digests(digests, source->guest, source->size);
    g_assert_cmpuint(result.counters.position, ==, source->size);
    g_assert_cmpstr(result.engine, ==, options->no_uring ? "threads" : result.engine);
    struct copy_map_sum sum = result.map_sum;
    copy_result_clear(&result);
    assert_ok(copy_prove(image_of(target), digests, &sum, options, &result, &error));
    copy_result_clear(&result);
    options->digests = NULL;
}

static void test_random(gconstpointer no_uring)
{
    static const uint32_t clusters[] = {0, 512, 4096, CLUSTER, 2 * MIB};

    for (unsigned round = 0; round < harness_sample(30, 300); round++) {
        struct copy_options options = {
            .no_uring = no_uring != NULL,
            .compress = g_test_rand_bit(),
            .write_zeroes = g_test_rand_int_range(0, 4) == 0,
        };
        uint64_t size = random_size();
        uint32_t from = clusters[g_test_rand_int_range(0, 5)], to = clusters[g_test_rand_int_range(0, 5)];
        struct disk source = from ? scatter_disk(size, from, false) : raw_disk(size);
        struct disk target = empty_target(g_test_rand_bit() ? size : size + 3 * MIB + 512, to);
        if (!to)
            options.compress = false;
        copy_and_prove(&source, &target, &options);
        disk_clear(&source);
        disk_clear(&target);
    }
}

/* A target that holds rubbish: every zero has to be made. */
static void test_used_target(void)
{
    for (unsigned round = 0; round < harness_sample(10, 100); round++) {
        struct copy_options options = {0};
        struct disk source = scatter_disk(random_size(), 4096, false);
        struct disk target = raw_disk(source.size + 5 * MIB);
        g_assert_false(image_of(&target)->reads_zero);
        copy_and_prove(&source, &target, &options);
        disk_clear(&source);
        disk_clear(&target);
    }
}

/* One layer onto one layer: holes show the backing layer, zeros hide it, and clusters that are larger on the
 * target are filled up with what is below: by fills, or because that is copied with them. */
struct overlay {
    struct disk base, source, target;
    struct chain *both, *units; /* source over base; the same in units of the target's */
    uint8_t *expected;
};

static struct overlay overlay_new(uint64_t size, uint32_t cluster)
{
    struct overlay overlay = {.base = raw_disk(4 * MIB + 512 * (uint64_t)g_test_rand_int_range(0, 3)),
                              .source = scatter_disk(size, CLUSTER, true),
                              .target = {.size = size, .scatter = scatter_new(size, cluster)},
                              .expected = g_malloc0(size)};
    const struct disk *source = &overlay.source;
    struct disk *target = &overlay.target;

    target->scatter->backing_name = "base";
    target->storage = storage_memory_new("target", NULL, 0, 0);
    target->chain = chain_new_single(open_image(target->storage, &format_scatter, target->scatter), true);
    overlay.both = chain_view(source->chain, 0, 1, true);
    chain_append(overlay.both, image_of(&overlay.base));
    overlay.units = chain_view_units(overlay.both, 0, cluster);
    memcpy(overlay.expected, overlay.base.guest, overlay.base.size);
    for (uint64_t i = 0; i < source->scatter->count; i++) {
        if (source->scatter->clusters[i].status != EXTENT_HOLE)
            memcpy(overlay.expected + i * CLUSTER, source->guest + i * CLUSTER, CLUSTER);
    }
    return overlay;
}

static void overlay_clear(struct overlay *overlay)
{
    chain_close(overlay->units);
    chain_close(overlay->both);
    g_free(overlay->expected);
    disk_clear(&overlay->base);
    disk_clear(&overlay->source);
    disk_clear(&overlay->target);
}

static void assert_overlay(const struct overlay *overlay)
{
    const struct disk *base = &overlay->base, *target = &overlay->target;

    for (uint64_t at = 0; at < target->size; at += 512) {
        struct extent extent = scatter_extent(image_of(target), at, at + 512);
        uint8_t sector[512] = {0};
        if (extent.status == EXTENT_HOLE)
            memcpy(sector, base->guest + MIN(at, base->size), MIN(512, base->size - MIN(at, base->size)));
        else if (extent.status == EXTENT_DATA)
            memcpy(sector, storage_memory_data(target->storage) + extent.host_offset, 512);
        g_assert_true(memcmp(sector, overlay->expected + at, 512) == 0);
    }
}

/* A zero that shows the backing layer again is noticed. */
static void assert_overlay_proved(const struct overlay *overlay, const struct digest_table *digests,
                                  const struct copy_map_sum *sum)
{
    const struct scatter *scatter = overlay->target.scatter;
    struct image *image = image_of(&overlay->target);
    g_autoptr(GError) error = NULL;
    struct copy_result result;
    uint64_t i = 0;

    assert_ok(copy_prove(image, digests, sum, NULL, &result, &error));
    copy_result_clear(&result);
    while (i < scatter->count && scatter->clusters[i].status != EXTENT_ZERO)
        i++;
    if (i == scatter->count)
        return;
    scatter->clusters[i].status = EXTENT_HOLE;
    assert_fails(copy_prove(image, digests, sum, NULL, &result, &error), BLOCKMIG_ERROR_DIFFERENT, "target");
    copy_result_clear(&result);
    scatter->clusters[i].status = EXTENT_ZERO;
}

/* The digests are those of the target's layer alone, too. */
static void assert_layer_digests(const struct disk *target, const struct digest_table *digests)
{
    g_autoptr(digest_table_t) read = digest_table_new(DIGEST_XXH3_128, target->size);
    struct copy_options options = {.digests = read};
    uint8_t a[DIGEST_MAX_LENGTH], b[DIGEST_MAX_LENGTH];
    g_autoptr(GError) error = NULL;
    struct copy_result result;

    assert_ok(copy_digest(target->chain, &options, &result, &error));
    copy_result_clear(&result);
    digest_table_root(digests, a);
    digest_table_root(read, b);
    g_assert_cmpmem(a, digest_length(DIGEST_XXH3_128), b, digest_length(DIGEST_XXH3_128));
}

static void copy_overlay(bool units, bool no_uring, uint64_t size, uint32_t cluster)
{
    struct overlay overlay = overlay_new(size, cluster);
    g_autoptr(digest_table_t) digests = digest_table_new(DIGEST_XXH3_128, size);
    struct copy_options options = {
        .read_back = true, .digests = digests, .target_backing = overlay.base.chain, .no_uring = no_uring};
    g_autoptr(GError) error = NULL;
    struct copy_result result;

    assert_ok(copy_run(units ? overlay.units : overlay.source.chain, image_of(&overlay.target), &options,
                       &result, &error));
    assert_overlay(&overlay);
    assert_overlay_proved(&overlay, digests, &result.map_sum);
    copy_result_clear(&result);
    if (units)
        assert_layer_digests(&overlay.target, digests);
    overlay_clear(&overlay);
}

static void test_overlay(gconstpointer no_uring)
{
    static const uint32_t clusters[] = {4096, CLUSTER, 256 * KIB, 2 * MIB, 4 * MIB, 16 * MIB};

    for (unsigned round = 0; round < harness_sample(4, 100); round++) {
        copy_overlay(false, no_uring != NULL, 5 * MIB, clusters[g_test_rand_int_range(0, 3)]);
        copy_overlay(true, no_uring != NULL, g_test_rand_bit() ? 5 * MIB : 20 * MIB,
                     clusters[g_test_rand_int_range(0, G_N_ELEMENTS(clusters))]);
    }
}

/* Few extents far apart, into clusters that are larger than what is written at once: a fill does not meet the
 * writes behind it. */
static void test_large_fills(gconstpointer no_uring)
{
    for (unsigned round = 0; round < harness_sample(2, 50); round++) {
        struct overlay overlay = overlay_new(24 * MIB, 8 * MIB);
        struct copy_options options = {.read_back = g_test_rand_bit(),
                                       .patch = true,
                                       .target_backing = overlay.base.chain,
                                       .no_uring = no_uring != NULL};
        g_autoptr(GError) error = NULL;
        struct copy_result result;

        assert_ok(copy_run(overlay.source.chain, image_of(&overlay.target), &options, &result, &error));
        copy_result_clear(&result);
        assert_overlay(&overlay);
        overlay_clear(&overlay);
    }
}

static int by_offset(const void *a, const void *b)
{
    const struct memory_write *x = a, *y = b;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* Exactly these writes: data, short zeros with it, long zeros not. */
static void test_writes(void)
{
    static const struct memory_write expected[] = {
        {0, 4096, 0}, {64 * KIB, 44 * KIB, 0}, {2 * MIB, 2 * MIB, 0}, {4 * MIB, 1000, 0}};
    g_autofree uint8_t *data = g_malloc0(4 * MIB + 1000);
    struct copy_options options = {.read_back = true};
    g_autoptr(GError) error = NULL;
    struct copy_result result;

    data[100] = 1;
    data[64 * KIB] = 1;
    data[64 * KIB + 40 * KIB] = 1; /* less than 32 KiB of zeros between... */
    data[64 * KIB + 20 * KIB] = 1; /* ...these three */
    memset(data + 2 * MIB, 5, 2 * MIB + 1000);
    struct disk source = {.size = 4 * MIB + 1000};
    source.storage = storage_memory_new("source", data, source.size, 0);
    source.chain = chain_new_single(open_image(source.storage, &format_raw, NULL), false);
    struct disk target = empty_target(source.size, 0);
    assert_ok(copy_run(source.chain, image_of(&target), &options, &result, &error));
    const GArray *log = storage_memory_writes(target.storage);
    g_autofree struct memory_write *writes = g_memdup2(log->data, log->len * sizeof(struct memory_write));
    qsort(writes, log->len, sizeof(*writes), by_offset);
    g_assert_cmpuint(log->len, ==, G_N_ELEMENTS(expected));
    for (unsigned i = 0; i < log->len; i++) {
        g_assert_cmpuint(writes[i].offset, ==, expected[i].offset);
        g_assert_cmpuint(writes[i].length, ==, expected[i].length);
    }
    g_assert_cmpuint(result.counters.bytes_written, ==, 4096 + 44 * KIB + 2 * MIB + 1000);
    g_assert_cmpuint(result.counters.bytes_verified, ==, MIB + 2 * MIB + 1000);
    copy_result_clear(&result);
    disk_clear(&source);
    disk_clear(&target);
}

/* The same input gives the same layout, whatever the order in which requests finish. */
static void test_deterministic(gconstpointer no_uring)
{
    struct disk source = scatter_disk(40 * MIB, CLUSTER, false);
    struct disk first = empty_target(source.size, CLUSTER);
    uint64_t last = 0;

    for (int round = 0; round < 5; round++) {
        struct copy_options options = {.no_uring = no_uring != NULL};
        struct disk target = empty_target(source.size, CLUSTER);
        copy_and_prove(&source, round ? &target : &first, &options);
        if (round)
            g_assert_true(memcmp(first.scatter->clusters, target.scatter->clusters,
                                 first.scatter->count * sizeof(struct scatter_cluster)) == 0);
        disk_clear(&target);
    }
    for (uint64_t i = 0; i < first.scatter->count; i++) {
        if (first.scatter->clusters[i].status == EXTENT_DATA) {
            g_assert_cmpuint(first.scatter->clusters[i].host, >, last);
            last = first.scatter->clusters[i].host;
        }
    }
    disk_clear(&source);
    disk_clear(&first);
}

/* ---- failures ---- */

static void test_read_error(gconstpointer no_uring)
{
    struct disk source = raw_disk(9 * MIB), target = empty_target(9 * MIB, CLUSTER);
    struct copy_options options = {.read_back = true, .no_uring = no_uring != NULL};
    struct memory_fault fault = {.on = MEMORY_READ, .offset = 3 * MIB + 1024, .length = 1000, .errnum = EIO};
    g_autoptr(GError) error = NULL;
    struct copy_result result;

    storage_memory_add_fault(source.storage, &fault);
    assert_fails(copy_run(source.chain, image_of(&target), &options, &result, &error), BLOCKMIG_ERROR_IO,
                 "guest bytes 3146752+1024 (source, bytes 3146752+1024)");
    g_assert_cmpuint(result.counters.position, <=, 2 * MIB);
    copy_result_clear(&result);

    fault.offset = 8 * MIB - 512; /* in two slots */
    fault.length = 1024;
    storage_memory_add_fault(source.storage, &fault);
    options.salvage = true;
    assert_ok(copy_run(source.chain, image_of(&target), &options, &result, &error));
    g_assert_cmpuint(result.bad->len, ==, 2);
    g_assert_cmpuint(g_array_index(result.bad, struct copy_range, 0).offset, ==, 3 * MIB + 1024);
    g_assert_cmpuint(g_array_index(result.bad, struct copy_range, 0).length, ==, 1024);
    g_assert_cmpuint(g_array_index(result.bad, struct copy_range, 1).offset, ==, 8 * MIB - 512);
    g_assert_cmpuint(g_array_index(result.bad, struct copy_range, 1).length, ==, 1024);
    memset(source.guest + 3 * MIB + 1024, 0, 1024);
    memset(source.guest + 8 * MIB - 512, 0, 1024);
    assert_content(&target, source.guest, source.size);
    copy_result_clear(&result);
    disk_clear(&source);
    disk_clear(&target);
}

/* A damaged compressed unit, and one that cannot be read: each costs itself alone. */
static void test_bad_packed(void)
{
    struct disk source = scatter_disk(4 * MIB, CLUSTER, false), target = empty_target(4 * MIB, CLUSTER);
    struct copy_options options = {.salvage = true};
    g_autoptr(GError) error = NULL;
    struct copy_result result;
    uint64_t units[2], found = 0;

    for (uint64_t i = 0; i < source.scatter->count && found < 2; i++) {
        if (source.scatter->clusters[i].status == EXTENT_PACKED)
            units[found++] = i;
    }
    g_assert_cmpuint(found, ==, 2);
    uint64_t damaged = source.scatter->clusters[units[0]].host;
    uint8_t byte = (uint8_t)(source.guest[units[0] * CLUSTER] + 1);
    assert_ok(storage_pwrite(source.storage, &byte, 1, damaged + 3, &error));
    struct memory_fault fault = {
        .on = MEMORY_READ, .offset = source.scatter->clusters[units[1]].host, .length = 1, .errnum = EIO};
    storage_memory_add_fault(source.storage, &fault);
    assert_ok(copy_run(source.chain, image_of(&target), &options, &result, &error));
    for (int i = 0; i < 2; i++)
        memset(source.guest + units[i] * CLUSTER, 0, CLUSTER);
    assert_content(&target, source.guest, source.size);
    uint64_t bad = 0;
    for (guint i = 0; i < result.bad->len; i++)
        bad += g_array_index(result.bad, struct copy_range, i).length;
    g_assert_cmpuint(bad, ==, 2 * CLUSTER);
    copy_result_clear(&result);
    options.salvage = false;
    assert_fails(copy_run(source.chain, image_of(&target), &options, &result, &error), BLOCKMIG_ERROR_IO,
                 "compressed at");
    copy_result_clear(&result);
    disk_clear(&source);
    disk_clear(&target);
}

static void test_write_error(gconstpointer no_uring)
{
    static const uint32_t clusters[] = {0, CLUSTER};

    for (int i = 0; i < 2; i++) {
        struct disk source = raw_disk(9 * MIB), target = empty_target(9 * MIB, clusters[i]);
        struct copy_options options = {.read_back = true, .no_uring = no_uring != NULL};
        struct memory_fault fault = {.on = MEMORY_WRITE, .skip = 2, .count = 1, .errnum = EIO};
        g_autoptr(GError) error = NULL;
        struct copy_result result;

        fill_random(source.guest, source.size);
        assert_ok(storage_pwrite(source.storage, source.guest, source.size, 0, &error));
        storage_memory_add_fault(target.storage, &fault);
        assert_fails(copy_run(source.chain, image_of(&target), &options, &result, &error), BLOCKMIG_ERROR_IO,
                     "target");
        copy_result_clear(&result);
        fault.on = MEMORY_CORRUPT_WRITE;
        storage_memory_add_fault(target.storage, &fault);
        assert_fails(copy_run(source.chain, image_of(&target), &options, &result, &error),
                     BLOCKMIG_ERROR_DIFFERENT, "reads back different");
        copy_result_clear(&result);
        disk_clear(&source);
        disk_clear(&target);
    }
}

/* ---- resuming ---- */

struct resume {
    uint64_t frontier;
    struct copy_map_sum sum;
    GByteArray *records;
    struct digest_table *digests;
    unsigned polls, checkpoints, flushes;
    struct storage *target;
};

static bool note_checkpoint(void *opaque, uint64_t frontier, const struct copy_map_sum *sum, GError **error)
{
    struct resume *resume = opaque;
    g_autoptr(GBytes) records =
        digest_table_pack(resume->digests, resume->frontier / MIB, (frontier + MIB - 1) / MIB);

    g_assert_cmpuint(frontier, >=, resume->frontier);
    g_assert_cmpuint(storage_memory_flush_count(resume->target), >, resume->flushes);
    resume->flushes = storage_memory_flush_count(resume->target);
    g_byte_array_append(resume->records, g_bytes_get_data(records, NULL), (guint)g_bytes_get_size(records));
    resume->frontier = frontier;
    resume->sum = *sum;
    resume->checkpoints++;
    return true;
}

static bool cancel_later(void *opaque)
{
    struct resume *resume = opaque;
    return resume->polls && --resume->polls == 0;
}

/* Runs until it succeeds, each time from the last checkpoint with a table made of its records. */
static unsigned run_to_the_end(struct disk *source, struct disk *target, struct copy_options *options,
                               struct resume *resume, int code)
{
    unsigned runs = 0;
    bool done = false;

    while (!done) {
        g_autoptr(digest_table_t) digests = digest_table_new(DIGEST_XXH3_128, source->size);
        g_autoptr(GError) error = NULL;
        struct copy_result result;

        runs++;
        g_assert_cmpuint(runs, <, 500);
        assert_ok(digest_table_unpack(digests, resume->records->data, resume->records->len, &error));
        resume->digests = options->digests = digests;
        options->start = resume->frontier;
        options->map_sum = resume->sum;
        done = copy_run(source->chain, image_of(target), options, &result, &error);
        copy_result_clear(&result);
        if (!done) {
            g_assert_error(error, BLOCKMIG_ERROR, code);
            continue;
        }
        g_assert_cmpuint(resume->frontier, ==, source->size);
        assert_digests(digests, source->guest, source->size);
        assert_ok(copy_prove(image_of(target), digests, &resume->sum, options, &result, &error));
        copy_result_clear(&result);
    }
    assert_content(target, source->guest, source->size);
    return runs;
}

static void test_no_space(gconstpointer no_uring)
{
    for (unsigned skip = 0; skip < 18; skip++) {
        struct disk source = raw_disk(12 * MIB + 512);
        struct disk target = empty_target(source.size, skip % 2 ? CLUSTER : 0);
        struct resume resume = {.records = g_byte_array_new(), .target = target.storage};
        struct copy_options options = {.read_back = skip % 3 != 0,
                                       .no_uring = no_uring != NULL,
                                       .checkpoint_bytes = MIB,
                                       .buffer_bytes = 16 * MIB,
                                       .checkpoint = note_checkpoint,
                                       .opaque = &resume};
        struct memory_fault fault = {.on = MEMORY_WRITE, .skip = skip, .count = 1, .errnum = ENOSPC};

        storage_memory_add_fault(target.storage, &fault);
        fault.skip += 5;
        storage_memory_add_fault(target.storage, &fault);
        run_to_the_end(&source, &target, &options, &resume, BLOCKMIG_ERROR_NOSPACE);
        g_byte_array_unref(resume.records);
        disk_clear(&source);
        disk_clear(&target);
    }
}

static void test_cancel(gconstpointer no_uring)
{
    unsigned runs = 0;

    for (int round = 0; round < 8; round++) {
        struct disk source = scatter_disk(16 * MIB, CLUSTER, false);
        struct disk target = empty_target(source.size, round % 2 ? CLUSTER : 0);
        struct resume resume = {.records = g_byte_array_new(), .target = target.storage};
        struct copy_options options = {.read_back = true,
                                       .no_uring = no_uring != NULL,
                                       .buffer_bytes = 16 * MIB,
                                       .checkpoint = note_checkpoint,
                                       .cancelled = cancel_later,
                                       .opaque = &resume};
        resume.polls = (unsigned)g_test_rand_int_range(1, 200);
        runs += run_to_the_end(&source, &target, &options, &resume, BLOCKMIG_ERROR_CANCELLED);
        g_byte_array_unref(resume.records);
        disk_clear(&source);
        disk_clear(&target);
    }
    g_assert_cmpuint(runs, >, 8); /* or nothing was ever cancelled */
}

struct closing {
    struct throttle *throttle;
    unsigned polls;
};

/* The window closes with requests on their way, and nobody opens it again. */
static bool close_and_cancel(void *opaque)
{
    struct closing *closing = opaque;

    if (closing->polls == 2)
        throttle_set_window(closing->throttle, 0);
    return ++closing->polls > 4;
}

static void test_closed_window(gconstpointer no_uring)
{
    struct disk source = raw_disk(64 * MIB), target = empty_target(64 * MIB, CLUSTER);
    g_autoptr(digest_table_t) digests = digest_table_new(DIGEST_XXH3_128, source.size);
    struct closing closing = {0};
    struct copy_options options = {.read_back = true,
                                   .no_uring = no_uring != NULL,
                                   .digests = digests,
                                   .cancelled = close_and_cancel,
                                   .opaque = &closing};
    struct copy_result result;
    GError *error = NULL;

    closing.throttle = options.throttle = throttle_new(0);
    throttle_set_window(options.throttle, 256 << 10);
    assert_fails(copy_digest(source.chain, &options, &result, &error), BLOCKMIG_ERROR_CANCELLED, "cancelled");
    copy_result_clear(&result);
    throttle_set_window(options.throttle, 256 << 10);
    closing.polls = 0;
    assert_fails(copy_run(source.chain, image_of(&target), &options, &result, &error),
                 BLOCKMIG_ERROR_CANCELLED, "cancelled");
    copy_result_clear(&result);
    throttle_free(options.throttle);
    disk_clear(&source);
    disk_clear(&target);
}

/* Checkpoints in the middle of a run change nothing. */
static void test_checkpoints(void)
{
    struct disk source = scatter_disk(32 * MIB, CLUSTER, false), target = empty_target(32 * MIB, CLUSTER);
    struct resume resume = {.records = g_byte_array_new(), .target = target.storage};
    struct copy_options options = {.read_back = true,
                                   .checkpoint_bytes = 4 * MIB,
                                   .buffer_bytes = 16 * MIB,
                                   .checkpoint = note_checkpoint,
                                   .opaque = &resume};

    g_assert_cmpuint(run_to_the_end(&source, &target, &options, &resume, 0), ==, 1);
    g_assert_cmpuint(resume.checkpoints, >=, 3);
    g_byte_array_unref(resume.records);
    disk_clear(&source);
    disk_clear(&target);
}

/* A run that begins at the end, for the last one was killed between its last checkpoint and the proof, has
 * the digest of a last chunk that is short. */
static void test_nothing_left(void)
{
    uint64_t size = 3 * MIB + 4096;
    struct disk source = raw_disk(size), target = empty_target(size, CLUSTER);
    struct resume resume = {.records = g_byte_array_new(), .target = target.storage};
    struct copy_options options = {.read_back = true, .checkpoint = note_checkpoint, .opaque = &resume};
    GError *error = NULL;

    fill_random(source.guest + 3 * MIB, 4096);
    assert_ok(storage_pwrite(source.storage, source.guest + 3 * MIB, 4096, 3 * MIB, &error));
    for (int i = 0; i < 2; i++)
        g_assert_cmpuint(run_to_the_end(&source, &target, &options, &resume, 0), ==, 1);
    g_byte_array_unref(resume.records);
    disk_clear(&source);
    disk_clear(&target);
}

/* ---- the proof ---- */

static void test_prove(void)
{
    struct disk source = raw_disk(6 * MIB), target = empty_target(6 * MIB, CLUSTER);
    g_autoptr(digest_table_t) digests = digest_table_new(DIGEST_XXH3_128, source.size);
    struct copy_options options = {.read_back = true, .digests = digests};
    g_autoptr(GError) error = NULL;
    struct copy_result result;

    fill_random(source.guest, 3 * MIB);
    memset(source.guest + 3 * MIB, 0, 3 * MIB);
    assert_ok(storage_pwrite(source.storage, source.guest, source.size, 0, &error));
    assert_ok(copy_run(source.chain, image_of(&target), &options, &result, &error));
    struct copy_map_sum sum = result.map_sum;
    copy_result_clear(&result);

    struct scatter_cluster *clusters = target.scatter->clusters, kept = clusters[7];
    clusters[7] = clusters[20];
    clusters[20] = kept;
    assert_fails(copy_prove(image_of(&target), digests, &sum, NULL, &result, &error),
                 BLOCKMIG_ERROR_DIFFERENT, "tables");
    copy_result_clear(&result);
    clusters[20] = clusters[7];
    clusters[7] = kept;
    clusters[7].status = EXTENT_HOLE;
    assert_fails(copy_prove(image_of(&target), digests, &sum, NULL, &result, &error),
                 BLOCKMIG_ERROR_DIFFERENT, "tables");
    copy_result_clear(&result);
    clusters[7] = kept;
    clusters[60] = kept; /* data where the source has zeros */
    assert_fails(copy_prove(image_of(&target), digests, &sum, NULL, &result, &error),
                 BLOCKMIG_ERROR_DIFFERENT, "offset 3932160");
    copy_result_clear(&result);
    clusters[60].host = 0; /* mapped, but zeros: preallocation */
    assert_ok(copy_prove(image_of(&target), digests, &sum, NULL, &result, &error));
    g_assert_cmpuint(result.counters.bytes_verified, ==, CLUSTER);
    copy_result_clear(&result);
    disk_clear(&source);
    disk_clear(&target);
}

static void test_prove_raw(void)
{
    struct disk source = scatter_disk(6 * MIB, CLUSTER, false), target = empty_target(7 * MIB, 0);
    g_autoptr(digest_table_t) digests = digest_table_new(DIGEST_XXH3_128, source.size);
    struct copy_options options = {.read_back = true, .digests = digests};
    g_autoptr(GError) error = NULL;
    struct copy_result result;

    assert_ok(copy_run(source.chain, image_of(&target), &options, &result, &error));
    copy_result_clear(&result);
    assert_ok(storage_pwrite(target.storage, "x", 1, 6 * MIB + 700, &error));
    assert_fails(copy_prove(image_of(&target), digests, &options.map_sum, NULL, &result, &error),
                 BLOCKMIG_ERROR_DIFFERENT, "offset 6291968");
    copy_result_clear(&result);
    disk_clear(&source);
    disk_clear(&target);
}

/* ---- digesting and comparing ---- */

static void test_digest(gconstpointer no_uring)
{
    for (unsigned round = 0; round < harness_sample(10, 100); round++) {
        struct disk disk = round % 2 ? raw_disk(random_size()) : scatter_disk(random_size(), 4096, false);
        g_autoptr(digest_table_t) digests =
            digest_table_new(round % 3 ? DIGEST_XXH3_128 : DIGEST_SHA256, disk.size);
        struct copy_options options = {
            .digests = digests, .buffer_bytes = 16 * MIB, .no_uring = no_uring != NULL};
        g_autoptr(GError) error = NULL;
        struct copy_result result;

        assert_ok(copy_digest(disk.chain, &options, &result, &error));
        assert_digests(digests, disk.guest, disk.size);
        copy_result_clear(&result);
        disk_clear(&disk);
    }
}

struct differences {
    GArray *found; /* of struct copy_range */
    unsigned limit;
};

static bool note_difference(void *opaque, uint64_t offset, uint64_t length)
{
    struct differences *differences = opaque;
    struct copy_range range = {offset, length};

    g_array_append_val(differences->found, range);
    return --differences->limit > 0;
}

/* What two models differ in, sector by sector. */
static GArray *expected_differences(const struct disk *a, const struct disk *b)
{
    GArray *ranges = g_array_new(FALSE, FALSE, sizeof(struct copy_range));
    uint64_t end = MAX(a->size, b->size);

    for (uint64_t at = 0; at < end; at += 512) {
        bool differ = false;
        uint64_t length = MIN(512, end - at);
        for (uint64_t i = at; i < at + length; i++)
            differ |= (i < a->size ? a->guest[i] : 0) != (i < b->size ? b->guest[i] : 0);
        struct copy_range *last =
            ranges->len ? &g_array_index(ranges, struct copy_range, ranges->len - 1) : NULL;
        if (differ && last && last->offset + last->length == at) {
            last->length += length;
        } else if (differ) {
            struct copy_range range = {at, length};
            g_array_append_val(ranges, range);
        }
    }
    return ranges;
}

static void test_compare(gconstpointer no_uring)
{
    for (int round = 0; round < 16; round++) {
        uint64_t size = random_size();
        struct disk a = scatter_disk(size, CLUSTER, false), b = {.size = size + 512 * (uint64_t)(round % 3)};
        struct differences differences = {g_array_new(FALSE, FALSE, sizeof(struct copy_range)), 100000};
        struct copy_options options = {
            .no_uring = no_uring != NULL, .buffer_bytes = 16 * MIB, .opaque = &differences};
        g_autoptr(GError) error = NULL;
        struct copy_result result;

        b.guest = g_malloc0(b.size);
        memcpy(b.guest, a.guest, a.size);
        for (int i = 0; i < round; i++)
            memset(b.guest + (uint64_t)g_test_rand_int_range(0, (int)(b.size - 2000)), 0x77,
                   (size_t)g_test_rand_int_range(1, 2000));
        b.storage = storage_memory_new("b", b.guest, b.size, 0);
        b.chain = chain_new_single(open_image(b.storage, &format_raw, NULL), false);
        g_autoptr(GArray) expected = expected_differences(&a, &b);

        assert_ok(copy_compare(a.chain, b.chain, &options, note_difference, &result, &error));
        g_assert_cmpmem(differences.found->data, differences.found->len * sizeof(struct copy_range),
                        expected->data, expected->len * sizeof(struct copy_range));
        copy_result_clear(&result);
        if (expected->len) {
            g_array_set_size(differences.found, 0);
            differences.limit = 1;
            assert_ok(copy_compare(b.chain, a.chain, &options, note_difference, &result, &error));
            g_assert_cmpuint(differences.found->len, ==, 1);
            copy_result_clear(&result);
        }
        g_array_unref(differences.found);
        disk_clear(&a);
        disk_clear(&b);
    }
}

/* ---- rate and progress ---- */

struct watch {
    unsigned calls;
    uint64_t position;
    struct throttle *throttle;
};

static void note_progress(void *opaque, const struct copy_counters *counters)
{
    struct watch *watch = opaque;

    watch->calls++;
    g_assert_cmpuint(counters->position, >=, watch->position);
    g_assert_cmpuint(counters->data_done, <=, counters->data_total);
    watch->position = counters->position;
    if (counters->data_done > 8 * MIB)
        throttle_set_rate(watch->throttle, 0);
}

static void test_throttle(void)
{
    struct disk source = raw_disk(40 * MIB), target = empty_target(40 * MIB, 0);
    struct watch watch = {.throttle = throttle_new(16 * MIB)};
    struct copy_options options = {.throttle = watch.throttle, .progress = note_progress, .opaque = &watch};
    g_autoptr(GError) error = NULL;
    struct copy_result result;
    int64_t begin = g_get_monotonic_time(), took;

    assert_ok(copy_run(source.chain, image_of(&target), &options, &result, &error));
    took = g_get_monotonic_time() - begin;
    g_assert_cmpint(took, >=, 400000);  /* 8 MiB at 16 MiB/s */
    g_assert_cmpint(took, <=, 2000000); /* and the rest without a limit: at 16 MiB/s it takes 2.5 s */
    g_assert_cmpuint(watch.calls, >=, 4);
    g_assert_cmpuint(watch.position, ==, source.size);
    g_assert_cmpuint(result.counters.data_done, ==, result.counters.data_total);
    assert_content(&target, source.guest, source.size);
    copy_result_clear(&result);
    throttle_free(watch.throttle);
    disk_clear(&source);
    disk_clear(&target);
}

static void test_refusals(void)
{
    struct disk source = raw_disk(3 * MIB), small = empty_target(2 * MIB, 0),
                target = empty_target(3 * MIB, 0);
    struct copy_options options = {.start = 512};
    g_autoptr(GError) error = NULL;
    struct copy_result result;

    assert_fails(copy_run(source.chain, image_of(&small), NULL, &result, &error), BLOCKMIG_ERROR_REFUSED,
                 "too few");
    copy_result_clear(&result);
    assert_fails(copy_run(source.chain, image_of(&target), &options, &result, &error), BLOCKMIG_ERROR_USAGE,
                 "inside a digest chunk");
    copy_result_clear(&result);
    options = (struct copy_options){.compress = true};
    assert_fails(copy_run(source.chain, image_of(&target), &options, &result, &error), BLOCKMIG_ERROR_USAGE,
                 "compressed");
    copy_result_clear(&result);
    disk_clear(&source);
    disk_clear(&small);
    disk_clear(&target);
}

static void add_both(const char *name, GTestDataFunc test)
{
    g_autofree char *uring = g_strdup_printf("/copy/uring/%s", name);
    g_autofree char *threads = g_strdup_printf("/copy/threads/%s", name);

    g_test_add_data_func(uring, NULL, test);
    g_test_add_data_func(threads, "no", test);
}

int main(int argc, char **argv)
{
    char *with_tap[] = {argv[0], (char[]){"--tap"}, NULL};
    char **args = argc > 1 ? argv : with_tap;
    int count = argc > 1 ? argc : 2;

    g_test_init(&count, &args, NULL);
    add_both("random", test_random);
    add_both("deterministic", test_deterministic);
    add_both("read-error", test_read_error);
    add_both("write-error", test_write_error);
    add_both("no-space", test_no_space);
    add_both("cancel", test_cancel);
    add_both("closed-window", test_closed_window);
    add_both("digest", test_digest);
    add_both("compare", test_compare);
    add_both("overlay", test_overlay);
    add_both("large-fills", test_large_fills);
    g_test_add_func("/copy/used-target", test_used_target);
    g_test_add_func("/copy/writes", test_writes);
    g_test_add_func("/copy/bad-packed", test_bad_packed);
    g_test_add_func("/copy/checkpoints", test_checkpoints);
    g_test_add_func("/copy/nothing-left", test_nothing_left);
    g_test_add_func("/copy/prove", test_prove);
    g_test_add_func("/copy/prove-raw", test_prove_raw);
    g_test_add_func("/copy/throttle", test_throttle);
    g_test_add_func("/copy/refusals", test_refusals);
    return g_test_run();
}
