/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Puts a disk together from what QEMU tells in six places:
 *
 *   query-block               devices, medium, cache, limits
 *   query-blockstats          the chain below each device by node names, also those that QEMU made up
 *   query-named-block-nodes   what each node is
 *   query-fdsets              the descriptors that stand for a file's name
 *   query-block-exports, x-debug-query-block-graph, query-jobs    who else uses them
 *   qom-get                   what the device is, and whether it shares its disk
 *
 * The debug command may be missing some day: then every job counts as using every disk.
 */
#include "blockmig/vm/qemu.h"
#include "formats/error.h"

#include <string.h>
#include <unistd.h>

#define LAYERS_MAX 256u

/* What was asked once for all disks. */
struct survey {
    struct qmp *qmp;
    json_t *blocks, *stats, *nodes, *jobs, *exports, *graph, *fdsets; /* the last three may be NULL */
    GHashTable *by_name; /* node name -> json_t borrowed from `nodes` */
    char *directory;     /* of the QEMU process, for relative names; NULL: not known */
};

static void survey_clear(struct survey *survey)
{
    json_decref(survey->blocks);
    json_decref(survey->stats);
    json_decref(survey->nodes);
    json_decref(survey->jobs);
    json_decref(survey->exports);
    json_decref(survey->graph);
    json_decref(survey->fdsets);
    g_clear_pointer(&survey->by_name, g_hash_table_unref);
    g_free(survey->directory);
}

typedef struct survey survey_t;
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(survey_t, survey_clear)

static char *process_directory(pid_t pid)
{
    g_autofree char *link = g_strdup_printf("/proc/%d/cwd", (int)pid);

    return pid > 0 ? g_file_read_link(link, NULL) : NULL;
}

static bool survey_ask(struct survey *survey, struct qmp *qmp, GError **error)
{
    size_t i;
    json_t *node;

    survey->qmp = qmp;
    if (!(survey->blocks = qmp_command(qmp, "query-block", NULL, QMP_TIMEOUT, error)) ||
        !(survey->stats = qmp_command(qmp, "query-blockstats", NULL, QMP_TIMEOUT, error)) ||
        !(survey->nodes = qmp_command(qmp, "query-named-block-nodes", json_pack("{s:b}", "flat", true),
                                      QMP_TIMEOUT, error)) ||
        !(survey->jobs = qmp_command(qmp, "query-jobs", NULL, QMP_TIMEOUT, error)))
        return false;
    survey->exports = qmp_command(qmp, "query-block-exports", NULL, QMP_TIMEOUT, NULL);
    survey->graph = qmp_command(qmp, "x-debug-query-block-graph", NULL, QMP_TIMEOUT, NULL);
    survey->fdsets = qmp_command(qmp, "query-fdsets", NULL, QMP_TIMEOUT, NULL);
    survey->directory = process_directory(qmp_peer(qmp));
    survey->by_name = g_hash_table_new(g_str_hash, g_str_equal);
    json_array_foreach(survey->nodes, i, node)
    {
        const char *name = member_text(node, "node-name");

        if (name)
            g_hash_table_insert(survey->by_name, (char *)name, node);
    }
    return true;
}

static json_t *node_called(const struct survey *survey, const char *name)
{
    return name ? g_hash_table_lookup(survey->by_name, name) : NULL;
}

bool qemu_is_filter(const char *driver)
{
    static const char *const filters[] = {
        "throttle",   "copy-on-read", "compress",        "preallocate", "copy-before-write",
        "mirror_top", "commit_top",   "snapshot-access", NULL,
    };

    return driver && g_strv_contains(filters, driver);
}

json_t *qemu_find_device(json_t *list, const char *qdev)
{
    size_t i;
    json_t *entry;

    json_array_foreach(list, i, entry)
    {
        if (g_strcmp0(member_text(entry, "qdev"), qdev) == 0)
            return entry;
    }
    return NULL;
}

/* ---- the chain ---- */

