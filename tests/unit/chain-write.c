/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* chain_write() and its sisters against a model: every format that is written, alone and over a parent. */
#include "blockmig/storage/memory.h"
#include "formats/chain.h"
#include "tests/unit/harness.h"

#define DISK (UINT64_C(5) << 20)

/* Sizes of blocks that a disk of 5 MiB has several of; `below`: the format of the parent. */
static const struct variant {
    const char *name;
    const struct format *format, *below;
    const char *options;
} variants[] = {
    {"qcow2", &format_qcow2, &format_raw, ""},
    {"qcow2-subclusters", &format_qcow2, &format_qcow2, "extended_l2=on,cluster_size=128k"},
    {"qcow2-v2", &format_qcow2, &format_qcow2, "compat=0.10"},
    {"vhd", &format_vhd, &format_vhd, "block_size=512K"},
    {"vhdx", &format_vhdx, &format_vhdx, "block_size=1M"},
    {"vdi", &format_vdi, &format_vdi, ""},
    {"vmdk", &format_vmdk, &format_vmdk, ""},
    {"vmdk-zeroed", &format_vmdk, &format_vmdk, "zeroed_grain=on"},
};

struct disk {
    const struct variant *variant;
    GBytes *base; /* the file below; NULL: none */
    struct chain *chain;
    uint8_t model[DISK];
};

static struct storage *create(const struct format *format, const char *text, struct image *parent)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GHashTable) values = format_parse_options(format, text, &error);
    struct image_create_options options = {.name = "disk", .size = DISK, .values = values, .parent = parent};
    struct storage *storage = storage_memory_new("disk", NULL, 0, 0);

    g_assert_no_error(error);
    options.backing_name = parent ? "base" : NULL;
    options.backing_format = parent ? parent->format->name : NULL;
    assert_ok(image_create(storage, format, &options, &error));
    return storage;
}

static struct image *open_image(const struct format *format, struct storage *storage, bool writable)
{
    g_autoptr(GError) error = NULL;
    struct image *image = image_open(storage, format, writable, &error);

    g_assert_no_error(error);
    return image;
}

static struct image *open_base(const struct disk *disk)
{
    gsize size;
    const void *bytes = g_bytes_get_data(disk->base, &size);

    return open_image(disk->variant->below, storage_memory_new("base", bytes, size, 0), false);
}

static struct chain *open_chain(const struct disk *disk, struct storage *top)
{
    struct chain *chain = chain_new_single(open_image(disk->variant->format, top, true), false);

    if (disk->base)
        chain_append(chain, open_base(disk));
    return chain;
}

static struct storage *top_storage(const struct disk *disk)
{
    return chain_layer(disk->chain, 0)->storage;
}

/* What the medium holds if everything reached it. */
static GBytes *content(struct storage *storage)
{
    return g_bytes_new(storage_memory_data(storage), storage->size);
}

static void compare(struct disk *disk)
{
    g_autofree uint8_t *got = g_malloc(DISK);
    g_autoptr(GError) error = NULL;

    assert_ok(chain_read(disk->chain, got, DISK, 0, &error));
    for (uint64_t i = 0; i < DISK; i++) {
        if (got[i] != disk->model[i])
            g_error("%s: byte %" G_GUINT64_FORMAT " is %02x instead of %02x", disk->variant->name, i, got[i],
                    disk->model[i]);
    }
}

/* As after a flush and the end of the process. */
static void reopen(struct disk *disk)
{
    g_autoptr(GBytes) bytes = content(top_storage(disk));

    chain_close(disk->chain);
    disk->chain = open_chain(
        disk, storage_memory_new("disk", g_bytes_get_data(bytes, NULL), g_bytes_get_size(bytes), 0));
}

static void pick_range(GRand *rand, uint64_t *offset, uint64_t *length)
{
    uint32_t align = g_rand_boolean(rand) ? 1 : g_rand_boolean(rand) ? 512 : 65536;

    *offset = g_rand_int_range(rand, 0, DISK) / align * align;
    *length = ((g_rand_int_range(rand, 0, 2 << 20) >> g_rand_int_range(rand, 0, 12)) / align + 1) * align;
    *length = MIN(*length, DISK - *offset);
}

