/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Settle, cleanup and rollback of a domain: overlays are merged, names and definitions are as they should
 * stay. */
#include "blockmig/migrate/machine.h"
#include "blockmig/storage/device.h"
#include "blockmig/storage/file.h"
#include "blockmig/storage/names.h"
#include "blockmig/storage/uri.h"

#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define TICK     (G_USEC_PER_SEC / 50)
#define PATIENCE (5 * G_USEC_PER_SEC) /* with a daemon that has not noticed yet */
#define MAX_LOST 3                    /* connections */

/* With these, and the name of a disk before them, the journal knows how far the commit of a machine is that
 * may vanish with its definition. */
#define GOES_TO " goes over to "
#define IS_ON   " is on "
#define MERGES  "merge the target's overlays, as the machine is off"

/* ---- commits by the hypervisor -------------------------------------------------------------------- */

bool machine_wait_until_ready(const struct machine_job *job, struct domain *domain, const char *disk,
                              GError **error)
{
    for (;;) {
        bool there, ready;

        if (!domain_job_look(domain, disk, &there, &ready, error))
            return false;
        if (!there)
            return blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "%s: its block job ended before it was ready",
                                 disk);
        if (ready)
            return true;
        if (job && machine_is_cancelled(job, error))
            return false;
        g_usleep(TICK);
    }
}

bool machine_end_old_job(struct domain *domain, const char *disk, GError **error)
{
    bool there, ready;

    if (!domain_job_look(domain, disk, &there, &ready, error) ||
        (there && !domain_job_end(domain, disk, false, error)))
        return false;
    while (there) {
        g_usleep(TICK);
        if (!domain_job_look(domain, disk, &there, &ready, error))
            return false;
    }
    return true;
}

static bool commit_one(struct machine_job *job, struct domain *domain, const char *disk, const char *base,
                       GError **error)
{
    return domain_commit(domain, disk, base, error) && machine_wait_until_ready(NULL, domain, disk, error) &&
           job_event(&job->base, "intent", error, "%s" GOES_TO "%s", disk, base) &&
           domain_job_end(domain, disk, true, error) &&
           job_event(&job->base, "result", error, "%s" IS_ON "%s", disk, base);
}

/* The one that the disk is on, the caller's; NULL: it was taken from the machine. */
static bool find_file(struct domain *domain, const char *disk, char **file, GError **error)
{
    g_autofree char *text = domain_definition(domain, DOMAIN_ACTIVE, error);
    g_autoptr(definition_t) definition = text ? definition_parse(text, error) : NULL;

    *file = definition ? machine_source_of(definition, disk) : NULL;
    return definition != NULL;
}

/* Nothing is removed on the word of a job alone. */
static bool is_on(struct domain *domain, const char *disk, const char *wanted, bool *on, GError **error)
{
    g_autofree char *now = NULL;

    if (!find_file(domain, disk, &now, error))
        return false;
    *on = g_strcmp0(now, wanted) == 0;
    return true;
}

static bool commit_into(struct machine_job *job, struct domain *domain, const char *disk, const char *wanted,
                        GError **error)
{
    bool on;

    if (!machine_end_old_job(domain, disk, error) || !is_on(domain, disk, wanted, &on, error))
        return false;
    if (!on && (!commit_one(job, domain, disk, wanted, error) || !is_on(domain, disk, wanted, &on, error)))
        return false;
    return on || blockmig_fail(error, BLOCKMIG_ERROR_UNCERTAIN,
                               "disk %s is not on %s after its overlays were committed: nothing is removed",
                               disk, wanted);
}

/* ---- settle -------------------------------------------------------------------------------------- */

static bool has_event_of(const struct machine_job *job, const struct machine_disk *disk, const char *kind,
                         const char *text)
{
    g_autofree char *whole = g_strconcat(disk->name, text, disk->target_path, NULL);

    return machine_has_event(job, kind, whole);
}

static bool has_overlay(const struct machine_disk *disk, bool *there, GError **error)
{
    struct name_info info;
    bool ok = name_look(disk->overlay_name, &info, error);

    *there = ok && info.kind != NAME_FREE;
    return ok;
}

/* Has the overlay what the machine wrote last?  Where its definition vanished with it, the journal tells, but
 * not what became of a commit whose end nobody saw. */
