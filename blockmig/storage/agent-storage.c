/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/storage/agent-storage.h"

#include "blockmig/storage/agent-client.h"
#include "blockmig/storage/file.h"
#include "blockmig/storage/frame.h"
#include "blockmig/storage/pace.h"
#include "blockmig/storage/shift.h"
#include "formats/error.h"
#include "formats/xxh3.h"

#include <stdlib.h>
#include <string.h>

#define MAX_DIGESTS   65536u       /* in one answer, and */
#define DIGESTED      (256u << 20) /* bytes of the file */
#define MAX_SIGNATURE (1u << 20)   /* bytes of one that is asked for */
#define THREADS       16           /* requests under way for each storage, */
#define SENDERS       4            /* of these with small writes, and with small checks, */
#define SMALL         (32u << 10)
#define TOGETHER      64u /* so many in one request */
#define ALIGNMENT     4096
#define PIECE         (1u << 20) /* of a read, at most */
#define ZSTD_LEVEL    1
#define MAX_LEVEL     19
#define SEED_BLOCK    (64u << 10) /* of a file there that may be the same, at most */
#define SEED_LEAST    4096
#define MAX_OPENED    20 /* times that a file is opened again for one request: an agent that comes and goes */

/* Small requests that wait for a sender. */
struct bundle {
    GQueue waiting;
    unsigned senders;
};

struct agent_storage {
    struct agent_client *client;
    struct agent_address address;
    unsigned flags;
    GMutex lock;
    char *handle;      /* "/v1/handles/..." */
    char *boot;        /* of the agent's host */
    bool lost;         /* what was written since the last flush may be */
    bool takes_ranges; /* several, to digest, in one request */
    bool signs;        /* has signatures for files whose content shifts */
    struct bundle writes, checks;
    GThreadPool *threads;
};

/* ---- which way is faster ------------------------------------------------------------------------ */

static int wanted_level = -1; /* whichever arrives faster */

bool storage_agent_choose_compression(const char *text, GError **error)
{
    guint64 level = 0;

    if (strcmp(text, "auto") == 0)
        wanted_level = -1;
    else if (strcmp(text, "off") == 0)
        wanted_level = 0;
    else if (strcmp(text, "zstd") == 0)
        wanted_level = ZSTD_LEVEL;
    else if (g_str_has_prefix(text, "zstd:") &&
             g_ascii_string_to_unsigned(text + strlen("zstd:"), 10, 1, MAX_LEVEL, &level, NULL))
        wanted_level = (int)level;
    else
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE,
                             "--compress=%s: auto, off, zstd or zstd:1 to zstd:%d are possible", text,
                             MAX_LEVEL);
    return true;
}

int storage_agent_compression(void)
{
    return wanted_level;
}

/* For all storages: they share the link. */
static GMutex pace_lock;
static struct pace paces[2] = {PACE_INIT, PACE_INIT}; /* of what is fetched, and of what is sent */

/* Begins a piece; the level of zstd. */
static int choose_level(bool sent, unsigned *step)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&pace_lock);

    *step = pace_begin(&paces[sent]);
    return wanted_level >= 0 ? wanted_level : pace_level(*step);
}

/* It ends; `bytes` 0: it failed. */
static void note_pace(bool sent, unsigned step, size_t bytes)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&pace_lock);

    pace_end(&paces[sent], step, bytes >= PIECE / 4 ? bytes : 0, g_get_monotonic_time());
}

/* ---- handles ------------------------------------------------------------------------------------ */

static const char *mode_of(unsigned flags)
{
    if (flags & FILE_WRITE)
        return flags & FILE_CREATE ? "create" : flags & FILE_NO_LOCK ? "mend" : "write";
    return flags & FILE_NO_LOCK ? "look" : "read";
}

/* No number of an agent's is believed to be more than what a file can have. */
static bool get_size(const json_t *object, const char *key, uint64_t *size, GError **error)
{
    const json_t *value = json_object_get(object, key);

    if (!json_is_integer(value) || json_integer_value(value) < 0)
        return blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "the agent's answer has no %s", key);
    *size = (uint64_t)json_integer_value(value);
    return true;
}

static const char *get_word(const json_t *object, const char *key, size_t longest, GError **error)
{
    const char *word = json_string_value(json_object_get(object, key));

    if (word && strlen(word) <= longest)
        return word;
    blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "the agent's answer has no %s", key);
    return NULL;
}

