/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The VMDK driver on memory: descriptors, layout, streams, and what a crash at any moment leaves. */
#include "formats/vmdk.h"

#include "tests/helpers/crash.h"
#include "tests/unit/memory-image.h"

#include <string.h>

#define MIB   (UINT64_C(1) << 20)
#define GRAIN 4096 /* of streams here */

static struct storage *create(const char *name, uint64_t size, const char *options, struct image *parent)
{
    return memory_image_create(&format_vmdk, name, size, options, parent);
}

static struct image *open_image(struct storage *storage, bool writable)
{
    return memory_image_open(&format_vmdk, storage, writable);
}

/* ---- descriptors -------------------------------------------------------------------------------- */

#define HEAD "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"custom\"\n"

static struct vmdk_descriptor *parse(const char *text, GError **error)
{
    g_autofree char *exact = g_memdup2(text, strlen(text)); /* no NUL behind it */

    return vmdk_descriptor_parse(exact, strlen(text), error);
}

static void test_descriptor(void)
{
    static const char text[] =
        "# parentCID=00000000\r\n\r\n  Version = 1 \r\n\tcid=0000aBcD\rparentcid= 00000001\n"
        "createtype=MonolithicSparse\nparentFileNameHint=\"a \"b\".vmdk\"\n"
        "RW 8 FLAT \"one \"two\" 3\" 4\nrdonly\t16  sparse \"x\"\nRW 1 ZERO\n"
        "RW 5 VMFS \"v-flat.vmdk\" 0\nRW 6 VMFSSPARSE \"d\"\nRW 7 SESPARSE \"s\"\n"
        "ddb.uuid.image=\"7FDBBC4D-092e-4b9b-af74-1753b9cca6ab\"\n"
        "ddb.uuid.parent=\"00000000-0000-0000-0000-000000000000\"\nddb.cid=\"5\"\n";
    g_autoptr(GError) error = NULL;
    struct vmdk_descriptor *descriptor = parse(text, &error);
    const struct vmdk_line *lines;

    g_assert_no_error(error);
    lines = (const struct vmdk_line *)(void *)descriptor->lines->data;
    g_assert_cmphex(descriptor->cid, ==, 0xabcd);
    g_assert_cmphex(descriptor->parent_cid, ==, 1);
    g_assert_cmpmem(text + descriptor->cid_span.offset, descriptor->cid_span.length, "0000aBcD", 8);
    g_assert_cmpstr(descriptor->parent_hint, ==, "a \"b\".vmdk");
    g_assert_cmpstr(descriptor->image_uuid, ==, "7fdbbc4d-092e-4b9b-af74-1753b9cca6ab");
    g_assert_null(descriptor->parent_uuid);
    g_assert_cmpuint(descriptor->lines->len, ==, 6);
    g_assert_cmpuint(descriptor->size, ==, (8 + 16 + 1 + 5 + 6 + 7) * 512);
    g_assert_cmpstr(lines[0].file, ==, "one \"two\" 3");
    g_assert_cmpuint(lines[0].host, ==, 4 * 512);
    g_assert_true(!lines[0].readonly && lines[1].readonly);
    g_assert_cmpint(lines[1].kind, ==, VMDK_SPARSE);
    g_assert_cmpint(lines[2].kind, ==, VMDK_ZERO);
    g_assert_cmpint(lines[3].kind, ==, VMDK_FLAT);
    g_assert_cmpint(lines[4].kind, ==, VMDK_COWD);
    g_assert_cmpint(lines[5].kind, ==, VMDK_SESPARSE);
    vmdk_descriptor_free(descriptor);
}

/* Names are bytes here, and UTF-8 mostly. */
static void test_encoding(void)
{
    g_autoptr(GError) error = NULL;
    struct vmdk_descriptor *descriptor = parse(
        "version=1\nencoding=\"windows-1252\"\nCID=1\ncreateType=custom\nRW 1 FLAT \"gr\xfc\xdf.vmdk\" 0\n",
        &error);

    g_assert_no_error(error);
    g_assert_cmpstr(g_array_index(descriptor->lines, struct vmdk_line, 0).file, ==, "gr\u00fc\u00df.vmdk");
    vmdk_descriptor_free(descriptor);
}