/* The file that a protocol node is: its name may be wrapped in json:{} with options, or relative to where
 * QEMU runs.  NULL if it cannot be known. */
static char *file_of(const struct survey *survey, json_t *node)
{
    const char *name = member_text(json_object_get(node, "image"), "filename");
    g_autoptr(json_t) options = NULL;

    if (name && g_str_has_prefix(name, "json:")) {
        options = json_loads(name + strlen("json:"), JSON_REJECT_DUPLICATES, NULL);
        name = member_text(options, "filename");
    }
    if (!name)
        return NULL;
    if (g_str_has_prefix(name, "/dev/fdset/"))
        return qemu_fdset_file(survey->fdsets, name, qmp_peer(survey->qmp));
    if (g_path_is_absolute(name))
        return g_strdup(name);
    if (g_str_has_prefix(name, "file:"))
        name += strlen("file:");
    return survey->directory ? g_canonicalize_filename(name, survey->directory) : NULL;
}

static bool is_file_protocol(const char *driver)
{
    return g_strcmp0(driver, "file") == 0 || g_strcmp0(driver, "host_device") == 0 ||
           g_strcmp0(driver, "host_cdrom") == 0;
}

static bool is_network_protocol(const char *driver)
{
    return g_strcmp0(driver, "nbd") == 0 || g_strcmp0(driver, "iscsi") == 0;
}

static bool is_protocol(const char *driver)
{
    return is_file_protocol(driver) || is_network_protocol(driver);
}

static char *uri_of(json_t *node)
{
    const char *name = member_text(json_object_get(node, "image"), "filename");

    return name ? qemu_uri_of(name) : NULL;
}

static void add_bitmaps(struct vm_disk *disk, json_t *node)
{
    size_t i;
    json_t *entry;

    json_array_foreach(json_object_get(node, "dirty-bitmaps"), i, entry)
    {
        struct vm_bitmap *bitmap = g_new0(struct vm_bitmap, 1);

        bitmap->node = g_strdup(member_text(node, "node-name"));
        bitmap->name = g_strdup(member_text(entry, "name"));
        bitmap->persistent = member_flag(entry, "persistent");
        bitmap->busy = member_flag(entry, "busy");
        bitmap->recording = member_flag(entry, "recording");
        g_ptr_array_add(disk->bitmaps, bitmap);
    }
}

/* A layer from its entry in the statistics, whose "parent" is the node with its data. */
static void add_layer(const struct survey *survey, struct vm_disk *disk, json_t *stats, json_t *node)
{
    struct vm_layer *layer = g_new0(struct vm_layer, 1);
    json_t *image = json_object_get(node, "image");
    json_t *protocol = node_called(survey, member_text(json_object_get(stats, "parent"), "node-name"));
    const char *driver = member_text(node, "drv");

    /* A device may stand on a protocol node directly: that is a raw image. */
    if (!protocol)
        protocol = node;
    layer->node = g_strdup(member_text(node, "node-name"));
    layer->format = g_strdup(protocol == node && is_protocol(driver) ? "raw" : driver);
    layer->protocol = g_strdup(member_text(protocol, "drv"));
    layer->protocol_node = g_strdup(member_text(protocol, "node-name"));
    layer->filename = is_file_protocol(layer->protocol)      ? file_of(survey, protocol)
                      : is_network_protocol(layer->protocol) ? uri_of(protocol)
                                                             : NULL;
    layer->virtual_size = member_size(image, "virtual-size");
    layer->allocated = member_size(json_object_get(protocol, "image"), "actual-size");
    layer->read_only = member_flag(node, "ro");
    disk->encrypted |= member_flag(node, "encrypted") || g_strcmp0(driver, "luks") == 0 ||
                       g_strcmp0(layer->protocol, "luks") == 0;
    add_bitmaps(disk, node);
    g_ptr_array_add(disk->layers, layer);
}

