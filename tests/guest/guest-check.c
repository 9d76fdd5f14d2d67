/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * guest-check LOG DISK [IMAGE]: does a raw view of a disk (standard input if it is not named) hold what the
 * test guest's console log promises?
 *
 * After "stopped N" it must hold exactly the writes up to N.  After "flushed N", which is what a crash
 * leaves, it must hold at least those; a later write of the guest in its right place is right too.
 *
 * Exit: 0 and a line "OK ..." if it does, 1 and "BAD ..." if not, 2 for trouble.
 */
#include "stamp.h"

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TROUBLE = 2, STREAMS_MAX = 4096 };

/* One run of writes out of the log, in the order of the log. */
struct run {
    struct stream stream;
    uint64_t promised; /* the last sequence of it that must be there; first - 1: none */
    uint64_t possible; /* the last one that can be there */
};

static struct run runs[STREAMS_MAX];
static unsigned n_runs;

/* Per block, the run and sequence that must be there; run 0 is none, so runs count from 1 here. */
struct promise {
    uint64_t sequence;
    uint32_t run;
};
static struct promise *promises;
static uint64_t n_blocks;

static void begin_run(uint64_t disk, uint64_t seed, uint64_t blocks, uint64_t first, bool random)
{
    if (n_runs == STREAMS_MAX)
        errx(TROUBLE, "the log has more than %d streams", STREAMS_MAX);
    if (blocks == 0 || blocks > UINT64_C(1) << 32)
        errx(TROUBLE, "the log speaks of %" PRIu64 " blocks", blocks);
    for (unsigned i = 0; i < n_runs; i++)
        if (first == 1 && runs[i].stream.seed == seed && runs[i].promised >= runs[i].stream.first)
            errx(TROUBLE, "two boots with the same seed");
    if (n_runs > 0 && runs[n_runs - 1].stream.seed == seed)
        runs[n_runs - 1].possible = first - 1;
    runs[n_runs++] = (struct run){
        .stream = {.seed = seed, .disk = disk, .blocks = blocks, .first = first, .random = random},
        .promised = first - 1,
        .possible = UINT64_MAX,
    };
    n_blocks = blocks > n_blocks ? blocks : n_blocks;
}

/* A flush covers every run of the same boot before it. */
static void promise_up_to(uint64_t sequence)
{
    if (n_runs == 0)
        errx(TROUBLE, "a flush before the first stream in the log");
    for (unsigned i = 0; i < n_runs; i++) {
        struct run *run = &runs[i];
        if (run->stream.seed != runs[n_runs - 1].stream.seed)
            continue;
        run->promised = sequence < run->possible ? sequence : run->possible;
    }
}

/* The last line may be cut in the middle by a crash, so only lines with an end count. */
static void read_log(const char *path, uint64_t wanted)
{
    FILE *file = fopen(path, "re");
    char line[512], kind[16];
    if (file == NULL)
        err(TROUBLE, "%s", path);
    while (fgets(line, sizeof(line), file) != NULL) {
        uint64_t disk, seed, blocks, first, sequence;
        if (strchr(line, '\n') == NULL)
            continue;
        if (sscanf(line, "log: disk %" SCNu64, &disk) != 1 || disk != wanted)
            continue;
        if (sscanf(line, "log: disk %*u seed %" SCNx64 " blocks %" SCNu64 " from %" SCNu64 " %15s", &seed,
                   &blocks, &first, kind) == 4) {
            begin_run(disk, seed, blocks, first, strcmp(kind, "random") == 0);
        } else if (sscanf(line, "log: disk %*u flushed %" SCNu64, &sequence) == 1) {
            promise_up_to(sequence);
        } else if (sscanf(line, "log: disk %*u stopped %" SCNu64, &sequence) == 1) {
            promise_up_to(sequence);
            runs[n_runs - 1].possible = sequence;
        }
    }
    fclose(file);
    if (n_runs == 0)
        errx(TROUBLE, "%s: says nothing about disk %" PRIu64, path, wanted);
}

