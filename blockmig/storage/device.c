/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/storage/device.h"

#include "blockmig/storage/host.h"
#include "formats/error.h"

#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>

int device_size(int fd, uint64_t *size)
{
    return ioctl(fd, BLKGETSIZE64, size) < 0 ? errno : 0;
}

int device_sector_size(int fd, uint32_t *sector_size)
{
    int value = 0;

    if (ioctl(fd, BLKSSZGET, &value) < 0)
        return errno;
    if (value <= 0 || (value & (value - 1)) != 0)
        return EINVAL;
    *sector_size = value;
    return 0;
}

int device_is_readonly(int fd, bool *readonly)
{
    int value = 0;

    if (ioctl(fd, BLKROGET, &value) < 0)
        return errno;
    *readonly = value != 0;
    return 0;
}

int device_set_readonly(int fd, bool readonly)
{
    int value = readonly;

    return ioctl(fd, BLKROSET, &value) < 0 ? errno : 0;
}

/*
 * The kernel's rules for fallocate() on a device: PUNCH_HOLE unmaps only where the device then promises
 * zeros and fails elsewhere; ZERO_RANGE keeps the blocks and falls back to writing zeros.  The form with
 * NO_HIDE_STALE promises nothing about the content and is never used.  Both drop the page cache of the range.
 */
int device_zero(int fd, uint64_t offset, uint64_t length, bool may_unmap)
{
    if (may_unmap && fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length) == 0)
        return 0;
    if (fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length) == 0)
        return 0;
    return errno;
}

int device_discard(int fd, uint64_t offset, uint64_t length)
{
    uint64_t range[2] = {offset, length};

    return ioctl(fd, BLKDISCARD, range) < 0 ? errno : 0;
}

/* The directory of a device in sysfs; that of a partition lies in that of its disk.  Owned by the caller. */
static char *sysfs_path(const struct stat *st)
{
    g_autofree char *link = g_strdup_printf("/sys/dev/block/%u:%u", major(st->st_rdev), minor(st->st_rdev));
    g_autofree char *real = S_ISBLK(st->st_mode) ? realpath(link, NULL) : NULL;

    return g_strdup(real);
}

static bool is_below(const char *path, const char *above)
{
    size_t length = strlen(above);

    return strncmp(path, above, length) == 0 && path[length] == '/';
}

/* Is `file` under the loop device at `sysfs`, or under that of which this is a partition? */
static bool lies_under(const char *sysfs, const struct stat *file)
{
    g_autofree char *disk = g_path_get_dirname(sysfs);
    const char *const directories[] = {sysfs, disk};

    for (size_t i = 0; i < G_N_ELEMENTS(directories); i++) {
        g_autofree char *name = g_build_filename(directories[i], "loop", "backing_file", NULL);
        g_autofree char *path = NULL;
        struct stat st;

        if (g_file_get_contents(name, &path, NULL, NULL) && stat(g_strchomp(path), &st) == 0 &&
            st.st_dev == file->st_dev && st.st_ino == file->st_ino)
            return true;
    }
    return false;
}

bool device_overlaps(const struct stat *a, const struct stat *b)
{
    g_autofree char *in_a = sysfs_path(a);
    g_autofree char *in_b = sysfs_path(b);

    if (in_a && in_b)
        return is_below(in_a, in_b) || is_below(in_b, in_a);
    return (in_a && lies_under(in_a, b)) || (in_b && lies_under(in_b, a));
}

/* ---- multipath ----------------------------------------------------------------------------------- */

/* The first line of a file in sysfs; NULL: there is none.  The caller's. */
static char *attribute(const char *directory, const char *name)
{
    g_autofree char *path = g_build_filename(directory, name, NULL);
    char *text = NULL;

    return g_file_get_contents(path, &text, NULL, NULL) ? g_strchomp(text) : NULL;
}

static char *map_above(const char *sysfs)
{
    g_autofree char *path = g_build_filename(sysfs, "holders", NULL);
    g_autoptr(GDir) holders = g_dir_open(path, 0, NULL);
    const char *holder;

    while (holders && (holder = g_dir_read_name(holders))) {
        g_autofree char *directory = g_build_filename(path, holder, NULL);
        g_autofree char *uuid = attribute(directory, "dm/uuid");
        char *name;

        if (!uuid || !g_str_has_prefix(uuid, "mpath-"))
            continue;
        name = attribute(directory, "dm/name");
        return name ? name : g_strdup(holder);
    }
    return NULL;
}

char *device_multipath_map(const char *sysfs)
{
    g_autofree char *partition = attribute(sysfs, "partition");
    g_autofree char *disk = g_path_get_dirname(sysfs);
    char *map = map_above(sysfs);

    return map || !partition ? map : map_above(disk);
}

bool device_is_no_path(const struct stat *st, GError **error)
{
    g_autofree char *sysfs = sysfs_path(st);
    g_autofree char *map = sysfs ? device_multipath_map(sysfs) : NULL;

    return !map ||
           blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                         "the device is one path of the multipath map %s: use /dev/mapper/%s", map, map);
}

/* ---- what it is called elsewhere ------------------------------------------------------------------ */

