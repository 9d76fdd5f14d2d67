/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Inside a move or migration of a libvirt domain: what its phases share.  One file per phase (machine-*.c);
 * job.c runs them.
 *
 * libvirt decides which file is whose and remembers it in the domain's definition.  So, other than with a
 * bare monitor (live.h), names stay where they are: layer 0 keeps the disk's name, overlay n above it is
 * NAME.blockmig-n (of a device, in --scratch), and at every instant the definition names what the machine
 * writes to.
 *
 * On the target the merged image has its final name from the beginning, and the machine arrives on
 * TARGET.blockmig-new above it; what is below is frozen, so it can be proved while the machine runs again.
 *
 * Who may run the machine: the source, until it stands still there for good; then its definition is removed;
 * only then is it let go on the target.  What is not known is said (UNCERTAIN), and nothing is done about it.
 */
#ifndef BLOCKMIG_MIGRATE_MACHINE_H
#define BLOCKMIG_MIGRATE_MACHINE_H

#include "blockmig/migrate/checkpoint.h"
#include "blockmig/migrate/lower.h"
#include "blockmig/migrate/pause.h"
#include "blockmig/migrate/phase.h"
#include "blockmig/migrate/share.h"
#include "blockmig/storage/agent-tunnel.h"
#include "blockmig/vm/definition.h"
#include "blockmig/vm/domain-guard.h"
#include "blockmig/vm/domain.h"

#include <jansson.h>

/* Events that a later run looks for.  After "proved" the target is not frozen any more. */
#define MACHINE_REMOVES "remove the source's definition"
#define MACHINE_LETS_GO "let the machine go on, on the target"
#define MACHINE_ARRIVED "the machine is on the target"
#define MACHINE_PROVED  "proved"
#define MACHINE_MERGED  "the machine writes to the merged target"
#define MACHINE_WRITES  "the machine writes " /* a file or directory of this host that is no disk */
#define MACHINE_UNDONE  "nothing is left of it"
#define MACHINE_ROOT    "backing files are in "

#define MACHINE_NEW    ".blockmig-new"
#define MACHINE_SOURCE ".blockmig-source" /* what a kept source is called afterwards */
#define MACHINE_CLAIM  ".blockmig-job"    /* beside a layer that a job made and may still remove */

struct machine_disk {
    unsigned index;
    char *name; /* "vda" */
    char *path; /* of layer 0, in this host's definition */
    char *stem; /* what its overlays are called after: the same, or for a device a name in --scratch */
    const GPtrArray *roots; /* the job's */
    bool device;
    bool off; /* the machine is: nobody writes to it */
    const struct format *source_format;
    const struct format *format; /* on the target */
    GHashTable *options;
    uint64_t size;     /* virtual */
    uint64_t needed;   /* bytes on the target at most */
    unsigned top;      /* overlays 1..top are there, and the machine writes to the last */
    unsigned merged;   /* layers 0..merged are on the target */
    char *target_name; /* how we open it: a path, or a URI of an agent */
    char *target_path; /* how the machine does */
    char *overlay_name, *overlay_path;
    bool created, overlay_created;
    struct lower *lower;        /* borrowed: the uppermost layer that the target stands on there; or NULL */
    char *backing_name;         /* as the target names what it stands on; NULL: it is one image */
    const char *backing_format; /* static */
    struct chain *base;         /* layer 0 and what is below it */
    struct chain *seed;         /* an older copy on the target, of which nothing is believed; or NULL */
    struct image *target;       /* open while we write to it */
    struct checkpoint done;     /* of the base */
    char *frozen; /* when it was copied: identity, size, mtime of layer 0 and those below; or NULL */
    struct disk_report *report; /* borrowed from the job's report */
};

/* What a disk is on that is no file, and that both hosts reach: it is not copied. */
struct machine_unit {
    char *disk, *name;     /* "vda"; a path or a URI */
    uint64_t ours, theirs; /* keys of this host and of the other */
    char *unreserved;      /* why it has no reservations on one of the hosts; NULL: it has on both */
    bool held;             /* this host has reserved it: the target must take it over */
};

