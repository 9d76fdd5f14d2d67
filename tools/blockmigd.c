/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The agent of a host: reads its configuration, gives up what it does not need, and answers until it is told
 * to end. */
#include "blockmig/remote/server.h"
#include "blockmig/storage/sandbox.h"
#include "formats/error.h"

#include <config.h>
#include <gnutls/gnutls.h>
#include <locale.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <systemd/sd-daemon.h>

#define DEFAULT_CONFIG "/etc/blockmig/blockmigd.conf"

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

/* Everything that is opened from now on lies in a datastore. */
static bool confine(const struct agent_config *config, GError **error)
{
    g_autoptr(sandbox_t) sandbox = sandbox_new();

    for (guint i = 0; i < config->datastores->len; i++) {
        const struct agent_datastore *datastore = g_ptr_array_index(config->datastores, i);

        sandbox_allow(sandbox, datastore->directory,
                      datastore->read_only ? SANDBOX_READ
                                           : SANDBOX_READ | SANDBOX_WRITE | SANDBOX_CREATE | SANDBOX_REMOVE);
    }
    sandbox_allow(sandbox, "/proc/sys/kernel/random/boot_id", SANDBOX_READ);
    return sandbox_enter(sandbox, error);
}

/* Threads inherit the mask: the signals wait for us. */
static void wait_for_the_end(const sigset_t *signals)
{
    int number;

    sd_notify(0, "READY=1");
    sigwait(signals, &number);
    sd_notify(0, "STOPPING=1");
}

static bool serve(GError **error)
{
    g_autoptr(agent_config_t) config = agent_config_read(config_path ? config_path : DEFAULT_CONFIG, error);
    struct server *server = config ? server_open(config, error) : NULL;
    sigset_t signals;
    bool ok;

    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    signal(SIGPIPE, SIG_IGN);
    ok = server && (check_only || (confine(config, error) && server_start(server, error)));
    if (ok && !check_only)
        wait_for_the_end(&signals);
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
