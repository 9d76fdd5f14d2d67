/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The test guest: /init of a machine that writes to its disks all the time, remembers what was
 * acknowledged, and says at the end whether all of it is there.
 *
 * Kernel command line: rate=N (writes per second and disk; 0: as fast as it can), disks=N, span=SIZE or
 * span=P% (the part of each disk that is written), flush=N (a flush after every N writes; 0: only when
 * told to stop), seed=N, log=1 (a line for each flush on the console), hold=1 (begin stopped), memory=SIZE
 * (that much is filled with what packs to a third), dirty=N (of its pages that are changed in a second); the
 * words "sequential" and "fill".  A seed is for one boot; without it every boot takes one of its own. With a
 * virtio port for an agent (agent.h): agent_delay=MS, agent_refuses=1.
 *
 * Commands, one per line on the second serial port, each answered by one line:
 *   stop, start       finish and flush all writes; go on
 *   check             stop, read everything back and give the verdict
 *   fill              write every block once, in order, then go on as before
 *   stats, reset      counts and longest times as JSON; forget the longest times
 *   rate N, flush     change the rate; flush now
 *   dirty N           change that of the memory
 *   reboot, poweroff
 */
#include "agent.h"
#include "stamp.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum {
    DISKS_MAX = 16,
    BATCH = 256, /* blocks in one large read, or in one write of "fill" */
    SAMPLES = 10,
    SAMPLE_MS = 100,
};

struct disk {
    char name[8];
    int fd;
    struct stream stream;
    uint64_t next;      /* the sequence of the next write */
    uint64_t *last;     /* per block, the last acknowledged sequence; 0: none in this boot */
    uint64_t unflushed; /* writes since the last flush */
    uint64_t next_at;   /* ns; with a rate, when the next write is due */
    bool fill, idle;    /* under lock */
    struct stamp *buffer;
    _Atomic uint64_t writes, flushes, longest_write, longest_flush; /* times in ns */
    _Atomic int error;
};

static struct disk disks[DISKS_MAX];
static unsigned n_disks;
static uint64_t flush_every;
static bool keep_log, sequential;
static _Atomic uint64_t rate;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static bool running; /* under lock */

