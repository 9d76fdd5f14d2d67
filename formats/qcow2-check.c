/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Recounts all references to host clusters and compares them with the refcounts.
 *
 * Memory is bounded: the file is looked at in windows of WINDOW clusters, and all references are
 * walked once per window.  An image with one window (1 TiB of 64 KiB clusters) is walked twice: once to
 * count, once to compare the COPIED flags.
 */
#include "formats/qcow2.h"

#include <string.h>

#define WINDOW      (16u << 20) /* clusters: 32 MiB of counts */
#define MAX_WINDOWS 1024
#define CHUNK       8192u /* words */

struct check {
    struct qcow2 *qcow2;
    struct image_check *result;
    uint64_t clusters;    /* of the file */
    uint64_t first;       /* of the window */
    uint64_t count;       /* clusters in the window */
    uint16_t *references; /* stops at 65535 */
    bool structure;       /* first walk: report what is malformed */
    uint64_t malformed;
    bool repair, rebuild;
};

static void remember(struct check *check, const char *format, ...) G_GNUC_PRINTF(2, 3);

static void remember(struct check *check, const char *format, ...)
{
    va_list arguments;

    if (*check->result->finding)
        return;
    va_start(arguments, format);
    g_vsnprintf(check->result->finding, sizeof check->result->finding, format, arguments);
    va_end(arguments);
}

static void malformed(struct check *check, const char *what, uint64_t value)
{
    if (!check->structure)
        return;
    check->malformed++;
    remember(check, "%s 0x%" G_GINT64_MODIFIER "x is malformed", what, value);
}

static void count_bytes(struct check *check, uint64_t offset, uint64_t length)
{
    unsigned bits = check->qcow2->cluster_bits;
    uint64_t first = offset >> bits, last;

    if (length == 0)
        return;
    last = (offset + length - 1) >> bits;
    if (last >= check->clusters)
        malformed(check, "a reference behind the end of the file: host offset", offset);
    first = MAX(first, check->first);
    for (uint64_t i = first; i <= last && i < check->first + check->count; i++) {
        if (check->references[i - check->first] < UINT16_MAX)
            check->references[i - check->first]++;
    }
}

/* ---- walking ------------------------------------------------------------------------------------ */

/* As counted when it was written: not cut at the end of the file. */
static void count_packed(struct check *check, uint64_t word)
{
    unsigned shift = 62 - (check->qcow2->cluster_bits - 8);
    uint64_t host = word & ((UINT64_C(1) << shift) - 1);
    uint64_t sectors = (word >> shift & ((UINT64_C(1) << (check->qcow2->cluster_bits - 8)) - 1)) + 1;

    if (word & QCOW2_COPIED)
        malformed(check, "compressed L2 entry", word);
    count_bytes(check, host, sectors * 512 - host % 512);
}

static void walk_table(struct check *check, const uint8_t *table)
{
    struct qcow2 *qcow2 = check->qcow2;
    uint64_t entries = UINT64_C(1) << qcow2->l2_bits;
    struct qcow2_entry entry;
    const char *why;

    for (uint64_t i = 0; i < entries; i++) {
        uint64_t word = load_be64(table + i * qcow2->words * 8);

        if (word == 0 && qcow2->words == 1)
            continue;
        if (!qcow2_decode_entry(qcow2, table, i, &entry, &why))
            malformed(check, "L2 entry", word);
        else if (entry.packed)
            count_packed(check, word);
        else if (entry.host && !qcow2->external) /* that file has no refcounts */
            count_bytes(check, entry.host, qcow2->cluster_size);
    }
}

/* One L1 entry; `seen` holds the tables of this L1 table: two entries must not share one. */
static bool walk_l1_entry(struct check *check, uint64_t entry, uint64_t index, bool active, GHashTable *seen,
                          uint8_t *buffer, GError **error)
{
    struct qcow2 *qcow2 = check->qcow2;
    uint64_t host = entry & QCOW2_HOST;
    struct qcow2_table *table;
    const char *why;

    if (entry == 0)
        return true;
    if (!qcow2_l1_entry_valid(qcow2, entry, &why) ||
        !g_hash_table_add(seen, GSIZE_TO_POINTER(host >> qcow2->cluster_bits))) {
        malformed(check, "L1 entry", entry);
        return true;
    }
    count_bytes(check, host, qcow2->cluster_size);
    if (active) {
        table = qcow2_l2_load(qcow2, index, error);
        if (table)
            walk_table(check, table->bytes);
        return table;
    }
    if (!storage_pread(qcow2->storage, buffer, qcow2->cluster_size, host, error))
        return false;
    walk_table(check, buffer);
    return true;
}

