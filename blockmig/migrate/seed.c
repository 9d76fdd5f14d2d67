/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A seed: an older copy of the disk in a datastore of the target's agent.
 *
 * Nothing of it is believed: where its map is wrong, or its bytes are not those of the source any more, they
 * are sent.  So it is not locked, and a machine may use it.  Of a chain it is the file that was named.
 */
#include "blockmig/migrate/cold.h"
#include "blockmig/storage/agent-client.h"
#include "blockmig/storage/agent-storage.h"
#include "blockmig/storage/file.h"
#include "blockmig/storage/foreign.h"
#include "blockmig/storage/names.h"
#include "blockmig/storage/shift.h"
#include "blockmig/storage/uri.h"

#include <string.h>

/* "disk.qcow2", a file of the target's datastore, as a URI; the caller's. */
static char *full_name(const char *target, const char *seed)
{
    const char *host = strstr(target, "://") + strlen("://");
    const char *datastore = strchr(host, '/'), *end = datastore ? strchrnul(datastore + 1, '/') : NULL;

    if (storage_name_is_uri(seed) || !datastore)
        return g_strdup(seed);
    return g_strdup_printf("%.*s/%s", (int)(end - target), target, seed + strspn(seed, "/"));
}

/* Only the agent that writes can read it without sending it. */
static bool is_there(const char *target, const char *seed, GError **error)
{
    g_auto(agent_address_t) one = {NULL}, other = {NULL};

    if (!name_has_files(seed))
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "--seed: %s is not a file of an agent", seed);
    if (!agent_address_parse(target, &one, error) || !agent_address_parse(seed, &other, error))
        return false;
    return strcmp(one.authority, other.authority) == 0 ||
           blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "--seed: %s is not on the target's host, %s", seed,
                         one.authority);
}

bool cold_open_seed(struct cold_job *job, GError **error)
{
    const struct copy_request *request = job->request;
    struct chain_policy policy = {.top_only = true, .data = true};
    g_autofree char *name = NULL;

    if (!request->seed)
        return true;
    if (!storage_name_is_uri(request->target) || !name_has_files(request->target))
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE,
                             "--seed spares what is sent to an agent, and %s is none", request->target);
    name = full_name(request->target, request->seed);
    if (!is_there(request->target, name, error))
        return false;
    job->seed = source_open(name, NULL, NULL, FILE_NO_LOCK, &policy, error);
    if (!job->seed)
        g_prefix_error(error, "--seed: ");
    return job->seed != NULL;
}

bool cold_seed_shifts(const struct cold_job *job, const struct copy_unit *unit)
{
    const struct image *seed = job->seed ? chain_layer(job->seed, 0) : NULL;

    return seed && seed->identity && unit->format->flags & FORMAT_IDENTITY &&
           seed->size != unit->chain->size && MAX(seed->size, unit->chain->size) <= SHIFT_LARGEST;
}

static void tell_unshifted(const struct cold_job *job, const char *name, const GError *why)
{
    job_notice(&job->base, "%s: what has moved in it is sent: %s", name, why->message);
}

bool cold_shift_seed(struct cold_job *job, const struct copy_unit *unit, bool (*cancelled)(void *opaque),
                     void *opaque, GError **error)
{
    const char *name = job->seed ? chain_layer(job->seed, 0)->name : NULL;
    g_autoptr(storage_t) seed = NULL;
    g_autoptr(GByteArray) signature = NULL;
    g_autoptr(GError) local = NULL;
    struct chain *shifted;

    if (!cold_seed_shifts(job, unit))
        return true;
    seed = storage_open(name, FILE_NO_LOCK, NULL, NULL, &local);
    signature = seed ? storage_agent_signature(seed, &local) : NULL;
    if (!signature) {
        tell_unshifted(job, name, local);
        return true;
    }
    shifted = shift_find(unit->chain, g_steal_pointer(&seed), signature, cancelled, opaque, &local);
    if (g_error_matches(local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_CANCELLED)) {
        g_propagate_error(error, g_steal_pointer(&local));
        return false;
    }
    if (shifted) {
        chain_close(job->seed);
        job->seed = shifted;
    } else
        tell_unshifted(job, name, local);
    return true;
}
