/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Limits on what a machine writes, for as long as the switch needs them.
 *
 * What was there before stands in the journal, in an event of the kind "limits", before anything is changed,
 * so that whoever comes after us can put it back.  The events of a disk, oldest first:
 *
 *   {"disk": 0, "former": {...}, "ours": {...}}    about to be set; there may be several, tighter and tighter
 *   {"disk": 0, "restored": true}                  all of that is over
 *
 * Only limits that are ours are taken away: what somebody else has set meanwhile stays.
 */
#include "blockmig/migrate/live.h"
#include "blockmig/migrate/units.h"

#include <jansson.h>
#include <string.h>

#define LIMITS "limits"

/* ---- limits as text ---- */

/* `qdev`: what the hypervisor calls the group of a disk that was given none. */
static json_t *limits_to_json(const struct vm_limits *limits, const char *qdev)
{
    json_t *object = json_object();

    for (const struct vm_limit *limit = vm_limit_table; limit->name; limit++) {
        uint64_t value = *vm_limit_of((struct vm_limits *)limits, limit);

        if (value)
            json_object_set_new(object, limit->name, json_integer((json_int_t)value));
    }
    if (limits->group || qdev)
        json_object_set_new(object, "group", json_string(limits->group ? limits->group : qdev));
    return object;
}

/* The group is borrowed. */
static struct vm_limits limits_from_json(json_t *object)
{
    struct vm_limits limits = {.group = (char *)json_string_value(json_object_get(object, "group"))};

    for (const struct vm_limit *limit = vm_limit_table; limit->name; limit++)
        *vm_limit_of(&limits, limit) = (uint64_t)json_integer_value(json_object_get(object, limit->name));
    return limits;
}

/* ---- what the journal says ---- */

/* Of one disk, oldest first, without what was restored; a new array of the events. */
static json_t *events_of(struct journal *journal, const struct journal_job *record, unsigned disk,
                         GError **error)
{
    g_autoptr(GPtrArray) events = journal_events(journal, record, error);
    json_t *open = events ? json_array() : NULL;

    for (guint i = 0; events && i < events->len; i++) {
        const struct journal_event *event = g_ptr_array_index(events, i);
        json_t *object;

        if (strcmp(event->kind, LIMITS) != 0 || !(object = json_loads(event->text, 0, NULL)))
            continue;
        if (json_integer_value(json_object_get(object, "disk")) != disk)
            json_decref(object);
        else if (json_is_true(json_object_get(object, "restored"))) {
            json_array_clear(open);
            json_decref(object);
        } else
            json_array_append_new(open, object);
    }
    return open;
}

bool live_is_throttled(struct live_job *job, const struct journal_job *record)
{
    g_autoptr(GPtrArray) disks = journal_disk_list(job->base.journal, record, NULL);
    bool any = false;

    for (guint i = 0; disks && i < disks->len && !any; i++) {
        const struct journal_disk *disk = g_ptr_array_index(disks, i);
        json_t *events = events_of(job->base.journal, record, disk->index, NULL);

        any = json_array_size(events) > 0;
        json_decref(events);
    }
    return any;
}

static bool record_limits(struct live_job *job, unsigned disk, json_t *former, json_t *ours, GError **error)
{
    json_t *event = former ? json_pack("{s:i, s:O, s:O}", "disk", disk, "former", former, "ours", ours)
                           : json_pack("{s:i, s:b}", "disk", disk, "restored", true);
    g_autofree char *text = json_dumps(event, JSON_COMPACT);

    json_decref(event);
    return job_event(&job->base, LIMITS, error, "%s", text);
}

/* ---- setting ---- */

/* The hypervisor allows no limit of writes beside one of reads and writes together; and no burst is let
 * through that a pass does not see. */
static struct vm_limits tightened(struct vm_limits former, uint64_t rate)
{
    struct vm_limits limits = former;

