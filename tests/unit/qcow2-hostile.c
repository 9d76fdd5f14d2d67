/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Crafted qcow2 images: each is refused with the format, the field and the value, and nothing is written. */
#include "blockmig/storage/memory.h"
#include "formats/image.h"
#include "tests/unit/harness.h"

#define CLUSTER 4096u
#define L1      (3 * CLUSTER) /* of the image that make_image() makes */
#define L2      (4 * CLUSTER)
#define DATA    (5 * CLUSTER)
#define COPIED  (UINT64_C(1) << 63)

/* One number of the image is replaced. */
struct edit {
    uint64_t offset;
    unsigned bytes; /* of a big endian number; 0: no edit */
    uint64_t value;
};

/* The bitmaps extension; its directory is where the data was. */
#define BITMAPS(count, length)                                                                               \
    {88, 8, 1}, {112, 8, UINT64_C(0x2385287500000018)}, {120, 8, (uint64_t)(count) << 32}, {128, 8, length}, \
        {136, 8, DATA},                                                                                      \
    {                                                                                                        \
        144, 8, 0                                                                                            \
    }
/* The first entry of that directory; its table of one entry is in the next cluster. The name is "w...". */
#define BITMAP(flags, type, granularity, name)                                                               \
    {DATA, 8, DATA + CLUSTER}, {DATA + 8, 8, UINT64_C(1) << 32 | (flags)},                                   \
        {DATA + 16, 8, (uint64_t)(type) << 56 | (uint64_t)(granularity) << 48 | (uint64_t)(name) << 32},     \
    {                                                                                                        \
        DATA + CLUSTER, 8, 0                                                                                 \
    }

struct hostile {
    const char *name;
    const char *options; /* NULL: cluster_size=4k */
    struct edit edit[16];
    const char *words; /* of the error */
};

static struct storage *make_image(const char *options)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GHashTable) values =
        format_parse_options(&format_qcow2, options ? options : "cluster_size=4k", &error);
    struct image_create_options create = {.size = 8 << 20, .values = values};
    g_autoptr(GArray) placements = g_array_new(false, false, sizeof(struct placement));
    struct storage *storage = storage_memory_new("disk", NULL, 0, 0);
    uint8_t bytes[3 * CLUSTER];
    struct image *image;

    memset(bytes, 0x77, sizeof bytes);
    assert_ok(image_create(storage, &format_qcow2, &create, &error));
    g_autofree uint8_t *copy = g_memdup2(storage_memory_data(storage), storage->size);
    struct storage *target = storage_memory_new("disk", copy, storage->size, 0);

    storage_close(storage);
    image = image_open(target, &format_qcow2, true, &error);
    g_assert_no_error(error);
    assert_ok(image_place(image, 0, sizeof bytes, placements, &error));
    assert_ok(storage_pwrite(target, bytes, sizeof bytes,
                             g_array_index(placements, struct placement, 0).to.host_offset, &error));
    assert_ok(image_flush(image, &error));
    storage = storage_memory_new("disk", storage_memory_data(target), target->size, 0);
    image_close(image);
    return storage;
}

static struct storage *make_hostile(const struct hostile *hostile)
{
    struct storage *image = make_image(hostile->options), *copy;

    for (unsigned i = 0; i < G_N_ELEMENTS(hostile->edit); i++) {
        const struct edit *edit = &hostile->edit[i];
        uint64_t value = GUINT64_TO_BE(edit->value << (64 - 8 * MAX(edit->bytes, 1)));

        if (edit->bytes)
            g_assert_true(storage_pwrite(image, &value, edit->bytes, edit->offset, NULL));
    }
    /* Without the log of how it was made. */
    copy = storage_memory_new("disk", storage_memory_data(image), image->size, 0);
    storage_close(image);
    return copy;
}

/* ---- at open ------------------------------------------------------------------------------------ */

