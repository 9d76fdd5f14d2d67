/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The storage interface and the memory storage: bounds, faults, and what a crash leaves. */
#include "blockmig/storage/memory.h"
#include "blockmig/storage/uri.h"
#include "tests/unit/harness.h"

#include <errno.h>

static void test_bounds(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(storage_t) storage = storage_memory_new("disk", NULL, 1000, 2000);
    uint8_t buffer[100] = {0};
    bool data;
    uint64_t run;

    assert_ok(storage_pread(storage, buffer, 100, 900, &error));
    assert_fails(storage_pread(storage, buffer, 100, 901, &error), BLOCKMIG_ERROR_FAILED,
                 "disk: read of 100 bytes at offset 901 is out of bounds (size 1000)");
    assert_fails(storage_pread(storage, buffer, 100, UINT64_MAX - 50, &error), BLOCKMIG_ERROR_FAILED, "disk");
    assert_fails(storage_pread(storage, buffer, 1, INT64_MAX, &error), BLOCKMIG_ERROR_FAILED, "bounds");
    assert_fails(storage_pwrite(storage, buffer, 100, UINT64_MAX - 50, &error), BLOCKMIG_ERROR_FAILED,
                 "bounds");
    assert_fails(storage_pwrite(storage, buffer, 100, INT64_MAX - 50, &error), BLOCKMIG_ERROR_FAILED,
                 "bounds");
    assert_fails(storage_discard(storage, 999, 2, &error), BLOCKMIG_ERROR_FAILED, "discard");
    assert_fails(storage_status(storage, 999, 2, &data, &run, &error), BLOCKMIG_ERROR_FAILED, "status");
    assert_ok(storage_pread(storage, buffer, 0, 1000, &error));

    /* Growing is a matter of the storage, up to its capacity. */
    assert_ok(storage_pwrite(storage, "x", 1, 1999, &error));
    g_assert_cmpuint(storage->size, ==, 2000);
    assert_fails(storage_pwrite(storage, "xy", 2, 1999, &error), BLOCKMIG_ERROR_NOSPACE, "disk: ");
    assert_fails(storage_resize(storage, 2001, &error), BLOCKMIG_ERROR_NOSPACE, "2001");
    storage->growable = false;
    assert_fails(storage_pwrite(storage, "xy", 2, 1999, &error), BLOCKMIG_ERROR_FAILED, "bounds");
    assert_fails(storage_resize(storage, 10, &error), BLOCKMIG_ERROR_FAILED, "memory");
    storage->writable = false;
    assert_fails(storage_pwrite(storage, "x", 1, 0, &error), BLOCKMIG_ERROR_FAILED, "read-only");
    assert_fails(storage_zero(storage, 0, 1, true, &error), BLOCKMIG_ERROR_FAILED, "read-only");
    assert_fails(storage_allocate(storage, 0, 1, &error), BLOCKMIG_ERROR_FAILED, "read-only");
}

/* What is a URI, and what a path. */
static void test_names(void)
{
    static const struct {
        const char *name, *base, *shown;
    } uris[] = {
        {"nbd://host/disk.raw", "disk.raw", "nbd://host/disk.raw"},
        {"nbd+unix:///a%2Fb.img?socket=/run/x.sock", "b.img", "nbd+unix:///a%2Fb.img?socket=/run/x.sock"},
        {"nbd+unix:///?socket=/run/x.sock", "disk", "nbd+unix:///?socket=/run/x.sock"},
        {"NBD://host", "disk", "NBD://host"},
        {"nbd://host/..", "disk", "nbd://host/.."},
        {"nbd://host/a%00b", "disk", "nbd://host/a%00b"},
        {"iscsi://user%secret@host:3260/iqn.x:y/1", "1", "iscsi://user@host:3260/iqn.x:y/1"},
        {"http://user:secret@host/x?a=b@c", "x", "http://user@host/x?a=b@c"},
        {"nbd://host/x@y", "x@y", "nbd://host/x@y"},
    };
    static const char *const paths[] = {"disk.raw",      "/a/disk.raw", "./nbd://host/disk.raw",
                                        "://disk.raw",   "a:/disk.raw", "1:///disk.raw",
                                        "a b://disk.raw"};

    for (size_t i = 0; i < G_N_ELEMENTS(uris); i++) {
        g_autofree char *base = storage_base_name(uris[i].name);
        g_autofree char *shown = storage_shown_name(uris[i].name);

        g_assert_true(storage_name_is_uri(uris[i].name));
        g_assert_cmpstr(base, ==, uris[i].base);
        g_assert_cmpstr(shown, ==, uris[i].shown);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(paths); i++) {
        g_autofree char *base = storage_base_name(paths[i]);

        g_assert_false(storage_name_is_uri(paths[i]));
        g_assert_cmpstr(base, ==, "disk.raw");
    }
}