static json_t *open_handle(struct agent_storage *agent, unsigned flags, GError **error)
{
    g_autofree char *id = agent_new_id();

    return agent_ask_json(agent->client, "POST", "/v1/handles",
                          json_pack("{s:s, s:s, s:s, s:s}", "datastore", agent->address.datastore, "path",
                                    agent->address.path, "mode", mode_of(flags), "handle", id),
                          NULL, error);
}

/* Of this agent, as others have another file of that number. */
static char *full_identity(const struct agent_address *address, const char *identity)
{
    return g_strdup_printf("%s/%s", address->authority, identity);
}

static bool take_handle(struct storage *storage, const json_t *answer, GError **error)
{
    struct agent_storage *agent = storage->opaque;
    const char *handle = get_word(answer, "handle", 64, error);
    const char *boot = handle ? get_word(answer, "boot", 64, error) : NULL;
    const char *identity = boot ? get_word(answer, "identity", NAME_IDENTITY, error) : NULL;
    g_autofree char *full = identity ? full_identity(&agent->address, identity) : NULL;
    uint64_t size;

    if (!identity || !get_size(answer, "size", &size, error))
        return false;
    if (storage->identity && strcmp(storage->identity, full) != 0)
        return blockmig_fail(error, BLOCKMIG_ERROR_FAILED,
                             "the agent was gone, and now another file has the name");
    agent->lost = agent->lost || (storage->writable && agent->boot && strcmp(agent->boot, boot) != 0);
    g_free(agent->handle);
    agent->handle = g_strdup_printf("/v1/handles/%s", handle);
    g_free(agent->boot);
    agent->boot = g_strdup(boot);
    agent->takes_ranges = json_is_true(json_object_get(answer, "ranges"));
    agent->signs = json_is_true(json_object_get(answer, "signature"));
    if (!storage->identity) {
        storage->identity = g_steal_pointer(&full);
        storage->size = size;
        storage->reads_zero = json_is_true(json_object_get(answer, "reads_zero"));
    }
    return true;
}

/* The agent knows the handle `old` no more; somebody else may have been here before. */
static bool open_again(struct storage *storage, const char *old, GError **error)
{
    struct agent_storage *agent = storage->opaque;
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&agent->lock);
    json_t *answer;
    bool ok;

    if (strcmp(agent->handle, old) != 0)
        return true;
    answer = open_handle(agent, agent->flags & (unsigned)~FILE_CREATE, error);
    ok = answer && take_handle(storage, answer, error);
    json_decref(answer);
    return ok;
}

static char *handle_of(struct agent_storage *agent)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&agent->lock);

    return g_strdup(agent->handle);
}

/* `request->path` is what follows the handle. */
static GByteArray *ask(struct storage *storage, const struct agent_request *request, GError **error)
{
    struct agent_storage *agent = storage->opaque;

    for (unsigned times = 0;; times++) {
        g_autofree char *handle = handle_of(agent), *path = g_strconcat(handle, request->path, NULL);
        g_autoptr(GError) reason = NULL;
        struct agent_request whole = *request;
        bool gone = false;
        GByteArray *answer;

        whole.path = path;
        answer = agent_ask(agent->client, &whole, &gone, &reason);
        if (answer)
            return answer;
        if (!gone || times == MAX_OPENED) {
            g_propagate_error(error, g_steal_pointer(&reason));
            return NULL;
        }
        if (!open_again(storage, handle, error))
            return NULL;
    }
}

static bool tell(struct storage *storage, const char *path, json_t *arguments, GError **error)
{
    char *text = json_dumps(arguments, JSON_COMPACT);
    struct agent_request request = {
        .method = "POST", .path = path, .head = text, .head_length = strlen(text), .most = 65536};
    g_autoptr(GByteArray) answer = ask(storage, &request, error);

    json_decref(arguments);
    free(text);
    return answer != NULL;
}

/* ---- reading ------------------------------------------------------------------------------------ */

struct arrival {
    uint8_t *buffer;
    uint64_t offset, length, have;
};

/* In order and without gaps, or it is not what was asked for. */
static bool arrived(void *opaque, const struct frame *frame, const uint8_t *content, GError **error)
{
    struct arrival *arrival = opaque;

    if (frame->kind == FRAME_SAME || frame->offset != arrival->offset + arrival->have ||
        frame->length > arrival->length - arrival->have)
        return blockmig_fail(error, BLOCKMIG_ERROR_FAILED,
                             "the agent sent other bytes than it was asked for");
    if (content)
        memcpy(arrival->buffer + arrival->have, content, frame->length);
    else
        memset(arrival->buffer + arrival->have, 0, frame->length);
    arrival->have += frame->length;
    return true;
}