static const struct hostile at_open[] = {
    {"version", NULL, {{4, 4, 4}}, "version 4"},
    {"header-length-huge", NULL, {{100, 4, 0xffffffff}}, "header_length 4294967295"},
    {"header-length-v2", NULL, {{100, 4, 72}}, "header_length 72"},
    {"backing-offset", NULL, {{8, 8, UINT64_MAX}, {16, 4, 1}}, "backing_file_offset 18446744073709551615"},
    {"backing-size", NULL, {{8, 8, 2048}, {16, 4, 0xffffffff}}, "backing_file_size 4294967295"},
    {"backing-size-1024", NULL, {{8, 8, 2048}, {16, 4, 1024}}, "backing_file_size 1024"},
    {"extension-length", NULL, {{116, 4, 0x7fffffff}}, "of 2147483647 bytes runs past"},
    {"reftable-clusters", NULL, {{56, 4, 0xffffffff}}, "refcount_table_clusters 4294967295"},
    {"reftable-clusters-2", NULL, {{56, 4, 0x00020001}}, "refcount_table_clusters 131073"},
    {"reftable-none", NULL, {{56, 4, 0}}, "refcount_table_clusters 0"},
    {"reftable-unaligned",
     NULL,
     {{48, 8, UINT64_C(0x1234567890abcdef)}},
     "refcount_table_offset 0x1234567890abcdef is not aligned"},
    {"reftable-overflow",
     NULL,
     {{48, 8, UINT64_C(0xffffffffffff0000)}},
     "refcount_table_offset 0xffffffffffff0000"},
    {"snapshots-count", NULL, {{60, 4, 0xffffffff}}, "nb_snapshots 4294967295"},
    {"snapshots-count-2", NULL, {{60, 4, 0x10001}}, "nb_snapshots 65537"},
    {"snapshots-offset",
     NULL,
     {{60, 4, 1}, {64, 8, UINT64_C(0x1234567890abcdef)}},
     "snapshots_offset 0x1234567890abcdef"},
    {"snapshots-overflow",
     NULL,
     {{60, 4, 1}, {64, 8, UINT64_C(0xffffffffffff0000)}},
     "snapshots_offset 0xffffffffffff0000"},
    {"snapshot-l1-unaligned", NULL, {{60, 4, 1}, {64, 8, DATA}, {DATA, 8, 0x400200}}, "snapshot"},
    {"snapshot-extra", NULL, {{60, 4, 1}, {64, 8, DATA}, {DATA, 8, 0}, {DATA + 8, 8, 0}}, "extra_data_size"},
    {"snapshot-names",
     NULL,
     {{60, 4, 1},
      {64, 8, DATA},
      {DATA, 8, 0},
      {DATA + 8, 8, UINT64_C(0x00000000ffffffff)},
      {DATA + 36, 4, 0}},
     "snapshot 0: 131110 bytes at 0x5000"},
    {"l1-size", NULL, {{36, 4, 0xffffffff}}, "l1_size 4294967295"},
    {"l1-size-2", NULL, {{36, 4, 0x7fffffff}}, "l1_size 2147483647"},
    {"l1-size-0", NULL, {{36, 4, 0}}, "L1 table is too small"},
    {"l1-size-1", NULL, {{36, 4, 1}}, "L1 table is too small"},
    {"disk-size", NULL, {{24, 8, UINT64_C(0x7ffffffffffffe00)}}, "L1 table is too small"},
    {"disk-size-2", NULL, {{24, 8, UINT64_MAX}}, "L1 table is too small"},
    {"l1-unaligned", NULL, {{40, 8, UINT64_C(0x1234567890abcdef)}}, "l1_table_offset 0x1234567890abcdef"},
    {"l1-overflow", NULL, {{40, 8, UINT64_C(0xffffffffffff0000)}}, "l1_table_offset 0xffffffffffff0000"},
    {"l1-in-header", NULL, {{40, 8, 0}}, "l1_table_offset 0"},
    {"refcount-order-7", NULL, {{96, 4, 7}}, "refcount_order 7"},
    {"refcount-order-63", NULL, {{96, 4, 63}}, "refcount_order 63"},
    {"refcount-order-max", NULL, {{96, 4, 0xffffffff}}, "refcount_order 4294967295"},
    {"cluster-bits-0", NULL, {{20, 4, 0}}, "cluster_bits 0"},
    {"cluster-bits-8", NULL, {{20, 4, 8}}, "cluster_bits 8"},
    {"cluster-bits-22", NULL, {{20, 4, 22}}, "cluster_bits 22"},
    {"cluster-bits-63", NULL, {{20, 4, 63}}, "cluster_bits 63"},
    {"incompatible-63", NULL, {{72, 8, UINT64_C(1) << 63}}, "bit 63 (unnamed)"},
    {"incompatible-named", NULL, {{72, 8, 1 << 7}, {121, 1, 7}}, "bit 7 (dirty bit)"},
    {"compression-no-bit", NULL, {{104, 1, 1}}, "compression_type 1 contradicts"},
    {"compression-no-type", NULL, {{72, 8, 8}}, "compression_type 0 contradicts"},
    {"compression-255", NULL, {{72, 8, 8}, {104, 1, 255}}, "compression_type 255"},
    {"extended-small", NULL, {{72, 8, 16}}, "cluster_bits 12 is too small for extended L2"},
    {"data-file-unnamed", NULL, {{72, 8, 4}}, "external file"},
    {"data-file-raw-without-one", NULL, {{88, 8, 2}}, "autoclear_features 0x2"},
    {"crypt-3", NULL, {{32, 4, 3}}, "crypt_method 3"},
    {"crypt-luks", NULL, {{32, 4, 2}}, "LUKS"},
    {"crypt-aes", NULL, {{32, 4, 1}}, "AES"},
    {"crypt-extension", NULL, {{112, 4, 0x0537be77}}, "encryption header extension"},
    {"bitmaps-none", NULL, {{88, 8, 1}, {112, 8, UINT64_C(0x2385287500000018)}, {120, 4, 0}}, "nb_bitmaps 0"},
    {"bitmaps-many",
     NULL,
     {{88, 8, 1}, {112, 8, UINT64_C(0x2385287500000018)}, {120, 4, 65536}},
     "nb_bitmaps 65536"},
    {"bitmaps-length",
     NULL,
     {{88, 8, 1}, {112, 8, UINT64_C(0x2385287500000010)}},
     "bitmaps extension has 16"},
    {"bitmaps-type", NULL, {BITMAPS(2, 64), BITMAP(0, 2, 16, 1)}, "bitmap 0: type 2"},
    {"bitmaps-flags", NULL, {BITMAPS(2, 64), BITMAP(8, 1, 16, 1)}, "bitmap 0: flags 0x8"},
    {"bitmaps-granularity-0", NULL, {BITMAPS(2, 64), BITMAP(0, 1, 0, 1)}, "granularity_bits 0"},
    {"bitmaps-granularity-63", NULL, {BITMAPS(2, 64), BITMAP(0, 1, 63, 1)}, "granularity_bits 63"},
    {"bitmaps-name-0", NULL, {BITMAPS(2, 64), BITMAP(0, 1, 16, 0)}, "name_size 0"},
    {"bitmaps-name-max", NULL, {BITMAPS(2, 64), BITMAP(0, 1, 16, 0xffff)}, "name_size 65535"},
    {"bitmaps-name-long", NULL, {BITMAPS(2, 64), BITMAP(0, 1, 16, 1000)}, "past the end of the directory"},
    {"bitmaps-name-nul", NULL, {BITMAPS(1, 32), BITMAP(0, 1, 16, 5), {DATA + 26, 1, 0}}, "NUL"},
    {"bitmaps-extra",
     NULL,
     {BITMAPS(1, 32), BITMAP(0, 1, 16, 1), {DATA + 20, 4, 0xfffffff8}},
     "extra_data_size 4294967288"},
    {"bitmaps-directory", NULL, {BITMAPS(1, UINT64_C(1) << 40)}, "bitmap_directory_size 1099511627776"},
    {"bitmaps-directory-short", NULL, {BITMAPS(2, 48), BITMAP(0, 1, 16, 1)}, "ends in entry 1 of 2"},
    {"bitmaps-directory-long",
     NULL,
     {BITMAPS(1, 64), BITMAP(0, 1, 16, 1)},
     "contradicts its 1 entries of 32"},
    {"bitmaps-directory-unaligned",
     NULL,
     {BITMAPS(1, 32), {136, 8, DATA + 8}},
     "bitmap_directory_offset 0x5008 is not aligned"},
    {"bitmaps-table-unaligned",
     NULL,
     {BITMAPS(1, 32), BITMAP(0, 1, 16, 1), {DATA, 8, DATA + 512}},
     "bitmap_table_offset 0x5200 is not aligned"},
    {"bitmaps-table-size",
     NULL,
     {BITMAPS(1, 32), BITMAP(0, 1, 16, 1), {DATA + 8, 4, 0x7fffffff}},
     "bitmap_table_size 2147483647"},
    {"bitmaps-table-beyond",
     NULL,
     {BITMAPS(1, 32), BITMAP(0, 1, 16, 1), {DATA + 8, 4, 0x10000}},
     "lies outside the file"},
    {"bitmaps-table-reserved",
     NULL,
     {BITMAPS(1, 32), BITMAP(0, 1, 16, 1), {DATA + CLUSTER, 8, 2}},
     "bitmap table entry 0 0x2"},
    {"bitmaps-data-beyond",
     NULL,
     {BITMAPS(1, 32), BITMAP(0, 1, 16, 1), {DATA + CLUSTER, 8, 0x7000000}},
     "bitmap table entry 0 0x7000000"},
    {"bitmaps-same-name",
     NULL,
     {BITMAPS(2, 64),
      BITMAP(0, 1, 16, 1),
      {DATA + 32, 8, DATA + CLUSTER},
      {DATA + 40, 8, 0},
      {DATA + 48, 8, UINT64_C(0x0110000100000000)}},
     "bitmap 1: the name \"w\" appears twice"},
};

