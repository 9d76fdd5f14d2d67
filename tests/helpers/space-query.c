/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Asks for room on the command line, for tests on small file systems and devices.
 *
 *   space-query room PATH BYTES INODES     "available inodes total limit"
 *   space-query file PATH SIZE
 */
#include "blockmig/migrate/space.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    if (argc == 5 && strcmp(argv[1], "room") == 0) {
        struct space_report report;
        if (space_check(argv[2], strtoull(argv[3], NULL, 10), (unsigned)strtoul(argv[4], NULL, 10), &report,
                        &error))
            printf("%" PRIu64 " %" PRIu64 " %" PRIu64 " %s\n", report.available, report.available_inodes,
                   report.total, report.limit);
    } else if (argc == 4 && strcmp(argv[1], "file") == 0) {
        space_check_file_size(argv[2], strtoull(argv[3], NULL, 10), &error);
    } else {
        return 2;
    }
    if (!error)
        return 0;
    fprintf(stderr, "%s\n", error->message);
    return 3;
}