static bool read_piece(struct storage *storage, uint8_t *buffer, size_t length, uint64_t offset,
                       GError **error)
{
    unsigned step;
    int level = choose_level(false, &step);
    g_autofree char *path =
        g_strdup_printf("/extents?offset=%" G_GUINT64_FORMAT "&length=%zu&level=%d", offset, length, level);
    struct agent_request request = {.method = "GET", .path = path, .most = length + 65536};
    struct arrival arrival = {buffer, offset, length, 0};
    g_autoptr(frame_parser_t) parser = frame_parser_new(arrived, &arrival);
    g_autoptr(GByteArray) answer = ask(storage, &request, error);

    bool ok = answer && frame_parser_feed(parser, answer->data, answer->len, error) &&
              frame_parser_end(parser, error);

    note_pace(false, step, ok ? length : 0);
    return ok &&
           (arrival.have == length ||
            blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "the agent sent fewer bytes than it was asked for"));
}

static bool agent_pread(struct storage *storage, void *buffer, size_t length, uint64_t offset, GError **error)
{
    uint8_t *to = buffer;

    for (size_t piece; length > 0; to += piece, offset += piece, length -= piece) {
        piece = MIN(length, PIECE - offset % PIECE);
        if (!read_piece(storage, to, piece, offset, error))
            return false;
    }
    return true;
}

/* ---- writing ------------------------------------------------------------------------------------ */

static bool write_piece(struct storage *storage, const uint8_t *data, size_t length, uint64_t offset,
                        GError **error)
{
    unsigned step;
    int level = choose_level(true, &step);
    g_autoptr(GByteArray) head = g_byte_array_new();
    struct agent_request request = {.method = "POST", .path = "/extents", .most = 65536};
    g_autoptr(GByteArray) answer = NULL;

    if (level)
        frame_put_data(head, offset, data, length, level);
    else
        frame_put_header(head, offset, data, length);
    request.head = head->data;
    request.head_length = head->len;
    request.data = level ? NULL : data;
    request.data_length = level ? 0 : length;
    answer = ask(storage, &request, error);
    note_pace(true, step, answer ? length : 0);
    return answer != NULL;
}

static bool agent_pwrite(struct storage *storage, const void *buffer, size_t length, uint64_t offset,
                         GError **error)
{
    const uint8_t *from = buffer;
    uint64_t end = offset + length;

    for (size_t piece; length > 0; from += piece, offset += piece, length -= piece) {
        piece = MIN(length, FRAME_CONTENT);
        if (!write_piece(storage, from, piece, offset, error))
            return false;
    }
    storage_grown(storage, end);
    return true;
}

/* ---- what is there already ---------------------------------------------------------------------- */

struct block {
    uint64_t offset, length;
    struct storage *seed;
    uint64_t at;
    bool same;
};

/* What of the seeds lies in the request, in blocks that are cut where the file's are. */
static GArray *cut_seeds(const struct storage_request *request)
{
    GArray *blocks = g_array_new(FALSE, FALSE, sizeof(struct block));

    for (unsigned i = 0; i < request->seed_count; i++) {
        const struct storage_seed *seed = &request->seeds[i];
        uint64_t from = MAX(seed->offset, request->offset), next;
        uint64_t end = MIN(seed->offset + seed->length, request->offset + request->length);

        for (; from < end; from = next) {
            next = MIN(end, (from / SEED_BLOCK + 1) * SEED_BLOCK);
            struct block block = {from, next - from, seed->storage, seed->at + (from - seed->offset), false};
            if (block.length >= SEED_LEAST)
                g_array_append_val(blocks, block);
        }
    }
    return blocks;
}

/* The number of a handle as frames have it. */
static bool get_seed(const char *handle, uint8_t *seed)
{
    const char *text = handle + strlen("/v1/handles/");

    for (unsigned i = 0; i < FRAME_SEED && agent_is_id(text); i++)
        seed[i] = (uint8_t)(g_ascii_xdigit_value(text[2 * i]) << 4 | g_ascii_xdigit_value(text[2 * i + 1]));
    return agent_is_id(text);
}

