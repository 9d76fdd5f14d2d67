/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Files of this host: content, holes, space, O_DIRECT, and what may be opened at all. */
#include "blockmig/storage/file.h"

#include "tests/unit/harness.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>

#define KIB UINT64_C(1024)
#define MIB (1024 * KIB)

static char *directory;
static bool no_direct; /* what a file system without O_DIRECT answers */

/* In place of the C library's: this program decides whether there is O_DIRECT. */
int open(const char *path, int flags, ...)
{
    mode_t mode = 0;
    va_list args;

    if (flags & O_CREAT) {
        va_start(args, flags);
        mode = va_arg(args, mode_t);
        va_end(args);
    }
    if (no_direct && (flags & O_DIRECT)) {
        errno = EINVAL;
        return -1;
    }
    return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

static bool short_io;    /* every call moves at most 7 bytes, every other one is interrupted */
static bool flush_fails; /* once */

static bool bare; /* a file system without holes: no fallocate(), no SEEK_DATA */

int fallocate(int fd, int mode, off_t offset, off_t length)
{
    if (!bare)
        return syscall(SYS_fallocate, fd, mode, offset, length);
    errno = EOPNOTSUPP;
    return -1;
}

off_t lseek(int fd, off_t offset, int whence)
{
    if (!bare)
        return syscall(SYS_lseek, fd, offset, whence);
    errno = EINVAL;
    return -1;
}

static bool interrupted(void)
{
    static unsigned calls;

    if (!short_io || calls++ % 2)
        return false;
    errno = EINTR;
    return true;
}

ssize_t pread(int fd, void *buffer, size_t length, off_t offset)
{
    if (interrupted())
        return -1;
    return syscall(SYS_pread64, fd, buffer, short_io ? MIN(length, 7) : length, offset);
}

ssize_t pwrite(int fd, const void *buffer, size_t length, off_t offset)
{
    if (interrupted())
        return -1;
    return syscall(SYS_pwrite64, fd, buffer, short_io ? MIN(length, 7) : length, offset);
}

int fdatasync(int fd)
{
    if (!flush_fails)
        return syscall(SYS_fdatasync, fd);
    flush_fails = false;
    errno = EIO;
    return -1;
}

static char *in(const char *name)
{
    return g_build_filename(directory, name, NULL);
}

static struct storage *fresh(const char *name, unsigned flags)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *path = in(name);
    struct storage *storage;

    unlink(path);
    storage = storage_file_open(path, FILE_WRITE | FILE_CREATE | flags, NULL, NULL, &error);
    g_assert_no_error(error);
    return storage;
}

static void check_bytes(struct storage *storage, uint64_t offset, size_t length, int byte)
{
    g_autoptr(GError) error = NULL;
    g_autofree uint8_t *buffer = g_malloc(length);

    assert_ok(storage_pread(storage, buffer, length, offset, &error));
    for (size_t i = 0; i < length; i++)
        g_assert_cmpint(buffer[i], ==, byte);
}

static void fill(struct storage *storage, uint64_t offset, size_t length, int byte)
{
    g_autoptr(GError) error = NULL;
    g_autofree uint8_t *buffer = g_malloc(length);

    memset(buffer, byte, length);
    assert_ok(storage_pwrite(storage, buffer, length, offset, &error));
}

static void check_status(struct storage *storage, uint64_t offset, uint64_t length, bool wanted,
                         uint64_t wanted_run)
{
    g_autoptr(GError) error = NULL;
    bool data;
    uint64_t run;

    assert_ok(storage_status(storage, offset, length, &data, &run, &error));
    g_assert_cmpint(data, ==, wanted);
    g_assert_cmpuint(run, ==, wanted_run);
}

static void test_content(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(storage_t) storage = fresh("content", 0);
    struct stat st;

    g_assert_true(storage->reads_zero && storage->growable && storage->writable);
    g_assert_cmpuint(storage->size, ==, 0);
    fill(storage, 1000003, 7, 'x');
    g_assert_cmpuint(storage->size, ==, 1000010);
    check_bytes(storage, 0, 1000003, 0);
    check_bytes(storage, 1000003, 7, 'x');
    assert_ok(storage_resize(storage, 1000005, &error));
    assert_ok(storage_resize(storage, 1000010, &error));
    check_bytes(storage, 1000003, 2, 'x');
    check_bytes(storage, 1000005, 5, 0);
    assert_ok(storage_flush(storage, &error));
    g_assert_cmpint(fstat(storage->buffered_fd, &st), ==, 0);
    g_assert_cmpint(st.st_size, ==, 1000010);
    g_assert_cmpint(st.st_mode & 07777, ==, 0600);
    assert_fails(storage_pread(storage, &st, 8, 1000005, &error), BLOCKMIG_ERROR_FAILED, "out of bounds");
}

