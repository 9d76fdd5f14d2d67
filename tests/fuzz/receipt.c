/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Any bytes as a receipt: refused, or a receipt that says the same when it is written and read again. */
#include "blockmig/store/receipt.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int fd = memfd_create("receipt", MFD_CLOEXEC);
    g_assert_true(fd >= 0 && write(fd, data, size) == (ssize_t)size);
    g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", fd);
    g_autoptr(GError) error = NULL;
    g_autoptr(receipt_t) receipt = receipt_read(path, &error);
    close(fd);
    g_assert_true((receipt != NULL) == (error == NULL));
    if (receipt) {
        g_autofree char *copy = g_strdup_printf("/dev/shm/blockmig-fuzz-%d", (int)getpid());
        g_assert_true(receipt_write(receipt, copy, &error));
        g_autoptr(receipt_t) again = receipt_read(copy, &error);
        unlink(copy);
        g_assert_no_error(error);
        g_assert_cmpstr(again->source, ==, receipt->source);
        g_assert_cmpstr(again->target, ==, receipt->target);
        g_assert_cmpint(again->started, ==, receipt->started);
        g_assert_cmpuint(again->size, ==, receipt->size);
        g_assert_cmpuint(digest_table_stored(again->digests), ==, digest_table_stored(receipt->digests));
    }
    return 0;
}
