/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Chains.  The layers are opened from the top down, each one where the one above says, under a policy that
 * trusts no image: a name inside an image is looked up only beneath the allowed roots, and its format is
 * believed only if the image states it.
 */
#include "formats/chain.h"

#include <string.h>

/* What is known while the layers are opened. */
struct opening {
    struct chain *chain;
    const struct chain_policy *policy;
    GPtrArray *roots;     /* of char *, NULL-terminated: where names inside images may lead */
    size_t parents_taken; /* of policy->parents */
};

bool chain_name_is_plain(const char *name, GError **error)
{
    if (name[0] == '\0')
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "the name is empty");
    for (const char *p = name; *p; p++) {
        if (g_ascii_iscntrl(*p)) {
            g_autofree char *shown = g_strescape(name, NULL);

            return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                                 "the name \"%s\" contains a control character", shown);
        }
    }
    if (g_ascii_strncasecmp(name, "json:", 5) == 0)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "a json: description is not accepted as a file name");
    if (name[strcspn(name, ":/")] == ':')
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "\"%s\" names a protocol, not a file", name);
    return true;
}

static struct chain *chain_new(void)
{
    struct chain *chain = g_new0(struct chain, 1);

    chain->layers = g_ptr_array_new_with_free_func((GDestroyNotify)image_close);
    chain->paths = g_ptr_array_new_with_free_func(g_free);
    chain->holes = g_array_new(FALSE, TRUE, sizeof(struct extent));
    return chain;
}

static void push(struct chain *chain, struct image *image, char *path)
{
    g_ptr_array_add(chain->layers, image);
    g_ptr_array_add(chain->paths, path);
    g_array_set_size(chain->holes, chain->layers->len);
}

struct chain *chain_new_single(struct image *image, bool keep_holes)
{
    struct chain *chain = chain_new();

    chain_append(chain, image);
    chain->size = image->size;
    chain->keep_holes = keep_holes;
    return chain;
}

void chain_append(struct chain *chain, struct image *image)
{
    push(chain, image, g_strdup(image->storage->name));
}

struct chain *chain_view(const struct chain *chain, unsigned first, unsigned count, bool keep_holes)
{
    struct chain *view = chain_new();

    g_ptr_array_set_free_func(view->layers, NULL); /* they stay the chain's */
    for (unsigned i = first; i < first + count; i++)
        push(view, chain_layer(chain, i), g_strdup(g_ptr_array_index(chain->paths, i)));
    view->size = chain_layer(view, 0)->size;
    view->keep_holes = keep_holes;
    return view;
}

struct chain *chain_view_units(const struct chain *chain, unsigned first, uint32_t unit)
{
    struct chain *view = chain_view(chain, first, chain_depth(chain) - first, true);

    view->unit = unit;
    return view;
}

void chain_close(struct chain *chain)
{
    if (!chain)
        return;
    g_ptr_array_unref(chain->layers);
    g_ptr_array_unref(chain->paths);
    g_array_unref(chain->holes);
    g_free(chain);
}

struct image *chain_layer(const struct chain *chain, unsigned layer)
{
    return g_ptr_array_index(chain->layers, layer);
}

unsigned chain_depth(const struct chain *chain)
{
    return chain->layers->len;
}

/* "a -> b -> a": every layer from the one that comes again. */
static bool refuse_loop(const struct chain *chain, unsigned from, GError **error)
{
    g_autoptr(GString) names = g_string_new(NULL);

    for (unsigned i = from; i < chain->paths->len; i++)
        g_string_append_printf(names, "%s -> ", (const char *)g_ptr_array_index(chain->paths, i));
    return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "the chain is a loop: %s%s", names->str,
                         (const char *)g_ptr_array_index(chain->paths, from));
}

/* A link, hard or symbolic, gives an object another name but not another identity. */
static bool loop_check(const struct chain *chain, const struct storage *storage, GError **error)
{
    for (unsigned i = 0; i < chain_depth(chain); i++) {
        const struct image *image = chain_layer(chain, i);

        if (strcmp(image->storage->identity, storage->identity) == 0)
            return refuse_loop(chain, i, error);
        for (guint k = 0; k < image->data_files->len; k++) {
            const struct storage *data = image_data_file(image, k)->storage;

            if (data && strcmp(data->identity, storage->identity) == 0)
                return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s is already a data file of %s",
                                     storage->name, image->name);
        }
    }
    return true;
}

/* Before it is opened: a top that is open for writing holds a lock that would hide the reason. */
static bool loop_check_name(const struct chain *chain, const char *path, GError **error)
{
    g_autofree char *canonical = g_canonicalize_filename(path, "/");

    for (unsigned i = 0; i < chain_depth(chain); i++) {
        if (strcmp(g_ptr_array_index(chain->paths, i), canonical) == 0)
            return refuse_loop(chain, i, error);
    }
    return true;
}

