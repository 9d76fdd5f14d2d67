/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Recovery: what a move was doing when it was killed is read from the machine and the datastores; the journal
 * only says which disks it was about, and whether the target had been proved.
 *
 * The node that a device is on says how far the move was: a layer of ours or the machine's own node (before
 * the switch: gone on with, or rolled back if that was begun or asked for), the overlay on the target above
 * the source (rolled back), above the merged target (after it: proved and settled), or the merged target.  A
 * machine that does not run any more: live-offline.c.
 */
#include "blockmig/migrate/live-watch.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define END_TIMEOUT 5000 /* ms */

bool live_has_job(struct live_job *job, const char *name, bool *there, GError **error)
{
    g_autoptr(GPtrArray) jobs = vm_jobs(job->vm, error);

    *there = false;
    for (guint i = 0; jobs && i < jobs->len; i++)
        *there |= strcmp(((const struct vm_job *)g_ptr_array_index(jobs, i))->id, name) == 0;
    return jobs != NULL;
}

bool live_has_event(const struct live_job *job, const char *kind, const char *text)
{
    return journal_has_told(job->base.journal, job->base.record, kind, text);
}

/* ---- which job ---- */

/* All is done, but it could not say so any more. */
static bool is_done(const struct journal_job *record)
{
    return !record->result && strcmp(record->phase, "done") == 0;
}

static bool is_unfinished(const struct live_job *job, const struct journal_job *record)
{
    g_autofree char *text = move_request_to_json(job->request);

    if (is_done(record))
        return job->wanted || move_request_same(record->request, text);
    return !record->result || strcmp(record->result, "failed") == 0 || strcmp(record->result, "parked") == 0;
}

static bool check_owner(const struct journal_job *record, GError **error)
{
    return !journal_job_alive(record) ||
           blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                         "job %s moves disks of this machine (process %" PRId64 ")", record->id,
                         record->owner_pid);
}

/* A machine whose way back is open is not moved on. */
static bool refuse_window(const struct live_job *job, const struct journal_job *record, GError **error)
{
    GError *local = NULL;
    g_autoptr(journal_window_t) window = journal_window_load(job->base.journal, record, &local);

    bool open = window && window->deadline > 0;

    if (open)
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED,
                    "the way back of job %s is still open: 'blockmig job finish %s' closes it, 'blockmig job "
                    "failback %s' goes back",
                    record->id, record->id, record->id);
    else if (local)
        g_propagate_error(error, local);
    return !open && !local;
}

/* The newest move of this machine, if it did not come to its end, or the one that is wanted; the caller's.
 * NULL without an error: none. */
static struct journal_job *find_record(struct live_job *job, GError **error)
{
    g_autoptr(GPtrArray) list = journal_job_list(job->base.journal, error);

    for (guint i = 0; list && i < list->len; i++) {
        const struct journal_job *record = g_ptr_array_index(list, i);

        if (job->wanted
                ? strcmp(record->id, job->wanted) != 0
                : strcmp(record->command, "move") != 0 || strcmp(record->source, job->request->machine) != 0)
            continue;
        if (!check_owner(record, error) || !is_unfinished(job, record) || !refuse_window(job, record, error))
            return NULL;
        return journal_job_load(job->base.journal, record->id, error);
    }
    return NULL;
}

/* Somebody who wants something else is told what stands in the way. */
static bool check_request(const struct live_job *job, const struct journal_job *record, GError **error)
{
    g_autofree char *text = move_request_to_json(job->request);

    return job->wanted || move_request_same(record->request, text) ||
           blockmig_fail(
               error, BLOCKMIG_ERROR_REFUSED,
               "job %s, which moves disks of this machine to %s, is not finished, and this is not the "
               "same command: 'blockmig job resume %s' goes on with it, 'blockmig job cancel %s' "
               "brings the machine back",
               record->id, record->target, record->id, record->id);
}

