/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The qcow2 driver on memory: exact layout, and what a crash at any moment leaves. */
#include "blockmig/storage/memory.h"
#include "formats/chain.h"
#include "tests/helpers/crash.h"
#include "tests/helpers/image-writer.h"
#include "tests/unit/harness.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MIB (UINT64_C(1) << 20)

static struct storage *create(uint64_t size, const char *options, bool backed)
{
    g_autoptr(GHashTable) values = format_parse_options(&format_qcow2, options, NULL);
    struct image_create_options create_options = {.size = size, .values = values};
    struct storage *storage = storage_memory_new("disk", NULL, 0, 0);
    g_autoptr(GError) error = NULL;

    if (backed) {
        create_options.backing_name = "base";
        create_options.backing_format = "raw";
    }
    image_create(storage, &format_qcow2, &create_options, &error);
    g_assert_no_error(error);
    return storage;
}

static struct image *open_image(struct storage *storage, bool writable)
{
    g_autoptr(GError) error = NULL;
    struct image *image = image_open(storage, &format_qcow2, writable, &error);

    g_assert_no_error(error);
    return image;
}

/* qemu-img check: 0 clean, 2 corruptions, 3 leaks. */
static int judge(const void *bytes, size_t length)
{
    g_autofree char *path = NULL, *command = NULL;
    int fd = g_file_open_tmp("blockmig-qcow2-XXXXXX", &path, NULL), status;

    g_assert_cmpint(write(fd, bytes, length), ==, (gssize)length);
    close(fd);
    command = g_strdup_printf("qemu-img check -q 'json:{\"driver\": \"qcow2\", \"backing\": null, \"file\": "
                              "{\"driver\": \"file\", \"filename\": \"%s\"}}' >/dev/null 2>&1",
                              path);
    status = system(command);
    unlink(path);
    return WEXITSTATUS(status);
}

static bool have_judge(void)
{
    g_autofree char *program = g_find_program_in_path("qemu-img");

    if (!program && g_strcmp0(g_getenv("BLOCKMIG_REFERENCE"), "1") == 0)
        g_error("qemu-img is missing on the reference system");
    return program;
}

/* ---- layout ------------------------------------------------------------------------------------- */

static uint64_t place_one(struct image *image, uint64_t offset, uint64_t length, uint64_t *got)
{
    g_autoptr(GArray) placements = g_array_new(false, false, sizeof(struct placement));
    g_autoptr(GError) error = NULL;
    struct placement *first;

    image_place(image, offset, length, placements, &error);
    g_assert_no_error(error);
    first = &g_array_index(placements, struct placement, 0);
    g_assert_cmpuint(first->to.offset, ==, offset);
    *got = first->to.length;
    return first->to.host_offset;
}