static void test_short_io(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(storage_t) storage = fresh("short", 0);
    char buffer[100];

    short_io = true;
    assert_ok(storage_pwrite(storage, "0123456789012345678901234567890123456789", 40, 3, &error));
    assert_ok(storage_pread(storage, buffer, 40, 3, &error));
    short_io = false;
    g_assert_cmpmem(buffer, 40, "0123456789012345678901234567890123456789", 40);
    g_assert_cmpuint(storage->size, ==, 43);
}

/* The kernel tells of a lost page once, and the next fdatasync() succeeds: it must not look durable. */
static void test_flush_stays_failed(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(storage_t) storage = fresh("flush", 0);

    flush_fails = true;
    assert_fails(storage_flush(storage, &error), BLOCKMIG_ERROR_IO, "flush: flushing: ");
    g_assert_false(flush_fails);
    assert_fails(storage_flush(storage, &error), BLOCKMIG_ERROR_IO, "flush: flushing: ");
}

static void test_holes(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(storage_t) storage = fresh("holes", 0);
    uint64_t before;

    fill(storage, 0, 1 * MIB, 'a');
    assert_ok(storage_resize(storage, 4 * MIB, &error));
    fill(storage, 3 * MIB, 1 * MIB, 'b');
    assert_ok(storage_flush(storage, &error));
    check_status(storage, 0, 4 * MIB, true, 1 * MIB);
    check_status(storage, 512 * KIB, 4 * MIB - 512 * KIB, true, 512 * KIB);
    check_status(storage, 1 * MIB, 3 * MIB, false, 2 * MIB);
    check_status(storage, 1 * MIB + 1, 100, false, 100);
    check_status(storage, 3 * MIB, 1 * MIB, true, 1 * MIB);

    before = storage_file_allocated(storage);
    g_assert_cmpuint(before, >=, 2 * MIB);
    g_assert_cmpuint(before, <, 3 * MIB);
    assert_ok(storage_zero(storage, 100, 1 * MIB - 200, true, &error));
    check_bytes(storage, 0, 100, 'a');
    check_bytes(storage, 100, 1 * MIB - 200, 0);
    check_bytes(storage, 1 * MIB - 100, 100, 'a');
    g_assert_cmpuint(storage_file_allocated(storage), <=, before - 1000 * KIB);
    before = storage_file_allocated(storage);
    assert_ok(storage_zero(storage, 3 * MIB, 1 * MIB, false, &error));
    check_bytes(storage, 3 * MIB, 1 * MIB, 0);
    g_assert_cmpuint(storage_file_allocated(storage), >=, before);
    assert_ok(storage_discard(storage, 3 * MIB, 1 * MIB, &error));
    g_assert_cmpuint(storage_file_allocated(storage), <=, before - 1000 * KIB);

    /* Zeros past the end make the file longer, and nothing else. */
    before = storage_file_allocated(storage);
    assert_ok(storage_zero(storage, 4 * MIB + 5, 10 * MIB, false, &error));
    g_assert_cmpuint(storage->size, ==, 14 * MIB + 5);
    g_assert_cmpuint(storage_file_allocated(storage), <=, before + 64 * KIB);
    check_bytes(storage, 13 * MIB, 1 * MIB + 5, 0);
}

/* Someone writes through the descriptor further up than the storage knows: that stays, and what lies in the
 * range becomes zero all the same. */
static void test_zero_while_growing(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(storage_t) storage = fresh("growing", 0);

    fill(storage, 0, 4 * KIB, 'a');
    g_assert_cmpint(pwrite(storage->buffered_fd, "other", 5, 10 * KIB), ==, 5);
    g_assert_cmpint(pwrite(storage->buffered_fd, "old", 3, 5 * KIB), ==, 3);
    g_assert_cmpuint(storage->size, ==, 4 * KIB);
    assert_ok(storage_zero(storage, 2 * KIB, 6 * KIB, true, &error));
    storage_grown(storage, 10 * KIB + 5);
    check_bytes(storage, 0, 2 * KIB, 'a');
    check_bytes(storage, 2 * KIB, 8 * KIB, 0);
    check_bytes(storage, 10 * KIB, 1, 'o');
}

