/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Preflight of a domain: everything that can be found out on both hosts before anything is changed. */
#include "blockmig/migrate/machine-look.h"
#include "blockmig/migrate/room.h"
#include "blockmig/migrate/space.h"
#include "blockmig/migrate/target.h"
#include "blockmig/migrate/units.h"
#include "blockmig/storage/names.h"
#include "blockmig/storage/uri.h"

#include <string.h>

/* Room that overlays may need while the machine writes, as a part of the disk's data. */
#define OVERLAY_PART  10
#define OVERLAY_LEAST (UINT64_C(64) << 20)

/* ---- the machine --------------------------------------------------------------------------------- */

static bool open_machine(struct machine_job *job, GError **error)
{
    const char *baggage;

    if ((!job->domain && !(job->domain = domain_open(job->here, job->request->machine, error))) ||
        !domain_look(job->domain, &job->state, error) ||
        !(job->definition = machine_plain_definition(
              job, job->state.persistent ? DOMAIN_PERSISTENT : DOMAIN_ACTIVE, error)) ||
        !domain_has_baggage(job->domain, &baggage, error))
        return false;
    return !baggage ||
           blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s has %s, which would be lost: remove that first",
                         job->request->machine, baggage);
}

/* A domain of the same name or UUID there, which is not ours. */
static bool check_target_is_free(struct machine_job *job, GError **error)
{
    const char *names[] = {domain_uuid(job->domain), domain_name(job->domain)};

    for (unsigned i = 0; job->across && i < G_N_ELEMENTS(names); i++) {
        g_autoptr(GError) local = NULL;
        g_autoptr(domain_t) other = domain_open(job->there, names[i], &local);

        if (other)
            return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                                 "%s: there is a machine called \"%s\" already", job->request->target,
                                 names[i]);
        if (!g_error_matches(local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED)) {
            g_propagate_error(error, g_steal_pointer(&local));
            return false;
        }
    }
    return true;
}

static bool check_reference(bool there, const char *kind, const char *name, GError **error)
{
    return there || blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                                  "the target has no %s \"%s\", which the machine needs", kind, name);
}

/* What a definition names and libvirt has, apart from files. */
static bool check_references(struct machine_job *job, const struct definition *definition, GError **error)
{
    g_autoptr(GPtrArray) networks =
        definition_all(definition, "/domain/devices/interface[@type='network']/source/@network");
    g_autoptr(GPtrArray) pools = definition_all(definition, "/domain/devices/disk/source/@pool");
    g_autoptr(GPtrArray) secrets =
        definition_all(definition, "/domain/devices/disk//secret/@uuid | "
                                   "/domain/devices/tpm/backend/encryption/@secret");
    g_autoptr(GPtrArray) bridges =
        definition_all(definition, "/domain/devices/interface[@type='bridge']/source/@bridge");

    for (guint i = 0; job->across && i < networks->len; i++)
        if (!check_reference(domain_host_has_network(job->there, g_ptr_array_index(networks, i)),
                             "active network", g_ptr_array_index(networks, i), error))
            return false;
    for (guint i = 0; job->across && i < pools->len; i++)
        if (!check_reference(domain_host_has_pool(job->there, g_ptr_array_index(pools, i)), "storage pool",
                             g_ptr_array_index(pools, i), error))
            return false;
    for (guint i = 0; job->across && i < secrets->len; i++)
        if (!check_reference(domain_host_has_secret(job->there, g_ptr_array_index(secrets, i)), "secret",
                             g_ptr_array_index(secrets, i), error))
            return false;
    for (guint i = 0; job->across && i < bridges->len; i++)
        job_notice(&job->base,
                   "the machine needs the bridge %s on the target, which cannot be asked about it",
                   (const char *)g_ptr_array_index(bridges, i));
    return true;
}

/* ---- its disks ----------------------------------------------------------------------------------- */

static char *get_of(const struct definition *definition, const char *disk, const char *what)
{
    g_autofree char *path = g_strdup_printf("/domain/devices/disk[target/@dev='%s']%s", disk, what);

    return definition_get(definition, path);
}

static bool has_of(const struct definition *definition, const char *disk, const char *what)
{
    g_autofree char *path = g_strdup_printf("/domain/devices/disk[target/@dev='%s']%s", disk, what);

    return definition_count(definition, path) > 0;
}

