/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a window looks like now: both sides of every disk are put together again from what the machine says,
 * and what an earlier command left half done is brought to the state before or after it.
 */
#include "blockmig/migrate/window.h"
#include "blockmig/storage/file.h"

#include <glib/gstdio.h>
#include <stdio.h>
#include <string.h>

#define CANCEL 10000 /* ms */

int window_highest_file(const struct live_disk *disk)
{
    int highest = -1;

    for (unsigned n = 0; n <= CHAIN_MAX_DEPTH; n++) {
        g_autofree char *path = live_numbered(disk, n);

        if (g_file_test(path, G_FILE_TEST_EXISTS))
            highest = (int)n;
    }
    return highest;
}

/* From the top down, as one holds the next open. */
static void remove_layers(struct live_job *job, const struct live_disk *disk, unsigned above)
{
    unsigned highest = MAX(MAX(disk->files, disk->top), above + 1);

    for (unsigned layer = highest; layer > above; layer--) {
        g_autofree char *node = live_layer_node(job, disk, layer);
        g_autofree char *path = live_numbered(disk, layer);

        vm_remove_node(job->vm, node, NULL);
        g_unlink(path);
    }
}

void window_trim(struct live_job *job, struct live_disk *disk)
{
    g_autofree char *node = live_layer_node(job, disk, disk->kept);

    disk->files = (unsigned)MAX((int)disk->kept + 2, window_highest_file(disk));
    remove_layers(job, disk, disk->kept);
    vm_remove_node(job->vm, node, NULL); /* its file may be written to elsewhere some day */
    disk->top = disk->files = disk->kept;
    disk->set_aside = disk->by_exchange;
    storage_file_sync_directory(disk->name, NULL);
}

/* ---- names ---------------------------------------------------------------------------------------- */

/* The layer that the machine is on gets the disk's name if nothing has it, or if a fresh one has that never
 * came into use.  What stands under that layer's number otherwise is a fresh one, too: only the machine tells
 * them apart. */
static bool settle_name(struct live_job *job, struct live_disk *disk, GError **error)
{
    const struct vm_layer *active = g_ptr_array_index(disk->vm->layers, 0);
    g_autofree char *numbered = live_numbered(disk, disk->top);
    bool exists = g_file_test(disk->name, G_FILE_TEST_EXISTS);

    if (disk->by_exchange && exists && g_strcmp0(active->filename, numbered) == 0 &&
        !live_layer_return_name(disk, disk->top + 1, error))
        return false;
    disk->set_aside = disk->by_exchange && !exists;
    if (!live_layer_set_aside(disk, false, error))
        return false;
    remove_layers(job, disk, disk->top);
    if (disk->by_exchange)
        g_unlink(numbered);
    return true;
}

/* The side that the machine has left: its top layer was open for writing. */
static void leave_side(struct live_job *job, struct live_disk *disk)
{
    int highest = window_highest_file(disk);
    g_autofree char *node = NULL;

    disk->top = disk->files = (unsigned)MAX(highest, 0);
    disk->set_aside = disk->by_exchange;
    node = live_top_node(job, disk);
    vm_remove_node(job->vm, node, NULL);
}

/* The machine is on layer 0; perhaps the name is not there yet, and another layer is. */
static void look_at_settled(struct live_disk *disk)
{
    bool nobody = !g_file_test(disk->name, G_FILE_TEST_EXISTS);

    disk->files = (unsigned)(window_highest_file(disk) + 1);
    disk->top = 0;
    disk->snapshotted = false;
    disk->base_renamed = nobody || live_is_overlay(disk, disk->name);
    disk->set_aside = nobody && disk->by_exchange;
}

/* ---- where the machine is -------------------------------------------------------------------------- */

/* Layer 0 of the source may be a node of the machine's own, which knows its file by the disk's name whatever
 * that is called now.  A machine that was started anew may have one of the same name over other layers. */
static bool is_own_base(const struct live_disk *disk)
{
    const GPtrArray *layers = disk->vm->layers;
    const struct vm_layer *active = g_ptr_array_index(layers, 0);
    const struct vm_layer *below = layers->len > 1 ? g_ptr_array_index(layers, 1) : NULL;
    g_autofree char *prefix = g_strconcat(disk->name, ".blockmig-", NULL);

    return g_strcmp0(active->node, disk->base_node) == 0 &&
           g_strcmp0(active->filename, disk->target_path) != 0 &&
           !(below && below->filename && g_str_has_prefix(below->filename, prefix));
}

