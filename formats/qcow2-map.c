/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * From guest offsets to extents: L1 entry -> L2 table -> L2 entry (qcow2.txt, "Cluster mapping").
 *
 * Cost: an empty L1 entry costs a compare; an L2 table is read once per pass, tables that lie side by
 * side in one request of up to 1 MiB; runs of empty L2 entries are skipped eight at a time.
 */
#include "formats/qcow2.h"

#include <string.h>

#define READ_AHEAD (1u << 20) /* bytes of tables that lie side by side, in one request */
#define PREFETCH   (8u << 20) /* bytes of tables on their way from the medium */

/* First byte behind what the image occupies, or will once the caller has written what was placed. */
static uint64_t image_end(const struct qcow2 *qcow2)
{
    return MAX(qcow2->storage->size, qcow2->end);
}

/* Where standard clusters lie. */
static struct storage *data_storage(const struct qcow2 *qcow2)
{
    return qcow2->external ? image_data_file(qcow2->image, 0)->storage : qcow2->storage;
}

/* As image_end, for the data of standard clusters. */
static uint64_t data_end(const struct qcow2 *qcow2)
{
    return qcow2->external ? data_storage(qcow2)->size : image_end(qcow2);
}

static bool overlaps(uint64_t offset, uint64_t length, uint64_t table, uint64_t table_length)
{
    return offset < table + table_length && table < offset + length;
}

/* Does [host, +length) touch the header or a table that the header names?  Nothing else may lie there: a
 * guest would read what it must not know, and write what it likes. */
static bool touches_tables(const struct qcow2 *qcow2, uint64_t host, uint64_t length)
{
    return host < qcow2->cluster_size ||
           overlaps(host, length, qcow2->l1_offset, qcow2->l1_size * UINT64_C(8)) ||
           overlaps(host, length, qcow2->reftable_offset,
                    (uint64_t)qcow2->reftable_clusters * qcow2->cluster_size) ||
           overlaps(host, length, qcow2->snapshots_offset, qcow2->snapshots_length) ||
           overlaps(host, length, qcow2->bitmaps_offset, qcow2->bitmaps_length);
}

bool qcow2_l1_entry_valid(struct qcow2 *qcow2, uint64_t entry, const char **why)
{
    uint64_t host = entry & QCOW2_HOST;

    *why = entry & QCOW2_L1_ZEROS                             ? "has reserved bits set"
           : host == 0                                        ? "has a flag but no table"
           : host % qcow2->cluster_size                       ? "is not aligned to a cluster"
           : host >= image_end(qcow2)                         ? "points behind the end of the file"
           : image_end(qcow2) - host < qcow2->cluster_size    ? "points to a table that the file ends in"
           : touches_tables(qcow2, host, qcow2->cluster_size) ? "points into the header or another table"
                                                              : NULL;
    return !*why;
}

/* How many L2 tables from `l1_index` on lie side by side, are not cached and fit into one request? */
static unsigned adjacent_tables(struct qcow2 *qcow2, uint64_t l1_index)
{
    unsigned max = MIN(READ_AHEAD / qcow2->cluster_size, qcow2->l2.max / 2), count = 1;
    uint64_t first = qcow2->l1[l1_index] & QCOW2_HOST;
    const char *why;

    while (count < max && l1_index + count < qcow2->l1_size) {
        uint64_t next = l1_index + count, entry = qcow2->l1[next];

        if ((entry & QCOW2_HOST) != first + (uint64_t)count * qcow2->cluster_size ||
            !qcow2_l1_entry_valid(qcow2, entry, &why) || g_hash_table_contains(qcow2->l2.tables, &next))
            break;
        count++;
    }
    return count;
}

static bool read_table(struct qcow2 *qcow2, uint64_t l1_index, uint64_t host, GError **error)
{
    struct qcow2_table *table = qcow2_cache_add(qcow2, &qcow2->l2, l1_index, host, error);

    if (!table)
        return false;
    if (storage_pread(qcow2->storage, table->bytes, qcow2->cluster_size, host, error))
        return true;
    qcow2_cache_drop(&qcow2->l2, table);
    return false;
}