/* The documents call the split types otherwise than VMware's programs do. */
static void test_create_types(void)
{
    static const char *const types[] = {"twoGbMaxExtentSparse", "2GbMaxExtentSparse", "2GbMaxExtentFlat",
                                        "VMFSSPARSE"};

    for (size_t i = 0; i < G_N_ELEMENTS(types); i++) {
        g_autofree char *text = g_strdup_printf("version=1\nCID=1\ncreateType=\"%s\"\nRW 1 ZERO\n", types[i]);
        g_autoptr(GError) error = NULL;

        vmdk_descriptor_free(parse(text, &error));
        g_assert_no_error(error);
    }
}

/* What is left of the line when a disk is taken off its parent. */
static void test_no_hint(void)
{
    g_autoptr(GError) error = NULL;
    struct vmdk_descriptor *descriptor = parse(HEAD "parentFileNameHint=\"\"\nRW 1 ZERO\n", &error);

    g_assert_no_error(error);
    g_assert_true(vmdk_is_base(descriptor));
    vmdk_descriptor_free(descriptor);
}

/* An editor on Windows put a mark before the text. */
static void test_marked(void)
{
    g_autoptr(GError) error = NULL;
    struct vmdk_descriptor *descriptor = parse("\xef\xbb\xbf" HEAD "RW 1 ZERO\n", &error);

    g_assert_no_error(error);
    g_assert_cmphex(descriptor->cid, ==, 0x12345678);
    vmdk_descriptor_free(descriptor);
}

static void test_bad_descriptors(void)
{
    static const struct {
        const char *text, *why;
    } cases[] = {
        {HEAD, "no extents"},
        {"CID=1\nparentCID=ffffffff\ncreateType=custom\nRW 1 ZERO\n", "no version"},
        {"version=1\nparentCID=ffffffff\ncreateType=custom\nRW 1 ZERO\n", "no CID"},
        {"version=1\nCID=1\nRW 1 ZERO\n", "no createType"},
        {"version=9\n", "version between 1 and 4"},
        {HEAD "CID=2\nRW 1 ZERO\n", "twice"},
        {HEAD "parentFileNameHint=\"x\"\nRW 1 ZERO\n", "parentCID says there is none"},
        {"version=1\nCID=123456789\n", "hexadecimal"},
        {"version=1\nCID=0x1\n", "hexadecimal"},
        {"version=1\nCID=-1\n", "hexadecimal"},
        {"version=1\nCID=1\ncreateType=fullDevice\nRW 1 ZERO\n", "createType \"fullDevice\""},
        {HEAD "RW 1 FLAT \"x\"\n", "not an offset"},
        {HEAD "RW 1 FLAT \"x\" -1\n", "not an offset"},
        {HEAD "RW 1 FLAT \"x\" 18446744073709551616\n", "not an offset"},
        {HEAD "RW 12582912 VMFS \"x-flat.vmdk\" 1\n", "begins at offset 0"},
        {HEAD "RW 1 FLAT \"x\" 0 y\n", "not an offset"},
        {HEAD "RW 1 FLAT \"x\n\" 0\n", "no file name in quotes"},
        {HEAD "RW 1 FLAT \"\" 0\n", "no file name in quotes"},
        {HEAD "RW 1 FLAT x 0\n", "no file name in quotes"},
        {HEAD "RW -1 FLAT \"x\" 0\n", "size in sectors"},
        {HEAD "RW 0 FLAT \"x\" 0\n", "size in sectors"},
        {HEAD "RW 18446744073709551616 FLAT \"x\" 0\n", "size in sectors"},
        {HEAD "RW 9007199254740992 ZERO\nRW 9007199254740992 ZERO\n", "larger than 2^62"},
        {HEAD "RW 1 VMFSRDM \"x\"\n", "device or unknown"},
        {HEAD "NOACCESS 1 FLAT \"x\" 0\n", "denied"},
        {HEAD "RW 1 ZERO \"x\"\n", "has no file"},
        {HEAD "what is this\n", "neither a comment"},
        {HEAD "ddb.uuid.image=\"x\"\n", "not a UUID"},
        {HEAD "encryptionKeys=\"vmware:key/list/(pair/...)\"\nRW 1 ZERO\n",
         "encryptionKeys: the content is encrypted"},
        {HEAD "ddb.iofilters = \"spm,vmwarevmcrypt\"\nRW 1 ZERO\n",
         "ddb.iofilters: the content is encrypted"},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(GError) error = NULL;

        assert_fails(parse(cases[i].text, &error), BLOCKMIG_ERROR_REFUSED, cases[i].why);
    }
}

