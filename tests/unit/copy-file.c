/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The copier between files: O_DIRECT and its unaligned rests, the page cache, holes, size without data. */
#include "blockmig/copy/copy.h"
#include "blockmig/storage/file.h"
#include "tests/unit/harness.h"

#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>

#define MIB ((uint64_t)1 << 20)

static char *directory;

static char *path_of(const char *name)
{
    return g_build_filename(directory, name, NULL);
}

static void write_at(int fd, uint64_t offset, uint64_t length)
{
    g_autofree guint32 *data = g_malloc(length + 4);

    for (uint64_t i = 0; i < length / 4 + 1; i++)
        data[i] = g_test_rand_int();
    g_assert_cmpint(pwrite(fd, data, length, (off_t)offset), ==, (ssize_t)length);
}

static struct chain *open_chain(const char *path, unsigned flags)
{
    g_autoptr(GError) error = NULL;
    struct storage *storage = storage_file_open(path, flags, NULL, NULL, &error);

    g_assert_no_error(error);
    struct image *image = image_open(storage, &format_raw, flags & FILE_WRITE, &error);
    g_assert_no_error(error);
    return chain_new_single(image, false);
}

static struct chain *create_chain(const char *path, uint64_t size, unsigned flags)
{
    struct image_create_options options = {.size = size};
    g_autoptr(GError) error = NULL;
    struct storage *storage = storage_file_open(path, FILE_WRITE | FILE_CREATE | flags, NULL, NULL, &error);

    g_assert_no_error(error);
    assert_ok(image_create(storage, &format_raw, &options, &error));
    return chain_new_single(image_open(storage, &format_raw, true, NULL), false);
}

/* Copies, opens anew, proves; then compares every byte in the simplest way. */
static struct copy_counters copy_and_prove(const char *from, const char *to, struct copy_options *options,
                                           unsigned flags)
{
    g_autoptr(chain_t) source = open_chain(from, flags);
    struct chain *target = create_chain(to, source->size, flags);
    g_autoptr(digest_table_t) digests = digest_table_new(DIGEST_XXH3_128, source->size);
    g_autoptr(GError) error = NULL;
    struct copy_result result;

    options->digests = digests;
    options->read_back = true;
    assert_ok(copy_run(source, chain_layer(target, 0), options, &result, &error));
    struct copy_map_sum sum = result.map_sum;
    struct copy_counters counters = result.counters;
    copy_result_clear(&result);
    chain_close(target);
    target = open_chain(to, flags);
    assert_ok(copy_prove(chain_layer(target, 0), digests, &sum, options, &result, &error));
    copy_result_clear(&result);
    chain_close(target);
    return counters;
}

static void assert_same(const char *a, const char *b)
{
    const char *argv[] = {"cmp", a, b, NULL};
    g_assert_cmpint(harness_run(NULL, argv), ==, 0);
}

static uint64_t allocated(const char *path)
{
    struct stat st;
    g_assert_cmpint(stat(path, &st), ==, 0);
    return (uint64_t)st.st_blocks * 512;
}

/* A file of random runs of data and holes whose ends fit to nothing. */
static void make_source(const char *path, uint64_t size)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);

    g_assert_cmpint(ftruncate(fd, (off_t)size), ==, 0);
    for (uint64_t at = 0; at < size;) {
        uint64_t length = (uint64_t)g_test_rand_int_range(1, 700000);
        length = MIN(length, size - at);
        if (g_test_rand_bit())
            write_at(fd, at, length);
        at += length;
    }
    close(fd);
}

static void test_random(gconstpointer mode)
{
    for (int round = 0; round < 6; round++) {
        g_autofree char *from = path_of("source"), *to = path_of("target");
        uint64_t size = (uint64_t)g_test_rand_int_range(1, 40) * MIB / 2;
        struct copy_options options = {.no_uring = g_str_equal(mode, "threads")};

        size += (uint64_t)(round % 3 ? g_test_rand_int_range(0, 100000) : 0);
        make_source(from, size);
        copy_and_prove(from, to, &options, g_str_equal(mode, "page-cache") ? FILE_NO_DIRECT : 0);
        assert_same(from, to);
        g_assert_cmpuint(allocated(to), <=, allocated(from) + 256 * 1024);
        g_unlink(to);
    }
}

