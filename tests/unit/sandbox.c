/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a process can still do in the sandbox.  Each case runs in a child, for there is no way back.
 *
 * This program is linked with --wrap=syscall, so that the kernel can be made to look older than it is, or to
 * have no Landlock, and so that what is asked of it is seen.
 */
#include "blockmig/storage/sandbox.h"

#include "blockmig/storage/file.h"
#include "tests/unit/harness.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static char *top; /* with in/file, out/file, and in/link to out/file */

/* What the kernel is made to answer. */
static struct {
    int version; /* negative: the true one */
    int errnum;  /* instead of a version */
    int ruleset; /* errno of making one */
    uint64_t asked[3];
} kernel = {.version = -1};

long __real_syscall(long number, long a, long b, long c, long d, long e, long f);
long __wrap_syscall(long number, long a, long b, long c, long d, long e, long f);

long __wrap_syscall(long number, long a, long b, long c, long d, long e, long f)
{
    bool probe = number == SYS_landlock_create_ruleset && c == LANDLOCK_CREATE_RULESET_VERSION;

    errno = probe ? kernel.errnum : number == SYS_landlock_create_ruleset ? kernel.ruleset : 0;
    if (errno)
        return -1;
    if (probe && kernel.version >= 0)
        return kernel.version;
    if (number == SYS_landlock_create_ruleset && !probe)
        memcpy(kernel.asked, (const void *)a, sizeof kernel.asked);
    return __real_syscall(number, a, b, c, d, e, f);
}

static char *in(const char *name)
{
    return g_build_filename(top, name, NULL);
}

static int true_version(void)
{
    return (int)__real_syscall(SYS_landlock_create_ruleset, 0, 0, LANDLOCK_CREATE_RULESET_VERSION, 0, 0, 0);
}

static bool has_landlock(void)
{
    if (true_version() > 0)
        return true;
    harness_skip("this kernel has no Landlock");
    return false;
}

static void in_child(void (*body)(void))
{
    int status;
    pid_t pid = fork();

    if (pid == 0) {
        body();
        _exit(0);
    }
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    g_assert_cmpint(status, ==, 0);
}

static void enter(unsigned rights)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(sandbox_t) sandbox = sandbox_new();
    g_autofree char *inside = in("in");

    sandbox_allow(sandbox, inside, rights);
    sandbox_allow(sandbox, "/proc", SANDBOX_READ);
    sandbox_allow(sandbox, "/nonexistent", rights);
    assert_ok(sandbox_enter(sandbox, &error));
}

static int open_errno(const char *name, int flags)
{
    g_autofree char *path = in(name);
    int fd = open(path, flags | O_CLOEXEC, 0600);

    if (fd < 0)
        return errno;
    close(fd);
    return 0;
}

static int rename_errno(const char *from, const char *to)
{
    g_autofree char *a = in(from), *b = in(to);

    return rename(a, b) < 0 ? errno : 0;
}

static int unlink_errno(const char *name)
{
    g_autofree char *path = in(name);

    return unlink(path) < 0 ? errno : 0;
}

static int mkdir_errno(const char *name)
{
    g_autofree char *path = in(name);

    return mkdir(path, 0700) < 0 ? errno : 0;
}

/* By an object that was found before, as resolve.c opens everything. */
static int reopen_errno(const char *name)
{
    g_autofree char *path = in(name);
    int object = open(path, O_PATH | O_CLOEXEC);
    g_autofree char *self = g_strdup_printf("/proc/self/fd/%d", object);
    int fd = open(self, O_RDONLY | O_CLOEXEC), errnum = fd < 0 ? errno : 0;

    g_assert_cmpint(object, >=, 0);
    close(object);
    if (fd >= 0)
        close(fd);
    return errnum;
}

