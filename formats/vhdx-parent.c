/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The parent locator ([MS-VHDX] 2.6.2.6): keys and values in UTF-16.  Paths are hints; the link is the
 * DataWriteGuid that the parent had when the child was made, which every change of its content replaces.
 */
#include "formats/utf16.h"
#include "formats/vhdx.h"

#include <string.h>

#define LOCATOR_HEADER 20u
#define LOCATOR_ENTRY  12u
#define MAX_TEXT       32768u /* bytes of a key or a value: paths of Windows are shorter */

static const struct vhdx_guid locator_type = {
    {0xb7, 0xef, 0x4a, 0xb0, 0x9e, 0xd1, 0x81, 0x4a, 0xb7, 0x89, 0x25, 0xb8, 0xe9, 0x44, 0x59, 0x13}};

/* In the order in which a parent is looked for. */
static const char *const path_keys[] = {"relative_path", "volume_path", "absolute_win32_path"};

static char *read_text(const uint8_t *item, uint32_t length, uint32_t at, uint32_t bytes, GError **error)
{
    if (at < LOCATOR_HEADER || bytes == 0 || bytes > MAX_TEXT || at > length || bytes > length - at) {
        vhdx_refuse(error, "a text of %u bytes at offset %u of the Parent Locator is outside of it", bytes,
                    at);
        return NULL;
    }
    return utf16_decode(item + at, bytes, UTF16_LITTLE, error);
}

/* key -> value, all as UTF-8. */
static GHashTable *read_pairs(const uint8_t *item, uint32_t length, GError **error)
{
    g_autoptr(GHashTable) pairs = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
    uint16_t count = load_le16(item + 18);

    if (count > (length - LOCATOR_HEADER) / LOCATOR_ENTRY) {
        vhdx_refuse(error, "KeyValueCount %u of the Parent Locator needs more than its %u bytes", count,
                    length);
        return NULL;
    }
    for (unsigned i = 0; i < count; i++) {
        const uint8_t *entry = item + LOCATOR_HEADER + i * LOCATOR_ENTRY;
        g_autofree char *key = read_text(item, length, load_le32(entry), load_le16(entry + 8), error);
        g_autofree char *value =
            key ? read_text(item, length, load_le32(entry + 4), load_le16(entry + 10), error) : NULL;

        if (!value)
            return NULL;
        if (g_hash_table_contains(pairs, key)) {
            g_autofree char *shown = g_strescape(key, NULL);

            vhdx_refuse(error, "the key \"%s\" is in the Parent Locator twice", shown);
            return NULL;
        }
        g_hash_table_insert(pairs, g_steal_pointer(&key), g_steal_pointer(&value));
    }
    return g_steal_pointer(&pairs);
}

static bool read_linkage(GHashTable *pairs, const char *key, struct vhdx_guid *guid, GError **error)
{
    const char *value = g_hash_table_lookup(pairs, key);
    g_autofree char *shown = value ? g_strescape(value, NULL) : NULL;

    return !value || vhdx_guid_parse(value, guid) ||
           vhdx_refuse(error, "%s \"%s\" of the Parent Locator is not a GUID", key, shown);
}

bool vhdx_parse_locator(struct vhdx *vhdx, const uint8_t *item, uint32_t length, GError **error)
{
    struct image *image = vhdx->image;
    g_autoptr(GHashTable) pairs = NULL;
    struct vhdx_guid type;

    if (length < LOCATOR_HEADER)
        return vhdx_refuse(error, "the Parent Locator has only %u bytes", length);
    memcpy(&type, item, sizeof type);
    if (!vhdx_guid_equal(&type, &locator_type)) {
        g_autofree char *shown = vhdx_guid_format(&type);

        return vhdx_refuse(error, "Parent Locator type %s is not known", shown);
    }
    pairs = read_pairs(item, length, error);
    if (!pairs || !read_linkage(pairs, "parent_linkage", &vhdx->linkage, error) ||
        !read_linkage(pairs, "parent_linkage2", &vhdx->linkage2, error))
        return false;
    if (!g_hash_table_contains(pairs, "parent_linkage"))
        return vhdx_refuse(error, "the Parent Locator has no parent_linkage");
    for (size_t i = 0; i < G_N_ELEMENTS(path_keys); i++) {
        const char *path = g_hash_table_lookup(pairs, path_keys[i]);

        if (path)
            image_add_parent_name(image, path);
    }
    image->backing_format = g_strdup("vhdx");
    image->wants_parent = !image->backing_name;
    return true;
}

/* Hyper-V writes a parent_linkage2 of zeros: that is none, and a parent of that name proves nothing. */
static bool links_to(const struct vhdx_guid *linkage, const struct vhdx *parent)
{
    return !vhdx_guid_is_zero(linkage) && vhdx_guid_equal(linkage, &parent->header.data_write);
}

