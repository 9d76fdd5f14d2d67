/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The way back from another host.  A migration is led where the machine is, so the agent there is asked to
 * lead one to here, and this process only listens.  Each is known by an id, which stands in the journal
 * before it is asked for; asking twice, or for what became of it, does nothing more.
 */
#include "blockmig/migrate/machine-look.h"
#include "blockmig/migrate/machine-window.h"
#include "blockmig/storage/agent-client.h"
#include "blockmig/storage/names.h"
#include "blockmig/storage/uri.h"

#include <string.h>

#define TICK (G_USEC_PER_SEC / 2)

/* Events of the job, with the id after the first and before the second. */
#define ASKS    "ask the other host for the way back, "
#define CHANGED " has changed nothing"

#define MIGRATIONS "/v1/machines/migrations"
#define ID_PREFIX  MIGRATIONS "/"

/* An agent that does not know what is asked is no mistake of the command's. */
static json_t *ask(struct machine_job *job, const char *method, const char *path, json_t *arguments,
                   GError **error)
{
    json_t *answer = agent_ask_json(job->agent, method, path, arguments, NULL, error);

    if (!answer && g_error_matches(*error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE))
        (*error)->code = BLOCKMIG_ERROR_REFUSED;
    return answer;
}

/* ---- is there a way? -------------------------------------------------------------------------------- */

static bool ask_for_file(struct machine_job *job, const char *uri, const char *name, GError **error)
{
    g_autofree char *file = g_strdup_printf("%s%s%s", uri, g_str_has_suffix(uri, "/") ? "" : "/", name);
    json_t *answer = ask(job, "POST", "/v1/machines/reach", json_pack("{s:s}", "file", file), error);
    bool seen = json_is_true(json_object_get(answer, "seen"));

    json_decref(answer);
    return seen || (!answer ? false
                            : blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                                            "what the other host finds there is not the directory of the "
                                            "disks here"));
}

/* A file that is made here under a name that nobody guesses is seen from there, or not. */
bool machine_check_reach(struct machine_job *job, const char *uri, const char *directory, GError **error)
{
    g_autofree char *name = name_new_probe(), *path = g_build_filename(directory, name, NULL);
    struct storage *probe = storage_open(path, FILE_WRITE | FILE_CREATE, NULL, NULL, error);
    bool seen = probe && ask_for_file(job, uri, name, error);

    if (probe)
        storage_close(probe);
    if (!seen)
        g_prefix_error(error, "%s: ", uri);
    return probe && name_remove(path, seen ? error : NULL) && seen;
}

/* ---- what was asked for ----------------------------------------------------------------------------- */

static bool is_closed(const struct machine_job *job, const char *id)
{
    g_autofree char *text = g_strconcat(id, CHANGED, NULL);

    return machine_has_event(job, "result", text);
}

char *machine_open_run(const struct machine_job *job)
{
    g_autoptr(GPtrArray) asked = journal_told(job->base.journal, job->base.record, "intent", ASKS, NULL);
    const char *last = asked && asked->len ? asked->pdata[asked->len - 1] : NULL;

    return last && !is_closed(job, last) ? g_strdup(last) : NULL;
}

static json_t *describe(const struct machine_job *job, const char *id)
{
    static const char *const cdrom[] = {"copy", "keep", "eject"};
    g_autoptr(move_request_t) back = machine_request_back(job, job->window->failback_to);
    json_t *object = json_pack(
        "{s:s, s:s, s:s, s:b, s:I, s:I, s:I, s:I, s:s, s:s, s:s}", "id", id, "machine", back->machine,
        "target", back->target, "delete_source", back->delete_source, "bandwidth",
        (json_int_t)back->bandwidth, "guest_share", (json_int_t)back->guest_share, "max_pause",
        (json_int_t)back->max_pause, "shutdown", (json_int_t)back->shutdown, "cdrom", cdrom[back->cdrom],
        "digest", back->digest == DIGEST_SHA256 ? "sha256" : "xxh3", "chain", chain_mode_name(back->chain));

    if (back->target_format)
        json_object_set_new(object, "format", json_string(back->target_format));
    return object;
}

static bool begin(struct machine_job *job, const char *id, GError **error)
{
    json_t *answer;

    if (!job_event(&job->base, "intent", error, ASKS "%s", id))
        return false;
    answer = ask(job, "POST", MIGRATIONS, describe(job, id), error);
    json_decref(answer);
    /* Whether one that is silent has heard it is not known. */
    if (!answer && !g_error_matches(*error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_UNREACHABLE))
        job_event(&job->base, "result", NULL, "%s" CHANGED, id);
    return answer != NULL;
}

