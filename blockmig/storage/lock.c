/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One byte per permission, as QEMU's file driver has it: whoever holds permission i has a shared lock on
 * byte 100+i, whoever does not let others have it has a shared lock on byte 200+i.  First the own locks
 * are taken, then the other side's bytes are tested: of two that come at once at least one sees the other.
 * The locks are those of the open file description (OFD): closing another descriptor of the same file
 * does not lose them, and a child that inherits the descriptor keeps them.
 */
#include "blockmig/storage/lock.h"

#include "formats/error.h"

#include <errno.h>
#include <fcntl.h>

#define LOCK_HELD_BASE     100
#define LOCK_UNSHARED_BASE 200

enum permission { CONSISTENT_READ, WRITE, WRITE_UNCHANGED, RESIZE, PERMISSIONS };

static const char *const permission_names[PERMISSIONS] = {
    [CONSISTENT_READ] = "consistent read",
    [WRITE] = "write",
    [WRITE_UNCHANGED] = "write unchanged",
    [RESIZE] = "resize",
};

#define BIT(i) (1u << (i))

struct permissions {
    unsigned held, unshared; /* of BIT(enum permission) */
};

static const struct permissions reader = {
    .held = BIT(CONSISTENT_READ),
    .unshared = BIT(WRITE) | BIT(RESIZE),
};
static const struct permissions writer = {
    .held = BIT(CONSISTENT_READ) | BIT(WRITE) | BIT(RESIZE),
    .unshared = BIT(CONSISTENT_READ) | BIT(WRITE) | BIT(WRITE_UNCHANGED) | BIT(RESIZE),
};

static int lock_call(int fd, int command, struct flock *lock)
{
    int rc;

    do
        rc = fcntl(fd, command, lock);
    while (rc < 0 && errno == EINTR);
    return rc < 0 ? errno : 0;
}

static int byte_lock(int fd, off_t byte)
{
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};

    return lock_call(fd, F_OFD_SETLK, &lock);
}

/* Would an exclusive lock be granted?  *free is false if someone else holds one of any kind. */
static int byte_test(int fd, off_t byte, bool *free)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    int rc = lock_call(fd, F_OFD_GETLK, &lock);

    *free = rc == 0 && lock.l_type == F_UNLCK;
    return rc;
}

static bool unsupported(int errnum)
{
    return errnum == EINVAL || errnum == ENOLCK || errnum == ENOSYS || errnum == EOPNOTSUPP;
}

static bool conflict(const char *shared, unsigned permission, GError **error)
{
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED,
                "Failed to get %s\"%s\" lock: is another process using the image? (the disk of a running "
                "machine is moved with \"blockmig move\")",
                shared, permission_names[permission]);
    return false;
}

static bool take_all(int fd, unsigned bits, off_t base, const char *shared, bool *supported, GError **error)
{
    for (unsigned i = 0; i < PERMISSIONS && *supported; i++) {
        int errnum = bits & BIT(i) ? byte_lock(fd, base + i) : 0;

        if (errnum == EAGAIN || errnum == EACCES)
            return conflict(shared, i, error);
        if (unsupported(errnum))
            *supported = false;
        else if (errnum)
            return blockmig_set_errno(error, errnum, "locking byte %d", (int)base + (int)i);
    }
    return true;
}

static bool test_all(int fd, unsigned bits, off_t base, const char *shared, GError **error)
{
    for (unsigned i = 0; i < PERMISSIONS; i++) {
        bool free = true;
        int errnum = bits & BIT(i) ? byte_test(fd, base + i, &free) : 0;

        if (errnum)
            return blockmig_set_errno(error, errnum, "testing the lock on byte %d", (int)base + (int)i);
        if (!free)
            return conflict(shared, i, error);
    }
    return true;
}

bool image_lock(int fd, bool writing, bool *supported, GError **error)
{
    const struct permissions *want = writing ? &writer : &reader;

    *supported = true;
    if (!take_all(fd, want->held, LOCK_HELD_BASE, "", supported, error) ||
        !take_all(fd, want->unshared, LOCK_UNSHARED_BASE, "shared ", supported, error))
        return false;
    if (!*supported)
        return true;
    return test_all(fd, want->held, LOCK_UNSHARED_BASE, "", error) &&
           test_all(fd, want->unshared, LOCK_HELD_BASE, "shared ", error);
}

bool image_is_written(int fd)
{
    bool free;

    return byte_test(fd, LOCK_HELD_BASE + WRITE, &free) == 0 && !free;
}
