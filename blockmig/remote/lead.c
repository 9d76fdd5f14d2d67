/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/remote/lead.h"

#include "blockmig/storage/agent-client.h"
#include "blockmig/storage/names.h"
#include "formats/error.h"

#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHANNEL      3           /* descriptor of the process that leads */
#define NOT_STARTED  127         /* exit status, as of a shell */
#define LOCK         3           /* and of what it starts */
#define MAX_REQUEST  (64u << 10) /* bytes */
#define MAX_LOG      (64u << 10) /* bytes of it in one answer */
#define MAX_REPORT   (512u << 10)
#define REACH_SECS   "8" /* that an agent may be silent */
#define MAX_TEXT     1024u
#define KEEP_SECONDS (INT64_C(30) * 24 * 3600) /* that what became of a migration can be asked for */

/* What the process that leads was started with. */
static const char *program, *directory, *connection;
static int channel = -1; /* of the agent, to it */

/* ---- the command ------------------------------------------------------------------------------------ */

/* Nothing that could be taken for an option, or is not text. */
static const char *get_text(const json_t *arguments, const char *key, GError **error)
{
    const char *text = json_string_value(json_object_get(arguments, key));

    for (const char *at = text; at && *at; at++)
        if (g_ascii_iscntrl(*at))
            text = NULL;
    if (text && *text && *text != '-' && strlen(text) <= MAX_TEXT)
        return text;
    blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "%s: a text is expected", key);
    return NULL;
}

static const char *get_id(const json_t *arguments, GError **error)
{
    const char *id = get_text(arguments, "id", error);

    if (!id || agent_is_id(id))
        return id;
    blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "id: %u hexadecimal digits are expected", AGENT_ID_LENGTH);
    return NULL;
}

static bool add_number(GPtrArray *argv, const json_t *arguments, const char *key, const char *option,
                       const char *unit, GError **error)
{
    const json_t *value = json_object_get(arguments, key);

    if (!value)
        return true;
    if (!json_is_integer(value) || json_integer_value(value) < 0)
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "%s: a number is expected", key);
    g_ptr_array_add(
        argv, g_strdup_printf("--%s=%" JSON_INTEGER_FORMAT "%s", option, json_integer_value(value), unit));
    return true;
}

static bool add_word(GPtrArray *argv, const json_t *arguments, const char *key, const char *option,
                     GError **error)
{
    const char *word = json_string_value(json_object_get(arguments, key));

    if (!json_object_get(arguments, key))
        return true;
    if (!word || strspn(word, "abcdefghijklmnopqrstuvwxyz0123456789:") != strlen(word))
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "%s: a word is expected", key);
    g_ptr_array_add(argv, g_strdup_printf("--%s=%s", option, word));
    return true;
}

/* The caller's, ended by NULL. */
static GPtrArray *make_command(const json_t *arguments, GError **error)
{
    g_autoptr(GPtrArray) argv = g_ptr_array_new_with_free_func(g_free);
    const char *machine = get_text(arguments, "machine", error);
    const char *target = machine ? get_text(arguments, "target", error) : NULL;
    const char *const fixed[] = {"blockmig", "migrate", "--json", "--verbose", "--connect", connection};

    if (!target)
        return NULL;
    for (unsigned i = 0; i < G_N_ELEMENTS(fixed); i++)
        g_ptr_array_add(argv, g_strdup(fixed[i]));
    if (!add_number(argv, arguments, "bandwidth", "bandwidth", "B/s", error) ||
        !add_number(argv, arguments, "guest_share", "guest-share", "", error) ||
        !add_number(argv, arguments, "max_pause", "max-pause", "ms", error) ||
        !add_number(argv, arguments, "shutdown", "shutdown-timeout", "ms", error) ||
        !add_word(argv, arguments, "cdrom", "cdrom", error) ||
        !add_word(argv, arguments, "digest", "digest", error) ||
        !add_word(argv, arguments, "format", "target-format", error))
        return NULL;
    if (json_is_true(json_object_get(arguments, "delete_source")))
        g_ptr_array_add(argv, g_strdup("--delete-source"));
    g_ptr_array_add(argv, g_strdup("--"));
    g_ptr_array_add(argv, g_strdup(machine));
    g_ptr_array_add(argv, g_strdup(target));
    g_ptr_array_add(argv, NULL);
    return g_steal_pointer(&argv);
}

/* ---- leading ---------------------------------------------------------------------------------------- */

static char *place_of(const char *id, const char *file)
{
    return g_build_filename(directory, id, file, NULL);
}

static int open_new(const char *place, const char *name)
{
    g_autofree char *path = g_build_filename(place, name, NULL);

    return open(path, O_RDWR | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0600);
}

