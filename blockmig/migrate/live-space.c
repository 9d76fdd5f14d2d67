/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The space guard: both sides have room, all the time, for what the machine may still write before the move
 * can be over in order.  So it never meets a full datastore because of us.
 *
 * What must stay free on the source is what rolling back takes:
 *
 *   what a thin base can grow when the overlays are committed into it,
 *   and what the machine writes while that is done, at the rate at which they (or others) grow now.
 *
 * A commit copies 64 KiB for each 4 KiB that the machine wrote somewhere, so the base grows by far more than
 * the overlays have.  What is touched shows in an overlay's length: each cluster of it has a place in the
 * file, though most of the place may be a hole.
 *
 * Our own copying does not use the source, so slowing it would not help there: the move is rolled back.
 * On the target the copy itself is the writer: it is slowed when what is left to write does not fit any more,
 * so that somebody may make room, and parks at the reserve.  After the switch the machine's overlay is there,
 * which is committed into an image that is thin as well.
 */
#include "blockmig/migrate/live-watch.h"
#include "blockmig/migrate/space.h"
#include "blockmig/migrate/units.h"

#include <sys/stat.h>

#define SAMPLES     16                   /* one every look: four seconds */
#define RESERVE     (UINT64_C(16) << 20) /* less than preflight asks for, so that nothing ends at once */
#define COMMIT_RATE ((double)(UINT64_C(32) << 20)) /* bytes per second that a commit does at least */
#define GRACE       3.0                            /* seconds until somebody acts */
#define WARN_AHEAD  20.0                           /* seconds */
#define SLOW_TIME   10.0                  /* seconds in which a slowed copy would fill what is left */
#define SLOWEST     ((uint64_t)(1 << 20)) /* bytes per second */

struct sample {
    int64_t time;
    uint64_t growing; /* bytes of the overlays that the machine writes to */
    uint64_t ours;    /* bytes of all files of the move that lie there */
    uint64_t free;
};

/* A datastore of ours, and what happens there. */
struct store {
    struct sample samples[SAMPLES];
    unsigned count;
    double growth; /* of the machine's overlays, in bytes per second of late; negative: not known */
    double rate;   /* that and what others take, but not what we copy */
    bool warned, slowed;
};

struct live_space {
    GArray *sources; /* of struct store, by the number of the first disk that lies there */
    struct store target;
};

struct live_space *live_space_new(void)
{
    struct live_space *space = g_new0(struct live_space, 1);

    space->sources = g_array_new(false, true, sizeof(struct store));
    return space;
}

void live_space_free(struct live_space *space)
{
    g_array_unref(space->sources);
    g_free(space);
}

/* Of a file, or the sums of several. */
struct footprint {
    uint64_t bytes;  /* allocated */
    uint64_t length; /* to the last byte */
};

static struct footprint measure(const char *path)
{
    struct stat st;

    if (stat(path, &st) < 0)
        return (struct footprint){0};
    return (struct footprint){(uint64_t)st.st_blocks * 512, (uint64_t)st.st_size};
}

static void add(struct footprint *sum, struct footprint more)
{
    sum->bytes += more.bytes;
    sum->length += more.length;
}

/* What `image` can still grow by; a device does not. */
static uint64_t thin_room(const char *image, uint64_t size)
{
    uint64_t bytes = measure(image).bytes;

    if (live_is_device(image))
        return 0;
    return size > bytes ? size - bytes : 0;
}

static bool store_of(const char *path, dev_t *device)
{
    g_autofree char *directory = g_path_get_dirname(path);
    struct stat st;

    if (stat(directory, &st) < 0)
        return false;
    *device = st.st_dev;
    return true;
}

/* ---- rates ------------------------------------------------------------------------------------------ */

static double per_second(double bytes, const struct sample *from, const struct sample *to)
{
    return bytes * G_USEC_PER_SEC / (double)(to->time - from->time);
}