static void mark_same(GArray *blocks, const GByteArray *answer, bool *gone)
{
    json_t *object = json_loadb((const char *)answer->data, answer->len, 0, NULL);
    const char *same = json_string_value(json_object_get(object, "same"));

    *gone = json_is_true(json_object_get(object, "gone"));
    for (guint i = 0; same && strlen(same) == blocks->len && i < blocks->len; i++)
        g_array_index(blocks, struct block, i).same = same[i] == '1';
    json_decref(object);
}

/* Asks the agent to write the blocks that it has; which those were is noted. */
static bool offer_once(struct storage *storage, const struct storage_request *request, GArray *blocks,
                       const char *handle, bool *gone, GError **error)
{
    g_autoptr(GByteArray) stream = g_byte_array_new(), answer = NULL;
    struct agent_request question = {.method = "POST", .path = "/extents", .most = 65536};
    uint8_t number[FRAME_SEED];

    if (!get_seed(handle, number))
        return true;
    for (guint i = 0; i < blocks->len; i++) {
        const struct block *block = &g_array_index(blocks, struct block, i);

        frame_put_same(stream, block->offset, (uint8_t *)request->buffer + (block->offset - request->offset),
                       block->length, number, block->at);
    }
    question.head = stream->data;
    question.head_length = stream->len;
    if (!(answer = ask(storage, &question, error)))
        return false;
    mark_same(blocks, answer, gone);
    return true;
}

/* If the agent was started anew, the seed is opened again; if it is not to be had any more, all is sent. */
static bool offer(struct storage *storage, const struct storage_request *request, GArray *blocks,
                  GError **error)
{
    struct storage *seed = g_array_index(blocks, struct block, 0).seed;

    for (unsigned times = 0; times < MAX_OPENED; times++) {
        g_autofree char *handle = handle_of(seed->opaque);
        bool gone = false;

        if (!offer_once(storage, request, blocks, handle, &gone, error))
            return false;
        if (!gone || !open_again(seed, handle, NULL))
            break;
    }
    return true;
}

/* Those of one file at a time: the layers of a seed are several. */
static bool offer_all(struct storage *storage, const struct storage_request *request, GArray *blocks,
                      GError **error)
{
    const struct block *all = (const struct block *)(void *)blocks->data;

    for (guint first = 0, next; first < blocks->len; first = next) {
        g_autoptr(GArray) some = g_array_new(FALSE, FALSE, sizeof(struct block));

        for (next = first; next < blocks->len && all[next].seed == all[first].seed; next++)
            g_array_append_val(some, all[next]);
        if (!offer(storage, request, some, error))
            return false;
        memcpy(&g_array_index(blocks, struct block, first), some->data, some->len * sizeof(struct block));
    }
    return true;
}

static bool write_part(struct storage *storage, const struct storage_request *request, uint64_t from,
                       uint64_t to, GError **error)
{
    return from == to || agent_pwrite(storage, (uint8_t *)request->buffer + (from - request->offset),
                                      (size_t)(to - from), from, error);
}

static uint64_t seeded_bytes;

uint64_t agent_seeded_bytes(void)
{
    return __atomic_load_n(&seeded_bytes, __ATOMIC_RELAXED);
}

static bool write_seeded(struct storage *storage, const struct storage_request *request, GError **error)
{
    g_autoptr(GArray) blocks = cut_seeds(request);
    uint64_t from = request->offset, end = request->offset + request->length;

    if (blocks->len && !offer_all(storage, request, blocks, error))
        return false;
    for (guint i = 0; i < blocks->len; i++) {
        const struct block *block = &g_array_index(blocks, struct block, i);

        if (!block->same)
            continue;
        if (!write_part(storage, request, from, block->offset, error))
            return false;
        from = block->offset + block->length;
        __atomic_add_fetch(&seeded_bytes, block->length, __ATOMIC_RELAXED);
    }
    storage_grown(storage, end);
    return write_part(storage, request, from, end, error);
}

static json_t *range(uint64_t offset, uint64_t length)
{
    return json_pack("{s:I, s:I}", "offset", (json_int_t)offset, "length", (json_int_t)length);
}

static bool agent_zero(struct storage *storage, uint64_t offset, uint64_t length, bool may_unmap,
                       GError **error)
{
    json_t *arguments = range(offset, length);

    json_object_set_new(arguments, "unmap", json_boolean(may_unmap));
    if (!tell(storage, "/zero", arguments, error))
        return false;
    storage_grown(storage, offset + length);
    return true;
}

static bool agent_discard(struct storage *storage, uint64_t offset, uint64_t length, GError **error)
{
    return tell(storage, "/discard", range(offset, length), error);
}

