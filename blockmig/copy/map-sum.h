/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Sums over the map of an image: see struct copy_map_sum.  Inside blockmig/copy only. */
#ifndef BLOCKMIG_COPY_MAP_SUM_H
#define BLOCKMIG_COPY_MAP_SUM_H

#include "blockmig/copy/copy.h"

/* Guest bytes [guest, +length) are at [host, +length).  Joining or cutting runs does not change the sum. */
void map_sum_data(struct copy_map_sum *sum, uint64_t guest, uint64_t host, uint64_t length);
/* Guest bytes that read as zeros although there is something below them. */
void map_sum_zero(struct copy_map_sum *sum, uint64_t guest, uint64_t length);
/* The compressed unit that begins at `guest` is at `host`. */
void map_sum_packed(struct copy_map_sum *sum, uint64_t guest, uint64_t host);
void map_sum_add(struct copy_map_sum *sum, const struct copy_map_sum *other);
void map_sum_subtract(struct copy_map_sum *sum, const struct copy_map_sum *other);

#endif