static bool is_left_by_journal(struct machine_job *job, const struct machine_disk *disk, bool *left,
                               GError **error)
{
    if (!has_overlay(disk, left, error))
        return false;
    *left = *left && !has_event_of(job, disk, "result", IS_ON);
    return !*left || machine_has_event(job, "intent", MERGES) ||
           !has_event_of(job, disk, "intent", GOES_TO) ||
           blockmig_fail(
               error, BLOCKMIG_ERROR_UNCERTAIN,
               "the machine vanished while disk %s went over from %s to %s: which of them it wrote to "
               "last is not known, and both are kept",
               disk->name, disk->overlay_path, disk->target_path);
}

/* The definition says so by naming it; of a disk that was taken from the machine since, that it is there. */
static bool is_left(struct machine_job *job, const struct machine_disk *disk, bool *left, GError **error)
{
    g_autofree char *now = NULL;

    if (!job->state.persistent)
        return is_left_by_journal(job, disk, left, error);
    if (!find_file(job->arrived, disk->name, &now, error))
        return false;
    *left = strcmp(now ? now : "", disk->target_path) != 0;
    return now || has_overlay(disk, left, error);
}

/* The targets stay open, and with them locked, until nothing leads to the overlays any more. */
static bool merge_all(struct machine_job *job, GError **error)
{
    g_autofree bool *left = g_new0(bool, job->disks->len);

    for (guint i = 0; i < job->disks->len; i++)
        if (!is_left(job, machine_disk_at(job, i), &left[i], error))
            return false;
    if (!job_event(&job->base, "intent", error, MERGES))
        return false;
    machine_tell(job, "the machine is off: what it wrote is merged without it");
    for (guint i = 0; i < job->disks->len; i++)
        if (left[i] && !machine_merge_target(job, machine_disk_at(job, i), error))
            return false;
    return true;
}

/* By the hypervisor, or, of a disk that it does not have any more, by us. */
static bool commit_all(struct machine_job *job, GError **error)
{
    for (guint i = 0; i < job->disks->len; i++) {
        struct machine_disk *disk = machine_disk_at(job, i);
        g_autofree char *now = NULL;
        bool left;

        if (!find_file(job->arrived, disk->name, &now, error))
            return false;
        if (now ? !commit_into(job, job->arrived, disk->name, disk->target_path, error)
                : !has_overlay(disk, &left, error) || (left && !machine_merge_target(job, disk, error)))
            return false;
    }
    return true;
}

/* Did it go off, or on? */
static bool has_changed(struct machine_job *job, bool before)
{
    int64_t until = g_get_monotonic_time() + PATIENCE;
    bool now;

    while (machine_is_active(job->arrived, &now, NULL) && now == before && g_get_monotonic_time() < until)
        g_usleep(TICK);
    return now != before;
}

/* By the hypervisor, as long as there is one.  What fails because the machine went off, or was started, is
 * done the other way: as long as a definition names the overlays, everything is in them.  What fails because
 * libvirt was started anew is done again. */
static bool settle_disks(struct machine_job *job, GError **error)
{
    for (unsigned lost = 0;;) {
        GError *local = NULL;
        bool active;

        if (!machine_reach_target(job, error) || !machine_is_active(job->arrived, &active, error))
            return false;
        if (active ? commit_all(job, &local) : merge_all(job, &local))
            return true;
        for (guint i = 0; i < job->disks->len; i++)
            g_clear_pointer(&machine_disk_at(job, i)->target, image_close);
        if (g_error_matches(local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_UNREACHABLE) ? lost++ == MAX_LOST
                                                                               : !has_changed(job, active)) {
            g_propagate_error(error, local);
            return false;
        }
        g_error_free(local);
    }
}

typedef char *(*rewrite_fn)(const struct machine_job *job, const char *text, GError **error);

static bool rewrite_saved(const struct machine_job *job, struct domain *domain, rewrite_fn rewrite,
                          GError **error)
{
    g_autofree char *text = domain_definition(domain, DOMAIN_SAVED, error);
    g_autofree char *xml = text ? rewrite(job, text, error) : NULL;

    return xml && domain_define_saved(domain, xml, error);
}

/* Also that of a state which was saved meanwhile: no start is to look for overlays. */
static bool define(const struct machine_job *job, struct domain_host *host, struct domain *domain,
                   rewrite_fn rewrite, GError **error)
{
    g_autofree char *text = domain_definition(domain, DOMAIN_PERSISTENT, error);
    g_autofree char *xml = text ? rewrite(job, text, error) : NULL;
    g_autoptr(domain_t) same = xml ? domain_define(host, xml, error) : NULL;

    return same && (!domain_is_saved(domain) || rewrite_saved(job, domain, rewrite, error));
}

