/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Room: file systems, quotas, limits of one file.
 *
 * The kernel's answer about quotas is given by this program (it is linked with --wrap=syscall), so that every
 * answer can be tried on a kernel without them; the file systems are real.
 */
#include "blockmig/migrate/space.h"

#include "formats/error.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <stdarg.h>
#include <string.h>
#include <sys/quota.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define KIB UINT64_C(1024)
#define GIB (KIB * KIB * KIB)

/* What quotactl_fd() answers by type; errnum 0: the limits. */
static struct {
    int errnum;
    struct dqblk limits;
    int64_t asked_id;
} quotas[3];

long __wrap_syscall(long number, ...);

/* Not every caller gives six arguments; nothing is done with what is not there. */
__attribute__((no_sanitize_address)) long __wrap_syscall(long number, ...)
{
    va_list args;
    va_start(args, number);
    g_assert_cmpint(number, ==, SYS_quotactl_fd); /* nobody else here asks the kernel this way */
    g_assert_cmpint(va_arg(args, int), >=, 0);
    unsigned command = va_arg(args, unsigned);
    int64_t id = va_arg(args, unsigned);
    void *answer = va_arg(args, void *);
    va_end(args);
    g_assert_cmpuint(command >> 8, ==, Q_GETQUOTA & 0xffffff);
    unsigned type = command & 0xff;
    quotas[type].asked_id = id;
    errno = quotas[type].errnum;
    if (errno)
        return -1;
    memcpy(answer, &quotas[type].limits, sizeof quotas[type].limits);
    return 0;
}

static void no_quotas(void)
{
    memset(quotas, 0, sizeof quotas);
    for (unsigned i = 0; i < 3; i++) {
        quotas[i].errnum = i == 0 ? ENOSYS : i == 1 ? ESRCH : EPERM;
        quotas[i].asked_id = -1;
    }
}

/* Runs as somebody who can have a quota. */
static bool become(uid_t uid, gid_t gid)
{
    if (geteuid() != 0 && uid != 0) {
        g_test_skip("needs root to become somebody else");
        return false;
    }
    return uid ? setegid(gid) == 0 && seteuid(uid) == 0 : seteuid(0) == 0 && setegid(0) == 0;
}

static void assert_refused(const char *path, uint64_t bytes, unsigned inodes, const char *part)
{
    g_autoptr(GError) error = NULL;
    struct space_report report;
    g_assert_false(space_check(path, bytes, inodes, &report, &error));
    g_assert_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED);
    g_test_message("%s", error->message);
    g_assert_nonnull(strstr(error->message, part));
}

static void test_file_system(void)
{
    g_autoptr(GError) error = NULL;
    struct space_report report;
    struct statvfs fs;
    no_quotas();
    g_assert_cmpint(statvfs("/var/tmp", &fs), ==, 0);
    g_assert_true(space_check("/var/tmp", 1, 1, &report, &error));
    g_assert_cmpstr(report.limit, ==, "file system");
    g_assert_cmpuint(report.total, ==, fs.f_blocks * fs.f_frsize);
    g_assert_cmpuint(report.available, <=, report.total);
    g_assert_true(space_check("/var/tmp/a-file-to-be", 1, 1, &report, &error));
    g_assert_no_error(error);
    assert_refused("/var/tmp", UINT64_MAX, 0, "needed");
    assert_refused("/var/tmp", UINT64_C(1) << 60, 0, "1 EiB (1152921504606846976 bytes) needed");
    assert_refused("/var/tmp/nowhere/x", 1, 0, "No such file");
    assert_refused("/etc/passwd/x", 1, 0, "Not a directory");
}