static const char *why_not(const struct machine_job *job, const struct definition *definition,
                           const char *disk)
{
    static const struct {
        const char *what, *reason;
        bool off; /* nothing speaks against it then */
    } rows[] = {
        {"/shareable", "other machines may have it open"},
        {"/transient", "what is written to it is not to be kept"},
        {"//encryption", "libvirt encrypts it"},
        {"/mirror", "a block job is under way"},
        {"/source/slices", "it is a part of its file"},
        {"/driver[@copy_on_read='on']", "copy_on_read keeps the hypervisor from merging overlays", true},
        {"/source/reservations", "the guest makes SCSI reservations by the host"},
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(rows); i++)
        if ((job->state.active || !rows[i].off) && has_of(definition, disk, rows[i].what))
            return rows[i].reason;
    return NULL;
}

static char *target_named(const char *directory, const char *path)
{
    g_autofree char *base = g_path_get_basename(path);

    return g_strconcat(directory, "/", base, NULL);
}

bool machine_is_nobodys(const struct machine_job *job, const char *name, unsigned disks, GError **error)
{
    bool taken = false;

    for (unsigned i = 0; i < disks; i++)
        taken |= strcmp(machine_disk_at(job, i)->target_name, name) == 0;
    for (guint i = 0; i < job->lowers->len; i++)
        taken |= strcmp(((struct lower *)g_ptr_array_index(job->lowers, i))->target_name, name) == 0;
    for (guint i = 0; i < job->files->len; i++)
        taken |= g_strcmp0(((struct machine_file *)g_ptr_array_index(job->files, i))->target_name, name) == 0;
    return !taken || blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "two images would both become %s", name);
}

static bool is_free(const struct machine_job *job, const char *name, unsigned disks, GError **error)
{
    struct name_info info;

    return machine_is_nobodys(job, name, disks, error) && name_look(name, &info, error) &&
           (info.kind == NAME_FREE ||
            blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s exists already", name));
}

static bool choose_target(struct machine_job *job, struct machine_disk *disk, GError **error)
{
    disk->target_name = target_named(job->prefix, disk->path);
    disk->target_path = target_named(job->directory, disk->path);
    disk->overlay_name = g_strconcat(disk->target_name, MACHINE_NEW, NULL);
    disk->overlay_path = g_strconcat(disk->target_path, MACHINE_NEW, NULL);
    return (disk->created || is_free(job, disk->target_name, disk->index, error)) &&
           is_free(job, disk->overlay_name, disk->index, error);
}

/* Does the machine write to an overlay of a move that is not finished?  It belongs to that one: who does not
 * know its journal would take it for the disk. */
static bool check_name(const struct machine_job *job, const struct machine_disk *disk, GError **error)
{
    const char *domain = domain_name(job->domain);

    return !g_regex_match_simple("\\.blockmig-(new|[0-9]+)$", disk->path, G_REGEX_DEFAULT,
                                 G_REGEX_MATCH_DEFAULT) ||
           blockmig_fail(
               error, BLOCKMIG_ERROR_REFUSED,
               "the machine is on %s, the overlay of another move, which comes first: 'blockmig job list' on "
               "the host that began it. If its journal is lost, \"virsh blockcommit '%s' %s --active --pivot "
               "--shallow\" merges it",
               disk->path, domain, disk->name);
}

/* What an earlier move left is never written over. */
static bool check_leftovers(const struct machine_disk *disk, GError **error)
{
    static const char *const suffixes[] = {".blockmig-1", ".blockmig-0", MACHINE_SOURCE, MACHINE_NEW};

    for (unsigned i = disk->top ? 1 : 0; i < G_N_ELEMENTS(suffixes); i++) {
        g_autofree char *path = g_strconcat(disk->stem, suffixes[i], NULL);
        struct name_info info;

        if (!name_look(path, &info, error)) /* also if it would be too long */
            return false;
        if (info.kind != NAME_FREE)
            return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                                 "%s is there already, from another move: remove it, or move it away", path);
    }
    return true;
}

/* Of the layers that become one image. */
static uint64_t allocated(const struct chain *chain, const struct machine_disk *disk)
{
    unsigned layers = disk->backing_name ? 1 : chain_depth(chain);
    uint64_t bytes = 0;

    for (unsigned i = 0; i < layers; i++)
        bytes += storage_file_allocated(chain_layer(chain, i)->storage);
    return MIN(bytes, chain->size);
}

