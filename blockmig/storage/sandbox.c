/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Landlock (Documentation/userspace-api/landlock.rst of the kernel) through its system calls, which the C
 * library does not have.  Each version of the interface knows more rights.  A right that is handled is denied
 * wherever no rule grants it; one that the kernel does not know must not be asked for.
 */
#include "blockmig/storage/sandbox.h"

#include "blockmig/storage/file.h"
#include "formats/error.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The oldest headers that this is built with end at version 2. */
#ifndef LANDLOCK_ACCESS_FS_TRUNCATE
#define LANDLOCK_ACCESS_FS_TRUNCATE (1ULL << 14)
#endif
#ifndef LANDLOCK_ACCESS_FS_IOCTL_DEV
#define LANDLOCK_ACCESS_FS_IOCTL_DEV (1ULL << 15)
#endif
#define ALONE_TRIES  20
#define ALONE_PERIOD 5000 /* microseconds */
#define ALL_NETWORK  3    /* LANDLOCK_ACCESS_NET_BIND_TCP and _CONNECT_TCP */
#define ALL_SCOPES   3    /* LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET and _SIGNAL */

/* As struct landlock_ruleset_attr of version 6; an older kernel takes a longer one that ends in zeros. */
struct ruleset {
    uint64_t files, network, scoped;
};

struct rule {
    int fd; /* O_PATH */
    unsigned rights;
};

struct sandbox {
    GArray *rules;   /* of struct rule */
    unsigned rights; /* all that is allowed anywhere */
    bool network;
};

/* A rule for something that is no directory may have no others. */
#define FILE_RIGHTS                                                                                          \
    (LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_WRITE_FILE |             \
     LANDLOCK_ACCESS_FS_TRUNCATE | LANDLOCK_ACCESS_FS_IOCTL_DEV)

static int entered; /* the version of Landlock that this process is in */

static struct ruleset known_to(int version)
{
    struct ruleset known = {.files = (LANDLOCK_ACCESS_FS_MAKE_SYM << 1) - 1};

    if (version >= 2)
        known.files |= LANDLOCK_ACCESS_FS_REFER;
    if (version >= 3)
        known.files |= LANDLOCK_ACCESS_FS_TRUNCATE;
    if (version >= 4)
        known.network = ALL_NETWORK;
    if (version >= 5)
        known.files |= LANDLOCK_ACCESS_FS_IOCTL_DEV;
    if (version >= 6)
        known.scoped = ALL_SCOPES;
    return known;
}

static void close_rule(void *opaque)
{
    close(((struct rule *)opaque)->fd);
}

/* The C library has most encodings in modules beside itself, and loads one when a name is in it. */
static void allow_converters(struct sandbox *sandbox)
{
    const void *function = dlsym(RTLD_DEFAULT, "iconv_open");
    g_autofree char *directory = NULL, *modules = NULL;
    Dl_info library;

    if (!function || !dladdr(function, &library))
        return;
    directory = g_path_get_dirname(library.dli_fname);
    modules = g_build_filename(directory, "gconv", NULL);
    sandbox_allow(sandbox, modules, SANDBOX_READ);
}

struct sandbox *sandbox_new(void)
{
    struct sandbox *sandbox = g_new0(struct sandbox, 1);

    sandbox->rules = g_array_new(FALSE, FALSE, sizeof(struct rule));
    g_array_set_clear_func(sandbox->rules, close_rule);
    allow_converters(sandbox);
    return sandbox;
}

void sandbox_free(struct sandbox *sandbox)
{
    if (!sandbox)
        return;
    g_array_unref(sandbox->rules);
    g_free(sandbox);
}

void sandbox_allow(struct sandbox *sandbox, const char *path, unsigned rights)
{
    struct rule rule = {.fd = open(path, O_PATH | O_CLOEXEC), .rights = rights};

    if (rule.fd < 0)
        return;
    g_array_append_val(sandbox->rules, rule);
    sandbox->rights |= rights;
}

/* Where the kernel says that the object is, as resolve.c and then chain.c see it. */
void sandbox_allow_image(struct sandbox *sandbox, const char *path, unsigned rights)
{
    guint index = sandbox->rules->len;
    struct stat st;

    sandbox_allow(sandbox, path, rights);
    if (sandbox->rules->len == index)
        return;
    int fd = g_array_index(sandbox->rules, struct rule, index).fd;
    g_autofree char *self = g_strdup_printf("/proc/self/fd/%d", fd);
    g_autofree char *real = g_file_read_link(self, NULL);
    if (real && real[0] == '/' && fstat(fd, &st) == 0 && S_ISREG(st.st_mode)) {
        g_autofree char *directory = g_path_get_dirname(real);

        sandbox_allow(sandbox, directory, rights);
    }
}

void sandbox_allow_network(struct sandbox *sandbox)
{
    static const char *const files[] = {"/etc/gai.conf",      "/etc/host.conf",   "/etc/hosts",
                                        "/etc/nsswitch.conf", "/etc/resolv.conf", "/etc/services",
                                        "/etc/ssl/certs",     "/etc/ld.so.cache", "/usr/lib"};

    sandbox->network = true;
    for (size_t i = 0; i < G_N_ELEMENTS(files); i++)
        sandbox_allow(sandbox, files[i], SANDBOX_READ);
}

void sandbox_allow_iscsi(struct sandbox *sandbox)
{
    const char *credentials = g_getenv("BLOCKMIG_ISCSI_CREDENTIALS");

    sandbox_allow(sandbox, "/etc/iscsi", SANDBOX_READ);
    sandbox_allow(sandbox, "/etc/machine-id", SANDBOX_READ);
    if (credentials)
        sandbox_allow(sandbox, credentials, SANDBOX_READ);
}

