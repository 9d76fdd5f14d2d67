/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Inside a move of a running machine: what its phases share.  One file per phase; job.c runs them.
 *
 * The source's layers are numbered.  Layer 0 is the image that the guest wrote before the move, with whatever
 * lies below it; layer n is the overlay of pass n; `top` is the one that the guest writes now.  Where they
 * stand, so that the disk's name never leads to stale data:
 *
 *   by_exchange (qcow2)   layer `top` has the disk's name, layer n < top is NAME.blockmig-n
 *   else (raw)            layer n is NAME.blockmig-n; the name leads nowhere, for no overlay is raw
 *
 * The hypervisor opens these files by descriptors, because it opens files again by name whenever a disk
 * becomes read-only or writable.  The target has its final name from the beginning; the overlay above it is
 * TARGET.blockmig-new.
 */
#ifndef BLOCKMIG_MIGRATE_LIVE_H
#define BLOCKMIG_MIGRATE_LIVE_H

#include "blockmig/migrate/phase.h"
#include "blockmig/vm/guard.h"
#include "blockmig/vm/vm.h"

struct live_disk {
    unsigned index;
    const struct vm_disk *vm; /* as it was described in preflight */
    char *name;               /* absolute path of the disk's image */
    const struct format *source_format;
    uint64_t size; /* virtual */
    bool by_exchange;

    /* How far the source is; what rollback undoes. */
    unsigned top;
    unsigned files;   /* overlays 1..files may be there */
    bool snapshotted; /* the machine writes to an overlay */
    char *base_node;  /* layer 0 as the machine opened it */
    bool based;       /* layer 0 is a node of ours, by descriptors */
    bool exchanged;   /* layer 0 gave up the disk's name */
    bool set_aside;   /* the top layer gave up the disk's name (live_layer_set_aside) */
    bool settled;     /* the machine writes to the merged target */
    struct chain *base;

    char *target_path, *target_overlay;
    char *handed_over; /* the merged target, of vm_hand_over() */
    const struct format *format;
    GHashTable *options;
    uint64_t needed; /* bytes on the target at most */
    bool created, overlay_created;
    struct image *target; /* open while we write to it */
    struct digest_table *digests;

    struct disk_report *report; /* borrowed from the job's report */
};

/* What was measured, and what follows from it.  Seconds and bytes. */
struct live_pace {
    int64_t layered;      /* monotonic time at which the present top layers were put on */
    double layer_time;    /* that the hypervisor takes to put layers on, mostly the last ones */
    uint64_t ship_bytes;  /* of the last pass */
    double quick_time;    /* of the least disturbed pass, for its size */
    uint64_t quick_bytes; /* its size */
    double dirty_rate;    /* of all disks together, per second */
    double forecast;
};

struct live_job {
    struct job base; /* must be first */
    const struct move_request *request;
    struct vm *vm;
    struct guard *guard; /* NULL until the first pause */
    struct vm_description *description;
    GPtrArray *disks; /* of struct live_disk */
    unsigned tag;     /* makes our node names differ from those of earlier moves */
    struct live_pace pace;
    bool paused;         /* by us */
    int given_up;        /* atomic: the last pause came to its limit (live-limit.c) */
    int64_t pause_begin; /* monotonic, of the last pause */
    GString *steps;      /* of the last pause: what took how long */
    int64_t step_begin;  /* monotonic */
    bool pivoted;        /* the machine runs on the target */
    bool interrupted;    /* what is here was left by an earlier run */
    bool uncertain;      /* nobody knows on which: nothing may be touched */
};

static inline struct live_job *live_of(struct job *base)
{
    return (struct live_job *)base;
}

static inline struct live_disk *live_disk_at(const struct live_job *job, unsigned i)
{
    return (struct live_disk *)g_ptr_array_index(job->disks, i);
}

bool live_preflight(struct job *base, GError **error);
bool live_snapshot(struct job *base, GError **error);
bool live_base(struct job *base, GError **error);
bool live_converge(struct job *base, GError **error);
bool live_switchover(struct job *base, GError **error);
bool live_prove(struct job *base, GError **error);
bool live_settle(struct job *base, GError **error);
bool live_cleanup(struct job *base, GError **error);
bool live_rollback(struct job *base, GError **error);

/* live.c */
void live_disk_free(struct live_disk *disk);
bool live_is_cancelled(const struct live_job *job, GError **error);
void live_copy_options(const struct live_job *job, struct copy_options *options);
void live_tell(const struct live_job *job, const char *format, ...) G_GNUC_PRINTF(2, 3);
/* Notes that the step of a pause that began when the last ended is over. */
void live_step(struct live_job *job, const char *name);
/* The node that a disk's device is on, or will be; the caller's. */
typedef char *(*live_node_fn)(const struct live_job *job, const struct live_disk *disk);
/*
 * Stops and continues the machine; *time is the hypervisor's, in microseconds.  In between the guard watches:
 * if we die, it resumes the machine, on `from` as long as live_pause_merged() was not called, else on `to` if
 * all devices are there.
 */
