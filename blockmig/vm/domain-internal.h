/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Inside domain.h: libvirt's functions, which are found when the first host is opened. */
#ifndef BLOCKMIG_VM_DOMAIN_INTERNAL_H
#define BLOCKMIG_VM_DOMAIN_INTERNAL_H

#include "blockmig/storage/library.h"
#include "blockmig/vm/definition.h"
#include "blockmig/vm/domain.h"
#include "formats/error.h"

#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <stdlib.h>

#define KEEPALIVE_SECONDS 5
#define KEEPALIVE_COUNT   3u

/* Without "vir" in front. */
#define LIBVIRT_FUNCTIONS(X)                                                                                 \
    X(ConnectClose)                                                                                          \
    X(ConnectCompareHypervisorCPU)                                                                           \
    X(ConnectDomainEventDeregisterAny)                                                                       \
    X(ConnectDomainEventRegisterAny)                                                                         \
    X(ConnectGetCapabilities)                                                                                \
    X(ConnectGetURI)                                                                                         \
    X(ConnectIsAlive)                                                                                        \
    X(ConnectOpen)                                                                                           \
    X(ConnectSetKeepAlive)                                                                                   \
    X(DomainAbortJob)                                                                                        \
    X(DomainBlockCommit)                                                                                     \
    X(DomainBlockCopy)                                                                                       \
    X(DomainBlockJobAbort)                                                                                   \
    X(DomainBlockStatsFlags)                                                                                 \
    X(DomainCreateWithFlags)                                                                                 \
    X(DomainDefineXMLFlags)                                                                                  \
    X(DomainDestroyFlags)                                                                                    \
    X(DomainFree)                                                                                            \
    X(DomainGetAutostart)                                                                                    \
    X(DomainGetBlockJobInfo)                                                                                 \
    X(DomainGetConnect)                                                                                      \
    X(DomainGetJobInfo)                                                                                      \
    X(DomainGetName)                                                                                         \
    X(DomainGetState)                                                                                        \
    X(DomainGetUUIDString)                                                                                   \
    X(DomainGetXMLDesc)                                                                                      \
    X(DomainHasManagedSaveImage)                                                                             \
    X(DomainIsActive)                                                                                        \
    X(DomainIsPersistent)                                                                                    \
    X(DomainListAllCheckpoints)                                                                              \
    X(DomainLookupByName)                                                                                    \
    X(DomainLookupByUUIDString)                                                                              \
    X(DomainManagedSaveDefineXML)                                                                            \
    X(DomainManagedSaveGetXMLDesc)                                                                           \
    X(DomainMigrate3)                                                                                        \
    X(DomainMigrateSetMaxDowntime)                                                                           \
    X(DomainResume)                                                                                          \
    X(DomainSetAutostart)                                                                                    \
    X(DomainShutdownFlags)                                                                                   \
    X(DomainSnapshotCreateXML)                                                                               \
    X(DomainSnapshotFree)                                                                                    \
    X(DomainSnapshotNum)                                                                                     \
    X(DomainSuspend)                                                                                         \
    X(DomainUndefineFlags)                                                                                   \
    X(EventRegisterDefaultImpl)                                                                              \
    X(EventRunDefaultImpl)                                                                                   \
    X(GetLastError)                                                                                          \
    X(NetworkFree)                                                                                           \
    X(NetworkIsActive)                                                                                       \
    X(NetworkLookupByName)                                                                                   \
    X(SecretFree)                                                                                            \
    X(SecretLookupByUUIDString)                                                                              \
    X(SetErrorFunc)                                                                                          \
    X(StoragePoolFree)                                                                                       \
    X(StoragePoolLookupByName)                                                                               \
    X(TypedParamsAddString)                                                                                  \
    X(TypedParamsAddUInt)                                                                                    \
    X(TypedParamsAddULLong)                                                                                  \
    X(TypedParamsFree)

#define LIBVIRT_MEMBER(name) __typeof__(&vir##name) name;
extern struct libvirt {
    LIBVIRT_FUNCTIONS(LIBVIRT_MEMBER)
} libvirt;

struct domain_host {
    virConnectPtr connection;
    int64_t not_before; /* monotonic: when it is asked again whether it answers */
    char *uri;          /* NULL: libvirt's default */
    char *name;
    int callback;
    GMutex lock;       /* of what the thread of the events touches: */
    GHashTable *times; /* a domain's UUID -> its struct domain_times */
};

struct domain {
    struct domain_host *host;
    virDomainPtr object; /* NULL: its daemon was started anew, and does not know it any more */
    char *name;
    char uuid[VIR_UUID_STRING_BUFLEN];
};

/* A connection of its own, to be closed; `who` stands in front of an error, UNREACHABLE. */
virConnectPtr libvirt_connect(const char *uri, const char *who, GError **error);
/* Passes a result on; a failed one gets libvirt's reason, with `who` in front. */
bool libvirt_said(const char *who, bool fine, GError **error);
bool domain_said(const struct domain *domain, bool fine, GError **error);
/* What to ask with: a daemon that was started anew since is connected to anew, if it answers; what it has
 * forgotten of a domain is an error of the call, REFUSED.  Borrowed, until the next time. */
virConnectPtr libvirt_connection(struct domain_host *host);
virDomainPtr libvirt_object(struct domain *domain);
/* Takes the object. */
struct domain *libvirt_domain(struct domain_host *host, virDomainPtr object);

#endif
