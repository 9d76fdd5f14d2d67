/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Layers that libvirt does not know of.  A daemon that is killed while it puts a machine on an overlay never
 * hears that the hypervisor did so: afterwards it believes the machine on the layer below, refuses what would
 * merge the overlay, and would start the machine without it.  An overlay that nobody was put on looks the
 * same, but for what it holds and who has it open.
 */
#include "blockmig/migrate/live.h"
#include "blockmig/migrate/machine.h"
#include "blockmig/storage/file.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/stat.h>

/* A hypervisor holds its lock; one without locks has it open. */
static bool is_in_use(const char *path)
{
    g_autoptr(storage_t) storage = storage_file_open(path, FILE_WRITE, NULL, NULL, NULL);
    g_autoptr(GPtrArray) users = storage_file_users(path);

    return !storage || users->len > 0;
}

/* One that was not made to its end cannot be read, and nobody can have been put on it. */
static bool holds_anything(const char *path)
{
    g_autoptr(image_t) image = machine_open_image(path, &format_qcow2, FILE_NO_LOCK, NULL);

    return image && !live_overlay_is_empty(path);
}

bool machine_remove_spare_overlay(const struct machine_disk *disk, unsigned layer)
{
    g_autofree char *path = machine_layer_path(disk, layer);

    return !g_file_test(path, G_FILE_TEST_EXISTS) ||
           (!is_in_use(path) && !holds_anything(path) && g_unlink(path) == 0);
}

bool machine_find_layer(const struct machine_disk *disk, const struct definition *definition, unsigned *layer)
{
    g_autofree char *now = machine_source_of(definition, disk->name);

    for (unsigned n = 0; now && n <= disk->top; n++) {
        g_autofree char *path = machine_layer_path(disk, n);

        *layer = n;
        if (strcmp(now, path) == 0)
            return true;
    }
    return false;
}

/* Until it is started again it is where libvirt does not believe it: then it is right. */
static bool tell_running(struct machine_job *job, const struct machine_disk *disk, unsigned known,
                         GError **error)
{
    g_autofree char *believed = machine_layer_path(disk, known), *top = machine_layer_path(disk, disk->top);
    g_autofree char *text =
        job->state.persistent ? domain_definition(job->domain, DOMAIN_PERSISTENT, error) : NULL;
    g_autofree char *xml = text ? machine_rewrite_source(job->disks, text, machine_top_of, error) : NULL;
    g_autoptr(domain_t) same = xml ? domain_define(job->here, xml, error) : NULL;

    if (job->state.persistent && !same)
        return false;
    return blockmig_fail(
        error, BLOCKMIG_ERROR_FAILED,
        "disk %s: the machine writes to %s, but libvirt, whose daemon was ended while it put "
        "it there, believes it on %s: shut the guest down%s, and give the same command again",
        disk->name, top, believed, same ? ", start it (its definition is right now)" : "");
}

static bool tell_both(const struct machine_disk *disk, unsigned known, GError **error)
{
    g_autofree char *believed = machine_layer_path(disk, known), *top = machine_layer_path(disk, disk->top);

    return blockmig_fail(error, BLOCKMIG_ERROR_UNCERTAIN,
                         "disk %s: %s holds what the machine wrote to it, but libvirt has the machine on %s, "
                         "and that was written to later: one of them is stale, and both are kept",
                         disk->name, top, believed);
}

static bool is_newer(const struct machine_disk *disk, unsigned layer, unsigned than)
{
    g_autofree char *one = machine_layer_path(disk, layer), *other = machine_layer_path(disk, than);
    struct stat of_one, of_other;

    return stat(one, &of_one) == 0 && stat(other, &of_other) == 0 &&
           (of_one.st_mtim.tv_sec != of_other.st_mtim.tv_sec
                ? of_one.st_mtim.tv_sec > of_other.st_mtim.tv_sec
                : of_one.st_mtim.tv_nsec >= of_other.st_mtim.tv_nsec);
}

static bool check_disk(struct machine_job *job, struct machine_disk *disk,
                       const struct definition *definition, bool active, GError **error)
{
    g_autofree char *top = NULL;
    unsigned known;

    if (!machine_find_layer(disk, definition, &known))
        return true; /* that is found out where layers are looked at */
    while (disk->top > known && machine_remove_spare_overlay(disk, disk->top))
        disk->top--;
    if (disk->top == known)
        return true;
    top = machine_layer_path(disk, disk->top);
    if (active && is_in_use(top))
        return tell_running(job, disk, known, error);
    return (!active && is_newer(disk, disk->top, known)) || tell_both(disk, known, error);
}

bool machine_check_astray(struct machine_job *job, bool active, GError **error)
{
    g_autofree char *text = domain_definition(job->domain, active ? DOMAIN_ACTIVE : DOMAIN_PERSISTENT, error);
    g_autoptr(definition_t) definition = text ? definition_parse(text, error) : NULL;

    for (guint i = 0; definition && i < job->disks->len; i++)
        if (!check_disk(job, machine_disk_at(job, i), definition, active, error))
            return false;
    return definition != NULL;
}
