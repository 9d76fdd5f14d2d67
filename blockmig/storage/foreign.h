/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Sources in formats that we have no driver for and QEMU has: read through a qemu-nbd of our own. */
#ifndef BLOCKMIG_STORAGE_FOREIGN_H
#define BLOCKMIG_STORAGE_FOREIGN_H

#include "formats/chain.h"

/* As chain_open() with the policy's `open` set to storage_open_for_chain(), `flags` of enum file_flags.
 * `format` by name, or NULL: probed.  If it is foreign, the top image is read through qemu-nbd, by that
 * driver and no other, and stands alone: one that names others is refused.  `secret`: the file with the
 * passphrase of an encrypted image; or NULL. */
struct chain *source_open(const char *path, const char *format, const char *secret, unsigned flags,
                          const struct chain_policy *policy, GError **error);

/* Will it be read through qemu-nbd, which has to be started for it? */
bool source_is_foreign(const char *path, const char *format);

#endif
