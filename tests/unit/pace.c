/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* How strongly data is compressed, with links and processors that the test makes up. */
#include "blockmig/storage/pace.h"

#include <glib.h>

#define PIECE (2u << 20)
#define LANES 8

/* Content in a microsecond, by step: what the processors can compress, and how much smaller it gets. */
static const double cpu[PACE_STEPS] = {3000, 450, 220};
static const double smaller[PACE_STEPS] = {1, 2.7, 2.9};

/* Pieces as they arrive, each with the step that was asked for when it was begun, LANES pieces earlier. */
static void drive(struct pace *pace, double link, double most, unsigned pieces, unsigned *used, int64_t *now)
{
    unsigned lanes[LANES];

    for (unsigned i = 0; i < LANES; i++)
        lanes[i] = pace_begin(pace);
    for (unsigned i = 0; i < pieces; i++) {
        unsigned step = lanes[i % LANES];
        double rate = MIN(most, MIN(cpu[step], link * smaller[step]));

        *now += (int64_t)(PIECE / rate);
        used[step]++;
        pace_end(pace, step, PIECE, *now);
        lanes[i % LANES] = pace_begin(pace);
    }
    for (unsigned i = 0; i < LANES; i++)
        pace_end(pace, lanes[(pieces + i) % LANES], 0, *now);
}

static void check(double link, double most, unsigned best)
{
    struct pace pace = PACE_INIT;
    unsigned used[PACE_STEPS] = {0};
    int64_t now = 1;

    drive(&pace, link, most, 3000, used, &now);
    g_assert_cmpuint(pace.step, ==, best);
    g_assert_cmpuint(used[best], >, 2500);
}

static void test_links(void)
{
    check(10000, 100000, 0); /* the processors are what is slow */
    check(117, 100000, 1);   /* 1 Gbit/s: 117, 316, 220 */
    check(12, 100000, 2);
    check(300, 100000, 1);
    check(117, 100, 0);    /* the disk is */
    check(430, 100000, 0); /* 450 instead of 430 are not worth it */
}

/* Nothing is fast while a copy begins; that is not the link. */
static void test_begin(void)
{
    struct pace pace = PACE_INIT;
    unsigned used[PACE_STEPS] = {0};
    int64_t now = 1;

    drive(&pace, 10000, 100, 20, used, &now);
    drive(&pace, 10000, 100000, 300, used, &now);
    g_assert_cmpuint(pace.step, ==, 0);
    g_assert_cmpuint(used[0], >, 200);
}

/* A link that gets slower, and faster again. */
static void test_change(void)
{
    struct pace pace = PACE_INIT;
    unsigned used[PACE_STEPS] = {0};
    int64_t now = 1;

    drive(&pace, 10000, 100000, 500, used, &now);
    g_assert_cmpuint(pace.step, ==, 0);
    drive(&pace, 12, 100000, 1500, used, &now);
    g_assert_cmpuint(pace.step, ==, 2);
    drive(&pace, 10000, 100000, 1500, used, &now);
    g_assert_cmpuint(pace.step, ==, 0);
}

/* On a slow link next to nothing is sent as it is; on a fast one next to nothing is compressed. */
static void test_soon(void)
{
    struct pace slow = PACE_INIT, fast = PACE_INIT;
    unsigned of_slow[PACE_STEPS] = {0}, of_fast[PACE_STEPS] = {0};
    int64_t now = 1;

    drive(&slow, 117, 100000, 800, of_slow, &now);
    g_assert_cmpuint(of_slow[0], <=, 800 / 16);
    drive(&fast, 10000, 100000, 800, of_fast, &now);
    g_assert_cmpuint(of_fast[0], >=, 800 - 800 / 8);
}

/* Content that packs badly for a while, and well when the other way is tried, decides nothing for long. */
static void test_content(void)
{
    struct pace pace = PACE_INIT;
    unsigned used[PACE_STEPS] = {0};
    int64_t now = 1;
    g_autoptr(GRand) random = g_rand_new_with_seed(7);

    for (unsigned i = 0; i < 3000; i++) {
        unsigned step = pace_begin(&pace);
        double factor = step && i / 16 % 8 == 0 ? 1 : smaller[step];

        now += (int64_t)(PIECE / MIN(cpu[step], 117 * factor * g_rand_double_range(random, 0.9, 1.1)));
        used[step]++;
        pace_end(&pace, step, PIECE, now);
    }
    g_assert_cmpuint(used[0], <, 3000 / 10);
}

/* What fails counts for nothing, and nobody waits for it. */
static void test_failures(void)
{
    struct pace pace = PACE_INIT;
    unsigned used[PACE_STEPS] = {0};
    int64_t now = 1;

    for (unsigned i = 0; i < 100; i++)
        pace_end(&pace, pace_begin(&pace), 0, now);
    drive(&pace, 10000, 100000, 300, used, &now);
    g_assert_cmpuint(pace.step, ==, 0);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/pace/links", test_links);
    g_test_add_func("/pace/begin", test_begin);
    g_test_add_func("/pace/change", test_change);
    g_test_add_func("/pace/soon", test_soon);
    g_test_add_func("/pace/content", test_content);
    g_test_add_func("/pace/failures", test_failures);
    return g_test_run();
}