static bool look_at_images(struct machine_job *job, struct machine_disk *disk, GError **error)
{
    g_autoptr(chain_t) source = machine_open_layers(disk, 0, 0, error);
    struct image_create_options options = {0};

    if (!source)
        return false;
    disk->size = source->size;
    for (guint i = 0; i < chain_layer(source, 0)->notices->len; i++)
        job_notice(&job->base, "%s: %s", disk->path,
                   (const char *)g_ptr_array_index(chain_layer(source, 0)->notices, i));
    if (job->state.active && disk->size % 512)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "%s has %" PRIu64
                             " bytes, no whole number of sectors: it is moved only while its "
                             "machine is off",
                             disk->path, disk->size);
    if (chain_layer(source, 0)->data_files->len)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s keeps its data in another file", disk->path);
    if (!machine_choose_below(job, disk, source, error) ||
        !target_format(target_format_wanted(job->request->target_format, disk->target_path),
                       job->request->target_options, chain_layer(source, 0), disk->backing_name != NULL, true,
                       &disk->format, &disk->options, error))
        return false;
    if (!(disk->format->flags & FORMAT_RUNS))
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "a machine is not moved to format %s: choose raw or qcow2 with -O",
                             disk->format->name);
    options.size = disk->size;
    options.values = disk->options;
    options.backing_name = disk->backing_name;
    options.backing_format = disk->backing_format;
    return image_measure(disk->format, &options, allocated(source, disk), &disk->needed, error) &&
           check_leftovers(disk, error);
}

/* What a machine leaves behind when it goes to another host is what it finds when it comes back. */
static void find_seed(struct machine_job *job, struct machine_disk *disk)
{
    g_autofree char *name = g_strconcat(disk->target_name, MACHINE_SOURCE, NULL);
    g_autoptr(GError) local = NULL;
    g_autoptr(image_t) image = NULL;
    struct name_info info;

    if (!job->across || !name_look(name, &info, NULL) || info.kind != NAME_FILE)
        return;
    image = machine_open_image(name, disk->format, FILE_NO_LOCK, &local);
    if (image && image->size != disk->size)
        blockmig_fail(&local, BLOCKMIG_ERROR_REFUSED, "it has %" PRIu64 " bytes, and the disk %" PRIu64,
                      image->size, disk->size);
    if (local)
        job_notice(&job->base, "%s is there, but is no older copy of disk %s: %s", name, disk->name,
                   local->message);
    else
        disk->seed = chain_new_single(g_steal_pointer(&image), true);
}

static bool check_device(const struct machine_job *job, const struct machine_disk *disk, GError **error)
{
    if (!disk->device)
        return true;
    if (!job->across)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "%s is a block device: only disks in files are moved", disk->path);
    return !job->request->delete_source || name_check_deletable(disk->path, error);
}

/* Under the name may be another file than the machine has.  Where there are no locks, descriptors tell. */
static bool check_is_open(const struct machine_job *job, const struct machine_disk *disk, GError **error)
{
    g_autofree char *top = machine_layer_path(disk, disk->top);
    g_autoptr(GPtrArray) users = NULL;

    if (!job->state.active || machine_is_written(disk))
        return true;
    users = storage_file_users(top);
    return (job->state.running && users->len > 0) ||
           blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                         "no hypervisor has %s open for writing: the machine is on another file, which had "
                         "that name before, or was never let go on since it came to this host",
                         disk->path);
}

static bool check_link(const struct machine_job *job, const struct machine_disk *disk, GError **error)
{
    return disk->device || !job->request->delete_source || !g_file_test(disk->path, G_FILE_TEST_IS_SYMLINK) ||
           blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                         "%s is a symbolic link: --delete-source would delete that, and not the image",
                         disk->path);
}

/* What the definition says is no mistake of the command's. */
static const struct format *format_of(const struct definition *definition, const char *name, GError **error)
{
    g_autofree char *text = get_of(definition, name, "/driver/@type");
    const struct format *format = format_by_name(text ? text : format_raw.name, error);

    if (!format && error && *error)
        (*error)->code = BLOCKMIG_ERROR_REFUSED;
    return format;
}

