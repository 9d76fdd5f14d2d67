/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Files and block devices of this host as storages, with image locks exactly as QEMU's. */
#ifndef BLOCKMIG_STORAGE_FILE_H
#define BLOCKMIG_STORAGE_FILE_H

#include "formats/storage.h"

#include <sys/stat.h>

enum file_flags {
    FILE_WRITE = 1 << 0,
    FILE_CREATE = 1 << 1,   /* must not exist yet, or be an empty regular file */
    FILE_TRUNCATE = 1 << 2, /* with FILE_WRITE, on a regular file: empty it after the lock is held */
    FILE_NO_LOCK =
        1 << 3, /* looks at images that a machine uses (info, map -U), or mends one that stands still */
    FILE_NO_DIRECT = 1 << 4, /* page cache only */
    FILE_MODEST = 1 << 5,    /* one connection to a server, who may have few: others need theirs */
    FILE_ALONE = 1 << 6,     /* shared with nobody here, and gone with the storage */
};

/* Opens a regular file or block device.  Readers take consistent-read and refuse writers and
 * resizers; writers take everything and share nothing: byte ranges 100+i and 200+i, OFD, as
 * QEMU's file-posix driver.  A conflict is a REFUSED error that names the lock that stood in the way.
 * A device that the system uses (mounted, swap, part of another device) is never opened for writing.
 * `roots`, `real_path`: see chain_policy.open. Refuses FIFOs, directories, sockets, character devices. */
struct storage *storage_file_open(const char *path, unsigned flags, const char *const *roots,
                                  char **real_path, GError **error);

/* The identity of a storage on the file or device that has this `st`, NAME_IDENTITY bytes at most. */
void storage_file_identity(const struct stat *st, char *identity, size_t room);
/* Bytes that the file system has allocated for it (st_blocks); the size for a device. */
uint64_t storage_file_allocated(struct storage *storage);
/* false: the file system has no locks, so nobody was asked and nobody is kept away; to be announced. */
bool storage_file_lockable(struct storage *storage);
/* Gives up the O_DIRECT descriptor.  To be called before the ring starts where clusters are smaller than a
 * page: direct and buffered writes to different parts of one page can undo each other. Other storages:
 * nothing. */
void storage_file_avoid_direct(struct storage *storage);
/* fsyncs the directory that holds `path`, so that a new name survives a crash. */
bool storage_file_sync_directory(const char *path, GError **error);
/* The chain_policy.open callback for local files: opaque points to an unsigned of file_flags (or is NULL),
 * of which FILE_NO_LOCK and FILE_NO_DIRECT count. */
struct storage *storage_file_open_for_chain(void *opaque, const char *path, const char *const *roots,
                                            bool writable, char **real_path, GError **error);

/* Who has the file open: a list of "PID (command)" strings by scanning /proc, without ourselves. */
GPtrArray *storage_file_users(const char *path);
/* From here on that is answered as it is now: for a process that soon may not look at others any more. */
void storage_file_users_remember(void);

#endif