static void __attribute__((noreturn, format(printf, 1, 2))) die(const char *format, ...)
{
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    printf("guest: failed: %s\n", text);
    fflush(stdout);
    sleep(1);
    reboot(RB_POWER_OFF);
    _exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void note_longest(_Atomic uint64_t *longest, uint64_t begin)
{
    uint64_t took = now_ns() - begin;
    if (took > atomic_load_explicit(longest, memory_order_relaxed))
        atomic_store_explicit(longest, took, memory_order_relaxed);
}

/* ---- writing ------------------------------------------------------------------------------------ */

static void begin_stream(struct disk *disk, bool random)
{
    disk->stream.first = disk->next;
    disk->stream.random = random;
    printf("log: disk %" PRIu64 " seed %016" PRIx64 " blocks %" PRIu64 " from %" PRIu64 " %s\n",
           disk->stream.disk, disk->stream.seed, disk->stream.blocks, disk->next,
           random ? "random" : "sequential");
}

static void disk_failed(struct disk *disk, const char *what)
{
    atomic_store(&disk->error, errno);
    printf("guest: %s: %s: %s\n", disk->name, what, strerror(errno));
}

/* What was acknowledged before the call is durable after it; the log line comes after the fact. */
static void disk_flush(struct disk *disk)
{
    uint64_t begin = now_ns();
    if (fdatasync(disk->fd) != 0) {
        disk_failed(disk, "flush");
        return;
    }
    note_longest(&disk->longest_flush, begin);
    atomic_fetch_add(&disk->flushes, 1);
    disk->unflushed = 0;
    if (keep_log)
        printf("log: disk %" PRIu64 " flushed %" PRIu64 "\n", disk->stream.disk, disk->next - 1);
}

/* Writes the next count sequences, which must be neighbours on the disk, in one request. */
static void disk_write(struct disk *disk, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        stamp_fill(&disk->buffer[i], &disk->stream, disk->next + i);
    size_t length = count * STAMP_BLOCK;
    uint64_t begin = now_ns();
    ssize_t n = pwrite(disk->fd, disk->buffer, length, (off_t)(disk->buffer->block * STAMP_BLOCK));
    if (n != (ssize_t)length) {
        errno = n < 0 ? errno : EIO;
        disk_failed(disk, "write");
        return;
    }
    note_longest(&disk->longest_write, begin);
    for (uint64_t i = 0; i < count; i++)
        disk->last[disk->buffer[i].block] = disk->next + i;
    disk->next += count;
    disk->unflushed += count;
    atomic_fetch_add(&disk->writes, count);
}

static void disk_fill(struct disk *disk)
{
    begin_stream(disk, false);
    uint64_t left = disk->stream.blocks;
    while (left > 0 && disk->error == 0) {
        uint64_t count = left < BATCH ? left : BATCH;
        disk_write(disk, count);
        left -= count;
    }
    if (disk->error == 0)
        disk_flush(disk);
    begin_stream(disk, !sequential);
}

static void wait_for_turn(struct disk *disk)
{
    uint64_t per_second = atomic_load_explicit(&rate, memory_order_relaxed);
    if (per_second == 0)
        return;
    uint64_t step = 1000000000 / per_second, now = now_ns();
    /* After a long stall it does not make up for what was missed. */
    disk->next_at = disk->next_at + step < now ? now : disk->next_at + step;
    struct timespec until = {
        .tv_sec = (time_t)(disk->next_at / 1000000000),
        .tv_nsec = (long)(disk->next_at % 1000000000),
    };
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}

/* Leaves nothing in flight and nothing unflushed, and says so. */
static void come_to_rest(struct disk *disk)
{
    if (disk->error == 0 && disk->unflushed > 0)
        disk_flush(disk);
    if (disk->error == 0)
        printf("log: disk %" PRIu64 " stopped %" PRIu64 "\n", disk->stream.disk, disk->next - 1);
}

/* Waits until there is something to do; true: fill. */
static bool next_work(struct disk *disk)
{
    pthread_mutex_lock(&lock);
    bool rested = disk->idle;
    while (disk->error != 0 || (!running && !disk->fill)) {
        if (!rested) {
            pthread_mutex_unlock(&lock);
            come_to_rest(disk);
            pthread_mutex_lock(&lock);
            rested = true;
            continue; /* it may have been told to go on in between */
        }
        disk->idle = true;
        pthread_cond_broadcast(&changed);
        pthread_cond_wait(&changed, &lock);
    }
    bool fill = disk->fill;
    disk->idle = false;
    pthread_mutex_unlock(&lock);
    if (rested && !fill)
        begin_stream(disk, !sequential);
    return fill;
}

static void *writer(void *pointer)
{
    struct disk *disk = pointer;
    while (true) {
        if (next_work(disk)) {
            disk_fill(disk);
            pthread_mutex_lock(&lock);
            disk->fill = false;
            pthread_cond_broadcast(&changed);
            pthread_mutex_unlock(&lock);
            continue;
        }
        wait_for_turn(disk);
        disk_write(disk, 1);
        if (disk->error == 0 && flush_every > 0 && disk->unflushed >= flush_every)
            disk_flush(disk);
    }
    return NULL;
}

static void set_running(bool value)
{
    pthread_mutex_lock(&lock);
    running = value;
    pthread_cond_broadcast(&changed);
    for (unsigned i = 0; i < n_disks && !value; i++)
        while (!disks[i].idle)
            pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
}

static void fill_all(void)
{
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < n_disks; i++)
        disks[i].fill = disks[i].error == 0;
    pthread_cond_broadcast(&changed);
    for (unsigned i = 0; i < n_disks; i++)
        while (disks[i].fill && disks[i].error == 0)
            pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
}

/* ---- memory ------------------------------------------------------------------------------------- */

