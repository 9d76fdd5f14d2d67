/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "formats/storage.h"

#include "formats/error.h"
#include "formats/xxh3.h"

#include <stdlib.h>
#include <string.h>

/* What off_t can hold: the kernel refuses more anyway, but with a less helpful message. */
#define STORAGE_MAX_SIZE ((uint64_t)INT64_MAX)

/* Written in pieces of this size where a storage has no better way to make zeros. */
#define ZERO_PIECE (UINT64_C(1) << 20)

/* Reserved at once where it may have to stop: some file systems write zeros for it. */
#define ALLOCATE_PIECE (UINT64_C(256) << 20)

/* Read at once for digests. */
#define DIGEST_PIECE (UINT32_C(1) << 20)

void storage_grown(struct storage *storage, uint64_t end)
{
    uint64_t size = __atomic_load_n(&storage->size, __ATOMIC_RELAXED);

    while (size < end &&
           !__atomic_compare_exchange_n(&storage->size, &size, end, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        ;
}

static bool range_check(const struct storage *storage, const char *what, uint64_t offset, uint64_t length,
                        bool may_grow, GError **error)
{
    uint64_t size = __atomic_load_n(&storage->size, __ATOMIC_RELAXED);

    if (offset <= STORAGE_MAX_SIZE && length <= STORAGE_MAX_SIZE - offset &&
        (may_grow || (offset <= size && length <= size - offset)))
        return true;
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED,
                "%s: %s of %" G_GUINT64_FORMAT " bytes at offset %" G_GUINT64_FORMAT
                " is out of bounds (size %" G_GUINT64_FORMAT ")",
                storage->name, what, length, offset, size);
    return false;
}

static bool write_check(const struct storage *storage, const char *what, GError **error)
{
    if (!storage->writable)
        return blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "%s: %s on a storage opened read-only",
                             storage->name, what);
    return !storage->cancelled || !storage->cancelled(storage->cancelled_opaque) ||
           blockmig_fail(error, BLOCKMIG_ERROR_CANCELLED, "%s: cancelled", storage->name);
}

/* The tail of every wrapper: `ok` is what the implementation said. */
static bool finish(const struct storage *storage, bool ok, GError **error)
{
    if (!ok)
        g_prefix_error(error, "%s: ", storage->name);
    return ok;
}

struct storage *storage_new(const struct storage_ops *ops, const char *name, void *opaque)
{
    struct storage *storage = g_new0(struct storage, 1);

    storage->ops = ops;
    storage->name = g_strdup(name);
    storage->direct_fd = -1;
    storage->buffered_fd = -1;
    storage->alignment = 1;
    storage->opaque = opaque;
    return storage;
}

void storage_stop_if(struct storage *storage, bool (*cancelled)(void *opaque), void *opaque)
{
    storage->cancelled = cancelled;
    storage->cancelled_opaque = opaque;
}

bool storage_pread(struct storage *storage, void *buffer, size_t length, uint64_t offset, GError **error)
{
    if (!range_check(storage, "read", offset, length, false, error))
        return false;
    if (length == 0)
        return true;
    return finish(storage, storage->ops->pread(storage, buffer, length, offset, error), error);
}

bool storage_pwrite(struct storage *storage, const void *buffer, size_t length, uint64_t offset,
                    GError **error)
{
    if (!write_check(storage, "write", error) ||
        !range_check(storage, "write", offset, length, storage->growable, error))
        return false;
    if (length == 0)
        return true;
    return finish(storage, storage->ops->pwrite(storage, buffer, length, offset, error), error);
}

void storage_start(struct storage *storage, struct storage_request *request)
{
    const char *what = request->write ? "write" : request->check ? "check" : "read";
    GError *error = NULL;

    if ((!request->write || write_check(storage, what, &error)) &&
        range_check(storage, what, request->offset, request->length, request->write && storage->growable,
                    &error))
        storage->ops->start(storage, request);
    else
        request->done(request, error);
}

static bool zero_by_writing(struct storage *storage, uint64_t offset, uint64_t length, GError **error)
{
    g_autofree uint8_t *zeros = g_malloc0(MIN(length, ZERO_PIECE));

    while (length > 0) {
        size_t piece = MIN(length, ZERO_PIECE);

        if (!storage->ops->pwrite(storage, zeros, piece, offset, error))
            return false;
        offset += piece;
        length -= piece;
    }
    return true;
}

bool storage_zero(struct storage *storage, uint64_t offset, uint64_t length, bool may_unmap, GError **error)
{
    bool ok;

    if (!write_check(storage, "zero", error) ||
        !range_check(storage, "zero", offset, length, storage->growable, error))
        return false;
    if (length == 0)
        return true;
    if (storage->ops->zero)
        ok = storage->ops->zero(storage, offset, length, may_unmap, error);
    else
        ok = zero_by_writing(storage, offset, length, error);
    return finish(storage, ok, error);
}

bool storage_discard(struct storage *storage, uint64_t offset, uint64_t length, GError **error)
{
    if (!write_check(storage, "discard", error) ||
        !range_check(storage, "discard", offset, length, false, error))
        return false;
    if (length == 0 || !storage->ops->discard)
        return true;
    return finish(storage, storage->ops->discard(storage, offset, length, error), error);
}

