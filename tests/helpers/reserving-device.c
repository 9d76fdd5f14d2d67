/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Preloaded into all that uses the block device RESERVING_DEVICE: a device with persistent reservations,
 * which loop devices do not have.  It answers the kernel's calls for them and PERSISTENT RESERVE IN by SG_IO,
 * and fails writes as the kernel does (EBADE).  A host is a host name; the file RESERVING_STATE is what the
 * unit knows, and RESERVING_STATE.log gets a line for every change: host, action.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/pr.h>
#include <pthread.h>
#include <scsi/sg.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define HOSTS    8
#define CONFLICT 0x18
#define TYPE     5 /* write exclusive, registrants only */

struct state {
    uint32_t generation;
    int holder; /* index + 1; 0: nobody */
    struct {
        char host[64];
        uint64_t key; /* 0: not registered */
    } hosts[HOSTS];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int state_fd = -1, log_fd = -1;
static dev_t device;
static char self[64];

/* Now, for the process may confine itself. */
__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("RESERVING_STATE"), *name = getenv("RESERVING_DEVICE");
    struct stat st;
    char log[4096];

    if (!path || !name || stat(name, &st) < 0)
        return;
    device = st.st_rdev;
    gethostname(self, sizeof(self) - 1);
    snprintf(log, sizeof(log), "%s.log", path);
    log_fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    state_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
}

static bool is_ours(int fd)
{
    struct stat st;

    return state_fd >= 0 && fstat(fd, &st) == 0 && S_ISBLK(st.st_mode) && st.st_rdev == device;
}

static void enter(struct state *state)
{
    pthread_mutex_lock(&lock);
    while (flock(state_fd, LOCK_EX) < 0)
        ;
    memset(state, 0, sizeof(*state));
    if (pread(state_fd, state, sizeof(*state), 0) < 0)
        abort();
}

static void leave(void)
{
    flock(state_fd, LOCK_UN);
    pthread_mutex_unlock(&lock);
}

static int me(const struct state *state)
{
    for (int i = 0; i < HOSTS; i++)
        if (state->hosts[i].key && strcmp(state->hosts[i].host, self) == 0)
            return i;
    return -1;
}

/* ---- changes ------------------------------------------------------------------------------------- */

static int do_register(struct state *state, const struct pr_registration *request)
{
    int at = me(state);

    if (!(request->flags & PR_FL_IGNORE_KEY) && request->old_key != (at < 0 ? 0 : state->hosts[at].key))
        return CONFLICT;
    for (int i = 0; at < 0 && i < HOSTS; i++)
        if (!state->hosts[i].key)
            at = i;
    strcpy(state->hosts[at].host, self);
    state->hosts[at].key = request->new_key;
    if (!request->new_key && state->holder == at + 1)
        state->holder = 0;
    return 0;
}

static int do_reserve(struct state *state, const struct pr_reservation *request, bool release)
{
    int at = me(state);

    if (at < 0 || state->hosts[at].key != request->key || request->type != PR_WRITE_EXCLUSIVE_REG_ONLY ||
        (!release && state->holder && state->holder != at + 1))
        return CONFLICT;
    if (!release)
        state->holder = at + 1;
    else if (state->holder == at + 1)
        state->holder = 0;
    return 0;
}

static int do_preempt(struct state *state, const struct pr_preempt *request)
{
    int at = me(state);
    bool found = false;

    if (at < 0 || state->hosts[at].key != request->new_key || request->type != PR_WRITE_EXCLUSIVE_REG_ONLY)
        return CONFLICT;
    for (int i = 0; i < HOSTS; i++) {
        if (state->hosts[i].key != request->old_key)
            continue;
        found = true;
        if (state->holder == i + 1)
            state->holder = at + 1;
        if (i != at)
            state->hosts[i].key = 0;
    }
    return found ? 0 : CONFLICT;
}

