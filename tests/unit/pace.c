/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* How strongly data is compressed, with links and processors that the test makes up. */
#include "blockmig/storage/pace.h"

#include <glib.h>

#define PIECE (2u << 20)
#define LANES 8

/* Content in a microsecond, by step: what the processors can compress, and how much smaller it gets. */
static const double cpu[PACE_STEPS] = {3000, 600, 350, 200};
static const double smaller[PACE_STEPS] = {1, 2.4, 2.8, 3.1};

/* Pieces as they arrive, each with the step that was asked for when it was begun, LANES pieces earlier. */
static void drive(struct pace *pace, double link, double most, unsigned pieces, unsigned *used, int64_t *now)
{
    unsigned lanes[LANES];

    for (unsigned i = 0; i < LANES; i++)
        lanes[i] = pace_step(pace);
    for (unsigned i = 0; i < pieces; i++) {
        unsigned step = lanes[i % LANES];
        double rate = MIN(most, MIN(cpu[step], link * smaller[step]));

        *now += (int64_t)(PIECE / rate);
        used[step]++;
        pace_note(pace, step, PIECE, *now);
        lanes[i % LANES] = pace_step(pace);
    }
}

static void check(double link, double most, unsigned best)
{
    struct pace pace = {0};
    unsigned used[PACE_STEPS] = {0};
    int64_t now = 1;

    drive(&pace, link, most, 3000, used, &now);
    g_assert_cmpuint(pace.step, ==, best);
    g_assert_cmpuint(used[best], >, 2500);
}

static void test_links(void)
{
    check(10000, 100000, 0); /* the processors are what is slow */
    check(117, 100000, 2);   /* 1 Gbit/s: 117, 281, 328, 200 */
    check(12, 100000, 3);
    check(300, 100000, 1);
    check(117, 100, 0);    /* the disk is */
    check(520, 100000, 0); /* 600 instead of 520 are not worth it */
}

/* Nothing is fast while a copy begins; that is not the link. */
static void test_begin(void)
{
    struct pace pace = {0};
    unsigned used[PACE_STEPS] = {0};
    int64_t now = 1;

    drive(&pace, 10000, 100, 20, used, &now);
    drive(&pace, 10000, 100000, 300, used, &now);
    g_assert_cmpuint(pace.step, ==, 0);
    g_assert_cmpuint(used[0], >, 230);
}

/* A link that gets slower, and faster again. */
static void test_change(void)
{
    struct pace pace = {0};
    unsigned used[PACE_STEPS] = {0};
    int64_t now = 1;

    drive(&pace, 10000, 100000, 500, used, &now);
    g_assert_cmpuint(pace.step, ==, 0);
    drive(&pace, 12, 100000, 1500, used, &now);
    g_assert_cmpuint(pace.step, ==, 3);
    drive(&pace, 10000, 100000, 1500, used, &now);
    g_assert_cmpuint(pace.step, ==, 0);
}

/* On a slow link it does not take long until something is known. */
static void test_soon(void)
{
    struct pace pace = {0};
    unsigned used[PACE_STEPS] = {0};
    int64_t now = 1;

    drive(&pace, 1, 100000, 8, used, &now);
    g_assert_cmpuint(pace_step(&pace), ==, 1);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/pace/links", test_links);
    g_test_add_func("/pace/begin", test_begin);
    g_test_add_func("/pace/change", test_change);
    g_test_add_func("/pace/soon", test_soon);
    return g_test_run();
}
