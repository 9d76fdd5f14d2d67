/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/migrate/commit.h"

#include "blockmig/storage/file.h"
#include "blockmig/storage/image-files.h"
#include "blockmig/storage/names.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <inttypes.h>
#include <string.h>

#define MAP_BATCH 256
#define PIECE     ((size_t)1 << 20)

struct merge {
    const struct commit_request *request;
    const struct job_listener *listener;
    struct commit_report *report;
    GArray *parents;             /* of struct chain_parent: what the user gave */
    size_t below;                /* index of the first of them that is for the parent, not for the overlay */
    const struct format *format; /* of the parent */
    char *identities[2];         /* of the storages of overlay and parent */
    struct chain *overlay;       /* alone, with its holes */
    struct chain *target;        /* the parent, to be written, and what lies below it */
    struct chain *under;         /* what lies below the parent; or NULL */
};

static struct chain *open_chain(const struct merge *merge, const char *path, const struct format *format,
                                struct chain_policy policy, unsigned flags, GError **error)
{
    policy.allowed_roots = merge->request->roots;
    policy.open = storage_file_open_for_chain;
    policy.opaque = &flags;
    return chain_open(path, format, &policy, error);
}

/* Everything is looked at for reading first: which file the parent is, and that it is the parent. */
static bool find_parent(struct merge *merge, GError **error)
{
    const struct commit_request *request = merge->request;
    const struct format *format = request->format ? format_by_name(request->format, error) : NULL;
    g_autoptr(chain_t) chain = NULL;
    const struct image *top;

    if (request->format && !format)
        return false;
    if (storage_name_is_uri(request->overlay))
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s: only files of this host are merged",
                             request->overlay);
    chain = open_chain(merge, request->overlay, format,
                       (struct chain_policy){.parents = (const struct chain_parent *)merge->parents->data,
                                             .parent_count = merge->parents->len},
                       0, error);
    if (!chain)
        return false;
    top = chain_layer(chain, 0);
    if (chain_depth(chain) < 2)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s: there is nothing below it to merge it into",
                             top->name);
    merge->below = merge->parents->len > 0 && (!top->backing_name || chain_takes_parent(top)) ? 1 : 0;
    merge->format = chain_layer(chain, 1)->format;
    for (unsigned i = 0; i < 2; i++)
        merge->identities[i] = g_strdup(chain_layer(chain, i)->storage->identity);
    merge->report->overlay = g_strdup(g_ptr_array_index(chain->paths, 0));
    merge->report->parent = g_strdup(g_ptr_array_index(chain->paths, 1));
    merge->report->overlay_format = top->format->name;
    merge->report->parent_format = merge->format->name;
    merge->report->size = top->size;
    return true;
}

/* Parent and what lies below it; `writable`: the parent. */
static struct chain *open_parent(const struct merge *merge, bool writable, unsigned flags, GError **error)
{
    unsigned count = merge->parents->len - merge->below;
    const struct chain_parent *parents =
        count ? &g_array_index(merge->parents, struct chain_parent, merge->below) : NULL;

    return open_chain(
        merge, merge->report->parent, merge->format,
        (struct chain_policy){.parents = parents, .parent_count = count, .writable_top = writable}, flags,
        error);
}

/* Does the overlay have to be told of its parent's new identity? */
static bool is_told(const struct merge *merge, const struct format *format)
{
    return format == merge->format && format->begin_merge;
}

/* Now with the locks that count, on the same two files. */
static bool open_both(struct merge *merge, GError **error)
{
    const struct format *format = format_by_name(merge->report->overlay_format, error);
    struct image *overlay, *parent;

    if (!format || !(merge->target = open_parent(merge, true, 0, error)) ||
        !(merge->overlay = open_chain(
              merge, merge->report->overlay, format,
              (struct chain_policy){.top_only = true, .data = true, .writable_link = is_told(merge, format)},
              0, error)))
        return false;
    overlay = chain_layer(merge->overlay, 0);
    parent = chain_layer(merge->target, 0);
    if (strcmp(overlay->storage->identity, merge->identities[0]) != 0 ||
        strcmp(parent->storage->identity, merge->identities[1]) != 0)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s or %s was replaced meanwhile", overlay->name,
                             parent->name);
    if (parent->packed_max)
        return blockmig_fail(
            error, BLOCKMIG_ERROR_REFUSED,
            "%s takes data only whole and in order, so nothing can be merged into it: 'blockmig "
            "copy' makes one image of both",
            parent->name);
    if (overlay->size != parent->size)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "%s has %" PRIu64 " bytes, its parent %s %" PRIu64
                             ": 'blockmig copy' makes one image of them",
                             overlay->name, overlay->size, parent->name, parent->size);
    if (!chain_check_writable(merge->target, error))
        return false;
    if (chain_depth(merge->target) > 1)
        merge->under = chain_view(merge->target, 1, chain_depth(merge->target) - 1, false);
    return image_check_parent(overlay, parent, error);
}

/* Calls `each` with every extent that the overlay holds. */
static bool walk(struct merge *merge, bool (*each)(struct merge *, const struct extent *, void *, GError **),
                 void *opaque, GError **error)
{
    g_autofree struct extent *extents = g_new(struct extent, MAP_BATCH);
    uint64_t size = merge->overlay->size;
    size_t count;

    for (uint64_t at = 0; at < size; at = extent_end(&extents[count - 1])) {
        if (!chain_map(merge->overlay, at, size - at, extents, MAP_BATCH, &count, error))
            return false;
        for (size_t i = 0; i < count; i++) {
            if (extents[i].status != EXTENT_HOLE && !each(merge, &extents[i], opaque, error))
                return false;
        }
    }
    return true;
}

