/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The qcow2 driver on the command line, for tests that compare it with QEMU's.
 *
 *   qcow2-driver read IMAGE RAW         the guest's view, through the chain, into RAW
 *   qcow2-driver map IMAGE              number of extents and of bytes by status
 */
#include "blockmig/storage/file.h"
#include "formats/chain.h"

#include <stdio.h>
#include <string.h>

#define BUFFER (1u << 20)

static struct chain *open_chain(const char *path, GError **error)
{
    static unsigned flags = FILE_NO_LOCK;
    const struct chain_policy policy = {.open = storage_file_open_for_chain, .opaque = &flags};

    return chain_open(path, &format_qcow2, &policy, error);
}

/* Leaves holes where the map knows zeros, so that huge disks stay small. */
static bool command_read(char **argv, GError **error)
{
    g_autoptr(chain_t) chain = open_chain(argv[0], error);
    g_autoptr(storage_t) out = NULL;
    g_autofree uint8_t *buffer = g_malloc(BUFFER);
    struct extent extent;
    size_t count;

    if (!chain)
        return false;
    out = storage_file_open(argv[1], FILE_WRITE | FILE_CREATE, NULL, NULL, error);
    if (!out || !storage_resize(out, chain->size, error))
        return false;
    for (uint64_t offset = 0; offset < chain->size; offset = extent_end(&extent)) {
        if (!chain_map(chain, offset, chain->size - offset, &extent, 1, &count, error))
            return false;
        for (uint64_t at = offset; extent.status != EXTENT_ZERO && at < extent_end(&extent); at += BUFFER) {
            size_t length = MIN(BUFFER, extent_end(&extent) - at);

            if (!chain_read(chain, buffer, length, at, error) ||
                !storage_pwrite(out, buffer, length, at, error))
                return false;
        }
    }
    return true;
}

static bool command_map(char **argv, GError **error)
{
    g_autoptr(chain_t) chain = open_chain(argv[0], error);
    static struct extent extents[1024];
    uint64_t total = 0, bytes[4] = {0};
    size_t count;

    if (!chain)
        return false;
    for (uint64_t offset = 0; offset < chain->size; offset = extent_end(&extents[count - 1])) {
        if (!chain_map(chain, offset, chain->size - offset, extents, G_N_ELEMENTS(extents), &count, error))
            return false;
        total += count;
        for (size_t i = 0; i < count; i++)
            bytes[extents[i].status] += extents[i].length;
    }
    printf("%" G_GUINT64_FORMAT " extents", total);
    for (unsigned i = 0; i < 4; i++)
        printf(", %s %" G_GUINT64_FORMAT, extent_status_name(i), bytes[i]);
    printf("\n");
    return true;
}

static const struct {
    const char *name;
    int arguments;
    bool (*run)(char **argv, GError **error);
} commands[] = {
    {"read", 2, command_read},
    {"map", 1, command_map},
};

int main(int argc, char **argv)
{
    g_autoptr(GError) error = NULL;

    for (unsigned i = 0; argc > 1 && i < G_N_ELEMENTS(commands); i++) {
        if (strcmp(argv[1], commands[i].name) != 0 || argc != 2 + commands[i].arguments)
            continue;
        if (commands[i].run(argv + 2, &error))
            return 0;
        fprintf(stderr, "qcow2-driver: %s\n", error->message);
        return 1;
    }
    fprintf(stderr, "usage: qcow2-driver COMMAND ARGUMENT...\n");
    return 2;
}
