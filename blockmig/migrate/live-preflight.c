/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Preflight of a move: everything that can be found out before anything is changed. */
#include "blockmig/migrate/live.h"
#include "blockmig/migrate/place.h"
#include "blockmig/migrate/space.h"
#include "blockmig/migrate/target.h"
#include "blockmig/migrate/units.h"
#include "blockmig/storage/file.h"
#include "blockmig/storage/names.h"
#include "blockmig/storage/uri.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

/* Room that overlays may need while the machine writes, on the source, as a part of the disk's data. */
#define OVERLAY_PART  10
#define OVERLAY_LEAST (UINT64_C(64) << 20)

/* ---- which disks ---------------------------------------------------------------------------------- */

static struct live_disk *add_disk(struct live_job *job, const struct vm_disk *vm)
{
    struct live_disk *disk = g_new0(struct live_disk, 1);

    disk->index = job->disks->len;
    disk->side = 's';
    disk->vm = vm;
    disk->size = vm->virtual_size;
    disk->base_node = g_strdup(vm->node);
    g_ptr_array_add(job->disks, disk);
    return disk;
}

static bool add_named(struct live_job *job, GError **error)
{
    for (guint i = 0; i < job->request->disks->len; i++) {
        const char *name = g_ptr_array_index(job->request->disks, i);
        const struct vm_disk *vm = vm_find_disk(job->description, name, error);

        if (!vm)
            return false;
        if (vm->refusal)
            return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "disk %s cannot be moved: %s", vm->name,
                                 vm->refusal);
        for (guint k = 0; k < job->disks->len; k++)
            if (live_disk_at(job, k)->vm == vm)
                return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "disk %s is named twice", vm->name);
        add_disk(job, vm);
    }
    return true;
}

/* Media that the machine only reads stay; a disk that it writes and that cannot be moved is a reason to stop:
 * half a machine is not what was asked for. */
static bool add_all(struct live_job *job, GError **error)
{
    for (guint i = 0; i < job->description->disks->len; i++) {
        const struct vm_disk *vm = g_ptr_array_index(job->description->disks, i);

        if (!vm->has_medium || vm->read_only || vm->removable)
            continue;
        if (vm->refusal)
            return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                                 "disk %s cannot be moved: %s (--disk chooses others)", vm->name,
                                 vm->refusal);
        add_disk(job, vm);
    }
    return job->disks->len > 0 ||
           blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "the machine has no disk that could be moved");
}

/* ---- one disk ------------------------------------------------------------------------------------- */

static const char *kind_of(const char *device)
{
    return storage_name_is_uri(device) ? "on a server" : "a block device";
}

/* Overlays of an image on a device need another place. */
static bool check_scratch(const struct live_job *job, const char *device, GError **error)
{
    if (!job->scratch)
        return blockmig_fail(
            error, BLOCKMIG_ERROR_REFUSED,
            "%s is %s: there is no place for an overlay beside it; --scratch names a directory for it",
            device, kind_of(device));
    return g_file_test(job->scratch, G_FILE_TEST_IS_DIR) ||
           blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "--scratch: %s: there is no such directory",
                         job->scratch);
}

/* A device goes on where it is, and cannot be deleted. */
static bool check_device(const struct live_job *job, const struct live_disk *disk, GError **error)
{
    return !disk->device ||
           (check_scratch(job, disk->name, error) &&
            (!job->request->delete_source ||
             blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s is %s: --delete-source cannot delete it",
                           disk->name, kind_of(disk->name))));
}

static bool check_source(struct live_job *job, struct live_disk *disk, GError **error)
{
    const struct vm_layer *top = g_ptr_array_index(disk->vm->layers, 0);
    struct stat st;

    if (!(disk->source_format = format_by_name(top->format, error)))
        return false;
    disk->device = storage_name_is_uri(top->filename);
    if (!disk->device && stat(top->filename, &st) < 0)
        return blockmig_set_errno(error, errno, "%s", top->filename);
    disk->device = disk->device || S_ISBLK(st.st_mode);
    /* A symbolic link to a file stays what it is: names are exchanged where the image is.  One to a device
     * has the name that lasts. */
    disk->name = disk->device ? g_strdup(top->filename) : realpath(top->filename, NULL);
    if (!disk->name)
        return blockmig_set_errno(error, errno, "%s", top->filename);
    if (!check_device(job, disk, error))
        return false;
    disk->stem = live_stem(job, disk->name, disk->device);
    disk->by_exchange = (disk->source_format->flags & FORMAT_BACKING) && !disk->device;
    for (guint i = 0; i < disk->vm->notices->len; i++)
        job_notice(&job->base, "%s: %s", disk->vm->name, (char *)g_ptr_array_index(disk->vm->notices, i));
    return true;
}

