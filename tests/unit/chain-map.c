/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* chain_map() against a model, on random chains of a driver that knows nothing but a list of extents. */
#include "blockmig/storage/memory.h"
#include "formats/chain.h"
#include "tests/unit/harness.h"

#define UNIT 16 /* of packing, and of the random extents */

static GArray *next_list; /* what the next image that is opened maps to; it takes it over */
static uint64_t next_size;
static unsigned extents_given;

static bool list_open(struct image *image, GError **error)
{
    image->size = next_size;
    image->packed_unit = UNIT;
    image->opaque = next_list;
    return true;
}

static bool list_map(struct image *image, uint64_t offset, uint64_t length, struct extent *out, size_t max,
                     size_t *count, GError **error)
{
    GArray *list = image->opaque;
    uint64_t end = offset + length;
    size_t n = 0;

    for (unsigned i = 0; i < list->len && n < max && offset < end; i++) {
        struct extent extent = g_array_index(list, struct extent, i);
        uint64_t cut = offset - extent.offset;

        if (extent_end(&extent) <= offset)
            continue;
        extent.offset = offset;
        extent.length = MIN(extent.length - cut, end - offset);
        if (extent.status == EXTENT_DATA)
            extent.host_offset += cut;
        else if (extent.status == EXTENT_PACKED)
            extent.skip += cut;
        extent.storage = image->storage;
        offset = extent_end(&extent);
        out[n++] = extent;
    }
    extents_given += n;
    *count = n;
    return true;
}

static bool list_unpack(struct image *image, uint64_t offset, const void *packed, size_t length, void *out,
                        GError **error)
{
    for (size_t i = 0; i < UNIT; i++)
        ((uint8_t *)out)[i] = i < length ? ((const uint8_t *)packed)[i] ^ 0xff : 0xee;
    return true;
}

static void list_close(struct image *image)
{
    g_array_unref(image->opaque);
}

static const struct format format_list = {
    .name = "list",
    .flags = FORMAT_BACKING | FORMAT_PACKED,
    .open = list_open,
    .map = list_map,
    .unpack = list_unpack,
    .close = list_close,
};

/* A layer, and what it shows: bytes, and where it shows nothing. */
struct model {
    uint64_t size;
    uint8_t *bytes;
    enum extent_status *status;
};

static void random_extent(GRand *rand, struct model *model, uint64_t offset, struct extent *extent,
                          GByteArray *host)
{
    uint64_t left = model->size - offset;
    uint64_t pieces;

    extent->offset = offset;
    extent->status = g_rand_int_range(rand, 0, 4);
    pieces = extent->status == EXTENT_PACKED ? 1 : g_rand_int_range(rand, 1, 6);
    extent->length = MIN(left, UNIT * pieces);
    if (extent->status == EXTENT_DATA && g_rand_boolean(rand)) { /* a gap on the host: not contiguous */
        g_byte_array_append(host, (const uint8_t *)"gap", 3);
    }
    extent->host_offset = host->len;
    extent->packed_length = UNIT;
    for (uint64_t i = 0; i < extent->length; i++) {
        uint8_t byte = g_rand_int_range(rand, 1, 256);
        uint8_t stored = extent->status == EXTENT_PACKED ? byte ^ 0xff : byte;
        bool has = extent->status == EXTENT_DATA || extent->status == EXTENT_PACKED;

        model->bytes[offset + i] = has ? byte : 0;
        model->status[offset + i] = extent->status;
        if (has)
            g_byte_array_append(host, &stored, 1);
    }
}

static struct image *random_layer(GRand *rand, struct model *model)
{
    g_autoptr(GByteArray) host = g_byte_array_new();
    g_autoptr(GError) error = NULL;
    struct image *image;

    model->size = g_rand_int_range(rand, 1, 40 * UNIT);
    model->bytes = g_new0(uint8_t, model->size);
    model->status = g_new0(enum extent_status, model->size);
    next_size = model->size;
    next_list = g_array_new(FALSE, TRUE, sizeof(struct extent));
    for (uint64_t offset = 0; offset < model->size;) {
        struct extent extent = {0};

        random_extent(rand, model, offset, &extent, host);
        g_array_append_val(next_list, extent);
        offset = extent_end(&extent);
    }
    image = image_open(storage_memory_new("layer", host->data, host->len, 0), &format_list, false, &error);
    g_assert_no_error(error);
    return image;
}

