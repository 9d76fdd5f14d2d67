/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A token bucket.  Tokens are bytes; they are made when somebody asks, from the time since the last. */
#include "blockmig/copy/throttle.h"

#include <config.h>

struct throttle {
    GMutex lock;
    uint64_t rate; /* bytes per second; 0: no limit */
    double tokens;
    int64_t filled; /* when `tokens` was right; 0: never asked */
    size_t window;
};

struct throttle *throttle_new(uint64_t bytes_per_second)
{
    struct throttle *throttle = g_new0(struct throttle, 1);

    g_mutex_init(&throttle->lock);
    throttle->rate = bytes_per_second;
    throttle->window = G_MAXSIZE;
    return throttle;
}

void throttle_free(struct throttle *throttle)
{
    if (!throttle)
        return;
    g_mutex_clear(&throttle->lock);
    g_free(throttle);
}

/* Tokens that are left count for the new rate too: they are at most one burst of the old one,
 * and the next throttle_take() cuts them to one burst of the new one. */
void throttle_set_rate(struct throttle *throttle, uint64_t bytes_per_second)
{
    g_mutex_lock(&throttle->lock);
    throttle->rate = bytes_per_second;
    g_mutex_unlock(&throttle->lock);
}

void throttle_set_window(struct throttle *throttle, size_t bytes)
{
    __atomic_store_n(&throttle->window, bytes, __ATOMIC_RELAXED);
}

size_t throttle_window(struct throttle *throttle)
{
    return __atomic_load_n(&throttle->window, __ATOMIC_RELAXED);
}

static void fill(struct throttle *throttle, uint64_t bytes, int64_t now)
{
    double burst = MAX((double)throttle->rate / 10, (double)bytes);

    if (throttle->filled && now > throttle->filled)
        throttle->tokens += (double)throttle->rate * (double)(now - throttle->filled) / G_USEC_PER_SEC;
    throttle->tokens = MIN(throttle->tokens, burst);
    throttle->filled = MAX(throttle->filled, now);
}

int64_t throttle_take(struct throttle *throttle, uint64_t bytes, int64_t now)
{
    int64_t wait = 0;

    g_mutex_lock(&throttle->lock);
    if (throttle->rate) {
        fill(throttle, bytes, now);
        /* Half a byte of tolerance: sums of doubles must not cost another round. */
        if (throttle->tokens + 0.5 >= (double)bytes)
            throttle->tokens -= (double)bytes;
        else
            wait =
                1 + (int64_t)(((double)bytes - throttle->tokens) * G_USEC_PER_SEC / (double)throttle->rate);
    } else {
        throttle->tokens = 0;
        throttle->filled = now;
    }
    g_mutex_unlock(&throttle->lock);
    return wait;
}