static bool agent_allocate(struct storage *storage, uint64_t offset, uint64_t length, GError **error)
{
    return tell(storage, "/allocate", range(offset, length), error);
}

static bool agent_resize(struct storage *storage, uint64_t size, GError **error)
{
    if (!tell(storage, "/resize", json_pack("{s:I}", "size", (json_int_t)size), error))
        return false;
    __atomic_store_n(&storage->size, size, __ATOMIC_RELAXED);
    return true;
}

static bool agent_flush(struct storage *storage, GError **error)
{
    struct agent_storage *agent = storage->opaque;

    if (!tell(storage, "/flush", json_object(), error))
        return false;
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&agent->lock);
    if (!agent->lost)
        return true;
    agent->lost = false;
    return blockmig_fail(error, BLOCKMIG_ERROR_IO,
                         "the agent's host was started anew: what was written before may be lost");
}

/* ---- proving ------------------------------------------------------------------------------------ */

static bool has_digest(const void *data, size_t length, uint64_t offset, const uint8_t *there, GError **error)
{
    uint8_t here[FRAME_DIGEST];

    xxh3_digest(data, length, here);
    return memcmp(here, there, FRAME_DIGEST) == 0 ||
           blockmig_fail(error, BLOCKMIG_ERROR_DIFFERENT,
                         "bytes %" G_GUINT64_FORMAT "+%zu have another digest there than here", offset,
                         length);
}

static bool agent_check(struct storage *storage, const void *buffer, size_t length, uint64_t offset,
                        GError **error)
{
    const uint8_t *data = buffer;

    for (size_t piece; length > 0; data += piece, offset += piece, length -= piece) {
        g_autofree char *path = NULL;
        g_autoptr(GByteArray) answer = NULL;
        struct agent_request request = {.method = "GET", .most = 65536};

        piece = MIN(length, FRAME_CONTENT);
        path = g_strdup_printf("/digests?offset=%" G_GUINT64_FORMAT "&length=%zu&chunk=%zu", offset, piece,
                               piece);
        request.path = path;
        if (!(answer = ask(storage, &request, error)))
            return false;
        if (answer->len != FRAME_DIGEST)
            return blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "the agent's answer has %u bytes, not %u",
                                 answer->len, FRAME_DIGEST);
        if (!has_digest(data, piece, offset, answer->data, error))
            return false;
    }
    return true;
}

static bool agent_digests(struct storage *storage, uint64_t offset, uint64_t length, uint32_t chunk,
                          uint8_t *digests, GError **error)
{
    for (uint64_t piece; length > 0; offset += piece, length -= piece) {
        g_autofree char *path = NULL;
        g_autoptr(GByteArray) answer = NULL;
        struct agent_request request = {.method = "GET", .most = MAX_DIGESTS * FRAME_DIGEST};
        size_t wanted;

        piece = MIN(length, MIN((uint64_t)MAX_DIGESTS * chunk, DIGESTED / chunk * chunk));
        wanted = (size_t)((piece + chunk - 1) / chunk * FRAME_DIGEST);
        path = g_strdup_printf("/digests?offset=%" G_GUINT64_FORMAT "&length=%" G_GUINT64_FORMAT
                               "&chunk=%u&cached=1",
                               offset, piece, chunk);
        request.path = path;
        if (!(answer = ask(storage, &request, error)))
            return false;
        if (answer->len != wanted)
            return blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "the agent's answer has %u bytes, not %zu",
                                 answer->len, wanted);
        memcpy(digests, answer->data, wanted);
        digests += wanted;
    }
    return true;
}

/* Adds that of one part to `whole`. */
static bool get_signature(struct storage *storage, uint64_t offset, uint64_t length, uint32_t block,
                          GByteArray *whole, GError **error)
{
    g_autofree char *path = g_strdup_printf("/signature?offset=%" G_GUINT64_FORMAT
                                            "&length=%" G_GUINT64_FORMAT "&block=%" G_GUINT32_FORMAT,
                                            offset, length, block);
    struct agent_request request = {.method = "GET", .path = path, .most = MAX_SIGNATURE};
    g_autoptr(GByteArray) answer = ask(storage, &request, error);
    guint header = whole->len ? SHIFT_HEADER : 0;

    if (!answer)
        return false;
    if (answer->len != SHIFT_HEADER + (length + block - 1) / block * SHIFT_HASHES)
        return blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "the agent's answer has %u bytes: no signature",
                             answer->len);
    g_byte_array_append(whole, answer->data + header, answer->len - header);
    return true;
}