static bool walk_active(struct check *check, GError **error)
{
    struct qcow2 *qcow2 = check->qcow2;
    g_autoptr(GHashTable) seen = g_hash_table_new(g_direct_hash, g_direct_equal);

    count_bytes(check, qcow2->l1_offset, qcow2->l1_size * UINT64_C(8));
    for (uint64_t i = 0; i < qcow2->l1_size; i++) {
        if (!walk_l1_entry(check, qcow2->l1[i], i, true, seen, NULL, error))
            return false;
    }
    return true;
}

static bool walk_snapshot(struct check *check, const struct qcow2_snapshot *snapshot, GError **error)
{
    struct qcow2 *qcow2 = check->qcow2;
    g_autoptr(GHashTable) seen = g_hash_table_new(g_direct_hash, g_direct_equal);
    g_autofree uint8_t *buffer = g_malloc(qcow2->cluster_size);

    count_bytes(check, snapshot->l1_offset, snapshot->l1_size * UINT64_C(8));
    for (uint64_t at = 0; at < snapshot->l1_size; at += CHUNK) {
        uint64_t count = MIN(CHUNK, snapshot->l1_size - at);
        g_autofree uint64_t *words = qcow2_read_words(qcow2, snapshot->l1_offset + at * 8, count, error);

        for (uint64_t i = 0; words && i < count; i++) {
            if (!walk_l1_entry(check, words[i], 0, false, seen, buffer, error))
                return false;
        }
        if (!words)
            return false;
    }
    return true;
}

static bool walk_bitmap(struct check *check, const struct qcow2_bitmap *bitmap, GError **error)
{
    struct qcow2 *qcow2 = check->qcow2;

    count_bytes(check, bitmap->table_offset, bitmap->table_size * UINT64_C(8));
    for (uint64_t at = 0; at < bitmap->table_size; at += CHUNK) {
        uint64_t count = MIN(CHUNK, bitmap->table_size - at);
        g_autofree uint64_t *words = qcow2_read_words(qcow2, bitmap->table_offset + at * 8, count, error);

        if (!words)
            return false;
        for (uint64_t i = 0; i < count; i++) {
            uint64_t host = words[i] & QCOW2_HOST;

            if (host % qcow2->cluster_size || words[i] & ~(QCOW2_HOST | (host ? 0 : 1)))
                malformed(check, "bitmap table entry", words[i]);
            else if (host)
                count_bytes(check, host, qcow2->cluster_size);
        }
    }
    return true;
}

/* Only with the autoclear bit: otherwise their space counts as leaked, as for QEMU. */
static bool walk_bitmaps(struct check *check, GError **error)
{
    struct qcow2 *qcow2 = check->qcow2;

    if (!(qcow2->autoclear & QCOW2_BITMAPS))
        return true;
    count_bytes(check, qcow2->bitmaps_offset, qcow2->bitmaps_length);
    for (guint i = 0; i < qcow2->bitmaps->len; i++) {
        if (!walk_bitmap(check, &g_array_index(qcow2->bitmaps, struct qcow2_bitmap, i), error))
            return false;
    }
    return true;
}

static void walk_refcounts(struct check *check)
{
    struct qcow2 *qcow2 = check->qcow2;
    g_autoptr(GHashTable) seen = g_hash_table_new(g_direct_hash, g_direct_equal);

    count_bytes(check, qcow2->reftable_offset, (uint64_t)qcow2->reftable_clusters * qcow2->cluster_size);
    for (uint64_t i = 0; i < qcow2->reftable_size; i++) {
        uint64_t host = qcow2->reftable[i];

        if (!host)
            continue;
        if (host % qcow2->cluster_size || host > qcow2->storage->size ||
            qcow2->storage->size - host < qcow2->cluster_size ||
            !g_hash_table_add(seen, GSIZE_TO_POINTER(host >> qcow2->cluster_bits)))
            malformed(check, "refcount table entry", host);
        else
            count_bytes(check, host, qcow2->cluster_size);
    }
}

