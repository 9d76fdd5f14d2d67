/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The front of the ring, and io_uring.
 *
 * Everything submitted is in exactly one place: `waiting` (for room in the ring), with the kernel, with
 * the pool, or in `finished`.  The pool tells of completions through an eventfd that the ring polls, so
 * that there is one place to wait at.
 */
#include "blockmig/copy/ring-threads.h"
#include "formats/error.h"

#include <config.h>
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <string.h>

#define MAX_FILES  64
#define MAX_BUFFER ((size_t)1 << 30) /* the kernel's limit for one registered buffer */

struct list {
    struct ring_op *first, **last;
};

struct ring {
    bool uring; /* false: threads only */
    unsigned depth;
    unsigned with_kernel;
    unsigned in_flight; /* submitted and not yet returned by ring_wait() */
    struct list waiting, finished;
    struct ring_threads *threads;

    struct io_uring io;
    bool polling; /* the eventfd is being watched */
    bool fixed_files;
    struct storage *files[MAX_FILES]; /* registered; index is the kernel's */
    unsigned file_count;
    const uint8_t *buffer; /* registered, or NULL */
    size_t buffer_length;
};

static void list_add(struct list *list, struct ring_op *op)
{
    op->next = NULL;
    *list->last = op;
    list->last = &op->next;
}

static struct ring_op *list_take(struct list *list)
{
    struct ring_op *op = list->first;

    if (op && !(list->first = op->next))
        list->last = &list->first;
    return op;
}

/* Not to be had: forbidden by policy, a kernel without it, or no locked memory left for it. */
static bool open_uring(struct ring *ring)
{
    struct io_uring_params params = {.flags = IORING_SETUP_COOP_TASKRUN};

    if (io_uring_queue_init_params(ring->depth + 1, &ring->io, &params) < 0 &&
        io_uring_queue_init(ring->depth + 1, &ring->io, 0) < 0)
        return false;
    ring->fixed_files = io_uring_register_files_sparse(&ring->io, MAX_FILES) == 0;
    return true;
}

struct ring *ring_new(unsigned depth, unsigned threads, bool no_uring, GError **error)
{
    struct ring *ring = g_new0(struct ring, 1);

    ring->depth = depth;
    ring->waiting.last = &ring->waiting.first;
    ring->finished.last = &ring->finished.first;
    ring->uring = !no_uring && open_uring(ring);
    /* Without io_uring a thread is what a request in flight costs. */
    ring->threads = ring_threads_new(ring->uring ? threads : MAX(threads, MIN(depth, 16)), error);
    if (!ring->threads) {
        ring_free(ring);
        return NULL;
    }
    return ring;
}

void ring_free(struct ring *ring)
{
    if (!ring)
        return;
    ring_threads_free(ring->threads);
    if (ring->uring) {
        /* The kernel takes a ring apart in the background; files are let go of here and now, so that their
         * file system can be unmounted when the caller is done. */
        if (ring->fixed_files)
            io_uring_unregister_files(&ring->io);
        if (ring->buffer)
            io_uring_unregister_buffers(&ring->io);
        io_uring_queue_exit(&ring->io);
    }
    g_free(ring);
}

const char *ring_engine(const struct ring *ring)
{
    return ring->uring ? "io_uring" : "threads";
}

unsigned ring_in_flight(const struct ring *ring)
{
    return ring->in_flight;
}

/* Without it (no locked memory for this user) requests only cost a little more. */
void ring_register(struct ring *ring, void *memory, size_t length)
{
    struct iovec buffer = {memory, length};

    if (!ring->uring || length > MAX_BUFFER || io_uring_register_buffers(&ring->io, &buffer, 1) < 0)
        return;
    ring->buffer = memory;
    ring->buffer_length = length;
}

/* The index of the registered descriptor of `storage`, or -1. */
static int fixed_file(struct ring *ring, struct storage *storage)
{
    for (unsigned i = 0; i < ring->file_count; i++) {
        if (ring->files[i] == storage)
            return (int)i;
    }
    if (!ring->fixed_files || ring->file_count == MAX_FILES ||
        io_uring_register_files_update(&ring->io, ring->file_count, &storage->direct_fd, 1) != 1)
        return -1;
    ring->files[ring->file_count] = storage;
    return (int)ring->file_count++;
}

static bool is_fixed_buffer(const struct ring *ring, const uint8_t *memory, size_t length)
{
    return ring->buffer && memory >= ring->buffer && length <= ring->buffer_length &&
           (size_t)(memory - ring->buffer) <= ring->buffer_length - length;
}

