/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What may be asked: one function for each line of the table at the end. */
#include "blockmig/remote/datastore.h"
#include "blockmig/remote/lead.h"
#include "blockmig/remote/machines.h"
#include "blockmig/remote/server-internal.h"
#include "blockmig/storage/agent-client.h"
#include "blockmig/storage/direct.h"
#include "blockmig/storage/file.h"
#include "blockmig/storage/frame.h"
#include "blockmig/storage/host.h"
#include "blockmig/storage/shift.h"
#include "blockmig/storage/unit.h"
#include "formats/bytes.h"
#include "formats/error.h"
#include "formats/xxh3.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define MAX_JSON          (64u << 10) /* bytes of a body */
#define MAX_READ          (16u << 20) /* bytes in one answer */
#define MAX_PROVED        (UINT64_C(1) << 30)
#define MAX_CHUNKS        65536u
#define MAX_DIGEST_RANGES 64u
#define MAX_RANGES        1024u
#define PAGE              4096u
#define FASTEST_LEVEL     -7
#define STRONGEST_LEVEL   19
#define STEP              (1u << 20)

enum body { BODY_NONE, BODY_JSON, BODY_FRAMES, BODY_STREAM, BODY_STREAM_OF_FRAMES };

struct route {
    const char *method, *path; /* in the path, * stands for one part and a ** at the end for the rest */
    enum body body;
    bool writes; /* the datastore must not be read-only */
    bool (*run)(struct request *request, GError **error);
};

struct request {
    struct caller caller;
    const struct route *route;
    char *parts[2]; /* what stands for * and ** */
    const struct agent_datastore *datastore;
    struct handle *handle;
    GByteArray *body;
    struct frame_parser *parser;
    json_t *arguments;
    struct MHD_Connection *connection; /* once it is to be answered */
    uint64_t frames, bytes;
    GString *same; /* '1' or '0' for each frame that names another place; or NULL */
    bool seed_gone;
    GError *error;
    unsigned refused; /* the status with it, if it is not that of the error's code */
    struct tunnel *tunnel;
    json_t *answer;     /* what it is answered with: this, or */
    GByteArray *octets; /* this */
};

/* ---- arguments ---------------------------------------------------------------------------------- */

static bool get_number(struct request *request, const char *key, uint64_t *number, GError **error)
{
    const char *text = MHD_lookup_connection_value(request->connection, MHD_GET_ARGUMENT_KIND, key);
    json_t *value = json_object_get(request->arguments, key);

    if (json_is_integer(value) && json_integer_value(value) >= 0) {
        *number = (uint64_t)json_integer_value(value);
        return true;
    }
    if (text && g_ascii_string_to_unsigned(text, 10, 0, INT64_MAX, number, NULL))
        return true;
    return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "%s: a number is expected", key);
}

/* Of zstd, below 0 the faster ones; 0: none. */
static int get_level(struct request *request)
{
    const char *text = MHD_lookup_connection_value(request->connection, MHD_GET_ARGUMENT_KIND, "level");

    return text ? (int)CLAMP(g_ascii_strtoll(text, NULL, 10), FASTEST_LEVEL, STRONGEST_LEVEL) : 0;
}

static bool get_range(struct request *request, uint64_t most, uint64_t *offset, uint64_t *length,
                      GError **error)
{
    if (!get_number(request, "offset", offset, error) || !get_number(request, "length", length, error))
        return false;
    return (*length > 0 && *length <= most && *offset <= (uint64_t)INT64_MAX - *length) ||
           blockmig_fail(error, BLOCKMIG_ERROR_USAGE,
                         "range %" G_GUINT64_FORMAT "+%" G_GUINT64_FORMAT ": 1 to %" G_GUINT64_FORMAT
                         " bytes are possible",
                         *offset, *length, most);
}

static const char *get_text(struct request *request, const char *key, GError **error)
{
    const char *text = json_string_value(json_object_get(request->arguments, key));

    if (!text)
        blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "%s: a text is expected", key);
    return text;
}

/* One that the caller may use; that there are others is not told. */
static const struct agent_datastore *find_datastore(const struct request *request, const char *name,
                                                    bool writes, GError **error)
{
    const struct caller *caller = &request->caller;
    const struct agent_datastore *datastore = agent_config_datastore(caller->config, name);

    if (!datastore ||
        (!caller->local && datastore->allow && !agent_config_allows(datastore->allow, caller->peer))) {
        blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "there is no datastore '%s' for '%s'", name,
                      caller->peer);
        return NULL;
    }
    if (writes && datastore->read_only) {
        blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "datastore '%s' is read-only", name);
        return NULL;
    }
    return datastore;
}

