/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Recovery: what a move was doing when it was killed is read from the machine and the datastores; the journal
 * only says which disks it was about, and whether the target had been proved.
 *
 * The node that a device is on says how far the move was: a layer of ours or the machine's own node (before
 * the switch: rolled back), the overlay on the target (after it: proved and settled), or the merged target.
 */
#include "blockmig/migrate/live.h"

#include <stdio.h>
#include <string.h>

bool live_has_job(struct live_job *job, const char *name, bool *there, GError **error)
{
    g_autoptr(GPtrArray) jobs = vm_jobs(job->vm, error);

    *there = false;
    for (guint i = 0; jobs && i < jobs->len; i++)
        *there |= strcmp(((const struct vm_job *)g_ptr_array_index(jobs, i))->id, name) == 0;
    return jobs != NULL;
}

/* The newest move of this machine, if it did not come to its end; the caller's.  NULL without an error: none.
 */
static struct journal_job *find_record(struct live_job *job, GError **error)
{
    g_autoptr(GPtrArray) list = journal_job_list(job->base.journal, error);

    for (guint i = 0; list && i < list->len; i++) {
        const struct journal_job *record = g_ptr_array_index(list, i);

        if (strcmp(record->command, "move") != 0 || strcmp(record->source, job->request->machine) != 0)
            continue;
        if (journal_job_alive(record)) {
            g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED,
                        "job %s moves disks of this machine (process %" PRId64 ")", record->id,
                        record->owner_pid);
            return NULL;
        }
        if (record->result && strcmp(record->result, "failed") != 0)
            return NULL;
        return journal_job_load(job->base.journal, record->id, error);
    }
    return NULL;
}

static const struct vm_disk *find_device(const struct live_job *job, const char *qdev)
{
    for (guint i = 0; i < job->description->disks->len; i++) {
        const struct vm_disk *vm = g_ptr_array_index(job->description->disks, i);

        if (strcmp(vm->qdev, qdev) == 0)
            return vm;
    }
    return NULL;
}

/* The highest n of NAME.blockmig-n, and whether there is any. */
static bool highest_file(const struct live_disk *disk, unsigned *highest)
{
    bool any = false;

    for (unsigned n = 0; n <= CHAIN_MAX_DEPTH; n++) {
        g_autofree char *path = g_strdup_printf("%s.blockmig-%u", disk->name, n);

        if (!g_file_test(path, G_FILE_TEST_EXISTS))
            continue;
        *highest = n;
        any = true;
    }
    return any;
}

/* The hypervisor only knows the names that its files had once: who has the disk's name is seen there. */
static void look_at_name(struct live_disk *disk)
{
    bool nobody = !g_file_test(disk->name, G_FILE_TEST_EXISTS);

    disk->exchanged = nobody || live_is_overlay(disk, disk->name);
    disk->set_aside = nobody && disk->by_exchange;
}

/* Before the switch: which layer is on top, and where layer 0 is. */
static void look_at_source(const struct live_job *job, struct live_disk *disk)
{
    g_autofree char *prefix = g_strdup_printf("bm-%08x-%u-s", job->tag, disk->index);
    g_autofree char *first = live_layer_node(job, disk, 0);
    const GPtrArray *layers = disk->vm->layers;
    const struct vm_layer *active = g_ptr_array_index(layers, 0), *base;

    if (g_str_has_prefix(active->node, prefix))
        disk->top = (unsigned)g_ascii_strtoull(active->node + strlen(prefix), NULL, 10);
    disk->snapshotted = disk->top > 0;
    disk->files = MAX(disk->files, disk->top); /* the top one may have the disk's name */
    base = g_ptr_array_index(layers, MIN(disk->top, layers->len - 1));
    disk->based = strcmp(base->node, first) == 0;
    disk->base_node = g_strdup(base->node);
    look_at_name(disk);
    disk->created = g_file_test(disk->target_path, G_FILE_TEST_EXISTS);
    disk->overlay_created = g_file_test(disk->target_overlay, G_FILE_TEST_EXISTS);
}

static void look_at_target(struct live_job *job, struct live_disk *disk)
{
    g_autofree char *node = NULL;

    disk->top = disk->files;
    disk->snapshotted = disk->based = disk->created = disk->exchanged = true;
    disk->set_aside = disk->by_exchange;
    node = live_top_node(job, disk);
    vm_remove_node(job->vm, node, NULL); /* its file is still open for writing there */
}

static struct live_disk *rebuild(struct live_job *job, const struct journal_disk *saved, GError **error)
{
    const struct vm_disk *vm = find_device(job, saved->source_identity);
    struct live_disk *disk = g_new0(struct live_disk, 1);

