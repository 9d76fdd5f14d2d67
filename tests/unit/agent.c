/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The guest's agent is played by a thread: one that works, one that is slow, one that refuses, one that is
 * dead. */
#include "blockmig/vm/agent.h"

#include "tests/unit/harness.h"

#include <sys/socket.h>
#include <sys/un.h>

struct fixture {
    char *directory, *path;
    int listener;
    GThread *thread;
    GError *error;
    /* how it behaves */
    bool stale;  /* has old answers to say first */
    bool silent; /* never answers */
    bool refuses, hangs_in_freeze;
    /* what it did */
    gint frozen, thaws;
};

static void answer(int fd, const char *text)
{
    g_assert_cmpint(send(fd, text, strlen(text), MSG_NOSIGNAL), !=, 0);
}

static void freeze(struct fixture *fixture, int fd)
{
    if (fixture->refuses) {
        answer(fd, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"disabled by policy\"}}\n");
        return;
    }
    g_atomic_int_set(&fixture->frozen, 1);
    if (!fixture->hangs_in_freeze)
        answer(fd, "{\"return\": 3}\n");
}

static void obey(struct fixture *fixture, int fd, const char *line)
{
    const char *id = strstr(line, "\"id\":");

    if (fixture->silent)
        return;
    if (strstr(line, "guest-sync-delimited")) {
        g_autofree char *reply =
            g_strdup_printf("\xff{\"return\": %" G_GINT64_FORMAT "}\n", g_ascii_strtoll(id + 5, NULL, 10));

        if (fixture->stale)
            answer(fd, "{\"return\": 12}\n{\"error\": {\"desc\": \"half a mess");
        answer(fd, reply);
    } else if (strstr(line, "guest-fsfreeze-freeze")) {
        freeze(fixture, fd);
    } else if (strstr(line, "guest-fsfreeze-thaw")) {
        g_atomic_int_set(&fixture->frozen, 0);
        g_atomic_int_inc(&fixture->thaws);
        answer(fd, "{\"return\": 3}\n");
    } else if (strstr(line, "guest-fsfreeze-status")) {
        answer(fd, g_atomic_int_get(&fixture->frozen) ? "{\"return\": \"frozen\"}\n"
                                                      : "{\"return\": \"thawed\"}\n");
    }
}

static gpointer play(gpointer opaque)
{
    struct fixture *fixture = opaque;
    int fd = accept(fixture->listener, NULL, NULL);
    g_autoptr(GString) line = g_string_new(NULL);
    char byte;

    while (recv(fd, &byte, 1, 0) == 1) {
        g_string_append_c(line, byte);
        if (byte != '\n')
            continue;
        obey(fixture, fd, line->str);
        g_string_truncate(line, 0);
    }
    close(fd);
    return NULL;
}

static void set_up(struct fixture *fixture, gconstpointer unused)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    fixture->directory = harness_directory();
    fixture->path = g_build_filename(fixture->directory, "agent", NULL);
    g_strlcpy(address.sun_path, fixture->path, sizeof(address.sun_path));
    fixture->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    g_assert_true(bind(fixture->listener, (struct sockaddr *)&address, sizeof(address)) == 0 &&
                  listen(fixture->listener, 1) == 0);
    fixture->thread = g_thread_new("agent", play, fixture);
}

static void tear_down(struct fixture *fixture, gconstpointer unused)
{
    g_thread_join(fixture->thread);
    close(fixture->listener);
    harness_remove(fixture->directory);
    g_free(fixture->directory);
    g_free(fixture->path);
    g_assert_no_error(fixture->error);
    /* Whatever happened. */
    g_assert_cmpint(fixture->frozen, ==, 0);
}

static struct agent *dial(struct fixture *fixture)
{
    struct agent *agent = agent_open(fixture->path, &fixture->error);

    g_assert_no_error(fixture->error);
    return agent;
}