/* A file that belongs to the machine and is copied as it is. */
struct machine_file {
    char *place; /* XPath of its name in the definition; NULL: libvirt knows it without */
    char *path, *target_name, *target_path;
    bool written; /* by the machine, as NVRAM is; it may not be there before the first start */
    bool late;    /* the same, and it comes with the memory of a machine that runs */
    bool there;   /* the same is there already */
    bool created;
};

struct machine_job {
    struct job base; /* must be first */
    const struct move_request *request;
    const char *wanted; /* id of the unfinished job that is meant; NULL: whatever there is of this machine */
    bool give_up;       /* it is to be rolled back */
    const struct window_request *window; /* what is done about this job's failback window; NULL: it moves */
    json_t *facts;                       /* of that window */
    const char *back_of; /* id of the job whose machine goes back, which therefore is not in the way */
    bool interrupted;    /* what is here was left by an earlier run */
    bool across;         /* to another host */
    bool shared;         /* both hosts see some of its disks, which are not copied */
    bool shared_files;   /* some of those are files */
    bool cached;         /* and one of them may keep something of theirs in its memory */
    struct domain_host *here, *there; /* the same for a move on this host */
    struct domain *domain, *arrived;  /* NULL: not there (any more) */
    struct domain_state state;        /* of the domain, before */
    char *definition;                 /* as it was before: persistent if it is, else active */
    char *prefix;                     /* what stands before the names of files on the target */
    char *directory;                  /* the same for the machine */
    json_t *places;                   /* of the other host: directory of each datastore, by its prefix */
    char *tpms, *tpms_path;           /* of the state of TPMs there: prefix, directory; NULL: it takes none */
    char *tpm;                        /* directory of what belongs to the machine here; NULL: it stays */
    struct agent_client *agent;       /* of the target's host; NULL: this host */
    char *sockets;                    /* directory for those of the hypervisors */
    char *id;                         /* of the job's own sockets in it */
    struct relay *libvirt;            /* to the other host's */
    GPtrArray *disks;                 /* of struct machine_disk */
    GPtrArray *left;                  /* of the same: those of an earlier run, gone on with; or NULL */
    GPtrArray *roots;                 /* of char *, ended by NULL: where backing files may be, besides */
    GPtrArray *lowers;                /* of struct lower, what is below before what is above */
    GPtrArray *files;                 /* of struct machine_file */
    GPtrArray *units;                 /* of struct machine_unit */
    char **others;                    /* disks that stay as they are; NULL-terminated */
    struct throttle *throttle;
    struct machine_space *space;
    struct share *share;        /* while the machine is left its part of the disks; NULL: it is not asked */
    struct domain_guard *guard; /* NULL: nothing was suspended yet */
    bool stopped;               /* it stands still for the switch */
    bool off;                   /* shut down by us */
    bool uncertain;             /* nobody knows where it is: nothing may be touched */
    bool gone;                  /* the source's definition was removed */
    bool released;              /* the machine goes on, on the target */
    bool let_go;                /* an earlier run came so far, or was about to */
    int64_t stopped_at;         /* monotonic; 0: never */
    uint64_t last_bytes;        /* of the last pass */
    double layer_time;          /* seconds that the hypervisor took for the last overlays */
    int given_up;               /* atomic: the last pause came to its limit */
    unsigned tries;             /* of the switch that failed for its pause */
    unsigned rehearsals;        /* of the comparison, in this try */
    bool without_pause;         /* the switch is made so, for all that was tried took too long */
};

static inline struct machine_job *machine_of(struct job *base)
{
    return (struct machine_job *)base;
}

static inline struct machine_disk *machine_disk_at(const struct machine_job *job, unsigned i)
{
    return (struct machine_disk *)g_ptr_array_index(job->disks, i);
}

static inline const char *machine_uuid(const struct machine_job *job)
{
    return domain_uuid(job->domain ? job->domain : job->arrived);
}

