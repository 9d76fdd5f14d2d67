/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Which images a copy will write: their names, formats, options and what they will record as backing. */
#include "blockmig/migrate/target.h"

#include "blockmig/migrate/cold.h"
#include "blockmig/migrate/metadata.h"
#include "blockmig/storage/device.h"
#include "blockmig/storage/file.h"
#include "blockmig/storage/names.h"
#include "blockmig/storage/uri.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

/* A link to a file stands for that file, where the space was meant to be used.  A link to a device is kept:
 * its name outlasts a reboot, the number of the device need not. */
static char *resolve_file(const char *path, GError **error)
{
    g_autofree char *real = realpath(path, NULL);

    if (real)
        return g_strdup(real);
    blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s: %s", path, g_strerror(errno));
    return NULL;
}

char *target_path(const char *target, const char *source, bool *device, GError **error)
{
    g_autofree char *name = storage_base_name(source);
    g_autofree char *joined = NULL;
    g_autofree char *directory = NULL;
    g_autofree char *base = NULL;
    g_autofree char *real = NULL;
    struct stat st;

    *device = false;
    if (storage_name_is_uri(target)) {
        blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                      "%s: only files, directories and block devices of this host can be written", target);
        return NULL;
    }
    if (stat(target, &st) == 0 && S_ISDIR(st.st_mode))
        joined = g_build_filename(target, name, NULL);
    else if (g_str_has_suffix(target, "/")) {
        blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s: there is no such directory", target);
        return NULL;
    } else
        joined = g_canonicalize_filename(target, NULL);
    directory = g_path_get_dirname(joined);
    base = g_path_get_basename(joined);
    real = realpath(directory, NULL);
    if (!real) {
        blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s: directory %s: %s", target, directory,
                      g_strerror(errno));
        return NULL;
    }
    if (stat(joined, &st) < 0) {
        if (errno == ENOENT && !g_file_test(joined, G_FILE_TEST_IS_SYMLINK))
            return g_build_filename(real, base, NULL);
        blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s: %s", joined,
                      errno == ENOENT ? "a symbolic link to nothing" : g_strerror(errno));
        return NULL;
    }
    *device = S_ISBLK(st.st_mode);
    if (!*device && !S_ISREG(st.st_mode)) {
        blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s is neither a regular file nor a block device",
                      joined);
        return NULL;
    }
    return *device ? g_build_filename(real, base, NULL) : resolve_file(joined, error);
}

char *target_backing_name(const char *image, const char *backing)
{
    g_autofree char *here = g_path_get_dirname(image);
    g_autofree char *there = g_path_get_dirname(backing);

    g_autofree char *name = g_path_get_basename(backing);

    if (strcmp(here, there) != 0)
        return g_strdup(backing);
    return strchr(name, ':') ? g_strconcat("./", name, NULL) : g_steal_pointer(&name);
}

bool target_name_below(const char *image, const char *backing, char **name, GError **error)
{
    *name = target_backing_name(image, backing);
    return !storage_name_is_uri(*name) ||
           blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                         "%s cannot stand on %s: what is on a server can be named only by an image beside it",
                         image, backing);
}

char *target_scratch_stem(const char *scratch, const char *image)
{
    g_autofree char *name = NULL;

    if (storage_name_is_uri(image)) {
        g_autofree char *base = storage_base_name(image);
        g_autofree char *digest = g_compute_checksum_for_string(G_CHECKSUM_SHA256, image, -1);

        name = g_strdup_printf("%s-%.8s", base, digest);
    } else {
        name = g_strdup(image + (g_str_has_prefix(image, "/dev/") ? strlen("/dev/") : 1));
    }
    return g_build_filename(scratch, g_strdelimit(name, "/", '-'), NULL);
}

struct described {
    const struct format *format;
    uint64_t size;
    GHashTable *values;
};

static bool go_together(const struct described *described)
{
    const struct image_create_options options = {.size = described->size, .values = described->values};
    g_autoptr(GError) error = NULL;
    uint64_t bytes;

    return image_measure(described->format, &options, 0, &bytes, &error) ||
           !g_error_matches(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE);
}

