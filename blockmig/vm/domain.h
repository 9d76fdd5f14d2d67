/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Machines of libvirt, which it calls domains: what a migration asks of a host's libvirt.  As in vm.h,
 * nothing here decides.  A disk is named by its target ("vda").
 *
 * Errors: UNREACHABLE when the connection is gone (what was asked last may have happened), REFUSED for what
 * is not there, FAILED in libvirt's words; the domain's or the host's name stands in front.  A daemon that
 * was started anew is connected to anew at the next question, and its domains are found again by their UUIDs.
 * One thread asks a host and its domains at a time; only domain_migrate() may run in another one meanwhile.
 */
#ifndef BLOCKMIG_VM_DOMAIN_H
#define BLOCKMIG_VM_DOMAIN_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

struct domain_host;
struct domain;

/* ---- hosts ---- */

/* `uri` NULL: libvirt's default.  `name`: how messages call the host. */
struct domain_host *domain_host_open(const char *uri, const char *name, GError **error);
void domain_host_close(struct domain_host *host); /* NULL is allowed */
/* Asks it, and connects anew if there is no answer. */
bool domain_host_renew(struct domain_host *host, GError **error);
/* The UUID that a host's libvirt has: equal for two names of the same one.  The caller's. */
char *domain_host_identity(struct domain_host *host, GError **error);
/* Can the host run this CPU (an element of XML) in domains of this type ("kvm", "qemu")?  *answer: libvirt's
 * word for it, static. */
bool domain_host_runs_cpu(struct domain_host *host, const char *type, const char *cpu, bool *fits,
                          const char **answer, GError **error);
bool domain_host_has_network(struct domain_host *host, const char *name);
bool domain_host_has_pool(struct domain_host *host, const char *name);
bool domain_host_has_secret(struct domain_host *host, const char *uuid);

/* ---- domains ---- */

/* By its name or UUID; REFUSED: there is none. */
struct domain *domain_open(struct domain_host *host, const char *name, GError **error);
struct domain *domain_define(struct domain_host *host, const char *xml, GError **error);
void domain_close(struct domain *domain); /* NULL is allowed */
const char *domain_name(const struct domain *domain);
const char *domain_uuid(const struct domain *domain);

struct domain_state {
    bool active, running; /* it has a process; its processors run */
    bool faulted;         /* they do not, as a disk gave its hypervisor an error, or no room */
    bool persistent, autostart;
};

bool domain_look(struct domain *domain, struct domain_state *state, GError **error);

enum domain_view {
    DOMAIN_ACTIVE,     /* as it runs */
    DOMAIN_PERSISTENT, /* as it will be started */
    DOMAIN_MIGRATABLE, /* as another host's libvirt wants it */
    DOMAIN_SAVED,      /* that its saved state is started with */
};

/* XML, with what is secret; the caller's. */
char *domain_definition(struct domain *domain, enum domain_view view, GError **error);
/* The next start goes on from there. */
bool domain_is_saved(struct domain *domain);
bool domain_define_saved(struct domain *domain, const char *xml, GError **error);
/* Snapshots and checkpoints that libvirt keeps of it, and managed saved state. */
bool domain_has_baggage(struct domain *domain, const char **what, GError **error);
/* Has one of its disks a block job?  The disk's name, the caller's; NULL: none has. */
char *domain_busy_disk(struct domain *domain, char *const *disks);

bool domain_suspend(struct domain *domain, GError **error);
bool domain_resume(struct domain *domain, GError **error);
bool domain_start(struct domain *domain, bool paused, GError **error);
/* Ends at once, as if the plug was pulled. */
bool domain_kill(struct domain *domain, GError **error);
/* Asks the guest to shut down, through its agent, else by ACPI; its end is to be waited for. */
bool domain_shut_down(struct domain *domain, GError **error);
bool domain_set_autostart(struct domain *domain, bool autostart, GError **error);
/* Its NVRAM and TPM state stay where they are. */
bool domain_undefine(struct domain *domain, GError **error);

/* ---- disks ---- */

struct domain_overlay {
    const char *disk, *path; /* a qcow2 image over the disk's present one */
};

/* The machine writes to the overlays from now on, all of them at one instant; `others`: names of all other
 * disks (NULL-terminated).  `quiesce`: freeze the guest's file systems around it. */
bool domain_snapshot(struct domain *domain, const struct domain_overlay *overlays, unsigned count,
                     char *const *others, bool quiesce, GError **error);
/* Begins to mirror the disk's top image onto the qcow2 image at `path`, which is there; each write waits for
 * both. */
bool domain_mirror(struct domain *domain, const char *disk, const char *path, GError **error);
/* Begins to commit the disk's top images into `base`, the path of one below them. */
bool domain_commit(struct domain *domain, const char *disk, const char *base, GError **error);
/* *ready: both sides are the same from now on; *there false: there is no such job (any more). */
bool domain_job_look(struct domain *domain, const char *disk, bool *there, bool *ready, GError **error);
/* Ends it: the machine goes over to the other side, or stays where it is. */
bool domain_job_end(struct domain *domain, const char *disk, bool pivot, GError **error);

/* Of all its disks since it was started: reads and writes that ended, and the nanoseconds that they took
 * together. False: it cannot be asked now. */
bool domain_disk_stats(struct domain *domain, uint64_t *requests, uint64_t *time_ns);

/* ---- to another host ---- */

struct domain_journey {
    const char *xml;            /* as the machine will run there, and */
    const char *persistent_xml; /* as it will be defined there; NULL: not at all */
    const char *uri;            /* where the state goes: unix://SOCKET */
    const char *disks_uri;      /* and what is mirrored */
    char *const *disks;         /* NULL-terminated, whose top images are mirrored; NULL: none */
    uint64_t bandwidth;         /* bytes per second; 0: no limit */
    unsigned max_downtime;      /* milliseconds; 0: the hypervisor's own */
    bool live;                  /* false: it stands still all the time */
    bool cautious;              /* libvirt shall refuse disks that it does not know to be shared, and safe */
};

struct domain_progress {
    uint64_t memory_total, memory_left; /* bytes */
    uint64_t disk_total, disk_left;
};

/* Blocks until the machine is there, where it stands still.  After an error it is, as far as libvirt can
 * tell, where it was. */
bool domain_migrate(struct domain *domain, struct domain_host *to, const struct domain_journey *journey,
                    GError **error);
/* From any thread, while domain_migrate() runs in another. */
bool domain_migration_progress(struct domain *domain, struct domain_progress *progress);
/* How long the machine may stand still for the last of its memory, milliseconds. */
void domain_migration_allow(struct domain *domain, unsigned downtime);
void domain_migration_abort(struct domain *domain);

/* Monotonic times at which the host's libvirt last said so of a domain, by its UUID; 0: never. */
struct domain_times {
    int64_t started, stopped, resumed;
};
struct domain_times domain_host_times(struct domain_host *host, const char *uuid);

/* A descriptor of the hypervisor's process (pidfd_open(2)), which becomes readable when it has ended; the
 * caller's.  -1: it has none, or it is not known to run on this host. */
int domain_process_open(struct domain *domain);

typedef struct domain domain_t; /* for g_autoptr only */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(domain_t, domain_close)
typedef struct domain_host domain_host_t;
G_DEFINE_AUTOPTR_CLEANUP_FUNC(domain_host_t, domain_host_close)

#endif
