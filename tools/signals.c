/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tools/signals.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <unistd.h>

static volatile sig_atomic_t cancelled;
static volatile sig_atomic_t progress_wish;
static volatile sig_atomic_t interactive;

static void on_stop(int number)
{
    static const char text[] = "\nblockmig: stopping in order; press again to stop at once\n";
    int saved = errno;
    cancelled = 1;
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    signal(SIGHUP, SIG_DFL);
    if (interactive) {
        ssize_t ignored = write(STDERR_FILENO, text, sizeof text - 1);
        (void)ignored;
    }
    errno = saved;
}

static void on_progress(int number)
{
    progress_wish = 1;
}

/* A signal that the parent ignores (nohup, a background job of a script) stays ignored. */
static void handle(int number, void (*handler)(int))
{
    struct sigaction old, action = {.sa_handler = handler, .sa_flags = SA_RESTART};
    if (sigaction(number, NULL, &old) == 0 && old.sa_handler != SIG_IGN)
        sigaction(number, &action, NULL);
}

void signals_install(void)
{
    interactive = isatty(STDERR_FILENO);
    handle(SIGINT, on_stop);
    handle(SIGTERM, on_stop);
    handle(SIGHUP, on_stop);
    handle(SIGUSR1, on_progress);
    signal(SIGPIPE, SIG_IGN);
}

bool signals_cancelled(void *opaque)
{
    return cancelled;
}

bool signals_take_progress_wish(void)
{
    bool wish = progress_wish;
    progress_wish = 0;
    return wish;
}