GByteArray *storage_agent_signature(struct storage *storage, GError **error)
{
    const struct agent_storage *agent = storage->opaque;
    g_autoptr(GByteArray) whole = g_byte_array_new();
    uint32_t block = shift_block(storage->size);
    uint64_t part = SHIFT_PART / block * block, length;

    if (!agent->signs || storage->size == 0) {
        blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s",
                      agent->signs ? "it is empty" : "the agent makes no signatures");
        return NULL;
    }
    for (uint64_t at = 0; at < storage->size; at += length) {
        length = MIN(part, storage->size - at);
        if (!get_signature(storage, at, length, block, whole, error))
            return NULL;
    }
    return g_steal_pointer(&whole);
}

/* ---- small ones, several in one request ----------------------------------------------------------- */

static struct bundle *bundle_of(struct agent_storage *agent, const struct storage_request *request)
{
    if (request->length > SMALL || request->seed_count)
        return NULL;
    return request->check ? (agent->takes_ranges ? &agent->checks : NULL)
                          : (request->write ? &agent->writes : NULL);
}

static void write_together(struct storage *storage, const GPtrArray *some, GError **errors)
{
    g_autoptr(GByteArray) body = g_byte_array_new(), answer = NULL;
    g_autoptr(GError) error = NULL;
    struct agent_request request = {.method = "POST", .path = "/extents", .most = 65536};
    uint64_t end = 0;
    unsigned step;
    int level = choose_level(true, &step);
    size_t bytes = 0;

    for (guint i = 0; i < some->len; i++) {
        const struct storage_request *one = g_ptr_array_index(some, i);

        frame_put_data(body, one->offset, one->buffer, one->length, level);
        bytes += one->length;
        end = MAX(end, one->offset + one->length);
    }
    request.head = body->data;
    request.head_length = body->len;
    answer = ask(storage, &request, &error);
    note_pace(true, step, answer ? bytes : 0);
    if (answer)
        storage_grown(storage, end);
    for (guint i = 0; error && i < some->len; i++)
        errors[i] = g_error_copy(error);
}

static void check_together(struct storage *storage, const GPtrArray *some, GError **errors)
{
    g_autoptr(GString) path = g_string_new("/digests?ranges=");
    g_autoptr(GByteArray) answer = NULL;
    g_autoptr(GError) error = NULL;
    struct agent_request request = {.method = "GET", .most = 65536};

    for (guint i = 0; i < some->len; i++) {
        const struct storage_request *one = g_ptr_array_index(some, i);

        g_string_append_printf(path, "%s%" G_GUINT64_FORMAT ":%zu", i ? "," : "", one->offset, one->length);
    }
    request.path = path->str;
    answer = ask(storage, &request, &error);
    if (answer && answer->len != some->len * FRAME_DIGEST)
        blockmig_fail(&error, BLOCKMIG_ERROR_FAILED, "the agent's answer has %u bytes, not %u", answer->len,
                      some->len * FRAME_DIGEST);
    for (guint i = 0; i < some->len; i++) {
        const struct storage_request *one = g_ptr_array_index(some, i);

        if (error)
            errors[i] = g_error_copy(error);
        else
            has_digest(one->buffer, one->length, one->offset, answer->data + i * FRAME_DIGEST, &errors[i]);
    }
}

/* Those that came while another request was under way; empty: none, and there is a sender less. */
static GPtrArray *take_some(struct agent_storage *agent, struct bundle *bundle)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&agent->lock);
    GPtrArray *some = g_ptr_array_new();

    while (some->len < TOGETHER && bundle->waiting.length)
        g_ptr_array_add(some, g_queue_pop_head(&bundle->waiting));
    bundle->senders -= some->len == 0;
    return some;
}

static void send_bundle(struct storage *storage, struct bundle *bundle)
{
    struct agent_storage *agent = storage->opaque;

    for (;;) {
        g_autoptr(GPtrArray) some = take_some(agent, bundle);
        GError *errors[TOGETHER] = {NULL};

        if (some->len == 0)
            return;
        (bundle == &agent->checks ? check_together : write_together)(storage, some, errors);
        for (guint i = 0; i < some->len; i++) {
            struct storage_request *request = g_ptr_array_index(some, i);

            request->done(request, errors[i]);
        }
    }
}

