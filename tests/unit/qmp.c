/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The monitor's other end is played by a thread with a script: what it says, what it waits for, when it is
 * silent, when it hangs up.
 */
#include "blockmig/vm/qmp.h"

#include "blockmig/vm/vm.h"
#include "tests/unit/harness.h"

#include <sys/socket.h>
#include <sys/un.h>

#define GREETING "{\"QMP\": {\"version\": {\"qemu\": {\"major\": 7}}, \"capabilities\": [\"oob\"]}}\r\n"

enum act {
    SAY,   /* text; "%ID" becomes the id of the last command, "%OLD" of the one before */
    HEAR,  /* one line; it must contain text */
    SLEEP, /* milliseconds */
    FLOOD, /* text as often as count */
    HANG_UP,
};

struct step {
    enum act act;
    const char *text;
    unsigned count;
};

#define NEGOTIATED                                                                                           \
    {SAY, GREETING}, {HEAR, "qmp_capabilities"},                                                             \
    {                                                                                                        \
        SAY, "{\"return\": {}, \"id\": %ID}\r\n"                                                             \
    }

struct fixture {
    char *directory, *path;
    int listener;
    struct step *script; /* a copy: the thread may outlive the test that wrote it */
    unsigned steps;
    char *text; /* for scripts; freed when the thread is gone */
    GThread *thread;
    GError *error;
};

static void say(int fd, const char *text, gint64 id, gint64 old)
{
    g_autofree char *newer = g_strdup_printf("%" G_GINT64_FORMAT, id);
    g_autofree char *older = g_strdup_printf("%" G_GINT64_FORMAT, old);
    g_auto(GStrv) pieces = g_strsplit(text, "%ID", -1);
    g_autofree char *once = g_strjoinv(newer, pieces);
    g_auto(GStrv) more = g_strsplit(once, "%OLD", -1);
    g_autofree char *all = g_strjoinv(older, more);
    size_t length = strlen(all), at = 0;

    while (at < length) {
        ssize_t put = send(fd, all + at, length - at, MSG_NOSIGNAL);

        if (put <= 0)
            return;
        at += put;
    }
}

static gint64 hear(int fd, const char *wanted)
{
    g_autoptr(GString) line = g_string_new(NULL);
    const char *id;
    char byte;

    while (recv(fd, &byte, 1, 0) == 1 && byte != '\n')
        g_string_append_c(line, byte);
    if (!strstr(line->str, wanted))
        g_error("the client said %s, not %s", line->str, wanted);
    /* The last one: arguments may have an id too. */
    id = g_strrstr(line->str, "\"id\":");
    return id ? g_ascii_strtoll(id + 5, NULL, 10) : 0;
}

static gpointer play(gpointer opaque)
{
    struct fixture *fixture = opaque;
    int fd = accept(fixture->listener, NULL, NULL);
    gint64 id = 0, old = 0;
    char byte;

    for (unsigned i = 0; i < fixture->steps; i++) {
        const struct step *step = &fixture->script[i];

        switch (step->act) {
        case SAY:
            say(fd, step->text, id, old);
            break;
        case HEAR:
            old = id;
            id = hear(fd, step->text);
            break;
        case SLEEP:
            g_usleep(step->count * 1000);
            break;
        case FLOOD:
            for (unsigned n = 0; n < step->count; n++)
                say(fd, step->text, id, old);
            break;
        case HANG_UP:
            close(fd);
            return NULL;
        }
    }
    /* Until the client goes. */
    while (recv(fd, &byte, 1, 0) == 1)
        ;
    close(fd);
    return NULL;
}

static void set_up(struct fixture *fixture, gconstpointer unused)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    fixture->directory = harness_directory();
    fixture->path = g_build_filename(fixture->directory, "qmp", NULL);
    g_strlcpy(address.sun_path, fixture->path, sizeof(address.sun_path));
    fixture->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    g_assert_true(bind(fixture->listener, (struct sockaddr *)&address, sizeof(address)) == 0 &&
                  listen(fixture->listener, 1) == 0);
}

static void tear_down(struct fixture *fixture, gconstpointer unused)
{
    if (fixture->thread)
        g_thread_join(fixture->thread);
    close(fixture->listener);
    harness_remove(fixture->directory);
    g_free(fixture->directory);
    g_free(fixture->path);
    g_free(fixture->script);
    g_free(fixture->text);
    g_assert_no_error(fixture->error);
}

