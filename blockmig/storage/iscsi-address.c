/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/storage/iscsi-address.h"

#include "formats/error.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SCHEME           "iscsi://"
#define MAX_FILE         4096
#define MAX_NAME         223 /* of an iSCSI name (RFC 3720, 3.2.6.1), and more than any host has */
#define DEFAULT_PATIENCE 30
#define INITIATOR_FILE   "/etc/iscsi/initiatorname.iscsi"

static bool wrong(GError **error, const char *what)
{
    return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "%s: iscsi://[USER@]HOST[:PORT]/TARGET/LUN is wanted",
                         what);
}

/* ---- the URI ------------------------------------------------------------------------------------ */

/* Printable and without what has a meaning in a URI: it is shown, and it is sent in a login text. */
static bool is_plain(const char *text)
{
    size_t length = strlen(text);

    for (size_t i = 0; i < length; i++)
        if (!g_ascii_isgraph(text[i]) || strchr("/@%?#,;", text[i]))
            return false;
    return length > 0 && length <= MAX_NAME;
}

static bool take_user(struct iscsi_address *address, char **rest, GError **error)
{
    char *at = strrchr(*rest, '@');

    if (!at)
        return true;
    *at = 0;
    /* "%" is libiscsi's separator, ":" that of everybody else. */
    if (strpbrk(*rest, "%:"))
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE,
                             "a password does not belong on a command line, where everybody can read it: "
                             "put it into a file that BLOCKMIG_ISCSI_CREDENTIALS names");
    address->ours.user = g_strdup(*rest);
    *rest = at + 1;
    return is_plain(address->ours.user) || wrong(error, "the user name");
}

static bool take_path(struct iscsi_address *address, const char *path, GError **error)
{
    g_auto(GStrv) parts = g_strsplit(path, "/", 3);
    guint64 lun;

    if (g_strv_length(parts) != 2)
        return wrong(error, "the path");
    address->target = g_uri_unescape_string(parts[0], "/");
    if (!address->target || !is_plain(address->target))
        return wrong(error, "the name of the target");
    if (!g_ascii_string_to_unsigned(parts[1], 10, 0, 16383, &lun, NULL))
        return wrong(error, "the number of the unit (0 to 16383)");
    address->lun = (int)lun;
    return true;
}

static bool parse_uri(struct iscsi_address *address, const char *uri, GError **error)
{
    g_autofree char *copy = NULL;
    char *rest, *slash;

    if (g_ascii_strncasecmp(uri, SCHEME, strlen(SCHEME)) != 0)
        return wrong(error, "the scheme");
    rest = copy = g_strdup(uri + strlen(SCHEME));
    slash = strchr(rest, '/');
    if (!slash)
        return wrong(error, "there is no target");
    *slash = 0;
    if (!take_user(address, &rest, error) || !take_path(address, slash + 1, error))
        return false;
    if (!is_plain(rest))
        return wrong(error, "the host");
    address->portal = g_strdup(rest);
    address->name =
        g_strdup_printf(SCHEME "%s%s%s/%s/%d", address->ours.user ? address->ours.user : "",
                        address->ours.user ? "@" : "", address->portal, address->target, address->lun);
    return true;
}

/* ---- secrets ------------------------------------------------------------------------------------ */

static void set_if_free(char **field, const char *value)
{
    if (!*field && value && *value)
        *field = g_strdup(value);
}

static bool take_line(struct iscsi_address *address, const char *line)
{
    const struct {
        const char *key;
        char **field;
    } known[] = {{"user=", &address->ours.user},
                 {"password=", &address->ours.password},
                 {"target-user=", &address->theirs.user},
                 {"target-password=", &address->theirs.password}};

    if (*line == 0 || *line == '#')
        return true;
    for (size_t i = 0; i < G_N_ELEMENTS(known); i++)
        if (g_str_has_prefix(line, known[i].key)) {
            set_if_free(known[i].field, line + strlen(known[i].key));
            return true;
        }
    return false;
}

/* What is wrong with a line is not said by showing it. */
static bool take_lines(struct iscsi_address *address, char *text, GError **error)
{
    unsigned number = 0;

    for (char *line = text, *next; line; line = next) {
        next = strchr(line, '\n');
        if (next)
            *next++ = 0;
        number++;
        if (!take_line(address, g_strchomp(line)))
            return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "line %u has none of the known keys", number);
    }
    return true;
}

static bool is_private(int fd, GError **error)
{
    struct stat st;

    if (fstat(fd, &st) < 0)
        return blockmig_set_errno(error, errno, "looking it up");
    if (!S_ISREG(st.st_mode) || st.st_mode & 077)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "must be a regular file that nobody but its owner may read or write");
    return true;
}