/* ---- the agent and its datastores --------------------------------------------------------------- */

static bool tell_agent(struct request *request, GError **error)
{
    json_t *names = json_array();

    for (guint i = 0; i < request->caller.config->datastores->len; i++) {
        const struct agent_datastore *datastore = g_ptr_array_index(request->caller.config->datastores, i);

        if (find_datastore(request, datastore->name, false, NULL))
            json_array_append_new(names, json_string(datastore->name));
    }
    request->answer = json_pack("{s:s, s:i, s:s, s:s, s:f, s:o}", "agent", "blockmigd", "api", AGENT_API,
                                "host", g_get_host_name(), "boot", host_boot_id(), "time",
                                (double)g_get_real_time() / 1e6, "datastores", names);
    return true;
}

static bool tell_datastore(struct request *request, GError **error)
{
    struct statvfs fs;

    if (fstatvfs(request->datastore->fd, &fs) < 0)
        return blockmig_set_errno(error, errno, "%s", request->datastore->name);
    request->answer =
        json_pack("{s:s, s:I, s:I, s:b}", "name", request->datastore->name, "available",
                  (json_int_t)(fs.f_bavail * fs.f_frsize), "total", (json_int_t)(fs.f_blocks * fs.f_frsize),
                  "read_only", request->datastore->read_only);
    return true;
}

/* ---- machines ----------------------------------------------------------------------------------- */

static const struct agent_machines *find_machines(const struct request *request, GError **error)
{
    const struct agent_machines *machines = request->caller.config->machines;

    if (machines && (request->caller.local || agent_config_allows(machines->allow, request->caller.peer)))
        return machines;
    blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "'%s' may not move machines to this host",
                  request->caller.peer);
    return NULL;
}

/* A machine's definition has paths of this host. */
static bool tell_machines(struct request *request, GError **error)
{
    const struct agent_machines *machines = find_machines(request, error);
    json_t *directories, *read_only;

    if (!machines)
        return false;
    directories = json_object();
    read_only = json_object();
    for (guint i = 0; i < request->caller.config->datastores->len; i++) {
        const struct agent_datastore *datastore = g_ptr_array_index(request->caller.config->datastores, i);

        if (find_datastore(request, datastore->name, false, NULL))
            json_object_set_new(find_datastore(request, datastore->name, true, NULL) ? directories
                                                                                     : read_only,
                                datastore->name, json_string(datastore->directory));
    }
    request->answer = json_pack("{s:s, s:s, s:o, s:o}", "host", g_get_host_name(), "directory",
                                machines->directory, "datastores", directories, "read_only", read_only);
    if (machines->tpm->fd >= 0)
        json_object_set_new(request->answer, "tpm", json_string(machines->tpm->directory));
    return true;
}

/* One that the configuration has; whatever a name may lead to, unit_look() takes only what is a unit. */
static const char *get_unit(struct request *request, GError **error)
{
    const struct agent_machines *machines = find_machines(request, error);
    const char *name = machines ? get_text(request, "name", error) : NULL;
    g_autofree char *plain = NULL;

    if (!name)
        return NULL;
    plain = strstr(name, "://") ? g_strdup(name) : g_canonicalize_filename(name, "/");
    if (strcmp(plain, name) == 0 && agent_config_allows(machines->units, name))
        return name;
    blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s is none of the units that machines may have here", name);
    return NULL;
}

/* Asked twice it does the same once. */
static bool act_on_unit(struct request *request, const char *name, bool *aborted, GError **error)
{
    const char *act = get_text(request, "act", error);
    const char *from = json_string_value(json_object_get(request->arguments, "from"));
    guint64 key = 0;

    if (!act)
        return false;
    if (from && !g_ascii_string_to_unsigned(from, 16, 1, G_MAXUINT64, &key, NULL))
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "from: no key in hexadecimal digits");
    for (unsigned i = 0; unit_acts[i]; i++)
        if (strcmp(act, unit_acts[i]) == 0)
            return unit_reserve(name, (enum unit_act)i, key, aborted, error);
    return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "act: '%.16s' is not known", act);
}

