/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Image locks, against the programs whose locks they are. */
#include "blockmig/storage/file.h"
#include "tests/unit/harness.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/syscall.h>

static char *directory;
static char *disk;
static bool no_locks; /* what a file system without locks answers */

/* In place of the C library's: this program decides whether locks exist. */
int fcntl(int fd, int command, ...)
{
    va_list args;
    void *argument;

    va_start(args, command);
    argument = va_arg(args, void *);
    va_end(args);
    if (no_locks && (command == F_OFD_SETLK || command == F_OFD_GETLK)) {
        errno = ENOLCK;
        return -1;
    }
    return syscall(SYS_fcntl, fd, command, argument);
}

static bool have(const char *tool)
{
    g_autofree char *path = g_find_program_in_path(tool);

    return path != NULL;
}

static bool qemu_io(bool read_only, bool force_share, const char *command, const char *said)
{
    const char *argv[10] = {"qemu-io"};
    g_autofree char *output = NULL;
    unsigned n = 1;
    int status;

    if (read_only)
        argv[n++] = "-r";
    if (force_share)
        argv[n++] = "-U";
    argv[n++] = "-f";
    argv[n++] = "raw";
    argv[n++] = "-c";
    argv[n++] = command;
    argv[n++] = disk;
    status = harness_run(&output, argv);
    if (said && !strstr(output, said))
        g_error("qemu-io said \"%s\", not \"%s\"", output, said);
    return status == 0;
}

static void test_between_ourselves(void)
{
    g_autoptr(GError) error = NULL;
    struct storage *a = storage_file_open(disk, 0, NULL, NULL, &error);
    struct storage *b;

    g_assert_no_error(error);
    g_assert_true(storage_file_lockable(a));
    b = storage_file_open(disk, 0, NULL, NULL, &error);
    g_assert_no_error(error);
    storage_close(b);
    assert_fails(storage_file_open(disk, FILE_WRITE, NULL, NULL, &error), BLOCKMIG_ERROR_REFUSED,
                 "blockmig move");
    storage_close(a);
    a = storage_file_open(disk, FILE_WRITE, NULL, NULL, &error);
    g_assert_no_error(error);
    assert_fails(storage_file_open(disk, 0, NULL, NULL, &error), BLOCKMIG_ERROR_REFUSED,
                 "Failed to get \"consistent read\" lock");
    b = storage_file_open(disk, FILE_NO_LOCK, NULL, NULL, &error);
    g_assert_no_error(error);
    /* Closing another descriptor of the same file must not lose the locks of the first. */
    storage_close(b);
    assert_fails(storage_file_open(disk, FILE_WRITE, NULL, NULL, &error), BLOCKMIG_ERROR_REFUSED, disk);
    storage_close(a);
}

static void test_we_read(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(storage_t) storage = NULL;

    if (!have("qemu-io")) {
        harness_skip("no qemu-io");
        return;
    }
    storage = storage_file_open(disk, 0, NULL, NULL, &error);
    g_assert_no_error(error);
    g_assert_true(qemu_io(true, false, "read 0 512", NULL));
    g_assert_false(qemu_io(false, false, "write 0 512", "Failed to get \"write\" lock"));
}

static void test_we_write(void)
{
    g_autoptr(GError) error = NULL;
    struct storage *storage;

    if (!have("qemu-io")) {
        harness_skip("no qemu-io");
        return;
    }
    storage = storage_file_open(disk, FILE_WRITE, NULL, NULL, &error);
    g_assert_no_error(error);
    g_assert_false(qemu_io(true, false, "read 0 512", "Failed to get"));
    g_assert_false(qemu_io(false, false, "write 0 512", "Failed to get"));
    storage_close(storage);
    g_assert_true(qemu_io(false, false, "write 0 512", NULL));
}

/* -daemonize returns when the machine exists, with its disk open and locked. */
static GPid start_machine(const char *path, const char *options)
{
    g_autofree char *pidfile = g_build_filename(directory, "pid", NULL);
    g_autofree char *drive = g_strdup_printf("file=%s,if=none,id=d,%s", path, options);
    g_autofree char *text = NULL;
    g_autofree char *output = NULL;
    const char *argv[] = {"qemu-system-x86_64",
                          "-accel",
                          "tcg",
                          "-m",
                          "32",
                          "-S",
                          "-display",
                          "none",
                          "-nodefaults",
                          "-drive",
                          drive,
                          "-device",
                          "virtio-blk-pci,drive=d",
                          "-daemonize",
                          "-pidfile",
                          pidfile,
                          NULL};

    if (harness_run(&output, argv) != 0)
        g_error("qemu-system-x86_64 failed: %s", output);
    g_assert_true(g_file_get_contents(pidfile, &text, NULL, NULL));
    return atoi(text);
}

static void stop_machine(GPid pid)
{
    kill(pid, SIGKILL);
    while (kill(pid, 0) == 0)
        g_usleep(2000);
}

