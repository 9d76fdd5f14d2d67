/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The agent of a host: reads its configuration, gives up what it does not need, and answers until it is told
 * to end. */
#include "blockmig/remote/credentials.h"
#include "blockmig/remote/lead.h"
#include "blockmig/remote/server.h"
#include "blockmig/storage/host.h"
#include "blockmig/storage/sandbox.h"
#include "blockmig/store/journal.h"
#include "formats/error.h"

#include <config.h>
#include <gnutls/gnutls.h>
#include <locale.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#define DEFAULT_CONFIG "/etc/blockmig/blockmigd.conf"
#define END_SECONDS    10 /* that what was asked has to come to its end */
#define END_PERIOD     20 /* milliseconds */

static char *config_path;
static gboolean check_only, show_version;

static const GOptionEntry entries[] = {
    {"config", 'c', 0, G_OPTION_ARG_FILENAME, &config_path,
     "what is served, where and to whom (default: " DEFAULT_CONFIG ")", "FILE"},
    {"check", 0, 0, G_OPTION_ARG_NONE, &check_only, "read the configuration and the certificates, and end",
     NULL},
    {"version", 0, 0, G_OPTION_ARG_NONE, &show_version, "print the version and end", NULL},
    {NULL}};

static bool parse(int argc, char **argv, GError **error)
{
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);
    g_autoptr(GError) reason = NULL;

    g_option_context_add_main_entries(context, entries, NULL);
    g_option_context_set_summary(context, "Serves datastores of this host to blockmig on other hosts.");
    if (!g_option_context_parse(context, &argc, &argv, &reason))
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "%s", reason->message);
    return argc == 1 || blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "'%s' is not expected", argv[1]);
}

static const char *config_name(void)
{
    return config_path ? config_path : DEFAULT_CONFIG;
}

/* Files that may have other ones in their places one day. */
static void allow_anew(struct sandbox *sandbox, const char *directory, const char *name)
{
    g_autofree char *path = g_build_filename(directory, name, NULL);

    sandbox_allow(sandbox, directory, SANDBOX_READ);
    sandbox_allow_image(sandbox, path, SANDBOX_READ);
}

/* What disks of machines may be on: any of the devices, for they come and go; the configuration says which.
 */
static void allow_units(struct sandbox *sandbox, const struct agent_config *config)
{
    static const char *const places[] = {"/sys/dev/block", "/sys/devices", "/etc/machine-id"};

    if (agent_config_has_devices(config))
        sandbox_allow(sandbox, "/dev", SANDBOX_READ | SANDBOX_WRITE | SANDBOX_DEVICES);
    for (size_t i = 0; agent_config_has_devices(config) && i < G_N_ELEMENTS(places); i++)
        sandbox_allow(sandbox, places[i], SANDBOX_READ);
    if (!agent_config_has_servers(config))
        return;
    sandbox_allow_network(sandbox);
    sandbox_allow_iscsi(sandbox);
}

static void allow_datastore(struct sandbox *sandbox, const struct agent_datastore *datastore)
{
    sandbox_allow(sandbox, datastore->directory,
                  datastore->read_only ? SANDBOX_READ
                                       : SANDBOX_READ | SANDBOX_WRITE | SANDBOX_CREATE | SANDBOX_REMOVE);
}

/* Everything that is opened from now on lies in a datastore, or is what is read anew. */
static bool confine(const struct agent_config *config, GError **error)
{
    g_autoptr(sandbox_t) sandbox = sandbox_new();
    g_autofree char *directory = g_path_get_dirname(config_name());
    g_autofree char *name = g_path_get_basename(config_name());

    for (guint i = 0; i < config->datastores->len; i++)
        allow_datastore(sandbox, g_ptr_array_index(config->datastores, i));
    if (config->machines && config->machines->tpm->fd >= 0)
        allow_datastore(sandbox, config->machines->tpm);
    host_boot_id();
    allow_anew(sandbox, directory, name);
    allow_units(sandbox, config);
    for (const char *const *file = credentials_files; config->tls_directory && *file; file++)
        allow_anew(sandbox, config->tls_directory, *file);
    return sandbox_enter(sandbox, error);
}

