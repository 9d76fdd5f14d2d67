/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Random chains that QEMU made, read through chain_read() and by qemu-img. */
#include "blockmig/storage/file.h"
#include "formats/chain.h"
#include "tests/unit/harness.h"

#include <stdlib.h>
#include <sys/stat.h>

#define MIB      (UINT64_C(1) << 20)
#define COMMANDS 6
#define CHAINS   15

static char *directory;

static void run(const char *const *argv)
{
    g_autofree char *output = NULL;
    g_autofree char *line = g_strjoinv(" ", (char **)argv);

    if (harness_run(&output, argv) != 0)
        g_error("%s: %s", line, output);
}

static char *layer_name(unsigned layer)
{
    return g_strdup_printf("%s/layer%u", directory, layer);
}

static char *random_options(GRand *rand)
{
    unsigned bits = g_rand_int_range(rand, 9, 18);
    bool extended = bits >= 14 && g_rand_boolean(rand);

    return g_strdup_printf("cluster_size=%u%s%s", 1u << bits, extended ? ",extended_l2=on" : "",
                           g_rand_boolean(rand) ? ",compression_type=zstd" : "");
}

/* Layers are created from the base up: layer 0 is the base here. */
static const char *create_layer(GRand *rand, unsigned layer, uint64_t size, const char *below)
{
    const char *format = layer == 0 && g_rand_boolean(rand) ? "raw" : "qcow2";
    bool raw = strcmp(format, "raw") == 0;
    g_autofree char *path = layer_name(layer);
    g_autofree char *backing = g_strdup_printf("layer%u", layer - 1);
    g_autofree char *options = raw ? g_strdup("preallocation=off") : random_options(rand);
    g_autofree char *bytes = g_strdup_printf("%" G_GUINT64_FORMAT, size);
    const char *base[] = {"qemu-img", "create", "-q", "-f", format, "-o", options, path, bytes, NULL};
    const char *overlay[] = {"qemu-img", "create", "-q", "-f",  format, "-o",  options,
                             "-b",       backing,  "-F", below, path,   bytes, NULL};

    run(layer == 0 ? base : overlay);
    return format;
}

static char *random_command(GRand *rand, uint64_t size, bool may_pack)
{
    static const char *const kinds[] = {"write -q -P 0x%x", "write -q -P 0x%x", "write -q -z",
                                        "write -q -z -u", "discard -q"};
    uint64_t offset = g_rand_int_range(rand, 0, size / 512) * UINT64_C(512);
    uint64_t limit = g_rand_boolean(rand) ? 8192 : MIB;
    uint64_t most = MIN(size - offset, limit);
    uint64_t length = g_rand_int_range(rand, 1, most / 512 + 1) * UINT64_C(512);
    unsigned kind = may_pack && g_rand_boolean(rand) ? 1 : g_rand_int_range(rand, 0, G_N_ELEMENTS(kinds));
    unsigned pattern = g_rand_int_range(rand, 1, 256);
    g_autofree char *verb = kind < 2 ? g_strdup_printf("write -q -P 0x%x", pattern) : g_strdup(kinds[kind]);

    if (may_pack && kind == 1) /* whole clusters, whatever their size; never over others: QEMU refuses that */
        return g_strdup_printf("write -q -c -P 0x%x %" G_GUINT64_FORMAT " 128k", pattern,
                               offset / (128 << 10) * (128 << 10));
    return g_strdup_printf("%s %" G_GUINT64_FORMAT " %" G_GUINT64_FORMAT, verb, offset, length);
}

static void write_layer(GRand *rand, unsigned layer, uint64_t size, const char *format)
{
    g_autofree char *path = layer_name(layer);
    g_autoptr(GPtrArray) argv = g_ptr_array_new_with_free_func(g_free);
    bool packs = strcmp(format, "qcow2") == 0 && size % (128 << 10) == 0;
    const char *const head[] = {"qemu-io", "-d", "unmap", "-f", format};

    for (size_t i = 0; i < G_N_ELEMENTS(head); i++)
        g_ptr_array_add(argv, g_strdup(head[i]));
    for (unsigned i = 0; i < COMMANDS; i++) {
        g_ptr_array_add(argv, g_strdup("-c"));
        g_ptr_array_add(argv, random_command(rand, size, i == 0 && packs));
    }
    g_ptr_array_add(argv, g_strdup(path));
    g_ptr_array_add(argv, NULL);
    run((const char *const *)argv->pdata);
}

static void compare(const char *top, const char *format)
{
    g_autofree char *flat = g_build_filename(directory, "flat", NULL);
    const char *argv[] = {"qemu-img", "convert", "-f", format, "-O", "raw", top, flat, NULL};
    struct chain_policy policy = {.open = storage_file_open_for_chain};
    g_autoptr(GError) error = NULL;
    g_autoptr(chain_t) chain = NULL;
    g_autofree uint8_t *ours = NULL;
    g_autofree char *theirs = NULL;
    gsize length;

    run(argv);
    g_assert_true(g_file_get_contents(flat, &theirs, &length, NULL));
    chain = chain_open(top, NULL, &policy, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(chain->size, ==, length);
    ours = g_malloc(length);
    assert_ok(chain_read(chain, ours, length, 0, &error));
    for (gsize i = 0; i < length; i++) {
        if (ours[i] != (uint8_t)theirs[i])
            g_error("%s of %u layers differs at %zu: %02x, qemu-img says %02x", top, chain_depth(chain), i,
                    ours[i], (uint8_t)theirs[i]);
    }
}

static void test_random(void)
{
    g_autoptr(GRand) rand = harness_rand();
    g_autofree char *tool = g_find_program_in_path("qemu-io");

    if (!tool) {
        harness_skip("no qemu-io");
        return;
    }
    for (unsigned i = 0; i < CHAINS; i++) {
        unsigned depth = g_rand_int_range(rand, 1, 6);
        const char *format = NULL;
        g_autofree char *top = layer_name(depth - 1);

        for (unsigned layer = 0; layer < depth; layer++) {
            uint64_t unit = g_rand_boolean(rand) ? 512 : 128 << 10;
            uint64_t size = g_rand_int_range(rand, MIB / unit, 4 * MIB / unit) * unit;

            format = create_layer(rand, layer, size, format);
            write_layer(rand, layer, size, format);
        }
        compare(top, format);
    }
}

int main(int argc, char **argv)
{
    int status;

    g_test_init(&argc, &argv, NULL);
    directory = harness_directory();
    g_test_add_func("/chain-qemu/random", test_random);
    status = g_test_run();
    harness_remove(directory);
    g_free(directory);
    return status;
}