/* Can it be the name of a domain?  "qmp:SOCKET" is not, nor is a path. */
bool machine_is_domain(const char *name);
struct job_report *machine_job_run(const struct move_request *request, const struct job_listener *listener,
                                   bool dry_run, GError **error);
struct job_report *machine_job_resume(const struct move_request *request, const char *id, bool give_up,
                                      const struct job_listener *listener, GError **error);
/* `move`: that of the window's job. */
struct job_report *machine_window_run(const struct window_request *window, const struct move_request *move,
                                      const struct job_listener *listener, GError **error);

/* ---- phases ---- */
bool machine_preflight(struct job *base, GError **error);
bool machine_snapshot(struct job *base, GError **error);
bool machine_base(struct job *base, GError **error);
bool machine_converge(struct job *base, GError **error);
bool machine_mirror(struct job *base, GError **error);       /* the switch on this host, and */
bool machine_arrive(struct job *base, GError **error);       /* live and quick, */
bool machine_restart(struct job *base, GError **error);      /* by shutting down, */
bool machine_hand_over(struct job *base, GError **error);    /* of one that is off, */
bool machine_change_hands(struct job *base, GError **error); /* or of its units, by san */
bool machine_prove(struct job *base, GError **error);
bool machine_settle(struct job *base, GError **error);
bool machine_cleanup(struct job *base, GError **error);
bool machine_window(struct job *base, GError **error); /* with --keep-failback */
bool machine_rollback(struct job *base, GError **error);
void machine_describe(const struct job *base, struct journal_job *record);
char *machine_advise(const struct job *base, const GError *error);

extern const struct method method_machine_mirror, method_machine_live, method_machine_quick,
    method_machine_restart, method_machine_cold, method_machine_san;

/* ---- what they share ---- */

/* machine.c: runs the job, whose request is set, to its end; the caller's. */
struct job_report *machine_run(struct machine_job *job, const struct method *method, const char *command,
                               const struct job_listener *listener, GError **error);
bool machine_is_cancelled(const struct machine_job *job, GError **error);
void machine_copy_options(const struct machine_job *job, struct copy_options *options);
/* --guest-share, until the end: while we read and write beside the machine. */
void machine_share_begin(struct machine_job *job);
void machine_share_end(struct machine_job *job);
void machine_tell(const struct machine_job *job, const char *format, ...) G_GNUC_PRINTF(2, 3);
void machine_disk_free(struct machine_disk *disk);
void machine_file_free(struct machine_file *file);
/* In the report; once its paths, formats and size are known. */
void machine_describe_disk(struct machine_job *job, struct machine_disk *disk);
/* Its path tells whether it is a device, whose overlays need --scratch: REFUSED without it. */
struct machine_disk *machine_disk_new(struct machine_job *job, const char *name, const char *path,
                                      GError **error);

/* machine-space.c: the machine never meets a full datastore on the source because of us. */
struct machine_space *machine_space_new(void);
void machine_space_free(struct machine_space *space);
/* Looks, if it is time to.  False: the overlays have to be rolled back, for the reason that machine_explain()
 * puts in the place of an error CANCELLED. */
bool machine_has_room(const struct machine_job *job);
void machine_explain(const struct job *base, GError **error);

/* machine-files.c */
/* Has a hypervisor its top layer open to write to it, as far as locks tell? */
bool machine_is_written(const struct machine_disk *disk);
char *machine_layer_path(const struct machine_disk *disk, unsigned layer); /* the caller's */
/* An image of one of the hosts, by a single connection. */
struct image *machine_open_image(const char *name, const struct format *format, unsigned flags,
                                 GError **error);
/* Layers [from, to] as one; with what is below if `from` is 0, else with holes. */
struct chain *machine_open_layers(const struct machine_disk *disk, unsigned from, unsigned to,
                                  GError **error);
/* The merged target with what it stands on, or its overlay alone with holes; while a hypervisor has them
 * open, too. */