static void reader(void)
{
    enter(SANDBOX_READ);
    g_assert_cmpint(open_errno("in/file", O_RDONLY), ==, 0);
    g_assert_cmpint(reopen_errno("in/file"), ==, 0);
    g_assert_cmpint(open_errno("in", O_RDONLY | O_DIRECTORY), ==, 0);
    g_assert_cmpint(open_errno("out/file", O_RDONLY), ==, EACCES);
    g_assert_cmpint(reopen_errno("out/file"), ==, EACCES);
    g_assert_cmpint(open_errno("in/../out/file", O_RDONLY), ==, EACCES);
    g_assert_cmpint(open_errno("in/link", O_RDONLY), ==, EACCES);
    g_assert_cmpint(reopen_errno("in/link"), ==, EACCES);
    g_assert_cmpint(open_errno("out", O_RDONLY | O_DIRECTORY), ==, EACCES);
    g_assert_cmpint(open_errno("../../../etc/passwd", O_RDONLY), ==, EACCES);

    g_assert_cmpint(open_errno("in/file", O_RDWR), ==, EACCES);
    g_assert_cmpint(open_errno("in/new", O_RDWR | O_CREAT | O_EXCL), ==, EACCES);
    g_assert_cmpint(mkdir_errno("in/new"), ==, EACCES);
    g_assert_cmpint(unlink_errno("in/file"), ==, EACCES);
    g_assert_cmpint(rename_errno("in/file", "in/new"), ==, EACCES);
}

static void writer(void)
{
    enter(SANDBOX_READ | SANDBOX_WRITE);
    g_assert_cmpint(open_errno("in/file", O_RDWR | O_TRUNC), ==, 0);
    g_assert_cmpint(open_errno("in/new", O_RDWR | O_CREAT | O_EXCL), ==, EACCES);
    g_assert_cmpint(unlink_errno("in/file"), ==, EACCES);
    g_assert_cmpint(open_errno("out/file", O_WRONLY), ==, EACCES);
}

static void maker(void)
{
    enter(SANDBOX_READ | SANDBOX_WRITE | SANDBOX_CREATE | SANDBOX_REMOVE);
    g_assert_cmpint(open_errno("in/new", O_RDWR | O_CREAT | O_EXCL), ==, 0);
    g_assert_cmpint(rename_errno("in/new", "in/newer"), ==, 0);
    g_assert_cmpint(mkdir_errno("in/directory"), ==, 0);
    g_assert_cmpint(rename_errno("in/newer", "out/newer"), !=, 0);
    g_assert_cmpint(unlink_errno("in/newer"), ==, 0);
    g_assert_cmpint(open_errno("out/new", O_RDWR | O_CREAT | O_EXCL), ==, EACCES);
    g_assert_cmpint(unlink_errno("out/file"), ==, EACCES);
}

static void test_files(void)
{
    if (!has_landlock())
        return;
    in_child(reader);
    in_child(writer);
    in_child(maker);
}

/* An image brings the directory along that it really lies in, not that of the link by which it was named. */
static void image(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(sandbox_t) sandbox = sandbox_new();
    g_autofree char *link = in("in/link");

    sandbox_allow_image(sandbox, link, SANDBOX_READ);
    assert_ok(sandbox_enter(sandbox, &error));
    g_assert_cmpint(open_errno("in/link", O_RDONLY), ==, 0);
    g_assert_cmpint(open_errno("out/other", O_RDONLY), ==, 0);
    g_assert_cmpint(open_errno("in/file", O_RDONLY), ==, EACCES);
}

static void test_image(void)
{
    if (has_landlock())
        in_child(image);
}

/* What older versions do not know, they let pass. */
static void others(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(1)};
    int tcp = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    enter(SANDBOX_READ | SANDBOX_WRITE);
    errno = 0;
    kill(getppid(), 0);
    g_assert_cmpint(errno, ==, true_version() >= 6 ? EPERM : 0);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    g_assert_cmpint(connect(tcp, (struct sockaddr *)&address, sizeof address), <, 0);
    g_assert_cmpint(errno, ==, true_version() >= 4 ? EACCES : ECONNREFUSED);
    g_assert_cmpint(execl("/bin/true", "true", NULL), <, 0);
    g_assert_cmpint(errno, ==, EACCES);
    g_assert_cmpint(mount("none", top, "tmpfs", 0, NULL), <, 0);
    g_assert_cmpint(errno, ==, EPERM);
    close(tcp);
}

