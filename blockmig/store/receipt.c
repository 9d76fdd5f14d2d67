/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Reading a receipt, which may come from anybody.
 *
 * The order of names in an object means nothing, but the digests can only be kept once the size and the
 * algorithm are known. So the file is read twice: first everything but the runs, then the runs alone.  Memory
 * is bounded by what the file may be long, and that by the size of disk that it declares.
 */
#include "blockmig/store/receipt.h"

#include "blockmig/store/json-reader.h"
#include "blockmig/store/receipt-internal.h"
#include "formats/error.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_TEXT        65536
#define MAX_SIZE        ((uint64_t)INT64_MAX) /* of a disk: what off_t can address */
#define MAX_BASE_LENGTH (UINT64_C(256) << 20) /* of the file besides the runs: texts and bad ranges */
#define MAX_RUN_EXTRA   128                   /* of the file for a run of one chunk besides its digest */

const struct receipt_field receipt_texts[] = {
    {"job", offsetof(struct receipt, job)},
    {"command", offsetof(struct receipt, command)},
    {"method", offsetof(struct receipt, method)},
    {"source", offsetof(struct receipt, source)},
    {"target", offsetof(struct receipt, target)},
    {"source_format", offsetof(struct receipt, source_format)},
    {"target_format", offsetof(struct receipt, target_format)},
    {"verified", offsetof(struct receipt, verified)},
    {NULL},
};

const struct receipt_field receipt_counters[] = {
    {"total", offsetof(struct copy_counters, total)},
    {"position", offsetof(struct copy_counters, position)},
    {"data_total", offsetof(struct copy_counters, data_total)},
    {"data_done", offsetof(struct copy_counters, data_done)},
    {"bytes_read", offsetof(struct copy_counters, bytes_read)},
    {"bytes_written", offsetof(struct copy_counters, bytes_written)},
    {"bytes_cloned", offsetof(struct copy_counters, bytes_cloned)},
    {"bytes_zero", offsetof(struct copy_counters, bytes_zero)},
    {"bytes_verified", offsetof(struct copy_counters, bytes_verified)},
    {NULL},
};

struct parse {
    struct json_reader json;
    struct receipt *receipt;
    uint64_t file_length;
    uint64_t next_chunk; /* runs ascend */
    enum digest_algorithm algorithm;
    uint8_t root[DIGEST_MAX_LENGTH];
    unsigned exact; /* bit per text that was given in bytes */
    char *root_hex;
};

/* Reads the value of one name; *known false: it is not one of this object's, and nothing was read. */
typedef bool (*member_fn)(struct parse *parse, void *data, const char *key, bool *known, GError **error);

/* Reads an object; unknown names are skipped, a name that comes twice is refused, as is one of `required`
 * (NULL-terminated) that does not come. */
static bool parse_object(struct parse *parse, member_fn member, void *data, const char *const *required,
                         GError **error)
{
    g_autoptr(GHashTable) seen = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    const char *key = NULL;
    if (!json_reader_open(&parse->json, '{', error))
        return false;
    for (bool first = true;;) {
        if (!json_reader_member(&parse->json, &first, &key, error))
            return false;
        if (!key)
            break;
        g_autofree char *name = g_strdup(key); /* the reader's text changes with the value */
        bool known = true;
        if (!member(parse, data, name, &known, error) || (!known && !json_reader_skip(&parse->json, error)))
            return false;
        if (known && !g_hash_table_add(seen, g_strdup(name)))
            return json_reader_refuse(&parse->json, error, "\"%s\" comes twice", name);
    }
    for (; *required; required++)
        if (!g_hash_table_contains(seen, *required))
            return json_reader_refuse(&parse->json, error, "\"%s\" is missing", *required);
    return true;
}

static bool parse_text(struct parse *parse, char **out, GError **error)
{
    const char *text = NULL;
    if (!json_reader_string_or_null(&parse->json, MAX_TEXT, &text, error))
        return false;
    g_free(*out);
    *out = g_strdup(text);
    return true;
}

/* The bytes of a name that is not UTF-8: they take the place of what could be shown of it. */
static bool parse_bytes(struct parse *parse, char **out, GError **error)
{
    const char *hex = NULL;
    if (!json_reader_string(&parse->json, MAX_TEXT, &hex, error))
        return false;
    g_autoptr(GString) bytes = g_string_new(NULL);
    for (; hex[0] && hex[1]; hex += 2) {
        int value = g_ascii_xdigit_value(hex[0]) * 16 + g_ascii_xdigit_value(hex[1]);
        if (!g_ascii_isxdigit(hex[0]) || !g_ascii_isxdigit(hex[1]) || value == 0)
            break;
        g_string_append_c(bytes, (char)value);
    }
    if (*hex || g_utf8_validate(bytes->str, (gssize)bytes->len, NULL))
        return json_reader_refuse(&parse->json, error, "the bytes of a name are not what they should be");
    g_free(*out);
    *out = g_string_free(g_steal_pointer(&bytes), FALSE);
    return true;
}

