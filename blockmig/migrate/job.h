/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a caller (tools/, later the service) asks of a job, hears while it runs and gets at the end.
 */
#ifndef BLOCKMIG_MIGRATE_JOB_H
#define BLOCKMIG_MIGRATE_JOB_H

#include "blockmig/copy/copy.h"
#include "formats/chain.h"

enum chain_mode { CHAIN_FLATTEN, CHAIN_KEEP, CHAIN_SHALLOW };
enum verify_mode { VERIFY_FULL, VERIFY_WRITTEN, VERIFY_NONE };
/* How a running machine's disks are moved; auto: by what is asked of the pause. */
enum move_method {
    MOVE_AUTO,
    MOVE_STORAGE,
    MOVE_MIRROR,
    MOVE_COLD,
    MOVE_LIVE,
    MOVE_QUICK,
    MOVE_RESTART,
    MOVE_SAN
};
/* Media that the machine only reads, on their way to another host. */
enum cdrom_mode { CDROM_COPY, CDROM_KEEP, CDROM_EJECT };
/* What is done if the machine writes too much for the pause that is allowed. */
enum busy_policy { BUSY_PARK, BUSY_MIRROR, BUSY_THROTTLE };
/* Are the guest's file systems frozen, by its agent, for the snapshot and the switch? */
enum quiesce_mode { QUIESCE_NO, QUIESCE_TRY, QUIESCE_REQUIRE };

const char *chain_mode_name(enum chain_mode mode);
const char *verify_mode_name(enum verify_mode mode);
/* USAGE errors that name the text and the known words. */
bool chain_mode_parse(const char *text, enum chain_mode *mode, GError **error);
bool verify_mode_parse(const char *text, enum verify_mode *mode, GError **error);
const char *busy_policy_name(enum busy_policy policy);

/* `copy SRC DST` and its options.  Strings are owned; NULL means the default. */
struct copy_request {
    char *source;
    char *target;         /* a directory, a file or a block device */
    char *source_format;  /* -f; NULL: probe the image that the user named */
    char *target_format;  /* -O; NULL: each image keeps its format */
    char *target_options; /* -o text */
    char *secret;         /* the file with the passphrase of an encrypted source */
    char *seed; /* an older copy, which the target's agent has: as it is named there, or as a URI; or NULL */
    enum chain_mode chain;
    GPtrArray *parents;       /* of char *: "[FORMAT:]FILE", top to base; or NULL */
    GPtrArray *allowed_roots; /* of char *; or NULL */
    uint64_t bandwidth;       /* bytes per second; 0: no limit */
    enum verify_mode verify;
    enum digest_algorithm digest;
    bool compressed;
    bool salvage;
    bool delete_source;
    bool force;   /* replace an existing target */
    bool restart; /* forget an unfinished job for this target */
    char *state_dir;
};

struct copy_request *copy_request_new(void);
void copy_request_free(struct copy_request *request);
/* JSON text (owned by the caller) with absolute paths, from which the same job can be run again from
 * anywhere; and back. */
char *copy_request_to_json(const struct copy_request *request);
struct copy_request *copy_request_from_json(const char *text, GError **error);
/* Would both texts write the same target with the same proof?  The bandwidth and the leave to replace what is
 * there may differ. */
bool copy_request_same(const char *a, const char *b);

/* `move VM DST` and `migrate VM HOST`, and their options.  Strings are owned; NULL means the default. */
struct move_request {
    char *machine;    /* "qmp:SOCKET", or the name of a libvirt domain */
    char *target;     /* a directory; with one disk also a file; of a migration a URI of an agent */
    bool across;      /* it is a migration: to another host */
    char *connection; /* URI of the domain's libvirt */
    enum cdrom_mode cdrom;
    uint64_t shutdown;        /* milliseconds that a guest has to shut down */
    GPtrArray *disks;         /* of char *, as vm_find_disk(); empty: every disk that can be written */
    GPtrArray *allowed_roots; /* of char *: directories of backing files, besides those of images; or NULL */
    char *target_format;      /* -O; NULL: each disk keeps its format */
    char *target_options;     /* -o text */
    uint64_t bandwidth;       /* bytes per second, not in a pause; 0: no limit */
    unsigned guest_share;     /* percent of its requests that the machine keeps while the disk is copied; 0:
                                 whatever is left */
    unsigned max_pause;       /* milliseconds; 0: none at all */
    bool max_pause_named; /* it is not the default; not in the journal, for only preflight says something */
    enum move_method method;
    enum busy_policy on_busy;
    enum quiesce_mode quiesce;
    enum chain_mode chain;
    enum verify_mode verify;
    enum digest_algorithm digest;
    uint64_t keep_failback; /* milliseconds that the way back stays open; 0: it closes at once */
    char *failback_to;      /* of a migration: the URI by which the other host names where the disks were */
    char *scratch;          /* directory for overlays that have no place beside the source */
    unsigned sample;        /* milliseconds that a plan watches the machine; 0: not at all */
    bool delete_source;
    bool force; /* a target device may hold what somebody misses */
    char *state_dir;
};

struct move_request *move_request_new(void);
void move_request_free(struct move_request *request);
/* For the journal, as those of a copy. */
char *move_request_to_json(const struct move_request *request);
struct move_request *move_request_from_json(const char *text, GError **error);
/* Would both texts make the same images of the same disks?  How long, how fast and what becomes of the source
 * may differ. */
bool move_request_same(const char *a, const char *b);

/* How a move stands between the machine that writes and the pause that is allowed.  Bytes per second and
 * milliseconds; negative: not known (yet). */
