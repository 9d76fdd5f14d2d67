/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Any bytes as an image: open, check, map, unpack; then on a copy that may be written to: repair, place,
 * zero, pack, flush.  Whatever the driver answers, it must not crash, hang or use much memory.
 */
#ifndef TESTS_FUZZ_IMAGE_H
#define TESTS_FUZZ_IMAGE_H

#include "formats/image.h"

int fuzz_image(const struct format *format, const uint8_t *data, size_t size);
/* The same bytes for each of its data files. */
int fuzz_image_with_data(const struct format *format, const uint8_t *data, size_t size, const uint8_t *extent,
                         size_t extent_size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
