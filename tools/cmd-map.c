/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* blockmig map: the extents of a chain, streamed: memory does not grow with their number. */
#include "blockmig/migrate/units.h"
#include "blockmig/storage/sandbox.h"
#include "blockmig/storage/uri.h"
#include "formats/error.h"
#include "tools/command.h"
#include "tools/confine.h"
#include "tools/look.h"
#include "tools/output.h"

#include <inttypes.h>

#define BATCH 1024

struct printer {
    bool json;
    uint64_t extents;
    uint64_t bytes[EXTENT_PACKED + 1];
};

static bool has_place(const struct extent *extent)
{
    return extent->status == EXTENT_DATA || extent->status == EXTENT_PACKED;
}

/* One extent went out in two answers of the map? */
static bool continues(const struct extent *last, const struct extent *next)
{
    if (last->status != next->status || last->layer != next->layer)
        return false;
    if (last->status == EXTENT_DATA)
        return last->storage == next->storage && last->host_offset + last->length == next->host_offset;
    if (last->status == EXTENT_PACKED)
        return last->storage == next->storage && last->host_offset == next->host_offset &&
               last->skip + last->length == next->skip;
    return true;
}

static void print_json(struct printer *printer, const struct extent *extent)
{
    printf("%s\n  {\"offset\": %" PRIu64 ", \"length\": %" PRIu64 ", \"status\": \"%s\", \"layer\": %u",
           printer->extents ? "," : "", extent->offset, extent->length, extent_status_name(extent->status),
           extent->layer);
    if (has_place(extent))
        printf(", \"host_offset\": %" PRIu64, extent->host_offset);
    if (extent->status == EXTENT_PACKED)
        printf(", \"packed_length\": %" PRIu32, extent->packed_length);
    putchar('}');
}

/* A million rows in a good second: one call each. */
static void print_row(const struct extent *extent)
{
    const char *status = extent_status_name(extent->status);

    if (has_place(extent))
        printf("%16" PRIu64 " %16" PRIu64 "  %-6s  %5u %16" PRIu64 "\n", extent->offset, extent->length,
               status, extent->layer, extent->host_offset);
    else
        printf("%16" PRIu64 " %16" PRIu64 "  %-6s  %5u\n", extent->offset, extent->length, status,
               extent->layer);
}

static void print_extent(struct printer *printer, const struct extent *extent)
{
    if (printer->json)
        print_json(printer, extent);
    else
        print_row(extent);
    printer->extents++;
    printer->bytes[extent->status] += extent->length;
}

static bool print_all(struct chain *chain, struct printer *printer, GError **error)
{
    g_autofree struct extent *batch = g_new(struct extent, BATCH);
    struct extent pending = {.length = 0};
    for (uint64_t offset = 0; offset < chain->size;) {
        size_t count;
        if (!chain_map(chain, offset, chain->size - offset, batch, BATCH, &count, error))
            return false;
        for (size_t i = 0; i < count; i++) {
            if (pending.length && continues(&pending, &batch[i])) {
                pending.length += batch[i].length;
                continue;
            }
            if (pending.length)
                print_extent(printer, &pending);
            pending = batch[i];
        }
        offset = extent_end(&batch[count - 1]);
    }
    if (pending.length)
        print_extent(printer, &pending);
    return true;
}

/* Quoted.  The caller's. */
static char *json_text(const char *text)
{
    json_t *string = output_json_string(text);
    char *quoted = json_dumps(string, JSON_ENCODE_ANY);

    json_decref(string);
    return quoted;
}

static void print_json_head(const struct chain *chain)
{
    json_t *layers = json_array();
    for (unsigned i = 0; i < chain_depth(chain); i++)
        json_array_append_new(layers,
                              json_pack("{s:o, s:s}", "path", output_json_string(chain->paths->pdata[i]),
                                        "format", chain_layer(chain, i)->format->name));
    g_autofree char *text = json_dumps(layers, 0);
    json_decref(layers);
    output_json_begun();
    printf("{\"schema\": 1, \"command\": \"map\", \"virtual_size\": %" PRIu64
           ",\n \"sandbox\": \"%s\",\n \"chain\": %s,\n \"extents\": [",
           chain->size, sandbox_name(), text);
}

