/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A regular file or block device.  All calls here go through the page cache; the O_DIRECT descriptor
 * beside it, of the same open object, is for the ring.
 */
#include "blockmig/storage/file.h"

#include "blockmig/storage/device.h"
#include "blockmig/storage/lock.h"
#include "blockmig/storage/names.h"
#include "blockmig/storage/resolve.h"
#include "formats/error.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/stat.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define MAX_ALIGNMENT 65536
#define ZERO_PIECE    (UINT64_C(1) << 20)

struct file {
    int fd;
    bool device;
    bool lockable;   /* false: the file system has no locks */
    uint32_t sector; /* of a device: what zero and discard must be multiples of */
    int flush_errno; /* a failed flush stays failed: the kernel reports lost pages only once */
};

static struct file *file_of(struct storage *storage)
{
    return storage->opaque;
}

static bool file_pread(struct storage *storage, void *buffer, size_t length, uint64_t offset, GError **error)
{
    uint8_t *p = buffer;

    while (length > 0) {
        ssize_t n = pread(file_of(storage)->fd, p, length, offset);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return blockmig_set_errno(error, errno, "reading %zu bytes at offset %" G_GUINT64_FORMAT, length,
                                      offset);
        if (n == 0)
            return blockmig_set_errno(error, EIO, "the file ends before offset %" G_GUINT64_FORMAT, offset);
        p += n;
        offset += n;
        length -= n;
    }
    return true;
}

static bool file_pwrite(struct storage *storage, const void *buffer, size_t length, uint64_t offset,
                        GError **error)
{
    const uint8_t *p = buffer;

    while (length > 0) {
        ssize_t n = pwrite(file_of(storage)->fd, p, length, offset);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return blockmig_set_errno(error, n < 0 ? errno : ENOSPC,
                                      "writing %zu bytes at offset %" G_GUINT64_FORMAT, length, offset);
        p += n;
        offset += n;
        length -= n;
        storage_grown(storage, offset);
    }
    return true;
}

static bool write_zeros(struct storage *storage, uint64_t offset, uint64_t length, GError **error)
{
    g_autofree uint8_t *zeros = length ? g_malloc0(MIN(length, ZERO_PIECE)) : NULL;

    while (length > 0) {
        size_t piece = MIN(length, ZERO_PIECE);

        if (!file_pwrite(storage, zeros, piece, offset, error))
            return false;
        offset += piece;
        length -= piece;
    }
    return true;
}

static bool not_offered(int errnum)
{
    return errnum == EOPNOTSUPP || errnum == ENOSYS || errnum == ENODEV || errnum == EINVAL;
}

static int file_fallocate(int fd, int mode, uint64_t offset, uint64_t length)
{
    int rc;

    do
        rc = fallocate(fd, mode, offset, length);
    while (rc < 0 && errno == EINTR);
    return rc < 0 ? errno : 0;
}

/* A range inside the file. */
static int file_zero_inside(int fd, uint64_t offset, uint64_t length, bool may_unmap)
{
    int errnum = EOPNOTSUPP;

    if (may_unmap)
        errnum = file_fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
    if (not_offered(errnum))
        errnum = file_fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length);
    return errnum;
}

/* The part of a device range that consists of whole sectors; *length 0 if there is none. */
static void whole_sectors(uint32_t sector, uint64_t *offset, uint64_t *length)
{
    uint64_t end = (*offset + *length) & ~(uint64_t)(sector - 1);
    uint64_t begin = (*offset + sector - 1) & ~(uint64_t)(sector - 1);

    *offset = begin;
    *length = end > begin ? end - begin : 0;
}

static bool device_zero_range(struct storage *storage, uint64_t offset, uint64_t length, bool may_unmap,
                              GError **error)
{
    uint64_t inner = offset, inner_length = length;
    int errnum;

    whole_sectors(file_of(storage)->sector, &inner, &inner_length);
    if (inner_length == 0)
        return write_zeros(storage, offset, length, error);
    errnum = device_zero(file_of(storage)->fd, inner, inner_length, may_unmap);
    if (not_offered(errnum))
        return write_zeros(storage, offset, length, error);
    if (errnum)
        return blockmig_set_errno(error, errnum,
                                  "zeroing %" G_GUINT64_FORMAT " bytes at offset %" G_GUINT64_FORMAT,
                                  inner_length, inner);
    return write_zeros(storage, offset, inner - offset, error) &&
           write_zeros(storage, inner + inner_length, offset + length - inner - inner_length, error);
}