static bool parse_time(struct parse *parse, int64_t *time, GError **error)
{
    const char *text = NULL;
    if (!json_reader_string_or_null(&parse->json, 64, &text, error))
        return false;
    *time = 0;
    if (!text)
        return true;
    static const char pattern[] = "^\\d{4}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\d(\\.\\d{1,6})?Z\\z";
    g_autoptr(GDateTime) date = NULL;
    if (g_regex_match_simple(pattern, text, G_REGEX_DOLLAR_ENDONLY, 0))
        date = g_date_time_new_from_iso8601(text, NULL);
    if (date)
        *time = g_date_time_to_unix(date) * G_USEC_PER_SEC + g_date_time_get_microsecond(date);
    return *time > 0 || json_reader_refuse(&parse->json, error, "not a time in UTC (RFC 3339)");
}

static bool counter_member(struct parse *parse, void *data, const char *key, bool *known, GError **error)
{
    for (const struct receipt_field *field = receipt_counters; field->name; field++)
        if (strcmp(field->name, key) == 0)
            return json_reader_number(&parse->json, G_STRUCT_MEMBER_P(data, field->offset), error);
    *known = false;
    return true;
}

static bool range_member(struct parse *parse, void *data, const char *key, bool *known, GError **error)
{
    struct copy_range *range = data;
    if (strcmp(key, "offset") == 0)
        return json_reader_number(&parse->json, &range->offset, error);
    if (strcmp(key, "length") == 0)
        return json_reader_number(&parse->json, &range->length, error);
    *known = false;
    return true;
}

/* Whether the ranges lie on the disk is checked when its size is known. */
static bool parse_bad(struct parse *parse, GError **error)
{
    static const char *const required[] = {"offset", "length", NULL};
    uint64_t end = 0;
    g_clear_pointer(&parse->receipt->bad, g_array_unref);
    if (!json_reader_open(&parse->json, '[', error))
        return false;
    for (bool first = true, more = true;;) {
        if (!json_reader_element(&parse->json, &first, &more, error))
            return false;
        if (!more)
            return true;
        struct copy_range range = {0};
        if (!parse_object(parse, range_member, &range, required, error))
            return false;
        if (range.offset < end || range.length == 0 || range.length > MAX_SIZE - MIN(range.offset, MAX_SIZE))
            return json_reader_refuse(&parse->json, error, "a bad range that cannot be");
        end = range.offset + range.length;
        if (parse->receipt->bad && parse->receipt->bad->len >= RECEIPT_MAX_BAD)
            return json_reader_refuse(&parse->json, error, "more than %u bad ranges", RECEIPT_MAX_BAD);
        if (!parse->receipt->bad)
            parse->receipt->bad = g_array_new(FALSE, FALSE, sizeof range);
        g_array_append_val(parse->receipt->bad, range);
    }
}

static bool parse_algorithm(struct parse *parse, GError **error)
{
    const char *text = NULL;
    if (!json_reader_string(&parse->json, 64, &text, error))
        return false;
    return (digest_algorithm_parse(text, &parse->algorithm, NULL) &&
            strcmp(text, digest_algorithm_name(parse->algorithm)) == 0) ||
           json_reader_refuse(&parse->json, error, "unknown digest algorithm");
}

static bool parse_equal(struct parse *parse, const char *what, uint64_t wanted, GError **error)
{
    uint64_t number = 0;
    if (!json_reader_number(&parse->json, &number, error))
        return false;
    return number == wanted ||
           json_reader_refuse(&parse->json, error,
                              "%s %" G_GUINT64_FORMAT " where only %" G_GUINT64_FORMAT " is known", what,
                              number, wanted);
}

/* First reading: everything but the runs. */
static bool digest_member(struct parse *parse, void *data, const char *key, bool *known, GError **error)
{
    if (strcmp(key, "algorithm") == 0)
        return parse_algorithm(parse, error);
    if (strcmp(key, "chunk_size") == 0)
        return parse_equal(parse, "chunk size", DIGEST_CHUNK_SIZE, error);
    if (strcmp(key, "root") == 0)
        return parse_text(parse, &parse->root_hex, error);
    if (strcmp(key, "runs") == 0)
        return json_reader_skip(&parse->json, error);
    *known = false;
    return true;
}