static void test_open(gconstpointer data)
{
    const struct hostile *hostile = data;

    for (int writable = 0; writable < 2; writable++) {
        struct storage *storage = make_hostile(hostile);

        g_autoptr(GError) error = NULL;

        assert_fails(image_open(storage, &format_qcow2, writable, &error), BLOCKMIG_ERROR_REFUSED,
                     hostile->words);
    }
}

/* An image with an external data file opens, but shows nothing without that file, and is never written to. */
static void test_data_file(void)
{
    const struct hostile named = {"named",
                                  NULL,
                                  {{72, 8, 4},
                                   {112, 8, UINT64_C(0x4441544100000008)},
                                   {120, 8, UINT64_C(0x2f6574632f707764)},
                                   {128, 8, 0}},
                                  NULL};
    g_autoptr(GError) error = NULL;
    g_autoptr(image_t) image = image_open(make_hostile(&named), &format_qcow2, false, &error);
    struct image_check result;
    struct extent extent;
    size_t count;

    g_assert_no_error(error);
    g_assert_cmpstr(image_data_file(image, 0)->name, ==, "/etc/pwd");
    assert_fails(image_map(image, 0, CLUSTER, &extent, 1, &count, &error), BLOCKMIG_ERROR_REFUSED,
                 "data file is not open");
    g_assert_true(image_attach_data(image, 0, storage_memory_new("data", NULL, 0, 0), &error));
    assert_fails(image_map(image, 0, CLUSTER, &extent, 1, &count, &error), BLOCKMIG_ERROR_FAILED,
                 "must point to the same offset in the data file");
    assert_fails(image_attach_data(image, 0, storage_memory_new("data", NULL, 0, 0), &error),
                 BLOCKMIG_ERROR_FAILED, "cannot attach a data file");
    assert_ok(image_check(image, false, &result, &error));
    assert_fails(image_open(make_hostile(&named), &format_qcow2, true, &error), BLOCKMIG_ERROR_REFUSED,
                 "only read");
}