/* A name from inside an image is never a URI; from a user it is, if there is such a kind. */
static void test_unknown_scheme(void)
{
    const char *const roots[] = {"/", NULL};
    g_autoptr(GError) error = NULL;

    assert_fails(storage_open("http://u:secret@host/x", 0, NULL, NULL, &error), BLOCKMIG_ERROR_REFUSED,
                 "http://u@host/x: http:// is not a kind of storage");
    assert_fails(storage_open("nbd://localhost/x", 0, roots, NULL, &error), BLOCKMIG_ERROR_REFUSED,
                 "No such file");
}

/* A storage with nothing but the callbacks that every storage has: the defaults of the others. */
static void test_defaults(void)
{
    g_autoptr(GError) error = NULL;
    struct storage *storage = storage_memory_new("plain", NULL, 0, 0);
    const struct storage_ops *memory = storage->ops;
    struct storage_ops plain = {
        .name = "plain",
        .pread = memory->pread,
        .pwrite = memory->pwrite,
        .flush = memory->flush,
        .close = memory->close,
    };
    bool data = false;
    uint64_t run = 0;

    assert_ok(storage_pwrite(storage, "hello", 5, (2 << 20) + 5, &error));
    storage->ops = &plain;
    assert_ok(storage_zero(storage, 1, (2 << 20) + 7, false, &error));
    g_assert_cmpmem(storage_memory_data(storage) + (2 << 20) + 5, 5, "\0\0\0lo", 5);
    assert_ok(storage_status(storage, 10, 100, &data, &run, &error));
    g_assert_true(data);
    g_assert_cmpuint(run, ==, 100);
    assert_ok(storage_discard(storage, 0, 10, &error));
    assert_ok(storage_allocate(storage, 0, 10, &error));
    assert_fails(storage_resize(storage, 10, &error), BLOCKMIG_ERROR_FAILED, "cannot be changed");
    storage_close(storage);
}