/* What an earlier move left is never written over. */
static bool check_names(const struct live_disk *disk, GError **error)
{
    g_autofree char *directory = g_path_get_dirname(disk->stem);
    g_autofree char *base = g_path_get_basename(disk->stem);
    g_autofree char *prefix = g_strconcat(base, ".blockmig-", NULL);
    GDir *dir = g_dir_open(directory, 0, error);
    const char *name;
    bool ok = true;

    if (!dir)
        return false;
    while (ok && (name = g_dir_read_name(dir)))
        if (g_str_has_prefix(name, prefix))
            ok = blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                               "%s/%s is there already, from another move: remove it, or move it away",
                               directory, name);
    g_dir_close(dir);
    return ok;
}

/* A hypervisor that waits for a server holds the machine up, so that is asked first.  Then it tries: it may
 * lack the driver, or the way. */
static bool machine_can_connect(const struct live_job *job, const struct live_disk *disk, GError **error)
{
    g_autofree char *handed_over = NULL, *name = g_strdup_printf("bm-%08x-%u-try", job->tag, disk->index);
    struct vm_node node = live_node(disk, name, disk->target_path, NULL, NULL, NULL, true);
    g_autoptr(GError) local = NULL;

    if (!storage_name_is_uri(disk->target_path))
        return true;
    if (!storage_takes_another(disk->target_path, &local))
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "%s: the machine needs a connection beside ours, and the server gives none (%s)",
                             disk->target_path, local->message);
    if (job->base.dry_run)
        return true;
    if (!vm_hand_over(job->vm, &node, &handed_over, &local)) {
        vm_remove_node(job->vm, name, NULL); /* it may have been late */
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "the machine cannot open %s: %s",
                             disk->target_path, local->message);
    }
    return vm_remove_node(job->vm, name, error);
}

/* Did the newest job that was to write there not come to its end?  Then what lies there is what it left. */
static bool is_our_remainder(const struct live_job *job, const char *target)
{
    g_autoptr(GPtrArray) jobs = job->base.journal ? journal_job_list(job->base.journal, NULL) : NULL;

    for (guint i = 0; jobs && i < jobs->len; i++) {
        const struct journal_job *record = g_ptr_array_index(jobs, i);
        g_autoptr(GPtrArray) disks = journal_disk_list(job->base.journal, record, NULL);

        for (guint k = 0; disks && k < disks->len; k++)
            if (g_strcmp0(((const struct journal_disk *)g_ptr_array_index(disks, k))->target, target) == 0)
                return g_strcmp0(record->result, "done") != 0;
    }
    return false;
}

static bool may_overwrite(const struct live_job *job, const struct live_disk *disk, struct chain *source,
                          GError **error)
{
    g_autoptr(storage_t) storage = NULL;

    if (!disk->target_device || job->request->force || is_our_remainder(job, disk->target_path))
        return true;
    storage = live_storage_open(disk->target_path, FILE_WRITE, NULL, NULL, error);
    return storage &&
           (!(disk->format->flags & FORMAT_IDENTITY) || place_fits_sectors(source, storage, error)) &&
           place_is_empty(storage, error);
}

/* Not what is in use, nor what is read. */
static bool check_target_device(const struct live_job *job, struct live_disk *disk,
                                const struct chain *source, GError **error)
{
    g_autoptr(storage_t) storage = NULL;

    if (!check_scratch(job, disk->target_path, error) ||
        !target_is_not_a_source(disk->target_path, source, error))
        return false;
    storage = live_storage_open(disk->target_path, FILE_WRITE, NULL, NULL, error);
    if (!storage || !machine_can_connect(job, disk, error))
        return false;
    disk->target_capacity = storage->size;
    return target_is_another(storage, source, error);
}

bool live_runs_on(const struct format *format, GError **error)
{
    return format->flags & FORMAT_RUNS ||
           blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                         "a running machine is not moved to format %s: choose raw or qcow2 with -O",
                         format->name);
}

static bool is_new(const char *path, GError **error)
{
    struct stat st;

    return lstat(path, &st) < 0 || blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s exists already", path);
}