struct chain *machine_open_target(const struct machine_job *job, const struct machine_disk *disk,
                                  GError **error);
struct chain *machine_open_target_overlay(const struct machine_disk *disk, GError **error);
/* An empty qcow2 image with 4 KiB granularity. */
bool machine_create_overlay(const char *name, uint64_t size, const char *backing, const char *format,
                            GError **error);
bool machine_create_target_overlays(struct machine_job *job, GError **error);
/* What the job created there; false: something is left, which was told. */
bool machine_remove_target(struct machine_job *job);
bool machine_copy_files(struct machine_job *job, GError **error);
/* Their paths here, by the journal, those of directories among them; the caller's. */
GPtrArray *machine_written_files(const struct machine_job *job, GError **error);
/* Those that the machine may have written to since; it is off. */
bool machine_copy_written_files(struct machine_job *job, GError **error);
/* A file, or a directory with all that is in it; if it is not there, all is well. */
bool machine_remove_path(const char *path, GError **error);
/* Overlays 1..top into layer 0, where no machine has them open; then they are removed. */
bool machine_merge_overlays(struct machine_job *job, struct machine_disk *disk, GError **error);
/* The target's overlay into the target, which stays open: as long as it is, no hypervisor gets the overlay
 * either.  REFUSED: one of them is in use. */
bool machine_merge_target(struct machine_job *job, struct machine_disk *disk, GError **error);
void machine_remove_overlays(const struct machine_disk *disk);

/* machine-below.c: what the target stands on, with --chain=keep or shallow. */
/* REFUSED: it cannot be had. */
bool machine_choose_below(struct machine_job *job, struct machine_disk *disk, const struct chain *source,
                          GError **error);
/* What is not there yet, the lowest first. */
bool machine_copy_below(struct machine_job *job, struct machine_disk *disk, GError **error);
/* Nothing is rolled back any more: others may stand on what was copied. */
bool machine_release_layers(struct machine_job *job, GError **error);
/* The source's layers that show the same, to fill up from; as long as disk->base is open.  NULL: there are
 * none, or the target does not stand on them. */
struct chain *machine_below(const struct machine_disk *disk);
/* One layer of disk->base, in units of `target`; digests (NULL: none) are of that layer alone. */
bool machine_copy_layer(struct machine_job *job, struct machine_disk *disk, struct image *target,
                        unsigned layer, struct digest_table *digests, struct disk_report *report,
                        struct copy_map_sum *sum, GError **error);
/* The target's image at `path`, which we open as `name`, with all that it stands on. */
struct chain *machine_open_there(const struct machine_job *job, const struct machine_disk *disk,
                                 const char *name, const char *path, const struct format *format,
                                 GError **error);

/* machine-copy.c */
/* What is not on the target yet, up to the top layer, is written into it. */
bool machine_ship(struct machine_job *job, struct machine_disk *disk, unsigned to, GError **error);
bool machine_close_targets(struct machine_job *job, GError **error);
/* For who writes more into them while a hypervisor has them open that does not read them yet. */
bool machine_open_targets_again(struct machine_job *job, GError **error);
/* After a switch that was given up: the hypervisors have left them, and their overlays are removed. */
bool machine_take_targets_back(struct machine_job *job, GError **error);

/* machine-prove.c: DIFFERENT: `target`, called `name`, does not show what `source` does, on its medium. Fills
 * the digests of what was read. */
bool machine_prove_same(struct machine_job *job, struct chain *source, struct chain *target, const char *name,
                        struct digest_table *digests, GError **error);

struct comparison;

/* machine-pause.c: what the pause of live and of a move on this host is expected to be, and what is done if
 * it gets too long.  One call after the other until *fits, or PARKED. */
bool machine_look_forward(struct machine_job *job, struct comparison *comparison, bool *fits, GError **error);
/* The machine stands still since `begin` (monotonic); what pause_limit_begin() has, with job->given_up. NULL:
 * it stood still before, so there is nothing to limit. */
struct pause_limit *machine_limit_begin(struct machine_job *job, int64_t begin, void (*give_up)(void *opaque),
                                        void *opaque);
