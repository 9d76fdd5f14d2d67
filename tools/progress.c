/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tools/progress.h"

#include "blockmig/migrate/units.h"
#include "tools/output.h"
#include "tools/signals.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define TICK          (G_USEC_PER_SEC / 5)
#define PLAIN_PERIOD  (5 * G_USEC_PER_SEC)
#define SAMPLES       16 /* one every SAMPLE_PERIOD: the rate is that of the last eight seconds */
#define SAMPLE_PERIOD (G_USEC_PER_SEC / 2)

struct sample {
    int64_t time; /* monotonic, microseconds */
    uint64_t done;
};

struct progress {
    /* fixed after progress_new() */
    bool line;  /* a terminal on which one line is rewritten */
    bool plain; /* a line every PLAIN_PERIOD */
    bool quiet, verbose;
    int fd; /* of --progress=FD, or -1 */
    GThread *thread;

    GMutex mutex; /* protects all below */
    GCond wake;
    bool ending;
    char *phase, *what;
    struct copy_counters counters;
    struct job_pace pace; /* pass 0: nobody told */
    struct sample samples[SAMPLES];
    unsigned sample_count; /* all that were ever taken in this phase */
    int64_t last_plain;
    size_t shown;         /* columns of the line that stands there */
    unsigned part, parts; /* from "layer 2 of 3": parts of one whole for --progress=FD */
    int last_percent;     /* written to fd */
};

static uint64_t amount_done(const struct copy_counters *counters)
{
    return counters->data_total ? counters->data_done : counters->position;
}

static uint64_t amount_total(const struct copy_counters *counters)
{
    return counters->data_total ? counters->data_total : counters->total;
}

static int percent(const struct copy_counters *counters)
{
    uint64_t total = amount_total(counters), done = MIN(amount_done(counters), total);
    return total ? (int)((double)done / total * 100) : 0;
}

static void take_sample(struct progress *progress, int64_t now)
{
    unsigned count = progress->sample_count;
    if (count && now - progress->samples[(count - 1) % SAMPLES].time < SAMPLE_PERIOD)
        return;
    progress->samples[count % SAMPLES] = (struct sample){now, amount_done(&progress->counters)};
    progress->sample_count++;
}

/* Bytes per second since the oldest sample; 0: not known yet. */
static double rate(const struct progress *progress, int64_t now)
{
    unsigned count = progress->sample_count;
    if (count == 0)
        return 0;
    const struct sample *oldest = &progress->samples[count > SAMPLES ? count % SAMPLES : 0];
    double seconds = (double)(now - oldest->time) / G_USEC_PER_SEC;
    uint64_t done = amount_done(&progress->counters);
    return seconds > 0.1 && done > oldest->done ? (done - oldest->done) / seconds : 0;
}

/* "4:05", "1:02:03" */
static void append_time(GString *out, uint64_t seconds)
{
    if (seconds >= 3600)
        g_string_append_printf(out, "%" PRIu64 ":%02" PRIu64 ":%02" PRIu64, seconds / 3600, seconds / 60 % 60,
                               seconds % 60);
    else
        g_string_append_printf(out, "%" PRIu64 ":%02" PRIu64, seconds / 60, seconds % 60);
}

/* A field goes in whole or not at all: `width` 0 is endless. */
static void append_field(GString *line, const char *field, unsigned width)
{
    glong columns = g_utf8_strlen(line->str, -1) + 2 + g_utf8_strlen(field, -1);
    if (!*field || (width && columns > (glong)width))
        return;
    if (line->len)
        g_string_append(line, "  ");
    g_string_append(line, field);
}

static void append_size_field(GString *line, const char *before, uint64_t bytes, const char *after,
                              unsigned width)
{
    g_autofree char *size = units_format_size(bytes);
    g_autofree char *field = g_strconcat(before, size, after, NULL);
    append_field(line, field, width);
}