/* But for what contradicts what was asked for. */
static void inherit(void *opaque, const char *key, const char *value)
{
    struct described *described = opaque;

    for (const struct format_option *option = described->format->options; option && option->name; option++) {
        if (strcmp(option->name, key) != 0 || option->not_inherited ||
            g_hash_table_contains(described->values, key))
            continue;
        g_hash_table_insert(described->values, g_strdup(key), g_strdup(value));
        if (!go_together(described))
            g_hash_table_remove(described->values, key);
    }
}

static GHashTable *choose_options(const char *text, const struct format *format, struct image *source,
                                  GError **error)
{
    struct described described = {.format = format, .size = source->size};

    described.values = format_parse_options(format, text, error);
    if (described.values && source->format == format)
        image_describe(source, inherit, &described);
    return described.values;
}

const char *target_format_wanted(const char *name, const char *path)
{
    return !name && !name_has_files(path) ? format_raw.name : name;
}

bool target_format(const char *name, const char *text, struct image *source, bool backed, bool is_top,
                   const struct format **format, GHashTable **options, GError **error)
{
    bool options_apply;

    *format = source->format;
    if (name && !(*format = format_by_name(name, error)))
        return false;
    if (!format_check_writable(*format, error))
        return false;
    if (backed && !((*format)->flags & FORMAT_BACKING))
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "format %s cannot have a backing file: use --chain=flatten or another -O",
                             (*format)->name);
    options_apply = is_top || (*format)->options == NULL || name != NULL;
    *options = choose_options(options_apply ? text : NULL, *format, source, error);
    return *options != NULL;
}

/* What a layer holds is taken in units of its target: so digests and receipt are those of both. */
static bool take_units(struct copy_unit *unit, struct chain *source, unsigned layer, GError **error)
{
    struct image_create_options options = unit_create_options(unit);
    uint32_t size;

    if (!unit->below)
        return true;
    if (!image_child_unit(unit->format, &options, &size, error))
        return false;
    chain_close(unit->chain);
    unit->chain = chain_view_units(source, layer, size);
    return true;
}

static bool set_format(struct copy_unit *unit, const struct copy_request *request, struct chain *chain,
                       unsigned layer, GError **error)
{
    struct image *source = chain_layer(chain, layer);

    if (!target_format(target_format_wanted(request->target_format, unit->target_path),
                       request->target_options, source, unit->backing_name != NULL, layer == 0, &unit->format,
                       &unit->options, error))
        return false;
    if (unit->backing_name && layer + 2 < chain_depth(chain) &&
        !format_check_grandchild(unit->target_path, unit->format, unit->backing_name,
                                 format_by_name(unit->backing_format, NULL), error))
        return false;
    if (unit->backing_name && unit->format->flags & FORMAT_SAME_SIZE &&
        unit->below->size != unit->chain->size)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "%s: a child of format %s is as large as its parent, but this one has %" PRIu64
                             " bytes and its parent %" PRIu64 ": use --chain=flatten or another -O",
                             unit->source_path, unit->format->name, unit->chain->size, unit->below->size);
    if (request->compressed && !(unit->format->flags & FORMAT_PACKS))
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "format %s cannot hold compressed clusters (--compressed)", unit->format->name);
    return unit_plan_files(unit, error) && take_units(unit, chain, layer, error);
}

static struct copy_unit *unit_new(const struct copy_request *request, struct chain *source, unsigned layer,
                                  unsigned count, char *target_path, bool device)
{
    struct copy_unit *unit = g_new0(struct copy_unit, 1);

    unit->chain = chain_view(source, layer, count, false);
    if (layer + count < chain_depth(source))
        unit->below = chain_view(source, layer + count, chain_depth(source) - layer - count, false);
    unit->layer = request->chain != CHAIN_FLATTEN && chain_depth(source) > 1;
    unit->source_path = g_strdup(g_ptr_array_index(source->paths, layer));
    unit_set_target(unit, target_path, device);
    return unit;
}

static bool add_flat(const struct copy_request *request, struct chain *source, char *path, bool device,
                     GPtrArray *units, GError **error)
{
    struct copy_unit *unit = unit_new(request, source, 0, chain_depth(source), path, device);

    g_ptr_array_add(units, unit);
    return set_format(unit, request, source, 0, error);
}

