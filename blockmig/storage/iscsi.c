/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/storage/iscsi.h"

#include "blockmig/storage/file.h"
#include "blockmig/storage/iscsi-session.h"
#include "blockmig/storage/reservation-internal.h"
#include "formats/bytes.h"
#include "formats/error.h"

#include <string.h>

#define PIECE         ((uint32_t)1 << 20) /* bytes of one READ or WRITE: enough to hide the way, few to repeat */
#define ZERO_PIECE    ((uint64_t)256 << 20) /* bytes of one WRITE SAME or UNMAP, which a unit may do slowly */
#define MAX_ANSWER    4096
#define MAX_LOOKS     64
#define LBA_STATUS    24 /* bytes: the first range only */
#define MAX_BLOCKSIZE 4096

struct iscsi {
    struct iscsi_session *session;
    struct scsi_capacity capacity;
    struct scsi_limits limits;
    bool unmap, unmap_same; /* commands that the unit has */
    bool no_write_same;     /* atomic, as the next: found out when it was wanted */
    bool no_lba_status;
    uint32_t block; /* bytes */
    uint32_t piece; /* bytes, a multiple of it */
    GMutex edges;   /* held from the reading to the writing of a block that is changed in part */
    struct reservation *reservation;
    uint64_t key; /* that this session has registered; 0: none */
    int flush_failed;
};

static struct iscsi *iscsi_of(struct storage *storage)
{
    return storage->opaque;
}

/* ---- moving whole blocks ------------------------------------------------------------------------- */

/* A request and the commands that it became.  Only the session's thread touches it once it is on its way. */
struct transfer {
    struct iscsi *iscsi;
    struct storage_request *request;
    unsigned pending;
    bool conflict;
    GError *error; /* the first */
    uint8_t *answer;
    struct iscsi_command naming; /* asks who has reserved the unit */
    unsigned count;
    struct iscsi_command commands[];
};

static void transfer_end(struct transfer *transfer)
{
    struct storage_request *request = transfer->request;
    GError *error = transfer->error;

    g_free(transfer->answer);
    g_free(transfer);
    request->done(request, error);
}

static void ask_holder(struct transfer *transfer, enum reservation_in action);

static void named(struct iscsi_command *command, GError *error)
{
    struct transfer *transfer = command->opaque;
    enum reservation_in action = command->cdb[1];
    g_autofree char *holder = NULL;

    if (!error && command->answer.status == 0)
        holder = reservation_name_holder(action, transfer->answer, command->received);
    if (!error && !holder && action == RESERVATION_READ_FULL) {
        ask_holder(transfer, RESERVATION_READ_RESERVATION); /* the key at least */
        return;
    }
    if (holder)
        g_prefix_error(&transfer->error, "%s: ", holder);
    g_clear_error(&error);
    transfer_end(transfer);
}

/* Nobody can wait in the session's thread, so the question goes the way of the commands. */
static void ask_holder(struct transfer *transfer, enum reservation_in action)
{
    struct iscsi_command *command = &transfer->naming;

    *command = (struct iscsi_command){.direction = ISCSI_IN,
                                      .buffer = transfer->answer,
                                      .length = MAX_ANSWER,
                                      .done = named,
                                      .opaque = transfer};
    cdb_reserve_in(command->cdb, (uint8_t)action, MAX_ANSWER);
    iscsi_session_submit(transfer->iscsi->session, command);
}

static void set_transfer_error(struct transfer *transfer, const struct iscsi_command *command, GError *error)
{
    const struct storage_request *request = transfer->request;
    g_autofree char *what = g_strdup_printf(
        "%s %zu bytes at offset %" G_GUINT64_FORMAT, request->write ? "writing" : "reading", command->length,
        request->offset + ((const uint8_t *)command->buffer - (const uint8_t *)request->buffer));

    transfer->conflict = !error && scsi_judge(&command->answer) == SCSI_CONFLICT;
    if (!error)
        scsi_set_error(&transfer->error, &command->answer, what);
    else {
        transfer->error = error;
        g_prefix_error(&transfer->error, "%s: ", what);
    }
}