static bool use_unit(struct request *request, GError **error)
{
    const char *name = get_unit(request, error);
    g_autoptr(unit_t) unit = NULL;
    bool aborted;

    if (!name || !act_on_unit(request, name, &aborted, error) || !(unit = unit_look(name, error)))
        return false;
    request->answer = unit_to_json(unit);
    json_object_set_new(request->answer, "aborted", json_boolean(aborted));
    return true;
}

/* For who may do as much by libvirt's own means. */
static bool ask_leader(struct request *request, const char *act, json_t *arguments, GError **error)
{
    if (find_machines(request, error))
        request->answer = lead_ask(act, json_incref(arguments), error);
    return request->answer != NULL;
}

static bool begin_migration(struct request *request, GError **error)
{
    return ask_leader(request, "begin", request->arguments, error);
}

static bool reach_agent(struct request *request, GError **error)
{
    return ask_leader(request, "reach", request->arguments, error);
}

static bool ask_about_migration(struct request *request, const char *act, uint64_t offset, GError **error)
{
    json_t *arguments = json_pack("{s:s, s:I}", "id", request->parts[0], "offset", (json_int_t)offset);
    bool ok = ask_leader(request, act, arguments, error);

    json_decref(arguments);
    return ok;
}

static bool look_at_migration(struct request *request, GError **error)
{
    uint64_t offset;

    return get_number(request, "offset", &offset, error) &&
           ask_about_migration(request, "look", offset, error);
}

static bool stop_migration(struct request *request, GError **error)
{
    return ask_about_migration(request, "stop", 0, error);
}

static bool open_tunnel(struct request *request, GError **error)
{
    const struct agent_machines *machines = find_machines(request, error);

    request->tunnel =
        machines ? tunnel_open(machines, request->parts[0], request->parts[1], request->caller.peer, error)
                 : NULL;
    return request->tunnel != NULL;
}

/* Where they would go to is nobody's business here. */
static bool carry_frame(void *opaque, const struct frame *frame, const uint8_t *content, GError **error)
{
    const struct request *request = opaque;

    return content ? tunnel_write(request->tunnel, content, frame->length, error)
                   : blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "a frame without data in a tunnel");
}

/* All of the body went there while it came. */
static bool fill_tunnel(struct request *request, GError **error)
{
    if (request->parser && !frame_parser_end(request->parser, error))
        return false;
    tunnel_finish(request->tunnel);
    request->answer = json_object();
    return true;
}

/* ---- files -------------------------------------------------------------------------------------- */

static bool look_at_file(struct request *request, GError **error)
{
    static const char *const kinds[] = {"none", "file", "directory", "other"};
    struct name_info info;

    if (!datastore_look(request->datastore, request->parts[1] ? request->parts[1] : "", &info, error))
        return false;
    request->answer =
        json_pack("{s:s, s:I, s:I, s:b, s:s}", "kind", kinds[info.kind], "size", (json_int_t)info.size,
                  "allocated", (json_int_t)info.allocated, "single", info.single, "identity", info.identity);
    return true;
}

static bool remove_file(struct request *request, GError **error)
{
    request->answer = json_object();
    return datastore_remove(request->datastore, request->parts[1], error);
}

static bool rename_file(struct request *request, GError **error)
{
    const char *to = get_text(request, "rename", error);
    const char *replaces = json_string_value(json_object_get(request->arguments, "replaces"));
    bool taken = false;

    if (!to || !datastore_rename(request->datastore, request->parts[1], to, replaces, &taken, error))
        return false;
    request->answer = json_pack("{s:b}", "taken", taken);
    return true;
}

/* ---- handles ------------------------------------------------------------------------------------ */

static bool flags_of_mode(const char *mode, unsigned *flags, GError **error)
{
    static const struct {
        const char *name;
        unsigned flags;
    } modes[] = {
        {"read", 0},
        {"look", FILE_NO_LOCK},
        {"write", FILE_WRITE},
        {"create", FILE_WRITE | FILE_CREATE},
        {"mend", FILE_WRITE | FILE_NO_LOCK},
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(modes); i++) {
        if (strcmp(mode, modes[i].name) == 0) {
            *flags = modes[i].flags;
            return true;
        }
    }
    return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "mode: '%s' is none of read, look, write, create, mend",
                         mode);
}