bool live_is_free(const struct live_job *job, const char *path, unsigned disks, GError **error)
{
    bool taken = false;

    for (unsigned i = 0; i < disks; i++)
        taken |= g_strcmp0(live_disk_at(job, i)->target_path, path) == 0;
    for (guint i = 0; i < job->lowers->len; i++)
        taken |= strcmp(((struct lower *)g_ptr_array_index(job->lowers, i))->target_path, path) == 0;
    if (taken)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "two images would both become %s", path);
    return is_new(path, error);
}

static bool choose_target(struct live_job *job, struct live_disk *disk, struct chain *source, GError **error)
{
    g_autofree char *stem = NULL;
    struct stat st, own;

    if (job->disks->len > 1 && !g_file_test(job->request->target, G_FILE_TEST_IS_DIR))
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s is not a directory: several disks need one",
                             job->request->target);
    disk->target_device = storage_name_is_uri(job->request->target);
    disk->target_path = disk->target_device
                            ? g_strdup(job->request->target)
                            : target_path(job->request->target, disk->name, &disk->target_device, error);
    if (!disk->target_path)
        return false;
    if (!disk->target_device && stat(disk->name, &own) == 0 && stat(disk->target_path, &st) == 0 &&
        own.st_dev == st.st_dev && own.st_ino == st.st_ino)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s exists already: the disk is there",
                             disk->target_path);
    if (!(disk->target_device ? check_target_device(job, disk, source, error)
                              : live_is_free(job, disk->target_path, disk->index, error)))
        return false;
    stem = live_stem(job, disk->target_path, disk->target_device);
    disk->target_overlay = g_strconcat(stem, LIVE_NEW, NULL);
    return is_new(disk->target_overlay, error);
}

/* Of all that becomes the target's image. */
static uint64_t allocated(const struct live_disk *disk)
{
    uint64_t bytes = 0;

    for (guint i = 0; i < (disk->backing_name ? 1 : disk->vm->layers->len); i++) {
        const struct vm_layer *layer = g_ptr_array_index(disk->vm->layers, i);

        /* Of a device nobody knows what it holds. */
        bytes += g_strcmp0(layer->protocol, "file") == 0 ? layer->allocated : layer->virtual_size;
    }
    return MIN(bytes, disk->size);
}

/* A device must hold all that the machine may ever write: it does not grow. */
static bool measure(struct live_disk *disk, GError **error)
{
    struct image_create_options options = {.size = disk->size,
                                           .backing_name = disk->backing_name,
                                           .backing_format = disk->backing_format,
                                           .values = disk->options};

    return image_measure(disk->format, &options, disk->target_device ? disk->size : allocated(disk),
                         &disk->needed, error);
}

void live_describe_disk(struct live_job *job, struct live_disk *disk)
{
    struct disk_report *report = g_new0(struct disk_report, 1);

    report->disk = g_strdup(disk->vm->name);
    report->source = g_strdup(disk->name);
    report->target = g_strdup(disk->target_path);
    report->source_format = g_strdup(disk->source_format->name);
    report->target_format = g_strdup(disk->format->name);
    report->virtual_size = disk->size;
    report->source_allocated = allocated(disk);
    report->algorithm = job->request->digest;
    disk->report = report;
    g_ptr_array_add(job->base.report->disks, report);
}

static bool look_at_disk(struct live_job *job, struct live_disk *disk, GError **error)
{
    g_autoptr(chain_t) source = NULL;

    if (!check_source(job, disk, error) || !check_names(disk, error))
        return false;
    /* The machine holds it, so there is no lock to take; only headers are read here. */
    source = live_open_base(disk, FILE_NO_LOCK, error);
    if (!source)
        return false;
    if (source->size != disk->size)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "%s has %" PRIu64 " bytes, the machine sees %" PRIu64, disk->name, source->size,
                             disk->size);
    if (chain_layer(source, 0)->data_files->len)
        return blockmig_fail(
            error, BLOCKMIG_ERROR_REFUSED,
            "%s keeps its data in %s: it has several files that would have to change names at once",
            disk->name, image_data_file(chain_layer(source, 0), 0)->name);
    if (!choose_target(job, disk, source, error) || !live_choose_below(job, disk, source, error) ||
        !target_format(target_format_wanted(job->request->target_format, disk->target_path),
                       job->request->target_options, chain_layer(source, 0), disk->backing_name != NULL, true,
                       &disk->format, &disk->options, error) ||
        !live_runs_on(disk->format, error) || !may_overwrite(job, disk, source, error))
        return false;
    for (guint i = 0; i < chain_layer(source, 0)->notices->len; i++)
        job_notice(&job->base, "%s: %s", disk->name,
                   (char *)g_ptr_array_index(chain_layer(source, 0)->notices, i));
    live_describe_disk(job, disk);
    return measure(disk, error);
}

