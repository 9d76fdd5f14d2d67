/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/copy/reader.h"

#include "formats/error.h"

#include <config.h>
#include <string.h>

/* Compressed units that lie close together are read in one go of at most this size. */
#define UNPACK_SPAN  ((uint64_t)512 << 10)
#define UNPACK_GUEST ((uint64_t)512 << 10)

/* ---- the map ---- */

void reader_init(struct reader *reader, struct copier *copier, struct chain *chain, struct image *image)
{
    *reader = (struct reader){
        .copier = copier,
        .chain = chain,
        .image = image,
        .size = chain ? chain->size : image->size,
        .keep_holes = chain && chain->keep_holes,
    };
}

static struct image *reader_layer(struct reader *reader, unsigned layer)
{
    return reader->chain ? chain_layer(reader->chain, layer) : reader->image;
}

static bool fetch(struct reader *reader, uint64_t offset, GError **error)
{
    uint64_t length = reader->size - offset;

    reader->current = reader->batch_count = 0;
    return reader->chain ? chain_map(reader->chain, offset, length, reader->batch, READER_BATCH,
                                     &reader->batch_count, error)
                         : image_map(reader->image, offset, length, reader->batch, READER_BATCH,
                                     &reader->batch_count, error);
}

/* Makes `current` the extent of the batch that covers `offset`; a new batch if there is none. */
static bool seek(struct reader *reader, uint64_t offset, GError **error)
{
    if (reader->batch_count && offset < reader->batch[reader->current].offset)
        reader->current = 0;
    while (reader->current < reader->batch_count && extent_end(&reader->batch[reader->current]) <= offset)
        reader->current++;
    if (reader->current < reader->batch_count && reader->batch[reader->current].offset <= offset)
        return true;
    return fetch(reader, offset, error);
}

/* Where only_zero changes its mind: data that need not be zero is passed over. */
static void pass_over(const struct digest_table *table, struct extent *extent)
{
    uint64_t chunk = extent->offset / DIGEST_CHUNK_SIZE, size = digest_table_size(table), next = chunk;
    uint64_t end = extent_end(extent);

    if (extent->offset >= size)
        return; /* behind the end of the source everything must be zero */
    if (digest_table_is_zero(table, chunk)) {
        end = digest_table_next(table, &next) ? next * DIGEST_CHUNK_SIZE : end;
    } else {
        extent->status = EXTENT_ZERO;
        end = MIN((chunk + 1) * DIGEST_CHUNK_SIZE, size);
    }
    extent->length = MIN(extent->length, end - extent->offset);
}

bool reader_extent(struct reader *reader, uint64_t offset, uint64_t limit, struct extent *out, GError **error)
{
    if (offset >= reader->size) {
        *out = (struct extent){.offset = offset, .length = limit - offset, .status = EXTENT_ZERO};
        return true;
    }
    if (!seek(reader, offset, error))
        return false;
    *out = reader->batch[reader->current];
    uint64_t before = offset - out->offset;
    out->offset = offset;
    out->length = MIN(out->length - before, limit - offset);
    if (out->status == EXTENT_DATA)
        out->host_offset += before;
    else if (out->status == EXTENT_PACKED)
        out->skip += (uint32_t)before;
    else if (out->status == EXTENT_HOLE && !reader->keep_holes)
        out->status = EXTENT_ZERO;
    if (reader->only_zero && (out->status == EXTENT_DATA || out->status == EXTENT_PACKED))
        pass_over(reader->only_zero, out);
    return true;
}

bool reader_run(struct reader *reader, uint64_t offset, uint64_t limit, enum extent_status *status,
                uint64_t *end, GError **error)
{
    struct extent extent;

    *end = offset;
    while (*end < limit) {
        if (!reader_extent(reader, *end, limit, &extent, error))
            return false;
        enum extent_status kind = extent.status == EXTENT_PACKED ? EXTENT_DATA : extent.status;
        if (*end == offset)
            *status = kind;
        else if (*status != kind)
            break;
        *end = extent_end(&extent);
        if (kind == EXTENT_DATA)
            break; /* nobody asks how long data goes on */
    }
    return true;
}

bool reader_next(struct reader *reader, uint64_t offset, uint64_t limit, uint64_t *found, GError **error)
{
    enum extent_status status;
    uint64_t end;

    for (; offset < limit; offset = end) {
        if (!reader_run(reader, offset, limit, &status, &end, error))
            return false;
        if (status == EXTENT_DATA)
            break;
    }
    *found = offset;
    return true;
}

