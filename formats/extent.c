/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "formats/extent.h"

const char *extent_status_name(enum extent_status status)
{
    static const char *const names[] = {
        [EXTENT_DATA] = "data",
        [EXTENT_ZERO] = "zero",
        [EXTENT_HOLE] = "hole",
        [EXTENT_PACKED] = "packed",
    };

    return status < G_N_ELEMENTS(names) ? names[status] : "unknown";
}

bool extent_sink_add(struct extent_sink *sink, const struct extent *extent)
{
    struct extent *last = sink->count ? &sink->out[sink->count - 1] : NULL;

    if (last && last->status == extent->status && extent->status != EXTENT_PACKED &&
        (extent->status != EXTENT_DATA ||
         (last->storage == sink->storage && last->host_offset + last->length == extent->host_offset))) {
        last->length += extent->length;
        return true;
    }
    if (sink->count == sink->max)
        return false;
    sink->out[sink->count] = *extent;
    if (extent->status == EXTENT_DATA || extent->status == EXTENT_PACKED)
        sink->out[sink->count].storage = sink->storage;
    sink->count++;
    return true;
}

bool extent_sink_end(const struct extent_sink *sink, GError *failure, size_t *count, GError **error)
{
    *count = sink->count;
    if (failure && sink->count == 0) {
        g_propagate_error(error, failure);
        return false;
    }
    g_clear_error(&failure);
    return true;
}