static char *as_settled(const struct machine_job *job, const char *text, GError **error)
{
    return machine_rewrite(job, text, MACHINE_SETTLED, error);
}

static bool define_settled(struct machine_job *job, GError **error)
{
    return !job->state.persistent ||
           (define(job, job->there, job->arrived, as_settled, error) &&
            (!job->state.autostart || domain_set_autostart(job->arrived, true, error)));
}

/* Not every file system has locks that keep it from being started. */
static bool is_where_it_should(struct machine_job *job, GError **error)
{
    bool active;

    return machine_is_active(job->arrived, &active, error) && (!active || commit_all(job, error));
}

/* An agent that was started anew meanwhile has lost our lock: whatever is asked of it, it first takes that
 * again, if it can. */
static bool remove_overlay(const struct machine_disk *disk, GError **error)
{
    return (!disk->target || storage_flush(disk->target->storage, error)) &&
           name_remove(disk->overlay_name, error);
}

bool machine_settle(struct job *base, GError **error)
{
    struct machine_job *job = machine_of(base);

    if (!job_event(base, "intent", error, "commit the target's overlays") || !settle_disks(job, error) ||
        !define_settled(job, error) || !is_where_it_should(job, error))
        return false;
    for (guint i = 0; i < job->disks->len; i++)
        if (!remove_overlay(machine_disk_at(job, i), error))
            return false;
    return machine_close_targets(job, error) && job_event(base, "result", error, MACHINE_MERGED);
}

/* ---- cleanup ------------------------------------------------------------------------------------- */

static bool delete_source(const struct machine_disk *disk, GError **error)
{
    machine_remove_overlays(disk);
    return g_unlink(disk->path) == 0 || errno == ENOENT ||
           blockmig_set_errno(error, errno, "removing %s", disk->path);
}

/* It cannot give its name up: QEMU does not start on a device that is read-only. */
static bool keep_device(struct machine_job *job, struct machine_disk *disk, GError **error)
{
    int fd, result;

    if (!machine_merge_overlays(job, disk, error))
        return false;
    fd = open(disk->path, O_RDONLY | O_CLOEXEC);
    result = fd < 0 ? errno : device_set_readonly(fd, true);
    if (fd >= 0)
        close(fd);
    job_notice(&job->base,
               result ? "the source of %s is kept on %s, which could not be made read-only: %s"
                      : "the source of %s is kept on %s, which is read-only from now on%s",
               disk->name, disk->path, result ? g_strerror(result) : "");
    return true;
}

/* Whoever starts the machine from an old definition finds nothing under the old name, and no stale data. */
static bool keep_source(struct machine_job *job, struct machine_disk *disk, GError **error)
{
    g_autofree char *kept = g_strconcat(disk->path, MACHINE_SOURCE, NULL);

    if (disk->device)
        return keep_device(job, disk, error);
    if (!g_file_test(disk->path, G_FILE_TEST_EXISTS) && g_file_test(kept, G_FILE_TEST_EXISTS))
        return true; /* by an earlier run */
    if (!machine_merge_overlays(job, disk, error))
        return false;
    if (renameat2(AT_FDCWD, disk->path, AT_FDCWD, kept, RENAME_NOREPLACE) < 0)
        return blockmig_set_errno(error, errno, "renaming %s to %s", disk->path, kept);
    job_notice(&job->base, "the source of %s is kept as %s", disk->name, kept);
    return storage_file_sync_directory(kept, error);
}

/* The NVRAM, and the TPM's state: the same way as the disks.  An older one that was kept is of no use any
 * more. */
static bool leave_file(const char *path, bool delete, GError **error)
{
    g_autofree char *kept = g_strconcat(path, MACHINE_SOURCE, NULL);

    if (!name_exists(path))
        return true; /* by an earlier run, or by libvirt, with a machine that is not persistent */
    if (delete)
        return machine_remove_path(path, error);
    return machine_remove_path(kept, error) &&
           (g_rename(path, kept) == 0 || blockmig_set_errno(error, errno, "renaming %s", path));
}

static bool leave_files(struct machine_job *job, bool delete, GError **error)
{
    g_autoptr(GPtrArray) paths = machine_written_files(job, error);

    for (guint i = 0; paths && i < paths->len; i++)
        if (!leave_file(g_ptr_array_index(paths, i), delete, error))
            return false;
    return paths != NULL;
}

