/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A storage for thousands of inputs a second: it borrows the input, and copies a page of it when it is
 * written.  What blockmig/storage/memory.h does for units, a log of writes and faults, it does not.
 */
#ifndef TESTS_FUZZ_CONTAINER_H
#define TESTS_FUZZ_CONTAINER_H

#include "formats/storage.h"

/* `data` must last as long as the storage.  What would make it longer than `capacity` fails with ENOSPC. */
struct storage *fuzz_container_new(const uint8_t *data, uint64_t size, uint64_t capacity);
/* Writes and changes of the size so far. */
unsigned fuzz_container_changes(const struct storage *storage);

#endif