static void command_done(struct iscsi_command *command, GError *error)
{
    struct transfer *transfer = command->opaque;

    if (transfer->error)
        g_clear_error(&error);
    else if (error || command->answer.status != 0)
        set_transfer_error(transfer, command, error);
    if (--transfer->pending > 0)
        return;
    if (!transfer->conflict) {
        transfer_end(transfer);
        return;
    }
    transfer->answer = g_malloc(MAX_ANSWER);
    ask_holder(transfer, RESERVATION_READ_FULL);
}

static void prepare(struct transfer *transfer, unsigned index)
{
    const struct storage_request *request = transfer->request;
    const struct iscsi *iscsi = transfer->iscsi;
    struct iscsi_command *command = &transfer->commands[index];
    size_t begin = (size_t)index * iscsi->piece, length = MIN(request->length - begin, iscsi->piece);
    uint64_t block = (request->offset + begin) / iscsi->block;

    command->direction = request->write ? ISCSI_OUT : ISCSI_IN;
    command->effect = request->write ? ISCSI_CHANGES : ISCSI_NO_EFFECT;
    command->buffer = (uint8_t *)request->buffer + begin;
    command->length = length;
    command->whole = true;
    command->done = command_done;
    command->opaque = transfer;
    (request->write ? cdb_write : cdb_read)(command->cdb, block, (uint32_t)(length / iscsi->block));
}

/* Offset and length are multiples of the block size. */
static void move_blocks(struct iscsi *iscsi, struct storage_request *request)
{
    unsigned count = (unsigned)divide_up(request->length, iscsi->piece);
    struct transfer *transfer = g_malloc0(sizeof(*transfer) + count * sizeof(transfer->commands[0]));

    transfer->iscsi = iscsi;
    transfer->request = request;
    transfer->pending = transfer->count = count;
    for (unsigned i = 0; i < count; i++)
        prepare(transfer, i);
    /* With the last one it may be gone. */
    for (unsigned i = 0; i < count; i++)
        iscsi_session_submit(iscsi->session, &transfer->commands[i]);
}

struct waiting {
    struct storage_request request;
    GMutex lock;
    GCond cond;
    bool finished;
    GError *error;
};

static void waited(struct storage_request *request, GError *error)
{
    struct waiting *waiting = (struct waiting *)request;

    g_mutex_lock(&waiting->lock);
    waiting->finished = true;
    waiting->error = error;
    g_cond_signal(&waiting->cond);
    g_mutex_unlock(&waiting->lock);
}

static bool move_now(struct iscsi *iscsi, bool write, void *buffer, size_t length, uint64_t offset,
                     GError **error)
{
    struct waiting waiting = {
        .request = {.write = write, .buffer = buffer, .length = length, .offset = offset, .done = waited}};

    if (length == 0)
        return true;
    g_mutex_init(&waiting.lock);
    g_cond_init(&waiting.cond);
    move_blocks(iscsi, &waiting.request);
    g_mutex_lock(&waiting.lock);
    while (!waiting.finished)
        g_cond_wait(&waiting.cond, &waiting.lock);
    g_mutex_unlock(&waiting.lock);
    g_mutex_clear(&waiting.lock);
    g_cond_clear(&waiting.cond);
    if (waiting.error)
        g_propagate_error(error, waiting.error);
    return waiting.error == NULL;
}

/* ---- any range ----------------------------------------------------------------------------------- */

/* A range as bytes of the block where it begins, whole blocks, and bytes of the block where it ends. */
struct parts {
    size_t head, whole, tail;
};

static struct parts split(const struct iscsi *iscsi, uint64_t offset, size_t length)
{
    size_t before = offset % iscsi->block;
    struct parts parts = {0};

    if (before > 0)
        parts.head = MIN(length, iscsi->block - before);
    parts.tail = (length - parts.head) % iscsi->block;
    parts.whole = length - parts.head - parts.tail;
    return parts;
}