/* What reads go through does not stay in the page cache. */
static void test_cache(void)
{
    g_autofree char *from = path_of("source"), *to = path_of("target");
    struct copy_options options = {0};
    uint64_t size = 24 * MIB, resident = 0;
    int fd = open(from, O_RDWR | O_CREAT | O_TRUNC, 0600);

    write_at(fd, 0, size);
    fdatasync(fd);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
    copy_and_prove(from, to, &options, 0);
    const char *paths[] = {from, to};
    for (int i = 0; i < 2; i++) {
        g_autofree unsigned char *pages = g_malloc(size / 4096);
        fd = open(paths[i], O_RDONLY);
        void *map = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
        g_assert_cmpint(mincore(map, size, pages), ==, 0);
        for (uint64_t page = 0; page < size / 4096; page++)
            resident += pages[page] & 1;
        munmap(map, size);
        close(fd);
    }
    g_assert_cmpuint(resident * 4096, <=, size / 8);
    g_unlink(to);
}

/* 8 TiB with a little data here and there: time and memory follow the data. */
static void test_thin(void)
{
    g_autofree char *from = path_of("thin"), *to = path_of("target");
    struct copy_options options = {0};
    struct rusage usage;
    uint64_t size = UINT64_C(8) << 40;
    int64_t begin = g_get_monotonic_time();
    int fd = open(from, O_RDWR | O_CREAT | O_TRUNC, 0600);

    if (ftruncate(fd, (off_t)size) < 0) {
        harness_skip("the file system has no files of 8 TiB");
        close(fd);
        return;
    }
    for (uint64_t i = 0; i < 200; i++)
        write_at(fd, (i * 40009 + 1) * MIB + i * 512, 9000);
    close(fd);
    struct copy_counters counters = copy_and_prove(from, to, &options, 0);
    g_assert_cmpuint(counters.bytes_read, <=, 200 * 16384);
    g_assert_cmpuint(counters.bytes_zero, >=, size - 200 * 2 * MIB);
    g_assert_cmpuint(allocated(to), <=, allocated(from) + MIB);
    g_assert_cmpint(g_get_monotonic_time() - begin, <=, 20 * G_USEC_PER_SEC);
    getrusage(RUSAGE_SELF, &usage);
#ifndef __SANITIZE_ADDRESS__
    g_assert_cmpint(usage.ru_maxrss, <=, 96 * 1024);
#endif
    g_unlink(from);
    g_unlink(to);
}

/* On a file system with reflink blocks are shared; the digests and the read-back are the same. */
static void test_reflink(void)
{
    g_autofree char *root = path_of("mount"), *disk = path_of("disk");
    const char *mkfs[] = {"mkfs.xfs", "-q", "-f", "-m", "reflink=1", disk, NULL};
    const char *mounting[] = {"mount", "-o", "loop", disk, root, NULL};
    const char *unmounting[] = {"umount", "-l", root, NULL};
    g_autofree char *from = g_build_filename(root, "source", NULL),
                    *to = g_build_filename(root, "target", NULL);

    g_autofree char *program = g_find_program_in_path("mkfs.xfs");
    if (geteuid() != 0 || !program) {
        harness_skip("needs root and mkfs.xfs");
        return;
    }
    /* Mounts of our own: whatever happens to this process, nothing stays mounted. */
    if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0) {
        harness_skip("cannot have mounts of its own");
        return;
    }
    int fd = open(disk, O_RDWR | O_CREAT | O_TRUNC, 0600);
    g_assert_cmpint(ftruncate(fd, 400 * (off_t)MIB), ==, 0);
    close(fd);
    g_mkdir(root, 0700);
    g_assert_cmpint(harness_run(NULL, mkfs), ==, 0);
    if (harness_run(NULL, mounting) != 0) {
        harness_skip("cannot mount a loop device");
        return;
    }
    make_source(from, 40 * MIB + 700);
    struct copy_options options = {0};
    struct copy_counters counters = copy_and_prove(from, to, &options, 0);
    assert_same(from, to);
    g_assert_cmpuint(counters.bytes_cloned, >, 5 * MIB);
    g_unlink(to);
    options.no_reflink = true;
    counters = copy_and_prove(from, to, &options, 0);
    assert_same(from, to);
    g_assert_cmpuint(counters.bytes_cloned, ==, 0);
    g_assert_cmpint(harness_run(NULL, unmounting), ==, 0);
}

int main(int argc, char **argv)
{
    char *with_tap[] = {argv[0], (char[]){"--tap"}, NULL};
    char **args = argc > 1 ? argv : with_tap;
    int count = argc > 1 ? argc : 2;

    g_test_init(&count, &args, NULL);
    directory = harness_directory();
    g_test_add_func("/copy-file/thin", test_thin); /* first: it looks at the peak of memory */
    g_test_add_data_func("/copy-file/random/uring", "uring", test_random);
    g_test_add_data_func("/copy-file/random/threads", "threads", test_random);
    g_test_add_data_func("/copy-file/random/page-cache", "page-cache", test_random);
    g_test_add_func("/copy-file/cache", test_cache);
    g_test_add_func("/copy-file/reflink", test_reflink);
    int rc = g_test_run();
    harness_remove(directory);
    g_free(directory);
    return rc;
}
