/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Dirty bitmaps: which ranges of a disk were written since the bitmap was made. */
#ifndef BLOCKMIG_STORAGE_BITMAP_H
#define BLOCKMIG_STORAGE_BITMAP_H

#include <stdint.h>

/* Who is told what a bitmap says, in the thread that reads it. */
struct bitmap_reader {
    /* Once, before the first range: the bitmap is there, of a disk of `size` bytes. */
    void (*begin)(void *opaque, uint64_t size);
    /* A dirty range in bytes, inside the disk, not empty.  They ascend, and no two touch. */
    void (*dirty)(void *opaque, uint64_t offset, uint64_t length);
    void *opaque;
};

#endif