static struct vm_disk *find_device(const struct live_job *job, const char *qdev)
{
    for (guint i = 0; job->description && i < job->description->disks->len; i++) {
        struct vm_disk *vm = g_ptr_array_index(job->description->disks, i);

        if (strcmp(vm->qdev, qdev) == 0)
            return vm;
    }
    return NULL;
}

bool live_highest_file(const struct live_disk *disk, unsigned *highest)
{
    bool any = false;

    for (unsigned n = 0; n <= CHAIN_MAX_DEPTH; n++) {
        g_autofree char *path = live_numbered(disk, n);

        if (!g_file_test(path, G_FILE_TEST_EXISTS))
            continue;
        *highest = n;
        any = true;
    }
    return any;
}

bool live_is_disk(const struct journal_disk *saved)
{
    return saved->source_identity != NULL;
}

bool live_is_device(const char *path)
{
    struct stat st;

    return storage_name_is_uri(path) || (stat(path, &st) == 0 && S_ISBLK(st.st_mode));
}

struct live_disk *live_rebuild_paths(const struct live_job *job, const struct journal_disk *saved)
{
    struct live_disk *disk = g_new0(struct live_disk, 1);
    g_autofree char *stem = NULL;

    disk->index = saved->index;
    disk->name = g_strdup(saved->source);
    disk->device = live_is_device(saved->source);
    disk->stem = live_stem(job, disk->name, disk->device);
    disk->size = saved->size;
    disk->target_path = g_strdup(saved->target);
    disk->target_device = live_is_device(saved->target);
    stem = live_stem(job, disk->target_path, disk->target_device);
    disk->target_overlay = g_strconcat(stem, LIVE_NEW, NULL);
    return disk;
}

/* Is anything left of it, or to be done?  What is left of a device in the end is whether it can be written
 * to. */
static bool has_leftovers(const struct live_job *job, const struct journal_job *record, GPtrArray *disks)
{
    for (guint i = 0; i < disks->len; i++) {
        const struct journal_disk *saved = g_ptr_array_index(disks, i);
        const struct vm_disk *vm = live_is_disk(saved) ? find_device(job, saved->source_identity) : NULL;
        struct live_disk *disk = live_rebuild_paths(job, saved);
        g_autofree char *created = g_strconcat(JOB_CREATES, saved->target, NULL);
        g_autofree char *prefix = g_strdup_printf("bm-%s-%u-", saved->target_identity, saved->index);
        g_autofree char *base = g_strconcat(prefix, "s0", NULL); /* it may stay there for good */
        unsigned highest;
        bool any =
            live_highest_file(disk, &highest) || g_file_test(disk->target_overlay, G_FILE_TEST_EXISTS) ||
            (vm && vm->node && g_str_has_prefix(vm->node, prefix) && strcmp(vm->node, base) != 0) ||
            (live_exists(saved->target) && journal_has_told(job->base.journal, record, "intent", created));

        live_disk_free(disk);
        if (any)
            return true;
    }
    return false;
}

/* Whatever the machine does, it does it without these disks. */
static bool are_unplugged(const struct live_job *job, GPtrArray *disks)
{
    for (guint i = 0; i < disks->len; i++) {
        const struct journal_disk *saved = g_ptr_array_index(disks, i);

        if (live_is_disk(saved) && find_device(job, saved->source_identity))
            return false;
    }
    return true;
}

/* ---- where the machine is ---- */

struct live_disk *live_rebuild(struct live_job *job, const struct journal_disk *saved, GError **error)
{
    const struct vm_disk *vm = find_device(job, saved->source_identity);
    g_autofree char *created = g_strconcat(JOB_CREATES, saved->target, NULL);
    struct live_disk *disk = live_rebuild_paths(job, saved);

