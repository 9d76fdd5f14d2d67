/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The failback window of a domain: machine-window.c opens and closes it, machine-back.c asks another host to
 * lead the way back. */
#ifndef BLOCKMIG_MIGRATE_MACHINE_WINDOW_H
#define BLOCKMIG_MIGRATE_MACHINE_WINDOW_H

#include "blockmig/migrate/machine.h"

/* Are the machine's disks where the job has left them (or, `source`, where they were before)?  REFUSED. */
bool machine_is_at(const struct machine_job *job, struct domain *domain, bool source, GError **error);
/* The move or migration that goes back, the caller's; `to` NULL: to where the window says. */
struct move_request *machine_request_back(const struct machine_job *job, const char *to);
/* What it did is what the window's job reports. */
void machine_adopt_report(struct machine_job *job, struct job_report *of);

/* Can the other host reach `directory` of this one by the name `uri`?  REFUSED. */
bool machine_check_reach(struct machine_job *job, const char *uri, const char *directory, GError **error);
/* The id of the last migration back that was asked for, if it may have changed something and is not known to
 * have succeeded; the caller's; NULL: there is none. */
char *machine_open_run(const struct machine_job *job);
/* From the other host, led there. */
bool machine_come_back(struct machine_job *job, GError **error);

#endif