/* The backing file stays where it is. */
static bool add_shallow(const struct copy_request *request, struct chain *source, char *path, bool device,
                        GPtrArray *units, GError **error)
{
    struct copy_unit *unit = unit_new(request, source, 0, 1, path, device);
    const char *backing = g_ptr_array_index(source->paths, 1);

    g_ptr_array_add(units, unit);
    unit->backing_format = g_strdup(chain_layer(source, 1)->format->name);
    return target_name_below(path, backing, &unit->backing_name, error) &&
           set_format(unit, request, source, 0, error);
}

/* Every layer under its own name beside the top; base first, because an overlay records the format below it.
 */
static bool add_layers(const struct copy_request *request, struct chain *source, const char *path,
                       GPtrArray *units, GError **error)
{
    g_autofree char *directory = g_path_get_dirname(path);

    for (unsigned layer = chain_depth(source); layer-- > 0;) {
        g_autofree char *name = g_path_get_basename(g_ptr_array_index(source->paths, layer));
        char *target = layer == 0 ? g_strdup(path) : g_build_filename(directory, name, NULL);
        struct copy_unit *unit = unit_new(request, source, layer, 1, target, false);

        if (units->len > 0) {
            const struct copy_unit *below = g_ptr_array_index(units, units->len - 1);

            unit->backing_name = target_backing_name(target, below->target_path);
            unit->backing_format = g_strdup(below->format->name);
        }
        g_ptr_array_add(units, unit);
        if (!set_format(unit, request, source, layer, error))
            return false;
    }
    return true;
}

static bool names_are_distinct(GPtrArray *units, GError **error)
{
    g_autoptr(GHashTable) seen = g_hash_table_new(g_str_hash, g_str_equal);

    for (guint i = 0; i < units->len; i++) {
        const struct copy_unit *unit = g_ptr_array_index(units, i);

        for (guint k = 0; k < unit->files->len; k++) {
            const struct unit_file *file = g_ptr_array_index(unit->files, k);

            if (!g_hash_table_add(seen, file->target_path))
                return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                                     "two files of the chain would both become %s", file->target_path);
        }
    }
    return true;
}

static bool same_object(const struct stat *a, const struct stat *b)
{
    if (S_ISBLK(a->st_mode) && S_ISBLK(b->st_mode))
        return a->st_rdev == b->st_rdev; /* a device may have several nodes */
    return a->st_ino == b->st_ino && a->st_dev == b->st_dev;
}

static bool is_another(const char *path, const char *source, GError **error)
{
    struct stat target, layer;

    if (storage_name_is_uri(path) && strcmp(path, source) == 0)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s is what is to be copied", path);
    if (stat(path, &target) < 0 || stat(source, &layer) < 0)
        return true;
    if (same_object(&target, &layer))
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s and %s are the same %s", path, source,
                             S_ISBLK(layer.st_mode) ? "device" : "file");
    return !device_overlaps(&target, &layer) ||
           blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s and %s share storage: one is a part of the other",
                         path, source);
}

bool target_is_another(const struct storage *target, const struct chain *source, GError **error)
{
    for (guint i = 0; i < chain_depth(source); i++)
        if (g_strcmp0(chain_layer(source, i)->storage->identity, target->identity) == 0)
            return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s is what is to be copied", target->name);
    return true;
}

/* Writing an image of the chain would destroy what is being read. */
bool target_is_not_a_source(const char *path, const struct chain *source, GError **error)
{
    for (guint i = 0; i < source->paths->len; i++) {
        const struct image *image = chain_layer(source, i);

        if (!is_another(path, g_ptr_array_index(source->paths, i), error))
            return false;
        for (guint k = 0; k < image->data_files->len; k++)
            if (!is_another(path, image_data_file(image, k)->storage->name, error))
                return false;
    }
    return true;
}

static bool are_not_sources(const struct copy_unit *unit, const struct chain *source, GError **error)
{
    for (guint i = 0; i < unit->files->len; i++) {
        const struct unit_file *file = g_ptr_array_index(unit->files, i);

        if (!target_is_not_a_source(file->target_path, source, error) ||
            !target_is_not_a_source(file->part_path, source, error))
            return false;
    }
    return true;
}

/* A name that promises another format misleads whoever starts a machine from it. */
static void mind_the_name(const struct cold_job *job, const struct copy_unit *unit)
{
    const char *dot = strrchr(unit->name, '.');
    const struct format *promised = dot ? format_by_name(dot + 1, NULL) : NULL;

    if (promised && promised != unit->format)
        job_notice(&job->base, "%s: its name says %s, but it will be %s", unit->target_path, promised->name,
                   unit->format->name);
}

