/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The journal: what a job intends, what it has done, and how far it is, in SQLite.
 *
 * One database per state directory (WAL, synchronous=FULL, foreign keys, user_version migrations; a newer
 * schema is refused).  Every function that writes is durable when it returns.  Several processes may use
 * one journal at once; one process owns a job while it lives (pid and start time, checked
 * against /proc), and a dead owner's job can be taken over.  Threads may share a struct journal; it does
 * not survive a fork.
 *
 * Errors: REFUSED when the journal cannot be used (not ours, newer, not writable, owned by a live
 * process), NOSPACE, IO, and FAILED for the rest.
 */
#ifndef BLOCKMIG_STORE_JOURNAL_H
#define BLOCKMIG_STORE_JOURNAL_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

struct journal;

/* Times are microseconds since the epoch, UTC; 0: not yet. Strings are owned by the struct. */
struct journal_job {
    char *id;      /* "20261121-7f3a" */
    char *command; /* "copy" */
    char *method;  /* "cold" */
    char *phase;   /* name of the phase it is in, written by job.c alone */
    char *
        result; /* NULL while unfinished: "done", "failed", "rolled-back", "parked", "refused", "cancelled" */
    char *error;           /* or NULL */
    char *request;         /* JSON: everything needed to run the same job again, cwd included */
    char *source, *target; /* what the user sees: absolute paths or URIs */
    int64_t started, updated, finished;
    int64_t owner_pid;   /* 0: nobody */
    char *owner_process; /* boot and start time of that process, against reuse of its number; or NULL */
};

struct journal_disk {
    unsigned index; /* within the job */
    char *source, *target, *source_format, *target_format;
    char *source_identity; /* identity, size, mtime of every layer: a changed source cannot be resumed */
    char *target_identity;
    uint64_t size;
    char *receipt; /* path, or NULL */
    char *frozen; /* of a running machine's disk: identity, size, mtime of what is below its overlays; or NULL
                   */
    char *base_node; /* and how the hypervisor calls that; or NULL */
};

struct journal_checkpoint {
    uint64_t frontier;
    uint64_t map_sum_low, map_sum_high;
    uint64_t bytes_read, bytes_written, bytes_zero; /* so far, for the report */
    uint64_t bytes_cloned, bytes_verified, data_done;
    unsigned merged;   /* overlays of a running machine that are on the target, too */
    const GArray *bad; /* of struct copy_range: all that was salvaged so far, or NULL; only for saving */
};

struct journal_event {
    int64_t time;
    char *kind; /* "phase", "intent", "result", "checkpoint", "notice" */
    char *text; /* JSON or plain */
};

/* Creates directory (0700) and database if needed. `directory` NULL: $BLOCKMIG_STATE_DIR, else
 * /var/lib/blockmig for root, else $XDG_STATE_HOME/blockmig or ~/.local/state/blockmig. */
struct journal *journal_open(const char *directory, GError **error);
/* Where that directory is, absolute, whether or not it is there; owned by the caller. */
char *journal_place(const char *directory);
/* Is there a journal already? */
bool journal_exists(const char *directory);
void journal_close(struct journal *journal); /* NULL is allowed */
const char *journal_directory(const struct journal *journal);
/* Where the receipts of a journal in the directory `place` lie; the caller's. */
char *journal_receipts(const char *place);

/* New job owned by this process; sets job->id (date + 4 or more random hex digits, unique), started, updated,
 * owner_*.  REFUSED while a live process runs a job with the same source and target. */
bool journal_job_create(struct journal *journal, struct journal_job *job, GError **error);
/* NULL and no error: there is none. `id` may be a unique prefix; an ambiguous one is a USAGE error. */
struct journal_job *journal_job_load(struct journal *journal, const char *id, GError **error);
/* The newest job for this target, finished or not. */
struct journal_job *journal_job_find_target(struct journal *journal, const char *target, GError **error);
GPtrArray *journal_job_list(struct journal *journal,
                            GError **error); /* of struct journal_job *, newest first */
/* Makes this process the owner and the job unfinished again, if *job is still what is stored; then it becomes
 * that. Atomic among processes: REFUSED with the pid if another live process is the owner, or has been
 * meanwhile. */
