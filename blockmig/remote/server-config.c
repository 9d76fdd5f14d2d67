/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/remote/server-config.h"

#include "blockmig/storage/tpm.h"
#include "formats/error.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DATASTORE_GROUP "datastore "

static void datastore_free(gpointer data)
{
    struct agent_datastore *datastore = data;

    if (datastore->fd >= 0)
        close(datastore->fd);
    g_free(datastore->name);
    g_free(datastore->directory);
    g_strfreev(datastore->allow);
    g_free(datastore);
}

static void machines_free(struct agent_machines *machines)
{
    if (!machines)
        return;
    g_strfreev(machines->allow);
    g_strfreev(machines->units);
    g_free(machines->libvirt);
    g_free(machines->directory);
    g_free(machines->program);
    g_clear_pointer(&machines->tpm, datastore_free);
    g_free(machines);
}

static void config_clear(gpointer data)
{
    struct agent_config *config = data;

    g_strfreev(config->listen);
    g_free(config->socket);
    g_free(config->tls_directory);
    g_strfreev(config->allow);
    g_ptr_array_unref(config->datastores);
    machines_free(config->machines);
}

struct agent_config *agent_config_ref(struct agent_config *config)
{
    return g_atomic_rc_box_acquire(config);
}

void agent_config_unref(struct agent_config *config)
{
    if (config)
        g_atomic_rc_box_release_full(config, config_clear);
}

/* A key that is misspelt must not mean "everybody". */
static bool check_keys(GKeyFile *file, const char *group, const char *const *known, GError **error)
{
    g_auto(GStrv) keys = g_key_file_get_keys(file, group, NULL, NULL);

    for (char **key = keys; key && *key; key++)
        if (!g_strv_contains(known, *key))
            return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "[%s]: unknown key '%s'", group, *key);
    return true;
}

bool agent_datastore_reach(struct agent_datastore *datastore)
{
    char real[PATH_MAX];

    if (!realpath(datastore->directory, real))
        return false;
    g_free(datastore->directory);
    datastore->directory = g_strdup(real);
    /* With O_PATH also a confined process gets so far as to say what is wrong with it. */
    datastore->fd = access(real, R_OK | X_OK) < 0 ? -1 : open(real, O_PATH | O_DIRECTORY | O_CLOEXEC);
    return datastore->fd >= 0;
}

static bool is_plain_name(const char *name)
{
    return *name && *name != '.' && !strpbrk(name, "/?#%") && g_utf8_validate(name, -1, NULL);
}

static bool read_datastore(struct agent_config *config, GKeyFile *file, const char *group, GError **error)
{
    static const char *const known[] = {"directory", "allow", "read-only", NULL};
    struct agent_datastore *datastore = g_new0(struct agent_datastore, 1);

    datastore->fd = -1;
    datastore->name = g_strstrip(g_strdup(group + strlen(DATASTORE_GROUP)));
    g_ptr_array_add(config->datastores, datastore);
    if (!check_keys(file, group, known, error))
        return false;
    if (!is_plain_name(datastore->name))
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "[%s]: not a name for a datastore", group);
    datastore->directory = g_key_file_get_string(file, group, "directory", NULL);
    if (!datastore->directory || !g_path_is_absolute(datastore->directory))
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "[%s]: directory= wants an absolute path", group);
    datastore->allow = g_key_file_get_string_list(file, group, "allow", NULL, NULL);
    datastore->read_only = g_key_file_get_boolean(file, group, "read-only", NULL);
    return agent_datastore_reach(datastore) || blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "[%s]: %s: %s",
                                                             group, datastore->directory, g_strerror(errno));
}

static char *get_path(GKeyFile *file, const char *group, const char *key, const char *otherwise)
{
    char *path = g_key_file_get_string(file, group, key, NULL);

    if (!path)
        path = g_strdup(otherwise);
    return path;
}

/* Nobody has to have it who takes no machine with a TPM. */
static struct agent_datastore *read_tpm(GKeyFile *file, const char *group, char *const *allow)
{
    struct agent_datastore *datastore = g_new0(struct agent_datastore, 1);