static bool read_secrets(struct iscsi_address *address, const char *path, GError **error)
{
    char text[MAX_FILE + 1];
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    ssize_t length = -1;
    bool ok = false;

    if (fd < 0)
        blockmig_set_errno(error, errno, "opening it");
    else if (is_private(fd, error)) {
        length = read(fd, text, MAX_FILE);
        if (length < 0)
            blockmig_set_errno(error, errno, "reading it");
    }
    if (length >= 0) {
        text[length] = 0;
        ok = take_lines(address, text, error);
    }
    explicit_bzero(text, sizeof(text));
    if (fd >= 0)
        close(fd);
    return ok;
}

static bool find_secrets(struct iscsi_address *address, GError **error)
{
    const char *path = g_getenv("BLOCKMIG_ISCSI_CREDENTIALS");

    if (path && *path && !read_secrets(address, path, error)) {
        g_prefix_error(error, "BLOCKMIG_ISCSI_CREDENTIALS: %s: ", path);
        return false;
    }
    set_if_free(&address->ours.user, g_getenv("LIBISCSI_CHAP_USERNAME"));
    set_if_free(&address->ours.password, g_getenv("LIBISCSI_CHAP_PASSWORD"));
    set_if_free(&address->theirs.user, g_getenv("LIBISCSI_CHAP_TARGET_USERNAME"));
    set_if_free(&address->theirs.password, g_getenv("LIBISCSI_CHAP_TARGET_PASSWORD"));
    return true;
}

/* ---- who we are ---------------------------------------------------------------------------------- */

uint64_t iscsi_host_number(const char *purpose)
{
    g_autofree char *machine = NULL;
    g_autofree char *text = NULL;
    g_autoptr(GChecksum) sum = g_checksum_new(G_CHECKSUM_SHA256);
    uint8_t digest[32];
    gsize length = sizeof(digest);
    uint64_t number;

    if (!g_file_get_contents("/etc/machine-id", &machine, NULL, NULL))
        machine = g_strdup("");
    text = g_strdup_printf("blockmig %s\n%s\n%s", purpose, g_strchomp(machine), g_get_host_name());
    g_checksum_update(sum, (const guchar *)text, -1);
    g_checksum_get_digest(sum, digest, &length);
    memcpy(&number, digest, sizeof(number));
    return number ? GUINT64_FROM_BE(number) : 1;
}

/* The name that the host's own initiator uses is the one that a target knows; it differs from ours by the
 * session. */
static char *host_name(void)
{
    g_autofree char *text = NULL;
    const char *value;

    if (g_file_get_contents(INITIATOR_FILE, &text, NULL, NULL)) {
        g_auto(GStrv) lines = g_strsplit(text, "\n", -1);

        for (size_t i = 0; lines[i]; i++)
            if (g_str_has_prefix(g_strstrip(lines[i]), "InitiatorName=")) {
                value = lines[i] + strlen("InitiatorName=");
                if (is_plain(value))
                    return g_strdup(value);
            }
    }
    return g_strdup_printf("iqn.2026-11.blockmig:%016" G_GINT64_MODIFIER "x", iscsi_host_number("initiator"));
}

static bool find_initiator(struct iscsi_address *address, GError **error)
{
    const char *given = g_getenv("BLOCKMIG_ISCSI_INITIATOR"), *patience = g_getenv("BLOCKMIG_ISCSI_TIMEOUT");
    guint64 seconds = DEFAULT_PATIENCE;

    if (given && *given && !is_plain(given))
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "BLOCKMIG_ISCSI_INITIATOR is no iSCSI name");
    if (patience && *patience && !g_ascii_string_to_unsigned(patience, 10, 1, 3600, &seconds, NULL))
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE,
                             "BLOCKMIG_ISCSI_TIMEOUT is not a number of seconds from 1 to 3600");
    address->initiator = given && *given ? g_strdup(given) : host_name();
    address->patience = (unsigned)seconds;
    return true;
}

struct iscsi_address *iscsi_address_parse(const char *uri, GError **error)
{
    g_autoptr(iscsi_address_t) address = g_new0(struct iscsi_address, 1);

    if (!parse_uri(address, uri, error) || !find_secrets(address, error) || !find_initiator(address, error))
        return NULL;
    return g_steal_pointer(&address);
}

static void secret_clear(struct iscsi_secret *secret)
{
    if (secret->password)
        explicit_bzero(secret->password, strlen(secret->password));
    g_free(secret->user);
    g_free(secret->password);
}

void iscsi_address_free(struct iscsi_address *address)
{
    if (!address)
        return;
    secret_clear(&address->ours);
    secret_clear(&address->theirs);
    g_free(address->name);
    g_free(address->portal);
    g_free(address->target);
    g_free(address->initiator);
    g_free(address);
}