/* Everything works, with more writing, on a file system that has none of this. */
static void test_bare(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(storage_t) storage = fresh("bare", 0);

    bare = true;
    fill(storage, 0, 3 * MIB, 'a');
    assert_ok(storage_zero(storage, 100, 2 * MIB, true, &error));
    assert_ok(storage_discard(storage, 2 * MIB + 200, 100, &error));
    assert_ok(storage_zero(storage, 3 * MIB - 1, 2, false, &error));
    assert_ok(storage_allocate(storage, 0, 4 * MIB, &error));
    check_status(storage, 0, 4 * MIB, true, 4 * MIB);
    bare = false;
    check_bytes(storage, 0, 100, 'a');
    check_bytes(storage, 100, 2 * MIB, 0);
    check_bytes(storage, 2 * MIB + 100, MIB - 101, 'a');
    check_bytes(storage, 3 * MIB - 1, MIB + 1, 0);
    g_assert_cmpuint(storage_file_allocated(storage), >=, 4 * MIB);
}

static void test_allocate(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(storage_t) storage = fresh("allocate", 0);

    fill(storage, 0, 4096, 'a');
    assert_ok(storage_allocate(storage, 0, 4 * MIB, &error));
    g_assert_cmpuint(storage->size, ==, 4 * MIB);
    g_assert_cmpuint(storage_file_allocated(storage), >=, 4 * MIB);
    check_bytes(storage, 0, 4096, 'a');
    check_bytes(storage, 4096, 4 * MIB - 4096, 0);
}

static void test_shrunk_behind_us(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(storage_t) storage = fresh("shrunk", 0);
    uint8_t buffer[16];
    bool data;
    uint64_t run;

    fill(storage, 0, 8192, 'a');
    g_assert_cmpint(ftruncate(storage->buffered_fd, 4096), ==, 0);
    assert_fails(storage_pread(storage, buffer, 16, 4090, &error), BLOCKMIG_ERROR_IO,
                 "ends before offset 4096");
    assert_fails(storage_status(storage, 4096, 4096, &data, &run, &error), BLOCKMIG_ERROR_IO, "shrunk");
}

static void test_direct(void)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *path = in("direct");
    g_autoptr(storage_t) storage = fresh("direct", 0);
    void *buffer = NULL;
    struct stat a, b;

    fill(storage, 0, 1 * MIB, 'd');
    assert_ok(storage_flush(storage, &error));
    g_assert_cmpint(storage->direct_fd, >=, 0);
    g_assert_cmpuint(storage->alignment, >=, 512);
    g_assert_cmpuint(storage->alignment & (storage->alignment - 1), ==, 0);
    g_assert_cmpint(fcntl(storage->direct_fd, F_GETFL) & O_DIRECT, !=, 0);
    fstat(storage->direct_fd, &a);
    fstat(storage->buffered_fd, &b);
    g_assert_true(a.st_ino == b.st_ino && a.st_dev == b.st_dev);
    g_assert_cmpint(posix_memalign(&buffer, storage->alignment, storage->alignment), ==, 0);
    g_assert_cmpint(pread(storage->direct_fd, buffer, storage->alignment, storage->alignment), ==,
                    storage->alignment);
    g_assert_cmpint(*(char *)buffer, ==, 'd');
    memset(buffer, 'e', storage->alignment);
    g_assert_cmpint(pwrite(storage->direct_fd, buffer, storage->alignment, 2 * MIB), ==, storage->alignment);
    storage_grown(storage, 2 * MIB + storage->alignment);
    check_bytes(storage, 2 * MIB, storage->alignment, 'e');
    free(buffer);

    storage_file_avoid_direct(storage);
    g_assert_cmpint(storage->direct_fd, ==, -1);
    g_assert_cmpuint(storage->alignment, ==, 1);
    g_clear_pointer(&storage, storage_close);
    storage = storage_file_open(path, FILE_NO_DIRECT, NULL, NULL, &error);
    g_assert_no_error(error);
    g_assert_cmpint(storage->direct_fd, ==, -1);
    g_assert_cmpint(storage->buffered_fd, >=, 0);
}

/* A file system that knows no O_DIRECT: the page cache is used and nothing is said. */
static void test_direct_refused(void)
{
    g_autoptr(storage_t) storage = NULL;

    no_direct = true;
    storage = fresh("no-direct", 0);
    no_direct = false;
    g_assert_cmpint(storage->direct_fd, ==, -1);
    g_assert_cmpuint(storage->alignment, ==, 1);
    fill(storage, 3, 1000, 'x');
    check_bytes(storage, 3, 1000, 'x');
}

