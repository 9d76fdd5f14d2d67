/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The VHDX driver on memory: layout, identities, the log, and what a crash at any moment leaves. */
#include "formats/vhdx.h"

#include "formats/crc32c.h"
#include "formats/utf16.h"
#include "tests/helpers/crash.h"
#include "tests/unit/memory-image.h"

#include <stdlib.h>

#define MIB VHDX_MIB

static struct storage *create(const char *name, uint64_t size, const char *options, struct image *parent)
{
    return memory_image_create(&format_vhdx, name, size, options, parent);
}

static struct image *open_image(struct storage *storage, bool writable)
{
    return memory_image_open(&format_vhdx, storage, writable);
}

static struct storage *copy_of(struct storage *storage)
{
    return storage_memory_new("copy", storage_memory_data(storage), storage->size, 0);
}

static void write_bytes(struct image *image, uint8_t byte, uint64_t offset, uint64_t length)
{
    g_autofree uint8_t *bytes = g_malloc(length);
    g_autoptr(GError) error = NULL;

    memset(bytes, byte, length);
    assert_ok(writer_write(image, NULL, bytes, length, offset, &error));
}

static void flush(struct image *image)
{
    g_autoptr(GError) error = NULL;

    assert_ok(image_flush(image, &error));
}

/* ---- judges ------------------------------------------------------------------------------------- */

static bool have_judge(void)
{
    g_autofree char *program = g_find_program_in_path("qemu-img");

    if (!program && g_strcmp0(g_getenv("BLOCKMIG_REFERENCE"), "1") == 0)
        g_error("qemu-img is missing on the reference system");
    return program;
}

/* QEMU replays the log, finds nothing wrong and reads what we read without replaying.  0 if so. */
static int judge(const void *bytes, size_t length)
{
    g_autoptr(image_t) image = open_image(storage_memory_new("judged", bytes, length, 0), false);
    g_autofree uint8_t *content = g_malloc(image->size);
    g_autofree char *path = NULL, *raw = NULL, *command = NULL, *shown = NULL;
    g_autoptr(GError) error = NULL;
    gsize shown_length = 0;
    int fd = g_file_open_tmp("blockmig-vhdx-XXXXXX", &path, NULL), status;

    assert_ok(writer_read(image, NULL, content, image->size, 0, &error));
    g_assert_cmpint(write(fd, bytes, length), ==, (gssize)length);
    close(fd);
    raw = g_strconcat(path, ".raw", NULL);
    command = g_strdup_printf("qemu-img check -q -f vhdx -r all %s >/dev/null 2>&1 && "
                              "qemu-img convert -f vhdx -O raw %s %s 2>/dev/null",
                              path, path, raw);
    status = system(command);
    if (status == 0 && (!g_file_get_contents(raw, &shown, &shown_length, NULL) ||
                        shown_length != image->size || memcmp(shown, content, image->size) != 0))
        status = -1;
    unlink(path);
    unlink(raw);
    return status;
}

/* ---- parts -------------------------------------------------------------------------------------- */

static void test_crc32c(void)
{
    uint8_t zeros[32] = {0};

    g_assert_cmphex(crc32c(0, "123456789", 9), ==, 0xe3069283);
    g_assert_cmphex(crc32c(crc32c(0, "1234", 4), "56789", 5), ==, 0xe3069283);
    g_assert_cmphex(crc32c(0, zeros, 32), ==, 0x8a9136aa); /* RFC 3720, B.4 */
}

static void test_guid(void)
{
    struct vhdx_guid guid;
    g_autofree char *text = NULL;

    g_assert_true(vhdx_guid_parse("{2DC27766-F623-4200-9D64-115E9BFD4A08}", &guid));
    g_assert_true(vhdx_guid_equal(&guid, &vhdx_bat_guid));
    text = vhdx_guid_format(&guid);
    g_assert_cmpstr(text, ==, "{2dc27766-f623-4200-9d64-115e9bfd4a08}");
    g_assert_false(vhdx_guid_parse("{2DC27766-F623-4200-9D64-115E9BFD4A08", &guid));
    g_assert_false(vhdx_guid_parse("2DC27766-F623-4200-9D64-115E9BFD4A08", &guid));
    g_assert_false(vhdx_guid_parse("{2DC27766-F623-4200-9D64-115E9BFD4A0}", &guid));
    g_assert_false(vhdx_guid_parse("{2DC27766-F623-4200-9D64-115E9BFD4A08} ", &guid));
    g_assert_false(vhdx_guid_parse("", &guid));
}

