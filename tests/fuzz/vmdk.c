/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Descriptors, alone or in an image. */
#include "tests/fuzz/image.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    return fuzz_image(&format_vmdk, data, size);
}
