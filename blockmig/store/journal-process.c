/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Does the owner of a job still live?
 *
 * A process number comes back after a while, so a process is known by its number, its start time in
 * clock ticks since boot, and the boot: "BOOT-ID/TICKS".
 */
#include "blockmig/store/journal-internal.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

/* Fields of /proc/PID/stat after the command (proc(5)): state is the first of them. */
enum { STAT_STATE = 0, STAT_THREADS = 17, STAT_START = 19 };

/* The command stands in parentheses and may itself hold spaces and parentheses: the last one ends it. */
static char **process_stat(int64_t pid)
{
    g_autofree char *path = g_strdup_printf("/proc/%" G_GINT64_FORMAT "/stat", pid);
    g_autofree char *text = NULL;
    if (!g_file_get_contents(path, &text, NULL, NULL))
        return NULL;
    const char *end = strrchr(text, ')');
    if (!end || end[1] != ' ')
        return NULL;
    char **fields = g_strsplit(end + 2, " ", -1);
    if (g_strv_length(fields) > STAT_START)
        return fields;
    g_strfreev(fields);
    return NULL;
}

static char *boot_id(void)
{
    char *boot = NULL;
    if (!g_file_get_contents("/proc/sys/kernel/random/boot_id", &boot, NULL, NULL))
        boot = g_strdup("");
    return g_strchomp(boot);
}

static char *process_name(char **stat)
{
    g_autofree char *boot = boot_id();
    return g_strdup_printf("%s/%s", boot, stat[STAT_START]);
}

/* It has gone; or /proc hides it (hidepid), from a confined process even if it is the same user's.  Its start
 * cannot be compared then: it counts as alive, for two owners do more harm than none. */
static bool may_be_hidden(int64_t pid, const char *process)
{
    g_autofree char *boot = boot_id();
    if (process && !g_str_has_prefix(process, boot))
        return false;
    return kill((pid_t)pid, 0) == 0 || errno == EPERM;
}

char *journal_process_self(void)
{
    g_auto(GStrv) stat = process_stat(getpid());
    return stat ? process_name(stat) : NULL;
}

bool journal_process_alive(int64_t pid, const char *process)
{
    if (pid <= 0)
        return false;
    g_auto(GStrv) stat = process_stat(pid);
    if (!stat)
        return may_be_hidden(pid, process);
    /* A zombie writes nothing more, unless it is only the first thread of a process that is still
     * finishing its I/O. */
    char state = stat[STAT_STATE][0];
    if ((state == 'Z' || state == 'X') && g_ascii_strtoull(stat[STAT_THREADS], NULL, 10) <= 1)
        return false;
    g_autofree char *name = process_name(stat);
    return !process || strcmp(name, process) == 0;
}