static struct {
    uint8_t *base;
    uint64_t pages;
    _Atomic uint64_t rate;
} memory;

/* Records of 32 bytes: a number, and behind it one of sixteen words. */
static void fill_page(uint8_t *page)
{
    static uint64_t noise = 0x9e3779b97f4a7c15;
    for (unsigned i = 0; i < STAMP_BLOCK; i += 32) {
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        memcpy(page + i, &noise, sizeof(noise));
        memset(page + i + sizeof(noise), 'a' + (int)(noise & 15), 32 - sizeof(noise));
    }
}

static void *change_memory(void *unused)
{
    struct timespec pause = {.tv_nsec = 10000000};
    uint64_t next = 0, last = now_ns();
    while (nanosleep(&pause, NULL) == 0 || errno == EINTR) {
        uint64_t now = now_ns(), passed = now - last < 100000000 ? now - last : 100000000;
        /* After a long stall it does not make up for what was missed. */
        for (uint64_t count = memory.rate * passed / 1000000000; count > 0; count--)
            fill_page(memory.base + next++ % memory.pages * STAMP_BLOCK);
        last = now;
    }
    return unused;
}

static void use_memory(uint64_t size, uint64_t changed_pages)
{
    pthread_t thread;
    memory.pages = size / STAMP_BLOCK;
    memory.rate = changed_pages;
    if (memory.pages == 0)
        return;
    memory.base = aligned_alloc(STAMP_BLOCK, size);
    if (memory.base == NULL)
        die("not enough memory");
    for (uint64_t i = 0; i < memory.pages; i++)
        fill_page(memory.base + i * STAMP_BLOCK);
    if (pthread_create(&thread, NULL, change_memory, NULL) != 0)
        die("no thread for the memory");
}

/* ---- freezing ----------------------------------------------------------------------------------- */

static bool wrote; /* when it was frozen */

static void freeze_all(void)
{
    pthread_mutex_lock(&lock);
    wrote = running;
    pthread_mutex_unlock(&lock);
    set_running(false);
}

static void thaw_all(void)
{
    if (wrote)
        set_running(true);
}

/* ---- the verdict -------------------------------------------------------------------------------- */

struct verdict {
    uint64_t checked, wrong;
    char first[160];
};

static void judge(struct verdict *verdict, const struct disk *disk, uint64_t block, const struct stamp *found)
{
    uint64_t last = disk->last[block];
    const char *fault = NULL;
    if (last > 0)
        fault = stamp_fault(found, disk->stream.disk, block, disk->stream.seed, last);
    else if (stamp_read(found) == STAMP_WHOLE && found->seed == disk->stream.seed)
        /* Ours, where we did not write: or where we do not remember it. */
        fault = found->disk == disk->stream.disk && found->block == block ? "newer data" : "foreign data";
    verdict->checked += last > 0;
    if (fault == NULL)
        return;
    if (verdict->wrong++ == 0)
        snprintf(verdict->first, sizeof(verdict->first),
                 "%s block %" PRIu64 ": %s, expected sequence %" PRIu64 ", found %" PRIu64, disk->name, block,
                 fault, last, found->magic == STAMP_MAGIC ? found->sequence : 0);
}

/* Past every cache: O_DIRECT, and the writers are idle. */
static bool check_disk(struct verdict *verdict, struct disk *disk)
{
    if (disk->error != 0) {
        snprintf(verdict->first, sizeof(verdict->first), "%s: %s", disk->name, strerror(disk->error));
        return false;
    }
    for (uint64_t block = 0; block < disk->stream.blocks; block += BATCH) {
        uint64_t count = disk->stream.blocks - block < BATCH ? disk->stream.blocks - block : BATCH;
        size_t length = count * STAMP_BLOCK;
        ssize_t got = pread(disk->fd, disk->buffer, length, (off_t)(block * STAMP_BLOCK));
        if (got != (ssize_t)length) {
            const char *why = got < 0 ? strerror(errno) : "short";
            bool again =
                pread(disk->fd, disk->buffer, length, (off_t)(block * STAMP_BLOCK)) == (ssize_t)length;
            snprintf(verdict->first, sizeof(verdict->first),
                     "%s block %" PRIu64 ": cannot be read: %s; once more: %s", disk->name, block, why,
                     again ? "it can" : "no");
            return false;
        }
        for (uint64_t i = 0; i < count; i++)
            judge(verdict, disk, block + i, &disk->buffer[i]);
    }
    return true;
}

