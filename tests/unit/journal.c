/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The journal: what is written is there after a kill, and of several processes one owns a job. */
#include "blockmig/store/journal.h"

#include "formats/error.h"

#include <glib/gstdio.h>
#include <signal.h>
#include <sqlite3.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

struct fixture {
    char *directory;
    struct journal *journal;
};

static void remove_tree(const char *path)
{
    g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
    const char *name;
    while (dir && (name = g_dir_read_name(dir))) {
        g_autofree char *child = g_build_filename(path, name, NULL);
        if (g_file_test(child, G_FILE_TEST_IS_DIR))
            remove_tree(child);
        else
            g_unlink(child);
    }
    g_rmdir(path);
}

static struct journal *open_ok(const char *directory)
{
    g_autoptr(GError) error = NULL;
    struct journal *journal = journal_open(directory, &error);
    g_assert_no_error(error);
    g_assert_nonnull(journal);
    return journal;
}

static void set_up(struct fixture *f, gconstpointer data)
{
    f->directory = g_dir_make_tmp("blockmig-journal-XXXXXX", NULL);
    f->journal = open_ok(f->directory);
}

static void tear_down(struct fixture *f, gconstpointer data)
{
    journal_close(f->journal);
    remove_tree(f->directory);
    g_free(f->directory);
}

static struct journal_job *new_job(struct journal *journal, const char *target)
{
    g_autoptr(GError) error = NULL;
    struct journal_job *job = g_new0(struct journal_job, 1);
    job->command = g_strdup("copy");
    job->method = g_strdup("cold");
    job->phase = g_strdup("preflight");
    job->request = g_strdup("{\"cwd\":\"/\"}");
    job->source = g_strdup("/a/disk \xff\xfe.qcow2");
    job->target = g_strdup(target);
    journal_job_create(journal, job, &error);
    g_assert_no_error(error);
    return job;
}

static void save_disk(struct journal *journal, const struct journal_job *job, const char *target)
{
    g_autoptr(GError) error = NULL;
    struct journal_disk disk = {
        .index = 0, .source = job->source, .target = (char *)target, .size = UINT64_MAX};
    journal_disk_save(journal, job, &disk, &error);
    g_assert_no_error(error);
}

static void test_job_round_trip(struct fixture *f, gconstpointer data)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(journal_job_t) job = new_job(f->journal, "/b/disk.qcow2");
    g_assert_true(g_regex_match_simple("^[0-9]{8}-[0-9a-f]{4,8}$", job->id, 0, 0));
    g_assert_cmpint(job->owner_pid, ==, getpid());
    g_assert_true(journal_job_alive(job));
    g_assert_true(journal_job_set_phase(f->journal, job, "base", &error));
    g_autoptr(journal_job_t) loaded = journal_job_load(f->journal, job->id, &error);
    g_assert_nonnull(loaded);
    g_assert_cmpstr(loaded->source, ==, job->source);
    g_assert_cmpstr(loaded->phase, ==, "base");
    g_assert_cmpstr(loaded->request, ==, job->request);
    g_assert_null(loaded->result);
    g_assert_cmpint(loaded->started, ==, job->started);
    g_assert_cmpint(loaded->updated, >=, job->started);

    g_assert_true(journal_job_finish(f->journal, job, "failed", "a reason", &error));
    g_assert_cmpint(job->owner_pid, ==, 0);
    g_assert_false(journal_job_alive(job));
    g_autoptr(journal_job_t) finished = journal_job_find_target(f->journal, "/b/disk.qcow2", &error);
    g_assert_cmpstr(finished->id, ==, job->id);
    g_assert_cmpstr(finished->result, ==, "failed");
    g_assert_cmpstr(finished->error, ==, "a reason");
    g_assert_cmpint(finished->finished, >, 0);

    g_assert_true(journal_job_claim(f->journal, finished, &error));
    g_assert_null(finished->result);
    g_assert_cmpint(finished->finished, ==, 0);
    g_assert_cmpint(finished->owner_pid, ==, getpid());
}