static json_t *describe_handle(const struct handle *handle)
{
    const struct storage *storage = handle->storage;

    return json_pack("{s:s, s:I, s:I, s:s, s:s, s:b, s:b, s:b, s:b, s:b}", "handle", handle->id, "size",
                     (json_int_t)storage->size, "allocated",
                     (json_int_t)storage_file_allocated(handle->storage), "identity", storage->identity,
                     "boot", host_boot_id(), "writable", storage->writable, "reads_zero", storage->reads_zero,
                     "lockable", storage_file_lockable(handle->storage), "ranges", true, "signature", true);
}

static bool tell_handle(struct request *request, GError **error)
{
    request->answer = describe_handle(request->handle);
    return true;
}

/* The number that the client wants; *id NULL: any. */
static bool get_id(struct request *request, const char **id, GError **error)
{
    *id = json_string_value(json_object_get(request->arguments, "handle"));
    return !*id || agent_is_id(*id) ||
           blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "handle: not %u hexadecimal digits", AGENT_ID_LENGTH);
}

/* A client that got no answer asks again, with the same number: it has what it had opened. */
static bool was_opened(struct request *request, const char *id)
{
    request->handle = id ? handle_find(request->caller.handles, id, request->caller.peer, NULL) : NULL;
    if (request->handle && strcmp(request->handle->session, request->caller.session) != 0)
        g_clear_pointer(&request->handle, handle_unref);
    return request->handle != NULL;
}

static bool open_handle(struct request *request, GError **error)
{
    const char *id;
    const char *name = get_text(request, "datastore", error),
               *path = name ? get_text(request, "path", error) : NULL;
    const char *mode = path ? get_text(request, "mode", error) : NULL;
    const struct agent_datastore *datastore;
    struct storage *storage;
    uint64_t linger = 0;
    unsigned flags = 0;

    get_number(request, "linger", &linger, NULL);
    if (!mode || !flags_of_mode(mode, &flags, error) || !get_id(request, &id, error))
        return false;
    if (was_opened(request, id))
        return tell_handle(request, error);
    /* Under a hypervisor's nose: for who may have that hypervisor anyway. */
    if ((flags & FILE_WRITE) && (flags & FILE_NO_LOCK) && !find_machines(request, error))
        return false;
    if (!(datastore = find_datastore(request, name, flags & FILE_WRITE, error)) ||
        !(storage = datastore_open(datastore, path, flags, error)))
        return false;
    request->handle = handle_add(request->caller.handles, request->caller.peer, request->caller.session,
                                 storage, id, MIN(linger, HANDLE_MAX_LINGER), error);
    return request->handle && tell_handle(request, error);
}

static bool close_handle(struct request *request, GError **error)
{
    handle_close(request->caller.handles, request->handle);
    g_clear_pointer(&request->handle, handle_unref); /* its locks are gone before the answer comes */
    request->answer = json_object();
    return true;
}

/* ---- bulk data ---------------------------------------------------------------------------------- */

/* Only whole pages directly: parts of one may come from several connections. */
bool write_content(struct storage *storage, const struct frame *frame, const uint8_t *content, GError **error)
{
    struct split split =
        split_range(storage, content, frame->length, frame->offset, MAX(PAGE, storage->alignment));
    uint64_t offset = frame->offset;

    return storage_pwrite(storage, content, split.head, offset, error) &&
           direct_write(storage, content + split.head, split.middle, offset + split.head, error) &&
           storage_pwrite(storage, content + split.head + split.middle, split.tail,
                          offset + split.head + split.middle, error);
}

static bool take_same(struct request *request, const struct frame *frame, GError **error)
{
    bool same = false;

    if (!request->same)
        request->same = g_string_new(NULL);
    if (request->same->len == MAX_CHUNKS)
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "more than %u frames of that kind", MAX_CHUNKS);
    if (!seed_take(&request->caller, request->handle->storage, frame, &same, &request->seed_gone, error))
        return false;
    g_string_append_c(request->same, same ? '1' : '0');
    return true;
}

static bool take_frame(void *opaque, const struct frame *frame, const uint8_t *content, GError **error)
{
    struct request *request = opaque;
    struct storage *storage = request->handle->storage;

    request->frames++;
    request->bytes += frame->length;
    if (!storage->writable)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "the file was opened to be read");
    if (frame->kind == FRAME_SAME)
        return take_same(request, frame, error);
    return content ? write_content(storage, frame, content, error)
                   : storage_zero(storage, frame->offset, frame->length, true, error);
}

