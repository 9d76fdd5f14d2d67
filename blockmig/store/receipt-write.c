/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A receipt as JSON, written as it is produced:
 *
 *     {"schema": 1, "job": ..., "size": ..., "counters": {...}, "bad": [{"offset", "length"}, ...],
 *      "digest": {"algorithm", "chunk_size", "root", "runs": [{"chunk", "count", "digests": "hexhex..."}]}}
 *
 * JSON is UTF-8, names of files are bytes: a name that is not UTF-8 is written with U+FFFD in place
 * of what cannot be shown, and as it is, in hexadecimal, under NAME_bytes.
 */
#include "blockmig/storage/file.h"
#include "blockmig/store/receipt-internal.h"
#include "formats/error.h"

#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <string.h>
#include <unistd.h>

static void put_quoted(FILE *file, const char *text)
{
    putc('"', file);
    for (const char *at = text; *at; at++) {
        if (*at == '"' || *at == '\\')
            fprintf(file, "\\%c", *at);
        else if ((unsigned char)*at < ' ' || *at == 127)
            fprintf(file, "\\u%04x", (unsigned)*at);
        else
            putc(*at, file);
    }
    putc('"', file);
}

static void put_string(FILE *file, const char *key, const char *text)
{
    fprintf(file, ",\n \"%s\": ", key);
    if (!text) {
        fputs("null", file);
        return;
    }
    if (g_utf8_validate(text, -1, NULL)) {
        put_quoted(file, text);
        return;
    }
    g_autofree char *shown = g_utf8_make_valid(text, -1);
    put_quoted(file, shown);
    fprintf(file, ",\n \"%s_bytes\": \"", key);
    for (const char *at = text; *at; at++)
        fprintf(file, "%02x", (unsigned char)*at);
    putc('"', file);
}

/* RFC 3339 in UTC, with the microseconds. */
static void put_time(FILE *file, const char *key, int64_t time)
{
    g_autoptr(GDateTime) seconds = g_date_time_new_from_unix_utc(time / G_USEC_PER_SEC);
    if (time <= 0 || !seconds) {
        put_string(file, key, NULL);
        return;
    }
    g_autofree char *date = g_date_time_format(seconds, "%Y-%m-%dT%H:%M:%S");
    fprintf(file, ",\n \"%s\": \"%s.%06dZ\"", key, date, (int)(time % G_USEC_PER_SEC));
}

static void put_counters(FILE *file, const struct copy_counters *counters)
{
    fputs(",\n \"counters\": {", file);
    for (unsigned i = 0; receipt_counters[i].name; i++) {
        uint64_t value;
        memcpy(&value, (const char *)counters + receipt_counters[i].offset, sizeof value);
        fprintf(file, "%s\"%s\": %" G_GUINT64_FORMAT, i ? ", " : "", receipt_counters[i].name, value);
    }
    putc('}', file);
}

static void put_bad(FILE *file, const GArray *bad)
{
    fputs(",\n \"bad\": [", file);
    for (guint i = 0; bad && i < bad->len; i++) {
        const struct copy_range *range = &g_array_index(bad, struct copy_range, i);
        fprintf(file, "%s{\"offset\": %" G_GUINT64_FORMAT ", \"length\": %" G_GUINT64_FORMAT "}",
                i ? ",\n  " : "\n  ", range->offset, range->length);
    }
    putc(']', file);
}

/* Consecutive stored chunks from `chunk` on, not more than a run may hold. */
static unsigned run_length(const struct digest_table *table, uint64_t chunk)
{
    uint64_t chunks = digest_table_chunks(table);
    unsigned count = 1;
    while (count < RECEIPT_RUN_CHUNKS && chunk + count < chunks &&
           !digest_table_is_zero(table, chunk + count))
        count++;
    return count;
}

static void put_runs(FILE *file, const struct digest_table *table)
{
    size_t length = digest_length(digest_table_algorithm(table));
    uint64_t chunk = 0;
    for (bool first = true; digest_table_next(table, &chunk); first = false) {
        unsigned count = run_length(table, chunk);
        fprintf(file, "%s{\"chunk\": %" G_GUINT64_FORMAT ", \"count\": %u, \"digests\": \"",
                first ? "\n  " : ",\n  ", chunk, count);
        for (unsigned i = 0; i < count; i++) {
            const uint8_t *digest = digest_table_get(table, chunk + i);
            for (size_t byte = 0; byte < length; byte++) {
                putc("0123456789abcdef"[digest[byte] >> 4], file);
                putc("0123456789abcdef"[digest[byte] & 15], file);
            }
        }
        fputs("\"}", file);
        chunk += count;
    }
}

static void put_digests(FILE *file, const struct digest_table *table)
{
    uint8_t root[DIGEST_MAX_LENGTH];
    digest_table_root(table, root);
    g_autofree char *hex = digest_to_hex(digest_table_algorithm(table), root);
    fprintf(file,
            ",\n \"digest\": {\"algorithm\": \"%s\", \"chunk_size\": %" G_GUINT64_FORMAT ", \"root\": \"%s\","
            " \"runs\": [",
            digest_algorithm_name(digest_table_algorithm(table)), DIGEST_CHUNK_SIZE, hex);
    put_runs(file, table);
    fputs("]}", file);
}

static void put_receipt(FILE *file, const struct receipt *receipt)
{
    fprintf(file, "{\"schema\": %d", RECEIPT_SCHEMA);
    for (unsigned i = 0; receipt_texts[i].name; i++) {
        char *text;
        memcpy(&text, (const char *)receipt + receipt_texts[i].offset, sizeof text);
        put_string(file, receipt_texts[i].name, text);
    }
    put_time(file, "started", receipt->started);
    put_time(file, "finished", receipt->finished);
    fprintf(file, ",\n \"layer\": %s,\n \"size\": %" G_GUINT64_FORMAT, receipt->layer ? "true" : "false",
            receipt->size);
    put_counters(file, &receipt->counters);
    put_bad(file, receipt->bad);
    put_digests(file, receipt->digests);
    fputs("}\n", file);
}

static bool write_and_sync(FILE *file, const struct receipt *receipt)
{
    errno = 0;
    put_receipt(file, receipt);
    return !ferror(file) && fflush(file) == 0 && fsync(fileno(file)) == 0;
}

static FILE *open_new(const char *path)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
    return fd < 0 ? NULL : fdopen(fd, "w");
}

/* Content first, then the name, then the directory that holds the name. */
bool receipt_write(const struct receipt *receipt, const char *path, GError **error)
{
    if (receipt->bad && receipt->bad->len > RECEIPT_MAX_BAD) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED, "%s: %u bad ranges, a receipt holds %u",
                    path, receipt->bad->len, RECEIPT_MAX_BAD);
        return false;
    }
    g_autofree char *temporary = g_strconcat(path, ".tmp", NULL);
    g_unlink(temporary);
    FILE *file = open_new(temporary);
    if (!file)
        return blockmig_set_errno(error, errno, "%s", temporary);
    bool written = write_and_sync(file, receipt);
    int errnum = errno;
    if (fclose(file) != 0 && written) {
        written = false;
        errnum = errno;
    }
    if (written && rename(temporary, path) == 0)
        return storage_file_sync_directory(path, error);
    if (written)
        errnum = errno;
    g_unlink(temporary);
    return blockmig_set_errno(error, errnum ? errnum : EIO, "%s", path);
}