/* ---- listening -------------------------------------------------------------------------------------- */

/* What was said there, from *offset on, line by line. */
static void pass_on(struct machine_job *job, const json_t *answer, json_int_t *offset)
{
    const char *log = json_string_value(json_object_get(answer, "log"));
    g_auto(GStrv) lines = g_strsplit(log ? log : "", "\n", -1);

    *offset = json_integer_value(json_object_get(answer, "offset"));
    for (char **line = lines; *line; line++)
        if (**line)
            machine_tell(job, "%s",
                         g_str_has_prefix(*line, "blockmig: ") ? *line + strlen("blockmig: ") : *line);
}

static bool ask_to_stop(struct machine_job *job, const char *id, GError **error)
{
    g_autofree char *path = g_strconcat(ID_PREFIX, id, NULL);
    json_t *answer = ask(job, "DELETE", path, NULL, error);

    json_decref(answer);
    return answer != NULL;
}

/* Until it has ended, or is not there (any more); the last answer, the caller's. */
static json_t *follow(struct machine_job *job, const char *id, GError **error)
{
    bool stopped = false;
    json_int_t offset = 0;

    for (;;) {
        g_autofree char *path = g_strdup_printf(ID_PREFIX "%s?offset=%" JSON_INTEGER_FORMAT, id, offset);
        json_t *answer = ask(job, "GET", path, NULL, error);
        json_int_t before = offset;

        if (!answer)
            return NULL;
        pass_on(job, answer, &offset);
        if (!json_is_true(json_object_get(answer, "running")) && offset == before)
            return answer;
        json_decref(answer);
        if (!stopped && machine_is_cancelled(job, NULL) && !(stopped = ask_to_stop(job, id, error)))
            return NULL;
        g_usleep(TICK);
    }
}

/* ---- what came of it -------------------------------------------------------------------------------- */

static char *get_text(const json_t *object, const char *key)
{
    return g_strdup(json_string_value(json_object_get(object, key)));
}

static uint64_t get_number(const json_t *object, const char *key)
{
    return (uint64_t)json_integer_value(json_object_get(object, key));
}

static struct disk_report *read_disk(const json_t *object, enum digest_algorithm algorithm)
{
    struct disk_report *disk = g_new0(struct disk_report, 1);

    *disk = (struct disk_report){.disk = get_text(object, "disk"),
                                 .source = get_text(object, "source"),
                                 .target = get_text(object, "target"),
                                 .source_format = get_text(object, "source_format"),
                                 .target_format = get_text(object, "target_format"),
                                 .virtual_size = get_number(object, "virtual_size"),
                                 .source_allocated = get_number(object, "source_allocated"),
                                 .target_allocated = get_number(object, "target_allocated"),
                                 .algorithm = algorithm,
                                 .root = get_text(json_object_get(object, "digest"), "root"),
                                 .bytes_wire = get_number(object, "bytes_wire"),
                                 .bytes_seeded = get_number(object, "bytes_seeded"),
                                 .bytes_in_pause = get_number(object, "bytes_in_pause")};
    disk->counters.bytes_read = get_number(object, "bytes_read");
    disk->counters.bytes_written = get_number(object, "bytes_written");
    disk->counters.bytes_zero = get_number(object, "bytes_zero");
    disk->counters.bytes_verified = get_number(object, "bytes_verified");
    return disk;
}

static double get_pause(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);

    return json_is_number(value) ? json_number_value(value) : -1;
}

/* As the command there has printed it. */
static void read_report(struct machine_job *job, const json_t *object)
{
    g_autoptr(job_report_t) report = job_report_new();
    const char *method = json_string_value(json_object_get(object, "method"));
    const char *source = json_string_value(json_object_get(object, "source"));
    size_t i;
    json_t *disk;

    report->method = g_intern_string(method ? method : "live");
    report->source = g_strcmp0(source, "deleted") == 0 ? "deleted" : "kept";
    report->passes = (unsigned)get_number(object, "passes");
    report->pause_ms = get_pause(object, "pause_ms");
    report->pause_forecast_ms = get_pause(object, "pause_forecast_ms");
    report->max_pause_ms = get_pause(object, "max_pause_ms");
    json_array_foreach(json_object_get(object, "disks"), i, disk)
        g_ptr_array_add(report->disks, read_disk(disk, job->request->digest));
    machine_adopt_report(job, report);
}