bool reader_count(struct reader *reader, uint64_t offset, uint64_t limit, uint64_t *data, GError **error)
{
    struct extent extent;

    *data = 0;
    for (; offset < limit; offset = extent_end(&extent)) {
        if (!reader_extent(reader, offset, limit, &extent, error))
            return false;
        if (extent.status == EXTENT_DATA || extent.status == EXTENT_PACKED)
            *data += extent.length;
    }
    return true;
}

/* ---- loads ---- */

bool load_plan(struct load *load, struct reader *reader, uint64_t offset, size_t length, uint8_t *buffer,
               GError **error)
{
    struct extent extent;

    load->reader = reader;
    load->offset = offset;
    load->length = length;
    load->buffer = buffer;
    load->data = 0;
    load->extents = g_array_new(FALSE, FALSE, sizeof(struct extent));
    for (uint64_t end = offset + length; offset < end; offset = extent_end(&extent)) {
        if (!reader_extent(reader, offset, end, &extent, error))
            return false;
        g_array_append_val(load->extents, extent);
        if (extent.status == EXTENT_DATA || extent.status == EXTENT_PACKED)
            load->data += extent.length;
    }
    return true;
}

void load_clear(struct load *load)
{
    g_clear_pointer(&load->extents, g_array_unref);
    g_clear_pointer(&load->bad, g_array_unref);
}

static uint8_t *load_at(const struct load *load, uint64_t offset)
{
    return load->buffer + (offset - load->offset);
}

static void load_finish(struct load *load)
{
    if (--load->pending == 0)
        load->done(load);
}

static void add_range(GArray *ranges, uint64_t offset, uint64_t length)
{
    struct copy_range range = {offset, length};
    struct copy_range *last = ranges->len ? &g_array_index(ranges, struct copy_range, ranges->len - 1) : NULL;

    if (last && last->offset + last->length == offset)
        last->length += length;
    else
        g_array_append_val(ranges, range);
}