static bool text_member(struct parse *parse, const char *key, bool *known, GError **error)
{
    g_autofree char *shown = NULL;
    for (unsigned i = 0; receipt_texts[i].name; i++) {
        const char *name = receipt_texts[i].name;
        char **out = G_STRUCT_MEMBER_P(parse->receipt, receipt_texts[i].offset);
        if (strcmp(name, key) == 0)
            return parse_text(parse, parse->exact & 1u << i ? &shown : out, error);
        if (strncmp(name, key, strlen(name)) == 0 && strcmp(key + strlen(name), "_bytes") == 0) {
            parse->exact |= 1u << i;
            return parse_bytes(parse, out, error);
        }
    }
    *known = false;
    return true;
}

static bool top_member(struct parse *parse, void *data, const char *key, bool *known, GError **error)
{
    static const char *const digest_required[] = {"algorithm", "chunk_size", "root", "runs", NULL};
    static const char *const no_counter[] = {NULL};
    struct receipt *receipt = parse->receipt;
    if (strcmp(key, "schema") == 0)
        return parse_equal(parse, "receipt schema", RECEIPT_SCHEMA, error);
    if (strcmp(key, "started") == 0)
        return parse_time(parse, &receipt->started, error);
    if (strcmp(key, "finished") == 0)
        return parse_time(parse, &receipt->finished, error);
    if (strcmp(key, "layer") == 0)
        return json_reader_bool(&parse->json, &receipt->layer, error);
    if (strcmp(key, "size") == 0)
        return json_reader_number(&parse->json, &receipt->size, error);
    if (strcmp(key, "counters") == 0)
        return parse_object(parse, counter_member, &receipt->counters, no_counter, error);
    if (strcmp(key, "bad") == 0)
        return parse_bad(parse, error);
    if (strcmp(key, "digest") == 0)
        return parse_object(parse, digest_member, NULL, digest_required, error);
    return text_member(parse, key, known, error);
}

struct run {
    uint64_t chunk, count;
    char *digests;
};

static bool run_member(struct parse *parse, void *data, const char *key, bool *known, GError **error)
{
    struct run *run = data;
    const char *text = NULL;
    if (strcmp(key, "chunk") == 0)
        return json_reader_number(&parse->json, &run->chunk, error);
    if (strcmp(key, "count") == 0)
        return json_reader_number(&parse->json, &run->count, error);
    if (strcmp(key, "digests") != 0) {
        *known = false;
        return true;
    }
    if (!json_reader_string(&parse->json, (size_t)RECEIPT_RUN_CHUNKS * 2 * DIGEST_MAX_LENGTH, &text, error))
        return false;
    g_free(run->digests);
    run->digests = g_strdup(text);
    return true;
}

static bool take_run(struct parse *parse, const struct run *run, GError **error)
{
    struct digest_table *table = parse->receipt->digests;
    size_t hex_length = 2 * digest_length(parse->algorithm);
    uint64_t chunks = digest_table_chunks(table);
    if (run->count == 0 || run->count > RECEIPT_RUN_CHUNKS || run->chunk < parse->next_chunk ||
        run->chunk >= chunks || run->count > chunks - run->chunk)
        return json_reader_refuse(&parse->json, error,
                                  "a run of %" G_GUINT64_FORMAT " chunks from %" G_GUINT64_FORMAT
                                  " on, on a disk of %" G_GUINT64_FORMAT,
                                  run->count, run->chunk, chunks);
    if (strlen(run->digests) != run->count * hex_length)
        return json_reader_refuse(&parse->json, error,
                                  "the digests of chunk %" G_GUINT64_FORMAT " have a wrong length",
                                  run->chunk);
    for (uint64_t i = 0; i < run->count; i++) {
        char hex[2 * DIGEST_MAX_LENGTH + 1] = "";
        uint8_t digest[DIGEST_MAX_LENGTH];
        memcpy(hex, run->digests + i * hex_length, hex_length);
        if (!digest_from_hex(parse->algorithm, hex, digest))
            return json_reader_refuse(&parse->json, error,
                                      "the digest of chunk %" G_GUINT64_FORMAT " is no number",
                                      run->chunk + i);
        digest_table_set(table, run->chunk + i, digest);
    }
    parse->next_chunk = run->chunk + run->count;
    return true;
}

/* Second reading: the runs alone. */
static bool runs_member(struct parse *parse, void *data, const char *key, bool *known, GError **error)
{
    static const char *const required[] = {"chunk", "count", "digests", NULL};
    *known = strcmp(key, "runs") == 0;
    if (!*known)
        return true;
    if (!json_reader_open(&parse->json, '[', error))
        return false;
    for (bool first = true, more = true;;) {
        if (!json_reader_element(&parse->json, &first, &more, error))
            return false;
        if (!more)
            return true;
        struct run run = {0};
        bool ok = parse_object(parse, run_member, &run, required, error) && take_run(parse, &run, error);
        g_free(run.digests);
        if (!ok)
            return false;
    }
}

