/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef BLOCKMIG_STORAGE_HOST_H
#define BLOCKMIG_STORAGE_HOST_H

/* Another one after every boot of this host; "unknown" if nobody tells.  Read once: before a process confines
 * itself, for /proc/sys makes its inodes anew, and the sandbox then takes them for other files. */
const char *host_boot_id(void);

#endif