/* Trimmed bytes are zeros or what they were. */
static void discard(struct disk *disk, uint64_t offset, uint64_t length)
{
    g_autofree uint8_t *got = g_malloc(length);
    g_autoptr(GError) error = NULL;

    assert_ok(chain_discard(disk->chain, offset, length, &error));
    assert_ok(chain_read(disk->chain, got, length, offset, &error));
    for (uint64_t i = 0; i < length; i++)
        g_assert_true(got[i] == 0 || got[i] == disk->model[offset + i]);
    memcpy(disk->model + offset, got, length);
}

static void step(struct disk *disk, GRand *rand)
{
    g_autoptr(GError) error = NULL;
    uint64_t offset, length;
    int what = g_rand_int_range(rand, 0, 8);

    pick_range(rand, &offset, &length);
    if (what == 0) {
        discard(disk, offset, length);
    } else if (what <= 2) {
        memset(disk->model + offset, 0, length);
        assert_ok(chain_zero(disk->chain, offset, length, &error));
    } else {
        for (uint64_t i = 0; i < length; i++)
            disk->model[offset + i] = (uint8_t)g_rand_int_range(rand, 0, 256);
        assert_ok(chain_write(disk->chain, disk->model + offset, length, offset, &error));
    }
    if (g_rand_int_range(rand, 0, 6) == 0)
        assert_ok(chain_flush(disk->chain, &error));
}

static void random_steps(struct disk *disk, GRand *rand)
{
    g_autoptr(GError) error = NULL;

    for (unsigned session = 0; session < 2; session++) {
        for (unsigned i = 0; i < harness_sample(12, 100); i++)
            step(disk, rand);
        compare(disk);
        assert_ok(chain_flush(disk->chain, &error));
        reopen(disk);
        compare(disk);
    }
}

/* However few the random steps are, some data is there, every 64 KiB of a stretch. */
static void write_stretch(struct disk *disk)
{
    g_autoptr(GError) error = NULL;

    for (uint64_t at = DISK / 2; at < DISK; at += 65536) {
        memset(disk->model + at, 7, 512);
        assert_ok(chain_write(disk->chain, disk->model + at, 512, at, &error));
    }
    assert_ok(chain_flush(disk->chain, &error));
}

/* The parent is written to, too, before the child is made. */
static struct disk *new_disk(const struct variant *variant, GRand *rand)
{
    struct disk *disk = g_new0(struct disk, 1);
    struct variant base = {variant->name, variant->below, NULL, ""};
    g_autoptr(image_t) parent = NULL;

    disk->variant = &base;
    disk->chain = open_chain(disk, create(variant->below, "", NULL));
    random_steps(disk, rand);
    write_stretch(disk);
    disk->base = content(top_storage(disk));
    chain_close(disk->chain);
    disk->variant = variant;
    parent = open_base(disk);
    disk->chain = open_chain(disk, create(variant->format, variant->options, parent));
    return disk;
}

static void disk_free(struct disk *disk)
{
    chain_close(disk->chain);
    g_bytes_unref(disk->base);
    g_free(disk);
}

static void test_random(gconstpointer variant)
{
    g_autoptr(GRand) rand = harness_rand();
    struct disk *disk = new_disk(variant, rand);
    struct storage *base;

    compare(disk);
    random_steps(disk, rand);
    step(disk, rand);
    base = chain_layer(disk->chain, 1)->storage;
    g_assert_cmpuint(storage_memory_writes(base)->len, ==, 0);
    disk_free(disk);
}

/* A parent that cannot be read where a new cluster needs it: nothing is shown and nothing becomes durable. */
static void test_failure(gconstpointer variant)
{
    g_autoptr(GRand) rand = harness_rand();
    struct disk *disk = new_disk(variant, rand);
    struct memory_fault fault = {.on = MEMORY_READ, .errnum = EIO};
    g_autoptr(GError) error = NULL;
    uint8_t byte;

    memset(disk->model + 1000, 1, 3000);
    assert_ok(chain_write(disk->chain, disk->model + 1000, 3000, 1000, &error));
    assert_ok(chain_flush(disk->chain, &error));
    storage_memory_add_fault(chain_layer(disk->chain, 1)->storage, &fault);
    for (uint64_t at = (3 << 20) + 7; !disk->chain->failed && at < DISK; at += 65536 + 100)
        chain_write(disk->chain, "x", 1, at, NULL);
    g_assert_true(disk->chain->failed);
    storage_memory_clear_faults(chain_layer(disk->chain, 1)->storage);
    assert_fails(chain_read(disk->chain, &byte, 1, 0, &error), BLOCKMIG_ERROR_FAILED, "opened again");
    assert_fails(chain_write(disk->chain, "x", 1, 0, &error), BLOCKMIG_ERROR_FAILED, "opened again");
    assert_fails(chain_zero(disk->chain, 0, 1, &error), BLOCKMIG_ERROR_FAILED, "opened again");
    assert_fails(chain_discard(disk->chain, 0, 1, &error), BLOCKMIG_ERROR_FAILED, "opened again");
    assert_fails(chain_flush(disk->chain, &error), BLOCKMIG_ERROR_FAILED, "opened again");
    reopen(disk);
    compare(disk);
    disk_free(disk);
}