static void test_extent_limit(void)
{
    g_autoptr(GString) text = g_string_new(HEAD);
    g_autoptr(GError) error = NULL;

    for (unsigned i = 0; i < VMDK_MAX_EXTENTS + 1; i++)
        g_string_append(text, "RW 1 ZERO\n");
    assert_fails(parse(text->str, &error), BLOCKMIG_ERROR_REFUSED, "more than 4096 extents");
}

static void test_probe(void)
{
    static const char *const yes[] = {"# Disk DescriptorFile\n", "\n# x\r\n  version=1\n", "VERSION = 2",
                                      "\xef\xbb\xbf# Disk DescriptorFile\n", "\xef\xbb\xbfversion=1"};
    static const char *const no[] = {"", "#", "version", "version=x", "CID=1\nversion=1\n", "xversion=1"};

    for (size_t i = 0; i < G_N_ELEMENTS(yes); i++)
        g_assert_true(vmdk_is_text((const uint8_t *)yes[i], strlen(yes[i])));
    for (size_t i = 0; i < G_N_ELEMENTS(no); i++)
        g_assert_false(vmdk_is_text((const uint8_t *)no[i], strlen(no[i])));
}

/* ---- layout ------------------------------------------------------------------------------------- */

/* As VMware and QEMU lay it out: header, descriptor, both directories with their tables, grains. */
static void test_layout(void)
{
    struct storage *storage = create("disk.vmdk", 64 * MIB + 512, "", NULL);
    g_autoptr(image_t) image = open_image(storage, true);
    const struct vmdk_extent *extent = &((struct vmdk *)image->opaque)->extents[0];
    uint64_t overhead = (1 + 20 + 2 * (1 + 3 * 4)) * 512, got = round_up(overhead, 65536);
    g_autoptr(GArray) placements = g_array_new(FALSE, FALSE, sizeof(struct placement));
    uint32_t cid = ((struct vmdk *)image->opaque)->descriptor->cid;
    g_autoptr(GError) error = NULL;
    const struct placement *place;

    g_assert_cmpuint(image->size, ==, 64 * MIB + 512);
    g_assert_cmpuint(extent->table_count, ==, 3);
    g_assert_cmpuint(extent->header.overhead, ==, got);
    assert_ok(image_place(image, 65536, 2 * 65536, placements, &error));
    place = &g_array_index(placements, struct placement, 0);
    g_assert_cmpuint(placements->len, ==, 1);
    g_assert_cmpuint(place->to.host_offset, ==, got);
    g_assert_cmpuint(((struct vmdk *)image->opaque)->descriptor->cid, !=, cid);
    g_array_set_size(placements, 0);
    assert_ok(image_place(image, 64 * MIB, 100, placements, &error)); /* the last grain has one sector */
    g_assert_cmpuint(placements->len, ==, 2);
    place = &g_array_index(placements, struct placement, 1);
    g_assert_true(place->fill);
    g_assert_cmpuint(place->to.length, ==, 412);
    assert_ok(image_flush(image, &error));
    g_assert_cmpuint(storage->size, ==, got + 3 * 65536);
}

/* ---- parents ------------------------------------------------------------------------------------ */

static void test_parent(void)
{
    struct image *base = open_image(create("base.vmdk", 4 * MIB, "", NULL), true);
    g_autoptr(image_t) child = open_image(create("child.vmdk", 4 * MIB, "", base), false);
    g_autoptr(GError) error = NULL;

    g_assert_cmpstr(child->backing_name, ==, "base.vmdk");
    g_assert_cmpstr(child->backing_format, ==, "vmdk");
    assert_ok(image_check_parent(child, base, &error));
    assert_ok(writer_write(base, NULL, "x", 1, 0, &error));
    assert_fails(image_check_parent(child, base, &error), BLOCKMIG_ERROR_REFUSED, "parentCID is");
    image_close(base);
}

