/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tools/requests.h"

#include "blockmig/storage/agent-storage.h"
#include "formats/error.h"

#include <string.h>

enum {
    METHOD_AUTO,
    METHOD_COLD,
    METHOD_STORAGE,
    METHOD_MIRROR,
    METHOD_LIVE,
    METHOD_QUICK,
    METHOD_RESTART,
    METHOD_SAN
}; /* as in the option table */

static const char *const method_names[] = {"auto", "cold",  "storage", "mirror",
                                           "live", "quick", "restart", "san"};

#define LONGEST_PAUSE 3600000 /* ms */

/* The table of arguments ends with a NULL that does not belong to the request. */
static GPtrArray *copy_strings(char **strings)
{
    GPtrArray *copy = g_ptr_array_new_with_free_func(g_free);
    for (; *strings; strings++)
        g_ptr_array_add(copy, g_strdup(*strings));
    return copy;
}

static void set_string(char **field, const char *value)
{
    g_free(*field);
    *field = g_strdup(value);
}

static void set_strings(GPtrArray **field, const GPtrArray *value)
{
    if (*field)
        g_ptr_array_unref(*field);
    *field = copy_strings((char **)value->pdata);
}

struct copy_request *requests_copy(const struct options *options, const char *source, const char *target,
                                   GError **error)
{
    if (options->method != METHOD_AUTO && options->method != METHOD_COLD) {
        blockmig_fail(error, BLOCKMIG_ERROR_USAGE,
                      "copy: --method=%s is for machines: see blockmig move and migrate",
                      method_names[options->method]);
        return NULL;
    }
    if (options->compress && !storage_agent_choose_compression(options->compress, error))
        return NULL;
    struct copy_request *request = copy_request_new();
    set_string(&request->source, source);
    set_string(&request->target, target);
    set_string(&request->source_format, options->format);
    set_string(&request->target_format, options->target_format);
    set_string(&request->target_options, options->target_options);
    set_string(&request->secret, options->secret);
    set_string(&request->seed, options->seed);
    set_string(&request->state_dir, options->state_dir);
    set_strings(&request->parents, options->parents);
    set_strings(&request->allowed_roots, options->roots);
    request->chain = options->chain;
    request->bandwidth = options->bandwidth;
    request->verify = options->verify;
    request->digest = options->digest;
    request->compressed = options->compressed;
    request->salvage = options->salvage;
    request->delete_source = options->delete_source;
    request->force = options->force;
    request->restart = options->restart;
    return request;
}

/* What contradicts itself. */
static bool check_move(const struct options *options, const char *machine, GError **error)
{
    if (options->method == METHOD_COLD && g_str_has_prefix(machine, "qmp:"))
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE,
                             "move: --method=cold is for images that nobody uses: see blockmig copy");
    if (options->method > METHOD_MIRROR)
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE,
                             "move: --method=%s leads to another host: see blockmig migrate",
                             method_names[options->method]);
    if (options->max_pause > LONGEST_PAUSE)
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "move: --max-pause is more than an hour");
    if (options->method == METHOD_STORAGE && options->max_pause == 0)
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE,
                             "move: --method=storage needs a pause: --max-pause=0 is for --method=mirror");
    return true;
}

static void set_move_modes(struct move_request *request, const struct options *options)
{
    static const enum move_method methods[] = {
        [METHOD_AUTO] = MOVE_AUTO,       [METHOD_COLD] = MOVE_COLD, [METHOD_STORAGE] = MOVE_STORAGE,
        [METHOD_MIRROR] = MOVE_MIRROR,   [METHOD_LIVE] = MOVE_LIVE, [METHOD_QUICK] = MOVE_QUICK,
        [METHOD_RESTART] = MOVE_RESTART, [METHOD_SAN] = MOVE_SAN};

    request->method = methods[options->method];
    request->on_busy = (enum busy_policy)options->on_busy;
    request->quiesce = (enum quiesce_mode)options->quiesce;
    request->chain = (enum chain_mode)options->chain;
    request->verify = (enum verify_mode)options->verify;
    request->digest = (enum digest_algorithm)options->digest;
}

/* The journal knows machines by their names: a socket has one, from wherever it is looked at. */
static char *absolute_machine(const char *name)
{
    if (!g_str_has_prefix(name, "qmp:") || !name[strlen("qmp:")])
        return g_strdup(name);
    g_autofree char *path = g_canonicalize_filename(name + strlen("qmp:"), NULL);
    return g_strconcat("qmp:", path, NULL);
}

static struct move_request *machine_request(const struct options *options, const char *machine,
                                            const char *target)
{
    struct move_request *request = move_request_new();
    request->machine = absolute_machine(machine);
    set_string(&request->target, target);
    set_string(&request->target_format, options->target_format);
    set_string(&request->target_options, options->target_options);
    set_string(&request->scratch, options->scratch);
    set_string(&request->failback_to, options->failback_to);
    set_string(&request->connection, options->connection);
    set_string(&request->state_dir, options->state_dir);
    set_strings(&request->disks, options->disks);
    set_strings(&request->allowed_roots, options->roots);
    set_move_modes(request, options);
    request->bandwidth = options->bandwidth;
    request->delete_source = options->delete_source;
    request->force = options->force;
    request->max_pause_named = options->max_pause >= 0;
    if (request->max_pause_named)
        request->max_pause = (unsigned)options->max_pause;
    if (options->guest_share >= 0)
        request->guest_share = (unsigned)options->guest_share;
    request->keep_failback = (uint64_t)MAX(options->keep_failback, 0);
    request->sample = (unsigned)MAX(options->sample, 0);
    request->cdrom = (enum cdrom_mode)options->cdrom;
    if (options->shutdown >= 0)
        request->shutdown = (uint64_t)options->shutdown;
    return request;
}

struct move_request *requests_move(const struct options *options, const char *machine, const char *target,
                                   GError **error)
{
    return check_move(options, machine, error) ? machine_request(options, machine, target) : NULL;
}

struct move_request *requests_migrate(const struct options *options, const char *machine, const char *target,
                                      GError **error)
{
    if (g_str_has_prefix(machine, "qmp:") || strchr(machine, '/'))
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE,
                             "migrate: %s: only machines of libvirt go to another host", machine),
               NULL;
    if (!g_str_has_prefix(target, "blockmig://") && !g_str_has_prefix(target, "blockmig+unix://"))
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE,
                             "migrate: %s: blockmig://HOST[/DATASTORE] is expected", target),
               NULL;
    if (options->method == METHOD_STORAGE || options->method == METHOD_MIRROR)
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE,
                             "migrate: --method=%s stays on this host: see blockmig move",
                             method_names[options->method]),
               NULL;
    if (options->max_pause > LONGEST_PAUSE)
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "migrate: --max-pause is more than an hour"), NULL;
    if (options->max_pause == 0)
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE,
                             "migrate: --max-pause=0: no machine goes to another host without a pause"),
               NULL;
    if (options->compress && !storage_agent_choose_compression(options->compress, error))
        return NULL;
    struct move_request *request = machine_request(options, machine, target);
    request->across = true;
    return request;
}
