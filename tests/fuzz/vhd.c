/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Checksums are set right first: no fuzzer guesses them. */
#include "formats/vhd.h"

#include "tests/fuzz/image.h"

static void set_checksum(uint8_t *data, size_t size, uint64_t at, size_t length, size_t field)
{
    if (at < size && length <= size - at)
        store_be32(data + at + field, vhd_checksum(data + at, length, field));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autofree uint8_t *right = g_memdup2(data, size);

    if (size < VHD_SECTOR)
        return fuzz_image(&format_vhd, data, size);
    set_checksum(right, size, 0, VHD_SECTOR, VHD_FOOTER_CHECKSUM);
    set_checksum(right, size, size - VHD_SECTOR, VHD_SECTOR, VHD_FOOTER_CHECKSUM);
    set_checksum(right, size, load_be64(right + size - VHD_SECTOR + VHD_FOOTER_DATA_OFFSET), VHD_HEADER,
                 VHD_HEADER_CHECKSUM);
    return fuzz_image(&format_vhd, right, size);
}
