/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which backing files a chain accepts: real files, real links, and a driver for images that say nothing but
 * "LAYER", size, backing name, backing format and whether they want a parent, one per line.
 */
#include "blockmig/storage/file.h"
#include "formats/chain.h"
#include "tests/unit/harness.h"

#include <fcntl.h>
#include <sys/stat.h>

static char *top_directory; /* the datastore is top_directory/store */

static bool layer_probe(const uint8_t *head, size_t length, struct storage *storage)
{
    return length >= 6 && memcmp(head, "LAYER\n", 6) == 0;
}

static bool layer_open(struct image *image, GError **error)
{
    g_autofree char *text = g_malloc0(image->storage->size + 1);
    g_auto(GStrv) lines = NULL;

    if (!storage_pread(image->storage, text, image->storage->size, 0, error))
        return false;
    lines = g_strsplit(text, "\n", 0);
    image->size = g_ascii_strtoull(lines[1], NULL, 10);
    if (strcmp(lines[2], "-") != 0)
        image->backing_name = g_strdup(lines[2]);
    if (strcmp(lines[3], "-") != 0)
        image->backing_format = g_strdup(lines[3]);
    image->wants_parent = lines[4][0] == 'w';
    return true;
}

static bool layer_map(struct image *image, uint64_t offset, uint64_t length, struct extent *out, size_t max,
                      size_t *count, GError **error)
{
    *out = (struct extent){.offset = offset, .length = length, .status = EXTENT_HOLE};
    *count = 1;
    return true;
}

static const struct format format_layer = {
    .name = "layer",
    .flags = FORMAT_BACKING,
    .probe = layer_probe,
    .open = layer_open,
    .map = layer_map,
};

/* A driver that records identities: "IDENT", own identity, that of the parent, names of the parent, one per
 * line. */
static bool ident_open(struct image *image, GError **error)
{
    g_autofree char *text = g_malloc0(image->storage->size + 1);
    char **lines;

    if (!storage_pread(image->storage, text, image->storage->size, 0, error))
        return false;
    if (!g_str_has_prefix(text, "IDENT\n"))
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "not an IDENT image");
    image->opaque = lines = g_strsplit(text, "\n", 0);
    image->size = 4096;
    for (char **name = lines + 3; *name; name++)
        image_add_parent_name(image, *name);
    image->backing_format = g_strdup("ident");
    image->wants_parent = strcmp(lines[2], "-") != 0;
    return true;
}

static bool ident_check_parent(struct image *image, struct image *parent, GError **error)
{
    char **lines = image->opaque, **other = parent->opaque;

    return (parent->format == image->format && strcmp(lines[2], other[1]) == 0) ||
           blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "made over %s, not over this parent", lines[2]);
}

static void ident_close(struct image *image)
{
    g_strfreev(image->opaque);
}

static const struct format format_ident = {
    .name = "ident",
    .flags = FORMAT_BACKING,
    .open = ident_open,
    .map = layer_map,
    .check_parent = ident_check_parent,
    .close = ident_close,
};

/* These stand in for the table of formats: this program has only three. */
const struct format *format_by_name(const char *name, GError **error)
{
    if (strcmp(name, "layer") == 0)
        return &format_layer;
    if (strcmp(name, "ident") == 0)
        return &format_ident;
    if (strcmp(name, "raw") == 0)
        return &format_raw;
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE, "unknown format");
    return NULL;
}

const struct format *format_probe(struct storage *storage, GError **error)
{
    uint8_t head[6] = {0};

    if (!storage_pread(storage, head, MIN(storage->size, 6), 0, error))
        return NULL;
    if (memcmp(head, "IDENT\n", 6) == 0)
        return &format_ident;
    return layer_probe(head, sizeof(head), storage) ? &format_layer : &format_raw;
}

static char *in_top(const char *name)
{
    return g_build_filename(top_directory, name, NULL);
}

static void put(const char *name, const char *content)
{
    g_autofree char *path = in_top(name);

    g_assert_true(g_file_set_contents(path, content, -1, NULL));
}

static void put_layer(const char *name, const char *backing, const char *format, bool wants)
{
    g_autofree char *text = g_strdup_printf("LAYER\n4096\n%s\n%s\n%s\n", backing ? backing : "-",
                                            format ? format : "-", wants ? "w" : "-");

    put(name, text);
}

static struct chain *open_with(const char *name, struct chain_policy policy, GError **error)
{
    g_autofree char *path = name[0] == '/' ? g_strdup(name) : in_top(name);

    policy.open = storage_file_open_for_chain;
    return chain_open(path, NULL, &policy, error);
}