/* Against a map of bytes, with runs of several lengths. */
static void test_space(void)
{
    g_autoptr(GRand) random = harness_rand();
    struct vhdx_space space = {0};
    uint8_t used[4096] = {0};

    for (int i = 0; i < 5000; i++) {
        uint64_t length = UINT64_C(1) << (g_rand_boolean(random) ? 0 : 3), at;
        uint64_t first = vhdx_space_find(&space, length * MIB) / MIB, lowest = 0;

        while (memchr(used + lowest, 1, length))
            lowest++;
        g_assert_cmpuint(first, ==, lowest);
        if (first < 1000 && g_rand_int_range(random, 0, 5) > 0) {
            g_assert_true(vhdx_space_claim(&space, first * MIB, length * MIB));
            g_assert_false(vhdx_space_claim(&space, (first + length - 1) * MIB, length * MIB));
            memset(used + first, 1, length);
        } else {
            at = g_rand_int_range(random, 0, 1000);
            length = MIN(1 + at % 9, space.end / MIB > at ? space.end / MIB - at : 0);
            if (length)
                vhdx_space_release(&space, at * MIB, length * MIB);
            memset(used + at, 0, length);
        }
    }
    g_free(space.words);
}

/* ---- layout ------------------------------------------------------------------------------------- */

/* Header section, log, metadata and BAT; then blocks in the order of their first use, all zeros around what
 * is written. */
static void test_layout(void)
{
    struct storage *storage = create("disk", 64 * MIB, "block_size=1M", NULL);
    g_autoptr(image_t) image = open_image(storage, true);
    g_autoptr(GArray) placements = g_array_new(FALSE, FALSE, sizeof(struct placement));
    struct vhdx *vhdx = image->opaque;
    const struct placement *first;
    g_autoptr(GError) error = NULL;

    g_assert_cmpuint(storage->size, ==, 4 * MIB);
    g_assert_cmpuint(vhdx->entries, ==, 64);
    assert_ok(image_place(image, 5 * MIB + 12345, 100, placements, &error));
    assert_ok(image_place(image, 1 * MIB, 3 * MIB, placements, &error));
    g_assert_cmpuint(placements->len, ==, 4);
    first = &g_array_index(placements, struct placement, 0);
    g_assert_cmpuint(first[0].to.host_offset, ==, 4 * MIB + 12345);
    g_assert_true(first[1].fill && first[1].clean && first[2].fill && first[2].clean);
    g_assert_cmpuint(first[1].to.offset, ==, 5 * MIB);
    g_assert_cmpuint(first[1].to.length, ==, 12345);
    g_assert_cmpuint(extent_end(&first[2].to), ==, 6 * MIB);
    g_assert_cmpuint(first[3].to.host_offset, ==, 5 * MIB);
    g_assert_cmpuint(first[3].to.length, ==, 3 * MIB);
    flush(image);
    g_assert_cmpuint(storage->size, ==, 8 * MIB);
    g_assert_true(vhdx_guid_is_zero(&vhdx->header.log));
}

