/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/storage/direct.h"

#include "formats/error.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define BOUNCE_SIZE   ((size_t)256 << 10)
#define LARGEST_FOLIO (UINT64_C(2) << 20) /* that the page cache makes of pages */

bool direct_fits(const struct storage *storage, const void *buffer, size_t length, uint64_t offset)
{
    uint64_t where = offset | length | (uintptr_t)buffer;

    return storage && storage->direct_fd >= 0 && (where & (storage->alignment - 1)) == 0;
}

struct split split_range(const struct storage *storage, const void *memory, size_t length, uint64_t offset,
                         size_t unit)
{
    struct split split = {.head = length};
    uint64_t begin = (offset + unit - 1) & ~(uint64_t)(unit - 1);
    uint64_t end = (offset + length) & ~(uint64_t)(unit - 1);

    if (storage->direct_fd < 0 || begin >= end ||
        (((uintptr_t)memory + (begin - offset)) & (storage->alignment - 1)) != 0)
        return split;
    split.head = (size_t)(begin - offset);
    split.middle = (size_t)(end - begin);
    split.tail = (size_t)(offset + length - end);
    return split;
}

/* ---- reading ---- */

/* Stops early at the end of the file; *done says where.  A count that is not aligned is such an end: O_DIRECT
 * cannot go on from there, even if the file has grown meanwhile. */
static bool read_some(int fd, uint32_t alignment, void *buffer, size_t length, uint64_t offset, size_t *done)
{
    *done = 0;
    while (*done < length && (*done & (alignment - 1)) == 0) {
        struct iovec piece = {(uint8_t *)buffer + *done, length - *done};
        ssize_t n = preadv2(fd, &piece, 1, (off_t)(offset + *done), 0);
        if (n == 0)
            return true;
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (n < 0)
            return false;
        *done += (size_t)n;
    }
    return true;
}

static bool short_file(const struct storage *storage, uint64_t offset, GError **error)
{
    return blockmig_set_errno(error, EIO, "%s: the file ends before offset %" G_GUINT64_FORMAT, storage->name,
                              offset);
}

static bool read_failed(const struct storage *storage, size_t length, uint64_t offset, GError **error)
{
    return blockmig_set_errno(error, errno, "%s: reading %zu bytes at offset %" G_GUINT64_FORMAT,
                              storage->name, length, offset);
}

/* Reads whole blocks into a buffer of its own: the range may have any alignment. */
static bool read_bounced(struct storage *storage, uint8_t *buffer, size_t length, uint64_t offset,
                         GError **error)
{
    uint64_t mask = storage->alignment - 1;
    size_t size = MIN(BOUNCE_SIZE, (length + 2 * mask) & ~mask);
    g_autofree uint8_t *memory = g_malloc(size + mask);
    uint8_t *bounce = (uint8_t *)(((uintptr_t)memory + mask) & ~(uintptr_t)mask);

    while (length > 0) {
        uint64_t begin = offset & ~mask;
        size_t skip = (size_t)(offset - begin), want = MIN(length, size - skip), done;
        if (!read_some(storage->direct_fd, storage->alignment, bounce, (skip + want + mask) & ~mask, begin,
                       &done))
            return read_failed(storage, want, offset, error);
        if (done < skip + want)
            return short_file(storage, begin + done, error);
        memcpy(buffer, bounce + skip, want);
        buffer += want;
        offset += want;
        length -= want;
    }
    return true;
}

/* Writes the range out and forgets it, so that the next read comes from the medium.  What the
 * kernel cannot do here (a pinned page, a file system without a medium) is no error: the bytes are still
 * compared.  Only folios that lie in the range as a whole are forgotten. */
static void drop_cache(const struct storage *storage, size_t length, uint64_t offset)
{
    off_t begin = (off_t)(offset & ~(LARGEST_FOLIO - 1));
    off_t end = (off_t)((offset + length + LARGEST_FOLIO - 1) & ~(LARGEST_FOLIO - 1));

    if (sync_file_range(storage->buffered_fd, begin, end - begin,
                        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER) < 0)
        fdatasync(storage->buffered_fd);
    posix_fadvise(storage->buffered_fd, begin, end - begin, POSIX_FADV_DONTNEED);
}

static bool read_cached(struct storage *storage, void *buffer, size_t length, uint64_t offset,
                        bool past_cache, GError **error)
{
    bool drop = past_cache && storage->buffered_fd >= 0;

    if (drop)
        drop_cache(storage, length, offset);
    if (!storage_pread(storage, buffer, length, offset, error))
        return false;
    if (drop)
        posix_fadvise(storage->buffered_fd, (off_t)offset, (off_t)length, POSIX_FADV_DONTNEED);
    return true;
}

bool direct_read(struct storage *storage, void *buffer, size_t length, uint64_t offset, bool past_cache,
                 GError **error)
{
    size_t done;

    if (storage->direct_fd < 0)
        return read_cached(storage, buffer, length, offset, past_cache, error);
    if (!direct_fits(storage, buffer, length, offset))
        return read_bounced(storage, buffer, length, offset, error);
    if (read_some(storage->direct_fd, storage->alignment, buffer, length, offset, &done))
        return done == length || short_file(storage, offset + done, error);
    if (errno == EINVAL) /* it promised more than it can take */
        return read_cached(storage, buffer, length, offset, past_cache, error);
    return read_failed(storage, length, offset, error);
}

/* ---- writing ---- */

/* As far as O_DIRECT can; *done says how far. */
static bool write_some(struct storage *storage, const uint8_t *buffer, size_t length, uint64_t offset,
                       size_t *done, GError **error)
{
    for (*done = 0; *done < length && direct_fits(storage, buffer + *done, length - *done, offset + *done);) {
        struct iovec piece = {(uint8_t *)buffer + *done, length - *done};
        ssize_t n = pwritev2(storage->direct_fd, &piece, 1, (off_t)(offset + *done), 0);
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (n < 0 && errno == EINVAL)
            break;
        if (n <= 0)
            return blockmig_set_errno(error, n < 0 ? errno : ENOSPC,
                                      "%s: writing %zu bytes at offset %" G_GUINT64_FORMAT, storage->name,
                                      length, offset);
        *done += (size_t)n;
        storage_grown(storage, offset + *done);
    }
    return true;
}

bool direct_write(struct storage *storage, const void *buffer, size_t length, uint64_t offset, GError **error)
{
    size_t done;

    return write_some(storage, buffer, length, offset, &done, error) &&
           (done == length ||
            storage_pwrite(storage, (const uint8_t *)buffer + done, length - done, offset + done, error));
}
