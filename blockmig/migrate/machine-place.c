/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Where a machine goes: the host, its libvirt, and the directory for its disks. */
#include "blockmig/migrate/machine-look.h"
#include "blockmig/migrate/machine.h"
#include "blockmig/storage/agent-client.h"
#include "blockmig/storage/names.h"
#include "blockmig/storage/tpm.h"
#include "blockmig/storage/uri.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/stat.h>

/* ---- the agent of another host -------------------------------------------------------------------- */

/* "blockmig://HOST" alone leaves the datastore to us. */
static char *with_datastore(const char *uri, const char *datastore)
{
    const char *rest = strstr(uri, "://") + strlen("://"), *slash = strchr(rest, '/');

    if (slash && slash[1])
        return g_strdup(uri);
    return g_strdup_printf("%.*s/%s", (int)(slash ? slash - uri : (gssize)strlen(uri)), uri, datastore);
}

/* Another datastore of the same agent. */
static char *beside(const char *uri, const char *datastore)
{
    const char *host = strstr(uri, "://") + strlen("://");

    return g_strdup_printf("%.*s/%s", (int)(strchrnul(host, '/') - uri), uri, datastore);
}

/* The one that is named, or the only one. */
static const char *choose_datastore(const json_t *datastores, const char *uri, const char *named,
                                    GError **error)
{
    g_autoptr(GString) names = g_string_new(NULL);
    const char *name, *only = NULL;
    json_t *directory;

    if (*named) {
        if (!json_object_get(datastores, named))
            blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s: there is no datastore '%s' that may be written",
                          uri, named);
        return json_object_get(datastores, named) ? named : NULL;
    }
    json_object_foreach((json_t *)datastores, name, directory)
    {
        g_string_append_printf(names, "%s%s", names->len ? ", " : "", name);
        only = name;
    }
    if (json_object_size(datastores) == 1)
        return only;
    blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s: a datastore must be named: %s", uri,
                  names->len ? names->str : "there is none");
    return NULL;
}

static void add_places(struct machine_job *job, const json_t *datastores, const char *uri)
{
    const char *name;
    json_t *directory;

    json_object_foreach((json_t *)datastores, name, directory)
    {
        g_autofree char *prefix = beside(uri, name);

        json_object_set(job->places, prefix, directory);
    }
}

char *machine_name_there(const struct machine_job *job, const char *path)
{
    const char *prefix, *best = NULL, *rest = NULL;
    json_t *value;

    json_object_foreach(job->places, prefix, value)
    {
        const char *directory = json_string_value(value);
        size_t length = directory ? strlen(directory) : 0;

        if (length == 0 || strncmp(path, directory, length) != 0 || path[length] != '/' ||
            (rest && path + length < rest))
            continue;
        best = prefix;
        rest = path + length;
    }
    return best ? g_strconcat(best, rest, NULL) : NULL;
}

static bool use_datastore(struct machine_job *job, const json_t *answer, const char *uri, const char *named,
                          const char *path, GError **error)
{
    const json_t *datastores = json_object_get(answer, "datastores");
    const char *sockets = json_string_value(json_object_get(answer, "directory"));
    const char *datastore = choose_datastore(datastores, uri, named, error);
    const char *directory;

    if (!datastore)
        return false;
    directory = json_string_value(json_object_get(datastores, datastore));
    if (!sockets || !directory || *sockets != '/' || *directory != '/')
        return blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "%s: the agent's answer is incomplete", uri);
    job->places = json_object();
    add_places(job, datastores, uri);
    add_places(job, json_object_get(answer, "read_only"), uri);
    job->sockets = g_strdup(sockets);
    job->prefix = with_datastore(uri, datastore);
    g_strchomp(job->prefix);
    while (g_str_has_suffix(job->prefix, "/"))
        job->prefix[strlen(job->prefix) - 1] = '\0';
    job->tpms_path = g_strdup(json_string_value(json_object_get(answer, "tpm")));
    job->tpms = job->tpms_path ? beside(uri, TPM_DATASTORE) : NULL;
    job->directory = *path ? g_build_filename(directory, path, NULL) : g_strdup(directory);
    return true;
}