static bool parse_node(const struct live_job *job, const struct live_disk *disk, char *side, unsigned *layer)
{
    g_autofree char *prefix = g_strdup_printf("bm-%08x-%u-", job->tag, disk->index);
    const char *node = disk->vm->node;

    if (is_own_base(disk)) {
        *side = 's';
        *layer = 0;
        return true;
    }
    if (!node || !g_str_has_prefix(node, prefix) || !node[strlen(prefix)])
        return false;
    *side = node[strlen(prefix)];
    *layer = (unsigned)g_ascii_strtoull(node + strlen(prefix) + 1, NULL, 10);
    return true;
}

/* From the target's name, which leads to its overlay and through that to what was copied. */
static bool is_anew(struct live_disk *target)
{
    const GPtrArray *layers = target->vm->layers;
    const struct vm_layer *first = g_ptr_array_index(layers, 0);
    const struct vm_layer *last = g_ptr_array_index(layers, layers->len - 1);
    g_autofree char *base = live_numbered(target, 0);

    target->based = false;
    target->top = target->files = layers->len - 1;
    return target->by_exchange && g_strcmp0(first->filename, target->name) == 0 &&
           g_strcmp0(last->filename, base) == 0;
}

/* Started anew, from a name that is whole again, or from one that is not. */
static bool look_at_stranger(const struct live_disk *disk, enum window_place *place, GError **error)
{
    const struct vm_layer *active = g_ptr_array_index(disk->vm->layers, 0);
    bool target = g_strcmp0(active->filename, disk->target_path) == 0;

    if (target && window_highest_file(disk->other) < 0 &&
        !g_file_test(disk->target_overlay, G_FILE_TEST_EXISTS)) {
        *place = TARGET_SETTLED;
        return true;
    }
    if (g_strcmp0(active->filename, disk->name) == 0 && window_highest_file(disk) < 0) {
        *place = SOURCE_SETTLED;
        return true;
    }
    if (is_anew(disk->other)) {
        *place = ON_TARGET;
        return true;
    }
    return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                         "the machine was started anew on %s while the way back was open: power it off, and "
                         "give the command again",
                         active->filename ? active->filename : active->node);
}

static bool find_place(const struct live_job *job, struct live_disk *disk, enum window_place *place,
                       GError **error)
{
    char side;
    unsigned layer;

    if (!parse_node(job, disk, &side, &layer))
        return look_at_stranger(disk, place, error);
    if (side == 's' && layer > 0 && layer < disk->kept + 2)
        return blockmig_fail(error, BLOCKMIG_ERROR_UNCERTAIN, "%s: the machine is on its layer %u",
                             disk->name, layer);
    if (side == 's') {
        *place = layer > 0 ? RETURNED : SOURCE_SETTLED;
        disk->top = disk->files = layer;
    } else {
        *place = layer > 0 ? ON_TARGET : TARGET_SETTLED;
        disk->other->top = disk->other->files = layer;
    }
    return true;
}

/* A commit that was on its way is begun again: until it is complete nothing depends on it. */
static bool end_jobs(struct live_job *job, const struct live_disk *disk, GError **error)
{
    static const char *const words[] = {"rollback", "collapse"};

    for (guint i = 0; i < G_N_ELEMENTS(words); i++) {
        g_autofree char *name = g_strdup_printf("blockmig-%s-%u", words[i], disk->index);

        if (!vm_job_cancel(job->vm, name, CANCEL, error))
            return false;
    }
    return true;
}

static bool tidy(struct live_job *job, struct live_disk *disk, enum window_place place, GError **error)
{
    struct live_disk *target = disk->other;

    switch (place) {
    case ON_TARGET:
        window_trim(job, disk);
        return window_name_layers(job, target, disk->target_overlay, error) &&
               settle_name(job, target, error);
    case TARGET_SETTLED:
        look_at_settled(target);
        return true;
    case RETURNED:
        leave_side(job, target);
        return settle_name(job, disk, error);
    case SOURCE_SETTLED:
        leave_side(job, target);
        look_at_settled(disk);
        return true;
    }
    return true;
}

/* ---- the disks ------------------------------------------------------------------------------------ */

/* As the source was before the move: what the machine says of the target's layers is known by then. */
static void restore_lower(const struct live_disk *disk, const struct window_disk *fact)
{
    GPtrArray *layers = disk->vm->layers;

    g_ptr_array_set_size(layers, (gint)MIN(layers->len, 1));
    for (guint i = 0; fact->lower && i < fact->lower->len; i++) {
        struct vm_layer *layer = g_new0(struct vm_layer, 1);

        layer->node = g_strdup("#lower");
        layer->filename = g_strdup(g_ptr_array_index(fact->lower, i));
        g_ptr_array_add(layers, layer);
    }
}

