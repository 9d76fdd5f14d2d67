/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The guard without a hypervisor: its other ends are played by threads, a monitor with one disk and a guest's
 * agent.  What it does to a real machine: tests/a-killed-migration-never-leaves-the-guest-paused.sh.
 */
#include "blockmig/vm/guard-internal.h"
#include "blockmig/vm/qmp-stream.h"
#include "tests/unit/harness.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#define QDEV "/machine/peripheral/vd0/virtio-backend"

struct fixture {
    char *directory, *path, *agent_path, *log;
    int listener, agent_listener;
    GThread *monitor, *agent;
    struct vm *vm;
    GError *error;
    const char *status, *node; /* of the machine; the node that its disk is on */
    bool garbage; /* the monitor answers with anything but JSON, once it is inherited, and hangs up */
    gint commands, conts, thaws;
};

/* ---- the other ends ---- */

static int listen_at(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    g_strlcpy(address.sun_path, path, sizeof(address.sun_path));
    g_assert_true(bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0 && listen(fd, 1) == 0);
    return fd;
}

static void say(int fd, const char *text)
{
    if (send(fd, text, strlen(text), MSG_NOSIGNAL) < 0)
        return; /* it ended */
}

/* Reads lines until the other side ends. */
static void converse(struct fixture *fixture, int fd, void (*reply)(struct fixture *, int, const char *))
{
    g_autoptr(GString) line = g_string_new(NULL);
    char byte;

    while (recv(fd, &byte, 1, 0) == 1) {
        if (byte == '\n') {
            reply(fixture, fd, line->str);
            g_string_truncate(line, 0);
        } else if (byte != '\xff') {
            g_string_append_c(line, byte);
        }
    }
    close(fd);
}

static char *value_of(struct fixture *fixture, const char *command, json_t *arguments)
{
    const char *property = json_string_value(json_object_get(arguments, "property"));

    if (strcmp(command, "query-status") == 0)
        return g_strdup_printf("{\"running\": %s, \"status\": \"%s\"}",
                               strcmp(fixture->status, "running") == 0 ? "true" : "false", fixture->status);
    if (strcmp(command, "query-blockstats") == 0)
        return g_strdup_printf("[{\"qdev\": \"" QDEV "\", \"node-name\": \"%s\"}]", fixture->node);
    if (strcmp(command, "query-named-block-nodes") == 0)
        return g_strdup_printf("[{\"node-name\": \"%s\", \"drv\": \"qcow2\"}]", fixture->node);
    if (strcmp(command, "qom-list") == 0)
        return g_strdup("[{\"name\": \"p\", \"type\": \"child<virtserialport>\"}]");
    if (strcmp(command, "qom-get") == 0)
        return g_strdup(strcmp(property, "name") == 0 ? "\"org.qemu.guest_agent.0\"" : "\"c0\"");
    if (strcmp(command, "query-chardev") == 0)
        return g_strdup_printf("[{\"label\": \"c0\", \"filename\": \"disconnected:unix:%s,server=on\"}]",
                               fixture->agent_path);
    return g_strdup(g_str_has_prefix(command, "query-") ? "[]" : "{}");
}

static void monitor_reply(struct fixture *fixture, int fd, const char *line)
{
    g_autoptr(json_t) message = json_loads(line, 0, NULL);
    const char *command = json_string_value(json_object_get(message, "execute"));
    json_int_t id = json_integer_value(json_object_get(message, "id"));
    g_autofree char *value = NULL;
    g_autofree char *text = NULL;

    if (!command)
        return;
    if (fixture->garbage && strcmp(command, "qmp_capabilities") != 0) {
        say(fd, "{\"return\": [[[[{\"a\": \xc3\x28 }]]]\n\x01\x02\n");
        shutdown(fd, SHUT_RDWR);
        return;
    }
    g_atomic_int_inc(&fixture->commands);
    if (strcmp(command, "cont") == 0) {
        g_atomic_int_inc(&fixture->conts);
        say(fd, "{\"event\": \"RESUME\", \"timestamp\": {\"seconds\": 9, \"microseconds\": 1}}\r\n");
    }
    value = value_of(fixture, command, json_object_get(message, "arguments"));
    text = g_strdup_printf("{\"return\": %s, \"id\": %" JSON_INTEGER_FORMAT "}\r\n", value, id);
    say(fd, text);
}

