/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Exports of NBD servers as storages, by libnbd. */
#ifndef BLOCKMIG_STORAGE_NBD_H
#define BLOCKMIG_STORAGE_NBD_H

#include "blockmig/storage/bitmap.h"
#include "formats/storage.h"

/*
 * The open() of the schemes nbd, nbds, nbd+unix and nbds+unix; URIs are those of libnbd (nbd_connect_uri).
 * `flags` of enum file_flags: FILE_WRITE counts, and FILE_MODEST in the first one of an export.  The export
 * is as large as it is.  UNREACHABLE if nobody answers, REFUSED if the server does not give the export or
 * takes no writes.
 *
 * All storages of one URI share their connections, which stay to the end of the process: a server that takes
 * one client, and ends after it, serves all of a job.  A connection that is lost is made again only as long
 * as the export was never opened for writing: nobody knows what of the acknowledged writes the server still
 * has.
 */
struct storage *storage_nbd_open(const char *uri, unsigned flags, GError **error);

/* Would the server serve one more client beside all that it has?  REFUSED or UNREACHABLE if not. */
bool storage_nbd_takes_another(const char *uri, GError **error);

/* What is dirty in a bitmap of QEMU's that the server gives with this export, by a connection of its own,
 * which does not read or write the export.  REFUSED if there is no bitmap of that name, UNREACHABLE if nobody
 * answers or the connection is lost. */
bool storage_nbd_read_bitmap(const char *uri, const char *bitmap, const struct bitmap_reader *reader,
                             GError **error);

/* The only client of a server of our own, the process `child`, which has the other end of `socket`.  Both are
 * taken, also on failure: the child is ended with the storage, which is called `name` and `identity`.
 * Read-only. */
struct storage *storage_nbd_open_child(int socket, GPid child, const char *name, const char *identity,
                                       GError **error);

#endif
