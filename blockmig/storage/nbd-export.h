/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An export with its connections, and commands of any length to it.  Inside the NBD storage only: nbd.c makes
 * a storage of it, nbd-bitmap.c reads dirty bitmaps.
 */
#ifndef BLOCKMIG_STORAGE_NBD_EXPORT_H
#define BLOCKMIG_STORAGE_NBD_EXPORT_H

#include "blockmig/storage/nbd-connection.h"

/* Bytes of a command that has none with it: 32 bits are the limit, a waiting user the reason. */
#define NBD_LARGEST_COMMAND (UINT64_C(1) << 30)

/* What was last heard of the block status. */
struct status_cache {
    GMutex lock;
    unsigned generation; /* counts changes of the export by us */
    unsigned valid_for;  /* the generation that `extents` are of */
    uint64_t offset;
    GArray *extents; /* of struct nbd_extent */
};

/* An export with its connections: shared by the storages of one URI. */
struct nbd {
    int users;
    int retry;
    GPid child; /* the server, if it is one of ours; 0: it is not */
    struct nbd_abilities abilities;
    GPtrArray *connections;
    GThreadPool *waiting; /* struct nbd_work: what waits for commands, so that nobody else has to */
    GMutex edges;         /* held while a block is changed in part: read and written */
    struct status_cache status;
};

struct nbd_work {
    void (*run)(struct nbd_work *work);
};

/* With one reference.  UNREACHABLE, or REFUSED if the server does not want us.  More than one of
 * `connections` are made only if the server says that a flush is for all of them. */
struct nbd *nbd_new(const struct nbd_way *how, unsigned connections, GError **error);
/* The one that all storages of this URI share, to the end of the process; with a reference for the caller.
 * `flags` of enum file_flags. */
struct nbd *nbd_for(const char *uri, unsigned flags, GError **error);
void nbd_unref(struct nbd *nbd);
/* Ends a server of our own and waits for it. */
void nbd_end_child(GPid child);

/* `range` says what is wanted, aligned to the server's blocks; only its length may be too much for it: as
 * many commands as it takes.  done() may be called before this returns, and owns its error. */
void nbd_submit(struct nbd *nbd, const struct nbd_command *range, void (*done)(void *opaque, GError *error),
                void *opaque);
/* The same, and waits for it. */
bool nbd_run(struct nbd *nbd, const struct nbd_command *range, GError **error);
/* What is known of the block status does not hold while something changes, nor after it. */
void nbd_forget_status(struct nbd *nbd);

static inline uint64_t nbd_round_down(const struct nbd *nbd, uint64_t at)
{
    return at & ~(uint64_t)(nbd->abilities.block - 1);
}

static inline uint64_t nbd_round_up(const struct nbd *nbd, uint64_t at)
{
    return nbd_round_down(nbd, at + nbd->abilities.block - 1);
}

#endif