    disk->side = 's';
    disk->vm = vm;
    disk->frozen = g_strdup(saved->frozen);
    disk->base_node = g_strdup(saved->base_node);
    disk->created = live_exists(saved->target) && live_has_event(job, "intent", created);
    disk->overlay_created = g_file_test(disk->target_overlay, G_FILE_TEST_EXISTS);
    g_ptr_array_add(job->disks, disk);
    job->tag = (unsigned)g_ascii_strtoull(saved->target_identity, NULL, 16);
    if (!(disk->source_format = format_by_name(saved->source_format, error)) ||
        !(disk->format = format_by_name(saved->target_format, error)) ||
        !checkpoint_load(&disk->done, &job->base, disk->index, job->request->digest, disk->size, error))
        return NULL;
    disk->by_exchange = (disk->source_format->flags & FORMAT_BACKING) && !disk->device;
    disk->read_only = disk->device && !storage_name_is_uri(disk->name);
    live_highest_file(disk, &disk->files);
    if (vm && vm->layers->len > 0)
        return disk;
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED, "%s is not a disk of the machine any more",
                saved->source);
    return NULL;
}

static bool is_ours(const struct live_disk *disk, unsigned layer)
{
    const struct vm_layer *vm =
        layer < disk->vm->layers->len ? g_ptr_array_index(disk->vm->layers, layer) : NULL;

    return vm && g_str_has_prefix(vm->node, "bm-");
}

/*
 * The hypervisor only knows the names that its files had once: who has the disk's name is seen there.  It is
 * the top layer, or an empty one that was to be put on, or still the one below the top, if the snapshot or an
 * adoption was interrupted.
 */
static void look_at_name(struct live_disk *disk)
{
    bool nobody = !live_exists(disk->name);
    unsigned below = 0, layer = live_stands_on(disk, disk->name, &below) ? below + 1 : 0;

    disk->base_renamed = nobody || layer > 0;
    disk->set_aside = nobody && disk->by_exchange;
    disk->fresh = layer > disk->top;
    disk->topped = !nobody && layer < disk->top && !disk->device; /* whose name is not to be had */
}

/* Which layer of the machine's chain is layer 0, and what of it is ours? */
static void look_at_source(const struct live_job *job, struct live_disk *disk)
{
    g_autofree char *prefix = g_strdup_printf("bm-%08x-%u-s", job->tag, disk->index);
    g_autofree char *first = live_layer_node(job, disk, 0);
    GPtrArray *layers = disk->vm->layers;
    guint above = disk->straddles ? 1 : 0; /* what is above our layers */
    const struct vm_layer *active = g_ptr_array_index(layers, above), *base;

    if (g_str_has_prefix(active->node, prefix))
        disk->top = (unsigned)g_ascii_strtoull(active->node + strlen(prefix), NULL, 10);
    disk->snapshotted = disk->top > 0;
    disk->files = MAX(disk->files, disk->top); /* the top one may have the disk's name */
    base = g_ptr_array_index(layers, MIN(above + disk->top, layers->len - 1));
    disk->based = strcmp(base->node, first) == 0;
    g_free(disk->base_node);
    disk->base_node = g_strdup(base->node);
    look_at_name(disk);
    disk->by_name = disk->topped && !is_ours(disk, above + 1);
    g_ptr_array_remove_range(layers, 0, disk->by_name ? 1 : MIN(above + disk->top, layers->len - 1));
    disk->top -= disk->topped;
}

static bool look_at_target(struct live_job *job, struct live_disk *disk, GError **error)
{
    g_autofree char *node = NULL, *first = live_layer_node(job, disk, 0);

    disk->top = disk->files;
    disk->snapshotted = disk->created = true;
    disk->base_renamed = !disk->device;
    disk->based = g_strcmp0(disk->base_node, first) == 0;
    disk->set_aside = disk->by_exchange;
    node = live_top_node(job, disk);
    vm_remove_node(job->vm, node, NULL); /* its file is still open for writing there */
    return live_describe_base(disk, error);
}

/* A machine that was started anew has opened what the disk's name leads to: layer `top`, and below it the
 * others by their names. */