    disk->index = saved->index;
    disk->vm = vm;
    disk->name = g_strdup(saved->source);
    disk->size = saved->size;
    disk->target_path = g_strdup(saved->target);
    disk->target_overlay = g_strconcat(saved->target, ".blockmig-new", NULL);
    g_ptr_array_add(job->disks, disk);
    job->tag = (unsigned)g_ascii_strtoull(saved->target_identity, NULL, 16);
    if (!(disk->source_format = format_by_name(saved->source_format, error)) ||
        !(disk->format = format_by_name(saved->target_format, error)))
        return NULL;
    disk->by_exchange = disk->source_format->flags & FORMAT_BACKING;
    if (vm && vm->layers->len > 0)
        return disk;
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED, "%s is not a disk of the machine any more",
                saved->source);
    return NULL;
}

/* A machine that was started anew has opened the chain by its names: ours are not there. */
static bool is_restarted(const struct live_disk *disk)
{
    const struct vm_layer *active = g_ptr_array_index(disk->vm->layers, 0);
    g_autofree char *prefix = g_strconcat(disk->name, ".blockmig-", NULL);

    if (g_str_has_prefix(active->node, "bm-"))
        return false;
    for (guint i = 0; i < disk->vm->layers->len; i++) {
        const struct vm_layer *layer = g_ptr_array_index(disk->vm->layers, i);

        if (layer->filename && g_str_has_prefix(layer->filename, prefix))
            return true;
    }
    return false;
}

/* *pivoted: on which side the machine is; all disks are on one, the guard sees to that. */
static bool look_at_disk(struct live_job *job, const struct journal_disk *saved, bool *pivoted,
                         GError **error)
{
    struct live_disk *disk = rebuild(job, saved, error);
    g_autofree char *fresh = disk ? live_new_node(job, disk) : NULL;
    g_autofree char *merged = disk ? live_merged_node(job, disk) : NULL;

    if (!disk)
        return false;
    if (is_restarted(disk)) {
        g_set_error(
            error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED,
            "the machine was started anew while %s was moved: its layers NAME.blockmig-N are all in use "
            "and none may be removed",
            disk->name);
        return false;
    }
    highest_file(disk, &disk->files);
    disk->settled = strcmp(disk->vm->node, merged) == 0;
    *pivoted = disk->settled || strcmp(disk->vm->node, fresh) == 0;
    if (*pivoted)
        look_at_target(job, disk);
    else
        look_at_source(job, disk);
    live_describe_disk(job, disk);
    return true;
}

/* Is anything left of it? */
static bool has_leftovers(const struct live_job *job, GPtrArray *disks)
{
    for (guint i = 0; i < disks->len; i++) {
        const struct journal_disk *saved = g_ptr_array_index(disks, i);
        const struct vm_disk *vm = find_device(job, saved->source_identity);
        struct live_disk disk = {.name = saved->source};
        g_autofree char *overlay = g_strconcat(saved->target, ".blockmig-new", NULL);
        g_autofree char *prefix = g_strdup_printf("bm-%s-%u-s", saved->target_identity, saved->index);
        unsigned highest;

        if (highest_file(&disk, &highest) || g_file_test(overlay, G_FILE_TEST_EXISTS) ||
            (vm && vm->node && g_str_has_prefix(vm->node, prefix)))
            return true;
    }
    return false;
}

static bool look_at_disks(struct live_job *job, const struct journal_job *record, GPtrArray *disks,
                          GError **error)
{
    bool proved = strcmp(record->phase, "settle") == 0 || strcmp(record->phase, "cleanup") == 0;
    bool pivoted = false, first = false;

    for (guint i = 0; i < disks->len; i++) {
        if (!look_at_disk(job, g_ptr_array_index(disks, i), &pivoted, error))
            return false;
        if (i == 0)
            first = pivoted;
        if (first != pivoted) {
            g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_UNCERTAIN,
                        "job %s: some disks are on the target and some are not", record->id);
            return false;
        }
    }
    job->pivoted = pivoted;
    job->base.go_on_at = !pivoted ? "rollback" : proved ? "settle" : "prove";
    return true;
}

bool live_recover(struct live_job *job, GError **error)
{
    GError *local = NULL;
    g_autoptr(journal_job_t) record = find_record(job, &local);
    g_autoptr(GPtrArray) disks = NULL;

    if (local) {
        g_propagate_error(error, local);
        return false;
    }
    if (!record)
        return true;
    if (!(disks = journal_disk_list(job->base.journal, record, error)))
        return false;
    if (disks->len == 0 || !has_leftovers(job, disks))
        return true;
    job_notice(&job->base, "job %s of this machine was interrupted in its phase \"%s\"", record->id,
               record->phase);
    if (job->base.dry_run || !journal_job_claim(job->base.journal, record, error))
        return job->base.dry_run;
    job->base.record = g_steal_pointer(&record);
    job->base.report->resumed = job->interrupted = true;
    return look_at_disks(job, job->base.record, disks, error);
}