static void perform(struct fixture *fixture, const struct step *script, unsigned steps)
{
    fixture->script = g_memdup2(script, steps * sizeof(*script));
    fixture->steps = steps;
    fixture->thread = g_thread_new("monitor", play, fixture);
}

static struct qmp *dial(struct fixture *fixture, const struct step *script, unsigned steps, unsigned timeout)
{
    perform(fixture, script, steps);
    return qmp_connect(fixture->path, timeout, &fixture->error);
}

/* A connection to a monitor that plays these steps after the negotiation. */
#define CONNECT(...)                                                                                         \
    const struct step script[] = {NEGOTIATED, __VA_ARGS__};                                                  \
    g_autoptr(qmp_t) qmp = dial(fixture, script, G_N_ELEMENTS(script), 60000);                               \
    g_assert_no_error(fixture->error)

#define FAILS(call, code, text)                                                                              \
    do {                                                                                                     \
        g_assert_false(call);                                                                                \
        harness_check_error(&fixture->error, BLOCKMIG_ERROR_##code, text, __LINE__);                         \
    } while (0)

static bool named(const char *name, json_t *data, void *wanted)
{
    return strcmp(name, wanted) == 0;
}

static void test_events_between(struct fixture *fixture, gconstpointer unused)
{
    CONNECT({HEAR, "\"query-status\""},
            {SAY, "{\"timestamp\": {\"seconds\": 100, \"microseconds\": 7}, \"event\": \"STOP\"}\r\n"
                  "{\"return\": {\"a\": 5}, \"id\": 999}\r\n{\"return\": {\"a\": 1}, \"id\": %ID}\r\n"
                  "{\"event\": \"RESUME\", \"timestamp\": {\"seconds\": -1, \"microseconds\": -1}}\r\n"});
    g_autoptr(json_t) value = qmp_command(qmp, "query-status", NULL, 60000, &fixture->error);
    g_autoptr(json_t) resume = NULL;
    g_autoptr(json_t) stop = NULL;

    g_assert_no_error(fixture->error);
    g_assert_cmpint(json_integer_value(json_object_get(value, "a")), ==, 1);
    g_assert_true(qmp_wait_event(qmp, named, (void *)"RESUME", 60000, &resume, &fixture->error));
    g_assert_cmpint(qmp_event_time(resume), ==, 0);
    g_assert_true(qmp_wait_event(qmp, NULL, NULL, 0, &stop, &fixture->error));
    g_assert_cmpstr(qmp_event_name(stop), ==, "STOP");
    g_assert_cmpint(qmp_event_time(stop), ==, 100000007);
}

static void test_out_of_order(struct fixture *fixture, gconstpointer unused)
{
    CONNECT({HEAR, "\"first\""}, {HEAR, "\"second\""},
            {SAY, "{\"return\": {\"a\": 2}, \"id\": %ID}\r\n{\"return\": {\"a\": 1}, \"id\": %OLD}\r\n"});
    guint64 first, second;

    g_assert_true(qmp_send(qmp, "first", json_pack("{s:i}", "x", 1), &first, &fixture->error));
    g_assert_true(qmp_send(qmp, "second", NULL, &second, &fixture->error));
    g_autoptr(json_t) one = qmp_receive(qmp, "first", first, 60000, &fixture->error);
    g_autoptr(json_t) two = qmp_receive(qmp, "second", second, 60000, &fixture->error);
    g_assert_no_error(fixture->error);
    g_assert_cmpint(json_integer_value(json_object_get(one, "a")), ==, 1);
    g_assert_cmpint(json_integer_value(json_object_get(two, "a")), ==, 2);
}

static void test_refused(struct fixture *fixture, gconstpointer unused)
{
    CONNECT({HEAR, "\"stop\""},
            {SAY, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no, thanks\"}, \"id\": %ID}\r\n"},
            {HEAR, "\"cont\""}, {SAY, "{\"surprise\": 1, \"id\": %ID}\r\n"});

    FAILS(qmp_do(qmp, "stop", NULL, 60000, &fixture->error), FAILED, "\"stop\" was refused: no, thanks");
    FAILS(qmp_do(qmp, "cont", NULL, 60000, &fixture->error), UNREACHABLE, "neither");
}

/* A reply that comes too late is not taken for the next command's. */
static void test_late_reply(struct fixture *fixture, gconstpointer unused)
{
    CONNECT({HEAR, "\"slow\""}, {HEAR, "\"fast\""},
            {SAY, "{\"return\": {\"a\": 1}, \"id\": %OLD}\r\n{\"return\": {\"a\": 2}, \"id\": %ID}\r\n"});
    gint64 began = g_get_monotonic_time();

    FAILS(qmp_do(qmp, "slow", NULL, 100, &fixture->error), UNREACHABLE, "\"slow\": no reply in 100 ms");
    g_assert_cmpint(g_get_monotonic_time() - began, >=, 99000);
    g_autoptr(json_t) value = qmp_command(qmp, "fast", NULL, 60000, &fixture->error);
    g_assert_no_error(fixture->error);
    g_assert_cmpint(json_integer_value(json_object_get(value, "a")), ==, 2);
}

static void test_hang_up(struct fixture *fixture, gconstpointer unused)
{
    CONNECT({HEAR, "\"stop\""}, {SAY, "{\"return\": {}, \"i"}, {HANG_UP});

    FAILS(qmp_do(qmp, "stop", NULL, 60000, &fixture->error), UNREACHABLE, "closed the connection");
    FAILS(qmp_do(qmp, "cont", NULL, 60000, &fixture->error), UNREACHABLE, "closed the connection");
}

static void test_garbage(struct fixture *fixture, gconstpointer unused)
{
    CONNECT({HEAR, "\"stop\""}, {SAY, "{\"return\": {}, \"id\": oops}\r\n"});

    FAILS(qmp_do(qmp, "stop", NULL, 60000, &fixture->error), UNREACHABLE, "not JSON");
}

static void test_no_monitor(struct fixture *fixture, gconstpointer unused)
{
    static const struct step script[] = {{SAY, "SSH-2.0-OpenSSH_9.2\r\n"}};

    FAILS(dial(fixture, script, 1, 60000), UNREACHABLE, "byte 0x53");
}

static void test_no_greeting(struct fixture *fixture, gconstpointer unused)
{
    FAILS(dial(fixture, NULL, 0, 100), UNREACHABLE, "no greeting in 100 ms");
}

static void test_deep(struct fixture *fixture, gconstpointer unused)
{
    CONNECT({HEAR, "\"stop\""}, {SAY, "{\"return\": "}, {FLOOD, "[", 100000});

    FAILS(qmp_do(qmp, "stop", NULL, 60000, &fixture->error), UNREACHABLE, "deeper than 128");
}

static void test_many_values(struct fixture *fixture, gconstpointer unused)
{
    CONNECT({HEAR, "\"stop\""}, {SAY, "{\"return\": ["}, {FLOOD, "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,", 80000});

    FAILS(qmp_do(qmp, "stop", NULL, 300000, &fixture->error), UNREACHABLE, "more than 1048576 values");
}

static void test_huge(struct fixture *fixture, gconstpointer unused)
{
    fixture->text = g_strnfill(1 << 20, 'x');
    CONNECT({HEAR, "\"stop\""}, {SAY, "{\"return\": \""}, {FLOOD, fixture->text, 65});

    FAILS(qmp_do(qmp, "stop", NULL, 300000, &fixture->error), UNREACHABLE, "longer than 67108864 bytes");
}

/* The queue keeps the newest events, and a flood does not prolong a wait. */
static void test_event_flood(struct fixture *fixture, gconstpointer unused)
{
    CONNECT({HEAR, "\"stop\""}, {FLOOD, "{\"event\": \"NOISE\"}\r\n", QMP_EVENTS_MAX + 100},
            {SAY, "{\"event\": \"LAST\"}\r\n{\"return\": {}, \"id\": %ID}\r\n"},
            {FLOOD, "{\"event\": \"NOISE\"}\r\n", 200000});
    gint64 began;
    g_autoptr(json_t) event = NULL;
    g_autoptr(json_t) none = NULL;

    g_assert_true(qmp_do(qmp, "stop", NULL, 300000, &fixture->error));
    g_assert_cmpuint(qmp_events_lost(qmp), >=, 101);
    g_assert_true(qmp_wait_event(qmp, named, (void *)"LAST", 0, &event, &fixture->error));
    g_assert_nonnull(event);
    began = g_get_monotonic_time();
    g_assert_true(qmp_wait_event(qmp, named, (void *)"NEVER", 50, &none, &fixture->error));
    g_assert_null(none);
    g_assert_cmpint(g_get_monotonic_time() - began, <, 2000000);
}

/* An event wakes the waiter at once, not at the end of its time. */
static void test_wakes_at_once(struct fixture *fixture, gconstpointer unused)
{
    CONNECT({SLEEP, NULL, 100}, {SAY, "{\"event\": \"READY\"}\r\n"});
    gint64 began = g_get_monotonic_time();
    g_autoptr(json_t) event = NULL;

    g_assert_true(qmp_wait_event(qmp, named, (void *)"READY", 30000, &event, &fixture->error));
    g_assert_nonnull(event);
    g_test_message("woken after %.2f ms", (g_get_monotonic_time() - began) / 1e3);
    g_assert_cmpint(g_get_monotonic_time() - began, <, 5000000);
}

/* ---- what a real QEMU hardly ever does ---- */

#define OK     "{\"return\": {}, \"id\": %ID}\r\n"
#define OK_OLD "{\"return\": {}, \"id\": %OLD}\r\n"
#define JOBS(...)                                                                                            \
    {HEAR, "query-jobs"},                                                                                    \
    {                                                                                                        \
        SAY, "{\"return\": [" __VA_ARGS__ "], \"id\": %ID}\r\n"                                              \
    }
#define JOB(id, status, rest)                                                                                \
    "{\"id\": \"blockmig-" id "\", \"type\": \"mirror\", \"status\": \"" status "\"" rest "}"

static struct vm *open_machine(struct fixture *fixture, const struct step *script, unsigned steps)
{
    g_autofree char *name = g_strdup_printf("qmp:%s", fixture->path);
    struct vm *vm;

    perform(fixture, script, steps);
    vm = vm_open(name, &fixture->error);
    g_assert_no_error(fixture->error);
    return vm;
}

/* The first of two disks has gone when the second one refuses: it is brought back. */
static void test_pivot_is_undone(struct fixture *fixture, gconstpointer unused)
{
    const struct step script[] = {
        NEGOTIATED,
        {HEAR, "\"device\":\"a\""},
        {HEAR, "\"device\":\"b\""},
        {SAY, OK_OLD OK},
        JOBS(JOB("pivot-0", "ready", "") "," JOB("pivot-1", "ready", "")),
        JOBS(JOB("pivot-0", "ready", "") "," JOB("pivot-1", "ready", "")),
        {HEAR, "job-complete"},
        {HEAR, "job-complete"},
        {SAY, OK_OLD "{\"error\": {\"class\": \"GenericError\", \"desc\": \"not now\"}, \"id\": %ID}\r\n"},
        JOBS(JOB("pivot-0", "concluded", "") "," JOB("pivot-1", "ready", "")),
        {HEAR, "job-dismiss"},
        {SAY, OK},
        JOBS(JOB("pivot-1", "ready", "")),
        {HEAR, "block-job-cancel"},
        {SAY, OK},
        JOBS(JOB("pivot-1", "concluded", ", \"error\": \"Operation canceled\"")),
        {HEAR, "job-dismiss"},
        {SAY, OK},
        {HEAR, "query-block"},
        {SAY,
         "{\"return\": [{\"inserted\": {\"node-name\": \"ta\"}}, {}, {\"inserted\": {\"node-name\": \"b\"}}],"
         " \"id\": %ID}\r\n"},
        {HEAR, "\"device\":\"ta\",\"target\":\"a\",\"sync\":\"none\""},
        {SAY, OK},
        JOBS(JOB("return-0", "ready", "")),
        {HEAR, "job-complete"},
        {SAY, OK},
        JOBS(JOB("return-0", "concluded", "")),
        {HEAR, "job-dismiss"},
        {SAY, OK},
    };
    const struct vm_pivot disks[] = {{"a", "ta"}, {"b", "tb"}};
    g_autoptr(vm_t) vm = open_machine(fixture, script, G_N_ELEMENTS(script));

    FAILS(vm_pivot(vm, disks, 2, 60000, &fixture->error), FAILED,
          "\"b\": \"job-complete\" was refused: not now");
}

#define RESUMED "{\"event\": \"RESUME\", \"timestamp\": {\"seconds\": 1, \"microseconds\": 0}}\r\n"
#define STOPPED "{\"event\": \"STOP\", \"timestamp\": {\"seconds\": 2, \"microseconds\": 0}}\r\n"

/* What it wrote is not on the other side: it does not go there. */
static void test_pivot_of_a_resumed(struct fixture *fixture, gconstpointer unused)
{
    const struct step script[] = {
        NEGOTIATED,
        {SAY, RESUMED},
        {HEAR, "\"stop\""},
        {SAY, STOPPED OK},
        {HEAR, "blockdev-mirror"},
        {SAY, RESUMED OK},
        JOBS(JOB("pivot-0", "ready", "")),
        JOBS(JOB("pivot-0", "ready", "")),
        {HEAR, "block-job-cancel"},
        {SAY, OK},
        JOBS(JOB("pivot-0", "concluded", ", \"error\": \"Operation canceled\"")),
        {HEAR, "job-dismiss"},
        {SAY, OK},
        {HEAR, "query-block"},
        {SAY, "{\"return\": [{\"inserted\": {\"node-name\": \"a\"}}], \"id\": %ID}\r\n"},
    };
    const struct vm_pivot disks[] = {{"a", "ta"}};
    g_autoptr(vm_t) vm = open_machine(fixture, script, G_N_ELEMENTS(script));

    g_assert_true(vm_pause(vm, 1000, NULL, &fixture->error));
    FAILS(vm_pivot(vm, disks, 1, 60000, &fixture->error), CANCELLED, "somebody resumed the machine");
}

/* It is there already, and what it wrote comes back with it. */
static void test_pivot_resumed_late(struct fixture *fixture, gconstpointer unused)
{
    const struct step script[] = {
        NEGOTIATED,
        {SAY, RESUMED},
        {HEAR, "\"stop\""},
        {SAY, STOPPED OK},
        {HEAR, "\"sync\":\"none\""},
        {SAY, OK},
        JOBS(JOB("pivot-0", "ready", "")),
        {HEAR, "job-complete"},
        {SAY, OK},
        JOBS(JOB("pivot-0", "concluded", "")),
        {HEAR, "job-dismiss"},
        {SAY, RESUMED OK},
        JOBS(""),
        {HEAR, "query-block"},
        {SAY, "{\"return\": [{\"inserted\": {\"node-name\": \"ta\"}}], \"id\": %ID}\r\n"},
        {HEAR, "\"device\":\"ta\",\"target\":\"a\",\"sync\":\"top\""},
        {SAY, OK},
        JOBS(JOB("return-0", "ready", "")),
        {HEAR, "job-complete"},
        {SAY, OK},
        JOBS(JOB("return-0", "concluded", "")),
        {HEAR, "job-dismiss"},
        {SAY, OK},
    };
    const struct vm_pivot disks[] = {{"a", "ta"}};
    g_autoptr(vm_t) vm = open_machine(fixture, script, G_N_ELEMENTS(script));

    g_assert_true(vm_pause(vm, 1000, NULL, &fixture->error));
    FAILS(vm_pivot(vm, disks, 1, 60000, &fixture->error), CANCELLED, "somebody resumed the machine");
}

/* Where the disks are is not known when the monitor goes away in the middle. */
static void test_pivot_is_uncertain(struct fixture *fixture, gconstpointer unused)
{
    const struct step script[] = {
        NEGOTIATED,
        {HEAR, "\"device\":\"a\""},
        {SAY, OK},
        JOBS(JOB("pivot-0", "ready", "")),
        {HEAR, "job-complete"},
        {HANG_UP},
    };
    const struct vm_pivot disks[] = {{"a", "ta"}};
    g_autoptr(vm_t) vm = open_machine(fixture, script, G_N_ELEMENTS(script));

    FAILS(vm_pivot(vm, disks, 1, 60000, &fixture->error), UNCERTAIN, "closed the connection");
}

#define ADD(name, function) g_test_add("/qmp/" name, struct fixture, NULL, set_up, function, tear_down)

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    ADD("events-between", test_events_between);
    ADD("out-of-order", test_out_of_order);
    ADD("refused", test_refused);
    ADD("late-reply", test_late_reply);
    ADD("hang-up", test_hang_up);
    ADD("garbage", test_garbage);
    ADD("no-monitor", test_no_monitor);
    ADD("no-greeting", test_no_greeting);
    ADD("deep", test_deep);
    ADD("many-values", test_many_values);
    ADD("huge", test_huge);
    ADD("event-flood", test_event_flood);
    ADD("wakes-at-once", test_wakes_at_once);
    ADD("pivot-is-undone", test_pivot_is_undone);
    ADD("pivot-of-a-resumed", test_pivot_of_a_resumed);
    ADD("pivot-resumed-late", test_pivot_resumed_late);
    ADD("pivot-is-uncertain", test_pivot_is_uncertain);
    return g_test_run();
}
