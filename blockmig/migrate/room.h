/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A datastore that a machine writes to while its disks are moved: how fast it fills, and whether the overlays
 * there can still be rolled back.
 *
 * What must stay free on the source is what rolling back takes:
 *
 *   what a thin base can grow when the overlays are committed into it,
 *   and what the machine writes while that is done, at the rate at which they (or others) grow now.
 *
 * A commit copies 64 KiB for each 4 KiB that the machine wrote somewhere, so the base grows by far more than
 * the overlays have.  What is touched shows in an overlay's length: each cluster of it has a place in the
 * file, though most of the place may be a hole.
 */
#ifndef BLOCKMIG_MIGRATE_ROOM_H
#define BLOCKMIG_MIGRATE_ROOM_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define ROOM_SAMPLES     16                   /* one every look: four seconds */
#define ROOM_LOOK        (G_USEC_PER_SEC / 4) /* between two of them */
#define ROOM_RESERVE     (UINT64_C(16) << 20) /* less than preflight asks for, so that nothing ends at once */
#define ROOM_COMMIT_RATE ((double)(UINT64_C(32) << 20)) /* bytes per second that a commit does at least */
#define ROOM_GRACE       3.0                            /* seconds until somebody acts */

struct room_sample {
    int64_t time;
    uint64_t growing; /* bytes of the overlays that the machine writes to */
    uint64_t ours;    /* bytes of all files of the move that lie there */
    uint64_t free;
};

struct room {
    struct room_sample samples[ROOM_SAMPLES];
    unsigned count;
    double growth; /* of the machine's overlays, in bytes per second of late; negative: not known */
    double rate;   /* that and what others take, but not what we copy */
    bool warned, slowed;
};

/* Of a file, or the sums of several. */
struct footprint {
    uint64_t bytes;  /* allocated */
    uint64_t length; /* to the last byte */
};

struct room_need {
    uint64_t overlays, commit;
};

struct footprint footprint_of(const char *path); /* 0, 0: it is not there */
void footprint_add(struct footprint *sum, struct footprint more);
/* What a thin image can still grow by. */
uint64_t room_to_grow(const char *image, uint64_t size);
/* The file system that `path` lies on, or would lie on. */
bool room_device(const char *path, dev_t *device);

void room_take_sample(struct room *room, uint64_t growing, uint64_t ours, uint64_t free);
uint64_t room_last_free(const struct room *room);
/* A rate that is not known yet counts as none. */
double room_known(double rate);
/* Takes a sample of the source's datastore `directory`, of which the move's files have `ours`. False: the
 * overlays have to be rolled back now, CANCELLED says why.  *spare: bytes that are free beyond that. */
bool room_for_rollback(struct room *room, const char *directory, const struct room_need *need, uint64_t ours,
                       double *spare, GError **error);

#endif