static void check_all(char *answer, size_t size)
{
    struct verdict verdict = {0};
    bool readable = true;
    set_running(false);
    for (unsigned i = 0; i < n_disks && readable; i++)
        readable = check_disk(&verdict, &disks[i]);
    if (!readable || verdict.wrong > 0)
        snprintf(answer, size, "BAD %s; %" PRIu64 " of %" PRIu64 " blocks wrong", verdict.first,
                 verdict.wrong, verdict.checked);
    else if (verdict.checked == 0)
        snprintf(answer, size, "BAD nothing was written");
    else
        snprintf(answer, size, "OK %" PRIu64 " blocks", verdict.checked);
    printf("verdict: %s\n", answer);
}

/* ---- counts ------------------------------------------------------------------------------------- */

static struct sample {
    uint64_t at, writes;
} samples[SAMPLES];
static unsigned newest;

static uint64_t total_writes(void)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < n_disks; i++)
        sum += disks[i].writes;
    return sum;
}

static void take_sample(void)
{
    newest = (newest + 1) % SAMPLES;
    samples[newest] = (struct sample){.at = now_ns(), .writes = total_writes()};
}

/* Over the time that the samples span, which is one second. */
static double writes_per_second(void)
{
    const struct sample *oldest = &samples[(newest + 1) % SAMPLES];
    uint64_t passed = now_ns() - oldest->at;
    return oldest->at == 0 || passed == 0 ? 0
                                          : (double)(total_writes() - oldest->writes) * 1e9 / (double)passed;
}

static void stats(char *answer, size_t size)
{
    uint64_t flushes = 0, longest_write = 0, longest_flush = 0;
    char each[DISKS_MAX * 128] = "";
    for (unsigned i = 0; i < n_disks; i++) {
        const struct disk *d = &disks[i];
        flushes += d->flushes;
        longest_write = d->longest_write > longest_write ? d->longest_write : longest_write;
        longest_flush = d->longest_flush > longest_flush ? d->longest_flush : longest_flush;
        size_t used = strlen(each);
        snprintf(each + used, sizeof(each) - used,
                 "%s{\"disk\":\"%s\",\"writes\":%" PRIu64 ",\"longest_write_us\":%" PRIu64 ",\"error\":%d}",
                 i > 0 ? "," : "", d->name, d->writes, d->longest_write / 1000, d->error);
    }
    snprintf(answer, size,
             "{\"writes\":%" PRIu64 ",\"bytes\":%" PRIu64 ",\"flushes\":%" PRIu64
             ",\"longest_write_us\":%" PRIu64 ",\"longest_flush_us\":%" PRIu64
             ",\"writes_per_s\":%.0f,\"disks\":[%s]}",
             total_writes(), total_writes() * STAMP_BLOCK, flushes, longest_write / 1000,
             longest_flush / 1000, writes_per_second(), each);
}

static void reset_longest(void)
{
    for (unsigned i = 0; i < n_disks; i++) {
        disks[i].longest_write = 0;
        disks[i].longest_flush = 0;
    }
}

/* ---- commands ----------------------------------------------------------------------------------- */

static void answer_line(int port, const char *text)
{
    dprintf(port, "%s\n", text);
    tcdrain(port);
}

static void __attribute__((noreturn)) go_down(int port, int how)
{
    set_running(false);
    answer_line(port, "OK");
    reboot(how);
    die("reboot: %s", strerror(errno));
}

