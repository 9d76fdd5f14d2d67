/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The header section ([MS-VHDX] 2.2): file type identifier, two headers, two region tables.  Of the headers
 * the valid one with the greater sequence number counts, so that an update can be torn and leaves the old.
 */
#include "formats/crc32c.h"
#include "formats/vhdx.h"

#include <string.h>

#define MAX_REGIONS 2047u

bool vhdx_probe(const uint8_t *head, size_t length, struct storage *storage)
{
    return length >= 8 && memcmp(head, "vhdxfile", 8) == 0;
}

/* Checksum of `bytes` with its own field, at offset 4, as zeros. */
static uint32_t checksum(const uint8_t *bytes, size_t length)
{
    static const uint8_t zeros[4];

    return crc32c(crc32c(crc32c(0, bytes, 4), zeros, 4), bytes + 8, length - 8);
}

static bool is_valid(const uint8_t *bytes, size_t length, const char *signature)
{
    return memcmp(bytes, signature, 4) == 0 && load_le32(bytes + 4) == checksum(bytes, length);
}

static void seal(uint8_t *bytes, size_t length)
{
    store_le32(bytes + 4, 0);
    store_le32(bytes + 4, checksum(bytes, length));
}

static void decode_header(const uint8_t *bytes, struct vhdx_header *header)
{
    header->sequence = load_le64(bytes + 8);
    memcpy(&header->file_write, bytes + 16, 16);
    memcpy(&header->data_write, bytes + 32, 16);
    memcpy(&header->log, bytes + 48, 16);
    header->log_version = load_le16(bytes + 64);
    header->version = load_le16(bytes + 66);
    header->log_length = load_le32(bytes + 68);
    header->log_offset = load_le64(bytes + 72);
}

void vhdx_encode_header(const struct vhdx_header *header, uint8_t *out)
{
    memset(out, 0, VHDX_SECTOR);
    memcpy(out, "head", 4);
    store_le64(out + 8, header->sequence);
    memcpy(out + 16, &header->file_write, 16);
    memcpy(out + 32, &header->data_write, 16);
    memcpy(out + 48, &header->log, 16);
    store_le16(out + 64, header->log_version);
    store_le16(out + 66, header->version);
    store_le32(out + 68, header->log_length);
    store_le64(out + 72, header->log_offset);
    seal(out, VHDX_SECTOR);
}

static bool check_log(struct vhdx *vhdx, GError **error)
{
    const struct vhdx_header *header = &vhdx->header;
    bool empty = vhdx_guid_is_zero(&header->log);

    if (header->version != 1)
        return vhdx_refuse(error, "Version %u of the header is not supported", header->version);
    if (header->log_version != 0 && !empty)
        return vhdx_refuse(error, "LogVersion %u is not supported, and the log is not empty",
                           header->log_version);
    if (header->log_length % VHDX_MIB || (header->log_length == 0 && !empty))
        return vhdx_refuse(error, "LogLength %u is not a multiple of 1 MiB, or 0 with entries in the log",
                           header->log_length);
    if (header->log_length == 0)
        return true;
    if (header->log_offset % VHDX_MIB || header->log_offset < VHDX_MIB ||
        header->log_offset > vhdx->storage->size ||
        header->log_length > vhdx->storage->size - header->log_offset)
        return vhdx_refuse(error,
                           "LogOffset %" G_GUINT64_FORMAT
                           " is not a multiple of 1 MiB with %u bytes of log inside the file",
                           header->log_offset, header->log_length);
    if (header->log_offset >= VHDX_MAX_HOST)
        return vhdx_refuse(error, "LogOffset %" G_GUINT64_FORMAT " is too large", header->log_offset);
    vhdx_space_claim(&vhdx->space, header->log_offset, header->log_length);
    return true;
}

bool vhdx_read_headers(struct vhdx *vhdx, GError **error)
{
    uint8_t id[8], bytes[2][VHDX_SECTOR];
    struct vhdx_header headers[2];
    bool valid[2];

    if (vhdx->storage->size < VHDX_MIB)
        return vhdx_refuse(error, "the file has only %" G_GUINT64_FORMAT " bytes", vhdx->storage->size);
    if (!storage_pread(vhdx->storage, id, sizeof id, 0, error))
        return false;
    if (memcmp(id, "vhdxfile", sizeof id) != 0)
        return vhdx_refuse(error, "the file does not begin with \"vhdxfile\"");
    for (unsigned i = 0; i < 2; i++) {
        if (!storage_pread(vhdx->storage, bytes[i], VHDX_SECTOR, VHDX_HEADER_OFFSET * (i + 1), error))
            return false;
        valid[i] = is_valid(bytes[i], VHDX_SECTOR, "head");
        decode_header(bytes[i], &headers[i]);
    }
    if (!valid[0] && !valid[1])
        return vhdx_refuse(error, "neither header has the right signature and checksum");
    if (valid[0] && valid[1] && headers[0].sequence == headers[1].sequence &&
        memcmp(bytes[0], bytes[1], VHDX_SECTOR) != 0)
        return vhdx_refuse(error,
                           "both headers have SequenceNumber %" G_GUINT64_FORMAT " and they are different",
                           headers[0].sequence);
    vhdx->current = !valid[0] || (valid[1] && headers[1].sequence > headers[0].sequence);
    vhdx->header = headers[vhdx->current];
    vhdx_space_claim(&vhdx->space, 0, VHDX_MIB);
    return check_log(vhdx, error);
}

