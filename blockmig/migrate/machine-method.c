/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which method, and why: the least disturbing one that nothing speaks against.  What is asked for by name is
 * done, or refused with the reason.
 */
#include "blockmig/migrate/machine-look.h"

#include <string.h>

/* Why it is not possible; NULL: it is. The caller's. */
typedef char *(*objection_fn)(const struct machine_job *job, const struct definition *definition);

struct candidate {
    const struct method *method;
    enum move_method asked;
    objection_fn objection;
    const char *what;
};

static char *not_active(const struct machine_job *job)
{
    return job->state.active ? NULL : g_strdup("the machine is off");
}

static char *cpu_objection(const struct machine_job *job, const struct definition *definition)
{
    g_autofree char *cpu = definition_part(definition, "/domain/cpu");
    g_autofree char *type = definition_get(definition, "/domain/@type");
    const char *answer;
    bool fits;

    if (!cpu || !domain_host_runs_cpu(job->there, type, cpu, &fits, &answer, NULL))
        return NULL; /* nobody can tell: the hypervisor refuses in time what it cannot run */
    return fits ? NULL : g_strdup_printf("the target's libvirt calls the machine's CPU %s", answer);
}

static char *device_objection(const struct definition *definition)
{
    if (definition_count(definition, "/domain/devices/hostdev"))
        return g_strdup("it has a device of the host");
    if (definition_count(definition, "/domain/devices/filesystem"))
        return g_strdup("it has a directory of the host as a file system");
    return NULL;
}

/* Its hypervisor there does not touch its images before it goes on. */
static char *standing_objection(const struct machine_job *job)
{
    return job->state.running || job->disks->len == 0
               ? NULL
               : g_strdup("it stands still, and its disks could not be brought to their places there before "
                          "it goes on ('virsh resume')");
}

static char *live_objection(const struct machine_job *job, const struct definition *definition)
{
    char *reason = not_active(job);

    reason = reason ? reason : standing_objection(job);
    reason = reason ? reason : device_objection(definition);
    return reason ? reason : cpu_objection(job, definition);
}

static char *restart_objection(const struct machine_job *job, const struct definition *definition)
{
    char *reason = not_active(job);

    if (reason)
        return reason;
    if (!job->state.running)
        return g_strdup("it stands still, and so would not shut down");
    if (!job->state.persistent)
        return g_strdup("it has no definition that outlives its shutdown");
    return machine_tpm_objection(job, definition);
}

static char *cold_objection(const struct machine_job *job, const struct definition *definition)
{
    return job->state.active ? g_strdup("the machine is not off") : machine_tpm_objection(job, definition);
}

static char *mirror_objection(const struct machine_job *job, const struct definition *definition)
{
    return job->state.active ? NULL : g_strdup("the machine is off");
}

/* The machine's disks are all on units that the kernels of both hosts have, and that can be reserved. */
static char *unit_objection(const struct machine_job *job, const struct definition *definition)
{
    if (job->disks->len || job->shared_files)
        return g_strdup("not all of its disks are on units that both hosts reach");
    for (guint i = 0; i < job->units->len; i++) {
        const struct machine_unit *unit = g_ptr_array_index(job->units, i);

        if (unit->unreserved)
            return g_strdup_printf("disk %s: %s cannot be reserved: %s", unit->disk, unit->name,
                                   unit->unreserved);
    }
    if (definition_count(definition, "/domain/devices/disk/shareable"))
        return g_strdup("other machines may write to its disks");
    if (definition_count(definition, "/domain/devices/disk[@device='lun']"))
        return g_strdup("the guest may reserve its disks by itself");
    return NULL;
}

static char *san_objection(const struct machine_job *job, const struct definition *definition)
{
    char *reason = unit_objection(job, definition);

    if (reason)
        return reason;
    return job->state.active ? live_objection(job, definition) : machine_tpm_objection(job, definition);
}

static const struct candidate across[] = {
    {&method_machine_san, MOVE_SAN, san_objection, "reservations keep this host from its disks from then on"},
    {&method_machine_live, MOVE_LIVE, live_objection, "memory and disks go over while it runs"},
    {&method_machine_quick, MOVE_QUICK, live_objection, "it stands still while its state goes over"},
    {&method_machine_restart, MOVE_RESTART, restart_objection, "it is shut down, and started there"},
    {&method_machine_cold, MOVE_COLD, cold_objection, "it is off, and defined there"},
};

static const struct candidate here[] = {
    {&method_machine_mirror, MOVE_MIRROR, mirror_objection,
     "it runs on; what is written last goes to both sides"},
    {&method_machine_cold, MOVE_COLD, cold_objection, "it is off, and its definition changes"},
};

static bool take(struct machine_job *job, const struct candidate *candidate)
{
    job_plan(&job->base, "method %s: %s%s", candidate->method->name, candidate->what,
             !job->shared      ? ""
             : job->disks->len ? "; what both hosts see of its disks is not copied"
                               : "; both hosts see its disks, so none is copied");
    job_set_method(&job->base, candidate->method);
    return true;
}

bool machine_choose_method(struct machine_job *job, const struct definition *definition, GError **error)
{
    const struct candidate *list = job->across ? across : here;
    unsigned count = job->across ? G_N_ELEMENTS(across) : G_N_ELEMENTS(here);
    enum move_method asked = job->request->method;
    g_autoptr(GString) reasons = g_string_new(NULL);

    if (!job->across && asked == MOVE_STORAGE)
        asked = MOVE_MIRROR;
    for (unsigned i = 0; i < count; i++) {
        g_autofree char *reason = NULL;

        /* Whoever has no such unit need not hear of san. */
        if (asked == MOVE_AUTO ? list[i].asked == MOVE_SAN && job->units->len == 0 : asked != list[i].asked)
            continue;
        reason = list[i].objection(job, definition);
        if (!reason)
            return take(job, &list[i]);
        job_plan(&job->base, "method %s was passed over: %s", list[i].method->name, reason);
        if (asked == MOVE_AUTO)
            job_notice(&job->base, "method %s was passed over: %s", list[i].method->name, reason);
        g_string_append_printf(reasons, "%s%s: %s", reasons->len ? "; " : "", list[i].method->name, reason);
    }
    return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "no method is possible: %s",
                         reasons->len ? reasons->str : "the one that was asked for is not for this");
}
