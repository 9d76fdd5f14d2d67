/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/storage/scsi.h"

#include "formats/bytes.h"
#include "formats/error.h"

#include <string.h>

enum {
    STATUS_GOOD = 0x00,
    STATUS_CHECK = 0x02,
    STATUS_BUSY = 0x08,
    STATUS_CONFLICT = 0x18,
    STATUS_FULL = 0x28
};

enum {
    KEY_NOT_READY = 0x2,
    KEY_MEDIUM_ERROR = 0x3,
    KEY_ILLEGAL_REQUEST = 0x5,
    KEY_UNIT_ATTENTION = 0x6,
    KEY_DATA_PROTECT = 0x7,
    KEY_ABORTED = 0xb,
};

/* ---- sense ---- */

static void parse_descriptors(const uint8_t *sense, size_t length, struct scsi_answer *answer)
{
    size_t at = 8;

    while (at + 2 <= length) {
        size_t size = (size_t)sense[at + 1] + 2;

        if (sense[at] == 0x00 && size >= 12 && at + 12 <= length && (sense[at + 2] & 0x80)) {
            answer->has_information = true;
            answer->information = load_be64(sense + at + 4);
        }
        at += size;
    }
}

void scsi_parse_sense(const uint8_t *sense, size_t length, struct scsi_answer *answer)
{
    uint8_t code = length > 0 ? sense[0] & 0x7f : 0;

    if ((code == 0x72 || code == 0x73) && length >= 4) {
        answer->key = sense[1] & 0x0f;
        answer->asc = sense[2];
        answer->ascq = sense[3];
        parse_descriptors(sense, length, answer);
    } else if ((code == 0x70 || code == 0x71) && length >= 8) {
        answer->key = sense[2] & 0x0f;
        answer->has_information = sense[0] & 0x80;
        answer->information = load_be32(sense + 3);
        if (length >= 14) {
            answer->asc = sense[12];
            answer->ascq = sense[13];
        }
    }
}

static bool is(const struct scsi_answer *answer, uint8_t key, uint8_t asc, uint8_t ascq)
{
    return answer->status == STATUS_CHECK && answer->key == key && answer->asc == asc && answer->ascq == ascq;
}

/* Becoming ready, between two states of its paths, or making space. */
static bool passes_by_itself(const struct scsi_answer *answer)
{
    static const uint8_t qualifiers[] = {0x01, 0x07, 0x0a, 0x14};

    for (size_t i = 0; i < G_N_ELEMENTS(qualifiers); i++)
        if (is(answer, KEY_NOT_READY, 0x04, qualifiers[i]))
            return true;
    return answer->status == STATUS_CHECK && answer->key == KEY_ABORTED;
}

enum scsi_verdict scsi_judge(const struct scsi_answer *answer)
{
    if (answer->status == STATUS_GOOD)
        return SCSI_GOOD;
    if (answer->status == STATUS_BUSY || answer->status == STATUS_FULL || passes_by_itself(answer))
        return SCSI_LATER;
    if (answer->status == STATUS_CHECK && answer->key == KEY_UNIT_ATTENTION)
        return SCSI_ATTENTION;
    return answer->status == STATUS_CONFLICT ? SCSI_CONFLICT : SCSI_FAILED;
}

bool scsi_is_unsupported(const struct scsi_answer *answer)
{
    return answer->status == STATUS_CHECK && answer->key == KEY_ILLEGAL_REQUEST;
}

bool scsi_is_missing(const struct scsi_answer *answer)
{
    return is(answer, KEY_ILLEGAL_REQUEST, 0x25, 0x00);
}

/* 29h/07h is only the loss of the nexus: the cache is that of the unit and stays. */
bool scsi_was_reset(const struct scsi_answer *answer)
{
    return answer->status == STATUS_CHECK && answer->key == KEY_UNIT_ATTENTION && answer->asc == 0x29 &&
           answer->ascq != 0x07;
}

const char *scsi_news(const struct scsi_answer *answer)
{
    static const struct {
        uint8_t asc, ascq;
        const char *text;
    } news[] = {
        {0x2a, 0x03, "somebody has taken our reservation of the unit away"},
        {0x2a, 0x04, "somebody has released the reservation of the unit"},
        {0x2a, 0x05, "somebody has taken our registration with the unit away"},
        {0x2a, 0x09, "the unit has another capacity than before"},
        {0x38, 0x07, "the unit says that its thin pool is filled up to a threshold"},
        {0x3f, 0x03, "the unit describes itself in another way than before"},
        {0x3f, 0x0e, "the target has other units than before"},
    };

    if (answer->status != STATUS_CHECK || answer->key != KEY_UNIT_ATTENTION)
        return NULL;
    for (size_t i = 0; i < G_N_ELEMENTS(news); i++)
        if (answer->asc == news[i].asc && answer->ascq == news[i].ascq)
            return news[i].text;
    return answer->asc == 0x5d || answer->asc == 0x0b ? "the unit says that it is about to fail" : NULL;
}

