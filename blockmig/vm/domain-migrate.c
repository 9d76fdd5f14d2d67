/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A domain goes to another host, led by us: both daemons answer to this process, not to each other. */
#include "blockmig/vm/domain-internal.h"

struct parameters {
    virTypedParameterPtr list;
    int count, room;
};

static void add_string(struct parameters *to, const char *name, const char *value)
{
    if (value)
        libvirt.TypedParamsAddString(&to->list, &to->count, &to->room, name, value);
}

static void add_parameters(struct parameters *to, const struct domain_journey *journey)
{
    add_string(to, VIR_MIGRATE_PARAM_URI, journey->uri);
    add_string(to, VIR_MIGRATE_PARAM_DEST_XML, journey->xml);
    add_string(to, VIR_MIGRATE_PARAM_PERSIST_XML, journey->persistent_xml);
    if (journey->disks)
        add_string(to, VIR_MIGRATE_PARAM_DISKS_URI, journey->disks_uri);
    for (char *const *disk = journey->disks; disk && *disk; disk++)
        add_string(to, VIR_MIGRATE_PARAM_MIGRATE_DISKS, *disk);
    if (journey->bandwidth)
        libvirt.TypedParamsAddULLong(&to->list, &to->count, &to->room, VIR_MIGRATE_PARAM_BANDWIDTH,
                                     MAX(journey->bandwidth >> 20, 1));
}

static unsigned flags_of(const struct domain_journey *journey)
{
    return VIR_MIGRATE_PAUSED | VIR_MIGRATE_ABORT_ON_ERROR |
           /* A machine that changes its memory faster than it goes over is slowed down, not waited for. */
           (journey->live ? VIR_MIGRATE_LIVE | VIR_MIGRATE_AUTO_CONVERGE : 0) |
           (journey->persistent_xml ? VIR_MIGRATE_PERSIST_DEST : 0) |
           (journey->disks ? VIR_MIGRATE_NON_SHARED_INC | VIR_MIGRATE_NON_SHARED_SYNCHRONOUS_WRITES : 0) |
           /* That its files are there, and the same, was proved by us. */
           (journey->cautious ? 0 : VIR_MIGRATE_UNSAFE);
}

static bool carry(virDomainPtr object, virConnectPtr to, const struct domain_journey *journey)
{
    struct parameters parameters = {NULL};
    virDomainPtr arrived;

    if (journey->max_downtime)
        libvirt.DomainMigrateSetMaxDowntime(object, journey->max_downtime, 0);
    add_parameters(&parameters, journey);
    arrived =
        libvirt.DomainMigrate3(object, to, parameters.list, (unsigned)parameters.count, flags_of(journey));
    libvirt.TypedParamsFree(parameters.list, parameters.count);
    if (arrived)
        libvirt.DomainFree(arrived);
    return arrived != NULL;
}

/* Over connections of its own: when two threads share one, libvirt 9.0 loses the word that the second has
 * something to say if the first is just about to wait, and then neither hears of anything until the next
 * keepalive, seconds later. */
bool domain_migrate(struct domain *domain, struct domain_host *to, const struct domain_journey *journey,
                    GError **error)
{
    virConnectPtr from = libvirt_connect(domain->host->uri, domain->host->name, error);
    virConnectPtr there = from ? libvirt_connect(to->uri, to->name, error) : NULL;
    virDomainPtr object = there ? libvirt.DomainLookupByUUIDString(from, domain->uuid) : NULL;
    bool ok = there && domain_said(domain, object && carry(object, there, journey), error);

    if (object)
        libvirt.DomainFree(object);
    if (there)
        libvirt.ConnectClose(there);
    if (from)
        libvirt.ConnectClose(from);
    return ok;
}

bool domain_migration_progress(struct domain *domain, struct domain_progress *progress)
{
    virDomainJobInfo info = {0};

    *progress = (struct domain_progress){0};
    if (libvirt.DomainGetJobInfo(libvirt_object(domain), &info) < 0 || info.type == VIR_DOMAIN_JOB_NONE)
        return false;
    progress->memory_total = info.memTotal;
    progress->memory_left = info.memRemaining;
    progress->disk_total = info.fileTotal;
    progress->disk_left = info.fileRemaining;
    return true;
}

void domain_migration_allow(struct domain *domain, unsigned downtime)
{
    libvirt.DomainMigrateSetMaxDowntime(libvirt_object(domain), downtime, 0);
}

void domain_migration_abort(struct domain *domain)
{
    libvirt.DomainAbortJob(libvirt_object(domain));
}