static struct live_disk *build(struct live_job *job, const struct journal_disk *saved,
                               const struct window_disk *fact, GError **error)
{
    struct live_disk *disk = live_rebuild(job, saved, error), *target;

    if (!disk)
        return NULL;
    disk->top = disk->files = disk->kept = fact->kept;
    disk->snapshotted = disk->created = true;
    disk->base_renamed = !disk->device;
    disk->set_aside = disk->by_exchange;
    disk->base_node = g_strdup(fact->base);
    live_describe_disk(job, disk);
    disk->report->receipt = g_strdup(saved->receipt);
    target = live_other(disk);
    target->by_exchange = fact->by_exchange;
    target->base_renamed = !target->device;
    target->base_node = live_layer_node(job, target, 0);
    return disk;
}

/* Where they are together; UNCERTAIN if some are on one side and some on the other.  Of one side some may be
 * settled already. */
bool window_join(enum window_place one, enum window_place other, enum window_place *both, GError **error)
{
    bool on_target = one == ON_TARGET || one == TARGET_SETTLED;

    if (on_target != (other == ON_TARGET || other == TARGET_SETTLED))
        return blockmig_fail(error, BLOCKMIG_ERROR_UNCERTAIN,
                             "some disks of the machine are on the target and some are not");
    *both = one == other ? one : on_target ? TARGET_SETTLED : SOURCE_SETTLED;
    return true;
}

/* Layers are read by their names from here on: the machine must have the same ones open. */
static bool check_disk(const struct live_disk *disk, const struct vm_disk *vm, GError **error)
{
    bool unnamed = disk->top == 0 && disk->base_renamed; /* the name is the next thing to be restored */

    for (unsigned i = 0; i <= disk->top && i < vm->layers->len; i++) {
        const struct vm_layer *layer = g_ptr_array_index(vm->layers, i);
        g_autofree char *path = unnamed ? live_numbered(disk, 0) : live_layer_path(disk, disk->top - i);

        if (g_str_has_prefix(layer->node, "bm-") && g_strcmp0(layer->filename, path) != 0)
            return blockmig_fail(error, BLOCKMIG_ERROR_UNCERTAIN, "the machine has %s open, and not %s",
                                 layer->filename ? layer->filename : layer->node, path);
    }
    return true;
}

static bool check_names(struct live_job *job, enum window_place place, GError **error)
{
    g_autoptr(vm_description_t) now = vm_describe(job->vm, error);

    for (guint i = 0; now && i < job->disks->len; i++) {
        struct live_disk *disk = live_disk_at(job, i);
        const struct vm_disk *vm = vm_find_disk(now, disk->vm->qdev, error);

        if (!vm || !check_disk(place == ON_TARGET || place == TARGET_SETTLED ? disk->other : disk, vm, error))
            return false;
    }
    return now != NULL;
}

bool window_look(struct live_job *job, const struct window_facts *facts, enum window_place *place,
                 GError **error)
{
    g_autoptr(GPtrArray) saved = journal_disk_list(job->base.journal, job->base.record, error);
    g_autofree enum window_place *places = NULL;

    if (!saved)
        return false;
    if (saved->len == 0 || saved->len != facts->disks->len)
        return blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "the journal knows %u disks and facts of %u",
                             saved->len, facts->disks->len);
    for (guint i = 0; i < saved->len; i++)
        if (!build(job, g_ptr_array_index(saved, i), g_ptr_array_index(facts->disks, i), error))
            return false;
    if (!job->vm) {
        for (guint i = 0; i < saved->len; i++)
            restore_lower(live_disk_at(job, i), g_ptr_array_index(facts->disks, i));
        return window_look_offline(job, place, error);
    }
    places = g_new0(enum window_place, saved->len);
    for (guint i = 0; i < saved->len; i++)
        if (!find_place(job, live_disk_at(job, i), &places[i], error) ||
            !window_join(places[i], i ? *place : places[i], place, error))
            return false;
    for (guint i = 0; i < saved->len; i++)
        if (!end_jobs(job, live_disk_at(job, i), error) || !tidy(job, live_disk_at(job, i), places[i], error))
            return false;
    if (!check_names(job, *place, error))
        return false;
    for (guint i = 0; i < saved->len; i++)
        restore_lower(live_disk_at(job, i), g_ptr_array_index(facts->disks, i));
    return true;
}
