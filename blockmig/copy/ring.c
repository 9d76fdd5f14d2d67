/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The front of the ring, and io_uring.
 *
 * Everything submitted is in exactly one place: in a lane, waiting for its turn or on its way, or in
 * `finished`.  The pool and storages tell of completions through an eventfd that the ring polls, so that
 * there is one place to wait at.
 */
#include "blockmig/copy/ring-threads.h"
#include "formats/error.h"

#include <config.h>
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <string.h>

#define MAX_FILES  64
#define LIMIT_UNIT ((size_t)64 << 10)
#define MAX_BUFFER ((size_t)1 << 30) /* the kernel's limit for one registered buffer */

struct list {
    struct ring_op *first, **last;
};

/* Who does it. */
enum lane_kind {
    LANE_KERNEL,
    LANE_STORAGE, /* by ops->start */
    LANE_THREADS, /* reads and writes */
    LANE_WORK,    /* threads too, but what no limit is for */
    LANES
};

struct lane {
    struct list waiting;
    unsigned busy, depth; /* turns */
};

struct ring {
    bool uring;         /* false: threads only */
    unsigned in_flight; /* submitted and not yet returned by ring_wait() */
    struct lane lanes[LANES];
    struct list finished;
    size_t limit, moving; /* bytes of reads and writes that may be on their way, and are */
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

static void list_clear(struct list *list)
{
    list->first = NULL;
    list->last = &list->first;
}

static void list_put_back(struct list *list, struct ring_op *op)
{
    if (!(op->next = list->first))
        list->last = &op->next;
    list->first = op;
}

static struct ring_op *list_take(struct list *list)
{
    struct ring_op *op = list->first;

    if (op && !(list->first = op->next))
        list->last = &list->first;
    return op;
}

/* Not to be had: forbidden by policy, a kernel without it, or no locked memory left for it. */
static bool open_uring(struct ring *ring, unsigned depth)
{
    struct io_uring_params params = {.flags = IORING_SETUP_COOP_TASKRUN};

    if (io_uring_queue_init_params(depth + 1, &ring->io, &params) < 0 &&
        io_uring_queue_init(depth + 1, &ring->io, 0) < 0)
        return false;
    ring->fixed_files = io_uring_register_files_sparse(&ring->io, MAX_FILES) == 0;
    return true;
}

struct ring *ring_new(unsigned depth, unsigned threads, bool no_uring, GError **error)
{
    struct ring *ring = g_new0(struct ring, 1);