/* `unshared`: why it is not a unit that both hosts reach, or NULL. */
static bool add_disk(struct machine_job *job, const struct definition *definition, const char *name,
                     const char *unshared, GError **error)
{
    const char *reason = why_not(job, definition, name);
    g_autofree char *path = machine_source_of(definition, name), *type = get_of(definition, name, "/@type");
    struct machine_disk *disk;

    if (unshared && !reason)
        job_plan(&job->base, "disk %s is copied, for both hosts do not reach the same unit: %s", name,
                 unshared);
    if (!path && !reason)
        reason = unshared                       ? unshared
                 : g_strcmp0(type, "file") == 0 ? "it has no file"
                                                : "only disks in files and on block devices are moved";
    if (reason)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "disk %s (%s) cannot be moved: %s", name,
                             type ? type : "-", reason);
    disk = machine_disk_new(job, name, path, error);
    if (!disk && unshared)
        g_prefix_error(error, "it is not the same for both hosts (%s), so it would be copied: ", unshared);
    if (disk)
        disk->off = !job->state.active;
    if (!disk || !check_name(job, disk, error) || !machine_take_over(job, disk, error) ||
        !check_device(job, disk, error) || !check_link(job, disk, error) ||
        !check_is_open(job, disk, error) || !(disk->source_format = format_of(definition, name, error)) ||
        !choose_target(job, disk, error) || !look_at_images(job, disk, error)) {
        g_prefix_error(error, "disk %s: ", name);
        return false;
    }
    machine_describe_disk(job, disk);
    find_seed(job, disk);
    return true;
}

/* ---- what it only reads, and its NVRAM ------------------------------------------------------------- */

static struct machine_file *add_file(struct machine_job *job, const char *place, const char *path)
{
    struct machine_file *file = g_new0(struct machine_file, 1);

    file->place = g_strdup(place);
    file->path = g_strdup(path);
    g_ptr_array_add(job->files, file);
    return file;
}

static bool is_same_content(struct storage *a, struct storage *b, bool *same, GError **error)
{
    size_t length = (size_t)((a->size + DIGEST_CHUNK_SIZE - 1) / DIGEST_CHUNK_SIZE * STORAGE_DIGEST);
    g_autofree uint8_t *of_a = g_malloc(length), *of_b = g_malloc(length);

    *same = a->size == b->size;
    if (!*same)
        return true;
    if (!storage_digests(a, 0, a->size, DIGEST_CHUNK_SIZE, of_a, error) ||
        !storage_digests(b, 0, b->size, DIGEST_CHUNK_SIZE, of_b, error))
        return false;
    *same = length == 0 || memcmp(of_a, of_b, length) == 0;
    return true;
}

/* Is the same there already?  Anything else of that name is left alone. */
static bool compare_file(struct machine_file *file, GError **error)
{
    struct name_info info;
    g_autoptr(storage_t) mine = NULL, theirs = NULL;

    if (!name_look(file->target_name, &info, error))
        return false;
    if (info.kind == NAME_FREE)
        return true;
    mine = storage_open(file->path, FILE_NO_LOCK, NULL, NULL, error);
    theirs = mine ? storage_open(file->target_name, FILE_NO_LOCK, NULL, NULL, error) : NULL;
    return theirs && is_same_content(mine, theirs, &file->there, error) &&
           (file->there || blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s exists already, and is not %s",
                                         file->target_name, file->path));
}

/* In another drive, or the other definition. */
static bool is_known(const struct machine_job *job, const char *path)
{
    for (guint i = 0; i < job->files->len; i++)
        if (g_strcmp0(((struct machine_file *)g_ptr_array_index(job->files, i))->path, path) == 0)
            return true;
    return false;
}

static bool bring_file(struct machine_job *job, const char *place, const char *path, bool written,
                       GError **error)
{
    g_autofree char *name = target_named(job->prefix, path);
    bool known = is_known(job, path);
    struct machine_file *file;

    if (!known && !machine_is_nobodys(job, name, job->disks->len, error))
        return false;
    file = add_file(job, place, path);
    file->written = written;
    file->target_name = g_steal_pointer(&name);
    file->target_path = target_named(job->directory, path);
    file->there = known; /* before it is asked for: files are brought in this order */
    return known || compare_file(file, error);
}