/* A compressed cluster of 2 MiB, and a write into it: the rest is unpacked in pieces. */
static void pack_unit(struct image *image, const uint8_t *unit)
{
    g_autofree uint8_t *packed = g_malloc(image_pack_room(image));
    g_autoptr(GError) error = NULL;
    struct extent to;
    size_t length;

    assert_ok(image_pack(image, 0, unit, packed, &length, &error));
    g_assert_cmpuint(length, >, 0);
    assert_ok(image_place_packed(image, 0, length, &to, &error));
    assert_ok(storage_pwrite(to.storage, packed, length, to.host_offset, &error));
    assert_ok(image_flush(image, &error));
}

static void test_packed(gconstpointer below)
{
    static const struct variant variant = {"packed", &format_qcow2, &format_qcow2, "cluster_size=2M"};
    struct disk *disk = g_new0(struct disk, 1);
    g_autoptr(GError) error = NULL;
    uint64_t at = (3 << 19) + 11;

    disk->variant = &variant;
    for (uint64_t i = 0; i < 2 << 20; i++)
        disk->model[i] = (uint8_t)(i >> 17 ^ i >> 3);
    disk->chain = open_chain(disk, create(&format_qcow2, variant.options, NULL));
    pack_unit(chain_layer(disk->chain, 0), disk->model);
    if (below) {
        g_autoptr(image_t) parent = NULL;

        disk->base = content(top_storage(disk));
        parent = open_base(disk);
        chain_close(disk->chain);
        disk->chain = open_chain(disk, create(&format_qcow2, variant.options, parent));
    }
    disk->model[at] = 77;
    assert_ok(chain_write(disk->chain, "M", 1, at, &error));
    compare(disk);
    assert_ok(chain_flush(disk->chain, &error));
    reopen(disk);
    compare(disk);
    chain_close(disk->chain);
    g_clear_pointer(&disk->base, g_bytes_unref);
    g_free(disk);
}

/* What is not a chain for writing. */
static void test_refused(void)
{
    struct chain *chain =
        chain_new_single(open_image(&format_qcow2, create(&format_qcow2, "", NULL), false), false);
    g_autoptr(GError) error = NULL;

    assert_fails(chain_write(chain, "x", 1, 0, &error), BLOCKMIG_ERROR_FAILED, "for writing");
    chain_close(chain);
    chain = chain_new_single(open_image(&format_qcow2, create(&format_qcow2, "", NULL), true), true);
    assert_fails(chain_write(chain, "x", 1, 0, &error), BLOCKMIG_ERROR_FAILED, "opened whole");
    chain_close(chain);
    chain = chain_new_single(open_image(&format_qcow2, create(&format_qcow2, "", NULL), true), false);
    assert_fails(chain_write(chain, "xy", 2, DISK - 1, &error), BLOCKMIG_ERROR_FAILED, "out of bounds");
    assert_ok(chain_write(chain, "x", 1, DISK - 1, &error));
    chain_append(chain, open_image(&format_qcow2, create(&format_qcow2, "", NULL), false));
    assert_fails(chain_write(chain, "x", 1, 0, &error), BLOCKMIG_ERROR_REFUSED,
                 "does not stand in the image");
    chain_close(chain);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    for (size_t i = 0; i < G_N_ELEMENTS(variants); i++) {
        g_autofree char *random = g_strdup_printf("/chain-write/random/%s", variants[i].name);
        g_autofree char *failure = g_strdup_printf("/chain-write/failure/%s", variants[i].name);

        g_test_add_data_func(random, &variants[i], test_random);
        g_test_add_data_func(failure, &variants[i], test_failure);
    }
    g_test_add_data_func("/chain-write/packed/top", NULL, test_packed);
    g_test_add_data_func("/chain-write/packed/below", "below", test_packed);
    g_test_add_func("/chain-write/refused", test_refused);
    return g_test_run();
}
