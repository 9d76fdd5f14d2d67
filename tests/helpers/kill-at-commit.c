/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Preloaded into the program under test: SIGKILL right after the journal's commit number KILL_AT_COMMIT, to
 * the process KILL_TOO first, if there is one, and then to itself.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int number_of(const char *name)
{
    const char *text = getenv(name);

    return text ? atoi(text) : 0;
}

int sqlite3_step(sqlite3_stmt *statement)
{
    static int (*step)(sqlite3_stmt *);
    static int count;
    const char *sql = sqlite3_sql(statement);
    int result;

    if (!step)
        *(void **)&step = dlsym(RTLD_NEXT, "sqlite3_step");
    result = step(statement);
    if (result != SQLITE_DONE || !sql || strcmp(sql, "COMMIT") != 0 || ++count != number_of("KILL_AT_COMMIT"))
        return result;
    if (number_of("KILL_TOO"))
        kill(number_of("KILL_TOO"), SIGKILL);
    kill(getpid(), SIGKILL);
    return result;
}
