/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The order matters: a change of owner clears the set-id bits, an ACL rewrites the group bits of the mode,
 * and the mode is the mask of an ACL. So: owner, attributes, ACL, mode.
 */
#include "blockmig/migrate/metadata.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#define ACL_ATTRIBUTE "system.posix_acl_access"
/* XATTR_SIZE_MAX and XATTR_LIST_MAX of <linux/limits.h>: the kernel returns no more. */
#define ATTRIBUTE_MAX 65536

struct carry {
    int source, target;
    GPtrArray *lost;
    char value[ATTRIBUTE_MAX];
};

static void lose(struct carry *carry, int errnum, const char *format, ...) G_GNUC_PRINTF(3, 4);

static void lose(struct carry *carry, int errnum, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *what = g_strdup_vprintf(format, args);
    va_end(args);
    g_ptr_array_add(carry->lost, g_strdup_printf("%s: %s", what, g_strerror(errnum)));
}

/* Returns whether both arrived: set-id bits belong to an owner. */
static bool carry_owner(struct carry *carry, const struct stat *from, const struct stat *to)
{
    if (from->st_uid == to->st_uid && from->st_gid == to->st_gid)
        return true;
    if (fchown(carry->target, from->st_uid, from->st_gid) == 0)
        return true;
    /* A user who is not root may still give the file to a group of hers. */
    bool both = true;
    if (from->st_gid != to->st_gid && fchown(carry->target, (uid_t)-1, from->st_gid) != 0) {
        lose(carry, errno, "group %u", from->st_gid);
        both = false;
    }
    if (from->st_uid != to->st_uid && fchown(carry->target, from->st_uid, (gid_t)-1) != 0) {
        lose(carry, errno, "owner %u", from->st_uid);
        both = false;
    }
    return both;
}

/* What belongs to this host, this file system or this very content, not to the disk. */
static bool is_carried(const char *name)
{
    static const char *const left[] = {
        "system.", "security.selinux", "security.ima", "security.evm", "trusted.libvirt.", "trusted.overlay.",
        NULL};
    for (unsigned i = 0; left[i]; i++)
        if (g_str_has_prefix(name, left[i]))
            return false;
    return true;
}

bool metadata_needs_admin(const char *path)
{
    g_autofree char *names = g_malloc(ATTRIBUTE_MAX);
    ssize_t length = listxattr(path, names, ATTRIBUTE_MAX);
    for (const char *name = names; length > 0 && name < names + length; name += strlen(name) + 1)
        if (g_str_has_prefix(name, "trusted.") && is_carried(name))
            return true;
    return false;
}

static void carry_attribute(struct carry *carry, const char *name)
{
    ssize_t length = fgetxattr(carry->source, name, carry->value, sizeof carry->value);
    if (length < 0 && errno == ENODATA)
        return;
    if (length < 0 || fsetxattr(carry->target, name, carry->value, (size_t)length, 0) != 0)
        lose(carry, errno, "attribute %s", name);
}

static void carry_attributes(struct carry *carry)
{
    g_autofree char *names = g_malloc(ATTRIBUTE_MAX);
    ssize_t length = flistxattr(carry->source, names, ATTRIBUTE_MAX);
    if (length < 0 && errno != ENOTSUP)
        lose(carry, errno, "extended attributes");
    for (const char *name = names; length > 0 && name < names + length; name += strlen(name) + 1)
        if (is_carried(name))
            carry_attribute(carry, name);
}

/* A new file may have got an ACL from its directory that the source does not have: that one goes, because it
 * would let others in. */
static void carry_acl(struct carry *carry)
{
    ssize_t length = fgetxattr(carry->source, ACL_ATTRIBUTE, carry->value, sizeof carry->value);
    if (length >= 0) {
        if (fsetxattr(carry->target, ACL_ATTRIBUTE, carry->value, (size_t)length, 0) != 0)
            lose(carry, errno, "access control list");
        return;
    }
    if (errno != ENODATA && errno != ENOTSUP)
        lose(carry, errno, "access control list");
    else if (fremovexattr(carry->target, ACL_ATTRIBUTE) != 0 && errno != ENODATA && errno != ENOTSUP)
        lose(carry, errno, "access control list inherited by the target");
}

static void carry_mode(struct carry *carry, mode_t mode, bool owned)
{
    mode_t wanted = mode & (owned ? 07777 : 0777);
    if (fchmod(carry->target, wanted) != 0)
        lose(carry, errno, "mode %04o", mode & 07777);
    else if (wanted != (mode & 07777))
        g_ptr_array_add(carry->lost,
                        g_strdup_printf("mode %04o: set-id bits without their owner", mode & 07777));
}

GPtrArray *metadata_carry(int source, int target)
{
    g_autofree struct carry *carry = g_new0(struct carry, 1);
    carry->source = source;
    carry->target = target;
    carry->lost = g_ptr_array_new_with_free_func(g_free);
    struct stat from, to;
    if (fstat(source, &from) != 0 || fstat(target, &to) != 0) {
        lose(carry, errno, "owner, mode and attributes");
        return carry->lost;
    }
    if (!S_ISREG(from.st_mode) || !S_ISREG(to.st_mode))
        return carry->lost;
    bool owned = carry_owner(carry, &from, &to);
    carry_attributes(carry);
    carry_acl(carry);
    carry_mode(carry, from.st_mode, owned);
    return carry->lost;
}