/* ---- all of them ---------------------------------------------------------------------------------- */

static uint64_t overlay_room(const struct live_disk *disk)
{
    return MAX(allocated(disk) / OVERLAY_PART, OVERLAY_LEAST);
}

/* The rest of a larger device becomes zeros, or the guest would see what was there. */
static bool check_device_size(struct live_job *job, const struct live_disk *disk, GError **error)
{
    struct space_report space = {0};
    uint64_t room = overlay_room(disk) * (disk->device ? 2 : 1);
    g_autofree char *size = NULL, *larger = NULL;

    if (!space_check(disk->target_overlay, room, 2, &space, error) ||
        !space_check_device(disk->target_path, disk->needed, disk->target_capacity, &space, error))
        return false;
    job->base.report->space_needed = disk->needed;
    job->base.report->space_available = space.available;
    if (!(disk->format->flags & FORMAT_IDENTITY) || space.total == disk->size)
        return true;
    size = units_format_size(disk->size);
    larger = units_format_size(space.total);
    job_notice(&job->base,
               "%s has %s, the disk %s: the machine will see the larger size, with zeros at the end",
               disk->target_path, larger, size);
    return true;
}

static bool check_space(struct live_job *job, GError **error)
{
    struct space_report space = {0};
    uint64_t target = 0;
    unsigned files = 2 * job->disks->len + job->lowers->len;

    for (guint i = 0; i < job->lowers->len; i++) {
        const struct lower *lower = g_ptr_array_index(job->lowers, i);

        target += lower->needed;
        if (!space_check_file_size(lower->target_path, lower->size, error))
            return false;
    }
    for (guint i = 0; i < job->disks->len; i++) {
        struct live_disk *disk = live_disk_at(job, i);
        uint64_t largest = disk->format->flags & FORMAT_IDENTITY ? disk->size : disk->needed;

        target += disk->needed + overlay_room(disk);
        if (!space_check(disk->stem, overlay_room(disk), 2, &space, error) ||
            !(disk->target_device || space_check_file_size(disk->target_path, largest, error)))
            return false;
        if (disk->target_device)
            return check_device_size(job, disk, error); /* it is the only one */
    }
    job->base.report->space_needed = target;
    if (!space_check(live_disk_at(job, 0)->target_path, target, files, &space, error))
        return false;
    job->base.report->space_available = space.available;
    return true;
}

const struct method *live_choose_method(const struct move_request *request)
{
    return request->method == MOVE_MIRROR || request->max_pause == 0 ? &method_mirror : &method_storage;
}

static void plan_method(const struct job *base, const struct move_request *request)
{
    if (base->method == &method_storage)
        job_plan(base,
                 "method storage: the machine runs on this host and may stand still for %u ms (mirror was "
                 "passed over: until the target is proved, the machine would need both datastores)",
                 request->max_pause);
    else if (request->method == MOVE_MIRROR)
        job_plan(base, "method mirror, as asked for: the machine runs on this host");
    else
        job_plan(base, "method mirror: the machine runs on this host and may not stand still (storage was "
                       "passed over: it needs a pause)");
}

static void plan_pause(const struct job *base, const struct move_request *request)
{
    static const char *const policies[] = {
        [BUSY_PARK] = "the machine stays where it is",
        [BUSY_MIRROR] = "the switch is made without a pause (method mirror)",
        [BUSY_THROTTLE] = "the machine's writes are limited until the switch is over",
    };

    if (base->method == &method_storage)
        job_plan(base, "pause: at most %u ms; if it would be longer: %s", request->max_pause,
                 policies[request->on_busy]);
    else
        job_plan(base, "pause: none for the switch; from the switch to the target's overlay until the proof, "
                       "the machine needs both datastores");
}

