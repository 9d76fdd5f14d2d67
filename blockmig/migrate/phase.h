/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Inside a job: what every method shares.  A method is a table of phases in job.c; its own job structure
 * begins with a struct job.
 */
#ifndef BLOCKMIG_MIGRATE_PHASE_H
#define BLOCKMIG_MIGRATE_PHASE_H

#include "blockmig/migrate/job.h"
#include "blockmig/store/journal.h"

#include <inttypes.h>

struct method;

struct job {
    const struct method *method;
    const struct job_listener *listener;
    bool dry_run;
    bool undone;        /* rolled back, with nothing left: whatever failed, nobody has to come back to it */
    bool already_there; /* a finished job left the target: only prove it again */
    char *ended, *ended_error; /* how that job had ended before; NULL: it had not */
    struct journal *journal;
    struct journal_job *record; /* NULL until preflight has passed */
    const char *go_on_at;       /* set by a phase: the one that follows, other than in the table */
    const char *end;            /* what the journal calls the success; NULL: "done" */
    struct job_report *report;
};

struct phase {
    const char *name;
    bool (*run)(struct job *job, GError **error);
    const char *next; /* NULL: here the job waits until somebody goes on with it */
    const char *undo; /* the phase that follows a failure; NULL: what is there stays */
    bool parks;       /* out of space or too busy: nothing is undone, the job can go on from here */
};

struct method {
    const char *name;
    const struct phase *phases; /* the first is where it begins; ends with a NULL name */
    bool keeps;                 /* after a failure the job waits as it did before */
    /* Sets request, source and target of the journal's record. */
    void (*describe)(const struct job *job, struct journal_job *record);
    /* The rest may be NULL.  Before the record is made; after "done"; what to do after a failure. */
    bool (*begin)(struct job *job, GError **error);
    bool (*finish)(struct job *job, GError **error);
    char *(*advise)(const struct job *job, const GError *error);
    /* Puts the real reason in the place of an error that says only that a phase was told to end. */
    void (*explain)(const struct job *job, GError **error);
    /* Nobody knows for how long a parked job waits: what must not stay so long ends here. */
    void (*park)(struct job *job);
};

extern const struct method method_cold, method_storage, method_mirror, method_window;

/* Opens the journal and runs the phases; the report says how it ended, and so does `error`. */
bool job_run(struct job *job, const char *state_dir, GError **error);
/* For a phase that the new method has too: the next one is the new method's. */
void job_set_method(struct job *job, const struct method *method);
/* Closes what job_run() opened. */
void job_clear(struct job *job);
void job_notice(const struct job *job, const char *format, ...) G_GNUC_PRINTF(2, 3);
/* What the storage tells who writes to it, unless that is what was told before. */
void job_storage_notice(const struct job *job, const struct storage *storage, const char *told);
void job_plan(const struct job *job, const char *format, ...) G_GNUC_PRINTF(2, 3);
/* Before ("intent") and after ("result") every act with a side effect. */
bool job_event(const struct job *job, const char *kind, GError **error, const char *format, ...)
    G_GNUC_PRINTF(4, 5);
/* How the intent begins to create a file: after a kill that name is ours, if it is there. */
#define JOB_CREATES "create "

/* report.c: the receipt of a disk, or of a layer, whose number in the job is `index`; report->receipt and its
 * root. */
bool job_write_receipt(const struct job *job, struct disk_report *report, unsigned index, const char *suffix,
                       struct digest_table *digests, GError **error);

/* cold.c and live.c */
bool cold_begin(struct job *job, GError **error);
bool cold_finish(struct job *job, GError **error);
char *cold_advise(const struct job *job, const GError *error);
void cold_describe(const struct job *job, struct journal_job *record);
char *live_advise(const struct job *job, const GError *error);
void live_explain(const struct job *job, GError **error);
void live_park(struct job *job);
void live_describe(const struct job *job, struct journal_job *record);

#endif