static void replay(void)
{
    promises = calloc(n_blocks, sizeof(*promises));
    if (promises == NULL)
        errx(TROUBLE, "not enough memory for %" PRIu64 " blocks", n_blocks);
    for (unsigned i = 0; i < n_runs; i++)
        for (uint64_t s = runs[i].stream.first; s <= runs[i].promised; s++)
            promises[stream_block(&runs[i].stream, s)] = (struct promise){.sequence = s, .run = i + 1};
}

/* Is this a write that some run, not older than the promised one, would have put here? */
static bool is_later_write(const struct stamp *found, const struct promise *promise, uint64_t disk,
                           uint64_t block)
{
    if (stamp_read(found) != STAMP_WHOLE || found->disk != disk || found->block != block)
        return false;
    for (unsigned i = promise->run > 0 ? promise->run - 1 : 0; i < n_runs; i++) {
        const struct run *run = &runs[i];
        bool older = i + 1 == promise->run && found->sequence < promise->sequence;
        if (run->stream.seed == found->seed && found->sequence >= run->stream.first && !older &&
            found->sequence <= run->possible && stream_block(&run->stream, found->sequence) == block)
            return true;
    }
    return false;
}

static const char *judge(const struct stamp *found, const struct promise *promise, uint64_t disk,
                         uint64_t block)
{
    if (is_later_write(found, promise, disk, block))
        return NULL;
    if (promise->run > 0)
        return stamp_fault(found, disk, block, runs[promise->run - 1].stream.seed, promise->sequence);
    /* Nothing was promised: only a write of these boots has no business here. */
    for (unsigned i = 0; i < n_runs; i++)
        if (stamp_read(found) == STAMP_WHOLE && found->seed == runs[i].stream.seed)
            return "foreign data";
    return NULL;
}

static bool read_block(int fd, struct stamp *stamp)
{
    size_t used = 0;
    while (used < sizeof(*stamp)) {
        ssize_t n = read(fd, (char *)stamp + used, sizeof(*stamp) - used);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            err(TROUBLE, "reading");
        if (n == 0)
            return false;
        used += (size_t)n;
    }
    return true;
}

static int check(int fd, uint64_t disk)
{
    uint64_t checked = 0, wrong = 0;
    char first[160] = "";
    struct stamp found;
    for (uint64_t block = 0; block < n_blocks; block++) {
        const struct promise *promise = &promises[block];
        if (!read_block(fd, &found))
            errx(TROUBLE, "the image ends at block %" PRIu64 " of %" PRIu64, block, n_blocks);
        checked += promise->run > 0;
        const char *fault = judge(&found, promise, disk, block);
        if (fault != NULL && wrong++ == 0)
            snprintf(first, sizeof(first),
                     "vd%c block %" PRIu64 ": %s, expected sequence %" PRIu64 ", found %" PRIu64,
                     (char)('a' + disk), block, fault, promise->sequence,
                     found.magic == STAMP_MAGIC ? found.sequence : 0);
    }
    if (wrong > 0)
        printf("BAD %s; %" PRIu64 " of %" PRIu64 " blocks wrong\n", first, wrong, checked);
    else if (checked == 0)
        printf("BAD the log promises nothing\n");
    else
        printf("OK %" PRIu64 " blocks\n", checked);
    return checked == 0 || wrong > 0 ? 1 : 0;
}

int main(int argc, char **argv)
{
    if (argc < 3 || argc > 4)
        errx(TROUBLE, "usage: guest-check LOG DISK [IMAGE]");
    uint64_t disk = strtoull(argv[2], NULL, 10);
    int fd = argc == 4 ? open(argv[3], O_RDONLY | O_CLOEXEC) : STDIN_FILENO;
    if (fd < 0)
        err(TROUBLE, "%s", argv[3]);
    read_log(argv[1], disk);
    replay();
    return check(fd, disk);
}
