/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/copy/copier.h"

#include "formats/error.h"

#include <config.h>
#include <string.h>
#include <sys/mman.h>

#define DEFAULT_BUFFER_BYTES ((size_t)64 << 20)
#define MIN_BUFFERS          4
/* Measured on the reference disk: reading back right behind the writes wants fewer requests at a time. */
#define DEPTH           32
#define DEPTH_READ_BACK 16
#define TICK            (G_USEC_PER_SEC / 10)
#define TICK_HELD       (G_USEC_PER_SEC / 100) /* while the window is closed */

static const struct copy_options default_options;

static bool allocate_buffers(struct copier *copier, GError **error)
{
    size_t wanted = copier->options->buffer_bytes ? copier->options->buffer_bytes : DEFAULT_BUFFER_BYTES;

    copier->buffer_count = (unsigned)CLAMP(wanted / SLOT_SIZE, MIN_BUFFERS, 65536);
    copier->memory_size = copier->buffer_count * SLOT_SIZE;
    copier->memory =
        mmap(NULL, copier->memory_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (copier->memory == MAP_FAILED) {
        copier->memory = NULL;
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED, "no memory for %zu bytes of buffers",
                    copier->memory_size);
        return false;
    }
    madvise(copier->memory, copier->memory_size, copier->options->patch ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
    copier->free_buffers = g_new(uint8_t *, copier->buffer_count);
    for (unsigned i = copier->buffer_count; i > 0; i--)
        copier_give_buffer(copier, copier->memory + (i - 1) * SLOT_SIZE);
    return true;
}

bool copier_init(struct copier *copier, const struct copy_options *options, struct copy_result *result,
                 GError **error)
{
    *copier = (struct copier){.options = options ? options : &default_options, .result = result};
    *result = (struct copy_result){.bad = g_array_new(FALSE, FALSE, sizeof(struct copy_range))};
    /* A patch is many small requests, and its pages are not worth being pinned. */
    copier->ring = ring_new(copier->options->read_back && !copier->options->patch ? DEPTH_READ_BACK : DEPTH,
                            CLAMP(g_get_num_processors(), 2, 8), copier->options->no_uring, error);
    if (!copier->ring || !allocate_buffers(copier, error)) {
        copier_clear(copier);
        return false;
    }
    if (!copier->options->patch)
        ring_register(copier->ring, copier->memory, copier->memory_size);
    result->engine = ring_engine(copier->ring);
    copier->next_tick = g_get_monotonic_time();
    return true;
}

void copier_clear(struct copier *copier)
{
    ring_free(copier->ring);
    if (copier->memory)
        munmap(copier->memory, copier->memory_size);
    g_free(copier->free_buffers);
    g_clear_error(&copier->error);
}

uint8_t *copier_take_buffer(struct copier *copier)
{
    return copier->free_count ? copier->free_buffers[--copier->free_count] : NULL;
}

void copier_give_buffer(struct copier *copier, uint8_t *buffer)
{
    if (buffer)
        copier->free_buffers[copier->free_count++] = buffer;
}

void copier_fail(struct copier *copier, GError *error)
{
    if (copier->error)
        g_error_free(error);
    else
        copier->error = error;
}

void copier_submit(struct copier *copier, struct ring_op *op)
{
    ring_submit(copier->ring, op);
}

bool copier_may_read(struct copier *copier, uint64_t bytes)
{
    struct throttle *throttle = copier->options->throttle;
    int64_t now, wait;

    if (!throttle || !bytes)
        return true;
    now = g_get_monotonic_time();
    wait = throttle_take(throttle, bytes, now);
    copier->read_until = now + wait;
    return wait == 0;
}

void copier_tell_progress(struct copier *copier)
{
    if (copier->options->progress)
        copier->options->progress(copier->options->opaque, &copier->result->counters);
}

static void tick(struct copier *copier, int64_t now)
{
    const struct copy_options *options = copier->options;

    if (options->cancelled && !copier->error && options->cancelled(options->opaque))
        copier_fail(copier, g_error_new_literal(BLOCKMIG_ERROR, BLOCKMIG_ERROR_CANCELLED, "cancelled"));
    if (now < copier->next_tick)
        return;
    copier->next_tick = now + TICK;
    copier_tell_progress(copier);
}

/* What is on its way when it is to end ends, and nobody is asked any more. */
static size_t window(const struct copier *copier)
{
    if (copier->error)
        return G_MAXSIZE;
    return copier->options->throttle ? throttle_window(copier->options->throttle) : G_MAXSIZE;
}

void copier_wait(struct copier *copier)
{
    int64_t now = g_get_monotonic_time(), timeout;

    tick(copier, now);
    ring_limit(copier->ring, window(copier));
    timeout = window(copier) ? TICK : TICK_HELD;
    timeout = MIN(timeout, copier->next_tick - now);
    if (copier->read_until > now)
        timeout = MIN(timeout, copier->read_until - now);
    else if (!ring_in_flight(copier->ring))
        timeout = 0; /* the caller has work of its own to go on with */
    struct ring_op *op = ring_wait(copier->ring, timeout);
    if (op)
        op->done(op);
}

void copier_drain(struct copier *copier)
{
    while (ring_in_flight(copier->ring))
        copier_wait(copier);
}