/* Less than a block, inside one block. */
static bool move_part(struct iscsi *iscsi, bool write, uint8_t *bytes, size_t length, uint64_t offset,
                      GError **error)
{
    g_autofree uint8_t *block = length ? g_malloc(iscsi->block) : NULL;
    uint64_t begin = offset - offset % iscsi->block;
    bool ok;

    if (length == 0)
        return true;
    g_mutex_lock(&iscsi->edges);
    ok = move_now(iscsi, false, block, iscsi->block, begin, error);
    if (ok && write) {
        memcpy(block + (offset - begin), bytes, length);
        ok = move_now(iscsi, true, block, iscsi->block, begin, error);
    } else if (ok) {
        memcpy(bytes, block + (offset - begin), length);
    }
    g_mutex_unlock(&iscsi->edges);
    return ok;
}

static bool move_range(struct iscsi *iscsi, bool write, uint8_t *bytes, size_t length, uint64_t offset,
                       GError **error)
{
    struct parts parts = split(iscsi, offset, length);
    size_t end = parts.head + parts.whole;

    return move_part(iscsi, write, bytes, parts.head, offset, error) &&
           move_now(iscsi, write, bytes + parts.head, parts.whole, offset + parts.head, error) &&
           move_part(iscsi, write, bytes + end, parts.tail, offset + end, error);
}

static bool iscsi_pread(struct storage *storage, void *buffer, size_t length, uint64_t offset, GError **error)
{
    return move_range(iscsi_of(storage), false, buffer, length, offset, error);
}

static bool iscsi_pwrite(struct storage *storage, const void *buffer, size_t length, uint64_t offset,
                         GError **error)
{
    return move_range(iscsi_of(storage), true, (uint8_t *)buffer, length, offset, error);
}

/* Requests for parts of blocks are rare (a disk whose size is no multiple of 4096 on a unit that has such
 * blocks), so those are waited for here. */
static void iscsi_start(struct storage *storage, struct storage_request *request)
{
    struct iscsi *iscsi = iscsi_of(storage);
    GError *error = NULL;

    if (request->length > 0 && request->offset % iscsi->block == 0 && request->length % iscsi->block == 0) {
        move_blocks(iscsi, request);
        return;
    }
    move_range(iscsi, request->write, request->buffer, request->length, request->offset, &error);
    request->done(request, error);
}

/* ---- zeros --------------------------------------------------------------------------------------- */

static uint32_t zero_count(const struct iscsi *iscsi, uint64_t limit, uint64_t blocks)
{
    uint64_t most = ZERO_PIECE / iscsi->block;

    if (limit > 0)
        most = MIN(most, limit);
    return (uint32_t)MIN(most, blocks);
}

/* UNMAP is advice; false, without an error, where it did not do. */
static bool unmap(struct iscsi *iscsi, uint64_t block, uint64_t count, bool *done, GError **error)
{
    uint8_t list[SCSI_UNMAP_BYTES];
    struct iscsi_command command = {
        .direction = ISCSI_OUT, .buffer = list, .length = sizeof(list), .effect = ISCSI_CHANGES};

    *done = false;
    while (count > 0) {
        uint32_t some = zero_count(iscsi, iscsi->limits.max_unmap, count);

        scsi_unmap_list(list, block, some);
        cdb_unmap(command.cdb, sizeof(list));
        if (!iscsi_session_run(iscsi->session, &command, error))
            return false;
        if (command.answer.status != 0)
            return scsi_is_unsupported(&command.answer) ||
                   scsi_set_error(error, &command.answer, "unmapping");
        block += some;
        count -= some;
    }
    *done = true;
    return true;
}

/* *count: blocks from `block` on of which the unit says the same: that they are mapped, or not. 0: it does
 * not say. */