static bool write_extents(struct request *request, GError **error)
{
    if (!frame_parser_end(request->parser, error))
        return false;
    request->answer =
        json_pack("{s:I, s:I}", "frames", (json_int_t)request->frames, "bytes", (json_int_t)request->bytes);
    if (request->same)
        json_object_set_new(request->answer, "same", json_string(request->same->str));
    if (request->seed_gone)
        json_object_set_new(request->answer, "gone", json_true());
    return true;
}

/* As O_DIRECT wants it; for free(). */
static uint8_t *new_buffer(size_t length, GError **error)
{
    uint8_t *buffer = NULL;

    if (posix_memalign((void **)&buffer, PAGE, length) == 0)
        return buffer;
    blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "no memory for %zu bytes", length);
    return NULL;
}

static bool read_extents(struct request *request, GError **error)
{
    struct storage *storage = request->handle->storage;
    int level = get_level(request);
    uint64_t offset, length;
    uint8_t *buffer;
    bool ok = true;

    if (!get_range(request, MAX_READ, &offset, &length, error) || !(buffer = new_buffer(STEP, error)))
        return false;
    request->octets = g_byte_array_sized_new((guint)(length + FRAME_HEADER * (length / STEP + 2)));
    for (uint64_t end = offset + length, piece; ok && offset < end; offset += piece) {
        piece = MIN(STEP - offset % STEP, end - offset);
        ok = direct_fits(storage, buffer, piece, offset)
                 ? direct_read(storage, buffer, piece, offset, false, error)
                 : storage_pread(storage, buffer, piece, offset, error);
        if (ok && is_zero(buffer, piece))
            frame_put_zero(request->octets, offset, piece);
        else if (ok)
            frame_put_data(request->octets, offset, buffer, piece, level);
    }
    free(buffer);
    return ok;
}

static bool read_medium(struct storage *storage, void *buffer, size_t length, uint64_t offset, GError **error)
{
    return direct_read(storage, buffer, length, offset, true, error);
}

/* Of the medium; with "cached=1" of what this host's programs see, a hypervisor's page cache included. */
static bool read_range(const char *text, uint64_t *offset, uint64_t *length, GError **error)
{
    g_auto(GStrv) parts = g_strsplit(text, ":", 2);

    return (g_strv_length(parts) == 2 &&
            g_ascii_string_to_unsigned(parts[0], 10, 0, INT64_MAX - FRAME_CONTENT, offset, NULL) &&
            g_ascii_string_to_unsigned(parts[1], 10, 1, FRAME_CONTENT, length, NULL)) ||
           blockmig_fail(error, BLOCKMIG_ERROR_USAGE,
                         "ranges: '%s' is not OFFSET:LENGTH, of at most %u bytes", text, FRAME_CONTENT);
}

/* Of each range the digest, past every cache. */
static bool send_digests_of(struct request *request, const char *list, GError **error)
{
    g_auto(GStrv) ranges = g_strsplit(list, ",", MAX_DIGEST_RANGES + 1);
    unsigned count = g_strv_length(ranges);

    if (count > MAX_DIGEST_RANGES)
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "ranges: more than %u", MAX_DIGEST_RANGES);
    request->octets = g_byte_array_new();
    g_byte_array_set_size(request->octets, count * FRAME_DIGEST);
    for (unsigned i = 0; i < count; i++) {
        uint64_t offset, length;

        if (!read_range(ranges[i], &offset, &length, error) ||
            !storage_digests_by(request->handle->storage, read_medium, offset, length, (uint32_t)length,
                                request->octets->data + i * FRAME_DIGEST, error))
            return false;
    }
    return true;
}

static bool send_digests(struct request *request, GError **error)
{
    const char *cached = MHD_lookup_connection_value(request->connection, MHD_GET_ARGUMENT_KIND, "cached");
    const char *ranges = MHD_lookup_connection_value(request->connection, MHD_GET_ARGUMENT_KIND, "ranges");
    uint64_t offset, length, chunk;

    if (ranges)
        return send_digests_of(request, ranges, error);
    if (!get_range(request, MAX_PROVED, &offset, &length, error) ||
        !get_number(request, "chunk", &chunk, error))
        return false;
    if (chunk == 0 || chunk > FRAME_CONTENT || length / chunk > MAX_CHUNKS)
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE,
                             "chunk: %" G_GUINT64_FORMAT " bytes are not possible", chunk);
    request->octets = g_byte_array_new();
    g_byte_array_set_size(request->octets, (guint)((length + chunk - 1) / chunk * FRAME_DIGEST));
    return storage_digests_by(request->handle->storage,
                              g_strcmp0(cached, "1") == 0 ? storage_pread : read_medium, offset, length,
                              (uint32_t)chunk, request->octets->data, error);
}

