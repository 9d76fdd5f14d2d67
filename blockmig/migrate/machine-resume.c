/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Going on with the copy of an interrupted job.  The machine never noticed: it writes to our overlays, below
 * which nothing changes, or it is off.  What is on the target up to the checkpoint stays; everything else
 * that the run had begun there is removed, and preflight looks at the machine anew, as it would be without
 * us.
 */
#include "blockmig/migrate/machine-look.h"
#include "blockmig/storage/names.h"

#include <string.h>

static bool is_before_the_switch(const struct machine_job *job)
{
    static const char *const phases[] = {"base", "converge", "switchover", NULL};

    return g_strv_contains(phases, job->base.record->phase);
}

static bool is_same_request(const struct machine_job *job)
{
    g_autofree char *text = move_request_to_json(job->request);

    return job->wanted || move_request_same(job->base.record->request, text);
}

/* A disk that was resized has it only in its top layer. */
static bool is_of_size(const struct machine_disk *disk, unsigned layer)
{
    g_autofree char *path = machine_layer_path(disk, layer);
    g_autoptr(image_t) image =
        machine_open_image(path, layer ? &format_qcow2 : disk->source_format, FILE_NO_LOCK, NULL);

    return image && image->size == disk->size;
}

static bool look_at_layers(struct machine_job *job, bool *fits, GError **error)
{
    g_autofree char *text = NULL;
    g_autoptr(definition_t) definition = NULL;
    struct domain_state now;

    *fits = false;
    if (!domain_look(job->domain, &now, error) ||
        !(text = domain_definition(job->domain, now.active ? DOMAIN_ACTIVE : DOMAIN_PERSISTENT, error)) ||
        !(definition = definition_parse(text, error)))
        return false;
    if (now.active != job->state.active || now.running != job->state.running)
        return true;
    for (guint i = 0; i < job->disks->len; i++) {
        struct machine_disk *disk = machine_disk_at(job, i);
        unsigned top;

        if (disk->device || !machine_find_layer(disk, definition, &top) || top != disk->top ||
            (top > 0) != now.active || !is_of_size(disk, top))
            return true;
    }
    *fits = true;
    return true;
}

/* Is there anything worth going on with? */
static bool load_checkpoints(struct machine_job *job, bool *any, GError **error)
{
    *any = false;
    for (guint i = 0; i < job->disks->len; i++) {
        struct machine_disk *disk = machine_disk_at(job, i);
        struct name_info info;

        if (!disk->created)
            continue;
        if (!name_look(disk->target_name, &info, error) ||
            !checkpoint_load(&disk->done, &job->base, disk->index, job->request->digest, disk->size, error))
            return false;
        disk->created = info.kind != NAME_FREE;
        if (!disk->created)
            checkpoint_clear(&disk->done);
        *any |= disk->done.frontier > 0;
    }
    return true;
}

/* What stood ready for the switch, and the files that belong to the machine: they may have changed. */
static bool remove_rest(struct machine_job *job, GError **error)
{
    for (guint i = 0; i < job->disks->len; i++) {
        struct machine_disk *disk = machine_disk_at(job, i);

        if ((job->state.active && !machine_end_old_job(job->domain, disk->name, error)) ||
            (disk->overlay_created && !name_remove(disk->overlay_name, error)))
            return false;
        disk->merged = 0;
    }
    for (guint i = 0; i < job->files->len; i++)
        if (!name_remove(((struct machine_file *)g_ptr_array_index(job->files, i))->target_name, error))
            return false;
    g_ptr_array_set_size(job->files, 0);
    machine_return_units(job);
    g_ptr_array_set_size(job->units, 0);
    return true;
}

bool machine_take_up(struct machine_job *job, GError **error)
{
    struct job *base = &job->base;
    bool fits, any;

    /* Of the layers below the journal knows nothing: such a job is rolled back. */
    if (!is_before_the_switch(job) || job->off || !is_same_request(job) ||
        job->request->chain != CHAIN_FLATTEN)
        return true;
    if (!look_at_layers(job, &fits, error) || !load_checkpoints(job, &any, error))
        return false;
    if (!fits || !any)
        return true;
    if (!remove_rest(job, error))
        return false;
    job_notice(base, "job %s was interrupted in its phase \"%s\": what it has copied is gone on with",
               base->record->id, base->record->phase);
    job->left = g_steal_pointer(&job->disks);
    job->disks = g_ptr_array_new_with_free_func((GDestroyNotify)machine_disk_free);
    g_ptr_array_set_size(base->report->disks, 0);
    job->interrupted = false;
    base->go_on_at = NULL;
    return true;
}

char *machine_plain_definition(const struct machine_job *job, enum domain_view view, GError **error)
{
    g_autofree char *text = domain_definition(job->domain, view, error);

    if (!text || !job->left)
        return g_steal_pointer(&text);
    return machine_rewrite_source(job->left, text, machine_bottom_of, error);
}

static bool refuse(const struct machine_job *job, const char *disk, GError **error)
{
    const char *id = job->base.record->id;

    return blockmig_fail(
        error, BLOCKMIG_ERROR_REFUSED,
        "disk %s is not what it was when job %s was interrupted: 'blockmig job cancel %s' rolls "
        "that back",
        disk, id, id);
}

bool machine_take_over(const struct machine_job *job, struct machine_disk *disk, GError **error)
{
    struct machine_disk *left;

    if (!job->left)
        return true;
    left = disk->index < job->left->len ? g_ptr_array_index(job->left, disk->index) : NULL;
    if (!left || strcmp(left->name, disk->name) != 0 || strcmp(left->path, disk->path) != 0)
        return refuse(job, disk->name, error);
    disk->top = left->top;
    disk->created = left->created;
    disk->frozen = g_steal_pointer(&left->frozen);
    disk->done = left->done;
    left->done = (struct checkpoint){0};
    return true;
}

bool machine_has_all_that_is_left(const struct machine_job *job, GError **error)
{
    const struct machine_disk *missing;

    if (!job->left || job->disks->len == job->left->len)
        return true;
    missing = g_ptr_array_index(job->left, job->disks->len);
    return refuse(job, missing->name, error);
}
