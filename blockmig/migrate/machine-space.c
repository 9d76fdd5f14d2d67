/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The datastores of the source, while the machine writes to its overlays there: it must not meet a full one.
 */
#include "blockmig/migrate/machine.h"
#include "blockmig/migrate/room.h"

struct machine_space {
    GArray *rooms; /* of struct room, by the number of the first disk that lies there */
    int64_t looked_at;
    GError *trouble; /* why the overlays have to be rolled back, or NULL */
};

struct machine_space *machine_space_new(void)
{
    struct machine_space *space = g_new0(struct machine_space, 1);

    space->rooms = g_array_new(false, true, sizeof(struct room));
    return space;
}

void machine_space_free(struct machine_space *space)
{
    g_array_unref(space->rooms);
    g_clear_error(&space->trouble);
    g_free(space);
}

static void add_disk(struct room_need *need, const struct machine_disk *disk)
{
    struct footprint overlays = {0};

    for (unsigned layer = 1; layer <= disk->top; layer++) {
        g_autofree char *path = machine_layer_path(disk, layer);

        footprint_add(&overlays, footprint_of(path));
    }
    need->overlays += overlays.bytes;
    if (!disk->device)
        need->commit += MIN(overlays.length, room_to_grow(disk->path, disk->size));
}

/* What our copies take there. */
static uint64_t targets_on(const struct machine_job *job, dev_t device)
{
    uint64_t bytes = 0;
    dev_t other;

    for (guint i = 0; !job->across && i < job->disks->len; i++) {
        const char *path = machine_disk_at(job, i)->target_path;

        if (room_device(path, &other) && other == device)
            bytes += footprint_of(path).bytes + footprint_of(machine_disk_at(job, i)->overlay_path).bytes;
    }
    return bytes;
}

/* Disks from `first` on; the ones before are elsewhere. */
static void look_at(const struct machine_job *job, guint first, dev_t device)
{
    g_autofree char *directory = g_path_get_dirname(machine_disk_at(job, first)->stem);
    struct room *room = &g_array_index(job->space->rooms, struct room, first);
    struct room_need need = {0};
    double spare;
    dev_t other;

    for (guint i = first; i < job->disks->len; i++)
        if (room_device(machine_disk_at(job, i)->stem, &other) && other == device)
            add_disk(&need, machine_disk_at(job, i));
    if (!job->space->trouble)
        room_for_rollback(room, directory, &need, need.overlays + targets_on(job, device), &spare,
                          &job->space->trouble);
}

static void look(const struct machine_job *job)
{
    g_autoptr(GArray) seen = g_array_new(false, false, sizeof(dev_t));

    g_array_set_size(job->space->rooms, job->disks->len);
    for (guint i = 0; i < job->disks->len; i++) {
        bool before = false;
        dev_t device;

        if (!room_device(machine_disk_at(job, i)->stem, &device))
            continue;
        for (guint k = 0; k < seen->len; k++)
            before |= g_array_index(seen, dev_t, k) == device;
        g_array_append_val(seen, device);
        if (!before)
            look_at(job, i, device);
    }
}

bool machine_has_room(const struct machine_job *job)
{
    int64_t now = g_get_monotonic_time();

    if (job->disks->len > 0 && machine_disk_at(job, 0)->top > 0 && !job->stopped &&
        now - job->space->looked_at >= ROOM_LOOK) {
        job->space->looked_at = now;
        look(job);
    }
    return job->space->trouble == NULL;
}

void machine_explain(const struct job *base, GError **error)
{
    const GError *trouble = ((const struct machine_job *)base)->space->trouble;

    if (!trouble || !g_error_matches(*error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_CANCELLED))
        return;
    g_clear_error(error);
    g_propagate_error(error, g_error_copy(trouble));
}