static bool read_tables(struct qcow2 *qcow2, uint64_t l1_index, unsigned count, GError **error)
{
    uint64_t host = qcow2->l1[l1_index] & QCOW2_HOST;

    if (count == 1)
        return read_table(qcow2, l1_index, host, error);
    if (!qcow2->read_ahead)
        qcow2->read_ahead = g_malloc(READ_AHEAD);
    if (!storage_pread(qcow2->storage, qcow2->read_ahead, (size_t)count * qcow2->cluster_size, host, error))
        return false;
    for (unsigned i = count; i-- > 0;) { /* backwards: the first one is used next */
        uint64_t offset = (uint64_t)i * qcow2->cluster_size;
        struct qcow2_table *table = qcow2_cache_add(qcow2, &qcow2->l2, l1_index + i, host + offset, error);

        if (!table)
            return false;
        memcpy(table->bytes, qcow2->read_ahead + offset, qcow2->cluster_size);
    }
    return true;
}

/* A walk through the disk asks for the tables ahead of it, wherever they lie: so the medium is busy while one
 * is looked at. A single look here and there asks for nothing. */
static void prefetch_tables(struct qcow2 *qcow2, uint64_t l1_index)
{
    uint64_t window = MAX(PREFETCH / qcow2->cluster_size, 2), last = qcow2->last_read;
    bool walking = l1_index > last && l1_index - last <= window;
    uint64_t next = MAX(l1_index + 1, qcow2->prefetched), end = MIN(l1_index + window, qcow2->l1_size);
    const char *why;

    qcow2->last_read = l1_index;
    if (!walking || next > l1_index + window)
        qcow2->prefetched = l1_index + 1;
    else if (next <= l1_index + window / 2)
        for (qcow2->prefetched = MAX(end, next); next < end; next++)
            if (qcow2->l1[next] && qcow2_l1_entry_valid(qcow2, qcow2->l1[next], &why))
                storage_prefetch(qcow2->storage, qcow2->l1[next] & QCOW2_HOST, qcow2->cluster_size);
}

struct qcow2_table *qcow2_l2_load(struct qcow2 *qcow2, uint64_t l1_index, GError **error)
{
    struct qcow2_table *table = qcow2_cache_find(&qcow2->l2, l1_index);
    const char *why;

    if (table)
        return table;
    if (!qcow2_l1_entry_valid(qcow2, qcow2->l1[l1_index], &why)) {
        qcow2_corrupt(qcow2, error, "L1 entry %" G_GUINT64_FORMAT " 0x%" G_GINT64_MODIFIER "x %s", l1_index,
                      qcow2->l1[l1_index], why);
        return NULL;
    }
    prefetch_tables(qcow2, l1_index);
    if (!read_tables(qcow2, l1_index, adjacent_tables(qcow2, l1_index), error))
        return NULL;
    return qcow2_cache_find(&qcow2->l2, l1_index);
}

/* Compressed descriptor: the low bits are a byte offset, the bits above it a count of 512-byte sectors
 * beyond the first. */
static const char *decode_packed(struct qcow2 *qcow2, uint64_t word, uint64_t bitmap,
                                 struct qcow2_entry *entry)
{
    unsigned shift = 62 - (qcow2->cluster_bits - 8);
    uint64_t host = word & ((UINT64_C(1) << shift) - 1);
    uint64_t sectors = (word >> shift & ((UINT64_C(1) << (qcow2->cluster_bits - 8)) - 1)) + 1;
    uint64_t length = sectors * 512 - host % 512, end = image_end(qcow2);

    if (qcow2->external)
        return "is compressed, but the data lies in an external file";
    if (bitmap)
        return "is compressed but has subclusters";
    if (host >= end)
        return "points behind the end of the file";
    if (touches_tables(qcow2, host, 1))
        return "points into the header or a table";
    entry->packed = true;
    entry->host = host;
    entry->packed_length = MIN(length, end - host);
    entry->data = qcow2_all_subclusters(qcow2);
    return NULL;
}