/* As it is, it is copied alone. */
static bool check_stands_alone(const struct definition *definition, const char *name, const char *path,
                               GError **error)
{
    const struct format *format = format_of(definition, name, error);
    g_autoptr(image_t) image = format ? machine_open_image(path, format, FILE_NO_LOCK, error) : NULL;

    if (!image)
        return false;
    return (!image->backing_name && image->data_files->len == 0) ||
           blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                         "medium %s: %s needs %s, which would stay behind: --cdrom=keep or --cdrom=eject",
                         name, path, image->backing_name ? image->backing_name : "another file for its data");
}

/* Of a medium that was taken out libvirt leaves an element. */
static bool has_medium(const struct definition *definition, const char *name)
{
    return has_of(definition, name, "/source/@*[name() != 'index' and name() != 'startupPolicy']");
}

static bool look_at_medium(struct machine_job *job, const struct definition *definition, const char *name,
                           GError **error)
{
    g_autofree char *place = g_strdup_printf("/domain/devices/disk[target/@dev='%s']/source/@file", name);
    g_autofree char *source = g_strdup_printf("/domain/devices/disk[target/@dev='%s']/source", name);
    g_autofree char *path = definition_get(definition, place);
    g_autofree char *reason = NULL;
    const char *shown = path ? path : name;
    bool shared;

    if (!job->across || !has_medium(definition, name))
        return true;
    if (!machine_look_at_unit(job, definition, name, false, &shared, &reason, error) ||
        (!shared && path && !machine_is_shared(job, path, &shared, error)))
        return false;
    if (shared)
        return true;
    switch (job->request->cdrom) {
    case CDROM_EJECT:
        add_file(job, source, shown);
        return true;
    case CDROM_KEEP:
        job_notice(&job->base, "%s is expected on the target under the same name", shown);
        return true;
    case CDROM_COPY:
        break;
    }
    if (path)
        return check_stands_alone(definition, name, path, error) &&
               bring_file(job, place, path, false, error);
    return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                         "medium %s is in no file, and not known to be the same for both hosts (%s): "
                         "--cdrom=keep or --cdrom=eject",
                         name, reason ? reason : "it is on no unit that is known here");
}

static bool look_at_nvram(struct machine_job *job, const struct definition *definition, GError **error)
{
    bool inside = definition_count(definition, "/domain/os/nvram/source") > 0, shared;
    const char *place = inside ? "/domain/os/nvram/source/@file" : "/domain/os/nvram";
    g_autofree char *path = definition_get(definition, place);

    if (!job->across || (!inside && (!path || !*path)))
        return true;
    if (!path)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "its NVRAM is in no file, and would stay behind");
    if (!machine_is_shared(job, path, &shared, error))
        return false;
    if (shared)
        return true;
    if (!g_file_test(path, G_FILE_TEST_EXISTS))
        job_notice(&job->base, "there is no NVRAM in %s, so none is brought: libvirt makes it on the target",
                   path);
    return bring_file(job, place, path, true, error);
}

/* Neither live nor off is what is in it a disk's. */
static bool check_memory(const struct machine_job *job, const struct definition *definition, GError **error)
{
    g_autofree char *path = definition_get(definition, "/domain/devices/memory/source/path");

    return !job->across || !path ||
           blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "it has memory in %s, which would stay behind", path);
}

static void tell_each(struct machine_job *job, const struct definition *definition, const char *path,
                      const char *what)
{
    g_autoptr(GPtrArray) found = definition_all(definition, path);

    for (guint i = 0; i < found->len; i++)
        job_plan(&job->base, "%s %s", (const char *)g_ptr_array_index(found, i), what);
}

/* Kernels and firmware belong to the host, and so do directories that it shares.  The first serial port is a
 * console, too. */
static void tell_what_stays(struct machine_job *job, const struct definition *definition)
{
    static const char *const port = "/domain/devices/*[not(self::console/target/@type='serial')]";
    g_autofree char *logs = g_strconcat(port, "[@type='file']/source/@path | ", port, "/log/@file", NULL);

    if (!job->across)
        return;
    tell_each(job, definition,
              "/domain/os/kernel | /domain/os/initrd | /domain/os/dtb | "
              "/domain/os/loader[starts-with(., '/')] | "
              "/domain/devices/filesystem/source/@dir | /domain/devices/filesystem/source/@file",
              "is expected on the target under the same name");
    tell_each(job, definition, logs, "stays here: the machine begins another one there, under the same name");
    if (definition_count(definition, "/domain/devices/hostdev"))
        job_notice(&job->base,
                   "it has a device of the host: it gets what is at the same place of the target");
}