    if (former.bps) {
        limits.bps = MIN(former.bps, rate);
        limits.bps_max = limits.bps_max_length = 0;
    } else {
        limits.bps_wr = former.bps_wr ? MIN(former.bps_wr, rate) : rate;
        limits.bps_wr_max = limits.bps_wr_max_length = 0;
    }
    return limits;
}

static const struct vm_disk *present(const struct vm_description *description, const struct live_disk *disk)
{
    return vm_find_disk(description, disk->vm->qdev, NULL);
}

static bool is_ours(json_t *events, const struct vm_limits *limits)
{
    size_t i;
    json_t *event;

    json_array_foreach(events, i, event)
    {
        struct vm_limits ours = limits_from_json(json_object_get(event, "ours"));

        if (vm_limits_equal(&ours, limits))
            return true;
    }
    return false;
}

static bool limit_disk(struct live_job *job, struct live_disk *disk, const struct vm_disk *now, uint64_t rate,
                       GError **error)
{
    json_t *events = events_of(job->base.journal, job->base.record, disk->index, error);
    json_t *first = json_array_get(events, 0), *former, *ours;
    struct vm_limits limits;
    bool ok;

    if (!events)
        return false;
    /* What somebody else has set meanwhile is what will be put back. */
    former = first && is_ours(events, &now->limits) ? json_incref(json_object_get(first, "former"))
                                                    : limits_to_json(&now->limits, NULL);
    limits = tightened(limits_from_json(former), rate);
    ours = limits_to_json(&limits, disk->vm->qdev);
    ok = (!first || json_equal(json_object_get(first, "former"), former) ||
          record_limits(job, disk->index, NULL, NULL, error)) &&
         record_limits(job, disk->index, former, ours, error) &&
         vm_set_limits(job->vm, disk->vm->qdev, &limits, error);
    json_decref(ours);
    json_decref(former);
    json_decref(events);
    return ok;
}

bool live_throttle(struct live_job *job, uint64_t rate, GError **error)
{
    g_autoptr(vm_description_t) description = vm_describe(job->vm, error);
    g_autofree char *text = units_format_rate((double)rate);

    if (!description)
        return false;
    for (guint i = 0; i < job->disks->len; i++) {
        struct live_disk *disk = live_disk_at(job, i);
        const struct vm_disk *now = present(description, disk);

        if (!now)
            return blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "%s is not a disk of the machine any more",
                                 disk->vm->name);
        if (!limit_disk(job, disk, now, rate / job->disks->len, error))
            return false;
    }
    job->base.report->write_limit = rate;
    live_tell(job, "the machine is limited to writing %s", text);
    return true;
}

/* ---- putting back ---- */

/* `now`: NULL if the machine does not have the disk any more. */
static bool restore(struct live_job *job, struct live_disk *disk, const struct vm_disk *now, json_t *events,
                    GError **error)
{
    struct vm_limits former = limits_from_json(json_object_get(json_array_get(events, 0), "former"));
    bool ok = true;

    if (now && is_ours(events, &now->limits))
        ok = vm_set_limits(job->vm, disk->vm->qdev, &former, error);
    else if (now && !vm_limits_equal(&now->limits, &former))
        job_notice(&job->base, "%s: somebody has changed its limits meanwhile: they stay", disk->vm->name);
    return ok && record_limits(job, disk->index, NULL, NULL, error);
}

bool live_unthrottle(struct live_job *job, GError **error)
{
    g_autoptr(vm_description_t) description = NULL;
    bool ok = true;

    for (guint i = 0; ok && i < job->disks->len; i++) {
        struct live_disk *disk = live_disk_at(job, i);
        json_t *events = events_of(job->base.journal, job->base.record, disk->index, error);

        ok = events != NULL;
        if (json_array_size(events) > 0) {
            ok = (description || (description = vm_describe(job->vm, error))) &&
                 restore(job, disk, present(description, disk), events, error);
        }
        json_decref(events);
    }
    if (!ok)
        g_prefix_error(error, "putting the limits back: ");
    return ok;
}