static void test_create(void)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *path = in("create");
    g_autofree char *dangling = in("dangling");
    struct storage *storage = fresh("create", 0);

    storage_close(storage);
    /* An empty file may be taken over, one with content not. */
    storage = storage_file_open(path, FILE_WRITE | FILE_CREATE, NULL, NULL, &error);
    g_assert_no_error(error);
    fill(storage, 0, 10, 'x');
    storage_close(storage);
    assert_fails(storage_file_open(path, FILE_WRITE | FILE_CREATE, NULL, NULL, &error),
                 BLOCKMIG_ERROR_REFUSED, "exists already");
    storage = storage_file_open(path, FILE_WRITE, NULL, NULL, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(storage->size, ==, 10);
    g_assert_false(storage->reads_zero);
    /* Not emptied while another holds it. */
    assert_fails(storage_file_open(path, FILE_WRITE | FILE_TRUNCATE, NULL, NULL, &error),
                 BLOCKMIG_ERROR_REFUSED, "lock");
    check_bytes(storage, 0, 10, 'x');
    storage_close(storage);
    storage = storage_file_open(path, FILE_WRITE | FILE_TRUNCATE, NULL, NULL, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(storage->size, ==, 0);
    g_assert_true(storage->reads_zero);
    storage_close(storage);

    g_assert_cmpint(symlink("nowhere", dangling), ==, 0);
    assert_fails(storage_file_open(dangling, FILE_WRITE | FILE_CREATE, NULL, NULL, &error),
                 BLOCKMIG_ERROR_REFUSED, "dangling: ");
    assert_fails(storage_file_open("/dev/null", FILE_WRITE | FILE_CREATE, NULL, NULL, &error),
                 BLOCKMIG_ERROR_REFUSED, "/dev/null: ");
    assert_ok(storage_file_sync_directory(path, &error));
}

/* An immutable file: what even root may not write. */
static void test_no_rights(void)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *path = in("immutable");
    const char *set[] = {"chattr", "+i", path, NULL}, *clear[] = {"chattr", "-i", path, NULL};
    struct storage *storage;

    g_assert_true(g_file_set_contents(path, "x", -1, NULL));
    if (harness_run(NULL, set) == 0) {
        storage = storage_file_open(path, FILE_WRITE, NULL, NULL, &error);
        harness_run(NULL, clear);
        g_assert_null(storage);
        harness_check_error(&error, BLOCKMIG_ERROR_REFUSED, "immutable: opening for writing: ", __LINE__);
    } else {
        harness_skip("no right to make a file immutable");
    }
    assert_fails(storage_file_open("/nonexistent/x", FILE_WRITE | FILE_CREATE, NULL, NULL, &error),
                 BLOCKMIG_ERROR_REFUSED, "No such file");
}

static void refused_under(const char *path, const char *root, const char *why)
{
    g_autoptr(GError) error = NULL;
    const char *roots[] = {root, NULL};

    assert_fails(storage_file_open(path, 0, roots, NULL, &error), BLOCKMIG_ERROR_REFUSED, why);
}

static void make_socket(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    g_strlcpy(address.sun_path, path, sizeof(address.sun_path));
    g_assert_cmpint(bind(fd, (struct sockaddr *)&address, sizeof(address)), ==, 0);
    close(fd);
}

static void test_types(void)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *fifo = in("fifo");
    g_autofree char *sock = in("socket");
    g_autofree char *deleted = in("deleted");
    g_autofree char *by_fd = NULL;
    int fd;

    g_assert_cmpint(mkfifo(fifo, 0600), ==, 0);
    make_socket(sock);
    assert_fails(storage_file_open(fifo, 0, NULL, NULL, &error), BLOCKMIG_ERROR_REFUSED, "neither");
    assert_fails(storage_file_open(fifo, FILE_WRITE, NULL, NULL, &error), BLOCKMIG_ERROR_REFUSED, "neither");
    assert_fails(storage_file_open(sock, 0, NULL, NULL, &error), BLOCKMIG_ERROR_REFUSED, "neither");
    assert_fails(storage_file_open("/dev/null", 0, NULL, NULL, &error), BLOCKMIG_ERROR_REFUSED, "neither");
    assert_fails(storage_file_open(directory, 0, NULL, NULL, &error), BLOCKMIG_ERROR_REFUSED,
                 "is a directory");
    refused_under(fifo, directory, "neither");
    refused_under("/dev/zero", "/", "neither");

    /* A file without a name is beneath nothing. */
    fd = open(deleted, O_RDWR | O_CREAT, 0600);
    unlink(deleted);
    by_fd = g_strdup_printf("/proc/self/fd/%d", fd);
    refused_under(by_fd, directory, "no name");
    close(fd);
}

