/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the keeper does for a move that is parked: the machine goes on writing to its overlays, and nobody
 * else looks at the datastore that they lie on.  When it runs full the move is given up, in time for that to
 * be possible.
 */
#include "blockmig/migrate/keeper.h"
#include "blockmig/migrate/live-watch.h"

#define PERIOD (G_USEC_PER_SEC / 2)

/* As the files say it; the machine is not asked. */
static struct live_disk *rebuild(const struct live_job *job, const struct journal_disk *saved)
{
    struct live_disk *disk = live_rebuild_paths(job, saved);
    g_autofree char *base = live_numbered(disk, 0);
    const struct format *format = format_by_name(saved->source_format, NULL);

    disk->snapshotted = live_highest_file(disk, &disk->top);
    disk->by_exchange = format && (format->flags & FORMAT_BACKING) && !disk->device;
    disk->base_renamed = g_file_test(base, G_FILE_TEST_EXISTS);
    disk->top += disk->by_exchange; /* the top one has the disk's name */
    return disk;
}

static bool find_disks(struct live_job *job)
{
    g_autoptr(GPtrArray) disks = journal_disk_list(job->base.journal, job->base.record, NULL);

    for (guint i = 0; disks && i < disks->len; i++)
        if (live_is_disk(g_ptr_array_index(disks, i)))
            g_ptr_array_add(job->disks, rebuild(job, g_ptr_array_index(disks, i)));
    return job->disks->len > 0;
}

/* Is it still parked?  Somebody may have gone on with it, or given it up, and parked it anew: then it has
 * another keeper, or none if it has ended. */
static bool is_parked(const struct live_job *job, int64_t since)
{
    g_autoptr(journal_job_t) now = journal_job_load(job->base.journal, job->base.record->id, NULL);

    return now && g_strcmp0(now->result, "parked") == 0 && now->finished == since &&
           journal_exists(journal_directory(job->base.journal));
}

static bool watch(struct live_job *job, struct live_space *space, GError **error)
{
    int64_t since = job->base.record->finished;

    while (is_parked(job, since)) {
        live_space_look_at_sources(job, space);
        if (live_watch_trouble(job)) {
            g_propagate_error(error, live_watch_take_trouble(job));
            return true;
        }
        g_usleep(PERIOD);
    }
    return false;
}

bool parked_watch(struct journal *journal, struct journal_job *record, const struct job_listener *listener,
                  GError **error)
{
    g_autoptr(move_request_t) request = move_request_from_json(record->request, NULL);
    struct live_job job = {.base = {.journal = journal, .record = record, .listener = listener},
                           .scratch = request ? request->scratch : NULL,
                           .watch = live_watch_new(),
                           .disks = g_ptr_array_new_with_free_func((GDestroyNotify)live_disk_free)};
    struct live_space *space = live_space_new();
    bool full = find_disks(&job) && watch(&job, space, error);

    live_space_free(space);
    live_watch_free(job.watch);
    g_ptr_array_unref(job.disks);
    return full;
}
