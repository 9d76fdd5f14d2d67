/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Many requests in flight, any of which may finish next.
 *
 * Requests that O_DIRECT can take (storage has direct_fd; offset, length and memory are multiples of its
 * alignment) go to io_uring; what a storage can do by itself (ops->start) to the storage; everything else,
 * and everything where io_uring is refused, to a pool of threads.  A request may take several turns: no
 * engine gets more of it at a time than ring_limit() allows.  All functions belong to the thread that made
 * the ring; inside call() there is blockmig/storage/direct.h.
 */
#ifndef BLOCKMIG_COPY_RING_H
#define BLOCKMIG_COPY_RING_H

#include "formats/storage.h"

enum ring_kind {
    RING_READ,
    RING_WRITE,
    RING_CHECK, /* does the medium hold what is in the buffer?  The storage must have `check` */
    RING_CLONE, /* share blocks of `from` instead of writing (FICLONERANGE) */
    RING_CALL,  /* work for a processor: call() in a thread of the pool */
};

/* Owned by the caller, untouched by it between ring_submit() and its return from ring_wait(). */
struct ring_op {
    enum ring_kind kind;
    struct storage *storage;
    void *buffer;
    size_t length;
    uint64_t offset;
    struct storage *from; /* CLONE */
    uint64_t from_offset;
    const struct storage_seed *seeds; /* WRITE: as in struct storage_request */
    unsigned seed_count;
    bool past_cache; /* READ: from the medium also where there is no O_DIRECT: drops the range from the cache
                      */
    bool buffered;   /* WRITE: through storage_pwrite(), whatever the alignment */
    bool (*call)(struct ring_op *op, GError **error);
    void (*done)(struct ring_op *op); /* for the caller of ring_wait(); the ring does not call it */
    GError *error;                    /* after completion; the caller frees it */
    int errnum;                       /* of a failed CLONE: 0 if it says nothing about the file systems */

    /* The ring's. */
    size_t finished; /* by the turns before */
    size_t turn;     /* bytes of this one */
    unsigned lane;
    struct storage_request request;
    struct ring *ring;
    struct ring_op *next;
};

struct ring;

/* `depth` requests at most are with the kernel at a time, and with each other engine; the rest wait here in
 * order. */
struct ring *ring_new(unsigned depth, unsigned threads, bool no_uring, GError **error);
void ring_free(struct ring *ring); /* nothing may be in flight */
const char *ring_engine(const struct ring *ring);
/* Memory in which most requests will lie: pinned once instead of at every request. */
void ring_register(struct ring *ring, void *memory, size_t length);

void ring_submit(struct ring *ring, struct ring_op *op);
/* Gives what was submitted to the kernel without waiting; ring_wait() does it too. */
void ring_kick(struct ring *ring);
/* A finished request, or NULL after `timeout` microseconds (or earlier). */
struct ring_op *ring_wait(struct ring *ring, int64_t timeout);
unsigned ring_in_flight(const struct ring *ring);
/* From now on at most `bytes` of reads and writes are on their way at a time, and no single one is larger; in
 * steps of 64 KiB, which is the least.  0: nothing new is begun; G_MAXSIZE, as at first: no limit. */
void ring_limit(struct ring *ring, size_t bytes);

#endif
