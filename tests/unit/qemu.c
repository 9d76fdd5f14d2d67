/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A real QEMU without a guest: its disks are written to through its devices, from the monitor. */
#include "blockmig/vm/qemu.h"

#include "tests/unit/harness.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define DISK_SIZE "16M"

struct machine {
    char *directory;
    GPid pid;
    struct vm *vm;
};

/* ---- machines and images ---- */

static char *in(const struct machine *machine, const char *name)
{
    return g_build_filename(machine->directory, name, NULL);
}

static void make_image(const struct machine *machine, const char *name, const char *format,
                       const char *backing, const char *backing_format)
{
    g_autofree char *path = in(machine, name);
    g_autofree char *base = backing ? in(machine, backing) : NULL;
    g_autofree char *output = NULL;
    const char *plain[] = {"qemu-img", "create", "-q", "-f", format, path, DISK_SIZE, NULL};
    const char *overlay[] = {
        "qemu-img", "create", "-q", "-f",           "qcow2", "-o",      "extended_l2=on,cluster_size=128k",
        "-b",       base,     "-F", backing_format, path,    DISK_SIZE, NULL};

    if (harness_run(&output, backing ? overlay : plain) != 0)
        g_error("qemu-img create %s: %s", path, output);
}

/* A test that fails must not leave a QEMU behind. */
static void die_with_parent(gpointer unused)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}

/* `arguments` are separated by spaces; every "@" in them becomes the machine's directory and a slash. */
static void start(struct machine *machine, const char *arguments)
{
    g_autofree char *slash = g_strconcat(machine->directory, "/", NULL);
    g_auto(GStrv) pieces = g_strsplit(arguments, "@", -1);
    g_autofree char *placed = g_strjoinv(slash, pieces);
    g_autofree char *line =
        g_strdup_printf("qemu-system-x86_64 -accel tcg -machine pc -m 32 -nodefaults -display "
                        "none -qmp unix:%sqmp,server=on,wait=on %s",
                        slash, placed);
    g_autofree char *name = g_strdup_printf("qmp:%sqmp", slash);
    g_auto(GStrv) argv = g_strsplit(g_strchomp(line), " ", -1);
    GError *error = NULL;

    assert_ok(g_spawn_async(machine->directory, argv, NULL,
                            G_SPAWN_SEARCH_PATH | G_SPAWN_DO_NOT_REAP_CHILD | G_SPAWN_STDOUT_TO_DEV_NULL,
                            die_with_parent, NULL, &machine->pid, &error));
    for (int tries = 0; !machine->vm; tries++) {
        g_clear_error(&error);
        g_usleep(20000);
        machine->vm = vm_open(name, &error);
        if (tries > 500)
            g_error("%s", error->message);
    }
    g_clear_error(&error);
}

static void set_up(struct machine *machine, gconstpointer unused)
{
    machine->directory = harness_directory();
}

static void kill_machine(struct machine *machine)
{
    if (machine->pid == 0)
        return;
    kill(machine->pid, SIGKILL);
    waitpid(machine->pid, NULL, 0);
    machine->pid = 0;
}

static void tear_down(struct machine *machine, gconstpointer unused)
{
    g_clear_pointer(&machine->vm, vm_close);
    kill_machine(machine);
    harness_remove(machine->directory);
    g_free(machine->directory);
}

static struct qmp *monitor(const struct machine *machine)
{
    return qemu_of(machine->vm)->qmp;
}

/* Writes through the device, as a guest would; afterwards the files say the same to everybody. */
static void device_io(const struct machine *machine, const char *qdev, const char *what)
{
    const char *const commands[] = {what, "flush"};

    for (guint i = 0; i < G_N_ELEMENTS(commands); i++) {
        json_t *line = json_sprintf("qemu-io -d %s \"%s\"", qdev, commands[i]);
        GError *error = NULL;

        /* What it did is printed to QEMU's own standard output; the reader below will see. */
        assert_ok(qmp_do(monitor(machine), "human-monitor-command", json_pack("{s:o}", "command-line", line),
                         QMP_TIMEOUT, &error));
    }
}

/* What stands in the image, as another process reads it. */
static void image_reads(const struct machine *machine, const char *name, const char *what)
{
    g_autofree char *path = in(machine, name);
    g_autofree char *output = NULL;
    const char *argv[] = {"qemu-io", "-r", "-U", "-f", "qcow2", "-c", what, path, NULL};

    if (harness_run(&output, argv) != 0 || strstr(output, "failed"))
        g_error("%s: %s: %s", name, what, output);
}

static void assert_same(const struct machine *machine, const char *a, const char *b)
{
    g_autofree char *first = in(machine, a);
    g_autofree char *second = in(machine, b);
    g_autofree char *output = NULL;
    const char *argv[] = {"qemu-img", "compare", "-U", first, second, NULL};

    if (harness_run(&output, argv) != 0)
        g_error("%s and %s: %s", a, b, output);
}

static bool has_node(const struct machine *machine, const char *node)
{
    GError *error = NULL;
    g_autoptr(json_t) nodes =
        qmp_command(monitor(machine), "query-named-block-nodes", NULL, QMP_TIMEOUT, &error);
    size_t i;
    json_t *entry;

    g_assert_no_error(error);
    json_array_foreach(nodes, i, entry)
    {
        if (strcmp(member_text(entry, "node-name"), node) == 0)
            return true;
    }
    return false;
}

static void assert_active(const struct machine *machine, const char *qdev, const char *wanted)
{
    GError *error = NULL;
    g_autofree char *node = NULL;

    assert_ok(vm_active_node(machine->vm, qdev, &node, &error));
    g_assert_cmpstr(node, ==, wanted);
}

static void add(const struct machine *machine, const char *name, const char *file, const char *format,
                const char *backing)
{
    g_autofree char *path = in(machine, file);
    struct vm_node node = {
        .name = name, .filename = path, .format = format, .backing = backing, .direct = true};
    GError *error = NULL;

    assert_ok(vm_add_node(machine->vm, &node, &error));
}

#define ONE_BLOCKDEV                                                                                         \
    "-blockdev driver=file,node-name=fa,filename=@a.qcow2,cache.direct=on "                                  \
    "-blockdev driver=qcow2,node-name=na,file=fa,cache.direct=on -device virtio-blk-pci,id=da,drive=na "
#define ONE_DRIVE "-drive file=@b.raw,format=raw,if=none,id=drb,cache=none -device virtio-blk-pci,drive=drb "

/* Two running disks: "da" with -blockdev on a.qcow2, "drb" with -drive on b.raw. */
static struct vm_description *two_disks(struct machine *machine)
{
    GError *error = NULL;
    struct vm_description *description;

    make_image(machine, "a.qcow2", "qcow2", NULL, NULL);
    make_image(machine, "b.raw", "raw", NULL, NULL);
    start(machine, ONE_BLOCKDEV ONE_DRIVE);
    description = vm_describe(machine->vm, &error);
    g_assert_no_error(error);
    return description;
}

static const struct vm_disk *disk_called(const struct vm_description *description, const char *name)
{
    GError *error = NULL;
    const struct vm_disk *disk = vm_find_disk(description, name, &error);

    g_assert_no_error(error);
    return disk;
}

/* ---- describing ---- */