    list_clear(&ring->finished);
    for (enum lane_kind kind = 0; kind < LANES; kind++) {
        list_clear(&ring->lanes[kind].waiting);
        ring->lanes[kind].depth = kind == LANE_WORK ? G_MAXUINT : depth;
    }
    ring->limit = G_MAXSIZE;
    ring->uring = !no_uring && open_uring(ring, depth);
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
    unsigned length = (unsigned)op->turn;
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

/* ---- turns ---- */

static bool moves_bytes(const struct ring_op *op)
{
    return op->kind == RING_READ || op->kind == RING_WRITE || op->kind == RING_CHECK;
}

static enum lane_kind lane_of(const struct ring *ring, const struct ring_op *op)
{
    if (!moves_bytes(op))
        return LANE_WORK;
    if (op->storage->ops->start)
        return LANE_STORAGE;
    return ring->uring && op->kind != RING_CHECK && ring_op_is_direct(op) ? LANE_KERNEL : LANE_THREADS;
}

static void started_done(struct storage_request *request, GError *error)
{
    struct ring_op *op = (struct ring_op *)((char *)request - offsetof(struct ring_op, request));

    if (error)
        g_prefix_error(&error, "%s: ", op->storage->name);
    op->error = error;
    ring_threads_finish(op->ring->threads, op);
}

static void start(struct ring *ring, struct ring_op *op)
{
    op->ring = ring;
    op->request = (struct storage_request){.write = op->kind == RING_WRITE,
                                           .check = op->kind == RING_CHECK,
                                           .buffer = (uint8_t *)op->buffer + op->finished,
                                           .length = op->turn,
                                           .offset = op->offset + op->finished,
                                           .seeds = op->seeds,
                                           .seed_count = op->seed_count,
                                           .done = started_done};
    storage_start(op->storage, &op->request);
}

static void begin_turn(struct ring *ring, enum lane_kind kind, struct ring_op *op)
{
    if (kind == LANE_KERNEL)
        prepare(ring, op, io_uring_get_sqe(&ring->io));
    else if (kind == LANE_STORAGE)
        start(ring, op);
    else
        ring_threads_submit(ring->threads, op);
}

static bool has_room(const struct ring *ring, enum lane_kind kind, const struct ring_op *op)
{
    size_t room = ring->limit - MIN(ring->moving, ring->limit);

    if (kind == LANE_KERNEL && io_uring_sq_space_left(&ring->io) == 0)
        return false;
    return kind == LANE_WORK || (ring->limit > 0 && op->turn <= room);
}

static void fill_lane(struct ring *ring, enum lane_kind kind)
{
    struct lane *lane = &ring->lanes[kind];
    struct ring_op *op;

    while ((op = lane->waiting.first) && lane->busy < lane->depth) {
        op->turn = kind == LANE_WORK ? 0 : MIN(op->length - op->finished, ring->limit);
        if (!has_room(ring, kind, op))
            return;
        list_take(&lane->waiting);
        lane->busy++;
        ring->moving += op->turn;
        begin_turn(ring, kind, op);
    }
}

static void fill(struct ring *ring)
{
    if (ring->uring)
        poll_threads(ring);
    for (enum lane_kind kind = 0; kind < LANES; kind++)
        fill_lane(ring, kind);
}

void ring_submit(struct ring *ring, struct ring_op *op)
{
    enum lane_kind kind = lane_of(ring, op);

    op->finished = 0;
    op->error = NULL;
    op->errnum = 0;
    op->lane = kind;
    ring->in_flight++;
    list_add(&ring->lanes[kind].waiting, op);
    if (kind != LANE_KERNEL)
        fill_lane(ring, kind);
}

void ring_kick(struct ring *ring)
{
    fill(ring);
    if (ring->uring)
        io_uring_submit(&ring->io);
}

void ring_limit(struct ring *ring, size_t bytes)
{
    /* Turns end on multiples of it, so that O_DIRECT can take the next one too. */
    ring->limit = bytes ? MAX(bytes / LIMIT_UNIT, 1) * LIMIT_UNIT : 0;
}

/* ---- completions ---- */

static void op_failed(struct ring_op *op, int errnum)
{
    blockmig_set_errno(&op->error, errnum, "%s: %s %zu bytes at offset %" G_GUINT64_FORMAT, op->storage->name,
                       op->kind == RING_READ ? "reading" : "writing", op->length - op->finished,
                       op->offset + op->finished);
}

static void end_turn(struct ring *ring, struct ring_op *op)
{
    ring->lanes[op->lane].busy--;
    ring->moving -= op->turn;
}

/* Its next turn comes before those of others: what lies together is done together. */
static void go_on(struct ring *ring, struct ring_op *op, enum lane_kind kind)
{
    op->lane = kind;
    list_put_back(&ring->lanes[kind].waiting, op);
}

/* `result` is what the kernel answered: bytes or a negative errno. */
static void complete(struct ring *ring, struct ring_op *op, int result)
{
    end_turn(ring, op);
    if (result > 0) {
        op->finished += (size_t)result;
        if (op->kind == RING_WRITE)
            storage_grown(op->storage, op->offset + op->finished);
    }
    if (op->finished == op->length) {
        list_add(&ring->finished, op);
    } else if (result > 0 || result == -EINTR || result == -EAGAIN) {
        go_on(ring, op, lane_of(ring, op)); /* the rest; what is not aligned any more goes to a thread */
    } else if (result == -EINVAL || (result == 0 && op->kind == RING_READ)) {
        go_on(ring, op, LANE_THREADS); /* which finds out whether O_DIRECT or the end is to blame */
    } else {
        op_failed(op, result ? -result : ENOSPC);
        list_add(&ring->finished, op);
    }
}

static void reap_threads(struct ring *ring)
{
    struct ring_op *op = ring_threads_take(ring->threads), *next;

    for (; op; op = next) {
        next = op->next;
        end_turn(ring, op);
        op->finished += op->turn;
        if (op->error || op->lane == LANE_WORK || op->finished == op->length)
            list_add(&ring->finished, op);
        else
            go_on(ring, op, op->lane);
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

    fill(ring);
    if (ppoll(&fd, 1, &limit, NULL) > 0)
        reap_threads(ring);
    fill(ring);
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