bool machine_limit_end(struct machine_job *job, struct pause_limit *limit, GError **error);
/* The machine runs where it was, and the switch failed for this reason, which is taken.  If its pause was too
 * long it may be tried again: then true, and the job goes on in converge. */
bool machine_try_again(struct machine_job *job, GError *failure, GError **error);
void machine_plan_pause(const struct machine_job *job);
/* Between libvirt's own words for "suspended" and "resumed", as they reach us. */
void machine_note_pause(struct machine_job *job, struct domain_host *to);

/* machine-unit.c: who may write to the units, once the machine leaves. Nothing if no reservation changes
 * hands. */
void machine_unit_free(struct machine_unit *unit);
/* This host holds them, and the target may write beside it. */
bool machine_claim_units(struct machine_job *job, GError **error);
/* The machine stands still here for good: the target holds them alone, and what this host had on its way is
 * aborted. Done twice it is done once. */
bool machine_fence_units(struct machine_job *job, GError **error);
/* As before machine_claim_units(), also if an earlier run did that; what fails is a notice. */
void machine_return_units(struct machine_job *job);
/* What an interrupted run claimed. */
bool machine_find_units(struct machine_job *job, GError **error);

/* machine-resume.c: the source is still the owner of an interrupted job, as machine-recover.c found out. What
 * is copied already becomes job->left, if it can be gone on with. */
bool machine_take_up(struct machine_job *job, GError **error);

/* machine-definition.c */
enum machine_stage { MACHINE_ARRIVES, MACHINE_SETTLED }; /* on its overlays; on the merged images */
/* `text` with the names of the target; the caller's. */
char *machine_rewrite(const struct machine_job *job, const char *text, enum machine_stage stage,
                      GError **error);
/* `text`, a definition of the source, with each of `disks` on the file that `path` says (the function's
 * result is taken), one of its layers. */
char *machine_rewrite_source(const GPtrArray *disks, const char *text,
                             char *(*path)(const struct machine_disk *), GError **error);
/* What others have changed in it since preflight goes along.  CANCELLED: other disks. */
bool machine_read_again(struct machine_job *job, GError **error);
/* The machine's own with a kernel that is nowhere, so that nobody can start it; the caller's. */
char *machine_rewrite_barred(const struct machine_job *job, GError **error);
char *machine_top_of(const struct machine_disk *disk);    /* the file of its top layer, and */
char *machine_bottom_of(const struct machine_disk *disk); /* of layer 0; the caller's */
/* The file or device that the disk of a definition is on; the caller's; NULL: none. */
char *machine_source_of(const struct definition *definition, const char *disk);

/* Does the machine write to our top layer (or, if it is not `running`, to one of ours), above the others, and
 * nothing else?  CANCELLED: somebody made a snapshot, or committed one, and what was written since is in no
 * layer of ours. */
bool machine_check_layers(const struct machine_job *job, bool running, GError **error);

/* machine-astray.c: the overlay goes, unless it holds anything or somebody has it open; false: it is left. */
bool machine_remove_spare_overlay(const struct machine_disk *disk, unsigned layer);
/* Which of the disk's layers does the definition name?  False: none. */
bool machine_find_layer(const struct machine_disk *disk, const struct definition *definition,
                        unsigned *layer);
/* Before an interrupted job of a machine that is here is undone, or gone on with: overlays above the one that
 * libvirt knows are spare, and removed, or what a machine that is off wrote last.  FAILED: it writes to one
 * of them; UNCERTAIN: to which of two it wrote last cannot be told. */
bool machine_check_astray(struct machine_job *job, bool active, GError **error);

/* machine-settle.c: until both sides of the disk's block job are the same.  `job` NULL: cannot be cancelled.
 */
bool machine_wait_until_ready(const struct machine_job *job, struct domain *domain, const char *disk,
                              GError **error);
/* What an interrupted run began for a disk may lead anywhere: it is ended without a pivot. */
bool machine_end_old_job(struct domain *domain, const char *disk, GError **error);