static void test_describe(struct machine *machine, gconstpointer unused)
{
    GError *error = NULL;
    g_autoptr(vm_description_t) description = NULL;
    g_autofree char *base = in(machine, "base.qcow2");
    const struct vm_disk *disk;
    const struct vm_layer *layer;

    make_image(machine, "a.qcow2", "qcow2", NULL, NULL);
    make_image(machine, "base.qcow2", "qcow2", NULL, NULL);
    make_image(machine, "top.qcow2", "qcow2", "base.qcow2", "qcow2");
    /* A name relative to where QEMU runs. */
    start(machine,
          "-S " ONE_BLOCKDEV "-drive file=top.qcow2,if=virtio,format=qcow2,throttling.iops-total=1000,"
          "detect-zeroes=unmap,discard=unmap");
    description = vm_describe(machine->vm, &error);
    g_assert_no_error(error);
    g_assert_false(description->running);
    g_assert_cmpstr(description->status, ==, "prelaunch");
    g_assert_cmpint(description->pid, ==, machine->pid);
    g_assert_cmpuint(description->disks->len, ==, 2);

    disk = disk_called(description, "da");
    g_assert_cmpstr(disk->device_id, ==, "da");
    g_assert_cmpstr(disk->device_type, ==, "virtio-blk-device");
    g_assert_null(disk->drive);
    g_assert_cmpstr(disk->node, ==, "na");
    g_assert_cmpuint(disk->virtual_size, ==, 16 << 20);
    g_assert_true(disk->cache.direct && disk->cache.writeback && !disk->cache.no_flush);
    g_assert_cmpstr(disk->refusal, ==, NULL);
    g_assert_true(disk == disk_called(description, "na"));

    disk = disk_called(description, "virtio0");
    g_assert_null(disk->device_id);
    g_assert_false(disk->cache.direct);
    g_assert_cmpstr(disk->detect_zeroes, ==, "unmap");
    g_assert_cmpuint(disk->limits.iops, ==, 1000);
    g_assert_cmpstr(disk->limits.group, ==, "virtio0");
    g_assert_cmpuint(disk->layers->len, ==, 2);
    layer = disk->layers->pdata[1];
    g_assert_cmpstr(layer->filename, ==, base);
    g_assert_cmpstr(layer->format, ==, "qcow2");
    g_assert_cmpstr(layer->protocol, ==, "file");
    g_assert_true(layer->node[0] == '#' && layer->read_only);
    g_assert_cmpstr(disk->refusal, ==, NULL);
    g_assert_null(vm_find_disk(description, "sda", &error));
    harness_check_error(&error, BLOCKMIG_ERROR_REFUSED, "no disk is called \"sda\"", __LINE__);
}

static void assert_refusal(const struct vm_description *description, const char *name, const char *text)
{
    const struct vm_disk *disk = disk_called(description, name);

    if (!disk->refusal || !strstr(disk->refusal, text))
        g_error("disk %s: wanted \"%s\", got \"%s\"", name, text, disk->refusal ? disk->refusal : "(none)");
}

static void command(const struct machine *machine, const char *name, json_t *arguments)
{
    GError *error = NULL;

    assert_ok(qmp_do(monitor(machine), name, arguments, QMP_TIMEOUT, &error));
}

static void make_encrypted(const struct machine *machine)
{
    g_autofree char *path = in(machine, "luks.qcow2");
    g_autofree char *output = NULL;
    const char *argv[] = {"qemu-img",
                          "create",
                          "-q",
                          "--object",
                          "secret,id=s,data=abc",
                          "-f",
                          "qcow2",
                          "-o",
                          "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=200",
                          path,
                          "1M",
                          NULL};

    /* QEMU times its key derivation and gives up where the clock of a busy machine has not moved. */
    for (unsigned tries = 0; harness_run(&output, argv) != 0; tries++) {
        if (tries == 20)
            g_error("%s", output);
        g_clear_pointer(&output, g_free);
    }
}

static void test_refusals(struct machine *machine, gconstpointer unused)
{
    GError *error = NULL;
    g_autoptr(vm_description_t) description = NULL;
    g_autofree char *socket = in(machine, "nbd");

    for (const char *name = "abcdefgh"; *name; name++) {
        g_autofree char *file = g_strdup_printf("%c.qcow2", *name);

        make_image(machine, file, "qcow2", NULL, NULL);
    }
    make_image(machine, "t.qcow2", "qcow2", NULL, NULL);
    make_image(machine, "p.raw", "raw", NULL, NULL);
    make_encrypted(machine);
    start(machine,
          "-S " ONE_BLOCKDEV "-drive file=@b.qcow2,format=qcow2,if=none,id=shared -device "
          "virtio-blk-pci,id=b,drive=shared,share-rw=on "
          "-drive file=@c.qcow2,format=qcow2,if=none,id=ro,readonly=on -device virtio-blk-pci,id=c,drive=ro "
          "-drive file=@d.qcow2,format=qcow2,if=none,id=drd -device virtio-blk-pci,id=d,drive=drd "
          "-drive file=@e.qcow2,format=qcow2,if=none,id=dre -device virtio-blk-pci,id=e,drive=dre "
          "-blockdev driver=qcow2,node-name=nf,file.driver=file,file.filename=@f.qcow2 "
          "-blockdev driver=copy-on-read,node-name=cor,file=nf -device virtio-blk-pci,id=f,drive=cor "
          "-blockdev "
          "driver=raw,node-name=part,offset=1048576,size=1048576,file.driver=file,file.filename=@p.raw "
          "-device virtio-blk-pci,id=part,drive=part "
          "-blockdev driver=null-co,node-name=null,read-zeroes=on -device virtio-blk-pci,id=n,drive=null "
          "-object secret,id=s,data=abc -drive "
          "file=@luks.qcow2,format=qcow2,encrypt.key-secret=s,if=none,id=drl "
          "-device virtio-blk-pci,id=l,drive=drl "
          "-object throttle-group,id=tg -blockdev "
          "driver=qcow2,node-name=ng,file.driver=file,file.filename=@g.qcow2 "
          "-blockdev driver=throttle,node-name=thr,throttle-group=tg,file=ng -device "
          "virtio-blk-pci,id=g,drive=thr "
          "-device virtio-scsi-pci -device scsi-cd,id=cd");
    add(machine, "t", "t.qcow2", "qcow2", NULL);
    command(machine, "blockdev-mirror",
            json_pack("{s:s, s:s, s:s, s:s}", "job-id", "backup7", "device", "na", "target", "t", "sync",
                      "full"));
    command(machine, "block-dirty-bitmap-add",
            json_pack("{s:s, s:s, s:b}", "node", "drd", "name", "weekly", "persistent", true));
    command(machine, "nbd-server-start",
            json_pack("{s:{s:s, s:{s:s}}}", "addr", "type", "unix", "data", "path", socket));
    command(machine, "block-export-add",
            json_pack("{s:s, s:s, s:s}", "type", "nbd", "id", "exp3", "node-name",
                      disk_called(description = vm_describe(machine->vm, &error), "e")->node));
    g_clear_pointer(&description, vm_description_free);
    description = vm_describe(machine->vm, &error);
    g_assert_no_error(error);
    assert_refusal(description, "da", "job \"backup7\" uses it");
    assert_refusal(description, "b", "shared");
    assert_refusal(description, "c", "read-only");
    assert_refusal(description, "e", "exported as \"exp3\"");
    assert_refusal(description, "f", "\"copy-on-read\" filter");
    assert_refusal(description, "g", "\"throttle\" filter");
    assert_refusal(description, "part", "only a part");
    assert_refusal(description, "n", "neither a file nor a block device");
    assert_refusal(description, "l", "encrypted");
    assert_refusal(description, "cd", "no medium");
    g_assert_cmpstr(disk_called(description, "d")->refusal, ==, NULL);
    g_assert_cmpuint(disk_called(description, "d")->notices->len, ==, 1);
    g_assert_nonnull(strstr(disk_called(description, "d")->notices->pdata[0], "\"weekly\""));
    g_assert_cmpuint(disk_called(description, "d")->jobs->len, ==, 0);
    g_assert_cmpstr(disk_called(description, "g")->root, ==, "thr");
    g_assert_cmpstr(disk_called(description, "g")->node, ==, "ng");
}

