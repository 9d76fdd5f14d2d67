/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What we ask of a hypervisor.  A machine is reached by its name: "qmp:SOCKET" today.  The phases of a
 * migration decide when; nothing here decides, waits longer than it was told, or touches an image itself.
 *
 * Sizes are bytes, timeouts milliseconds, times microseconds since the epoch by the hypervisor's clock.
 * Strings in structs that are returned belong to the struct; structs that are passed in are borrowed.
 * Errors: UNREACHABLE when the hypervisor is gone or silent (what it did with the last command is then
 * unknown), FAILED when it refused, with its words; the machine's name stands in front.
 * One struct vm belongs to one thread.
 */
#ifndef BLOCKMIG_VM_VM_H
#define BLOCKMIG_VM_VM_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define VM_NODE_NAME_MAX 31 /* bytes; QEMU's limit */

/* ---- what a machine has ---- */

struct vm_layer {
    char *node;     /* "#block123": made up by QEMU, cannot be removed by us */
    char *format;   /* its driver: "qcow2", "raw" */
    char *filename; /* absolute, or a URI; NULL: it cannot be told */
    char *protocol; /* driver below the format: "file", "host_device", "nbd"; NULL: none */
    char *protocol_node;
    uint64_t virtual_size, allocated;
    bool read_only;
};

struct vm_bitmap {
    char *node, *name;
    bool persistent, busy, recording;
};

struct vm_limits {
    uint64_t bps, bps_rd, bps_wr, iops, iops_rd, iops_wr; /* per second; 0: none */
    uint64_t bps_max, bps_rd_max, bps_wr_max, iops_max, iops_rd_max, iops_wr_max, iops_size;
    uint64_t bps_max_length, bps_rd_max_length, bps_wr_max_length; /* seconds; 0: the maximum is none */
    uint64_t iops_max_length, iops_rd_max_length, iops_wr_max_length;
    char *group; /* NULL: none */
};

/* The numbers of struct vm_limits by their names; the last has no name. */
struct vm_limit {
    const char *name;
    size_t offset;
};
extern const struct vm_limit vm_limit_table[];

static inline uint64_t *vm_limit_of(struct vm_limits *limits, const struct vm_limit *limit)
{
    return (uint64_t *)((char *)limits + limit->offset);
}

struct vm_cache {
    bool direct, no_flush;
    bool writeback; /* of the device */
};

struct vm_disk {
    char *name;         /* how messages call it: id of the device, else drive, else node, else QOM path */
    char *device_id;    /* of -device; NULL: it has none */
    char *drive;        /* id of -drive; NULL: started with -blockdev */
    char *qdev;         /* QOM path of the device: the one identity that lasts while nodes come and go */
    char *device_type;  /* "virtio-blk-device", "scsi-hd" */
    char *root;         /* node that the device is attached to, perhaps a filter */
    char *node;         /* the first below it that is an image: what snapshots and jobs are told */
    GPtrArray *layers;  /* of struct vm_layer, top to base; filters are left out */
    GPtrArray *filters; /* of char *: drivers of the filters on the way */
    GPtrArray *bitmaps; /* of struct vm_bitmap */
    GPtrArray *jobs;    /* of char *: ids of the jobs that use one of its nodes */
    GPtrArray *exports; /* of char *: ids of exports of one of its nodes */
    uint64_t virtual_size;
    char *detect_zeroes; /* "off", "on", "unmap".  QEMU does not tell what `discard` is. */
    struct vm_cache cache;
    struct vm_limits limits;
    bool has_medium, removable, read_only, shareable, encrypted, passthrough;
    char *refusal;      /* why it cannot be moved; NULL: it can */
    GPtrArray *notices; /* of char *: what an administrator must know before it is moved */
};

struct vm_description {
    char *name, *status; /* as vm_status() */
    bool running;
    pid_t pid;        /* 0: not known */
    GPtrArray *disks; /* of struct vm_disk */
};

/* ---- what is asked ---- */

/*
 * An image that the hypervisor is to open, always with the format that we say.
 *
 * It opens files again, by their names, when a disk becomes read-only or writable.  So a file whose name will
 * change is handed over as a descriptor: O_RDWR, also for a node that is read-only now but will be committed
 * into; O_RDONLY, and the node can never become writable.  Open it for this only, and close it after
 * vm_add_node(): flags and locks of an open file are shared with the hypervisor.  `filename` is then for
 * messages only, and the file has a node of its own, NAME-file, so that NAME has at most 26 bytes.
 *
 * Where `filename` is a URI there is never a descriptor, and always a NAME-file: a connection.
 */
