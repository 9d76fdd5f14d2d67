/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the copier does with a target, as slowly and as plainly as possible: for tests of drivers.
 * `backing` is the layer below the image, or NULL.
 */
#ifndef TESTS_IMAGE_WRITER_H
#define TESTS_IMAGE_WRITER_H

#include "formats/chain.h"

bool writer_read(struct image *image, struct chain *backing, void *buffer, uint64_t length, uint64_t offset,
                 GError **error);
/* Places, writes, brings the fills. */
bool writer_write(struct image *image, struct chain *backing, const void *data, uint64_t length,
                  uint64_t offset, GError **error);
/* By metadata where possible, with bytes elsewhere. */
bool writer_zero(struct image *image, struct chain *backing, bool discard, uint64_t length, uint64_t offset,
                 GError **error);
/* The unit at `offset`; `data` has image->packed_unit bytes.  Written unpacked if it does not shrink. */
bool writer_pack(struct image *image, struct chain *backing, const void *data, uint64_t offset,
                 GError **error);

/* One random change of the image and of `model`, its expected content; no flush.  *offset and *length
 * say what was touched. */
bool writer_step(struct image *image, struct chain *backing, GRand *random, uint8_t *model, uint64_t *offset,
                 uint64_t *length, GError **error);

#endif
