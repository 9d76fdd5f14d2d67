/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/vm/domain.h"

#include "blockmig/vm/domain-internal.h"

#include <string.h>

/* With a daemon that does not answer. */
#define TIMES_LONGER 4
#define RETRY        G_USEC_PER_SEC

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
    bool gone =
        code == VIR_ERR_NO_CONNECT || code == VIR_ERR_RPC || code == VIR_ERR_INVALID_CONN ||
        ((code == VIR_ERR_SYSTEM_ERROR || code == VIR_ERR_INTERNAL_ERROR) && reason->domain == VIR_FROM_RPC);
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

static bool is_alive(const struct domain_host *host)
{
    return libvirt.ConnectIsAlive(host->connection) == 1;
}

static bool connect_anew(struct domain_host *host, GError **error)
{
    virConnectPtr connection = libvirt_connect(host->uri, host->name, error);

    if (!connection)
        return false;
    hang_up(host);
    host->connection = connection;
    listen_to(host);
    return true;
}

bool domain_host_renew(struct domain_host *host, GError **error)
{
    const char *nobody = "00000000-0000-0000-0000-000000000000";
    virDomainPtr object = libvirt.DomainLookupByUUIDString(host->connection, nobody);

    if (object)
        libvirt.DomainFree(object);
    return is_alive(host) || connect_anew(host, error);
}

/* One that does not answer is left alone for longer than it took to find that out. */
virConnectPtr libvirt_connection(struct domain_host *host)
{
    int64_t begin = g_get_monotonic_time();

    if (!is_alive(host) && begin >= host->not_before && !connect_anew(host, NULL)) {
        int64_t now = g_get_monotonic_time();

        host->not_before = now + MAX(TIMES_LONGER * (now - begin), RETRY);
    }
    return host->connection;
}

char *domain_host_identity(struct domain_host *host, GError **error)
{
    char *xml = libvirt.ConnectGetCapabilities(libvirt_connection(host)), *identity;
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
    int result =
        libvirt.ConnectCompareHypervisorCPU(libvirt_connection(host), NULL, NULL, NULL, type, cpu, 0);

    *fits = result == VIR_CPU_COMPARE_IDENTICAL || result == VIR_CPU_COMPARE_SUPERSET;
    *answer = result == VIR_CPU_COMPARE_IDENTICAL  ? "identical"
              : result == VIR_CPU_COMPARE_SUPERSET ? "superset"
                                                   : "incompatible";
    return libvirt_said(host->name, result != VIR_CPU_COMPARE_ERROR, error);
}

bool domain_host_has_network(struct domain_host *host, const char *name)
{
    virNetworkPtr network = libvirt.NetworkLookupByName(libvirt_connection(host), name);
    bool active = network && libvirt.NetworkIsActive(network) == 1;

    if (network)
        libvirt.NetworkFree(network);
    return active;
}

bool domain_host_has_pool(struct domain_host *host, const char *name)
{
    virStoragePoolPtr pool = libvirt.StoragePoolLookupByName(libvirt_connection(host), name);

    if (pool)
        libvirt.StoragePoolFree(pool);
    return pool != NULL;
}

bool domain_host_has_secret(struct domain_host *host, const char *uuid)
{
    virSecretPtr secret = libvirt.SecretLookupByUUIDString(libvirt_connection(host), uuid);

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

virDomainPtr libvirt_object(struct domain *domain)
{
    virConnectPtr connection = libvirt_connection(domain->host);
    virDomainPtr again;

    if (domain->object && libvirt.DomainGetConnect(domain->object) == connection)
        return domain->object;
    again = libvirt.DomainLookupByUUIDString(connection, domain->uuid);
    if (!again && libvirt.GetLastError() && libvirt.GetLastError()->code != VIR_ERR_NO_DOMAIN)
        return domain->object;
    if (domain->object)
        libvirt.DomainFree(domain->object);
    return domain->object = again;
}

struct domain *domain_open(struct domain_host *host, const char *name, GError **error)
{
    virDomainPtr object = libvirt.DomainLookupByName(libvirt_connection(host), name);

    if (!object)
        object = libvirt.DomainLookupByUUIDString(libvirt_connection(host), name);
    if (object)
        return libvirt_domain(host, object);
    if (libvirt.GetLastError() && libvirt.GetLastError()->code == VIR_ERR_NO_DOMAIN)
        blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s: there is no machine called \"%s\"", host->name,
                      name);
    else if (is_alive(host)) /* no UUID */
        blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s: there is no machine called \"%s\"", host->name,
                      name);
    else
        libvirt_said(host->name, false, error);
    return NULL;
}

struct domain *domain_define(struct domain_host *host, const char *xml, GError **error)
{
    virDomainPtr object = libvirt.DomainDefineXMLFlags(libvirt_connection(host), xml, 0);