static void remove_place(const char *place)
{
    static const char *const files[] = {"lock", "leader", "log", "report", "status"};

    for (unsigned i = 0; i < G_N_ELEMENTS(files); i++) {
        g_autofree char *path = g_build_filename(place, files[i], NULL);

        unlink(path);
    }
    rmdir(place);
}

static bool is_held(const char *place)
{
    g_autofree char *path = g_build_filename(place, "lock", NULL);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    bool held = fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK;

    if (fd >= 0)
        close(fd);
    return held;
}

static void forget_old(void)
{
    GDir *dir = g_dir_open(directory, 0, NULL);
    const char *name;

    while (dir && (name = g_dir_read_name(dir))) {
        g_autofree char *place = g_build_filename(directory, name, NULL);
        GStatBuf st;

        if (g_stat(place, &st) == 0 && st.st_mtime < g_get_real_time() / G_USEC_PER_SEC - KEEP_SECONDS &&
            !is_held(place))
            remove_place(place);
    }
    if (dir)
        g_dir_close(dir);
}

static bool write_number(const char *place, const char *name, int number)
{
    g_autofree char *path = g_build_filename(place, name, NULL);
    g_autofree char *text = g_strdup_printf("%d\n", number);

    return g_file_set_contents_full(path, text, -1, G_FILE_SET_CONTENTS_DURABLE, 0600, NULL);
}

struct led {
    char *place;
    int lock, log, report;
    bool new;
};

/* The directory gets its name when all is in it: who finds it finds a lock that is held, or a migration that
 * is over. */
static bool make_place(const char *id, struct led *led, GError **error)
{
    g_autofree char *making = g_strdup_printf("%s/%s-%d", directory, id, (int)getpid());

    led->place = g_build_filename(directory, id, NULL);
    if (g_mkdir_with_parents(directory, 0700) < 0 || g_mkdir(making, 0700) < 0)
        return blockmig_set_errno(error, errno, "%s", making);
    led->lock = open_new(making, "lock");
    led->log = open_new(making, "log");
    led->report = open_new(making, "report");
    led->new = led->lock >= 0 && led->log >= 0 && led->report >= 0 && flock(led->lock, LOCK_EX) == 0 &&
               write_number(making, "leader", (int)getpid()) && rename(making, led->place) == 0;
    if (led->new)
        return true;
    remove_place(making);
    return g_file_test(led->place, G_FILE_TEST_IS_DIR) || blockmig_set_errno(error, errno, "%s", led->place);
}

/* The lock goes with it, and to nobody whom it starts. */
static bool start(const struct led *led, char **argv, pid_t *child)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none;
    int fault;

    sigemptyset(&none);
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawn_file_actions_adddup2(&actions, led->report, STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions, led->log, STDERR_FILENO);
    posix_spawn_file_actions_adddup2(&actions, led->lock, LOCK);
    posix_spawn_file_actions_addclosefrom_np(&actions, LOCK + 1);
    fault = posix_spawn(child, program, &actions, &attributes, argv, environ);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    return fault == 0;
}