static void test_roots(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(storage_t) storage = NULL;
    g_autofree char *sub = in("r/sub");
    g_autofree char *sub2 = in("r/sub2");
    g_autofree char *inside = in("r/sub/inside");
    g_autofree char *neighbour = in("r/sub2/neighbour");
    g_autofree char *out = in("r/sub/out");
    g_autofree char *root_link = in("r/root-link");
    g_autofree char *real = NULL;
    g_autofree char *dots = in("r/sub2/../sub/inside");
    g_autofree char *root_slash = g_strconcat(root_link, "//", NULL);
    const char *roots[] = {"/nonexistent", root_slash, NULL};

    g_assert_cmpint(g_mkdir_with_parents(sub, 0700), ==, 0);
    g_assert_cmpint(g_mkdir_with_parents(sub2, 0700), ==, 0);
    g_assert_true(g_file_set_contents(inside, "in", -1, NULL));
    g_assert_true(g_file_set_contents(neighbour, "out", -1, NULL));
    g_assert_cmpint(symlink("../sub2/neighbour", out), ==, 0);
    g_assert_cmpint(symlink("sub", root_link), ==, 0);

    storage = storage_file_open(dots, 0, roots, &real, &error);
    g_assert_no_error(error);
    g_assert_cmpstr(real, ==, inside);
    refused_under(neighbour, sub, "outside the allowed directories");
    refused_under(out, sub, "outside the allowed directories");
    refused_under("/etc/hostname", directory, "outside the allowed directories");
    refused_under(inside, inside, "outside the allowed directories");
    refused_under(inside, "/nonexistent", "outside the allowed directories");
}

struct flipper {
    char *link;
    char *temporary;
    bool stop;
};

static void *flip(void *opaque)
{
    struct flipper *flipper = opaque;

    for (unsigned i = 0; !__atomic_load_n(&flipper->stop, __ATOMIC_RELAXED); i++) {
        g_assert_cmpint(symlink(i % 2 ? "good" : "../secret", flipper->temporary), ==, 0);
        g_assert_cmpint(rename(flipper->temporary, flipper->link), ==, 0);
    }
    return NULL;
}

/* A name that changes all the time: what is opened is always what was checked. */
static void test_race(void)
{
    g_autofree char *store = in("race");
    g_autofree char *good = in("race/good");
    g_autofree char *secret = in("secret");
    struct flipper flipper = {.link = in("race/link"), .temporary = in("race/temporary")};
    const char *roots[] = {store, NULL};
    GThread *thread;
    unsigned opened = 0, refused = 0;

    g_assert_cmpint(g_mkdir_with_parents(store, 0700), ==, 0);
    g_assert_true(g_file_set_contents(good, "good", -1, NULL));
    g_assert_true(g_file_set_contents(secret, "evil", -1, NULL));
    g_assert_cmpint(symlink("good", flipper.link), ==, 0);
    thread = g_thread_new("flip", flip, &flipper);
    for (unsigned i = 0; i < 5000 || ((!opened || !refused) && i < 500000); i++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(storage_t) storage = storage_file_open(flipper.link, 0, roots, NULL, &error);
        char content[4];

        if (!storage) {
            refused++;
            continue;
        }
        opened++;
        assert_ok(storage_pread(storage, content, 4, 0, &error));
        g_assert_cmpmem(content, 4, "good", 4);
    }
    __atomic_store_n(&flipper.stop, true, __ATOMIC_RELAXED);
    g_thread_join(thread);
    g_test_message("%u opened, %u refused", opened, refused);
    g_assert_cmpuint(opened, >, 0);
    g_assert_cmpuint(refused, >, 0);
    g_free(flipper.link);
    g_free(flipper.temporary);
}

