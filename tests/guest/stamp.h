/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The blocks that the test guest writes, and the one description of them that the guest and the
 * checker on the host share.
 *
 * Every write has a sequence number, from 1, without gaps, per disk.  Where a write goes is a function
 * of its stream and its sequence, so "flushed 12345" in a log names all the blocks that must be there.
 */
#ifndef TESTS_GUEST_STAMP_H
#define TESTS_GUEST_STAMP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    STAMP_BLOCK = 4096,
    STAMP_WORDS = STAMP_BLOCK / 8,
};

#define STAMP_MAGIC UINT64_C(0x314b434f4c424d42) /* "BMBLOCK1" on the disk */

struct stamp {
    uint64_t magic;
    uint64_t seed;     /* of this boot of this guest */
    uint64_t disk;     /* 0 is vda */
    uint64_t block;    /* in STAMP_BLOCK bytes */
    uint64_t sequence; /* from 1 */
    uint64_t checksum; /* over all words of the block, this one as 0 */
    uint64_t payload[STAMP_WORDS - 6];
};

/* Writes first, first + 1, ... that follow one rule. */
struct stream {
    uint64_t seed;
    uint64_t disk;
    uint64_t blocks; /* the part of the disk that is written, from its start */
    uint64_t first;
    bool random;
};

static inline uint64_t stamp_mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

/* The block that the write with this sequence goes to. */
static inline uint64_t stream_block(const struct stream *stream, uint64_t sequence)
{
    if (stream->random)
        return stamp_mix(stream->seed ^ stamp_mix(sequence + (stream->disk << 48))) % stream->blocks;
    return (sequence - stream->first) % stream->blocks;
}

static inline uint64_t stamp_checksum(const struct stamp *stamp)
{
    const uint64_t *words = (const uint64_t *)stamp;
    uint64_t sum = STAMP_MAGIC;
    for (unsigned i = 0; i < STAMP_WORDS; i++) {
        uint64_t word = &words[i] == &stamp->checksum ? 0 : words[i];
        sum = (sum ^ word) * UINT64_C(0x9e3779b97f4a7c15);
        sum ^= sum >> 29;
    }
    return sum;
}

static inline void stamp_fill(struct stamp *stamp, const struct stream *stream, uint64_t sequence)
{
    *stamp = (struct stamp){
        .magic = STAMP_MAGIC,
        .seed = stream->seed,
        .disk = stream->disk,
        .block = stream_block(stream, sequence),
        .sequence = sequence,
    };
    uint64_t x = stamp_mix(stream->seed ^ sequence ^ (stream->disk << 56));
    for (unsigned i = 0; i < STAMP_WORDS - 6; i++)
        stamp->payload[i] = x = stamp_mix(x + UINT64_C(0x9e3779b97f4a7c15));
    stamp->checksum = stamp_checksum(stamp);
}

enum stamp_state {
    STAMP_NONE, /* not a block of any guest */
    STAMP_TORN, /* begins as one, but its checksum is wrong */
    STAMP_WHOLE,
};

static inline enum stamp_state stamp_read(const struct stamp *stamp)
{
    if (stamp->magic != STAMP_MAGIC)
        return STAMP_NONE;
    return stamp->checksum == stamp_checksum(stamp) ? STAMP_WHOLE : STAMP_TORN;
}

static inline bool stamp_is_zero(const struct stamp *stamp)
{
    const uint64_t *words = (const uint64_t *)stamp;
    for (unsigned i = 0; i < STAMP_WORDS; i++)
        if (words[i] != 0)
            return false;
    return true;
}

/*
 * What is wrong with the block in a place where the write (seed, sequence) must be; NULL if nothing
 * is.  "newer data" may be right after a crash, if the write was in flight.
 */
static inline const char *stamp_fault(const struct stamp *found, uint64_t disk, uint64_t block, uint64_t seed,
                                      uint64_t sequence)
{
    switch (stamp_read(found)) {
    case STAMP_NONE:
        return stamp_is_zero(found) ? "lost write" : "foreign data";
    case STAMP_TORN:
        return "torn block";
    case STAMP_WHOLE:
        break;
    }
    if (found->disk != disk || found->block != block)
        return "foreign data";
    if (found->seed != seed)
        return "lost write";
    if (found->sequence == sequence)
        return NULL;
    return found->sequence < sequence ? "older data" : "newer data";
}

#endif
