/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Disks on block devices and on units of servers: is it one and the same for both hosts, and who may write to
 * it?
 *
 * A reservation ("write exclusive, registrants only") is about hosts: what their kernels do with a device
 * goes over sessions that the host has registered, whoever asked for it.  So it fences a machine's disk on a
 * block device of its host, and stays with the machine.  A hypervisor with a session of its own, to an
 * iscsi:// disk, is nobody that could be registered, and would be shut out: such disks have none.
 */
#include "blockmig/migrate/machine-look.h"
#include "blockmig/storage/reservation.h"
#include "blockmig/storage/unit.h"

#include <string.h>
#include <sys/stat.h>

#define ROUNDS 3

/* What the journal knows of a claimed unit, after this word: "KEY held|free NAME". */
#define CLAIMED "unit "

void machine_unit_free(struct machine_unit *unit)
{
    g_free(unit->disk);
    g_free(unit->name);
    g_free(unit->unreserved);
    g_free(unit);
}

/* ---- names --------------------------------------------------------------------------------------- */

static char *get_of(const struct definition *definition, const char *disk, const char *what)
{
    g_autofree char *path = g_strdup_printf("/domain/devices/disk[target/@dev='%s']%s", disk, what);

    return definition_get(definition, path);
}

static char *uri_of(const struct definition *definition, const char *disk, char **reason)
{
    g_autofree char *protocol = get_of(definition, disk, "/source/@protocol");
    g_autofree char *name = get_of(definition, disk, "/source/@name");
    g_autofree char *host = get_of(definition, disk, "/source/host/@name");
    g_autofree char *port = get_of(definition, disk, "/source/host/@port");
    g_autofree char *user = get_of(definition, disk, "//auth/@username");
    g_autofree char *tls = get_of(definition, disk, "/source[@tls='yes']/@tls");
    bool iscsi = g_strcmp0(protocol, "iscsi") == 0;
    const char *begin, *end;

    if (!iscsi && g_strcmp0(protocol, "nbd") != 0)
        *reason =
            g_strdup_printf("%s is not known here: nbd and iscsi are", protocol ? protocol : "its protocol");
    else if (!host)
        *reason = g_strdup("its server is reached by a socket of its host");
    else if (tls)
        *reason = g_strdup("it is reached over TLS, which is not possible here");
    if (*reason)
        return NULL;
    begin = strchr(host, ':') ? "[" : "";
    end = *begin ? "]" : "";
    return g_strdup_printf("%s://%s%s%s%s%s%s%s/%s", protocol, user && iscsi ? user : "",
                           user && iscsi ? "@" : "", begin, host, end, port ? ":" : "", port ? port : "",
                           name ? name : "");
}

/* NULL without a *reason: it is in a file. */
static char *unit_name(const struct definition *definition, const char *disk, char **reason)
{
    g_autofree char *type = get_of(definition, disk, "/@type");
    g_autofree char *path = machine_source_of(definition, disk);
    struct stat st;

    if (g_strcmp0(type, "network") == 0)
        return uri_of(definition, disk, reason);
    if (path && (g_strcmp0(type, "block") == 0 || (stat(path, &st) == 0 && S_ISBLK(st.st_mode))))
        return g_steal_pointer(&path);
    return NULL;
}

/* ---- the other host ------------------------------------------------------------------------------ */

static struct unit *ask(const struct machine_job *job, const char *name, enum unit_act act, uint64_t from,
                        bool *aborted, GError **error)
{
    g_autofree char *key = g_strdup_printf("%" G_GINT64_MODIFIER "x", from);
    json_t *arguments = json_pack("{s:s, s:s}", "name", name, "act", unit_acts[act]), *answer;
    struct unit *unit;

    if (from)
        json_object_set_new(arguments, "from", json_string(key));
    answer = agent_ask_json(job->agent, "POST", "/v1/machines/units", arguments, NULL, error);
    unit = answer ? unit_from_json(answer, error) : NULL;
    *aborted = json_is_true(json_object_get(answer, "aborted"));
    json_decref(answer);
    if (!unit)
        g_prefix_error(error, "%s: ", job->request->target);
    return unit;
}

/* ---- is it the same? ----------------------------------------------------------------------------- */