static void test_abilities(struct machine *machine, gconstpointer unused)
{
    GError *error = NULL;

    start(machine, "-S");
    assert_ok(vm_can_pivot(machine->vm, &error));
    assert_ok(qmp_has_argument(monitor(machine), "blockdev-mirror", "copy-mode", &error));
    assert_ok(qmp_has_argument(monitor(machine), "blockdev-add", "pass-discard-snapshot", &error));
    assert_ok(qmp_has_value(monitor(machine), "transaction", "completion-mode", "grouped", &error) ||
              !qmp_has_argument(monitor(machine), "transaction", "completion-mode", &error));
    g_assert_false(qmp_has_command(monitor(machine), "blockdev-teleport", &error));
    g_assert_false(qmp_has_argument(monitor(machine), "blockdev-mirror", "teleport", &error));
    g_assert_false(qmp_has_value(monitor(machine), "blockdev-mirror", "copy-mode", "teleport", &error));
    g_assert_false(qmp_has_command(monitor(machine), "JOB_STATUS_CHANGE", &error));
    g_assert_no_error(error);
}

/* ---- a whole move, as the phases will do it ---- */

static void snapshot_two(struct machine *machine, const struct vm_description *description)
{
    g_autofree char *first = in(machine, "a1.qcow2");
    g_autofree char *second = in(machine, "b1.qcow2");
    struct vm_snapshot disks[] = {
        {disk_called(description, "da")->node,
         {.name = "a1", .filename = first, .format = "qcow2", .direct = true}},
        {disk_called(description, "drb")->node,
         {.name = "b1", .filename = second, .format = "qcow2", .direct = true}},
    };
    GError *error = NULL;

    make_image(machine, "a1.qcow2", "qcow2", "a.qcow2", "qcow2");
    make_image(machine, "b1.qcow2", "qcow2", "b.raw", "raw");
    assert_ok(vm_snapshot(machine->vm, disks, 2, &error));
}

static void copy_to(struct machine *machine, const char *from, const char *to)
{
    g_autofree char *source = in(machine, from);
    g_autofree char *target = in(machine, to);
    g_autofree char *output = NULL;
    const char *argv[] = {"qemu-img", "convert", "-U", "-O", "qcow2", source, target, NULL};

    if (harness_run(&output, argv) != 0)
        g_error("%s", output);
}