static void note_target(const struct machine_disk *disk)
{
    struct name_info info;

    if (name_look(disk->target_name, &info, NULL))
        disk->report->target_allocated = info.allocated;
}

/* After the switch nobody watches its datastore, and it may have been stopped by hand. */
static void tell_if_it_stands_still(struct machine_job *job)
{
    struct domain_state now;

    if (job->state.running && job->arrived && domain_look(job->arrived, &now, NULL) && now.active &&
        !now.running)
        job_notice(&job->base, "the machine stands still%s: 'virsh resume %s' lets it go on",
                   now.faulted ? ", as one of its disks met an error, or found no room" : "",
                   domain_name(job->arrived));
}

bool machine_cleanup(struct job *base, GError **error)
{
    struct machine_job *job = machine_of(base);
    bool window = job->request->keep_failback > 0, delete = job->request->delete_source && !window;

    /* Whoever was killed just when the machine went on has only barred it. */
    if (job->across && (!machine_remove_definition(job, error) || !leave_files(job, delete, error)))
        return false;
    if (!machine_release_layers(job, error))
        return false;
    for (guint i = 0; i < job->disks->len; i++) {
        struct machine_disk *disk = machine_disk_at(job, i);

        g_clear_pointer(&disk->base, chain_close);
        note_target(disk);
        if (!(delete ? delete_source(disk, error) : keep_source(job, disk, error)))
            return false;
    }
    if (delete)
        base->report->source = "deleted";
    if (window)
        base->go_on_at = "window";
    tell_if_it_stands_still(job);
    return true;
}

/* ---- rollback ------------------------------------------------------------------------------------ */

static char *as_before(const struct machine_job *job, const char *text, GError **error)
{
    return machine_rewrite_source(job->disks, text, machine_bottom_of, error);
}

static bool define_source(struct machine_job *job, GError **error)
{
    return !job->state.persistent || define(job, job->here, job->domain, as_before, error);
}

/* As in settle. */
static bool leave_disk(struct machine_job *job, struct machine_disk *disk, bool active, GError **error)
{
    g_autofree char *now = NULL;

    if (active && !find_file(job->domain, disk->name, &now, error))
        return false;
    return now ? commit_into(job, job->domain, disk->name, disk->path, error)
               : machine_merge_overlays(job, disk, error);
}

/* The machine runs on its overlays, or it is off and they are left. */
static bool leave_overlays(struct machine_job *job, GError **error)
{
    bool active;

    if (!machine_is_active(job->domain, &active, error))
        return false;
    for (guint i = 0; i < job->disks->len; i++)
        g_clear_pointer(&machine_disk_at(job, i)->base, chain_close);
    if (!active && job->domain && !machine_check_layers(job, false, error))
        return false;
    for (guint i = 0; i < job->disks->len; i++) {
        struct machine_disk *disk = machine_disk_at(job, i);

        if (!leave_disk(job, disk, active, error))
            return false;
        machine_remove_overlays(disk);
        disk->top = disk->merged = 0;
    }
    return define_source(job, error);
}

bool machine_rollback(struct job *base, GError **error)
{
    struct machine_job *job = machine_of(base);
    bool gone, active = false;

    if (job->uncertain || job->gone || job->released)
        return true; /* what is certain was told */
    if (!machine_reach_source(job, error) ||
        (base->method != &method_machine_cold && !leave_overlays(job, error)))
        return false;
    gone = machine_remove_target(job);
    machine_return_units(job);
    if (job->off && !domain_start(job->domain, false, error))
        return false;
    if (gone && !job_event(base, "result", error, MACHINE_UNDONE))
        return false;
    base->undone = gone;
    machine_is_active(job->domain, &active, NULL);
    base->report->advice =
        g_strdup_printf("%s; %s",
                        !job->state.active   ? "the machine is as it was"
                        : !active            ? "the machine is off, on the source"
                        : job->state.running ? "the machine runs on the source as before"
                                             : "the machine stands still on the source as before",
                        gone ? "nothing is left of the migration"
                             : "what is left on the target is removed when the same command is run again");
    return !job->interrupted ||
           blockmig_fail(error, BLOCKMIG_ERROR_CANCELLED,
                         "job %s was interrupted before the switch; it is rolled back", base->record->id);
}