    datastore->name = g_strdup(TPM_DATASTORE);
    datastore->directory = get_path(file, group, "tpm-directory", TPM_DIRECTORY);
    datastore->allow = allow ? g_strdupv((char **)allow) : g_new0(char *, 1);
    datastore->is_name = tpm_is_name;
    datastore->fd = -1;
    agent_datastore_reach(datastore);
    return datastore;
}

static bool read_machines(struct agent_config *config, GKeyFile *file, const char *group, GError **error)
{
    static const char *const known[] = {"allow",   "libvirt",       "directory", "units",
                                        "program", "tpm-directory", NULL};
    struct agent_machines *machines = config->machines = g_new0(struct agent_machines, 1);

    if (!check_keys(file, group, known, error))
        return false;
    machines->allow = g_key_file_get_string_list(file, group, "allow", NULL, NULL);
    machines->units = g_key_file_get_string_list(file, group, "units", NULL, NULL);
    machines->libvirt = get_path(file, group, "libvirt", "/run/libvirt/libvirt-sock");
    machines->directory = get_path(file, group, "directory", "/run/blockmig/machines");
    machines->program = get_path(file, group, "program", BINDIR "/blockmig");
    machines->tpm = read_tpm(file, group, machines->allow);
    return (g_path_is_absolute(machines->libvirt) && g_path_is_absolute(machines->directory) &&
            g_path_is_absolute(machines->program) && g_path_is_absolute(machines->tpm->directory)) ||
           blockmig_fail(error, BLOCKMIG_ERROR_USAGE,
                         "[%s]: libvirt=, directory=, program= and tpm-directory= want absolute paths",
                         group);
}

/* One that is not given stays what it is. */
static bool read_number(GKeyFile *file, const char *group, const char *key, unsigned most, unsigned *number,
                        GError **error)
{
    g_autofree char *text = g_key_file_get_string(file, group, key, NULL);
    guint64 found = *number;

    if (text && !g_ascii_string_to_unsigned(text, 10, 1, most, &found, NULL))
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "[%s]: %s=%s: 1 to %u are possible", group, key,
                             text, most);
    *number = (unsigned)found;
    return true;
}

/* What keeps one client from being in the way of others. */
static bool read_limits(struct agent_config *config, GKeyFile *file, GError **error)
{
    config->requests_per_second = 10000;
    config->patience = 20;
    return read_number(file, "agent", "requests-per-second", 1000000, &config->requests_per_second, error) &&
           read_number(file, "agent", "patience", 3600, &config->patience, error);
}

static bool read_agent(struct agent_config *config, GKeyFile *file, GError **error)
{
    static const char *const known[] = {
        "listen", "socket", "tls-directory", "allow", "patience", "requests-per-second", NULL};

    if (!check_keys(file, "agent", known, error) || !read_limits(config, file, error))
        return false;
    config->listen = g_key_file_get_string_list(file, "agent", "listen", NULL, NULL);
    config->socket = g_key_file_get_string(file, "agent", "socket", NULL);
    config->tls_directory = g_key_file_get_string(file, "agent", "tls-directory", NULL);
    config->allow = g_key_file_get_string_list(file, "agent", "allow", NULL, NULL);
    if (config->listen && !config->tls_directory)
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "[agent]: listen= needs tls-directory=");
    return true;
}

static bool read_groups(struct agent_config *config, GKeyFile *file, GError **error)
{
    g_auto(GStrv) groups = g_key_file_get_groups(file, NULL);

    for (char **group = groups; *group; group++) {
        if (g_str_has_prefix(*group, DATASTORE_GROUP)) {
            if (!read_datastore(config, file, *group, error))
                return false;
        } else if (strcmp(*group, "machines") == 0) {
            if (!read_machines(config, file, *group, error))
                return false;
        } else if (strcmp(*group, "agent") != 0) {
            return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "[%s]: unknown group", *group);
        }
    }
    return read_agent(config, file, error);
}