static void test_snapshot(struct machine *machine, gconstpointer unused)
{
    g_autoptr(vm_description_t) description = two_disks(machine);
    const char *da = disk_called(description, "da")->qdev, *db = disk_called(description, "drb")->qdev;
    g_autoptr(vm_description_t) after = NULL;
    struct vm_stats stats;
    GError *error = NULL;

    device_io(machine, da, "write -P 1 0 1M");
    device_io(machine, db, "write -P 2 1M 1M");
    snapshot_two(machine, description);
    assert_active(machine, da, "a1");
    assert_active(machine, db, "b1");
    device_io(machine, da, "write -P 3 64k 4k");
    image_reads(machine, "a1.qcow2", "read -P 1 0 64k");
    image_reads(machine, "a1.qcow2", "read -P 3 64k 4k");
    image_reads(machine, "b1.qcow2", "read -P 2 1M 1M");
    assert_ok(vm_disk_stats(machine->vm, da, &stats, &error));
    /* Writes from the monitor are no guest's writes and are not counted; the question itself must work. */
    g_assert_cmpuint(stats.failed_writes, ==, 0);
    after = vm_describe(machine->vm, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(disk_called(after, "da")->layers->len, ==, 2);
    g_assert_cmpuint(disk_called(after, "drb")->layers->len, ==, 2);
    g_assert_cmpstr(disk_called(after, "drb")->refusal, ==, NULL);
}

/* The second overlay cannot be used: neither disk may change, and nothing stays open. */
static void test_snapshot_is_all_or_none(struct machine *machine, gconstpointer unused)
{
    g_autoptr(vm_description_t) description = two_disks(machine);
    const struct vm_disk *a = disk_called(description, "da"), *b = disk_called(description, "drb");
    g_autofree char *first = in(machine, "a1.qcow2");
    g_autofree char *missing = in(machine, "missing.qcow2");
    struct vm_snapshot disks[] = {
        {a->node, {.name = "a1", .filename = first, .format = "qcow2"}},
        {b->node, {.name = "b1", .filename = missing, .format = "qcow2"}},
    };
    GError *error = NULL;

    make_image(machine, "a1.qcow2", "qcow2", "a.qcow2", "qcow2");
    assert_fails(vm_snapshot(machine->vm, disks, 2, &error), BLOCKMIG_ERROR_FAILED, "missing.qcow2");
    g_assert_false(has_node(machine, "a1"));
    /* Now the transaction itself fails, in its second half. */
    disks[1] = (struct vm_snapshot){"no-such-node", {.name = "b1", .filename = first, .format = "qcow2"}};
    make_image(machine, "b1.qcow2", "qcow2", "b.raw", "raw");
    g_free(missing);
    missing = in(machine, "b1.qcow2");
    disks[1].overlay.filename = missing;
    assert_fails(vm_snapshot(machine->vm, disks, 2, &error), BLOCKMIG_ERROR_FAILED, "no-such-node");
    g_assert_false(has_node(machine, "a1") || has_node(machine, "b1"));
    assert_active(machine, a->qdev, a->node);
    assert_active(machine, b->qdev, b->node);
}

static void wait_done(const struct machine *machine, const char *id)
{
    g_auto(vm_job_t) job = {0};
    GError *error = NULL;

    assert_ok(vm_job_wait(machine->vm, id, VM_JOB_DONE, 10000, &job, &error));
    g_assert_cmpint(job.state, ==, VM_JOB_DONE);
}

static void complete(const struct machine *machine, const char *id)
{
    g_auto(vm_job_t) job = {0};
    GError *error = NULL;

    assert_ok(vm_job_wait(machine->vm, id, VM_JOB_READY, 10000, &job, &error));
    g_assert_cmpint(job.state, ==, VM_JOB_READY);
    assert_ok(vm_job_complete(machine->vm, id, &error));
    wait_done(machine, id);
}

/* A frozen overlay in the middle is merged into the base, under the active one. */
static void test_commit_intermediate(struct machine *machine, gconstpointer unused)
{
    g_autoptr(vm_description_t) description = two_disks(machine);
    const char *da = disk_called(description, "da")->qdev;
    g_autofree char *path = in(machine, "a2.qcow2");
    g_autofree char *base = in(machine, "a.qcow2");
    struct vm_snapshot next = {"a1", {.name = "a2", .filename = path, .format = "qcow2"}};
    struct vm_commit commit = {
        .id = "merge", .active = "a2", .top = "a1", .base = "na", .backing_file = base};
    g_autofree char *output = NULL;
    const char *info[] = {"qemu-img", "info", "-U", path, NULL};
    GError *error = NULL;

    snapshot_two(machine, description);
    device_io(machine, da, "write -P 1 0 64k");
    make_image(machine, "a2.qcow2", "qcow2", "a1.qcow2", "qcow2");
    assert_ok(vm_snapshot(machine->vm, &next, 1, &error));
    device_io(machine, da, "write -P 2 4k 4k");
    assert_ok(vm_commit(machine->vm, &commit, &error));
    wait_done(machine, "merge");
    assert_ok(vm_remove_node(machine->vm, "a1", &error));
    assert_ok(vm_remove_node(machine->vm, "a1", &error));
    g_assert_false(has_node(machine, "a1"));
    assert_active(machine, da, "a2");
    image_reads(machine, "a2.qcow2", "read -P 1 8k 56k");
    image_reads(machine, "a2.qcow2", "read -P 2 4k 4k");
    g_assert_cmpint(harness_run(&output, info), ==, 0);
    g_assert_nonnull(strstr(output, "a.qcow2\nbacking file format: qcow2"));
}

/* Stop, pivot two disks to overlays on copies, go; then the target's overlay is committed, live. */
static void test_pivot(struct machine *machine, gconstpointer unused)
{
    g_autoptr(vm_description_t) description = two_disks(machine);
    const char *da = disk_called(description, "da")->qdev, *db = disk_called(description, "drb")->qdev;
    struct vm_pivot disks[] = {{"a1", "ta1"}, {"b1", "tb1"}}, back[] = {{"ta1", "a1"}, {"tb1", "b1"}};
    struct vm_commit settle = {.id = "settle", .active = "ta1", .base = "ta"};
    int64_t stopped, resumed;
    bool running;
    GError *error = NULL;

    snapshot_two(machine, description);
    device_io(machine, da, "write -P 1 0 1M");
    device_io(machine, db, "write -P 2 1M 1M");
    assert_ok(vm_pause(machine->vm, 1000, &stopped, &error));
    copy_to(machine, "a1.qcow2", "ta.qcow2");
    copy_to(machine, "b1.qcow2", "tb.qcow2");
    make_image(machine, "ta1.qcow2", "qcow2", "ta.qcow2", "qcow2");
    make_image(machine, "tb1.qcow2", "qcow2", "tb.qcow2", "qcow2");
    add(machine, "ta", "ta.qcow2", "qcow2", NULL);
    add(machine, "tb", "tb.qcow2", "qcow2", NULL);
    add(machine, "ta1", "ta1.qcow2", "qcow2", "ta");
    add(machine, "tb1", "tb1.qcow2", "qcow2", "tb");
    /* Three times to and fro, with the clock running. */
    for (int i = 0; i < 3; i++) {
        gint64 start_time = g_get_monotonic_time();

        assert_ok(vm_pivot(machine->vm, disks, 2, 1000, &error));
        g_test_message("pivot of 2 disks: %.2f ms", (g_get_monotonic_time() - start_time) / 1e3);
        assert_active(machine, da, "ta1");
        assert_active(machine, db, "tb1");
        if (i < 2)
            assert_ok(vm_pivot(machine->vm, back, 2, 1000, &error));
    }
    assert_ok(vm_resume(machine->vm, &resumed, &error));
    g_assert_cmpint(resumed, >, stopped);
    g_assert_cmpint(stopped, >, 0);
    assert_ok(vm_status(machine->vm, &running, NULL, &error));
    g_assert_true(running);
    image_reads(machine, "ta1.qcow2", "read -P 1 0 1M");
    image_reads(machine, "tb1.qcow2", "read -P 2 1M 1M");
    device_io(machine, da, "write -P 4 512k 4k");
    assert_same(machine, "b1.qcow2", "tb1.qcow2");
    /* Nodes that are in use stay, with a reason. */
    assert_fails(vm_remove_node(machine->vm, "ta", &error), BLOCKMIG_ERROR_FAILED, "backing");
    assert_ok(vm_remove_node(machine->vm, "a1", &error));
    assert_ok(vm_remove_node(machine->vm, "na", &error));
    assert_ok(vm_remove_node(machine->vm, "b1", &error));
    assert_ok(vm_commit(machine->vm, &settle, &error));
    complete(machine, "settle");
    assert_active(machine, da, "ta");
    assert_ok(vm_remove_node(machine->vm, "ta1", &error));
    image_reads(machine, "ta.qcow2", "read -P 4 512k 4k");
}

static void measure_pause(struct machine *machine, const struct vm_pivot *disks, unsigned count)
{
    int64_t stopped, resumed;
    GError *error = NULL;

    assert_ok(vm_pause(machine->vm, 1000, &stopped, &error));
    assert_ok(vm_pivot(machine->vm, disks, count, 1000, &error));
    assert_ok(vm_resume(machine->vm, &resumed, &error));
    g_test_message("STOP to RESUME with a pivot of %u disks: %.2f ms", count, (resumed - stopped) / 1e3);
    g_assert_cmpint(resumed - stopped, >, 0);
}

static void test_pause_is_short(struct machine *machine, gconstpointer unused)
{
    g_autoptr(vm_description_t) description = two_disks(machine);
    struct vm_pivot disks[] = {{"a1", "ta1"}, {"b1", "tb1"}}, back[] = {{"ta1", "a1"}, {"tb1", "b1"}};

    snapshot_two(machine, description);
    make_image(machine, "ta1.qcow2", "qcow2", NULL, NULL);
    make_image(machine, "tb1.qcow2", "qcow2", NULL, NULL);
    add(machine, "ta1", "ta1.qcow2", "qcow2", NULL);
    add(machine, "tb1", "tb1.qcow2", "qcow2", NULL);
    for (int i = 0; i < 5; i++) {
        measure_pause(machine, disks, 1);
        measure_pause(machine, back, 1);
        measure_pause(machine, disks, 2);
        measure_pause(machine, back, 2);
    }
}

/* The second of two cannot go: the first must not stay there alone. */
static void test_pivot_is_all_or_none(struct machine *machine, gconstpointer unused)
{
    g_autoptr(vm_description_t) description = two_disks(machine);
    const char *da = disk_called(description, "da")->qdev, *db = disk_called(description, "drb")->qdev;
    struct vm_pivot disks[] = {{"a1", "ta1"}, {"b1", "nowhere"}};
    g_autoptr(GPtrArray) jobs = NULL;
    int64_t stopped;
    GError *error = NULL;

    snapshot_two(machine, description);
    make_image(machine, "ta1.qcow2", "qcow2", NULL, NULL);
    add(machine, "ta1", "ta1.qcow2", "qcow2", NULL);
    assert_ok(vm_pause(machine->vm, 1000, &stopped, &error));
    assert_fails(vm_pivot(machine->vm, disks, 2, 1000, &error), BLOCKMIG_ERROR_FAILED, "nowhere");
    assert_active(machine, da, "a1");
    assert_active(machine, db, "b1");
    jobs = vm_jobs(machine->vm, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(jobs->len, ==, 0);
    assert_ok(vm_remove_node(machine->vm, "ta1", &error));
}

/* ---- files whose names change ---- */

struct style {
    const char *arguments, *device, *file, *format;
    const char *nodes[3]; /* ours to remove once nothing uses them */
};

/* QEMU opens the base by its name again when it becomes read-only, in all but the first. */
static const struct style styles[] = {
    {ONE_BLOCKDEV, "da", "a.qcow2", "qcow2", {"na", "fa"}},
    {"-blockdev driver=file,node-name=fa,filename=@a.qcow2,cache.direct=on,auto-read-only=on,discard=unmap "
     "-blockdev driver=qcow2,node-name=na,file=fa,cache.direct=on,read-only=off,discard=unmap "
     "-device virtio-blk-pci,id=da,drive=na",
     "da",
     "a.qcow2",
     "qcow2",
     {"na", "fa"}},
    {"-drive file=@a.qcow2,format=qcow2,if=none,id=dra,cache=none -device virtio-blk-pci,drive=dra",
     "dra",
     "a.qcow2",
     "qcow2",
     {NULL}},
    {ONE_DRIVE, "drb", "b.raw", "raw", {NULL}},
};

static int open_file(const char *path, int mode)
{
    int fd = open(path, mode | O_CLOEXEC);

    g_assert_cmpint(fd, >=, 0);
    return fd;
}

static ino_t inode_of(const char *path)
{
    struct stat status;

    g_assert_cmpint(stat(path, &status), ==, 0);
    return status.st_ino;
}

/* How many descriptors of QEMU are this file. */
static unsigned open_count(const struct machine *machine, const char *path)
{
    g_autofree char *directory = g_strdup_printf("/proc/%d/fd", (int)machine->pid);
    g_autoptr(GDir) list = g_dir_open(directory, 0, NULL);
    ino_t wanted = inode_of(path);
    const char *name;
    unsigned count = 0;

    while ((name = g_dir_read_name(list))) {
        g_autofree char *entry = g_build_filename(directory, name, NULL);
        struct stat status;

        count += stat(entry, &status) == 0 && S_ISREG(status.st_mode) && status.st_ino == wanted;
    }
    return count;
}

static unsigned fdset_count(const struct machine *machine)
{
    GError *error = NULL;
    g_autoptr(json_t) sets = qmp_command(monitor(machine), "query-fdsets", NULL, QMP_TIMEOUT, &error);

    g_assert_no_error(error);
    return json_array_size(sets);
}

/* What QEMU itself reads through a node, whatever the files say. */
static void node_reads(const struct machine *machine, const char *node, const char *what)
{
    g_autofree char *socket = in(machine, "nbd");
    g_autofree char *uri = g_strdup_printf("nbd+unix:///view?socket=%s", socket);
    g_autofree char *output = NULL;
    const char *argv[] = {"qemu-io", "-r", "-f", "raw", "-c", what, uri, NULL};

    command(machine, "nbd-server-start",
            json_pack("{s:{s:s, s:{s:s}}}", "addr", "type", "unix", "data", "path", socket));
    command(
        machine, "block-export-add",
        json_pack("{s:s, s:s, s:s, s:s}", "type", "nbd", "id", "view", "node-name", node, "name", "view"));
    if (harness_run(&output, argv) != 0 || strstr(output, "failed"))
        g_error("node %s: %s: %s", node, what, output);
    command(machine, "nbd-server-stop", NULL);
    for (int tries = 0; tries < 200; tries++) {
        g_autoptr(json_t) exports =
            qmp_command(monitor(machine), "query-block-exports", NULL, QMP_TIMEOUT, NULL);

        if (json_array_size(exports) == 0)
            return;
        g_usleep(5000);
    }
    g_error("the export of %s does not end", node);
}

struct exchange {
    const struct style *style;
    char *disk, *base, *qdev; /* the name that the machine was started with; where its base went */
    int overlay_fd, base_fd;
    struct vm_node overlay, below;
};

static void exchange_clear(struct exchange *exchange)
{
    g_free(exchange->disk);
    g_free(exchange->base);
    g_free(exchange->qdev);
}

/* An overlay that names its base by the name that the base will have. */
static void prepare_exchange(struct machine *machine, struct exchange *exchange)
{
    const struct style *style = exchange->style;
    g_autofree char *fresh = in(machine, "fresh");

    exchange->disk = in(machine, style->file);
    exchange->base = in(machine, "base");
    g_assert_cmpint(link(exchange->disk, exchange->base), ==, 0);
    make_image(machine, "fresh", "qcow2", "base", style->format);
    g_assert_cmpint(unlink(exchange->base), ==, 0);
    exchange->base_fd = open_file(exchange->disk, O_RDWR);
    exchange->overlay_fd = open_file(fresh, O_RDWR);
    g_assert_cmpint(rename(fresh, exchange->base), ==, 0);
    exchange->overlay = (struct vm_node){.name = "ov",
                                         .filename = exchange->disk,
                                         .format = "qcow2",
                                         .descriptor = &exchange->overlay_fd,
                                         .direct = true,
                                         .discard = true};
    exchange->below = (struct vm_node){.name = "below",
                                       .filename = exchange->base,
                                       .format = style->format,
                                       .descriptor = &exchange->base_fd,
                                       .direct = true,
                                       .read_only = true};
}

/* Stop, exchange the names, snapshot, put our own base node under the overlay, go. */
static void run_exchange(struct machine *machine, const struct exchange *exchange, const char *node)
{
    struct vm_snapshot snapshot = {node, exchange->overlay};
    int64_t stopped, resumed;
    GError *error = NULL;

    assert_ok(vm_pause(machine->vm, 1000, &stopped, &error));
    g_assert_cmpint(renameat2(AT_FDCWD, exchange->disk, AT_FDCWD, exchange->base, RENAME_EXCHANGE), ==, 0);
    assert_ok(vm_snapshot(machine->vm, &snapshot, 1, &error));
    assert_ok(vm_add_node(machine->vm, &exchange->below, &error));
    assert_ok(vm_set_backing(machine->vm, &exchange->overlay, "below", &error));
    assert_ok(vm_resume(machine->vm, &resumed, &error));
    g_test_message("exchange of names: pause %.2f ms", (resumed - stopped) / 1e3);
    close(exchange->overlay_fd);
    close(exchange->base_fd);
    for (const char *const *old = exchange->style->nodes; *old; old++)
        assert_ok(vm_remove_node(machine->vm, *old, &error));
}

static void check_exchange(struct machine *machine, const struct exchange *exchange)
{
    g_autoptr(vm_description_t) description = NULL;
    const struct vm_disk *disk;
    GError *error = NULL;

    assert_active(machine, exchange->qdev, "ov");
    /* One in the set, one that the node uses: nobody else has either file. */
    g_assert_cmpuint(open_count(machine, exchange->disk), ==, 2);
    g_assert_cmpuint(open_count(machine, exchange->base), ==, 2);
    description = vm_describe(machine->vm, &error);
    g_assert_no_error(error);
    disk = disk_called(description, "ov");
    g_assert_cmpstr(disk->refusal, ==, NULL);
    g_assert_cmpuint(disk->layers->len, ==, 2);
    g_assert_cmpstr(((struct vm_layer *)disk->layers->pdata[0])->filename, ==, exchange->disk);
    g_assert_cmpstr(((struct vm_layer *)disk->layers->pdata[1])->filename, ==, exchange->base);
    node_reads(machine, "ov", "read -P 1 0 1M");
    node_reads(machine, "below", "read -P 1 0 1M");
    image_reads(machine, exchange->style->file, "read -P 1 0 1M");
}

/* The base becomes writable again, which no name decides. */
static void commit_back(struct machine *machine, const struct exchange *exchange)
{
    struct vm_commit commit = {.id = "back", .active = "ov", .base = "below"};
    g_autofree char *output = NULL;
    const char *argv[] = {"qemu-io",           "-r",           "-U", "-f", exchange->style->format, "-c",
                          "read -P 2 512k 1M", exchange->base, NULL};
    GError *error = NULL;

    assert_ok(vm_commit(machine->vm, &commit, &error));
    complete(machine, "back");
    assert_active(machine, exchange->qdev, "below");
    assert_ok(vm_remove_node(machine->vm, "ov", &error));
    g_assert_false(has_node(machine, "ov-file"));
    g_assert_cmpuint(open_count(machine, exchange->disk), ==, 0);
    g_assert_cmpuint(fdset_count(machine), ==, 1);
    device_io(machine, exchange->qdev, "write -P 2 1M 512k");
    if (harness_run(&output, argv) != 0 || strstr(output, "failed"))
        g_error("%s: %s", exchange->base, output);
}

static void test_names_are_exchanged(struct machine *machine, gconstpointer data)
{
    struct exchange exchange = {.style = data};
    g_autoptr(vm_description_t) description = NULL;
    GError *error = NULL;

    make_image(machine, exchange.style->file, exchange.style->format, NULL, NULL);
    start(machine, exchange.style->arguments);
    description = vm_describe(machine->vm, &error);
    g_assert_no_error(error);
    exchange.qdev = g_strdup(disk_called(description, exchange.style->device)->qdev);
    device_io(machine, exchange.qdev, "write -P 1 0 1M");
    prepare_exchange(machine, &exchange);
    run_exchange(machine, &exchange, disk_called(description, exchange.style->device)->node);
    check_exchange(machine, &exchange);
    device_io(machine, exchange.qdev, "write -P 2 512k 512k");
    commit_back(machine, &exchange);
    exchange_clear(&exchange);
}

/* The same without standing still: the overlay has the name before the machine is put on it, and the base
 * keeps its node.  What -drive made cannot be told to keep its file. */
static void test_names_are_exchanged_running(struct machine *machine, gconstpointer data)
{
    struct exchange exchange = {.style = data};
    g_autoptr(vm_description_t) description = NULL;
    const struct vm_disk *disk;
    struct vm_snapshot snapshot;
    GError *error = NULL;

    make_image(machine, exchange.style->file, exchange.style->format, NULL, NULL);
    start(machine, exchange.style->arguments);
    description = vm_describe(machine->vm, &error);
    g_assert_no_error(error);
    disk = disk_called(description, exchange.style->device);
    exchange.qdev = g_strdup(disk->qdev);
    device_io(machine, exchange.qdev, "write -P 1 0 1M");
    prepare_exchange(machine, &exchange);
    close(exchange.base_fd);
    if (disk->drive) {
        assert_fails(vm_keep_open(machine->vm, disk, &error), BLOCKMIG_ERROR_REFUSED,
                     "no names of their own");
    } else {
        assert_ok(vm_keep_open(machine->vm, disk, &error));
        g_assert_cmpint(renameat2(AT_FDCWD, exchange.disk, AT_FDCWD, exchange.base, RENAME_EXCHANGE), ==, 0);
        snapshot = (struct vm_snapshot){disk->node, exchange.overlay};
        assert_ok(vm_snapshot(machine->vm, &snapshot, 1, &error));
        assert_active(machine, exchange.qdev, "ov");
        g_assert_cmpuint(open_count(machine, exchange.base), ==, 1);
        g_assert_cmpuint(open_count(machine, exchange.disk), ==, 2);
        node_reads(machine, "ov", "read -P 1 0 1M");
        node_reads(machine, disk->node, "read -P 1 0 1M");
        device_io(machine, exchange.qdev, "write -P 2 512k 512k");
        assert_ok(vm_commit(machine->vm,
                            &(struct vm_commit){.id = "back", .active = "ov", .base = disk->node}, &error));
        complete(machine, "back");
        assert_active(machine, exchange.qdev, disk->node);
        assert_ok(vm_remove_node(machine->vm, "ov", &error));
        g_assert_cmpuint(open_count(machine, exchange.base), ==, 1);
        /* In use: it stays. */
        assert_ok(vm_forget_file(machine->vm, exchange.disk, &error));
        device_io(machine, exchange.qdev, "write -P 2 1M 512k");
    }
    close(exchange.overlay_fd);
    exchange_clear(&exchange);
}

/* What was handed over is looked at when the node is added: until then the file may grow. */
static void test_handed_over_early(struct machine *machine, gconstpointer unused)
{
    g_autofree char *path = in(machine, "a.qcow2"), *name = NULL;
    const char *fill[] = {"qemu-io", "-f", "qcow2", "-c", "write -P 7 0 3M", path, NULL};
    int fd;
    struct vm_node node = {.name = "n",
                           .filename = path,
                           .format = "qcow2",
                           .descriptor = &fd,
                           .direct = true,
                           .read_only = true};
    GError *error = NULL;

    make_image(machine, "a.qcow2", "qcow2", NULL, NULL);
    start(machine, "-nodefaults");
    for (int round = 0; round < 2; round++) {
        fd = open_file(path, O_RDWR);
        assert_ok(vm_hand_over(machine->vm, &node, &name, &error));
        close(fd);
        fd = -1;
        g_assert_cmpint(harness_run(NULL, fill), ==, 0);
        node.handed_over = name;
        if (round == 1) {
            assert_ok(vm_add_node(machine->vm, &node, &error));
            node_reads(machine, "n", "read -P 7 0 3M");
        }
        assert_ok(vm_remove_node(machine->vm, "n", &error));
        g_assert_cmpuint(fdset_count(machine), ==, 0);
        g_assert_cmpuint(open_count(machine, path), ==, 0);
        g_clear_pointer(&name, g_free);
        node.handed_over = NULL;
    }
}

/* By the name that it was opened with, whatever it is called now. */
static void test_unused_file_is_forgotten(struct machine *machine, gconstpointer unused)
{
    g_autofree char *path = in(machine, "a.qcow2"), *other = in(machine, "other");
    GError *error = NULL;

    make_image(machine, "a.qcow2", "qcow2", NULL, NULL);
    start(machine, "-blockdev driver=file,node-name=fa,filename=@a.qcow2 "
                   "-blockdev driver=qcow2,node-name=a,file=fa");
    g_assert_cmpint(rename(path, other), ==, 0);
    assert_ok(vm_forget_file(machine->vm, other, &error));
    g_assert_true(has_node(machine, "a"));
    assert_ok(vm_forget_file(machine->vm, path, &error));
    g_assert_false(has_node(machine, "a") || has_node(machine, "fa"));
    g_assert_cmpuint(open_count(machine, other), ==, 0);
}

/* Nothing of a node that could not be opened stays. */
static void test_failed_node_leaves_nothing(struct machine *machine, gconstpointer unused)
{
    g_autofree char *path = in(machine, "b.raw");
    int fd = -1;
    struct vm_node node = {.name = "n", .filename = path, .format = "qcow2", .descriptor = &fd};
    GError *error = NULL;

    make_image(machine, "b.raw", "raw", NULL, NULL);
    start(machine, "-nodefaults");
    fd = open_file(path, O_RDWR);
    assert_fails(vm_add_node(machine->vm, &node, &error), BLOCKMIG_ERROR_FAILED, "not in qcow2 format");
    g_assert_false(has_node(machine, "n") || has_node(machine, "n-file"));
    g_assert_cmpuint(fdset_count(machine), ==, 0);
    close(fd);
    fd = open_file(path, O_RDONLY);
    node.format = "raw";
    assert_fails(vm_add_node(machine->vm, &node, &error), BLOCKMIG_ERROR_FAILED, "not open for writing");
    g_assert_cmpuint(fdset_count(machine), ==, 0);
    node.read_only = true;
    assert_ok(vm_add_node(machine->vm, &node, &error));
    assert_ok(vm_remove_node(machine->vm, "n", &error));
    node.name = "twenty-seven-bytes-of-name-";
    assert_fails(vm_add_node(machine->vm, &node, &error), BLOCKMIG_ERROR_FAILED, "more than 26");
    close(fd);
}

/* A removal that was interrupted is completed by the next one, also in a stopped machine; then nobody holds
 * the file, and its name can be used again. */
static void test_removal_is_repeated(struct machine *machine, gconstpointer unused)
{
    g_autofree char *path = in(machine, "a.qcow2");
    const char *argv[] = {"qemu-io", "-f", "qcow2", "-c", "write 0 4k", path, NULL};
    int fd;
    struct vm_node node = {.name = "n",
                           .filename = path,
                           .format = "qcow2",
                           .descriptor = &fd,
                           .direct = true,
                           .read_only = true};
    int64_t stopped;
    GError *error = NULL;

    make_image(machine, "a.qcow2", "qcow2", NULL, NULL);
    start(machine, "-nodefaults");
    for (int round = 0; round < 2; round++) {
        fd = open_file(path, O_RDWR);
        assert_ok(vm_add_node(machine->vm, &node, &error));
        close(fd);
        if (round == 1)
            assert_ok(vm_pause(machine->vm, 1000, &stopped, &error));
        command(machine, "blockdev-del", json_pack("{s:s}", "node-name", "n"));
        if (round == 1)
            command(machine, "blockdev-del", json_pack("{s:s}", "node-name", "n-file"));
        assert_ok(vm_remove_node(machine->vm, "n", &error));
        assert_ok(vm_remove_node(machine->vm, "n", &error));
        g_assert_false(has_node(machine, "n-file"));
        g_assert_cmpint(harness_run(NULL, argv), ==, 0);
    }
    /* A stopped QEMU keeps the descriptors until it runs. */
    assert_ok(vm_resume(machine->vm, NULL, &error));
    fd = open_file(path, O_RDWR);
    node.read_only = false;
    assert_ok(vm_add_node(machine->vm, &node, &error));
    close(fd);
    assert_ok(vm_remove_node(machine->vm, "n", &error));
    g_assert_cmpuint(fdset_count(machine), ==, 0);
    g_assert_cmpuint(open_count(machine, path), ==, 0);
}

/* ---- from one side to the other without a pause ---- */

/* Two disks write to overlays that stand on the sources' chains; `nodes` and their files stay open. */
static void write_over_sources(struct machine *machine, const struct vm_description *description,
                               struct vm_rebase *nodes, int *files, char **paths)
{
    static const char *const names[] = {"ta1", "tb1"};
    struct vm_snapshot disks[] = {{.node = "a1"}, {.node = "b1"}};
    GError *error = NULL;

    snapshot_two(machine, description);
    device_io(machine, disk_called(description, "da")->qdev, "write -P 1 0 1M");
    device_io(machine, disk_called(description, "drb")->qdev, "write -P 2 1M 1M");
    make_image(machine, "ta1.qcow2", "qcow2", "a1.qcow2", "qcow2");
    make_image(machine, "tb1.qcow2", "qcow2", "b1.qcow2", "qcow2");
    for (int i = 0; i < 2; i++) {
        g_autofree char *file = g_strconcat(names[i], ".qcow2", NULL);

        paths[i] = in(machine, file);
        files[i] = open_file(paths[i], O_RDWR);
        nodes[i] = (struct vm_rebase){.node = {.name = names[i],
                                               .filename = paths[i],
                                               .format = "qcow2",
                                               .descriptor = &files[i],
                                               .direct = true}};
        disks[i].overlay = nodes[i].node;
    }
    assert_ok(vm_snapshot(machine->vm, disks, 2, &error));
}

static void close_files(const int *files, char **paths)
{
    for (int i = 0; i < 2; i++) {
        close(files[i]);
        g_free(paths[i]);
    }
}

/* What is below the machines' overlays is copied while they run, and the copy takes its place. */
static void test_rebase(struct machine *machine, gconstpointer unused)
{
    g_autoptr(vm_description_t) description = two_disks(machine);
    g_autoptr(vm_description_t) after = NULL;
    const char *da = disk_called(description, "da")->qdev, *db = disk_called(description, "drb")->qdev;
    struct vm_rebase nodes[2];
    int files[2];
    char *paths[2];
    GError *error = NULL;

    write_over_sources(machine, description, nodes, files, paths);
    device_io(machine, da, "write -P 3 8M 64k");
    copy_to(machine, "a1.qcow2", "ta.qcow2");
    copy_to(machine, "b1.qcow2", "tb.qcow2");
    add(machine, "ta", "ta.qcow2", "qcow2", NULL);
    add(machine, "tb", "tb.qcow2", "qcow2", NULL);
    nodes[0].backing = "ta";
    nodes[1].backing = "tb";
    assert_ok(vm_set_backings(machine->vm, nodes, 2, &error));
    assert_active(machine, da, "ta1");
    assert_active(machine, db, "tb1");
    /* Nothing holds the sources any more. */
    assert_ok(vm_remove_node(machine->vm, "a1", &error));
    assert_ok(vm_remove_node(machine->vm, "b1", &error));
    node_reads(machine, "ta1", "read -P 1 0 1M");
    node_reads(machine, "ta1", "read -P 3 8M 64k");
    node_reads(machine, "tb1", "read -P 2 1M 1M");
    after = vm_describe(machine->vm, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(disk_called(after, "da")->layers->len, ==, 2);
    g_assert_cmpstr(((struct vm_layer *)disk_called(after, "da")->layers->pdata[1])->node, ==, "ta");
    g_assert_cmpstr(disk_called(after, "da")->refusal, ==, NULL);
    close_files(files, paths);
}

/* The second has nowhere to go: the first stays as well. */
static void test_rebase_is_all_or_none(struct machine *machine, gconstpointer unused)
{
    g_autoptr(vm_description_t) description = two_disks(machine);
    struct vm_rebase nodes[2];
    int files[2];
    char *paths[2];
    GError *error = NULL;

    write_over_sources(machine, description, nodes, files, paths);
    copy_to(machine, "a1.qcow2", "ta.qcow2");
    add(machine, "ta", "ta.qcow2", "qcow2", NULL);
    nodes[0].backing = "ta";
    nodes[1].backing = "nowhere";
    assert_fails(vm_set_backings(machine->vm, nodes, 2, &error), BLOCKMIG_ERROR_FAILED, "and others");
    assert_ok(vm_remove_node(machine->vm, "ta", &error));
    assert_fails(vm_remove_node(machine->vm, "a1", &error), BLOCKMIG_ERROR_FAILED, "backing");
    node_reads(machine, "ta1", "read -P 1 0 1M");
    node_reads(machine, "tb1", "read -P 2 1M 1M");
    close_files(files, paths);
}

/* ---- when we die ---- */

static void test_jobs_are_adopted(struct machine *machine, gconstpointer unused)
{
    g_autoptr(vm_description_t) description = two_disks(machine);
    g_autofree char *name = g_strdup(machine->vm->name);
    g_autoptr(GPtrArray) jobs = NULL;
    g_auto(vm_job_t) job = {0};
    const struct vm_job *found;
    GError *error = NULL;

    snapshot_two(machine, description);
    device_io(machine, disk_called(description, "da")->qdev, "write -P 2 0 8M");
    make_image(machine, "ta1.qcow2", "qcow2", NULL, NULL);
    add(machine, "ta1", "ta1.qcow2", "qcow2", NULL);
    command(machine, "blockdev-mirror",
            json_pack("{s:s, s:s, s:s, s:s, s:i, s:b}", "job-id", "slow", "device", "a1", "target", "ta1",
                      "sync", "top", "speed", 1, "auto-dismiss", false));
    vm_close(machine->vm);
    machine->vm = vm_open(name, &error);
    g_assert_no_error(error);
    jobs = vm_jobs(machine->vm, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(jobs->len, ==, 1);
    found = jobs->pdata[0];
    g_assert_cmpstr(found->id, ==, "slow");
    g_assert_cmpstr(found->type, ==, "mirror");
    g_assert_cmpint(found->state, ==, VM_JOB_RUNNING);
    /* Not ready in time is no error. */
    assert_ok(vm_job_wait(machine->vm, "slow", VM_JOB_READY, 50, &job, &error));
    g_assert_cmpint(job.state, ==, VM_JOB_RUNNING);
    assert_ok(vm_job_cancel(machine->vm, "slow", 5000, &error));
    assert_fails(vm_job_wait(machine->vm, "slow", VM_JOB_DONE, 50, &job, &error), BLOCKMIG_ERROR_FAILED,
                 "no job \"slow\"");
}

/* What the guard does: a connection whose owner died in the middle of a command, with replies on their way.
 */
static void test_connection_is_adopted(struct machine *machine, gconstpointer unused)
{
    static const char *const left_behind[] = {
        "",
        "{\"execute\":\"query-block\",\"id\":7}\n{\"execute\":\"query-qmp-schema\",\"id\":8}\n",
        "{\"execute\":\"query-qmp-schema\",\"id\":9}\n{\"execute\":\"sto",
        "{\"execute\":\"stop\",\"id\":\"",
    };
    g_autofree char *name = NULL;
    int64_t stopped, resumed;
    GError *error = NULL;

    start(machine, "-nodefaults");
    name = g_strdup(machine->vm->name);
    for (guint i = 0; i < G_N_ELEMENTS(left_behind); i++) {
        int fd = dup(vm_fd(machine->vm));
        char some[100];
        gint64 began;
        bool running;

        assert_ok(vm_pause(machine->vm, 1000, &stopped, &error));
        vm_close(machine->vm);
        g_assert_cmpint(write(fd, left_behind[i], strlen(left_behind[i])), ==, strlen(left_behind[i]));
        /* It had read the first half of an answer. */
        g_usleep(i == 1 ? 50000 : 0);
        if (i == 1)
            g_assert_cmpint(read(fd, some, sizeof(some)), >, 0);
        began = g_get_monotonic_time();
        machine->vm = vm_adopt(name, fd, &error);
        g_assert_no_error(error);
        assert_ok(vm_resume(machine->vm, &resumed, &error));
        g_test_message("adopted and resumed in %.2f ms", (g_get_monotonic_time() - began) / 1e3);
        g_assert_cmpint(resumed, >, 0);
        assert_ok(vm_status(machine->vm, &running, NULL, &error));
        g_assert_true(running);
    }
}

static void test_machine_is_killed(struct machine *machine, gconstpointer unused)
{
    g_autofree char *name = NULL;
    bool running;
    GError *error = NULL;

    start(machine, "-S");
    name = g_strdup(machine->vm->name);
    kill_machine(machine);
    assert_fails(vm_status(machine->vm, &running, NULL, &error), BLOCKMIG_ERROR_UNREACHABLE, name);
    assert_fails(vm_resume(machine->vm, NULL, &error), BLOCKMIG_ERROR_UNREACHABLE, "the monitor is gone");
    g_assert_null(vm_open(name, &error));
    harness_check_error(&error, BLOCKMIG_ERROR_UNREACHABLE, "refused", __LINE__);
    g_assert_null(vm_open("qmp:/no/such/socket", &error));
    harness_check_error(&error, BLOCKMIG_ERROR_UNREACHABLE, "/no/such/socket", __LINE__);
    g_assert_null(vm_open("vm17", &error));
    harness_check_error(&error, BLOCKMIG_ERROR_USAGE, "vm17", __LINE__);
}

/* ---- limits, events ---- */

/* Every number that QEMU keeps comes back as it was, with the group and the lengths of the bursts. */
static void test_limits(struct machine *machine, gconstpointer unused)
{
    g_autoptr(vm_description_t) before = two_disks(machine);
    struct vm_limits own = {.bps_rd = 3 << 20,
                            .bps_wr = 2 << 20,
                            .bps_wr_max = 4 << 20,
                            .bps_wr_max_length = 7,
                            .iops = 900,
                            .iops_size = 8192,
                            .group = (char *)"both"};
    struct vm_limits tight = {.bps_wr = 1 << 20};
    GError *error = NULL;

    for (guint i = 0; i < before->disks->len; i++) {
        const struct vm_disk *disk = before->disks->pdata[i];
        const struct vm_limits *steps[] = {&tight, &disk->limits, &own, &tight, &own};

        for (guint k = 0; k < G_N_ELEMENTS(steps); k++) {
            g_autoptr(vm_description_t) now = NULL;
            struct vm_limits *found;

            assert_ok(vm_set_limits(machine->vm, disk->qdev, steps[k], &error));
            now = vm_describe(machine->vm, &error);
            found = &((struct vm_disk *)disk_called(now, disk->name))->limits;
            if (steps[k] == &tight) {
                /* QEMU gives a disk that has none a group of its own. */
                g_assert_nonnull(found->group);
                g_clear_pointer(&found->group, g_free);
            }
            g_assert_true(vm_limits_equal(found, steps[k]));
            g_assert_cmpint(vm_limits_equal(found, &own), ==, steps[k] == &own);
        }
    }
    assert_fails(vm_set_limits(machine->vm, "/machine/nothing", &tight, &error), BLOCKMIG_ERROR_FAILED,
                 "/machine/nothing");
}

static void expect_event(const struct machine *machine, enum vm_event_type type, const char *subject)
{
    g_autoptr(vm_event_t) event = NULL;
    GError *error = NULL;

    assert_ok(vm_next_event(machine->vm, 5000, &event, &error));
    g_assert_nonnull(event);
    g_assert_cmpint(event->type, ==, type);
    g_assert_cmpstr(event->subject, ==, subject);
    g_assert_cmpint(ABS(event->time - g_get_real_time()), <, 60 * G_USEC_PER_SEC);
}

static void test_events(struct machine *machine, gconstpointer unused)
{
    g_autoptr(vm_description_t) description = two_disks(machine);
    const struct vm_layer *layer = disk_called(description, "da")->layers->pdata[0];
    g_autoptr(vm_event_t) none = NULL;
    gint64 began;
    GError *error = NULL;

    command(machine, "system_reset", NULL);
    expect_event(machine, VM_EVENT_RESET, "host-qmp-system-reset");
    assert_ok(vm_set_write_threshold(machine->vm, layer->protocol_node, 1 << 20, &error));
    device_io(machine, disk_called(description, "da")->qdev, "write -P 1 0 4M");
    expect_event(machine, VM_EVENT_WRITE_THRESHOLD, "fa");
    began = g_get_monotonic_time();
    do {
        g_clear_pointer(&none, vm_event_free);
        assert_ok(vm_next_event(machine->vm, 100, &none, &error));
    } while (none && none->type == VM_EVENT_RESET); /* a firmware that finds nothing to boot resets, too */
    if (none)
        g_error("unexpected event %d %s %s", none->type, none->subject, none->detail);
    g_assert_cmpint(g_get_monotonic_time() - began, >=, 99000);
    command(machine, "quit", NULL);
    expect_event(machine, VM_EVENT_SHUTDOWN, "host-qmp-quit");
}

/* Nobody answers in a machine without a guest; but its socket must be found, and the failure must be told. */
static void test_agent_is_found(struct machine *machine, gconstpointer unused)
{
    g_autofree char *path = in(machine, "agent");
    g_autofree char *found = NULL;
    GError *error = NULL;

    start(machine,
          "-S -device virtio-serial-pci -chardev socket,id=c1,path=@other,server=on,wait=off -device "
          "virtserialport,chardev=c1,name=org.other "
          "-chardev socket,id=c2,path=@agent,server=on,wait=off -device "
          "virtserialport,chardev=c2,name=org.qemu.guest_agent.0");
    assert_ok(qemu_agent_path(qemu_of(machine->vm), &found, &error));
    g_assert_cmpstr(found, ==, path);
    assert_fails(vm_freeze(machine->vm, 0, NULL, &error), BLOCKMIG_ERROR_UNREACHABLE, path);
    g_assert_cmpint(vm_agent_fd(machine->vm), ==, -1);
    assert_ok(vm_thaw(machine->vm, &error));
}

static void test_no_agent(struct machine *machine, gconstpointer unused)
{
    GError *error = NULL;

    start(machine, "-S");
    assert_fails(vm_freeze(machine->vm, 0, NULL, &error), BLOCKMIG_ERROR_REFUSED, "no guest agent");
}

#define ADD(name, function) g_test_add("/qemu/" name, struct machine, NULL, set_up, function, tear_down)

int main(int argc, char **argv)
{
    g_autofree char *qemu = g_find_program_in_path("qemu-system-x86_64");
    g_autofree char *tool = g_find_program_in_path("qemu-img");

    g_test_init(&argc, &argv, NULL);
    if (!qemu || !tool) {
        harness_skip("qemu-system-x86_64 and qemu-img are not installed");
        return 0;
    }
    ADD("describe", test_describe);
    ADD("refusals", test_refusals);
    ADD("abilities", test_abilities);
    ADD("snapshot", test_snapshot);
    ADD("snapshot-is-all-or-none", test_snapshot_is_all_or_none);
    ADD("commit-intermediate", test_commit_intermediate);
    ADD("pivot", test_pivot);
    ADD("pause-is-short", test_pause_is_short);
    ADD("pivot-is-all-or-none", test_pivot_is_all_or_none);
    ADD("rebase", test_rebase);
    ADD("rebase-is-all-or-none", test_rebase_is_all_or_none);
    for (guint i = 0; i < G_N_ELEMENTS(styles); i++) {
        g_autofree char *stopped = g_strdup_printf("/qemu/names-are-exchanged/%u", i);
        g_autofree char *running = g_strdup_printf("/qemu/names-are-exchanged-running/%u", i);

        g_test_add(stopped, struct machine, &styles[i], set_up, test_names_are_exchanged, tear_down);
        g_test_add(running, struct machine, &styles[i], set_up, test_names_are_exchanged_running, tear_down);
    }
    ADD("handed-over-early", test_handed_over_early);
    ADD("unused-file-is-forgotten", test_unused_file_is_forgotten);
    ADD("failed-node-leaves-nothing", test_failed_node_leaves_nothing);
    ADD("removal-is-repeated", test_removal_is_repeated);
    ADD("jobs-are-adopted", test_jobs_are_adopted);
    ADD("connection-is-adopted", test_connection_is_adopted);
    ADD("machine-is-killed", test_machine_is_killed);
    ADD("limits", test_limits);
    ADD("events", test_events);
    ADD("agent-is-found", test_agent_is_found);
    ADD("no-agent", test_no_agent);
    return g_test_run();
}