bool journal_job_claim(struct journal *journal, struct journal_job *job, GError **error);
/* With the method, which may change on the way. */
bool journal_job_set_phase(struct journal *journal, struct journal_job *job, const char *phase,
                           GError **error);
/* Sets result, error, finished and gives up ownership. */
bool journal_job_finish(struct journal *journal, struct journal_job *job, const char *result,
                        const char *message, GError **error);
bool journal_job_alive(const struct journal_job *job); /* does its owner process live? */
void journal_job_free(struct journal_job *job);

/* Inserts or replaces. REFUSED while a job of another live process writes to the same target. The functions
 * that record progress (phase, disk, checkpoint, finish) fail when this process does not own the job. */
bool journal_disk_save(struct journal *journal, const struct journal_job *job,
                       const struct journal_disk *disk, GError **error);
GPtrArray *journal_disk_list(struct journal *journal, const struct journal_job *job, GError **error);
void journal_disk_free(struct journal_disk *disk);

/* Replaces the disk's checkpoint and appends the digests made since the last one (digest_table_pack records),
 * in one transaction. */
bool journal_checkpoint_save(struct journal *journal, const struct journal_job *job, unsigned disk,
                             const struct journal_checkpoint *checkpoint, GBytes *digests, GError **error);
/* *found false: no checkpoint. *digests: all records so far, in order. */
bool journal_checkpoint_load(struct journal *journal, const struct journal_job *job, unsigned disk,
                             struct journal_checkpoint *checkpoint, GBytes **digests, bool *found,
                             GError **error);
/* What was salvaged below the disk's checkpoint: of struct copy_range, ascending. */
GArray *journal_bad_ranges(struct journal *journal, const struct journal_job *job, unsigned disk,
                           GError **error);
/* Forgets those of one disk, before its target is begun anew: an old checkpoint must never meet a new target,
 * nor an old digest a new checkpoint. */
bool journal_checkpoint_forget(struct journal *journal, const struct journal_job *job, unsigned disk,
                               GError **error);
/* Forgets checkpoints and digests: a finished job has its receipt. */
bool journal_checkpoint_clear(struct journal *journal, const struct journal_job *job, GError **error);

/* The failback window of a move: its job waits, unfinished and with no owner, until it is closed. */
struct journal_window {
    int64_t deadline;   /* 0: it is not open, only what migrate/ notes of it */
    int64_t keeper_pid; /* the process that will close it; 0: none */
    char *keeper_process;
    char *facts; /* JSON of migrate/: what cannot be seen from outside any more */
};

bool journal_window_save(struct journal *journal, const struct journal_job *job,
                         const struct journal_window *window, GError **error);
/* NULL and no error: it never had one. */
struct journal_window *journal_window_load(struct journal *journal, const struct journal_job *job,
                                           GError **error);
/* This process is the keeper from now on. */
bool journal_window_keep(struct journal *journal, const struct journal_job *job, GError **error);
bool journal_window_kept(const struct journal_window *window); /* does its keeper live? */
void journal_window_free(struct journal_window *window);
/* Gives up ownership of a job that is not finished. */
bool journal_job_rest(struct journal *journal, struct journal_job *job, GError **error);

bool journal_event(struct journal *journal, const struct journal_job *job, const char *kind, const char *text,
                   GError **error);
/* Of struct journal_event *, oldest first. */
GPtrArray *journal_events(struct journal *journal, const struct journal_job *job, GError **error);
/* What stands behind `beginning` in the texts of this kind that begin so: char *, each once, oldest first;
 * the caller's. */
GPtrArray *journal_told(struct journal *journal, const struct journal_job *job, const char *kind,
                        const char *beginning, GError **error);
/* Was this very text told?  Also false if the journal cannot be read. */
bool journal_has_told(struct journal *journal, const struct journal_job *job, const char *kind,
                      const char *text);

typedef struct journal journal_t; /* for g_autoptr only */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(journal_t, journal_close)
typedef struct journal_job journal_job_t;
G_DEFINE_AUTOPTR_CLEANUP_FUNC(journal_job_t, journal_job_free)
typedef struct journal_window journal_window_t;
G_DEFINE_AUTOPTR_CLEANUP_FUNC(journal_window_t, journal_window_free)

#endif