struct agent_config *agent_config_read(const char *path, GError **error)
{
    g_autoptr(GKeyFile) file = g_key_file_new();
    g_autoptr(agent_config_t) config = g_atomic_rc_box_new0(struct agent_config);
    g_autoptr(GError) reason = NULL;

    config->datastores = g_ptr_array_new_with_free_func(datastore_free);
    if (!g_key_file_load_from_file(file, path, G_KEY_FILE_NONE, &reason)) {
        blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "%s: %s", path, reason->message);
        return NULL;
    }
    if (!read_groups(config, file, error)) {
        g_prefix_error(error, "%s: ", path);
        return NULL;
    }
    return g_steal_pointer(&config);
}

const struct agent_datastore *agent_config_datastore(const struct agent_config *config, const char *name)
{
    for (guint i = 0; i < config->datastores->len; i++) {
        const struct agent_datastore *datastore = g_ptr_array_index(config->datastores, i);

        if (strcmp(datastore->name, name) == 0)
            return datastore;
    }
    return config->machines && config->machines->tpm->fd >= 0 && strcmp(name, TPM_DATASTORE) == 0
               ? config->machines->tpm
               : NULL;
}

bool agent_config_allows(char *const *patterns, const char *name)
{
    for (; patterns && *patterns; patterns++)
        if (g_pattern_match_simple(*patterns, name))
            return true;
    return false;
}

static bool has_unit(const struct agent_config *config, bool device)
{
    char **unit = config->machines ? config->machines->units : NULL;

    for (; unit && *unit; unit++)
        if ((**unit == '/') == device)
            return true;
    return false;
}

bool agent_config_has_devices(const struct agent_config *config)
{
    return has_unit(config, true);
}

bool agent_config_has_servers(const struct agent_config *config)
{
    return has_unit(config, false);
}

static bool same_list(char *const *a, char *const *b)
{
    return !a || !b ? a == b : g_strv_equal((const char *const *)a, (const char *const *)b);
}

/* Is it below a directory that the process may use in the same way? */
static bool was_served(const struct agent_config *first, const struct agent_datastore *datastore)
{
    for (guint i = 0; i < first->datastores->len; i++) {
        const struct agent_datastore *old = g_ptr_array_index(first->datastores, i);
        size_t length = strlen(old->directory);

        if (strncmp(datastore->directory, old->directory, length) == 0 &&
            strchr("/", datastore->directory[length]) && (datastore->read_only || !old->read_only))
            return true;
    }
    return false;
}

/* The sockets are open, and the process is confined. */
/* Who may use them may change. */
static bool same_machines(const struct agent_machines *first, const struct agent_machines *now)
{
    return !now ||
           (first && strcmp(first->libvirt, now->libvirt) == 0 &&
            strcmp(first->directory, now->directory) == 0 && strcmp(first->program, now->program) == 0 &&
            strcmp(first->tpm->directory, now->tpm->directory) == 0);
}

bool agent_config_can_follow(const struct agent_config *config, const struct agent_config *first,
                             GError **error)
{
    if (!same_list(first->listen, config->listen) || g_strcmp0(first->socket, config->socket) != 0 ||
        g_strcmp0(first->tls_directory, config->tls_directory) != 0)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "listen=, socket= and tls-directory= are read at the start only: it takes a "
                             "restart to change them");
    if (!same_machines(first->machines, config->machines))
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "[machines]: libvirt=, directory=, program= and tpm-directory= are read at the "
                             "start only: it takes a restart");
    if ((agent_config_has_devices(config) && !agent_config_has_devices(first)) ||
        (agent_config_has_servers(config) && !agent_config_has_servers(first)))
        return blockmig_fail(
            error, BLOCKMIG_ERROR_REFUSED,
            "[machines]: units= has another kind of unit than at the start: it takes a restart");
    for (guint i = 0; i < config->datastores->len; i++) {
        const struct agent_datastore *datastore = g_ptr_array_index(config->datastores, i);

        if (!was_served(first, datastore))
            return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                                 "[datastore %s]: %s was not served like that at the start: it takes a "
                                 "restart",
                                 datastore->name, datastore->directory);
    }
    return true;
}
