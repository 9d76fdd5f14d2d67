/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Block devices, on a loop device with 512-byte and with 4096-byte sectors. */
#include "blockmig/storage/device.h"

#include "blockmig/storage/file.h"
#include "formats/image.h"
#include "tests/unit/harness.h"

#include <fcntl.h>
#include <sys/stat.h>

#define KIB  UINT64_C(1024)
#define SIZE (4096 * KIB)

static char *directory;

static char *attach(const char *sector_size)
{
    g_autofree char *path = g_build_filename(directory, sector_size, NULL);
    const char *argv[] = {"losetup", "--find", "--show", "--sector-size", sector_size, path, NULL};
    g_autofree char *output = NULL;
    int fd = open(path, O_RDWR | O_CREAT, 0600);

    g_assert_cmpint(ftruncate(fd, SIZE), ==, 0);
    close(fd);
    if (geteuid() != 0 || harness_run(&output, argv) != 0)
        return NULL;
    return g_strdup(g_strchomp(output));
}

static void detach(const char *device)
{
    const char *argv[] = {"losetup", "--detach", device, NULL};

    harness_run(NULL, argv);
}

static void check_bytes(struct storage *storage, uint64_t offset, size_t length, int byte)
{
    g_autoptr(GError) error = NULL;
    g_autofree uint8_t *buffer = g_malloc(length);

    assert_ok(storage_pread(storage, buffer, length, offset, &error));
    for (size_t i = 0; i < length; i++)
        g_assert_cmpint(buffer[i], ==, byte);
}

static void check_io(struct storage *storage, uint32_t sector)
{
    g_autoptr(GError) error = NULL;
    g_autofree uint8_t *buffer = g_malloc(SIZE);
    bool data;
    uint64_t run;

    g_assert_cmpuint(storage->size, ==, SIZE);
    g_assert_false(storage->growable || storage->reads_zero);
    g_assert_cmpint(storage->direct_fd, >=, 0);
    g_assert_cmpuint(storage->alignment, >=, sector);
    memset(buffer, 'x', SIZE);
    assert_ok(storage_pwrite(storage, buffer, SIZE, 0, &error));
    assert_ok(storage_zero(storage, 100, 1000 * KIB, true, &error));
    assert_ok(storage_zero(storage, 2048 * KIB + 1, 10 * KIB, false, &error));
    assert_ok(storage_zero(storage, 3000 * KIB + 7, 9, false, &error));
    check_bytes(storage, 0, 100, 'x');
    check_bytes(storage, 100, 1000 * KIB, 0);
    check_bytes(storage, 100 + 1000 * KIB, 2048 * KIB + 1 - 100 - 1000 * KIB, 'x');
    check_bytes(storage, 2048 * KIB + 1, 10 * KIB, 0);
    check_bytes(storage, 2058 * KIB + 1, 10 * KIB, 'x');
    check_bytes(storage, 3000 * KIB + 7, 9, 0);
    check_bytes(storage, 3000 * KIB + 16, 1000 * KIB, 'x');
    assert_ok(storage_discard(storage, 3500 * KIB + 1, 100 * KIB, &error));
    check_bytes(storage, 3400 * KIB, 100 * KIB + 1, 'x');
    check_bytes(storage, 3600 * KIB + 1, 100 * KIB, 'x');
    assert_ok(storage_status(storage, 0, SIZE, &data, &run, &error));
    g_assert_true(data && run == SIZE);
    assert_ok(storage_allocate(storage, 0, SIZE, &error));
    assert_ok(storage_flush(storage, &error));
    assert_fails(storage_pwrite(storage, "x", 1, SIZE, &error), BLOCKMIG_ERROR_FAILED, "out of bounds");
    assert_fails(storage_resize(storage, SIZE / 2, &error), BLOCKMIG_ERROR_FAILED, "cannot be changed");
}