/* What the guest reads at `offset`, and whose it is. */
static uint8_t model_byte(const struct model *models, unsigned depth, uint64_t offset,
                          enum extent_status *status, unsigned *layer)
{
    for (unsigned i = 0; i < depth; i++) {
        *layer = i;
        *status = EXTENT_ZERO;
        if (offset >= models[i].size)
            return 0;
        *status = models[i].status[offset];
        if (*status != EXTENT_HOLE)
            return models[i].bytes[offset];
    }
    return 0;
}

static uint8_t extent_byte(const struct extent *extent, uint64_t i)
{
    const uint8_t *host = storage_memory_data(extent->storage);

    if (extent->status == EXTENT_DATA)
        return host[extent->host_offset + i];
    return host[extent->host_offset + extent->skip + i] ^ 0xff;
}

static void check_extent(const struct extent *extent, const struct model *models, unsigned depth,
                         bool keep_holes)
{
    for (uint64_t i = 0; i < extent->length; i++) {
        enum extent_status status;
        unsigned layer;
        uint8_t byte = model_byte(models, depth, extent->offset + i, &status, &layer);

        if (status == EXTENT_HOLE && !keep_holes)
            status = EXTENT_ZERO;
        g_assert_cmpint(extent->status, ==, status);
        if (status == EXTENT_DATA || status == EXTENT_PACKED) {
            g_assert_cmpuint(extent->layer, ==, layer);
            g_assert_cmpuint(extent_byte(extent, i), ==, byte);
        }
    }
}

static void check_unmergeable(const struct extent *a, const struct extent *b)
{
    g_assert_cmpuint(extent_end(a), ==, b->offset);
    if (a->status == b->status && a->status != EXTENT_PACKED)
        g_assert_true(a->status == EXTENT_DATA &&
                      (a->layer != b->layer || a->host_offset + a->length != b->host_offset));
}

/* The same answer whatever the room and wherever it begins, in neighbours that cannot be merged. */
static void check_map(struct chain *chain, const struct model *models, uint64_t begin, uint64_t end,
                      size_t max)
{
    while (begin < end) {
        g_autoptr(GError) error = NULL;
        struct extent out[64];
        size_t count;

        assert_ok(chain_map(chain, begin, end - begin, out, max, &count, &error));
        g_assert_cmpuint(count, >, 0);
        g_assert_cmpuint(count, <=, max);
        g_assert_cmpuint(out[0].offset, ==, begin);
        for (size_t i = 0; i < count; i++) {
            check_extent(&out[i], models, chain_depth(chain), chain->keep_holes);
            if (i > 0)
                check_unmergeable(&out[i - 1], &out[i]);
        }
        begin = extent_end(&out[count - 1]);
    }
    g_assert_cmpuint(begin, ==, end);
}

static void check_read(struct chain *chain, const struct model *models, uint64_t begin, uint64_t end)
{
    g_autoptr(GError) error = NULL;
    g_autofree uint8_t *buffer = g_malloc(end - begin);

    assert_ok(chain_read(chain, buffer, end - begin, begin, &error));
    for (uint64_t i = begin; i < end; i++) {
        enum extent_status status;
        unsigned layer;

        g_assert_cmpuint(buffer[i - begin], ==, model_byte(models, chain_depth(chain), i, &status, &layer));
    }
}

static bool unit_is_empty(const struct model *model, uint64_t offset, uint64_t unit)
{
    uint64_t begin = offset / unit * unit, end = MIN(begin + unit, model->size);

    while (begin < end && model->status[begin] == EXTENT_HOLE)
        begin++;
    return begin == end;
}

/* In units: a hole where the first layer has nothing of the unit, and all that there is anywhere else. */
static void check_units(struct chain *units, const struct model *models, uint64_t begin, uint64_t end,
                        size_t max)
{
    struct extent out[64];
    g_autoptr(GError) error = NULL;
    size_t count;

    for (; begin < end; begin = extent_end(&out[count - 1])) {
        assert_ok(chain_map(units, begin, end - begin, out, max, &count, &error));
        g_assert_cmpuint(out[0].offset, ==, begin);
        for (size_t i = 0; i < count; i++) {
            if (i > 0)
                check_unmergeable(&out[i - 1], &out[i]);
            if (out[i].status != EXTENT_HOLE)
                check_extent(&out[i], models, chain_depth(units), false);
            for (uint64_t at = out[i].offset; at < extent_end(&out[i]); at++)
                g_assert_true(unit_is_empty(&models[0], at, units->unit) == (out[i].status == EXTENT_HOLE));
        }
    }
    g_assert_cmpuint(begin, ==, end);
}

