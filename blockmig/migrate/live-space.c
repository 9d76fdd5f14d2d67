/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The space guard: both sides have room, all the time, for what the machine may still write before the move
 * can be over in order.  So it never meets a full datastore because of us.
 *
 * room.h says what must stay free on the source.
 *
 * Our own copying does not use the source, so slowing it would not help there: the move is rolled back.
 * On the target the copy itself is the writer: it is slowed when what is left to write does not fit any more,
 * so that somebody may make room, and parks at the reserve.  After the switch the machine's overlay is there,
 * which is committed into an image that is thin as well.
 */
#include "blockmig/migrate/live-watch.h"
#include "blockmig/migrate/room.h"
#include "blockmig/migrate/space.h"
#include "blockmig/migrate/units.h"

#include <sys/stat.h>

#define WARN_AHEAD 20.0                  /* seconds */
#define SLOW_TIME  10.0                  /* seconds in which a slowed copy would fill what is left */
#define SLOWEST    ((uint64_t)(1 << 20)) /* bytes per second */

struct live_space {
    GArray *sources; /* of struct room, by the number of the first disk that lies there */
    struct room target;
};

struct live_space *live_space_new(void)
{
    struct live_space *space = g_new0(struct live_space, 1);

    space->sources = g_array_new(false, true, sizeof(struct room));
    return space;
}

void live_space_free(struct live_space *space)
{
    g_array_unref(space->sources);
    g_free(space);
}

/* A device does not grow. */
static uint64_t thin_room(const char *image, uint64_t size)
{
    return live_is_device(image) ? 0 : room_to_grow(image, size);
}

/* ---- the source ------------------------------------------------------------------------------------- */

static struct footprint overlays_of(const struct live_disk *disk)
{
    struct footprint sum = {0};

    for (unsigned layer = 1; disk->snapshotted && layer <= disk->top; layer++) {
        g_autofree char *path = live_layer_path(disk, layer);

        footprint_add(&sum, footprint_of(path));
    }
    return sum;
}

/* Of all disks that lie on this device. */
static struct room_need needs_on(const struct live_job *job, dev_t device)
{
    struct room_need need = {0};

    for (guint i = 0; i < job->disks->len; i++) {
        const struct live_disk *disk = live_disk_at(job, i);
        g_autofree char *path = live_layer_path(disk, disk->top), *base = live_layer_path(disk, 0);
        struct footprint overlays = overlays_of(disk);
        dev_t other;

        if (!room_device(path, &other) || other != device)
            continue;
        need.overlays += overlays.bytes;
        if (disk->straddles)
            footprint_add(&overlays, footprint_of(disk->target_overlay));
        need.commit += MIN(overlays.length, thin_room(base, disk->size));
    }
    return need;
}

/* What our copies take there. */
static uint64_t targets_on(const struct live_job *job, dev_t device)
{
    uint64_t bytes = 0;

    for (guint i = 0; i < job->disks->len; i++) {
        const char *path = live_disk_at(job, i)->target_path;
        dev_t other;

        if (room_device(path, &other) && other == device)
            bytes += footprint_of(path).bytes;
    }
    return bytes;
}

static void warn_source(const struct live_job *job, const char *directory, struct room *room, double left)
{
    g_autofree char *size = units_format_size(room_last_free(room)), *rate = units_format_rate(room->rate);

    if (room->warned || left > WARN_AHEAD || room->count < ROOM_SAMPLES)
        return;
    room->warned = true;
    live_watch_say(job, "%s: %s are free and %s are written: in about %.0f s the move has to be rolled back",
                   directory, size, rate, left);
}

static void look_at_source(const struct live_job *job, struct room *room, const char *path, dev_t device)
{
    g_autofree char *directory = g_path_get_dirname(path);
    struct room_need need = needs_on(job, device);
    g_autoptr(GError) local = NULL;
    double spare;

    if (!room_for_rollback(room, directory, &need, need.overlays + targets_on(job, device), &spare, &local))
        live_watch_end(job, BLOCKMIG_ERROR_CANCELLED, "%s", local->message);
    else if (room->rate > 0)
        warn_source(job, directory, room, spare / room->rate);
}

void live_space_look_at_sources(const struct live_job *job, struct live_space *space)
{
    g_autoptr(GArray) seen = g_array_new(false, false, sizeof(dev_t));

    g_array_set_size(space->sources, job->disks->len);
    for (guint i = 0; i < job->disks->len; i++) {
        const struct live_disk *disk = live_disk_at(job, i);
        g_autofree char *path = live_layer_path(disk, disk->top);
        bool before = false;
        dev_t device;

        if (!room_device(path, &device))
            continue;
        for (guint k = 0; k < seen->len; k++)
            before |= g_array_index(seen, dev_t, k) == device;
        g_array_append_val(seen, device);
        if (!before)
            look_at_source(job, &g_array_index(space->sources, struct room, i), path, device);
    }
}

double live_space_dirty_rate(const struct live_space *space)
{
    double sum = -1;

    for (guint i = 0; i < space->sources->len; i++) {
        const struct room *room = &g_array_index(space->sources, struct room, i);

        if (room->count > 1)
            sum = room_known(sum) + room_known(room->growth);
    }
    return sum;
}