struct job_pace {
    unsigned pass; /* 1: the base */
    double dirty_rate, ship_rate;
    double forecast_ms, limit_ms, pause_ms;
};

/* Called in the thread that runs the job. Any may be NULL. */
struct job_listener {
    void (*phase)(void *opaque, const char *phase, const char *what); /* "base", "layer 2 of 3: base.qcow2" */
    void (*progress)(void *opaque, const char *phase, const struct copy_counters *counters);
    void (*pace)(void *opaque, const struct job_pace *pace);
    void (*notice)(void *opaque, const char *text); /* something an administrator must know */
    bool (*cancelled)(void *opaque);
    void *opaque;
};

struct disk_report {
    char *disk; /* name of the image without its directory */
    char *source, *target, *source_format, *target_format;
    uint64_t virtual_size;
    uint64_t source_allocated, target_allocated; /* bytes on their file systems */
    struct copy_counters counters;
    enum digest_algorithm algorithm;
    char *root;              /* hex; NULL: not there yet */
    bool layer;              /* digests are of this layer alone, holes as zeros (chain=keep, shallow) */
    GArray *bad;             /* of struct copy_range; NULL or empty: none */
    char *receipt;           /* path, or NULL */
    uint64_t bytes_wire;     /* to and from agents while it was copied */
    uint64_t bytes_seeded;   /* that the agent had in a seed, so that they were not sent */
    uint64_t bytes_in_pause; /* written to the target while the machine was stopped for the switch */
    const char *engine;      /* "io_uring", "threads", NULL */
};

/* From a sample: bytes, seconds.  No copy_rate: there was none. */
struct job_forecast {
    double dirty_rate, copy_rate; /* per second */
    unsigned passes;
    uint64_t source_bytes, target_bytes; /* that the overlays and the target may take, at most */
    double seconds;
};

struct job_report {
    char *id; /* NULL: refused or planned before there was a job */
    const char *command, *method, *phase;
    const char *result; /* "done", "planned", "failed", "rolled-back", "parked", "refused" */
    int64_t started;    /* microseconds since the epoch */
    double duration_s;
    enum verify_mode verified;
    const char *source; /* "kept" or "deleted" */
    GPtrArray *disks;   /* of struct disk_report * */
    GPtrArray *plan;    /* of char *: what will be done and why, one line each */
    char *advice;       /* what to do next after a failure: how to resume; or NULL */
    bool resumed;
    uint64_t bytes_read;                    /* by this run alone */
    uint64_t space_needed, space_available; /* on the target, from preflight */
    int64_t failback_until;                 /* as `started`; 0: there is no way back */
    unsigned passes; /* of copying: the base and every overlay shipped before the switch */
    /* Milliseconds, the hypervisor's own between STOP and RESUME; negative: there was none. */
    double pause_ms, pause_forecast_ms, snapshot_pause_ms;
    struct job_forecast forecast;               /* of a plan */
    double dirty_rate, ship_rate, max_pause_ms; /* as in struct job_pace */
    double frozen_ms, snapshot_frozen_ms;       /* that the guest's file systems were frozen; negative: not */
    const char *on_busy;  /* what was done about a machine that writes too much; NULL: it does not */
    uint64_t write_limit; /* that it had until the switch, bytes per second; 0: none */
};
struct job_report *job_report_new(void);
void job_report_free(struct job_report *report);

/*
 * Runs (or, with dry_run, only plans) a cold copy; continues an unfinished job for the same request and
 * target.  Always returns a report, whose `result` says in a word what `error` says in full.
 * The exit status comes from the error's code; no error: 0.
 */
struct job_report *copy_job_run(const struct copy_request *request, const struct job_listener *listener,
                                bool dry_run, GError **error);
/* Gives up an unfinished job for good: removes what it left on the target and closes it in the journal.
 * REFUSED while it runs or once it is done. */
bool copy_job_discard(const char *state_dir, const char *id, GError **error);

/*
 * Moves disks of a running machine, or only plans it.  The report and the error as of copy_job_run().
 * Whatever happens, the machine runs on at the end: on the target, or where it was.
 */
struct job_report *move_job_run(const struct move_request *request, const struct job_listener *listener,
                                bool dry_run, GError **error);
/* Goes on with the unfinished move `id`, whose request this is; or brings its machine back to the source, and
 * leaves nothing of it: no error then. */
struct job_report *move_job_resume(const struct move_request *request, const char *id,
                                   const struct job_listener *listener, GError **error);
struct job_report *move_job_cancel(const struct move_request *request, const char *id,
                                   const struct job_listener *listener, GError **error);

/* What is done about the failback window of a move. */
struct window_request {
    char *state_dir;
    char *job;         /* id */
    bool failback;     /* go back; false: close the window */
    int64_t max_pause; /* milliseconds; negative: as in the move */
    char *failback_to; /* instead of that of the migration; or NULL */
};

/* Goes back, or closes the window; the report and the error as of copy_job_run().  What cannot be done now
 * leaves the window as it is. */
struct job_report *window_job_run(const struct window_request *request, const struct job_listener *listener,
                                  GError **error);

typedef struct move_request move_request_t; /* for g_autoptr only */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(move_request_t, move_request_free)
typedef struct copy_request copy_request_t; /* for g_autoptr only */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(copy_request_t, copy_request_free)
typedef struct job_report job_report_t;
G_DEFINE_AUTOPTR_CLEANUP_FUNC(job_report_t, job_report_free)

#endif