static void append_rate_field(GString *line, const char *before, double bytes_per_second, unsigned width)
{
    g_autofree char *rate = units_format_rate(bytes_per_second);
    g_autofree char *field = g_strconcat(before, rate, NULL);
    if (bytes_per_second >= 0)
        append_field(line, field, width);
}

/* "pass 3  machine writes 6.6 MiB/s  shipped at 110 MiB/s  pause 27 of 500 ms"; after it: "paused 18.4 ms" */
static void append_pace(GString *line, const struct job_pace *pace, unsigned width)
{
    g_autofree char *pass = g_strdup_printf("pass %u", pace->pass);
    g_autofree char *forecast = g_strdup_printf("pause %.0f of %.0f ms", pace->forecast_ms, pace->limit_ms);
    g_autofree char *pause = g_strdup_printf("paused %.1f ms", pace->pause_ms);
    if (pace->pass == 0)
        return;
    if (pace->pause_ms >= 0) {
        append_field(line, pause, width);
        return;
    }
    append_field(line, pass, width);
    append_rate_field(line, "machine writes ", pace->dirty_rate, width);
    if (pace->forecast_ms >= 0)
        append_field(line, forecast, width);
    append_rate_field(line, "shipped at ", pace->ship_rate, width);
}

/* "base  42%  3.4 GiB of 8 GiB  812 MiB/s  0:05 left  pass 1  verified 3.1 GiB  layer 2 of 3" */
static char *make_line(const struct progress *progress, int64_t now, unsigned width)
{
    const struct copy_counters *counters = &progress->counters;
    GString *line = g_string_new(progress->phase);
    uint64_t total = amount_total(counters), done = MIN(amount_done(counters), total);
    if (total) {
        double speed = rate(progress, now);
        g_autofree char *share = g_strdup_printf("%3d%%", percent(counters));
        append_field(line, share, width);
        g_autofree char *whole = units_format_size(total);
        g_autofree char *of = g_strconcat(" of ", whole, NULL);
        append_size_field(line, "", done, of, width);
        bool known = speed > 0 || progress->sample_count > 1;
        g_autofree char *pace = known ? units_format_rate(speed) : g_strdup("");
        append_field(line, pace, width);
        g_autoptr(GString) left = g_string_new(NULL);
        if (speed > 0) {
            append_time(left, (uint64_t)((total - done) / speed + 0.5));
            g_string_append(left, " left");
        }
        append_field(line, left->str, width);
    }
    append_pace(line, &progress->pace, width);
    if (total) {
        if (counters->bytes_verified)
            append_size_field(line, "verified ", counters->bytes_verified, "", width);
    }
    append_field(line, progress->what ? progress->what : "", width);
    return g_string_free(line, FALSE);
}

static unsigned terminal_width(void)
{
    struct winsize size;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1)
        return size.ws_col - 1; /* the last column makes some terminals wrap */
    return 79;
}

/* Blanks what stands there beyond the new text: no escape sequence needed. */
static void show(struct progress *progress, const char *text)
{
    size_t columns = g_utf8_strlen(text, -1);
    int blanks = progress->shown > columns ? (int)(progress->shown - columns) : 0;
    fprintf(stderr, "\r%s%*s", text, blanks, "");
    if (columns == 0)
        fputc('\r', stderr);
    fflush(stderr);
    progress->shown = columns;
}

static void print_plain(struct progress *progress, int64_t now)
{
    g_autofree char *line = make_line(progress, now, 0);
    if (progress->shown)
        show(progress, "");
    fprintf(stderr, "blockmig: %s\n", line);
    progress->last_plain = now;
}

/* nbdcopy's form; never falls, and 100 is kept for the end. */
static void write_percent(struct progress *progress, int value)
{
    if (progress->fd < 0 || value <= progress->last_percent)
        return;
    progress->last_percent = value;
    dprintf(progress->fd, "%d/100\n", value);
}