static void agent_reply(struct fixture *fixture, int fd, const char *line)
{
    g_autoptr(json_t) message = json_loads(line, 0, NULL);
    const char *command = json_string_value(json_object_get(message, "execute"));
    json_t *id = json_object_get(json_object_get(message, "arguments"), "id");
    g_autofree char *text =
        g_strdup_printf("\xff{\"return\": %" JSON_INTEGER_FORMAT "}\n", json_integer_value(id));

    if (g_strcmp0(command, "guest-sync-delimited") == 0)
        say(fd, text);
    else if (g_strcmp0(command, "guest-fsfreeze-thaw") == 0) {
        g_atomic_int_inc(&fixture->thaws);
        say(fd, "{\"return\": 1}\n");
    }
}

static gpointer play_monitor(gpointer opaque)
{
    struct fixture *fixture = opaque;
    int fd = accept(fixture->listener, NULL, NULL);

    say(fd, "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n");
    converse(fixture, fd, monitor_reply);
    return NULL;
}

static gpointer play_agent(gpointer opaque)
{
    struct fixture *fixture = opaque;
    int fd = accept(fixture->agent_listener, NULL, NULL);

    if (fd >= 0)
        converse(fixture, fd, agent_reply);
    return NULL;
}

static void set_up(struct fixture *fixture, gconstpointer unused)
{
    g_autofree char *name = NULL;

    fixture->directory = harness_directory();
    fixture->path = g_build_filename(fixture->directory, "qmp", NULL);
    fixture->agent_path = g_build_filename(fixture->directory, "agent", NULL);
    fixture->log = g_build_filename(fixture->directory, "log", NULL);
    fixture->listener = listen_at(fixture->path);
    fixture->agent_listener = listen_at(fixture->agent_path);
    fixture->status = "paused";
    fixture->node = "old";
    fixture->monitor = g_thread_new("monitor", play_monitor, fixture);
    fixture->agent = g_thread_new("agent", play_agent, fixture);
    name = g_strconcat("qmp:", fixture->path, NULL);
    fixture->vm = vm_open(name, &fixture->error);
    g_assert_no_error(fixture->error);
    fixture->commands = 0;
}

static void tear_down(struct fixture *fixture, gconstpointer unused)
{
    vm_close(fixture->vm);
    shutdown(fixture->agent_listener, SHUT_RDWR);
    g_thread_join(fixture->monitor);
    g_thread_join(fixture->agent);
    close(fixture->listener);
    close(fixture->agent_listener);
    harness_remove(fixture->directory);
    g_free(fixture->directory);
    g_free(fixture->path);
    g_free(fixture->agent_path);
    g_free(fixture->log);
}

static void log_says(const struct fixture *fixture, const char *wanted)
{
    g_autofree char *text = NULL;

    g_file_get_contents(fixture->log, &text, NULL, NULL);
    if (wanted ? !text || !strstr(text, wanted) : text != NULL)
        g_error("the log has \"%s\", not \"%s\"", text ? text : "", wanted ? wanted : "");
}

static const struct guard_device one[] = {{QDEV, "old", "new"}};

/* ---- as its owner uses it ---- */

static void test_nothing_to_do(struct fixture *fixture, gconstpointer unused)
{
    GError *error = NULL;
    struct guard *guard = guard_start(fixture->vm, fixture->log, &error);

    g_assert_no_error(error);
    for (int i = 0; i < 100; i++) {
        assert_ok(guard_arm(guard, one, 1, 0, &error));
        assert_ok(guard_merged(guard, &error));
        assert_ok(guard_disarm(guard, &error));
    }
    guard_stop(guard);
    g_assert_cmpint(g_atomic_int_get(&fixture->commands), ==, 0);
    log_says(fixture, NULL);
}

struct ending {
    const char *status, *node;
    bool merged, garbage;
    int conts;
    const char *log;
};