static bool add_layers(const struct survey *survey, struct vm_disk *disk, GError **error)
{
    json_t *stats = qemu_find_device(survey->stats, disk->qdev);
    unsigned depth = 0;

    for (; stats; stats = json_object_get(stats, "backing")) {
        json_t *node = node_called(survey, member_text(stats, "node-name"));
        const char *driver = member_text(node, "drv");

        if (!node)
            break;
        if (++depth > LAYERS_MAX) {
            g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED, "disk %s has more than %u layers",
                        disk->qdev, LAYERS_MAX);
            return false;
        }
        if (qemu_is_filter(driver))
            g_ptr_array_add(disk->filters, g_strdup(driver));
        else
            add_layer(survey, disk, stats, node);
    }
    if (disk->layers->len > 0) {
        const struct vm_layer *top = disk->layers->pdata[0];

        disk->node = g_strdup(top->node);
        disk->virtual_size = top->virtual_size;
    }
    return true;
}

/* ---- who else uses its nodes ---- */

static bool uses_node(const struct vm_disk *disk, const char *node)
{
    for (guint i = 0; i < disk->layers->len; i++) {
        const struct vm_layer *layer = disk->layers->pdata[i];

        if (g_strcmp0(layer->node, node) == 0 || g_strcmp0(layer->protocol_node, node) == 0)
            return true;
    }
    return g_strcmp0(disk->root, node) == 0;
}

/* Of the graph's node with this id. */
static const char *graph_name(json_t *graph, json_int_t id, const char *type)
{
    size_t i;
    json_t *node;

    json_array_foreach(json_object_get(graph, "nodes"), i, node)
    {
        if (json_integer_value(json_object_get(node, "id")) == id &&
            (!type || g_strcmp0(member_text(node, "type"), type) == 0))
            return member_text(node, "name");
    }
    return NULL;
}

static bool job_uses_disk(json_t *graph, const char *job, const struct vm_disk *disk)
{
    size_t i;
    json_t *edge;

    json_array_foreach(json_object_get(graph, "edges"), i, edge)
    {
        json_int_t parent = json_integer_value(json_object_get(edge, "parent"));
        json_int_t child = json_integer_value(json_object_get(edge, "child"));

        if (g_strcmp0(graph_name(graph, parent, "block-job"), job) == 0 &&
            uses_node(disk, graph_name(graph, child, NULL)))
            return true;
    }
    return false;
}

static void add_users(const struct survey *survey, struct vm_disk *disk)
{
    size_t i;
    json_t *entry;

    json_array_foreach(survey->jobs, i, entry)
    {
        const char *id = member_text(entry, "id");

        if (id && (!survey->graph || job_uses_disk(survey->graph, id, disk)))
            g_ptr_array_add(disk->jobs, g_strdup(id));
    }
    json_array_foreach(survey->exports, i, entry)
    {
        if (uses_node(disk, member_text(entry, "node-name")))
            g_ptr_array_add(disk->exports, g_strdup(member_text(entry, "id")));
    }
}

/* ---- the device ---- */

/* A property of the device; NULL if it has none of this name. */
static json_t *property(const struct survey *survey, const struct vm_disk *disk, const char *name)
{
    return qmp_command(survey->qmp, "qom-get", json_pack("{s:s, s:s}", "path", disk->qdev, "property", name),
                       QMP_TIMEOUT, NULL);
}

static void add_device(const struct survey *survey, struct vm_disk *disk)
{
    static const char named[] = "/machine/peripheral/";
    g_autoptr(json_t) type = property(survey, disk, "type");
    g_autoptr(json_t) shared = property(survey, disk, "share-rw");

    disk->device_type = g_strdup(json_string_value(type));
    disk->shareable = json_is_true(shared);
    disk->passthrough =
        g_strcmp0(disk->device_type, "scsi-generic") == 0 || g_strcmp0(disk->device_type, "scsi-block") == 0;
    if (g_str_has_prefix(disk->qdev, named)) {
        const char *id = disk->qdev + strlen(named);

        disk->device_id = g_strndup(id, strcspn(id, "/"));
    }
}