static bool file_resize(struct storage *storage, uint64_t size, GError **error)
{
    int rc;

    do
        rc = ftruncate(file_of(storage)->fd, size);
    while (rc < 0 && errno == EINTR);
    if (rc < 0)
        return blockmig_set_errno(error, errno, "setting the size to %" G_GUINT64_FORMAT, size);
    __atomic_store_n(&storage->size, size, __ATOMIC_RELAXED);
    if (size == 0)
        storage->reads_zero = true;
    return true;
}

/* What a file gets by growing is zero already.  It grows by its last byte and not by ftruncate(), which would
 * take away what another thread writes further up at the same time. */
static bool zero_past_end(struct storage *storage, uint64_t end, GError **error)
{
    return file_pwrite(storage, "", 1, end - 1, error);
}

static bool file_zero(struct storage *storage, uint64_t offset, uint64_t length, bool may_unmap,
                      GError **error)
{
    struct stat st;
    int errnum;

    if (file_of(storage)->device)
        return device_zero_range(storage, offset, length, may_unmap, error);
    if (fstat(file_of(storage)->fd, &st) < 0)
        return blockmig_set_errno(error, errno, "looking up the size");
    if (offset + length > (uint64_t)st.st_size) {
        if (!zero_past_end(storage, offset + length, error))
            return false;
        length = (uint64_t)st.st_size > offset ? st.st_size - offset : 0;
    }
    if (length == 0)
        return true;
    errnum = file_zero_inside(file_of(storage)->fd, offset, length, may_unmap);
    if (not_offered(errnum))
        return write_zeros(storage, offset, length, error);
    if (errnum)
        return blockmig_set_errno(error, errnum,
                                  "zeroing %" G_GUINT64_FORMAT " bytes at offset %" G_GUINT64_FORMAT, length,
                                  offset);
    return true;
}

