/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/vm/domain.h"

#include "blockmig/vm/domain-internal.h"

#include <string.h>

struct libvirt libvirt;

/* ---- libvirt itself ------------------------------------------------------------------------------ */

static bool load(GError **error)
{
    static const char *const files[] = {"libvirt.so.0", NULL};
    const struct library_symbol symbols[] = {
#define SYMBOL(name) {"vir" #name, (void **)&libvirt.name},
        LIBVIRT_FUNCTIONS(SYMBOL)
#undef SYMBOL
            {NULL},
    };

    return library_load(files, symbols, error);
}

/* It would print errors by itself. */
static void be_quiet(void *opaque, virErrorPtr reason)
{
}

/* Events and keepalives of all connections. */
static gpointer run_events(gpointer unused)
{
    while (libvirt.EventRunDefaultImpl() == 0)
        ;
    return NULL;
}

static bool prepare(GError **error)
{
    static bool ready;

    if (ready)
        return true;
    if (!load(error))
        return false;
    libvirt.SetErrorFunc(NULL, be_quiet);
    if (libvirt.EventRegisterDefaultImpl() < 0)
        return blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "libvirt: no loop for events");
    g_thread_unref(g_thread_new("libvirt", run_events, NULL));
    ready = true;
    return true;
}

bool libvirt_said(const char *who, bool fine, GError **error)
{
    const virError *reason = fine ? NULL : libvirt.GetLastError();
    int code = reason ? reason->code : VIR_ERR_OK;
    /* Of anything but the connection it is a file's, or a program's. */
    bool gone = code == VIR_ERR_NO_CONNECT || code == VIR_ERR_RPC || code == VIR_ERR_INVALID_CONN ||
                (code == VIR_ERR_SYSTEM_ERROR && reason->domain == VIR_FROM_RPC);
    bool absent =
        code == VIR_ERR_NO_DOMAIN || code == VIR_ERR_CONFIG_UNSUPPORTED || code == VIR_ERR_NO_SUPPORT;

    return fine || blockmig_fail(error,
                                 gone     ? BLOCKMIG_ERROR_UNREACHABLE
                                 : absent ? BLOCKMIG_ERROR_REFUSED
                                          : BLOCKMIG_ERROR_FAILED,
                                 "%s: libvirt: %s", who,
                                 reason && reason->message ? reason->message : "no reason given");
}

/* ---- hosts ---------------------------------------------------------------------------------------- */

/* Under the host's lock. */
static struct domain_times *times_of(struct domain_host *host, const char *uuid)
{
    struct domain_times *times = g_hash_table_lookup(host->times, uuid);

    if (!times)
        g_hash_table_insert(host->times, g_strdup(uuid), times = g_new0(struct domain_times, 1));
    return times;
}

/* In the thread of the events. */
static int changed(virConnectPtr connection, virDomainPtr object, int event, int detail, void *opaque)
{
    struct domain_host *host = opaque;
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&host->lock);
    char uuid[VIR_UUID_STRING_BUFLEN];
    int64_t now = g_get_monotonic_time();

    libvirt.DomainGetUUIDString(object, uuid);
    if (event == VIR_DOMAIN_EVENT_STARTED)
        times_of(host, uuid)->started = now;
    else if (event == VIR_DOMAIN_EVENT_SUSPENDED)
        times_of(host, uuid)->stopped = now;
    else if (event == VIR_DOMAIN_EVENT_RESUMED)
        times_of(host, uuid)->resumed = now;
    return 0;
}

virConnectPtr libvirt_connect(const char *uri, const char *who, GError **error)
{
    virConnectPtr connection = libvirt.ConnectOpen(uri);

    if (connection)
        libvirt.ConnectSetKeepAlive(connection, KEEPALIVE_SECONDS, KEEPALIVE_COUNT);
    else if (!libvirt_said(who, false, error) && error && *error)
        (*error)->code = BLOCKMIG_ERROR_UNREACHABLE;
    return connection;
}

static void listen_to(struct domain_host *host)
{
    host->callback =
        libvirt.ConnectDomainEventRegisterAny(host->connection, NULL, VIR_DOMAIN_EVENT_ID_LIFECYCLE,
                                              VIR_DOMAIN_EVENT_CALLBACK(changed), host, NULL);
}

static void hang_up(struct domain_host *host)
{
    if (host->callback >= 0)
        libvirt.ConnectDomainEventDeregisterAny(host->connection, host->callback);
    libvirt.ConnectClose(host->connection);
}

struct domain_host *domain_host_open(const char *uri, const char *name, GError **error)
{
    struct domain_host *host;
    virConnectPtr connection = prepare(error) ? libvirt_connect(uri, name, error) : NULL;