static const struct ending endings[] = {
    {"paused", "old", false, false, 1, "no device is on a new node"},
    {"paused", "old", true, false, 1, "no device is on a new node"},
    {"paused", "new", true, false, 1, "on the new nodes"},
    /* This monitor knows no jobs, so the way back fails. */
    {"paused", "new", false, false, 0, "THE GUEST STAYS PAUSED"},
    {"paused", "third", true, false, 1, "on node \"third\""},
    {"running", "old", false, false, 0, "runs already"},
    {"io-error", "old", false, false, 0, "\"io-error\" and stays so"},
    {"shutdown", "new", true, false, 0, "\"shutdown\" and stays so"},
    {"paused", "old", false, true, 0, "THE GUEST MAY BE PAUSED"},
};

/* Its owner's end while it is armed. */
static void test_ending(struct fixture *fixture, gconstpointer data)
{
    const struct ending *ending = data;
    GError *error = NULL;
    struct guard *guard = guard_start(fixture->vm, fixture->log, &error);

    g_assert_no_error(error);
    assert_ok(guard_arm(guard, one, 1, 0, &error));
    if (ending->merged)
        assert_ok(guard_merged(guard, &error));
    fixture->status = ending->status;
    fixture->node = ending->node;
    fixture->garbage = ending->garbage;
    guard_stop(guard);
    g_assert_cmpint(g_atomic_int_get(&fixture->conts), ==, ending->conts);
    log_says(fixture, ending->log);
}

static void test_merged_is_forgotten(struct fixture *fixture, gconstpointer unused)
{
    GError *error = NULL;
    struct guard *guard = guard_start(fixture->vm, fixture->log, &error);

    assert_ok(guard_arm(guard, one, 1, 0, &error));
    assert_ok(guard_merged(guard, &error));
    assert_ok(guard_arm(guard, one, 1, 0, &error));
    fixture->node = "new";
    guard_stop(guard);
    g_assert_cmpint(g_atomic_int_get(&fixture->conts), ==, 0);
    log_says(fixture, "not complete");
}

static void test_thaws(struct fixture *fixture, gconstpointer unused)
{
    GError *error = NULL;
    struct guard *guard = guard_start(fixture->vm, fixture->log, &error);

    assert_ok(guard_freezing(guard, &error));
    assert_ok(guard_thawed(guard, &error));
    assert_ok(guard_freezing(guard, &error));
    guard_stop(guard);
    g_assert_cmpint(g_atomic_int_get(&fixture->thaws), ==, 1);
    g_assert_cmpint(g_atomic_int_get(&fixture->conts), ==, 0);
    log_says(fixture, "are thawed");
}

static void test_signals_are_ignored(struct fixture *fixture, gconstpointer unused)
{
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE, SIGUSR1};
    GError *error = NULL;
    struct guard *guard = guard_start(fixture->vm, fixture->log, &error);

    for (guint i = 0; i < G_N_ELEMENTS(signals); i++)
        g_assert_cmpint(kill(guard_pid(guard), signals[i]), ==, 0);
    g_assert_cmpint(getsid(guard_pid(guard)), ==, guard_pid(guard));
    assert_ok(guard_arm(guard, one, 1, 0, &error));
    assert_ok(guard_disarm(guard, &error));
    guard_stop(guard);
}

/* An image that the guard held open would stay locked, a pipe open. */
static void test_inherits_nothing(struct fixture *fixture, gconstpointer unused)
{
    GError *error = NULL;
    int leak = open(fixture->directory, O_RDONLY); /* without O_CLOEXEC, as a library might */
    struct guard *guard = guard_start(fixture->vm, fixture->log, &error);
    g_autofree char *path = g_strdup_printf("/proc/%d/fd", (int)guard_pid(guard));
    g_autoptr(GDir) list = g_dir_open(path, 0, NULL);
    const char *name;

    while ((name = g_dir_read_name(list))) {
        g_autofree char *entry = g_build_filename(path, name, NULL);
        g_autofree char *target = g_file_read_link(entry, NULL);

        if (!g_str_equal(target, "/dev/null") && !g_str_has_prefix(target, "socket:") &&
            !g_str_equal(target, "anon_inode:[pidfd]"))
            g_error("descriptor %s of the guard is %s", name, target);
    }
    guard_stop(guard);
    close(leak);
}

