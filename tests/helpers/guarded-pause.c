/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * guarded-pause SOCKET LOG DIRECTORY ROUND POINT
 *
 * The switchover of all disks of a machine, as the phases do it, from whatever raw files they are on to new
 * ones in DIRECTORY.  At POINT (or "random:MICROSECONDS" after the arming) it ends itself with SIGKILL, after
 * it has said when, by the clock that QEMU stamps its events with.
 *
 * It says:  guard PID / from NODE... / to NODE... / round-trip MICROSECONDS / died MICROSECONDS / moved
 */
#include "blockmig/vm/guard.h"
#include "blockmig/vm/qemu.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DISKS_MAX   4
#define STUCK_LIMIT 300 /* ms */

struct disk {
    char *qdev, *from, *source;
    char *to, *target;
};

static const char *point;
static struct vm *vm;
static struct guard *guard;
static struct disk disks[DISKS_MAX];
static unsigned count;
static gint64 armed_at;

static void give_up(const GError *error)
{
    printf("failed %s\n", error->message);
    guard_stop(guard);
    exit(3);
}

/* `call` uses a GError *error of the caller's. */
#define need(call)                                                                                           \
    do {                                                                                                     \
        if (!(call))                                                                                         \
            give_up(error);                                                                                  \
    } while (0)

static void die(void)
{
    printf("died %" G_GINT64_FORMAT "\n", g_get_real_time());
    kill(getpid(), SIGKILL);
    pause();
}

static void at(const char *here)
{
    if (strcmp(point, here) == 0)
        die();
}

static gpointer die_later(gpointer microseconds)
{
    g_usleep(GPOINTER_TO_UINT(microseconds));
    die();
    return NULL;
}

/* As much of a command as the kernel took before the end. */
static void at_half(const char *here, const char *text)
{
    if (strcmp(point, here) != 0)
        return;
    if (write(vm_fd(vm), text, strlen(text)) < 0)
        exit(3);
    die();
}

/* ---- the disks ---- */

static void look(const char *directory, const char *round)
{
    GError *error = NULL;
    g_autoptr(vm_description_t) description = vm_describe(vm, &error);

    need(description && description->disks->len <= DISKS_MAX);
    for (; count < description->disks->len; count++) {
        const struct vm_disk *disk = description->disks->pdata[count];
        const struct vm_layer *layer = disk->layers->pdata[0];

        disks[count].qdev = g_strdup(disk->qdev);
        disks[count].from = g_strdup(disk->node);
        disks[count].source = g_strdup(layer->filename);
        disks[count].to = g_strdup_printf("t%s-%u", round, count);
        disks[count].target = g_strdup_printf("%s/t%s-%u.raw", directory, round, count);
    }
    printf("from");
    for (unsigned i = 0; i < count; i++)
        printf(" %s", disks[i].from);
    printf("\nto");
    for (unsigned i = 0; i < count; i++)
        printf(" %s", disks[i].to);
    printf("\n");
}

/* What earlier rounds left open. */
static void tidy(void)
{
    GError *error = NULL;
    g_autoptr(json_t) nodes =
        qmp_command(qemu_of(vm)->qmp, "query-named-block-nodes", NULL, QMP_TIMEOUT, &error);
    size_t i;
    json_t *entry;

    need(nodes);
    json_array_foreach(nodes, i, entry)
    {
        const char *name = member_text(entry, "node-name");
        bool active = false;

        for (unsigned d = 0; d < count; d++)
            active |= strcmp(disks[d].from, name) == 0;
        if (name[0] == 't' && !active)
            need(vm_remove_node(vm, name, &error));
    }
}

