/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A storage in memory that can fail like a medium: for unit tests and fuzz targets.
 *
 * Every write is logged.  memory_cut() gives the content that a crash could leave: everything up
 * to the n-th flush, plus any chosen subset of the writes after it, the last possibly torn.
 */
#ifndef BLOCKMIG_STORAGE_MEMORY_H
#define BLOCKMIG_STORAGE_MEMORY_H

#include "formats/storage.h"

struct memory_fault {
    enum { MEMORY_READ, MEMORY_WRITE, MEMORY_FLUSH, MEMORY_CORRUPT_WRITE } on;
    uint64_t offset, length; /* requests that touch this range; length 0: every request */
    unsigned skip;           /* let this many through first */
    unsigned count;          /* then fail this many; 0: for ever */
    int errnum;              /* EIO, ENOSPC; ignored for MEMORY_CORRUPT_WRITE, which writes a flipped
                              * bit and reports success */
};

/* `data` is copied; may be NULL for zeros.  capacity > 0: growing past it fails with ENOSPC. */
struct storage *storage_memory_new(const char *name, const void *data, uint64_t size, uint64_t capacity);
void storage_memory_add_fault(struct storage *storage, const struct memory_fault *fault);
void storage_memory_clear_faults(struct storage *storage);

/* The number of flushes so far, and the bytes that were there right after flush number n (0: the
 * initial content).  `keep(opaque, i)` decides for each write i after that flush and before the next whether
 * it reached the medium, i counting from 0 after that flush (NULL: none); `torn` cuts the last kept write at
 * that many bytes (0: whole). */
unsigned storage_memory_flush_count(struct storage *storage);
GByteArray *storage_memory_cut(struct storage *storage, unsigned flush,
                               bool (*keep)(void *opaque, unsigned i), void *opaque, size_t torn);
const uint8_t *storage_memory_data(struct storage *storage);
/* Writes so far as (offset, length) pairs, for tests that compare the exact list.  Zeroing is a write;
 * a resize stands there with the new size as offset and length 0. */
const GArray *storage_memory_writes(struct storage *storage); /* of struct memory_write */
struct memory_write {
    uint64_t offset, length;
    unsigned after_flush;
};

#endif