static void test_user_quota(void)
{
    g_autoptr(GError) error = NULL;
    struct space_report report;
    no_quotas();
    quotas[USRQUOTA].errnum = 0;
    quotas[USRQUOTA].limits = (struct dqblk){
        .dqb_bhardlimit = 2048, .dqb_curspace = 1024 * KIB + 1, .dqb_ihardlimit = 10, .dqb_curinodes = 8};
    if (!become(65534, 65534))
        return;
    g_assert_true(space_check("/var/tmp", KIB, 2, &report, &error));
    g_assert_no_error(error);
    g_assert_cmpint(quotas[USRQUOTA].asked_id, ==, 65534);
    g_assert_cmpint(quotas[GRPQUOTA].asked_id, ==, 65534);
    g_assert_cmpstr(report.limit, ==, "user quota");
    g_assert_cmpuint(report.available, ==, 1024 * KIB - 1);
    g_assert_cmpuint(report.available_inodes, ==, 2);
    assert_refused("/var/tmp", 1024 * KIB, 0, "user quota allows 1 MiB (1048575 bytes)");
    assert_refused("/var/tmp", 0, 3, "3 inodes needed, 2 available");

    /* More than the limit is used: nothing is left, and nothing wraps. */
    quotas[USRQUOTA].limits.dqb_curspace = 4096 * KIB;
    assert_refused("/var/tmp", 1, 0, "0 bytes");
    /* Limits of 0 are none. */
    quotas[USRQUOTA].limits = (struct dqblk){.dqb_curspace = 1};
    g_assert_true(space_check("/var/tmp", KIB, 2, &report, &error));
    g_assert_cmpstr(report.limit, ==, "file system");
    /* A soft limit may be passed until the days of grace are over. */
    quotas[USRQUOTA].limits = (struct dqblk){.dqb_bsoftlimit = 1, .dqb_curspace = 2 * KIB};
    quotas[USRQUOTA].limits.dqb_btime = (uint64_t)time(NULL) + 1000;
    g_assert_true(space_check("/var/tmp", KIB, 0, &report, &error));
    quotas[USRQUOTA].limits.dqb_btime = (uint64_t)time(NULL) - 1;
    assert_refused("/var/tmp", 1, 0, "user quota");
    g_assert_true(become(0, 0));

    /* Root has none; what stands at id 0 are the defaults for others. */
    g_assert_true(space_check("/var/tmp", KIB, 0, &report, &error));
    g_assert_no_error(error);
}

static void test_group_quota(void)
{
    g_autoptr(GError) error = NULL;
    struct space_report report;
    g_autofree char *directory = g_dir_make_tmp("blockmig-space-XXXXXX", NULL);
    no_quotas();
    quotas[GRPQUOTA].errnum = 0;
    quotas[GRPQUOTA].limits = (struct dqblk){.dqb_bhardlimit = 4, .dqb_curspace = 0};
    if (geteuid() == 0) {
        /* In a set-gid directory, a new file belongs to the group of the directory. */
        g_assert_cmpint(chown(directory, 0, 777), ==, 0);
        g_assert_cmpint(chmod(directory, 02755), ==, 0);
        g_assert_true(space_check(directory, 4096, 0, &report, &error));
        g_assert_cmpint(quotas[GRPQUOTA].asked_id, ==, 777);
        g_assert_cmpstr(report.limit, ==, "group quota");
        assert_refused(directory, 4097, 0, "group quota");
    } else {
        g_test_skip("needs root to give a directory away");
    }
    g_rmdir(directory);
}

static void assert_size_refused(const char *directory, uint64_t size, const char *part)
{
    g_autoptr(GError) error = NULL;
    g_assert_false(space_check_file_size(directory, size, &error));
    g_assert_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED);
    g_test_message("%s", error->message);
    g_assert_nonnull(strstr(error->message, part));
}

static void test_file_size(void)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *directory = g_dir_make_tmp("blockmig-space-XXXXXX", NULL);
    g_autofree char *inside = g_build_filename(directory, "disk.raw", NULL);
    g_assert_true(space_check_file_size(directory, UINT64_C(1) << 40, &error));
    g_assert_true(space_check_file_size(inside, 0, &error));
    g_assert_no_error(error);
    assert_size_refused(directory, UINT64_MAX, "at most");
    assert_size_refused("/var/tmp/nowhere/x", 1, "No such file");

    struct rlimit old, small;
    g_assert_cmpint(getrlimit(RLIMIT_FSIZE, &old), ==, 0);
    small = (struct rlimit){4096, old.rlim_max};
    g_assert_cmpint(setrlimit(RLIMIT_FSIZE, &small), ==, 0);
    assert_size_refused(directory, 4097, "ulimit");
    g_assert_true(space_check_file_size(directory, 4096, &error));
    g_assert_cmpint(setrlimit(RLIMIT_FSIZE, &old), ==, 0);

    g_assert_cmpint(chmod(directory, 0555), ==, 0);
    if (geteuid() == 0)
        g_assert_true(become(65534, 65534));
    assert_size_refused(directory, 1, "Permission denied");
    if (getuid() == 0)
        g_assert_true(become(0, 0));
    g_assert_cmpint(g_rmdir(directory), ==, 0); /* nothing is left in it */
}

int main(int argc, char **argv)
{
    g_setenv("TMPDIR", "/var/tmp", FALSE);
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/space/file-system", test_file_system);
    g_test_add_func("/space/user-quota", test_user_quota);
    g_test_add_func("/space/group-quota", test_group_quota);
    g_test_add_func("/space/file-size", test_file_size);
    return g_test_run();
}