static bool lba_status(struct iscsi *iscsi, uint64_t block, bool *mapped, uint64_t *count, GError **error)
{
    uint8_t answer[LBA_STATUS];
    struct iscsi_command command = {.direction = ISCSI_IN, .buffer = answer, .length = sizeof(answer)};

    *count = 0;
    if (!iscsi->capacity.unmapped_zero || __atomic_load_n(&iscsi->no_lba_status, __ATOMIC_RELAXED))
        return true;
    cdb_get_lba_status(command.cdb, block, sizeof(answer));
    if (!iscsi_session_run(iscsi->session, &command, error))
        return false;
    if (scsi_is_unsupported(&command.answer))
        __atomic_store_n(&iscsi->no_lba_status, true, __ATOMIC_RELAXED);
    else if (command.answer.status != 0)
        return scsi_set_error(error, &command.answer, "asking which blocks are mapped");
    else
        *count = scsi_parse_lba_status(answer, command.received, block, mapped);
    return true;
}

static bool write_zeros(struct iscsi *iscsi, uint64_t block, uint64_t count, GError **error)
{
    size_t length = (size_t)MIN(count * iscsi->block, iscsi->piece);
    g_autofree uint8_t *zeros = g_malloc0(length);

    while (count > 0) {
        size_t some = (size_t)MIN(count * iscsi->block, length);

        if (!move_now(iscsi, true, zeros, some, block * iscsi->block, error))
            return false;
        block += some / iscsi->block;
        count -= some / iscsi->block;
    }
    return true;
}

/* With `may_unmap` the unit may unmap what then reads as zeros, and writes the rest (SBC-3, 5.44). */
static bool write_same(struct iscsi *iscsi, uint64_t block, uint64_t count, bool may_unmap, GError **error)
{
    uint8_t zeros[MAX_BLOCKSIZE] = {0};
    struct iscsi_command command = {
        .direction = ISCSI_OUT, .buffer = zeros, .length = iscsi->block, .effect = ISCSI_CHANGES};

    while (count > 0 && !__atomic_load_n(&iscsi->no_write_same, __ATOMIC_RELAXED)) {
        uint32_t some = zero_count(iscsi, iscsi->limits.max_write_same, count);

        cdb_write_same(command.cdb, block, some, may_unmap);
        if (!iscsi_session_run(iscsi->session, &command, error))
            return false;
        if (scsi_is_unsupported(&command.answer)) {
            __atomic_store_n(&iscsi->no_write_same, true, __ATOMIC_RELAXED);
            break;
        }
        if (command.answer.status != 0)
            return scsi_set_error(error, &command.answer, "writing zeros");
        block += some;
        count -= some;
    }
    return write_zeros(iscsi, block, count, error);
}

/* What the unit does not say to be unmapped, after it was asked to unmap it, is written. */
static bool zero_mapped(struct iscsi *iscsi, uint64_t block, uint64_t count, GError **error)
{
    while (count > 0) {
        bool mapped = true;
        uint64_t run;

        if (!lba_status(iscsi, block, &mapped, &run, error))
            return false;
        run = run == 0 ? count : MIN(run, count);
        if (mapped && !write_same(iscsi, block, run, false, error))
            return false;
        block += run;
        count -= run;
    }
    return true;
}

static bool zero_blocks(struct iscsi *iscsi, uint64_t block, uint64_t count, bool may_unmap, GError **error)
{
    bool reads_zero = may_unmap && iscsi->capacity.unmapped_zero, unmapped = false;

    if (reads_zero && iscsi->unmap_same)
        return write_same(iscsi, block, count, true, error);
    if (reads_zero && iscsi->unmap && !unmap(iscsi, block, count, &unmapped, error))
        return false;
    return unmapped ? zero_mapped(iscsi, block, count, error) : write_same(iscsi, block, count, false, error);
}

static bool iscsi_zero(struct storage *storage, uint64_t offset, uint64_t length, bool may_unmap,
                       GError **error)
{
    struct iscsi *iscsi = iscsi_of(storage);
    uint8_t zeros[MAX_BLOCKSIZE] = {0};
    uint64_t end = offset + length, first = round_up(offset, iscsi->block), last = end - end % iscsi->block;

    if (first >= last)
        return move_range(iscsi, true, zeros, (size_t)MIN(length, first - offset), offset, error) &&
               (end <= first || move_part(iscsi, true, zeros, (size_t)(end - first), first, error));
    return move_part(iscsi, true, zeros, (size_t)(first - offset), offset, error) &&
           zero_blocks(iscsi, first / iscsi->block, (last - first) / iscsi->block, may_unmap, error) &&
           move_part(iscsi, true, zeros, (size_t)(end - last), last, error);
}

