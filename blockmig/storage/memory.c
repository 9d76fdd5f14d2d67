/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/storage/memory.h"

#include "formats/error.h"

#include <errno.h>
#include <string.h>

/*
 * One mutex guards everything: tests want a medium that tells the truth, not a fast one.
 * The content after flush n is `initial` plus the log up to there, so a cut costs a replay and
 * flushes cost nothing.  A resize is logged as a write of length 0 at the new size.
 */
struct memory {
    GMutex lock;
    GByteArray *data;
    GByteArray *initial;
    uint64_t capacity;  /* 0: no limit */
    unsigned flushes;   /* completed */
    GArray *faults;     /* of struct memory_fault */
    GArray *writes;     /* of struct memory_write */
    GPtrArray *written; /* of GBytes *, beside writes */
};

static bool fault_hits(struct memory_fault *fault, int on, uint64_t offset, uint64_t length)
{
    bool all = on == MEMORY_FLUSH || fault->length == 0;

    if ((int)fault->on != on ||
        !(all || (offset < fault->offset + fault->length && fault->offset < offset + length)))
        return false;
    if (fault->skip > 0) {
        fault->skip--;
        return false;
    }
    return true;
}

/* The first fault that hits, or NULL; one that was to fail a limited number of times wears off. */
static bool fault_take(struct memory *memory, int on, uint64_t offset, uint64_t length, int *errnum)
{
    for (unsigned i = 0; i < memory->faults->len; i++) {
        struct memory_fault *fault = &g_array_index(memory->faults, struct memory_fault, i);

        if (!fault_hits(fault, on, offset, length))
            continue;
        *errnum = fault->errnum ? fault->errnum : EIO;
        if (fault->count > 0 && --fault->count == 0)
            g_array_remove_index(memory->faults, i);
        return true;
    }
    return false;
}

static bool bytes_resize(GByteArray *bytes, uint64_t size)
{
    guint old = bytes->len;

    if (size > G_MAXINT)
        return false;
    g_byte_array_set_size(bytes, size);
    if (size > old)
        memset(bytes->data + old, 0, size - old);
    return true;
}

static bool memory_reach(struct storage *storage, uint64_t end, GError **error)
{
    struct memory *memory = storage->opaque;

    if (end <= memory->data->len)
        return true;
    if ((memory->capacity && end > memory->capacity) || !bytes_resize(memory->data, end))
        return blockmig_set_errno(error, ENOSPC, "growing to %" G_GUINT64_FORMAT " bytes", end);
    storage_grown(storage, end);
    return true;
}

static void memory_log(struct memory *memory, uint64_t offset, const void *data, size_t length)
{
    struct memory_write entry = {.offset = offset, .length = length, .after_flush = memory->flushes};

    g_array_append_val(memory->writes, entry);
    g_ptr_array_add(memory->written, g_bytes_new(data, length));
}

static bool memory_pread(struct storage *storage, void *buffer, size_t length, uint64_t offset,
                         GError **error)
{
    struct memory *memory = storage->opaque;
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&memory->lock);
    int errnum;

    if (fault_take(memory, MEMORY_READ, offset, length, &errnum))
        return blockmig_set_errno(error, errnum, "reading %zu bytes at offset %" G_GUINT64_FORMAT, length,
                                  offset);
    memcpy(buffer, memory->data->data + offset, length);
    return true;
}

static bool memory_pwrite(struct storage *storage, const void *buffer, size_t length, uint64_t offset,
                          GError **error)
{
    struct memory *memory = storage->opaque;
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&memory->lock);
    int errnum;

    if (fault_take(memory, MEMORY_WRITE, offset, length, &errnum))
        return blockmig_set_errno(error, errnum, "writing %zu bytes at offset %" G_GUINT64_FORMAT, length,
                                  offset);
    if (!memory_reach(storage, offset + length, error))
        return false;
    memcpy(memory->data->data + offset, buffer, length);
    if (fault_take(memory, MEMORY_CORRUPT_WRITE, offset, length, &errnum))
        memory->data->data[offset + length / 2] ^= 0x10;
    memory_log(memory, offset, memory->data->data + offset, length);
    return true;
}

static bool memory_zero(struct storage *storage, uint64_t offset, uint64_t length, bool may_unmap,
                        GError **error)
{
    g_autofree uint8_t *zeros = g_try_malloc0(length);

    if (!zeros)
        return blockmig_set_errno(error, ENOMEM, "zeroing %" G_GUINT64_FORMAT " bytes", length);
    return memory_pwrite(storage, zeros, length, offset, error);
}

static bool memory_flush(struct storage *storage, GError **error)
{
    struct memory *memory = storage->opaque;
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&memory->lock);
    int errnum;

    if (fault_take(memory, MEMORY_FLUSH, 0, 0, &errnum))
        return blockmig_set_errno(error, errnum, "flushing");
    memory->flushes++;
    return true;
}