/* What was there before does not show in a block that is used again. */
static void test_reuse(void)
{
    struct storage *storage = create("disk", 8 * MIB, "block_size=1M", NULL);
    g_autoptr(image_t) image = open_image(storage, true);
    g_autofree uint8_t *content = g_malloc(MIB);
    g_autoptr(GError) error = NULL;
    uint64_t done, length;

    write_bytes(image, 0x77, 0, 2 * MIB);
    assert_ok(image_zero(image, 0, MIB + 4096, &done, &length, &error));
    g_assert_cmpuint(done, ==, 0);
    g_assert_cmpuint(length, ==, MIB);
    write_bytes(image, 0x66, 5 * MIB, 512); /* not there yet: the old mapping is still durable */
    g_assert_cmpuint(storage->size, ==, 7 * MIB);
    flush(image);
    write_bytes(image, 0x55, 6 * MIB + 4096, 512);
    flush(image);
    g_assert_cmpuint(storage->size, ==, 7 * MIB);
    assert_ok(writer_read(image, NULL, content, MIB, 6 * MIB, &error));
    for (uint64_t i = 0; i < MIB; i++)
        g_assert_cmpuint(content[i], ==, i >= 4096 && i < 4096 + 512 ? 0x55 : 0);
}

static void test_fixed(void)
{
    struct storage *storage = create("disk", 5 * MIB + 4096, "block_size=2M,subformat=fixed", NULL);
    g_autoptr(image_t) image = open_image(storage, true);
    g_autoptr(GError) error = NULL;
    struct extent extent;
    uint64_t done, length;
    size_t count;

    g_assert_cmpuint(storage->size, ==, 10 * MIB);
    write_bytes(image, 0x77, 1000, 4 * MIB);
    assert_ok(image_zero(image, 0, image->size, &done, &length, &error));
    g_assert_cmpuint(length, ==, 0);
    assert_ok(image_discard(image, 0, image->size, &done, &length, &error));
    g_assert_cmpuint(length, ==, image->size);
    flush(image);
    assert_ok(image_map(image, 0, image->size, &extent, 1, &count, &error));
    g_assert_cmpint(extent.status, ==, EXTENT_DATA);
    g_assert_cmpuint(extent.length, ==, image->size);
    g_assert_cmpuint(extent.host_offset, ==, 4 * MIB);
    for (uint64_t i = 4 * MIB; i < 10 * MIB; i++)
        g_assert_cmpuint(storage_memory_data(storage)[i], ==, 0);
}

/* ---- identities --------------------------------------------------------------------------------- */

static void test_parent(void)
{
    struct storage *storage = create("base", 4 * MIB, "", NULL);
    g_autoptr(image_t) base = open_image(copy_of(storage), false);
    g_autoptr(image_t) writer = open_image(storage, true);
    g_autoptr(image_t) child = open_image(create("child", 4 * MIB, "", base), false);
    struct vhdx *below = base->opaque, *above = child->opaque;
    g_autoptr(GError) error = NULL;

    g_assert_cmpstr(child->backing_name, ==, "./base.vhdx");
    g_assert_cmpstr(child->backing_format, ==, "vhdx");
    g_assert_true(vhdx_guid_equal(&below->disk_id, &above->disk_id));
    assert_ok(image_check_parent(child, base, &error));
    assert_ok(image_check_parent(child, writer, &error));
    write_bytes(writer, 1, 0, 1);
    assert_fails(image_check_parent(child, writer, &error), BLOCKMIG_ERROR_REFUSED, "was changed since");
    memset(&above->linkage2, 0, sizeof above->linkage2);
    memset(&below->header.data_write, 0, sizeof below->header.data_write);
    assert_fails(image_check_parent(child, base, &error), BLOCKMIG_ERROR_REFUSED, "has {0000");
    above->linkage2 = ((struct vhdx *)writer->opaque)->header.data_write;
    assert_ok(image_check_parent(child, writer, &error));
}

/* "parent_linkage2" becomes a key that nobody knows. */
static void hide_linkage2(struct storage *storage)
{
    g_autoptr(GByteArray) key = utf16_encode("parent_linkage2", UTF16_LITTLE, NULL);
    const uint8_t *bytes = storage_memory_data(storage), *at;
    g_autoptr(GError) error = NULL;

    at = memmem(bytes, storage->size, key->data, key->len);
    g_assert_nonnull(at);
    assert_ok(storage_pwrite(storage, "x", 1, at - bytes + key->len - 2, &error));
    assert_ok(storage_flush(storage, &error));
}