static void prepare(struct ring *ring, struct ring_op *op, struct io_uring_sqe *sqe)
{
    uint8_t *memory = (uint8_t *)op->buffer + op->finished;
    unsigned length = (unsigned)(op->length - op->finished);
    uint64_t offset = op->offset + op->finished;
    int file = fixed_file(ring, op->storage);
    int fd = file >= 0 ? file : op->storage->direct_fd;
    bool fixed = is_fixed_buffer(ring, memory, length);

    if (op->kind == RING_READ && fixed)
        io_uring_prep_read_fixed(sqe, fd, memory, length, offset, 0);
    else if (op->kind == RING_READ)
        io_uring_prep_read(sqe, fd, memory, length, offset);
    else if (fixed)
        io_uring_prep_write_fixed(sqe, fd, memory, length, offset, 0);
    else
        io_uring_prep_write(sqe, fd, memory, length, offset);
    if (file >= 0)
        sqe->flags |= IOSQE_FIXED_FILE;
    io_uring_sqe_set_data(sqe, op);
}

static void poll_threads(struct ring *ring)
{
    struct io_uring_sqe *sqe = ring->polling ? NULL : io_uring_get_sqe(&ring->io);

    if (!sqe)
        return;
    io_uring_prep_poll_add(sqe, ring_threads_fd(ring->threads), POLLIN);
    io_uring_sqe_set_data(sqe, ring);
    ring->polling = true;
}

/* Moves requests from `waiting` into the submission queue as far as there is room. */
static void fill(struct ring *ring)
{
    poll_threads(ring);
    while (ring->waiting.first && ring->with_kernel < ring->depth) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(&ring->io);
        if (!sqe)
            return;
        prepare(ring, list_take(&ring->waiting), sqe);
        ring->with_kernel++;
    }
}

static void dispatch(struct ring *ring, struct ring_op *op)
{
    bool io = op->kind == RING_READ || op->kind == RING_WRITE;

    if (ring->uring && io && ring_op_is_direct(op))
        list_add(&ring->waiting, op);
    else
        ring_threads_submit(ring->threads, op);
}

void ring_submit(struct ring *ring, struct ring_op *op)
{
    op->finished = 0;
    op->error = NULL;
    op->errnum = 0;
    ring->in_flight++;
    dispatch(ring, op);
}

void ring_kick(struct ring *ring)
{
    if (!ring->uring)
        return;
    fill(ring);
    io_uring_submit(&ring->io);
}

static void op_failed(struct ring_op *op, int errnum)
{
    blockmig_set_errno(&op->error, errnum, "%s: %s %zu bytes at offset %" G_GUINT64_FORMAT, op->storage->name,
                       op->kind == RING_READ ? "reading" : "writing", op->length - op->finished,
                       op->offset + op->finished);
}

/* `result` is what the kernel answered: bytes or a negative errno. */
static void complete(struct ring *ring, struct ring_op *op, int result)
{
    ring->with_kernel--;
    if (result > 0) {
        op->finished += (size_t)result;
        if (op->kind == RING_WRITE)
            storage_grown(op->storage, op->offset + op->finished);
    }
    if (op->finished == op->length) {
        list_add(&ring->finished, op);
    } else if (result > 0 || result == -EINTR || result == -EAGAIN) {
        dispatch(ring, op); /* the rest; what is not aligned any more goes to a thread */
    } else if (result == -EINVAL || (result == 0 && op->kind == RING_READ)) {
        ring_threads_submit(ring->threads, op); /* which finds out whether O_DIRECT or the end is to blame */
    } else {
        op_failed(op, result ? -result : ENOSPC);
        list_add(&ring->finished, op);
    }
}

static void reap_threads(struct ring *ring)
{
    struct ring_op *op = ring_threads_take(ring->threads);

    while (op) {
        struct ring_op *next = op->next;
        list_add(&ring->finished, op);
        op = next;
    }
}

static void reap(struct ring *ring)
{
    struct io_uring_cqe *cqe;

    while (io_uring_peek_cqe(&ring->io, &cqe) == 0) {
        void *data = io_uring_cqe_get_data(cqe);
        int result = cqe->res;
        io_uring_cqe_seen(&ring->io, cqe);
        if (data == ring) {
            ring->polling = false;
            reap_threads(ring);
        } else if (data) {
            complete(ring, data, result);
        }
    }
}

static void wait_uring(struct ring *ring, int64_t timeout)
{
    struct __kernel_timespec limit = {timeout / G_USEC_PER_SEC, timeout % G_USEC_PER_SEC * 1000};
    struct io_uring_cqe *cqe;

    fill(ring);
    io_uring_submit_and_wait_timeout(&ring->io, &cqe, 1, &limit, NULL);
    reap(ring);
    fill(ring);
}

static void wait_threads(struct ring *ring, int64_t timeout)
{
    struct pollfd fd = {.fd = ring_threads_fd(ring->threads), .events = POLLIN};
    struct timespec limit = {timeout / G_USEC_PER_SEC, timeout % G_USEC_PER_SEC * 1000};

    if (ppoll(&fd, 1, &limit, NULL) > 0)
        reap_threads(ring);
}

struct ring_op *ring_wait(struct ring *ring, int64_t timeout)
{
    struct ring_op *op = list_take(&ring->finished);

    if (!op) {
        if (ring->uring)
            wait_uring(ring, timeout);
        else
            wait_threads(ring, timeout);
        op = list_take(&ring->finished);
    }
    if (op)
        ring->in_flight--;
    return op;
}
