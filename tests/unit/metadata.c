/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Owner, mode, ACL and attributes: what arrives, what stays, and what is said about the rest. */
#include "blockmig/migrate/metadata.h"

#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <grp.h>
#include <linux/posix_acl_xattr.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#define ACL_ATTRIBUTE "system.posix_acl_access"
#define NOBODY        65534

struct fixture {
    char *directory, *source_path, *target_path;
    int source, target;
};

static void set_up(struct fixture *f, gconstpointer data)
{
    f->directory = g_dir_make_tmp("blockmig-metadata-XXXXXX", NULL);
    f->source_path = g_build_filename(f->directory, "source", NULL);
    f->target_path = g_build_filename(f->directory, "target", NULL);
    f->source = open(f->source_path, O_RDWR | O_CREAT, 0600);
    f->target = open(f->target_path, O_RDWR | O_CREAT, 0600);
    g_assert_cmpint(f->source, >=, 0);
    g_assert_cmpint(f->target, >=, 0);
}

static void tear_down(struct fixture *f, gconstpointer data)
{
    close(f->source);
    close(f->target);
    g_unlink(f->source_path);
    g_unlink(f->target_path);
    g_rmdir(f->directory);
    g_free(f->directory);
    g_free(f->source_path);
    g_free(f->target_path);
}

static bool needs(bool there, const char *what)
{
    if (!there)
        g_test_skip(what);
    return there;
}

/* user::rw- user:nobody:rw- group::r-- mask::rw- other::--- */
static void set_acl(int fd)
{
    struct {
        struct posix_acl_xattr_header header;
        struct posix_acl_xattr_entry entries[5];
    } acl = {
        {GUINT32_TO_LE(POSIX_ACL_XATTR_VERSION)},
        {
            {GUINT16_TO_LE(0x01), GUINT16_TO_LE(6), GUINT32_TO_LE(UINT32_MAX)},
            {GUINT16_TO_LE(0x02), GUINT16_TO_LE(6), GUINT32_TO_LE(NOBODY)},
            {GUINT16_TO_LE(0x04), GUINT16_TO_LE(4), GUINT32_TO_LE(UINT32_MAX)},
            {GUINT16_TO_LE(0x10), GUINT16_TO_LE(6), GUINT32_TO_LE(UINT32_MAX)},
            {GUINT16_TO_LE(0x20), GUINT16_TO_LE(0), GUINT32_TO_LE(UINT32_MAX)},
        },
    };
    g_assert_cmpint(fsetxattr(fd, ACL_ATTRIBUTE, &acl, sizeof acl, 0), ==, 0);
}

static void assert_same_attribute(struct fixture *f, const char *name)
{
    char a[512], b[512];
    ssize_t la = fgetxattr(f->source, name, a, sizeof a), lb = fgetxattr(f->target, name, b, sizeof b);
    g_assert_cmpint(la, >=, 0);
    g_assert_cmpint(lb, >=, 0);
    g_assert_cmpmem(a, (gsize)la, b, (gsize)lb);
}

static void assert_no_attribute(int fd, const char *name)
{
    g_assert_cmpint(fgetxattr(fd, name, NULL, 0), ==, -1);
    g_assert_cmpint(errno, ==, ENODATA);
}

static bool mentions(GPtrArray *lost, const char *text)
{
    for (guint i = 0; i < lost->len; i++)
        if (strstr(lost->pdata[i], text))
            return true;
    return false;
}

static void test_all_as_root(struct fixture *f, gconstpointer data)
{
    if (!needs(geteuid() == 0, "needs root"))
        return;
    g_assert_cmpint(fchown(f->source, 107, 108), ==, 0);
    g_assert_cmpint(fchmod(f->source, 06640), ==, 0);
    set_acl(f->source);
    g_assert_cmpint(fsetxattr(f->source, "user.backup", "\0id", 3, 0), ==, 0);
    g_assert_cmpint(fsetxattr(f->source, "user.empty", "", 0, 0), ==, 0);
    g_assert_cmpint(fsetxattr(f->source, "trusted.mine", "x", 1, 0), ==, 0);
    g_assert_cmpint(fsetxattr(f->source, "trusted.libvirt.security.dac", "+107", 4, 0), ==, 0);
    struct stat st, before;
    g_assert_cmpint(fstat(f->source, &st), ==, 0);
    const struct timespec old[2] = {{1000, 0}, {1000, 0}};
    g_assert_cmpint(futimens(f->source, old), ==, 0);
    g_assert_cmpint(fstat(f->target, &before), ==, 0);

    g_autoptr(GPtrArray) lost = metadata_carry(f->source, f->target);
    for (guint i = 0; i < lost->len; i++)
        g_test_message("%s", (char *)lost->pdata[i]);
    g_assert_cmpuint(lost->len, ==, 0);
    struct stat after;
    g_assert_cmpint(fstat(f->target, &after), ==, 0);
    g_assert_cmpuint(after.st_uid, ==, 107);
    g_assert_cmpuint(after.st_gid, ==, 108);
    g_assert_cmpuint(after.st_mode, ==, st.st_mode);
    g_assert_cmpint(after.st_mtime, ==, before.st_mtime);
    assert_same_attribute(f, ACL_ATTRIBUTE);
    assert_same_attribute(f, "user.backup");
    assert_same_attribute(f, "user.empty");
    assert_same_attribute(f, "trusted.mine");
    assert_no_attribute(f->target, "trusted.libvirt.security.dac");
}

