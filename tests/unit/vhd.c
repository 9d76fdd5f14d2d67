/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The VHD driver on memory: layout, what QEMU makes of the size, and what a crash at any moment leaves. */
#include "formats/vhd.h"

#include "tests/helpers/crash.h"
#include "tests/unit/memory-image.h"

#define MIB (UINT64_C(1) << 20)

static struct storage *create(const char *name, uint64_t size, const char *options, struct image *parent)
{
    return memory_image_create(&format_vhd, name, size, options, parent);
}

static struct image *open_image(struct storage *storage, bool writable)
{
    return memory_image_open(&format_vhd, storage, writable);
}

/* ---- geometry ----------------------------------------------------------------------------------- */

static void test_geometry(void)
{
    static const struct {
        uint64_t size;
        uint32_t geometry;
    } cases[] = {
        /* As Virtual PC, Windows and QEMU write them. */
        {16 * MIB, 481u << 16 | 4 << 8 | 17},
        {UINT64_C(136365211648), 65278u << 16 | 16 << 8 | 255},
        {10 * MIB, 301u << 16 | 4 << 8 | 17},
        {512 * MIB, 1040u << 16 | 16 << 8 | 63},
        {UINT64_C(3) << 40, 65535u << 16 | 16 << 8 | 255},
        {512, 0u << 16 | 4 << 8 | 17},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++)
        g_assert_cmphex(vhd_geometry(cases[i].size), ==, cases[i].geometry);
}

/* Whatever we write, QEMU shows all of it. */
static void test_size_for_qemu(void)
{
    g_autoptr(GRand) random = harness_rand();

    for (int i = 0; i < 200; i++) {
        uint64_t size =
            ((UINT64_C(1) << g_rand_int_range(random, 0, 32)) + g_rand_int_range(random, 0, 999)) * 512;
        g_autoptr(image_t) image = open_image(create("disk", size, "block_size=256M", NULL), false);
        const struct vhd *vhd = image->opaque;

        g_assert_cmpuint(image->size, ==, size);
        g_assert_cmpuint(vhd_size_for_qemu(vhd->footer), ==, size);
        g_assert_cmpuint(image->notices->len, ==, 0);
    }
}

/* ---- layout ------------------------------------------------------------------------------------- */

static uint64_t place_one(struct image *image, uint64_t offset, uint64_t length, guint expected,
                          GArray *placements)
{
    g_autoptr(GError) error = NULL;

    g_array_set_size(placements, 0);
    assert_ok(image_place(image, offset, length, placements, &error));
    g_assert_cmpuint(placements->len, ==, expected);
    return g_array_index(placements, struct placement, 0).to.host_offset;
}

/* The data of every block begins on a page; parts of a sector are filled once; bits are exact. */
static void test_layout(void)
{
    struct storage *storage = create("disk", 64 * MIB, "", NULL);
    g_autoptr(image_t) image = open_image(storage, true);
    g_autoptr(GArray) placements = g_array_new(FALSE, FALSE, sizeof(struct placement));
    g_autoptr(GError) error = NULL;
    struct placement *fill;

    g_assert_cmpuint(storage->size, ==, 512 + 1024 + 512 + 512);
    g_assert_cmpuint(place_one(image, 0, 4096, 1, placements), ==, 4096);
    g_assert_cmpuint(place_one(image, 10 * MIB, 2 * MIB, 1, placements), ==, 2 * MIB + 8192);
    place_one(image, 8192 + 100, 300, 3, placements);
    fill = &g_array_index(placements, struct placement, 1);
    g_assert_true(fill[0].fill && fill[1].fill);
    g_assert_cmpuint(fill[0].to.offset, ==, 8192);
    g_assert_cmpuint(fill[0].to.length, ==, 100);
    g_assert_cmpuint(fill[1].to.offset, ==, 8192 + 400);
    g_assert_cmpuint(fill[1].to.length, ==, 112);
    g_assert_cmpint(fill[0].from.status, ==, EXTENT_ZERO);
    place_one(image, 8192 + 10, 30, 1, placements);
    assert_ok(image_flush(image, &error));
    g_assert_cmpuint(storage->size, ==, 4 * MIB + 8192 + 512);
    image_close(g_steal_pointer(&image));
}