static void test_faults(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(storage_t) storage = storage_memory_new("bad", NULL, 8192, 0);
    uint8_t buffer[512];
    struct memory_fault fault = {.on = MEMORY_READ, .offset = 4096, .length = 512, .errnum = EIO};

    storage_memory_add_fault(storage, &fault);
    assert_ok(storage_pread(storage, buffer, 512, 3584, &error));
    assert_ok(storage_pread(storage, buffer, 512, 4608, &error));
    assert_fails(storage_pread(storage, buffer, 512, 4607, &error), BLOCKMIG_ERROR_IO,
                 "bad: reading 512 bytes");
    assert_fails(storage_pread(storage, buffer, 512, 3585, &error), BLOCKMIG_ERROR_IO, "3585");
    storage_memory_clear_faults(storage);
    assert_ok(storage_pread(storage, buffer, 512, 4096, &error));

    fault = (struct memory_fault){.on = MEMORY_WRITE, .skip = 1, .count = 2, .errnum = ENOSPC};
    storage_memory_add_fault(storage, &fault);
    assert_ok(storage_pwrite(storage, "a", 1, 0, &error));
    assert_fails(storage_pwrite(storage, "b", 1, 0, &error), BLOCKMIG_ERROR_NOSPACE, "writing");
    assert_fails(storage_pwrite(storage, "b", 1, 0, &error), BLOCKMIG_ERROR_NOSPACE, "writing");
    g_assert_cmpint(storage_memory_data(storage)[0], ==, 'a');
    assert_ok(storage_pwrite(storage, "b", 1, 0, &error));

    fault = (struct memory_fault){.on = MEMORY_CORRUPT_WRITE, .offset = 10, .length = 1, .count = 1};
    storage_memory_add_fault(storage, &fault);
    assert_ok(storage_pwrite(storage, "0123456789abcdef", 16, 0, &error));
    assert_ok(storage_pread(storage, buffer, 16, 0, &error));
    g_assert_true(memcmp(buffer, "0123456789abcdef", 16) != 0);
    assert_ok(storage_pwrite(storage, "0123456789abcdef", 16, 0, &error));
    g_assert_cmpmem(storage_memory_data(storage), 16, "0123456789abcdef", 16);

    fault = (struct memory_fault){.on = MEMORY_FLUSH, .count = 1, .errnum = EIO};
    storage_memory_add_fault(storage, &fault);
    assert_fails(storage_flush(storage, &error), BLOCKMIG_ERROR_IO, "flushing");
    g_assert_cmpuint(storage_memory_flush_count(storage), ==, 0);
    assert_ok(storage_flush(storage, &error));
    g_assert_cmpuint(storage_memory_flush_count(storage), ==, 1);
}

static bool keep_all(void *opaque, unsigned i)
{
    return true;
}

static bool keep_one(void *opaque, unsigned i)
{
    return i == *(unsigned *)opaque;
}

static void check_cut(struct storage *storage, unsigned flush, bool (*keep)(void *, unsigned), void *opaque,
                      size_t torn, const char *wanted)
{
    g_autoptr(GByteArray) cut = storage_memory_cut(storage, flush, keep, opaque, torn);

    g_assert_cmpmem(cut->data, cut->len, wanted, strlen(wanted));
}

static void test_cut(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(storage_t) storage = storage_memory_new("crash", "........", 8, 0);
    const GArray *writes = storage_memory_writes(storage);
    unsigned one = 1;

    assert_ok(storage_pwrite(storage, "AA", 2, 0, &error));
    assert_ok(storage_flush(storage, &error));
    assert_ok(storage_pwrite(storage, "BBB", 3, 1, &error));
    assert_ok(storage_pwrite(storage, "CCCC", 4, 6, &error));
    assert_ok(storage_flush(storage, &error));
    assert_ok(storage_resize(storage, 3, &error));

    check_cut(storage, 0, NULL, NULL, 0, "........");
    check_cut(storage, 0, keep_all, NULL, 1, "A.......");
    check_cut(storage, 1, NULL, NULL, 0, "AA......");
    check_cut(storage, 1, keep_one, &one, 0, "AA....CCCC");
    check_cut(storage, 1, keep_one, &one, 3, "AA....CCC");
    check_cut(storage, 1, keep_all, NULL, 1, "ABBB..C.");
    check_cut(storage, 2, NULL, NULL, 1, "ABBB..CCCC");
    check_cut(storage, 2, keep_all, NULL, 0, "ABB");
    g_assert_cmpuint(writes->len, ==, 4);
    g_assert_cmpuint(g_array_index(writes, struct memory_write, 2).offset, ==, 6);
    g_assert_cmpuint(g_array_index(writes, struct memory_write, 2).length, ==, 4);
    g_assert_cmpuint(g_array_index(writes, struct memory_write, 2).after_flush, ==, 1);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/storage/bounds", test_bounds);
    g_test_add_func("/storage/defaults", test_defaults);
    g_test_add_func("/storage/faults", test_faults);
    g_test_add_func("/storage/cut", test_cut);
    g_test_add_func("/storage/names", test_names);
    g_test_add_func("/storage/unknown-scheme", test_unknown_scheme);
    return g_test_run();
}
