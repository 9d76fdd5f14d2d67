/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* New images: what they consist of, their descriptor, and their headers and empty tables. */
#include "formats/chain.h"
#include "formats/create-options.h"
#include "formats/vmdk.h"

#include <string.h>

#define DEFAULT_GRAIN "64k"
#define PIECE         (UINT64_C(2047) << 20) /* of a split disk, as VMware cuts it */
#define MAX_SPARSE    (UINT64_C(2) << 40)    /* a sector number in a table has 32 bits */
#define LONGEST_NAME  255

const struct format_option vmdk_options[] = {
    {"subformat",
     "monolithicSparse (default), monolithicFlat, twoGbMaxExtentSparse, twoGbMaxExtentFlat (pieces of "
     "2047 MiB), streamOptimized (compressed)"},
    {"adapter_type", "ide (default), lsilogic, buslogic, legacyESX ..."},
    {"hwversion", "virtual hardware version (default 4)"},
    {"grain_size", "power of two from 512 to 2M (default 64k)"},
    {"zeroed_grain", "on: zeros take no space in deltas, which not every program can read; off (default)"},
    {NULL, NULL},
};

struct plan {
    const char *subformat;
    bool split, flat, stream, zeroed;
    uint64_t size; /* whole sectors */
    uint64_t piece;
    unsigned pieces;
    uint64_t grain;
    const char *adapter, *hwversion;
    const struct image_create_options *options;
};

static const struct {
    const char *name;
    bool split, flat, stream;
} subformats[] = {
    {"monolithicSparse", false, false, false},    {"monolithicFlat", false, true, false},
    {"twoGbMaxExtentSparse", true, false, false}, {"twoGbMaxExtentFlat", true, true, false},
    {"streamOptimized", false, false, true},
};

bool vmdk_is_writable_type(const char *create_type)
{
    for (size_t i = 0; i < G_N_ELEMENTS(subformats); i++)
        if (g_ascii_strcasecmp(subformats[i].name, create_type) == 0)
            return true;
    return false;
}

static bool usage(const char *key, const char *value, const char *allowed, GError **error)
{
    return create_option_refuse("vmdk", key, value, allowed, error);
}

static bool parse_subformat(struct plan *plan, GError **error)
{
    const char *names[G_N_ELEMENTS(subformats) + 1] = {NULL};
    int chosen;

    for (size_t i = 0; i < G_N_ELEMENTS(subformats); i++)
        names[i] = subformats[i].name;
    chosen = create_option_choose("vmdk", plan->options, "subformat", "monolithicSparse", names, error);
    if (chosen < 0)
        return false;
    plan->subformat = subformats[chosen].name;
    plan->split = subformats[chosen].split;
    plan->flat = subformats[chosen].flat;
    plan->stream = subformats[chosen].stream;
    return true;
}

static bool parse_zeroed(struct plan *plan, GError **error)
{
    static const char *const names[] = {"off", "on", NULL};
    int chosen = create_option_choose("vmdk", plan->options, "zeroed_grain", "off", names, error);

    plan->zeroed = chosen == 1;
    return chosen >= 0;
}

static bool parse_rest(struct plan *plan, GError **error)
{
    const char *p;

    plan->adapter = create_option(plan->options, "adapter_type", "ide");
    for (p = plan->adapter; g_ascii_isalnum(*p) && p - plan->adapter < 32; p++)
        continue;
    if (p == plan->adapter || *p)
        return usage("adapter_type", plan->adapter, "a word like ide or lsilogic", error);
    plan->hwversion = create_option(plan->options, "hwversion", "4");
    for (p = plan->hwversion; g_ascii_isdigit(*p) && p - plan->hwversion < 4; p++)
        continue;
    return (p > plan->hwversion && *p == '\0') || usage("hwversion", plan->hwversion, "a number", error);
}

static bool check_plan(const struct plan *plan, GError **error)
{
    uint64_t sparse = plan->flat || plan->split ? 0 : plan->size;

    if (plan->size == 0)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "vmdk: a disk without a sector cannot be written");
    if (plan->size > VMDK_MAX_SIZE || sparse > MAX_SPARSE || plan->pieces > VMDK_MAX_EXTENTS)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "vmdk: a disk of %" G_GUINT64_FORMAT " bytes is too large for subformat %s",
                             plan->options->size, plan->subformat);
    return !plan->options->backing_name || (!plan->flat && !plan->stream) ||
           blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "vmdk: subformat %s cannot have a parent",
                         plan->subformat);
}