static void add_medium(struct vm_disk *disk, json_t *inserted)
{
    json_t *cache = json_object_get(inserted, "cache");

    disk->has_medium = true;
    disk->root = g_strdup(member_text(inserted, "node-name"));
    disk->read_only = member_flag(inserted, "ro");
    disk->encrypted = member_flag(inserted, "encrypted");
    disk->detect_zeroes = g_strdup(member_text(inserted, "detect_zeroes"));
    disk->cache = (struct vm_cache){
        .direct = member_flag(cache, "direct"),
        .no_flush = member_flag(cache, "no-flush"),
        .writeback = member_flag(cache, "writeback"),
    };
    for (const struct vm_limit *limit = vm_limit_table; limit->name; limit++)
        *vm_limit_of(&disk->limits, limit) = member_size(inserted, limit->name);
    disk->limits.group = g_strdup(member_text(inserted, "group"));
}

static void name_disk(struct vm_disk *disk)
{
    bool made_up = !disk->node || disk->node[0] == '#';

    if (disk->device_id && *disk->device_id)
        disk->name = g_strdup(disk->device_id);
    else if (disk->drive)
        disk->name = g_strdup(disk->drive);
    else
        disk->name = g_strdup(made_up ? disk->qdev : disk->node);
}

/* ---- whether it can be moved ---- */

/* A raw node may show a part of its file only (options offset and size); the difference of less than a sector
 * is rounding. */
static bool shows_a_part(const struct survey *survey, const struct vm_layer *layer)
{
    json_t *protocol = node_called(survey, layer->protocol_node);
    uint64_t whole = member_size(json_object_get(protocol, "image"), "virtual-size");

    return strcmp(layer->format, "raw") == 0 && (whole + 511) / 512 != (layer->virtual_size + 511) / 512;
}

static char *layer_refusal(const struct survey *survey, const struct vm_layer *layer)
{
    if (!is_protocol(layer->protocol))
        return g_strdup_printf("node \"%s\" (%s) is neither a file nor a block device, nor on NBD or iSCSI",
                               layer->node, layer->protocol);
    if (!layer->filename)
        return g_strdup_printf("where node \"%s\" (%s) is cannot be told", layer->node, layer->protocol);
    if (shows_a_part(survey, layer))
        return g_strdup_printf("node \"%s\" shows only a part of %s", layer->node, layer->filename);
    return NULL;
}

static char *refusal_of(const struct survey *survey, const struct vm_disk *disk)
{
    if (!disk->has_medium)
        return g_strdup("it has no medium");
    if (disk->read_only)
        return g_strdup("it is read-only");
    if (disk->removable)
        return g_strdup("its medium is removable");
    if (disk->passthrough)
        return g_strdup_printf("%s passes commands through to the device", disk->device_type);
    if (disk->shareable)
        return g_strdup("it is shared with other machines (share-rw=on)");
    if (disk->encrypted)
        return g_strdup("it is encrypted: what the guest writes would stand in clear in an overlay");
    if (disk->layers->len == 0)
        return g_strdup("its nodes cannot be told");
    for (guint i = 0; i < disk->jobs->len; i++)
        return g_strdup_printf("job \"%s\" uses it", (char *)disk->jobs->pdata[i]);
    for (guint i = 0; i < disk->exports->len; i++)
        return g_strdup_printf("it is exported as \"%s\": perhaps a backup runs",
                               (char *)disk->exports->pdata[i]);
    for (guint i = 0; i < disk->filters->len; i++)
        return g_strdup_printf("a \"%s\" filter is in its chain", (char *)disk->filters->pdata[i]);
    for (guint i = 0; i < disk->bitmaps->len; i++) {
        const struct vm_bitmap *bitmap = disk->bitmaps->pdata[i];

        if (bitmap->busy)
            return g_strdup_printf("bitmap \"%s\" of node \"%s\" is in use: a backup runs", bitmap->name,
                                   bitmap->node);
    }
    for (guint i = 0; i < disk->layers->len; i++) {
        char *why = layer_refusal(survey, disk->layers->pdata[i]);

        if (why)
            return why;
    }
    return NULL;
}