/* Waits for its end, and passes a SIGTERM on to it. */
static int wait_for_end(pid_t child, const sigset_t *signals)
{
    int number, status;

    for (;;) {
        if (sigwait(signals, &number) == 0 && number == SIGTERM)
            kill(child, SIGTERM);
        else if (waitpid(child, &status, WNOHANG) == child)
            return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
}

/* This process was made for the request, and stays. */
static void lead(const struct led *led, char **argv)
{
    sigset_t signals;
    pid_t child;
    int null = open("/dev/null", O_RDWR);

    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        dup2(null, fd);
    setsid();
    signal(SIGCHLD, SIG_DFL);
    sigemptyset(&signals);
    sigaddset(&signals, SIGCHLD);
    sigaddset(&signals, SIGTERM);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    write_number(led->place, "status",
                 start(led, argv, &child) ? wait_for_end(child, &signals) : NOT_STARTED);
}

/* ---- acts ------------------------------------------------------------------------------------------- */

static GPtrArray *command; /* of begin(): what is to be led after the answer */
static struct led led = {.lock = -1, .log = -1, .report = -1};

static bool has_program(GError **error)
{
    return access(program, X_OK) == 0 ||
           blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s: %s", program, g_strerror(errno));
}

static json_t *begin(const json_t *arguments, GError **error)
{
    const char *id = get_id(arguments, error);

    if (!id || !(command = make_command(arguments, error)) || !has_program(error))
        return NULL;
    forget_old();
    return make_place(id, &led, error) ? json_object() : NULL;
}

/* At most `most` bytes from `offset` on; the caller's; "": there is none. */
static char *read_part(const char *path, off_t offset, size_t most, size_t *length)
{
    char *text = g_malloc(most + 1);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t done = fd < 0 ? 0 : pread(fd, text, most, offset);

    if (fd >= 0)
        close(fd);
    *length = (size_t)MAX(done, 0);
    text[*length] = '\0';
    return text;
}

/* Whole lines, unless no more will come. */
static void tell_log(json_t *answer, const char *id, json_int_t offset, bool running)
{
    g_autofree char *path = place_of(id, "log"), *valid = NULL;
    size_t length;
    g_autofree char *text = read_part(path, offset, MAX_LOG, &length);
    const char *end = running ? strrchr(text, '\n') : NULL;

    if (running)
        text[length = end ? (size_t)(end + 1 - text) : 0] = '\0';
    valid = g_utf8_make_valid(text, -1);
    json_object_set_new(answer, "log", json_string(valid));
    json_object_set_new(answer, "offset", json_integer(offset + (json_int_t)length));
}

static void tell_end(json_t *answer, const char *id)
{
    g_autofree char *status_path = place_of(id, "status"), *report_path = place_of(id, "report");
    size_t status_length, length;
    g_autofree char *status = read_part(status_path, 0, MAX_TEXT, &status_length);
    g_autofree char *report = read_part(report_path, 0, MAX_REPORT, &length);

    if (status_length)
        json_object_set_new(answer, "status", json_integer(g_ascii_strtoll(status, NULL, 10)));
    json_object_set_new(answer, "report", json_loadb(report, length, 0, NULL));
}

/* Its lock is looked at first: what it writes at its end is there once that is free. */
static json_t *look(const json_t *arguments, GError **error)
{
    const char *id = get_id(arguments, error);
    json_int_t offset = json_integer_value(json_object_get(arguments, "offset"));
    g_autofree char *place = id ? place_of(id, NULL) : NULL;
    bool running = place && is_held(place);
    json_t *answer;

    if (!id)
        return NULL;
    answer = json_pack("{s:b}", "running", running);
    tell_log(answer, id, MAX(offset, 0), running);
    if (!running)
        tell_end(answer, id);
    return answer;
}

static json_t *stop(const json_t *arguments, GError **error)
{
    const char *id = get_id(arguments, error);
    g_autofree char *place = id ? place_of(id, NULL) : NULL, *path = id ? place_of(id, "leader") : NULL;
    size_t length;
    g_autofree char *text = id ? read_part(path, 0, MAX_TEXT, &length) : NULL;
    pid_t leader = text ? (pid_t)g_ascii_strtoll(text, NULL, 10) : 0;

    if (leader > 1 && is_held(place))
        kill(leader, SIGTERM);
    return id ? json_object() : NULL;
}

static bool ask_agent(const char *file, struct name_info *info, GError **error)
{
    g_auto(agent_address_t) address = {NULL};
    struct agent_client *client;
    json_t *machines;
    bool writable;

    if (!agent_address_parse(file, &address, error) || !(client = agent_client_get(&address, error)) ||
        !(machines = agent_ask_json(client, "GET", "/v1/machines", NULL, NULL, error)))
        return false;
    writable = json_object_get(json_object_get(machines, "datastores"), address.datastore) != NULL;
    json_decref(machines);
    return (writable || blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                                      "there is no datastore '%s' that may be written", address.datastore)) &&
           name_look(file, info, error);
}

/* That somebody else does not answer is no silence of this agent. */
static json_t *reach(const json_t *arguments, GError **error)
{
    const char *file = get_text(arguments, "file", error);
    struct name_info info;

    if (!file)
        return NULL;
    if (!g_str_has_prefix(file, "blockmig://"))
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "%s: blockmig://HOST/DATASTORE is expected", file),
               NULL;
    g_setenv("BLOCKMIG_AGENT_TIMEOUT", REACH_SECS, TRUE);
    if (has_program(error) && ask_agent(file, &info, error))
        return json_pack("{s:b}", "seen", info.kind == NAME_FILE);
    (*error)->code = BLOCKMIG_ERROR_REFUSED;
    return NULL;
}

static const struct {
    const char *name;
    json_t *(*run)(const json_t *arguments, GError **error);
} acts[] = {{"begin", begin}, {"look", look}, {"stop", stop}, {"reach", reach}};

/* ---- the process ------------------------------------------------------------------------------------ */

static void send_all(int fd, const char *text)
{
    size_t length = strlen(text);

    for (ssize_t done; length > 0 && (done = send(fd, text, length, MSG_NOSIGNAL)) > 0;) {
        text += done;
        length -= (size_t)done;
    }
}

static void reply(int fd, json_t *answer, const GError *error)
{
    json_t *object = answer ? json_pack("{s:o}", "answer", answer)
                            : json_pack("{s:i, s:s}", "code", error->code, "error", error->message);
    g_autofree char *text = json_dumps(object, JSON_COMPACT);

    send_all(fd, text);
    json_decref(object);
    close(fd);
}