/* Does a sender have to be woken? */
static bool leave(struct agent_storage *agent, struct bundle *bundle, struct storage_request *request)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&agent->lock);
    bool wake = bundle->senders < SENDERS;

    g_queue_push_tail(&bundle->waiting, request);
    bundle->senders += wake;
    return wake;
}

/* ---- many at once --------------------------------------------------------------------------------- */

/* `data`: a request, or a bundle for a sender. */
static void work(gpointer data, gpointer opaque)
{
    struct storage *storage = opaque;
    struct agent_storage *agent = storage->opaque;
    struct storage_request *request = data;
    GError *error = NULL;

    if (data == &agent->writes || data == &agent->checks) {
        send_bundle(storage, data);
        return;
    }
    if (request->check)
        agent_check(opaque, request->buffer, request->length, request->offset, &error);
    else if (request->write)
        write_seeded(opaque, request, &error);
    else
        agent_pread(opaque, request->buffer, request->length, request->offset, &error);
    request->done(request, error);
}

static void agent_start(struct storage *storage, struct storage_request *request)
{
    struct agent_storage *agent = storage->opaque;

    struct bundle *bundle = bundle_of(agent, request);

    if (!bundle)
        g_thread_pool_push(agent->threads, request, NULL);
    else if (leave(agent, bundle, request))
        g_thread_pool_push(agent->threads, bundle, NULL);
}

static bool read_status(const json_t *ranges, uint64_t length, bool *data, uint64_t *run, GError **error)
{
    const json_t *first = json_array_get(ranges, 0);
    json_int_t found = json_integer_value(json_array_get(first, 0));

    if (found <= 0 || (uint64_t)found > length)
        return blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "the agent's answer is no list of ranges");
    *run = (uint64_t)found;
    *data = !json_is_false(json_array_get(first, 1));
    return true;
}

static bool agent_status(struct storage *storage, uint64_t offset, uint64_t length, bool *data, uint64_t *run,
                         GError **error)
{
    g_autofree char *path =
        g_strdup_printf("/status?offset=%" G_GUINT64_FORMAT "&length=%" G_GUINT64_FORMAT, offset, length);
    struct agent_request request = {.method = "GET", .path = path, .most = 1u << 20};
    g_autoptr(GByteArray) answer = ask(storage, &request, error);
    json_t *ranges = answer ? json_loadb((const char *)answer->data, answer->len, 0, NULL) : NULL;
    bool ok = answer && read_status(ranges, length, data, run, error);

    json_decref(ranges);
    return ok;
}

/* ---- opening ------------------------------------------------------------------------------------ */

/* If it does not arrive, the agent closes it when we are gone. */
static void close_handle(struct agent_storage *agent)
{
    struct agent_request request = {.method = "DELETE", .path = agent->handle, .most = 65536, .once = true};
    GByteArray *answer = agent_ask(agent->client, &request, NULL, NULL);

    if (answer)
        g_byte_array_unref(answer);
}

static void agent_close(struct storage *storage)
{
    struct agent_storage *agent = storage->opaque;

    g_thread_pool_free(agent->threads, FALSE, TRUE);
    if (agent->handle)
        close_handle(agent);
    agent_address_clear(&agent->address);
    g_free(agent->handle);
    g_free(agent->boot);
    g_mutex_clear(&agent->lock);
    g_free(agent);
}

static bool agent_seeds(struct storage *storage, const struct storage *seed)
{
    const struct agent_storage *agent = storage->opaque, *other = seed->opaque;

    return seed->ops == storage->ops && other->client == agent->client;
}

static const struct storage_ops agent_ops = {
    .name = "agent",
    .pread = agent_pread,
    .pwrite = agent_pwrite,
    .start = agent_start,
    .zero = agent_zero,
    .discard = agent_discard,
    .flush = agent_flush,
    .resize = agent_resize,
    .allocate = agent_allocate,
    .status = agent_status,
    .check = agent_check,
    .digests = agent_digests,
    .seeds = agent_seeds,
    .close = agent_close,
};

struct storage *storage_agent_open(const char *uri, unsigned flags, GError **error)
{
    struct agent_storage *agent = g_new0(struct agent_storage, 1);
    g_autoptr(storage_t) storage = storage_new(&agent_ops, uri, agent);
    json_t *answer = NULL;
    bool ok;

