/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qemu-nbd gets a listening socket at which we are waiting already, and which then loses its name: so nobody
 * else can connect, and there is nothing to remove, however we end.  It ends with its only client, or with
 * us.
 */
#include "blockmig/storage/foreign.h"

#include "blockmig/storage/dmg.h"
#include "blockmig/storage/file.h"
#include "blockmig/storage/foreign-table.h"
#include "blockmig/storage/nbd.h"
#include "blockmig/storage/uri.h"
#include "formats/bytes.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define QED_FEATURES 16 /* offset of le64 in the header */
#define QED_BACKING  UINT64_C(1)
#define LONGEST_WORD 4096
#define MAX_SECRET   (1 << 20) /* bytes */

/* The chain_policy.open of a foreign top. */
struct opening {
    const struct format_foreign *format;
    const char *secret;
    unsigned flags;
    bool done; /* what follows are parents */
};

/* QED is the only one that names other files. */
static bool check_alone(struct storage *file, GError **error)
{
    uint8_t features[8];

    if (!storage_pread(file, features, sizeof(features), QED_FEATURES, error))
        return false;
    return !(load_le64(features) & QED_BACKING) ||
           blockmig_fail(
               error, BLOCKMIG_ERROR_REFUSED,
               "%s: a QED image with a backing file is not read: qemu-img rebase can give it another "
               "format",
               file->name);
}

/* What QEMU would not refuse by itself. */
static bool check_file(struct storage *file, const struct format_foreign *format, GError **error)
{
    static const struct {
        const char *format;
        bool (*check)(struct storage *file, GError **error);
    } checks[] = {
        {"qed", check_alone}, {"dmg", dmg_check}, {"parallels", parallels_check}, {"bochs", bochs_check}};

    for (size_t i = 0; i < G_N_ELEMENTS(checks); i++)
        if (strcmp(checks[i].format, format->name) == 0)
            return checks[i].check(file, error);
    return true;
}

/* ---- the server ---------------------------------------------------------------------------------- */

/* QEMU wants each comma in a value twice. */
static char *escape(const char *value)
{
    GString *text = g_string_new(value);

    g_string_replace(text, ",", ",,", 0);
    return g_string_free(text, FALSE);
}

static char *image_options(const struct opening *opening, const char *path)
{
    g_autofree char *file = escape(path);

    return g_strdup_printf("driver=%s%s%s,file.driver=file,file.filename=%s", opening->format->name,
                           opening->secret ? ",key-secret=secret" : "",
                           opening->flags & FILE_NO_LOCK ? ",force-share=on" : "", file);
}

static GPtrArray *command_line(const struct opening *opening, const char *path)
{
    GPtrArray *words = g_ptr_array_new_with_free_func(g_free);

    /* It wants to be told its own process id, which the shell knows. */
    g_ptr_array_add(words, g_strdup("/bin/sh"));
    g_ptr_array_add(words, g_strdup("-c"));
    g_ptr_array_add(words, g_strdup("LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" \"$@\""));
    g_ptr_array_add(words, g_strdup("qemu-nbd"));
    g_ptr_array_add(words, g_strdup("--read-only"));
    g_ptr_array_add(words, g_strdup("--shared=1"));
    if (opening->secret) {
        g_autofree char *file = escape(opening->secret);

        g_ptr_array_add(words, g_strdup_printf("--object=secret,id=secret,file=%s", file));
    }
    g_ptr_array_add(words, g_strdup("--image-opts"));
    g_ptr_array_add(words, image_options(opening, path));
    g_ptr_array_add(words, NULL);
    return words;
}

/* In the child: it is not to outlive us. */
static void die_with_parent(void *opaque)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}

static bool start_server(const struct opening *opening, const char *path, int listener, GPid *pid,
                         int *errors, GError **error)
{
    g_autoptr(GPtrArray) words = command_line(opening, path);
    g_autofree char *program = g_find_program_in_path("qemu-nbd");
    const int at = 3;

    if (!program)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "%s is read through qemu-nbd, which is not installed (package qemu-utils)",
                             opening->format->name);
    return g_spawn_async_with_pipes_and_fds(NULL, (const char *const *)words->pdata, NULL,
                                            G_SPAWN_DO_NOT_REAP_CHILD, die_with_parent, NULL, -1, -1, -1,
                                            &listener, &at, 1, pid, NULL, NULL, errors, error);
}

/* An abstract name that the kernel chooses.  With this backlog one client can wait: if we do, nobody else was
 * faster, and the server takes no second one. */
static bool make_sockets(int *listener, int *client, GError **error)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    socklen_t length = sizeof(address);

    *listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    *client = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (*listener >= 0 && *client >= 0 &&
        bind(*listener, (const struct sockaddr *)&address, sizeof(sa_family_t)) == 0 &&
        listen(*listener, 0) == 0 && getsockname(*listener, (struct sockaddr *)&address, &length) == 0 &&
        connect(*client, (const struct sockaddr *)&address, length) == 0)
        return true;
    blockmig_set_errno(error, errno, "a socket for qemu-nbd");
    if (*listener >= 0)
        close(*listener);
    if (*client >= 0)
        close(*client);
    return false;
}