/* The part of each disk between two sixteenths, durably. */
static void merge(unsigned begin, unsigned end)
{
    for (unsigned i = 0; i < count; i++) {
        int from = open(disks[i].source, O_RDONLY | O_CLOEXEC);
        int to = open(disks[i].target, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        off_t size = lseek(from, 0, SEEK_END);
        g_autofree char *bytes = g_malloc(size / 16);

        if (from < 0 || to < 0 || ftruncate(to, size) < 0)
            exit(3);
        for (unsigned part = begin; part < end; part++)
            if (pread(from, bytes, size / 16, part * (size / 16)) != size / 16 ||
                pwrite(to, bytes, size / 16, part * (size / 16)) != size / 16)
                exit(3);
        if (fsync(to) < 0)
            exit(3);
        close(from);
        close(to);
    }
}

static void add_targets(void)
{
    GError *error = NULL;

    for (unsigned i = 0; i < count; i++) {
        struct vm_node node = {
            .name = disks[i].to, .filename = disks[i].target, .format = "raw", .direct = true};

        need(vm_add_node(vm, &node, &error));
    }
}

/* ---- the pivot, in one or step by step ---- */

static void pivot(void)
{
    struct vm_pivot pivots[DISKS_MAX];
    GError *error = NULL;

    for (unsigned i = 0; i < count; i++)
        pivots[i] = (struct vm_pivot){disks[i].from, disks[i].to};
    need(vm_pivot(vm, pivots, count, 5000, &error));
}

static void job_is(unsigned i, enum vm_job_state wanted)
{
    g_autofree char *id = g_strdup_printf("blockmig-pivot-%u", i);
    g_auto(vm_job_t) job = {0};
    GError *error = NULL;

    need(vm_job_wait(vm, id, wanted, 5000, &job, &error));
}

/* The commands that vm_pivot() gives, one disk after the other, so that the end can come in between. */
static void pivot_by_hand(void)
{
    struct qmp *qmp = qemu_of(vm)->qmp;
    GError *error = NULL;
    guint64 ids[DISKS_MAX];

    for (unsigned i = 0; i < count; i++) {
        g_autofree char *id = g_strdup_printf("blockmig-pivot-%u", i);
        json_t *arguments = json_pack("{s:s, s:s, s:s, s:s, s:b}", "job-id", id, "device", disks[i].from,
                                      "target", disks[i].to, "sync", "none", "auto-dismiss", false);

        need(qmp_send(qmp, "blockdev-mirror", arguments, &ids[i], &error));
    }
    at("mirrors-sent");
    for (unsigned i = 0; i < count; i++) {
        g_autoptr(json_t) value = qmp_receive(qmp, "blockdev-mirror", ids[i], QMP_TIMEOUT, &error);

        need(value);
        job_is(i, VM_JOB_READY);
    }
    at("mirrors-ready");
    for (unsigned i = 0; i < count; i++) {
        g_autofree char *id = g_strdup_printf("blockmig-pivot-%u", i);

        need(qmp_send(qmp, "job-complete", json_pack("{s:s}", "id", id), &ids[i], &error));
        at(i == 0 ? "first-complete-sent" : "second-complete-sent");
        job_is(i, VM_JOB_DONE);
        at(i == 0 ? "first-pivoted" : "second-pivoted");
    }
}

static void switch_over(void)
{
    bool by_hand = strstr(point, "mirrors-") || strstr(point, "first-") || strstr(point, "second-");
    GError *error = NULL;

    need(vm_pause(vm, 5000, NULL, &error));
    at("stopped");
    if (strcmp(point, "stuck") == 0) {
        printf("died %" G_GINT64_FORMAT "\n", armed_at + STUCK_LIMIT * 1000);
        raise(SIGSTOP);
    }
    merge(0, 4);
    at("half-merged");
    if (strcmp(point, "crash") == 0) {
        size_t size = 128 << 20;
        uint8_t *memory = g_malloc(size);

        /* A core of some size. */
        memset(memory, 1, size);
        printf("died %" G_GINT64_FORMAT "\n", g_get_real_time());
        abort();
    }
    if (strcmp(point, "pivoted-before-merged") == 0) {
        add_targets();
        pivot();
        die();
    }
    merge(4, 16);
    at("unsaid");
    need(guard_merged(guard, &error));
    at("merged");
    add_targets();
    at("targets-open");
    by_hand ? pivot_by_hand() : pivot();
    at("pivoted");
    at_half("cont-half-sent", "{\"execute\":\"cont\",\"id\":\"");
    at_half("cont-sent", "{\"execute\":\"cont\"}\n");
    if (strcmp(point, "guard-killed-in-pause") == 0) {
        kill(guard_pid(guard), SIGKILL);
        g_usleep(20000);
    }
    need(vm_resume(vm, NULL, &error));
    at("resumed");
    need(guard_disarm(guard, &error));
    at("disarmed");
}

/* How long the monitor takes for the simplest question: what can be asked of a guard depends on it. */
static void say_round_trip(void)
{
    gint64 longest = 0;
    GError *error = NULL;

    for (int i = 0; i < 10; i++) {
        gint64 began = g_get_monotonic_time();
        bool running;

        need(vm_status(vm, &running, NULL, &error));
        longest = MAX(longest, g_get_monotonic_time() - began);
    }
    printf("round-trip %" G_GINT64_FORMAT "\n", longest);
}

int main(int argc, char **argv)
{
    struct guard_device devices[DISKS_MAX];
    g_autofree char *name = NULL;
    GError *error = NULL;

    if (guard_wanted(argc, argv))
        return guard_main(argv);
    if (argc != 6)
        return 2;
    setvbuf(stdout, NULL, _IONBF, 0);
    point = argv[5];
    name = g_strconcat("qmp:", argv[1], NULL);
    vm = vm_open(name, &error);
    need(vm);
    guard = guard_start(vm, argv[2], &error);
    need(guard);
    printf("guard %d\n", (int)guard_pid(guard));
    look(argv[3], argv[4]);
    tidy();
    say_round_trip();
    armed_at = g_get_real_time();
    for (unsigned i = 0; i < count; i++)
        devices[i] = (struct guard_device){disks[i].qdev, disks[i].from, disks[i].to};
    at("unarmed");
    if (strcmp(point, "guard-killed") == 0)
        kill(guard_pid(guard), SIGKILL);
    if (strcmp(point, "guard-stopped") == 0)
        kill(guard_pid(guard), SIGSTOP);
    need(guard_arm(guard, devices, count, strcmp(point, "stuck") == 0 ? STUCK_LIMIT : 10000, &error));
    if (g_str_has_prefix(point, "random:"))
        g_thread_unref(g_thread_new("die", die_later, GUINT_TO_POINTER(atoi(point + strlen("random:")))));
    at("armed");
    at_half("stop-half-sent", "{\"execute\":\"sto");
    at_half("stop-sent", "{\"execute\":\"stop\"}\n");
    switch_over();
    guard_stop(guard);
    vm_close(vm);
    printf("moved\n");
    return 0;
}