static bool look_at_names(struct live_disk *disk, GError **error)
{
    g_autofree char *first = g_strconcat(disk->name, ".blockmig-0", NULL);
    GPtrArray *layers = disk->vm->layers;

    for (disk->top = 0; disk->top < layers->len; disk->top++) {
        const struct vm_layer *layer = g_ptr_array_index(layers, disk->top);

        if (g_strcmp0(layer->filename, first) == 0)
            break;
    }
    if (disk->top == layers->len || disk->top == 0)
        return blockmig_fail(error, BLOCKMIG_ERROR_UNCERTAIN,
                             "the machine was started anew while %s was moved, and does not use all of its "
                             "layers NAME.blockmig-N: none may be removed",
                             disk->name);
    disk->by_name = disk->snapshotted = true;
    disk->files = MAX(disk->files, disk->top);
    disk->base_renamed = true;
    g_free(disk->base_node);
    disk->base_node = g_strdup(((struct vm_layer *)g_ptr_array_index(layers, disk->top))->node);
    return true;
}

/* The machine's own node: it was never on a layer of ours, or has left them, or was started anew. */
static bool look_at_own_node(const struct live_job *job, struct live_disk *disk, GError **error)
{
    const struct vm_layer *active = g_ptr_array_index(disk->vm->layers, 0);
    g_autofree char *prefix = g_strconcat(disk->stem, ".blockmig-", NULL);
    bool any = false;
    unsigned below;

    if (disk->target_overlay && g_strcmp0(active->filename, disk->target_overlay) == 0)
        return blockmig_fail(
            error, BLOCKMIG_ERROR_REFUSED,
            "the machine was started anew on %s: stop it, and 'blockmig job resume' finishes "
            "the move",
            disk->target_overlay);
    for (guint i = 0; i < disk->vm->layers->len; i++) {
        const struct vm_layer *layer = g_ptr_array_index(disk->vm->layers, i);

        any |= layer->filename && g_str_has_prefix(layer->filename, prefix);
    }
    if (any && disk->device)
        return blockmig_fail(error, BLOCKMIG_ERROR_UNCERTAIN,
                             "the machine was started anew on overlays of %s while it was moved: none may be "
                             "removed",
                             disk->name);
    if (any)
        return look_at_names(disk, error);
    /* If an overlay has the name already, the machine, which is not on it, was not started from there. */
    if (!live_stands_on(disk, disk->name, &below) && live_has_unmerged(disk))
        return blockmig_fail(error, BLOCKMIG_ERROR_UNCERTAIN,
                             "the machine was started anew on %s without the overlays %s.blockmig-N, which "
                             "hold what it had written before: none may be removed",
                             disk->name, disk->stem);
    look_at_source(job, disk);
    return true;
}

static void note_resized(struct live_job *job, const struct live_disk *disk)
{
    if (disk->vm->virtual_size == disk->size || job->resized)
        return;
    job->resized = g_strdup_printf("%s was resized from %" PRIu64 " to %" PRIu64 " bytes during the move",
                                   disk->name, disk->size, disk->vm->virtual_size);
}

/* A layer that was copied for a disk to stand on. */
static bool rebuild_lower(struct live_job *job, const struct journal_disk *saved, GError **error)
{
    g_autofree char *created = g_strconcat(JOB_CREATES, saved->target, NULL);
    struct lower *lower = g_new0(struct lower, 1);

    lower->index = job->lowers->len;
    lower->source_path = g_strdup(saved->source);
    lower->target_name = g_strdup(saved->target);
    lower->target_path = g_strdup(saved->target);
    lower->size = saved->size;
    lower->created = g_file_test(saved->target, G_FILE_TEST_EXISTS) && live_has_event(job, "intent", created);
    g_ptr_array_add(job->lowers, lower);
    if (!(lower->source_format = format_by_name(saved->source_format, error)) ||
        !(lower->format = format_by_name(saved->target_format, error)))
        return false;
    lower_describe(lower, job->base.report, job->request->digest);
    lower->report->receipt = g_strdup(saved->receipt);
    return true;
}