static void parent_clear(void *opaque)
{
    struct chain_parent *parent = opaque;

    g_free(parent->path);
    g_free(parent->format);
}

GArray *chain_parents(const char *const *texts)
{
    GArray *parents = g_array_new(FALSE, TRUE, sizeof(struct chain_parent));

    g_array_set_clear_func(parents, parent_clear);
    for (; texts && *texts; texts++) {
        const char *colon = strchr(*texts, ':');
        g_autofree char *name = colon ? g_strndup(*texts, colon - *texts) : NULL;
        bool is_format = name && format_by_name(name, NULL);
        struct chain_parent parent = {.path = g_strdup(is_format ? colon + 1 : *texts),
                                      .format = is_format ? g_steal_pointer(&name) : NULL};

        g_array_append_val(parents, parent);
    }
    return parents;
}

/* The format of a layer that the user named: stated, or probed. */
static const struct format *user_format(struct storage *storage, const struct chain_parent *parent,
                                        GError **error)
{
    const struct format *format =
        parent->format ? format_by_name(parent->format, error) : format_probe(storage, error);

    if (format == &format_raw && !parent->format) {
        blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s: the parent looks raw; if it is, name it as raw:%s",
                      storage->name, parent->path);
        return NULL;
    }
    return format;
}

/* Where a name inside the image `child` leads.  Only `beside` makes it a file on a server, too. */
static char *resolve(const struct opening *opening, const char *name, const char *child, bool beside,
                     GError **error)
{
    const struct chain_policy *policy = opening->policy;
    g_autofree char *directory = g_path_get_dirname(child), *path = NULL;

    if (name[0] == '/')
        return g_strdup(name);
    if (!storage_name_is_uri(child))
        return g_build_filename(directory, name, NULL);
    path = beside && policy->beside ? policy->beside(child, name) : NULL;
    if (path)
        return g_steal_pointer(&path);
    blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                  "\"%s\" is a file beside an image that lies in no directory of this host; give it with "
                  "--parent",
                  name);
    return NULL;
}

/* The roots are directories of this host; what lies beside an image on a server is as near as the image. */
static struct storage *open_resolved(const struct opening *opening, const char *path,
                                     const char *const *roots, bool writable, char **real, GError **error)
{
    const struct chain_policy *policy = opening->policy;

    return policy->open(policy->opaque, path, storage_name_is_uri(path) ? NULL : roots, writable, real,
                        error);
}

/* Where the data files of the last layer may lie, NULL-terminated.  Unlike a backing file such a file lies
 * nowhere by right, or an image could show any file beside it as its content (CVE-2024-32498, CVE-2024-4467);
 * unless the format is one of several files in one directory. */
static GPtrArray *data_roots(const struct opening *opening, const struct image *image)
{
    const char *child = g_ptr_array_index(opening->chain->paths, chain_depth(opening->chain) - 1);
    GPtrArray *roots = g_ptr_array_new_with_free_func(g_free);

    if (image->data_beside && !storage_name_is_uri(child))
        g_ptr_array_add(roots, g_path_get_dirname(child));
    for (const char *const *root = opening->policy->allowed_roots; root && *root; root++)
        g_ptr_array_add(roots, g_strdup(*root));
    g_ptr_array_add(roots, NULL);
    return roots;
}

/* Its content is data, whatever it looks like.  A relative name counts from the image, not from wherever we
 * run. */
static bool open_data(struct opening *opening, struct image *image, unsigned index, const char *const *roots,
                      GError **error)
{
    const char *child = g_ptr_array_index(opening->chain->paths, chain_depth(opening->chain) - 1);
    const char *name = image_data_file(image, index)->name;
    bool on_server = image->data_beside && storage_name_is_uri(child);
    g_autoptr(storage_t) storage = NULL;
    g_autofree char *path = NULL;
    g_autofree char *real = NULL;

    if (!chain_name_is_plain(name, error))
        return false;
    if (!*roots && !on_server)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "it is opened only if --allow-root covers it");
    path = resolve(opening, name, child, on_server, error);
    if (!path || !loop_check_name(opening->chain, path, error))
        return false;
    storage = open_resolved(opening, path, roots, image->writable, &real, error);
    return storage && loop_check(opening->chain, storage, error) &&
           image_attach_data(image, index, g_steal_pointer(&storage), error);
}

static bool open_layer_data(struct opening *opening, struct image *image, GError **error)
{
    bool wanted = !opening->policy->top_only || opening->policy->data;
    g_autoptr(GPtrArray) roots = data_roots(opening, image);

    for (guint i = 0; i < image->data_files->len && wanted; i++) {
        g_autofree char *shown = NULL;

        if (open_data(opening, image, i, (const char *const *)roots->pdata, error))
            continue;
        shown = g_strescape(image_data_file(image, i)->name, NULL);
        g_prefix_error(error, "external data file \"%s\" of %s: ", shown, image->name);
        return false;
    }
    return true;
}