static const char *name_of(const struct scsi_answer *answer)
{
    static const char *const keys[16] = {
        "no sense",       "recovered error", "not ready",      "medium error",
        "hardware error", "illegal request", "unit attention", "data protect",
        "blank check",    "vendor specific", "copy aborted",   "aborted command",
        "equal",          "volume overflow", "miscompare",     "completed",
    };

    switch (answer->status) {
    case STATUS_CHECK:
        return keys[answer->key & 0x0f];
    case STATUS_BUSY:
        return "busy";
    case STATUS_FULL:
        return "task set full";
    case STATUS_CONFLICT:
        return "reservation conflict";
    default:
        return "status";
    }
}

char *scsi_describe(const struct scsi_answer *answer)
{
    g_autofree char *block = answer->has_information
                                 ? g_strdup_printf(" at block %" G_GUINT64_FORMAT, answer->information)
                                 : g_strdup("");

    if (answer->status != STATUS_CHECK)
        return g_strdup_printf("%s (%02Xh)", name_of(answer), answer->status);
    return g_strdup_printf("%s (%02Xh/%02Xh/%02Xh)%s", name_of(answer), answer->key, answer->asc,
                           answer->ascq, answer->key == KEY_MEDIUM_ERROR ? block : "");
}

bool scsi_set_error(GError **error, const struct scsi_answer *answer, const char *what)
{
    g_autofree char *text = scsi_describe(answer);
    enum blockmig_error code = BLOCKMIG_ERROR_FAILED;

    if (scsi_is_missing(answer))
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s: the target has no such unit", what);
    if (is(answer, KEY_DATA_PROTECT, 0x27, 0x07))
        return blockmig_fail(error, BLOCKMIG_ERROR_NOSPACE,
                             "%s: the pool that the unit takes its space from is full: %s", what, text);
    if (answer->status == STATUS_CHECK && answer->key == KEY_MEDIUM_ERROR)
        code = BLOCKMIG_ERROR_IO;
    return blockmig_fail(error, code, "%s: %s", what, text);
}

/* ---- commands ---- */

static void start(uint8_t *cdb, uint8_t operation)
{
    memset(cdb, 0, SCSI_CDB_BYTES);
    cdb[0] = operation;
}

static void range(uint8_t *cdb, uint8_t operation, uint64_t block, uint32_t count)
{
    start(cdb, operation);
    store_be64(cdb + 2, block);
    store_be32(cdb + 10, count);
}

void cdb_inquiry(uint8_t *cdb, int page, uint16_t room)
{
    start(cdb, 0x12);
    cdb[1] = page >= 0;
    cdb[2] = page >= 0 ? page : 0;
    store_be16(cdb + 3, room);
}

void cdb_test_unit_ready(uint8_t *cdb)
{
    start(cdb, 0x00);
}

void cdb_read_capacity(uint8_t *cdb, uint32_t room)
{
    range(cdb, 0x9e, 0, room);
    cdb[1] = 0x10;
}

void cdb_read(uint8_t *cdb, uint64_t block, uint32_t count)
{
    range(cdb, 0x88, block, count);
}

void cdb_write(uint8_t *cdb, uint64_t block, uint32_t count)
{
    range(cdb, 0x8a, block, count);
}

void cdb_write_same(uint8_t *cdb, uint64_t block, uint32_t count, bool may_unmap)
{
    range(cdb, 0x93, block, count);
    cdb[1] = may_unmap ? 0x08 : 0;
}

void cdb_synchronize_cache(uint8_t *cdb)
{
    start(cdb, 0x91); /* block 0, count 0: everything */
}

void cdb_unmap(uint8_t *cdb, uint16_t length)
{
    start(cdb, 0x42);
    store_be16(cdb + 7, length);
}

void cdb_get_lba_status(uint8_t *cdb, uint64_t block, uint32_t room)
{
    range(cdb, 0x9e, block, room);
    cdb[1] = 0x12;
}