static int change(unsigned long what, void *argument)
{
    const char *name = "?";
    struct state state;
    int result = 0;

    enter(&state);
    switch (what) {
    case IOC_PR_REGISTER:
        name = ((struct pr_registration *)argument)->new_key ? "register" : "unregister";
        result = do_register(&state, argument);
        break;
    case IOC_PR_RESERVE:
        name = "reserve";
        result = do_reserve(&state, argument, false);
        break;
    case IOC_PR_RELEASE:
        name = "release";
        result = do_reserve(&state, argument, true);
        break;
    case IOC_PR_PREEMPT:
    case IOC_PR_PREEMPT_ABORT:
        name = what == IOC_PR_PREEMPT ? "preempt" : "abort";
        result = do_preempt(&state, argument);
        break;
    }
    state.generation++;
    if (result == 0 && pwrite(state_fd, &state, sizeof(state), 0) != sizeof(state))
        abort();
    dprintf(log_fd, "%s %s%s\n", self, name, result ? " conflict" : "");
    leave();
    return result;
}

/* ---- questions ----------------------------------------------------------------------------------- */

static void put(uint8_t *to, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++)
        to[i] = (uint8_t)(value >> 8 * (bytes - 1 - i));
}

static int ask(struct sg_io_hdr *io)
{
    uint8_t answer[8 + 8 * HOSTS] = {0};
    int action = io->cmdp[1] & 0x1f;
    size_t length = 0, given;
    struct state state;

    enter(&state);
    leave();
    put(answer, state.generation, 4);
    for (int i = 0; action == 0 && i < HOSTS; i++)
        if (state.hosts[i].key) {
            put(answer + 8 + length, state.hosts[i].key, 8);
            length += 8;
        }
    if (action == 1 && state.holder) {
        put(answer + 8, state.hosts[state.holder - 1].key, 8);
        answer[21] = TYPE;
        length = 16;
    }
    put(answer + 4, length, 4);
    given = 8 + length < io->dxfer_len ? 8 + length : io->dxfer_len;
    memcpy(io->dxferp, answer, given);
    io->resid = (int)(io->dxfer_len - given);
    io->status = io->host_status = io->driver_status = 0;
    io->sb_len_wr = 0;
    if (action > 1) { /* invalid field in CDB */
        static const uint8_t sense[18] = {0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24};

        memcpy(io->sbp, sense, sizeof(sense));
        io->sb_len_wr = sizeof(sense);
        io->status = 2;
    }
    return 0;
}

int ioctl(int fd, unsigned long what, ...)
{
    static int (*real)(int, unsigned long, ...);
    void *argument;
    va_list args;

    va_start(args, what);
    argument = va_arg(args, void *);
    va_end(args);
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "ioctl");
    if (_IOC_TYPE(what) == 'p' && is_ours(fd))
        switch (what) {
        case IOC_PR_REGISTER:
        case IOC_PR_RESERVE:
        case IOC_PR_RELEASE:
        case IOC_PR_PREEMPT:
        case IOC_PR_PREEMPT_ABORT:
            return change(what, argument);
        }
    if (what == SG_IO && is_ours(fd) && ((struct sg_io_hdr *)argument)->cmdp[0] == 0x5e)
        return ask(argument);
    return real(fd, what, argument);
}

/* ---- writes -------------------------------------------------------------------------------------- */

static bool is_shut_out(int fd)
{
    struct state state;

    if (!is_ours(fd))
        return false;
    enter(&state);
    leave();
    if (!state.holder || me(&state) >= 0)
        return false;
    dprintf(log_fd, "%s write conflict\n", self);
    errno = EBADE;
    return true;
}

#define WRITER(name, parameters, arguments)                                                                  \
    ssize_t name parameters                                                                                  \
    {                                                                                                        \
        static ssize_t(*real) parameters;                                                                    \
                                                                                                             \
        if (!real)                                                                                           \
            *(void **)&real = dlsym(RTLD_NEXT, #name);                                                       \
        return is_shut_out(fd) ? -1 : real arguments;                                                        \
    }

WRITER(write, (int fd, const void *data, size_t size), (fd, data, size))
WRITER(pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
WRITER(pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))
WRITER(pwritev, (int fd, const struct iovec *pieces, int count, off_t at), (fd, pieces, count, at))
WRITER(pwritev64, (int fd, const struct iovec *pieces, int count, off64_t at), (fd, pieces, count, at))
