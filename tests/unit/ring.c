/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The ring, with io_uring and with threads, on a file (O_DIRECT where there is such) and on memory. */
#include "blockmig/copy/ring.h"

#include "blockmig/storage/file.h"
#include "blockmig/storage/memory.h"
#include "formats/error.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <stdlib.h>
#include <string.h>

#define SIZE (4 << 20)

struct fixture {
    struct ring *ring;
    char *path;
    uint8_t *memory; /* registered with the ring */
};

static void set_up(struct fixture *f, const void *no_uring)
{
    f->ring = ring_new(4, 2, no_uring != NULL, NULL);
    g_assert_nonnull(f->ring);
    if (no_uring)
        g_assert_cmpstr(ring_engine(f->ring), ==, "threads");
    f->path = g_strdup_printf("%s/ring-XXXXXX", g_getenv("builddir") ? g_getenv("builddir") : ".");
    close(g_mkstemp(f->path));
    f->memory = aligned_alloc(4096, SIZE);
    ring_register(f->ring, f->memory, SIZE);
}

static void tear_down(struct fixture *f, const void *no_uring)
{
    g_assert_cmpuint(ring_in_flight(f->ring), ==, 0);
    ring_free(f->ring);
    g_unlink(f->path);
    g_free(f->path);
    free(f->memory);
}

static void wait_all(struct ring *ring, unsigned expected)
{
    while (ring_in_flight(ring)) {
        struct ring_op *op = ring_wait(ring, 10 * G_USEC_PER_SEC);
        if (op && !op->error)
            expected--;
    }
    g_assert_cmpuint(expected, ==, 0);
}

/* Cuts [0, SIZE) at random places, most of them not aligned, and moves all pieces in one go: many
 * more than the ring is deep. */
static void move_all(struct fixture *f, struct storage *storage, enum ring_kind kind, uint8_t *memory)
{
    g_autofree struct ring_op *ops = g_new0(struct ring_op, SIZE / 512);
    unsigned count = 0;

    for (uint64_t offset = 0; offset < SIZE; count++) {
        bool aligned = g_test_rand_bit();
        size_t length =
            aligned ? 4096 * (size_t)g_test_rand_int_range(1, 16) : (size_t)g_test_rand_int_range(512, 20000);
        if (aligned && offset % 4096)
            length = 4096 - offset % 4096;
        length = MIN(length, SIZE - offset);
        ops[count] = (struct ring_op){.kind = kind,
                                      .storage = storage,
                                      .buffer = memory + offset,
                                      .length = length,
                                      .offset = offset,
                                      .past_cache = true,
                                      .buffered = offset % 4096 || length % 4096};
        ring_submit(f->ring, &ops[count]);
        offset += length;
    }
    wait_all(f->ring, count);
}

static void round_trip(struct fixture *f, struct storage *storage)
{
    g_autofree uint8_t *expected = g_malloc(SIZE);

    for (int round = 0; round < 3; round++) {
        for (size_t i = 0; i < SIZE; i++)
            f->memory[i] = (uint8_t)(i * 31 + i / 4096 + (size_t)round);
        memcpy(expected, f->memory, SIZE);
        move_all(f, storage, RING_WRITE, f->memory);
        g_assert_cmpuint(storage->size, ==, SIZE);
        memset(f->memory, 0xee, SIZE);
        move_all(f, storage, RING_READ, f->memory);
        g_assert_true(memcmp(f->memory, expected, SIZE) == 0);
    }
}

static void test_file(struct fixture *f, const void *no_uring)
{
    struct storage *storage = storage_file_open(f->path, FILE_WRITE | FILE_TRUNCATE, NULL, NULL, NULL);
    if (storage->direct_fd < 0)
        g_test_message("%s: no O_DIRECT here", f->path);
    round_trip(f, storage);
    storage_close(storage);
}

static void test_page_cache(struct fixture *f, const void *no_uring)
{
    g_autoptr(storage_t) storage = storage_file_open(f->path, FILE_WRITE | FILE_NO_DIRECT, NULL, NULL, NULL);

    round_trip(f, storage);
}

static void test_memory(struct fixture *f, const void *no_uring)
{
    g_autoptr(storage_t) storage = storage_memory_new("memory", NULL, SIZE, 0);

    round_trip(f, storage);
}

static struct ring_op *run_one(struct fixture *f, struct ring_op *op)
{
    struct ring_op *back = NULL;

    ring_submit(f->ring, op);
    while (!back)
        back = ring_wait(f->ring, G_USEC_PER_SEC);
    g_assert_true(back == op);
    return op;
}

