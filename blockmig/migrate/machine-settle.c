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

#define TICK (G_USEC_PER_SEC / 50)

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

/* What an interrupted run began may lead elsewhere. */
static bool end_old_job(struct domain *domain, const char *disk, GError **error)
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

static bool commit_one(struct domain *domain, const char *disk, const char *base, GError **error)
{
    return domain_commit(domain, disk, base, error) && machine_wait_until_ready(NULL, domain, disk, error) &&
           domain_job_end(domain, disk, true, error);
}

/* Nothing is removed on the word of a job alone. */
static bool is_on(struct domain *domain, const char *disk, const char *wanted, bool *on, GError **error)
{
    g_autofree char *text = domain_definition(domain, DOMAIN_ACTIVE, error), *now = NULL;
    g_autoptr(definition_t) definition = text ? definition_parse(text, error) : NULL;

    now = definition ? machine_source_of(definition, disk) : NULL;
    *on = g_strcmp0(now, wanted) == 0;
    return definition != NULL;
}

bool machine_commit_all(struct machine_job *job, struct domain *domain,
                        char *(*base)(const struct machine_disk *), GError **error)
{
    for (guint i = 0; i < job->disks->len; i++) {
        const char *disk = machine_disk_at(job, i)->name;
        g_autofree char *wanted = base(machine_disk_at(job, i));
        bool on;

        if (!end_old_job(domain, disk, error) || !is_on(domain, disk, wanted, &on, error))
            return false;
        if (!on && (!commit_one(domain, disk, wanted, error) || !is_on(domain, disk, wanted, &on, error)))
            return false;
        if (!on)
            return blockmig_fail(error, BLOCKMIG_ERROR_UNCERTAIN,
                                 "disk %s is not on %s after its overlays were committed: nothing is removed",
                                 disk, wanted);
    }
    return true;
}

/* ---- settle -------------------------------------------------------------------------------------- */

static char *target_of(const struct machine_disk *disk)
{
    return g_strdup(disk->target_path);
}

/* A guest that shut itself down meanwhile leaves its overlay to us; and whoever starts it again finds it
 * named in the definition. */
static bool settle_active(struct machine_job *job, GError **error)
{
    struct domain_state now;

    if (!domain_look(job->arrived, &now, error))
        return false;
    return now.active || job->disks->len == 0
               ? machine_commit_all(job, job->arrived, target_of, error)
               : blockmig_fail(
                     error, BLOCKMIG_ERROR_FAILED,
                     "the machine is off before its overlays were merged: its definition names them. Start "
                     "it, and resume the job");
}

static bool define_settled(struct machine_job *job, GError **error)
{
    g_autofree char *text = NULL, *xml = NULL;
    struct domain *same;

    if (!job->state.persistent)
        return true;
    text = domain_definition(job->arrived, DOMAIN_PERSISTENT, error);
    xml = text ? machine_rewrite(job, text, MACHINE_SETTLED, error) : NULL;
    same = xml ? domain_define(job->there, xml, error) : NULL;
    if (!same)
        return false;
    domain_close(same);
    return !job->state.autostart || domain_set_autostart(job->arrived, true, error);
}

bool machine_settle(struct job *base, GError **error)
{
    struct machine_job *job = machine_of(base);

    if (!job_event(base, "intent", error, "commit the target's overlays") || !settle_active(job, error) ||
        !define_settled(job, error))
        return false;
    for (guint i = 0; i < job->disks->len; i++)
        if (!name_remove(machine_disk_at(job, i)->overlay_name, error))
            return false;
    return job_event(base, "result", error, MACHINE_MERGED);
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

bool machine_cleanup(struct job *base, GError **error)
{
    struct machine_job *job = machine_of(base);

    /* Whoever was killed just when the machine went on has only barred it. */
    if (job->across && !machine_remove_definition(job, error))
        return false;
    for (guint i = 0; i < job->disks->len; i++) {
        struct machine_disk *disk = machine_disk_at(job, i);

        g_clear_pointer(&disk->base, chain_close);
        if (!(job->request->delete_source ? delete_source(disk, error) : keep_source(job, disk, error)))
            return false;
    }
    if (job->request->delete_source)
        base->report->source = "deleted";
    return true;
}

/* ---- rollback ------------------------------------------------------------------------------------ */

static char *layer_0_of(const struct machine_disk *disk)
{
    return g_strdup(disk->path);
}

static bool define_source(struct machine_job *job, GError **error)
{
    g_autofree char *text = NULL, *xml = NULL;
    struct domain *same;

    if (!job->state.persistent)
        return true;
    text = domain_definition(job->domain, DOMAIN_PERSISTENT, error);
    xml = text ? machine_rewrite_source(job, text, layer_0_of, error) : NULL;
    same = xml ? domain_define(job->here, xml, error) : NULL;
    if (!same)
        return false;
    domain_close(same);
    return true;
}

/* The machine runs on its overlays, or it is off and they are left. */
static bool leave_overlays(struct machine_job *job, GError **error)
{
    struct domain_state now;

    if (!domain_look(job->domain, &now, error))
        return false;
    for (guint i = 0; i < job->disks->len; i++)
        g_clear_pointer(&machine_disk_at(job, i)->base, chain_close);
    if (now.active && !machine_commit_all(job, job->domain, layer_0_of, error))
        return false;
    for (guint i = 0; i < job->disks->len; i++) {
        struct machine_disk *disk = machine_disk_at(job, i);

        if (!now.active && !machine_merge_overlays(job, disk, error))
            return false;
        machine_remove_overlays(disk);
        disk->top = disk->merged = 0;
    }
    return define_source(job, error);
}

bool machine_rollback(struct job *base, GError **error)
{
    struct machine_job *job = machine_of(base);
    bool gone;

    if (job->uncertain || job->gone || job->released)
        return true; /* what is certain was told */
    if (base->method != &method_machine_cold && !leave_overlays(job, error))
        return false;
    gone = machine_remove_target(job);
    machine_return_units(job);
    if (job->off && !domain_start(job->domain, false, error))
        return false;
    if (gone && !job_event(base, "result", error, MACHINE_UNDONE))
        return false;
    base->report->advice = g_strdup_printf(
        "%s; %s", job->state.active ? "the machine runs on the source as before" : "the machine is as it was",
        gone ? "nothing is left of the migration"
             : "what is left on the target is removed when the same command is run again");
    return !job->interrupted ||
           blockmig_fail(error, BLOCKMIG_ERROR_CANCELLED,
                         "job %s was interrupted before the switch; it is rolled back", base->record->id);
}