/* The disks, which come first in the journal, are left in `disks`. */
static bool take_lowers(struct live_job *job, GPtrArray *disks, GError **error)
{
    guint count = 0;

    while (count < disks->len && live_is_disk(g_ptr_array_index(disks, count)))
        count++;
    for (guint i = count; i < disks->len; i++)
        if (!rebuild_lower(job, g_ptr_array_index(disks, i), error))
            return false;
    g_ptr_array_set_size(disks, (gint)count);
    return true;
}

/* Is the disk on `fresh`, and that on something else than `merged`? */
static bool is_straddling(const struct live_disk *disk, const char *fresh, const char *merged)
{
    const GPtrArray *layers = disk->vm->layers;

    return strcmp(disk->vm->node, fresh) == 0 && layers->len > 1 &&
           strcmp(((const struct vm_layer *)g_ptr_array_index(layers, 1))->node, merged) != 0;
}

/* *pivoted: on which side the machine is; all disks are on one: the guard, or a transaction, sees to that. */
static bool look_at_disk(struct live_job *job, const struct journal_disk *saved, bool *pivoted,
                         GError **error)
{
    struct live_disk *disk = live_rebuild(job, saved, error);
    g_autofree char *fresh = disk ? live_new_node(job, disk) : NULL;
    g_autofree char *merged = disk ? live_merged_node(job, disk) : NULL;

    if (!disk)
        return false;
    live_describe_disk(job, disk);
    disk->report->receipt = g_strdup(saved->receipt);
    note_resized(job, disk);
    disk->settled = strcmp(disk->vm->node, merged) == 0;
    disk->straddles = is_straddling(disk, fresh, merged);
    *pivoted = disk->settled || (!disk->straddles && strcmp(disk->vm->node, fresh) == 0);
    if (*pivoted)
        return look_at_target(job, disk, error);
    if (!is_ours(disk, 0))
        return look_at_own_node(job, disk, error);
    look_at_source(job, disk);
    return true;
}

static bool is_settled(const struct live_job *job)
{
    for (guint i = 0; i < job->disks->len; i++)
        if (live_disk_at(job, i)->settled)
            return true;
    return false;
}

static bool check_way_back(const struct live_job *job, GError **error)
{
    return !job->give_up || !is_settled(job) ||
           blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                         "job %s is settled on the target already: 'blockmig job resume %s' finishes it, and "
                         "another move brings the disks back",
                         job->base.record->id, job->base.record->id);
}

/* What was proved has a receipt, whenever that was. */
static bool is_proved(GPtrArray *disks)
{
    for (guint i = 0; i < disks->len; i++)
        if (!((const struct journal_disk *)g_ptr_array_index(disks, i))->receipt)
            return false;
    return true;
}

static const char *where_to_go_on(const struct live_job *job, GPtrArray *disks)
{
    bool back = job->give_up || job->resized || strcmp(job->base.record->phase, "rollback") == 0;

    /* Of layers below and of devices the journal does not know how far they are. */
    back |= job->request->chain != CHAIN_FLATTEN;
    for (guint i = 0; i < job->disks->len; i++)
        back |= live_disk_at(job, i)->straddles || live_disk_at(job, i)->device ||
                live_disk_at(job, i)->target_device;
    if (job->pivoted)
        return (is_proved(disks) || is_settled(job)) && !job->give_up ? "settle" : "prove";
    return back ? "rollback" : "resume";
}

/* By what the watch wrote down. */
static bool was_paused_by_others(const GPtrArray *events)
{
    bool paused = false;

    for (guint i = 0; i < events->len; i++) {
        const struct journal_event *event = g_ptr_array_index(events, i);

        if (strcmp(event->text, LIVE_RUNS_AGAIN) == 0)
            paused = false;
        else if (strcmp(event->text, LIVE_PAUSED_BY_OTHERS) == 0)
            paused = true;
    }
    return paused;
}

