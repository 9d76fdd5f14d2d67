/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The VDI driver on memory: layout, parents, and what a crash at any moment leaves. */
#include "formats/vdi.h"

#include "tests/helpers/crash.h"
#include "tests/unit/memory-image.h"

#define MIB (UINT64_C(1) << 20)

static struct storage *create(const char *name, uint64_t size, const char *options, struct image *parent)
{
    return memory_image_create(&format_vdi, name, size, options, parent);
}

/* The same with small blocks, laid out as QEMU does it: the map at 512, the data behind it. */
static struct storage *create_small(uint64_t size, uint32_t block_size, uint32_t extra, struct image *parent)
{
    g_autoptr(storage_t) large = create("large", size, "", parent);
    uint32_t blocks = (size + block_size - 1) / block_size, data = 512 + (blocks * 4 + 511) / 512 * 512;
    g_autofree uint8_t *bytes = g_memdup2(storage_memory_data(large), large->size);

    store_le32(bytes + VDI_AT_BLOCK_SIZE, block_size);
    store_le32(bytes + VDI_AT_BLOCK_EXTRA, extra);
    store_le32(bytes + VDI_AT_BLOCKS, blocks);
    store_le32(bytes + VDI_AT_TABLE, 512);
    store_le32(bytes + VDI_AT_DATA, data);
    memset(bytes + 512, 0xff, data - 512);
    return storage_memory_new("disk", bytes, data, 0);
}

static struct image *open_image(struct storage *storage, bool writable)
{
    return memory_image_open(&format_vdi, storage, writable);
}

static void write_one(struct image *image, uint64_t offset, uint8_t value)
{
    uint8_t bytes[512];
    g_autoptr(GError) error = NULL;

    memset(bytes, value, sizeof bytes);
    assert_ok(writer_write(image, NULL, bytes, sizeof bytes, offset, &error));
}

/* Blocks are taken in the order of writes, filled up, and counted; nothing is left over. */
static void test_layout(void)
{
    struct storage *storage = create("disk", 5 * MIB + 512, "", NULL);
    g_autoptr(image_t) image = open_image(storage, true);
    g_autoptr(GArray) placements = g_array_new(FALSE, FALSE, sizeof(struct placement));
    g_autoptr(GError) error = NULL;
    const struct placement *placement;
    struct image_check result;

    g_assert_cmpuint(storage->size, ==, 2 * MIB);
    assert_ok(image_place(image, 3 * MIB + 4096, 8192, placements, &error));
    g_assert_cmpuint(placements->len, ==, 3);
    placement = &g_array_index(placements, struct placement, 0);
    g_assert_cmpuint(placement[0].to.host_offset, ==, 2 * MIB + 4096);
    g_assert_true(placement[1].fill && placement[2].fill);
    g_assert_cmpuint(placement[1].to.length, ==, 4096);
    g_assert_cmpuint(placement[2].to.length, ==, MIB - 12288);
    write_one(image, 5 * MIB, 7);
    assert_ok(image_flush(image, &error));
    g_assert_cmpuint(storage->size, ==, 4 * MIB);
    g_assert_cmpuint(load_le32(storage_memory_data(storage) + VDI_AT_ALLOCATED), ==, 2);
    assert_ok(image_check(image, false, &result, &error));
    g_assert_cmpuint(result.leaks, ==, 0);
}

/* In a child whole blocks of zeros hide the parent, and give their place back. */
static void test_zero(void)
{
    g_autoptr(image_t) base = open_image(create("base", 4 * MIB, "", NULL), true);
    struct storage *storage = create("child", 4 * MIB, "", base);
    g_autoptr(image_t) child = open_image(storage, true);
    g_autoptr(GError) error = NULL;
    uint64_t done, length, size;
    struct extent extents[8];
    size_t count;

    for (unsigned i = 0; i < 3; i++)
        write_one(child, i * MIB, 1 + i);
    assert_ok(image_flush(child, &error));
    size = storage->size;
    assert_ok(image_zero(child, MIB - 512, 3 * MIB + 512, &done, &length, &error));
    g_assert_cmpuint(done, ==, MIB);
    g_assert_cmpuint(length, ==, 3 * MIB);
    assert_ok(image_map(child, 0, 4 * MIB, extents, 8, &count, &error));
    g_assert_cmpuint(count, ==, 2);
    g_assert_cmpint(extents[0].status, ==, EXTENT_DATA);
    g_assert_cmpint(extents[1].status, ==, EXTENT_ZERO);
    g_assert_cmpuint(extents[1].length, ==, 3 * MIB);
    assert_ok(image_flush(child, &error));
    g_assert_cmpuint(storage->size, ==, size - 2 * MIB);
    g_assert_cmpuint(load_le32(storage_memory_data(storage) + VDI_AT_ALLOCATED), ==, 1);
}