static void draw(struct progress *progress, int64_t now)
{
    take_sample(progress, now);
    if (signals_take_progress_wish())
        print_plain(progress, now);
    unsigned whole = (progress->part - 1) * 100 + percent(&progress->counters);
    write_percent(progress, MIN((int)(whole / progress->parts), 99));
    if (progress->line) {
        g_autofree char *line = make_line(progress, now, terminal_width());
        show(progress, line);
    } else if (progress->plain && now - progress->last_plain >= PLAIN_PERIOD) {
        print_plain(progress, now);
    }
}

static gpointer run_display(gpointer opaque)
{
    struct progress *progress = opaque;
    g_mutex_lock(&progress->mutex);
    while (!progress->ending) {
        gint64 next = g_get_monotonic_time() + TICK;
        while (!progress->ending && g_cond_wait_until(&progress->wake, &progress->mutex, next))
            ;
        if (!progress->ending && progress->phase)
            draw(progress, g_get_monotonic_time());
    }
    g_mutex_unlock(&progress->mutex);
    return NULL;
}

struct progress *progress_new(const struct options *options)
{
    struct progress *progress = g_new0(struct progress, 1);
    const char *term = g_getenv("TERM");
    bool terminal = isatty(STDERR_FILENO);
    bool dumb = !term || !*term || strcmp(term, "dumb") == 0;

    progress->fd = options->progress >= 0 ? options->progress : -1;
    progress->line = terminal && !dumb && !options->quiet && progress->fd < 0;
    bool wanted = options->verbose || options->progress == PROGRESS_WANTED || terminal;
    progress->plain = wanted && !progress->line && !options->quiet && progress->fd < 0;
    progress->quiet = options->quiet;
    progress->verbose = options->verbose && progress->fd < 0;
    progress->last_plain = g_get_monotonic_time();
    progress->last_percent = -1;
    g_mutex_init(&progress->mutex);
    g_cond_init(&progress->wake);
    progress->thread = g_thread_new("progress", run_display, progress);
    return progress;
}

void progress_phase(struct progress *progress, const char *phase, const char *what)
{
    g_mutex_lock(&progress->mutex);
    g_free(progress->phase);
    g_free(progress->what);
    progress->phase = output_printable(phase);
    progress->what = what ? output_printable(what) : NULL;
    if (!what || sscanf(what, "layer %u of %u", &progress->part, &progress->parts) != 2 ||
        progress->part == 0 || progress->part > progress->parts)
        progress->part = progress->parts = 1;
    progress->counters = (struct copy_counters){0};
    progress->sample_count = 0;
    if (progress->verbose)
        print_plain(progress, g_get_monotonic_time());
    g_mutex_unlock(&progress->mutex);
}

void progress_pace(struct progress *progress, const struct job_pace *pace)
{
    g_mutex_lock(&progress->mutex);
    progress->pace = *pace;
    g_mutex_unlock(&progress->mutex);
}

void progress_update(struct progress *progress, const struct copy_counters *counters)
{
    g_mutex_lock(&progress->mutex);
    progress->counters = *counters;
    g_mutex_unlock(&progress->mutex);
}

void progress_message(struct progress *progress, const char *text)
{
    g_mutex_lock(&progress->mutex);
    if (progress->shown)
        show(progress, "");
    if (!progress->quiet)
        output_message("%s", text);
    g_mutex_unlock(&progress->mutex);
}

void progress_end(struct progress *progress, bool done)
{
    if (!progress)
        return;
    g_mutex_lock(&progress->mutex);
    progress->ending = true;
    g_cond_signal(&progress->wake);
    g_mutex_unlock(&progress->mutex);
    g_thread_join(progress->thread);
    if (progress->shown)
        show(progress, "");
    if (done)
        write_percent(progress, 100);
    g_mutex_clear(&progress->mutex);
    g_cond_clear(&progress->wake);
    g_free(progress->phase);
    g_free(progress->what);
    g_free(progress);
}
