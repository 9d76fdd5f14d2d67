/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A window whose machine is off.  What the guest wrote is in layers that nobody has open, so they are merged
 * by us, under the image locks that a machine which runs after all would hold.
 *
 * On which side the machine was last is told by the layer that the pivot back went to: the guest alone writes
 * to it, so if it holds nothing, the target has everything.
 */
#include "blockmig/migrate/window.h"
#include "blockmig/storage/file.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <stdio.h>
#include <string.h>

/* ---- looking --------------------------------------------------------------------------------------- */

static bool holds_data(const char *path, bool *data, GError **error)
{
    g_autoptr(chain_t) overlay = live_open_overlay(path, 0, error);
    struct extent extents[64];
    uint64_t offset = 0;
    size_t count;

    *data = false;
    while (overlay && !*data && offset < overlay->size) {
        if (!chain_map(overlay, offset, overlay->size - offset, extents, G_N_ELEMENTS(extents), &count,
                       error))
            return false;
        for (size_t i = 0; i < count; i++)
            *data |= extents[i].status != EXTENT_HOLE;
        offset = extent_end(&extents[count - 1]);
    }
    return overlay != NULL;
}

/* Has the layer that the pivot back went to got the disk's name?  Somebody else may have taken it. */
static bool is_ours(const struct live_disk *disk)
{
    return disk->by_exchange && live_is_overlay(disk, disk->name);
}

/* Has layer 0 got the disk's name back, where that was under way?  What is called as layer 0 then is what had
 * the name before. */
static bool is_settled(const struct live_disk *disk)
{
    g_autofree char *base = live_numbered(disk, 0);

    return g_file_test(disk->name, G_FILE_TEST_EXISTS) && !live_is_overlay(disk, disk->name) &&
           (!g_file_test(base, G_FILE_TEST_EXISTS) || live_is_overlay(disk, base));
}

/* Layers that stand in a row: the top one has the disk's name, or its own number. */
static void count_layers(struct live_disk *disk, bool named)
{
    int highest = window_highest_file(disk);

    disk->top = disk->files = (unsigned)MAX(highest + (named ? 1 : 0), 0);
    disk->set_aside = disk->by_exchange && !named;
}

static bool find_place(const struct live_disk *disk, const char *phase, enum window_place *place,
                       GError **error)
{
    g_autofree char *numbered = live_numbered(disk, disk->kept + 2);
    bool closing = g_str_has_prefix(phase, "settle") || strcmp(phase, "cleanup") == 0;
    bool returning = g_str_has_prefix(phase, "return") || strcmp(phase, "remove") == 0, returned = false;
    const char *fresh = is_ours(disk) ? disk->name : numbered;

    *place = ON_TARGET;
    if (returning && is_settled(disk))
        *place = SOURCE_SETTLED;
    else if (closing && is_settled(disk->other))
        *place = TARGET_SETTLED;
    else if (g_file_test(fresh, G_FILE_TEST_EXISTS) && !holds_data(fresh, &returned, error))
        return false;
    else if (returned)
        *place = RETURNED;
    return true;
}

/* Layers of an attempt that came to nothing. */
static void trim(struct live_disk *disk)
{
    for (unsigned layer = disk->kept + 1; layer <= (unsigned)MAX(window_highest_file(disk), 0); layer++) {
        g_autofree char *path = live_numbered(disk, layer);

        g_unlink(path);
    }
    if (is_ours(disk))
        g_unlink(disk->name); /* empty, as was seen */
}

bool window_look_offline(struct live_job *job, enum window_place *place, GError **error)
{
    g_autofree enum window_place *places = g_new0(enum window_place, job->disks->len);

    for (guint i = 0; i < job->disks->len; i++)
        if (!find_place(live_disk_at(job, i), job->base.record->phase, &places[i], error) ||
            !window_join(places[i], i ? *place : places[i], place, error))
            return false;
    for (guint i = 0; i < job->disks->len; i++) {
        struct live_disk *disk = live_disk_at(job, i), *target = disk->other;

        if (places[i] == ON_TARGET && !window_name_layers(job, target, disk->target_overlay, error))
            return false;
        if (places[i] == ON_TARGET)
            trim(disk);
        count_layers(target, target->by_exchange && g_file_test(target->name, G_FILE_TEST_EXISTS));
        if (places[i] == RETURNED)
            count_layers(disk, is_ours(disk));
        if (places[i] == SOURCE_SETTLED)
            disk->top = disk->files = 0;
        if (places[i] == TARGET_SETTLED)
            target->top = target->files = 0;
    }
    return true;
}