static void test_errors(struct fixture *f, const void *no_uring)
{
    struct storage *file = storage_file_open(f->path, FILE_WRITE, NULL, NULL, NULL);
    struct storage *memory = storage_memory_new("memory", NULL, SIZE, SIZE);
    struct memory_fault fault = {.on = MEMORY_READ, .offset = 8192, .length = 512, .errnum = EIO};
    struct ring_op op = {.kind = RING_READ, .storage = file, .buffer = f->memory, .length = 8192};

    g_assert_true(storage_resize(file, 5000, NULL)); /* the second block is not all there */
    run_one(f, &op);
    g_assert_error(op.error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_IO);
    g_clear_error(&op.error);
    op.length = 5000;
    run_one(f, &op);
    g_assert_no_error(op.error);

    storage_memory_add_fault(memory, &fault);
    op.storage = memory;
    op.length = SIZE;
    run_one(f, &op);
    g_assert_error(op.error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_IO);
    g_clear_error(&op.error);
    op.kind = RING_WRITE;
    op.offset = 512;
    run_one(f, &op);
    g_assert_error(op.error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_NOSPACE);
    g_clear_error(&op.error);
    storage_close(file);
    storage_close(memory);
}

static bool call_fails(struct ring_op *op, GError **error)
{
    return blockmig_set_errno(error, EDQUOT, "call %d", *(int *)op->buffer);
}

static void test_call(struct fixture *f, const void *no_uring)
{
    int number = 42;
    struct ring_op op = {.kind = RING_CALL, .call = call_fails, .buffer = &number};

    run_one(f, &op);
    g_assert_error(op.error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_NOSPACE);
    g_assert_nonnull(strstr(op.error->message, "call 42"));
    g_clear_error(&op.error);
}

static bool call_sleeps(struct ring_op *op, GError **error)
{
    g_usleep(200000);
    return true;
}

static void test_timeout(struct fixture *f, const void *no_uring)
{
    struct ring_op op = {.kind = RING_CALL, .call = call_sleeps};
    int64_t begin = g_get_monotonic_time();

    g_assert_null(ring_wait(f->ring, 20000));
    g_assert_cmpint(g_get_monotonic_time() - begin, >=, 15000);
    ring_submit(f->ring, &op);
    g_assert_null(ring_wait(f->ring, 20000));
    g_assert_cmpuint(ring_in_flight(f->ring), ==, 1);
    wait_all(f->ring, 1);
}

/* Sharing blocks works or says which of the usual ways it was refused. */
static void test_clone(struct fixture *f, const void *no_uring)
{
    struct storage *file = storage_file_open(f->path, FILE_WRITE | FILE_TRUNCATE, NULL, NULL, NULL);
    struct ring_op op = {.kind = RING_WRITE, .storage = file, .buffer = f->memory, .length = 65536};

    memset(f->memory, 7, 65536);
    run_one(f, &op);
    op =
        (struct ring_op){.kind = RING_CLONE, .storage = file, .offset = 65536, .length = 65536, .from = file};
    run_one(f, &op);
    if (op.error)
        g_assert_true(op.errnum == EOPNOTSUPP || op.errnum == EXDEV || op.errnum == EINVAL);
    g_clear_error(&op.error);
    storage_close(file);
}

/* ---- limits, and storages that do it themselves ---- */

/* A memory that begins and does not wait, and knows what was on its way at most. */
struct eager {
    struct storage storage;
    struct storage *memory;
    struct storage_ops ops;
    GThreadPool *pool;
    gint moving, most, largest; /* bytes */
};

static bool eager_check(struct storage *storage, const void *buffer, size_t length, uint64_t offset,
                        GError **error)
{
    struct eager *eager = storage->opaque;
    g_autofree uint8_t *there = g_malloc(length);

    return storage_pread(eager->memory, there, length, offset, error) &&
           (memcmp(there, buffer, length) == 0 ||
            blockmig_fail(error, BLOCKMIG_ERROR_DIFFERENT, "not the same"));
}

static void serve(void *data, void *opaque)
{
    struct storage_request *request = data;
    struct eager *eager = opaque;
    GError *error = NULL;

    g_usleep(200);
    if (request->check)
        eager_check(&eager->storage, request->buffer, request->length, request->offset, &error);
    else if (request->write)
        storage_pwrite(eager->memory, request->buffer, request->length, request->offset, &error);
    else
        storage_pread(eager->memory, request->buffer, request->length, request->offset, &error);
    g_atomic_int_add(&eager->moving, -(gint)request->length);
    request->done(request, error);
}