static gint by_text(gconstpointer a, gconstpointer b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Those of the devices that a mapped one lies on, sorted; NULL: one has none. */
static GPtrArray *names_below(const char *sysfs)
{
    g_autofree char *path = g_build_filename(sysfs, "slaves", NULL);
    g_autoptr(GDir) slaves = g_dir_open(path, 0, NULL);
    g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);
    const char *slave;

    while (slaves && (slave = g_dir_read_name(slaves))) {
        g_autofree char *directory = g_build_filename(path, slave, NULL);
        char *name = device_unit_name(directory);

        if (!name)
            return NULL;
        g_ptr_array_add(names, name);
    }
    g_ptr_array_sort(names, by_text);
    return names->len ? g_steal_pointer(&names) : NULL;
}

/* All paths of a multipath map lead to one unit; a volume of LVM is told by its own UUID and that of its
 * group. */
static char *mapped_name(const char *sysfs, const char *uuid)
{
    g_autoptr(GPtrArray) below = names_below(sysfs);
    g_autoptr(GString) name = g_string_new(uuid);

    if (!below)
        return NULL;
    if (g_str_has_prefix(uuid, "mpath-"))
        return g_strdup(g_ptr_array_index(below, 0));
    if (!g_str_has_prefix(uuid, "LVM-"))
        return NULL;
    for (guint i = 0; i < below->len; i++)
        g_string_append_printf(name, "%s%s", i ? ", " : " on ", (const char *)g_ptr_array_index(below, i));
    return g_string_free(g_steal_pointer(&name), FALSE);
}

static char *partition_name(const char *sysfs)
{
    g_autofree char *disk = g_path_get_dirname(sysfs), *whole = device_unit_name(disk);
    g_autofree char *start = attribute(sysfs, "start"), *size = attribute(sysfs, "size");

    return whole && start && size ? g_strdup_printf("%s from %s+%s", whole, start, size) : NULL;
}

/* The kernel has read VPD page 83h: SCSI disks have it below "device", those of NVMe beside the rest. */
char *device_unit_name(const char *sysfs)
{
    g_autofree char *partition = attribute(sysfs, "partition"), *uuid = attribute(sysfs, "dm/uuid");
    char *name;

    if (partition)
        return partition_name(sysfs);
    if (uuid)
        return mapped_name(sysfs, uuid);
    name = attribute(sysfs, "device/wwid");
    name = name ? name : attribute(sysfs, "wwid");
    if (name && *name)
        return name;
    g_free(name);
    return NULL;
}

char *device_identity(const struct stat *st)
{
    g_autofree char *sysfs = sysfs_path(st);
    char *name = sysfs ? device_unit_name(sysfs) : NULL;

    return name ? name
                : g_strdup_printf("block:%u:%u of boot %s", major(st->st_rdev), minor(st->st_rdev),
                                  host_boot_id());
}

/* ---- who uses it --------------------------------------------------------------------------------- */

static void add_use(GString *uses, const char *format, const char *name)
{
    if (uses->len)
        g_string_append(uses, ", ");
    g_string_append_printf(uses, "%s %s", format, name);
}

/* Lines of mountinfo: id, parent, MAJOR:MINOR, root, mount point (proc(5)). */
static void add_mounts(GString *uses, const struct stat *st)
{
    g_autofree char *text = NULL;
    g_auto(GStrv) lines = NULL;
    char wanted[32];

    snprintf(wanted, sizeof(wanted), "%u:%u", major(st->st_rdev), minor(st->st_rdev));
    if (!g_file_get_contents("/proc/self/mountinfo", &text, NULL, NULL))
        return;
    lines = g_strsplit(text, "\n", -1);
    for (size_t i = 0; lines[i]; i++) {
        g_auto(GStrv) fields = g_strsplit(lines[i], " ", 6);

        if (g_strv_length(fields) == 6 && strcmp(fields[2], wanted) == 0)
            add_use(uses, "mounted at", fields[4]);
    }
}

static void add_swap(GString *uses, const struct stat *st)
{
    g_autofree char *text = NULL;
    g_auto(GStrv) lines = NULL;

    if (!g_file_get_contents("/proc/swaps", &text, NULL, NULL))
        return;
    lines = g_strsplit(text, "\n", -1);
    for (size_t i = 1; lines[0] && lines[i]; i++) {
        g_autofree char *path = g_strndup(lines[i], strcspn(lines[i], " \t"));
        struct stat swap;

        if (stat(path, &swap) == 0 && S_ISBLK(swap.st_mode) && swap.st_rdev == st->st_rdev)
            add_use(uses, "swap", path);
    }
}

static void add_holders(GString *uses, const struct stat *st)
{
    g_autofree char *sysfs = sysfs_path(st);
    g_autofree char *path = sysfs ? g_build_filename(sysfs, "holders", NULL) : NULL;
    g_autoptr(GDir) holders = path ? g_dir_open(path, 0, NULL) : NULL;
    const char *holder;

    while (holders && (holder = g_dir_read_name(holders))) {
        g_autofree char *directory = g_build_filename(path, holder, NULL);
        g_autofree char *name = attribute(directory, "dm/name");
        g_autofree char *both = name ? g_strdup_printf("%s (%s)", holder, name) : g_strdup(holder);

        add_use(uses, "part of", both);
    }
}

char *device_users(const struct stat *st)
{
    GString *uses = g_string_new(NULL);

    add_mounts(uses, st);
    add_swap(uses, st);
    add_holders(uses, st);
    if (uses->len == 0)
        g_string_append(uses, "mounted, swap, part of another device, or being written to");
    return g_string_free(uses, FALSE);
}