static bool walk_all(struct check *check, GError **error)
{
    struct qcow2 *qcow2 = check->qcow2;

    memset(check->references, 0, check->count * sizeof *check->references);
    count_bytes(check, 0, 1);
    count_bytes(check, qcow2->snapshots_offset, qcow2->snapshots_length);
    walk_refcounts(check);
    for (guint i = 0; i < qcow2->snapshots->len; i++) {
        if (!walk_snapshot(check, &g_array_index(qcow2->snapshots, struct qcow2_snapshot, i), error))
            return false;
    }
    return walk_bitmaps(check, error) && walk_active(check, error);
}

/* ---- comparing ---------------------------------------------------------------------------------- */

/* A block for counts that have none, behind the end of the file where nothing is referenced. */
static bool add_block(struct check *check, uint64_t index, GError **error)
{
    struct qcow2 *qcow2 = check->qcow2;
    uint64_t cluster;

    qcow2->free_hint = MAX(qcow2->free_hint, check->clusters);
    if (!qcow2_allocate(qcow2, &cluster, error))
        return false;
    /* That may have made the very block that is wanted. */
    return qcow2->reftable[index] ? qcow2_refcount_set(qcow2, cluster, 0, error)
                                  : qcow2_block_add(qcow2, index, cluster, error);
}

/* One cluster; `want` is its number of references. */
static bool compare_count(struct check *check, uint64_t cluster, uint64_t stored, uint64_t want,
                          GError **error)
{
    struct qcow2 *qcow2 = check->qcow2;
    uint64_t index = cluster >> qcow2->block_bits;

    if (stored == want || (want == UINT16_MAX && stored > want))
        return true;
    if (stored > want) {
        check->result->leaks++;
        if (!check->repair)
            return true;
        check->result->repaired++;
        return qcow2_refcount_set(qcow2, cluster, want, error);
    }
    if (!check->rebuild || want > qcow2_refcount_max(qcow2)) {
        check->result->corruptions++;
        remember(check,
                 "host offset 0x%" G_GINT64_MODIFIER "x has refcount %" G_GUINT64_FORMAT
                 " but %" G_GUINT64_FORMAT " users",
                 cluster << qcow2->cluster_bits, stored, want);
        return true;
    }
    if (!qcow2->reftable[index] && !add_block(check, index, error))
        return false;
    return qcow2_refcount_set(qcow2, cluster, want, error);
}

static bool compare_window(struct check *check, GError **error)
{
    for (uint64_t i = 0; i < check->count; i++) {
        uint64_t stored;

        if (!qcow2_refcount_get(check->qcow2, check->first + i, &stored, error) ||
            !compare_count(check, check->first + i, stored, check->references[i], error))
            return false;
    }
    return true;
}

/* Counts of clusters that the file does not have: leaks all. */
static bool compare_beyond(struct check *check, GError **error)
{
    struct qcow2 *qcow2 = check->qcow2;
    uint64_t per_block = UINT64_C(1) << qcow2->block_bits;

    for (uint64_t i = check->clusters >> qcow2->block_bits; i < qcow2->reftable_size; i++) {
        struct qcow2_table *block;

        for (uint64_t k = 0; qcow2->reftable[i] && k < per_block; k++) {
            uint64_t cluster = (i << qcow2->block_bits) + k;

            if (!qcow2_block_load(qcow2, i, &block, error) ||
                (cluster >= check->clusters && cluster << qcow2->cluster_bits >= qcow2->end &&
                 !compare_count(check, cluster, qcow2_block_get(qcow2, block->bytes, k), 0, error)))
                return false;
        }
    }
    return true;
}

/* COPIED must say exactly whether the refcount is 1, in the active tables. */
static bool compare_flag(struct check *check, uint64_t host, bool copied, GError **error)
{
    uint64_t count;

    if (!qcow2_refcount_get(check->qcow2, host >> check->qcow2->cluster_bits, &count, error))
        return false;
    if (copied == (count == 1))
        return true;
    check->result->corruptions++;
    remember(check,
             "host offset 0x%" G_GINT64_MODIFIER "x has refcount %" G_GUINT64_FORMAT " but %s COPIED flag",
             host, count, copied ? "a" : "no");
    return true;
}