/* A parent that was written to is not the one that the child was made over. */
static void test_parent(void)
{
    g_autoptr(image_t) base = open_image(create("base", 4 * MIB, "", NULL), true);
    g_autoptr(image_t) other = open_image(create("other", 4 * MIB, "", NULL), false);
    g_autoptr(image_t) child = open_image(create("child", 4 * MIB, "", base), false);
    g_autoptr(image_t) small = open_image(create("small", MIB, "", NULL), false);
    g_autoptr(GError) error = NULL;
    struct image_create_options options = {
        .size = 4 * MIB, .backing_name = "base.vdi", .backing_format = "vdi", .parent = small};
    g_autoptr(storage_t) storage = storage_memory_new("new", NULL, 0, 0);

    g_assert_true(child->wants_parent);
    g_assert_null(child->backing_name);
    assert_ok(image_check_parent(child, base, &error));
    assert_fails(image_check_parent(child, other, &error), BLOCKMIG_ERROR_REFUSED, "made over the disk");
    write_one(base, 0, 1);
    assert_fails(image_check_parent(child, base, &error), BLOCKMIG_ERROR_REFUSED, "was written to since");
    assert_fails(image_create(storage, &format_vdi, &options, &error), BLOCKMIG_ERROR_REFUSED,
                 "size of its parent");
    options.backing_format = "raw";
    assert_fails(image_create(storage, &format_vdi, &options, &error), BLOCKMIG_ERROR_REFUSED,
                 "must be a VDI");
}

/* At every instant of a merge the child has its parent; its sibling has lost it. */
static void test_merge(void)
{
    struct storage *storage = create("base", 4 * MIB, "", NULL);
    g_autoptr(image_t) base =
        open_image(storage_memory_new("base", storage_memory_data(storage), storage->size, 0), false);

    crash_merge(&format_vdi, storage, create("child", 4 * MIB, "", base),
                create("sibling", 4 * MIB, "", base));
}

/* Nobody has to write around what is written to a base. */
static void test_large_blocks(void)
{
    struct storage *storage = create_small(8 * MIB, 2 * MIB, 0, NULL);
    g_autoptr(image_t) base = open_image(storage, true);
    g_autoptr(GArray) placements = g_array_new(FALSE, FALSE, sizeof(struct placement));
    g_autoptr(GError) error = NULL;

    assert_ok(image_place(base, 3 * MIB, 512, placements, &error));
    g_assert_cmpuint(placements->len, ==, 3);
    for (guint i = 1; i < placements->len; i++)
        g_assert_true(g_array_index(placements, struct placement, i).clean);
    g_assert_cmpuint(storage->size, >=, load_le32(storage_memory_data(storage) + VDI_AT_DATA) + 2 * MIB);
}

struct crash_variant {
    const char *name;
    uint32_t block_size, extra;
    bool backed;
};

static void test_crash(gconstpointer data)
{
    const struct crash_variant *variant = data;
    uint64_t size = MAX(300 * 1024, 2 * variant->block_size + 1024) + 512;
    struct crash_case crash = {.format = &format_vdi};
    g_autoptr(chain_t) backing = NULL;
    struct image *parent = NULL;

    if (variant->backed) {
        parent = open_image(create("base", size, "subformat=fixed", NULL), true);
        memory_image_fill(parent);
        crash.backing = backing = chain_new_single(parent, false);
    }
    crash_random(&crash, create_small(size, variant->block_size, variant->extra, parent), 100);
}

int main(int argc, char **argv)
{
    static const struct crash_variant variants[] = {
        {"4k", 4096, 0, false},        {"16k-extra", 16384, 512, false}, {"1m", 1u << 20, 0, false},
        {"2m", 2u << 20, 0, false},    {"4k-child", 4096, 0, true},      {"8k-extra-child", 8192, 4096, true},
        {"64k-child", 65536, 0, true}, {"2m-child", 2u << 20, 0, true},
    };

    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/vdi/layout", test_layout);
    g_test_add_func("/vdi/zero", test_zero);
    g_test_add_func("/vdi/parent", test_parent);
    g_test_add_func("/vdi/merge", test_merge);
    g_test_add_func("/vdi/large-blocks", test_large_blocks);
    for (guint i = 0; i < G_N_ELEMENTS(variants); i++) {
        g_autofree char *path = g_strdup_printf("/vdi/crash/%s", variants[i].name);

        g_test_add_data_func(path, &variants[i], test_crash);
    }
    return g_test_run();
}
