/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Receipts: what is written is read back, anybody's JSON parser reads it, and nothing can be changed unseen.
 */
#include "blockmig/store/receipt.h"

#include "formats/error.h"

#include <glib/gstdio.h>
#include <jansson.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define MIB (UINT64_C(1) << 20)

struct fixture {
    char *directory, *path;
};

static void set_up(struct fixture *f, gconstpointer data)
{
    f->directory = g_dir_make_tmp("blockmig-receipt-XXXXXX", NULL);
    f->path = g_build_filename(f->directory, "receipt.json", NULL);
}

static void tear_down(struct fixture *f, gconstpointer data)
{
    g_unlink(f->path);
    g_assert_cmpint(g_rmdir(f->directory), ==, 0); /* nothing temporary is left */
    g_free(f->directory);
    g_free(f->path);
}

static void set_chunk(struct digest_table *table, uint64_t chunk)
{
    uint8_t digest[DIGEST_MAX_LENGTH];
    digest_compute(digest_table_algorithm(table), &chunk, sizeof chunk, digest);
    digest_table_set(table, chunk, digest);
}

static struct receipt *new_receipt(enum digest_algorithm algorithm, uint64_t size)
{
    struct receipt *r = g_new0(struct receipt, 1);
    r->job = g_strdup("20261121-7f3a");
    r->command = g_strdup("copy");
    r->method = g_strdup("cold");
    r->source = g_strdup("/a/\"quoted\" \\ \n\t\x01\x7f \xc3\xa4 \xf0\x9f\x92\xbe.qcow2");
    r->target = g_strdup("/b/not \xff utf-8 \xc3.raw");
    r->source_format = g_strdup("qcow2");
    r->verified = g_strdup("full");
    r->started = INT64_C(1795298400000001);
    r->finished = INT64_C(1795298412300000);
    r->size = size;
    for (unsigned i = 0; i < sizeof r->counters / sizeof(uint64_t); i++)
        ((uint64_t *)&r->counters)[i] = UINT64_MAX - i;
    r->digests = digest_table_new(algorithm, size);
    return r;
}

static void add_bad(struct receipt *r, uint64_t offset, uint64_t length)
{
    struct copy_range range = {offset, length};
    if (!r->bad)
        r->bad = g_array_new(FALSE, FALSE, sizeof range);
    g_array_append_val(r->bad, range);
}

static void assert_same(const struct receipt *a, const struct receipt *b)
{
    g_assert_cmpstr(a->job, ==, b->job);
    g_assert_cmpstr(a->command, ==, b->command);
    g_assert_cmpstr(a->method, ==, b->method);
    g_assert_cmpstr(a->source, ==, b->source);
    g_assert_cmpstr(a->target, ==, b->target);
    g_assert_cmpstr(a->source_format, ==, b->source_format);
    g_assert_cmpstr(a->target_format, ==, b->target_format);
    g_assert_cmpstr(a->verified, ==, b->verified);
    g_assert_cmpint(a->started, ==, b->started);
    g_assert_cmpint(a->finished, ==, b->finished);
    g_assert_cmpuint(a->size, ==, b->size);
    g_assert_true(a->layer == b->layer);
    g_assert_true(memcmp(&a->counters, &b->counters, sizeof a->counters) == 0);
    guint bad = a->bad ? a->bad->len : 0;
    g_assert_cmpuint(bad, ==, b->bad ? b->bad->len : 0);
    if (bad)
        g_assert_cmpmem(a->bad->data, bad * sizeof(struct copy_range), b->bad->data,
                        bad * sizeof(struct copy_range));
    g_assert_true(digest_table_algorithm(a->digests) == digest_table_algorithm(b->digests));
    g_assert_cmpuint(digest_table_stored(a->digests), ==, digest_table_stored(b->digests));
    uint64_t chunk = 0;
    for (; digest_table_next(a->digests, &chunk); chunk++)
        g_assert_true(memcmp(digest_table_get(a->digests, chunk), digest_table_get(b->digests, chunk),
                             digest_length(digest_table_algorithm(a->digests))) == 0);
}

static struct receipt *write_and_read(struct fixture *f, const struct receipt *receipt)
{
    g_autoptr(GError) error = NULL;
    g_assert_true(receipt_write(receipt, f->path, &error));
    g_assert_no_error(error);
    struct receipt *back = receipt_read(f->path, &error);
    g_assert_no_error(error);
    assert_same(receipt, back);
    return back;
}

