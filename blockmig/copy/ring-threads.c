/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/copy/ring-threads.h"

#include "formats/error.h"

#include <config.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#define BOUNCE_SIZE ((size_t)256 << 10)

struct ring_threads {
    GThreadPool *pool;
    int event_fd;
    GMutex lock;
    struct ring_op *first, **last; /* finished */
};

static bool fits_direct(const struct storage *storage, const void *buffer, size_t length, uint64_t offset)
{
    uint64_t where = offset | length | (uintptr_t)buffer;

    return storage && storage->direct_fd >= 0 && (where & (storage->alignment - 1)) == 0;
}

bool ring_op_is_direct(const struct ring_op *op)
{
    return !op->buffered && fits_direct(op->storage, (uint8_t *)op->buffer + op->finished,
                                        op->length - op->finished, op->offset + op->finished);
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
 * compared. */
static void drop_cache(const struct storage *storage, size_t length, uint64_t offset)
{
    if (sync_file_range(storage->buffered_fd, (off_t)offset, (off_t)length,
                        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER) < 0)
        fdatasync(storage->buffered_fd);
    posix_fadvise(storage->buffered_fd, (off_t)offset, (off_t)length, POSIX_FADV_DONTNEED);
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

bool ring_read_now(struct storage *storage, void *buffer, size_t length, uint64_t offset, bool past_cache,
                   GError **error)
{
    size_t done;

    if (storage->direct_fd < 0)
        return read_cached(storage, buffer, length, offset, past_cache, error);
    if (!fits_direct(storage, buffer, length, offset))
        return read_bounced(storage, buffer, length, offset, error);
    if (read_some(storage->direct_fd, storage->alignment, buffer, length, offset, &done))
        return done == length || short_file(storage, offset + done, error);
    if (errno == EINVAL) /* it promised more than it can take */
        return read_cached(storage, buffer, length, offset, past_cache, error);
    return read_failed(storage, length, offset, error);
}

/* ---- the other requests ---- */

/* As far as O_DIRECT can; *done says how far. */
static bool write_direct(struct storage *storage, const uint8_t *buffer, size_t length, uint64_t offset,
                         size_t *done, GError **error)
{
    for (*done = 0; *done < length && fits_direct(storage, buffer + *done, length - *done, offset + *done);) {
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

static bool run_write(const struct ring_op *op, const uint8_t *buffer, uint64_t offset, GError **error)
{
    size_t done = 0;

    if (!op->buffered && !write_direct(op->storage, buffer, op->turn, offset, &done, error))
        return false;
    return done == op->turn ||
           storage_pwrite(op->storage, buffer + done, op->turn - done, offset + done, error);
}

static bool run_clone(struct ring_op *op, GError **error)
{
    struct file_clone_range range = {
        .src_fd = op->from->buffered_fd,
        .src_offset = op->from_offset,
        .src_length = op->length,
        .dest_offset = op->offset,
    };
    int rc;

    do
        rc = ioctl(op->storage->buffered_fd, FICLONERANGE, &range);
    while (rc < 0 && errno == EINTR);
    if (rc == 0)
        return true;
    op->errnum = errno;
    return blockmig_set_errno(error, op->errnum, "%s: sharing %zu bytes at offset %" G_GUINT64_FORMAT,
                              op->storage->name, op->length, op->offset);
}

static bool run(struct ring_op *op, GError **error)
{
    uint64_t offset = op->offset + op->finished;

    switch (op->kind) {
    case RING_READ:
        return ring_read_now(op->storage, (uint8_t *)op->buffer + op->finished, op->turn, offset,
                             op->past_cache, error);
    case RING_WRITE:
        return run_write(op, (uint8_t *)op->buffer + op->finished, offset, error);
    case RING_CLONE:
        return run_clone(op, error);
    case RING_CALL:
        return op->call(op, error);
    }
    g_return_val_if_reached(false);
}

/* ---- the pool ---- */

void ring_threads_finish(struct ring_threads *threads, struct ring_op *op)
{
    op->next = NULL;
    g_mutex_lock(&threads->lock);
    bool first = !threads->first;
    *threads->last = op;
    threads->last = &op->next;
    if (first) /* inside the lock: take() must not find the event without the list */
        eventfd_write(threads->event_fd, 1);
    g_mutex_unlock(&threads->lock);
}

static void work(void *data, void *opaque)
{
    struct ring_op *op = data;

    run(op, &op->error);
    ring_threads_finish(opaque, op);
}

struct ring_threads *ring_threads_new(unsigned count, GError **error)
{
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0) {
        blockmig_set_errno(error, errno, "eventfd");
        return NULL;
    }
    struct ring_threads *threads = g_new0(struct ring_threads, 1);
    g_mutex_init(&threads->lock);
    threads->event_fd = fd;
    threads->last = &threads->first;
    threads->pool = g_thread_pool_new(work, threads, (int)count, TRUE, error);
    if (!threads->pool) {
        ring_threads_free(threads);
        return NULL;
    }
    return threads;
}

void ring_threads_free(struct ring_threads *threads)
{
    if (!threads)
        return;
    if (threads->pool)
        g_thread_pool_free(threads->pool, FALSE, TRUE);
    close(threads->event_fd);
    g_mutex_clear(&threads->lock);
    g_free(threads);
}

int ring_threads_fd(const struct ring_threads *threads)
{
    return threads->event_fd;
}

void ring_threads_submit(struct ring_threads *threads, struct ring_op *op)
{
    g_thread_pool_push(threads->pool, op, NULL);
}

struct ring_op *ring_threads_take(struct ring_threads *threads)
{
    eventfd_t count;

    g_mutex_lock(&threads->lock);
    struct ring_op *list = threads->first;
    threads->first = NULL;
    threads->last = &threads->first;
    eventfd_read(threads->event_fd, &count);
    g_mutex_unlock(&threads->lock);
    return list;
}