static void accepts(const char *name, struct chain_policy policy, unsigned depth, const char *base)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(chain_t) chain = open_with(name, policy, &error);
    g_autofree char *wanted = in_top(base);
    g_autofree char *real = realpath(wanted, NULL);

    g_assert_no_error(error);
    g_assert_cmpuint(chain_depth(chain), ==, depth);
    g_assert_cmpstr(g_ptr_array_index(chain->paths, depth - 1), ==, real);
}

static void refuses_with(const char *name, struct chain_policy policy, const char *why)
{
    g_autoptr(GError) error = NULL;

    assert_fails(open_with(name, policy, &error), BLOCKMIG_ERROR_REFUSED, why);
}

static void refuses(const char *name, const char *why)
{
    refuses_with(name, (struct chain_policy){0}, why);
}

static void test_relative_names(void)
{
    put("store/base", "raw bytes");
    put_layer("store/sub/mid", "../base", "raw", false);
    put_layer("store/top", "sub/mid", "layer", false);
    accepts("store/top", (struct chain_policy){0}, 3, "store/base");
    accepts("store/sub/../top", (struct chain_policy){0}, 3, "store/base");

    /* Relative to the directory of the layer that names it, not of the working directory, and of the real
     * file, not of the link by which it was reached. */
    {
        g_autofree char *link = in_top("elsewhere/link");

        g_assert_cmpint(symlink("../store/top", link), ==, 0);
        accepts("elsewhere/link", (struct chain_policy){0}, 3, "store/base");
    }
}

static void test_names(void)
{
    static const char *const bad[][2] = {
        {"json:{\"driver\":\"raw\"}", "json:"},
        {"JSON:{}", "json:"},
        {"nbd://host/x", "protocol"},
        {"nbd+unix:///x", "protocol"},
        {"file:base", "protocol"},
        {"fat:rw:/etc", "protocol"},
        {"ba\x1bse", "control character"},
        {"ba\tse", "control character"},
        {"base\x7f", "control character"},
        {"", "empty"},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) error = NULL;

        assert_fails(chain_name_is_plain(bad[i][0], &error), BLOCKMIG_ERROR_REFUSED, bad[i][1]);
        put_layer("store/top", bad[i][0], "raw", false);
        refuses("store/top", bad[i][1]);
    }
    put("store/a:b", "raw");
    put_layer("store/top", "./a:b", "raw", false);
    accepts("store/top", (struct chain_policy){0}, 2, "store/a:b");
}

static void test_formats(void)
{
    put_layer("store/inner", "../outside/secret", "raw", false);
    put_layer("store/top", "inner", NULL, false);
    refuses("store/top", "does not state its format");
    put_layer("store/top", "inner", "vhdx9", false);
    refuses("store/top", "unknown format \"vhdx9\"");
    put_layer("store/top", "inner", "", false);
    refuses("store/top", "unknown format \"\"");
    /* Stated to be raw: it stays raw, whatever a guest has written into it. */
    put_layer("store/top", "inner", "raw", false);
    accepts("store/top", (struct chain_policy){0}, 2, "store/inner");
}

static void test_roots(void)
{
    g_autofree char *secret = in_top("outside/secret");
    g_autofree char *outside = in_top("outside");
    g_autofree char *sneaky = in_top("store/sneaky");
    g_autofree char *directory = in_top("store/directory-link");
    const char *allowed[] = {outside, NULL};
    struct chain_policy policy = {.allowed_roots = allowed};

    put("outside/secret", "secret");
    put("store-2/neighbour", "x");
    put_layer("store/top", "../outside/secret", "raw", false);
    refuses("store/top", "outside the allowed directories");
    accepts("store/top", policy, 2, "outside/secret");
    put_layer("store/top", secret, "raw", false);
    refuses("store/top", "outside the allowed directories");
    put_layer("store/top", "/etc/passwd", "raw", false);
    refuses_with("store/top", policy, "outside the allowed directories");
    put_layer("store/top", "../store-2/neighbour", "raw", false);
    refuses("store/top", "outside the allowed directories");

    g_assert_cmpint(symlink(secret, sneaky), ==, 0);
    put_layer("store/top", "sneaky", "raw", false);
    refuses("store/top", "outside the allowed directories");
    accepts("store/top", policy, 2, "outside/secret");
    g_assert_cmpint(symlink("../outside", directory), ==, 0);
    put_layer("store/top", "directory-link/secret", "raw", false);
    refuses("store/top", "outside the allowed directories");
}

