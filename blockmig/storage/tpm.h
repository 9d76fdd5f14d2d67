/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Where libvirt keeps the state of emulated TPMs (swtpm): in DIRECTORY/UUID, a directory of its own for each
 * machine.  libvirt gives what it finds there owner, mode and label when it starts the machine.
 */
#ifndef BLOCKMIG_STORAGE_TPM_H
#define BLOCKMIG_STORAGE_TPM_H

#include <stdbool.h>

#define TPM_DIRECTORY "/var/lib/libvirt/swtpm"

/* What an agent calls its directory of them: no name that its configuration could give a datastore. */
#define TPM_DATASTORE ".tpm"

/* Below the machine's directory; NULL-terminated.  What else is there are locks, which belong to the host. */
extern const char *const tpm_files[];

/* This host's: BLOCKMIG_TPM_DIRECTORY, or libvirt's default. */
const char *tpm_directory(void);
/* Below that: one of the files of a machine, or what tells whether two hosts see the same directory. */
bool tpm_is_name(const char *name);

#endif