    return libvirt_said(host->name, object != NULL, error) ? libvirt_domain(host, object) : NULL;
}

void domain_close(struct domain *domain)
{
    if (!domain)
        return;
    if (domain->object)
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
    return fine || domain->object
               ? libvirt_said(domain->name, fine, error)
               : blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                               "%s: libvirt was started anew, and there is no such machine any more",
                               domain->name);
}

bool domain_look(struct domain *domain, struct domain_state *state, GError **error)
{
    int word = 0, reason = 0, active, persistent, autostart = 0;

    *state = (struct domain_state){false};
    if (!domain_said(domain, libvirt.DomainGetState(libvirt_object(domain), &word, &reason, 0) == 0, error))
        return false;
    /* One that has crashed may still have its process. */
    active = libvirt.DomainIsActive(libvirt_object(domain));
    persistent = libvirt.DomainIsPersistent(libvirt_object(domain));
    if (!domain_said(domain, active >= 0 && persistent >= 0, error))
        return false;
    if (persistent)
        libvirt.DomainGetAutostart(libvirt_object(domain), &autostart);
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
    char *xml = view == DOMAIN_SAVED ? libvirt.DomainManagedSaveGetXMLDesc(libvirt_object(domain),
                                                                           VIR_DOMAIN_SAVE_IMAGE_XML_SECURE)
                                     : libvirt.DomainGetXMLDesc(libvirt_object(domain), flags);
    char *own = g_strdup(xml);

    free(xml);
    domain_said(domain, own != NULL, error);
    return own;
}

bool domain_is_saved(struct domain *domain)
{
    return libvirt.DomainHasManagedSaveImage(libvirt_object(domain), 0) == 1;
}

bool domain_define_saved(struct domain *domain, const char *xml, GError **error)
{
    return domain_said(domain, libvirt.DomainManagedSaveDefineXML(libvirt_object(domain), xml, 0) == 0,
                       error);
}

bool domain_has_baggage(struct domain *domain, const char **what, GError **error)
{
    int snapshots = libvirt.DomainSnapshotNum(libvirt_object(domain), 0);

    *what = NULL;
    if (!domain_said(domain, snapshots >= 0, error))
        return false;
    if (snapshots > 0)
        *what = "snapshots that libvirt keeps";
    else if (libvirt.DomainListAllCheckpoints(libvirt_object(domain), NULL, 0) > 0)
        *what = "checkpoints of a backup program";
    else if (domain_is_saved(domain))
        *what = "a saved state";
    return true;
}

char *domain_busy_disk(struct domain *domain, char *const *disks)
{
    for (; *disks; disks++) {
        virDomainBlockJobInfo info;

        if (libvirt.DomainGetBlockJobInfo(libvirt_object(domain), *disks, &info, 0) == 1)
            return g_strdup(*disks);
    }
    return NULL;
}

bool domain_suspend(struct domain *domain, GError **error)
{
    return domain_said(domain, libvirt.DomainSuspend(libvirt_object(domain)) == 0, error);
}

bool domain_resume(struct domain *domain, GError **error)
{
    return domain_said(domain, libvirt.DomainResume(libvirt_object(domain)) == 0, error);
}

bool domain_start(struct domain *domain, bool paused, GError **error)
{
    return domain_said(
        domain,
        libvirt.DomainCreateWithFlags(libvirt_object(domain), paused ? VIR_DOMAIN_START_PAUSED : 0) == 0,
        error);
}

bool domain_kill(struct domain *domain, GError **error)
{
    return domain_said(
        domain, libvirt.DomainDestroyFlags(libvirt_object(domain), VIR_DOMAIN_DESTROY_GRACEFUL) == 0, error);
}

bool domain_shut_down(struct domain *domain, GError **error)
{
    return libvirt.DomainShutdownFlags(libvirt_object(domain), VIR_DOMAIN_SHUTDOWN_GUEST_AGENT) == 0 ||
           domain_said(
               domain,
               libvirt.DomainShutdownFlags(libvirt_object(domain), VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN) == 0,
               error);
}

bool domain_set_autostart(struct domain *domain, bool autostart, GError **error)
{
    return domain_said(domain, libvirt.DomainSetAutostart(libvirt_object(domain), autostart) == 0, error);
}

bool domain_undefine(struct domain *domain, GError **error)
{
    return domain_said(
        domain,
        libvirt.DomainUndefineFlags(libvirt_object(domain),
                                    VIR_DOMAIN_UNDEFINE_KEEP_NVRAM | VIR_DOMAIN_UNDEFINE_KEEP_TPM) == 0,
        error);
}

struct domain_times domain_host_times(struct domain_host *host, const char *uuid)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&host->lock);

    return *times_of(host, uuid);
}