static bool make_plan(const struct image_create_options *options, struct plan *plan, GError **error)
{
    *plan = (struct plan){.options = options};
    if (!parse_subformat(plan, error) || !parse_zeroed(plan, error) || !parse_rest(plan, error) ||
        !create_option_size("vmdk", options, "grain_size", DEFAULT_GRAIN, VMDK_SECTOR, VMDK_MAX_GRAIN,
                            &plan->grain, error))
        return false;
    plan->size = round_up(MIN(options->size, VMDK_MAX_SIZE + 1), VMDK_SECTOR);
    plan->piece = plan->split ? PIECE - PIECE % plan->grain : plan->size;
    plan->pieces = plan->size ? MIN(divide_up(plan->size, plan->piece), VMDK_MAX_EXTENTS + 1) : 0;
    return check_plan(plan, error);
}

static uint64_t piece_size(const struct plan *plan, unsigned index)
{
    return MIN(plan->piece, plan->size - index * plan->piece);
}

/* ---- sparse extents ----------------------------------------------------------------------------- */

/* Where everything lies in a sparse extent of `size` bytes; `text`: with a descriptor in it. */
static struct vmdk_header lay_out(const struct plan *plan, uint64_t size, bool text)
{
    struct vmdk_header header = {.version = plan->stream   ? 3
                                            : plan->zeroed ? 2
                                                           : 1,
                                 .flags = VMDK_NEWLINES,
                                 .capacity = size,
                                 .grain = plan->grain,
                                 .text_offset = text ? VMDK_SECTOR : 0,
                                 .text_size = text ? VMDK_TEXT_SECTORS * VMDK_SECTOR : 0,
                                 .entries = 512,
                                 .compression = plan->stream};
    uint64_t count = divide_up(size, plan->grain * header.entries);
    uint64_t directory = divide_up(count * 4, VMDK_SECTOR), tables = count * 4; /* sectors */
    uint64_t after = 1 + header.text_size / VMDK_SECTOR;

    if (plan->stream) {
        header.flags |= VMDK_PACKED | VMDK_MARKERS;
        header.gd_sector = VMDK_GD_AT_END;
    } else {
        header.flags |= VMDK_TWO_GDS | (plan->zeroed ? VMDK_ZEROED : 0);
        header.rgd_sector = after;
        header.gd_sector = after + directory + tables;
        after += 2 * (directory + tables);
    }
    header.overhead = round_up(after * VMDK_SECTOR, plan->grain);
    return header;
}

static bool write_directory(struct storage *storage, const struct vmdk_header *header, uint64_t sector,
                            GError **error)
{
    uint64_t count = divide_up(header->capacity, header->grain * header->entries);
    uint64_t directory = divide_up(count * 4, VMDK_SECTOR);
    g_autofree uint8_t *bytes = g_malloc0(directory * VMDK_SECTOR);

    for (uint64_t i = 0; i < count; i++)
        store_le32(bytes + i * 4, sector + directory + i * 4);
    return storage_pwrite(storage, bytes, directory * VMDK_SECTOR, sector * VMDK_SECTOR, error);
}

/* The header comes last: without it there is no image. */
static bool write_sparse(struct storage *storage, const struct vmdk_header *header, const char *text,
                         GError **error)
{
    uint8_t bytes[VMDK_SECTOR];

    if (!storage->growable && storage->size < header->overhead)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "%" G_GUINT64_FORMAT " bytes are too few: tables need %" G_GUINT64_FORMAT,
                             storage->size, header->overhead);
    if (storage->growable && !storage_resize(storage, header->overhead, error))
        return false;
    if (!storage->reads_zero && !storage_zero(storage, 0, header->overhead, true, error))
        return false;
    if (!(header->flags & VMDK_MARKERS) && (!write_directory(storage, header, header->rgd_sector, error) ||
                                            !write_directory(storage, header, header->gd_sector, error)))
        return false;
    if (text && !storage_pwrite(storage, text, strlen(text), header->text_offset, error))
        return false;
    vmdk_header_write(header, bytes);
    return storage_flush(storage, error) && storage_pwrite(storage, bytes, sizeof bytes, 0, error) &&
           storage_flush(storage, error);
}

/* ---- names -------------------------------------------------------------------------------------- */

static char *stem(const char *name)
{
    size_t length = strlen(name);

    if (length > 5 && g_ascii_strcasecmp(name + length - 5, ".vmdk") == 0)
        length -= 5;
    return g_strndup(name, length);
}

static char *piece_name(const struct plan *plan, unsigned index)
{
    g_autofree char *base = stem(plan->options->name);

    if (!plan->split)
        return g_strdup_printf("%s-flat.vmdk", base);
    return g_strdup_printf("%s-%c%03u.vmdk", base, plan->flat ? 'f' : 's', index + 1);
}

