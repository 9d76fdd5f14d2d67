/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/remote/medium.h"

#include "formats/error.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static size_t unit_of(const struct storage *storage)
{
    return MAX(storage->alignment, MEDIUM_ALIGNMENT);
}

/* One system call, again if a signal came between; 0: nothing was done, for which there is no reason. */
static ssize_t write_some(int fd, const uint8_t *data, size_t length, uint64_t offset)
{
    ssize_t done;

    do
        done = pwrite(fd, data, length, (off_t)offset);
    while (done < 0 && errno == EINTR);
    return done;
}

static ssize_t read_some(int fd, uint8_t *buffer, size_t length, uint64_t offset)
{
    ssize_t done;

    do
        done = pread(fd, buffer, length, (off_t)offset);
    while (done < 0 && errno == EINTR);
    return done;
}

/* A direct request that ends within a page cannot be gone on with. */
static bool goes_on(ssize_t done, size_t length)
{
    return done > 0 && ((size_t)done == length || done % MEDIUM_ALIGNMENT == 0);
}

static bool write_direct(struct storage *storage, const uint8_t *data, size_t length, uint64_t offset,
                         GError **error)
{
    for (ssize_t done; length > 0; data += done, offset += (size_t)done, length -= (size_t)done) {
        done = write_some(storage->direct_fd, data, length, offset);
        if (!goes_on(done, length))
            return blockmig_set_errno(error, done < 0 ? errno : ENOSPC,
                                      "%s: writing %zu bytes at offset %" G_GUINT64_FORMAT, storage->name,
                                      length, offset);
    }
    storage_grown(storage, offset);
    return true;
}

bool medium_write(struct storage *storage, const uint8_t *data, size_t length, uint64_t offset,
                  GError **error)
{
    size_t unit = unit_of(storage), whole = length / unit * unit;

    if (storage->direct_fd < 0 || offset % unit || (!storage->growable && offset + length > storage->size))
        whole = 0;
    return (whole == 0 || write_direct(storage, data, whole, offset, error)) &&
           (whole == length || storage_pwrite(storage, data + whole, length - whole, offset + whole, error));
}

/* `wanted` bytes of `room`, which has whole blocks: the file may end within the last one. */
static bool read_blocks(struct storage *storage, uint8_t *buffer, size_t room, size_t wanted, uint64_t offset,
                        GError **error)
{
    for (size_t have = 0; have < wanted;) {
        ssize_t done = read_some(storage->direct_fd, buffer + have, room - have, offset + have);

        if (done <= 0 || ((size_t)done < wanted - have && done % MEDIUM_ALIGNMENT))
            return blockmig_set_errno(error, done < 0 ? errno : EIO,
                                      "%s: reading %zu bytes at offset %" G_GUINT64_FORMAT, storage->name,
                                      wanted, offset);
        have += (size_t)done;
    }
    return true;
}

/* Without an aligned place the pages around are made clean, and forgotten. */
static bool read_past_cache(struct storage *storage, uint8_t *buffer, size_t length, uint64_t offset,
                            GError **error)
{
    if (storage->buffered_fd >= 0) {
        sync_file_range(storage->buffered_fd, (off_t)offset, (off_t)length,
                        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
        posix_fadvise(storage->buffered_fd, (off_t)offset, (off_t)length, POSIX_FADV_DONTNEED);
    }
    return storage_pread(storage, buffer, length, offset, error);
}

/* The whole blocks around the range, directly: dropping pages of the cache does not always help. */
static bool read_around(struct storage *storage, uint8_t *buffer, size_t length, uint64_t offset,
                        GError **error)
{
    size_t unit = unit_of(storage);
    uint64_t begin = offset / unit * unit, end = (offset + length + unit - 1) / unit * unit;
    size_t wanted = (size_t)(MIN(end, storage->size) - begin);
    uint8_t *blocks = NULL;
    bool ok;

    if (posix_memalign((void **)&blocks, unit, (size_t)(end - begin)))
        return blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "no memory");
    ok = read_blocks(storage, blocks, (size_t)(end - begin), wanted, begin, error);
    if (ok)
        memcpy(buffer, blocks + (offset - begin), length);
    free(blocks);
    return ok;
}

bool medium_read(struct storage *storage, uint8_t *buffer, size_t length, uint64_t offset, bool proved,
                 GError **error)
{
    size_t unit = unit_of(storage);

    if (offset + length > storage->size)
        return blockmig_fail(error, BLOCKMIG_ERROR_IO,
                             "%s: bytes %" G_GUINT64_FORMAT "+%zu end beyond its %" G_GUINT64_FORMAT,
                             storage->name, offset, length, storage->size);
    if (storage->direct_fd >= 0 && offset % unit == 0 && length % unit == 0)
        return read_blocks(storage, buffer, length, length, offset, error);
    if (!proved)
        return storage_pread(storage, buffer, length, offset, error);
    return storage->direct_fd >= 0 ? read_around(storage, buffer, length, offset, error)
                                   : read_past_cache(storage, buffer, length, offset, error);
}