static void test_job_lookup(struct fixture *f, gconstpointer data)
{
    g_autoptr(GError) error = NULL;
    g_assert_null(journal_job_load(f->journal, "20", &error));
    g_assert_no_error(error);
    g_assert_null(journal_job_find_target(f->journal, "/nowhere", &error));
    g_assert_no_error(error);

    g_autoptr(journal_job_t) a = new_job(f->journal, "/t/a");
    g_autofree char *prefix = g_strndup(a->id, strlen(a->id) - 1);
    g_autoptr(journal_job_t) by_prefix = journal_job_load(f->journal, prefix, &error);
    g_assert_cmpstr(by_prefix->id, ==, a->id);
    g_assert_null(journal_job_load(f->journal, "%", &error));
    g_assert_no_error(error);

    g_autoptr(journal_job_t) b = new_job(f->journal, "/t/b");
    g_assert_null(journal_job_load(f->journal, "20", &error));
    g_assert_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE);
    g_assert_nonnull(strstr(error->message, a->id));
    g_clear_error(&error);
    g_assert_null(journal_job_load(f->journal, "", &error));
    g_assert_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE);
    g_clear_error(&error);

    g_autoptr(GPtrArray) jobs = journal_job_list(f->journal, &error);
    g_assert_cmpuint(jobs->len, ==, 2);
    g_assert_cmpstr(((struct journal_job *)jobs->pdata[0])->id, ==, b->id);
}

/* Many jobs on one day: the four digits collide and the ids stay unique. */
static void test_job_ids(struct fixture *f, gconstpointer data)
{
    g_autoptr(GHashTable) seen = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    for (unsigned i = 0; i < 300; i++) {
        g_autofree char *target = g_strdup_printf("/t/%u", i);
        g_autoptr(journal_job_t) job = new_job(f->journal, target);
        g_assert_true(g_hash_table_add(seen, g_strdup(job->id)));
    }
}

static void test_disks_and_events(struct fixture *f, gconstpointer data)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(journal_job_t) job = new_job(f->journal, "/b/x");
    struct journal_disk disk = {.index = 1,
                                .source = (char *)"/a/x",
                                .target = (char *)"/b/x",
                                .source_format = (char *)"raw",
                                .target_format = (char *)"qcow2",
                                .source_identity = (char *)"i1",
                                .size = UINT64_C(1) << 63};
    g_assert_true(journal_disk_save(f->journal, job, &disk, &error));
    disk.index = 0;
    disk.target = (char *)"/b/y";
    g_assert_true(journal_disk_save(f->journal, job, &disk, &error));
    disk.receipt = (char *)"/r";
    g_assert_true(journal_disk_save(f->journal, job, &disk, &error));
    g_autoptr(GPtrArray) disks = journal_disk_list(f->journal, job, &error);
    g_assert_cmpuint(disks->len, ==, 2);
    const struct journal_disk *first = disks->pdata[0], *second = disks->pdata[1];
    g_assert_cmpuint(first->index, ==, 0);
    g_assert_cmpstr(first->receipt, ==, "/r");
    g_assert_cmpstr(second->target, ==, "/b/x");
    g_assert_cmpstr(second->target_format, ==, "qcow2");
    g_assert_null(second->target_identity);
    g_assert_true(second->size == UINT64_C(1) << 63);

    g_assert_true(journal_event(f->journal, job, "intent", "create", &error));
    g_assert_true(journal_event(f->journal, job, "result", NULL, &error));
    g_autoptr(GPtrArray) events = journal_events(f->journal, job, &error);
    g_assert_cmpuint(events->len, ==, 2);
    g_assert_cmpstr(((struct journal_event *)events->pdata[0])->text, ==, "create");
    g_assert_null(((struct journal_event *)events->pdata[1])->text);
}