static bool ask_agent(struct machine_job *job, GError **error)
{
    const char *uri = job->request->target;
    g_autofree char *complete = with_datastore(uri, "-");
    g_auto(agent_address_t) address = {NULL};
    json_t *answer;
    bool ok;

    if (!agent_address_parse(complete, &address, error) || !(job->agent = agent_client_get(&address, error)))
        return false;
    answer = agent_ask_json(job->agent, "GET", "/v1/machines", NULL, NULL, error);
    if (!answer) {
        /* One that does not know what is asked is no mistake of the command's. */
        if (g_error_matches(*error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE))
            (*error)->code = BLOCKMIG_ERROR_REFUSED;
        g_prefix_error(error, "%s: ", uri);
        return false;
    }
    ok = use_datastore(job, answer, uri, strcmp(address.datastore, "-") == 0 ? "" : address.datastore,
                       address.path, error);
    json_decref(answer);
    return ok;
}

/* Its own directory here, with the same name as there: hypervisors on both sides are given one path. */
static bool open_libvirt_there(struct machine_job *job, GError **error)
{
    g_autofree char *name = NULL, *path = NULL, *uri = NULL, *trouble = NULL;

    if (g_mkdir_with_parents(job->sockets, 0700) < 0)
        return blockmig_set_errno(error, errno, "%s, for sockets", job->sockets);
    job->id = agent_new_id();
    name = g_strconcat(job->id, "-libvirt", NULL);
    path = g_build_filename(job->sockets, name, NULL);
    uri = g_strconcat("qemu+unix:///system?socket=", path, NULL);
    if (!(job->libvirt = relay_open(job->agent, "libvirt", path, false, error)))
        return false;
    job->there = domain_host_open(uri, job->request->target, error);
    if (job->there)
        return true;
    trouble = relay_trouble(job->libvirt);
    if (trouble) {
        g_clear_error(error);
        blockmig_fail(error, BLOCKMIG_ERROR_UNREACHABLE, "%s: %s", job->request->target, trouble);
    }
    return false;
}

static bool check_other_host(struct machine_job *job, GError **error)
{
    g_autofree char *here = domain_host_identity(job->here, error);
    g_autofree char *there = here ? domain_host_identity(job->there, error) : NULL;

    return there &&
           (strcmp(here, there) != 0 ||
            blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s is this host: 'blockmig move' moves disks on it",
                          job->request->target));
}

/* ---- this host ----------------------------------------------------------------------------------- */

static bool use_directory(struct machine_job *job, GError **error)
{
    if (storage_name_is_uri(job->request->target))
        return blockmig_fail(
            error, BLOCKMIG_ERROR_REFUSED,
            "%s: disks of a domain are moved into directories; 'blockmig migrate' brings the "
            "machine to another host",
            job->request->target);
    if (!g_file_test(job->request->target, G_FILE_TEST_IS_DIR))
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s: there is no such directory",
                             job->request->target);
    if (g_access(job->request->target, W_OK) < 0)
        return blockmig_set_errno(error, errno, "%s", job->request->target);
    job->directory = storage_absolute_name(job->request->target);
    job->prefix = g_strdup(job->directory);
    job->there = job->here;
    return true;
}

bool machine_find_hosts(struct machine_job *job, GError **error)
{
    job->here = domain_host_open(job->request->connection, "this host", error);
    if (!job->here)
        return false;
    if (!job->across)
        return use_directory(job, error);
    return ask_agent(job, error) && open_libvirt_there(job, error) && check_other_host(job, error);
}

/* ---- do both see the same files? ------------------------------------------------------------------ */

/* A file that is made there under a name that nobody guesses is seen here, or not. */
bool machine_sees(const char *directory, const char *prefix, bool *seen, GError **error)
{
    g_autofree char *base = name_new_probe();
    g_autofree char *name = g_strconcat(prefix, "/", base, NULL);
    g_autofree char *here = g_build_filename(directory, base, NULL);
    struct storage *probe = storage_open(name, FILE_WRITE | FILE_CREATE, NULL, NULL, error);

    if (!probe)
        return false;
    *seen = g_file_test(here, G_FILE_TEST_EXISTS);
    storage_close(probe);
    return name_remove(name, error);
}

bool machine_is_shared(struct machine_job *job, const char *path, bool *shared, GError **error)
{
    g_autofree char *directory = g_path_get_dirname(path);

    *shared = false;
    return !job->across || strcmp(directory, job->directory) != 0 ||
           machine_sees(directory, job->prefix, shared, error);
}
