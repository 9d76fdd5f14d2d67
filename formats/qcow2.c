/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* qcow2: the driver's table, open, describe and close. See qcow2.h for what lies where. */
#include "formats/qcow2.h"

#include <string.h>

#define L2_CACHE_BYTES    (4u << 20) /* of source and target each: 96 MiB are all there is for a copy */
#define BLOCK_CACHE_BYTES (4u << 20)

uint64_t *qcow2_read_words(struct qcow2 *qcow2, uint64_t offset, uint64_t count, GError **error)
{
    g_autofree uint64_t *words = g_try_new(uint64_t, MAX(count, 1));

    if (!words) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED,
                    "no memory for a table of %" G_GUINT64_FORMAT " entries", count);
        return NULL;
    }
    if (count && !storage_pread(qcow2->storage, words, count * 8, offset, error))
        return NULL;
    for (uint64_t i = 0; i < count; i++)
        words[i] = GUINT64_FROM_BE(words[i]);
    return g_steal_pointer(&words);
}

bool qcow2_write_features(struct qcow2 *qcow2, GError **error)
{
    uint64_t words[3] = {GUINT64_TO_BE(qcow2->incompatible), GUINT64_TO_BE(qcow2->compatible),
                         GUINT64_TO_BE(qcow2->autoclear)};

    return storage_pwrite(qcow2->storage, words, sizeof words, 72, error) &&
           storage_flush(qcow2->storage, error);
}

bool qcow2_corrupt(struct qcow2 *qcow2, GError **error, const char *format, ...)
{
    g_autofree char *text = NULL;
    g_autoptr(GError) ignored = NULL;
    va_list arguments;

    va_start(arguments, format);
    text = g_strdup_vprintf(format, arguments);
    va_end(arguments);
    qcow2->failed = true;
    if (qcow2->image->writable && qcow2->version >= 3 && !(qcow2->incompatible & QCOW2_CORRUPT)) {
        qcow2->incompatible |= QCOW2_CORRUPT;
        if (!qcow2_write_features(qcow2, &ignored))
            image_notice(qcow2->image, "the image could not be marked as corrupt: %s", ignored->message);
    }
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED, "qcow2: the image is corrupt: %s", text);
    return false;
}

static void announce(struct qcow2 *qcow2)
{
    struct image *image = qcow2->image;

    if (qcow2->snapshots->len)
        image_notice(image, "%u internal snapshots: a copy does not carry them", qcow2->snapshots->len);
    if (qcow2->bitmap_count)
        image_notice(image, "%u dirty bitmaps: a copy does not carry them", qcow2->bitmap_count);
    if (qcow2->external)
        image_notice(image, "the data lies in an external file: a copy holds it itself");
    if (qcow2->incompatible & QCOW2_DIRTY)
        image_notice(image, "not closed cleanly: the dirty bit is set, refcounts may be wrong");
    if (qcow2->incompatible & QCOW2_CORRUPT)
        image_notice(image, "the corrupt bit is set");
}

static bool open_image(struct qcow2 *qcow2, GError **error)
{
    struct image *image = qcow2->image;

    if (!qcow2_read_header(qcow2, error))
        return false;
    if (image->writable && qcow2->incompatible & QCOW2_CORRUPT) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED,
                    "qcow2: incompatible_features: the corrupt bit is set, the image is not written to");
        return false;
    }
    qcow2->l1 = qcow2_read_words(qcow2, qcow2->l1_offset, qcow2->l1_size, error);
    if (!qcow2->l1)
        return false;
    qcow2_cache_init(&qcow2->l2, MAX(L2_CACHE_BYTES / qcow2->cluster_size, 4), qcow2_l2_evict);
    qcow2_cache_init(&qcow2->blocks, MAX(BLOCK_CACHE_BYTES / qcow2->cluster_size, 4), qcow2_table_write);
    image->granularity = qcow2->sub_size;
    image->cluster_size = qcow2->cluster_size;
    image->packed_unit = qcow2->cluster_size;
    image->reads_zero = !image->backing_name;
    announce(qcow2);
    return true;
}

