/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Any bytes as a sparse extent; what kind of extent the first one says. The disk is small: the tables matter.
 */
#include "tests/fuzz/image.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *type = size && data[0] == 'C'    ? "VMFSSPARSE"
                       : size && data[0] == 0xbe ? "SESPARSE"
                                                 : "SPARSE";
    g_autofree char *text =
        g_strdup_printf("version=1\nCID=12345678\nparentCID=%s\ncreateType=custom\n"
                        "RW 16 %s \"x\"\nRW 9 ZERO\nRW 5 %s \"y\"\n",
                        size && data[size - 1] & 2 ? "1\nparentFileNameHint=p" : "ffffffff", type, type);

    return fuzz_image_with_data(&format_vmdk, (const uint8_t *)text, strlen(text), data, size);
}
