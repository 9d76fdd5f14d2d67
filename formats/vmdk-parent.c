/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Whether a parent is the right one: by its content id (VMware, QEMU) and by the UUIDs of its image and of
 * its last modification (VirtualBox).  Every change of its content replaces content id and modification.
 *
 * A parent that a child is merged into gets values that follow from its old ones and from the child.  They
 * are written into the child first: then the parent that the child has is the one with the value that it
 * knows, or the one from which that value follows.
 */
#include "formats/uuid.h"
#include "formats/vmdk.h"

#include <string.h>

static bool same_uuid(const char *a, const char *b)
{
    return a && b && strcmp(a, b) == 0;
}

static void digest(const char *before, uint32_t child_cid, uint8_t bytes[32])
{
    g_autoptr(GChecksum) sum = g_checksum_new(G_CHECKSUM_SHA256);
    uint8_t cid[4];
    gsize length = 32;

    store_le32(cid, child_cid);
    g_checksum_update(sum, (const uint8_t *)before, strlen(before));
    g_checksum_update(sum, cid, sizeof cid);
    g_checksum_get_digest(sum, bytes, &length);
}

/* In as many digits as both descriptors have; never 0, "no parent" or "not known". */
static uint32_t merged_cid(const struct vmdk_descriptor *parent, const struct vmdk_descriptor *child)
{
    size_t digits =
        MIN(parent->cid_span.length, child->parent_cid == VMDK_NO_PARENT ? 8 : child->parent_cid_span.length);
    uint32_t most = digits < 8 ? (UINT32_C(1) << 4 * digits) - 1 : VMDK_UNKNOWN_CID - 1;
    g_autofree char *before = g_strdup_printf("%08x", parent->cid);
    uint8_t bytes[32];

    digest(before, child->cid, bytes);
    return load_le32(bytes) % most + 1;
}

/* NULL: the parent has none. */
static char *merged_modification(const struct vmdk_descriptor *parent, const struct vmdk_descriptor *child)
{
    uint8_t bytes[32];

    if (!parent->modification_uuid)
        return NULL;
    digest(parent->modification_uuid, child->cid, bytes);
    return uuid_text(bytes);
}

static bool is_known_modification(const struct vmdk_descriptor *child, const struct vmdk_descriptor *parent)
{
    g_autofree char *merged = merged_modification(parent, child);

    return !child->parent_modification_uuid ||
           same_uuid(child->parent_modification_uuid, parent->modification_uuid) ||
           same_uuid(child->parent_modification_uuid, merged);
}

static bool check_uuids(const struct vmdk_descriptor *child, const struct vmdk_descriptor *parent,
                        GError **error)
{
    if (!same_uuid(child->parent_uuid, parent->image_uuid))
        return vmdk_refuse(error, "ddb.uuid.parent is %s, but the parent's ddb.uuid.image is %s",
                           child->parent_uuid, parent->image_uuid ? parent->image_uuid : "not there");
    return is_known_modification(child, parent) ||
           vmdk_refuse(error,
                       "the parent was changed: ddb.uuid.parentmodification is %s, the parent's "
                       "ddb.uuid.modification %s",
                       child->parent_modification_uuid,
                       parent->modification_uuid ? parent->modification_uuid : "is not there");
}

bool vmdk_check_parent(struct image *image, struct image *parent, GError **error)
{
    const struct vmdk_descriptor *child = ((struct vmdk *)image->opaque)->descriptor, *below;

    if (vmdk_is_base(child))
        return true;
    if (parent->format != image->format)
        return vmdk_refuse(error,
                           "the parent %s is not a VMDK but %s: whether it is the right one cannot be told",
                           parent->name, parent->format->name);
    below = ((struct vmdk *)parent->opaque)->descriptor;
    if (parent->size != image->size)
        image_notice(image, "it has %" G_GUINT64_FORMAT " bytes, its parent %" G_GUINT64_FORMAT, image->size,
                     parent->size);
    if (child->parent_cid != VMDK_NO_PARENT && child->parent_cid != below->cid &&
        child->parent_cid != merged_cid(below, child))
        return vmdk_refuse(
            error, "%s is not the parent or was changed: parentCID is %08x, the CID of the parent %08x",
            parent->name, child->parent_cid, below->cid);
    return !child->parent_uuid || check_uuids(child, below, error);
}

static bool tell_cid(struct vmdk *child, uint32_t cid, GError **error)
{
    struct vmdk_descriptor *descriptor = child->descriptor;

    if (descriptor->parent_cid == VMDK_NO_PARENT)
        return true;
    descriptor->parent_cid = cid;
    return vmdk_put_cid(child, descriptor->parent_cid_span, cid, error);
}

static bool tell_modification(struct vmdk *child, const char *uuid, GError **error)
{
    struct vmdk_descriptor *descriptor = child->descriptor;

    if (!descriptor->parent_modification_uuid || !uuid)
        return true;
    g_free(descriptor->parent_modification_uuid);
    descriptor->parent_modification_uuid = g_strdup(uuid);
    return vmdk_overwrite(child, descriptor->parent_modification_span, uuid, error);
}

bool vmdk_begin_merge(struct image *image, struct image *child, GError **error)
{
    struct vmdk *vmdk = image->opaque, *above = child->opaque;

    vmdk->next_cid = merged_cid(vmdk->descriptor, above->descriptor);
    g_free(vmdk->next_modification);
    vmdk->next_modification = merged_modification(vmdk->descriptor, above->descriptor);
    return tell_cid(above, vmdk->next_cid, error) &&
           tell_modification(above, vmdk->next_modification, error) && storage_flush(child->storage, error);
}