/* ---- all of them ----------------------------------------------------------------------------------- */

static bool is_wanted(const struct machine_job *job, const char *name)
{
    for (guint i = 0; i < job->request->disks->len; i++)
        if (strcmp(g_ptr_array_index(job->request->disks, i), name) == 0)
            return true;
    return job->request->disks->len == 0;
}

/* What the guest does not write to.  A floppy may be a disk like others. */
static bool is_medium(const struct definition *definition, const char *name)
{
    g_autofree char *device = get_of(definition, name, "/@device");

    return g_strcmp0(device, "cdrom") == 0 || has_of(definition, name, "/readonly") ||
           (g_strcmp0(device, "floppy") == 0 && !has_medium(definition, name));
}

static bool look_at_disk(struct machine_job *job, const struct definition *definition, const char *name,
                         GPtrArray *others, GError **error)
{
    bool shared = false, unit = false;
    g_autofree char *path = NULL, *reason = NULL;

    if (!definition_is_word(name))
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "disk %s has a name that is not expected", name);
    path = machine_source_of(definition, name);
    if (is_medium(definition, name) || !is_wanted(job, name)) {
        g_ptr_array_add(others, g_strdup(name));
        return !is_medium(definition, name) || look_at_medium(job, definition, name, error);
    }
    if (!machine_look_at_unit(job, definition, name, true, &unit, &reason, error) ||
        (!unit && !reason && path && !machine_is_shared(job, path, &shared, error)))
        return false;
    if (!unit && !shared)
        return add_disk(job, definition, name, reason, error);
    if (unit && has_of(definition, name, "/source/reservations"))
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "disk %s cannot be moved: %s", name,
                             why_not(job, definition, name));
    job->shared = true;
    job->shared_files |= shared;
    job->cached |= !has_of(definition, name, "/driver[@cache='none' or @cache='directsync']");
    g_ptr_array_add(others, g_strdup(name));
    return true;
}

/* What a machine that runs has open may be followed. */
static void find_roots(struct machine_job *job, const struct definition *definition)
{
    const GPtrArray *named = job->request->allowed_roots;
    g_autoptr(GPtrArray) files =
        job->state.active ? definition_all(definition, "/domain/devices/disk//backingStore/source/@file")
                          : NULL;

    for (guint i = 0; named && i < named->len; i++) {
        g_autofree char *directory = storage_absolute_name(g_ptr_array_index(named, i));

        machine_add_root(job, directory);
    }
    for (guint i = 0; files && i < files->len; i++) {
        g_autofree char *directory = g_path_get_dirname(g_ptr_array_index(files, i));

        machine_add_root(job, directory);
    }
}

static bool check_wanted(const struct machine_job *job, const GPtrArray *names, GError **error)
{
    for (guint i = 0; i < job->request->disks->len; i++)
        if (!g_ptr_array_find_with_equal_func((GPtrArray *)names, g_ptr_array_index(job->request->disks, i),
                                              g_str_equal, NULL))
            return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "no disk is called \"%s\"",
                                 (const char *)g_ptr_array_index(job->request->disks, i));
    return !job->across || job->request->disks->len == 0 ||
           blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                         "a machine goes to another host with all its disks: no --disk");
}

static bool look_at_disks(struct machine_job *job, const struct definition *definition, GError **error)
{
    g_autoptr(GPtrArray) names = definition_all(definition, "/domain/devices/disk/target/@dev");
    GPtrArray *others = g_ptr_array_new();
    bool ok = check_wanted(job, names, error);

    for (guint i = 0; ok && i < names->len; i++)
        ok = look_at_disk(job, definition, g_ptr_array_index(names, i), others, error);
    g_ptr_array_add(others, NULL);
    job->others = (char **)g_ptr_array_free(others, FALSE);
    return ok && machine_has_all_that_is_left(job, error) &&
           (job->across || job->disks->len > 0 ||
            blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "the machine has no disk that could be moved"));
}

/* What the machine has once it is started again, and not as it runs: media come along; but which of two files
 * a disk is meant to be on nobody can tell, and what is on neither would stay behind. */
