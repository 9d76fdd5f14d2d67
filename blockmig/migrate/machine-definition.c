/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The definition of a machine as the target needs it: only names of files change. */
#include "blockmig/migrate/machine.h"

#include <string.h>
#include <sys/stat.h>

char *machine_source_of(const struct definition *definition, const char *disk)
{
    g_autofree char *source = g_strdup_printf("/domain/devices/disk[target/@dev='%s']/source", disk);
    g_autofree char *path = g_strconcat(source, "/@file | ", source, "/@dev", NULL);

    return definition_get(definition, path);
}

/* ---- is it still on our layers? -------------------------------------------------------------------- */

/* Of the file that is `depth` below the one that the machine writes to; NULL: there is none, or it is not
 * told. */
static char *source_below(const struct definition *definition, const char *disk, unsigned depth)
{
    g_autoptr(GString) place = g_string_new(NULL);
    g_autofree char *path = NULL;

    g_string_printf(place, "/domain/devices/disk[target/@dev='%s']", disk);
    for (unsigned i = 0; i < depth; i++)
        g_string_append(place, "/backingStore");
    path = g_strdup_printf("%s/source/@file | %s/source/@dev", place->str, place->str);
    return definition_get(definition, path);
}

static bool is_same_file(const char *a, const char *b)
{
    struct stat one, other;

    return stat(a, &one) == 0 && stat(b, &other) == 0 && one.st_dev == other.st_dev &&
           one.st_ino == other.st_ino;
}

static bool check_disk(const struct definition *definition, const struct machine_disk *disk, unsigned top,
                       GError **error)
{
    for (unsigned depth = 0; depth <= top; depth++) {
        g_autofree char *wanted = machine_layer_path(disk, top - depth);
        g_autofree char *found = source_below(definition, disk->name, depth);

        if (found && !is_same_file(found, wanted))
            return blockmig_fail(error, BLOCKMIG_ERROR_CANCELLED,
                                 "disk %s: somebody else has changed its layers: %s is where %s was",
                                 disk->name, found, wanted);
    }
    return true;
}

static bool is_known(const struct machine_job *job, const char *name)
{
    for (guint i = 0; i < job->disks->len; i++)
        if (strcmp(machine_disk_at(job, i)->name, name) == 0)
            return true;
    return g_strv_contains((const char *const *)job->others, name);
}

/* Those that preflight saw, and no others: what is new is in no layer of ours. */
static bool check_names(const struct machine_job *job, const struct definition *definition, GError **error)
{
    g_autoptr(GPtrArray) names = definition_all(definition, "/domain/devices/disk/target/@dev");

    for (guint i = 0; job->others && i < names->len; i++)
        if (!is_known(job, g_ptr_array_index(names, i)))
            return blockmig_fail(error, BLOCKMIG_ERROR_CANCELLED,
                                 "disk %s was given to the machine meanwhile",
                                 (const char *)g_ptr_array_index(names, i));
    for (guint i = 0; i < job->disks->len; i++)
        if (!g_ptr_array_find_with_equal_func(names, machine_disk_at(job, i)->name, g_str_equal, NULL))
            return blockmig_fail(error, BLOCKMIG_ERROR_CANCELLED,
                                 "disk %s was taken from the machine meanwhile",
                                 machine_disk_at(job, i)->name);
    return true;
}

/* A run that was killed may have made the next overlay and not put the machine on it. */
static unsigned highest_in_use(const struct definition *definition, const struct machine_disk *disk)
{
    g_autofree char *now = machine_source_of(definition, disk->name);

    for (unsigned layer = disk->top; now && layer > 0; layer--) {
        g_autofree char *path = machine_layer_path(disk, layer);

        if (is_same_file(now, path))
            return layer;
    }
    return 0;
}

bool machine_check_layers(const struct machine_job *job, bool running, GError **error)
{
    g_autofree char *text = domain_definition(job->domain, DOMAIN_ACTIVE, error);
    g_autoptr(definition_t) definition = text ? definition_parse(text, error) : NULL;

    if (!definition || (running && !check_names(job, definition, error)))
        return false;
    for (guint i = 0; i < job->disks->len; i++) {
        const struct machine_disk *disk = machine_disk_at(job, i);

        if (!check_disk(definition, disk, running ? disk->top : highest_in_use(definition, disk), error))
            return false;
    }
    return true;
}

/* ---- other names ----------------------------------------------------------------------------------- */