static void test_round_trip(struct fixture *f, gconstpointer data)
{
    for (enum digest_algorithm algorithm = DIGEST_XXH3_128; algorithm <= DIGEST_SHA256; algorithm++) {
        g_autoptr(receipt_t) r = new_receipt(algorithm, 5000 * MIB + 7);
        set_chunk(r->digests, 0);
        for (uint64_t i = 100; i < 1400; i++)
            set_chunk(r->digests, i);
        set_chunk(r->digests, 5000); /* the short last one */
        add_bad(r, 0, 512);
        add_bad(r, 5000 * MIB, 7);
        r->layer = algorithm == DIGEST_SHA256;
        g_autoptr(receipt_t) back = write_and_read(f, r);
    }
}

static void test_edges(struct fixture *f, gconstpointer data)
{
    g_autoptr(receipt_t) empty = new_receipt(DIGEST_XXH3_128, 0);
    empty->started = empty->finished = 0;
    g_clear_pointer(&empty->source, g_free);
    g_autoptr(receipt_t) empty_back = write_and_read(f, empty);

    /* 16 TiB of nothing but two chunks stays a small file. */
    g_autoptr(receipt_t) thin = new_receipt(DIGEST_XXH3_128, UINT64_C(16) << 40);
    set_chunk(thin->digests, 1);
    set_chunk(thin->digests, (UINT64_C(16) << 20) - 1);
    g_autoptr(receipt_t) thin_back = write_and_read(f, thin);
    GStatBuf st;
    g_assert_cmpint(g_stat(f->path, &st), ==, 0);
    g_assert_cmpint(st.st_size, <, 4096);
    g_assert_cmpint(st.st_mode & 022, ==, 0);

    g_autoptr(receipt_t) largest = new_receipt(DIGEST_SHA256, INT64_MAX);
    set_chunk(largest->digests, INT64_MAX / MIB);
    g_autoptr(receipt_t) largest_back = write_and_read(f, largest);
}

static json_t *load(struct fixture *f)
{
    json_error_t error;
    json_t *root = json_load_file(f->path, JSON_REJECT_DUPLICATES, &error);
    if (!root)
        g_error("%s", error.text);
    return root;
}

static json_t *written(struct fixture *f)
{
    g_autoptr(receipt_t) r = new_receipt(DIGEST_XXH3_128, 1000 * MIB);
    for (uint64_t i = 3; i < 600; i++)
        set_chunk(r->digests, i);
    add_bad(r, 4096, 512);
    memset(&r->counters, 1, sizeof r->counters); /* jansson knows no numbers beyond 63 bits */
    g_assert_true(receipt_write(r, f->path, NULL));
    return load(f);
}

/* Another parser reads it, and what another program writes is read: other order, other white space. */
static void test_other_parsers(struct fixture *f, gconstpointer data)
{
    json_t *root = written(f);
    g_assert_cmpint(json_integer_value(json_object_get(root, "schema")), ==, 1);
    g_assert_cmpstr(json_string_value(json_object_get(root, "started")), ==, "2026-11-21T22:00:00.000001Z");
    json_t *runs = json_object_get(json_object_get(root, "digest"), "runs");
    g_assert_cmpuint(json_array_size(runs), ==, 3);
    g_assert_cmpint(json_integer_value(json_object_get(json_array_get(runs, 0), "count")), ==, 256);
    json_decref(root);

    g_autoptr(GError) error = NULL;
    g_autoptr(receipt_t) first = receipt_read(f->path, &error);
    root = load(f);
    json_object_set_new(root, "later", json_pack("{s:[f,n,b,{s:s}]}", "a", -1.5e-3, 1, "b", "\"\\x"));
    for (unsigned i = 0; i < 2; i++) {
        size_t flags = i ? JSON_SORT_KEYS | JSON_INDENT(8) : JSON_COMPACT | JSON_ENSURE_ASCII;
        g_assert_cmpint(json_dump_file(root, f->path, flags), ==, 0);
        g_autoptr(receipt_t) again = receipt_read(f->path, &error);
        g_assert_no_error(error);
        assert_same(first, again);
    }
    json_decref(root);
}

static void assert_error(struct fixture *f, int code, const char *part)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(receipt_t) r = receipt_read(f->path, &error);
    g_assert_null(r);
    g_test_message("%s", error->message);
    g_assert_error(error, BLOCKMIG_ERROR, code);
    g_assert_nonnull(strstr(error->message, part));
}