bool storage_check(struct storage *storage, const void *buffer, size_t length, uint64_t offset,
                   GError **error)
{
    if (!range_check(storage, "check", offset, length, false, error))
        return false;
    return length == 0 || finish(storage, storage->ops->check(storage, buffer, length, offset, error), error);
}

bool storage_flush(struct storage *storage, GError **error)
{
    return finish(storage, storage->ops->flush(storage, error), error);
}

bool storage_resize(struct storage *storage, uint64_t size, GError **error)
{
    if (!write_check(storage, "resize", error) || !range_check(storage, "resize", size, 0, true, error))
        return false;
    if (!storage->growable || !storage->ops->resize) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED,
                    "%s: the size of %s storage cannot be changed", storage->name, storage->ops->name);
        return false;
    }
    return finish(storage, storage->ops->resize(storage, size, error), error);
}

bool storage_allocate(struct storage *storage, uint64_t offset, uint64_t length, GError **error)
{
    if (!write_check(storage, "allocate", error) ||
        !range_check(storage, "allocate", offset, length, storage->growable, error))
        return false;
    while (length > 0 && storage->ops->allocate) {
        uint64_t piece = storage->cancelled ? MIN(length, ALLOCATE_PIECE) : length;

        if (!write_check(storage, "allocate", error) ||
            !finish(storage, storage->ops->allocate(storage, offset, piece, error), error))
            return false;
        offset += piece;
        length -= piece;
    }
    return true;
}

bool storage_status(struct storage *storage, uint64_t offset, uint64_t length, bool *data, uint64_t *run,
                    GError **error)
{
    if (!range_check(storage, "status", offset, length, false, error))
        return false;
    if (length == 0 || !storage->ops->status) {
        *data = true;
        *run = length;
        return true;
    }
    return finish(storage, storage->ops->status(storage, offset, length, data, run, error), error);
}

void storage_prefetch(struct storage *storage, uint64_t offset, uint64_t length)
{
    if (storage->ops->prefetch)
        storage->ops->prefetch(storage, offset, length);
}

/* How many chunks lie in a hole, and have all one digest.  Most ranges have none: it is computed here. */
static uint64_t put_hole(struct storage *storage, uint64_t offset, uint64_t length, uint32_t chunk,
                         uint8_t *buffer, uint8_t *digests)
{
    uint8_t zero[STORAGE_DIGEST];
    bool data = true;
    uint64_t run = 0;

    if (!storage_status(storage, offset, length, &data, &run, NULL) || data || run < chunk)
        return 0;
    memset(buffer, 0, chunk);
    xxh3_digest(buffer, chunk, zero);
    for (uint64_t at = 0; at < run / chunk; at++)
        memcpy(digests + at * STORAGE_DIGEST, zero, STORAGE_DIGEST);
    return run / chunk;
}

static void put_digests(const uint8_t *data, uint64_t length, uint32_t chunk, uint8_t *digests)
{
    for (uint64_t at = 0; at < length; at += chunk, digests += STORAGE_DIGEST)
        xxh3_digest(data + at, (size_t)MIN(chunk, length - at), digests);
}

bool storage_digests_by(struct storage *storage, storage_reader *reader, uint64_t offset, uint64_t length,
                        uint32_t chunk, uint8_t *digests, GError **error)
{
    size_t most = (size_t)(MAX(DIGEST_PIECE / chunk, 1) * chunk);
    uint8_t *buffer = NULL;
    bool ok = true;

    if (posix_memalign((void **)&buffer, 4096, most) != 0)
        return blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "no memory for %zu bytes", most);
    for (uint64_t end = offset + length, count; ok && offset < end;) {
        count = put_hole(storage, offset, end - offset, chunk, buffer, digests);
        if (count == 0) {
            size_t piece = (size_t)MIN(most, end - offset);

            count = (piece + chunk - 1) / chunk;
            if ((ok = reader(storage, buffer, piece, offset, error)))
                put_digests(buffer, piece, chunk, digests);
        }
        offset += count * chunk;
        digests += count * STORAGE_DIGEST;
    }
    free(buffer);
    return ok;
}

bool storage_digests(struct storage *storage, uint64_t offset, uint64_t length, uint32_t chunk,
                     uint8_t *digests, GError **error)
{
    if (!range_check(storage, "digest", offset, length, false, error))
        return false;
    if (!storage->ops->digests)
        return storage_digests_by(storage, storage_pread, offset, length, chunk, digests, error);
    return length == 0 ||
           finish(storage, storage->ops->digests(storage, offset, length, chunk, digests, error), error);
}

void storage_close(struct storage *storage)
{
    if (!storage)
        return;
    storage->ops->close(storage);
    g_free(storage->name);
    g_free(storage->identity);
    g_free(storage);
}

bool storage_name_is_uri(const char *name)
{
    size_t length = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-.");

    return length > 0 && g_ascii_isalpha(name[0]) && strncmp(name + length, "://", 3) == 0;
}
