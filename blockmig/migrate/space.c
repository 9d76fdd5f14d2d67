/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/migrate/space.h"

#include "blockmig/migrate/units.h"
#include "blockmig/storage/names.h"
#include "formats/error.h"
#include "formats/storage.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/quota.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PROJECT_QUOTA  2              /* PRJQUOTA of <linux/quota.h>, which glibc's header leaves out */
#define QUOTA_BLOCK    UINT64_C(1024) /* the unit of block limits; usage is in bytes */
#define FAT_FILE_LIMIT UINT64_C(0xffffffff)
#define LARGEST_FILE   ((uint64_t)INT64_MAX)

/* The directory that `path` is or would lie in. Owned by the caller. */
static char *directory_of(const char *path)
{
    struct stat st;
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode))
        return g_strdup(path);
    return g_path_get_dirname(path);
}

static void lower(struct space_report *report, uint64_t bytes, uint64_t inodes, const char *limit)
{
    if (bytes < report->available) {
        report->available = bytes;
        report->limit = limit;
    }
    report->available_inodes = MIN(report->available_inodes, inodes);
}

/* What is left below the hard limit; nothing if the soft one is passed and the days of grace are over. */
static uint64_t quota_left(uint64_t hard, uint64_t soft, uint64_t used, uint64_t grace_end)
{
    if (soft && used >= soft && grace_end && grace_end <= (uint64_t)time(NULL))
        return 0;
    if (!hard)
        return UINT64_MAX;
    return hard > used ? hard - used : 0;
}

/* No quota there, none in this kernel, or not ours to ask: what statvfs says has to do.  Id 0 is not limited;
 * what stands there are the defaults for others. */
static void apply_quota(struct space_report *report, int fd, int type, uint32_t id, const char *limit)
{
#ifdef SYS_quotactl_fd
    struct dqblk quota = {0};
    int command = (int)((unsigned)Q_GETQUOTA << SUBCMDSHIFT | (unsigned)type); /* QCMD() overflows an int */
    if (id == 0 || syscall(SYS_quotactl_fd, fd, command, id, &quota) != 0)
        return;
    uint64_t hard = quota.dqb_bhardlimit > UINT64_MAX / QUOTA_BLOCK ? 0 : quota.dqb_bhardlimit * QUOTA_BLOCK;
    uint64_t soft = quota.dqb_bsoftlimit > UINT64_MAX / QUOTA_BLOCK ? 0 : quota.dqb_bsoftlimit * QUOTA_BLOCK;
    lower(report, quota_left(hard, soft, quota.dqb_curspace, quota.dqb_btime),
          quota_left(quota.dqb_ihardlimit, quota.dqb_isoftlimit, quota.dqb_curinodes, quota.dqb_itime),
          limit);
#endif
}

/* Do new files in this directory belong to a project, and to which? */
static bool in_project(int fd, uint32_t *project)
{
    struct fsxattr attributes = {0};
    bool inherits =
        ioctl(fd, FS_IOC_FSGETXATTR, &attributes) == 0 && (attributes.fsx_xflags & FS_XFLAG_PROJINHERIT);
    *project = attributes.fsx_projid;
    return inherits;
}

bool space_needs_admin(const char *path)
{
    g_autofree char *directory = directory_of(path);
    int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    uint32_t project;
    bool needs = fd >= 0 && in_project(fd, &project);
    if (fd >= 0)
        close(fd);
    return needs;
}

/* A new file belongs to us, to our group or that of a set-gid directory, and to the project of its directory.
 */
static void apply_quotas(struct space_report *report, int fd)
{
    struct stat st;
    uint32_t project;
    gid_t group = fstat(fd, &st) == 0 && (st.st_mode & S_ISGID) ? st.st_gid : getegid();
    apply_quota(report, fd, USRQUOTA, geteuid(), "user quota");
    apply_quota(report, fd, GRPQUOTA, group, "group quota");
    if (in_project(fd, &project))
        apply_quota(report, fd, PROJECT_QUOTA, project, "project quota");
}

/* Of a directory on a server, which tells no more. */
static bool query_server(const char *path, struct space_report *report, GError **error)
{
    *report = (struct space_report){.available_inodes = UINT64_MAX, .limit = "datastore"};
    return name_room(path, &report->available, error);
}

static bool query_directory(const char *path, struct space_report *report, GError **error)
{
    if (storage_name_is_uri(path))
        return query_server(path, report, error);
    g_autofree char *directory = directory_of(path);
    int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct statvfs fs;
    if (fd < 0 || fstatvfs(fd, &fs) != 0) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED, "%s: %s", directory, g_strerror(errno));
        if (fd >= 0)
            close(fd);
        return false;
    }
    *report = (struct space_report){
        .available = (uint64_t)fs.f_bavail * fs.f_frsize,
        .available_inodes = fs.f_files ? fs.f_favail : UINT64_MAX, /* btrfs makes them as it needs them */
        .total = (uint64_t)fs.f_blocks * fs.f_frsize,
        .limit = "file system",
    };
    apply_quotas(report, fd);
    close(fd);
    return true;
}