/* ---- at use ------------------------------------------------------------------------------------- */

static const struct hostile at_map[] = {
    {"l1-unaligned", NULL, {{L1, 8, UINT64_C(0x8000000000042a00)}}, "is not aligned"},
    {"l1-beyond", NULL, {{L1, 8, UINT64_C(0x80ffffffffff0000)}}, "behind the end of the file"},
    {"l1-reserved", NULL, {{L1, 8, UINT64_C(0xbfffffffffff0000)}}, "reserved bits"},
    {"l2-unaligned", NULL, {{L2, 8, UINT64_C(0x8000000000052a00)}}, "is not aligned"},
    {"l2-zero-unaligned", NULL, {{L2, 8, UINT64_C(0x8000000000052a01)}}, "is not aligned"},
    {"l2-beyond", NULL, {{L2, 8, UINT64_C(0x00ffffffffff0000)}}, "behind the end of the file"},
    {"l2-reserved", NULL, {{L2, 8, UINT64_C(0xbfffffffffff0000)}}, "reserved bits"},
    {"l1-is-l1", NULL, {{L1, 8, COPIED | L1}}, "points into the header or another table"},
    {"data-is-l1", NULL, {{L2, 8, COPIED | L1}}, "points into the header or a table"},
    {"data-is-reftable", NULL, {{L2, 8, COPIED | CLUSTER}}, "points into the header or a table"},
    {"packed-in-header", NULL, {{L2, 8, UINT64_C(0x4000000000000010)}}, "points into the header or a table"},
    {"packed-in-l1", NULL, {{L2, 8, UINT64_C(0x4000000000000000) | L1}}, "points into the header or a table"},
    {"packed-beyond", NULL, {{L2, 8, UINT64_C(0x43ffffffffffffff)}}, "behind the end of the file"},
    {"v2-zero", "cluster_size=4k,compat=0.10", {{L2, 8, COPIED | DATA | 1}}, "version 2"},
    {"subclusters-both",
     "cluster_size=16k,extended_l2=on",
     {{4 * 16384 + 8, 8, UINT64_C(0x100000001)}},
     "both allocated and zero"},
    {"subclusters-nowhere", "cluster_size=16k,extended_l2=on", {{4 * 16384, 8, 0}}, "no cluster"},
};

