/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a unit answers: the first byte says to which command, the rest is the answer. */
#include "blockmig/storage/scsi.h"

#include "blockmig/storage/reservation-internal.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void sense(const uint8_t *data, size_t size)
{
    struct scsi_answer answer = {.status = 2};
    g_autofree char *text = NULL;
    g_autoptr(GError) error = NULL;

    scsi_parse_sense(data, size, &answer);
    text = scsi_describe(&answer);
    g_assert_true(g_utf8_validate(text, -1, NULL));
    g_assert_cmpint(scsi_judge(&answer), <=, SCSI_FAILED);
    scsi_is_unsupported(&answer);
    scsi_is_missing(&answer);
    scsi_was_reset(&answer);
    scsi_set_error(&error, &answer, "reading");
    g_assert_nonnull(error);
}

static void capacity(const uint8_t *data, size_t size)
{
    struct scsi_capacity found = {0};
    g_autoptr(GError) error = NULL;

    if (!scsi_parse_capacity(data, size, &found, &error)) {
        g_assert_nonnull(error);
        return;
    }
    g_assert_cmpuint(found.block_size, >=, 512);
    g_assert_cmpuint(found.block_size, <=, 4096);
    g_assert_cmpuint(found.blocks, <=, UINT64_MAX / found.block_size);
}

static void pages(const uint8_t *data, size_t size)
{
    struct scsi_limits limits = {0};
    bool unmap, write_same;
    g_autofree char *name = scsi_parse_unit_name(data, size);

    if (name)
        g_assert_true(g_utf8_validate(name, -1, NULL));
    scsi_parse_limits(data, size, &limits);
    scsi_parse_provisioning(data, size, &unmap, &write_same);
}

static void lba_status(const uint8_t *data, size_t size)
{
    bool mapped;
    uint64_t block = 0;

    if (size >= sizeof(block))
        memcpy(&block, data + size - sizeof(block), sizeof(block));
    scsi_parse_lba_status(data, size, block, &mapped);
}

static void reservation(const uint8_t *data, size_t size,
                        bool (*parse)(const uint8_t *, size_t, struct reservation_state *, GError **))
{
    struct reservation_state *state = reservation_state_new();
    g_autoptr(GError) error = NULL;

    if (parse(data, size, state, &error)) {
        reservation_holder(state);
        reservation_holder_key(state);
        reservation_type_name(state->type);
    } else {
        g_assert_nonnull(error);
    }
    reservation_state_free(state);
}

static void holder(enum reservation_in action, const uint8_t *data, size_t size)
{
    g_autofree char *name = reservation_name_holder(action, data, size);

    if (name)
        g_assert_true(g_utf8_validate(name, -1, NULL));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    /* Exactly the answer's size, so that a sanitizer sees a read beyond it. */
    g_autofree uint8_t *answer = size > 1 ? g_memdup2(data + 1, size - 1) : g_malloc(1);
    size_t length = size ? size - 1 : 0;

    switch (size ? data[0] % 9 : 0) {
    case 0:
        sense(answer, length);
        break;
    case 1:
        capacity(answer, length);
        break;
    case 2:
        pages(answer, length);
        break;
    case 3:
        lba_status(answer, length);
        break;
    case 4:
        reservation(answer, length, reservation_parse_full);
        break;
    case 5:
        reservation(answer, length, reservation_parse_keys);
        break;
    case 6:
        reservation(answer, length, reservation_parse_holder);
        break;
    case 7:
        holder(RESERVATION_READ_FULL, answer, length);
        break;
    default:
        holder(RESERVATION_READ_RESERVATION, answer, length);
        break;
    }
    return 0;
}