/* A line ends with the line, a name with the last quote. */
static bool check_name(const char *name, GError **error)
{
    g_autofree char *shown = g_strescape(name, NULL);

    if (strlen(name) > LONGEST_NAME)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "vmdk: the file name \"%s\" would be too long",
                             shown);
    for (const char *p = name; *p; p++)
        if (*p == '"' || g_ascii_iscntrl(*p))
            return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                                 "vmdk: the name \"%s\" cannot stand in a descriptor", shown);
    return true;
}

bool vmdk_plan_data(const struct image_create_options *options, GPtrArray *files, GError **error)
{
    struct plan plan;

    if (!make_plan(options, &plan, error))
        return false;
    for (unsigned i = 0; (plan.split || plan.flat) && i < plan.pieces; i++) {
        g_autofree char *name = piece_name(&plan, i);
        uint64_t size = piece_size(&plan, i);

        if (!check_name(name, error) || !chain_name_is_plain(name, error))
            return false;
        if (!plan.flat)
            size = lay_out(&plan, size, false).overhead + round_up(size, plan.grain);
        image_add_data_file(files, name, size);
    }
    return true;
}

/* ---- the descriptor ----------------------------------------------------------------------------- */

static void put_parent(GString *text, const struct plan *plan)
{
    const struct image *parent = plan->options->parent;
    const struct vmdk_descriptor *below = parent ? ((struct vmdk *)parent->opaque)->descriptor : NULL;

    g_string_append_printf(text, "parentCID=%08x\n", below ? below->cid : VMDK_NO_PARENT);
    g_string_append_printf(text, "createType=\"%s\"\n", plan->subformat);
    if (plan->options->backing_name)
        g_string_append_printf(text, "parentFileNameHint=\"%s\"\n", plan->options->backing_name);
}

static void put_extents(GString *text, const struct plan *plan)
{
    g_string_append(text, "\n# Extent description\n");
    for (unsigned i = 0; i < plan->pieces; i++) {
        g_autofree char *name =
            plan->split || plan->flat ? piece_name(plan, i) : g_strdup(plan->options->name);

        g_string_append_printf(text, "RW %" G_GUINT64_FORMAT " %s \"%s\"%s\n",
                               piece_size(plan, i) / VMDK_SECTOR, plan->flat ? "FLAT" : "SPARSE",
                               name ? name : "disk.vmdk", plan->flat ? " 0" : "");
    }
}

/* VirtualBox knows parents by these. */
static void put_uuids(GString *text, const struct plan *plan)
{
    const struct image *parent = plan->options->parent;
    const struct vmdk_descriptor *below = parent ? ((struct vmdk *)parent->opaque)->descriptor : NULL;
    g_autofree char *image = g_uuid_string_random(), *modification = g_uuid_string_random();
    static const char none[] = "00000000-0000-0000-0000-000000000000";
    const char *uuid = below ? below->image_uuid : NULL, *modified = below ? below->modification_uuid : NULL;

    g_string_append_printf(text, "ddb.uuid.image = \"%s\"\n", image);
    g_string_append_printf(text, "ddb.uuid.modification = \"%s\"\n", modification);
    g_string_append_printf(text, "ddb.uuid.parent = \"%s\"\n", uuid ? uuid : none);
    g_string_append_printf(text, "ddb.uuid.parentmodification = \"%s\"\n",
                           uuid && modified ? modified : none);
}

static void put_disk(GString *text, const struct plan *plan)
{
    unsigned heads = strcmp(plan->adapter, "ide") == 0 ? 16 : 255;

    g_string_append(text, "\n# The Disk Data Base\n#DDB\n\n");
    g_string_append_printf(text, "ddb.virtualHWVersion = \"%s\"\n", plan->hwversion);
    g_string_append_printf(text, "ddb.geometry.cylinders = \"%" G_GUINT64_FORMAT "\"\n",
                           plan->size / (heads * 63 * VMDK_SECTOR));
    g_string_append_printf(text, "ddb.geometry.heads = \"%u\"\n", heads);
    g_string_append(text, "ddb.geometry.sectors = \"63\"\n");
    g_string_append_printf(text, "ddb.adapterType = \"%s\"\n", plan->adapter);
    put_uuids(text, plan);
}

static bool check_parent(const struct image_create_options *options, GError **error)
{
    if (!options->backing_name)
        return true;
    if (g_strcmp0(options->backing_format, "vmdk") != 0 ||
        (options->parent && options->parent->format != &format_vmdk))
        return blockmig_fail(
            error, BLOCKMIG_ERROR_REFUSED,
            "vmdk: the parent of a VMDK is a VMDK, not %s: no other has the content id that links "
            "them",
            options->backing_format);
    if (strchr(options->backing_name, '\\'))
        return blockmig_fail(
            error, BLOCKMIG_ERROR_REFUSED,
            "vmdk: the name \"%s\" of the parent has a backslash, which VMDK takes for a slash",
            options->backing_name);
    return check_name(options->backing_name, error);
}