/* Looks here, there, and here again.  *there, *here: the last looks; the caller's. */
static bool compare(const struct machine_job *job, const char *name, struct unit **here, struct unit **there,
                    char **reason, GError **error)
{
    unsigned still = 0;

    *here = unit_look(name, error);
    for (unsigned round = 0; *here && !*reason && still == 0 && round < ROUNDS; round++) {
        g_autoptr(unit_t) before = g_steal_pointer(here);
        bool ignored;

        unit_free(*there);
        if (!(*there = ask(job, name, UNIT_LOOK, 0, &ignored, error)) || !(*here = unit_look(name, error)))
            return false;
        *reason = unit_difference(*here, *there);
        if (!*reason && unit_samples_differ(before, *there, *here, &still))
            *reason = g_strdup("it has another content there");
    }
    if (*here && !*reason && still == 0)
        *reason = g_strdup("everything in it changes all the time, so its content cannot be compared");
    return *here != NULL;
}

/* Whoever else holds it would shut the machine out there, as it does here. */
static bool check_holder(const struct machine_unit *unit, const struct unit *here, const struct unit *there,
                         GError **error)
{
    if (here->reserved && !unit->held)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "disk %s: %s is reserved by another host (key 0x%016" G_GINT64_MODIFIER "x)",
                             unit->disk, unit->name, here->holder);
    return !unit->held || !there->unreserved ||
           blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                         "disk %s: %s is reserved by this host, and the target cannot take it over: %s",
                         unit->disk, unit->name, there->unreserved);
}

static bool add_unit(struct machine_job *job, const char *disk, const char *name, const struct unit *here,
                     const struct unit *there, GError **error)
{
    struct machine_unit *unit = g_new0(struct machine_unit, 1);

    g_ptr_array_add(job->units, unit);
    unit->disk = g_strdup(disk);
    unit->name = g_strdup(name);
    unit->ours = here->key;
    unit->theirs = there->key;
    unit->held = here->reserved && here->holder == here->key;
    unit->unreserved = here->unreserved    ? g_strdup(here->unreserved)
                       : there->unreserved ? g_strdup_printf("on the target: %s", there->unreserved)
                                           : NULL;
    job_plan(&job->base, "disk %s: %s is the same for both hosts (%s)", disk, name, here->identity);
    return check_holder(unit, here, there, error);
}

/* What one of the hosts cannot find or read is not the same for both; but a host that does not answer is an
 * error. */
static bool excuse(GError *local, char **reason, GError **error)
{
    if (g_error_matches(local, BLOCKMIG_ERROR, BLOCKMIG_ERROR_UNREACHABLE)) {
        g_propagate_error(error, local);
        return false;
    }
    *reason = g_strdup(local->message);
    g_error_free(local);
    return true;
}

bool machine_look_at_unit(struct machine_job *job, const struct definition *definition, const char *disk,
                          bool writes, bool *shared, char **reason, GError **error)
{
    g_autofree char *name = NULL;
    g_autoptr(unit_t) here = NULL, there = NULL;
    GError *local = NULL;

    *shared = false;
    *reason = NULL;
    if (!job->across || !(name = unit_name(definition, disk, reason)))
        return true;
    if (!compare(job, name, &here, &there, reason, &local))
        return excuse(local, reason, error);
    *shared = !*reason;
    return *reason || !writes || add_unit(job, disk, name, here, there, error);
}

/* ---- whose is it? -------------------------------------------------------------------------------- */

static const struct machine_unit *unit_at(const struct machine_job *job, guint i)
{
    return g_ptr_array_index(job->units, i);
}

/* By the method san all of them; by others what this host has reserved, or the machine could not write there.
 */
static bool changes_hands(const struct machine_job *job, const struct machine_unit *unit)
{
    return unit->held || job->base.method == &method_machine_san;
}

static void tell_aborted(const struct machine_job *job, const struct machine_unit *unit, bool aborted)
{
    if (!aborted)
        job_notice(&job->base,
                   "%s cannot abort commands (PREEMPT AND ABORT): what this host had on its way may still be "
                   "written there",
                   unit->name);
}

