/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The log ([MS-VHDX] 2.3): a ring of entries, each complete or, by its checksum, not there.  The active
 * sequence is the valid one with the greatest sequence number; what it says from its tail on is replayed.
 *
 * Cost: no sector of a valid entry looks like the begin of one, so an entry that is measured before its
 * checksum is taken ends before the next begins, and every sector is summed at most twice.
 */
#include "formats/crc32c.h"
#include "formats/vhdx.h"

#include <string.h>

#define ENTRY_HEADER  64u
#define DESCRIPTOR    32u
#define PER_SECTOR    (VHDX_SECTOR / DESCRIPTOR)
#define FIRST_TARGET  (UINT64_C(192) << 10) /* headers are never logged */
#define MAX_ZERO_RUNS 65536u

struct log {
    struct vhdx *vhdx;
    uint8_t *bytes; /* all of it */
    uint32_t length;
};

struct entry {
    uint32_t at, length, tail, descriptors;
    uint64_t sequence, flushed, last;
};

/* The n-th sector from `at` on. */
static const uint8_t *sector(const struct log *log, uint32_t at, uint64_t n)
{
    return log->bytes + (at + n * VHDX_SECTOR) % log->length;
}

static const uint8_t *descriptor(const struct log *log, const struct entry *entry, uint64_t i)
{
    uint64_t slot = ENTRY_HEADER / DESCRIPTOR + i;

    return sector(log, entry->at, slot / PER_SECTOR) + slot % PER_SECTOR * DESCRIPTOR;
}

static uint64_t descriptor_sectors(const struct entry *entry)
{
    return (entry->descriptors + (uint64_t)ENTRY_HEADER / DESCRIPTOR + PER_SECTOR - 1) / PER_SECTOR;
}

static bool is_data(const uint8_t *descriptor)
{
    return memcmp(descriptor, "desc", 4) == 0;
}

/* Signatures and sequence numbers of descriptors and data sectors; the length is what they need. */
static bool check_parts(const struct log *log, const struct entry *entry)
{
    uint64_t next = descriptor_sectors(entry), sectors = entry->length / VHDX_SECTOR;

    if (next > sectors)
        return false;
    for (uint32_t i = 0; i < entry->descriptors; i++) {
        const uint8_t *at = descriptor(log, entry, i);

        if ((!is_data(at) && memcmp(at, "zero", 4) != 0) || load_le64(at + 24) != entry->sequence)
            return false;
        if (is_data(at)) {
            const uint8_t *data = sector(log, entry->at, next);

            if (next++ >= sectors || memcmp(data, "data", 4) != 0 ||
                load_le32(data + 4) != entry->sequence >> 32 ||
                load_le32(data + VHDX_SECTOR - 4) != (uint32_t)entry->sequence)
                return false;
        }
    }
    return next == sectors;
}

static bool check_sum(const struct log *log, const struct entry *entry)
{
    static const uint8_t zeros[4];
    const uint8_t *first = sector(log, entry->at, 0);
    uint32_t crc = crc32c(crc32c(crc32c(0, first, 4), zeros, 4), first + 8, VHDX_SECTOR - 8);

    for (uint32_t i = 1; i < entry->length / VHDX_SECTOR; i++)
        crc = crc32c(crc, sector(log, entry->at, i), VHDX_SECTOR);
    return crc == load_le32(first + 4);
}

static bool read_entry(const struct log *log, uint32_t at, struct entry *entry)
{
    const uint8_t *bytes = sector(log, at, 0);

    *entry = (struct entry){.at = at,
                            .length = load_le32(bytes + 8),
                            .tail = load_le32(bytes + 12),
                            .sequence = load_le64(bytes + 16),
                            .descriptors = load_le32(bytes + 24),
                            .flushed = load_le64(bytes + 48),
                            .last = load_le64(bytes + 56)};
    return memcmp(bytes, "loge", 4) == 0 && entry->length > 0 && entry->length % VHDX_SECTOR == 0 &&
           entry->length <= log->length && entry->sequence > 0 &&
           memcmp(bytes + 32, &log->vhdx->header.log, 16) == 0 && check_parts(log, entry) &&
           check_sum(log, entry);
}

/* The entries that follow each other from `at` on. */
static GArray *read_sequence(const struct log *log, uint32_t at, uint64_t *length)
{
    GArray *entries = g_array_new(FALSE, FALSE, sizeof(struct entry));
    struct entry entry;

    *length = 0;
    while (*length < log->length && read_entry(log, (at + *length) % log->length, &entry) &&
           *length + entry.length <= log->length &&
           (!entries->len ||
            entry.sequence == g_array_index(entries, struct entry, entries->len - 1).sequence + 1)) {
        g_array_append_val(entries, entry);
        *length += entry.length;
    }
    return entries;
}

static struct entry *last_of(GArray *entries)
{
    return entries && entries->len ? &g_array_index(entries, struct entry, entries->len - 1) : NULL;
}

/* Where in the sequence its tail is; -1: not in it, so it is not valid. */
static int find_tail(GArray *entries)
{
    for (guint i = 0; i < entries->len; i++) {
        if (g_array_index(entries, struct entry, i).at == last_of(entries)->tail)
            return i;
    }
    return -1;
}