static void test_told(struct fixture *f, gconstpointer data)
{
    static const char *const told[][2] = {
        {"intent", "create b"}, {"fact", "create c"},     {"intent", "create a"},     {"intent", NULL},
        {"intent", "create b"}, {"intent", "recreate d"}, {"intent", "create a.base"}};
    g_autoptr(GError) error = NULL;
    g_autoptr(journal_job_t) job = new_job(f->journal, "/a/x");

    for (unsigned i = 0; i < G_N_ELEMENTS(told); i++)
        g_assert_true(journal_event(f->journal, job, told[i][0], told[i][1], &error));
    g_autoptr(GPtrArray) names = journal_told(f->journal, job, "intent", "create ", &error);
    g_assert_cmpuint(names->len, ==, 3);
    g_assert_cmpstr(names->pdata[0], ==, "b");
    g_assert_cmpstr(names->pdata[1], ==, "a");
    g_assert_cmpstr(names->pdata[2], ==, "a.base");
    g_assert_true(journal_has_told(f->journal, job, "intent", "create a.base"));
    g_assert_false(journal_has_told(f->journal, job, "intent", "create a.b"));
    g_assert_false(journal_has_told(f->journal, job, "result", "create a"));
}

static void test_window(struct fixture *f, gconstpointer data)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(journal_job_t) job = new_job(f->journal, "/b/x");
    const struct journal_window first = {.deadline = 5, .facts = (char *)"{}"},
                                second = {.deadline = INT64_MAX, .facts = (char *)"{\"a\": 1}"};
    g_assert_null(journal_window_load(f->journal, job, &error));
    g_assert_no_error(error);
    g_assert_true(journal_window_save(f->journal, job, &first, &error));
    g_assert_true(journal_window_save(f->journal, job, &second, &error));
    g_autoptr(journal_window_t) window = journal_window_load(f->journal, job, &error);
    g_assert_cmpint(window->deadline, ==, INT64_MAX);
    g_assert_cmpstr(window->facts, ==, "{\"a\": 1}");
    g_assert_cmpint(window->keeper_pid, ==, 0);
    g_assert_false(journal_window_kept(window));

    /* It waits: nobody owns it, it has not ended, and only its owner may write. */
    g_assert_true(journal_job_rest(f->journal, job, &error));
    g_assert_false(journal_job_alive(job));
    g_assert_false(journal_window_save(f->journal, job, &first, NULL));
    g_assert_true(journal_window_keep(f->journal, job, &error));
    g_autoptr(journal_window_t) kept = journal_window_load(f->journal, job, &error);
    g_assert_cmpint(kept->keeper_pid, ==, getpid());
    g_assert_true(journal_window_kept(kept));
    kept->keeper_pid = 1; /* another process has the number now */
    g_assert_false(journal_window_kept(kept));
    g_assert_true(journal_job_claim(f->journal, job, &error));
    g_assert_null(job->result);
    g_assert_cmpint(job->owner_pid, ==, getpid());
}