static bool look_at_pending_disk(struct machine_job *job, const struct definition *definition,
                                 const struct definition *pending, const char *name, GError **error)
{
    g_autofree char *now = machine_source_of(definition, name), *then = machine_source_of(pending, name);

    if (!then || g_strcmp0(now, then) == 0)
        return true;
    if (is_medium(pending, name))
        return look_at_medium(job, pending, name, error);
    if (!job->across && (!now || !is_wanted(job, name)))
        return true;
    return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                         "disk %s will be on %s when the machine is started the next time, and %s%s now: "
                         "make both definitions the same ('virsh edit', 'virsh attach-disk')",
                         name, then, now ? "is on " : "is not there", now ? now : "");
}

static bool look_at_pending(struct machine_job *job, const struct definition *definition, GError **error)
{
    g_autoptr(definition_t) pending = definition_parse(job->definition, error);
    g_autoptr(GPtrArray) names = pending ? definition_all(pending, "/domain/devices/disk/target/@dev") : NULL;
    bool ok = names != NULL;

    for (guint i = 0; ok && i < names->len; i++) {
        const char *name = g_ptr_array_index(names, i);

        ok = (definition_is_word(name) || blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                                                        "disk %s has a name that is not expected", name)) &&
             look_at_pending_disk(job, definition, pending, name, error);
    }
    return ok;
}

static bool check_busy(struct machine_job *job, GError **error)
{
    for (guint i = 0; job->state.active && i < job->disks->len; i++) {
        char *names[] = {machine_disk_at(job, i)->name, NULL};
        g_autofree char *busy = domain_busy_disk(job->domain, names);

        if (busy)
            return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "disk %s: a block job is under way", busy);
    }
    return true;
}

static uint64_t overlay_room(const struct machine_disk *disk)
{
    return MAX(disk->needed / OVERLAY_PART, OVERLAY_LEAST);
}

static bool check_space(struct machine_job *job, GError **error)
{
    uint64_t needed = 0, available;
    struct space_report space = {0};

    for (guint i = 0; i < job->disks->len; i++) {
        const struct machine_disk *disk = machine_disk_at(job, i);

        needed += disk->needed - MIN(disk->needed, disk->done.before.bytes_written) + overlay_room(disk);
        if (job->state.active && !space_check(disk->stem, overlay_room(disk), 2, &space, error))
            return false;
    }
    for (guint i = 0; i < job->lowers->len; i++) {
        const struct lower *lower = g_ptr_array_index(job->lowers, i);

        needed += lower->there ? 0 : lower->needed;
    }
    for (guint i = 0; i < job->files->len; i++) {
        const struct machine_file *file = g_ptr_array_index(job->files, i);

        needed += file->target_name && !file->there && !file->late ? footprint_of(file->path).bytes : 0;
    }
    job->base.report->space_needed = needed;
    if (needed == 0)
        return true;
    if (!job->across)
        return space_check(job->directory, needed, 2 * job->disks->len + job->lowers->len, &space, error);
    if (!name_room(job->prefix, &available, error))
        return false;
    job->base.report->space_available = available;
    if (needed > available) {
        g_autofree char *a = units_format_size(needed), *b = units_format_size(available);

        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s: %s are needed, and there are %s",
                             job->prefix, a, b);
    }
    return true;
}

/* ---- the plan ------------------------------------------------------------------------------------ */

