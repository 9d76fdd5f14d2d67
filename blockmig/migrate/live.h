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
 *   a block device        has its name for ever: layer 0 is there, the device read-only (as far as this host
 *                         goes, until it is booted); layer n > 0 is SCRATCH/DEVICE.blockmig-n.  It stays
 *                         read-only when the move is over and it holds the content of the switch.
 *
 * The hypervisor opens these files by descriptors, because it opens files again by name whenever a disk
 * becomes read-only or writable.  The target has its final name from the beginning; the overlay above it is
 * TARGET.blockmig-new, or SCRATCH/DEVICE.blockmig-new if the target is a block device; by the method mirror
 * that stands on the source's top layer until the target is proved.
 *
 * While a way back is open both sides have layers, and each is a struct live_disk.  The target's layer 0 is
 * what was proved, layer 1 the overlay above it, and their names follow the rules above.
 * To go back is a move of the target's layers onto a
 * fresh layer over the source's, which are all still there; its pivot goes to a second fresh layer above
 * that, and so the sides can take turns.  Whichever side the machine is not on has no layer with the disk's
 * name.
 * A rollback takes the disk's name from the top layer, and gives it to layer 0 when the machine has left the
 * overlays.  In between the top layer is marked as merged (live_mark_merged()): whoever finds the mark knows
 * that layer 0 has all of it.
 */
#ifndef BLOCKMIG_MIGRATE_LIVE_H
#define BLOCKMIG_MIGRATE_LIVE_H

#include "blockmig/migrate/checkpoint.h"
#include "blockmig/migrate/lower.h"
#include "blockmig/vm/guard.h"
#include "blockmig/vm/vm.h"

/* What the overlay above the target is called, behind the stem of its side. */
#define LIVE_NEW ".blockmig-new"

struct live_disk {
    unsigned index;
    char side;                /* in the names of its nodes: 's'ource, 't'arget */
    const struct vm_disk *vm; /* as it was described in preflight; of a resumed job: without our layers */
    char *name;               /* absolute path of the disk's image */
    char *stem;               /* its overlays are STEM.blockmig-n: the name, but for a device */
    bool device;    /* the image lies on a block device, or where a URI says: it has no other name */
    bool read_only; /* which we made so for everybody */
    const struct format *source_format;
    uint64_t size; /* virtual */
    bool by_exchange;

    /* How far the source is; what rollback undoes. */
    unsigned top;
    unsigned files;    /* overlays 1..files may be there */
    bool snapshotted;  /* the machine writes to an overlay */
    char *base_node;   /* layer 0 as the machine opened it */
    bool based;        /* layer 0 is a node of ours, by descriptors */
    bool base_renamed; /* layer 0 gave up the disk's name */
    bool set_aside;    /* the top layer gave up the disk's name (live_layer_set_aside) */
    bool straddles;    /* the machine writes to the target's overlay, which stands on layer `top` */
    bool settled;      /* the machine writes to the merged target */
    unsigned kept;     /* layers that the other side may count on, while a way back is open */
    unsigned floor;    /* the layer that those above it are committed into when they go */
    bool fresh;        /* layer top + 1 has the disk's name already; nothing was written to it */
    bool by_name;      /* the machine has opened layers 0..top by their names (live-adopt.c) */
    bool topped;       /* layer top + 1 is on, but has not taken the disk's name yet */
    struct chain *base;
    struct live_disk *other; /* the layers of the other side; NULL: only a target */

    char *target_path, *target_overlay;
    bool target_device;
    uint64_t target_capacity;   /* bytes, of a device */
    struct lower *lower;        /* borrowed: what the target stands on if the layers are copied; or NULL */
    char *backing_name;         /* what the target records, also if the layers stay; NULL: it is one image */
    const char *backing_format; /* a format's own name */
    char *handed_over;          /* the merged target, of vm_hand_over() */
    unsigned merged;            /* the number of the target among the layers of the other side */
    char *takes_name; /* what the target's overlay is called from the switch on; NULL: it keeps its name */
    const struct format *format;
    GHashTable *options;
    uint64_t needed; /* bytes on the target at most */
    bool created, overlay_created;
    struct image *target; /* open while we write to it */
    char *frozen;         /* identity of layer 0 and what is below it, as in the journal; NULL: not yet */
    struct checkpoint done;

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
    double base_time; /* that the copy of the base took */
};