static bool send_signature(struct request *request, GError **error)
{
    uint64_t offset, length, block;

    if (!get_range(request, SHIFT_PART, &offset, &length, error) ||
        !get_number(request, "block", &block, error))
        return false;
    if (block < SHIFT_SMALLEST || block > SHIFT_BLOCK_MOST)
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "block: %u to %u bytes are possible",
                             SHIFT_SMALLEST, SHIFT_BLOCK_MOST);
    request->octets = shift_signature(request->handle->storage, offset, length, (uint32_t)block, error);
    return request->octets != NULL;
}

static bool send_status(struct request *request, GError **error)
{
    json_t *ranges = request->answer = json_array();
    uint64_t offset, length, run;
    bool data;
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&request->handle->alone);

    if (!get_range(request, INT64_MAX, &offset, &length, error))
        return false;
    for (; length > 0 && json_array_size(ranges) < MAX_RANGES; offset += run, length -= run) {
        if (!storage_status(request->handle->storage, offset, length, &data, &run, error))
            return false;
        json_array_append_new(ranges, json_pack("[I, b]", (json_int_t)run, data));
    }
    return true;
}

static bool flush_handle(struct request *request, GError **error)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&request->handle->alone);

    request->answer = json_object();
    return storage_flush(request->handle->storage, error);
}

static bool resize_handle(struct request *request, GError **error)
{
    uint64_t size;
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&request->handle->alone);

    if (!get_number(request, "size", &size, error) || !storage_resize(request->handle->storage, size, error))
        return false;
    request->answer = describe_handle(request->handle);
    return true;
}

static bool zero_range(struct request *request, GError **error)
{
    bool may_unmap = json_is_true(json_object_get(request->arguments, "unmap"));
    uint64_t offset, length;

    request->answer = json_object();
    return get_range(request, INT64_MAX, &offset, &length, error) &&
           storage_zero(request->handle->storage, offset, length, may_unmap, error);
}

static bool discard_range(struct request *request, GError **error)
{
    uint64_t offset, length;

    request->answer = json_object();
    return get_range(request, INT64_MAX, &offset, &length, error) &&
           storage_discard(request->handle->storage, offset, length, error);
}

static bool allocate_range(struct request *request, GError **error)
{
    uint64_t offset, length;
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&request->handle->alone);

    request->answer = json_object();
    return get_range(request, INT64_MAX, &offset, &length, error) &&
           storage_allocate(request->handle->storage, offset, length, error);
}

/* ---- the table ---------------------------------------------------------------------------------- */

static const struct route routes[] = {
    {"GET", "/v1", BODY_NONE, false, tell_agent},
    {"GET", "/v1/datastores/*", BODY_NONE, false, tell_datastore},
    {"GET", "/v1/datastores/*/files", BODY_NONE, false, look_at_file},
    {"GET", "/v1/datastores/*/files/**", BODY_NONE, false, look_at_file},
    {"DELETE", "/v1/datastores/*/files/**", BODY_NONE, true, remove_file},
    {"POST", "/v1/datastores/*/files/**", BODY_JSON, true, rename_file},
    {"GET", "/v1/machines", BODY_NONE, false, tell_machines},
    {"POST", "/v1/machines/units", BODY_JSON, false, use_unit},
    {"POST", "/v1/machines/reach", BODY_JSON, false, reach_agent},
    {"POST", "/v1/machines/migrations", BODY_JSON, false, begin_migration},
    {"GET", "/v1/machines/migrations/*", BODY_NONE, false, look_at_migration},
    {"DELETE", "/v1/machines/migrations/*", BODY_NONE, false, stop_migration},
    {"GET", "/v1/tunnels/*/**", BODY_NONE, false, open_tunnel},
    {"POST", "/v1/tunnels/*/**", BODY_STREAM, false, fill_tunnel},
    {"POST", "/v1/framed-tunnels/*/**", BODY_STREAM_OF_FRAMES, false, fill_tunnel},
    {"POST", "/v1/handles", BODY_JSON, false, open_handle},
    {"GET", "/v1/handles/*", BODY_NONE, false, tell_handle},
    {"DELETE", "/v1/handles/*", BODY_NONE, false, close_handle},
    {"GET", "/v1/handles/*/extents", BODY_NONE, false, read_extents},
    {"POST", "/v1/handles/*/extents", BODY_FRAMES, false, write_extents},
    {"GET", "/v1/handles/*/digests", BODY_NONE, false, send_digests},
    {"GET", "/v1/handles/*/signature", BODY_NONE, false, send_signature},
    {"GET", "/v1/handles/*/status", BODY_NONE, false, send_status},
    {"POST", "/v1/handles/*/flush", BODY_JSON, false, flush_handle},
    {"POST", "/v1/handles/*/resize", BODY_JSON, false, resize_handle},
    {"POST", "/v1/handles/*/zero", BODY_JSON, false, zero_range},
    {"POST", "/v1/handles/*/discard", BODY_JSON, false, discard_range},
    {"POST", "/v1/handles/*/allocate", BODY_JSON, false, allocate_range},
};