static void client(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(1)};
    int tcp = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    g_autoptr(GError) error = NULL;
    g_autoptr(sandbox_t) sandbox = sandbox_new();

    sandbox_allow_network(sandbox);
    assert_ok(sandbox_enter(sandbox, &error));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    g_assert_cmpint(connect(tcp, (struct sockaddr *)&address, sizeof address), <, 0);
    g_assert_cmpint(errno, ==, ECONNREFUSED);
    g_assert_cmpint(open_errno("in/file", O_RDONLY), ==, EACCES);
    close(tcp);
}

static void test_others(void)
{
    if (has_landlock())
        in_child(others);
    if (has_landlock())
        in_child(client);
}

static uint64_t status_field(const char *key)
{
    g_autofree char *text = NULL;
    const char *line;

    g_assert_true(g_file_get_contents("/proc/self/status", &text, NULL, NULL));
    line = strstr(text, key);
    g_assert_nonnull(line);
    return g_ascii_strtoull(line + strlen(key), NULL, 16);
}

static void check_capabilities(unsigned rights, uint64_t root_keeps)
{
    uint64_t before = status_field("CapPrm:\t");

    enter(rights);
    g_assert_cmphex(status_field("CapPrm:\t"), ==, before & root_keeps);
    g_assert_cmphex(status_field("CapEff:\t"), ==, before & root_keeps);
    g_assert_cmphex(status_field("CapInh:\t"), ==, 0);
    g_assert_cmphex(status_field("NoNewPrivs:\t"), ==, 1);
}

#define BIT(capability) (UINT64_C(1) << (capability))
#define TO_READ         (BIT(CAP_DAC_READ_SEARCH) | BIT(CAP_IPC_LOCK))
#define TO_WRITE                                                                                             \
    (TO_READ | BIT(CAP_DAC_OVERRIDE) | BIT(CAP_CHOWN) | BIT(CAP_FOWNER) | BIT(CAP_FSETID) |                  \
     BIT(CAP_SYS_RESOURCE))

static void read_capabilities(void)
{
    check_capabilities(SANDBOX_READ, TO_READ);
}

static void write_capabilities(void)
{
    check_capabilities(SANDBOX_READ | SANDBOX_WRITE, TO_WRITE);
}

static void test_capabilities(void)
{
    in_child(read_capabilities);
    in_child(write_capabilities);
}

static void *open_outside(void *opaque)
{
    return GINT_TO_POINTER(open_errno("out/file", O_RDONLY));
}

static void later_thread(void)
{
    enter(SANDBOX_READ);
    g_assert_cmpint(GPOINTER_TO_INT(g_thread_join(g_thread_new("later", open_outside, NULL))), ==, EACCES);
}

static void *wait_for_lock(void *opaque)
{
    g_mutex_lock(opaque);
    g_mutex_unlock(opaque);
    return NULL;
}

static void earlier_thread(void)
{
    static GMutex mutex;
    g_autoptr(GError) error = NULL;
    g_autoptr(sandbox_t) sandbox = sandbox_new();

    g_mutex_lock(&mutex);
    GThread *thread = g_thread_new("earlier", wait_for_lock, &mutex);
    assert_fails(sandbox_enter(sandbox, &error), BLOCKMIG_ERROR_REFUSED, "other threads");
    g_assert_cmpstr(sandbox_name(), ==, "none");
    g_mutex_unlock(&mutex);
    g_thread_join(thread);
    assert_ok(sandbox_enter(sandbox, &error));
}

static void test_threads(void)
{
    if (has_landlock())
        in_child(later_thread);
    in_child(earlier_thread);
}

/* Rights by the version of the interface that they came with. */
static void any_version(void)
{
    static const uint64_t files[] = {0, 0x1fff, 0x3fff, 0x7fff, 0x7fff, 0xffff, 0xffff};
    int version = MIN(kernel.version, 6);
    g_autofree char *name = g_strdup_printf(version ? "landlock-%d" : "none", kernel.version);

    g_assert_cmpstr(sandbox_name(), ==, "none");
    enter(SANDBOX_READ);
    g_assert_cmpstr(sandbox_name(), ==, name);
    g_assert_cmphex(kernel.asked[0], ==, files[version]);
    g_assert_cmphex(kernel.asked[1], ==, version >= 4 ? 3 : 0);
    g_assert_cmphex(kernel.asked[2], ==, version >= 6 ? 3 : 0);
    g_assert_cmpint(open_errno("in/file", O_RDONLY), ==, 0);
    g_assert_cmpint(open_errno("out/file", O_RDONLY), ==, version ? EACCES : 0);
}