static void test_checkpoint(struct fixture *f, gconstpointer data)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(journal_job_t) job = new_job(f->journal, "/b/x");
    save_disk(f->journal, job, "/b/x");
    struct journal_checkpoint c = {0}, r = {0};
    g_autoptr(GBytes) none = NULL;
    bool found = true;
    g_assert_true(journal_checkpoint_load(f->journal, job, 0, &r, &none, &found, &error));
    g_assert_false(found);
    g_assert_null(none);

    g_autoptr(GBytes) one = g_bytes_new_static("one", 3), two = g_bytes_new_static("\0two", 4);
    g_autoptr(GBytes) nothing = g_bytes_new_static("", 0);
    c = (struct journal_checkpoint){1, UINT64_MAX, 3, 4, 5, 6};
    g_assert_true(journal_checkpoint_save(f->journal, job, 0, &c, one, &error));
    c.frontier = 2;
    g_assert_true(journal_checkpoint_save(f->journal, job, 0, &c, two, &error));
    c.frontier = 3;
    g_assert_true(journal_checkpoint_save(f->journal, job, 0, &c, nothing, &error));
    g_autoptr(GBytes) digests = NULL;
    g_assert_true(journal_checkpoint_load(f->journal, job, 0, &r, &digests, &found, &error));
    g_assert_true(found);
    g_assert_true(memcmp(&r, &c, sizeof c) == 0);
    gsize length = 0;
    const void *bytes = g_bytes_get_data(digests, &length);
    g_assert_cmpmem(bytes, length, "one\0two", 7);

    /* A disk that is not in the journal has no checkpoint, and nothing of it stays. */
    g_assert_false(journal_checkpoint_save(f->journal, job, 7, &c, one, &error));
    g_assert_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED);
    g_clear_error(&error);

    /* Begun anew: nothing of the first attempt comes back, and the other disk keeps what it has. */
    struct journal_disk other = {.index = 1, .target = (char *)"/b/y"};
    g_assert_true(journal_disk_save(f->journal, job, &other, &error));
    g_assert_true(journal_checkpoint_save(f->journal, job, 1, &c, one, &error));
    g_assert_true(journal_checkpoint_forget(f->journal, job, 0, &error));
    g_clear_pointer(&digests, g_bytes_unref);
    g_assert_true(journal_checkpoint_load(f->journal, job, 0, &r, &digests, &found, &error));
    g_assert_false(found);
    g_assert_true(journal_checkpoint_save(f->journal, job, 0, &c, two, &error));
    g_assert_true(journal_checkpoint_load(f->journal, job, 0, &r, &digests, &found, &error));
    g_assert_cmpuint(g_bytes_get_size(digests), ==, 4);
    g_clear_pointer(&digests, g_bytes_unref);
    g_assert_true(journal_checkpoint_load(f->journal, job, 1, &r, &digests, &found, &error));
    g_assert_cmpuint(g_bytes_get_size(digests), ==, 3);

    g_assert_true(journal_checkpoint_clear(f->journal, job, &error));
    g_autoptr(GBytes) cleared = NULL;
    g_assert_true(journal_checkpoint_load(f->journal, job, 0, &r, &cleared, &found, &error));
    g_assert_false(found);
}

/* Runs `child` in a process of its own with its own journal; returns its pid. */
static pid_t start(const char *directory, void (*child)(struct journal *, int, void *), int out, void *data)
{
    pid_t pid = fork();
    g_assert_cmpint(pid, >=, 0);
    if (pid)
        return pid;
    static struct journal *journal; /* reachable to the end: no leak */
    g_autoptr(GError) error = NULL;
    journal = journal_open(directory, &error);
    g_assert_no_error(error);
    child(journal, out, data);
    _exit(0);
}

static int wait_for(pid_t pid)
{
    int status = 0;
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    return status;
}

static void child_hold(struct journal *journal, int out, void *data)
{
    g_autoptr(journal_job_t) job = new_job(journal, "/b/held");
    save_disk(journal, job, "/b/held-disk");
    g_assert_cmpint(write(out, job->id, strlen(job->id) + 1), >, 0);
    for (;;)
        pause();
}