/* A file on a server, or one in a directory there. */
static char *name_to_write(const struct copy_request *request, GError **error)
{
    g_autofree char *base = storage_base_name(request->source);
    struct name_info info;

    if (!name_look(request->target, &info, error))
        return NULL;
    if (info.kind == NAME_DIRECTORY)
        return g_build_filename(request->target, base, NULL);
    if (info.kind == NAME_OTHER || g_str_has_suffix(request->target, "/")) {
        blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s is neither a file nor a directory", request->target);
        return NULL;
    }
    return g_strdup(request->target);
}

/* What a URI names is there already and written in place, as a device is, unless it names a file. */
char *cold_place_to_write(const struct copy_request *request, bool *device, GError **error)
{
    *device = false;
    if (!storage_name_is_uri(request->target))
        return target_path(request->target, request->source, device, error);
    if (name_has_files(request->target))
        return name_to_write(request, error);
    *device = true;
    return g_strdup(request->target);
}

bool cold_choose_targets(struct cold_job *job, GError **error)
{
    const struct copy_request *request = job->request;
    bool keep = request->chain == CHAIN_KEEP && chain_depth(job->source) > 1;
    bool shallow = request->chain == CHAIN_SHALLOW && chain_depth(job->source) > 1;
    bool device, ok;
    g_autofree char *path = cold_place_to_write(request, &device, error);

    if (!path)
        return false;
    if (keep && device)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "%s: a device holds one image: use --chain=flatten", path);
    if (keep)
        ok = add_layers(request, job->source, path, job->units, error);
    else if (shallow)
        ok = add_shallow(request, job->source, g_strdup(path), device, job->units, error);
    else
        ok = add_flat(request, job->source, g_strdup(path), device, job->units, error);
    if (!ok || !names_are_distinct(job->units, error))
        return false;
    for (guint i = 0; i < job->units->len; i++) {
        struct copy_unit *unit = g_ptr_array_index(job->units, i);
        g_autofree char *name = storage_base_name(unit->source_path);

        unit->index = i;
        unit->what = keep ? g_strdup_printf("layer %u of %u: %s", i + 1, job->units->len, name)
                          : g_steal_pointer(&name);
        if (!are_not_sources(unit, job->source, error))
            return false;
        mind_the_name(job, unit);
    }
    return true;
}

void copy_unit_free(struct copy_unit *unit)
{
    chain_close(unit->chain);
    chain_close(unit->below);
    image_close(unit->target);
    checkpoint_clear(&unit->done);
    g_clear_pointer(&unit->options, g_hash_table_unref);
    g_free(unit->what);
    g_free(unit->source_path);
    g_free(unit->source_identity);
    g_ptr_array_unref(unit->files);
    g_free(unit->name);
    g_free(unit->backing_name);
    g_free(unit->backing_format);
    g_free(unit);
}

void target_carry_metadata(const struct job *job, const struct storage *like, const struct storage *to,
                           const char *name)
{
    g_autoptr(GPtrArray) left = NULL;

    if (like->buffered_fd >= 0 && to->buffered_fd >= 0)
        left = metadata_carry(like->buffered_fd, to->buffered_fd);
    for (guint i = 0; left && i < left->len; i++)
        job_notice(job, "%s: not carried over: %s", name, (const char *)g_ptr_array_index(left, i));
}

struct image *target_create(const struct job *job, const char *name, bool there, const struct format *format,
                            const struct image_create_options *options, const struct storage *like,
                            bool *created, GError **error)
{
    g_autoptr(image_t) target = NULL;
    struct storage *storage;

    if (!job_event(job, "intent", error, JOB_CREATES "%s", name))
        return NULL;
    storage = storage_open(name, FILE_WRITE | FILE_MODEST | (there ? 0 : FILE_CREATE), NULL, NULL, error);
    if (!storage)
        return NULL;
    *created = true;
    if (!there)
        target_carry_metadata(job, like, storage, name);
    if (!image_create(storage, format, options, error)) {
        storage_close(storage);
        return NULL;
    }
    target = image_open(storage, format, true, error);
    if (target && target->cluster_size < 4096)
        storage_file_avoid_direct(target->storage);
    return target && (storage_name_is_uri(name) || storage_file_sync_directory(name, error))
               ? g_steal_pointer(&target)
               : NULL;
}
