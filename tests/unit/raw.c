/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The raw format, the wrappers of images, and the table of formats. */
#include "blockmig/storage/memory.h"
#include "formats/image.h"
#include "tests/unit/harness.h"

static void create(struct storage *storage, uint64_t size, const char *text)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GHashTable) values = format_parse_options(&format_raw, text, &error);
    struct image_create_options options = {.size = size, .values = values};

    assert_ok(values && image_create(storage, &format_raw, &options, &error));
}

static void test_any_size(void)
{
    static const uint64_t sizes[] = {0, 1, 511, 512, 513, 1000003};

    for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
        g_autoptr(GError) error = NULL;
        struct storage *storage = storage_memory_new("raw", NULL, 0, 0);
        g_autoptr(image_t) image = NULL;
        struct extent extents[4];
        size_t count;

        create(storage, sizes[i], NULL);
        image = image_open(storage, &format_raw, true, &error);
        g_assert_no_error(error);
        g_assert_cmpuint(image->size, ==, sizes[i]);
        g_assert_true(image->reads_zero);
        if (sizes[i] == 0)
            continue;
        assert_ok(image_map(image, 0, sizes[i], extents, 4, &count, &error));
        g_assert_cmpuint(count, ==, 1);
        g_assert_cmpuint(extents[0].length, ==, sizes[i]);
        assert_ok(image_map(image, sizes[i] - 1, 1, extents, 4, &count, &error));
        g_assert_cmpuint(extents[0].host_offset, ==, sizes[i] - 1);
    }
}

static void test_place_and_zero(void)
{
    g_autoptr(GError) error = NULL;
    struct storage *storage = storage_memory_new("raw", "0123456789", 10, 0);
    g_autoptr(image_t) image = image_open(storage, &format_raw, true, &error);
    g_autoptr(GArray) placements = g_array_new(FALSE, TRUE, sizeof(struct placement));
    struct placement *placement;
    uint64_t done_offset, done_length;

    g_assert_no_error(error);
    g_assert_false(image->reads_zero);
    assert_ok(image_place(image, 3, 4, placements, &error));
    g_assert_cmpuint(placements->len, ==, 1);
    placement = &g_array_index(placements, struct placement, 0);
    g_assert_cmpuint(placement->to.host_offset, ==, 3);
    g_assert_cmpuint(placement->to.length, ==, 4);
    g_assert_false(placement->fill);
    assert_ok(image_zero(image, 2, 3, &done_offset, &done_length, &error));
    g_assert_cmpuint(done_offset, ==, 2);
    g_assert_cmpuint(done_length, ==, 3);
    g_assert_cmpmem(storage_memory_data(storage), 10,
                    "01\0\0\0"
                    "56789",
                    10);
    assert_fails(image_place(image, 8, 3, placements, &error), BLOCKMIG_ERROR_FAILED, "out of bounds");
    assert_fails(image_zero(image, UINT64_MAX, 2, &done_offset, &done_length, &error), BLOCKMIG_ERROR_FAILED,
                 "raw: zero");
    assert_fails(image_unpack(image, 0, "", 0, NULL, &error), BLOCKMIG_ERROR_FAILED, "cannot unpack");
    assert_ok(image_flush(image, &error));
    image->writable = false;
    assert_fails(image_place(image, 0, 1, placements, &error), BLOCKMIG_ERROR_FAILED, "read-only");
    assert_fails(image_flush(image, &error), BLOCKMIG_ERROR_FAILED, "read-only");
}

static void test_create_refusals(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(storage_t) storage = storage_memory_new("small", NULL, 100, 0);
    struct image_create_options options = {.size = 101, .backing_name = "b", .backing_format = "raw"};
    uint64_t bytes;

    assert_fails(image_create(storage, &format_raw, &options, &error), BLOCKMIG_ERROR_FAILED, "backing");
    options.backing_name = NULL;
    storage->growable = false;
    assert_fails(image_create(storage, &format_raw, &options, &error), BLOCKMIG_ERROR_REFUSED,
                 "100 bytes are too few for a disk of 101");
    options.values = g_hash_table_new(g_str_hash, g_str_equal);
    assert_ok(image_measure(&format_raw, &options, 7, &bytes, &error));
    g_assert_cmpuint(bytes, ==, 7);
    g_hash_table_insert(options.values, (char *)"preallocation", (char *)"full");
    assert_ok(image_measure(&format_raw, &options, 7, &bytes, &error));
    g_assert_cmpuint(bytes, ==, 101);
    g_hash_table_insert(options.values, (char *)"preallocation", (char *)"metadata");
    assert_fails(image_create(storage, &format_raw, &options, &error), BLOCKMIG_ERROR_USAGE, "metadata");
    g_hash_table_unref(options.values);
}