struct vm_node {
    const char *name, *filename, *format;
    const char *backing;       /* node that is open already; NULL: none, whatever the header says */
    const int *descriptor;     /* NULL: opened by its name */
    const char *detect_zeroes; /* NULL: off */
    bool block_device;         /* `filename` is one */
    const char *handed_over;   /* what vm_hand_over() said of the descriptor; NULL: nobody did that */
    bool direct, no_flush;
    bool discard; /* let the guest's discards through */
    bool read_only;
};

struct vm_snapshot {
    const char *node;       /* vm_disk.node */
    struct vm_node overlay; /* an image made by us, as large as the disk; its backing must be NULL */
};

struct vm_rebase {
    struct vm_node node; /* as it was added, by descriptor */
    const char *backing; /* node that is open; NULL: none */
};

struct vm_pivot {
    const char *from, *to; /* nodes; `to` is open and not in use */
};

enum vm_job_state {
    VM_JOB_ABSENT,  /* there is no such job */
    VM_JOB_RUNNING, /* or about to */
    VM_JOB_READY,   /* in step with the source, waits for vm_job_complete() */
    VM_JOB_DONE,
    VM_JOB_FAILED, /* or cancelled */
};

struct vm_job {
    char *id, *type, *status; /* "mirror", "commit"; the hypervisor's word */
    char *error;              /* of a failed one; NULL otherwise */
    uint64_t current, total;  /* bytes */
    enum vm_job_state state;
};

struct vm_commit {
    const char *id;
    const char *active; /* node of the disk's top layer */
    const char *top; /* NULL or `active`: commit the active layer; it becomes READY and must be completed */
    const char *base;
    const char
        *backing_file; /* what the layer above `top` shall record as its backing file; NULL: base's name */
    uint64_t speed;
};

/* Since the machine was started. */
struct vm_stats {
    uint64_t read_bytes, read_operations, read_time_ns;
    uint64_t write_bytes, write_operations, write_time_ns, failed_writes;
    uint64_t flush_operations, flush_time_ns, discard_bytes;
};

enum vm_event_type {
    VM_EVENT_STOP,
    VM_EVENT_RESUME,
    VM_EVENT_SHUTDOWN,
    VM_EVENT_RESET,
    VM_EVENT_PANIC,
    VM_EVENT_DEVICE_DELETED,  /* subject: device id or QOM path */
    VM_EVENT_MEDIUM_CHANGED,  /* subject: device id or QOM path */
    VM_EVENT_IO_ERROR,        /* subject: node; detail: operation and reason */
    VM_EVENT_WRITE_THRESHOLD, /* subject: node */
    VM_EVENT_JOB,             /* subject: job; detail: the event's name */
};

struct vm_event {
    enum vm_event_type type;
    char *subject, *detail; /* NULL: none */
    bool no_space;          /* of an I/O error: for want of it */
    int64_t time;
};

/* ---- the interface ---- */

struct vm {
    const struct vm_ops *ops;
    char *name;
};

struct vm_ops {
    const char *scheme; /* "qmp" */
    struct vm *(*open)(const char *address, GError **error);
    struct vm *(*adopt)(int fd, GError **error);
    bool (*is_off)(const char *address);
    void (*close)(struct vm *vm);
    int (*fd)(struct vm *vm);
    bool (*describe)(struct vm *vm, struct vm_description *description, GError **error);
    bool (*status)(struct vm *vm, bool *running, char **status, GError **error);
    bool (*active_nodes)(struct vm *vm, const char *const *qdevs, unsigned count, char **nodes,
                         GError **error);
    bool (*can_pivot)(struct vm *vm, GError **error);
    bool (*add_node)(struct vm *vm, const struct vm_node *node, GError **error);
    bool (*hand_over)(struct vm *vm, const struct vm_node *node, char **name, GError **error);
    bool (*remove_node)(struct vm *vm, const char *node, GError **error);
    bool (*set_backings)(struct vm *vm, const struct vm_rebase *disks, unsigned count, GError **error);
    bool (*keep_open)(struct vm *vm, const struct vm_disk *disk, GError **error);
    bool (*forget_file)(struct vm *vm, const char *path, GError **error);
    bool (*snapshot)(struct vm *vm, const struct vm_snapshot *disks, unsigned count, GError **error);
    bool (*pause)(struct vm *vm, unsigned timeout, int64_t *time, GError **error);
    bool (*resume)(struct vm *vm, int64_t *time, GError **error);
    bool (*pivot)(struct vm *vm, const struct vm_pivot *disks, unsigned count, unsigned timeout,
                  GError **error);
    bool (*end_pivots)(struct vm *vm, unsigned timeout, GError **error);
    bool (*commit)(struct vm *vm, const struct vm_commit *commit, GError **error);
    GPtrArray *(*jobs)(struct vm *vm, GError **error);
    bool (*job_wait)(struct vm *vm, const char *id, enum vm_job_state wanted, unsigned timeout,
                     struct vm_job *job, GError **error);
    bool (*job_complete)(struct vm *vm, const char *id, GError **error);
    bool (*job_cancel)(struct vm *vm, const char *id, unsigned timeout, GError **error);
    bool (*job_dismiss)(struct vm *vm, const char *id, GError **error);
    bool (*stats)(struct vm *vm, const char *qdev, struct vm_stats *stats, GError **error);
    bool (*set_limits)(struct vm *vm, const char *qdev, const struct vm_limits *limits, GError **error);
    bool (*set_write_threshold)(struct vm *vm, const char *node, uint64_t offset, GError **error);
    bool (*next_event)(struct vm *vm, unsigned timeout, struct vm_event **event, GError **error);
    bool (*find_agent)(struct vm *vm, GError **error);
    bool (*freeze)(struct vm *vm, unsigned limit, unsigned *filesystems, GError **error);
    bool (*thaw)(struct vm *vm, GError **error);
    bool (*thaw_left)(struct vm *vm, GError **error);
    int (*agent_fd)(struct vm *vm);
};

