/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The descriptor: lines of text, of which nothing counts but whole lines with known keys.  A comment, or a
 * key that ends like another one, says nothing (Virtual Disk Format 5.0, "The Descriptor File").
 */
#include "formats/vmdk.h"

#include <string.h>

/* What is known while the lines are read. */
struct reading {
    struct vmdk_descriptor *descriptor;
    const char *text;
    bool has_version, has_cid, has_parent_cid;
};

/* One line without its end, and where it stands. */
struct line {
    const char *start;
    size_t length;
};

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\v' || c == '\f';
}

static struct line strip(struct line line)
{
    while (line.length && is_blank(line.start[0])) {
        line.start++;
        line.length--;
    }
    while (line.length && is_blank(line.start[line.length - 1]))
        line.length--;
    return line;
}

/* The next line of [*at, end): lines end with LF, CR or both. */
static struct line next_line(const char **at, const char *end)
{
    struct line line = {.start = *at};

    while (*at < end && **at != '\n' && **at != '\r')
        (*at)++;
    line.length = *at - line.start;
    if (*at < end)
        (*at)++;
    return strip(line);
}

static bool is_comment(struct line line)
{
    return line.length == 0 || line.start[0] == '#';
}

/* "key = value": the value without quotes around it. */
static bool split(struct line line, struct line *key, struct line *value)
{
    const char *equals = memchr(line.start, '=', line.length);

    if (!equals)
        return false;
    *key = strip((struct line){line.start, equals - line.start});
    *value = strip((struct line){equals + 1, line.start + line.length - (equals + 1)});
    if (value->length >= 2 && value->start[0] == '"' && value->start[value->length - 1] == '"') {
        value->start++;
        value->length -= 2;
    }
    return true;
}

static bool equals(struct line line, const char *word)
{
    return line.length == strlen(word) && g_ascii_strncasecmp(line.start, word, line.length) == 0;
}

/* Only what an error message shows. */
static char *shown(struct line line)
{
    g_autofree char *text = g_strndup(line.start, MIN(line.length, 200));

    return g_strescape(text, NULL);
}

static bool refuse_line(GError **error, struct line line, const char *why)
{
    g_autofree char *text = shown(line);

    return vmdk_refuse(error, "descriptor: \"%s\": %s", text, why);
}

/* Behind the mark that editors on Windows put before a text in UTF-8. */
static const char *begin_of(const char *text, size_t length)
{
    return length >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0 ? text + 3 : text;
}

bool vmdk_is_text(const uint8_t *head, size_t length)
{
    const char *at = begin_of((const char *)head, length), *end = (const char *)head + length;
    struct line key, value;

    if (end - at >= 21 && memcmp(at, "# Disk DescriptorFile", 21) == 0)
        return true;
    while (at < end) {
        struct line line = next_line(&at, end);

        if (!is_comment(line))
            return split(line, &key, &value) && equals(key, "version") && value.length > 0 &&
                   g_ascii_isdigit(value.start[0]);
    }
    return false;
}

/* ---- extents ------------------------------------------------------------------------------------ */

static struct line next_word(struct line *rest)
{
    struct line word = strip(*rest);
    size_t length = 0;

    while (length < word.length && !is_blank(word.start[length]) && word.start[length] != '"')
        length++;
    *rest = (struct line){word.start + length, word.length - length};
    word.length = length;
    return word;
}

static bool is_access(struct line word)
{
    return equals(word, "RW") || equals(word, "RDONLY") || equals(word, "NOACCESS");
}

static bool number(struct line word, uint64_t max, uint64_t *value)
{
    *value = 0;
    for (size_t i = 0; i < word.length; i++) {
        if (!g_ascii_isdigit(word.start[i]) || *value > (max - (word.start[i] - '0')) / 10)
            return false;
        *value = *value * 10 + (word.start[i] - '0');
    }
    return word.length > 0;
}

static const struct {
    const char *name;
    enum vmdk_kind kind;
    bool offset; /* must be there */
} types[] = {
    {"FLAT", VMDK_FLAT, true},      {"VMFS", VMDK_FLAT, false},       {"ZERO", VMDK_ZERO, false},
    {"SPARSE", VMDK_SPARSE, false}, {"VMFSSPARSE", VMDK_COWD, false}, {"SESPARSE", VMDK_SESPARSE, false},
};

