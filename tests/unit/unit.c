/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* When what two hosts describe is one and the same unit. */
#include "blockmig/storage/unit.h"

#include "tests/unit/harness.h"

#include <string.h>

static struct unit *new_unit(const char *identity, bool local)
{
    struct unit *unit = g_new0(struct unit, 1);

    unit->identity = g_strdup(identity);
    unit->local = local;
    unit->size = 1 << 20;
    unit->key = 1;
    for (size_t i = 0; i < sizeof(unit->samples); i++)
        unit->samples[i] = (uint8_t)(i / STORAGE_DIGEST);
    return unit;
}

static void check(const struct unit *a, const struct unit *b, const char *words)
{
    g_autofree char *difference = unit_difference(a, b);

    if (words)
        g_assert_nonnull(strstr(difference, words));
    else
        g_assert_null(difference);
}

static void test_difference(void)
{
    g_autoptr(unit_t) a = new_unit("naa.1", false), b = new_unit("naa.1", true), c = new_unit("naa.2", false);

    check(a, b, NULL);
    check(a, c, "another one");
    check(b, b, "both hosts have");
    b->size++;
    check(a, b, "1048576 bytes here and 1048577 there");
}

/* A machine has written to block 3 between both looks here, and block 5 is another one there. */
static void test_samples(void)
{
    g_autoptr(unit_t) before = new_unit("a", false), there = new_unit("a", false),
                      after = new_unit("a", false);
    unsigned still;

    g_assert_false(unit_samples_differ(before, there, after, &still));
    g_assert_cmpuint(still, ==, UNIT_SAMPLES);
    before->samples[3 * STORAGE_DIGEST] = 0xff;
    there->samples[3 * STORAGE_DIGEST] = 0xfe;
    g_assert_false(unit_samples_differ(before, there, after, &still));
    g_assert_cmpuint(still, ==, UNIT_SAMPLES - 1);
    there->samples[5 * STORAGE_DIGEST + STORAGE_DIGEST - 1]++;
    g_assert_true(unit_samples_differ(before, there, after, &still));
}

static void test_json(void)
{
    static const char *const members[] = {"identity", "size", "samples", "holder", "key"};
    g_autoptr(unit_t) unit = new_unit("iscsi:x at 192.0.2.1 port 3260", true), same = NULL;
    json_t *object;

    unit->reserved = true;
    unit->holder = UINT64_C(0xfedcba9876543210);
    unit->unreserved = g_strdup("no");
    object = unit_to_json(unit);
    same = unit_from_json(object, NULL);
    g_assert_nonnull(same);
    check(unit, same, "both hosts have");
    g_assert_cmpmem(unit->samples, sizeof(unit->samples), same->samples, sizeof(same->samples));
    g_assert_cmpuint(same->holder, ==, unit->holder);
    g_assert_true(same->reserved);
    g_assert_cmpstr(same->unreserved, ==, "no");
    for (size_t i = 0; i < G_N_ELEMENTS(members); i++) {
        json_t *less = json_copy(object);
        g_autoptr(GError) error = NULL;

        json_object_del(less, members[i]);
        g_assert_null(unit_from_json(less, &error));
        g_assert_nonnull(error);
        json_decref(less);
    }
    json_decref(object);
}

static void check_refused(const char *name)
{
    g_autoptr(GError) error = NULL;

    g_assert_null(unit_look(name, &error));
    g_assert_nonnull(error);
}

static void test_no_unit(void)
{
    check_refused("/dev/null");
    check_refused("/etc/passwd");
    check_refused("/nowhere");
    check_refused("nbd+unix:///x?socket=/nowhere");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/unit/difference", test_difference);
    g_test_add_func("/unit/samples", test_samples);
    g_test_add_func("/unit/json", test_json);
    g_test_add_func("/unit/none", test_no_unit);
    return g_test_run();
}