static void test_versions(void)
{
    for (kernel.version = 0; kernel.version <= MAX(true_version(), 0); kernel.version++)
        in_child(any_version);
    kernel.version = -1;
}

static void without(void)
{
    enter(SANDBOX_READ);
    g_assert_cmpstr(sandbox_name(), ==, "none");
    g_assert_cmpint(open_errno("out/file", O_RDONLY), ==, 0);
    g_assert_cmphex(status_field("CapEff:\t") & ~TO_READ, ==, 0);
    g_assert_cmphex(status_field("NoNewPrivs:\t"), ==, 1);
}

/* No such call, switched off at boot, filtered away by a container. */
static void test_without(void)
{
    static const int reasons[] = {ENOSYS, EOPNOTSUPP, EPERM};

    for (size_t i = 0; i < G_N_ELEMENTS(reasons); i++) {
        kernel.errnum = reasons[i];
        in_child(without);
    }
    kernel.errnum = 0;
}

static void broken(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(sandbox_t) sandbox = sandbox_new();

    assert_fails(sandbox_enter(sandbox, &error), BLOCKMIG_ERROR_REFUSED, "Landlock ruleset: Cannot allocate");
    g_assert_cmpstr(sandbox_name(), ==, "none");
}

/* A kernel that could confine us and does not is no reason to go on without. */
static void test_broken(void)
{
    if (!has_landlock())
        return;
    kernel.ruleset = ENOMEM;
    in_child(broken);
    kernel.ruleset = 0;
}

static pid_t user;

static void remembers(void)
{
    g_autofree char *path = in("in/file"), *nobody = in("in/link");
    g_autofree char *wanted = g_strdup_printf("%d (", user);

    enter(SANDBOX_READ);
    g_autoptr(GPtrArray) users = storage_file_users(path), none = storage_file_users(nobody);
    g_assert_cmpuint(users->len, ==, 1);
    g_assert_true(g_str_has_prefix(users->pdata[0], wanted));
    g_assert_cmpuint(none->len, ==, 0);
}

static void test_users(void)
{
    int ready[2];
    char byte;

    g_assert_cmpint(pipe(ready), ==, 0);
    user = fork();
    if (user == 0) {
        g_autofree char *path = in("in/file");

        int fd = open(path, O_RDONLY);

        if (fd >= 0 && write(ready[1], "", 1) == 1)
            pause();
        _exit(1);
    }
    g_assert_cmpint(read(ready[0], &byte, 1), ==, 1);
    close(ready[0]);
    close(ready[1]);
    in_child(remembers);
    kill(user, SIGKILL);
    waitpid(user, NULL, 0);
}

static void make_file(const char *name)
{
    g_autofree char *path = in(name);
    g_autofree char *directory = g_path_get_dirname(path);

    g_assert_cmpint(g_mkdir_with_parents(directory, 0700), ==, 0);
    g_assert_true(g_file_set_contents(path, "x", -1, NULL));
}

int main(int argc, char **argv)
{
    int status;

    g_test_init(&argc, &argv, NULL);
    top = harness_directory();
    make_file("in/file");
    make_file("out/file");
    make_file("out/other");
    g_autofree char *link = in("in/link");
    g_assert_cmpint(symlink("../out/file", link), ==, 0);
    g_test_add_func("/sandbox/files", test_files);
    g_test_add_func("/sandbox/image", test_image);
    g_test_add_func("/sandbox/others", test_others);
    g_test_add_func("/sandbox/capabilities", test_capabilities);
    g_test_add_func("/sandbox/threads", test_threads);
    g_test_add_func("/sandbox/versions", test_versions);
    g_test_add_func("/sandbox/without", test_without);
    g_test_add_func("/sandbox/broken", test_broken);
    g_test_add_func("/sandbox/users", test_users);
    status = g_test_run();
    harness_remove(top);
    g_free(top);
    return status;
}