    storage->writable = storage->growable = flags & FILE_WRITE;
    agent->flags = flags;
    g_mutex_init(&agent->lock);
    agent->threads = g_thread_pool_new(work, storage, THREADS, FALSE, NULL);
    ok = agent_address_parse(uri, &agent->address, error) &&
         (agent->client = agent_client_get(&agent->address, error)) &&
         (answer = open_handle(agent, flags, error)) && take_handle(storage, answer, error);
    json_decref(answer);
    return ok ? g_steal_pointer(&storage) : NULL;
}

/* ---- names -------------------------------------------------------------------------------------- */

/* Asks about the file that the URI names, or its whole datastore; `arguments` is taken. */
static json_t *ask_about(const char *uri, bool datastore, const char *method, json_t *arguments,
                         struct agent_address *address, GError **error)
{
    struct agent_client *client = NULL;
    json_t *answer = NULL;

    if (agent_address_parse(uri, address, error) && (client = agent_client_get(address, error))) {
        g_autofree char *name = agent_escape(address->datastore, false);
        g_autofree char *file = agent_escape(address->path, true);
        g_autofree char *path = g_strdup_printf("/v1/datastores/%s%s%s%s", name, datastore ? "" : "/files",
                                                datastore || !*file ? "" : "/", datastore ? "" : file);

        answer = agent_ask_json(client, method, path, arguments, NULL, error);
    } else {
        json_decref(arguments);
    }
    if (!answer)
        g_prefix_error(error, "%s: ", uri);
    return answer;
}

static bool read_info(const json_t *answer, const struct agent_address *address, struct name_info *info,
                      GError **error)
{
    const char *kind = get_word(answer, "kind", 16, error);
    const char *identity = kind ? get_word(answer, "identity", NAME_IDENTITY, error) : NULL;
    g_autofree char *full = identity ? full_identity(address, identity) : NULL;

    if (!full || !get_size(answer, "size", &info->size, error) ||
        !get_size(answer, "allocated", &info->allocated, error))
        return false;
    info->kind = strcmp(kind, "none") == 0        ? NAME_FREE
                 : strcmp(kind, "file") == 0      ? NAME_FILE
                 : strcmp(kind, "directory") == 0 ? NAME_DIRECTORY
                                                  : NAME_OTHER;
    info->single = json_is_true(json_object_get(answer, "single"));
    g_strlcpy(info->identity, full, sizeof(info->identity));
    return true;
}

static bool agent_look(const char *name, struct name_info *info, GError **error)
{
    g_auto(agent_address_t) address = {NULL};
    json_t *answer = ask_about(name, false, "GET", NULL, &address, error);
    bool ok = answer && read_info(answer, &address, info, error);

    json_decref(answer);
    return ok;
}

static bool agent_remove(const char *name, GError **error)
{
    g_auto(agent_address_t) address = {NULL};
    json_t *answer = ask_about(name, false, "DELETE", NULL, &address, error);

    json_decref(answer);
    return answer != NULL;
}

static bool has_identity(const char *name, const char *identity)
{
    struct name_info info;

    return agent_look(name, &info, NULL) && info.kind == NAME_FILE && strcmp(info.identity, identity) == 0;
}

/* Its answer may be lost, and the same be asked again: then `from` is gone, and `to` is what it was. */
static bool agent_take(const char *from, const char *to, const char *replaces, bool *taken, GError **error)
{
    g_auto(agent_address_t) address = {NULL}, target = {NULL};
    g_autoptr(GError) reason = NULL;
    struct name_info before;
    json_t *arguments, *answer;

    if (!agent_address_parse(to, &target, error) || !agent_look(from, &before, error))
        return false;
    arguments = json_pack("{s:s}", "rename", target.path);
    if (replaces && strchr(replaces, '/'))
        json_object_set_new(arguments, "replaces", json_string(strchr(replaces, '/') + 1));
    answer = ask_about(from, false, "POST", arguments, &address, &reason);
    *taken = answer && json_is_true(json_object_get(answer, "taken"));
    json_decref(answer);
    if (answer || (before.kind == NAME_FILE && has_identity(to, before.identity)))
        return true;
    g_propagate_error(error, g_steal_pointer(&reason));
    return false;
}

static bool agent_room(const char *directory, uint64_t *available, GError **error)
{
    g_auto(agent_address_t) address = {NULL};
    json_t *answer = ask_about(directory, true, "GET", NULL, &address, error);
    bool ok = answer && get_size(answer, "available", available, error);

    json_decref(answer);
    return ok;
}

const struct name_ops storage_agent_names = {agent_look, agent_remove, agent_take, agent_room};
