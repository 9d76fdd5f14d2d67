/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The byte container that an image lies on: a file, a device, memory, later NBD and iSCSI.
 *
 * Implementations live in blockmig/storage/; formats know only this interface.
 * Offsets and lengths are bytes.  pread, pwrite, zero and discard may be called from several
 * threads at once on ranges that do not overlap; everything else from one thread at a time.
 */
#ifndef FORMATS_STORAGE_H
#define FORMATS_STORAGE_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct storage;

/* Bytes of another file that may be what is written at `offset`: then they need not be sent. */
struct storage_seed {
    uint64_t offset, length; /* in what is written */
    struct storage *storage;
    uint64_t at; /* in there */
};

/* A read, write or check that is begun and not waited for. The caller's; untouched by it until done(). */
struct storage_request {
    bool write;
    bool check;   /* instead of reading, as ops->check() */
    void *buffer; /* read from if it is a write or a check */
    size_t length;
    uint64_t offset;
    const struct storage_seed *seeds; /* of a write; ascending, and from storages that seeds() took */
    unsigned seed_count;
    /* From any thread, perhaps before storage_start() returns.  `error`: NULL, or a failure; done() owns it.
     */
    void (*done)(struct storage_request *request, GError *error);
};

/* The callbacks in the order in which they are used.  Those marked optional may be NULL;
 * the default is written beside them. */
struct storage_ops {
    const char *name; /* "file", "memory": for messages */

    /* All `length` bytes or an error; reading past the end is an error. Any alignment. */
    bool (*pread)(struct storage *storage, void *buffer, size_t length, uint64_t offset, GError **error);
    /* All `length` bytes or an error; may extend a growable storage. Any alignment. */
    bool (*pwrite)(struct storage *storage, const void *buffer, size_t length, uint64_t offset,
                   GError **error);
    /* Begins a read, write or check of all `length` bytes, any alignment; many may be on their way, and those
     * of ranges that overlap in any order.  Optional: pread and pwrite are called in threads instead. */
    void (*start)(struct storage *storage, struct storage_request *request);
    /* Afterwards the range reads as zeros, with the cheapest means that guarantees it; space
     * may be given back if `may_unmap`. Optional: zeros are written with pwrite. */
    bool (*zero)(struct storage *storage, uint64_t offset, uint64_t length, bool may_unmap, GError **error);
    /* The content of the range is of no interest any more. Optional: nothing. */
    bool (*discard)(struct storage *storage, uint64_t offset, uint64_t length, GError **error);
    /* Everything written and acknowledged before is durable afterwards. */
    bool (*flush)(struct storage *storage, GError **error);
    /* Sets the size of a growable storage; new bytes read as zeros. Optional: an error. */
    bool (*resize)(struct storage *storage, uint64_t size, GError **error);
    /* Reserves space for a range without changing what it reads. Optional: nothing. */
    bool (*allocate)(struct storage *storage, uint64_t offset, uint64_t length, GError **error);
    /* What is at `offset`: *data false means that the next *run bytes are known to read as zeros.
     * 0 < *run <= length. Optional: everything is data. */
    bool (*status)(struct storage *storage, uint64_t offset, uint64_t length, bool *data, uint64_t *run,
                   GError **error);
    /* The range will be read soon: fetch it in the background.  Optional: nothing.  Never fails. */
    void (*prefetch)(struct storage *storage, uint64_t offset, uint64_t length);
    /* Does the medium hold these bytes?  DIFFERENT if not.  For storages that can tell without sending them
     * back; from any thread.  Optional: they are read and compared. */
    bool (*check)(struct storage *storage, const void *buffer, size_t length, uint64_t offset,
                  GError **error);
    /* XXH3-128, canonical, of each `chunk` bytes of the range, as programs of the storage's host read them:
     * 16 bytes each; the last one may be shorter.  Optional: they are read. */
    bool (*digests)(struct storage *storage, uint64_t offset, uint64_t length, uint32_t chunk,
                    uint8_t *digests, GError **error);
    /* Can start() use bytes of `seed`?  Optional: no. */
    bool (*seeds)(struct storage *storage, const struct storage *seed);
    /* Frees what is in `opaque`, and closes the descriptors. */
    void (*close)(struct storage *storage);
};