static int find_type(struct line word)
{
    for (size_t i = 0; i < G_N_ELEMENTS(types); i++)
        if (equals(word, types[i].name))
            return i;
    return -1;
}

/* From the first quote to the last one: a name may contain quotes. */
static bool quoted(struct line rest, struct line *name, struct line *tail)
{
    const char *last = memrchr(rest.start, '"', rest.length);

    rest = strip(rest);
    if (rest.length < 3 || rest.start[0] != '"' || last <= rest.start + 1)
        return false;
    *name = (struct line){rest.start + 1, last - rest.start - 1};
    *tail = strip((struct line){last + 1, rest.start + rest.length - (last + 1)});
    return true;
}

/* NULL: it is in another encoding, or nobody knows that one. */
static char *to_utf8(struct line name, const char *encoding)
{
    return g_convert(name.start, name.length, "UTF-8", encoding, NULL, NULL, NULL);
}

/* Names in the encoding that the text says; ours are bytes, mostly UTF-8. The code pages of Windows have
 * names for VMware, "windows-949", that the C library does not know all of. */
static char *to_name(const struct vmdk_descriptor *descriptor, struct line name)
{
    const char *encoding = descriptor->encoding ? descriptor->encoding : "UTF-8";
    size_t prefix = strlen("windows-");
    char *text = g_ascii_strcasecmp(encoding, "UTF-8") == 0 ? NULL : to_utf8(name, encoding);

    if (!text && g_ascii_strncasecmp(encoding, "windows-", prefix) == 0) {
        g_autofree char *code_page = g_strconcat("CP", encoding + prefix, NULL);

        text = to_utf8(name, code_page);
    }
    return text ? text : g_strndup(name.start, name.length);
}

static bool extent_file(struct reading *reading, struct line line, struct line rest, bool needs_offset,
                        struct vmdk_line *extent, GError **error)
{
    struct line name, tail;
    uint64_t sector = 0;

    if (extent->kind == VMDK_ZERO)
        return strip(rest).length == 0 || refuse_line(error, line, "a ZERO extent has no file");
    if (!quoted(rest, &name, &tail))
        return refuse_line(error, line, "the extent has no file name in quotes");
    if (tail.length ? !number(tail, VMDK_MAX_SIZE / VMDK_SECTOR, &sector) : needs_offset)
        return refuse_line(error, line, "what follows the file name is not an offset in sectors");
    if (sector && !needs_offset)
        return refuse_line(error, line, "an extent of this type begins at offset 0");
    extent->host = sector * VMDK_SECTOR;
    extent->file = to_name(reading->descriptor, name);
    return true;
}

static bool read_extent(struct reading *reading, struct line line, GError **error)
{
    struct vmdk_descriptor *descriptor = reading->descriptor;
    struct line rest = line, access = next_word(&rest), size = next_word(&rest), word = next_word(&rest);
    struct vmdk_line extent = {.readonly = !equals(access, "RW")};
    int type = find_type(word);

    if (equals(access, "NOACCESS"))
        return refuse_line(error, line, "access to the extent is denied");
    if (type < 0)
        return refuse_line(error, line, "this type of extent is a device or unknown");
    if (!number(size, VMDK_MAX_SIZE / VMDK_SECTOR, &extent.size) || extent.size == 0)
        return refuse_line(error, line, "the size in sectors is not a number in range");
    if (descriptor->lines->len == VMDK_MAX_EXTENTS)
        return vmdk_refuse(error, "descriptor: there are more than %u extents", VMDK_MAX_EXTENTS);
    extent.kind = types[type].kind;
    extent.size *= VMDK_SECTOR;
    descriptor->size += extent.size;
    if (descriptor->size > VMDK_MAX_SIZE)
        return refuse_line(error, line, "the disk would be larger than 2^62 bytes");
    if (!extent_file(reading, line, rest, types[type].offset, &extent, error))
        return false;
    g_array_append_val(descriptor->lines, extent);
    return true;
}

/* ---- keys --------------------------------------------------------------------------------------- */

