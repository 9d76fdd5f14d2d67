/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The process that runs a domain: libvirt learns of its end later than the kernel. */
#include "blockmig/vm/domain-internal.h"

#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* "qemu:///system" is reached by a socket of this host; "qemu+unix" may be a tunnel to another one. */
static bool is_here(const struct domain_host *host)
{
    char *uri = libvirt.ConnectGetURI(host->connection);
    bool here = uri && g_str_has_prefix(uri, "qemu:///");

    free(uri);
    return here;
}

/* Has its command line the words "-uuid UUID"? */
static bool runs(const char *pid, const char *uuid)
{
    g_autofree char *path = g_build_filename("/proc", pid, "cmdline", NULL);
    g_autofree char *words = NULL;
    gsize length = 0;
    bool next = false;

    if (!g_file_get_contents(path, &words, &length, NULL))
        return false;
    for (const char *word = words; word < words + length; word += strlen(word) + 1) {
        if (next && strcmp(word, uuid) == 0)
            return true;
        next = strcmp(word, "-uuid") == 0;
    }
    return false;
}

int domain_process_open(struct domain *domain)
{
    g_autoptr(GDir) processes = is_here(domain->host) ? g_dir_open("/proc", 0, NULL) : NULL;
    const char *name;

    while (processes && (name = g_dir_read_name(processes)))
        if (g_ascii_isdigit(*name) && runs(name, domain->uuid)) {
            int fd = (int)syscall(SYS_pidfd_open, (pid_t)g_ascii_strtoll(name, NULL, 10), 0);

            /* Between both looks it may have become another's number. */
            if (fd >= 0 && !runs(name, domain->uuid)) {
                close(fd);
                fd = -1;
            }
            return fd;
        }
    return -1;
}
