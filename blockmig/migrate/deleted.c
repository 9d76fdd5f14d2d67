/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A source that an earlier run of the job has deleted, before it was stopped.
 *
 * There is nothing to copy any more, and no image whose map could say what the job was about: the journal and
 * the receipts do.  What has the targets' names is read and held against them once more, and the source's
 * files that are left are removed.
 */
#include "blockmig/migrate/cold.h"
#include "blockmig/migrate/request-json.h"
#include "blockmig/migrate/target.h"
#include "blockmig/storage/file.h"
#include "blockmig/storage/foreign.h"
#include "blockmig/storage/image-files.h"
#include "blockmig/storage/names.h"
#include "blockmig/store/receipt.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/stat.h>

/* ---- finding it --------------------------------------------------------------------------------- */

static void describe(struct cold_job *job, const struct journal_disk *disk)
{
    struct disk_report *report = g_new0(struct disk_report, 1);

    report->disk = g_path_get_basename(disk->target);
    report->source = g_strdup(disk->source);
    report->target = g_strdup(disk->target);
    report->source_format = g_strdup(disk->source_format);
    report->target_format = g_strdup(disk->target_format);
    report->virtual_size = disk->size;
    report->algorithm = job->request->digest;
    report->receipt = g_strdup(disk->receipt);
    g_ptr_array_add(job->base.report->disks, report);
}

static bool have_receipts(const GPtrArray *disks)
{
    for (guint i = 0; i < disks->len; i++)
        if (!((const struct journal_disk *)g_ptr_array_index(disks, i))->receipt)
            return false;
    return disks->len > 0;
}

static bool is_the_one(const struct cold_job *job, const struct journal_job *record)
{
    g_autofree char *text = copy_request_to_json(job->request);

    return record && !journal_job_alive(record) && copy_request_same(record->request, text);
}

/* What is not there may as well be on a datastore that is not mounted: it is deleted if the directory is
 * there that it was in. */
static bool check_directory(const struct cold_job *job, const struct journal_job *record,
                            const GPtrArray *begun, GError **error)
{
    g_autoptr(GPtrArray) lives = journal_told(job->base.journal, record, "intent", COLD_DELETES_IN, error);
    g_autofree char *directory = g_path_get_dirname(g_ptr_array_index(begun, 0)), *life = NULL;

    if (!lives)
        return false;
    life = name_life(directory, NULL);
    return (life && (lives->len == 0 || g_ptr_array_find_with_equal_func(lives, life, g_str_equal, NULL))) ||
           blockmig_fail(
               error, BLOCKMIG_ERROR_FAILED,
               "%s: whether it is deleted cannot be told: %s is not the directory that it was in: is "
               "its datastore mounted?",
               (const char *)g_ptr_array_index(begun, 0), directory);
}

bool cold_look_for_deleted(struct cold_job *job, GError **error)
{
    bool device;
    g_autofree char *target = NULL;
    g_autoptr(GError) local = NULL;
    g_autoptr(journal_job_t) record = NULL;
    g_autoptr(GPtrArray) begun = NULL, disks = NULL;

    if (!job->request->delete_source || !job->base.journal ||
        g_file_test(job->request->source, G_FILE_TEST_EXISTS))
        return true;
    target = cold_place_to_write(job->request, &device, NULL);
    record = target ? journal_job_find_target(job->base.journal, target, &local) : NULL;
    begun = is_the_one(job, record) ? journal_told(job->base.journal, record, "intent", COLD_DELETES, &local)
                                    : NULL;
    disks = begun && begun->len ? journal_disk_list(job->base.journal, record, &local) : NULL;
    if (local) {
        g_propagate_error(error, g_steal_pointer(&local));
        return false;
    }
    if (!disks || !have_receipts(disks))
        return true;
    if (!check_directory(job, record, begun, error))
        return false;
    for (guint i = 0; i < disks->len; i++)
        describe(job, g_ptr_array_index(disks, i));
    job->deleted = g_steal_pointer(&disks);
    job_plan(&job->base, "%s was deleted by job %s: its copy is proved once more", job->request->source,
             record->id);
    return cold_adopt_record(job, record, error) && g_steal_pointer(&record);
}

/* ---- proving and finishing it ------------------------------------------------------------------- */

static struct chain *open_copy(const struct cold_job *job, const struct journal_disk *disk, bool layer,
                               GError **error)
{
    g_autoptr(GPtrArray) roots = request_terminated(job->request->allowed_roots);
    struct chain_policy policy = {
        .allowed_roots = (const char *const *)roots->pdata, .top_only = layer, .data = true};

    return source_open(disk->target, disk->target_format, NULL, 0, &policy, error);
}

static bool prove_disk(const struct cold_job *job, const struct journal_disk *disk,
                       struct disk_report *report, GError **error)
{
    g_autoptr(receipt_t) receipt = receipt_read(disk->receipt, error);
    g_autoptr(chain_t) chain = receipt ? open_copy(job, disk, receipt->layer, error) : NULL;
    struct copy_options how = {0};
    uint8_t root[DIGEST_MAX_LENGTH];
    uint64_t differs;

    cold_copy_options(job, &how);
    if (!chain ||
        !checkpoint_first_difference(chain, receipt->digests, 0, receipt->size, &how, &differs, error))
        return false;
    if (differs < receipt->size) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_DIFFERENT,
                    "%s was changed since it was copied: it differs at byte %" PRIu64, disk->target, differs);
        return false;
    }
    digest_table_root(receipt->digests, root);
    report->root = digest_to_hex(digest_table_algorithm(receipt->digests), root);
    report->counters = receipt->counters;
    report->layer = receipt->layer;
    report->target_allocated = image_files_allocated(chain_layer(chain, 0));
    return true;
}

bool cold_prove_deleted(struct cold_job *job, GError **error)
{
    for (guint i = 0; i < job->deleted->len; i++)
        if (!prove_disk(job, g_ptr_array_index(job->deleted, i),
                        g_ptr_array_index(job->base.report->disks, i), error))
            return false;
    return true;
}

/* Nobody has put anything else in its place. */
static bool is_of_source(const struct cold_job *job, const char *path)
{
    struct stat st;
    char identity[NAME_IDENTITY];
    g_autofree char *text = NULL;
    bool found = false;

    if (stat(path, &st) < 0)
        return false;
    storage_file_identity(&st, identity, sizeof(identity));
    text = checkpoint_file_identity(identity, &st);
    for (guint i = 0; i < job->deleted->len && !found; i++)
        found = strstr(((const struct journal_disk *)g_ptr_array_index(job->deleted, i))->source_identity,
                       text) != NULL;
    return found;
}

bool cold_finish_deletion(struct cold_job *job, GError **error)
{
    g_autoptr(GPtrArray) begun =
        journal_told(job->base.journal, job->base.record, "intent", COLD_DELETES, error);

    if (!begun || !check_directory(job, job->base.record, begun, error))
        return false;
    for (guint i = 0; i < begun->len; i++) {
        const char *path = g_ptr_array_index(begun, i);

        if (is_of_source(job, path) && g_unlink(path) < 0)
            return blockmig_set_errno(error, errno, "%s: cannot delete the source", path);
    }
    job->base.report->source = "deleted";
    return journal_checkpoint_clear(job->base.journal, job->base.record, error) &&
           storage_file_sync_directory(job->request->source, error);
}
