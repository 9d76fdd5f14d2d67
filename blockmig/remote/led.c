/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/remote/led.h"

#include "blockmig/storage/agent-client.h"
#include "formats/error.h"

#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#define LOCK         3           /* descriptor of blockmig */
#define NOT_STARTED  127         /* exit status, as of a shell */
#define MAX_LED      16u         /* at once */
#define MAX_LOG      (64u << 10) /* bytes of it in one answer */
#define MAX_REPORT   (512u << 10)
#define MAX_TEXT     1024u
#define KEEP_SECONDS (INT64_C(30) * 24 * 3600) /* that what became of a migration can be asked for */

static const char *program, *directory, *connection;

void led_set_up(const char *with, const char *in, const char *libvirt)
{
    program = g_strdup(with);
    directory = g_strdup(in);
    connection = g_strconcat("qemu+unix:///system?socket=", libvirt, NULL);
}

/* ---- the command ------------------------------------------------------------------------------------ */

/* Nothing that could be taken for an option, or is not text. */
const char *led_get_text(const json_t *arguments, const char *key, GError **error)
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
    const char *id = led_get_text(arguments, "id", error);

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
    const char *machine = led_get_text(arguments, "machine", error);
    const char *target = machine ? led_get_text(arguments, "target", error) : NULL;
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
        !add_word(argv, arguments, "chain", "chain", error) ||
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
    bool held = fd >= 0 && flock(fd, LOCK_SH | LOCK_NB) < 0 && errno == EWOULDBLOCK;

    if (fd >= 0)
        close(fd);
    return held;
}

/* What is old is forgotten; REFUSED: too many are led. */
static bool make_room(GError **error)
{
    GDir *dir = g_dir_open(directory, 0, NULL);
    unsigned count = 0;
    const char *name;

    while (dir && (name = g_dir_read_name(dir))) {
        g_autofree char *place = g_build_filename(directory, name, NULL);
        GStatBuf st;

        if (is_held(place))
            count++;
        else if (g_stat(place, &st) == 0 && st.st_mtime < g_get_real_time() / G_USEC_PER_SEC - KEEP_SECONDS)
            remove_place(place);
    }
    if (dir)
        g_dir_close(dir);
    return count < MAX_LED ||
           blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%u migrations are led already", count);
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

/* What led_begin() made in this process, and the command that led_stay() runs. */
static struct led made;
static GPtrArray *command;

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
static bool start(const struct led *led, pid_t *child)
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
    fault = posix_spawn(child, program, &actions, &attributes, (char **)command->pdata, environ);
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
void led_stay(void)
{
    sigset_t signals;
    pid_t child;
    int null = made.new ? open("/dev/null", O_RDWR) : -1;

    if (!made.new)
        return;
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        dup2(null, fd);
    setsid();
    signal(SIGCHLD, SIG_DFL);
    sigemptyset(&signals);
    sigaddset(&signals, SIGCHLD);
    sigaddset(&signals, SIGTERM);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    write_number(made.place, "status", start(&made, &child) ? wait_for_end(child, &signals) : NOT_STARTED);
}

/* ---- acts ------------------------------------------------------------------------------------------- */

bool led_has_program(GError **error)
{
    return access(program, X_OK) == 0 ||
           blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s: %s", program, g_strerror(errno));
}

json_t *led_begin(const json_t *arguments, GError **error)
{
    const char *id = get_id(arguments, error);

    if (!id || !(command = make_command(arguments, error)) || !led_has_program(error) || !make_room(error))
        return NULL;
    return make_place(id, &made, error) ? json_object() : NULL;
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
json_t *led_look(const json_t *arguments, GError **error)
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

json_t *led_stop(const json_t *arguments, GError **error)
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
