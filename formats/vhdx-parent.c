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
    char *text;

    if (at < LOCATOR_HEADER || bytes == 0 || bytes > MAX_TEXT || at > length || bytes > length - at) {
        vhdx_refuse(error, "a text of %u bytes at offset %u of the Parent Locator is outside of it", bytes,
                    at);
        return NULL;
    }
    text = utf16_decode(item + at, bytes, UTF16_LITTLE, error);
    if (!text)
        g_prefix_error(error, "VHDX: Parent Locator: ");
    return text;
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

bool vhdx_check_parent(struct image *image, struct image *parent, GError **error)
{
    const struct vhdx *child = image->opaque, *below = parent->opaque;
    g_autofree char *wanted = vhdx_guid_format(&child->linkage), *found = NULL;

    if (parent->format != &format_vhdx)
        return vhdx_refuse(error, "its parent %s is of format %s", parent->name, parent->format->name);
    if (links_to(&child->linkage, below) || links_to(&child->linkage2, below))
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

static bool encode_pair(const char *key, const char *value, GByteArray *table, GByteArray *texts,
                        uint32_t texts_at, GError **error)
{
    g_autoptr(GByteArray) key_bytes = utf16_encode(key, UTF16_LITTLE, error);
    g_autoptr(GByteArray) value_bytes = key_bytes ? utf16_encode(value, UTF16_LITTLE, error) : NULL;

    if (!value_bytes)
        return false;
    if (value_bytes->len > MAX_TEXT)
        return vhdx_refuse(error, "the parent's name has %u bytes, more than %u", value_bytes->len, MAX_TEXT);
    append_pair(table, texts, texts_at, key_bytes, value_bytes);
    return true;
}

/* Both linkages first, for readers that know only one of them. */
static GByteArray *encode_locator(GHashTable *pairs, GError **error)
{
    static const char *const linkages[] = {"parent_linkage", "parent_linkage2", NULL};
    uint32_t texts_at = LOCATOR_HEADER + g_hash_table_size(pairs) * LOCATOR_ENTRY;
    g_autoptr(GByteArray) table = g_byte_array_new(), texts = g_byte_array_new();
    uint8_t header[LOCATOR_HEADER] = {0};
    GHashTableIter iter;
    gpointer key, value;

    memcpy(header, &locator_type, sizeof locator_type);
    store_le16(header + 18, g_hash_table_size(pairs));
    g_byte_array_append(table, header, sizeof header);
    for (size_t i = 0; linkages[i]; i++) {
        if (!encode_pair(linkages[i], g_hash_table_lookup(pairs, linkages[i]), table, texts, texts_at, error))
            return NULL;
    }
    g_hash_table_iter_init(&iter, pairs);
    while (g_hash_table_iter_next(&iter, &key, &value)) {
        if (!g_strv_contains(linkages, key) && !encode_pair(key, value, table, texts, texts_at, error))
            return NULL;
    }
    g_byte_array_append(table, texts->data, texts->len);
    return g_steal_pointer(&table);
}

static void set_pair(GHashTable *pairs, const char *key, char *value)
{
    g_hash_table_replace(pairs, g_strdup(key), value);
}

static void set_linkages(GHashTable *pairs, const struct vhdx_guid *linkage, const struct vhdx_guid *linkage2)
{
    set_pair(pairs, "parent_linkage", vhdx_guid_format(linkage));
    set_pair(pairs, "parent_linkage2", vhdx_guid_format(linkage2));
}

/* parent_linkage2 is there from the start, as Hyper-V has it: so it can be changed in its place. */
GByteArray *vhdx_make_locator(const struct vhdx_guid *linkage, const char *name, GError **error)
{
    g_autoptr(GHashTable) pairs = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);

    if (strchr(name, '\\')) {
        vhdx_refuse(error, "the parent's name \"%s\" has a backslash, which separates directories here",
                    name);
        return NULL;
    }
    set_linkages(pairs, linkage, &vhdx_no_guid);
    set_pair(pairs, name[0] == '/' ? "absolute_win32_path" : "relative_path", windows_name(name));
    return encode_locator(pairs, error);
}

/* ---- a merge ------------------------------------------------------------------------------------ */

/* The locator of the image with other linkages. */
static GByteArray *changed_locator(struct vhdx *vhdx, const struct vhdx_guid *linkage,
                                   const struct vhdx_guid *linkage2, GError **error)
{
    g_autofree uint8_t *item = g_malloc(vhdx->locator.length);
    g_autoptr(GHashTable) pairs = NULL;

    if (!storage_pread(vhdx->storage, item, vhdx->locator.length,
                       vhdx->metadata_region.offset + vhdx->locator.offset, error))
        return NULL;
    pairs = read_pairs(item, vhdx->locator.length, error);
    if (!pairs)
        return NULL;
    set_linkages(pairs, linkage, linkage2);
    return encode_locator(pairs, error);
}

/* A locator that got longer goes behind all items. */
static bool write_locator(struct vhdx *vhdx, const GByteArray *item, GError **error)
{
    uint64_t at = item->len <= vhdx->locator.length ? vhdx->locator.offset : vhdx->items_end;

    if (item->len > VHDX_MAX_ITEM_CHANGE || at + item->len > vhdx->metadata_region.length)
        return vhdx_refuse(error, "there is no place for a Parent Locator of %u bytes", item->len);
    if (!vhdx_change_item(vhdx, vhdx->locator_entry, at, item->data, item->len, error))
        return false;
    vhdx->locator = (struct vhdx_range){at, item->len};
    vhdx->items_end = MAX(vhdx->items_end, at + item->len);
    return true;
}

/* 2.6.2.6.3: the child knows what the parent is now and what it will be.  Its own content does not change,
 * and so its children remain its children. */
static bool tell_child(struct vhdx *child, const struct vhdx_guid *now, const struct vhdx_guid *next,
                       GError **error)
{
    g_autoptr(GByteArray) item = NULL;

    child->next_data_write = child->header.data_write;
    if (!vhdx_begin_write(child, error))
        return false;
    item = changed_locator(child, now, next, error);
    if (!item || !write_locator(child, item, error))
        return false;
    child->linkage = *now;
    child->linkage2 = *next;
    return true;
}

bool vhdx_begin_merge(struct image *image, struct image *child, GError **error)
{
    struct vhdx *vhdx = image->opaque;

    vhdx->next_data_write = vhdx_guid_random();
    return tell_child(child->opaque, &vhdx->header.data_write, &vhdx->next_data_write, error);
}