static bool iscsi_discard(struct storage *storage, uint64_t offset, uint64_t length, GError **error)
{
    struct iscsi *iscsi = iscsi_of(storage);
    uint64_t first = divide_up(offset, iscsi->block), last = (offset + length) / iscsi->block;
    bool done;

    return first >= last || !iscsi->unmap || unmap(iscsi, first, last - first, &done, error);
}

static bool iscsi_status(struct storage *storage, uint64_t offset, uint64_t length, bool *data, uint64_t *run,
                         GError **error)
{
    struct iscsi *iscsi = iscsi_of(storage);
    uint64_t block = offset / iscsi->block, count;

    *data = true;
    *run = length;
    if (!lba_status(iscsi, block, data, &count, error))
        return false;
    if (count > 0)
        *run = MIN(length, MIN(count, iscsi->capacity.blocks - block) * iscsi->block - offset % iscsi->block);
    return true;
}

static bool iscsi_flush(struct storage *storage, GError **error)
{
    struct iscsi *iscsi = iscsi_of(storage);
    struct iscsi_command command = {.direction = ISCSI_NO_DATA, .effect = ISCSI_FLUSHES};

    if (!storage->writable)
        return true;
    cdb_synchronize_cache(command.cdb);
    if (!iscsi_session_run(iscsi->session, &command, error)) {
        g_prefix_error(error, "flushing: ");
        return false;
    }
    storage->notice = iscsi_session_news(iscsi->session);
    /* A unit without a cache need not know the command. */
    if (command.answer.status != 0 && !scsi_is_unsupported(&command.answer))
        return scsi_set_error(error, &command.answer, "flushing");
    if (iscsi_session_lost_writes(iscsi->session))
        return blockmig_fail(
            error, BLOCKMIG_ERROR_UNREACHABLE,
            "flushing: the unit was switched off or reset; what it had not flushed may be lost");
    return true;
}

/* ---- opening ------------------------------------------------------------------------------------- */

static bool ask_page(struct iscsi *iscsi, int page, uint8_t *answer, size_t *length, GError **error)
{
    struct iscsi_command command = {.direction = ISCSI_IN, .buffer = answer, .length = MAX_ANSWER};

    cdb_inquiry(command.cdb, page, MAX_ANSWER);
    if (!iscsi_session_run(iscsi->session, &command, error))
        return false;
    if (command.answer.status != 0 && !scsi_is_unsupported(&command.answer))
        return scsi_set_error(error, &command.answer, "asking what the unit is");
    *length = command.answer.status == 0 ? command.received : 0;
    return true;
}

static bool is_disk(struct iscsi *iscsi, uint8_t *answer, GError **error)
{
    size_t length;

    if (!ask_page(iscsi, -1, answer, &length, error))
        return false;
    if (length < 5 || (answer[0] & 0xe0) != 0)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "the target has no such unit");
    if ((answer[0] & 0x1f) != 0)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "the unit is not a disk (type %02Xh)",
                             answer[0] & 0x1f);
    return true;
}

static bool ask_capacity(struct iscsi *iscsi, uint8_t *answer, GError **error)
{
    struct iscsi_command command = {.direction = ISCSI_IN, .buffer = answer, .length = 32};

    cdb_read_capacity(command.cdb, 32);
    if (!iscsi_session_must(iscsi->session, &command, "asking for the size", error) ||
        !scsi_parse_capacity(answer, command.received, &iscsi->capacity, error))
        return false;
    iscsi->block = iscsi->capacity.block_size;
    return true;
}