/* Fills `parts` with what stands for * and **; the caller's. */
static bool fits(const char *path, const char *url, char **parts)
{
    unsigned found = 0;

    while (*path && *path != '*' && *path == *url)
        path++, url++;
    if (*path == '*' && path[1] != '*') {
        size_t length = strcspn(url, "/");

        parts[found++] = g_strndup(url, length);
        for (path++, url += length; *path && *path != '*' && *path == *url; path++)
            url++;
    }
    if (strcmp(path, "**") == 0) {
        parts[found] = g_strdup(url);
        return *url != '\0';
    }
    return *path == '\0' && *url == '\0';
}

static void forget_parts(struct request *request)
{
    g_clear_pointer(&request->parts[0], g_free);
    g_clear_pointer(&request->parts[1], g_free);
}

static const struct route *find_route(struct request *request, const char *method, const char *url,
                                      GError **error)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(routes); i++) {
        if (strcmp(routes[i].method, method) == 0 && fits(routes[i].path, url, request->parts))
            return &routes[i];
        forget_parts(request);
    }
    blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "%.16s %.200s: nothing of that kind is served", method, url);
    return NULL;
}

/* What the path names is there, and may be used. */
static bool prepare(struct request *request, const char *method, const char *url, GError **error)
{
    request->route = find_route(request, method, url, error);
    if (!request->route)
        return false;
    if (g_str_has_prefix(request->route->path, "/v1/datastores/"))
        request->datastore = find_datastore(request, request->parts[0], request->route->writes, error);
    else if (g_str_has_prefix(request->route->path, "/v1/handles/"))
        request->handle =
            handle_find(request->caller.handles, request->parts[0], request->caller.peer, error);
    else if (request->route->run == fill_tunnel)
        request->tunnel = find_machines(request, error)
                              ? tunnel_find(request->parts[1], request->caller.peer, error)
                              : NULL;
    if (request->error)
        return false;
    if (request->route->body == BODY_FRAMES)
        request->parser = frame_parser_new(take_frame, request);
    else if (request->route->body == BODY_STREAM_OF_FRAMES)
        request->parser = frame_parser_new(carry_frame, request);
    return true;
}

struct request *request_new(const struct caller *caller, const char *method, const char *url)
{
    struct request *request = g_new0(struct request, 1);

    request->caller = *caller;
    agent_config_ref(caller->config);
    request->body = g_byte_array_new();
    prepare(request, method, url, &request->error);
    return request;
}

struct request *request_new_refused(unsigned status, GError *error)
{
    struct request *request = g_new0(struct request, 1);

    request->body = g_byte_array_new();
    request->refused = status;
    request->error = error;
    return request;
}

bool request_has_no_end(const struct request *request)
{
    return request->route && (request->route->run == open_tunnel || request->route->run == fill_tunnel);
}

void request_free(struct request *request)
{
    if (!request)
        return;
    forget_parts(request);
    agent_config_unref(request->caller.config);
    handle_unref(request->handle);
    if (request->tunnel)
        tunnel_finish(request->tunnel); /* the client may be gone */
    tunnel_unref(request->tunnel);
    g_byte_array_unref(request->body);
    frame_parser_free(request->parser);
    json_decref(request->arguments);
    g_clear_error(&request->error);
    json_decref(request->answer);
    g_clear_pointer(&request->octets, g_byte_array_unref);
    if (request->same)
        g_string_free(request->same, TRUE);
    g_free(request);
}