static void test_dead_guard(struct fixture *fixture, gconstpointer unused)
{
    GError *error = NULL;
    struct guard *guard = guard_start(fixture->vm, fixture->log, &error);

    kill(guard_pid(guard), SIGKILL);
    assert_fails(guard_arm(guard, one, 1, 0, &error), BLOCKMIG_ERROR_REFUSED, "pause guard");
    assert_fails(guard_arm(guard, one, 1, 0, &error), BLOCKMIG_ERROR_REFUSED, "pause guard");
    assert_fails(guard_merged(guard, &error), BLOCKMIG_ERROR_REFUSED, "pause guard");
    guard_stop(guard);
    guard = guard_start(fixture->vm, fixture->log, &error);
    g_assert_no_error(error);
    /* One that hangs is as good as dead, and must not keep us waiting at the end. */
    kill(guard_pid(guard), SIGSTOP);
    assert_fails(guard_arm(guard, one, 1, 0, &error), BLOCKMIG_ERROR_REFUSED, "does not answer");
    guard_stop(guard);
    g_assert_cmpint(g_atomic_int_get(&fixture->commands), ==, 0);
}

static void test_too_many_devices(struct fixture *fixture, gconstpointer unused)
{
    struct guard_device devices[GUARD_DEVICES_MAX + 1];
    GError *error = NULL;
    struct guard *guard = guard_start(fixture->vm, fixture->log, &error);

    for (guint i = 0; i < G_N_ELEMENTS(devices); i++)
        devices[i] = one[0];
    assert_fails(guard_arm(guard, devices, G_N_ELEMENTS(devices), 0, &error), BLOCKMIG_ERROR_REFUSED,
                 "too long");
    assert_ok(guard_arm(guard, devices, GUARD_DEVICES_MAX, 0, &error));
    assert_ok(guard_disarm(guard, &error));
    devices[0].from = "\xff";
    assert_fails(guard_arm(guard, devices, 1, 0, &error), BLOCKMIG_ERROR_REFUSED, "UTF-8");
    guard_stop(guard);
}

/* ---- hostile packets ---- */

/* A guard whose channel we hold ourselves. */
static pid_t raw_guard(const struct fixture *fixture, int *channel)
{
    int pair[2], monitor = vm_fd(fixture->vm);
    pid_t pid;

    g_assert_cmpint(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), ==, 0);
    pid = fork();
    if (pid == 0) {
        int high = fcntl(pair[1], F_DUPFD, 10), higher = fcntl(monitor, F_DUPFD, 10);

        dup2(high, GUARD_CHANNEL);
        dup2(higher, GUARD_MONITOR);
        close(high);
        close(higher);
        execl("/proc/self/exe", "guard", GUARD_ARGUMENT, fixture->vm->name, fixture->log, NULL);
        _exit(127);
    }
    close(pair[1]);
    *channel = pair[0];
    return pid;
}

static char *listen_to(int channel)
{
    char packet[1024];
    ssize_t got = recv(channel, packet, sizeof(packet), 0);

    g_assert_cmpint(got, >, 0);
    return g_strndup(packet, got);
}

static void put(int channel, const void *packet, size_t length)
{
    while (send(channel, packet, length, MSG_NOSIGNAL) < 0)
        g_assert_cmpint(errno, ==, EINTR);
}

#define DEVICE "{\"qdev\": \"q\", \"from\": \"a\", \"to\": \"b\"}"

static const char *const refused[] = {
    "{",
    "null",
    "[]",
    "\"arm\"",
    "{}",
    "{\"do\": 5}",
    "{\"do\": \"explode\"}",
    "{\"do\": \"arm\"}",
    "{\"do\": \"arm\", \"do\": \"disarm\"}",
    "{\"do\": \"arm\", \"devices\": {}, \"limit\": 0}",
    "{\"do\": \"arm\", \"devices\": [], \"limit\": -1}",
    "{\"do\": \"arm\", \"devices\": [], \"limit\": 9223372036854775807}",
    "{\"do\": \"arm\", \"devices\": [], \"limit\": 1e3}",
    "{\"do\": \"arm\", \"devices\": [" DEVICE ", 1], \"limit\": 0}",
    "{\"do\": \"arm\", \"devices\": [{\"qdev\": \"q\", \"from\": \"a\", \"to\": null}], \"limit\": 0}",
    "{\"do\": \"arm\", \"devices\": [" DEVICE "], \"limit\": 0} {}",
};

