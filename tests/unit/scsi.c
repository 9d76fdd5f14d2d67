/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Answers of SCSI units: what they say, and that those that lie are noticed. */
#include "blockmig/storage/scsi.h"

#include "blockmig/storage/iscsi-address.h"
#include "blockmig/storage/reservation.h"
#include "tests/unit/harness.h"

static struct scsi_answer check(const uint8_t *sense, size_t length)
{
    struct scsi_answer answer = {.status = 2};

    scsi_parse_sense(sense, length, &answer);
    return answer;
}

static void test_sense(void)
{
    const uint8_t fixed[18] = {0xf0, 0, 0x03, 0, 0, 0x10, 0x04, 10, 0, 0, 0, 0, 0x11, 0x01};
    const uint8_t descriptor[20] = {0x72, 0x03, 0x11, 0, 0, 0, 0, 12, 0, 10, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 2};
    struct scsi_answer answer = check(fixed, sizeof(fixed));
    g_autofree char *text = scsi_describe(&answer);

    g_assert_cmpstr(text, ==, "medium error (03h/11h/01h) at block 4100");
    answer = check(descriptor, sizeof(descriptor));
    g_assert_true(answer.has_information);
    g_assert_cmpuint(answer.information, ==, 0x100000002);
    for (size_t length = 0; length < sizeof(descriptor); length++) {
        answer = check(descriptor, length);
        g_assert_false(answer.has_information);
        answer = check(fixed, MIN(length, 7));
        g_assert_cmpuint(answer.key, ==, 0);
    }
}

static void test_verdicts(void)
{
    const struct {
        struct scsi_answer answer;
        enum scsi_verdict verdict;
    } cases[] = {
        {{.status = 0}, SCSI_GOOD},
        {{.status = 8}, SCSI_LATER},
        {{.status = 0x28}, SCSI_LATER},
        {{.status = 0x18}, SCSI_CONFLICT},
        {{2, 0x2, 0x04, 0x01}, SCSI_LATER},
        {{2, 0x2, 0x3a, 0x00}, SCSI_FAILED},
        {{2, 0x6, 0x29, 0x00}, SCSI_ATTENTION},
        {{2, 0x7, 0x27, 0x07}, SCSI_FAILED},
        {{2, 0xb, 0x00, 0x00}, SCSI_LATER},
        {{.status = 0x40}, SCSI_FAILED},
    };
    const struct scsi_answer nexus_lost = {2, 0x6, 0x29, 0x07}, power_on = {2, 0x6, 0x29, 0x01};

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++)
        g_assert_cmpint(scsi_judge(&cases[i].answer), ==, cases[i].verdict);
    g_assert_true(scsi_was_reset(&power_on));
    g_assert_false(scsi_was_reset(&nexus_lost));
}

static void test_capacity(void)
{
    g_autoptr(GError) error = NULL;
    uint8_t data[32] = {0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0x10, 0, 0, 0, 0xc0};
    struct scsi_capacity capacity;

    assert_ok(scsi_parse_capacity(data, sizeof(data), &capacity, &error));
    g_assert_cmpuint(capacity.blocks, ==, 65536);
    g_assert_cmpuint(capacity.block_size, ==, 4096);
    g_assert_true(capacity.thin && capacity.unmapped_zero);
    data[14] = 0x40; /* a promise about unmapped blocks of a unit that unmaps none */
    assert_ok(scsi_parse_capacity(data, sizeof(data), &capacity, &error));
    g_assert_false(capacity.unmapped_zero);
    assert_ok(scsi_parse_capacity(data, 12, &capacity, &error));
    g_assert_false(capacity.thin);
    assert_fails(scsi_parse_capacity(data, 11, &capacity, &error), BLOCKMIG_ERROR_FAILED, "only 11 bytes");
    memset(data, 0xff, 8);
    assert_fails(scsi_parse_capacity(data, 32, &capacity, &error), BLOCKMIG_ERROR_REFUSED, "cannot be");
    data[10] = 0x11;
    assert_fails(scsi_parse_capacity(data, 32, &capacity, &error), BLOCKMIG_ERROR_REFUSED, "not supported");
}

static void test_pages(void)
{
    uint8_t limits[64] = {0, 0xb0, 0, 60};
    uint8_t name[24] = {0, 0x83, 0, 20, 1, 0x03, 0, 8, 0x30, 1, 2, 3, 4, 5, 6, 7, 1, 0x13, 0, 4};
    const uint8_t naa[20] = {0, 0x83, 0, 16, 1, 0x03, 0, 8, 0x60, 1, 2, 3, 4, 5, 6, 7};
    const uint8_t status[24] = {[15] = 100, [19] = 50, [20] = 1};
    g_autofree char *text = NULL;
    struct scsi_limits parsed;
    bool mapped = true, unmap, same;

    limits[11] = 9;
    limits[23] = 7;
    scsi_parse_limits(limits, sizeof(limits), &parsed);
    g_assert_true(parsed.max_transfer == 9 && parsed.max_unmap == 0 && parsed.max_write_same == 0);
    limits[1] = 0xb1; /* not what was asked for */
    scsi_parse_limits(limits, sizeof(limits), &parsed);
    g_assert_cmpuint(parsed.max_transfer, ==, 0);
    scsi_parse_provisioning((const uint8_t[]){0, 0xb2, 0, 4, 0, 0xc0}, 6, &unmap, &same);
    g_assert_true(unmap && same);
    scsi_parse_provisioning((const uint8_t[]){0, 0xb2, 0, 4, 0, 0xc0}, 5, &unmap, &same);
    g_assert_false(unmap || same);
    g_assert_null(scsi_parse_unit_name(name, sizeof(name))); /* NAA 3 is anybody's */
    text = scsi_parse_unit_name(naa, sizeof(naa));
    g_assert_cmpstr(text, ==, "naa.6001020304050607");
    g_assert_null(scsi_parse_unit_name(naa, 15));
    g_assert_cmpuint(scsi_parse_lba_status(status, 24, 120, &mapped), ==, 30);
    g_assert_false(mapped);
    g_assert_cmpuint(scsi_parse_lba_status(status, 24, 150, &mapped), ==, 0);
    g_assert_cmpuint(scsi_parse_lba_status(status, 24, 99, &mapped), ==, 0);
    g_assert_cmpuint(scsi_parse_lba_status(status, 23, 120, &mapped), ==, 0);
}