static bool compare_flags(struct check *check, GError **error)
{
    struct qcow2 *qcow2 = check->qcow2;
    uint64_t entries = UINT64_C(1) << qcow2->l2_bits;
    struct qcow2_entry entry;
    const char *why;

    for (uint64_t i = 0; i < qcow2->l1_size; i++) {
        struct qcow2_table *table;

        if (!qcow2->l1[i])
            continue;
        table = qcow2_l2_load(qcow2, i, error);
        if (!table || !compare_flag(check, table->host, qcow2->l1[i] & QCOW2_COPIED, error))
            return false;
        for (uint64_t k = 0; k < entries; k++) {
            if (!qcow2->external && qcow2_decode_entry(qcow2, table->bytes, k, &entry, &why) && entry.host &&
                !entry.packed && !compare_flag(check, entry.host, entry.copied, error))
                return false;
        }
    }
    return true;
}

/* ---- the whole ---------------------------------------------------------------------------------- */

static bool check_windows(struct check *check, GError **error)
{
    for (check->first = 0; check->first < check->clusters; check->first += WINDOW) {
        check->count = MIN(WINDOW, check->clusters - check->first);
        check->structure = check->first == 0;
        if (!walk_all(check, error))
            return false;
        if (check->malformed) { /* counts would be wrong: compare and repair nothing */
            check->result->corruptions += check->malformed;
            return true;
        }
        if (!compare_window(check, error))
            return false;
    }
    return compare_beyond(check, error) && compare_flags(check, error);
}

/* Makes the repaired counts durable and only then says that they can be trusted. */
static bool finish_repair(struct check *check, GError **error)
{
    struct qcow2 *qcow2 = check->qcow2;

    qcow2->free_hint = 0;
    memset(qcow2->full, 0, (qcow2->reftable_size / 64 + 1) * 8);
    if (!qcow2_flush(qcow2->image, error))
        return false;
    if (!check->rebuild || check->result->corruptions)
        return true;
    qcow2->incompatible &= ~QCOW2_DIRTY;
    return qcow2_write_features(qcow2, error);
}

static bool run_check(struct check *check, GError **error)
{
    struct qcow2 *qcow2 = check->qcow2;
    bool ok;

    check->clusters = (qcow2->storage->size + qcow2->cluster_size - 1) >> qcow2->cluster_bits;
    if (check->clusters > (uint64_t)WINDOW * MAX_WINDOWS) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED,
                    "qcow2: %" G_GUINT64_FORMAT " clusters are too many to check (at most %" G_GUINT64_FORMAT
                    ")",
                    check->clusters, (uint64_t)WINDOW * MAX_WINDOWS);
        return false;
    }
    check->references = g_try_new(uint16_t, MIN(check->clusters, WINDOW));
    if (!check->references) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED, "no memory for the counts of a check");
        return false;
    }
    ok = check_windows(check, error);
    qcow2->verified = ok && check->result->corruptions == 0;
    g_clear_pointer(&check->references, g_free);
    return ok;
}

bool qcow2_verify(struct qcow2 *qcow2, GError **error)
{
    struct image_check result = {0};
    struct check check = {.qcow2 = qcow2, .result = &result};
    bool ok = qcow2->verified || run_check(&check, error);

    if (ok && result.corruptions)
        ok = qcow2_refuse(error,
                          "the image is not written to, because it has %" G_GUINT64_FORMAT " errors: %s",
                          result.corruptions, result.finding);
    return ok;
}

bool qcow2_check(struct image *image, bool repair, struct image_check *result, GError **error)
{
    struct qcow2 *qcow2 = image->opaque;
    struct check check = {.qcow2 = qcow2, .result = result};
    bool ok;

    memset(result, 0, sizeof *result);
    repair = repair && image->writable;
    check.repair = check.rebuild = repair && qcow2->incompatible & QCOW2_DIRTY;
    if (qcow2->fixed && image->writable && !qcow2_flush(image, error))
        return false;
    if (repair ? !qcow2_prepare_write(qcow2, error) : !qcow2_refcounts_load(qcow2, error))
        return false;
    ok = run_check(&check, error);
    /* Only where nothing else is wrong: what seems to have no user may be what a damaged entry led to. */
    if (ok && repair && !check.repair && result->leaks && !result->corruptions) {
        memset(result, 0, sizeof *result);
        check.repair = true;
        ok = run_check(&check, error);
    }
    return ok && (!check.repair || finish_repair(&check, error));
}