/* Over the samples that are kept. */
static void take_sample(struct store *store, uint64_t growing, uint64_t ours, uint64_t free)
{
    struct sample now = {.time = g_get_monotonic_time(), .growing = growing, .ours = ours, .free = free};
    const struct sample *oldest = &store->samples[store->count < SAMPLES ? 0 : store->count % SAMPLES];

    if (store->count == 0)
        store->rate = store->growth = -1;
    if (store->count > 0 && now.time > oldest->time) {
        double taken = (double)oldest->free - (double)free - ((double)ours - (double)oldest->ours);

        store->growth = MAX(per_second((double)growing - (double)oldest->growing, oldest, &now), 0);
        store->rate = store->growth + MAX(per_second(taken, oldest, &now), 0);
    }
    store->samples[store->count++ % SAMPLES] = now;
}

static double known(double rate)
{
    return MAX(rate, 0);
}

/* ---- the source ------------------------------------------------------------------------------------- */

static struct footprint overlays_of(const struct live_disk *disk)
{
    struct footprint sum = {0};

    for (unsigned layer = 1; disk->snapshotted && layer <= disk->top; layer++) {
        g_autofree char *path = live_layer_path(disk, layer);

        add(&sum, measure(path));
    }
    return sum;
}

struct source_need {
    uint64_t overlays, commit;
};

/* Of all disks that lie on this device. */
static struct source_need needs_on(const struct live_job *job, dev_t device)
{
    struct source_need need = {0};

    for (guint i = 0; i < job->disks->len; i++) {
        const struct live_disk *disk = live_disk_at(job, i);
        g_autofree char *path = live_layer_path(disk, disk->top), *base = live_layer_path(disk, 0);
        struct footprint overlays = overlays_of(disk);
        dev_t other;

        if (!store_of(path, &other) || other != device)
            continue;
        need.overlays += overlays.bytes;
        if (disk->straddles)
            add(&overlays, measure(disk->target_overlay));
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

        if (store_of(path, &other) && other == device)
            bytes += measure(path).bytes;
    }
    return bytes;
}

static double rollback_time(const struct source_need *need)
{
    return (double)need->overlays / COMMIT_RATE + GRACE;
}

static void source_is_full(const struct live_job *job, const char *directory, const struct store *store,
                           const struct source_need *need, uint64_t free)
{
    g_autofree char *left = units_format_size(free), *overlays = units_format_size(need->overlays);
    g_autofree char *commit = units_format_size(need->commit);
    g_autofree char *rate = units_format_rate(known(store->rate));

    live_watch_end(job, BLOCKMIG_ERROR_CANCELLED,
                   "%s: only %s are free: the machine's overlays (%s, %s more) may need %s to be rolled back",
                   directory, left, overlays, rate, commit);
}

static void warn_source(const struct live_job *job, const char *directory, struct store *store, uint64_t free,
                        double left)
{
    g_autofree char *size = units_format_size(free), *rate = units_format_rate(store->rate);

    if (store->warned || left > WARN_AHEAD || store->count < SAMPLES)
        return;
    store->warned = true;
    live_watch_say(job, "%s: %s are free and %s are written: in about %.0f s the move has to be rolled back",
                   directory, size, rate, left);
}

static void look_at_source(const struct live_job *job, struct store *store, const char *path, dev_t device)
{
    g_autofree char *directory = g_path_get_dirname(path);
    struct source_need need = needs_on(job, device);
    struct space_report report = {0};
    double wanted;

    if (!space_check(directory, 0, 0, &report, NULL))
        return;
    take_sample(store, need.overlays, need.overlays + targets_on(job, device), report.available);
    wanted = (double)need.commit + known(store->rate) * rollback_time(&need) + (double)RESERVE;
    if ((double)report.available < wanted)
        source_is_full(job, directory, store, &need, report.available);
    else if (store->rate > 0)
        warn_source(job, directory, store, report.available,
                    ((double)report.available - wanted) / store->rate);
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

        if (!store_of(path, &device))
            continue;
        for (guint k = 0; k < seen->len; k++)
            before |= g_array_index(seen, dev_t, k) == device;
        g_array_append_val(seen, device);
        if (!before)
            look_at_source(job, &g_array_index(space->sources, struct store, i), path, device);
    }
}