bool vhdx_update_headers(struct vhdx *vhdx, GError **error)
{
    struct storage *storage = vhdx->image->storage;
    uint8_t bytes[VHDX_SECTOR];

    if (vhdx->header.sequence > UINT64_MAX - 2)
        return vhdx_refuse(error, "SequenceNumber %" G_GUINT64_FORMAT " cannot grow", vhdx->header.sequence);
    for (unsigned i = 0; i < 2; i++) {
        vhdx->header.sequence++;
        vhdx->current = !vhdx->current;
        vhdx_encode_header(&vhdx->header, bytes);
        if (!storage_pwrite(storage, bytes, sizeof bytes, VHDX_HEADER_OFFSET * (vhdx->current + 1), error) ||
            !storage_flush(storage, error))
            return false;
    }
    return true;
}

/* ---- regions ------------------------------------------------------------------------------------ */

static const char *claim_region(struct vhdx *vhdx, const struct vhdx_range *region)
{
    if (region->offset % VHDX_MIB || region->length % VHDX_MIB)
        return "is not aligned to 1 MiB";
    if (region->length == 0)
        return "is empty";
    if (region->offset > vhdx->storage->size || region->length > vhdx->storage->size - region->offset ||
        region->offset >= VHDX_MAX_HOST)
        return "ends behind the end of the file";
    if (!vhdx_space_claim(&vhdx->space, region->offset, region->length))
        return "overlaps the header, the log or another region";
    return NULL;
}

static bool read_region(struct vhdx *vhdx, const uint8_t *entry, GError **error)
{
    struct vhdx_range region = {load_le64(entry + 16), load_le32(entry + 24)}, *known = NULL;
    struct vhdx_guid guid;
    g_autofree char *name = NULL;
    const char *wrong;

    memcpy(&guid, entry, sizeof guid);
    name = vhdx_guid_format(&guid);
    if (vhdx_guid_equal(&guid, &vhdx_bat_guid))
        known = &vhdx->bat_region;
    else if (vhdx_guid_equal(&guid, &vhdx_metadata_guid))
        known = &vhdx->metadata_region;
    else if (load_le32(entry + 28) & 1)
        return vhdx_refuse(error, "region %s is required but not known", name);
    if (known && known->length)
        return vhdx_refuse(error, "region %s is there twice", name);
    wrong = claim_region(vhdx, &region);
    if (wrong)
        return vhdx_refuse(error,
                           "region %s of %" G_GUINT64_FORMAT " bytes at offset %" G_GUINT64_FORMAT " %s",
                           name, region.length, region.offset, wrong);
    if (known)
        *known = region;
    return true;
}

bool vhdx_read_regions(struct vhdx *vhdx, GError **error)
{
    g_autofree uint8_t *table = g_malloc(VHDX_TABLE);
    uint32_t count;
    bool valid = false;

    for (unsigned copy = 0; copy < 2 && !valid; copy++) {
        if (!storage_pread(vhdx->storage, table, VHDX_TABLE, VHDX_REGION_OFFSET + copy * VHDX_TABLE, error))
            return false;
        valid = is_valid(table, VHDX_TABLE, "regi");
    }
    if (!valid)
        return vhdx_refuse(error, "neither region table has the right signature and checksum");
    count = load_le32(table + 8);
    if (count > MAX_REGIONS)
        return vhdx_refuse(error, "EntryCount %u of the region table is more than %u", count, MAX_REGIONS);
    for (uint32_t i = 0; i < count; i++) {
        if (!read_region(vhdx, table + 16 + i * 32, error))
            return false;
    }
    if (!vhdx->bat_region.length || !vhdx->metadata_region.length)
        return vhdx_refuse(error, "there is no %s region", vhdx->bat_region.length ? "metadata" : "BAT");
    return true;
}

static void encode_region(uint8_t *entry, const struct vhdx_guid *guid, const struct vhdx_range *region)
{
    memcpy(entry, guid, sizeof *guid);
    store_le64(entry + 16, region->offset);
    store_le32(entry + 24, region->length);
    store_le32(entry + 28, 1);
}

void vhdx_encode_regions(const struct vhdx *vhdx, uint8_t *out)
{
    memset(out, 0, VHDX_TABLE);
    memcpy(out, "regi", 4);
    store_le32(out + 8, 2);
    encode_region(out + 16, &vhdx_bat_guid, &vhdx->bat_region);
    encode_region(out + 48, &vhdx_metadata_guid, &vhdx->metadata_region);
    seal(out, VHDX_TABLE);
}
