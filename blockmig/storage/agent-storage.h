/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Files in the datastores of agents, as storages and by their names. */
#ifndef BLOCKMIG_STORAGE_AGENT_STORAGE_H
#define BLOCKMIG_STORAGE_AGENT_STORAGE_H

#include "blockmig/storage/names.h"
#include "formats/storage.h"

/*
 * The open() of the schemes blockmig and blockmig+unix.  `flags` of enum file_flags: FILE_WRITE, FILE_CREATE
 * and FILE_NO_LOCK count.  UNREACHABLE if nobody answers, else what the agent says.
 *
 * An agent that was started anew is gone on with, if the file is still the same.  If its host was, nobody
 * knows what of the acknowledged writes is left, so the next flush fails.
 */
struct storage *storage_agent_open(const char *uri, unsigned flags, GError **error);

/* Of all of a storage of an agent (shift.h); the caller's. REFUSED: it makes none. */
GByteArray *storage_agent_signature(struct storage *storage, GError **error);

extern const struct name_ops storage_agent_names;

/* How data goes from now on, for all storages and tunnels: "off", "zstd" or "zstd:LEVEL" (1 to 19), or
 * "auto", as at first: whichever arrives faster.  USAGE. */
bool storage_agent_choose_compression(const char *text, GError **error);
/* The level of zstd that was chosen, 0: none; below 0: auto. */
int storage_agent_compression(void);

#endif