/* In a process of its own, for each request. */
static void serve(int fd, const char *text, size_t length)
{
    json_t *request = json_loadb(text, length, 0, NULL), *answer = NULL;
    const char *act = json_string_value(json_object_get(request, "act"));
    GError *error = NULL;

    for (unsigned i = 0; i < G_N_ELEMENTS(acts); i++)
        if (g_strcmp0(act, acts[i].name) == 0)
            answer = acts[i].run(json_object_get(request, "arguments"), &error);
    if (!answer && !error)
        blockmig_fail(&error, BLOCKMIG_ERROR_USAGE, "nothing of that kind is known");
    reply(fd, answer, error);
    if (led.new)
        lead(&led, (char **)command->pdata);
}

static ssize_t receive(char *buffer, size_t size, int *fd)
{
    char control[CMSG_SPACE(sizeof(int))];
    struct iovec part = {.iov_base = buffer, .iov_len = size};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
    ssize_t length = recvmsg(CHANNEL, &message, MSG_CMSG_CLOEXEC);
    struct cmsghdr *header = length > 0 ? CMSG_FIRSTHDR(&message) : NULL;

    *fd = -1;
    if (header && header->cmsg_type == SCM_RIGHTS && header->cmsg_len == CMSG_LEN(sizeof(int)))
        memcpy(fd, CMSG_DATA(header), sizeof(int));
    return length;
}

bool lead_begin(const struct agent_machines *machines, const char *in, int *theirs, GError **error)
{
    int ends[2];

    program = g_strdup(machines->program);
    connection = g_strconcat("qemu+unix:///system?socket=", machines->libvirt, NULL);
    directory = g_strdup(in);
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
        return blockmig_set_errno(error, errno, "a socket");
    channel = ends[0];
    *theirs = ends[1];
    return true;
}

int lead_main(int theirs)
{
    g_autofree char *buffer = g_malloc(MAX_REQUEST);
    sigset_t none;
    ssize_t length;
    int fd;

    prctl(PR_SET_NAME, "blockmigd-lead");
    dup2(theirs, CHANNEL);
    closefrom(CHANNEL + 1);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGCHLD, SIG_IGN);
    while ((length = receive(buffer, MAX_REQUEST, &fd)) > 0) {
        if (fd >= 0 && fork() == 0) {
            close(CHANNEL);
            serve(fd, buffer, (size_t)length);
            return 0;
        }
        if (fd >= 0)
            close(fd);
    }
    return 0;
}

/* ---- the agent -------------------------------------------------------------------------------------- */

static bool post(const char *text, int fd)
{
    char control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec part = {.iov_base = (char *)text, .iov_len = strlen(text)};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);

    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &fd, sizeof(int));
    return part.iov_len < MAX_REQUEST && sendmsg(channel, &message, MSG_NOSIGNAL) >= 0;
}

/* All that comes; the caller's. */
static GByteArray *read_all(int fd)
{
    GByteArray *bytes = g_byte_array_new();
    uint8_t part[4096];
    ssize_t done;

    while ((done = read(fd, part, sizeof(part))) > 0 || (done < 0 && errno == EINTR))
        g_byte_array_append(bytes, part, (guint)MAX(done, 0));
    return bytes;
}

static json_t *converse(const char *text, GError **error)
{
    int ends[2];
    g_autoptr(GByteArray) bytes = NULL;
    json_t *object;
    bool posted;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
        return blockmig_set_errno(error, errno, "a socket"), NULL;
    posted = post(text, ends[1]);
    close(ends[1]);
    bytes = posted ? read_all(ends[0]) : NULL;
    close(ends[0]);
    object = bytes ? json_loadb((const char *)bytes->data, bytes->len, 0, NULL) : NULL;
    if (!object)
        blockmig_fail(error, BLOCKMIG_ERROR_FAILED,
                      "the process that leads migrations does not answer: the agent has to be started anew");
    return object;
}

json_t *lead_ask(const char *act, json_t *arguments, GError **error)
{
    json_t *request = json_pack("{s:s, s:o}", "act", act, "arguments", arguments ? arguments : json_object());
    g_autofree char *text = json_dumps(request, JSON_COMPACT);
    json_t *object, *answer;

    json_decref(request);
    if (channel < 0)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "this agent was started without [machines]"),
               NULL;
    if (!(object = converse(text, error)))
        return NULL;
    answer = json_incref(json_object_get(object, "answer"));
    if (!answer)
        blockmig_fail(error, (int)json_integer_value(json_object_get(object, "code")), "%s",
                      json_string_value(json_object_get(object, "error")));
    json_decref(object);
    return answer;
}
