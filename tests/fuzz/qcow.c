/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/fuzz/image.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    return fuzz_image(&format_qcow, data, size);
}
