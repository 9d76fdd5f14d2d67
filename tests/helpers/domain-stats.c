/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* domain-stats NAME: the requests of a domain to all its disks, and the nanoseconds that they took. */
#include "blockmig/vm/domain.h"

#include <inttypes.h>
#include <stdio.h>

int main(int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(domain_host_t) host = argc == 2 ? domain_host_open(NULL, "this host", &error) : NULL;
    g_autoptr(domain_t) domain = host ? domain_open(host, argv[1], &error) : NULL;
    uint64_t requests, time_ns;

    if (!domain || !domain_disk_stats(domain, &requests, &time_ns)) {
        fprintf(stderr, "domain-stats: %s\n", error ? error->message : "no answer");
        return 1;
    }
    printf("%" PRIu64 " %" PRIu64 "\n", requests, time_ns);
    return 0;
}