/* At every instant of a merge the child has its parent; its sibling has lost it. */
static void test_merge(void)
{
    struct storage *storage = create("base.vmdk", 4 * MIB, "", NULL);
    g_autoptr(image_t) base =
        open_image(storage_memory_new("base.vmdk", storage_memory_data(storage), storage->size, 0), false);

    crash_merge(&format_vmdk, storage, create("child.vmdk", 4 * MIB, "", base),
                create("sibling.vmdk", 4 * MIB, "", base));
}

/* ---- streams ------------------------------------------------------------------------------------ */

static void fill(uint8_t *grain, uint64_t number)
{
    for (uint64_t i = 0; i < GRAIN; i++)
        grain[i] = number % 3 ? number + i / 512 : g_random_int();
}

static void append(struct image *image, uint8_t *model, uint64_t number)
{
    g_autofree uint8_t *packed = g_malloc(image_pack_room(image));
    g_autoptr(GError) error = NULL;
    struct extent to;
    size_t length;

    fill(model + number * GRAIN, number);
    assert_ok(image_pack(image, number * GRAIN, model + number * GRAIN, packed, &length, &error));
    g_assert_cmpuint(length, <=, image_pack_room(image));
    g_assert_cmpuint(length % 512, ==, 0);
    assert_ok(image_place_packed(image, number * GRAIN, length, &to, &error));
    assert_ok(storage_pwrite(to.storage, packed, length, to.host_offset, &error));
}

static void expect(struct image *image, const uint8_t *model, uint64_t size)
{
    g_autofree uint8_t *content = g_malloc(size);
    g_autoptr(GError) error = NULL;

    assert_ok(writer_read(image, NULL, content, size, 0, &error));
    for (uint64_t i = 0; i < size; i += 512)
        if (memcmp(content + i, model + i, 512) != 0)
            g_error("differs at %" G_GUINT64_FORMAT, i);
}

static bool keep_some(void *opaque, unsigned i)
{
    return !opaque || g_rand_boolean(opaque);
}

/* A file that opens holds what was flushed, and nothing that was never written. */
static void expect_no_lie(struct image *image, const uint8_t *model, uint64_t frontier, uint64_t size)
{
    g_autofree uint8_t *content = g_malloc(size), *zeros = g_malloc0(GRAIN);
    g_autoptr(GError) error = NULL;

    assert_ok(writer_read(image, NULL, content, size, 0, &error));
    for (uint64_t i = 0; i < size; i += GRAIN)
        if (memcmp(content + i, model + i, GRAIN) != 0)
            g_assert_true(i >= frontier && memcmp(content + i, zeros, GRAIN) == 0);
}

/* Whatever was flushed is found again, wherever the writing stopped; a file without its end is only found by
 * who goes on with it. */
static void test_stream(void)
{
    static const uint64_t grains[] = {0, 1, 2, 7, 511, 512, 600, 1023, 2048, 2049, 3000};
    uint64_t size = 13 * MIB, flushed[G_N_ELEMENTS(grains)];
    struct storage *storage = create("disk.vmdk", size, "subformat=streamOptimized,grain_size=4k", NULL);
    g_autofree uint8_t *model = g_malloc0(size), *so_far = g_malloc0(size);
    g_autoptr(image_t) image = open_image(storage, true);
    g_autoptr(GRand) random = harness_rand();
    g_autoptr(GError) error = NULL;

    for (guint i = 0; i < G_N_ELEMENTS(grains); i++) {
        append(image, model, grains[i]);
        if (i % 3 == 0)
            assert_ok(image_flush(image, &error));
        flushed[i] = storage_memory_flush_count(storage);
    }
    assert_ok(image_flush(image, &error));
    expect(image, model, size);
    for (unsigned flush = 4; flush <= storage_memory_flush_count(storage); flush++) {
        for (int round = 0; round < 6; round++) {
            g_autoptr(GByteArray) cut =
                storage_memory_cut(storage, flush, round ? keep_some : NULL, round > 1 ? random : NULL, 0);
            struct storage *left = storage_memory_new("cut", cut->data, cut->len, 0);
            struct image *again = image_open(left, &format_vmdk, false, &error);
            uint64_t done, length, frontier = 0;
            g_autoptr(image_t) whole = NULL;

            for (guint i = 0; i + 1 < G_N_ELEMENTS(grains); i++)
                if (i % 3 == 0 && flushed[i] <= flush)
                    frontier = (grains[i] + 1) * GRAIN;
            if (again)
                expect_no_lie(again, model, frontier, size);
            else
                harness_check_error(&error, BLOCKMIG_ERROR_REFUSED, "no footer", __LINE__);
            image_close(again);
            whole = open_image(storage_memory_new("cut", cut->data, cut->len, 0), true);
            memset(so_far, 0, size);
            memcpy(so_far, model, frontier);
            assert_ok(image_discard(whole, frontier, size - frontier, &done, &length, &error));
            g_assert_cmpuint(done, ==, frontier);
            g_assert_cmpuint(length, ==, size - frontier);
            expect(whole, so_far, size);
            for (guint i = 0; i < G_N_ELEMENTS(grains); i++)
                if (grains[i] * GRAIN >= frontier)
                    append(whole, so_far, grains[i]);
            assert_ok(image_flush(whole, &error));
            expect(whole, so_far, size);
            again = open_image(
                storage_memory_new("again", storage_memory_data(whole->storage), whole->storage->size, 0),
                false);
            expect(again, so_far, size);
            image_close(again);
        }
    }
}