/* The exit status of a command is that of an error. */
static int code_of(json_int_t status)
{
    static const int codes[] = {
        [2] = BLOCKMIG_ERROR_REFUSED,  [3] = BLOCKMIG_ERROR_REFUSED,   [4] = BLOCKMIG_ERROR_CANCELLED,
        [5] = BLOCKMIG_ERROR_PARKED,   [6] = BLOCKMIG_ERROR_DIFFERENT, [8] = BLOCKMIG_ERROR_UNREACHABLE,
        [9] = BLOCKMIG_ERROR_UNCERTAIN};

    return status > 0 && status < (json_int_t)G_N_ELEMENTS(codes) && codes[status] ? codes[status]
                                                                                   : BLOCKMIG_ERROR_FAILED;
}

/* What is refused or rolled back there has changed nothing. */
static void fail(struct machine_job *job, const char *id, const json_t *answer, GError **error)
{
    const json_t *report = json_object_get(answer, "report");
    const char *reason = json_string_value(json_object_get(report, "error"));
    const char *advice = json_string_value(json_object_get(report, "advice"));
    json_int_t status = json_integer_value(json_object_get(answer, "status"));

    if (advice)
        job_notice(&job->base, "%s: %s", job->request->target, advice);
    blockmig_fail(error, code_of(status), "the way back, led by %s: %s", job->request->target,
                  reason ? reason : "it ended without saying why");
    if (status >= 2 && status <= 4)
        job_event(&job->base, "result", NULL, "%s" CHANGED, id);
}

static bool has_succeeded(const json_t *answer)
{
    const json_t *status = json_object_get(answer, "status");

    return json_is_integer(status) && json_integer_value(status) == 0;
}

/* One that ended otherwise, or of which nobody knows, is asked for once more: what it left is found there. */
static bool take_up(struct machine_job *job, const char *id, bool *done, GError **error)
{
    json_t *answer = follow(job, id, error);

    *done = has_succeeded(answer);
    if (*done)
        read_report(job, json_object_get(answer, "report"));
    json_decref(answer);
    return answer != NULL;
}

static bool set_out(struct machine_job *job, GError **error)
{
    g_autofree char *id = agent_new_id();
    json_t *answer = begin(job, id, error) ? follow(job, id, error) : NULL;
    bool done = has_succeeded(answer);

    if (done)
        read_report(job, json_object_get(answer, "report"));
    else if (answer)
        fail(job, id, answer, error);
    json_decref(answer);
    return done;
}

/* ---- where the machine is --------------------------------------------------------------------------- */

static bool open_if_there(struct domain_host *host, const char *name, struct domain **domain, GError **error)
{
    GError *local = NULL;

    g_clear_pointer(domain, domain_close);
    *domain = domain_open(host, name, &local);
    if (*domain || g_error_matches(local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED)) {
        g_clear_error(&local);
        return true;
    }
    g_propagate_error(error, local);
    return false;
}

/* *back: it is where it was before. */
static bool find_machine(struct machine_job *job, bool *back, GError **error)
{
    const char *name = job->request->machine;

    *back = false;
    if (!open_if_there(job->here, name, &job->domain, error) ||
        !open_if_there(job->there, name, &job->arrived, error))
        return false;
    if (job->arrived && !job->domain)
        return machine_is_at(job, job->arrived, false, error);
    if (!job->domain)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s is neither here nor on %s any more", name,
                             job->request->target);
    if (job->arrived)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "there is a machine called %s here and another on %s", name,
                             job->request->target);
    *back = machine_is_at(job, job->domain, true, error);
    return *back;
}

/* ---- all of it -------------------------------------------------------------------------------------- */

/* What a migration that is over has brought here is not there any more, and asking for another is refused. */
static bool was_brought(struct machine_job *job, GError **error)
{
    bool back;

    if (!g_error_matches(*error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED) || !find_machine(job, &back, NULL) ||
        !back)
        return false;
    g_clear_error(error);
    return true;
}

bool machine_come_back(struct machine_job *job, GError **error)
{
    g_autofree char *id = machine_open_run(job);
    bool done = false;

    if (!machine_find_hosts(job, error) ||
        !(id ? take_up(job, id, &done, error) : find_machine(job, &done, error)))
        return false;
    return done || set_out(job, error) || (id && was_brought(job, error));
}