static bool flush_all(void)
{
    /* Only the writer of a disk may touch it, so a flush is a very short stop. */
    pthread_mutex_lock(&lock);
    bool was_running = running;
    pthread_mutex_unlock(&lock);
    set_running(false);
    if (was_running)
        set_running(true);
    for (unsigned i = 0; i < n_disks; i++)
        if (disks[i].error != 0)
            return false;
    return true;
}

static void obey(int port, const char *line)
{
    static char answer[DISKS_MAX * 128 + 512];
    snprintf(answer, sizeof(answer), "OK");
    if (strcmp(line, "stop") == 0)
        set_running(false);
    else if (strcmp(line, "start") == 0)
        set_running(true);
    else if (strcmp(line, "flush") == 0)
        snprintf(answer, sizeof(answer), "%s", flush_all() ? "OK" : "BAD a disk failed");
    else if (strcmp(line, "check") == 0)
        check_all(answer, sizeof(answer));
    else if (strcmp(line, "fill") == 0)
        fill_all();
    else if (strcmp(line, "stats") == 0)
        stats(answer, sizeof(answer));
    else if (strcmp(line, "reset") == 0)
        reset_longest();
    else if (strncmp(line, "rate ", 5) == 0)
        atomic_store(&rate, strtoull(line + 5, NULL, 10));
    else if (strncmp(line, "dirty ", 6) == 0)
        memory.rate = strtoull(line + 6, NULL, 10);
    else if (strcmp(line, "reboot") == 0)
        go_down(port, RB_AUTOBOOT);
    else if (strcmp(line, "poweroff") == 0)
        go_down(port, RB_POWER_OFF);
    else
        snprintf(answer, sizeof(answer), "BAD unknown command");
    answer_line(port, answer);
}

static int open_port(void)
{
    int fd = open("/dev/ttyS1", O_RDWR | O_NOCTTY | O_CLOEXEC);
    struct termios t;
    if (fd < 0 || tcgetattr(fd, &t) != 0)
        die("/dev/ttyS1: %s", strerror(errno));
    cfmakeraw(&t);
    t.c_cflag |= CLOCAL | CREAD;
    cfsetspeed(&t, B115200);
    if (tcsetattr(fd, TCSAFLUSH, &t) != 0)
        die("/dev/ttyS1: %s", strerror(errno));
    return fd;
}

static void __attribute__((noreturn)) serve(int port)
{
    char line[64];
    size_t used = 0;
    while (true) {
        struct pollfd p = {.fd = port, .events = POLLIN};
        if (poll(&p, 1, SAMPLE_MS) <= 0) {
            take_sample();
            continue;
        }
        char c;
        if (read(port, &c, 1) != 1)
            continue;
        if (c == '\n') {
            line[used] = '\0';
            used = 0;
            obey(port, line);
        } else if (used < sizeof(line) - 1) {
            line[used++] = c;
        }
    }
}

/* ---- start -------------------------------------------------------------------------------------- */

static uint64_t option(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);
    return text != NULL ? strtoull(text, NULL, 0) : otherwise;
}

/* A size up to `size`, or a part of it. */
static uint64_t size_option(const char *name, uint64_t size, uint64_t otherwise)
{
    const char *text = getenv(name);
    if (text == NULL)
        return otherwise;
    char *end;
    uint64_t value = strtoull(text, &end, 10);
    switch (*end) {
    case '%':
        value = size / 100 * value;
        break;
    case 'G':
        value <<= 30;
        break;
    case 'M':
        value <<= 20;
        break;
    case 'K':
        value <<= 10;
        break;
    }
    return value < size ? value : size;
}

static void load_module(const char *name)
{
    char path[300];
    snprintf(path, sizeof(path), "/modules/%s", name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) != 0 && errno != EEXIST))
        die("%s: %s", path, strerror(errno));
    close(fd);
}

/* Their names begin with two digits: the order. */
static void load_modules(void)
{
    struct dirent **entries;
    int n = scandir("/modules", &entries, NULL, alphasort);
    for (int i = 0; i < n; i++)
        if (entries[i]->d_name[0] != '.')
            load_module(entries[i]->d_name);
}