/* Of a device READ and WRITE take its ioctls along, by which it tells its size; of one that merely lies in a
 * directory they do not. */
static uint64_t landlock_rights(unsigned rights, bool directory)
{
    uint64_t files = 0;

    if (rights & SANDBOX_READ)
        files |= LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR | LANDLOCK_ACCESS_FS_IOCTL_DEV;
    if (rights & SANDBOX_EXECUTE)
        files |= LANDLOCK_ACCESS_FS_EXECUTE;
    if (rights & SANDBOX_WRITE)
        files |= LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_TRUNCATE;
    if (rights & SANDBOX_CREATE)
        files |= LANDLOCK_ACCESS_FS_MAKE_REG | LANDLOCK_ACCESS_FS_MAKE_DIR;
    if (rights & SANDBOX_REMOVE)
        files |= LANDLOCK_ACCESS_FS_REMOVE_FILE;
    if (directory && !(rights & SANDBOX_DEVICES))
        files &= ~LANDLOCK_ACCESS_FS_IOCTL_DEV;
    return directory ? files : files & FILE_RIGHTS;
}

static bool add_rule(int ruleset, const struct rule *rule, uint64_t handled, GError **error)
{
    struct stat st;

    if (fstat(rule->fd, &st) < 0)
        return blockmig_set_errno(error, errno, "looking at what is allowed");
    struct landlock_path_beneath_attr beneath = {
        .allowed_access = landlock_rights(rule->rights, S_ISDIR(st.st_mode)) & handled,
        .parent_fd = rule->fd,
    };
    /* Pipes and other things without a place among the files (EBADFD) are not Landlock's business. */
    if (!beneath.allowed_access ||
        syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &beneath, 0) == 0 ||
        errno == EBADFD)
        return true;
    return blockmig_set_errno(error, errno, "adding a Landlock rule");
}

static bool restrict_self(const struct sandbox *sandbox, int version, GError **error)
{
    struct ruleset handled = known_to(version);

    if (sandbox->network)
        handled.network = 0;
    int ruleset = (int)syscall(SYS_landlock_create_ruleset, &handled, sizeof(handled), 0);
    if (ruleset < 0)
        return blockmig_set_errno(error, errno, "making a Landlock ruleset");
    bool ok = true;
    for (guint i = 0; ok && i < sandbox->rules->len; i++)
        ok = add_rule(ruleset, &g_array_index(sandbox->rules, struct rule, i), handled.files, error);
    if (ok && syscall(SYS_landlock_restrict_self, ruleset, 0) < 0)
        ok = blockmig_set_errno(error, errno, "entering a Landlock domain");
    close(ruleset);
    return ok;
}

/* What is kept of root's power.  Others have none of it, and lose nothing. */
static uint64_t kept_capabilities(unsigned rights)
{
    uint64_t reading = UINT64_C(1) << CAP_DAC_READ_SEARCH | /* other users' images */
                       UINT64_C(1) << CAP_IPC_LOCK;         /* the ring's buffers */
    uint64_t writing = UINT64_C(1) << CAP_DAC_OVERRIDE |    /* other users' images and directories */
                       UINT64_C(1) << CAP_CHOWN |           /* what metadata_carry() does: */
                       UINT64_C(1) << CAP_FOWNER | UINT64_C(1) << CAP_FSETID |
                       UINT64_C(1) << CAP_SYS_RESOURCE; /* space and quotas as root has them */

    if (rights & SANDBOX_ADMIN)
        writing |= UINT64_C(1) << CAP_SYS_ADMIN;
    if (rights & SANDBOX_DEVICES)
        writing |= UINT64_C(1) << CAP_SYS_ADMIN | UINT64_C(1) << CAP_SYS_RAWIO;
    return rights & ~(unsigned)SANDBOX_READ ? reading | writing : reading;
}

static bool drop_capabilities(unsigned rights, GError **error)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];
    uint64_t kept = kept_capabilities(rights);

    if (syscall(SYS_capget, &header, data) < 0)
        return blockmig_set_errno(error, errno, "looking up capabilities");
    for (unsigned i = 0; i < G_N_ELEMENTS(data); i++) {
        data[i].permitted &= (uint32_t)(kept >> 32 * i);
        data[i].effective &= data[i].permitted;
        data[i].inheritable = 0;
    }
    if (syscall(SYS_capset, &header, data) < 0)
        return blockmig_set_errno(error, errno, "dropping capabilities");
    return true;
}

/* A directory has a link for itself, one from above, and one from each directory in it.  A thread that was
 * joined stays there for a moment. */
static bool is_alone(void)
{
    struct stat st;

    for (unsigned tries = 0; tries < ALONE_TRIES; tries++) {
        if (stat("/proc/self/task", &st) < 0 || st.st_nlink == 3)
            return true;
        g_usleep(ALONE_PERIOD);
    }
    return false;
}

static bool enter(const struct sandbox *sandbox, GError **error)
{
    /* Whatever the reason, an old kernel, a boot parameter or a container's filter: there may be none. */
    long version = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);

    if (!is_alone())
        return blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "there are other threads already");
    storage_file_users_remember();
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return blockmig_set_errno(error, errno, "giving up new privileges");
    if (version > 0 && !restrict_self(sandbox, (int)version, error))
        return false;
    entered = version > 0 ? (int)version : 0;
    return drop_capabilities(sandbox->rights, error);
}

bool sandbox_enter(const struct sandbox *sandbox, GError **error)
{
    g_autoptr(GError) local = NULL;

    if (enter(sandbox, &local))
        return true;
    return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "confining this process: %s", local->message);
}

const char *sandbox_name(void)
{
    static char name[32];

    if (!entered)
        return "none";
    g_snprintf(name, sizeof(name), "landlock-%d", entered);
    return name;
}