static struct vmdk_span span_of(const struct reading *reading, struct line value)
{
    return (struct vmdk_span){value.start - reading->text, value.length};
}

static bool read_cid(struct line line, struct line value, bool *seen, uint32_t *cid, GError **error)
{
    g_autofree char *text = g_strndup(value.start, value.length);

    if (*seen)
        return refuse_line(error, line, "the key stands there twice");
    if (value.length == 0 || value.length > 8 || strspn(text, "0123456789abcdefABCDEF") < value.length)
        return refuse_line(error, line, "not a number of up to 8 hexadecimal digits");
    *seen = true;
    *cid = g_ascii_strtoull(text, NULL, 16);
    return true;
}

static bool read_text(struct line line, struct line value, char **text, GError **error)
{
    if (*text)
        return refuse_line(error, line, "the key stands there twice");
    *text = g_strndup(value.start, value.length);
    return true;
}

/* All zeros mean that there is none. */
static bool read_uuid(struct line line, struct line value, char **uuid, GError **error)
{
    g_autofree char *raw = g_strndup(value.start, value.length), *lower = g_ascii_strdown(raw, -1);

    if (*uuid)
        return refuse_line(error, line, "the key stands there twice");
    if (!g_uuid_string_is_valid(lower))
        return refuse_line(error, line, "not a UUID");
    if (strspn(lower, "0-") < strlen(lower))
        *uuid = g_steal_pointer(&lower);
    return true;
}

static bool read_version(struct reading *reading, struct line line, struct line value, GError **error)
{
    uint64_t version;

    if (reading->has_version)
        return refuse_line(error, line, "the key stands there twice");
    if (!number(value, 1000, &version) || version < 1 || version > 4)
        return refuse_line(error, line, "not a version between 1 and 4");
    reading->has_version = true;
    return true;
}

/* VMware encrypts what is in the extents and leaves the rest as it is. */
static bool check_plain(struct line key, struct line value, GError **error)
{
    bool keys = equals(key, "encryptionKeys") && value.length > 0;
    bool filter =
        equals(key, "ddb.iofilters") && g_strstr_len(value.start, value.length, "vmwarevmcrypt") != NULL;

    return (!keys && !filter) ||
           vmdk_refuse(error, "descriptor: %.*s: the content is encrypted", (int)key.length, key.start);
}

static bool read_key(struct reading *reading, struct line line, struct line key, struct line value,
                     GError **error)
{
    struct vmdk_descriptor *descriptor = reading->descriptor;

    if (equals(key, "version"))
        return read_version(reading, line, value, error);
    if (equals(key, "CID")) {
        descriptor->cid_span = span_of(reading, value);
        return read_cid(line, value, &reading->has_cid, &descriptor->cid, error);
    }
    if (equals(key, "parentCID")) {
        descriptor->parent_cid_span = span_of(reading, value);
        return read_cid(line, value, &reading->has_parent_cid, &descriptor->parent_cid, error);
    }
    if (equals(key, "createType"))
        return read_text(line, value, &descriptor->create_type, error);
    if (equals(key, "encoding"))
        return read_text(line, value, &descriptor->encoding, error);
    if (equals(key, "parentFileNameHint")) {
        if (descriptor->parent_hint)
            return refuse_line(error, line, "the key stands there twice");
        descriptor->parent_hint = to_name(descriptor, value);
        return true;
    }
    if (equals(key, "ddb.adapterType"))
        return read_text(line, value, &descriptor->adapter, error);
    if (equals(key, "ddb.uuid.image"))
        return read_uuid(line, value, &descriptor->image_uuid, error);
    if (equals(key, "ddb.uuid.modification")) {
        descriptor->modification_span = span_of(reading, value);
        return read_uuid(line, value, &descriptor->modification_uuid, error);
    }
    if (equals(key, "ddb.uuid.parent"))
        return read_uuid(line, value, &descriptor->parent_uuid, error);
    if (equals(key, "ddb.uuid.parentmodification")) {
        descriptor->parent_modification_span = span_of(reading, value);
        return read_uuid(line, value, &descriptor->parent_modification_uuid, error);
    }
    /* changeTrackPath, other ddb.*: nothing else that the content depends on */
    return check_plain(key, value, error);
}