static void open_disk(const char *name, uint64_t seed)
{
    struct disk *disk = &disks[n_disks];
    char path[32];
    uint64_t size;
    int read_only;
    snprintf(disk->name, sizeof(disk->name), "%.3s", name);
    snprintf(path, sizeof(path), "/dev/%s", disk->name);
    disk->fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
    /* A read-only disk is nobody's business here. */
    if (disk->fd < 0 && (errno == EACCES || errno == EROFS))
        return;
    if (disk->fd < 0 || ioctl(disk->fd, BLKGETSIZE64, &size) != 0 ||
        ioctl(disk->fd, BLKROGET, &read_only) != 0)
        die("%s: %s", path, strerror(errno));
    if (read_only) {
        close(disk->fd);
        return;
    }
    /* The number is the letter, so that a disk has the same one in every boot. */
    disk->stream = (struct stream){.seed = seed,
                                   .disk = (uint64_t)(name[2] - 'a'),
                                   .blocks = size_option("span", size, size) / STAMP_BLOCK};
    if (disk->stream.blocks == 0)
        die("%s: smaller than one block", path);
    disk->next = 1;
    disk->last = calloc(disk->stream.blocks, sizeof(*disk->last));
    disk->buffer = aligned_alloc(STAMP_BLOCK, BATCH * STAMP_BLOCK);
    if (disk->last == NULL || disk->buffer == NULL)
        die("%s: not enough memory for %" PRIu64 " blocks", path, disk->stream.blocks);
    disk->idle = true;
    n_disks++;
}

static int is_disk(const struct dirent *entry)
{
    return strncmp(entry->d_name, "vd", 2) == 0 && isalpha((unsigned char)entry->d_name[2]) &&
           entry->d_name[3] == '\0';
}

static void open_disks(void)
{
    uint64_t seed = 0, most = option("disks", DISKS_MAX);
    if (getrandom(&seed, sizeof(seed), GRND_INSECURE) != sizeof(seed))
        seed = now_ns();
    seed = option("seed", seed);
    struct dirent **entries;
    int n = scandir("/sys/block", &entries, is_disk, alphasort);
    for (int i = 0; i < n && n_disks < DISKS_MAX && n_disks < most; i++)
        open_disk(entries[i]->d_name, seed);
    if (n_disks == 0)
        die("no disk");
}

static void mount_all(void)
{
    mkdir("/dev", 0755);
    mkdir("/proc", 0755);
    mkdir("/sys", 0755);
    if (mount("devtmpfs", "/dev", "devtmpfs", 0, NULL) != 0 && errno != EBUSY)
        die("/dev: %s", strerror(errno));
    if (mount("proc", "/proc", "proc", 0, NULL) != 0 || mount("sysfs", "/sys", "sysfs", 0, NULL) != 0)
        die("/proc, /sys: %s", strerror(errno));
}

int main(int argc, char **argv)
{
    bool fill = false;
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 1; i < argc; i++) {
        sequential = sequential || strcmp(argv[i], "sequential") == 0;
        fill = fill || strcmp(argv[i], "fill") == 0;
    }
    atomic_store(&rate, option("rate", 0));
    flush_every = option("flush", 64);
    keep_log = option("log", 0) != 0;
    mount_all();
    load_modules();
    open_disks();
    use_memory(size_option("memory", UINT64_MAX, 0), option("dirty", 0));
    int port = open_port();
    for (unsigned i = 0; i < n_disks; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, writer, &disks[i]) != 0)
            die("no thread for %s", disks[i].name);
    }
    if (fill)
        fill_all();
    if (option("hold", 0) == 0)
        set_running(true);
    agent_serve(&(struct agent_hooks){.freeze = freeze_all,
                                      .thaw = thaw_all,
                                      .disks = n_disks,
                                      .delay_ms = (unsigned)option("agent_delay", 0),
                                      .refuses = option("agent_refuses", 0) != 0});
    printf("guest: ready, %u disks\n", n_disks);
    serve(port);
}