/* At every instant of a merge the child has its parent; its sibling has lost it. */
static void test_merge(gconstpointer data)
{
    struct storage *storage = create("base", 4 * MIB, "", NULL);
    g_autoptr(image_t) base = open_image(copy_of(storage), false);
    struct storage *child = create("child", 4 * MIB, "", base);

    if (data)
        hide_linkage2(child);
    crash_merge(&format_vhdx, storage, child, create("sibling", 4 * MIB, "", base));
}

/* The spec's rule, as Hyper-V goes by it: parent_linkage2 is what the parent has now.  The child's own
 * identity is that of its content. */
static void test_linkage2(void)
{
    struct storage *storage = create("base", 4 * MIB, "", NULL), *above;
    g_autoptr(image_t) base = open_image(storage, true);
    g_autoptr(image_t) child = open_image(above = create("child", 4 * MIB, "", base), false);
    struct vhdx *below = base->opaque, *told = child->opaque;
    struct vhdx_guid old = below->header.data_write, own = told->header.data_write;
    g_autoptr(image_t) again = NULL;
    g_autoptr(GError) error = NULL;

    assert_ok(image_begin_merge(base, child, &error));
    write_bytes(base, 1, 0, 1);
    g_assert_false(vhdx_guid_equal(&old, &below->header.data_write));
    again = open_image(copy_of(above), false);
    told = again->opaque;
    g_assert_true(vhdx_guid_equal(&told->linkage, &old));
    g_assert_true(vhdx_guid_equal(&told->linkage2, &below->header.data_write));
    g_assert_true(vhdx_guid_equal(&told->header.data_write, &own));
    g_assert_cmpstr(again->backing_name, ==, "./base.vhdx");
}

static void test_refused(void)
{
    g_autoptr(image_t) base = open_image(create("base", 4 * MIB, "logical_sector_size=4096", NULL), false);
    g_autoptr(image_t) raw = image_open(storage_memory_new("raw", NULL, 4096, 0), &format_raw, false, NULL);
    struct image_create_options options = {
        .size = 4 * MIB, .backing_name = "base.vhdx", .backing_format = "vhdx", .parent = base};
    g_autoptr(GHashTable) small = format_parse_options(&format_vhdx, "logical_sector_size=512", NULL);
    g_autoptr(GHashTable) fixed = format_parse_options(&format_vhdx, "subformat=fixed", NULL);
    g_autoptr(storage_t) storage = storage_memory_new("new", NULL, 0, 0);
    g_autoptr(GError) error = NULL;

    options.values = small;
    assert_fails(image_create(storage, &format_vhdx, &options, &error), BLOCKMIG_ERROR_REFUSED,
                 "logical sectors of 4096");
    options.values = fixed;
    assert_fails(image_create(storage, &format_vhdx, &options, &error), BLOCKMIG_ERROR_USAGE,
                 "with a parent");
    options.values = NULL;
    options.backing_format = "raw";
    assert_fails(image_create(storage, &format_vhdx, &options, &error), BLOCKMIG_ERROR_REFUSED,
                 "must be vhdx");
    options.parent = raw;
    options.backing_format = "vhdx";
    assert_fails(image_create(storage, &format_vhdx, &options, &error), BLOCKMIG_ERROR_REFUSED, "not vhdx");
    options.parent = base;
    options.backing_name = "a\\b";
    assert_fails(image_create(storage, &format_vhdx, &options, &error), BLOCKMIG_ERROR_REFUSED, "backslash");
    options.backing_name = "base.vhdx";
    options.size = 8 * MIB;
    assert_fails(image_create(storage, &format_vhdx, &options, &error), BLOCKMIG_ERROR_REFUSED,
                 "the child would have");
    options = (struct image_create_options){.size = UINT64_MAX};
    assert_fails(image_create(storage, &format_vhdx, &options, &error), BLOCKMIG_ERROR_REFUSED, "64 TiB");
    options.size = VHDX_MAX_SIZE + 512;
    assert_fails(image_create(storage, &format_vhdx, &options, &error), BLOCKMIG_ERROR_REFUSED, "64 TiB");
    g_assert_cmpuint(storage_memory_writes(storage)->len, ==, 0);
}