bool live_pause(struct live_job *job, live_node_fn from, live_node_fn to, int64_t *time, GError **error);
bool live_pause_merged(struct live_job *job, GError **error);
bool live_resume(struct live_job *job, int64_t *time, GError **error);

/* live-limit.c: from here on the shipping of a pause may hang, not the machine.  Until the end the caller
 * must not use job->vm.  PARKED if the limit was exceeded, in place of whatever error there was: the machine
 * runs on where it was then. */
struct live_limit *live_limit_begin(struct live_job *job);
bool live_limit_end(struct live_limit *limit, GError **error);

/* live-layer.c.  Paths and node names are the caller's to free. */
char *live_layer_path(const struct live_disk *disk, unsigned layer);
char *live_layer_node(const struct live_job *job, const struct live_disk *disk, unsigned layer);
char *live_top_node(const struct live_job *job, const struct live_disk *disk);
char *live_next_node(const struct live_job *job, const struct live_disk *disk); /* of layer top + 1 */
char *live_merged_node(const struct live_job *job, const struct live_disk *disk);
char *live_new_node(const struct live_job *job, const struct live_disk *disk);
/* Where layer 0 is: the machine's own node until it is ours. */
char *live_base_node(const struct live_job *job, const struct live_disk *disk);
/* Overlay `layer`, empty, where it can take the disk's name from. */
bool live_layer_create(struct live_job *job, struct live_disk *disk, unsigned layer, GError **error);
/* The layer below the fresh overlay `layer` gives up the disk's name, to it if that is possible; and takes it
 * back. */
bool live_layer_take_name(struct live_disk *disk, unsigned layer, GError **error);
bool live_layer_return_name(struct live_disk *disk, unsigned layer, GError **error);
/* Puts overlay `top + 1` over every disk, in one transaction. */
bool live_layers_add(struct live_job *job, GError **error);
/* After the switch the disk's name leads nowhere: the top layer becomes NAME.blockmig-top; and back. */
bool live_layer_set_aside(struct live_disk *disk, bool aside, GError **error);
bool live_layer_remove(struct live_disk *disk, unsigned layer, GError **error);
/* Opens layer 0 and what is below it; or one overlay with its holes. `flags` of storage_file_open(). */
struct chain *live_open_base(const struct live_disk *disk, unsigned flags, GError **error);
struct chain *live_open_overlay(const char *path, unsigned flags, GError **error);
/* Is this an overlay that a move put over the disk? Its header names what it stands on. */
bool live_is_overlay(const struct live_disk *disk, const char *path);
/* Overlays [from, top] as one with holes; and the whole source, from the top down. */
struct chain *live_open_overlays(const struct live_disk *disk, unsigned from, GError **error);
struct chain *live_open_source(const struct live_disk *disk, GError **error);
/* An empty overlay, owned and labelled as `like`. */
bool live_overlay_create(const struct live_job *job, const char *path, uint64_t size,
                         const char *backing_name, const char *backing_format, const char *like,
                         GError **error);
/* A node with the cache mode and so on of the disk.  `descriptor` may be NULL. */
struct vm_node live_node(const struct live_disk *disk, const char *name, const char *filename,
                         const char *format, const char *backing, const int *descriptor, bool read_only);
/* Adds it by a descriptor of `path`, for names that change. */
bool live_add_node(struct live_job *job, const struct live_disk *disk, const char *name, const char *path,
                   const char *format, const char *backing, bool read_only, GError **error);
/* Of an overlay that was added so, and is writable. */
bool live_set_backing(struct live_job *job, const struct live_disk *disk, const char *name,
                      const char *backing, GError **error);
/* O_RDWR; -1 on error. */
int live_descriptor(const char *path, GError **error);

/* live-recover.c: is there an interrupted move of this machine?  Then job->disks, and go_on_at, are its.  A
 * plan only tells of it. */
bool live_recover(struct live_job *job, GError **error);
/* Does the hypervisor have a job of this name, from an earlier run? */
bool live_has_job(struct live_job *job, const char *name, bool *there, GError **error);
/* live-snapshot.c: what an interrupted job is recovered from. */
bool live_save_disk(struct live_job *job, const struct live_disk *disk, GError **error);
/* live-preflight.c */
void live_describe_disk(struct live_job *job, struct live_disk *disk);

/* live-rollback.c: from the target back to the source, with what was written since. */
bool live_fail_back(struct live_job *job, GError **error);

/* live-ship.c: writes what an overlay holds into `target`, which is in use by nobody else. */
struct live_shipment {
    uint64_t bytes; /* of data */
    double time;
};
bool live_ship(struct live_job *job, struct live_disk *disk, struct chain *overlay, struct image *target,
               struct live_shipment *shipment, GError **error);

#endif