static void read_anew(struct server *server)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(agent_config_t) config = NULL;

    sd_notify(0, "RELOADING=1");
    config = agent_config_read(config_name(), &error);
    if (config && server_change(server, config, &error))
        fprintf(stderr, "blockmigd: the configuration was read anew\n");
    else
        fprintf(stderr, "blockmigd: the old configuration stays: %s\n", error->message);
    sd_notify(0, "READY=1");
}

/* Threads inherit the mask: the signals wait for us.  A second one cuts off what is still under way. */
static void wait_for_the_end(struct server *server, const sigset_t *signals)
{
    const struct timespec period = {.tv_nsec = END_PERIOD * 1000000L};
    int number;

    sd_notify(0, "READY=1");
    while (sigwait(signals, &number) == 0 && number == SIGHUP)
        read_anew(server);
    sd_notify(0, "STOPPING=1");
    server_begin_end(server);
    for (unsigned i = 0; i < END_SECONDS * 1000 / END_PERIOD && server_is_busy(server); i++)
        if (sigtimedwait(signals, NULL, &period) > 0)
            return;
}

/* Before anything else, for whoever tells us something earlier than that. */
static void block_signals(sigset_t *signals)
{
    sigemptyset(signals);
    sigaddset(signals, SIGTERM);
    sigaddset(signals, SIGINT);
    sigaddset(signals, SIGHUP);
    sigprocmask(SIG_BLOCK, signals, NULL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a write beyond the limit fails with EFBIG, and is told */
}

/* Sockets that systemd has opened are numbered on from its first. */
static struct server *open_server(struct agent_config *config, GError **error)
{
    int count = sd_listen_fds(1);
    g_autofree int *inherited = g_new0(int, MAX(count, 0));

    for (int i = 0; i < count; i++)
        inherited[i] = SD_LISTEN_FDS_START + i;
    return server_open(config, inherited, (unsigned)MAX(count, 0), error);
}

/* While nothing is open yet and this is the only thread. */
static bool begin_to_lead(const struct agent_config *config, GError **error)
{
    g_autofree char *state = journal_place(NULL), *directory = g_build_filename(state, "led", NULL);
    int theirs;
    pid_t pid;

    if (!config->machines)
        return true;
    if (!lead_begin(config->machines, directory, &theirs, error))
        return false;
    signal(SIGCHLD, SIG_IGN); /* nobody waits for it */
    pid = fork();
    if (pid == 0)
        _exit(lead_main(theirs));
    close(theirs);
    return pid > 0 ||
           blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "no process to lead migrations can be made");
}

static bool serve(GError **error)
{
    g_autoptr(agent_config_t) config = NULL;
    struct server *server;
    sigset_t signals;
    bool ok;

    block_signals(&signals);
    config = agent_config_read(config_name(), error);
    server = config && (check_only || begin_to_lead(config, error)) ? open_server(config, error) : NULL;
    ok = server && (check_only || (confine(config, error) && server_start(server, error)));
    if (ok && !check_only)
        wait_for_the_end(server, &signals);
    server_close(server);
    return ok;
}

static int status_of(const GError *error)
{
    return error->code == BLOCKMIG_ERROR_USAGE ? 2 : error->code == BLOCKMIG_ERROR_REFUSED ? 3 : 1;
}

/* Each request has buffers of some MiB: memory that came from the kernel anew every time took a third of what
 * the processors had to do.  Few arenas, so that little of it is kept. */
static void keep_memory(void)
{
    mallopt(M_MMAP_THRESHOLD, 32 << 20);
    mallopt(M_TRIM_THRESHOLD, 64 << 20);
    mallopt(M_ARENA_MAX, 8);
}

int main(int argc, char **argv)
{
    g_autoptr(GError) error = NULL;

    keep_memory();
    setlocale(LC_ALL, "");
    if (parse(argc, argv, &error) && show_version) {
        puts("blockmigd " PACKAGE_VERSION);
        return 0;
    }
    if (!error && serve(&error))
        return 0;
    fprintf(stderr, "blockmigd: %s\n", error->message);
    return status_of(error);
}