static void write_plan(struct live_job *job)
{
    const struct job *base = &job->base;
    g_autofree char *needed = units_format_size(base->report->space_needed);

    plan_method(base, job->request);
    for (guint i = 0; i < job->disks->len; i++) {
        const struct live_disk *disk = live_disk_at(job, i);
        g_autofree char *size = units_format_size(disk->size);
        g_autofree char *data = units_format_size(allocated(disk));
        g_autofree char *room = units_format_size(overlay_room(disk));

        job_plan(base, "move %s: %s (%s, %s, at most %s of data) to %s as %s", disk->vm->name, disk->name,
                 disk->source_format->name, size, data, disk->target_path, disk->format->name);
        if (disk->lower)
            job_plan(base, "  its %u lower layers are copied to the same directory",
                     disk->vm->layers->len - 1);
        else if (disk->backing_name)
            job_plan(base, "  it will stand on %s, which stays where it is", disk->backing_name);
        else if (disk->vm->layers->len > 1)
            job_plan(base, "  its chain of %u images becomes one; the lower ones stay where they are",
                     disk->vm->layers->len);
        job_plan(base, "  overlays %s%s while it is copied: at least %s",
                 disk->device ? "in " : "beside the source", disk->device ? job->scratch : "", room);
    }
    if (job->request->quiesce != QUIESCE_NO)
        job_plan(base,
                 "the guest's file systems are frozen, by its agent, for the snapshot and for the switch%s",
                 job->request->quiesce == QUIESCE_TRY ? ", if it can do that" : "");
    job_plan(base, "space: about %s on the target", needed);
    plan_pause(base, job->request);
    job_plan(base, job->request->delete_source
                       ? "the source is deleted after the proof"
                       : "the source is kept as it was at the switch: as NAME.blockmig-source, a device "
                         "read-only");
}

/* Would it switch without a pause, at least if the machine is too busy for one? */
static bool is_mirror(const struct move_request *request)
{
    return request->method == MOVE_MIRROR || request->max_pause == 0 || request->on_busy == BUSY_MIRROR;
}

/* What the command line knows and no phase does yet. */
static const char *unsupported(const struct move_request *request)
{
    return request->keep_failback && is_mirror(request) ? "--keep-failback with the method mirror"
           : request->keep_failback && request->chain != CHAIN_FLATTEN ? "--keep-failback with --chain"
           : request->keep_failback && request->scratch                ? "--keep-failback with --scratch"
                                                                       : NULL;
}

static bool check_request(const struct move_request *request, GError **error)
{
    const char *what = unsupported(request);

    if (what)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s is not possible yet for a running machine",
                             what);
    if (storage_name_is_uri(request->target) && name_has_files(request->target))
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "%s: a machine cannot run from an agent's datastore", request->target);
    return !request->delete_source || request->verify == VERIFY_FULL ||
           blockmig_fail(error, BLOCKMIG_ERROR_USAGE,
                         "--delete-source needs a proof: it goes with --verify=full only");
}

static bool describe(struct live_job *job, GError **error)
{
    return vm_can_pivot(job->vm, error) && (job->description = vm_describe(job->vm, error));
}

/* A machine that has gone may have left a job behind: then its files are looked after. */
static bool recover(struct live_job *job, GError **error)
{
    GError *gone = NULL;

    job->vm = vm_open(job->request->machine, &gone);
    if (job->vm ? !describe(job, error)
                : !g_error_matches(gone, BLOCKMIG_ERROR, BLOCKMIG_ERROR_UNREACHABLE)) {
        if (gone)
            g_propagate_error(error, gone);
        return false;
    }
    if (job->base.journal && !live_recover(job, error)) {
        g_clear_error(&gone);
        return false;
    }
    if (!job->vm && !job->base.go_on_at) {
        g_propagate_error(error, gone);
        return false;
    }
    g_clear_error(&gone);
    return true;
}

static bool look(struct live_job *job, GError **error)
{
    if (!check_request(job->request, error) || !recover(job, error))
        return false;
    if (job->base.go_on_at)
        return true;
    if (!job->description->running)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "the machine is not running (%s): copy its images instead",
                             job->description->status);
    if (!(job->request->disks->len ? add_named(job, error) : add_all(job, error)))
        return false;
    for (guint i = 0; i < job->disks->len; i++)
        if (!look_at_disk(job, live_disk_at(job, i), error))
            return false;
    return live_check_agent(job, error) && check_space(job, error);
}

bool live_preflight(struct job *base, GError **error)
{
    struct live_job *job = live_of(base);
    g_autoptr(GError) local = NULL;

    if (!look(job, &local)) {
        if (!g_error_matches(local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE) &&
            !g_error_matches(local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_UNREACHABLE) &&
            !g_error_matches(local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_UNCERTAIN))
            local->code = BLOCKMIG_ERROR_REFUSED;
        local->domain = BLOCKMIG_ERROR;
        g_propagate_error(error, g_steal_pointer(&local));
        return false;
    }
    if (!base->go_on_at)
        write_plan(job);
    return base->go_on_at || !base->dry_run || !job->request->sample || live_sample(job, error);
}