/* Exact runs of data and zeros over a block's bits, also through an opening anew. */
static void test_map(void)
{
    uint8_t ones[1536];
    struct storage *storage = create("disk", 6 * MIB + 512, "", NULL), *again;
    struct image *image = open_image(storage, true);
    g_autoptr(GError) error = NULL;
    struct extent extents[8];
    size_t count;

    memset(ones, 1, sizeof ones);
    assert_ok(writer_write(image, NULL, ones, 1536, 2 * MIB + 1024, &error));
    assert_ok(writer_write(image, NULL, ones, 512, 6 * MIB, &error));
    assert_ok(image_flush(image, &error));
    again = storage_memory_new("again", storage_memory_data(storage), storage->size, 0);
    image_close(image);
    image = open_image(again, false);
    assert_ok(image_map(image, 0, image->size, extents, 8, &count, &error));
    g_assert_cmpuint(count, ==, 4);
    g_assert_cmpint(extents[0].status, ==, EXTENT_ZERO);
    g_assert_cmpuint(extents[0].length, ==, 2 * MIB + 1024);
    g_assert_cmpint(extents[1].status, ==, EXTENT_DATA);
    g_assert_cmpuint(extents[1].length, ==, 1536);
    g_assert_cmpuint(extents[2].length, ==, 4 * MIB - 2560);
    g_assert_cmpint(extents[3].status, ==, EXTENT_DATA);
    g_assert_cmpuint(extents[3].length, ==, 512);
    assert_ok(image_map(image, 2 * MIB + 1536, 4096, extents, 1, &count, &error));
    g_assert_cmpuint(count, ==, 1);
    g_assert_cmpuint(extents[0].length, ==, 1024);
    image_close(image);
}

/* What a crash left in a sector of a block that was there, whose bit was not set yet, is gone when zeros are
 * written, for QEMU, too, which does not ask the bits. */
static void test_zeros_after_a_crash(void)
{
    uint8_t ones[2048], bytes[2048];
    struct storage *storage = create("disk", 4 * MIB, "", NULL), *again;
    struct image *image = open_image(storage, true);
    const struct vhd *vhd = image->opaque;
    g_autoptr(GArray) placements = g_array_new(FALSE, FALSE, sizeof(struct placement));
    g_autoptr(GError) error = NULL;
    uint64_t host, offset, length;

    memset(ones, 1, sizeof ones);
    assert_ok(writer_write(image, NULL, ones, 512, 0, &error));
    assert_ok(image_flush(image, &error));
    host = place_one(image, 4096, sizeof ones, 1, placements);
    assert_ok(storage_pwrite(vhd->storage, ones, sizeof ones, host, &error));
    again = storage_memory_new("again", storage_memory_data(storage), storage->size, 0);
    image_close(image);
    image = open_image(again, true);
    assert_ok(image_zero(image, 4096 + 100, sizeof ones - 200, &offset, &length, &error));
    assert_ok(image_flush(image, &error));
    g_assert_cmpuint(length, ==, sizeof ones - 200);
    assert_ok(storage_pread(again, bytes, sizeof bytes, host, &error));
    for (size_t i = 100; i < sizeof bytes - 100; i++)
        g_assert_cmpuint(bytes[i], ==, 0);
    image_close(image);
}

/* ---- the parent --------------------------------------------------------------------------------- */

static void test_parent(void)
{
    g_autoptr(image_t) base = open_image(create("base", 4 * MIB, "subformat=fixed", NULL), false);
    g_autoptr(image_t) other = open_image(create("other", 4 * MIB, "", NULL), false);
    g_autoptr(image_t) child = open_image(create("child", 4 * MIB, "", base), false);
    struct image_create_options options = {
        .size = 4 * MIB, .backing_name = "base.vhd", .backing_format = "vhd", .parent = base};
    g_autoptr(storage_t) storage = storage_memory_new("new", NULL, 0, 0);
    g_autoptr(GError) error = NULL;

    g_assert_cmpstr(child->backing_name, ==, "./base.vhd");
    g_assert_cmpstr(child->backing_format, ==, "vhd");
    g_assert_cmpuint(child->parent_names->len, ==, 2);
    g_assert_cmpstr(child->parent_names->pdata[1], ==, "base.vhd");
    assert_ok(image_check_parent(child, base, &error));
    assert_fails(image_check_parent(child, other, &error), BLOCKMIG_ERROR_REFUSED, "made over the disk");

    options.size = 8 * MIB;
    assert_fails(image_create(storage, &format_vhd, &options, &error), BLOCKMIG_ERROR_REFUSED,
                 "the size of its parent");
    options.size = 4 * MIB;
    options.backing_format = "qcow2";
    assert_fails(image_create(storage, &format_vhd, &options, &error), BLOCKMIG_ERROR_REFUSED,
                 "must be a VHD");
    options.backing_format = "vhd";
    options.backing_name = "a\\b.vhd";
    assert_fails(image_create(storage, &format_vhd, &options, &error), BLOCKMIG_ERROR_REFUSED, "backslash");
    options.backing_name = "\xff.vhd";
    assert_fails(image_create(storage, &format_vhd, &options, &error), BLOCKMIG_ERROR_REFUSED, "UTF-8");
    options.backing_name = "base.vhd";
    options.parent = NULL;
    assert_fails(image_create(storage, &format_vhd, &options, &error), BLOCKMIG_ERROR_REFUSED,
                 "must be there");
    options = (struct image_create_options){.size = (UINT64_C(2040) << 30) + 512};
    assert_fails(image_create(storage, &format_vhd, &options, &error), BLOCKMIG_ERROR_REFUSED, "larger than");
}