    if (!connection)
        return NULL;
    host = g_new0(struct domain_host, 1);
    host->connection = connection;
    host->uri = g_strdup(uri);
    host->name = g_strdup(name);
    host->times = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
    g_mutex_init(&host->lock);
    listen_to(host);
    return host;
}

void domain_host_close(struct domain_host *host)
{
    if (!host)
        return;
    hang_up(host);
    g_hash_table_unref(host->times);
    g_mutex_clear(&host->lock);
    g_free(host->uri);
    g_free(host->name);
    g_free(host);
}

bool domain_host_is_alive(const struct domain_host *host)
{
    return libvirt.ConnectIsAlive(host->connection) == 1;
}

bool domain_host_renew(struct domain_host *host, GError **error)
{
    const char *nobody = "00000000-0000-0000-0000-000000000000";
    virDomainPtr object = libvirt.DomainLookupByUUIDString(host->connection, nobody);
    virConnectPtr connection;

    if (object)
        libvirt.DomainFree(object);
    if (domain_host_is_alive(host))
        return true;
    connection = libvirt_connect(host->uri, host->name, error);
    if (!connection)
        return false;
    hang_up(host);
    host->connection = connection;
    listen_to(host);
    return true;
}

char *domain_host_identity(struct domain_host *host, GError **error)
{
    char *xml = libvirt.ConnectGetCapabilities(host->connection), *identity;
    g_autoptr(definition_t) capabilities = NULL;

    if (!libvirt_said(host->name, xml != NULL, error))
        return NULL;
    capabilities = definition_parse(xml, error);
    free(xml);
    if (!capabilities)
        return NULL;
    identity = definition_get(capabilities, "/capabilities/host/uuid");
    return identity ? identity : g_strdup("");
}

bool domain_host_runs_cpu(struct domain_host *host, const char *type, const char *cpu, bool *fits,
                          const char **answer, GError **error)
{
    int result = libvirt.ConnectCompareHypervisorCPU(host->connection, NULL, NULL, NULL, type, cpu, 0);

    *fits = result == VIR_CPU_COMPARE_IDENTICAL || result == VIR_CPU_COMPARE_SUPERSET;
    *answer = result == VIR_CPU_COMPARE_IDENTICAL  ? "identical"
              : result == VIR_CPU_COMPARE_SUPERSET ? "superset"
                                                   : "incompatible";
    return libvirt_said(host->name, result != VIR_CPU_COMPARE_ERROR, error);
}

bool domain_host_has_network(struct domain_host *host, const char *name)
{
    virNetworkPtr network = libvirt.NetworkLookupByName(host->connection, name);
    bool active = network && libvirt.NetworkIsActive(network) == 1;

    if (network)
        libvirt.NetworkFree(network);
    return active;
}

bool domain_host_has_pool(struct domain_host *host, const char *name)
{
    virStoragePoolPtr pool = libvirt.StoragePoolLookupByName(host->connection, name);

    if (pool)
        libvirt.StoragePoolFree(pool);
    return pool != NULL;
}

bool domain_host_has_secret(struct domain_host *host, const char *uuid)
{
    virSecretPtr secret = libvirt.SecretLookupByUUIDString(host->connection, uuid);

    if (secret)
        libvirt.SecretFree(secret);
    return secret != NULL;
}

/* ---- domains -------------------------------------------------------------------------------------- */

struct domain *libvirt_domain(struct domain_host *host, virDomainPtr object)
{
    struct domain *domain = g_new0(struct domain, 1);

    domain->host = host;
    domain->object = object;
    domain->name = g_strdup(libvirt.DomainGetName(object));
    libvirt.DomainGetUUIDString(object, domain->uuid);
    return domain;
}

struct domain *domain_open(struct domain_host *host, const char *name, GError **error)
{
    virDomainPtr object = libvirt.DomainLookupByName(host->connection, name);

    if (!object)
        object = libvirt.DomainLookupByUUIDString(host->connection, name);
    if (object)
        return libvirt_domain(host, object);
    if (libvirt.GetLastError() && libvirt.GetLastError()->code == VIR_ERR_NO_DOMAIN)
        blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s: there is no machine called \"%s\"", host->name,
                      name);
    else if (domain_host_is_alive(host)) /* no UUID */
        blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s: there is no machine called \"%s\"", host->name,
                      name);
    else
        libvirt_said(host->name, false, error);
    return NULL;
}

struct domain *domain_define(struct domain_host *host, const char *xml, GError **error)
{
    virDomainPtr object = libvirt.DomainDefineXMLFlags(host->connection, xml, 0);

    return libvirt_said(host->name, object != NULL, error) ? libvirt_domain(host, object) : NULL;
}

