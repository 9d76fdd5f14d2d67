/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tools/confine.h"

#include "blockmig/migrate/metadata.h"
#include "blockmig/migrate/space.h"
#include "blockmig/migrate/target.h"
#include "blockmig/storage/foreign.h"
#include "blockmig/storage/sandbox.h"
#include "blockmig/store/journal.h"
#include "formats/chain.h"
#include "tools/output.h"

#define ALL (SANDBOX_READ | SANDBOX_WRITE | SANDBOX_CREATE | SANDBOX_REMOVE)

/* What tells who lives and has what open, which devices belong to which, and how many processors there are.
 */
static struct sandbox *begin(void)
{
    static const char *const files[] = {"/proc", "/sys/devices", "/sys/dev/block", "/sys/block",
                                        "/sys/class/block"};
    struct sandbox *sandbox = sandbox_new();

    for (size_t i = 0; i < G_N_ELEMENTS(files); i++)
        sandbox_allow(sandbox, files[i], SANDBOX_READ);
    return sandbox;
}

/* Certificates and keys: where libnbd looks for them, and where the URI says that they are. */
static void allow_secrets(struct sandbox *sandbox, const char *uri)
{
    static const char *const keys[] = {"tls-certificates", "tls-psk-file"};
    g_autoptr(GUri) parsed = g_uri_parse(uri, G_URI_FLAGS_NONE, NULL);
    const char *query = parsed ? g_uri_get_query(parsed) : NULL;
    g_autoptr(GHashTable) values =
        query ? g_uri_parse_params(query, -1, "&;", G_URI_PARAMS_NONE, NULL) : NULL;
    g_autofree char *mine = g_build_filename(g_get_home_dir(), ".pki", "libnbd", NULL);
    g_autofree char *config = g_build_filename(g_get_home_dir(), ".config", "pki", "libnbd", NULL);

    sandbox_allow(sandbox, mine, SANDBOX_READ);
    sandbox_allow(sandbox, config, SANDBOX_READ);
    sandbox_allow(sandbox, "/etc/pki/libnbd", SANDBOX_READ);
    for (size_t i = 0; values && i < G_N_ELEMENTS(keys); i++) {
        const char *path = g_hash_table_lookup(values, keys[i]);

        if (path)
            sandbox_allow(sandbox, path, SANDBOX_READ);
    }
}

/* Certificates and key of a client. */
static void allow_agent(struct sandbox *sandbox)
{
    const char *directory = g_getenv("BLOCKMIG_AGENT_TLS");

    sandbox_allow(sandbox, directory && *directory ? directory : "/etc/pki/blockmig", SANDBOX_READ);
}

static void allow_uri(struct sandbox *sandbox, const char *uri)
{
    sandbox_allow_network(sandbox);
    if (g_str_has_prefix(uri, "iscsi://"))
        sandbox_allow_iscsi(sandbox);
    else if (g_str_has_prefix(uri, "blockmig://"))
        allow_agent(sandbox);
    else
        allow_secrets(sandbox, uri);
}

/* qemu-nbd, which lives under the same rules. */
static void allow_foreign(struct sandbox *sandbox, const char *name, const char *format, const char *secret)
{
    static const char *const places[] = {"/usr/lib", "/usr/lib64", "/bin/sh"};
    g_autofree char *program = g_find_program_in_path("qemu-nbd");

    if (!program || !source_is_foreign(name, format))
        return;
    sandbox_allow(sandbox, program, SANDBOX_READ | SANDBOX_EXECUTE);
    for (size_t i = 0; i < G_N_ELEMENTS(places); i++)
        sandbox_allow(sandbox, places[i], SANDBOX_READ | SANDBOX_EXECUTE);
    sandbox_allow(sandbox, "/etc/ld.so.cache", SANDBOX_READ);
    sandbox_allow(sandbox, "/dev/null", SANDBOX_READ | SANDBOX_WRITE);
    if (secret)
        sandbox_allow(sandbox, secret, SANDBOX_READ);
}

static void allow_image(struct sandbox *sandbox, const char *name, unsigned rights)
{
    if (storage_name_is_uri(name))
        allow_uri(sandbox, name);
    else
        sandbox_allow_image(sandbox, name, rights);
}

/* `texts`: of char *, or NULL; some end with a NULL that does not count. */
static void allow_parents(struct sandbox *sandbox, const GPtrArray *texts, unsigned rights)
{
    for (guint i = 0; texts && i < texts->len && texts->pdata[i]; i++) {
        const char *const one[] = {texts->pdata[i], NULL};
        g_autoptr(GArray) parent = chain_parents(one);

        allow_image(sandbox, g_array_index(parent, struct chain_parent, 0).path, rights);
    }
}

static void allow_roots(struct sandbox *sandbox, const GPtrArray *roots, unsigned rights)
{
    for (guint i = 0; roots && i < roots->len && roots->pdata[i]; i++)
        sandbox_allow(sandbox, roots->pdata[i], rights);
}

