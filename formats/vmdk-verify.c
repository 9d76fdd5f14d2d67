/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What must be so before the first change: no two grains overlap, no grain lies on a table, and the redundant
 * tables say the same.  A hostile or damaged extent that is only read may break these rules; writing to it
 * could destroy more.
 */
#include "formats/vmdk.h"

#include <string.h>

#define MAX_MAP (64u << 20) /* bytes of the map of what is used */

struct verify {
    struct vmdk_extent *extent;
    uint64_t unit; /* what all grains are aligned to */
    uint64_t end;  /* of the last grain */
    uint8_t *used; /* a bit per unit of the file; NULL in the first round */
    uint64_t units;
    uint8_t *other; /* a redundant table */
};

static bool take(struct verify *verify, uint64_t host, GError **error)
{
    for (uint64_t i = host / verify->unit; i < (host + verify->extent->grain) / verify->unit; i++) {
        if (i >= verify->units)
            break; /* the last grain may be cut */
        if (verify->used[i / 8] >> (i % 8) & 1)
            return vmdk_refuse(error, "%s: two grains lie at offset %" G_GUINT64_FORMAT,
                               verify->extent->storage->name, host);
        verify->used[i / 8] |= 1 << (i % 8);
    }
    return true;
}

static bool verify_grain(struct verify *verify, uint64_t host, GError **error)
{
    uint64_t lowest = host & -host;

    verify->end = MAX(verify->end, host + verify->extent->grain);
    verify->unit = MIN(verify->unit, lowest);
    return !verify->used || take(verify, host, error);
}

/* A table that differs from its copy is written again by the next flush. */
static bool compare_copy(struct verify *verify, struct vmdk_table *table, GError **error)
{
    struct vmdk_extent *extent = verify->extent;
    uint64_t bytes = vmdk_table_bytes(extent);

    if (!extent->rgd || !extent->rgd[table->index] || verify->used)
        return true;
    if (!storage_pread(extent->storage, verify->other, bytes,
                       vmdk_table_offset(extent, extent->rgd, table->index), error))
        return false;
    if (memcmp(verify->other, table->bytes, bytes) != 0)
        vmdk_table_dirty(extent, table);
    return true;
}

static bool verify_table(struct verify *verify, struct vmdk_table *table, GError **error)
{
    struct vmdk_extent *extent = verify->extent;
    uint64_t index = table->index, guest = extent->start + index * extent->entries * extent->grain;
    enum vmdk_entry entry;
    uint64_t host = 0;

    for (uint32_t i = 0; i < extent->entries && guest < extent->start + extent->size;
         i++, guest += extent->grain)
        if (!vmdk_decode(extent, table->bytes, i, guest, &entry, &host, error) ||
            (entry == VMDK_ENTRY_GRAIN && !extent->packed && !verify_grain(verify, host, error)))
            return false;
    return compare_copy(verify, table, error);
}

static bool verify_tables(struct verify *verify, GError **error)
{
    struct vmdk_extent *extent = verify->extent;

    for (uint64_t i = 0; i < extent->table_count; i++) {
        struct vmdk_table *table;

        if (!vmdk_table_load(extent, i, &table, error) || (table && !verify_table(verify, table, error)))
            return false;
    }
    return true;
}

/* No grain lies where tables are. */
static bool tables_are_free(struct verify *verify, const uint32_t *gd, GError **error)
{
    struct vmdk_extent *extent = verify->extent;
    uint64_t bytes = vmdk_table_bytes(extent);

    for (uint64_t k = 0; gd && k < extent->table_count; k++) {
        uint64_t offset = gd[k] ? vmdk_table_offset(extent, gd, k) : 0;

        for (uint64_t i = offset / verify->unit; gd[k] && i < divide_up(offset + bytes, verify->unit); i++)
            if (i < verify->units && verify->used[i / 8] >> (i % 8) & 1)
                return vmdk_refuse(error, "%s: a grain lies on the grain table at offset %" G_GUINT64_FORMAT,
                                   extent->storage->name, offset);
    }
    return true;
}

static bool verify_places(struct verify *verify, GError **error)
{
    uint64_t units = MAX(verify->extent->storage->size, verify->extent->reached) / verify->unit + 1;
    g_autofree uint8_t *used = units / 8 < MAX_MAP ? g_try_malloc0(units / 8 + 1) : NULL;

    if (!used)
        return vmdk_refuse(error,
                           "%s: grains that are aligned to %" G_GUINT64_FORMAT
                           " bytes only are not written to in a file of this size",
                           verify->extent->storage->name, verify->unit);
    verify->used = used;
    verify->units = units;
    return verify_tables(verify, error) && tables_are_free(verify, verify->extent->gd, error) &&
           tables_are_free(verify, verify->extent->rgd, error);
}

bool vmdk_verify(struct vmdk_extent *extent, uint64_t *end, GError **error)
{
    g_autofree uint8_t *other = g_malloc(vmdk_table_bytes(extent));
    struct verify verify = {.extent = extent, .unit = extent->grain, .other = other};

    if (!verify_tables(&verify, error))
        return false;
    *end = verify.end;
    return verify.end == 0 || verify_places(&verify, error);
}

bool vmdk_check(struct image *image, bool repair, struct image_check *result, GError **error)
{
    struct vmdk *vmdk = image->opaque;

    for (unsigned i = 0; i < vmdk->extent_count; i++) {
        g_autoptr(GError) local = NULL;
        uint64_t end;

        if (!vmdk->extents[i].tables || vmdk_verify(&vmdk->extents[i], &end, &local))
            continue;
        if (g_error_matches(local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_IO)) {
            g_propagate_error(error, g_steal_pointer(&local));
            return false;
        }
        if (result->corruptions++ == 0)
            g_strlcpy(result->finding, local->message, sizeof result->finding);
    }
    return !repair || vmdk_flush(image, error);
}