/* What lies below is told by the image's header, and what the last run made of it by nobody. */
static void set_disk(struct definition *definition, const char *disk, const char *path, bool device,
                     const char *format)
{
    g_autofree char *place = g_strdup_printf("/domain/devices/disk[target/@dev='%s']", disk);
    g_autofree char *source = g_strconcat(place, "/source", NULL);
    g_autofree char *driver = g_strconcat(place, "/driver", NULL);
    g_autofree char *stale = g_strdup_printf("%s/backingStore | %s/mirror | %s/@index | %s/@file | %s/@dev",
                                             place, place, source, source, source);
    g_autofree char *policy = g_strconcat(source, "/@startupPolicy", NULL);

    definition_remove(definition, stale);
    if (device)
        definition_remove(definition, policy);
    definition_set_attribute(definition, place, "type", device ? "block" : "file");
    definition_set_attribute(definition, source, device ? "dev" : "file", path);
    definition_set_attribute(definition, driver, "type", format);
}

/* The definition of a machine that runs, and the one that it is started by, may have others there. */
static void set_file(struct definition *definition, const struct machine_file *file)
{
    g_autofree char *now = definition_get(definition, file->place);

    if (g_strcmp0(now, file->path) == 0)
        definition_set(definition, file->place, file->target_path);
}

static bool arrives_on_overlay(const struct machine_job *job, enum machine_stage stage)
{
    return stage == MACHINE_ARRIVES && job->base.method != &method_machine_cold;
}

char *machine_rewrite(const struct machine_job *job, const char *text, enum machine_stage stage,
                      GError **error)
{
    g_autoptr(definition_t) definition = definition_parse(text, error);
    bool overlay = arrives_on_overlay(job, stage);

    if (!definition)
        return NULL;
    for (guint i = 0; i < job->disks->len; i++) {
        const struct machine_disk *disk = machine_disk_at(job, i);

        set_disk(definition, disk->name, overlay ? disk->overlay_path : disk->target_path, false,
                 overlay ? format_qcow2.name : disk->format->name);
    }
    for (guint i = 0; i < job->files->len; i++) {
        const struct machine_file *file = g_ptr_array_index(job->files, i);

        if (file->place && !file->target_path)
            definition_remove(definition, file->place);
        else if (file->place)
            set_file(definition, file);
    }
    return definition_text(definition);
}

char *machine_top_of(const struct machine_disk *disk)
{
    return machine_layer_path(disk, disk->top);
}

char *machine_bottom_of(const struct machine_disk *disk)
{
    return machine_layer_path(disk, 0);
}

char *machine_rewrite_source(const GPtrArray *disks, const char *text,
                             char *(*path)(const struct machine_disk *), GError **error)
{
    g_autoptr(definition_t) definition = definition_parse(text, error);

    if (!definition)
        return NULL;
    for (guint i = 0; i < disks->len; i++) {
        const struct machine_disk *disk = g_ptr_array_index(disks, i);
        g_autofree char *file = path(disk);
        bool bottom = strcmp(file, disk->path) == 0;

        set_disk(definition, disk->name, file, bottom && disk->device,
                 bottom ? disk->source_format->name : format_qcow2.name);
    }
    return definition_text(definition);
}

/* ---- once more, after the copy --------------------------------------------------------------------- */

/* Names of the disks, and what they are on. */
static char *disks_of(const char *text, GError **error)
{
    g_autoptr(definition_t) definition = definition_parse(text, error);
    g_autoptr(GPtrArray) all =
        definition ? definition_all(definition, "/domain/devices/disk/target/@dev | "
                                                "/domain/devices/disk/source/@*[name() != 'index' and "
                                                "name() != 'startupPolicy']")
                   : NULL;

    if (!all)
        return NULL;
    g_ptr_array_add(all, NULL);
    return g_strjoinv("\n", (char **)all->pdata);
}

bool machine_read_again(struct machine_job *job, GError **error)
{
    g_autofree char *text = NULL, *plain = NULL, *before = NULL, *now = NULL;
    struct domain_state state;

    if (!job->state.persistent)
        return true;
    if (!domain_look(job->domain, &state, error) ||
        !(text = domain_definition(job->domain, DOMAIN_PERSISTENT, error)) ||
        !(plain = machine_rewrite_source(job->disks, text, machine_bottom_of, error)) ||
        !(now = disks_of(plain, error)) || !(before = disks_of(job->definition, error)))
        return false;
    if (strcmp(before, now) != 0)
        return blockmig_fail(error, BLOCKMIG_ERROR_CANCELLED,
                             "the disks in the machine's definition were changed meanwhile");
    g_free(job->definition);
    job->definition = g_steal_pointer(&plain);
    job->state.autostart = state.autostart;
    return true;
}

char *machine_rewrite_barred(const struct machine_job *job, GError **error)
{
    g_autoptr(definition_t) definition = definition_parse(job->definition, error);

    if (!definition)
        return NULL;
    definition_set_child(definition, "/domain/os", "kernel",
                         "/nonexistent/this machine went to another host");
    return definition_text(definition);
}
