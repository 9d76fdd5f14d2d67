/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/fuzz/container.h"

#include "formats/error.h"

#include <errno.h>
#include <string.h>

#define PAGE UINT64_C(4096)

struct container {
    const uint8_t *data;
    uint64_t length; /* of data; what the storage has behind it is zeros */
    uint64_t capacity;
    GHashTable *pages; /* number -> PAGE bytes, of what was written */
    unsigned changes;
};

/* Of the input, `length` bytes of one page. */
static void read_input(const struct container *container, uint8_t *buffer, uint64_t length, uint64_t offset)
{
    uint64_t there = offset < container->length ? MIN(length, container->length - offset) : 0;

    if (there)
        memcpy(buffer, container->data + offset, there);
    memset(buffer + there, 0, length - there);
}

static bool container_pread(struct storage *storage, void *buffer, size_t length, uint64_t offset,
                            GError **error)
{
    const struct container *container = storage->opaque;
    uint8_t *to = buffer;

    for (uint64_t piece; length > 0; to += piece, offset += piece, length -= piece) {
        const uint8_t *page = g_hash_table_lookup(container->pages, GSIZE_TO_POINTER(offset / PAGE));

        piece = MIN(length, PAGE - offset % PAGE);
        if (page)
            memcpy(to, page + offset % PAGE, piece);
        else
            read_input(container, to, piece, offset);
    }
    return true;
}

static uint8_t *own_page(struct container *container, uint64_t number)
{
    uint8_t *page = g_hash_table_lookup(container->pages, GSIZE_TO_POINTER(number));

    if (page)
        return page;
    page = g_malloc(PAGE);
    read_input(container, page, PAGE, number * PAGE);
    g_hash_table_insert(container->pages, GSIZE_TO_POINTER(number), page);
    return page;
}

/* `data` NULL: zeros. */
static bool change(struct storage *storage, const uint8_t *data, uint64_t length, uint64_t offset,
                   GError **error)
{
    struct container *container = storage->opaque;

    if (offset + length > container->capacity)
        return blockmig_set_errno(error, ENOSPC, "growing to %" G_GUINT64_FORMAT " bytes", offset + length);
    storage_grown(storage, offset + length);
    container->changes++;
    for (uint64_t piece; length > 0; offset += piece, length -= piece) {
        uint8_t *to = own_page(container, offset / PAGE) + offset % PAGE;

        piece = MIN(length, PAGE - offset % PAGE);
        if (data)
            memcpy(to, data, piece);
        else
            memset(to, 0, piece);
        data = data ? data + piece : NULL;
    }
    return true;
}

static bool container_pwrite(struct storage *storage, const void *buffer, size_t length, uint64_t offset,
                             GError **error)
{
    return change(storage, buffer, length, offset, error);
}

static bool container_zero(struct storage *storage, uint64_t offset, uint64_t length, bool may_unmap,
                           GError **error)
{
    return change(storage, NULL, length, offset, error);
}

static bool container_flush(struct storage *storage, GError **error)
{
    return true;
}

static bool container_resize(struct storage *storage, uint64_t size, GError **error)
{
    struct container *container = storage->opaque;

    if (size > container->capacity)
        return blockmig_set_errno(error, ENOSPC, "resizing to %" G_GUINT64_FORMAT " bytes", size);
    /* What is cut off is zeros if the storage grows again. */
    if (size < storage->size && !change(storage, NULL, storage->size - size, size, error))
        return false;
    container->changes++;
    storage->size = size;
    return true;
}

static void container_close(struct storage *storage)
{
    struct container *container = storage->opaque;

    g_hash_table_unref(container->pages);
    g_free(container);
}

static const struct storage_ops container_ops = {
    .name = "input",
    .pread = container_pread,
    .pwrite = container_pwrite,
    .zero = container_zero,
    .flush = container_flush,
    .resize = container_resize,
    .close = container_close,
};

struct storage *fuzz_container_new(const uint8_t *data, uint64_t size, uint64_t capacity)
{
    struct container *container = g_new0(struct container, 1);
    struct storage *storage = storage_new(&container_ops, "input", container);

    container->data = data;
    container->length = size;
    container->capacity = capacity;
    container->pages = g_hash_table_new_full(NULL, NULL, NULL, g_free);
    storage->identity = g_strdup_printf("input:%p", (void *)container);
    storage->size = size;
    storage->writable = true;
    storage->growable = true;
    return storage;
}

unsigned fuzz_container_changes(const struct storage *storage)
{
    const struct container *container = storage->opaque;

    return container->changes;
}
