/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An image of VHDX has several megabytes, mostly zeros.  So the input is not the image but what is in it: one
 * byte for its size in megabytes, then pieces, each with a sector number, a length (16 bits, little endian)
 * and so many bytes.  Checksums are set right, also those of log entries: no fuzzer guesses them.
 */
#include "formats/vhdx.h"

#include "formats/crc32c.h"
#include "tests/fuzz/image.h"

#include <string.h>

#define MAX_SIZE (UINT64_C(8) << 20)

/* Zeros between two inputs: only what an input wrote is wiped, for most of it is never touched. */
static uint8_t image[MAX_SIZE];
static GArray *touched; /* of struct range */

struct range {
    uint64_t offset, length;
};

static void write_image(uint64_t offset, const void *data, uint64_t length)
{
    struct range range = {offset, length};

    memcpy(image + offset, data, length);
    g_array_append_val(touched, range);
}

static void wipe_image(void)
{
    for (guint i = 0; i < touched->len; i++) {
        const struct range *range = &g_array_index(touched, struct range, i);

        memset(image + range->offset, 0, range->length);
    }
    g_array_set_size(touched, 0);
}

static void set_checksum(uint64_t size, uint64_t at, uint64_t length)
{
    uint8_t sum[4] = {0};

    if (at > size || length > size - at || length < 8)
        return;
    write_image(at + 4, sum, sizeof(sum));
    store_le32(sum, crc32c(0, image + at, length));
    write_image(at + 4, sum, sizeof(sum));
}

static void expand(const uint8_t *data, size_t left, uint64_t size)
{
    while (left >= 4) {
        uint64_t at = (uint64_t)load_le16(data) * VHDX_SECTOR, length = load_le16(data + 2);

        data += 4;
        left -= 4;
        length = MIN(length, left);
        if (at < size)
            write_image(at, data, MIN(length, size - at));
        data += length;
        left -= length;
    }
}

static void set_log_checksums(uint64_t size)
{
    uint64_t first = load_le64(image + VHDX_HEADER_OFFSET + 72);
    uint64_t length = load_le32(image + VHDX_HEADER_OFFSET + 68);

    if (first % VHDX_SECTOR || first >= size)
        return;
    for (uint64_t at = first; at < MIN(size, first + length); at += VHDX_SECTOR) {
        if (memcmp(image + at, "loge", 4) == 0)
            set_checksum(size, at, load_le32(image + at + 8));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint64_t total;
    int result;

    if (!size)
        return 0;
    if (!touched)
        touched = g_array_new(false, false, sizeof(struct range));
    total = MIN((data[0] + UINT64_C(1)) << 20, MAX_SIZE);
    expand(data + 1, size - 1, total);
    for (unsigned i = 0; i < 2; i++) {
        set_checksum(total, VHDX_HEADER_OFFSET * (i + 1), VHDX_SECTOR);
        set_checksum(total, VHDX_REGION_OFFSET + VHDX_TABLE * i, VHDX_TABLE);
    }
    set_log_checksums(total);
    result = fuzz_image(&format_vhdx, image, total);
    wipe_image();
    return result;
}
