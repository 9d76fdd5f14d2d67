/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What an agent serves, where it listens and whom it lets in: a key file.
 *
 *   [agent]
 *   listen=ADDRESS:PORT;...   with TLS; needs tls-directory
 *   socket=PATH               a Unix socket, for the user that the agent runs as, and root
 *   tls-directory=DIR         ca-cert.pem, server-cert.pem, server-key.pem and, if it is there, ca-crl.pem
 *   allow=PATTERN;...         common names of client certificates, with * and ?; none: nobody
 *   requests-per-second=N     of each client (10000)
 *   patience=SECONDS          with clients that do nothing with their connections (20)
 *
 *   [datastore NAME]
 *   directory=DIR
 *   allow=PATTERN;...         narrower than that of the agent
 *   read-only=true
 *
 *   [machines]                machines may be moved here
 *   allow=PATTERN;...         by whom: who may do that has this host's libvirt, and with it the host
 *   libvirt=PATH              the daemon's socket (/run/libvirt/libvirt-sock)
 *   directory=DIR             for sockets on which they are received (/run/blockmig/machines)
 *   program=PATH              blockmig, which leads migrations away from here (where it was installed)
 *   tpm-directory=DIR         where libvirt keeps the state of TPMs (/var/lib/libvirt/swtpm)
 *   units=PATTERN;...         block devices (absolute paths) and URIs that their disks may be on; none if not
 * given
 */
#ifndef BLOCKMIG_REMOTE_SERVER_CONFIG_H
#define BLOCKMIG_REMOTE_SERVER_CONFIG_H

#include <glib.h>
#include <stdbool.h>

struct agent_datastore {
    char *name, *directory; /* the directory really, without links */
    char **allow;           /* NULL: everybody whom the agent lets in */
    bool read_only;
    /* Only these names, and their directories are made with them; NULL: all, in directories that are there.
     */
    bool (*is_name)(const char *name);
    int fd; /* of the directory; -1: it is not there */
};

struct agent_machines {
    char **allow, **units;
    char *libvirt, *directory, *program;
    struct agent_datastore *tpm; /* for the state of TPMs, and for those who may move machines */
};

struct agent_config {
    char **listen;                /* NULL: not */
    char *socket, *tls_directory; /* NULL: none */
    char **allow;
    unsigned requests_per_second, patience;
    GPtrArray *datastores;           /* of struct agent_datastore * */
    struct agent_machines *machines; /* NULL: none are taken */
};

/* USAGE errors name the file, the group and the key.  To be given back with agent_config_unref(). */
struct agent_config *agent_config_read(const char *path, GError **error);
struct agent_config *agent_config_ref(struct agent_config *config);
void agent_config_unref(struct agent_config *config); /* NULL is allowed */
/* NULL: there is none of that name. */
const struct agent_datastore *agent_config_datastore(const struct agent_config *config, const char *name);
/* The directory, which is there (now): its real name, and open.  False: see errno. */
bool agent_datastore_reach(struct agent_datastore *datastore);
/* Does one of the patterns fit? */
bool agent_config_allows(char *const *patterns, const char *name);
/* Can machines stand on block devices; on what URIs name?  `config` may have no machines. */
bool agent_config_has_devices(const struct agent_config *config);
bool agent_config_has_servers(const struct agent_config *config);
/* Can a process that was set up and confined for `first` go on with this one?  REFUSED. */
bool agent_config_can_follow(const struct agent_config *config, const struct agent_config *first,
                             GError **error);

typedef struct agent_config agent_config_t; /* for g_autoptr only */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(agent_config_t, agent_config_unref)

#endif