/* Both identities change before the first byte does, and only then. */
static void test_identity(void)
{
    struct storage *storage = create("disk", 4 * MIB, "", NULL);
    g_autoptr(image_t) image = open_image(storage, true);
    struct vhdx_header before = ((struct vhdx *)image->opaque)->header, *now;
    const GArray *writes = storage_memory_writes(storage);
    guint count = writes->len;

    flush(image);
    g_assert_cmpuint(writes->len, ==, count);
    write_bytes(image, 1, 0, 512);
    now = &((struct vhdx *)image->opaque)->header;
    g_assert_false(vhdx_guid_equal(&now->file_write, &before.file_write));
    g_assert_false(vhdx_guid_equal(&now->data_write, &before.data_write));
    g_assert_cmpuint(g_array_index(writes, struct memory_write, count).offset, ==, VHDX_HEADER_OFFSET);
    g_assert_cmpuint(g_array_index(writes, struct memory_write, count + 1).offset, ==,
                     2 * VHDX_HEADER_OFFSET);
    before = *now;
    write_bytes(image, 2, MIB, 512);
    flush(image);
    g_assert_true(vhdx_guid_equal(&now->data_write, &before.data_write));
}

/* ---- crashes ------------------------------------------------------------------------------------ */

static struct image *make_parent(uint64_t size, const char *options)
{
    g_autofree char *sectors =
        g_strdup(strstr(options, "logical_sector_size=4096") ? "logical_sector_size=4096" : "");
    struct image *parent = open_image(create("base", size, sectors, NULL), true);
    memory_image_fill(parent);
    return parent;
}

static void test_crash(gconstpointer data)
{
    const char *options = data;
    bool backed = options[0] == '+', ask = have_judge() && !backed && !strstr(options, "=4096");
    uint64_t size = 3 * MIB + 8192;
    struct image *parent = backed ? make_parent(size, options) : NULL;
    g_autoptr(chain_t) backing = backed ? chain_new_single(parent, false) : NULL;
    unsigned steps = harness_is_set("BLOCKMIG_LONG") ? 200 : 27;
    struct crash_case crash = {.format = &format_vhdx, .backing = backing, .judge = ask ? judge : NULL};

    crash_random(&crash, create("disk", size, options + backed, parent), steps);
}

/* More changes than an entry of the log can hold: bitmaps of 200 chunks, their bits and the BAT. */
static void test_long_log(void)
{
    uint64_t size = UINT64_C(1) << 40, step = UINT64_C(4) << 30;
    g_autoptr(image_t) base = open_image(create("base", size, "block_size=1M", NULL), false);
    struct storage *storage = create("child", size, "block_size=1M", base);
    struct image *image = open_image(storage, true);
    unsigned first = storage_memory_flush_count(storage), last, all, stride;
    g_autoptr(GRand) random = harness_rand();
    g_autoptr(GError) error = NULL;

    for (uint64_t i = 0; i < 200; i++)
        write_bytes(image, 1 + i, i * step + i * MIB + 512, 512);
    flush(image);
    last = storage_memory_flush_count(storage);
    g_assert_cmpuint(last - first, >, 4 + 2 * 4);
    all = last - first + 1;
    stride = all / harness_sample(3, all);
    first += (unsigned)g_rand_int_range(random, 0, (int)stride);
    for (unsigned at = first; at <= last; at = at < last ? MIN(at + stride, last) : last + 1) {
        g_autoptr(GByteArray) cut = storage_memory_cut(storage, at, NULL, NULL, 0);
        g_autoptr(image_t) again = open_image(storage_memory_new("cut", cut->data, cut->len, 0), false);
        struct extent extents[3];
        size_t count;

        for (uint64_t i = 0; i < 200; i++) {
            uint64_t offset = i * step + i * MIB;

            assert_ok(image_map(again, offset, MIB, extents, 3, &count, &error));
            if (at == last)
                g_assert_cmpuint(count, ==, 3);
            if (count == 3)
                g_assert_cmpuint(storage_memory_data(storage)[extents[1].host_offset], ==, 1 + i);
            else
                g_assert_true(count == 1 && extents[0].status == EXTENT_HOLE);
        }
    }
    image_close(image);
}