static void test_stream_order(void)
{
    g_autofree uint8_t *model = g_malloc0(4 * MIB);
    g_autoptr(image_t) image =
        open_image(create("disk.vmdk", 4 * MIB, "subformat=streamOptimized,grain_size=4k", NULL), true);
    g_autoptr(GArray) placements = g_array_new(FALSE, FALSE, sizeof(struct placement));
    g_autoptr(GError) error = NULL;
    struct extent to;

    append(image, model, 5);
    assert_fails(image_place_packed(image, 5 * GRAIN, 1024, &to, &error), BLOCKMIG_ERROR_FAILED, "in order");
    assert_fails(image_place_packed(image, 4 * GRAIN, 1024, &to, &error), BLOCKMIG_ERROR_FAILED, "in order");
    assert_fails(image_place_packed(image, 6 * GRAIN + 512, 1024, &to, &error), BLOCKMIG_ERROR_FAILED,
                 "whole");
    assert_fails(image_place(image, 0, 512, placements, &error), BLOCKMIG_ERROR_REFUSED, "whole grains only");
}

/* ---- crashes ------------------------------------------------------------------------------------ */

static void test_crash(gconstpointer data)
{
    const char *options = data;
    bool backed = options[0] == '+';
    uint64_t size = 700 * 1024 + 512;
    g_autoptr(chain_t) backing = NULL;
    struct crash_case crash = {.format = &format_vmdk};
    struct image *parent = NULL;

    if (backed) {
        parent = open_image(create("base.vmdk", size, "", NULL), true);
        memory_image_fill(parent);
        crash.backing = backing = chain_new_single(parent, false);
    }
    crash_random(&crash, create("disk.vmdk", size, options + backed, parent), 100);
}

int main(int argc, char **argv)
{
    static const char *const crashes[] = {
        "grain_size=4k",
        "grain_size=64k",
        "grain_size=512",
        "grain_size=8k,zeroed_grain=on",
        "+grain_size=4k",
        "+grain_size=64k",
        "+grain_size=8k,zeroed_grain=on",
    };

    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/vmdk/descriptor", test_descriptor);
    g_test_add_func("/vmdk/encoding", test_encoding);
    g_test_add_func("/vmdk/create-types", test_create_types);
    g_test_add_func("/vmdk/no-hint", test_no_hint);
    g_test_add_func("/vmdk/marked", test_marked);
    g_test_add_func("/vmdk/bad-descriptors", test_bad_descriptors);
    g_test_add_func("/vmdk/extent-limit", test_extent_limit);
    g_test_add_func("/vmdk/probe", test_probe);
    g_test_add_func("/vmdk/layout", test_layout);
    g_test_add_func("/vmdk/parent", test_parent);
    g_test_add_func("/vmdk/merge", test_merge);
    g_test_add_func("/vmdk/stream", test_stream);
    g_test_add_func("/vmdk/stream-order", test_stream_order);
    for (guint i = 0; i < G_N_ELEMENTS(crashes); i++) {
        g_autofree char *path = g_strdup_printf("/vmdk/crash/%s", crashes[i]);

        g_test_add_data_func(path, crashes[i], test_crash);
    }
    return g_test_run();
}