/* The DataWriteGuid of a parent that `child` is being merged into, or was.  It follows from the one that the
 * child knows and from the child's own: so after a kill the same merge is recognised, and to every other
 * child the parent has changed.  (The child is only read; 2.6.2.6.3 would have it know the new one
 * beforehand.) */
static struct vhdx_guid merge_guid(const struct vhdx *child)
{
    g_autoptr(GChecksum) sum = g_checksum_new(G_CHECKSUM_SHA256);
    struct vhdx_guid guid;
    uint8_t digest[32];
    gsize length = sizeof digest;

    g_checksum_update(sum, child->linkage.bytes, sizeof child->linkage);
    g_checksum_update(sum, child->header.data_write.bytes, sizeof child->header.data_write);
    g_checksum_get_digest(sum, digest, &length);
    memcpy(&guid, digest, sizeof guid);
    return guid;
}

bool vhdx_begin_merge(struct image *image, struct image *child, GError **error)
{
    struct vhdx *vhdx = image->opaque;

    vhdx->next_data_write = merge_guid(child->opaque);
    return true;
}

bool vhdx_check_parent(struct image *image, struct image *parent, GError **error)
{
    const struct vhdx *child = image->opaque, *below = parent->opaque;
    const struct vhdx_guid merged = merge_guid(child);
    g_autofree char *wanted = vhdx_guid_format(&child->linkage), *found = NULL;

    if (parent->format != &format_vhdx)
        return vhdx_refuse(error, "its parent %s is of format %s", parent->name, parent->format->name);
    if (links_to(&child->linkage, below) || links_to(&child->linkage2, below) || links_to(&merged, below))
        return true;
    found = vhdx_guid_format(&below->header.data_write);
    return vhdx_refuse(
        error, "its parent has DataWriteGuid %s, but %s has %s: it is another one, or was changed since",
        wanted, parent->name, found);
}

/* ---- writing ------------------------------------------------------------------------------------ */

static void append_pair(GByteArray *table, GByteArray *texts, uint32_t texts_at, const GByteArray *key,
                        const GByteArray *value)
{
    uint8_t entry[LOCATOR_ENTRY];

    store_le32(entry, texts_at + texts->len);
    store_le32(entry + 4, texts_at + texts->len + key->len);
    store_le16(entry + 8, key->len);
    store_le16(entry + 10, value->len);
    g_byte_array_append(table, entry, sizeof entry);
    g_byte_array_append(texts, key->data, key->len);
    g_byte_array_append(texts, value->data, value->len);
}

/* As Hyper-V writes names: from the directory of the child, or whole. */
static char *windows_name(const char *name)
{
    g_autofree char *copy = g_strdelimit(g_strdup(name), "/", '\\');

    if (name[0] == '/' || g_str_has_prefix(name, "./") || g_str_has_prefix(name, "../"))
        return g_steal_pointer(&copy);
    return g_strconcat(".\\", copy, NULL);
}

GByteArray *vhdx_make_locator(const struct vhdx_guid *linkage, const char *name, GError **error)
{
    g_autofree char *guid = vhdx_guid_format(linkage), *path = windows_name(name);
    const char *pairs[][2] = {{"parent_linkage", guid},
                              {name[0] == '/' ? "absolute_win32_path" : "relative_path", path}};
    g_autoptr(GByteArray) table = g_byte_array_new(), texts = g_byte_array_new();
    uint8_t header[LOCATOR_HEADER] = {0};

    if (strchr(name, '\\')) {
        vhdx_refuse(error, "the parent's name \"%s\" has a backslash, which separates directories here",
                    name);
        return NULL;
    }
    memcpy(header, &locator_type, sizeof locator_type);
    store_le16(header + 18, G_N_ELEMENTS(pairs));
    g_byte_array_append(table, header, sizeof header);
    for (size_t i = 0; i < G_N_ELEMENTS(pairs); i++) {
        g_autoptr(GByteArray) key = utf16_encode(pairs[i][0], UTF16_LITTLE, error);
        g_autoptr(GByteArray) value = key ? utf16_encode(pairs[i][1], UTF16_LITTLE, error) : NULL;

        if (!value)
            return NULL;
        if (value->len > MAX_TEXT) {
            vhdx_refuse(error, "the parent's name has %u bytes, more than %u", value->len, MAX_TEXT);
            return NULL;
        }
        append_pair(table, texts, LOCATOR_HEADER + G_N_ELEMENTS(pairs) * LOCATOR_ENTRY, key, value);
    }
    g_byte_array_append(table, texts->data, texts->len);
    return g_steal_pointer(&table);
}