static bool ask_limits(struct iscsi *iscsi, uint8_t *answer, GError **error)
{
    uint64_t most;
    size_t length;

    if (!ask_page(iscsi, 0xb0, answer, &length, error))
        return false;
    scsi_parse_limits(answer, length, &iscsi->limits);
    most = (uint64_t)iscsi->limits.max_transfer * iscsi->block;
    iscsi->piece = most > 0 && most < PIECE ? (uint32_t)most : PIECE;
    if (!iscsi->capacity.thin)
        return true;
    if (!ask_page(iscsi, 0xb2, answer, &length, error))
        return false;
    scsi_parse_provisioning(answer, length, &iscsi->unmap, &iscsi->unmap_same);
    return true;
}

/* Does the unit say that all its blocks are unmapped, and that such read as zeros?  Then none of them has to
 * be made so.  What is mapped in many pieces is not looked through. */
static bool is_blank(struct iscsi *iscsi)
{
    uint64_t block = 0, count;

    for (unsigned i = 0; i < MAX_LOOKS && block < iscsi->capacity.blocks; i++) {
        bool mapped = true;

        if (!lba_status(iscsi, block, &mapped, &count, NULL) || mapped || count == 0)
            return false;
        block += count;
    }
    return block >= iscsi->capacity.blocks;
}

/* The name that a unit has through all its ports, if it has one that is registered; otherwise what we know.
 */
static bool ask_name(struct storage *storage, uint8_t *answer, GError **error)
{
    const struct iscsi_address *address = iscsi_session_address(iscsi_of(storage)->session);
    g_autofree char *unit = NULL;
    size_t length;

    if (!ask_page(iscsi_of(storage), 0x83, answer, &length, error))
        return false;
    unit = scsi_parse_unit_name(answer, length);
    storage->identity = unit ? g_strdup_printf("scsi:%s", unit)
                             : g_strdup_printf("iscsi:%s/%d", address->target, address->lun);
    return true;
}

static bool look_at_unit(struct storage *storage, GError **error)
{
    struct iscsi *iscsi = iscsi_of(storage);
    g_autofree uint8_t *answer = g_malloc(MAX_ANSWER);

    if (!is_disk(iscsi, answer, error) || !ask_capacity(iscsi, answer, error) ||
        !ask_limits(iscsi, answer, error) || !ask_name(storage, answer, error))
        return false;
    storage->size = iscsi->capacity.blocks * iscsi->block;
    storage->sector = iscsi->block;
    storage->reads_zero = storage->writable && is_blank(iscsi);
    return true;
}

static void iscsi_close(struct storage *storage)
{
    struct iscsi *iscsi = iscsi_of(storage);

    if (iscsi->key)
        reservation_leave(iscsi->reservation, iscsi->key);
    reservation_close(iscsi->reservation);
    iscsi_session_close(iscsi->session);
    g_mutex_clear(&iscsi->edges);
    g_free(iscsi);
}

static const struct storage_ops iscsi_ops = {
    .name = "iscsi",
    .pread = iscsi_pread,
    .pwrite = iscsi_pwrite,
    .start = iscsi_start,
    .zero = iscsi_zero,
    .discard = iscsi_discard,
    .flush = iscsi_flush,
    .status = iscsi_status,
    .close = iscsi_close,
};

static struct storage *unit_new(struct iscsi_session *session, bool writable)
{
    struct iscsi *iscsi = g_new0(struct iscsi, 1);
    struct storage *storage = storage_new(&iscsi_ops, iscsi_session_address(session)->name, iscsi);

    iscsi->session = session;
    g_mutex_init(&iscsi->edges);
    storage->writable = writable;
    storage->cached = true;
    return storage;
}

struct storage *storage_iscsi_open(const char *uri, unsigned flags, GError **error)
{
    struct iscsi_address *address = iscsi_address_parse(uri, error);
    struct iscsi_session *session = address ? iscsi_session_open(address, 0, error) : NULL;
    g_autoptr(storage_t) storage = session ? unit_new(session, flags & FILE_WRITE) : NULL;
    struct iscsi *iscsi;

    if (!storage || !look_at_unit(storage, error))
        return NULL;
    iscsi = iscsi_of(storage);
    iscsi->reservation = reservation_of_session(session);
    if (storage->writable && !reservation_join(iscsi->reservation, &iscsi->key, error))
        return NULL;
    return g_steal_pointer(&storage);
}