static void check_raw(struct storage *storage)
{
    g_autoptr(GError) error = NULL;
    struct image_create_options options = {.size = SIZE + 1};
    g_autoptr(image_t) image = NULL;

    assert_fails(image_create(storage, &format_raw, &options, &error), BLOCKMIG_ERROR_REFUSED, "too few");
    options.size = SIZE - 1000;
    assert_ok(image_create(storage, &format_raw, &options, &error));
    image = image_open(storage, &format_raw, true, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(image->size, ==, SIZE);
    g_assert_false(image->reads_zero);
}

static void check_policy(const char *device)
{
    g_autoptr(GError) error = NULL;
    const char *roots[] = {"/dev", NULL};

    assert_fails(storage_file_open(device, 0, roots, NULL, &error), BLOCKMIG_ERROR_REFUSED, "regular file");
    assert_fails(storage_file_open(device, FILE_WRITE | FILE_CREATE, NULL, NULL, &error),
                 BLOCKMIG_ERROR_REFUSED, "block device");
    assert_fails(storage_file_open(device, FILE_WRITE, NULL, NULL, &error), BLOCKMIG_ERROR_REFUSED, "in use");
}

/* As a mount, swap or a device above holds it. */
static void check_in_use(const char *device)
{
    g_autoptr(GError) error = NULL;
    int fd = open(device, O_RDONLY | O_EXCL);
    struct storage *storage;

    g_assert_cmpint(fd, >=, 0);
    assert_fails(storage_file_open(device, FILE_WRITE, NULL, NULL, &error), BLOCKMIG_ERROR_REFUSED, "in use");
    storage = storage_file_open(device, 0, NULL, NULL, &error);
    g_assert_no_error(error);
    close(fd);
    assert_fails(storage_file_open(device, FILE_WRITE, NULL, NULL, &error), BLOCKMIG_ERROR_REFUSED, "lock");
    storage_close(storage);
}

static void test_device(const void *sector_size)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *device = attach(sector_size);
    struct storage *storage;
    int fd;

    if (!device) {
        harness_skip("no right to set up a loop device");
        return;
    }
    fd = open(device, O_RDONLY);
    detach(device); /* takes effect at the last close, also of a test that fails */
    check_in_use(device);
    storage = storage_file_open(device, FILE_WRITE, NULL, NULL, &error);
    g_assert_no_error(error);
    check_io(storage, atoi(sector_size));
    check_policy(device);
    g_assert_true(g_str_has_prefix(storage->identity, "block:7:"));
    check_raw(storage); /* the image closes it */
    close(fd);
}

static void make_file(const char *path, const char *text)
{
    g_autofree char *whole = g_build_filename(directory, path, NULL);
    g_autofree char *parent = g_path_get_dirname(whole);

    g_assert_cmpint(g_mkdir_with_parents(parent, 0700), ==, 0);
    g_assert_true(g_file_set_contents(whole, text, -1, NULL));
}

static char *map_of(const char *path)
{
    g_autofree char *whole = g_build_filename(directory, path, NULL);

    return device_multipath_map(whole);
}

/* As sysfs shows a path of a map, a partition of it, and another disk under LVM. */
static void test_multipath(void)
{
    g_autofree char *path = NULL, *partition = NULL, *other = NULL;

    make_file("sda/holders/dm-0/dm/uuid", "mpath-3600a098038303053\n");
    make_file("sda/holders/dm-0/dm/name", "mpatha\n");
    make_file("sda/sda1/partition", "1\n");
    make_file("sdb/holders/dm-1/dm/uuid", "LVM-abc\n");
    make_file("sdb/holders/dm-1/dm/name", "vg-lv\n");
    path = map_of("sda");
    partition = map_of("sda/sda1");
    other = map_of("sdb");
    g_assert_cmpstr(path, ==, "mpatha");
    g_assert_cmpstr(partition, ==, "mpatha");
    g_assert_null(other);
}

static void check_name(const char *path, const char *wanted)
{
    g_autofree char *whole = g_build_filename(directory, path, NULL);
    g_autofree char *name = device_unit_name(whole);

    g_assert_cmpstr(name, ==, wanted);
}

/* As sysfs shows a SCSI disk and a partition of it, its map, a volume on that map, and one of NVMe. */
static void test_names(void)
{
    make_file("sdx/device/wwid", "naa.600140\n");
    make_file("sdx/sdx1/partition", "1\n");
    make_file("sdx/sdx1/start", "2048\n");
    make_file("sdx/sdx1/size", "4096\n");
    make_file("dm-5/dm/uuid", "mpath-3600140\n");
    make_file("dm-5/slaves/sdx/device/wwid", "naa.600140\n");
    make_file("dm-5/slaves/sdy/device/wwid", "naa.600140\n");
    make_file("dm-6/dm/uuid", "LVM-group-volume\n");
    make_file("dm-6/slaves/sdz/device/wwid", "naa.600142\n");
    make_file("dm-6/slaves/dm-5/dm/uuid", "mpath-3600140\n");
    make_file("dm-6/slaves/dm-5/slaves/sdx/device/wwid", "naa.600140\n");
    make_file("dm-7/dm/uuid", "CRYPT-LUKS2-1\n");
    make_file("dm-7/slaves/sdx/device/wwid", "naa.600140\n");
    make_file("dm-8/dm/uuid", "LVM-group-other\n");
    make_file("dm-8/slaves/loop1/size", "1\n");
    make_file("nvme/wwid", "eui.0025\n");
    check_name("sdx", "naa.600140");
    check_name("sdx/sdx1", "naa.600140 from 2048+4096");
    check_name("dm-5", "naa.600140");
    check_name("dm-6", "LVM-group-volume on naa.600140, naa.600142");
    check_name("dm-7", NULL);
    check_name("dm-8", NULL);
    check_name("nvme", "eui.0025");
    check_name("dm-8/slaves/loop1", NULL);
}

int main(int argc, char **argv)
{
    int status;

    g_test_init(&argc, &argv, NULL);
    directory = harness_directory();
    g_test_add_data_func("/device/512", "512", test_device);
    g_test_add_data_func("/device/4096", "4096", test_device);
    g_test_add_func("/device/multipath", test_multipath);
    g_test_add_func("/device/names", test_names);
    status = g_test_run();
    harness_remove(directory);
    g_free(directory);
    return status;
}
