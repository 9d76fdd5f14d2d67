/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A run adds h(its end) and takes away h(its begin), both modulo 2^128, where h is a 128-bit hash of a guest
 * offset and of what is constant along the run: the distance to the host offset.  What two neighbours
 * add and take away at their border cancels out.  So the sum does not depend on how the map is cut, costs the
 * same for a sector and a terabyte, and two maps have the same sum only if they are the same map
 * (or 128 bits collide).
 */
#include "blockmig/copy/map-sum.h"

#include <config.h>
#include <xxhash.h>

enum kind { KIND_DATA = 1, KIND_ZERO, KIND_PACKED };

static struct copy_map_sum term(enum kind kind, uint64_t guest, uint64_t constant)
{
    uint64_t words[3] = {GUINT64_TO_LE(kind), GUINT64_TO_LE(guest), GUINT64_TO_LE(constant)};
    XXH128_hash_t hash = XXH3_128bits(words, sizeof(words));

    return (struct copy_map_sum){.low = hash.low64, .high = hash.high64};
}

void map_sum_add(struct copy_map_sum *sum, const struct copy_map_sum *other)
{
    sum->low += other->low;
    sum->high += other->high + (sum->low < other->low);
}

void map_sum_subtract(struct copy_map_sum *sum, const struct copy_map_sum *other)
{
    uint64_t borrow = sum->low < other->low;

    sum->low -= other->low;
    sum->high -= other->high + borrow;
}

static void add_run(struct copy_map_sum *sum, enum kind kind, uint64_t guest, uint64_t length,
                    uint64_t constant)
{
    struct copy_map_sum begin = term(kind, guest, constant), end = term(kind, guest + length, constant);

    map_sum_add(sum, &end);
    map_sum_subtract(sum, &begin);
}

void map_sum_data(struct copy_map_sum *sum, uint64_t guest, uint64_t host, uint64_t length)
{
    add_run(sum, KIND_DATA, guest, length, host - guest);
}

void map_sum_zero(struct copy_map_sum *sum, uint64_t guest, uint64_t length)
{
    add_run(sum, KIND_ZERO, guest, length, 0);
}

void map_sum_packed(struct copy_map_sum *sum, uint64_t guest, uint64_t host)
{
    struct copy_map_sum point = term(KIND_PACKED, guest, host);
    map_sum_add(sum, &point);
}
