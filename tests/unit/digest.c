/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Digests and the table: known vectors, and roots computed a second time by the simplest means. */
#include "blockmig/copy/digest.h"

#include "formats/error.h"
#include "formats/xxh3.h"

#include <string.h>
#include <xxhash.h>

#define CHUNK DIGEST_CHUNK_SIZE

static void assert_hex(enum digest_algorithm algorithm, const void *data, size_t length, const char *expected)
{
    uint8_t digest[DIGEST_MAX_LENGTH], back[DIGEST_MAX_LENGTH];

    digest_compute(algorithm, data, length, digest);
    g_autofree char *hex = digest_to_hex(algorithm, digest);
    g_assert_cmpstr(hex, ==, expected);
    g_assert_true(digest_from_hex(algorithm, hex, back));
    g_assert_cmpmem(digest, digest_length(algorithm), back, digest_length(algorithm));
}

/* From FIPS 180 examples, and from the xxhash project's own test values for an empty input. */
static void test_vectors(void)
{
    assert_hex(DIGEST_SHA256, "abc", 3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_hex(DIGEST_SHA256, "", 0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    assert_hex(DIGEST_XXH3_128, "", 0, "99aa06d3014798d86001c324468d497f");
}

/* However wide the vectors are that it computes with: as the plain library has it. */
static void test_xxh3(void)
{
    size_t most = 2 * CHUNK;
    g_autofree uint8_t *data = g_malloc(most);

    for (size_t i = 0; i < most; i++)
        data[i] = (uint8_t)g_test_rand_int();
    for (unsigned i = 0; i < 500; i++) {
        size_t offset = (size_t)g_test_rand_int_range(0, 128);
        size_t length = (size_t)g_test_rand_int_range(0, i % 8 ? 4096 : (gint32)most - 128);
        uint8_t digest[XXH3_DIGEST];
        XXH128_canonical_t expected;

        XXH128_canonicalFromHash(&expected, XXH3_128bits(data + offset, length));
        xxh3_digest(data + offset, length, digest);
        g_assert_cmpmem(digest, sizeof(digest), expected.digest, sizeof(expected.digest));
    }
}

static void test_names(void)
{
    enum digest_algorithm algorithm = DIGEST_SHA256;
    g_autoptr(GError) error = NULL;
    uint8_t digest[DIGEST_MAX_LENGTH];

    g_assert_true(digest_algorithm_parse("xxh3", &algorithm, NULL));
    g_assert_cmpint(algorithm, ==, DIGEST_XXH3_128);
    g_assert_true(digest_algorithm_parse("sha256", &algorithm, NULL));
    g_assert_cmpstr(digest_algorithm_name(algorithm), ==, "sha256");
    g_assert_false(digest_algorithm_parse("md5", &algorithm, &error));
    g_assert_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE);
    g_assert_false(digest_from_hex(DIGEST_XXH3_128, "99aa06d3014798d86001c324468d49", digest));
    g_assert_false(digest_from_hex(DIGEST_XXH3_128, "99aa06d3014798d86001c324468d497g", digest));
}

/* The definition in the header, word for word, over an array of all chunk digests. */
static void simple_root(enum digest_algorithm algorithm, uint64_t size, GPtrArray *chunks, uint8_t *out)
{
    size_t length = digest_length(algorithm);
    GByteArray *level = g_byte_array_new(), *text = g_byte_array_new();

    for (guint i = 0; i < chunks->len; i++)
        g_byte_array_append(level, g_ptr_array_index(chunks, i), (guint)length);
    while (level->len > length) {
        GByteArray *above = g_byte_array_new();
        for (size_t at = 0; at < level->len; at += 256 * length) {
            uint8_t node[DIGEST_MAX_LENGTH];
            digest_compute(algorithm, level->data + at, MIN(256 * length, level->len - at), node);
            g_byte_array_append(above, node, (guint)length);
        }
        g_byte_array_unref(level);
        level = above;
    }
    g_byte_array_append(text, (const guint8 *)"blockmig-digest-1", 18);
    for (int shift = 0; shift < 64; shift += 8)
        g_byte_array_append(text, &(guint8){(guint8)(size >> shift)}, 1);
    for (int shift = 0; shift < 64; shift += 8)
        g_byte_array_append(text, &(guint8){(guint8)(CHUNK >> shift)}, 1);
    g_byte_array_append(text, level->data, level->len);
    digest_compute(algorithm, text->data, text->len, out);
    g_byte_array_unref(level);
    g_byte_array_unref(text);
}

static void check_root(enum digest_algorithm algorithm, uint64_t size, unsigned stored)
{
    g_autoptr(digest_table_t) table = digest_table_new(algorithm, size);
    g_autoptr(GPtrArray) chunks = g_ptr_array_new_with_free_func(g_free);
    uint8_t root[DIGEST_MAX_LENGTH], expected[DIGEST_MAX_LENGTH];
    uint8_t whole[DIGEST_MAX_LENGTH];
    g_autofree uint8_t *zeros = g_malloc0(CHUNK);
    uint64_t count = (size + CHUNK - 1) / CHUNK;

    g_assert_cmpuint(digest_table_chunks(table), ==, count);
    digest_compute(algorithm, zeros, CHUNK, whole);
    for (uint64_t i = 0; i < count; i++)
        g_ptr_array_add(chunks, g_memdup2(whole, sizeof whole));
    if (size % CHUNK)
        digest_compute(algorithm, zeros, size % CHUNK, g_ptr_array_index(chunks, count - 1));
    for (unsigned i = 0; count && i < stored; i++) {
        uint64_t chunk = (uint64_t)g_test_rand_int() % count;
        digest_compute(algorithm, &chunk, sizeof(chunk), g_ptr_array_index(chunks, chunk));
        digest_table_set(table, chunk, g_ptr_array_index(chunks, chunk));
    }
    for (uint64_t i = 0; i < count; i++)
        g_assert_cmpmem(digest_table_get(table, i), digest_length(algorithm), g_ptr_array_index(chunks, i),
                        digest_length(algorithm));
    digest_table_root(table, root);
    simple_root(algorithm, size, chunks, expected);
    g_assert_cmpmem(root, digest_length(algorithm), expected, digest_length(algorithm));
}

static void test_root(void)
{
    static const uint64_t sizes[] = {0,
                                     1,
                                     512,
                                     CHUNK,
                                     CHUNK + 1,
                                     255 * CHUNK + 5,
                                     256 * CHUNK,
                                     257 * CHUNK,
                                     1000 * CHUNK - 512,
                                     65536 * CHUNK,
                                     65537 * CHUNK - 1};

    for (unsigned i = 0; i < G_N_ELEMENTS(sizes); i++) {
        check_root(DIGEST_XXH3_128, sizes[i], 0);
        check_root(DIGEST_XXH3_128, sizes[i], 3);
        check_root(DIGEST_XXH3_128, sizes[i], 700);
    }
    check_root(DIGEST_SHA256, 300 * CHUNK + 7, 40);
}

/* 64 TiB with a few chunks: what takes memory or time with the size would not finish here. */
static void test_sparse(void)
{
    uint64_t size = UINT64_C(64) << 40, last = (size / CHUNK) - 1, chunk = 0;
    static const uint64_t set[] = {0, 255, 256, 65536, 12345678};
    g_autoptr(digest_table_t) table = digest_table_new(DIGEST_XXH3_128, size);
    uint8_t empty[DIGEST_MAX_LENGTH], root[DIGEST_MAX_LENGTH], digest[DIGEST_MAX_LENGTH] = {1};

    digest_table_root(table, empty);
    g_assert_false(digest_table_next(table, &chunk));
    for (unsigned i = 0; i < G_N_ELEMENTS(set); i++)
        digest_table_set(table, set[i], digest);
    digest_table_set(table, last, digest);
    g_assert_cmpuint(digest_table_stored(table), ==, G_N_ELEMENTS(set) + 1);
    for (unsigned i = 0; i < G_N_ELEMENTS(set); i++, chunk++) {
        g_assert_true(digest_table_next(table, &chunk));
        g_assert_cmpuint(chunk, ==, set[i]);
        g_assert_false(digest_table_is_zero(table, chunk));
        g_assert_true(digest_table_is_zero(table, chunk + 1) || chunk == 255);
    }
    g_assert_true(digest_table_next(table, &chunk));
    g_assert_cmpuint(chunk, ==, last);
    chunk++;
    g_assert_false(digest_table_next(table, &chunk));

    digest_table_root(table, root);
    g_assert_true(memcmp(root, empty, 16) != 0);
    digest_table_truncate(table, 256);
    g_assert_cmpuint(digest_table_stored(table), ==, 2);
    digest_table_set(table, 0, digest_table_zero(table, 0));
    digest_table_truncate(table, 0);
    g_assert_cmpuint(digest_table_stored(table), ==, 0);
    digest_table_root(table, root);
    g_assert_cmpmem(root, 16, empty, 16);
}

static void test_pack(void)
{
    g_autoptr(digest_table_t) a = digest_table_new(DIGEST_SHA256, 100 * CHUNK);
    g_autoptr(digest_table_t) b = digest_table_new(DIGEST_SHA256, 100 * CHUNK);
    g_autoptr(GError) error = NULL;
    uint8_t root_a[DIGEST_MAX_LENGTH], root_b[DIGEST_MAX_LENGTH];

    for (uint64_t i = 0; i < 100; i += 7) {
        uint8_t digest[DIGEST_MAX_LENGTH];
        digest_compute(DIGEST_SHA256, &i, sizeof(i), digest);
        digest_table_set(a, i, digest);
    }
    for (uint64_t from = 0; from < 100; from += 30) {
        g_autoptr(GBytes) records = digest_table_pack(a, from, from + 30);
        g_assert_true(
            digest_table_unpack(b, g_bytes_get_data(records, NULL), g_bytes_get_size(records), NULL));
    }
    digest_table_root(a, root_a);
    digest_table_root(b, root_b);
    g_assert_cmpmem(root_a, 32, root_b, 32);

    uint8_t record[40] = {100};
    g_assert_false(digest_table_unpack(b, record, 40, &error));
    g_assert_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED);
    g_clear_error(&error);
    g_assert_false(digest_table_unpack(b, record, 39, &error));
    g_assert_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED);
}

int main(int argc, char **argv)
{
    char tap[] = "--tap", *with_tap[] = {argv[0], tap, NULL};
    char **args = argc > 1 ? argv : with_tap;
    int count = argc > 1 ? argc : 2;

    g_test_init(&count, &args, NULL);
    g_test_add_func("/digest/vectors", test_vectors);
    g_test_add_func("/digest/xxh3", test_xxh3);
    g_test_add_func("/digest/names", test_names);
    g_test_add_func("/digest/root", test_root);
    g_test_add_func("/digest/sparse", test_sparse);
    g_test_add_func("/digest/pack", test_pack);
    return g_test_run();
}