double live_space_dirty_rate(const struct live_space *space)
{
    double sum = -1;

    for (guint i = 0; i < space->sources->len; i++) {
        const struct store *store = &g_array_index(space->sources, struct store, i);

        if (store->count > 1)
            sum = known(sum) + known(store->growth);
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
        uint64_t image = disk->target_device ? disk->needed : measure(disk->target_path).bytes;
        struct footprint overlay = measure(disk->target_overlay);

        *written += image + overlay.bytes;
        *growing += overlay.bytes;
        if (writes_to_target(job))
            need += MIN(overlay.length, thin_room(disk->target_path, disk->size));
        else
            need += disk->needed > image ? disk->needed - image : 0;
    }
    return need;
}

static void set_pace(const struct live_job *job, struct store *store, uint64_t rate)
{
    uint64_t limit = job->request->bandwidth;

    store->slowed = rate > 0;
    throttle_set_rate(job->throttle, rate && limit ? MIN(rate, limit) : MAX(rate, limit));
}

/* Before the switch: slower and slower, but never so slow that it cannot end. */
static void slow_down(const struct live_job *job, struct store *store, const char *directory, uint64_t free,
                      uint64_t need, uint64_t reserve)
{
    g_autofree char *left = units_format_size(free), *wanted = units_format_size(need);

    if (!store->warned)
        live_watch_say(job, "%s: %s are free and %s may be needed: the copy is slowed", directory, left,
                       wanted);
    store->warned = true;
    set_pace(job, store, MAX((uint64_t)((double)(free - reserve) / SLOW_TIME), SLOWEST));
}

static void target_is_full(const struct live_job *job, const char *directory, uint64_t free, uint64_t need)
{
    g_autofree char *left = units_format_size(free), *wanted = units_format_size(need);

    live_watch_end(job, BLOCKMIG_ERROR_PARKED, "%s: only %s are free, and %s may be needed%s", directory,
                   left, wanted, writes_to_target(job) ? " for what the machine writes" : "");
}

static void look_at_target(const struct live_job *job, struct store *store)
{
    g_autofree char *directory = g_path_get_dirname(live_disk_at(job, 0)->target_overlay);
    struct space_report report = {0};
    uint64_t written, growing, need = target_need(job, &written, &growing), reserve = RESERVE;

    if (!space_check(directory, 0, 0, &report, NULL))
        return;
    take_sample(store, growing, written, report.available);
    if (writes_to_target(job))
        reserve += need + (uint64_t)(known(store->rate) * ((double)need / COMMIT_RATE + GRACE));
    if (report.available < reserve)
        target_is_full(job, directory, report.available, need);
    else if (!writes_to_target(job) && report.available < need + reserve)
        slow_down(job, store, directory, report.available, need, reserve);
    else if (store->slowed)
        set_pace(job, store, 0);
}

/* Until the end of the proof, which takes no longer than the copy of the base did, the machine writes to its
 * overlays, as it does now and scattered as it does now; then they are committed. */
static uint64_t after_switch(const struct live_job *job)
{
    double rate = MAX(job->pace.dirty_rate, live_watch_dirty_rate(job));
    double written = known(rate) * (job->pace.base_time + GRACE);
    struct footprint overlays = {0};
    uint64_t size = 0, room = 0;

    for (guint i = 0; i < job->disks->len; i++) {
        const struct live_disk *disk = live_disk_at(job, i);

        add(&overlays, overlays_of(disk));
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
    uint64_t need = after_switch(job) + RESERVE;

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