/* A file that will be made, or is there and may be a link; what belongs to it comes into being beside it. */
static void allow_target(struct sandbox *sandbox, const char *path, bool device, unsigned rights)
{
    g_autofree char *directory = g_path_get_dirname(path);

    sandbox_allow(sandbox, path, rights);
    if (!device)
        sandbox_allow(sandbox, directory, rights);
}

static bool enter(const struct options *options, struct sandbox *sandbox, GError **error)
{
    if (!sandbox_enter(sandbox, error))
        return false;
    if (options->verbose && !options->quiet)
        output_message("sandbox: %s", sandbox_name());
    return true;
}

bool confine_look(const struct options *options, GError **error)
{
    g_autoptr(sandbox_t) sandbox = begin();

    for (unsigned i = 0; i < options->argument_count; i++) {
        const char *name = options->arguments->pdata[i];

        allow_image(sandbox, name, SANDBOX_READ);
        allow_foreign(sandbox, name, i == 0 ? options->format : options->second_format, options->secret);
    }
    allow_parents(sandbox, options->parents, SANDBOX_READ);
    allow_roots(sandbox, options->roots, SANDBOX_READ);
    if (options->receipt)
        sandbox_allow(sandbox, options->receipt, SANDBOX_READ);
    return enter(options, sandbox, error);
}

/* The directory has to be there to be named.  Whatever is wrong with it is told by who opens the journal. */
static void allow_state(struct sandbox *sandbox, const char *directory, bool dry_run)
{
    g_autofree char *place = journal_place(directory), *receipts = journal_receipts(place);

    if (!dry_run)
        g_mkdir_with_parents(receipts, 0700);
    sandbox_allow(sandbox, place, ALL);
    sandbox_allow(sandbox, receipts, ALL);                /* it may be a link */
    sandbox_allow(sandbox, "/dev/urandom", SANDBOX_READ); /* SQLite's salts */
}

/* Of a source that an earlier run has deleted: what belonged to it may be left. */
static void allow_place(struct sandbox *sandbox, const char *name, unsigned rights)
{
    g_autofree char *directory = g_path_get_dirname(name);

    if (!storage_name_is_uri(name) && !g_file_test(name, G_FILE_TEST_EXISTS))
        sandbox_allow(sandbox, directory, rights);
}

bool confine_copy(const struct options *options, const struct copy_request *request, bool dry_run,
                  GError **error)
{
    g_autoptr(sandbox_t) sandbox = begin();
    bool device;
    g_autofree char *target = target_path(request->target, request->source, &device, NULL);

    allow_image(sandbox, request->source,
                SANDBOX_READ | (request->delete_source && !dry_run ? SANDBOX_REMOVE : 0) |
                    (metadata_needs_admin(request->source) ? SANDBOX_ADMIN : 0));
    if (request->delete_source)
        allow_place(sandbox, request->source, SANDBOX_READ | (dry_run ? 0 : SANDBOX_REMOVE));
    allow_foreign(sandbox, request->source, request->source_format, request->secret);
    allow_parents(sandbox, request->parents, SANDBOX_READ);
    allow_roots(sandbox, request->allowed_roots, SANDBOX_READ);
    /* A plan opens what would be replaced, and asks for room with a file that never gets a name. */
    if (storage_name_is_uri(request->target))
        allow_uri(sandbox, request->target);
    else if (target)
        allow_target(sandbox, target, device,
                     (dry_run ? SANDBOX_READ | SANDBOX_WRITE : ALL) |
                         (!device && space_needs_admin(target) ? SANDBOX_ADMIN : 0));
    allow_state(sandbox, request->state_dir, dry_run);
    return enter(options, sandbox, error);
}

bool confine_create(const struct options *options, GError **error)
{
    g_autoptr(sandbox_t) sandbox = begin();

    allow_parents(sandbox, options->parents, SANDBOX_READ);
    allow_roots(sandbox, options->roots, SANDBOX_READ);
    if (storage_name_is_uri(options->arguments->pdata[0]))
        allow_uri(sandbox, options->arguments->pdata[0]);
    else
        allow_target(sandbox, options->arguments->pdata[0], false,
                     ALL | (space_needs_admin(options->arguments->pdata[0]) ? SANDBOX_ADMIN : 0));
    return enter(options, sandbox, error);
}

bool confine_commit(const struct options *options, GError **error)
{
    unsigned rights = SANDBOX_READ | SANDBOX_WRITE;
    g_autoptr(sandbox_t) sandbox = begin();

    allow_image(sandbox, options->arguments->pdata[0],
                rights | (options->delete_source ? SANDBOX_REMOVE : 0));
    allow_parents(sandbox, options->parents, rights);
    allow_roots(sandbox, options->roots, rights);
    return enter(options, sandbox, error);
}