bool qcow2_open(struct image *image, GError **error)
{
    struct qcow2 *qcow2 = g_new0(struct qcow2, 1);

    qcow2->image = image;
    qcow2->storage = image->storage;
    image->opaque = qcow2;
    if (open_image(qcow2, error))
        return true;
    qcow2_close(image);
    g_clear_pointer(&image->backing_name, g_free);
    g_clear_pointer(&image->backing_format, g_free);
    return false;
}

void qcow2_close(struct image *image)
{
    struct qcow2 *qcow2 = g_steal_pointer(&image->opaque);

    if (qcow2->l2.tables)
        qcow2_cache_clear(&qcow2->l2);
    if (qcow2->blocks.tables)
        qcow2_cache_clear(&qcow2->blocks);
    g_clear_pointer(&qcow2->snapshots, g_array_unref);
    g_clear_pointer(&qcow2->bitmaps, g_array_unref);
    g_clear_pointer(&qcow2->fixed, g_array_unref);
    g_clear_pointer(&qcow2->frees, g_array_unref);
    g_clear_pointer(&qcow2->metadata, g_hash_table_unref);
    g_free(qcow2->data_name);
    g_free(qcow2->l1);
    g_free(qcow2->l1_changed);
    g_free(qcow2->read_ahead);
    g_free(qcow2->reftable);
    g_free(qcow2->full);
    g_free(qcow2);
}

static void describe_number(image_describe_fn describe, void *opaque, const char *key, uint64_t number)
{
    char text[24];

    g_snprintf(text, sizeof text, "%" G_GUINT64_FORMAT, number);
    describe(opaque, key, text);
}

static void qcow2_describe(struct image *image, image_describe_fn describe, void *opaque)
{
    struct qcow2 *qcow2 = image->opaque;
    bool lazy = qcow2->compatible & QCOW2_LAZY;

    describe(opaque, "compat", qcow2->version == 2 ? "0.10" : "1.1");
    describe_number(describe, opaque, "cluster_size", qcow2->cluster_size);
    describe_number(describe, opaque, "refcount_bits", 1u << qcow2->refcount_order);
    describe(opaque, "compression_type", qcow2->compression == QCOW2_ZSTD ? "zstd" : "zlib");
    describe(opaque, "extended_l2", qcow2->sub_count > 1 ? "on" : "off");
    describe(opaque, "lazy_refcounts", lazy ? "on" : "off");
    describe(opaque, "dirty", qcow2->incompatible & QCOW2_DIRTY ? "yes" : "no");
    describe(opaque, "corrupt", qcow2->incompatible & QCOW2_CORRUPT ? "yes" : "no");
    describe_number(describe, opaque, "snapshots", qcow2->snapshots->len);
    describe_number(describe, opaque, "bitmaps", qcow2->bitmap_count);
    if (qcow2->external)
        describe(opaque, "data_file_raw", qcow2->autoclear & QCOW2_RAW_DATA ? "on" : "off");
}

const struct format format_qcow2 = {
    .name = "qcow2",
    .flags = FORMAT_BACKING | FORMAT_PACKED | FORMAT_PACKS | FORMAT_CREATE | FORMAT_RUNS,
    .options = qcow2_options,
    .probe = qcow2_probe,
    .measure = qcow2_measure,
    .child_unit = qcow2_child_unit,
    .create = qcow2_create,
    .open = qcow2_open,
    .map = qcow2_map,
    .unpack = qcow2_unpack,
    .place = qcow2_place,
    .pack = qcow2_pack,
    .place_packed = qcow2_place_packed,
    .zero = qcow2_zero,
    .discard = qcow2_zero,
    .flush = qcow2_flush,
    .check = qcow2_check,
    .describe = qcow2_describe,
    .close = qcow2_close,
};
