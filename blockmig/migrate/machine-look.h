/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Inside the preflight of a domain: machine-place.c has the hosts, machine-preflight.c the machine. */
#ifndef BLOCKMIG_MIGRATE_MACHINE_LOOK_H
#define BLOCKMIG_MIGRATE_MACHINE_LOOK_H

#include "blockmig/migrate/machine.h"
#include "blockmig/storage/file.h"

bool machine_find_hosts(struct machine_job *job, GError **error);
/* How we open what is at `path` on the target's host, the caller's; NULL: it is in no datastore of its agent.
 */
char *machine_name_there(const struct machine_job *job, const char *path);
/* Is the directory of `path`, a file of this host, the one on the target? */
bool machine_is_shared(struct machine_job *job, const char *path, bool *shared, GError **error);
/* Does this host's `directory` have what is made at `prefix`, on the target? */
bool machine_sees(const char *directory, const char *prefix, bool *seen, GError **error);
/* REFUSED: one of the first `disks` disks, or of the layers below them, becomes `name` on the target. */
bool machine_is_nobodys(const struct machine_job *job, const char *name, unsigned disks, GError **error);
/* machine-tpm.c: is there an emulated TPM, whose state goes with the machine? */
bool machine_look_at_tpm(struct machine_job *job, const struct definition *definition, GError **error);
/* Why its state cannot be brought while the machine is off; NULL: it can. The caller's. */
char *machine_tpm_objection(const struct machine_job *job, const struct definition *definition);
/* machine-unit.c: is the disk on a block device or a server's unit that both hosts reach?  Then, if it
 * `writes`, it is one of job->units. *reason, the caller's: why not; NULL: it is on neither. */
bool machine_look_at_unit(struct machine_job *job, const struct definition *definition, const char *disk,
                          bool writes, bool *shared, char **reason, GError **error);
/* machine-method.c: chooses, and says why the better ones were passed over.  REFUSED: none is possible. */
bool machine_choose_method(struct machine_job *job, const struct definition *definition, GError **error);

/* machine-resume.c: after an interrupted run (job->left). */
/* The machine's definition with its disks as they are without our overlays; the caller's. */
char *machine_plain_definition(const struct machine_job *job, enum domain_view view, GError **error);
/* What is there of a disk whose name and path are known. REFUSED: it is another than then. */
bool machine_take_over(const struct machine_job *job, struct machine_disk *disk, GError **error);
bool machine_has_all_that_is_left(const struct machine_job *job, GError **error);

#endif