static bool map_first(struct image *image, struct extent *extent, GError **error)
{
    size_t count;

    return image_map(image, 0, CLUSTER, extent, 1, &count, error);
}

static void test_map(gconstpointer data)
{
    const struct hostile *hostile = data;
    g_autoptr(GError) error = NULL;
    g_autoptr(image_t) image = image_open(make_hostile(hostile), &format_qcow2, false, &error);
    struct extent extent;

    g_assert_no_error(error);
    assert_fails(map_first(image, &extent, &error), BLOCKMIG_ERROR_FAILED, hostile->words);
    g_assert_cmpuint(storage_memory_writes(image->storage)->len, ==, 0);
}

static const struct hostile at_write[] = {
    {"l2-is-l1", NULL, {{L1, 8, COPIED | L1}}, "points into the header or another table"},
    {"l2-is-reftable", NULL, {{L1, 8, COPIED | CLUSTER}}, "points into the header or another table"},
    {"l2-is-refcount-block", NULL, {{L1, 8, COPIED | 2 * CLUSTER}}, "holds metadata"},
    {"l2-twice", NULL, {{L1 + 8, 8, COPIED | L2}}, "holds metadata"},
    {"l1-is-reftable", NULL, {{40, 8, CLUSTER}}, "overlap"},
    {"reftable-unaligned", NULL, {{CLUSTER, 8, 0x22a00}}, "is not aligned"},
    {"reftable-empty", NULL, {{CLUSTER, 8, 0}}, "header has refcount 0"},
    {"header-count-0", NULL, {{2 * CLUSTER, 2, 0}}, "header has refcount 0"},
    /* Without data nothing is counted again: what would be overwritten is found when it is given out. */
    {"block-is-free", NULL, {{L1, 8, 0}, {2 * CLUSTER + 2 * 2, 2, 0}}, "holds metadata"},
    {"l1-is-free", NULL, {{L1, 8, 0}, {2 * CLUSTER + 2 * 3, 2, 0}}, "holds metadata"},
};

