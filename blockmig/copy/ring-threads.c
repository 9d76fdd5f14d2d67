/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/copy/ring-threads.h"

#include "blockmig/storage/direct.h"
#include "formats/error.h"

#include <config.h>
#include <errno.h>
#include <linux/fs.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

struct ring_threads {
    GThreadPool *pool;
    int event_fd;
    GMutex lock;
    struct ring_op *first, **last; /* finished */
};

bool ring_op_is_direct(const struct ring_op *op)
{
    return !op->buffered && direct_fits(op->storage, (uint8_t *)op->buffer + op->finished,
                                        op->length - op->finished, op->offset + op->finished);
}

/* ---- requests ---- */

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
        return direct_read(op->storage, (uint8_t *)op->buffer + op->finished, op->turn, offset,
                           op->past_cache, error);
    case RING_WRITE:
        return (op->buffered ? storage_pwrite : direct_write)(
            op->storage, (uint8_t *)op->buffer + op->finished, op->turn, offset, error);
    case RING_CHECK:
        return storage_check(op->storage, (uint8_t *)op->buffer + op->finished, op->turn, offset, error);
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
