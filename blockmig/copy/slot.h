/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The run of a copy and its slots.  Inside blockmig/copy only: copy.c is the loop, stage.c the step in
 * guest order, write.c what follows it.
 *
 *     LOADING    pieces are being read                    load_start
 *     PREPARING  SHA-256 and packing in threads           slot_loaded
 *     READY      waits for the slots before it            slot_prepared
 *     WRITING    placed; fills, then writes               slot_stage, gap_stage
 *     WRITTEN    waits for a buffer to read back into     slot_written
 *     CHECKING   being read back and compared             slot_check
 *     DONE       its buffers are given back already       slot_done
 *     FAILED     stays where it is: the frontier cannot pass it
 *
 * Slots stand in `slots` in guest order from the moment they are planned until all before them are DONE;
 * those from `unstaged` on have not been placed.  A gap is a slot without a buffer: zeros of any length that
 * must be made on the target.
 */
#ifndef BLOCKMIG_COPY_SLOT_H
#define BLOCKMIG_COPY_SLOT_H

#include "blockmig/copy/hash.h"
#include "blockmig/copy/map-sum.h"

enum slot_state {
    SLOT_LOADING,
    SLOT_PREPARING,
    SLOT_READY,
    SLOT_WRITING,
    SLOT_WRITTEN,
    SLOT_CHECKING,
    SLOT_DONE,
    SLOT_FAILED
};

struct copy {
    struct copier copier;
    struct reader reader;
    struct image *target;
    bool identity;         /* of the target: what goes where never changes */
    bool overlay;          /* of the target: zeros must hide what is below */
    bool whole;            /* what is copied are whole units of the target: they need no fills */
    bool zero_is_free;     /* what is not placed reads as zeros */
    uint64_t granule;      /* of zero detection */
    uint64_t packed_unit;  /* of the target; 0: do not compress */
    uint64_t begin, end;   /* of the source that is copied */
    uint64_t target_end;   /* > end: what follows on the target must be zeros */
    uint64_t feed;         /* everything below it has a slot or needs none */
    struct slot *planned;  /* waits for the rate limit */
    GQueue slots;          /* of struct slot * */
    GList *unstaged;       /* in `slots` */
    unsigned loaded_slots; /* that hold a buffer of guest bytes */
    bool draining;         /* for a checkpoint: nothing is placed until all that was is DONE */
    bool target_failed;    /* what is on the target is in doubt */
    uint64_t checkpoint_position;
    uint64_t staged_data; /* since the last checkpoint */
    int64_t checkpoint_time;
    struct ring_op flush;    /* of what a server has in its cache, while the copy goes on */
    bool flushing;           /* it is on its way */
    uint64_t flushed;        /* bytes that were written when it was begun */
    struct copy_map_sum sum; /* of the slots that are gone */
    struct reader seed;
    bool no_seed; /* there is none, or its map cannot be read */
    bool no_reflink;
    GHashTable *reflinks; /* storage -> can it share blocks with the target? */
    uint8_t *zeros;       /* SLOT_SIZE of them, when first needed */
};

/* Where guest bytes go on the target. */
struct write_run {
    struct storage *storage;
    const uint8_t *data;
    uint64_t guest, host;
    size_t length;
    bool packed; /* data is a compressed unit, length its packed length */
};

struct slot {
    struct load load; /* first: a load of a copy is a slot */
    struct copy *copy;
    enum slot_state state;
    bool gap;
    bool salvaged; /* not all of it is what the source holds */
    uint64_t offset, end;
    uint64_t cursor;  /* of a gap: placed up to here */
    uint64_t settled; /* of a gap: done up to here */
    unsigned pending;
    struct hash hash;
    uint8_t *pack_buffer; /* compressed units, each with image_pack_room() */
    uint32_t *packed;     /* their lengths; 0: does not get smaller */
    uint8_t *back;
    GArray *fills;                /* of struct placement */
    GArray *writes;               /* of struct write_run */
    GArray *checks;               /* of struct write_run: what to read back */
    struct copy_map_sum sum;      /* of what was placed */
    struct copy_map_sum sum_done; /* of what is written and read back, until retire() takes it */
};

uint8_t *slot_at(const struct slot *slot, uint64_t guest);
void slot_fail(struct slot *slot, GError *error);

/* stage.c: digest, find zeros, place; starts the writes. */
void slot_stage(struct slot *slot);
/* The next step of a gap; the slot is staged when cursor is at its end. */
void gap_stage(struct slot *slot);
/* Compresses the units of the slot in threads; slot_prepared() follows. */
void slot_pack(struct slot *slot);

/* write.c */
/* Guest bytes [from, to) of a fill. */
struct placement fill_part(const struct placement *fill, uint64_t from, uint64_t to);
void slot_write(struct slot *slot);
void slot_check(struct slot *slot); /* `back` is there */

/* copy.c: what the other two report. */
void slot_prepared(struct slot *slot);
void slot_written(struct slot *slot);
void slot_done(struct slot *slot);

#endif
