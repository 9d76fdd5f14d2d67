/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/migrate/room.h"

#include "blockmig/migrate/space.h"
#include "blockmig/migrate/units.h"
#include "formats/error.h"

#include <math.h>
#include <sys/stat.h>

struct footprint footprint_of(const char *path)
{
    struct stat st;

    if (stat(path, &st) < 0)
        return (struct footprint){0};
    return (struct footprint){(uint64_t)st.st_blocks * 512, (uint64_t)st.st_size};
}

void footprint_add(struct footprint *sum, struct footprint more)
{
    sum->bytes += more.bytes;
    sum->length += more.length;
}

uint64_t room_to_grow(const char *image, uint64_t size)
{
    uint64_t bytes = footprint_of(image).bytes;

    return size > bytes ? size - bytes : 0;
}

bool room_device(const char *path, dev_t *device)
{
    g_autofree char *directory = g_path_get_dirname(path);
    struct stat st;

    if (stat(directory, &st) < 0)
        return false;
    *device = st.st_dev;
    return true;
}

/* ---- rates ------------------------------------------------------------------------------------------ */

static double per_second(double bytes, const struct room_sample *from, const struct room_sample *to)
{
    return bytes * G_USEC_PER_SEC / (double)(to->time - from->time);
}

/* Over the samples that are kept. */
void room_take_sample(struct room *room, uint64_t growing, uint64_t ours, uint64_t free)
{
    struct room_sample now = {.time = g_get_monotonic_time(), .growing = growing, .ours = ours, .free = free};
    const struct room_sample *oldest =
        &room->samples[room->count < ROOM_SAMPLES ? 0 : room->count % ROOM_SAMPLES];

    if (room->count == 0)
        room->rate = room->growth = -1;
    if (room->count > 0 && now.time > oldest->time) {
        double taken = (double)oldest->free - (double)free - ((double)ours - (double)oldest->ours);

        room->growth = MAX(per_second((double)growing - (double)oldest->growing, oldest, &now), 0);
        room->rate = room->growth + MAX(per_second(taken, oldest, &now), 0);
    }
    room->samples[room->count++ % ROOM_SAMPLES] = now;
}

uint64_t room_last_free(const struct room *room)
{
    return room->count ? room->samples[(room->count - 1) % ROOM_SAMPLES].free : 0;
}

double room_known(double rate)
{
    return MAX(rate, 0);
}

/* ---- the source ------------------------------------------------------------------------------------- */

static bool source_is_full(const char *directory, const struct room *room, const struct room_need *need,
                           uint64_t free, GError **error)
{
    g_autofree char *left = units_format_size(free), *overlays = units_format_size(need->overlays);
    g_autofree char *commit = units_format_size(need->commit);
    g_autofree char *rate = units_format_rate(room_known(room->rate));

    return blockmig_fail(
        error, BLOCKMIG_ERROR_CANCELLED,
        "%s: only %s are free: the machine's overlays (%s, %s more) may need %s to be rolled back", directory,
        left, overlays, rate, commit);
}

bool room_for_rollback(struct room *room, const char *directory, const struct room_need *need, uint64_t ours,
                       double *spare, GError **error)
{
    double time = (double)need->overlays / ROOM_COMMIT_RATE + ROOM_GRACE;
    struct space_report report = {0};

    *spare = HUGE_VAL;
    if (!space_check(directory, 0, 0, &report, NULL))
        return true;
    room_take_sample(room, need->overlays, ours, report.available);
    *spare = (double)report.available - (double)need->commit - room_known(room->rate) * time -
             (double)ROOM_RESERVE;
    return *spare >= 0 || source_is_full(directory, room, need, report.available, error);
}