static const char *decode_standard(struct qcow2 *qcow2, uint64_t word, uint64_t bitmap,
                                   struct qcow2_entry *entry)
{
    bool zero = word & QCOW2_ZERO, external = qcow2->external, allocated;

    entry->host = word & QCOW2_HOST;
    entry->copied = word & QCOW2_COPIED;
    allocated = entry->host || (external && entry->copied); /* a data file has no header: it begins at 0 */
    if (qcow2->words == 2) {
        entry->data = (uint32_t)bitmap;
        entry->zero = bitmap >> 32;
    } else {
        entry->zero = zero;
        entry->data = allocated && !zero;
    }
    if (word & QCOW2_L2_ZEROS || (zero && qcow2->words == 2))
        return "has reserved bits set";
    if (zero && qcow2->version < 3)
        return "has the zero flag, which version 2 does not know";
    if (entry->host % qcow2->cluster_size)
        return "is not aligned to a cluster";
    if (entry->data & entry->zero)
        return "has subclusters that are both allocated and zero";
    if (entry->data && !allocated)
        return "has allocated subclusters but no cluster";
    if (!external && entry->host >= image_end(qcow2))
        return "points behind the end of the file";
    if (!external && entry->host && touches_tables(qcow2, entry->host, qcow2->cluster_size))
        return "points into the header or a table";
    return NULL;
}

bool qcow2_decode_entry(struct qcow2 *qcow2, const uint8_t *table, uint64_t index, struct qcow2_entry *entry,
                        const char **why)
{
    const uint8_t *at = table + index * qcow2->words * 8;
    uint64_t word = load_be64(at), bitmap = qcow2->words == 2 ? load_be64(at + 8) : 0;

    memset(entry, 0, sizeof *entry);
    *why = word & QCOW2_PACKED ? decode_packed(qcow2, word, bitmap, entry)
                               : decode_standard(qcow2, word, bitmap, entry);
    return !*why;
}

bool qcow2_decode(struct qcow2 *qcow2, const uint8_t *table, uint64_t index, uint64_t guest,
                  struct qcow2_entry *entry, GError **error)
{
    bool mapped, external = qcow2->external;
    const char *why;

    if (qcow2_decode_entry(qcow2, table, index, entry, &why)) {
        mapped = entry->host || entry->copied;
        if (!external || !mapped || entry->host == guest)
            return true;
        why = "must point to the same offset in the data file";
    }
    return qcow2_corrupt(qcow2, error,
                         "L2 entry 0x%" G_GINT64_MODIFIER "x of guest offset %" G_GUINT64_FORMAT " %s",
                         load_be64(table + index * qcow2->words * 8), guest, why);
}

/* Words of zeros at the start of `at`, at most `max`. */
static uint64_t zero_words(const uint8_t *at, uint64_t max)
{
    uint64_t i = 0, word[8];

    for (; i + 8 <= max; i += 8) {
        memcpy(word, at + i * 8, sizeof word);
        if (word[0] | word[1] | word[2] | word[3] | word[4] | word[5] | word[6] | word[7])
            break;
    }
    for (; i < max; i++) {
        memcpy(word, at + i * 8, 8);
        if (word[0])
            break;
    }
    return i;
}

/* How many subclusters from number `sub` on are of the same kind? */
static unsigned same_kind(const struct qcow2_entry *entry, unsigned sub, unsigned sub_count)
{
    uint32_t data = entry->data >> sub, zero = entry->zero >> sub;
    uint32_t differ = (data & 1 ? ~data : data) | (zero & 1 ? ~zero : zero);

    return MIN(differ ? (unsigned)__builtin_ctz(differ) : 32, sub_count - sub);
}

/* The part [offset, end) of one cluster.  False: the sink is full or (error set) the image is wrong. */
static bool map_cluster(struct qcow2 *qcow2, const struct qcow2_entry *entry, uint64_t offset, uint64_t end,
                        struct extent_sink *sink, GError **error)
{
    uint64_t start = offset & ~(uint64_t)(qcow2->cluster_size - 1);