/* Takes ownership of `storage` and `real`. */
static bool add_layer(struct opening *opening, struct storage *storage, char *real,
                      const struct format *format, bool writable, GError **error)
{
    g_autofree char *path = real;
    struct image *image;

    if (!path)
        path = g_strdup(storage->name);
    if (!loop_check(opening->chain, storage, error)) {
        storage_close(storage);
        return false;
    }
    image = image_open(storage, format, writable, error);
    if (!image)
        return false;
    push(opening->chain, image, g_steal_pointer(&path));
    return open_layer_data(opening, image, error);
}

static bool open_top(struct opening *opening, const char *path, const struct format *format, GError **error)
{
    const struct chain_policy *policy = opening->policy;
    g_autofree char *real = NULL;
    g_autoptr(storage_t) storage =
        policy->open(policy->opaque, path, NULL, policy->writable_top || policy->writable_link, &real, error);

    if (!storage)
        return false;
    if (!format)
        format = format_probe(storage, error);
    if (!format)
        return false;
    return add_layer(opening, g_steal_pointer(&storage), g_steal_pointer(&real), format, policy->writable_top,
                     error);
}

static void collect_roots(struct opening *opening)
{
    const char *top = g_ptr_array_index(opening->chain->paths, 0);

    if (!storage_name_is_uri(top)) /* which lies in no directory of this host */
        g_ptr_array_add(opening->roots, g_path_get_dirname(top));
    for (const char *const *root = opening->policy->allowed_roots; root && *root; root++)
        g_ptr_array_add(opening->roots, g_strdup(*root));
    g_ptr_array_add(opening->roots, NULL);
}

/* The format that an image states for its backing file.  It is never probed: the content of a raw backing
 * file was written by a guest, who could make it look like an image that names a file of the host. */
static const struct format *stated_format(const struct image *image, GError **error)
{
    const struct format *format;

    if (!image->backing_format) {
        blockmig_fail(
            error, BLOCKMIG_ERROR_REFUSED,
            "%s does not state its format, and it is not guessed; give it with --parent FORMAT:FILE",
            image->name);
        return NULL;
    }
    format = format_by_name(image->backing_format, NULL);
    if (!format) {
        g_autofree char *shown = g_strescape(image->backing_format, NULL);

        blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s states the unknown format \"%s\" for it",
                      image->name, shown);
    }
    return format;
}

static struct storage *open_name(struct opening *opening, const char *name, char **real, GError **error)
{
    const char *child = g_ptr_array_index(opening->chain->paths, chain_depth(opening->chain) - 1);
    g_autofree char *path = NULL;

    if (!chain_name_is_plain(name, error))
        return NULL;
    path = resolve(opening, name, child, true, error);
    if (!path || !loop_check_name(opening->chain, path, error))
        return NULL;
    return open_resolved(opening, path, (const char *const *)opening->roots->pdata, false, real, error);
}

/* The first name that leads to a file that may be opened. */
static struct storage *find_below(struct opening *opening, const GPtrArray *names, char **real,
                                  GError **error)
{
    g_autoptr(GString) tried = g_string_new(NULL);

    for (guint i = 0; i < names->len; i++) {
        const char *name = g_ptr_array_index(names, i);
        g_autofree char *shown = g_strescape(name, NULL);
        g_autoptr(GError) local = NULL;
        struct storage *storage = open_name(opening, name, real, &local);

        if (storage)
            return storage;
        if (names->len == 1 || !g_error_matches(local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED)) {
            g_propagate_error(error, g_steal_pointer(&local));
            return NULL;
        }
        g_string_append_printf(tried, "%s\"%s\" (%s)", i ? ", " : "", shown, local->message);
    }
    blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                  "none of its names leads to a file that may be opened: %s; give it with --parent",
                  tried->str);
    return NULL;
}

/* A name in other letters is a last resort, and no news if it leads nowhere. */
static struct storage *find_stated(struct opening *opening, const struct image *image, char **real,
                                   GError **error)
{
    const char *child = g_ptr_array_index(opening->chain->paths, chain_depth(opening->chain) - 1);
    g_autoptr(GPtrArray) names = chain_names_below(image), others = NULL;
    g_autoptr(GError) local = NULL;
    struct storage *storage = find_below(opening, names, real, &local);

    if (!storage && g_error_matches(local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED)) {
        others = chain_names_in_other_case(image, names, child);
        storage = others->len ? find_below(opening, others, real, NULL) : NULL;
    }
    if (!storage)
        g_propagate_error(error, g_steal_pointer(&local));
    return storage;
}