static void test_objects(void)
{
    g_autofree char *fifo = in_top("store/fifo");
    g_autofree char *fd_name = NULL;
    int fd;

    g_assert_cmpint(mkfifo(fifo, 0600), ==, 0);
    put_layer("store/top", "fifo", "raw", false);
    refuses("store/top", "block device");
    put_layer("store/top", "sub", "raw", false);
    refuses("store/top", "directory");
    put_layer("store/top", "/dev/zero", "raw", false);
    refuses("store/top", "block device");
    put_layer("store/top", "missing", "raw", false);
    refuses("store/top", "No such file");

    /* The descriptor tricks lead to the object itself, and that is what is judged. */
    put("outside/secret", "secret");
    {
        g_autofree char *secret = in_top("outside/secret");

        fd = open(secret, O_RDONLY);
    }
    fd_name = g_strdup_printf("/proc/self/fd/%d", fd);
    put_layer("store/top", fd_name, "raw", false);
    refuses("store/top", "outside the allowed directories");
    close(fd);
    put_layer("store/top", "/dev/fd/0", "raw", false);
    refuses("store/top", "/dev/fd/0");
    put_layer("store/top", "/proc/self/environ", "raw", false);
    refuses("store/top", "outside the allowed directories");
}

static void test_loops(void)
{
    g_autofree char *a = in_top("store/loop-a");
    g_autofree char *hard = in_top("store/loop-hard");
    g_autofree char *soft = in_top("store/loop-soft");
    struct chain_policy writable = {.writable_top = true};

    put_layer("store/loop-a", "loop-a", "layer", false);
    refuses("store/loop-a", "loop");
    refuses_with("store/loop-a", writable, "loop");
    put_layer("store/loop-a", "loop-b", "layer", false);
    put_layer("store/loop-b", "sub/../loop-a", "layer", false);
    refuses("store/loop-a", "loop-a -> ");
    refuses("store/loop-a", "loop-b -> ");
    refuses_with("store/loop-a", writable, "loop");
    g_assert_cmpint(link(a, hard), ==, 0);
    put_layer("store/loop-b", "loop-hard", "layer", false);
    refuses("store/loop-a", "loop");
    g_assert_cmpint(symlink("loop-a", soft), ==, 0);
    put_layer("store/loop-b", "loop-soft", "layer", false);
    refuses("store/loop-a", "loop");
    put_layer("store/loop-b", "loop-b", "layer", false);
    refuses("store/loop-a", "loop");
}

static void test_depth(void)
{
    struct chain_policy three = {.max_depth = 3};

    for (unsigned i = 0; i < 66; i++) {
        g_autofree char *name = g_strdup_printf("store/d%u", i);
        g_autofree char *below = g_strdup_printf("d%u", i - 1);

        put_layer(name, i ? below : NULL, i ? "layer" : NULL, false);
    }
    accepts("store/d63", (struct chain_policy){0}, 64, "store/d0");
    refuses("store/d64", "more than 64 layers");
    accepts("store/d2", three, 3, "store/d0");
    refuses_with("store/d3", three, "more than 3 layers");
}

static void test_parents(void)
{
    g_autofree char *parent_path = in_top("outside/parent");
    g_autofree char *raw_path = in_top("outside/rawparent");
    struct chain_parent parents[] = {{.path = parent_path}, {.path = raw_path, .format = (char *)"raw"}};
    struct chain_policy policy = {.parents = parents, .parent_count = 1};

    put("outside/rawparent", "raw bytes");
    put_layer("outside/parent", NULL, NULL, true);
    put_layer("store/diff", NULL, NULL, true);
    refuses("store/diff", "--parent");
    refuses_with("store/diff", policy, "--parent"); /* the parent wants one, too */
    policy.parent_count = 2;
    accepts("store/diff", policy, 3, "outside/rawparent");
    parents[1].format = NULL;
    refuses_with("store/diff", policy, "looks raw");
    parents[1].format = (char *)"layer";
    parents[1].path = parent_path;
    refuses_with("store/diff", policy, "loop");

    /* One more than is wanted: the base cannot have a parent, and nobody is silently ignored. */
    put("store/plain", "raw bytes");
    policy.parent_count = 1;
    refuses_with("store/plain", policy, "has no parent");
    parents[0].path = in_top("outside/nowhere");
    refuses_with("store/diff", policy, "No such file");
    g_free(parents[0].path);
}

static void name_becomes(const char *name, const char *expected)
{
    struct image image = {.name = (char *)"test"};

    image_add_parent_name(&image, name);
    g_assert_cmpstr(image.backing_name, ==, expected);
    g_assert_cmpuint(image.parent_names->len, ==, expected ? 1 : 0);
    g_ptr_array_unref(image.parent_names);
    g_free(image.backing_name);
}