/* A driver that is wrong about its own map is caught before a byte is copied. */
static struct extent wrong[2];
static size_t wrong_count;

static bool wrong_open(struct image *image, GError **error)
{
    image->size = 100;
    return true;
}

static bool wrong_map(struct image *image, uint64_t offset, uint64_t length, struct extent *out, size_t max,
                      size_t *count, GError **error)
{
    memcpy(out, wrong, sizeof(wrong));
    *count = wrong_count;
    return true;
}

static void test_map_is_checked(void)
{
    static const struct format format = {.name = "wrong", .open = wrong_open, .map = wrong_map};
    static const struct {
        struct extent extents[2];
        size_t count;
        bool good;
    } cases[] = {
        {{{.offset = 10, .length = 5}, {.offset = 15, .length = 5}}, 2, true},
        {{{.offset = 10, .length = 5}, {.offset = 15, .length = 6}}, 2, false},
        {{{.offset = 10, .length = 5}, {.offset = 16, .length = 4}}, 2, false},
        {{{.offset = 10, .length = 0}}, 1, false},
        {{{.offset = 9, .length = 5}}, 1, false},
        {{{.offset = 10, .length = UINT64_MAX}}, 1, false},
        {{{.offset = 10, .length = 5}}, 0, false},
    };
    g_autoptr(GError) error = NULL;
    g_autoptr(image_t) image = image_open(storage_memory_new("w", NULL, 0, 0), &format, false, &error);

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        struct extent out[2];
        size_t count;

        memcpy(wrong, cases[i].extents, sizeof(wrong));
        wrong_count = cases[i].count;
        if (cases[i].good)
            assert_ok(image_map(image, 10, 10, out, 2, &count, &error));
        else
            assert_fails(image_map(image, 10, 10, out, 2, &count, &error), BLOCKMIG_ERROR_FAILED,
                         "inconsistent");
    }
}

static void test_options(void)
{
    g_autoptr(GError) error = NULL;
    static const struct format_option options[] = {{"a", "one"}, {"b", "two"}, {NULL, NULL}};
    static const struct format format = {.name = "f", .options = options};
    g_autoptr(GHashTable) values = format_parse_options(&format, "a=x,,y,b=,a=1=2", &error);

    g_assert_no_error(error);
    g_assert_cmpstr(g_hash_table_lookup(values, "a"), ==, "1=2");
    g_assert_cmpstr(g_hash_table_lookup(values, "b"), ==, "");
    g_hash_table_unref(values);
    values = format_parse_options(&format, "a=x,,y", &error);
    g_assert_cmpstr(g_hash_table_lookup(values, "a"), ==, "x,y");
    assert_fails(format_parse_options(&format, "c=1", &error), BLOCKMIG_ERROR_USAGE,
                 "format f has no option \"c\" (known: a, b)");
    assert_fails(format_parse_options(&format, "a", &error), BLOCKMIG_ERROR_USAGE, "key=value");
    assert_fails(format_parse_options(&format, "=1", &error), BLOCKMIG_ERROR_USAGE, "key=value");
    assert_fails(format_by_name("nonesuch", &error), BLOCKMIG_ERROR_USAGE, "raw");
    g_assert_true(format_by_name("raw", &error) == &format_raw);
}

static void test_probe(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(storage_t) empty = storage_memory_new("empty", NULL, 0, 0);
    g_autoptr(storage_t) zeros = storage_memory_new("zeros", NULL, 100000, 0);
    struct memory_fault fault = {.on = MEMORY_READ, .errnum = 5};

    g_assert_true(format_probe(empty, &error) == &format_raw);
    g_assert_true(format_probe(zeros, &error) == &format_raw);
    storage_memory_add_fault(zeros, &fault);
    assert_fails(format_probe(zeros, &error), BLOCKMIG_ERROR_IO, "zeros: reading");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/raw/any-size", test_any_size);
    g_test_add_func("/raw/place-and-zero", test_place_and_zero);
    g_test_add_func("/raw/create-refusals", test_create_refusals);
    g_test_add_func("/image/map-is-checked", test_map_is_checked);
    g_test_add_func("/format/options", test_options);
    g_test_add_func("/format/probe", test_probe);
    return g_test_run();
}