static void add_notices(struct vm_disk *disk)
{
    for (guint i = 0; i < disk->bitmaps->len; i++) {
        const struct vm_bitmap *bitmap = disk->bitmaps->pdata[i];

        if (bitmap->name && !bitmap->busy)
            g_ptr_array_add(disk->notices,
                            g_strdup_printf("bitmap \"%s\" stays behind: the next backup must be a full one",
                                            bitmap->name));
    }
    if (disk->cache.no_flush)
        g_ptr_array_add(disk->notices, g_strdup("its cache ignores flushes (cache=unsafe)"));
}

static bool describe_disk(const struct survey *survey, json_t *block, GPtrArray *disks, GError **error)
{
    const char *qdev = member_text(block, "qdev"), *drive = member_text(block, "device");
    json_t *inserted = json_object_get(block, "inserted");
    struct vm_disk *disk;

    /* A drive that no device uses is not a disk of the machine. */
    if (!qdev || !*qdev)
        return true;
    disk = vm_disk_new();
    g_ptr_array_add(disks, disk);
    disk->qdev = g_strdup(qdev);
    disk->drive = drive && *drive ? g_strdup(drive) : NULL;
    disk->removable = member_flag(block, "removable");
    add_device(survey, disk);
    if (inserted) {
        add_medium(disk, inserted);
        if (!add_layers(survey, disk, error))
            return false;
        add_users(survey, disk);
    }
    name_disk(disk);
    disk->refusal = refusal_of(survey, disk);
    add_notices(disk);
    return true;
}

bool qemu_describe(struct vm *vm, struct vm_description *description, GError **error)
{
    g_auto(survey_t) survey = {0};
    size_t i;
    json_t *block;

    if (!vm->ops->status(vm, &description->running, &description->status, error) ||
        !survey_ask(&survey, qemu_of(vm)->qmp, error))
        return false;
    description->pid = qmp_peer(survey.qmp);
    json_array_foreach(survey.blocks, i, block)
    {
        if (!describe_disk(&survey, block, description->disks, error))
            return false;
    }
    return true;
}

static const char *driver_of(json_t *nodes, const char *name)
{
    size_t i;
    json_t *node;

    json_array_foreach(nodes, i, node)
    {
        if (name && g_strcmp0(member_text(node, "node-name"), name) == 0)
            return member_text(node, "drv");
    }
    return NULL;
}

/* The first below the device that is no filter. */
static const char *image_below(json_t *stats, json_t *nodes, const char *qdev)
{
    for (json_t *entry = qemu_find_device(stats, qdev); entry; entry = json_object_get(entry, "backing")) {
        const char *name = member_text(entry, "node-name");
        const char *driver = driver_of(nodes, name);

        if (driver && !qemu_is_filter(driver))
            return name;
    }
    return NULL;
}

/* Two questions at once and not the whole survey: this is asked in the pause. */
bool qemu_active_nodes(struct vm *vm, const char *const *qdevs, unsigned count, char **nodes, GError **error)
{
    static const char *const questions[] = {"query-blockstats", "query-named-block-nodes"};
    struct qmp *qmp = qemu_of(vm)->qmp;
    g_autoptr(json_t) stats = NULL;
    g_autoptr(json_t) named = NULL;
    guint64 first, second;

    if (!qmp_send(qmp, questions[0], NULL, &first, error) ||
        !qmp_send(qmp, questions[1], json_pack("{s:b}", "flat", true), &second, error))
        return false;
    stats = qmp_receive(qmp, questions[0], first, QMP_TIMEOUT, error);
    named = qmp_receive(qmp, questions[1], second, QMP_TIMEOUT, stats ? error : NULL);
    if (!stats || !named)
        return false;
    for (unsigned i = 0; i < count; i++)
        nodes[i] = g_strdup(image_below(stats, named, qdevs[i]));
    return true;
}