static void test_owner_takeover(struct fixture *f, gconstpointer data)
{
    g_autoptr(GError) error = NULL;
    int channel[2];
    char id[64] = "";
    g_assert_cmpint(pipe(channel), ==, 0);
    pid_t pid = start(f->directory, child_hold, channel[1], NULL);
    g_assert_cmpint(read(channel[0], id, sizeof id), >, 0);
    g_autoptr(journal_job_t) job = journal_job_load(f->journal, id, &error);
    g_assert_cmpint(job->owner_pid, ==, pid);
    g_assert_true(journal_job_alive(job));

    g_assert_false(journal_job_claim(f->journal, job, &error));
    g_assert_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED);
    g_autofree char *number = g_strdup_printf("%d", pid);
    g_assert_nonnull(strstr(error->message, number));
    g_clear_error(&error);
    g_assert_false(journal_job_set_phase(f->journal, job, "base", &error));
    g_assert_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED);
    g_clear_error(&error);
    g_assert_cmpstr(job->phase, ==, "preflight");

    /* Another job onto the same target is refused, as a whole or by one of its disks. */
    struct journal_job rival = {.command = (char *)"copy", .source = job->source, .target = job->target};
    g_assert_false(journal_job_create(f->journal, &rival, &error));
    g_assert_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED);
    g_clear_error(&error);
    g_free(rival.id);
    g_free(rival.owner_process);
    g_autoptr(journal_job_t) other = new_job(f->journal, "/b/other");
    struct journal_disk disk = {.target = (char *)"/b/held-disk"};
    g_assert_false(journal_disk_save(f->journal, other, &disk, &error));
    g_assert_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED);
    g_clear_error(&error);

    /* A zombie owns nothing any more: no wait before the claim. */
    kill(pid, SIGKILL);
    siginfo_t info;
    g_assert_cmpint(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), ==, 0);
    g_assert_false(journal_job_alive(job));
    g_assert_true(journal_job_claim(f->journal, job, &error));
    g_assert_no_error(error);
    g_assert_true(journal_disk_save(f->journal, job, &disk, &error));
    wait_for(pid);
    close(channel[0]);
    close(channel[1]);
}

/* The number of a living process, but not the process that it was. */
static void test_owner_reused_pid(struct fixture *f, gconstpointer data)
{
    g_autoptr(journal_job_t) job = new_job(f->journal, "/b/x");
    g_assert_true(journal_job_alive(job));
    g_free(job->owner_process);
    job->owner_process = g_strdup("00000000-0000-0000-0000-000000000000/1");
    g_assert_false(journal_job_alive(job));
}

static void child_claim(struct journal *journal, int out, void *data)
{
    g_autoptr(journal_job_t) job = journal_job_load(journal, data, NULL);
    bool won = journal_job_claim(journal, job, NULL);
    char answer = won ? 'w' : 'l';
    g_assert_cmpint(write(out, &answer, 1), ==, 1);
    pause(); /* the winner lives until all have tried */
}

static void test_claim_is_atomic(struct fixture *f, gconstpointer data)
{
    enum { RIVALS = 8 };
    int channel[2];
    char id[64] = "", answers[RIVALS];
    pid_t pids[RIVALS];
    g_assert_cmpint(pipe(channel), ==, 0);
    pid_t owner = start(f->directory, child_hold, channel[1], NULL);
    g_assert_cmpint(read(channel[0], id, sizeof id), >, 0);
    for (unsigned round = 0; round < 5; round++) {
        kill(owner, SIGKILL);
        wait_for(owner);
        for (unsigned i = 0; i < RIVALS; i++)
            pids[i] = start(f->directory, child_claim, channel[1], id);
        unsigned winners = 0;
        for (unsigned i = 0; i < RIVALS; i++) {
            g_assert_cmpint(read(channel[0], &answers[i], 1), ==, 1);
            winners += answers[i] == 'w';
        }
        g_assert_cmpuint(winners, ==, 1);
        g_autoptr(journal_job_t) job = journal_job_load(f->journal, id, NULL);
        owner = (pid_t)job->owner_pid;
        for (unsigned i = 0; i < RIVALS; i++) {
            if (pids[i] == owner)
                continue;
            kill(pids[i], SIGKILL);
            wait_for(pids[i]);
        }
    }
    kill(owner, SIGKILL);
    wait_for(owner);
    close(channel[0]);
    close(channel[1]);
}