    while (offset < end) {
        unsigned sub = (offset - start) / qcow2->sub_size;
        unsigned next = sub + same_kind(entry, sub, qcow2->sub_count);
        uint64_t piece_end = MIN(end, start + (uint64_t)next * qcow2->sub_size);
        struct extent extent = {.offset = offset, .length = piece_end - offset, .status = EXTENT_HOLE};

        if (entry->packed) {
            extent.status = EXTENT_PACKED;
            extent.host_offset = entry->host;
            extent.packed_length = entry->packed_length;
            extent.skip = offset - start;
        } else if (entry->data >> sub & 1) {
            extent.status = EXTENT_DATA;
            extent.host_offset = entry->host + (offset - start);
            if (extent.host_offset + extent.length > data_end(qcow2))
                return qcow2_corrupt(qcow2, error,
                                     "the %sfile ends inside the data of guest offset %" G_GUINT64_FORMAT
                                     " (host offset 0x%" G_GINT64_MODIFIER "x)",
                                     qcow2->external ? "data " : "", offset, extent.host_offset);
        } else if (entry->zero >> sub & 1) {
            extent.status = EXTENT_ZERO;
        }
        if (!extent_sink_add(sink, &extent))
            return false;
        offset = piece_end;
    }
    return true;
}

/* Guest range [offset, end) lies in the range of this table. False as map_cluster. */
static bool map_table(struct qcow2 *qcow2, const struct qcow2_table *table, uint64_t offset, uint64_t end,
                      struct extent_sink *sink, GError **error)
{
    uint64_t entries = UINT64_C(1) << qcow2->l2_bits;

    while (offset < end) {
        uint64_t index = (offset >> qcow2->cluster_bits) & (entries - 1);
        uint64_t empty =
            zero_words(table->bytes + index * qcow2->words * 8, (entries - index) * qcow2->words) /
            qcow2->words;
        uint64_t start = offset & ~(uint64_t)(qcow2->cluster_size - 1);
        uint64_t piece_end = MIN(end, start + MAX(empty, 1) * qcow2->cluster_size);
        struct qcow2_entry entry = {0};

        if (!empty && !qcow2_decode(qcow2, table->bytes, index, start, &entry, error))
            return false;
        if (empty) {
            struct extent hole = {.offset = offset, .length = piece_end - offset, .status = EXTENT_HOLE};

            if (!extent_sink_add(sink, &hole))
                return false;
        } else if (!map_cluster(qcow2, &entry, offset, piece_end, sink, error)) {
            return false;
        }
        offset = piece_end;
    }
    return true;
}

/* The empty L1 entries from the one of `offset` on. */
static bool map_empty(struct qcow2 *qcow2, uint64_t offset, uint64_t end, uint64_t *next,
                      struct extent_sink *sink)
{
    unsigned shift = qcow2->cluster_bits + qcow2->l2_bits;
    uint64_t index = offset >> shift, last = (end - 1) >> shift;
    struct extent hole = {.offset = offset, .status = EXTENT_HOLE};

    while (index <= last && qcow2->l1[index] == 0)
        index++;
    *next = MIN(end, index << shift);
    hole.length = *next - offset;
    return extent_sink_add(sink, &hole);
}

bool qcow2_map(struct image *image, uint64_t offset, uint64_t length, struct extent *out, size_t max,
               size_t *count, GError **error)
{
    struct qcow2 *qcow2 = image->opaque;
    struct extent_sink sink = {.out = out, .max = max, .storage = data_storage(qcow2)};
    unsigned shift = qcow2->cluster_bits + qcow2->l2_bits;
    uint64_t end = offset + length, next;
    GError *failure = NULL;
    bool more = true;

    for (; more && offset < end; offset = next) {
        struct qcow2_table *table;

        if (qcow2->l1[offset >> shift] == 0) {
            more = map_empty(qcow2, offset, end, &next, &sink);
            continue;
        }
        next = MIN(end, ((offset >> shift) + 1) << shift);
        table = qcow2_l2_load(qcow2, offset >> shift, &failure);
        more = table && map_table(qcow2, table, offset, next, &sink, &failure);
    }
    return extent_sink_end(&sink, failure, count, error);
}
