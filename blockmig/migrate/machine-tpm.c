/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The state of an emulated TPM.  libvirt keeps it by the machine's UUID and takes it along with the memory of
 * a machine that runs; of one that is off its files are copied, as NVRAM is, through the agent.
 */
#include "blockmig/migrate/machine-look.h"
#include "blockmig/storage/names.h"
#include "blockmig/storage/tpm.h"

#define EMULATOR "/domain/devices/tpm/backend[@type='emulator']"

char *machine_tpm_objection(const struct machine_job *job, const struct definition *definition)
{
    if (!job->across || !definition_count(definition, EMULATOR))
        return NULL;
    if (definition_count(definition, EMULATOR "/source"))
        return g_strdup("the state of its TPM is in a place of its own");
    if (!job->tpms)
        return g_strdup("the agent there takes no state of a TPM: it is older, or has no directory for it");
    if (job->state.active && job->tpm && !name_exists(job->tpm))
        return g_strdup_printf("the state of its TPM is not in %s", job->tpm);
    return NULL;
}

/* Whatever is there belongs to a machine, and nobody knows to what state of it. */
static bool add_file(struct machine_job *job, const char *name, GError **error)
{
    struct machine_file *file = g_new0(struct machine_file, 1);
    struct name_info info;

    file->path = g_build_filename(job->tpm, name, NULL);
    file->target_name = g_strconcat(job->tpms, "/", machine_uuid(job), "/", name, NULL);
    file->target_path = g_build_filename(job->tpms_path, machine_uuid(job), name, NULL);
    file->late = true;
    g_ptr_array_add(job->files, file);
    return name_look(file->target_name, &info, error) &&
           (info.kind == NAME_FREE ||
            blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                          "%s: %s exists already, the state of a TPM that was left there: remove it, or move "
                          "it away",
                          job->request->target, file->target_path));
}

static void tell(struct machine_job *job)
{
    if (job->state.active || name_exists(job->tpm))
        job_plan(&job->base, "the state of its TPM goes, too: %s to %s/%s", job->tpm, job->tpms_path,
                 machine_uuid(job));
    else
        job_notice(
            &job->base,
            "there is no state of its TPM in %s, so none is brought: it has none before its first start",
            job->tpm);
}

bool machine_look_at_tpm(struct machine_job *job, const struct definition *definition, GError **error)
{
    bool shared;

    if (!job->tpms || !definition_count(definition, EMULATOR) ||
        definition_count(definition, EMULATOR "/source"))
        return true;
    if (!machine_sees(tpm_directory(), job->tpms, &shared, error))
        return false;
    if (shared)
        return true; /* it stays where it is */
    job->tpm = g_build_filename(tpm_directory(), machine_uuid(job), NULL);
    tell(job);
    for (unsigned i = 0; tpm_files[i]; i++)
        if (!add_file(job, tpm_files[i], error))
            return false;
    return true;
}