/* One replacement in a good receipt, and what is said about it. */
static const struct {
    const char *from, *to, *part;
} damages[] = {
    {"\"schema\": 1", "\"schema\": 2", "schema 2"},
    {"\"schema\": 1", "\"schema\": 1.0", "whole"},
    {"\"schema\": 1", "\"schema\": 01", "leading zero"},
    {"\"schema\": 1", "\"schema\": -1", "whole number"},
    {"\"schema\": 1,", "\"schema\": 1,,", "string"},
    {"{\"schema\": 1,", "{", "\"schema\" is missing"},
    {"\"schema\": 1", "\"schema\": 1, \"schema\": 1", "twice"},
    {"\"size\": 1048576000", "\"size\": 18446744073709551615", "a disk of"},
    {"\"size\": 1048576000", "\"size\": 18446744073709551616", "64 bits"},
    {"\"size\": 1048576000", "\"size\": 104857600", "a disk of 100"},
    {"\"size\": 1048576000", "\"size\": \"1048576000\"", "whole number"},
    {"\"size\": 1048576000", "\"size\": null", "whole number"},
    {"\"verified\": \"full\"", "\"verified\": \"fully\"", "verified"},
    {"\"verified\": \"full\"", "\"verified\": null", "verified"},
    {"\"job\": \"2", "\"job\": \"\\ud800", "surrogate"},
    {"\"job\": \"2", "\"job\": \"\\udc00", "udc00"},
    {"\"job\": \"2", "\"job\": \"\\u0000", "u0000"},
    {"\"job\": \"2", "\"job\": \"\\x", "escape"},
    {"\"job\": \"2", "\"job\": \"\xff", "UTF-8"},
    {"\"job\": \"2", "\"job\": \"\n", "0x0a"},
    {"T22:00", "T25:00", "not a time"},
    {"000001Z", "000001+01:00", "not a time"},
    {"\"target_bytes\": \"2f", "\"target_bytes\": \"zz", "bytes of a name"},
    {"\"target_bytes\": \"2f", "\"target_bytes\": \"00", "bytes of a name"},
    {"\"target_bytes\": \"2f", "\"target_bytes\": \"2", "bytes of a name"},
    {"xxh3-128", "xxh3", "algorithm"},
    {"xxh3-128", "md5", "algorithm"},
    {"\"chunk_size\": 1048576", "\"chunk_size\": 1048577", "chunk size"},
    {"\"root\": \"", "\"root\": \"0", "root"},
    {"\"chunk\": 3", "\"chunk\": 1000", "a run of"},
    {"\"chunk\": 3", "\"chunk\": 18446744073709551615", "a run of"},
    {"\"chunk\": 259", "\"chunk\": 258", "a run of"},
    {"\"count\": 256", "\"count\": 257", "a run of"},
    {"\"count\": 256", "\"count\": 0", "a run of"},
    {"\"count\": 256", "\"count\": 255", "length"},
    {"\"digests\": \"", "\"digests\": \"0", "string of more than|length"},
    {"\"runs\"", "\"ruins\"", "\"runs\" is missing"},
    {"\"length\": 512", "\"length\": 0", "bad range"},
    {"\"length\": 512", "\"length\": 18446744073709551615", "bad range"},
    {"\"offset\": 4096", "\"offset\": 1048576000", "beyond"},
    {"\"offset\": 4096", "\"offset\": 18446744073709551615", "bad range"},
    {"\"layer\": false", "\"layer\": 0", "false"},
    {"\"layer\": false", "\"layer\": false, \"x\": tru", "true"},
    {"\"layer\": false", "\"layer\": false, \"x\": }", "value"},
    {"\"layer\": false", "\"layer\": false,", "string"},
    {"]}}\n", "]}} x", "the end"},
    {"]}}\n", "]}", "ends where"},
};

static void test_damages(struct fixture *f, gconstpointer data)
{
    json_decref(written(f));
    g_autofree char *good = NULL;
    g_assert_true(g_file_get_contents(f->path, &good, NULL, NULL));
    for (size_t i = 0; i < G_N_ELEMENTS(damages); i++) {
        const char *at = strstr(good, damages[i].from);
        g_test_message("%s -> %s", damages[i].from, damages[i].to);
        g_assert_nonnull(at);
        g_autoptr(GString) bad = g_string_new_len(good, at - good);
        g_string_append(bad, damages[i].to);
        g_string_append(bad, at + strlen(damages[i].from));
        g_assert_true(g_file_set_contents(f->path, bad->str, (gssize)bad->len, NULL));
        g_auto(GStrv) parts = g_strsplit(damages[i].part, "|", 2);
        assert_error(f, BLOCKMIG_ERROR_REFUSED, parts[1] ? parts[1] : parts[0]);
    }
}