/* Refused, marked as corrupt, and nothing else is written; then it cannot be opened for writing. */
static void test_write(gconstpointer data)
{
    const struct hostile *hostile = data;
    struct storage *storage = make_hostile(hostile);
    g_autoptr(GArray) placements = g_array_new(false, false, sizeof(struct placement));
    g_autoptr(GError) error = NULL;
    struct image *image = image_open(storage, &format_qcow2, true, &error);
    const GArray *writes = storage_memory_writes(storage);
    g_autofree uint8_t *after = NULL;
    size_t size;
    bool ok;

    g_assert_no_error(error);
    ok = image_place(image, 0, 512, placements, &error) &&
         image_place(image, 4 << 20, 512, placements, &error);
    assert_fails(ok, BLOCKMIG_ERROR_FAILED, hostile->words);
    assert_fails(image_flush(image, &error), BLOCKMIG_ERROR_FAILED, "opened again");
    g_assert_cmpuint(writes->len, ==, 1);
    g_assert_cmpuint(g_array_index(writes, struct memory_write, 0).offset, ==, 72);
    size = storage->size;
    after = g_memdup2(storage_memory_data(storage), size);
    image_close(image);
    assert_fails(image_open(storage_memory_new("disk", after, size, 0), &format_qcow2, true, &error),
                 BLOCKMIG_ERROR_REFUSED, "corrupt bit");
    image = image_open(storage_memory_new("disk", after, size, 0), &format_qcow2, false, &error);
    g_assert_no_error(error); /* to read what can be read is allowed, with a notice */
    g_assert_cmpuint(image->notices->len, ==, 1);
    image_close(image);
}

/* Found by counting all users before the first change. */
static const struct hostile at_count[] = {
    {"data-is-l1", NULL, {{L2, 8, COPIED | L1}}, "L2 entry 0x8000000000003000 is malformed"},
    {"data-is-l2", NULL, {{L2, 8, COPIED | L2}}, "host offset 0x4000 has refcount 1 but 2 users"},
    {"data-is-refcount-block", NULL, {{L2, 8, COPIED | 2 * CLUSTER}}, "host offset 0x2000 has refcount 1"},
    {"data-twice", NULL, {{L2 + 8, 8, COPIED | DATA}}, "host offset 0x5000 has refcount 1 but 2 users"},
    {"data-twice-far", NULL, {{L2 + 4088, 8, COPIED | DATA}}, "host offset 0x5000 has refcount 1 but 2"},
    {"data-twice-counted",
     NULL,
     {{L2 + 8, 8, COPIED | DATA}, {2 * CLUSTER + 2 * 5, 2, 2}, {2 * CLUSTER + 2 * 6, 2, 0}},
     "host offset 0x5000 has refcount 2 but a COPIED flag"},
    {"data-beyond", NULL, {{L2, 8, COPIED | 0x7000000}}, "L2 entry 0x8000000007000000"},
    {"data-count-0", NULL, {{2 * CLUSTER + 2 * 5, 2, 0}}, "host offset 0x5000 has refcount 0 but 1 users"},
    {"data-count-2", NULL, {{2 * CLUSTER + 2 * 5, 2, 2}}, "has refcount 2 but a COPIED flag"},
    {"data-not-copied", NULL, {{L2, 8, DATA}}, "has refcount 1 but no COPIED flag"},
    {"block-counts-0", NULL, {{2 * CLUSTER + 2 * 2, 2, 0}}, "host offset 0x2000 has refcount 0"},
};

/* Refused, and not a byte is written, whatever the first change would be. */
static void test_count(gconstpointer data)
{
    const struct hostile *hostile = data;
    struct storage *storage = make_hostile(hostile);
    g_autoptr(GArray) placements = g_array_new(false, false, sizeof(struct placement));
    g_autoptr(GError) error = NULL;
    g_autoptr(image_t) image = image_open(storage, &format_qcow2, true, &error);
    uint64_t done_offset, done_length;
    struct extent to;

    g_assert_no_error(error);
    assert_fails(image_place(image, 4 << 20, 512, placements, &error), BLOCKMIG_ERROR_REFUSED,
                 hostile->words);
    g_clear_error(&error);
    assert_fails(image_zero(image, 0, CLUSTER, &done_offset, &done_length, &error), BLOCKMIG_ERROR_REFUSED,
                 hostile->words);
    g_clear_error(&error);
    assert_fails(image_place_packed(image, 0, 512, &to, &error), BLOCKMIG_ERROR_REFUSED, hostile->words);
    g_assert_cmpuint(placements->len, ==, 0);
    g_assert_cmpuint(storage_memory_writes(storage)->len, ==, 0);
}

