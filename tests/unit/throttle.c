/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The token bucket, with a clock that the test holds. */
#include "blockmig/copy/throttle.h"

#define MIB (UINT64_C(1) << 20)

/* Takes `piece` bytes whenever it may for `duration` microseconds; returns what it got. */
static uint64_t drive(struct throttle *throttle, uint64_t piece, int64_t *now, int64_t duration)
{
    uint64_t taken = 0;
    int64_t end = *now + duration;

    while (*now < end) {
        int64_t wait = throttle_take(throttle, piece, *now);
        if (wait == 0)
            taken += piece;
        *now += wait;
    }
    return taken;
}

static void test_unlimited(void)
{
    struct throttle *throttle = throttle_new(0);

    for (int i = 0; i < 100; i++)
        g_assert_cmpint(throttle_take(throttle, 1 << 30, 5), ==, 0);
    throttle_free(throttle);
}

static void test_rate(void)
{
    static const uint64_t pieces[] = {4096, 65536, 2 * MIB, 32 * MIB};

    for (unsigned i = 0; i < G_N_ELEMENTS(pieces); i++) {
        struct throttle *throttle = throttle_new(50 * MIB);
        int64_t now = 1000000;
        uint64_t taken = drive(throttle, pieces[i], &now, 10 * G_USEC_PER_SEC);
        g_assert_cmpuint(taken, <=, 500 * MIB + MAX(5 * MIB, pieces[i]));
        g_assert_cmpuint(taken, >=, 490 * MIB - pieces[i]);
        throttle_free(throttle);
    }
}

/* After idle time no more than 100 ms worth of the rate goes at once. */
static void test_burst(void)
{
    struct throttle *throttle = throttle_new(10 * MIB);
    unsigned taken = 0;

    throttle_take(throttle, 65536, 1);
    while (throttle_take(throttle, 65536, 3600 * INT64_C(1000000)) == 0)
        taken++;
    g_assert_cmpuint(taken, ==, 16);
    throttle_free(throttle);
}

static void test_change(void)
{
    struct throttle *throttle = throttle_new(10 * MIB);
    int64_t now = 1000000;
    uint64_t taken;

    drive(throttle, 65536, &now, 2 * G_USEC_PER_SEC);
    throttle_set_rate(throttle, 100 * MIB);
    taken = drive(throttle, 65536, &now, 2 * G_USEC_PER_SEC);
    g_assert_cmpuint(taken, >=, 195 * MIB);
    g_assert_cmpuint(taken, <=, 215 * MIB);
    throttle_set_rate(throttle, MIB);
    taken = drive(throttle, 65536, &now, 4 * G_USEC_PER_SEC);
    g_assert_cmpuint(taken, <=, 5 * MIB);
    throttle_set_rate(throttle, 0);
    g_assert_cmpint(throttle_take(throttle, 1000 * MIB, now), ==, 0);
    throttle_free(throttle);
}

int main(int argc, char **argv)
{
    char tap[] = "--tap", *with_tap[] = {argv[0], tap, NULL};
    char **args = argc > 1 ? argv : with_tap;
    int count = argc > 1 ? argc : 2;

    g_test_init(&count, &args, NULL);
    g_test_add_func("/throttle/unlimited", test_unlimited);
    g_test_add_func("/throttle/rate", test_rate);
    g_test_add_func("/throttle/burst", test_burst);
    g_test_add_func("/throttle/change", test_change);
    return g_test_run();
}
