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

static bool read_direct(struct storage *storage, uint8_t *buffer, size_t length, uint64_t offset,
                        GError **error)
{
    for (ssize_t done; length > 0; buffer += done, offset += (size_t)done, length -= (size_t)done) {
        done = read_some(storage->direct_fd, buffer, length, offset);
        if (!goes_on(done, length))
            return blockmig_set_errno(error, done < 0 ? errno : EIO,
                                      "%s: reading %zu bytes at offset %" G_GUINT64_FORMAT, storage->name,
                                      length, offset);
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

bool medium_read(struct storage *storage, uint8_t *buffer, size_t length, uint64_t offset, bool proved,
                 GError **error)
{
    size_t unit = unit_of(storage), whole = length / unit * unit;

    if (offset + length > storage->size)
        return blockmig_fail(error, BLOCKMIG_ERROR_IO,
                             "%s: bytes %" G_GUINT64_FORMAT "+%zu end beyond its %" G_GUINT64_FORMAT,
                             storage->name, offset, length, storage->size);
    if (storage->direct_fd < 0 || offset % unit)
        whole = 0;
    if (whole > 0 && !read_direct(storage, buffer, whole, offset, error))
        return false;
    if (whole == length)
        return true;
    return proved ? read_past_cache(storage, buffer + whole, length - whole, offset + whole, error)
                  : storage_pread(storage, buffer + whole, length - whole, offset + whole, error);
}
