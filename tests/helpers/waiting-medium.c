/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An nbdkit plugin: the file FILE as a medium that ends no write while the machine whose monitor is QMP
 * stands still.
 *
 * QEMU tells a monitor of a pause before it answers who asked for it, so nothing that is written because of
 * that answer slips through.  No write is held for longer than a minute.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL
#define POLL_TIME    10000      /* us */
#define LONGEST      (60 * 100) /* polls */
#define HELLO        "{\"execute\": \"qmp_capabilities\"}\n"

static int medium = -1;
static struct sockaddr_un address = {.sun_family = AF_UNIX};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int monitor = -1;
static char lines[65536]; /* what came from it and is not complete yet */
static size_t length;
static bool answered, stopped;

static int medium_config(const char *key, const char *value)
{
    if (strcmp(key, "file") == 0)
        return (medium = open(value, O_RDWR | O_CLOEXEC)) < 0 ? -1 : 0;
    if (strcmp(key, "qmp") != 0 || strlen(value) >= sizeof(address.sun_path))
        return -1;
    strcpy(address.sun_path, value);
    return 0;
}

static void *medium_open(int readonly)
{
    (void)readonly;
    return NBDKIT_HANDLE_NOT_NEEDED;
}

static int64_t medium_get_size(void *handle)
{
    struct stat status;

    (void)handle;
    return fstat(medium, &status) < 0 ? -1 : status.st_size;
}

/* ---- the machine ---------------------------------------------------------------------------------- */

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

/* ---- the medium ----------------------------------------------------------------------------------- */

static int medium_pread(void *handle, void *buffer, uint32_t count, uint64_t offset, uint32_t flags)
{
    (void)handle;
    (void)flags;
    return pread(medium, buffer, count, (off_t)offset) == (ssize_t)count ? 0 : -1;
}

static int medium_pwrite(void *handle, const void *buffer, uint32_t count, uint64_t offset, uint32_t flags)
{
    (void)handle;
    (void)flags;
    for (unsigned i = 0; i < LONGEST && stands_still(); i++)
        usleep(POLL_TIME);
    return pwrite(medium, buffer, count, (off_t)offset) == (ssize_t)count ? 0 : -1;
}

static int medium_flush(void *handle, uint32_t flags)
{
    (void)handle;
    (void)flags;
    return 0;
}

static struct nbdkit_plugin plugin = {
    .name = "waiting-medium",
    .config = medium_config,
    .open = medium_open,
    .get_size = medium_get_size,
    .pread = medium_pread,
    .pwrite = medium_pwrite,
    .flush = medium_flush,
};

NBDKIT_REGISTER_PLUGIN(plugin)