static bool file_discard(struct storage *storage, uint64_t offset, uint64_t length, GError **error)
{
    struct file *file = file_of(storage);
    int errnum = 0;

    if (file->device)
        whole_sectors(file->sector, &offset, &length);
    if (length > 0)
        errnum = file->device
                     ? device_discard(file->fd, offset, length)
                     : file_fallocate(file->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
    if (errnum && !not_offered(errnum))
        return blockmig_set_errno(error, errnum,
                                  "discarding %" G_GUINT64_FORMAT " bytes at offset %" G_GUINT64_FORMAT,
                                  length, offset);
    return true;
}

static bool file_flush(struct storage *storage, GError **error)
{
    struct file *file = file_of(storage);

    if (file->flush_errno == 0 && fdatasync(file->fd) < 0)
        file->flush_errno = errno;
    if (file->flush_errno)
        return blockmig_set_errno(error, file->flush_errno, "flushing");
    return true;
}

static bool file_allocate(struct storage *storage, uint64_t offset, uint64_t length, GError **error)
{
    struct file *file = file_of(storage);
    int errnum;

    if (file->device)
        return true;
    errnum = file_fallocate(file->fd, 0, offset, length);
    if (not_offered(errnum)) /* glibc then touches every block without changing what it reads */
        errnum = posix_fallocate(file->fd, offset, length);
    if (errnum)
        return blockmig_set_errno(error, errnum,
                                  "reserving %" G_GUINT64_FORMAT " bytes at offset %" G_GUINT64_FORMAT,
                                  length, offset);
    storage_grown(storage, offset + length);
    return true;
}

/* SEEK_DATA found nothing up to the end of the file.  Is the end where we think it is? */
static bool still_as_long(struct storage *storage, uint64_t end, GError **error)
{
    struct stat st;

    if (fstat(file_of(storage)->fd, &st) < 0)
        return blockmig_set_errno(error, errno, "looking up the size");
    if ((uint64_t)st.st_size < end)
        return blockmig_set_errno(error, EIO, "the file has shrunk to %" G_GUINT64_FORMAT " bytes",
                                  (uint64_t)st.st_size);
    return true;
}

static bool file_status(struct storage *storage, uint64_t offset, uint64_t length, bool *data, uint64_t *run,
                        GError **error)
{
    struct file *file = file_of(storage);
    off_t begin, end;

    *data = true;
    *run = length;
    if (file->device)
        return true;
    begin = lseek(file->fd, offset, SEEK_DATA);
    if (begin < 0 && errno == ENXIO) {
        *data = false;
        return still_as_long(storage, offset + length, error);
    }
    if (begin < 0 && !not_offered(errno))
        return blockmig_set_errno(error, errno, "looking for data at offset %" G_GUINT64_FORMAT, offset);
    if (begin < 0)
        return true; /* a file system that cannot tell: everything is data */
    if ((uint64_t)begin > offset) {
        *data = false;
        *run = MIN(length, (uint64_t)begin - offset);
        return true;
    }
    end = lseek(file->fd, offset, SEEK_HOLE);
    if (end > begin)
        *run = MIN(length, (uint64_t)end - offset);
    return true;
}

static void file_prefetch(struct storage *storage, uint64_t offset, uint64_t length)
{
    (void)!posix_fadvise(file_of(storage)->fd, offset, length, POSIX_FADV_WILLNEED);
}

static void file_close(struct storage *storage)
{
    struct file *file = file_of(storage);

    if (storage->direct_fd >= 0)
        close(storage->direct_fd);
    if (file->fd >= 0)
        close(file->fd);
    g_free(file);
}

static const struct storage_ops file_ops = {
    .name = "file",
    .pread = file_pread,
    .pwrite = file_pwrite,
    .zero = file_zero,
    .discard = file_discard,
    .flush = file_flush,
    .resize = file_resize,
    .allocate = file_allocate,
    .status = file_status,
    .prefetch = file_prefetch,
    .close = file_close,
};

uint64_t storage_file_allocated(struct storage *storage)
{
    struct stat st;

    if (storage->ops != &file_ops || file_of(storage)->device || fstat(file_of(storage)->fd, &st) < 0)
        return storage->size;
    return (uint64_t)st.st_blocks * 512;
}

bool storage_file_lockable(struct storage *storage)
{
    return storage->ops != &file_ops || file_of(storage)->lockable;
}

void storage_file_avoid_direct(struct storage *storage)
{
    if (storage->ops != &file_ops || storage->direct_fd < 0)
        return;
    close(storage->direct_fd);
    storage->direct_fd = -1;
    storage->alignment = 1;
}

bool storage_file_sync_directory(const char *path, GError **error)
{
    g_autofree char *directory = g_path_get_dirname(path);
    int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int errnum = 0;

    if (fd < 0)
        return blockmig_set_errno(error, errno, "%s", directory);
    if (fsync(fd) < 0)
        errnum = errno;
    close(fd);
    return errnum == 0 || blockmig_set_errno(error, errnum, "%s: flushing the directory", directory);
}

/* Opening */

/* The largest of what the kernel says and what a device demands, or what a read proves; 0: no O_DIRECT. */
static uint32_t direct_alignment(int fd, uint32_t sector)
{
    struct statx stx = {0};
    struct stat st;
    void *buffer = NULL;
    uint32_t found = 0;

    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) == 0 && (stx.stx_mask & STATX_DIOALIGN))
        return stx.stx_dio_offset_align ? MAX(MAX(stx.stx_dio_mem_align, stx.stx_dio_offset_align), sector)
                                        : 0;
    if (sector)
        return sector;
    if (fstat(fd, &st) < 0 || posix_memalign(&buffer, MAX_ALIGNMENT, MAX_ALIGNMENT) != 0)
        return 0;
    for (uint32_t size = 4096; size <= MAX_ALIGNMENT && !found; size *= 2) {
        if (pread(fd, buffer, size, 0) >= 0)
            found = size;
    }
    free(buffer);
    return found;
}

static void open_direct(struct storage *storage, const char *self, int flags)
{
    int fd = open(self, flags | O_DIRECT);
    uint32_t alignment = fd < 0 ? 0 : direct_alignment(fd, file_of(storage)->sector);

    if (alignment == 0 || alignment > MAX_ALIGNMENT || (alignment & (alignment - 1)) != 0) {
        if (fd >= 0)
            close(fd);
        return;
    }
    storage->direct_fd = fd;
    storage->alignment = alignment;
}

/* A lock does not say whose it is (the kernel answers -1): whoever has the file open is named. */
static bool lock_conflict(const char *path, GError **error)
{
    g_autoptr(GPtrArray) users = storage_file_users(path);
    g_autoptr(GString) names = g_string_new(NULL);

    for (unsigned i = 0; i < users->len; i++)
        g_string_append_printf(names, "%s%s", i ? ", " : "; open in ", (char *)g_ptr_array_index(users, i));
    if (error && *error && names->len) {
        g_autofree char *text = g_strconcat((*error)->message, names->str, NULL);

        g_free((*error)->message);
        (*error)->message = g_steal_pointer(&text);
    }
    return false;
}

static bool settle_device(struct storage *storage, GError **error)
{
    struct file *file = file_of(storage);
    bool readonly = false;
    int errnum = device_size(file->fd, &storage->size);

    if (errnum == 0)
        errnum = device_sector_size(file->fd, &file->sector);
    storage->sector = file->sector;
    if (errnum == 0 && storage->writable)
        errnum = device_is_readonly(file->fd, &readonly);
    if (errnum)
        return blockmig_set_errno(error, errnum, "looking up the size");
    if (readonly)
        g_set_error_literal(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED, "the device is read-only");
    return !readonly;
}

