/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which megabytes of the file are in use.  VHDX keeps no counts: it follows from the header, the regions and
 * the BAT, and so nothing leaks for good.
 *
 * Invariant: no megabyte below first_free is free, and no free run of `run` megabytes begins below first_run.
 */
#include "formats/vhdx.h"

#include <string.h>

static bool is_used(const struct vhdx_space *space, uint64_t unit)
{
    return unit / 64 < space->count && space->words[unit / 64] >> (unit % 64) & 1;
}

static void grow(struct vhdx_space *space, uint64_t unit)
{
    uint64_t count = unit / 64 + 1;

    if (count <= space->count)
        return;
    count = MAX(count, space->count + space->count / 2);
    space->words = g_renew(uint64_t, space->words, count);
    memset(space->words + space->count, 0, (count - space->count) * sizeof(uint64_t));
    space->count = count;
}

bool vhdx_space_claim(struct vhdx_space *space, uint64_t offset, uint64_t length)
{
    uint64_t first = offset / VHDX_MIB, last = (offset + length - 1) / VHDX_MIB;

    for (uint64_t unit = first; unit <= last; unit++) {
        if (is_used(space, unit))
            return false;
    }
    grow(space, last);
    for (uint64_t unit = first; unit <= last; unit++)
        space->words[unit / 64] |= UINT64_C(1) << (unit % 64);
    space->end = MAX(space->end, (last + 1) * VHDX_MIB);
    return true;
}

void vhdx_space_release(struct vhdx_space *space, uint64_t offset, uint64_t length)
{
    uint64_t first = offset / VHDX_MIB, end = (offset + length) / VHDX_MIB;

    for (uint64_t unit = first; unit < end; unit++)
        space->words[unit / 64] &= ~(UINT64_C(1) << (unit % 64));
    space->first_free = MIN(space->first_free, first);
    /* With what is free before it, it may be long enough. */
    space->first_run = MIN(space->first_run, first - MIN(first, space->run));
    while (space->end > 0 && !is_used(space, space->end / VHDX_MIB - 1))
        space->end -= VHDX_MIB;
}

static uint64_t next_free(const struct vhdx_space *space, uint64_t unit)
{
    for (; unit / 64 < space->count; unit = (unit / 64 + 1) * 64) {
        uint64_t free = ~space->words[unit / 64] >> (unit % 64);

        if (free)
            return unit + __builtin_ctzll(free);
    }
    return unit;
}

static uint64_t find_run(const struct vhdx_space *space, uint64_t unit, uint64_t wanted)
{
    for (unit = next_free(space, unit);; unit = next_free(space, unit)) {
        uint64_t length = 0;

        while (length < wanted && !is_used(space, unit + length))
            length++;
        if (length == wanted)
            return unit;
        unit += length;
    }
}

uint64_t vhdx_space_find(struct vhdx_space *space, uint64_t length)
{
    uint64_t wanted = length / VHDX_MIB, unit;

    space->first_free = next_free(space, space->first_free);
    if (wanted == 1)
        return space->first_free * VHDX_MIB;
    if (space->run != wanted)
        space->first_run = 0;
    space->run = wanted;
    unit = find_run(space, MAX(space->first_free, space->first_run), wanted);
    space->first_run = unit;
    return unit * VHDX_MIB;
}