/* ---- merging --------------------------------------------------------------------------------------- */

/* Layer 0 has everything: it takes the name, over whatever has it, and the others go. */
static bool become_one(struct live_job *job, struct live_disk *disk, GError **error)
{
    g_autofree char *base = live_numbered(disk, 0);
    unsigned files = (unsigned)MAX(window_highest_file(disk), 0);

    if (!is_settled(disk) && g_file_test(base, G_FILE_TEST_EXISTS) && rename(base, disk->name) < 0)
        return blockmig_set_errno(error, errno, "renaming %s to %s", base, disk->name);
    disk->base_renamed = disk->set_aside = false;
    disk->top = 0;
    for (unsigned layer = files + 1; layer-- > 0;) {
        g_autofree char *path = live_numbered(disk, layer);

        if (g_unlink(path) < 0 && errno != ENOENT)
            return blockmig_set_errno(error, errno, "removing %s", path);
    }
    disk->files = 0;
    return storage_file_sync_directory(disk->name, error) &&
           job_event(&job->base, "result", error, "%s is one image", disk->name);
}

bool offline_settle(struct job *base, GError **error)
{
    struct live_job *job = live_of(base);

    for (guint i = 0; i < job->disks->len; i++) {
        struct live_disk *target = live_disk_at(job, i)->other;

        if (target->top > 0) {
            g_autoptr(chain_t) overlays = live_open_overlays(target, 1, error);

            if (!overlays || !live_merge_into_base(job, target, overlays, error))
                return false;
        }
        if (!become_one(job, target, error))
            return false;
    }
    return true;
}

/* ---- going back ------------------------------------------------------------------------------------ */

/* What the guest wrote on either side, as one. */
static struct chain *open_written(struct live_disk *disk, GError **error)
{
    g_autoptr(chain_t) written = disk->top > 0 ? live_open_overlays(disk, 1, error) : NULL;
    g_autoptr(chain_t) lower = NULL;

    if (disk->top > 0 && !written)
        return NULL;
    if (disk->other->top > 0 && !(lower = live_open_overlays(disk->other, 1, error)))
        return NULL;
    if (!written)
        return g_steal_pointer(&lower);
    while (lower && chain_depth(lower) > 0)
        chain_append(written, (struct image *)g_ptr_array_steal_index(lower->layers, 0));
    return g_steal_pointer(&written);
}

/* The machine was on the source again: its own layers say what must be there. */
static bool return_own(struct live_job *job, struct live_disk *disk, GError **error)
{
    g_autoptr(chain_t) overlays = live_open_overlays(disk, 1, error);

    return overlays && live_merge_into_base(job, disk, overlays, error);
}

static bool return_written(struct live_job *job, struct live_disk *disk, GError **error)
{
    g_autoptr(chain_t) written = open_written(disk, error);

    return written && live_merge_into_base(job, disk->other, written, error);
}

/* The target's layers are untouched until the source is proved to have all that they have. */
bool offline_return(struct job *base, GError **error)
{
    struct live_job *job = live_of(base);
    bool own = job->pivoted;

    base->end = "failed-back";
    if (!job_event(base, "intent", error, "merge the layers of the machine, which is off, into the source"))
        return false;
    for (guint i = 0; i < job->disks->len; i++) {
        struct live_disk *disk = live_disk_at(job, i);
        bool settled = own && disk->other->top == 0;

        if (!settled && !(own ? return_own(job, disk->other, error) : return_written(job, disk, error)))
            return false;
    }
    if (!own && !live_prove(base, error))
        return false;
    for (guint i = 0; i < job->disks->len; i++)
        if (!become_one(job, live_disk_at(job, i)->other, error))
            return false;
    return true;
}