/* ---- the target ------------------------------------------------------------------------------------- */

/* By the method mirror it is, before the switch. */
static bool writes_to_target(const struct live_job *job)
{
    return job->pivoted || live_disk_at(job, 0)->straddles;
}

/* What the copies have still to write at most; after the switch, what the commit may take. */
static uint64_t target_need(const struct live_job *job, uint64_t *written, uint64_t *growing)
{
    uint64_t need = 0;

    *written = *growing = 0;
    for (guint i = 0; i < job->disks->len; i++) {
        const struct live_disk *disk = live_disk_at(job, i);
        uint64_t image = disk->target_device ? disk->needed : footprint_of(disk->target_path).bytes;
        struct footprint overlay = footprint_of(disk->target_overlay);

        *written += image + overlay.bytes;
        *growing += overlay.bytes;
        if (writes_to_target(job))
            need += MIN(overlay.length, thin_room(disk->target_path, disk->size));
        else
            need += disk->needed > image ? disk->needed - image : 0;
    }
    return need;
}

static void set_pace(const struct live_job *job, struct room *room, uint64_t rate)
{
    uint64_t limit = job->request->bandwidth;

    room->slowed = rate > 0;
    throttle_set_rate(job->throttle, rate && limit ? MIN(rate, limit) : MAX(rate, limit));
}

/* Before the switch: slower and slower, but never so slow that it cannot end. */
static void slow_down(const struct live_job *job, struct room *room, const char *directory, uint64_t free,
                      uint64_t need, uint64_t reserve)
{
    g_autofree char *left = units_format_size(free), *wanted = units_format_size(need);

    if (!room->warned)
        live_watch_say(job, "%s: %s are free and %s may be needed: the copy is slowed", directory, left,
                       wanted);
    room->warned = true;
    set_pace(job, room, MAX((uint64_t)((double)(free - reserve) / SLOW_TIME), SLOWEST));
}

static void target_is_full(const struct live_job *job, const char *directory, uint64_t free, uint64_t need)
{
    g_autofree char *left = units_format_size(free), *wanted = units_format_size(need);

    live_watch_end(job, BLOCKMIG_ERROR_PARKED, "%s: only %s are free, and %s may be needed%s", directory,
                   left, wanted, writes_to_target(job) ? " for what the machine writes" : "");
}

static void look_at_target(const struct live_job *job, struct room *room)
{
    g_autofree char *directory = g_path_get_dirname(live_disk_at(job, 0)->target_overlay);
    struct space_report report = {0};
    uint64_t written, growing, need = target_need(job, &written, &growing), reserve = ROOM_RESERVE;

    if (!space_check(directory, 0, 0, &report, NULL))
        return;
    room_take_sample(room, growing, written, report.available);
    if (writes_to_target(job))
        reserve += need + (uint64_t)(room_known(room->rate) * ((double)need / ROOM_COMMIT_RATE + ROOM_GRACE));
    if (report.available < reserve)
        target_is_full(job, directory, report.available, need);
    else if (!writes_to_target(job) && report.available < need + reserve)
        slow_down(job, room, directory, report.available, need, reserve);
    else if (room->slowed)
        set_pace(job, room, 0);
}

/* Until the end of the proof, which takes no longer than the copy of the base did, the machine writes to its
 * overlays, as it does now and scattered as it does now; then they are committed. */
static uint64_t after_switch(const struct live_job *job)
{
    double rate = MAX(job->pace.dirty_rate, live_watch_dirty_rate(job));
    double written = room_known(rate) * (job->pace.base_time + ROOM_GRACE);
    struct footprint overlays = {0};
    uint64_t size = 0, room = 0;

    for (guint i = 0; i < job->disks->len; i++) {
        const struct live_disk *disk = live_disk_at(job, i);

        footprint_add(&overlays, overlays_of(disk));
        size += disk->size;
        room += thin_room(disk->target_path, disk->size);
    }
    written = MIN(written, (double)size);
    return (uint64_t)(written +
                      MIN(written * (double)overlays.length / (double)MAX(overlays.bytes, 1), (double)room));
}

bool live_space_allows_switch(const struct live_job *job, GError **error)
{
    g_autofree char *directory = g_path_get_dirname(live_disk_at(job, 0)->target_overlay);
    g_autofree char *left = NULL, *wanted = NULL;
    struct space_report report = {0};
    uint64_t need = after_switch(job) + ROOM_RESERVE;

    if (job->at_any_price)
        return true;
    if (!space_check(directory, 0, 0, &report, error))
        return false;
    if (report.available >= need)
        return true;
    left = units_format_size(report.available);
    wanted = units_format_size(need);
    return blockmig_fail(error, BLOCKMIG_ERROR_PARKED,
                         "%s: %s are free, and %s are needed for what the machine writes until the target is "
                         "proved",
                         directory, left, wanted);
}

void live_space_look(const struct live_job *job, struct live_space *space)
{
    if (job->base.dry_run || job->disks->len == 0 || job->interrupted || job->at_any_price)
        return;
    if (!job->pivoted)
        live_space_look_at_sources(job, space);
    look_at_target(job, &space->target);
}