/* Locks, then looks: what the size was before the lock was held means nothing. */
static bool settle(struct storage *storage, unsigned flags, GError **error)
{
    struct file *file = file_of(storage);
    struct stat st;

    file->lockable = true;
    if (!(flags & FILE_NO_LOCK) && !image_lock(file->fd, flags & FILE_WRITE, &file->lockable, error))
        return lock_conflict(storage->name, error);
    if (file->device)
        return settle_device(storage, error);
    if ((flags & FILE_TRUNCATE) && (flags & FILE_WRITE) && !file_resize(storage, 0, error))
        return false;
    if (fstat(file->fd, &st) < 0)
        return blockmig_set_errno(error, errno, "looking up the size");
    if ((flags & FILE_CREATE) && st.st_size > 0) {
        g_set_error_literal(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED, "exists already and is not empty");
        return false;
    }
    storage->size = st.st_size;
    storage->growable = storage->writable;
    storage->reads_zero = st.st_size == 0;
    return true;
}

void storage_file_identity(const struct stat *st, char *identity, size_t room)
{
    if (S_ISBLK(st->st_mode))
        g_snprintf(identity, room, "block:%u:%u", major(st->st_rdev), minor(st->st_rdev));
    else
        g_snprintf(identity, room, "file:%u:%u:%" G_GUINT64_FORMAT, major(st->st_dev), minor(st->st_dev),
                   (uint64_t)st->st_ino);
}

static struct storage *file_new(const char *path, const struct stat *st, unsigned flags)
{
    struct file *file = g_new0(struct file, 1);
    struct storage *storage = storage_new(&file_ops, path, file);

    file->fd = -1;
    file->device = S_ISBLK(st->st_mode);
    storage->identity = g_malloc(NAME_IDENTITY);
    storage_file_identity(st, storage->identity, NAME_IDENTITY);
    storage->writable = flags & FILE_WRITE;
    return storage;
}

static struct storage *reopen(const char *path, int path_fd, const struct stat *st, unsigned flags,
                              GError **error)
{
    g_autoptr(storage_t) storage = file_new(path, st, flags);
    g_autofree char *self = g_strdup_printf("/proc/self/fd/%d", path_fd);
    g_autofree char *users = NULL;
    const char *purpose = storage->writable ? "writing" : "reading";
    int mode = (storage->writable ? O_RDWR : O_RDONLY) | O_CLOEXEC;

    if (file_of(storage)->device && storage->writable && !device_is_no_path(st, error))
        return NULL;
    /* O_EXCL on a device: what is mounted, swap or part of another device is not written to. */
    file_of(storage)->fd = open(self, file_of(storage)->device && storage->writable ? mode | O_EXCL : mode);
    if (file_of(storage)->fd < 0) {
        if (errno == EBUSY) {
            users = device_users(st);
            blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "the device is in use: %s", users);
        } else if (errno == EACCES || errno == EPERM || errno == EROFS)
            g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED, "opening for %s: %s", purpose,
                        g_strerror(errno));
        else
            blockmig_set_errno(error, errno, "opening for %s", purpose);
        return NULL;
    }
    storage->buffered_fd = file_of(storage)->fd;
    if (!settle(storage, flags, error))
        return NULL;
    if (!(flags & FILE_NO_DIRECT))
        open_direct(storage, self, mode);
    return g_steal_pointer(&storage);
}

struct storage *storage_file_open(const char *path, unsigned flags, const char *const *roots,
                                  char **real_path, GError **error)
{
    g_autofree char *real = NULL;
    struct storage *storage = NULL;
    struct stat st;
    int fd = resolve_open(path, flags & FILE_CREATE, roots, &st, &real, error);

    if (fd >= 0) {
        storage = reopen(path, fd, &st, flags, error);
        close(fd);
    }
    if (!storage)
        g_prefix_error(error, "%s: ", path);
    else if (real_path)
        *real_path = g_steal_pointer(&real);
    return storage;
}

struct storage *storage_file_open_for_chain(void *opaque, const char *path, const char *const *roots,
                                            bool writable, char **real_path, GError **error)
{
    unsigned flags = opaque ? *(const unsigned *)opaque : 0;

    flags &= ~(unsigned)(FILE_WRITE | FILE_CREATE | FILE_TRUNCATE);
    return storage_file_open(path, flags | (writable ? FILE_WRITE : 0), roots, real_path, error);
}