static void test_users(void)
{
    g_autofree char *path = in("used");
    g_autoptr(GPtrArray) users = NULL;
    g_autoptr(GPtrArray) nobody = NULL;
    g_autofree char *wanted = NULL;
    GPid pid;

    g_assert_true(g_file_set_contents(path, "x", -1, NULL));
    nobody = storage_file_users(path);
    g_assert_cmpuint(nobody->len, ==, 0);
    pid = fork();
    if (pid == 0) {
        int fd = open(path, O_RDONLY);

        dup2(fd, 0);
        execlp("sleep", "sleep", "60", NULL);
        _exit(1);
    }
    wanted = g_strdup_printf("%d (sleep)", pid);
    for (unsigned i = 0; i < 500 && (!users || users->len == 0 || strcmp(users->pdata[0], wanted) != 0);
         i++) {
        g_usleep(10000);
        g_clear_pointer(&users, g_ptr_array_unref);
        users = storage_file_users(path);
    }
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    g_assert_cmpuint(users->len, ==, 1);
    g_assert_cmpstr(users->pdata[0], ==, wanted);
}

/* A file system that is mounted nowhere and ends with its descriptor; `path` leads to it. -1: no right to. */
static int small_tmpfs(const char *path, const char *size)
{
    int context = fsopen("tmpfs", FSOPEN_CLOEXEC), fd;
    g_autofree char *self = NULL;

    if (context < 0)
        return -1;
    g_assert_cmpint(fsconfig(context, FSCONFIG_SET_STRING, "size", size, 0), ==, 0);
    g_assert_cmpint(fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0), ==, 0);
    fd = fsmount(context, FSMOUNT_CLOEXEC, 0);
    g_assert_cmpint(fd, >=, 0);
    close(context);
    self = g_strdup_printf("/proc/self/fd/%d", fd);
    g_assert_cmpint(symlink(self, path), ==, 0);
    return fd;
}

static void test_full(void)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *path = in("small");
    int fd = small_tmpfs(path, "1m");
    g_autoptr(storage_t) storage = NULL;
    g_autofree uint8_t *buffer = g_malloc0(2 * MIB);

    if (fd < 0) {
        harness_skip("no right to mount");
        return;
    }
    storage = fresh("small/disk", 0);
    assert_fails(storage_allocate(storage, 0, 2 * MIB, &error), BLOCKMIG_ERROR_NOSPACE,
                 "reserving 2097152 bytes");
    assert_fails(storage_pwrite(storage, buffer, 2 * MIB, 0, &error), BLOCKMIG_ERROR_NOSPACE,
                 "small/disk: writing");
    g_clear_pointer(&storage, storage_close);

    /* tmpfs, with or without O_DIRECT: holes and zeros work. */
    storage = fresh("small/disk", 0);
    fill(storage, 0, 64 * KIB, 'x');
    assert_ok(storage_zero(storage, 4 * KIB, 32 * KIB, true, &error));
    check_bytes(storage, 4 * KIB, 32 * KIB, 0);
    check_status(storage, 4 * KIB, 60 * KIB, false, 32 * KIB);
    g_clear_pointer(&storage, storage_close);
    close(fd);
}

/* EFBIG by way of a limit: an error that is neither space nor the medium's. */
static void test_limit(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(storage_t) storage = fresh("limit", 0);
    struct rlimit old, limit;

    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    limit = (struct rlimit){.rlim_cur = 4096, .rlim_max = old.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
    fill(storage, 0, 4000, 'x');
    assert_fails(storage_pwrite(storage, "0123456789", 10, 4096, &error), BLOCKMIG_ERROR_IO, "offset 4096");
    setrlimit(RLIMIT_FSIZE, &old);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*function)(void);
    } tests[] = {
        {"/file/content", test_content},
        {"/file/short-io", test_short_io},
        {"/file/flush-stays-failed", test_flush_stays_failed},
        {"/file/holes", test_holes},
        {"/file/zero-while-growing", test_zero_while_growing},
        {"/file/bare", test_bare},
        {"/file/allocate", test_allocate},
        {"/file/shrunk-behind-us", test_shrunk_behind_us},
        {"/file/direct", test_direct},
        {"/file/direct-refused", test_direct_refused},
        {"/file/create", test_create},
        {"/file/no-rights", test_no_rights},
        {"/file/types", test_types},
        {"/file/roots", test_roots},
        {"/file/race", test_race},
        {"/file/users", test_users},
        {"/file/limit", test_limit},
        {"/file/full", test_full},
    };
    int status;

    g_test_init(&argc, &argv, NULL);
    directory = harness_directory();
    for (size_t i = 0; i < G_N_ELEMENTS(tests); i++)
        g_test_add_func(tests[i].name, tests[i].function);
    status = g_test_run();
    harness_remove(directory);
    g_free(directory);
    return status;
}