static bool read_line(struct reading *reading, struct line line, GError **error)
{
    struct line rest = line, key, value;

    if (is_comment(line))
        return true;
    if (is_access(next_word(&rest)) && rest.length && is_blank(rest.start[0]))
        return read_extent(reading, line, error);
    if (!split(line, &key, &value))
        return refuse_line(error, line, "neither a comment, a key with a value nor an extent");
    return read_key(reading, line, key, value, error);
}

/* ---- the whole ---------------------------------------------------------------------------------- */

static bool check_type(const struct vmdk_descriptor *descriptor, GError **error)
{
    static const char *const known[] = {"monolithicSparse",   "monolithicFlat",  "twoGbMaxExtentSparse",
                                        "twoGbMaxExtentFlat", "streamOptimized", "vmfs",
                                        "vmfsThin",           "vmfsSparse",      "vmfsEagerZeroedThick",
                                        "vmfsPreallocated",   "seSparse",        "custom",
                                        "2GbMaxExtentSparse", "2GbMaxExtentFlat"};
    g_autofree char *text = NULL;

    if (!descriptor->create_type)
        return vmdk_refuse(error, "descriptor: there is no createType");
    for (size_t i = 0; i < G_N_ELEMENTS(known); i++)
        if (g_ascii_strcasecmp(known[i], descriptor->create_type) == 0)
            return true;
    text = g_strescape(descriptor->create_type, NULL);
    return vmdk_refuse(error, "descriptor: createType \"%s\" stands for a device or is unknown", text);
}

bool vmdk_is_base(const struct vmdk_descriptor *descriptor)
{
    return descriptor->parent_cid == VMDK_NO_PARENT && !descriptor->parent_uuid;
}

static bool check_descriptor(const struct reading *reading, GError **error)
{
    const struct vmdk_descriptor *descriptor = reading->descriptor;

    if (!reading->has_version)
        return vmdk_refuse(error, "descriptor: there is no version");
    if (!reading->has_cid)
        return vmdk_refuse(error, "descriptor: there is no CID");
    if (descriptor->parent_hint && *descriptor->parent_hint && descriptor->parent_cid == VMDK_NO_PARENT)
        return vmdk_refuse(error,
                           "descriptor: parentFileNameHint names a parent, parentCID says there is none");
    if (descriptor->lines->len == 0)
        return vmdk_refuse(error, "descriptor: there are no extents");
    return check_type(descriptor, error);
}

static void line_clear(gpointer data)
{
    g_free(((struct vmdk_line *)data)->file);
}

void vmdk_descriptor_free(struct vmdk_descriptor *descriptor)
{
    if (!descriptor)
        return;
    g_free(descriptor->create_type);
    g_free(descriptor->parent_hint);
    g_free(descriptor->adapter);
    g_free(descriptor->image_uuid);
    g_free(descriptor->modification_uuid);
    g_free(descriptor->parent_uuid);
    g_free(descriptor->parent_modification_uuid);
    g_free(descriptor->encoding);
    g_array_unref(descriptor->lines);
    g_free(descriptor);
}

struct vmdk_descriptor *vmdk_descriptor_parse(const char *text, size_t length, GError **error)
{
    struct vmdk_descriptor *descriptor = g_new0(struct vmdk_descriptor, 1);
    struct reading reading = {.descriptor = descriptor, .text = text};
    const char *at = begin_of(text, length), *nul = memchr(text, '\0', length);
    const char *end = nul ? nul : text + length;
    bool ok = true;

    descriptor->parent_cid = VMDK_NO_PARENT;
    descriptor->lines = g_array_new(FALSE, FALSE, sizeof(struct vmdk_line));
    g_array_set_clear_func(descriptor->lines, line_clear);
    while (ok && at < end)
        ok = read_line(&reading, next_line(&at, end), error);
    if (ok && check_descriptor(&reading, error))
        return descriptor;
    vmdk_descriptor_free(descriptor);
    return NULL;
}

/* Neither "no parent" nor "not known". */
uint32_t vmdk_new_cid(void)
{
    uint32_t cid;

    do
        cid = g_random_int();
    while (cid == 0 || cid >= VMDK_UNKNOWN_CID);
    return cid;
}