/* An ACL that the target's directory gave it would let somebody in. */
static void test_inherited_acl_goes(struct fixture *f, gconstpointer data)
{
    g_assert_cmpint(fchmod(f->source, 0640), ==, 0);
    set_acl(f->target);
    g_autoptr(GPtrArray) lost = metadata_carry(f->source, f->target);
    g_assert_cmpuint(lost->len, ==, 0);
    assert_no_attribute(f->target, ACL_ATTRIBUTE);
    struct stat st;
    g_assert_cmpint(fstat(f->target, &st), ==, 0);
    g_assert_cmpuint(st.st_mode & 07777, ==, 0640);
}

/* In a child, because a process does not get its privileges back. */
static void unprivileged(struct fixture *f)
{
    if (setgroups(0, NULL) != 0 || setresgid(NOBODY, NOBODY, NOBODY) != 0 ||
        setresuid(NOBODY, NOBODY, NOBODY) != 0)
        _exit(2);
    g_autoptr(GPtrArray) lost = metadata_carry(f->source, f->target);
    g_assert_true(mentions(lost, "owner 107: "));
    g_assert_true(mentions(lost, "group 108: "));
    g_assert_true(mentions(lost, "set-id"));
    g_assert_cmpuint(lost->len, ==, 3);
    assert_same_attribute(f, "user.backup");
    assert_same_attribute(f, ACL_ATTRIBUTE);
    struct stat st;
    g_assert_cmpint(fstat(f->target, &st), ==, 0);
    g_assert_cmpuint(st.st_uid, ==, NOBODY);
    g_assert_cmpuint(st.st_mode & 07777, ==, 0660);
    _exit(0);
}

static void run_child(struct fixture *f, void (*child)(struct fixture *))
{
    pid_t pid = fork();
    if (pid == 0)
        child(f);
    int status = 0;
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    g_assert_cmpint(status, ==, 0);
}

static void test_unprivileged(struct fixture *f, gconstpointer data)
{
    if (!needs(geteuid() == 0, "needs root to become somebody else"))
        return;
    g_assert_cmpint(fchown(f->target, NOBODY, NOBODY), ==, 0);
    g_assert_cmpint(fchown(f->source, 107, 108), ==, 0);
    g_assert_cmpint(fchmod(f->source, 04660), ==, 0);
    set_acl(f->source);
    g_assert_cmpint(fchmod(f->source, 04660), ==, 0);
    g_assert_cmpint(fsetxattr(f->source, "user.backup", "id", 2, 0), ==, 0);
    run_child(f, unprivileged);
}

/* A member of the group can give the file to it, though not to the owner. */
static void member(struct fixture *f)
{
    const gid_t group = 108;
    if (setgroups(1, &group) != 0 || setresgid(NOBODY, NOBODY, NOBODY) != 0 ||
        setresuid(NOBODY, NOBODY, NOBODY) != 0)
        _exit(2);
    g_autoptr(GPtrArray) lost = metadata_carry(f->source, f->target);
    g_assert_true(mentions(lost, "owner 107: "));
    g_assert_cmpuint(lost->len, ==, 1);
    struct stat st;
    g_assert_cmpint(fstat(f->target, &st), ==, 0);
    g_assert_cmpuint(st.st_gid, ==, 108);
    _exit(0);
}

static void test_group_member(struct fixture *f, gconstpointer data)
{
    if (!needs(geteuid() == 0, "needs root to become somebody else"))
        return;
    g_assert_cmpint(fchown(f->target, NOBODY, NOBODY), ==, 0);
    g_assert_cmpint(fchown(f->source, 107, 108), ==, 0);
    run_child(f, member);
}

/* proc knows no attributes and keeps its modes: the job goes on, the list says what is missing. */
static void test_poor_file_system(struct fixture *f, gconstpointer data)
{
    g_assert_cmpint(fsetxattr(f->source, "user.backup", "id", 2, 0), ==, 0);
    int poor = open("/proc/self/oom_score_adj", O_RDWR);
    g_assert_cmpint(poor, >=, 0);
    g_autoptr(GPtrArray) lost = metadata_carry(f->source, poor);
    close(poor);
    g_assert_cmpuint(lost->len, ==, 2);
    g_assert_true(mentions(lost, "attribute user.backup: "));
    g_assert_true(mentions(lost, "mode 0600: "));
}

static void test_not_files(struct fixture *f, gconstpointer data)
{
    g_assert_cmpint(fchmod(f->target, 0600), ==, 0);
    int null = open("/dev/null", O_RDONLY);
    g_autoptr(GPtrArray) lost = metadata_carry(null, f->target);
    close(null);
    g_assert_cmpuint(lost->len, ==, 0);
    struct stat st;
    g_assert_cmpint(fstat(f->target, &st), ==, 0);
    g_assert_cmpuint(st.st_mode & 07777, ==, 0600);
    g_autoptr(GPtrArray) bad = metadata_carry(-1, f->target);
    g_assert_cmpuint(bad->len, ==, 1);
}

#define ADD(name, function) g_test_add("/metadata/" name, struct fixture, NULL, set_up, function, tear_down)

int main(int argc, char **argv)
{
    /* Not in /tmp, which may be a file system without user attributes. */
    g_setenv("TMPDIR", "/var/tmp", FALSE);
    g_test_init(&argc, &argv, NULL);
    ADD("all-as-root", test_all_as_root);
    ADD("inherited-acl-goes", test_inherited_acl_goes);
    ADD("unprivileged", test_unprivileged);
    ADD("group-member", test_group_member);
    ADD("poor-file-system", test_poor_file_system);
    ADD("not-files", test_not_files);
    return g_test_run();
}