static void test_windows_names(void)
{
    name_becomes(".\\a b.vhd", "./a b.vhd");
    name_becomes("..\\x\\p.vhdx", "../x/p.vhdx");
    name_becomes("C:\\dir\\p.vhd", "/dir/p.vhd");
    name_becomes("c:p.vhd", "p.vhd");
    name_becomes("\\\\host\\share\\dir\\p.vhd", "/dir/p.vhd");
    name_becomes("\\\\?\\C:\\dir\\p.vhd", "/dir/p.vhd");
    name_becomes("\\\\?\\UNC\\host\\share\\p.vhd", "/p.vhd");
    name_becomes("/unix/p.vhd", "/unix/p.vhd");
    name_becomes("plain", "plain");
    name_becomes("", NULL);
    name_becomes("C:", NULL);
    name_becomes("\\\\host", NULL);
}

/* Names are tried in order; which parent it is, its identity says. */
static void test_identity(void)
{
    g_autofree char *other = in_top("outside/ident");
    struct chain_parent parent = {.path = other};
    struct chain_policy policy = {.parents = &parent, .parent_count = 1};

    put("store/id-base", "IDENT\nA\n-");
    put("store/id-wrong", "IDENT\nB\n-");
    put("store/id-first", "IDENT\nC\nA\n.\\id-base\nD:\\x\\id-wrong");
    accepts("store/id-first", (struct chain_policy){0}, 2, "store/id-base");
    put("store/id-second", "IDENT\nC\nA\nnowhere\n.\\id-base");
    accepts("store/id-second", (struct chain_policy){0}, 2, "store/id-base");
    put("store/id-moved", "IDENT\nC\nA\nE:\\vm\\id-base");
    accepts("store/id-moved", (struct chain_policy){0}, 2, "store/id-base");
    put("store/id-mixed", "IDENT\nC\nA\nid-wrong");
    refuses("store/id-mixed", "made over A, not over this parent");
    put("store/id-lost", "IDENT\nC\nA\n..\\gone\nF:\\vm\\lost");
    refuses("store/id-lost", "\"../gone\" (");
    refuses("store/id-lost", "\"lost\" (");
    put("store/id-self", "IDENT\nC\nA\nid-self");
    refuses("store/id-self", "loop");

    put("outside/ident", "IDENT\nA\n-");
    accepts("store/id-lost", policy, 2, "outside/ident");
    accepts("store/id-mixed", policy, 2, "outside/ident"); /* what the user says stands above the names */
    put("outside/ident", "IDENT\nB\n-");
    refuses_with("store/id-lost", policy, "made over A, not over this parent");
    refuses_with("store/id-base", policy, "has no parent");
}

static void test_top_only(void)
{
    g_autoptr(GError) error = NULL;
    struct chain_policy policy = {.top_only = true};
    g_autoptr(chain_t) chain = NULL;
    struct extent extent;
    size_t count;

    put_layer("store/top", "json:{}", NULL, false);
    chain = open_with("store/top", policy, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(chain_depth(chain), ==, 1);
    assert_ok(chain_map(chain, 0, 4096, &extent, 1, &count, &error));
    g_assert_cmpint(extent.status, ==, EXTENT_HOLE);
}

int main(int argc, char **argv)
{
    static const char *const directories[] = {"store", "store/sub", "store-2", "outside", "elsewhere"};
    int status;

    g_test_init(&argc, &argv, NULL);
    top_directory = harness_directory();
    for (size_t i = 0; i < G_N_ELEMENTS(directories); i++) {
        g_autofree char *path = in_top(directories[i]);

        g_assert_cmpint(mkdir(path, 0700), ==, 0);
    }
    g_test_add_func("/chain-policy/relative-names", test_relative_names);
    g_test_add_func("/chain-policy/names", test_names);
    g_test_add_func("/chain-policy/formats", test_formats);
    g_test_add_func("/chain-policy/roots", test_roots);
    g_test_add_func("/chain-policy/objects", test_objects);
    g_test_add_func("/chain-policy/loops", test_loops);
    g_test_add_func("/chain-policy/depth", test_depth);
    g_test_add_func("/chain-policy/parents", test_parents);
    g_test_add_func("/chain-policy/windows-names", test_windows_names);
    g_test_add_func("/chain-policy/identity", test_identity);
    g_test_add_func("/chain-policy/top-only", test_top_only);
    status = g_test_run();
    harness_remove(top_directory);
    g_free(top_directory);
    return status;
}
