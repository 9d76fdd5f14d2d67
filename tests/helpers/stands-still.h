/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Does the machine whose monitor is at `address` stand still?  For helpers that are one file each.
 *
 * QEMU tells a monitor of a pause before it answers who asked for it, so nothing that is done because of that
 * answer slips through.
 */
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define POLL_TIME 10000      /* us */
#define LONGEST   (60 * 100) /* polls */
#define HELLO     "{\"execute\": \"qmp_capabilities\"}\n"

static struct sockaddr_un address = {.sun_family = AF_UNIX};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int monitor = -1;
static char lines[65536]; /* what came from it and is not complete yet */
static size_t length;
static bool answered, stopped;

static void hang_up(void)
{
    close(monitor);
    monitor = -1;
    length = 0;
    answered = stopped = false;
}

static void note(const char *line)
{
    if (strstr(line, "\"return\""))
        answered = true;
    if (strstr(line, "\"event\": \"STOP\""))
        stopped = true;
    if (strstr(line, "\"event\": \"RESUME\""))
        stopped = false;
}

/* Everything that has come, and with flags 0 at least something. */
static void listen_to_it(int flags)
{
    ssize_t got;
    char *end;

    while (monitor >= 0 && (got = recv(monitor, lines + length, sizeof(lines) - 1 - length, flags)) >= 0) {
        if (got == 0) {
            hang_up();
            return;
        }
        length += (size_t)got;
        lines[length] = 0;
        while ((end = strchr(lines, '\n'))) {
            *end = 0;
            note(lines);
            length -= (size_t)(end + 1 - lines);
            memmove(lines, end + 1, length + 1);
        }
        flags = MSG_DONTWAIT;
    }
    if (monitor >= 0 && errno != EAGAIN && errno != EINTR)
        hang_up();
}

/* Only from then on it is told of events. */
static void call(void)
{
    monitor = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(monitor, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        send(monitor, HELLO, strlen(HELLO), MSG_NOSIGNAL) < 0)
        hang_up();
    while (monitor >= 0 && !answered)
        listen_to_it(0);
}

static bool stands_still(void)
{
    bool result;

    pthread_mutex_lock(&lock);
    if (monitor < 0)
        call();
    listen_to_it(MSG_DONTWAIT);
    result = stopped;
    pthread_mutex_unlock(&lock);
    return result;
}

/* For a minute at most. */
static void wait_while_it_stands_still(void)
{
    for (unsigned i = 0; i < LONGEST && stands_still(); i++)
        usleep(POLL_TIME);
}