void domain_close(struct domain *domain)
{
    if (!domain)
        return;
    libvirt.DomainFree(domain->object);
    g_free(domain->name);
    g_free(domain);
}

const char *domain_name(const struct domain *domain)
{
    return domain->name;
}

const char *domain_uuid(const struct domain *domain)
{
    return domain->uuid;
}

bool domain_said(const struct domain *domain, bool fine, GError **error)
{
    return libvirt_said(domain->name, fine, error);
}

bool domain_look(struct domain *domain, struct domain_state *state, GError **error)
{
    int word = 0, reason = 0, active, persistent, autostart = 0;

    *state = (struct domain_state){false};
    if (!domain_said(domain, libvirt.DomainGetState(domain->object, &word, &reason, 0) == 0, error))
        return false;
    /* One that has crashed may still have its process. */
    active = libvirt.DomainIsActive(domain->object);
    persistent = libvirt.DomainIsPersistent(domain->object);
    if (!domain_said(domain, active >= 0 && persistent >= 0, error))
        return false;
    if (persistent)
        libvirt.DomainGetAutostart(domain->object, &autostart);
    state->active = active == 1;
    state->running = word == VIR_DOMAIN_RUNNING || word == VIR_DOMAIN_BLOCKED;
    state->faulted = word == VIR_DOMAIN_PAUSED && reason == VIR_DOMAIN_PAUSED_IOERROR;
    state->persistent = persistent == 1;
    state->autostart = autostart == 1;
    return true;
}

char *domain_definition(struct domain *domain, enum domain_view view, GError **error)
{
    unsigned flags = VIR_DOMAIN_XML_SECURE | (view == DOMAIN_PERSISTENT   ? VIR_DOMAIN_XML_INACTIVE
                                              : view == DOMAIN_MIGRATABLE ? VIR_DOMAIN_XML_MIGRATABLE
                                                                          : 0);
    char *xml = libvirt.DomainGetXMLDesc(domain->object, flags), *own = g_strdup(xml);

    free(xml);
    domain_said(domain, own != NULL, error);
    return own;
}

bool domain_has_baggage(struct domain *domain, const char **what, GError **error)
{
    int snapshots = libvirt.DomainSnapshotNum(domain->object, 0), saved;

    *what = NULL;
    if (!domain_said(domain, snapshots >= 0, error))
        return false;
    saved = libvirt.DomainHasManagedSaveImage(domain->object, 0);
    if (snapshots > 0)
        *what = "snapshots that libvirt keeps";
    else if (libvirt.DomainListAllCheckpoints(domain->object, NULL, 0) > 0)
        *what = "checkpoints of a backup program";
    else if (saved == 1)
        *what = "a saved state";
    return true;
}

char *domain_busy_disk(struct domain *domain, char *const *disks)
{
    for (; *disks; disks++) {
        virDomainBlockJobInfo info;

        if (libvirt.DomainGetBlockJobInfo(domain->object, *disks, &info, 0) == 1)
            return g_strdup(*disks);
    }
    return NULL;
}

bool domain_suspend(struct domain *domain, GError **error)
{
    return domain_said(domain, libvirt.DomainSuspend(domain->object) == 0, error);
}

bool domain_resume(struct domain *domain, GError **error)
{
    return domain_said(domain, libvirt.DomainResume(domain->object) == 0, error);
}

bool domain_start(struct domain *domain, bool paused, GError **error)
{
    return domain_said(
        domain, libvirt.DomainCreateWithFlags(domain->object, paused ? VIR_DOMAIN_START_PAUSED : 0) == 0,
        error);
}

bool domain_kill(struct domain *domain, GError **error)
{
    return domain_said(domain, libvirt.DomainDestroyFlags(domain->object, VIR_DOMAIN_DESTROY_GRACEFUL) == 0,
                       error);
}

bool domain_shut_down(struct domain *domain, GError **error)
{
    return libvirt.DomainShutdownFlags(domain->object, VIR_DOMAIN_SHUTDOWN_GUEST_AGENT) == 0 ||
           domain_said(domain,
                       libvirt.DomainShutdownFlags(domain->object, VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN) == 0,
                       error);
}

bool domain_set_autostart(struct domain *domain, bool autostart, GError **error)
{
    return domain_said(domain, libvirt.DomainSetAutostart(domain->object, autostart) == 0, error);
}

bool domain_undefine(struct domain *domain, GError **error)
{
    return domain_said(domain,
                       libvirt.DomainUndefineFlags(domain->object, VIR_DOMAIN_UNDEFINE_KEEP_NVRAM |
                                                                       VIR_DOMAIN_UNDEFINE_KEEP_TPM) == 0,
                       error);
}

struct domain_times domain_host_times(struct domain_host *host, const char *uuid)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&host->lock);

    return *times_of(host, uuid);
}