/* Two registrants, of which the second holds the unit and has a name. */
static const uint8_t full[] = {
    0, 0, 0, 7,  0,   0,   0,   64,                                                            /* */
    0, 0, 0, 0,  0,   0,   0,   1,   0,   0,   0,    0,   0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0,  /* */
    0, 0, 0, 0,  0,   0,   0,   2,   0,   0,   0,    0,   1, 5, 0, 0, 0, 0, 0, 1, 0, 0, 0, 16, /* */
    5, 0, 0, 12, 'i', 'q', 'n', '.', 'x', ':', '\n', 'y', 0, 0, 0, 0,
};

static void test_reservations(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(reservation_state_t) state = reservation_state_new();
    const struct reservation_registrant *holder;

    assert_ok(reservation_parse_full(full, sizeof(full), state, &error));
    g_assert_cmpuint(state->registrants->len, ==, 2);
    holder = reservation_holder(state);
    g_assert_cmpuint(holder->key, ==, 2);
    g_assert_cmpstr(holder->initiator, ==, "iqn.x:?y");
    for (size_t length = 0; length < sizeof(full); length++) {
        g_autofree uint8_t *cut = g_memdup2(full, MAX(length, 1)); /* so that reading beyond it is seen */
        g_autoptr(reservation_state_t) less = reservation_state_new();

        assert_fails(reservation_parse_full(cut, length, less, &error), BLOCKMIG_ERROR_FAILED, "longer");
        assert_fails(reservation_parse_keys(cut, length, less, &error), BLOCKMIG_ERROR_FAILED, "longer");
        assert_fails(reservation_parse_holder(cut, length, less, &error), BLOCKMIG_ERROR_FAILED, "longer");
    }
}

/* Whatever comes, nothing outside the answer is read: for the sanitizers and valgrind. */
static void test_noise(void)
{
    g_autoptr(GRand) rand = harness_rand();

    for (unsigned round = 0; round < 20000; round++) {
        size_t length = g_rand_int_range(rand, 0, 80);
        g_autofree uint8_t *data = g_malloc(length + !length);
        g_autoptr(reservation_state_t) state = reservation_state_new();
        struct scsi_answer answer = {.status = 2};
        struct scsi_capacity capacity;
        struct scsi_limits limits;
        g_autofree char *name = NULL;
        bool flag;

        for (size_t i = 0; i < length; i++)
            data[i] = (uint8_t)g_rand_int_range(rand, 0, g_rand_boolean(rand) ? 256 : 3);
        if (length > 2 && round % 2)
            data[1] = (const uint8_t[]){0xb0, 0xb2, 0x83}[round / 2 % 3];
        scsi_parse_sense(data, length, &answer);
        scsi_parse_capacity(data, length, &capacity, NULL);
        scsi_parse_limits(data, length, &limits);
        scsi_parse_provisioning(data, length, &flag, &flag);
        name = scsi_parse_unit_name(data, length);
        scsi_parse_lba_status(data, length, 0, &flag);
        reservation_parse_full(data, length, state, NULL);
        reservation_parse_keys(data, length, state, NULL);
        reservation_parse_holder(data, length, state, NULL);
    }
}

static void test_addresses(void)
{
    static const char *const bad[] = {"iscsi://",
                                      "iscsi://host",
                                      "iscsi://host/iqn.x",
                                      "iscsi://host//1",
                                      "iscsi://host/iqn.x/",
                                      "iscsi://host/iqn.x/-1",
                                      "iscsi://host/iqn.x/1/2",
                                      "iscsi:///iqn.x/1",
                                      "iscsi://host/iqn%0ax/1"};
    g_autoptr(GError) error = NULL;
    g_autoptr(iscsi_address_t) address = iscsi_address_parse("iscsi://me@host:3261/iqn.x%3Ay/5", &error);

    g_assert_no_error(error);
    g_assert_cmpstr(address->name, ==, "iscsi://me@host:3261/iqn.x:y/5");
    g_assert_cmpstr(address->portal, ==, "host:3261");
    g_assert_cmpstr(address->target, ==, "iqn.x:y");
    g_assert_cmpint(address->lun, ==, 5);
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++)
        assert_fails(iscsi_address_parse(bad[i], &error) != NULL, BLOCKMIG_ERROR_USAGE, "");
    assert_fails(iscsi_address_parse("iscsi://me%secret@host/iqn.x/1", &error) != NULL, BLOCKMIG_ERROR_USAGE,
                 "command line");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/scsi/sense", test_sense);
    g_test_add_func("/scsi/verdicts", test_verdicts);
    g_test_add_func("/scsi/capacity", test_capacity);
    g_test_add_func("/scsi/pages", test_pages);
    g_test_add_func("/scsi/reservations", test_reservations);
    g_test_add_func("/scsi/noise", test_noise);
    g_test_add_func("/scsi/addresses", test_addresses);
    return g_test_run();
}