void cdb_reserve_in(uint8_t *cdb, uint8_t action, uint16_t room)
{
    start(cdb, 0x5e);
    cdb[1] = action;
    store_be16(cdb + 7, room);
}

void cdb_reserve_out(uint8_t *cdb, uint8_t action, uint8_t type, uint32_t length)
{
    start(cdb, 0x5f);
    cdb[1] = action;
    cdb[2] = type; /* scope 0: the whole unit */
    store_be32(cdb + 5, length);
}

void scsi_unmap_list(uint8_t *list, uint64_t block, uint32_t count)
{
    memset(list, 0, SCSI_UNMAP_BYTES);
    store_be16(list, SCSI_UNMAP_BYTES - 2);
    store_be16(list + 2, SCSI_UNMAP_BYTES - 8);
    store_be64(list + 8, block);
    store_be32(list + 16, count);
}

/* ---- answers ---- */

bool scsi_parse_capacity(const uint8_t *data, size_t length, struct scsi_capacity *capacity, GError **error)
{
    uint64_t last;

    if (length < 12)
        return blockmig_fail(error, BLOCKMIG_ERROR_FAILED,
                             "the answer to READ CAPACITY(16) has only %zu bytes", length);
    last = load_be64(data);
    capacity->block_size = load_be32(data + 8);
    if (capacity->block_size < 512 || capacity->block_size > 4096 ||
        (capacity->block_size & (capacity->block_size - 1)) != 0)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "blocks of %u bytes are not supported",
                             capacity->block_size);
    if (last >= (uint64_t)INT64_MAX / capacity->block_size)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "the unit says that its last block is %" G_GUINT64_FORMAT ", which cannot be",
                             last);
    capacity->blocks = last + 1;
    capacity->thin = length >= 16 && data[14] & 0x80;
    capacity->unmapped_zero = capacity->thin && data[14] & 0x40;
    return true;
}

/* A VPD page as it was asked for, cut to what it says that it holds; 0 if it is another one. */
static size_t page_length(const uint8_t *data, size_t length, uint8_t page)
{
    return length >= 4 && data[1] == page ? MIN(length, (size_t)load_be16(data + 2) + 4) : 0;
}

void scsi_parse_limits(const uint8_t *data, size_t length, struct scsi_limits *limits)
{
    length = page_length(data, length, 0xb0);
    *limits = (struct scsi_limits){0};
    if (length >= 12)
        limits->max_transfer = load_be32(data + 8);
    if (length >= 28 && load_be32(data + 24) > 0)
        limits->max_unmap = load_be32(data + 20);
    if (length >= 44)
        limits->max_write_same = load_be64(data + 36);
}

void scsi_parse_provisioning(const uint8_t *data, size_t length, bool *unmap, bool *write_same)
{
    length = page_length(data, length, 0xb2);
    *unmap = length >= 6 && data[5] & 0x80;
    *write_same = length >= 6 && data[5] & 0x40;
}

/* Registered names only: NAA 2, 5 and 6, and EUI-64. NAA 3 is anybody's choice. */
static bool is_unique(const uint8_t *designator, size_t length)
{
    unsigned kind = designator[1] & 0x0f, association = designator[1] >> 4 & 3, naa;

    if (association != 0 || length < 8)
        return false;
    naa = designator[4] >> 4;
    return kind == 2 || (kind == 3 && (naa == 2 || naa == 5 || naa == 6));
}

char *scsi_parse_unit_name(const uint8_t *data, size_t length)
{
    size_t at = 4;

    length = page_length(data, length, 0x83);
    while (at + 4 <= length) {
        size_t size = data[at + 3];

        if (at + 4 + size > length)
            break;
        if (is_unique(data + at, size)) {
            GString *name = g_string_new((data[at + 1] & 0x0f) == 3 ? "naa." : "eui.");

            for (size_t i = 0; i < size; i++)
                g_string_append_printf(name, "%02x", data[at + 4 + i]);
            return g_string_free(name, FALSE);
        }
        at += 4 + size;
    }
    return NULL;
}

uint64_t scsi_parse_lba_status(const uint8_t *data, size_t length, uint64_t block, bool *mapped)
{
    uint64_t first, count;

    if (length < 24)
        return 0;
    first = load_be64(data + 8);
    count = load_be32(data + 16);
    if (first > block || count <= block - first)
        return 0;
    *mapped = (data[20] & 0x0f) != 1; /* "anchored" may have a content of its own too */
    return count - (block - first);
}