/* What was looked at before another process took the job to its end says nothing any more. */
static void test_claim_of_another_past(struct fixture *f, gconstpointer data)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(journal_job_t) job = new_job(f->journal, "/b/x");
    g_autoptr(journal_job_t) seen = journal_job_load(f->journal, job->id, &error);
    g_assert_true(journal_job_finish(f->journal, job, "done", NULL, &error));
    g_assert_false(journal_job_claim(f->journal, seen, &error));
    g_assert_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED);
    g_clear_error(&error);
    g_assert_true(journal_job_claim(f->journal, job, &error));
    g_assert_no_error(error);
}

/* Checkpoint n has frontier n, and the digests are the numbers 1 to n. */
static void child_checkpoints(struct journal *journal, int out, void *data)
{
    g_autoptr(journal_job_t) job = journal_job_load(journal, data, NULL);
    if (!journal_job_claim(journal, job, NULL))
        _exit(8);
    struct journal_checkpoint c;
    bool found;
    g_autoptr(GBytes) digests = NULL;
    if (!journal_checkpoint_load(journal, job, 0, &c, &digests, &found, NULL))
        _exit(7);
    for (uint64_t n = found ? c.frontier + 1 : 1;; n++) {
        /* The filling makes transactions of several pages, which a kill can cut. */
        uint64_t record[1000] = {n};
        c = (struct journal_checkpoint){n, n * 3, n * 5, n, n, n};
        g_autoptr(GBytes) bytes = g_bytes_new(record, n % 7 ? sizeof *record : sizeof record);
        if (!journal_checkpoint_save(journal, job, 0, &c, bytes, NULL))
            _exit(6);
        if (write(out, &n, sizeof n) != sizeof n)
            _exit(5);
    }
}

static uint64_t check_consistent(struct journal *journal, const struct journal_job *job)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GBytes) digests = NULL;
    struct journal_checkpoint c;
    bool found;
    journal_checkpoint_load(journal, job, 0, &c, &digests, &found, &error);
    g_assert_no_error(error);
    if (!found)
        return 0;
    g_assert_true(c.map_sum_low == c.frontier * 3 && c.map_sum_high == c.frontier * 5);
    gsize length = 0, at = 0;
    const uint8_t *bytes = g_bytes_get_data(digests, &length);
    for (uint64_t n = 1; n <= c.frontier; n++) {
        uint64_t record;
        g_assert_cmpuint(at + sizeof record, <=, length);
        memcpy(&record, bytes + at, sizeof record);
        g_assert_cmpuint(record, ==, n);
        at += n % 7 ? sizeof record : 1000 * sizeof record;
    }
    g_assert_cmpuint(at, ==, length);
    return c.frontier;
}

static void test_killed_while_writing(struct fixture *f, gconstpointer data)
{
    g_autoptr(journal_job_t) job = new_job(f->journal, "/b/x");
    save_disk(f->journal, job, "/b/x");
    g_assert_true(journal_job_finish(f->journal, job, "parked", NULL, NULL));
    uint64_t last = 0;
    for (unsigned round = 0; round < 30; round++) {
        int channel[2];
        g_assert_cmpint(pipe(channel), ==, 0);
        pid_t pid = start(f->directory, child_checkpoints, channel[1], job->id);
        close(channel[1]);
        uint64_t reported = 0, n;
        g_assert_cmpint(read(channel[0], &reported, sizeof reported), ==, sizeof reported);
        g_usleep((gulong)g_test_rand_int_range(0, 30000));
        kill(pid, SIGKILL);
        g_assert_true(WIFSIGNALED(wait_for(pid)));
        while (read(channel[0], &n, sizeof n) == sizeof n)
            reported = n;
        close(channel[0]);

        /* At least what was reported as durable, at most the one that was being written. */
        uint64_t frontier = check_consistent(f->journal, job);
        g_assert_cmpuint(frontier, >=, reported);
        g_assert_cmpuint(frontier, <=, reported + 1);
        g_assert_cmpuint(frontier, >, last);
        last = frontier;
    }
    g_test_message("%" G_GUINT64_FORMAT " checkpoints", last);
}