/* The dirty bit: the counts are rebuilt before the first change. */
static void test_dirty(void)
{
    const struct hostile dirty = {"dirty", NULL, {{72, 8, 1}, {2 * CLUSTER + 8, 8, 0}}, NULL};
    struct storage *storage = make_hostile(&dirty);
    g_autoptr(GArray) placements = g_array_new(false, false, sizeof(struct placement));
    g_autoptr(GError) error = NULL;
    g_autoptr(image_t) image = image_open(storage, &format_qcow2, true, &error);
    struct image_check result;

    g_assert_no_error(error);
    assert_ok(image_place(image, 1 << 20, CLUSTER, placements, &error));
    assert_ok(image_flush(image, &error));
    assert_ok(image_check(image, false, &result, &error));
    g_assert_cmpuint(result.leaks + result.corruptions, ==, 0);
    g_assert_cmpuint(storage_memory_data(storage)[79], ==, 0);
}

/* The space of bitmaps that were given up is used again. */
static void test_bitmaps_given_up(void)
{
    const struct hostile bitmaps = {
        "bitmaps",
        NULL,
        {BITMAPS(1, 32), BITMAP(0, 1, 16, 1), {L2, 8, 0}, {L2 + 8, 8, 0}, {L2 + 16, 8, 0}},
        NULL};
    g_autoptr(GArray) placements = g_array_new(false, false, sizeof(struct placement));
    g_autoptr(GError) error = NULL;
    g_autoptr(image_t) image = image_open(make_hostile(&bitmaps), &format_qcow2, true, &error);
    struct image_check result;

    g_assert_no_error(error);
    assert_ok(image_place(image, 0, CLUSTER, placements, &error));
    assert_ok(image_flush(image, &error));
    assert_ok(image_check(image, true, &result, &error));
    g_assert_cmpuint(result.corruptions, ==, 0);
    g_assert_cmpuint(result.repaired, ==, 3);
    assert_ok(image_place(image, CLUSTER, 3 * CLUSTER, placements, &error));
    assert_ok(image_flush(image, &error));
    assert_ok(image_check(image, false, &result, &error));
    g_assert_cmpuint(result.leaks + result.corruptions, ==, 0);
}

/* A file that ends anywhere is an error or reads less, never zeros in place of data. */
static void test_truncated(void)
{
    struct storage *whole = make_image(NULL);

    for (uint64_t size = 0; size < whole->size; size += 512) {
        struct storage *cut = storage_memory_new("disk", storage_memory_data(whole), size, 0);
        g_autoptr(GError) error = NULL;
        g_autoptr(image_t) image = image_open(cut, &format_qcow2, false, &error);
        struct extent extent;
        size_t count;

        if (!image) {
            g_assert_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED);
            continue;
        }
        for (uint64_t offset = 0; offset < 3 * CLUSTER; offset = extent_end(&extent)) {
            if (!image_map(image, offset, 3 * CLUSTER - offset, &extent, 1, &count, &error))
                break;
            g_assert_cmpint(extent.status, ==, EXTENT_DATA);
            g_assert_cmpuint(extent.host_offset + extent.length, <=, size);
        }
        g_assert_nonnull(error);
    }
    storage_close(whole);
}

static void add_all(const char *group, const struct hostile *cases, size_t count, GTestDataFunc test)
{
    for (size_t i = 0; i < count; i++) {
        g_autofree char *path = g_strdup_printf("/qcow2-hostile/%s/%s", group, cases[i].name);

        g_test_add_data_func(path, &cases[i], test);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    add_all("open", at_open, G_N_ELEMENTS(at_open), test_open);
    add_all("map", at_map, G_N_ELEMENTS(at_map), test_map);
    add_all("write", at_write, G_N_ELEMENTS(at_write), test_write);
    add_all("count", at_count, G_N_ELEMENTS(at_count), test_count);
    g_test_add_func("/qcow2-hostile/data-file", test_data_file);
    g_test_add_func("/qcow2-hostile/dirty", test_dirty);
    g_test_add_func("/qcow2-hostile/bitmaps-given-up", test_bitmaps_given_up);
    g_test_add_func("/qcow2-hostile/truncated", test_truncated);
    return g_test_run();
}