/* The active sequence from its tail on; NULL: there is none.  A sequence that is not valid has no valid one
 * in it that ends with the same entry, so the search goes on behind it. */
static GArray *find_active(const struct log *log)
{
    GArray *active = NULL;
    uint64_t length;

    for (uint64_t at = 0; at < log->length; at += MAX(length, VHDX_SECTOR)) {
        GArray *entries = read_sequence(log, at, &length);
        int tail = find_tail(entries);

        if (tail >= 0 && (!active || last_of(entries)->sequence > last_of(active)->sequence)) {
            g_clear_pointer(&active, g_array_unref);
            active = g_array_ref(entries);
            g_array_remove_range(active, 0, tail);
        }
        g_array_unref(entries);
    }
    return active;
}

static bool check_target(const struct log *log, uint64_t offset, uint64_t length, GError **error)
{
    const struct vhdx_header *header = &log->vhdx->header;
    uint64_t size = log->vhdx->replay->size;
    const char *wrong = NULL;

    if (offset % VHDX_SECTOR || length % VHDX_SECTOR)
        wrong = "is not aligned to 4 KiB";
    else if (offset < FIRST_TARGET)
        wrong = "is in the header section";
    else if (offset > size || length > size - offset)
        wrong = "is behind the end of the file";
    else if (offset < header->log_offset + header->log_length && header->log_offset < offset + length)
        wrong = "is in the log itself";
    return !wrong || vhdx_refuse(error,
                                 "the log would write %" G_GUINT64_FORMAT
                                 " bytes at offset %" G_GUINT64_FORMAT ", which %s",
                                 length, offset, wrong);
}

/* 2.3.1.3: the first eight and the last four bytes stand in the descriptor. */
static uint8_t *restore_sector(const uint8_t *data, const uint8_t *descriptor)
{
    uint8_t *bytes = g_memdup2(data, VHDX_SECTOR);

    memcpy(bytes, descriptor + 8, 8);
    memcpy(bytes + VHDX_SECTOR - 4, descriptor + 4, 4);
    return bytes;
}

static bool replay_entry(const struct log *log, const struct entry *entry, unsigned *zero_runs,
                         GError **error)
{
    uint64_t next = descriptor_sectors(entry);

    for (uint32_t i = 0; i < entry->descriptors; i++) {
        const uint8_t *at = descriptor(log, entry, i);
        bool data = is_data(at);
        uint64_t offset = load_le64(at + 16), length = data ? VHDX_SECTOR : load_le64(at + 8);

        if (!check_target(log, offset, length, error))
            return false;
        if (!data && ++*zero_runs > MAX_ZERO_RUNS)
            return vhdx_refuse(error, "the log has more than %u zero descriptors", MAX_ZERO_RUNS);
        vhdx_replay_add(log->vhdx->replay, offset, length,
                        data ? restore_sector(sector(log, entry->at, next++), at) : NULL);
    }
    return true;
}

static bool replay_sequence(const struct log *log, GArray *entries, GError **error)
{
    struct vhdx *vhdx = log->vhdx;
    struct storage *storage = vhdx->image->storage;
    const struct entry *last = last_of(entries);
    unsigned zero_runs = 0;

    if (last->flushed > storage->size)
        return vhdx_refuse(
            error, "the file is truncated: its log was written when it had %" G_GUINT64_FORMAT " bytes",
            last->flushed);
    if (last->last > VHDX_MAX_HOST)
        return vhdx_refuse(error, "LastFileOffset %" G_GUINT64_FORMAT " of the log is not a size of a file",
                           last->last);
    vhdx->replay = vhdx_replay_new(storage);
    vhdx_replay_reach(vhdx->replay, last->last);
    for (guint i = 0; i < entries->len; i++) {
        if (!replay_entry(log, &g_array_index(entries, struct entry, i), &zero_runs, error))
            return false;
    }
    vhdx->storage = vhdx->replay;
    return true;
}

bool vhdx_replay_log(struct vhdx *vhdx, GError **error)
{
    struct log log = {.vhdx = vhdx, .length = vhdx->header.log_length};
    g_autofree uint8_t *bytes = NULL;
    g_autoptr(GArray) active = NULL;

    if (vhdx_guid_is_zero(&vhdx->header.log))
        return true;
    if (log.length > VHDX_MAX_REPLAY_LOG)
        return vhdx_refuse(error, "LogLength %u is more than the %" G_GUINT64_FORMAT " that are replayed",
                           log.length, VHDX_MAX_REPLAY_LOG);
    log.bytes = bytes = g_try_malloc(log.length);
    if (!bytes)
        return blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "no memory for a log of %u bytes", log.length);
    if (!storage_pread(vhdx->storage, bytes, log.length, vhdx->header.log_offset, error))
        return false;
    active = find_active(&log);
    if (!active)
        return vhdx_refuse(error, "the header says that the log is in use, but it has no valid entry");
    return replay_sequence(&log, active, error);
}