/* What waits, or never ends, would hold up the server or fill its memory. */
static bool check_secret(const char *path, GError **error)
{
    GStatBuf status;

    if (g_stat(path, &status) < 0)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s: the passphrase: %s", path,
                             g_strerror(errno));
    return (S_ISREG(status.st_mode) && status.st_size > 0 && status.st_size <= MAX_SECRET) ||
           blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                         "%s: a passphrase comes from a regular file of 1 to %d bytes", path, MAX_SECRET);
}

static bool ends_with_newline(const char *path)
{
    g_autofree char *text = NULL;
    gsize length;

    return path && g_file_get_contents(path, &text, &length, NULL) && length > 0 && text[length - 1] == '\n';
}

/* Its last words are better than ours. */
static void use_its_words(int errors, const char *secret, GError **error)
{
    char words[LONGEST_WORD + 1];
    size_t length = 0;
    ssize_t n;

    while (length < LONGEST_WORD && (n = read(errors, words + length, LONGEST_WORD - length)) > 0)
        length += (size_t)n;
    words[length] = '\0';
    g_strchomp(words);
    if (!*words)
        return;
    g_clear_error(error);
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED, "%s%s", words,
                ends_with_newline(secret) ? " (the passphrase ends with a line end, which counts)" : "");
}

static struct storage *open_server(const struct opening *opening, const struct storage *file, GError **error)
{
    int listener, client, errors = -1;
    struct storage *storage = NULL;
    GPid pid = 0;
    bool ok;

    if (!make_sockets(&listener, &client, error))
        return NULL;
    ok = start_server(opening, file->name, listener, &pid, &errors, error);
    close(listener);
    if (!ok) {
        close(client);
        return NULL;
    }
    storage = storage_nbd_open_child(client, pid, file->name, file->identity, error);
    if (!storage)
        use_its_words(errors, opening->secret, error);
    close(errors);
    return storage;
}

/* ---- the chain ------------------------------------------------------------------------------------ */

static struct storage *open_foreign(struct opening *opening, const char *path, char **real_path,
                                    GError **error)
{
    g_autofree char *real = NULL;
    g_autoptr(storage_t) file = storage_file_open(path, FILE_NO_LOCK, NULL, &real, error);
    struct storage *storage;

    if (!file || !check_file(file, opening->format, error) ||
        (opening->secret && !check_secret(opening->secret, error)))
        return NULL;
    g_free(file->name);
    file->name = g_strdup(real);
    storage = open_server(opening, file, error);
    if (!storage)
        g_prefix_error(error, "%s: ", path);
    else if (real_path)
        *real_path = g_steal_pointer(&real);
    return storage;
}

static struct storage *open_for_chain(void *opaque, const char *path, const char *const *roots, bool writable,
                                      char **real_path, GError **error)
{
    struct opening *opening = opaque;

    if (opening->done)
        return storage_open_for_chain(&opening->flags, path, roots, writable, real_path, error);
    opening->done = true;
    return open_foreign(opening, path, real_path, error);
}

/* What cannot be opened here will not be below either, and there it is said why. */
static const struct format_foreign *probe(const char *path)
{
    g_autofree char *real = NULL;
    g_autoptr(storage_t) file =
        storage_name_is_uri(path) ? NULL : storage_file_open(path, FILE_NO_LOCK, NULL, &real, NULL);

    return file ? format_probe_foreign(file) : NULL;
}

static const struct format_foreign *find(const char *path, const char *format)
{
    return format ? format_foreign_by_name(format) : probe(path);
}

bool source_is_foreign(const char *path, const char *format)
{
    return find(path, format) != NULL;
}

struct chain *source_open(const char *path, const char *format, const char *secret, unsigned flags,
                          const struct chain_policy *policy, GError **error)
{
    struct opening opening = {.format = find(path, format), .secret = secret, .flags = flags};
    struct chain_policy ours = *policy;
    const struct format *known = NULL;
    struct chain *chain;

    if (!opening.format && format && !(known = format_by_name(format, error)))
        return NULL;
    ours.open = opening.format ? open_for_chain : storage_open_for_chain;
    ours.beside = storage_name_beside;
    ours.opaque = opening.format ? (void *)&opening : (void *)&flags;
    /* What the guest wrote decides nothing: behind the server the disk is raw. */
    chain = chain_open(path, opening.format ? &format_raw : known, &ours, error);
    if (chain && opening.format)
        g_ptr_array_add(chain_layer(chain, 0)->notices,
                        g_strdup_printf("format %s, read through qemu-nbd", opening.format->name));
    return chain;
}
