/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/storage/device.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>

int device_size(int fd, uint64_t *size)
{
    return ioctl(fd, BLKGETSIZE64, size) < 0 ? errno : 0;
}

int device_sector_size(int fd, uint32_t *sector_size)
{
    int value = 0;

    if (ioctl(fd, BLKSSZGET, &value) < 0)
        return errno;
    if (value <= 0 || (value & (value - 1)) != 0)
        return EINVAL;
    *sector_size = value;
    return 0;
}

/*
 * The kernel's rules for fallocate() on a device: PUNCH_HOLE unmaps only where the device then promises
 * zeros and fails elsewhere; ZERO_RANGE keeps the blocks and falls back to writing zeros.  The form with
 * NO_HIDE_STALE promises nothing about the content and is never used.  Both drop the page cache of the range.
 */
int device_zero(int fd, uint64_t offset, uint64_t length, bool may_unmap)
{
    if (may_unmap && fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length) == 0)
        return 0;
    if (fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length) == 0)
        return 0;
    return errno;
}

int device_discard(int fd, uint64_t offset, uint64_t length)
{
    uint64_t range[2] = {offset, length};

    return ioctl(fd, BLKDISCARD, range) < 0 ? errno : 0;
}