/* After an error the rest is swallowed, so that the answer reaches who is still sending. */
void request_feed(struct request *request, const void *data, size_t length)
{
    if (request->error)
        return;
    if (request->parser)
        frame_parser_feed(request->parser, data, length, &request->error);
    else if (request->tunnel)
        tunnel_write(request->tunnel, data, length, &request->error);
    else if (request->body->len + length > MAX_JSON)
        blockmig_fail(&request->error, BLOCKMIG_ERROR_USAGE, "a body of more than %u bytes", MAX_JSON);
    else
        g_byte_array_append(request->body, data, (guint)length);
    if (request->tunnel && request->error)
        tunnel_finish(request->tunnel); /* nobody waits for what does not come */
}

static bool read_arguments(struct request *request, GError **error)
{
    json_error_t reason;

    if (request->route->body != BODY_JSON || request->body->len == 0)
        return true;
    request->arguments =
        json_loadb((const char *)request->body->data, request->body->len, JSON_REJECT_DUPLICATES, &reason);
    return json_is_object(request->arguments) ||
           blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "the body is not an object of JSON: %s",
                         request->arguments ? "something else" : reason.text);
}

/* ---- answers ------------------------------------------------------------------------------------ */

static struct MHD_Response *answer_json(json_t *object)
{
    char *text = json_dumps(object, JSON_COMPACT);
    struct MHD_Response *response =
        MHD_create_response_from_buffer(strlen(text), text, MHD_RESPMEM_MUST_FREE);

    MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, "application/json");
    return response;
}

struct MHD_Response *answer_error(const GError *error, unsigned *status)
{
    static const struct {
        int code;
        unsigned status;
        const char *name;
    } rows[] = {
        {BLOCKMIG_ERROR_USAGE, MHD_HTTP_BAD_REQUEST, "usage"},
        {BLOCKMIG_ERROR_REFUSED, MHD_HTTP_CONFLICT, "refused"},
        {BLOCKMIG_ERROR_UNREACHABLE, MHD_HTTP_NOT_FOUND, "gone"},
        {BLOCKMIG_ERROR_DIFFERENT, MHD_HTTP_UNPROCESSABLE_CONTENT, "different"},
        {BLOCKMIG_ERROR_NOSPACE, MHD_HTTP_INSUFFICIENT_STORAGE, "nospace"},
        {BLOCKMIG_ERROR_IO, MHD_HTTP_INTERNAL_SERVER_ERROR, "io"},
    };
    const char *name = "failed";
    json_t *object;
    struct MHD_Response *response;

    *status = MHD_HTTP_INTERNAL_SERVER_ERROR;
    for (unsigned i = 0; i < G_N_ELEMENTS(rows); i++) {
        if (rows[i].code == error->code) {
            *status = rows[i].status;
            name = rows[i].name;
        }
    }
    object = json_pack("{s:s, s:s}", "error", error->message, "code", name);
    response = answer_json(object);
    json_decref(object);
    return response;
}

/* Not now, and over another connection. */
static struct MHD_Response *answer_later(const GError *error, unsigned refused, unsigned *status)
{
    struct MHD_Response *response = answer_error(error, status);

    *status = refused;
    MHD_add_response_header(response, MHD_HTTP_HEADER_RETRY_AFTER, COME_BACK_IN);
    if (refused == MHD_HTTP_SERVICE_UNAVAILABLE)
        MHD_add_response_header(response, MHD_HTTP_HEADER_CONNECTION, "close");
    return response;
}

static struct MHD_Response *answer_octets(GByteArray *octets)
{
    gsize length = octets->len;
    uint8_t *data = g_byte_array_free(octets, FALSE);
    struct MHD_Response *response = MHD_create_response_from_buffer_with_free_callback(length, data, g_free);

    MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, "application/octet-stream");
    return response;
}

struct MHD_Response *request_answer(struct request *request, struct MHD_Connection *connection,
                                    unsigned *status)
{
    GError *error = g_steal_pointer(&request->error);
    struct MHD_Response *response;

    request->connection = connection;
    if (!error && read_arguments(request, &error))
        request->route->run(request, &error);
    if (error) {
        response =
            request->refused ? answer_later(error, request->refused, status) : answer_error(error, status);
        g_error_free(error);
        return response;
    }
    *status = MHD_HTTP_OK;
    if (request->route->run == open_tunnel)
        return tunnel_answer(g_steal_pointer(&request->tunnel));
    return request->octets ? answer_octets(g_steal_pointer(&request->octets)) : answer_json(request->answer);
}