/*
 * Fields are read by everyone and written only by the implementation.  The two descriptors are
 * for the ring (blockmig/copy/ring.h) alone and -1 where the storage has none.
 */
struct storage {
    const struct storage_ops *ops;
    char *name;     /* what messages call it: a path or a URI */
    char *identity; /* equal for two storages on the same object: "file:DEV:INO", "block:MAJ:MIN" */
    uint64_t size;
    bool writable;
    bool growable;      /* a regular file, memory: pwrite past the end extends it */
    bool reads_zero;    /* bytes never written read as zeros: a file created empty; not a used device */
    int direct_fd;      /* O_DIRECT descriptor: offset, length and memory aligned to `alignment` */
    int buffered_fd;    /* page-cache descriptor of the same object, any alignment */
    uint32_t sector;    /* bytes of a logical sector, which a guest may see; 0: it has none (files) */
    uint32_t alignment; /* of direct_fd; a power of two, 1 if direct_fd is -1 */
    bool cached; /* what is written may stay in a cache that nothing but flush() passes; which any thread
                  * may call, beside everything else */
    const char *notice;              /* what who writes to it should know, or NULL */
    bool (*cancelled)(void *opaque); /* storage_stop_if() */
    void *cancelled_opaque;
    void *opaque; /* the implementation's */
};

/* For implementations: with these and no descriptors, its size 0, all else false or NULL. */
struct storage *storage_new(const struct storage_ops *ops, const char *name, void *opaque);

/* Bounds are checked here, once, for every implementation: a range that wraps or, unless the
 * storage is growable and the call writes, ends past `size` is an error that names storage, offset
 * and length.  Errors come prefixed with the storage's name. */
bool storage_pread(struct storage *storage, void *buffer, size_t length, uint64_t offset, GError **error);
bool storage_pwrite(struct storage *storage, const void *buffer, size_t length, uint64_t offset,
                    GError **error);
/* From now on every change asks first, and fails with CANCELLED once the answer was true. NULL: none does. */
void storage_stop_if(struct storage *storage, bool (*cancelled)(void *opaque), void *opaque);
/* The storage must have `start`. */
void storage_start(struct storage *storage, struct storage_request *request);
bool storage_zero(struct storage *storage, uint64_t offset, uint64_t length, bool may_unmap, GError **error);
bool storage_discard(struct storage *storage, uint64_t offset, uint64_t length, GError **error);
bool storage_flush(struct storage *storage, GError **error);
bool storage_resize(struct storage *storage, uint64_t size, GError **error);
bool storage_allocate(struct storage *storage, uint64_t offset, uint64_t length, GError **error);
bool storage_status(struct storage *storage, uint64_t offset, uint64_t length, bool *data, uint64_t *run,
                    GError **error);
/* Says that bytes up to `end` were written through a descriptor; thread-safe, never shrinks. */
void storage_grown(struct storage *storage, uint64_t end);
void storage_prefetch(struct storage *storage, uint64_t offset, uint64_t length);
/* The storage must have `check`. */
bool storage_check(struct storage *storage, const void *buffer, size_t length, uint64_t offset,
                   GError **error);
/* As the operation; any storage. */
bool storage_digests(struct storage *storage, uint64_t offset, uint64_t length, uint32_t chunk,
                     uint8_t *digests, GError **error);
#define STORAGE_DIGEST 16u /* bytes of each */
/* The same by a reader of one's own, from inside the storage's size; holes are not read.  Buffers are aligned
 * to 4096. */
typedef bool storage_reader(struct storage *storage, void *buffer, size_t length, uint64_t offset,
                            GError **error);
bool storage_digests_by(struct storage *storage, storage_reader *reader, uint64_t offset, uint64_t length,
                        uint32_t chunk, uint8_t *digests, GError **error);
void storage_close(struct storage *storage); /* NULL is allowed */

/* Is it "scheme://..." and not a path?  What begins so and is meant as a path is written with "./". */
bool storage_name_is_uri(const char *name);

typedef struct storage storage_t; /* for g_autoptr(storage_t) only */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(storage_t, storage_close)

#endif