static bool device_length(const char *path, uint64_t *size, GError **error)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    off_t end = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
    int errnum = errno;
    if (fd >= 0)
        close(fd);
    if (end < 0) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED, "%s: %s", path, g_strerror(errnum));
        return false;
    }
    *size = (uint64_t)end;
    return true;
}

static bool is_device(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISBLK(st.st_mode);
}

bool space_check_device(const char *name, uint64_t bytes, uint64_t size, struct space_report *report,
                        GError **error)
{
    *report = (struct space_report){
        .available = size, .available_inodes = UINT64_MAX, .total = size, .limit = "device"};
    if (bytes > size) {
        g_autofree char *needed = units_format_size_exact(bytes);
        g_autofree char *available = units_format_size_exact(size);
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED,
                    "%s: too small: %s needed, the device has %s", name, needed, available);
        return false;
    }
    return true;
}

static bool check_directory(const char *path, uint64_t bytes, unsigned inodes, struct space_report *report,
                            GError **error)
{
    if (!query_directory(path, report, error))
        return false;
    if (bytes > report->available) {
        g_autofree char *needed = units_format_size_exact(bytes);
        g_autofree char *available = units_format_size_exact(report->available);
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED, "%s: no room: %s needed, the %s allows %s",
                    path, needed, report->limit, available);
        return false;
    }
    if (inodes > report->available_inodes) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED,
                    "%s: no room: %u inode%s needed, %" G_GUINT64_FORMAT " available", path, inodes,
                    inodes == 1 ? "" : "s", report->available_inodes);
        return false;
    }
    return true;
}

bool space_check(const char *path, uint64_t bytes, unsigned inodes, struct space_report *report,
                 GError **error)
{
    uint64_t size;
    if (!is_device(path))
        return check_directory(path, bytes, inodes, report, error);
    return device_length(path, &size, error) && space_check_device(path, bytes, size, report, error);
}

static bool refuse_size(const char *directory, uint64_t size, uint64_t limit, const char *whose,
                        GError **error)
{
    g_autofree char *wanted = units_format_size_exact(size);
    g_autofree char *largest = units_format_size_exact(limit);
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED,
                "%s: a file of %s is too large for %s: at most %s", directory, wanted, whose, largest);
    return false;
}

/* Sparse files cost nothing: the limit is found by asking. */
static uint64_t largest_length(int fd)
{
    uint64_t works = 0, fails = LARGEST_FILE;
    while (fails - works > 1) {
        uint64_t middle = works + (fails - works) / 2;
        if (ftruncate(fd, (off_t)middle) == 0)
            works = middle;
        else
            fails = middle;
    }
    return works;
}

static bool probe_length(const char *directory, int fd, uint64_t size, GError **error)
{
    if (ftruncate(fd, (off_t)size) == 0)
        return true;
    if (errno == EFBIG || errno == EINVAL)
        return refuse_size(directory, size, largest_length(fd), "this file system", error);
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED,
                "%s: a file of %" G_GUINT64_FORMAT " bytes: %s", directory, size, g_strerror(errno));
    return false;
}

/* A file system without unnamed files is not asked: writing through a name could meet a file of the user's,
 * and some of them (FAT, exFAT) would write zeros for what is only asked for. */
static bool probe_directory(const char *directory, uint64_t size, GError **error)
{
    int fd = open(directory, O_TMPFILE | O_RDWR | O_EXCL | O_CLOEXEC, 0600);
    if (fd >= 0) {
        bool ok = probe_length(directory, fd, size, error);
        close(fd);
        return ok;
    }
    if ((errno == EOPNOTSUPP || errno == EISDIR) && access(directory, W_OK | X_OK) == 0)
        return true;
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED, "%s: no file can be created here: %s",
                directory, g_strerror(errno));
    return false;
}

bool space_check_file_size(const char *path, uint64_t size, GError **error)
{
    if (is_device(path) || storage_name_is_uri(path)) /* a server says so when it is too much */
        return true;
    g_autofree char *directory = directory_of(path);
    struct rlimit limit;
    struct statfs fs;
    if (size > LARGEST_FILE)
        return refuse_size(directory, size, LARGEST_FILE, "any file system", error);
    /* Asked first, so that the limit is named. */
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && size > limit.rlim_cur)
        return refuse_size(directory, size, limit.rlim_cur, "the file size limit of this process (ulimit -f)",
                           error);
    if (statfs(directory, &fs) == 0 && fs.f_type == MSDOS_SUPER_MAGIC && size > FAT_FILE_LIMIT)
        return refuse_size(directory, size, FAT_FILE_LIMIT, "FAT", error);
    return probe_directory(directory, size, error);
}