static void write_plan(struct machine_job *job)
{
    const struct job *base = &job->base;
    g_autofree char *needed = units_format_size(base->report->space_needed);

    for (guint i = 0; i < job->disks->len; i++) {
        const struct machine_disk *disk = machine_disk_at(job, i);
        g_autofree char *size = units_format_size(disk->size);

        job_plan(base, "move %s: %s (%s, %s) to %s as %s", disk->name, disk->path, disk->source_format->name,
                 size, disk->target_name, disk->format->name);
        if (disk->backing_name)
            job_plan(base, "it stands on %s there", disk->backing_name);
        if (disk->seed)
            job_plan(base, "what %s has at the same place of the disk is not sent",
                     chain_layer(disk->seed, 0)->name);
    }
    for (guint i = 0; i < job->lowers->len; i++) {
        const struct lower *lower = g_ptr_array_index(job->lowers, i);

        job_plan(base, "layer %s: %s %s as %s", lower->source_path,
                 lower->there ? "there already:" : "copied to", lower->target_name, lower->format->name);
    }
    for (guint i = 0; i < job->files->len; i++) {
        const struct machine_file *file = g_ptr_array_index(job->files, i);

        if (file->late)
            continue; /* one line for all of them */
        job_plan(base, "%s %s%s%s",
                 !file->target_name ? "eject"
                 : file->there      ? "already there:"
                                    : "copy",
                 file->path, file->target_name ? " as " : "", file->target_name ? file->target_name : "");
    }
    if (base->report->space_needed)
        job_plan(base, "space: about %s on the target", needed);
    machine_plan_pause(job);
    if (job->across)
        job_plan(base,
                 "the definition is removed here before the machine goes on there; it is kept in the state "
                 "directory");
    for (guint i = 0; job->across && i < job->units->len; i++) {
        const struct machine_unit *unit = g_ptr_array_index(job->units, i);

        if (unit->held || base->method == &method_machine_san)
            job_plan(
                base,
                "%s is reserved by this host, the target registers; once the machine stands still here, the "
                "target preempts, and has it from then on: 'blockmig reservation release' there ends that",
                unit->name);
    }
    if (job->disks->len)
        job_plan(base, !job->request->delete_source  ? "the source's disks are kept as NAME" MACHINE_SOURCE
                       : job->request->keep_failback ? "the source's disks are kept as NAME" MACHINE_SOURCE
                                                       ", and deleted when the way back is closed"
                                                     : "the source's disks are deleted after the proof");
}

static const char *unsupported(const struct move_request *request)
{
    return request->scratch && !request->across                 ? "--scratch"
           : request->sample                                    ? "--sample"
           : request->on_busy == BUSY_THROTTLE                  ? "--on-busy=throttle"
           : request->on_busy == BUSY_MIRROR && request->across ? "--on-busy=mirror across hosts"
                                                                : NULL;
}

static bool check_request(const struct move_request *request, GError **error)
{
    const char *what = unsupported(request);

    if (what)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s is not possible yet for a domain of libvirt",
                             what);
    if (request->across && request->keep_failback && !request->failback_to)
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE,
                             "--keep-failback needs --failback-to=blockmig://HOST/DATASTORE: where the disks "
                             "are now, as the other host names it");
    if (request->failback_to && !request->keep_failback)
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "--failback-to goes with --keep-failback only");
    return !request->delete_source || request->verify == VERIFY_FULL ||
           blockmig_fail(error, BLOCKMIG_ERROR_USAGE,
                         "--delete-source needs a proof: it goes with --verify=full only");
}

static bool look(struct machine_job *job, GError **error)
{
    g_autofree char *text = NULL;
    g_autoptr(definition_t) definition = NULL;

    if (!check_request(job->request, error) || !machine_find_hosts(job, error) ||
        !machine_recover(job, error))
        return false;
    if (job->base.go_on_at)
        return true;
    if (!open_machine(job, error))
        return false;
    text = machine_plain_definition(job, job->state.active ? DOMAIN_ACTIVE : DOMAIN_PERSISTENT, error);
    definition = text ? definition_parse(text, error) : NULL;
    if (definition)
        find_roots(job, definition);
    if (!definition || !check_target_is_free(job, error) || !check_references(job, definition, error) ||
        !look_at_disks(job, definition, error) || !look_at_pending(job, definition, error) ||
        !look_at_nvram(job, definition, error) || !check_memory(job, definition, error) ||
        !machine_look_at_tpm(job, definition, error) || !check_busy(job, error) ||
        !machine_choose_method(job, definition, error) || !check_space(job, error))
        return false;
    tell_what_stays(job, definition);
    write_plan(job);
    return machine_check_way_back(job, error);
}

bool machine_preflight(struct job *base, GError **error)
{
    struct machine_job *job = machine_of(base);
    g_autoptr(GError) local = NULL;

    if (look(job, &local)) {
        if (!base->go_on_at && (job->left || base->method == &method_machine_cold))
            base->go_on_at = "base";
        return true;
    }
    if (!g_error_matches(local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE) &&
        !g_error_matches(local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_UNREACHABLE) &&
        !g_error_matches(local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_UNCERTAIN))
        local->code = BLOCKMIG_ERROR_REFUSED;
    local->domain = BLOCKMIG_ERROR;
    g_propagate_error(error, g_steal_pointer(&local));
    return false;
}