static void put_refused(int channel, const char *packet, size_t length)
{
    g_autofree char *reply = NULL;

    put(channel, packet, length);
    reply = listen_to(channel);
    if (!strstr(reply, "\"error\""))
        g_error("%.*s: %s", (int)MIN(length, 200), packet, reply);
}

static void put_noise(int channel)
{
    g_autoptr(GRand) random = harness_rand();
    const char *seed_packet = "{\"do\": \"arm\", \"devices\": [" DEVICE "], \"limit\": 0}";
    size_t length = strlen(seed_packet);

    for (int i = 0; i < 2000; i++) {
        g_autofree char *packet = g_strdup(seed_packet);
        g_autofree char *reply = NULL;

        /* The first bytes decide what it is; damage there is never an order without an answer. */
        packet[g_rand_int_range(random, 0, 3)] = (char)g_rand_int_range(random, 0, 9);
        for (int n = g_rand_int_range(random, 1, 8); n > 0; n--)
            packet[g_rand_int_range(random, 8, length)] = (char)g_rand_int(random);
        put(channel, packet, g_rand_int_range(random, 1, length));
        reply = listen_to(channel);
        g_assert_nonnull(strstr(reply, "\"error\""));
    }
}

static void test_hostile_packets(struct fixture *fixture, gconstpointer unused)
{
    static const char good[] = "{\"do\": \"arm\", \"devices\": [" DEVICE "], \"limit\": 0}";
    g_autofree char *large = g_malloc(GUARD_PACKET_MAX + 1);
    g_autofree char *ready = NULL;
    g_autofree char *reply = NULL;
    int channel, status;
    pid_t pid = raw_guard(fixture, &channel);

    ready = listen_to(channel);
    g_assert_cmpstr(ready, ==, "{}");
    for (guint i = 0; i < G_N_ELEMENTS(refused); i++)
        put_refused(channel, refused[i], strlen(refused[i]));
    memset(large, '[', GUARD_PACKET_MAX + 1);
    put_refused(channel, large, GUARD_PACKET_MAX);
    /* Larger than a packet may be, though its beginning would do. */
    memset(large, ' ', GUARD_PACKET_MAX + 1);
    memcpy(large, good, strlen(good));
    put_refused(channel, large, GUARD_PACKET_MAX + 1);
    put_noise(channel);
    put(channel, good, strlen(good));
    reply = listen_to(channel);
    g_assert_cmpstr(reply, ==, "{}");
    put(channel, "{\"do\": \"disarm\"}", strlen("{\"do\": \"disarm\"}"));
    close(channel);
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    g_assert_cmpint(status, ==, 0);
    g_assert_cmpint(g_atomic_int_get(&fixture->commands), ==, 0);
}

#define ADD(name, function) g_test_add("/guard/" name, struct fixture, NULL, set_up, function, tear_down)

int main(int argc, char **argv)
{
    if (guard_wanted(argc, argv))
        return guard_main(argv);
    g_test_init(&argc, &argv, NULL);
    ADD("nothing-to-do", test_nothing_to_do);
    for (guint i = 0; i < G_N_ELEMENTS(endings); i++) {
        g_autofree char *name = g_strdup_printf("/guard/ending/%u", i);

        g_test_add(name, struct fixture, &endings[i], set_up, test_ending, tear_down);
    }
    ADD("merged-is-forgotten", test_merged_is_forgotten);
    ADD("thaws", test_thaws);
    ADD("signals-are-ignored", test_signals_are_ignored);
    ADD("inherits-nothing", test_inherits_nothing);
    ADD("dead-guard", test_dead_guard);
    ADD("too-many-devices", test_too_many_devices);
    ADD("hostile-packets", test_hostile_packets);
    return g_test_run();
}
