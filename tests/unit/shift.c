/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What an older file has of a newer one's content, at other places. */
#include "blockmig/storage/shift.h"

#include "blockmig/storage/memory.h"
#include "formats/error.h"

#include <string.h>

#define SIZE (1u << 20)

static GByteArray *random_bytes(GRand *rand, unsigned length)
{
    GByteArray *bytes = g_byte_array_new();

    g_byte_array_set_size(bytes, length);
    for (unsigned i = 0; i < length; i++)
        bytes->data[i] = (uint8_t)g_rand_int(rand);
    return bytes;
}

/* Of the old ones, cut and put together again with new ones between. */
static GByteArray *shuffled(GRand *rand, const GByteArray *old)
{
    GByteArray *bytes = g_byte_array_new();

    for (unsigned i = 0; i < 12; i++) {
        unsigned from = (unsigned)g_rand_int_range(rand, 0, (gint32)old->len);
        unsigned length = (unsigned)g_rand_int_range(rand, 0, (gint32)(old->len - from) + 1);
        g_autoptr(GByteArray) between = random_bytes(rand, (unsigned)g_rand_int_range(rand, 0, 5000));

        g_byte_array_append(bytes, old->data + from, MIN(length, SIZE / 8));
        g_byte_array_append(bytes, between->data, between->len);
    }
    return bytes;
}

static struct chain *chain_of(const GByteArray *bytes)
{
    struct storage *storage = storage_memory_new("new", bytes->data, bytes->len, 0);
    g_autoptr(GError) error = NULL;
    struct image *image = image_open(storage, &format_raw, false, &error);

    g_assert_no_error(error);
    return chain_new_single(image, false);
}

static GByteArray *signature_of(const GByteArray *bytes)
{
    g_autoptr(storage_t) storage = storage_memory_new("old", bytes->data, bytes->len, 0);
    g_autoptr(GError) error = NULL;
    uint32_t block = shift_block(bytes->len);
    unsigned part = 5 * block;
    GByteArray *whole = shift_signature(storage, 0, MIN(part, bytes->len), block, &error);

    g_assert_no_error(error);
    for (unsigned at = part; at < bytes->len; at += part) {
        g_autoptr(GByteArray) next = shift_signature(storage, at, MIN(part, bytes->len - at), block, &error);

        g_assert_no_error(error);
        g_byte_array_append(whole, next->data + SHIFT_HEADER, next->len - SHIFT_HEADER);
    }
    g_assert_cmpuint(whole->len, ==, SHIFT_HEADER + (bytes->len + block - 1) / block * SHIFT_HASHES);
    return whole;
}

static struct chain *find(const GByteArray *old, const GByteArray *new, const GByteArray *signature,
                          GError **error)
{
    g_autoptr(chain_t) chain = chain_of(new);

    return shift_find(chain, storage_memory_new("old", old->data, old->len, 0), signature, NULL, NULL, error);
}

/* Bytes that were found; each has to be the same where it was. */
static uint64_t check_found(struct chain *found, const GByteArray *old, const GByteArray *new)
{
    struct extent extents[3];
    uint64_t bytes = 0;
    size_t count;

    g_assert_cmpuint(found->size, ==, new->len);
    for (uint64_t at = 0; at < found->size; at = extent_end(&extents[count - 1])) {
        g_autoptr(GError) error = NULL;

        chain_map(found, at, found->size - at, extents, G_N_ELEMENTS(extents), &count, &error);
        g_assert_no_error(error);
        for (size_t i = 0; i < count; i++) {
            const struct extent *extent = &extents[i];

            g_assert_cmpuint(extent->length, >, 0);
            if (extent->status != EXTENT_DATA)
                continue;
            g_assert_cmpuint(extent->host_offset + extent->length, <=, old->len);
            g_assert_cmpmem(old->data + extent->host_offset, extent->length, new->data + extent->offset,
                            extent->length);
            bytes += extent->length;
        }
    }
    return bytes;
}

static void test_moved(void)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed(5);

    for (unsigned round = 0; round < 8; round++) {
        g_autoptr(GByteArray) old = random_bytes(rand, SIZE - round * 777);
        g_autoptr(GByteArray) new = shuffled(rand, old);
        g_autoptr(GByteArray) signature = signature_of(old);
        g_autoptr(GError) error = NULL;
        g_autoptr(chain_t) found = find(old, new, signature, &error);

        g_assert_no_error(error);
        /* At each of the cuts a block of 2 KiB may be lost on either side. */
        g_assert_cmpuint(check_found(found, old, new) + UINT64_C(12) * (5000 + 4096), >=, new->len);
    }
}

static void test_edges(void)
{
    static const unsigned lengths[] = {0, 1, 2047, 2048, 2049, 65536, 1 << 20};
    g_autoptr(GRand) rand = g_rand_new_with_seed(6);
    g_autoptr(GByteArray) most = random_bytes(rand, 1 << 20);

    for (unsigned i = 0; i < G_N_ELEMENTS(lengths); i++)
        for (unsigned k = 0; k < G_N_ELEMENTS(lengths); k++) {
            g_autoptr(GByteArray) old = g_byte_array_new(), new = g_byte_array_new();
            g_autoptr(GByteArray) signature = NULL;
            g_autoptr(GError) error = NULL;
            g_autoptr(chain_t) found = NULL;

            g_byte_array_append(old, most->data, lengths[i]);
            g_byte_array_append(new, most->data, lengths[k]);
            signature = signature_of(old);
            found = find(old, new, signature, &error);
            g_assert_no_error(error);
            check_found(found, old, new);
        }
}

/* Whatever an agent sends, it is refused, or finds nothing outside the file. */
static void test_hostile(void)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed(7);
    g_autoptr(GByteArray) old = random_bytes(rand, 40000);
    g_autoptr(GByteArray) new = random_bytes(rand, 50000);
    g_autoptr(GByteArray) signature = signature_of(old);

    for (unsigned round = 0; round < 300; round++) {
        g_autoptr(GByteArray) bad = g_byte_array_new();
        g_autoptr(GError) error = NULL;
        g_autoptr(chain_t) found = NULL;

        g_byte_array_append(bad, signature->data, signature->len);
        if (round < 40)
            g_byte_array_set_size(bad, round);
        else
            bad->data[g_rand_int_range(rand, 0, round < 200 ? 16 : (gint32)bad->len)] ^=
                (uint8_t)(1u << (round % 8));
        found = find(old, new, bad, &error);
        g_assert_true((found != NULL) == (error == NULL));
    }
}

static bool at_once(void *opaque)
{
    return true;
}

static void test_cancelled(void)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed(8);
    g_autoptr(GByteArray) old = random_bytes(rand, 10000);
    g_autoptr(GByteArray) signature = signature_of(old);
    g_autoptr(chain_t) chain = chain_of(old);
    g_autoptr(GError) error = NULL;

    g_assert_null(shift_find(chain, storage_memory_new("old", old->data, old->len, 0), signature, at_once,
                             NULL, &error));
    g_assert_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_CANCELLED);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/shift/moved", test_moved);
    g_test_add_func("/shift/edges", test_edges);
    g_test_add_func("/shift/hostile", test_hostile);
    g_test_add_func("/shift/cancelled", test_cancelled);
    return g_test_run();
}
