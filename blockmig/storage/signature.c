/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libblkid looks at descriptors.  It gets a sparse file in memory with the beginning and the end of the
 * storage, where all signatures are: so it works the same for devices and for what is reached over a network.
 */
#include "blockmig/storage/signature.h"

#include "formats/error.h"

#include <blkid.h>
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#define EDGE (UINT64_C(1) << 20)

static bool write_piece(int fd, const uint8_t *bytes, size_t length, uint64_t offset)
{
    while (length > 0) {
        ssize_t n = pwrite(fd, bytes, length, offset);

        if (n <= 0)
            return false;
        bytes += n;
        offset += n;
        length -= n;
    }
    return true;
}

static bool copy_edge(struct storage *storage, int fd, uint8_t *buffer, uint64_t offset, uint64_t end,
                      GError **error)
{
    size_t length = (size_t)(end - offset);

    return storage_pread(storage, buffer, length, offset, error) &&
           (write_piece(fd, buffer, length, offset) ||
            blockmig_set_errno(error, errno, "looking for signatures"));
}

static bool copy_edges(struct storage *storage, int fd, GError **error)
{
    g_autofree uint8_t *buffer = g_malloc(EDGE);
    uint64_t head = MIN(storage->size, EDGE), tail = MAX(head, storage->size - MIN(storage->size, EDGE));

    if (ftruncate(fd, storage->size) < 0)
        return blockmig_set_errno(error, errno, "looking for signatures");
    return copy_edge(storage, fd, buffer, 0, head, error) &&
           (tail >= storage->size || copy_edge(storage, fd, buffer, tail, storage->size, error));
}

static char *describe(blkid_probe probe)
{
    const char *type = NULL, *usage = NULL, *label = NULL, *table = NULL;

    blkid_probe_lookup_value(probe, "TYPE", &type, NULL);
    blkid_probe_lookup_value(probe, "USAGE", &usage, NULL);
    blkid_probe_lookup_value(probe, "LABEL", &label, NULL);
    blkid_probe_lookup_value(probe, "PTTYPE", &table, NULL);
    if (!type)
        return table ? g_strdup_printf("a partition table (%s)", table) : NULL;
    return g_strdup_printf("%s (%s%s%s%s)",
                           g_strcmp0(usage, "filesystem") == 0 ? "a file system" : "data of another kind",
                           type, label ? " \"" : "", label ? label : "", label ? "\"" : "");
}

/* What cannot be looked at, or is several things at once, is not empty either. */
static char *probe_descriptor(int fd, uint64_t size)
{
    blkid_probe probe = blkid_new_probe();
    char *what = NULL;
    int rc = -1;

    if (probe && blkid_probe_set_device(probe, fd, 0, (blkid_loff_t)size) == 0) {
        blkid_probe_enable_superblocks(probe, 1);
        blkid_probe_set_superblocks_flags(probe, BLKID_SUBLKS_TYPE | BLKID_SUBLKS_USAGE | BLKID_SUBLKS_LABEL);
        blkid_probe_enable_partitions(probe, 1);
        rc = blkid_do_safeprobe(probe);
        if (rc == 0)
            what = describe(probe);
        else if (rc == -2)
            what = g_strdup("several signatures");
    }
    if (probe)
        blkid_free_probe(probe);
    return what;
}

bool signature_find(struct storage *storage, char **what, GError **error)
{
    int fd = memfd_create("signatures", MFD_CLOEXEC);
    bool ok;

    *what = NULL;
    if (fd < 0)
        return blockmig_set_errno(error, errno, "looking for signatures");
    ok = copy_edges(storage, fd, error);
    if (ok && storage->size > 0)
        *what = probe_descriptor(fd, storage->size);
    close(fd);
    return ok;
}