/* machine-compare.c: do the overlays on the target hold what the top layers of the source do?  From the start
 * on a thread of its own looks ahead; at the end the machine stands still on both sides, nothing of it is in
 * a hypervisor's memory any more, and what differs is mended. DIFFERENT: that was not possible.  It ends
 * early when job->given_up is set. */
struct comparison;
struct comparison *machine_comparison_start(struct machine_job *job);
/* While the machine runs, and its writes go to both sides: asks how long it will take. */
void machine_comparison_rehearse(struct comparison *comparison);
/* False: not known yet.  *seconds is negative if it could not be told. */
bool machine_comparison_is_rehearsed(const struct comparison *comparison, double *seconds);
bool machine_comparison_end(struct comparison *comparison, GError **error);
void machine_comparison_free(struct comparison *comparison); /* NULL is allowed */

/* machine-switch.c: a machine without a definition that outlives it is gone when it is off (NULL: it is). */
bool machine_is_active(struct domain *domain, bool *active, GError **error);
/* Before the machine is touched both hosts have to answer, whatever happened to them, to the agent or to
 * libvirt meanwhile; they are waited for. */
bool machine_reach_source(struct machine_job *job, GError **error);
bool machine_reach_target(struct machine_job *job, GError **error);
bool machine_reach_hosts(struct machine_job *job, GError **error);
/* Does it run now?  Somebody may have stopped it since preflight, or let it go on.  CANCELLED: it is off. */
bool machine_look_again(struct machine_job *job, GError **error);
/* The same before it leaves this host: it runs, or none of its disks was copied.
 * CANCELLED: it was stopped, or is off. */
bool machine_may_leave(struct machine_job *job, GError **error);
/* It goes on, on the target. */
bool machine_release(struct machine_job *job, GError **error);
/* What nobody can start any more: its definition here is replaced, as long as libvirt lets nobody remove it;
 * and removed; and again as it was, its disks on their top layers, when the target did not take it.  Before,
 * it is saved in the state directory. */
bool machine_keep_definition(struct machine_job *job, GError **error);
bool machine_bar_definition(struct machine_job *job, GError **error);
bool machine_remove_definition(struct machine_job *job, GError **error);
bool machine_restore_definition(struct machine_job *job, const char *text, GError **error);
char *machine_definition_path(const struct machine_job *job); /* where it is saved; the caller's */
/* The top layers, too, are merged into the target: the machine does not write any more. */
bool machine_ship_last(struct machine_job *job, GError **error);

/* machine-window.c: REFUSED if --keep-failback asks for a way back that there would not be. */
bool machine_check_way_back(struct machine_job *job, GError **error);
/* REFUSED if the job has a window that is open. */
bool machine_refuse_window(const struct machine_job *job, const struct journal_job *record, GError **error);

/* machine-recover.c: an event of the job of this kind, whose text begins so. */
bool machine_has_event(const struct machine_job *job, const char *kind, const char *beginning);
/* What the target has of a machine that does not run there is ended and removed. */
bool machine_end_there(struct machine_job *job, GError **error);
/* Is there an interrupted job of this machine?  Then base->go_on_at is set. */
bool machine_recover(struct machine_job *job, GError **error);
/* The names that the journal had announced: char *; the caller's. */
GPtrArray *machine_created_files(const struct machine_job *job, GError **error);
/* The newest one, the caller's; NULL and no error: it came to its end.  REFUSED: it runs, or its window is
 * open. */
struct journal_job *machine_find_unfinished(struct machine_job *job, GError **error);
/* Once: a directory of backing files. */
void machine_add_root(struct machine_job *job, const char *directory);
/* As the journal has them. */
bool machine_rebuild_disks(struct machine_job *job, GError **error);
/* What the machine was before: for who goes on. */
bool machine_save_state(struct machine_job *job, GError **error);
bool machine_save_disk(struct machine_job *job, const struct machine_disk *disk, GError **error);

#endif