struct live_job {
    struct job base; /* must be first */
    const struct move_request *request;
    const char *wanted;  /* id of the unfinished job that is meant; NULL: whatever there is of this machine */
    bool give_up;        /* it is to be rolled back */
    bool kept;           /* by this process, which is its keeper */
    bool going_back;     /* recovery leads to the rollback, and no further */
    struct vm *vm;       /* NULL: the machine does not run any more; only files are left (live-offline.c) */
    struct guard *guard; /* NULL until the first pause */
    struct vm_description *description;
    GPtrArray *disks;  /* of struct live_disk: the side that is moved from */
    GPtrArray *others; /* likewise, the other one, if it has layers */
    GPtrArray *lowers; /* of struct lower, what is below before what is above */
    char *scratch;     /* directory for overlays of block devices; NULL: none was given */
    unsigned tag;      /* makes our node names differ from those of earlier moves */
    struct live_pace pace;
    struct live_watch *watch;
    struct throttle *throttle; /* of everything but pauses */
    struct share *share;       /* what the machine keeps of its disks; NULL: whatever is left */
    bool paused;               /* by us */
    bool stays;                /* it stood still before: it is not resumed */
    int given_up;              /* atomic: the last pause came to its limit (live-limit.c) */
    int64_t pause_begin;       /* monotonic, of the last pause */
    int64_t frozen;            /* monotonic: since when the guest's file systems are; 0: they are not */
    GString *steps;            /* of the last pause: what took how long */
    int64_t step_begin;        /* monotonic */
    bool pivoted;              /* the machine runs on the target */
    bool interrupted;          /* what is here was left by an earlier run */
    bool at_any_price;         /* what it runs on is no good: neither --max-pause nor a cancellation counts */
    const char *window;        /* id of the job whose way back is used or closed; NULL: a move */
    char *resized;             /* a disk's size changed under an interrupted move: the whole story, or NULL */
    bool uncertain;            /* nobody knows on which: nothing may be touched */
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
bool live_take_up(struct job *base, GError **error);
bool live_base(struct job *base, GError **error);
bool live_converge(struct job *base, GError **error);
bool live_switchover(struct job *base, GError **error);
bool live_straddle(struct job *base, GError **error);
bool live_rebase(struct job *base, GError **error);
bool live_prove(struct job *base, GError **error);
bool live_settle(struct job *base, GError **error);
bool live_cleanup(struct job *base, GError **error);
bool live_window(struct job *base, GError **error);
bool live_rollback(struct job *base, GError **error);

/* live-window.c, live-failback.c and live-offline.c: the phases of a window. */
void window_close_overdue(const struct move_request *request, const struct job_listener *listener);
bool window_preflight(struct job *base, GError **error);
bool window_settle(struct job *base, GError **error);
bool failback_converge(struct job *base, GError **error);
bool failback_return(struct job *base, GError **error);
bool failback_remove(struct job *base, GError **error);
bool failback_undo(struct job *base, GError **error);
bool offline_settle(struct job *base, GError **error);
bool offline_return(struct job *base, GError **error);

/* live.c */
/* Runs the job and releases all that it has. */
void live_run(struct live_job *job, const char *state_dir, GError **error);
/* What is asked for, borrowed: before the first phase needs it, and once. */
void live_set_request(struct live_job *job, const struct move_request *request);
unsigned live_max_pause(const struct live_job *job); /* ms */
void live_disk_free(struct live_disk *disk);
bool live_is_cancelled(const struct live_job *job, GError **error);
void live_copy_options(const struct live_job *job, struct copy_options *options);
/* For copies with callbacks of their own. */
void live_progress(const struct live_job *job, const struct copy_counters *counters);
void live_tell(const struct live_job *job, const char *format, ...) G_GNUC_PRINTF(2, 3);
/* Notes that the step of a pause that began when the last ended is over. */
void live_step(struct live_job *job, const char *name);
/* The node that a disk's device is on, or will be; the caller's. */
typedef char *(*live_node_fn)(const struct live_job *job, const struct live_disk *disk);
/*
 * Stops and continues the machine; *time is the hypervisor's, in microseconds.  A machine that stood still
 * before stays so, and *time is 0.  In between the guard watches: if we die, it resumes the machine, on
 * `from` as long as live_pause_merged() was not called, else on `to` if all devices are there.
 */
bool live_pause(struct live_job *job, live_node_fn from, live_node_fn to, int64_t *time, GError **error);
bool live_pause_merged(struct live_job *job, GError **error);
bool live_resume(struct live_job *job, int64_t *time, GError **error);

/* live-limit.c: from here on the shipping of a pause may hang, not the machine.  Until the end (as
 * pause_limit_end()) the caller must not use job->vm. */
struct pause_limit *live_limit_begin(struct live_job *job);
bool live_limit_end(struct live_job *job, struct pause_limit *limit, GError **error);

/* The guard, started if there is none yet. */
bool live_guard(struct live_job *job, GError **error);

/*
 * live-quiesce.c: the guest's file systems are frozen around the snapshot and the switch, if that was asked
 * for. live_thaw() follows in any case.  `require` makes errors (CANCELLED) of what `try` only tells.
 */
bool live_check_agent(struct live_job *job, GError **error); /* in preflight: REFUSED */
bool live_freeze(struct live_job *job, GError **error);
/* Has nothing been written since?  True also if nothing was to be frozen. */
bool live_held(struct live_job *job, GError **error);
void live_thaw(struct live_job *job, double *milliseconds);

#define LIVE_MAX_PASSES 12u /* of overlays: the depth of the chain is bounded by it */

/* live-converge.c: one pass. */
bool live_pass(struct live_job *job, GError **error);
struct live_shipment;
/* What follows from a pass that shipped what was written in so many seconds, and from the seconds since its
 * layers were put on.  It is settled, and another pass not worth its while, unless there is less to ship each
 * time (`before`: bytes of the pass before) or the last one was disturbed (`best`: seconds forecast so far).
 */
void live_pace_measure(struct live_pace *pace, const struct live_shipment *shipment, double written_in,
                       double since_layered);
bool live_pace_is_settled(const struct live_pace *pace, uint64_t before, double best);

/* live-sample.c: watches the machine for as long as was asked, and adds a forecast to the plan and the
 * report. Leaves nothing behind. */
bool live_sample(struct live_job *job, GError **error);

/* live-layer.c.  Paths and node names are the caller's to free. */
/* Where files that belong to an image have their names from: beside it, or in the scratch directory (which
 * must be there then) if it is a block device. */
char *live_stem(const struct live_job *job, const char *image, bool device);
/* STEM.blockmig-n, whatever stands there. */
char *live_numbered(const struct live_disk *disk, unsigned n);
char *live_layer_path(const struct live_disk *disk, unsigned layer);
char *live_layer_node(const struct live_job *job, const struct live_disk *disk, unsigned layer);
char *live_top_node(const struct live_job *job, const struct live_disk *disk);
char *live_next_node(const struct live_job *job, const struct live_disk *disk); /* of layer top + 1 */
/* What the machine writes to before the switch. */
char *live_active_node(const struct live_job *job, const struct live_disk *disk);
char *live_merged_node(const struct live_job *job, const struct live_disk *disk);
char *live_new_node(const struct live_job *job, const struct live_disk *disk);
/* Where layer 0 is: the machine's own node until it is ours. */
char *live_base_node(const struct live_job *job, const struct live_disk *disk);
/* Overlay `layer`, empty, where it can take the disk's name from. */
bool live_layer_create(struct live_job *job, struct live_disk *disk, unsigned layer, GError **error);
/* The node that a target which is one more layer (disk->merged) stands on. */
char *live_below_merged(const struct live_job *job, const struct live_disk *disk);
/* The layer below the fresh overlay `layer` gives up the disk's name, to it if that is possible; and takes it
 * back. */
bool live_layer_take_name(struct live_disk *disk, unsigned layer, GError **error);
bool live_layer_return_name(struct live_disk *disk, unsigned layer, GError **error);
/* Puts overlay `top + 1` over every disk, in one transaction. */
bool live_layers_add(struct live_job *job, GError **error);
/* After the switch the disk's name leads nowhere: the top layer becomes NAME.blockmig-top; and back. */
bool live_layer_set_aside(struct live_disk *disk, bool aside, GError **error);
/* For a device, whose name nothing can take: from now on nobody can write to it, or everybody again. Best
 * effort: not everybody may.  Nothing for a file. */
bool live_device_freeze(struct live_disk *disk, bool frozen);
/* Gives the disk's name back to layer 0, from the top layer or from nobody. */
bool live_layer_restore_name(struct live_disk *disk, GError **error);
bool live_layer_remove(struct live_disk *disk, unsigned layer, GError **error);
/* Is there an overlay that holds anything, and no mark that layer 0 has it? */
bool live_has_unmerged(const struct live_disk *disk);
bool live_overlay_is_empty(const char *path);
/* Is the file at `path` an overlay of ours, over NAME.blockmig-*layer? */
bool live_stands_on(const struct live_disk *disk, const char *path, unsigned *layer);
/* Removes the files of all overlays, once layer 0 has the disk's name and all that they held. */
void live_layers_forget(const struct live_job *job, const struct live_disk *disk);
/* Notes on an overlay itself that what is below it holds all of it.  It lasts until somebody writes to it. */
bool live_mark_merged(const char *path, GError **error);
bool live_is_merged(const char *path);
/* Opens layer 0 and what is below it; or one overlay with its holes. `flags` of storage_file_open(). */
struct chain *live_open_base(const struct live_disk *disk, unsigned flags, GError **error);
/* The merged target and what is below it, when nobody writes to it any more. */
struct chain *live_open_target(const struct live_disk *disk, GError **error);
struct chain *live_open_overlay(const char *path, unsigned flags, GError **error);
/* Is this an overlay that a move put over the disk? Its header names what it stands on. */
bool live_is_overlay(const struct live_disk *disk, const char *path);
/* What the target's overlay names as its backing file: where that will be. */
char *live_target_name(const struct live_job *job, const struct live_disk *disk);
/* Overlays [from, to] as one with holes; the same up to the top; and the whole source, from the top down. */
struct chain *live_open_layers(const struct live_disk *disk, unsigned from, unsigned to, GError **error);
struct chain *live_open_overlays(const struct live_disk *disk, unsigned from, GError **error);
struct chain *live_open_source(const struct live_disk *disk, GError **error);
/* The same from layer `top` down. */
struct chain *live_open_down_from(const struct live_disk *disk, unsigned top, GError **error);
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
/* storage_open() beside a machine: it needs connections to a server, too. */
struct storage *live_storage_open(const char *name, unsigned flags, const char *const *roots,
                                  char **real_path, GError **error);
/* A block device or a URI: what is written in place and has no other name. */
bool live_is_device(const char *path);
/* What a URI names is there. */
bool live_exists(const char *name);
/* O_RDWR, for the hypervisor; -1 and no error for a URI, which it opens by itself. */
bool live_descriptor(const char *path, int *fd, GError **error);
void live_close_descriptor(int fd); /* -1: nothing */

/* live-snapshot.c: puts an overlay over every disk, in one transaction. */
typedef char *(*live_path_fn)(const struct live_disk *disk);
bool live_overlays_add(struct live_job *job, live_node_fn below, live_node_fn node, live_path_fn path,
                       GError **error);
/* live-switchover.c: what is not in the target yet; closes the target, for the hypervisor is to open it next.
 */
bool live_ship_last(struct live_job *job, struct live_disk *disk, GError **error);
/* Gives a descriptor of the target to the hypervisor; and makes a node of it, when it is whole. */
bool live_hand_over(struct live_job *job, struct live_disk *disk, GError **error);
bool live_open_merged(struct live_job *job, struct live_disk *disk, GError **error);
/* A top layer that nobody uses is still open for writing in the hypervisor until this. */
void live_close_top(struct live_job *job, struct live_disk *disk);

/* live-recover.c: is there an interrupted move of this machine?  Then job->disks, and go_on_at, are its.  A
 * plan only tells of it. */
bool live_recover(struct live_job *job, GError **error);
/* A disk as the journal has it, and the device that it belongs to; one more of job->disks. */
struct live_disk *live_rebuild(struct live_job *job, const struct journal_disk *saved, GError **error);
/* Does the hypervisor have a job of this name, from an earlier run? */
bool live_has_job(struct live_job *job, const char *name, bool *there, GError **error);
/* What an earlier run wrote into the journal: is there such an event? */
bool live_has_event(const struct live_job *job, const char *kind, const char *text);
/* The parts of it.  Adds the disk that the journal knows, as far as it says; the highest n of
 * NAME.blockmig-n, and whether there is any. */
struct live_disk *live_rebuild(struct live_job *job, const struct journal_disk *saved, GError **error);
/* Where its files are; to be freed with live_disk_free(). */
struct live_disk *live_rebuild_paths(const struct live_job *job, const struct journal_disk *saved);
/* Is this row of the journal a disk, or a layer that disks stand on? */
bool live_is_disk(const struct journal_disk *saved);
bool live_highest_file(const struct live_disk *disk, unsigned *highest);
/* The machine's layers are what the headers of layer 0 and below say, in place of what it has open now. */
bool live_describe_base(struct live_disk *disk, GError **error);

/* live-offline.c: as live_recover() for disks whose machine does not run; UNREACHABLE if it might. */
bool live_look_offline(struct live_job *job, GPtrArray *disks, GError **error);
/* Without the machine: the overlays go into the source, and its names are restored; the target's overlay goes
 * into the target. */
bool live_leave_offline(struct live_job *job, GError **error);
bool live_settle_offline(struct live_job *job, struct live_disk *disk, GError **error);
/* live-cleanup.c: all overlays into layer 0; doing it twice gives the same. */
bool live_merge_source(struct live_job *job, struct live_disk *disk, GError **error);

/* live-adopt.c: a machine that has opened layers by their names gets one more of ours, over nodes of ours. */
bool live_adopt(struct live_job *job, GError **error);
/* live-resume.c: what a kill left half done around the layers and on the target is undone or finished. */
bool live_put_in_order(struct live_job *job, GError **error);
/* live-settle.c: what was begun there ends where it is. */
bool live_stop_settling(struct live_job *job, GError **error);
/* How the journal's event begins after which the machine leaves an overlay. */
#define LIVE_LEAVE "leave "
#define LIVE_MERGE "merge "
/* And around a return to the source after the switch. */
/* After it the target's overlay stands on the source. */
#define LIVE_STRADDLES "the machine writes to the target"
#define LIVE_RETURN    "bring the machine back to the source"
#define LIVE_RETURNED  "the machine runs on the source again"
/* live-snapshot.c: what an interrupted job is recovered from. */
bool live_save_disk(struct live_job *job, const struct live_disk *disk, GError **error);
/* live-preflight.c */
void live_describe_disk(struct live_job *job, struct live_disk *disk);
/* REFUSED if something is there, or one of the first `disks` disks or a layer below one will be. */
bool live_is_free(const struct live_job *job, const char *path, unsigned disks, GError **error);
/* REFUSED: a machine's disk must not become an image of this format. */
bool live_runs_on(const struct format *format, GError **error);

/* live-below.c: what the target stands on. */
/* Chooses what the target of `disk`, whose chain `source` is, will stand on. */
bool live_choose_below(struct live_job *job, struct live_disk *disk, const struct chain *source,
                       GError **error);
/* What an interrupted job is recovered from. */
bool live_save_lowers(struct live_job *job, GError **error);
/* Copies and proves what was not copied for another disk yet. */
bool live_copy_below(struct live_job *job, struct live_disk *disk, GError **error);
bool live_add_below(struct live_job *job, struct live_disk *disk, GError **error);
/* The node that the merged target stands on; the caller's; NULL: none. */
char *live_below_node(const struct live_job *job, const struct live_disk *disk);
/* Closes all of the target that the machine does not use. */
void live_remove_target_nodes(struct live_job *job);
/* The copied files, on the way back. */
void live_remove_below(struct live_job *job);

/* live-base.c: copies one layer of the base chain, with holes if there is something below. */
bool live_copy_layer(struct live_job *job, struct live_disk *disk, struct image *target, unsigned layer,
                     struct digest_table *digests, struct disk_report *report, struct copy_map_sum *sum,
                     GError **error);
/* What lies below the disk's own image in the source; NULL: nothing, or it is made one with it. */
struct chain *live_source_below(const struct live_disk *disk);
/* live-prove.c: under the number `index` of the job. */
bool live_write_receipt(struct live_job *job, struct disk_report *report, unsigned index,
                        struct digest_table *digests, GError **error);

/* The method by what is asked of the pause. */
const struct method *live_choose_method(const struct move_request *request);

/* live-converge.c: the switch is made without a pause, for this reason. */
void live_choose_mirror(struct live_job *job, const char *reason);

/* live-throttle.c: all disks together write no more than `rate` bytes per second from now on, each an equal
 * part. */
bool live_throttle(struct live_job *job, uint64_t rate, GError **error);
/* What the journal says that we limited is as it was before; nothing to do is no error. */
bool live_unthrottle(struct live_job *job, GError **error);
/* Did a job end without that? */
bool live_is_throttled(struct live_job *job, const struct journal_job *record);

/* live-rollback.c: all layers above the floor are committed live into it and are gone, nodes and files. */
bool live_leave(struct live_job *job, GError **error);

/* live-failback.c: the layers of the target, or of whatever is on the other side; made if need be. */
struct live_disk *live_other(struct live_disk *disk);
/* The other side becomes the one that is moved from. */
void live_turn(struct live_job *job);
/* From the target back to where it came from, with what was written since: then live_turn() was called. */
bool live_fail_back(struct live_job *job, GError **error);
/* An earlier run was doing that: *returning, and both sides of all disks are in the job. */
bool live_recover_return(struct live_job *job, bool *returning, GError **error);
/* Ends all layers of a side that nobody uses. */
bool live_remove_side(struct live_job *job, struct live_disk *disk, GError **error);
/* live-settle.c: the source's nodes, which nothing uses any more. */
void live_remove_source_nodes(struct live_job *job, struct live_disk *disk);
/* live-cleanup.c: writes `overlays` into layer 0, where nobody has it open. */
bool live_merge_into_base(struct live_job *job, struct live_disk *disk, struct chain *overlays,
                          GError **error);

/* live-ship.c: writes what an overlay holds into `target`, which is in use by nobody else. */
struct live_shipment {
    struct chain *below; /* what the holes of the target show; NULL: nothing */
    uint64_t bytes;      /* of data */
    double time;
};
bool live_ship(struct live_job *job, struct live_disk *disk, struct chain *overlay, struct image *target,
               struct live_shipment *shipment, GError **error);

#endif