static void child_open_together(struct journal *journal, int out, void *data)
{
    for (unsigned i = 0; i < 10; i++) {
        g_autofree char *target = g_strdup_printf("/t/%d-%u", getpid(), i);
        g_autoptr(journal_job_t) job = new_job(journal, target);
        save_disk(journal, job, target);
        if (!journal_event(journal, job, "notice", "n", NULL))
            _exit(4);
    }
}

/* A new journal that many open, create and close at the same time. */
static void test_many_processes(void)
{
    for (unsigned round = 0; round < 5; round++) {
        g_autofree char *directory = g_dir_make_tmp("blockmig-journal-XXXXXX", NULL);
        pid_t pids[6];
        for (unsigned i = 0; i < G_N_ELEMENTS(pids); i++)
            pids[i] = start(directory, child_open_together, -1, NULL);
        for (unsigned i = 0; i < G_N_ELEMENTS(pids); i++)
            g_assert_cmpint(wait_for(pids[i]), ==, 0);
        struct journal *journal = open_ok(directory);
        g_autoptr(GPtrArray) jobs = journal_job_list(journal, NULL);
        g_assert_cmpuint(jobs->len, ==, 10 * G_N_ELEMENTS(pids));
        journal_close(journal);
        remove_tree(directory);
    }
}

static gpointer thread_events(gpointer data)
{
    struct journal *journal = ((void **)data)[0];
    for (unsigned i = 0; i < 50; i++)
        g_assert_true(journal_event(journal, ((void **)data)[1], "notice", "n", NULL));
    return NULL;
}

static void test_threads(struct fixture *f, gconstpointer data)
{
    g_autoptr(journal_job_t) job = new_job(f->journal, "/b/x");
    void *arguments[] = {f->journal, job};
    GThread *threads[4];
    for (unsigned i = 0; i < 4; i++)
        threads[i] = g_thread_new("events", thread_events, arguments);
    for (unsigned i = 0; i < 4; i++)
        g_thread_join(threads[i]);
    g_autoptr(GPtrArray) events = journal_events(f->journal, job, NULL);
    g_assert_cmpuint(events->len, ==, 200);
}

static void execute(const char *path, const char *sql)
{
    sqlite3 *db = NULL;
    g_assert_cmpint(sqlite3_open(path, &db), ==, SQLITE_OK);
    g_assert_cmpint(sqlite3_exec(db, sql, NULL, NULL, NULL), ==, SQLITE_OK);
    sqlite3_close(db);
}

static void assert_refused(const char *directory, const char *part)
{
    g_autoptr(GError) error = NULL;
    g_assert_null(journal_open(directory, &error));
    g_assert_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED);
    g_test_message("%s", error->message);
    g_assert_nonnull(strstr(error->message, part));
}

static void test_foreign(void)
{
    g_autofree char *directory = g_dir_make_tmp("blockmig-journal-XXXXXX", NULL);
    g_autofree char *path = g_build_filename(directory, "journal.sqlite", NULL);
    g_autofree char *text = g_strnfill(8192, 'x'), *before = NULL, *after = NULL;
    g_assert_true(g_file_set_contents(path, text, -1, NULL));
    assert_refused(directory, "no journal");
    g_assert_true(g_file_get_contents(path, &after, NULL, NULL));
    g_assert_cmpstr(after, ==, text);

    /* A database of somebody else is not touched. */
    g_unlink(path);
    execute(path, "CREATE TABLE t (x); INSERT INTO t VALUES (1)");
    gsize length_before = 0, length_after = 0;
    g_assert_true(g_file_get_contents(path, &before, &length_before, NULL));
    assert_refused(directory, "another program");
    g_free(after);
    g_assert_true(g_file_get_contents(path, &after, &length_after, NULL));
    g_assert_cmpmem(before, length_before, after, length_after);

    g_unlink(path);
    g_assert_cmpint(symlink("/etc/passwd", path), ==, 0);
    assert_refused(directory, "regular");
    remove_tree(directory);
}

