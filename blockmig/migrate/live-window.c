/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The window phase: the way back is kept open, and the job waits. */
#include "blockmig/migrate/request-json.h"
#include "blockmig/migrate/window.h"
#include "blockmig/storage/file.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <stdio.h>
#include <string.h>

/* ---- facts ---------------------------------------------------------------------------------------- */

static json_t *disk_to_json(const struct live_job *job, const struct live_disk *disk)
{
    g_autoptr(GPtrArray) lower = g_ptr_array_new();
    g_autofree char *base = live_base_node(job, disk);
    json_t *object =
        json_pack("{s:I, s:b}", "kept", (json_int_t)disk->kept, "by_exchange", disk->other->by_exchange);

    for (guint i = 1; i < disk->vm->layers->len; i++) {
        const struct vm_layer *layer = g_ptr_array_index(disk->vm->layers, i);

        if (layer->filename)
            g_ptr_array_add(lower, layer->filename);
    }
    request_set_strings(object, "lower", lower);
    request_set_string(object, "base", base);
    return object;
}

bool window_save(struct live_job *job, int64_t deadline, GError **error)
{
    json_t *disks = json_array();
    g_autofree char *facts = NULL;

    for (guint i = 0; i < job->disks->len; i++)
        json_array_append_new(disks, disk_to_json(job, live_disk_at(job, i)));
    facts = request_to_text(json_pack("{s:o}", "disks", disks));
    return journal_window_save(job->base.journal, job->base.record,
                               &(struct journal_window){.deadline = deadline, .facts = facts}, error);
}

static void disk_free(void *opaque)
{
    struct window_disk *disk = opaque;

    g_clear_pointer(&disk->lower, g_ptr_array_unref);
    g_free(disk->base);
    g_free(disk);
}

void window_facts_free(struct window_facts *facts)
{
    if (!facts)
        return;
    g_ptr_array_unref(facts->disks);
    g_free(facts);
}

struct window_facts *window_facts_load(const struct live_job *job, GError **error)
{
    g_autoptr(journal_window_t) window = journal_window_load(job->base.journal, job->base.record, error);
    json_t *object = window ? request_from_text(window->facts ? window->facts : "", error) : NULL;
    struct window_facts *facts;
    size_t i;
    json_t *entry;

    if (!object)
        return NULL;
    facts = g_new0(struct window_facts, 1);
    facts->disks = g_ptr_array_new_with_free_func(disk_free);
    json_array_foreach(json_object_get(object, "disks"), i, entry)
    {
        struct window_disk *disk = g_new0(struct window_disk, 1);

        disk->kept = (unsigned)json_integer_value(json_object_get(entry, "kept"));
        disk->by_exchange = json_is_true(json_object_get(entry, "by_exchange"));
        disk->lower = request_get_strings(entry, "lower");
        disk->base = request_get_string(entry, "base");
        g_ptr_array_add(facts->disks, disk);
    }
    json_decref(object);
    return facts;
}

/* ---- names ---------------------------------------------------------------------------------------- */

/* As a raw image's: where names cannot be exchanged, nothing has the disk's name. */
static bool number(struct live_disk *disk, GError **error)
{
    g_autofree char *from = live_numbered(disk, 0), *to = live_numbered(disk, 1);

    disk->by_exchange = false;
    if (rename(from, to) < 0)
        return blockmig_set_errno(error, errno, "renaming %s to %s", from, to);
    return live_layer_take_name(disk, 1, error);
}

bool window_name_layers(struct live_job *job, struct live_disk *disk, const char *overlay, GError **error)
{
    g_autofree char *place = live_numbered(disk, disk->by_exchange ? 0 : 1);
    g_autoptr(GError) local = NULL;

    if (g_file_test(overlay, G_FILE_TEST_EXISTS) && rename(overlay, place) < 0)
        return blockmig_set_errno(error, errno, "renaming %s to %s", overlay, place);
    disk->base_renamed = !g_file_test(disk->name, G_FILE_TEST_EXISTS) || live_is_overlay(disk, disk->name);
    if (disk->base_renamed || live_layer_take_name(disk, 1, &local))
        return true;
    if (disk->by_exchange && number(disk, error)) {
        job_notice(&job->base, "nothing is called %s until the way back is closed: %s", disk->name,
                   local->message);
        return true;
    }
    g_propagate_error(error, g_steal_pointer(&local));
    return false;
}

/* ---- the phase ------------------------------------------------------------------------------------ */

static void tell(struct live_job *job, const struct live_disk *disk)
{
    if (disk->by_exchange)
        job_notice(&job->base, "until then %s is an overlay, and %s.blockmig-0 is what was copied",
                   disk->name, disk->name);
    else
        job_notice(
            &job->base,
            "until then nothing is called %s: %s.blockmig-0 is what was copied, and .blockmig-1 an overlay",
            disk->name, disk->name);
}

/* The record comes first: whoever finds this half done knows what it is about. */
bool live_window(struct job *base, GError **error)
{
    struct live_job *job = live_of(base);
    int64_t deadline = g_get_real_time() + (int64_t)job->request->keep_failback * 1000;

    for (guint i = 0; i < job->disks->len; i++) {
        struct live_disk *disk = live_disk_at(job, i);

        disk->kept = disk->top;
        live_other(disk)->by_exchange = disk->format == &format_qcow2;
    }
    if (!window_save(job, deadline, error))
        return false;
    for (guint i = 0; i < job->disks->len; i++) {
        struct live_disk *disk = live_disk_at(job, i);

        if (!window_name_layers(job, disk->other, disk->target_overlay, error))
            return false;
        tell(job, disk->other);
    }
    base->report->failback_until = deadline;
    return window_save(job, deadline, error) && job_event(base, "result", error, "the way back is open");
}