static void test_machine_writes(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) users = NULL;
    g_autoptr(storage_t) storage = NULL;
    GPid pid;

    if (!have("qemu-system-x86_64")) {
        harness_skip("no qemu-system-x86_64");
        return;
    }
    pid = start_machine(disk, "format=raw");
    assert_fails(storage_file_open(disk, 0, NULL, NULL, &error), BLOCKMIG_ERROR_REFUSED,
                 "Failed to get shared \"write\" lock");
    assert_fails(storage_file_open(disk, 0, NULL, NULL, &error), BLOCKMIG_ERROR_REFUSED, "qemu-system");
    assert_fails(storage_file_open(disk, FILE_WRITE, NULL, NULL, &error), BLOCKMIG_ERROR_REFUSED, "lock");
    storage = storage_file_open(disk, FILE_NO_LOCK, NULL, NULL, &error);
    g_assert_no_error(error);
    g_clear_pointer(&storage, storage_close);
    users = storage_file_users(disk);
    g_assert_cmpuint(users->len, ==, 1);
    g_assert_nonnull(strstr(g_ptr_array_index(users, 0), "(qemu-system"));
    stop_machine(pid);
    storage = storage_file_open(disk, FILE_WRITE, NULL, NULL, &error);
    g_assert_no_error(error);
}

static void test_machine_reads(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(storage_t) storage = NULL;
    GPid pid;

    if (!have("qemu-system-x86_64")) {
        harness_skip("no qemu-system-x86_64");
        return;
    }
    pid = start_machine(disk, "format=raw,readonly=on");
    storage = storage_file_open(disk, 0, NULL, NULL, &error);
    g_assert_no_error(error);
    assert_fails(storage_file_open(disk, FILE_WRITE, NULL, NULL, &error), BLOCKMIG_ERROR_REFUSED,
                 "Failed to get");
    stop_machine(pid);
}

/* The base below a running machine's overlay is only read by it: it may be read, and not written to. */
static void test_base_of_machine(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(storage_t) storage = NULL;
    g_autofree char *overlay = g_build_filename(directory, "overlay.qcow2", NULL);
    const char *argv[] = {"qemu-img", "create", "-f", "qcow2", "-b", disk, "-F", "raw", overlay, NULL};
    GPid pid;

    if (!have("qemu-system-x86_64") || harness_run(NULL, argv) != 0) {
        harness_skip("no qemu-system-x86_64 or qemu-img");
        return;
    }
    pid = start_machine(overlay, "format=qcow2");
    storage = storage_file_open(disk, 0, NULL, NULL, &error);
    g_assert_no_error(error);
    assert_fails(storage_file_open(disk, FILE_WRITE, NULL, NULL, &error), BLOCKMIG_ERROR_REFUSED, "lock");
    assert_fails(storage_file_open(overlay, 0, NULL, NULL, &error), BLOCKMIG_ERROR_REFUSED,
                 "Failed to get shared \"write\" lock");
    stop_machine(pid);
}

static void test_machine_is_refused(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(storage_t) storage = storage_file_open(disk, 0, NULL, NULL, &error);
    g_autofree char *drive = g_strdup_printf("file=%s,format=raw,if=none,id=d", disk);
    g_autofree char *output = NULL;
    const char *argv[] = {"qemu-system-x86_64",
                          "-accel",
                          "tcg",
                          "-m",
                          "32",
                          "-S",
                          "-display",
                          "none",
                          "-nodefaults",
                          "-drive",
                          drive,
                          "-device",
                          "virtio-blk-pci,drive=d",
                          NULL};

    g_assert_no_error(error);
    if (!have("qemu-system-x86_64")) {
        harness_skip("no qemu-system-x86_64");
        return;
    }
    g_assert_cmpint(harness_run(&output, argv), !=, 0);
    g_assert_nonnull(strstr(output, "Failed to get \"write\" lock"));
}

/* The locks are really at the bytes that QEMU knows, one by one. */
static void test_bytes(void)
{
    static const struct {
        unsigned flags;
        const char *held;
    } cases[] = {{0, "100 201 203"}, {FILE_WRITE, "100 101 103 200 201 202 203"}};

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(storage_t) storage = storage_file_open(disk, cases[i].flags, NULL, NULL, &error);
        g_autoptr(GString) held = g_string_new(NULL);
        int fd = open(disk, O_RDWR);

        g_assert_no_error(error);
        for (int byte = 0; byte < 512; byte++) {
            struct flock lock = {.l_type = F_WRLCK, .l_start = byte, .l_len = 1};

            g_assert_cmpint(fcntl(fd, F_OFD_GETLK, &lock), ==, 0);
            if (lock.l_type != F_UNLCK)
                g_string_append_printf(held, "%s%d", held->len ? " " : "", byte);
        }
        close(fd);
        g_assert_cmpstr(held->str, ==, cases[i].held);
    }
}

static void test_no_locks(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(storage_t) storage = NULL;

    no_locks = true;
    storage = storage_file_open(disk, FILE_WRITE, NULL, NULL, &error);
    no_locks = false;
    g_assert_no_error(error);
    g_assert_false(storage_file_lockable(storage));
}

int main(int argc, char **argv)
{
    int status, fd;

    g_test_init(&argc, &argv, NULL);
    directory = harness_directory();
    disk = g_build_filename(directory, "disk.raw", NULL);
    fd = open(disk, O_RDWR | O_CREAT, 0600);
    g_assert_cmpint(ftruncate(fd, 1 << 20), ==, 0);
    close(fd);
    g_test_add_func("/lock/between-ourselves", test_between_ourselves);
    g_test_add_func("/lock/bytes", test_bytes);
    g_test_add_func("/lock/we-read", test_we_read);
    g_test_add_func("/lock/we-write", test_we_write);
    g_test_add_func("/lock/machine-writes", test_machine_writes);
    g_test_add_func("/lock/machine-reads", test_machine_reads);
    g_test_add_func("/lock/base-of-machine", test_base_of_machine);
    g_test_add_func("/lock/machine-is-refused", test_machine_is_refused);
    g_test_add_func("/lock/no-locks", test_no_locks);
    status = g_test_run();
    harness_remove(directory);
    return status;
}