/* A pause that nobody ended: we were killed, and the guard too. */
static bool end_pause(struct live_job *job, GError **error)
{
    g_autoptr(GPtrArray) events = journal_events(job->base.journal, job->base.record, error);
    const struct journal_event *last = events && events->len ? events->pdata[events->len - 1] : NULL;

    if (!last || job->description->running || strcmp(job->description->status, "paused") != 0 ||
        strcmp(last->kind, "intent") != 0 || was_paused_by_others(events))
        return events != NULL;
    job_notice(&job->base, "the machine was left standing still: it goes on");
    return vm_resume(job->vm, NULL, error);
}

static bool look_at_disks(struct live_job *job, GPtrArray *disks, GError **error)
{
    bool pivoted = false, first = false;

    for (guint i = 0; i < disks->len; i++) {
        if (!look_at_disk(job, g_ptr_array_index(disks, i), &pivoted, error))
            return false;
        if (i == 0)
            first = pivoted;
        if (first != pivoted)
            return blockmig_fail(error, BLOCKMIG_ERROR_UNCERTAIN,
                                 "job %s: some disks are on the target and some are not",
                                 job->base.record->id);
    }
    job->pivoted = pivoted;
    return true;
}

/* What ended meanwhile, and what still holds nodes, is put away before anybody looks. */
static bool look_at_machine(struct live_job *job, GPtrArray *disks, GError **error)
{
    if (!vm_end_pivots(job->vm, END_TIMEOUT, error))
        return false;
    vm_description_free(job->description);
    job->description = vm_describe(job->vm, error);
    if (strcmp(job->base.record->method, method_mirror.name) == 0)
        job_set_method(&job->base, &method_mirror);
    return job->description && look_at_disks(job, disks, error) && end_pause(job, error) &&
           live_unthrottle(job, error);
}

/* Killed before it did anything, or after it had tidied up. */
static bool take_up_nothing(struct live_job *job, struct journal_job **record, GError **error)
{
    bool done = is_done(*record);

    if (job->base.dry_run || (!job->wanted && !done))
        return true;
    if (!journal_job_claim(job->base.journal, *record, error))
        return false;
    job->base.record = g_steal_pointer(record);
    job->going_back = job->give_up && !done;
    job->base.go_on_at = job->going_back ? "rollback" : done ? "done" : NULL;
    return true;
}

bool live_recover(struct live_job *job, GError **error)
{
    GError *local = NULL;
    g_autoptr(journal_job_t) record = find_record(job, &local);
    g_autoptr(GPtrArray) disks = NULL;
    bool returning = false;

    if (local) {
        g_propagate_error(error, local);
        return false;
    }
    if (!record)
        return !job->wanted || blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                                             "job %s came to its end: there is nothing to do", job->wanted);
    if (!(disks = journal_disk_list(job->base.journal, record, error)))
        return false;
    if (disks->len == 0 || is_done(record) ||
        !(has_leftovers(job, record, disks) || (job->vm && live_is_throttled(job, record))))
        return take_up_nothing(job, &record, error);
    if (!check_request(job, record, error))
        return false;
    job_notice(&job->base, "job %s of this machine was %s in its phase \"%s\"", record->id,
               g_strcmp0(record->result, "parked") == 0 ? "parked" : "interrupted", record->phase);
    if (job->base.dry_run) {
        job_plan(&job->base, "the same command goes on with job %s, from its phase \"%s\"", record->id,
                 record->phase);
        job->base.go_on_at = "resume";
        return true;
    }
    if (!journal_job_claim(job->base.journal, record, error))
        return false;
    job->base.record = g_steal_pointer(&record);
    job->base.report->resumed = job->interrupted = true;
    if (job->vm && (!live_recover_return(job, &returning, error) || returning))
        return returning;
    if (!take_lowers(job, disks, error))
        return false;
    if (job->vm && are_unplugged(job, disks))
        g_clear_pointer(&job->vm, vm_close);
    if (!(job->vm ? look_at_machine(job, disks, error) : live_look_offline(job, disks, error)) ||
        !check_way_back(job, error))
        return false;
    job->base.go_on_at = where_to_go_on(job, disks);
    job->going_back = strcmp(job->base.go_on_at, "rollback") == 0;
    return true;
}