/* USAGE: no such scheme. */
struct vm *vm_open(const char *name, GError **error);
/* For the pause guard: goes on with a connection of vm_fd() that it inherited, in whatever state its former
 * owner left it.  Takes the descriptor, also on failure. */
struct vm *vm_adopt(const char *name, int fd, GError **error);
/* Does nobody answer to this name?  True is certain only for this host and this moment: image locks decide.
 */
bool vm_is_off(const char *name);
/* Thaws the guest if it is frozen.  Changes nothing else. */
void vm_close(struct vm *vm);
/* The connection, to be inherited.  It must not be used while this struct vm is. */
int vm_fd(struct vm *vm);

struct vm_description *vm_describe(struct vm *vm, GError **error);
/* Of no machine, with no disks: for who remembers one that is off. */
struct vm_description *vm_description_new(void);
struct vm_disk *vm_disk_new(void); /* for implementations of describe */
struct vm_description *vm_description_new(void);
void vm_description_free(struct vm_description *description);
/* By its name, device id, drive id, node or QOM path; REFUSED if none or several are called so. */
struct vm_disk *vm_find_disk(const struct vm_description *description, const char *name, GError **error);
/* *status (the caller's; may be NULL) is the hypervisor's word: "running", "paused", "shutdown". */
bool vm_status(struct vm *vm, bool *running, char **status, GError **error);
/* The image node that a device is on now (filters left out); the caller's. */
bool vm_active_node(struct vm *vm, const char *qdev, char **node, GError **error);
/* The same for several at once; NULL for a device that is on none, or is not there. */
bool vm_active_nodes(struct vm *vm, const char *const *qdevs, unsigned count, char **nodes, GError **error);
/* REFUSED, naming the command or option that is not there. */
bool vm_can_pivot(struct vm *vm, GError **error);

bool vm_add_node(struct vm *vm, const struct vm_node *node, GError **error);
/* The first part of adding a node by descriptor, which must be O_RDWR, or by URI.  Nothing is looked at yet,
 * not even the size of the file, so the image may still be written.  *name, the caller's, is for
 * vm_node.handed_over. vm_remove_node() takes it back, with or without the rest. */
bool vm_hand_over(struct vm *vm, const struct vm_node *node, char **name, GError **error);
/* Only nodes that were added, by us or by -blockdev; one that is not there is no error.  With what was added
 * for it: NAME-file and the descriptor. */
bool vm_remove_node(struct vm *vm, const char *node, GError **error);
/* Puts a node that was added by descriptor onto another backing node (NULL: none), as large and with the same
 * content as its present one, while the guest runs.  All else in `node` must be as it was added. */
bool vm_set_backing(struct vm *vm, const struct vm_node *node, const char *backing, GError **error);
/* The same for several nodes, all or none. */
bool vm_set_backings(struct vm *vm, const struct vm_rebase *disks, unsigned count, GError **error);
/* Do both say the same? */
bool vm_limits_equal(const struct vm_limits *a, const struct vm_limits *b);
/* Makes the hypervisor keep the file of a disk's top image open, read-write, in every state, while the
 * machine runs: then the file's name may change although the image becomes read-only.  REFUSED or FAILED
 * where that cannot be had; nothing has changed for the machine then. */
bool vm_keep_open(struct vm *vm, const struct vm_disk *disk, GError **error);
/* Closes whatever nothing uses of the nodes with names of their own that were opened from `path`, also
 * if the file has another name or none by now. */
