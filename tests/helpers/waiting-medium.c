/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An nbdkit plugin: the file FILE as a medium that ends no write while the machine whose monitor is QMP
 * stands still.
 */
#include "stands-still.h"

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/stat.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL
static int medium = -1;

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
    wait_while_it_stands_still();
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