static char *write_text(const struct plan *plan, size_t room, GError **error)
{
    GString *text = g_string_new("# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\n");

    g_string_append_printf(text, "CID=%08x\n", vmdk_new_cid());
    put_parent(text, plan);
    put_extents(text, plan);
    put_disk(text, plan);
    if (text->len <= room)
        return g_string_free(text, FALSE);
    g_string_free(text, TRUE);
    blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "vmdk: the descriptor would have more than %zu bytes", room);
    return NULL;
}

/* ---- the callbacks ------------------------------------------------------------------------------ */

static bool write_descriptor(struct storage *storage, const char *text, GError **error)
{
    return (!storage->growable || storage_resize(storage, 0, error)) &&
           storage_pwrite(storage, text, strlen(text), 0, error) && storage_flush(storage, error);
}

/* An empty stream is one with its end: a first flush writes it. */
static bool end_stream(struct storage *storage, const struct vmdk_header *header, GError **error)
{
    struct vmdk_extent extent = {.kind = VMDK_SPARSE,
                                 .storage = storage,
                                 .size = header->capacity,
                                 .header = *header,
                                 .grain = header->grain,
                                 .entries = header->entries,
                                 .entry_size = 4,
                                 .end = header->overhead};
    bool ok;

    extent.table_count = divide_up(header->capacity, header->grain * header->entries);
    extent.gd = g_new0(uint32_t, extent.table_count);
    ok = vmdk_stream_flush(&extent, error);
    vmdk_extent_clear(&extent);
    return ok;
}

bool vmdk_create(struct storage *storage, const struct image_create_options *options, GError **error)
{
    struct vmdk_header header;
    g_autofree char *text = NULL;
    struct plan plan;
    bool files;

    if (!make_plan(options, &plan, error) || !check_parent(options, error) ||
        (options->name && !check_name(options->name, error)))
        return false;
    files = plan.split || plan.flat;
    if (files && !options->name)
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "vmdk: an image of several files needs a name");
    text = write_text(&plan, files ? VMDK_MAX_TEXT : VMDK_TEXT_SECTORS * VMDK_SECTOR, error);
    if (!text)
        return false;
    if (files)
        return write_descriptor(storage, text, error);
    header = lay_out(&plan, plan.size, true);
    return write_sparse(storage, &header, text, error) &&
           (!plan.stream || end_stream(storage, &header, error));
}

bool vmdk_create_data(struct storage *data, const struct image_create_options *options, unsigned index,
                      GError **error)
{
    struct vmdk_header header;
    struct plan plan;

    if (!make_plan(options, &plan, error))
        return false;
    if (plan.flat)
        return storage_resize(data, piece_size(&plan, index), error) && storage_flush(data, error);
    header = lay_out(&plan, piece_size(&plan, index), false);
    return write_sparse(data, &header, NULL, error);
}

/* Of one grain that does not get smaller: blocks of 65535 bytes as they are, each with a head. */
static uint64_t stored_record(uint64_t grain)
{
    return round_up(VMDK_RECORD + grain + grain / 1000 + 64, VMDK_SECTOR);
}

bool vmdk_child_unit(const struct image_create_options *options, uint32_t *unit, GError **error)
{
    struct plan plan;

    if (!make_plan(options, &plan, error))
        return false;
    *unit = plan.grain;
    return true;
}

bool vmdk_measure(const struct image_create_options *options, uint64_t data, uint64_t *bytes, GError **error)
{
    struct vmdk_header header;
    uint64_t grains, pieces;
    struct plan plan;

    if (!make_plan(options, &plan, error) || !check_parent(options, error))
        return false;
    if (plan.stream && options->device_size)
        return blockmig_fail(
            error, BLOCKMIG_ERROR_REFUSED,
            "vmdk: a streamOptimized image ends where its file ends: a device cannot hold one");
    if (plan.flat) {
        *bytes = MIN(data, plan.size) + plan.pieces * 512 + VMDK_MAX_TEXT / 256;
        return true;
    }
    header = lay_out(&plan, plan.piece, !plan.split);
    grains = MIN(divide_up(data, plan.grain), divide_up(plan.size, plan.grain));
    pieces = divide_up(plan.size, plan.grain * 512);
    *bytes = plan.stream ? header.overhead + grains * stored_record(plan.grain) + pieces * 2564 + 8192
                         : plan.pieces * header.overhead + grains * plan.grain;
    return true;
}