/* A changed digest is a digest that no longer leads to the root. */
static void test_changed_digest(struct fixture *f, gconstpointer data)
{
    json_decref(written(f));
    g_autofree char *text = NULL;
    gsize length = 0;
    g_assert_true(g_file_get_contents(f->path, &text, &length, NULL));
    char *digit = strstr(text, "\"digests\": \"") + 12 + g_test_rand_int_range(0, 200 * 32);
    *digit = *digit == '0' ? '1' : '0';
    g_assert_true(g_file_set_contents(f->path, text, (gssize)length, NULL));
    assert_error(f, BLOCKMIG_ERROR_DIFFERENT, "changed");
}

static void test_truncated(struct fixture *f, gconstpointer data)
{
    g_autoptr(receipt_t) r = new_receipt(DIGEST_XXH3_128, 4 * MIB);
    set_chunk(r->digests, 2);
    add_bad(r, 1, 1);
    g_assert_true(receipt_write(r, f->path, NULL));
    g_autofree char *text = NULL;
    gsize length = 0;
    g_assert_true(g_file_get_contents(f->path, &text, &length, NULL));
    for (gsize n = 0; n + 1 < length; n++) {
        g_autoptr(GError) error = NULL;
        g_assert_true(g_file_set_contents(f->path, text, (gssize)n, NULL));
        g_assert_null(receipt_read(f->path, &error));
        g_assert_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED);
    }
}

/* A file that is longer than the disk it speaks of could need. */
static void test_too_long(struct fixture *f, gconstpointer data)
{
    g_autoptr(receipt_t) r = new_receipt(DIGEST_XXH3_128, MIB);
    g_assert_true(receipt_write(r, f->path, NULL));
    g_assert_cmpint(truncate(f->path, 257 * (off_t)MIB), ==, 0);
    assert_error(f, BLOCKMIG_ERROR_REFUSED, "needs at most");

    g_autoptr(GString) deep = g_string_new("{\"x\": ");
    for (unsigned i = 0; i < 100000; i++)
        g_string_append_c(deep, '[');
    g_assert_true(g_file_set_contents(f->path, deep->str, -1, NULL));
    assert_error(f, BLOCKMIG_ERROR_REFUSED, "levels");
    g_unlink(f->path);
    assert_error(f, BLOCKMIG_ERROR_IO, "No such file");
    g_autofree char *path = g_strdup(f->path);
    g_free(f->path);
    f->path = g_strdup("/dev/zero");
    assert_error(f, BLOCKMIG_ERROR_REFUSED, "regular");
    g_free(f->path);
    f->path = g_steal_pointer(&path);
}

/* No room: the receipt that was there stays, and nothing else. */
static void test_failed_write(struct fixture *f, gconstpointer data)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(receipt_t) r = new_receipt(DIGEST_XXH3_128, 100000 * MIB);
    set_chunk(r->digests, 7);
    g_assert_true(receipt_write(r, f->path, &error));
    for (uint64_t i = 0; i < 100000; i++)
        set_chunk(r->digests, i);
    struct rlimit old, small;
    g_assert_cmpint(getrlimit(RLIMIT_FSIZE, &old), ==, 0);
    small = (struct rlimit){65536, old.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    g_assert_cmpint(setrlimit(RLIMIT_FSIZE, &small), ==, 0);
    bool ok = receipt_write(r, f->path, &error);
    g_assert_cmpint(setrlimit(RLIMIT_FSIZE, &old), ==, 0);
    g_assert_false(ok);
    g_assert_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_IO);
    g_clear_error(&error);
    g_autoptr(receipt_t) back = receipt_read(f->path, &error);
    g_assert_cmpuint(digest_table_stored(back->digests), ==, 1);

    g_autofree char *nowhere = g_build_filename(f->directory, "missing", "r", NULL);
    g_assert_false(receipt_write(r, nowhere, &error));
    g_assert_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_IO);
}

#define ADD(name, function) g_test_add("/receipt/" name, struct fixture, NULL, set_up, function, tear_down)

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    ADD("round-trip", test_round_trip);
    ADD("edges", test_edges);
    ADD("other-parsers", test_other_parsers);
    ADD("damages", test_damages);
    ADD("changed-digest", test_changed_digest);
    ADD("truncated", test_truncated);
    ADD("too-long", test_too_long);
    ADD("failed-write", test_failed_write);
    return g_test_run();
}
