/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Disks of a domain: snapshots, mirrors, commits. */
#include "blockmig/vm/domain-internal.h"

/* That of guests' writes.  With larger granules QEMU 7.2 loses more of them (HACKING). */
#define MIRROR_GRANULARITY 4096u

static void add_disk(GString *xml, const char *name, const char *path)
{
    g_autofree char *text = path ? g_markup_printf_escaped("<disk name='%s' snapshot='external' type='file'>"
                                                           "<driver type='qcow2'/><source file='%s'/></disk>",
                                                           name, path)
                                 : g_markup_printf_escaped("<disk name='%s' snapshot='no'/>", name);

    g_string_append(xml, text);
}

bool domain_snapshot(struct domain *domain, const struct domain_overlay *overlays, unsigned count,
                     char *const *others, bool quiesce, GError **error)
{
    g_autoptr(GString) xml = g_string_new("<domainsnapshot><disks>");
    unsigned flags = VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA |
                     VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC | VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT |
                     (quiesce ? VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE : 0);
    virDomainSnapshotPtr snapshot;

    for (unsigned i = 0; i < count; i++)
        add_disk(xml, overlays[i].disk, overlays[i].path);
    for (; others && *others; others++)
        add_disk(xml, *others, NULL);
    g_string_append(xml, "</disks></domainsnapshot>");
    snapshot = libvirt.DomainSnapshotCreateXML(libvirt_object(domain), xml->str, flags);
    if (snapshot)
        libvirt.DomainSnapshotFree(snapshot);
    return domain_said(domain, snapshot != NULL, error);
}

bool domain_mirror(struct domain *domain, const char *disk, const char *path, GError **error)
{
    g_autofree char *xml =
        g_markup_printf_escaped("<disk type='file'><driver type='qcow2'/><source file='%s'/></disk>", path);
    unsigned flags = VIR_DOMAIN_BLOCK_COPY_SHALLOW | VIR_DOMAIN_BLOCK_COPY_REUSE_EXT |
                     VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB | VIR_DOMAIN_BLOCK_COPY_SYNCHRONOUS_WRITES;

    virTypedParameterPtr parameters = NULL;
    int count = 0, room = 0, rc;

    libvirt.TypedParamsAddUInt(&parameters, &count, &room, VIR_DOMAIN_BLOCK_COPY_GRANULARITY,
                               MIRROR_GRANULARITY);
    rc = libvirt.DomainBlockCopy(libvirt_object(domain), disk, xml, parameters, count, flags);
    libvirt.TypedParamsFree(parameters, count);
    return domain_said(domain, rc == 0, error);
}

bool domain_commit(struct domain *domain, const char *disk, const char *base, GError **error)
{
    return domain_said(domain,
                       libvirt.DomainBlockCommit(libvirt_object(domain), disk, base, NULL, 0,
                                                 VIR_DOMAIN_BLOCK_COMMIT_ACTIVE) == 0,
                       error);
}

/* Numbers that are equal do not say yet that writes go to both sides: the definition does. */
static bool is_ready(struct domain *domain, const char *disk, bool *ready, GError **error)
{
    g_autofree char *xml = domain_definition(domain, DOMAIN_ACTIVE, error);
    g_autoptr(definition_t) definition = xml ? definition_parse(xml, error) : NULL;
    g_autofree char *path =
        g_strdup_printf("/domain/devices/disk[target/@dev='%s']/mirror[@ready='yes']", disk);

    *ready = definition && definition_count(definition, path) > 0;
    return definition != NULL;
}

bool domain_job_look(struct domain *domain, const char *disk, bool *there, bool *ready, GError **error)
{
    virDomainBlockJobInfo info = {0};
    int found = libvirt.DomainGetBlockJobInfo(libvirt_object(domain), disk, &info, 0);

    *there = found == 1;
    *ready = false;
    if (!domain_said(domain, found >= 0, error))
        return false;
    return found == 0 || info.cur < info.end || is_ready(domain, disk, ready, error);
}

bool domain_job_end(struct domain *domain, const char *disk, bool pivot, GError **error)
{
    return domain_said(domain,
                       libvirt.DomainBlockJobAbort(libvirt_object(domain), disk,
                                                   pivot ? VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT : 0) == 0,
                       error);
}

#define STATS 16 /* of a disk, at most; libvirt 9.0 has 12, and its daemon is asked for no more than 16 */

bool domain_disk_stats(struct domain *domain, uint64_t *requests, uint64_t *time_ns)
{
    static const char *const counts[] = {VIR_DOMAIN_BLOCK_STATS_READ_REQ, VIR_DOMAIN_BLOCK_STATS_WRITE_REQ,
                                         NULL};
    static const char *const times[] = {VIR_DOMAIN_BLOCK_STATS_READ_TOTAL_TIMES,
                                        VIR_DOMAIN_BLOCK_STATS_WRITE_TOTAL_TIMES, NULL};
    virTypedParameter values[STATS];
    int count = STATS;

    *requests = *time_ns = 0;
    /* The empty name stands for all disks. */
    if (libvirt.DomainBlockStatsFlags(libvirt_object(domain), "", values, &count, 0) < 0)
        return false;
    for (int i = 0; i < count; i++) {
        if (values[i].type != VIR_TYPED_PARAM_LLONG)
            continue;
        if (g_strv_contains(counts, values[i].field))
            *requests += (uint64_t)values[i].value.l;
        if (g_strv_contains(times, values[i].field))
            *time_ns += (uint64_t)values[i].value.l;
    }
    return true;
}