bool vm_forget_file(struct vm *vm, const char *path, GError **error);
/* All or none: on failure no overlay is open. */
bool vm_snapshot(struct vm *vm, const struct vm_snapshot *disks, unsigned count, GError **error);

/* When it returns true, what the guest wrote is in the files, and flushed.  *time: of the STOP event.  After
 * an error the guest may or may not be stopped: resume it. */
bool vm_pause(struct vm *vm, unsigned timeout, int64_t *time, GError **error);
bool vm_resume(struct vm *vm, int64_t *time, GError **error);
/* Moves the devices of a stopped machine to other nodes with the same content.  All or none: if one fails,
 * those that went are brought back; UNCERTAIN if even that fails.  If somebody resumed the machine since
 * vm_pause() all are, with what it wrote, and the error is CANCELLED; `to` must be an empty layer then. */
bool vm_pivot(struct vm *vm, const struct vm_pivot *disks, unsigned count, unsigned timeout, GError **error);
/* Ends what a pivot left behind that was interrupted, so that each device is on one node or the other:
 * vm_active_node() tells which. */
bool vm_end_pivots(struct vm *vm, unsigned timeout, GError **error);
bool vm_commit(struct vm *vm, const struct vm_commit *commit, GError **error);

/* Every job there is, of struct vm_job; also those that ended while nobody listened. */
GPtrArray *vm_jobs(struct vm *vm, GError **error);
/*
 * Waits until the job is as wanted (READY or DONE), or the time is over: job->state says which, and is no
 * error.  A failed job is an error with its reason.  A job that ended is forgotten by the hypervisor then,
 * which also frees its nodes.
 */
bool vm_job_wait(struct vm *vm, const char *id, enum vm_job_state wanted, unsigned timeout,
                 struct vm_job *job, GError **error);
bool vm_job_complete(struct vm *vm, const char *id, GError **error);
/* Ends it without any pivot and waits for its end.  A job that is not there is no error. */
bool vm_job_cancel(struct vm *vm, const char *id, unsigned timeout, GError **error);
/* Forgets a job that ended. */
bool vm_job_dismiss(struct vm *vm, const char *id, GError **error);

/* `qdev` NULL: the sums over all disks. */
bool vm_disk_stats(struct vm *vm, const char *qdev, struct vm_stats *stats, GError **error);
/* To restore, pass vm_disk.limits as described before. */
bool vm_set_limits(struct vm *vm, const char *qdev, const struct vm_limits *limits, GError **error);
/* One VM_EVENT_WRITE_THRESHOLD when something is written at or beyond `offset` of this node's file; 0: off.
 * `node` is a protocol node for the growth of the file itself. */
bool vm_set_write_threshold(struct vm *vm, const char *node, uint64_t offset, GError **error);
/* *event is NULL if none came in time; free with vm_event_free(). */
bool vm_next_event(struct vm *vm, unsigned timeout, struct vm_event **event, GError **error);

/* Does an agent in the guest answer?  REFUSED if there is none, UNREACHABLE if it is silent. */
bool vm_find_agent(struct vm *vm, GError **error);
/*
 * Freezes the guest's file systems through its agent, for `limit` at most (10,000 is the most that is
 * granted): after that a watchdog thaws them, and vm_thaw() says so with REFUSED, for what was done in
 * between is not quiesced.
 */
bool vm_freeze(struct vm *vm, unsigned limit, unsigned *filesystems, GError **error);
bool vm_thaw(struct vm *vm, GError **error);
/* Thaws a guest that somebody else froze and left so; it asks the agent itself, on a connection of its own.
 */
bool vm_thaw_left(struct vm *vm, GError **error);
/* -1 while the guest is not frozen; for a guard that outlives us: agent_thaw_now(). */
int vm_agent_fd(struct vm *vm);

void vm_job_clear(struct vm_job *job);
void vm_job_free(struct vm_job *job);
void vm_event_free(struct vm_event *event);
const char *vm_job_state_name(enum vm_job_state state);

extern const struct vm_ops vm_qemu_ops;

typedef struct vm vm_t; /* for g_autoptr and g_auto only */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(vm_t, vm_close)
typedef struct vm_description vm_description_t;
G_DEFINE_AUTOPTR_CLEANUP_FUNC(vm_description_t, vm_description_free)
typedef struct vm_event vm_event_t;
G_DEFINE_AUTOPTR_CLEANUP_FUNC(vm_event_t, vm_event_free)
typedef struct vm_job vm_job_t;
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(vm_job_t, vm_job_clear)
G_DEFINE_AUTOPTR_CLEANUP_FUNC(vm_job_t, vm_job_free)

#endif