/* Called by the ring's thread only. */
static void eager_start(struct storage *storage, struct storage_request *request)
{
    struct eager *eager = storage->opaque;
    gint moving = g_atomic_int_add(&eager->moving, (gint)request->length) + (gint)request->length;

    eager->most = MAX(eager->most, moving);
    eager->largest = MAX(eager->largest, (gint)request->length);
    g_thread_pool_push(eager->pool, request, NULL);
}

static struct storage *eager_open(struct eager *eager)
{
    *eager = (struct eager){.memory = storage_memory_new("memory", NULL, SIZE, SIZE)};
    eager->ops = (struct storage_ops){.name = "eager", .start = eager_start};
    eager->storage = *eager->memory;
    eager->storage.ops = &eager->ops;
    eager->storage.opaque = eager;
    eager->pool = g_thread_pool_new(serve, eager, 8, TRUE, NULL);
    return &eager->storage;
}

static void eager_close(struct eager *eager)
{
    g_thread_pool_free(eager->pool, FALSE, TRUE);
    storage_close(eager->memory);
}

static void test_start(struct fixture *f, const void *no_uring)
{
    struct eager eager;
    struct storage *storage = eager_open(&eager);
    struct ring_op past = {
        .kind = RING_READ, .storage = storage, .buffer = f->memory, .length = 4096, .offset = SIZE};

    round_trip(f, storage);
    run_one(f, &past);
    g_assert_error(past.error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED);
    g_assert_nonnull(strstr(past.error->message, "memory"));
    g_clear_error(&past.error);
    eager_close(&eager);
}

/* By who can do it in the background, and by who cannot. */
static void test_check(struct fixture *f, const void *no_uring)
{
    struct eager eager;
    struct storage *storage = eager_open(&eager);
    struct ring_op op = {.kind = RING_WRITE, .storage = storage, .buffer = f->memory, .length = SIZE};

    memset(f->memory, 7, SIZE);
    g_assert_no_error(run_one(f, &op)->error);
    op.kind = RING_CHECK;
    eager.ops.check = eager_check;
    for (int here = 0; here < 2; here++) {
        f->memory[SIZE - 1] = 7;
        ring_limit(f->ring, 1 << 20);
        g_assert_no_error(run_one(f, &op)->error);
        f->memory[SIZE - 1] = 8;
        g_assert_error(run_one(f, &op)->error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_DIFFERENT);
        g_clear_error(&op.error);
        eager.ops.start = NULL;
    }
    eager_close(&eager);
}

static void test_limit(struct fixture *f, const void *no_uring)
{
    struct eager eager;
    struct storage *storage = eager_open(&eager);
    struct storage *file = storage_file_open(f->path, FILE_WRITE | FILE_TRUNCATE, NULL, NULL, NULL);
    struct ring_op op = {.kind = RING_WRITE, .storage = storage, .buffer = f->memory, .length = SIZE};

    memset(f->memory, 9, SIZE);
    ring_limit(f->ring, 100000); /* one unit of 64 KiB */
    run_one(f, &op);
    g_assert_no_error(op.error);
    g_assert_cmpint(eager.largest, ==, 65536);
    g_assert_cmpint(eager.most, ==, 65536);
    ring_limit(f->ring, 192 << 10);
    round_trip(f, storage);
    g_assert_cmpint(eager.most, <=, 192 << 10);
    round_trip(f, file);

    ring_limit(f->ring, 0);
    ring_submit(f->ring, &op);
    g_assert_null(ring_wait(f->ring, 20000));
    g_assert_cmpint(g_atomic_int_get(&eager.moving), ==, 0);
    ring_limit(f->ring, G_MAXSIZE);
    wait_all(f->ring, 1);
    g_assert_cmpint(eager.largest, ==, SIZE);
    storage_close(file);
    eager_close(&eager);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*test)(struct fixture *, const void *);
    } tests[] = {{"file", test_file},     {"page-cache", test_page_cache},
                 {"memory", test_memory}, {"errors", test_errors},
                 {"call", test_call},     {"timeout", test_timeout},
                 {"clone", test_clone},   {"start", test_start},
                 {"limit", test_limit},   {"check", test_check}};
    char *with_tap[] = {argv[0], (char[]){"--tap"}, NULL};
    char **args = argc > 1 ? argv : with_tap;
    int count = argc > 1 ? argc : 2;

    g_test_init(&count, &args, NULL);
    for (unsigned i = 0; i < G_N_ELEMENTS(tests); i++) {
        for (int threads = 0; threads < 2; threads++) {
            g_autofree char *path =
                g_strdup_printf("/ring/%s/%s", threads ? "threads" : "uring", tests[i].name);
            g_test_add(path, struct fixture, threads ? "no" : NULL, set_up, tests[i].test, tear_down);
        }
    }
    return g_test_run();
}