static void print_totals(const struct printer *printer)
{
    printf("\n%" PRIu64 " extents", printer->extents);
    for (unsigned status = 0; status < G_N_ELEMENTS(printer->bytes); status++) {
        if (!printer->bytes[status])
            continue;
        g_autofree char *size = units_format_size_exact(printer->bytes[status]);
        printf("; %s: %s", extent_status_name(status), size);
    }
    putchar('\n');
}

/* `failure`: what ended the list too early, or NULL. */
static void print_tail(const GError *failure)
{
    if (!failure) {
        printf("\n ],\n \"complete\": true}\n");
        return;
    }
    g_autofree char *text = json_text(failure->message);
    printf("\n ],\n \"complete\": false,\n \"error\": %s}\n", text);
}

static int map_image(const struct options *options, GError **error)
{
    g_autoptr(chain_t) chain = look_open(options, options->arguments->pdata[0], options->format,
                                         options->force_share ? FILE_NO_LOCK : 0, LOOK_CHAIN, NULL, error);
    if (!chain)
        return 0;
    struct printer printer = {.json = options->json};
    if (printer.json)
        print_json_head(chain);
    else
        printf("%16s %16s  %-6s  %5s %16s\n", "offset", "length", "status", "layer", "host offset");
    bool whole = print_all(chain, &printer, error);
    if (printer.json)
        print_tail(whole ? NULL : *error);
    else if (whole && !options->quiet)
        print_totals(&printer);
    return 0;
}

/* ---- bitmaps ------------------------------------------------------------------------------------ */

struct dirty_printer {
    const struct options *options;
    bool begun;
    uint64_t ranges, bytes;
};

static void print_dirty_head(void *opaque, uint64_t size)
{
    struct dirty_printer *printer = opaque;

    printer->begun = true;
    if (!printer->options->json) {
        printf("%16s %16s  %s\n", "offset", "length", "status");
        return;
    }
    g_autofree char *name = json_text(printer->options->bitmap);
    output_json_begun();
    printf("{\"schema\": 1, \"command\": \"map\", \"virtual_size\": %" PRIu64
           ",\n \"sandbox\": \"%s\",\n \"bitmap\": %s,\n \"extents\": [",
           size, sandbox_name(), name);
}

static void print_dirty(void *opaque, uint64_t offset, uint64_t length)
{
    struct dirty_printer *printer = opaque;

    if (printer->options->json)
        printf("%s\n  {\"offset\": %" PRIu64 ", \"length\": %" PRIu64 ", \"status\": \"dirty\"}",
               printer->ranges ? "," : "", offset, length);
    else
        printf("%16" PRIu64 " %16" PRIu64 "  dirty\n", offset, length);
    printer->ranges++;
    printer->bytes += length;
}

static void print_dirty_totals(const struct dirty_printer *printer)
{
    g_autofree char *size = units_format_size_exact(printer->bytes);

    printf("\n%" PRIu64 " extents; dirty: %s\n", printer->ranges, size);
}

/* The bits are those of the export, whatever image is in it. */
static bool is_about_an_image(const struct options *options)
{
    return options->format || options->secret || options->parents->pdata[0] || options->roots->pdata[0] ||
           options->force_share;
}

static int map_bitmap(const struct options *options, GError **error)
{
    struct dirty_printer printer = {.options = options};
    struct bitmap_reader reader = {print_dirty_head, print_dirty, &printer};
    bool whole = storage_read_bitmap(options->arguments->pdata[0], options->bitmap, &reader, error);

    if (printer.begun && options->json)
        print_tail(whole ? NULL : *error);
    else if (whole && !options->quiet)
        print_dirty_totals(&printer);
    return 0;
}

int cmd_map(const struct options *options, GError **error)
{
    if (!command_arguments(options, 1, 1, error))
        return 0;
    if (options->bitmap && is_about_an_image(options)) {
        g_set_error_literal(
            error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE,
            "map: --bitmap is about the bytes of an export: options about images do not apply");
        return 0;
    }
    if (!confine_look(options, error))
        return 0;
    return options->bitmap ? map_bitmap(options, error) : map_image(options, error);
}
