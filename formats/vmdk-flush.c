/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The write order.  Invariant: an entry on the medium leads to a grain that is complete there.
 *
 *   0  once, before the first change: a new content id, so that children know that this is no longer their
 *      parent                                                                        barrier
 *   1  the mark "not closed cleanly", with the guest's data                          barrier
 *   2  redundant tables, tables: what a crash leaves in one of both only is found by the mark
 *                                                                                    barrier
 *   3  the mark goes; grains that were given up become holes                         barrier
 */
#include "formats/vmdk.h"

#include <string.h>

#define UNCLEAN_OFFSET 72u

static bool flush_storages(struct vmdk *vmdk, GError **error)
{
    struct image *image = vmdk->image;

    if (!storage_flush(image->storage, error))
        return false;
    for (guint i = 0; i < image->data_files->len; i++)
        if (!storage_flush(image_data_file(image, i)->storage, error))
            return false;
    return true;
}

/* ---- the first change --------------------------------------------------------------------------- */

bool vmdk_overwrite(struct vmdk *vmdk, struct vmdk_span span, const char *text, GError **error)
{
    return storage_pwrite(vmdk->image->storage, text, span.length, vmdk->text_offset + span.offset, error);
}

bool vmdk_put_cid(struct vmdk *vmdk, struct vmdk_span span, uint32_t cid, GError **error)
{
    g_autofree char *text = g_strdup_printf("%0*x", (int)span.length, cid);

    return vmdk_overwrite(vmdk, span, text, error);
}

static bool change_cid(struct vmdk *vmdk, GError **error)
{
    struct vmdk_descriptor *descriptor = vmdk->descriptor;
    uint32_t fits = UINT32_MAX >> (32 - 4 * descriptor->cid_span.length);

    descriptor->cid = vmdk->next_cid ? vmdk->next_cid : vmdk_new_cid() & fits;
    return vmdk_put_cid(vmdk, descriptor->cid_span, descriptor->cid, error);
}

static bool change_uuid(struct vmdk *vmdk, GError **error)
{
    struct vmdk_descriptor *descriptor = vmdk->descriptor;

    if (!descriptor->modification_uuid)
        return true;
    g_free(descriptor->modification_uuid);
    descriptor->modification_uuid =
        vmdk->next_modification ? g_strdup(vmdk->next_modification) : g_uuid_string_random();
    return vmdk_overwrite(vmdk, descriptor->modification_span, descriptor->modification_uuid, error);
}

static bool prepare_extent(struct vmdk_extent *extent, GError **error)
{
    if (!extent->frees)
        extent->frees = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    if (extent->packed)
        return true;
    if (!vmdk_verify(extent, &extent->end, error))
        return false;
    extent->end = round_up(MAX(extent->end, MAX(extent->header.overhead, VMDK_SECTOR)), extent->grain);
    return true;
}

bool vmdk_begin_write(struct vmdk *vmdk, GError **error)
{
    if (vmdk->failed)
        return vmdk_corrupt(error, "an earlier change stopped half way; the image must be opened again");
    if (vmdk->writing)
        return true;
    for (unsigned i = 0; i < vmdk->extent_count; i++)
        if (vmdk->extents[i].tables && !prepare_extent(&vmdk->extents[i], error))
            return false;
    vmdk->writing = true;
    vmdk->failed = true; /* until it is known what the medium holds */
    if (!change_cid(vmdk, error) || !change_uuid(vmdk, error) || !flush_storages(vmdk, error))
        return false;
    vmdk->failed = false;
    return vmdk_flush(vmdk->image, error); /* tables that differed from their copies */
}

/* ---- flush -------------------------------------------------------------------------------------- */

static bool mark(struct vmdk_extent *extent, bool unclean, GError **error)
{
    const uint8_t byte = unclean;

    return storage_pwrite(extent->storage, &byte, 1, UNCLEAN_OFFSET, error);
}

/* Step 1.  The file also gets its full length: no entry may point behind its end. */
static bool announce(struct vmdk_extent *extent, GError **error)
{
    if (extent->storage->growable && extent->storage->size < extent->reached &&
        !storage_resize(extent->storage, extent->reached, error))
        return false;
    return mark(extent, true, error);
}

static bool write_tables(struct vmdk_extent *extent, const uint32_t *gd, GError **error)
{
    GHashTableIter iter;
    struct vmdk_table *table;

    g_hash_table_iter_init(&iter, extent->tables);
    while (g_hash_table_iter_next(&iter, NULL, (gpointer *)&table))
        if (table->dirty && gd[table->index] &&
            !storage_pwrite(extent->storage, table->bytes, vmdk_table_bytes(extent),
                            vmdk_table_offset(extent, gd, table->index), error))
            return false;
    return true;
}

/* Step 2. */
static bool write_mapping(struct vmdk_extent *extent, GError **error)
{
    return (!extent->rgd || write_tables(extent, extent->rgd, error)) &&
           write_tables(extent, extent->gd, error);
}

static gint by_offset(gconstpointer a, gconstpointer b)
{
    uint64_t first = *(const uint64_t *)a, second = *(const uint64_t *)b;

    return first < second ? 1 : first > second ? -1 : 0;
}

/* Those at the end of the file are used again. */
static bool give_back(struct vmdk_extent *extent, GError **error)
{
    g_array_sort(extent->frees, by_offset);
    for (guint i = 0; i < extent->frees->len; i++) {
        uint64_t host = g_array_index(extent->frees, uint64_t, i);
        uint64_t length = MIN(extent->grain, MAX(extent->storage->size, host) - host);

        if (host + extent->grain == extent->end)
            extent->end = host;
        if (length && !storage_discard(extent->storage, host, length, error))
            return false;
    }
    g_array_set_size(extent->frees, 0);
    return true;
}

/* Step 3. */
static bool settle(struct vmdk_extent *extent, GError **error)
{
    if (!mark(extent, false, error) || !give_back(extent, error))
        return false;
    vmdk_tables_cleaned(extent);
    extent->merge = false;
    extent->changed = false;
    return true;
}

static bool for_changed(struct vmdk *vmdk, bool (*step)(struct vmdk_extent *, GError **), GError **error)
{
    for (unsigned i = 0; i < vmdk->extent_count; i++)
        if (vmdk->extents[i].changed && !step(&vmdk->extents[i], error))
            return false;
    return true;
}

static bool any_changed(const struct vmdk *vmdk)
{
    for (unsigned i = 0; i < vmdk->extent_count; i++)
        if (vmdk->extents[i].changed)
            return true;
    return false;
}

static bool flush_sparse(struct vmdk *vmdk, GError **error)
{
    return for_changed(vmdk, announce, error) && flush_storages(vmdk, error) &&
           for_changed(vmdk, write_mapping, error) && flush_storages(vmdk, error) &&
           for_changed(vmdk, settle, error) && flush_storages(vmdk, error);
}

bool vmdk_flush(struct image *image, GError **error)
{
    struct vmdk *vmdk = image->opaque;

    if (vmdk->failed)
        return vmdk_corrupt(error, "an earlier change stopped half way; the image must be opened again");
    if (!any_changed(vmdk))
        return flush_storages(vmdk, error);
    if (!vmdk->writing && !vmdk_begin_write(vmdk, error))
        return false;
    if (vmdk->stream ? vmdk_stream_flush(&vmdk->extents[0], error) : flush_sparse(vmdk, error))
        return true;
    vmdk->failed = true; /* after a failed barrier nobody knows what the medium holds */
    return false;
}