static bool digest_only_member(struct parse *parse, void *data, const char *key, bool *known, GError **error)
{
    static const char *const required[] = {"runs", NULL};
    *known = strcmp(key, "digest") == 0;
    return !*known || parse_object(parse, runs_member, NULL, required, error);
}

/* What can be judged only when everything but the runs has been read. */
static bool check_whole(struct parse *parse, GError **error)
{
    static const char *const verified[] = {"full", "written", "none", NULL};
    struct receipt *receipt = parse->receipt;
    if (!receipt->verified || !g_strv_contains(verified, receipt->verified))
        return json_reader_refuse(&parse->json, error, "\"verified\" is none of full, written, none");
    if (receipt->size > MAX_SIZE)
        return json_reader_refuse(&parse->json, error, "a disk of %" G_GUINT64_FORMAT " bytes",
                                  receipt->size);
    uint64_t chunks = (receipt->size + DIGEST_CHUNK_SIZE - 1) / DIGEST_CHUNK_SIZE;
    uint64_t limit = MAX_BASE_LENGTH + chunks * (2 * digest_length(parse->algorithm) + MAX_RUN_EXTRA);
    if (parse->file_length > limit)
        return json_reader_refuse(&parse->json, error,
                                  "%" G_GUINT64_FORMAT " bytes of receipt; a disk of %" G_GUINT64_FORMAT
                                  " bytes needs at most %" G_GUINT64_FORMAT,
                                  parse->file_length, receipt->size, limit);
    const GArray *bad = receipt->bad;
    const struct copy_range *last = bad ? &g_array_index(bad, struct copy_range, bad->len - 1) : NULL;
    if (last && last->offset + last->length > receipt->size)
        return json_reader_refuse(&parse->json, error, "a bad range beyond the end of the disk");
    if (!parse->root_hex || !digest_from_hex(parse->algorithm, parse->root_hex, parse->root))
        return json_reader_refuse(&parse->json, error, "the root is no digest");
    return true;
}

static bool check_root(const struct parse *parse, GError **error)
{
    uint8_t root[DIGEST_MAX_LENGTH];
    digest_table_root(parse->receipt->digests, root);
    if (memcmp(root, parse->root, digest_length(parse->algorithm)) == 0)
        return true;
    g_autofree char *computed = digest_to_hex(parse->algorithm, root);
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_DIFFERENT,
                "%s: the receipt was changed: its digests have the root %s, but it says %s", parse->json.name,
                computed, parse->root_hex);
    return false;
}

static bool parse_file(struct parse *parse, GError **error)
{
    static const char *const required[] = {"schema",   "job",    "command",  "method",  "source",
                                           "target",   "size",   "verified", "started", "finished",
                                           "counters", "digest", NULL};
    static const char *const digest_required[] = {"digest", NULL};
    if (!parse_object(parse, top_member, NULL, required, error) || !check_whole(parse, error) ||
        !json_reader_end(&parse->json, error))
        return false;
    parse->receipt->digests = digest_table_new(parse->algorithm, parse->receipt->size);
    rewind(parse->json.file);
    parse->json.position = 0;
    return parse_object(parse, digest_only_member, NULL, digest_required, error) && check_root(parse, error);
}

static FILE *open_regular(const char *path, uint64_t *length, GError **error)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    struct stat st;
    FILE *file = fd >= 0 && fstat(fd, &st) == 0 ? fdopen(fd, "r") : NULL;
    if (!file) {
        blockmig_set_errno(error, errno, "%s", path);
        if (fd >= 0)
            close(fd);
        return NULL;
    }
    if (!S_ISREG(st.st_mode)) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED, "%s: not a regular file", path);
        fclose(file);
        return NULL;
    }
    *length = (uint64_t)st.st_size;
    return file;
}

struct receipt *receipt_read(const char *path, GError **error)
{
    struct parse parse = {0};
    FILE *file = open_regular(path, &parse.file_length, error);
    if (!file)
        return NULL;
    g_autoptr(receipt_t) receipt = g_new0(struct receipt, 1);
    parse.receipt = receipt;
    json_reader_init(&parse.json, file, path);
    bool ok = parse_file(&parse, error);
    json_reader_clear(&parse.json);
    g_free(parse.root_hex);
    fclose(file);
    return ok ? g_steal_pointer(&receipt) : NULL;
}

void receipt_free(struct receipt *receipt)
{
    if (!receipt)
        return;
    for (const struct receipt_field *field = receipt_texts; field->name; field++)
        g_free(*(char **)G_STRUCT_MEMBER_P(receipt, field->offset));
    g_clear_pointer(&receipt->bad, g_array_unref);
    g_clear_pointer(&receipt->digests, digest_table_free);
    g_free(receipt);
}