static gint by_offset(gconstpointer a, gconstpointer b)
{
    const struct copy_range *x = a, *y = b;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

void load_report_bad(struct load *load)
{
    GArray *all = load->reader->copier->result->bad;

    if (!load->bad)
        return;
    g_array_append_vals(all, load->bad->data, load->bad->len);
    g_clear_pointer(&load->bad, g_array_unref);
    g_array_sort(all, by_offset);
    g_autoptr(GArray) sorted = g_array_copy(all);
    g_array_set_size(all, 0);
    for (guint i = 0; i < sorted->len; i++) {
        struct copy_range *range = &g_array_index(sorted, struct copy_range, i);
        add_range(all, range->offset, range->length);
    }
}

/* A request of a load.  A piece of raw bytes is one run on the host; compressed units are a run of
 * extents [first, first + count) of the load. */
struct piece {
    struct ring_op op;
    struct load *load;
    uint64_t guest;
    guint first, count;
    GArray *bad; /* guest ranges that could not be read */
    GError *why; /* of the first of them */
};

/* A server that is gone says nothing about the disk: nothing is salvaged from it. */
static bool is_gone(const GError *error)
{
    return g_error_matches(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_UNREACHABLE);
}

static int code_of(const GError *cause)
{
    return is_gone(cause) ? BLOCKMIG_ERROR_UNREACHABLE : BLOCKMIG_ERROR_IO;
}

/* What could not be read is zeros with salvage, and the end otherwise. */
static void piece_give_up(struct piece *piece)
{
    struct load *load = piece->load;
    struct copier *copier = load->reader->copier;

    if (!copier->options->salvage || is_gone(piece->why)) {
        copier_fail(copier, g_steal_pointer(&piece->why));
        return;
    }
    if (!load->bad)
        load->bad = g_array_new(FALSE, FALSE, sizeof(struct copy_range));
    g_array_append_vals(load->bad, piece->bad->data, piece->bad->len);
}

static void piece_free(struct piece *piece)
{
    g_clear_pointer(&piece->bad, g_array_unref);
    g_clear_error(&piece->why);
    g_clear_error(&piece->op.error);
    g_free(piece);
}

static void piece_finish(struct ring_op *op)
{
    struct piece *piece = (struct piece *)op;
    struct load *load = piece->load;

    if (piece->bad && piece->bad->len)
        piece_give_up(piece);
    load->reader->copier->result->counters.bytes_read += op->length;
    piece_free(piece);
    load_finish(load);
}

/* ---- raw bytes ---- */

static void say_where(struct piece *piece, const GError *cause)
{
    struct copy_range *range = &g_array_index(piece->bad, struct copy_range, 0);
    const struct ring_op *op = &piece->op;

    piece->why = g_error_new(BLOCKMIG_ERROR, code_of(cause),
                             "cannot read guest bytes %" G_GUINT64_FORMAT "+%" G_GUINT64_FORMAT
                             " (%s, bytes %" G_GUINT64_FORMAT "+%" G_GUINT64_FORMAT "): %s",
                             range->offset, range->length, op->storage->name,
                             op->offset + (range->offset - piece->guest), range->length, cause->message);
}

/* Halves what cannot be read until single blocks are left. */
static void rescue_range(struct piece *piece, uint64_t at, uint64_t length, uint64_t block, GError **cause)
{
    struct ring_op *op = &piece->op;
    uint8_t *buffer = (uint8_t *)op->buffer + at;
    uint64_t begin = op->offset + at, middle = (begin + length / 2) & ~(block - 1);
    g_autoptr(GError) error = NULL;

    if (direct_read(op->storage, buffer, length, begin, op->past_cache, &error))
        return;
    if (middle <= begin)
        middle = (begin & ~(block - 1)) + block;
    if (middle < begin + length) {
        rescue_range(piece, at, middle - begin, block, cause);
        rescue_range(piece, at + (middle - begin), begin + length - middle, block, cause);
        return;
    }
    memset(buffer, 0, length);
    add_range(piece->bad, piece->guest + at, length);
    if (!*cause || is_gone(error)) {
        g_clear_error(cause);
        *cause = g_steal_pointer(&error);
    }
}

static bool rescue(struct ring_op *op, GError **error)
{
    struct piece *piece = (struct piece *)op;
    g_autoptr(GError) cause = NULL;

    piece->bad = g_array_new(FALSE, FALSE, sizeof(struct copy_range));
    rescue_range(piece, 0, op->length, MAX(512, op->storage->alignment), &cause);
    if (piece->bad->len)
        say_where(piece, cause);
    return true;
}

static void piece_read(struct ring_op *op)
{
    if (!op->error) {
        piece_finish(op);
        return;
    }
    g_clear_error(&op->error);
    op->kind = RING_CALL;
    op->call = rescue;
    op->done = piece_finish;
    copier_submit(((struct piece *)op)->load->reader->copier, op);
}

static void submit_piece(struct load *load, struct storage *storage, uint64_t guest, size_t length,
                         uint64_t host)
{
    if (length == 0)
        return;
    struct piece *piece = g_new0(struct piece, 1);
    piece->load = load;
    piece->guest = guest;
    piece->op = (struct ring_op){
        .kind = RING_READ,
        .storage = storage,
        .buffer = load_at(load, guest),
        .length = length,
        .offset = host,
        .past_cache = load->reader->past_cache,
        .done = piece_read,
    };
    load->pending++;
    copier_submit(load->reader->copier, &piece->op);
}

static void submit_run(struct load *load, const struct extent *run)
{
    struct split split = split_range(run->storage, load_at(load, run->offset), run->length, run->host_offset,
                                     run->storage->alignment);
    uint64_t guest = run->offset, host = run->host_offset;

    submit_piece(load, run->storage, guest, split.head, host);
    submit_piece(load, run->storage, guest + split.head, split.middle, host + split.head);
    submit_piece(load, run->storage, guest + split.head + split.middle, split.tail,
                 host + split.head + split.middle);
}

/* ---- compressed units ---- */

static bool unpack_one(struct load *load, const struct extent *extent, const uint8_t *packed, size_t length,
                       GError **error)
{
    struct image *image = reader_layer(load->reader, extent->layer);
    uint8_t *out = load_at(load, extent->offset);

    if (extent->skip == 0 && extent->length == image->packed_unit)
        return image_unpack(image, extent->offset, packed, length, out, error);
    g_autofree uint8_t *unit = g_malloc(image->packed_unit);
    if (!image_unpack(image, extent->offset - extent->skip, packed, length, unit, error))
        return false;
    memcpy(out, unit + extent->skip, extent->length);
    return true;
}

/* packed_length is an upper bound: the last unit may end with the storage. */
static size_t packed_length(const struct extent *extent)
{
    uint64_t size = extent->storage->size;
    return MIN(extent->packed_length, size > extent->host_offset ? size - extent->host_offset : 0);
}

static void unpack_failed(struct piece *piece, const struct extent *extent, GError *error)
{
    add_range(piece->bad, extent->offset, extent->length);
    memset(load_at(piece->load, extent->offset), 0, extent->length);
    if (piece->why && !is_gone(error)) {
        g_error_free(error);
        return;
    }
    g_clear_error(&piece->why);
    g_prefix_error(&error,
                   "cannot read guest bytes %" G_GUINT64_FORMAT "+%" G_GUINT64_FORMAT
                   " (%s, compressed at %" G_GUINT64_FORMAT "): ",
                   extent->offset, extent->length, extent->storage->name, extent->host_offset);
    piece->why = error;
    error->code = code_of(error);
}

/* In a thread.  One read for all units; if that fails, one for each, so that one bad block costs one unit. */
static bool unpack(struct ring_op *op, GError **error)
{
    struct piece *piece = (struct piece *)op;
    bool past_cache = piece->load->reader->past_cache;
    g_autofree uint8_t *span = g_malloc(MAX(op->length, 1));
    bool whole = direct_read(op->storage, span, op->length, op->offset, past_cache, NULL);

    piece->bad = g_array_new(FALSE, FALSE, sizeof(struct copy_range));
    for (guint i = piece->first; i < piece->first + piece->count; i++) {
        const struct extent *extent = &g_array_index(piece->load->extents, struct extent, i);
        uint8_t *packed = span + (extent->host_offset - op->offset);
        size_t length = packed_length(extent);
        GError *why = NULL;
        bool ok = whole || direct_read(op->storage, packed, length, extent->host_offset, past_cache, &why);
        if (!ok || !unpack_one(piece->load, extent, packed, length, &why))
            unpack_failed(piece, extent, why);
    }
    return true;
}

/* How many extents from `first` on go into one piece, and the bytes of the storage that they span. */
static guint unpack_group(const struct load *load, guint first, uint64_t *begin, uint64_t *end)
{
    const struct extent *extents = (const struct extent *)(void *)load->extents->data;
    const struct extent *head = &extents[first];
    guint i = first + 1;

    *begin = head->host_offset;
    *end = head->host_offset + packed_length(head);
    for (uint64_t guest = head->length; i < load->extents->len && guest < UNPACK_GUEST; i++) {
        const struct extent *next = &extents[i];
        uint64_t low = MIN(*begin, next->host_offset);
        if (next->status != EXTENT_PACKED || next->storage != head->storage || next->layer != head->layer)
            break;
        uint64_t high = MAX(*end, next->host_offset + packed_length(next));
        if (high - low > UNPACK_SPAN)
            break;
        *begin = low;
        *end = high;
        guest += next->length;
    }
    return i - first;
}

static guint submit_unpack(struct load *load, guint first)
{
    struct piece *piece = g_new0(struct piece, 1);
    uint64_t begin, end;

    piece->load = load;
    piece->first = first;
    piece->count = unpack_group(load, first, &begin, &end);
    piece->op = (struct ring_op){
        .kind = RING_CALL,
        .storage = g_array_index(load->extents, struct extent, first).storage,
        .offset = begin,
        .length = (size_t)(end - begin),
        .call = unpack,
        .done = piece_finish,
    };
    load->pending++;
    copier_submit(load->reader->copier, &piece->op);
    return piece->count;
}

/* Neighbours on the host become one run; returns the number of extents in it. */
static guint join_run(const struct load *load, guint first, struct extent *run)
{
    guint i = first + 1;

    *run = g_array_index(load->extents, struct extent, first);
    for (; i < load->extents->len; i++) {
        const struct extent *next = &g_array_index(load->extents, struct extent, i);
        if (next->status != EXTENT_DATA || next->storage != run->storage ||
            next->host_offset != run->host_offset + run->length)
            break;
        run->length += next->length;
    }
    return i - first;
}

void load_start(struct load *load)
{
    struct extent run;

    load->pending = 1; /* ours, so that done() does not come before the last piece is on its way */
    if (!load->reader->leave_holes)
        memset(load->buffer + load->length, 0, SLOT_SIZE - load->length);
    for (guint i = 0; i < load->extents->len;) {
        const struct extent *extent = &g_array_index(load->extents, struct extent, i);
        if (extent->status == EXTENT_DATA) {
            i += join_run(load, i, &run);
            submit_run(load, &run);
        } else if (extent->status == EXTENT_PACKED) {
            i += submit_unpack(load, i);
        } else {
            if (extent->status != EXTENT_HOLE || !load->reader->leave_holes)
                memset(load_at(load, extent->offset), 0, extent->length);
            i++;
        }
    }
    load_finish(load);
}