/* Bits of a block that is not there say nothing, also after it has come into being. */
static void test_stale_bits(void)
{
    g_autoptr(image_t) base = open_image(create("base", 4 * MIB, "", NULL), false);
    struct image *image = open_image(create("child", 4 * MIB, "block_size=1M", base), true), *again;
    g_autoptr(GError) error = NULL;
    struct extent extents[4];
    size_t count;

    write_bytes(image, 1, MIB, 8192);
    flush(image);
    vhdx_bat_set(image->opaque, 1, VHDX_NOT_PRESENT, 0);
    flush(image);
    again = open_image(copy_of(image->storage), true);
    image_close(image);
    write_bytes(again, 2, MIB + 4096, 512);
    flush(again);
    image = open_image(copy_of(again->storage), false);
    image_close(again);
    assert_ok(image_map(image, 0, 4 * MIB, extents, 4, &count, &error));
    g_assert_cmpuint(count, ==, 3);
    g_assert_cmpint(extents[0].status, ==, EXTENT_HOLE);
    g_assert_cmpuint(extents[0].length, ==, MIB + 4096);
    g_assert_cmpint(extents[1].status, ==, EXTENT_DATA);
    g_assert_cmpuint(extents[1].length, ==, 512);
    g_assert_cmpint(extents[2].status, ==, EXTENT_HOLE);
    image_close(image);
}

/* After an operation that stopped half way nothing may become durable. */
static void test_poison(void)
{
    struct storage *storage = create("disk", 4 * MIB, "", NULL);
    const struct memory_fault fault = {.on = MEMORY_FLUSH, .skip = 1, .count = 1, .errnum = EIO};
    g_autoptr(image_t) image = open_image(storage, true);
    g_autoptr(GError) error = NULL;
    guint writes;

    write_bytes(image, 1, 0, 8192);
    storage_memory_add_fault(storage, &fault);
    assert_fails(image_flush(image, &error), BLOCKMIG_ERROR_IO, "flushing");
    writes = storage_memory_writes(storage)->len;
    assert_fails(image_flush(image, &error), BLOCKMIG_ERROR_FAILED, "stopped half way");
    g_assert_cmpuint(storage_memory_writes(storage)->len, ==, writes);
}

int main(int argc, char **argv)
{
    static const char *const crashes[] = {
        "block_size=1M",
        "block_size=2M",
        "block_size=1M,logical_sector_size=4096",
        "block_size=1M,subformat=fixed",
        "+block_size=1M",
        "+block_size=2M",
        "+block_size=1M,logical_sector_size=4096",
    };

    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/vhdx/crc32c", test_crc32c);
    g_test_add_func("/vhdx/guid", test_guid);
    g_test_add_func("/vhdx/space", test_space);
    g_test_add_func("/vhdx/layout", test_layout);
    g_test_add_func("/vhdx/reuse", test_reuse);
    g_test_add_func("/vhdx/fixed", test_fixed);
    g_test_add_func("/vhdx/parent", test_parent);
    g_test_add_func("/vhdx/linkage2", test_linkage2);
    g_test_add_data_func("/vhdx/merge", NULL, test_merge);
    g_test_add_data_func("/vhdx/merge-without-linkage2", "", test_merge);
    g_test_add_func("/vhdx/refused", test_refused);
    g_test_add_func("/vhdx/identity", test_identity);
    g_test_add_func("/vhdx/long-log", test_long_log);
    g_test_add_func("/vhdx/stale-bits", test_stale_bits);
    g_test_add_func("/vhdx/poison", test_poison);
    for (guint i = 0; i < G_N_ELEMENTS(crashes); i++) {
        g_autofree char *path = g_strdup_printf("/vhdx/crash/%s", crashes[i]);

        g_test_add_data_func(path, crashes[i], test_crash);
    }
    return g_test_run();
}