#define FAILS(call, code, text)                                                                              \
    do {                                                                                                     \
        g_assert_false(call);                                                                                \
        harness_check_error(&fixture->error, BLOCKMIG_ERROR_##code, text, __LINE__);                         \
    } while (0)

static void test_freeze_and_thaw(struct fixture *fixture, gconstpointer unused)
{
    fixture->stale = true;
    g_autoptr(agent_t) agent = dial(fixture);
    unsigned filesystems = 0;
    bool frozen = false;

    g_assert_true(agent_freeze(agent, 0, &filesystems, &fixture->error));
    g_assert_cmpuint(filesystems, ==, 3);
    g_assert_true(agent_status(agent, &frozen, &fixture->error) && frozen);
    g_assert_true(agent_thaw(agent, &fixture->error));
    g_assert_true(agent_status(agent, &frozen, &fixture->error) && !frozen);
    g_assert_cmpint(fixture->thaws, ==, 1);
}

static void test_close_thaws(struct fixture *fixture, gconstpointer unused)
{
    struct agent *agent = dial(fixture);

    g_assert_true(agent_freeze(agent, 0, NULL, &fixture->error));
    agent_close(agent);
    g_assert_cmpint(fixture->thaws, ==, 1);
}

/* Nobody thaws: the watchdog does, and the caller is told. */
static void test_watchdog(struct fixture *fixture, gconstpointer unused)
{
    g_autoptr(agent_t) agent = dial(fixture);
    gint64 began = g_get_monotonic_time();

    g_assert_true(agent_freeze(agent, 200, NULL, &fixture->error));
    while (g_atomic_int_get(&fixture->frozen))
        g_usleep(1000);
    g_assert_cmpint(g_get_monotonic_time() - began, >=, 199000);
    g_assert_cmpint(g_get_monotonic_time() - began, <, 5000000);
    FAILS(agent_thaw(agent, &fixture->error), REFUSED, "longer than its limit");
    g_assert_cmpint(fixture->thaws, ==, 1);
}

static void test_refused(struct fixture *fixture, gconstpointer unused)
{
    fixture->refuses = true;
    g_autoptr(agent_t) agent = dial(fixture);

    FAILS(agent_freeze(agent, 0, NULL, &fixture->error), FAILED, "disabled by policy");
}

/* It froze, but never says so. */
static void test_hangs_in_freeze(struct fixture *fixture, gconstpointer unused)
{
    fixture->hangs_in_freeze = true;
    g_autoptr(agent_t) agent = dial(fixture);

    FAILS(agent_freeze(agent, 200, NULL, &fixture->error), UNREACHABLE, "does not answer");
    g_assert_cmpint(fixture->thaws, ==, 1);
}

/* What a guard does that has nothing but the descriptor. */
static void test_thaw_now(struct fixture *fixture, gconstpointer unused)
{
    g_autoptr(agent_t) agent = dial(fixture);

    g_assert_true(agent_freeze(agent, 0, NULL, &fixture->error));
    agent_thaw_now(agent_fd(agent));
    for (int i = 0; i < 5000 && g_atomic_int_get(&fixture->frozen); i++)
        g_usleep(1000);
    g_assert_cmpint(g_atomic_int_get(&fixture->frozen), ==, 0);
}

static void test_silent(struct fixture *fixture, gconstpointer unused)
{
    fixture->silent = true;
    FAILS(agent_open(fixture->path, &fixture->error), UNREACHABLE, "does not answer");
}

#define ADD(name, function) g_test_add("/agent/" name, struct fixture, NULL, set_up, function, tear_down)

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    ADD("freeze-and-thaw", test_freeze_and_thaw);
    ADD("close-thaws", test_close_thaws);
    ADD("watchdog", test_watchdog);
    ADD("refused", test_refused);
    ADD("hangs-in-freeze", test_hangs_in_freeze);
    ADD("thaw-now", test_thaw_now);
    ADD("silent", test_silent);
    return g_test_run();
}
