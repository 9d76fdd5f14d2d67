/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One JSON object per line; a byte 0xff makes void whatever came before it, and is complained about. */
#include "agent.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PORT_NAME "org.qemu.guest_agent.0"
#define PORTS     "/sys/class/virtio-ports"
#define NOT_THERE 100000 /* us between two looks while nobody is connected */

static const struct agent_hooks *agent;
static bool frozen;

static bool is_port(const char *name)
{
    char path[300], text[64] = "";
    snprintf(path, sizeof(path), PORTS "/%s/name", name);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return false;
    bool found = fgets(text, sizeof(text), file) != NULL && strcmp(text, PORT_NAME "\n") == 0;
    fclose(file);
    return found;
}

/* -1: the machine has none. */
static int open_port(void)
{
    char path[300] = "";
    DIR *directory = opendir(PORTS);
    struct dirent *entry;
    while (directory != NULL && (entry = readdir(directory)) != NULL)
        if (is_port(entry->d_name))
            snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
    if (directory != NULL)
        closedir(directory);
    return path[0] != '\0' ? open(path, O_RDWR | O_CLOEXEC) : -1;
}

static void set_frozen(bool value)
{
    if (frozen == value)
        return;
    if (value)
        agent->freeze();
    else
        agent->thaw();
    frozen = value;
    printf("guest: %s\n", value ? "frozen" : "thawed");
}

static void freeze(int port)
{
    if (agent->refuses) {
        dprintf(port, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"failed to freeze /\"}}\n");
        return;
    }
    set_frozen(true);
    usleep(agent->delay_ms * 1000);
    dprintf(port, "{\"return\": %u}\n", agent->disks);
}

static void obey(int port, const char *line)
{
    const char *name = strstr(line, "\"execute\""), *id = strstr(line, "\"id\"");
    if (name == NULL)
        dprintf(port, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"Invalid JSON syntax\"}}\n");
    else if (strstr(name, "\"guest-sync-delimited\"") != NULL && id != NULL)
        dprintf(port, "\xff{\"return\": %lld}\n", strtoll(strchr(id, ':') + 1, NULL, 10));
    else if (strstr(name, "\"guest-fsfreeze-freeze\"") != NULL)
        freeze(port);
    else if (strstr(name, "\"guest-fsfreeze-status\"") != NULL)
        dprintf(port, "{\"return\": \"%s\"}\n", frozen ? "frozen" : "thawed");
    else if (strstr(name, "\"guest-fsfreeze-thaw\"") != NULL) {
        unsigned count = frozen ? agent->disks : 0;
        set_frozen(false);
        dprintf(port, "{\"return\": %u}\n", count);
    } else
        dprintf(port, "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"not in this agent\"}}\n");
}

static void *serve(void *pointer)
{
    int port = *(int *)pointer;
    char line[512], c;
    size_t used = 0;
    while (true) {
        struct pollfd p = {.fd = port, .events = POLLIN};
        if (poll(&p, 1, -1) < 1 || (p.revents & POLLIN) == 0 || read(port, &c, 1) != 1) {
            usleep(NOT_THERE);
            continue;
        }
        if (c == '\xff') {
            used = 0;
            obey(port, "");
        } else if (c == '\n') {
            line[used] = '\0';
            used = 0;
            obey(port, line);
        } else if (used < sizeof(line) - 1) {
            line[used++] = c;
        }
    }
    return NULL;
}

void agent_serve(const struct agent_hooks *hooks)
{
    static int port;
    pthread_t thread;
    agent = hooks;
    port = open_port();
    if (port >= 0 && pthread_create(&thread, NULL, serve, &port) != 0)
        printf("guest: no thread for the agent\n");
}