static void check_random_chain(GRand *rand)
{
    struct model models[6];
    unsigned depth = g_rand_int_range(rand, 1, 7);
    g_autoptr(chain_t) chain = chain_new_single(random_layer(rand, &models[0]), g_rand_boolean(rand));
    unsigned first = g_rand_int_range(rand, 0, depth);
    g_autoptr(chain_t) view = NULL, units = NULL;

    for (unsigned i = 1; i < depth; i++)
        chain_append(chain, random_layer(rand, &models[i]));
    g_assert_cmpuint(chain->size, ==, models[0].size);
    for (unsigned i = 0; i < 20; i++) {
        uint64_t begin = g_rand_int_range(rand, 0, chain->size);
        uint64_t end = g_rand_int_range(rand, begin + 1, chain->size + 1);

        check_map(chain, models, begin, end, g_rand_int_range(rand, 1, 65));
        check_read(chain, models, begin, end);
    }
    view = chain_view(chain, first, depth - first, true);
    g_assert_cmpuint(view->size, ==, models[first].size);
    check_map(view, models + first, 0, view->size, 7);
    units = chain_view_units(chain, first, 1u << g_rand_int_range(rand, 2, 9));
    check_units(units, models + first, 0, units->size, g_rand_int_range(rand, 1, 65));
    check_units(units, models + first, units->size / 3, (units->size + 2) / 2, g_rand_int_range(rand, 1, 65));
    for (unsigned i = 0; i < depth; i++) {
        g_free(models[i].bytes);
        g_free(models[i].status);
    }
}

static void test_random(void)
{
    g_autoptr(GRand) rand = harness_rand();

    for (unsigned i = 0; i < 2000; i++)
        check_random_chain(rand);
}

static struct image *fragments(unsigned pieces, bool holes_only, const char *content)
{
    g_autoptr(GError) error = NULL;
    struct image *image;

    next_size = (uint64_t)pieces * 2 * UNIT;
    next_list = g_array_new(FALSE, TRUE, sizeof(struct extent));
    if (holes_only) {
        struct extent hole = {.length = next_size, .status = EXTENT_HOLE};

        g_array_append_val(next_list, hole);
    }
    for (unsigned i = 0; !holes_only && i < 2 * pieces; i++) {
        struct extent extent = {
            .offset = (uint64_t)i * UNIT, .length = UNIT, .status = i % 2 ? EXTENT_ZERO : EXTENT_DATA};

        g_array_append_val(next_list, extent);
    }
    image = image_open(storage_memory_new("f", content, UNIT, 0), &format_list, false, &error);
    g_assert_no_error(error);
    return image;
}

/* Empty overlays over a fragmented base: a walk asks every overlay once, not once per call. */
static void test_cost(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(chain_t) chain = chain_new_single(fragments(500, true, NULL), false);
    struct extent out[4];
    size_t count;

    for (unsigned i = 0; i < 8; i++)
        chain_append(chain, fragments(500, true, NULL));
    chain_append(chain, fragments(500, false, "0123456789abcdef"));
    extents_given = 0;
    for (uint64_t offset = 0; offset < chain->size; offset = extent_end(&out[count - 1]))
        assert_ok(chain_map(chain, offset, chain->size - offset, out, 4, &count, &error));
    g_test_message("%u extents were asked for", extents_given);
    g_assert_cmpuint(extents_given, <=, 9 + 3 * 1000);
}

static void test_bounds(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(chain_t) chain = chain_new_single(fragments(1, true, NULL), true);
    struct extent out[1];
    size_t count;
    char byte;

    assert_fails(chain_map(chain, 0, 2 * UNIT + 1, out, 1, &count, &error), BLOCKMIG_ERROR_FAILED, "bounds");
    assert_fails(chain_map(chain, UINT64_MAX, 2, out, 1, &count, &error), BLOCKMIG_ERROR_FAILED, "bounds");
    assert_fails(chain_map(chain, 0, 0, out, 1, &count, &error), BLOCKMIG_ERROR_FAILED, "bounds");
    assert_fails(chain_read(chain, &byte, 1, 2 * UNIT, &error), BLOCKMIG_ERROR_FAILED, "bounds");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/chain-map/random", test_random);
    g_test_add_func("/chain-map/cost", test_cost);
    g_test_add_func("/chain-map/bounds", test_bounds);
    return g_test_run();
}