static void test_newer(struct fixture *f, gconstpointer data)
{
    g_autofree char *path = g_build_filename(f->directory, "journal.sqlite", NULL);
    execute(path, "PRAGMA user_version = 99");
    assert_refused(f->directory, "newer");
}

static void test_damaged(struct fixture *f, gconstpointer data)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *path = g_build_filename(f->directory, "journal.sqlite", NULL);
    journal_close(f->journal);
    f->journal = NULL;
    g_autofree char *content = NULL;
    gsize length = 0;
    g_assert_true(g_file_get_contents(path, &content, &length, NULL));
    memset(content + 100, 0xff, 600);
    g_assert_true(g_file_set_contents(path, content, (gssize)length, NULL));
    g_assert_null(journal_open(f->directory, &error));
    g_assert_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED);
    g_assert_nonnull(strstr(error->message, "damaged"));
}

static void test_directory(void)
{
    g_autofree char *top = g_dir_make_tmp("blockmig-journal-XXXXXX", NULL);
    g_autofree char *deep = g_build_filename(top, "a", "b", NULL);
    g_autofree char *path = g_build_filename(deep, "journal.sqlite", NULL);
    g_autofree char *wal = g_strconcat(path, "-wal", NULL);
    g_assert_false(journal_exists(deep));
    mode_t mask = umask(0);
    struct journal *journal = open_ok(deep);
    umask(mask);
    g_assert_true(journal_exists(deep));
    g_assert_cmpstr(journal_directory(journal), ==, deep);
    struct stat st;
    g_assert_cmpint(stat(deep, &st), ==, 0);
    g_assert_cmpint(st.st_mode & 07777, ==, 0700);
    g_assert_cmpint(stat(path, &st), ==, 0);
    g_assert_cmpint(st.st_mode & 07777, ==, 0600);
    g_assert_cmpint(stat(wal, &st), ==, 0);
    g_assert_cmpint(st.st_mode & 07777, ==, 0600);
    journal_close(journal);

    g_autofree char *below_file = g_build_filename(path, "x", NULL);
    assert_refused(below_file, "directory");
    g_assert_cmpint(chmod(deep, 0777), ==, 0);
    assert_refused(deep, "everyone");
    if (geteuid() == 0)
        assert_refused("/proc/blockmig", "/proc/blockmig");
    remove_tree(top);
}

static void test_environment(void)
{
    g_autofree char *directory = g_dir_make_tmp("blockmig-journal-XXXXXX", NULL);
    g_setenv("BLOCKMIG_STATE_DIR", directory, TRUE);
    struct journal *journal = open_ok(NULL);
    g_assert_cmpstr(journal_directory(journal), ==, directory);
    journal_close(journal);
    g_unsetenv("BLOCKMIG_STATE_DIR");
    remove_tree(directory);
}

#define ADD(name, function) g_test_add("/journal/" name, struct fixture, NULL, set_up, function, tear_down)

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    ADD("job", test_job_round_trip);
    ADD("lookup", test_job_lookup);
    ADD("ids", test_job_ids);
    ADD("disks-events", test_disks_and_events);
    ADD("checkpoint", test_checkpoint);
    ADD("owner-takeover", test_owner_takeover);
    ADD("owner-reused-pid", test_owner_reused_pid);
    ADD("claim-is-atomic", test_claim_is_atomic);
    ADD("claim-of-another-past", test_claim_of_another_past);
    ADD("killed-while-writing", test_killed_while_writing);
    ADD("threads", test_threads);
    ADD("newer", test_newer);
    ADD("damaged", test_damaged);
    ADD("told", test_told);
    ADD("window", test_window);
    g_test_add_func("/journal/many-processes", test_many_processes);
    g_test_add_func("/journal/foreign", test_foreign);
    g_test_add_func("/journal/directory", test_directory);
    g_test_add_func("/journal/environment", test_environment);
    return g_test_run();
}