static bool memory_resize(struct storage *storage, uint64_t size, GError **error)
{
    struct memory *memory = storage->opaque;
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&memory->lock);

    if ((memory->capacity && size > memory->capacity) || !bytes_resize(memory->data, size))
        return blockmig_set_errno(error, ENOSPC, "resizing to %" G_GUINT64_FORMAT " bytes", size);
    __atomic_store_n(&storage->size, size, __ATOMIC_RELAXED);
    memory_log(memory, size, NULL, 0);
    return true;
}

static void memory_close(struct storage *storage)
{
    struct memory *memory = storage->opaque;

    g_mutex_clear(&memory->lock);
    g_byte_array_unref(memory->data);
    g_byte_array_unref(memory->initial);
    g_array_unref(memory->faults);
    g_array_unref(memory->writes);
    g_ptr_array_unref(memory->written);
    g_free(memory);
}

static const struct storage_ops memory_ops = {
    .name = "memory",
    .pread = memory_pread,
    .pwrite = memory_pwrite,
    .zero = memory_zero,
    .flush = memory_flush,
    .resize = memory_resize,
    .close = memory_close,
};

struct storage *storage_memory_new(const char *name, const void *data, uint64_t size, uint64_t capacity)
{
    struct memory *memory = g_new0(struct memory, 1);
    struct storage *storage = storage_new(&memory_ops, name, memory);

    g_mutex_init(&memory->lock);
    memory->data = g_byte_array_new();
    g_assert(bytes_resize(memory->data, size)); /* a test that asks for more than 2 GiB is wrong */
    memory->initial = g_byte_array_new();
    if (data && size) /* an empty array has no bytes to point to */
        memcpy(memory->data->data, data, size);
    if (size)
        g_byte_array_append(memory->initial, memory->data->data, size);
    memory->capacity = capacity;
    memory->faults = g_array_new(FALSE, FALSE, sizeof(struct memory_fault));
    memory->writes = g_array_new(FALSE, FALSE, sizeof(struct memory_write));
    memory->written = g_ptr_array_new_with_free_func((GDestroyNotify)g_bytes_unref);

    storage->identity = g_strdup_printf("memory:%p", (void *)memory);
    storage->size = size;
    storage->writable = true;
    storage->growable = true;
    storage->reads_zero = data == NULL;
    return storage;
}

void storage_memory_add_fault(struct storage *storage, const struct memory_fault *fault)
{
    struct memory *memory = storage->opaque;
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&memory->lock);

    g_array_append_val(memory->faults, *fault);
}

void storage_memory_clear_faults(struct storage *storage)
{
    struct memory *memory = storage->opaque;
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&memory->lock);

    g_array_set_size(memory->faults, 0);
}

unsigned storage_memory_flush_count(struct storage *storage)
{
    struct memory *memory = storage->opaque;

    return memory->flushes;
}

static void cut_apply(struct memory *memory, GByteArray *content, unsigned i, size_t limit)
{
    const struct memory_write *entry = &g_array_index(memory->writes, struct memory_write, i);
    gsize length;
    const void *data = g_bytes_get_data(g_ptr_array_index(memory->written, i), &length);

    if (entry->length == 0) {
        bytes_resize(content, entry->offset);
        return;
    }
    length = MIN(length, limit);
    if (entry->offset + length > content->len)
        bytes_resize(content, entry->offset + length);
    memcpy(content->data + entry->offset, data, length);
}

GByteArray *storage_memory_cut(struct storage *storage, unsigned flush,
                               bool (*keep)(void *opaque, unsigned i), void *opaque, size_t torn)
{
    struct memory *memory = storage->opaque;
    GByteArray *content = g_byte_array_new();
    g_autoptr(GArray) kept = g_array_new(FALSE, FALSE, sizeof(unsigned));
    unsigned after = 0;

    g_byte_array_append(content, memory->initial->data, memory->initial->len);
    for (unsigned i = 0; i < memory->writes->len; i++) {
        const struct memory_write *entry = &g_array_index(memory->writes, struct memory_write, i);

        if (entry->after_flush < flush || (entry->after_flush == flush && keep && keep(opaque, after++)))
            g_array_append_val(kept, i);
    }
    for (unsigned k = 0; k < kept->len; k++) {
        unsigned i = g_array_index(kept, unsigned, k);
        bool last =
            k + 1 == kept->len && g_array_index(memory->writes, struct memory_write, i).after_flush == flush;

        cut_apply(memory, content, i, last && torn ? torn : SIZE_MAX);
    }
    return content;
}

const uint8_t *storage_memory_data(struct storage *storage)
{
    struct memory *memory = storage->opaque;

    return memory->data->data;
}

const GArray *storage_memory_writes(struct storage *storage)
{
    struct memory *memory = storage->opaque;

    return memory->writes;
}