/* ---- footers ------------------------------------------------------------------------------------ */

/* The footer at the end counts, its copy at the start is for when it is lost, and a write makes both the
 * same. */
static void test_footers(void)
{
    g_autoptr(storage_t) original = create("disk", 4 * MIB, "", NULL);
    static const uint8_t broken[1] = {0};
    g_autoptr(GError) error = NULL;
    uint8_t ones[512];

    memset(ones, 1, sizeof ones);
    for (int which = 0; which < 4; which++) {
        struct storage *storage =
            storage_memory_new("disk", storage_memory_data(original), original->size, 0);
        struct image *image;

        if (which & 1)
            assert_ok(storage_pwrite(storage, broken, 1, 60 + 3, &error));
        if (which & 2)
            assert_ok(storage_pwrite(storage, broken, 1, storage->size - 512 + 60 + 3, &error));
        if (which == 3) {
            g_assert_null(image_open(storage, &format_vhd, false, &error));
            g_assert_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED);
            g_assert_nonnull(strstr(error->message, "checksum"));
            continue;
        }
        image = open_image(storage, true);
        g_assert_cmpuint(image->notices->len, ==, which ? 1 : 0);
        assert_ok(writer_write(image, NULL, ones, 512, 0, &error));
        assert_ok(image_flush(image, &error));
        g_assert_cmpmem(storage_memory_data(storage), 512, storage_memory_data(original), 512);
        g_assert_cmpmem(storage_memory_data(storage) + storage->size - 512, 512,
                        storage_memory_data(original), 512);
        image_close(image);
    }
}

/* ---- crashes ------------------------------------------------------------------------------------ */

static void test_crash(gconstpointer data)
{
    const char *options = data;
    bool backed = options[0] == '+';
    uint64_t size = 700 * 1024 + 512;
    g_autoptr(chain_t) backing = NULL;
    struct crash_case crash = {.format = &format_vhd};
    struct image *parent = NULL;

    if (backed) {
        parent = open_image(create("base", size, "subformat=fixed", NULL), true);
        memory_image_fill(parent);
        crash.backing = backing = chain_new_single(parent, false);
    }
    crash_random(&crash, create("disk", size, options + backed, parent), 100);
}

int main(int argc, char **argv)
{
    static const char *const crashes[] = {
        "block_size=8k",  "block_size=4k",  "block_size=64k",  "block_size=8M",  "subformat=fixed",
        "+block_size=8k", "+block_size=4k", "+block_size=64k", "+block_size=2M",
    };

    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/vhd/geometry", test_geometry);
    g_test_add_func("/vhd/size-for-qemu", test_size_for_qemu);
    g_test_add_func("/vhd/layout", test_layout);
    g_test_add_func("/vhd/map", test_map);
    g_test_add_func("/vhd/zeros-after-a-crash", test_zeros_after_a_crash);
    g_test_add_func("/vhd/parent", test_parent);
    g_test_add_func("/vhd/footers", test_footers);
    for (guint i = 0; i < G_N_ELEMENTS(crashes); i++) {
        g_autofree char *path = g_strdup_printf("/vhd/crash/%s", crashes[i]);

        g_test_add_data_func(path, crashes[i], test_crash);
    }
    return g_test_run();
}
