/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a machine keeps of a disk that serves one request after the other, at so many bytes per second. */
#include "blockmig/migrate/share.h"

#include <string.h>

#define STEP 1000 /* microseconds */

struct model {
    double rate;                   /* of the disk, bytes per second */
    double own;                    /* seconds that a request of the machine takes on an idle disk */
    double think;                  /* seconds between the requests of each of its writers */
    double writers;                /* that wait for one request each */
    double requests, time, copied; /* so far; seconds and bytes */
    unsigned rests;
    size_t window;
    int64_t now;
    struct share *share;
};

/* A request waits, on the average, behind what we have on its way, and behind those of other writers. */
static void run(struct model *model, double seconds)
{
    for (int64_t end = model->now + (int64_t)(seconds * G_USEC_PER_SEC); model->now < end;
         model->now += STEP) {
        double wait = MIN((double)model->window, 32 << 20) / model->rate;
        double latency = wait + model->own * MAX(1, model->writers);
        double done = model->writers * STEP / 1e6 / (latency + model->think);

        model->requests += done;
        model->time += done * latency;
        model->copied +=
            model->window ? STEP / 1e6 * model->rate * (1 - MIN(done * model->own / (STEP / 1e6), 1)) : 0;
        if (!share_is_due(model->share, model->now))
            continue;
        model->window =
            share_step(model->share, model->now, (uint64_t)model->requests, (uint64_t)(model->time * 1e9));
        model->rests += model->window == 0;
    }
}

static struct model begin(double rate, double own, double think, double writers, unsigned percent)
{
    return (struct model){.rate = rate,
                          .own = own,
                          .think = think,
                          .writers = writers,
                          .window = G_MAXSIZE,
                          .now = G_USEC_PER_SEC,
                          .share = share_new(percent)};
}

/* What it gets beside us / what it has without us. */
static double share_of(struct model *model, double seconds)
{
    double before = model->requests;
    double alone = model->writers * seconds / (model->own * MAX(1, model->writers) + model->think);

    run(model, seconds);
    return (model->requests - before) / alone;
}

static void check(double rate, double own, double think, double writers, unsigned percent)
{
    struct model model = begin(rate, own, think, writers, percent);
    double share;

    run(&model, 3);
    share = share_of(&model, 10);
    g_test_message("%.0f MB/s, %.0f us, thinks %.0f us, %.0f writers, %u %%: %.3f, window %zu", rate / 1e6,
                   own * 1e6, think * 1e6, writers, percent, share, model.window);
    g_assert_cmpfloat(share, >, percent / 100.0 - 0.05);
    g_assert_cmpfloat(share, <, percent / 100.0 + 0.12);
    g_assert_cmpuint(model.rests, >, 5);
    share_free(model.share);
}

static void test_keeps(void)
{
    check(2e9, 50e-6, 200e-6, 1, 75);
    check(2e9, 50e-6, 200e-6, 1, 50);
    check(2e9, 100e-6, 0, 1, 60);
    check(5e8, 200e-6, 2e-3, 1, 75);
    check(5e8, 200e-6, 0, 16, 75);
    check(1e8, 8e-3, 0, 4, 75);
}

/* The least that is asked for goes on, however slow the disk. */
static void test_never_stops(void)
{
    struct model model = begin(2e7, 50e-6, 0, 1, 99);

    run(&model, 5);
    g_assert_cmpfloat(model.copied, >, 0);
    g_assert_true(model.window == 64 << 10 || model.window == 0);
    share_free(model.share);
}

static void test_idle(void)
{
    struct model model = begin(1e9, 1e-4, 1, 1, 75); /* one request per second */
    unsigned rests;

    run(&model, 2);
    rests = model.rests;
    run(&model, 8);
    g_assert_cmpuint(model.rests, ==, rests);
    g_assert_cmpuint(model.window, ==, 32 << 20);
    share_free(model.share);
}

/* It wakes up, and gets its share within two seconds. */
static void test_changes_its_mind(void)
{
    struct model model = begin(1e9, 1e-4, 1, 1, 75);

    run(&model, 5);
    model.think = 1e-4;
    run(&model, 2);
    g_assert_cmpfloat(share_of(&model, 5), >, 0.7);
    model.writers = 0;
    run(&model, 3);
    g_assert_cmpuint(model.window, ==, 32 << 20);
    share_free(model.share);
}

static void test_not_answered(void)
{
    g_autoptr(share_t) share = share_new(75);

    g_assert_true(share_is_due(share, G_USEC_PER_SEC));
    g_assert_cmpuint(share_step(share, G_USEC_PER_SEC, 0, 0), ==, 0);
    g_assert_false(share_is_due(share, G_USEC_PER_SEC + 1000));
    g_assert_cmpuint(share_skip(share, 2 * G_USEC_PER_SEC), ==, G_MAXSIZE);
    g_assert_cmpuint(share_step(share, 3 * G_USEC_PER_SEC, 1000, 1000), >, 0);
}

static unsigned asked;

static bool answer(void *opaque, uint64_t *requests, uint64_t *time_ns)
{
    asked++;
    *requests = *time_ns = 0;
    return *(bool *)opaque;
}

/* The limit is that of the throttle, and nobody is asked more often than is due. */
static void test_limits_a_throttle(void)
{
    g_autoptr(share_t) share = share_new(75);
    g_autoptr(throttle_t) throttle = throttle_new(0);
    bool there = true;

    share_look(share, throttle, answer, &there);
    g_assert_cmpuint(throttle_window(throttle), ==, 0);
    share_look(share, throttle, answer, &there);
    g_assert_cmpuint(asked, ==, 1);
    there = false;
    while (asked == 1)
        share_look(share, throttle, answer, &there);
    g_assert_cmpuint(throttle_window(throttle), ==, G_MAXSIZE);
}

int main(int argc, char **argv)
{
    char *with_tap[] = {argv[0], (char[]){"--tap"}, NULL};
    char **args = argc > 1 ? argv : with_tap;
    int count = argc > 1 ? argc : 2;

    g_test_init(&count, &args, NULL);
    g_test_add_func("/share/keeps", test_keeps);
    g_test_add_func("/share/never-stops", test_never_stops);
    g_test_add_func("/share/idle", test_idle);
    g_test_add_func("/share/changes-its-mind", test_changes_its_mind);
    g_test_add_func("/share/not-answered", test_not_answered);
    g_test_add_func("/share/limits-a-throttle", test_limits_a_throttle);
    return g_test_run();
}