/* header, refcount table, refcount block, L1, then L2 and data in turns; L2 tables written once. */
static void test_layout(void)
{
    struct storage *storage = create(64 * MIB, "cluster_size=4k", false);
    g_autoptr(image_t) image = open_image(storage, true);
    g_autoptr(GError) error = NULL;
    const GArray *writes = storage_memory_writes(storage);
    unsigned before = writes->len, tables = 0, flushes = storage_memory_flush_count(storage);
    uint64_t got;

    g_assert_cmpuint(storage->size, ==, 4 * 4096);
    /* An L2 table of 512 entries counts 2 MiB; a refcount block 2048 clusters, 8 MiB. */
    g_assert_cmpuint(place_one(image, 0, 2 * MIB, &got), ==, 5 * 4096);
    g_assert_cmpuint(got, ==, 2 * MIB);
    g_assert_cmpuint(place_one(image, 2 * MIB, 2 * MIB, &got), ==, (5 + 512 + 1) * 4096);
    g_assert_cmpuint(place_one(image, 4 * MIB, 4 * MIB, &got), ==, (4 + 2 * 513 + 1) * 4096);
    g_assert_cmpuint(got, ==, 2 * MIB); /* then comes the next L2 table */
    image_flush(image, &error);
    g_assert_no_error(error);
    for (guint i = before; i < writes->len; i++)
        tables += g_array_index(writes, struct memory_write, i).length == 4096;
    g_assert_cmpuint(tables, ==, 4 + 2); /* L2 tables and refcount blocks, each once */
    g_assert_cmpuint(storage_memory_flush_count(storage) - flushes, ==, 3);
    g_assert_cmpuint(place_one(image, 12345, 1, &got), ==, 5 * 4096 + 12345); /* in place */
    flushes = storage_memory_flush_count(storage);
    image_flush(image, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(storage_memory_flush_count(storage) - flushes, ==, 1);
    if (have_judge())
        g_assert_cmpint(judge(storage_memory_data(storage), storage->size), ==, 0);
}

/* ---- crashes ------------------------------------------------------------------------------------ */

static struct chain *make_backing(uint64_t size)
{
    g_autofree uint8_t *bytes = g_malloc(size);
    struct image *image;

    for (uint64_t i = 0; i < size; i++)
        bytes[i] = i * 7 + i / 4096;
    image = image_open(storage_memory_new("base", bytes, size, 0), &format_raw, false, NULL);
    return chain_new_single(image, false);
}

static struct crash_case crash_case(struct chain *backing)
{
    return (struct crash_case){
        .format = &format_qcow2, .backing = backing, .judge = have_judge() ? judge : NULL};
}

static void test_crash(gconstpointer data)
{
    const char *options = data;
    bool backed = options[0] == '+';
    uint64_t size = 700 * 1024 + 512;
    g_autoptr(chain_t) backing = backed ? make_backing(size - 70000) : NULL;
    struct crash_case crash = crash_case(backing);

    crash_random(&crash, create(size, options + backed, backed), 100);
}

/* A refcount table that is too small moves, also when the power fails meanwhile. */
static void test_growth(void)
{
    uint64_t size = 6 * MIB;
    struct storage *storage = create(size, "cluster_size=512,refcount_bits=64", false);
    const uint32_t one = GUINT32_TO_BE(1);
    g_autofree uint8_t *model = g_malloc0(size);
    struct crash_case crash = crash_case(NULL);
    g_autoptr(GPtrArray) marks = g_ptr_array_new_with_free_func((GDestroyNotify)crash_mark_free);
    g_autoptr(GRand) random = harness_rand();
    g_autoptr(image_t) image = NULL;
    g_autoptr(GError) error = NULL;
    struct image_check result;

    /* The header claims one cluster of it, for 64 * 64 clusters of 512 bytes; the others leak. */
    g_assert_true(storage_pwrite(storage, &one, sizeof one, 56, &error));
    image = open_image(storage, true);
    image_check(image, true, &result, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(result.corruptions, ==, 0);
    g_assert_cmpuint(result.repaired, >, 0);
    g_assert_true(image_flush(image, &error));
    g_ptr_array_add(marks, crash_mark_new(storage, model, size));
    for (uint64_t offset = 0; offset < size; offset += 3 * MIB) {
        struct crash_mark *mark = marks->pdata[marks->len - 1];

        memset(model + offset, 1 + offset / MIB, 3 * MIB);
        memset(mark->touched + offset, 1, 3 * MIB);
        g_assert_true(writer_write(image, NULL, model + offset, 3 * MIB, offset, &error));
        g_assert_true(image_flush(image, &error));
        g_ptr_array_add(marks, crash_mark_new(storage, model, size));
    }
    g_assert_cmpuint(GUINT32_FROM_BE(*(const uint32_t *)(storage_memory_data(storage) + 56)), >, 1);
    crash_everywhere(&crash, storage, marks, random);
}

/* More L2 tables are changed between two flushes than the cache holds: those that the medium uses move, so
 * that until the flush it still finds the old ones. */
static void test_eviction(void)
{
    uint64_t span = UINT64_C(512) << 30; /* of one L2 table of 2 MiB */
    unsigned count = 12, before;
    struct storage *storage = create(count * span, "cluster_size=2M", false);
    g_autoptr(image_t) image = open_image(storage, true);
    g_autoptr(GByteArray) cut = NULL;
    g_autoptr(GError) error = NULL;
    struct image_check result;

    for (uint8_t round = 1; round <= 3; round++) {
        before = storage_memory_flush_count(storage);
        for (unsigned i = 0; i < count; i++) {
            uint8_t bytes[512];

            memset(bytes, round * 16 + i, sizeof bytes);
            assert_ok(
                writer_write(image, NULL, bytes, sizeof bytes, i * span + (uint64_t)round * 4 * MIB, &error));
        }
        g_assert_cmpuint(storage_memory_flush_count(storage), ==, before);
        if (round == 2)
            cut = g_byte_array_append(g_byte_array_new(), storage_memory_data(storage), storage->size);
        assert_ok(image_flush(image, &error));
        assert_ok(image_check(image, false, &result, &error));
        g_assert_cmpuint(result.leaks + result.corruptions, ==, 0);
    }
    for (unsigned i = 0; i < count * 3; i++) {
        uint8_t byte;

        assert_ok(writer_read(image, NULL, &byte, 1, i % count * span + (i / count + 1) * 4 * MIB, &error));
        g_assert_cmpuint(byte, ==, (i / count + 1) * 16 + i % count);
    }
    /* Had the power failed before the second flush, with everything written: the first one holds. */
    image_close(g_steal_pointer(&image));
    image = open_image(storage_memory_new("cut", cut->data, cut->len, 0), false);
    assert_ok(image_check(image, false, &result, &error));
    g_assert_cmpuint(result.corruptions, ==, 0);
    for (unsigned i = 0; i < count; i++) {
        uint8_t bytes[2];

        assert_ok(writer_read(image, NULL, &bytes[0], 1, i * span + 4 * MIB, &error));
        assert_ok(writer_read(image, NULL, &bytes[1], 1, i * span + 8 * MIB, &error));
        g_assert_cmpuint(bytes[0], ==, 16 + i);
        g_assert_cmpuint(bytes[1], ==, 0);
    }
}

/* ---- faults ------------------------------------------------------------------------------------- */

/* After an operation that stopped half way nothing may become durable. */
static void test_poison(void)
{
    struct storage *storage = storage_memory_new("disk", NULL, 0, 96 * 1024);
    struct image_create_options options = {.size = MIB};
    const struct memory_fault fault = {.on = MEMORY_FLUSH, .count = 1, .errnum = EIO};
    g_autofree uint8_t *data = g_malloc0(MIB);
    g_autoptr(GHashTable) values = format_parse_options(&format_qcow2, "cluster_size=4k", NULL);
    g_autoptr(GError) error = NULL;
    g_autoptr(image_t) image = NULL;

    options.values = values;
    g_assert_true(image_create(storage, &format_qcow2, &options, &error));
    image = open_image(storage, true);
    g_assert_true(writer_write(image, NULL, data, 8192, 0, &error));
    storage_memory_add_fault(storage, &fault);
    g_assert_false(image_flush(image, &error));
    g_assert_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_IO);
    g_clear_error(&error);
    g_assert_false(image_flush(image, &error));
    g_assert_nonnull(error);
}

int main(int argc, char **argv)
{
    static const char *const crashes[] = {
        "cluster_size=512",
        "cluster_size=512,refcount_bits=1",
        "+cluster_size=4k",
        "+cluster_size=4k,compat=0.10",
        "cluster_size=64k",
        "+cluster_size=16k,extended_l2=on",
        "cluster_size=64k,extended_l2=on,compression_type=zstd",
        "+cluster_size=1k,refcount_bits=64",
    };

    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/qcow2/layout", test_layout);
    g_test_add_func("/qcow2/growth", test_growth);
    g_test_add_func("/qcow2/eviction", test_eviction);
    g_test_add_func("/qcow2/poison", test_poison);
    for (guint i = 0; i < G_N_ELEMENTS(crashes); i++) {
        g_autofree char *path = g_strdup_printf("/qcow2/crash/%s", crashes[i]);

        g_test_add_data_func(path, crashes[i], test_crash);
    }
    return g_test_run();
}