static bool open_backing(struct opening *opening, const struct image *image, GError **error)
{
    const struct format *format = stated_format(image, error);
    g_autofree char *real = NULL;
    struct storage *storage = format ? find_stated(opening, image, &real, error) : NULL;

    return storage && add_layer(opening, storage, g_steal_pointer(&real), format, false, error);
}

static bool open_parent(struct opening *opening, const struct image *image, GError **error)
{
    const struct chain_policy *policy = opening->policy;
    const struct chain_parent *parent = &policy->parents[opening->parents_taken++];
    const struct format *format;
    g_autoptr(storage_t) storage = NULL;
    g_autofree char *real = NULL;

    if (policy->parents_used)
        *policy->parents_used = opening->parents_taken;
    if (!(image->format->flags & FORMAT_BACKING) ||
        (image->format->check_parent && !image_is_differencing(image)))
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "%s: this %s image has no parent, but %s was given as one", image->name,
                             image->format->name, parent->path);
    storage = policy->open(policy->opaque, parent->path, NULL, false, &real, error);
    if (!storage)
        return false;
    format = user_format(storage, parent, error);
    return format &&
           add_layer(opening, g_steal_pointer(&storage), g_steal_pointer(&real), format, false, error);
}

static bool depth_check(const struct opening *opening, GError **error)
{
    unsigned max = opening->policy->max_depth ? opening->policy->max_depth : CHAIN_MAX_DEPTH;

    if (chain_depth(opening->chain) < max)
        return true;
    return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "the chain has more than %u layers", max);
}

/* The layer that was opened last is what the one above it was made over. */
static bool check_below(const struct chain *chain, GError **error)
{
    unsigned depth = chain_depth(chain);

    return image_check_parent(chain_layer(chain, depth - 2), chain_layer(chain, depth - 1), error);
}

bool chain_takes_parent(const struct image *image)
{
    return image->wants_parent ||
           (image->backing_name && (image->format->check_parent || !image->backing_format));
}

/* Then what lies below it may be anywhere. */
static bool lies_beside_a_uri(const struct opening *opening, const struct image *image)
{
    return image->backing_name && image->backing_name[0] != '/' &&
           storage_name_is_uri(g_ptr_array_index(opening->chain->paths, chain_depth(opening->chain) - 1));
}

/* Is the next parent that the user gave for this image? */
static bool is_given(const struct opening *opening, const struct image *image)
{
    const struct chain_policy *policy = opening->policy;

    if (opening->parents_taken == policy->parent_count)
        return false;
    return chain_takes_parent(image) || lies_beside_a_uri(opening, image) ||
           (!image->backing_name && !policy->parents_used);
}

/* Opens what lies below `image`; *more false: nothing does. */
static bool open_below(struct opening *opening, const struct image *image, bool *more, GError **error)
{
    bool given = is_given(opening, image);
    bool ok;

    *more = image->backing_name || given;
    if (!*more)
        return !image->wants_parent ||
               blockmig_fail(
                   error, BLOCKMIG_ERROR_REFUSED,
                   "%s: is a differencing image that does not name its parent; give it with --parent",
                   image->name);
    if (!given) {
        g_autofree char *shown = g_strescape(image->backing_name, NULL);

        ok = depth_check(opening, error) && open_backing(opening, image, error) &&
             check_below(opening->chain, error);
        if (!ok)
            g_prefix_error(error, "backing file \"%s\" of %s: ", shown, image->name);
        return ok;
    }
    ok = depth_check(opening, error) && open_parent(opening, image, error) &&
         check_below(opening->chain, error);
    if (!ok)
        g_prefix_error(error, "parent of %s: ", image->name);
    return ok;
}

static bool open_layers(struct opening *opening, const char *path, const struct format *format,
                        GError **error)
{
    struct chain *chain = opening->chain;
    bool more = true;

    if (!open_top(opening, path, format, error))
        return false;
    chain->size = chain_layer(chain, 0)->size;
    chain->keep_holes = opening->policy->top_only;
    if (opening->policy->top_only)
        return true;
    collect_roots(opening);
    while (more) {
        if (!open_below(opening, chain_layer(chain, chain_depth(chain) - 1), &more, error))
            return false;
    }
    return true;
}

struct chain *chain_open(const char *path, const struct format *format, const struct chain_policy *policy,
                         GError **error)
{
    g_autoptr(chain_t) chain = chain_new();
    g_autoptr(GPtrArray) roots = g_ptr_array_new_with_free_func(g_free);
    struct opening opening = {.chain = chain, .policy = policy, .roots = roots};

    return open_layers(&opening, path, format, error) ? g_steal_pointer(&chain) : NULL;
}