static bool claim(struct machine_job *job, const struct machine_unit *unit, GError **error)
{
    g_autoptr(unit_t) there = NULL;
    bool aborted;

    if (!job_event(&job->base, "fact", error, CLAIMED "%016" G_GINT64_MODIFIER "x %s %s", unit->theirs,
                   unit->held ? "held" : "free", unit->name) ||
        !unit_reserve(unit->name, UNIT_TAKE, 0, &aborted, error))
        return false;
    there = ask(job, unit->name, UNIT_REGISTER, 0, &aborted, error);
    return there != NULL;
}

bool machine_claim_units(struct machine_job *job, GError **error)
{
    for (guint i = 0; i < job->units->len; i++)
        if (changes_hands(job, unit_at(job, i)) && !claim(job, unit_at(job, i), error))
            return false;
    return true;
}

/* Both hosts have to see it. */
static bool fence(struct machine_job *job, const struct machine_unit *unit, GError **error)
{
    g_autoptr(unit_t) here = NULL, there = NULL;
    bool aborted;

    if (!job_event(&job->base, "intent", error, "the target takes %s", unit->name) ||
        !(there = ask(job, unit->name, UNIT_TAKE, unit->ours, &aborted, error)))
        return false;
    tell_aborted(job, unit, aborted);
    here = unit_look(unit->name, NULL);
    if (!here)
        job_notice(&job->base, "%s cannot be looked at from here any more", unit->name);
    return (there->reserved && there->holder == unit->theirs &&
            (!here || (here->reserved && here->holder == unit->theirs))) ||
           blockmig_fail(error, BLOCKMIG_ERROR_FAILED,
                         "%s: the target took it, but does not hold it, as far as both hosts see",
                         unit->name);
}

bool machine_fence_units(struct machine_job *job, GError **error)
{
    for (guint i = 0; i < job->units->len; i++)
        if (changes_hands(job, unit_at(job, i)) && !fence(job, unit_at(job, i), error))
            return false;
    return true;
}

/* It is taken back here, whether the target answers or not. */
static void give_back(struct machine_job *job, const struct machine_unit *unit)
{
    g_autoptr(GError) local = NULL;
    bool aborted;

    if (!unit_reserve(unit->name, UNIT_TAKE, unit->theirs, &aborted, &local) ||
        (!unit->held && !unit_reserve(unit->name, UNIT_GIVE_UP, 0, &aborted, &local)))
        job_notice(
            &job->base,
            "%s is not reserved as before (%s): look at it by 'blockmig reservation show' on both hosts",
            unit->name, local->message);
}

/* "KEY held|free NAME" */
static struct machine_unit *unit_of_fact(const char *text)
{
    g_auto(GStrv) words = g_strsplit(text, " ", 3);
    struct machine_unit *unit;
    guint64 key;

    if (g_strv_length(words) != 3 || !g_ascii_string_to_unsigned(words[0], 16, 1, G_MAXUINT64, &key, NULL))
        return NULL;
    unit = g_new0(struct machine_unit, 1);
    unit->theirs = key;
    unit->ours = reservation_host_key();
    unit->held = strcmp(words[1], "held") == 0;
    unit->name = g_strdup(words[2]);
    return unit;
}

static GPtrArray *claimed_units(const struct machine_job *job, GError **error)
{
    g_autoptr(GPtrArray) facts = journal_told(job->base.journal, job->base.record, "fact", CLAIMED, error);
    GPtrArray *units = facts ? g_ptr_array_new_with_free_func((GDestroyNotify)machine_unit_free) : NULL;

    for (guint i = 0; units && i < facts->len; i++) {
        struct machine_unit *unit = unit_of_fact(g_ptr_array_index(facts, i));

        if (unit)
            g_ptr_array_add(units, unit);
    }
    return units;
}

void machine_return_units(struct machine_job *job)
{
    g_autoptr(GPtrArray) units = claimed_units(job, NULL);

    for (guint i = 0; units && i < units->len; i++)
        give_back(job, g_ptr_array_index(units, i));
}

bool machine_find_units(struct machine_job *job, GError **error)
{
    GPtrArray *units = claimed_units(job, error);

    if (!units)
        return false;
    g_ptr_array_unref(job->units);
    job->units = units;
    return true;
}