static bool count(struct merge *merge, const struct extent *extent, void *opaque, GError **error)
{
    *(extent->status == EXTENT_ZERO ? &merge->report->zeros : &merge->report->data) += extent->length;
    return true;
}

/* What a merge that was killed left counted but unused is given back. */
static bool prepare(struct merge *merge, GError **error)
{
    struct image *parent = chain_layer(merge->target, 0);

    if (!image_begin_merge(parent, chain_layer(merge->overlay, 0), error) || !image_repair(parent, error))
        return false;
    if (parent->cluster_size < 4096)
        image_files_avoid_direct(parent);
    parent->reads_zero = false; /* there is data already: zeros have to be written */
    return true;
}

static void on_progress(void *opaque, const struct copy_counters *counters)
{
    const struct merge *merge = opaque;

    if (merge->listener->progress)
        merge->listener->progress(merge->listener->opaque, "commit", counters);
}

static bool cancelled(void *opaque)
{
    const struct merge *merge = opaque;

    return merge->listener->cancelled && merge->listener->cancelled(merge->listener->opaque);
}

static bool write_parent(struct merge *merge, GError **error)
{
    struct copy_options options = {.read_back = merge->request->verify != VERIFY_NONE,
                                   .patch = true,
                                   .target_backing = merge->under,
                                   .progress = on_progress,
                                   .cancelled = cancelled,
                                   .opaque = merge};
    g_autoptr(throttle_t) throttle = throttle_new(merge->request->bandwidth);
    struct copy_result result = {0};
    bool ok;

    options.throttle = throttle;
    ok = copy_run(merge->overlay, chain_layer(merge->target, 0), &options, &result, error);
    merge->report->counters = result.counters;
    copy_result_clear(&result);
    return ok;
}

static bool compare(struct merge *merge, const struct extent *extent, void *opaque, GError **error)
{
    g_autofree uint8_t *wanted = g_malloc(PIECE), *got = g_malloc(PIECE);

    for (uint64_t at = extent->offset, end = extent_end(extent); at < end; at += PIECE) {
        size_t length = MIN(PIECE, end - at);

        if (!chain_read(merge->overlay, wanted, length, at, error) ||
            !chain_read(opaque, got, length, at, error))
            return false;
        if (memcmp(wanted, got, length) != 0)
            return blockmig_fail(error, BLOCKMIG_ERROR_DIFFERENT,
                                 "%s does not show what was merged into it at bytes %" PRIu64 "+%zu",
                                 merge->report->parent, at, length);
        if (cancelled(merge))
            return blockmig_fail(error, BLOCKMIG_ERROR_CANCELLED, "cancelled");
    }
    return true;
}

/* What was written was read back where it was placed; the finished parent, opened anew, must lead there. */
static bool prove(struct merge *merge, GError **error)
{
    g_autoptr(chain_t) merged = NULL;

    if (merge->request->verify != VERIFY_FULL)
        return true;
    if (merge->listener->phase)
        merge->listener->phase(merge->listener->opaque, "prove", NULL);
    merged = open_parent(merge, false, FILE_NO_LOCK, error);
    return merged && walk(merge, compare, merged, error);
}

static bool delete_overlay(struct merge *merge, GError **error)
{
    if (!merge->request->delete_overlay)
        return true;
    if (g_unlink(merge->report->overlay) < 0)
        return blockmig_set_errno(error, errno, "%s: removing it", merge->report->overlay);
    if (!image_files_remove_data(chain_layer(merge->overlay, 0), error))
        return false;
    merge->report->deleted = true;
    return storage_file_sync_directory(merge->report->overlay, error);
}

/* An overlay that holds nothing changes nothing, so its parent keeps its identity. */
static bool merge_content(struct merge *merge, GError **error)
{
    if (merge->report->data == 0 && merge->report->zeros == 0)
        return true;
    return prepare(merge, error) && write_parent(merge, error) && prove(merge, error);
}

static bool run(struct merge *merge, GError **error)
{
    if (!find_parent(merge, error) ||
        (merge->request->delete_overlay && !name_check_deletable(merge->report->overlay, error)) ||
        !open_both(merge, error) || !walk(merge, count, NULL, error))
        return false;
    if (merge->request->dry_run)
        return true;
    if (merge->listener->phase)
        merge->listener->phase(merge->listener->opaque, "commit", NULL);
    return merge_content(merge, error) && delete_overlay(merge, error);
}

bool commit_run(const struct commit_request *request, const struct job_listener *listener,
                struct commit_report *report, GError **error)
{
    struct merge merge = {.request = request, .listener = listener, .report = report};
    bool ok;

    *report = (struct commit_report){0};
    merge.parents = chain_parents(request->parents);
    ok = run(&merge, error);
    chain_close(merge.overlay);
    chain_close(merge.under);
    chain_close(merge.target);
    g_array_unref(merge.parents);
    g_free(merge.identities[0]);
    g_free(merge.identities[1]);
    return ok;
}

void commit_report_clear(struct commit_report *report)
{
    g_clear_pointer(&report->overlay, g_free);
    g_clear_pointer(&report->parent, g_free);
}
