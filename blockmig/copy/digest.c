/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The table is the digest tree itself: 256-way nodes in which only what is not zero exists.
 *
 * A leaf holds the digests of up to 256 consecutive chunks, a node of level n+1 up to 256 nodes of
 * level n.  Both keep their members packed behind a bitmap, so that one stored chunk in
 * every terabyte costs a few hundred bytes and a full leaf nothing but its digests.
 */
#include "blockmig/copy/digest.h"

#include "formats/error.h"
#include "formats/xxh3.h"

#include <gnutls/crypto.h>
#include <string.h>

#define FANOUT     256
#define MAX_LEVELS 8 /* 256^6 chunks of 1 MiB are more than 2^64 bytes */

static const char root_prefix[] = "blockmig-digest-1"; /* with its final NUL */

/* Members are digests in a leaf (level 0) and node pointers above. */
struct node {
    uint64_t bitmap[FANOUT / 64];
    unsigned count, capacity;
    uint8_t *members;
};

struct digest_table {
    enum digest_algorithm algorithm;
    size_t length; /* of one digest */
    uint64_t size, chunks, stored;
    unsigned levels;   /* of nodes; the top one is `root` */
    struct node *root; /* NULL: everything is zero */

    /* What level n of the digest tree (0: chunks) has over nothing but zeros, for the last
     * node of the level, which may cover less, and for all others. */
    uint8_t zero[MAX_LEVELS][DIGEST_MAX_LENGTH];
    uint8_t zero_last[MAX_LEVELS][DIGEST_MAX_LENGTH];
    uint64_t nodes[MAX_LEVELS]; /* number of them */
};

static const struct {
    const char *name, *alias;
    size_t length;
} algorithms[] = {
    [DIGEST_XXH3_128] = {"xxh3-128", "xxh3", 16},
    [DIGEST_SHA256] = {"sha256", "sha256", 32},
};

const char *digest_algorithm_name(enum digest_algorithm algorithm)
{
    return algorithms[algorithm].name;
}

bool digest_algorithm_parse(const char *text, enum digest_algorithm *algorithm, GError **error)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(algorithms); i++) {
        if (g_str_equal(text, algorithms[i].name) || g_str_equal(text, algorithms[i].alias)) {
            *algorithm = i;
            return true;
        }
    }
    g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE,
                "unknown digest algorithm '%s': xxh3 or sha256 is expected", text);
    return false;
}

size_t digest_length(enum digest_algorithm algorithm)
{
    return algorithms[algorithm].length;
}

static void sha256(const void *data, size_t length, uint8_t *out)
{
    if (gnutls_hash_fast(GNUTLS_DIG_SHA256, data, length, out) == 0)
        return;
    gsize got = 32;
    GChecksum *checksum = g_checksum_new(G_CHECKSUM_SHA256);
    g_checksum_update(checksum, data, length);
    g_checksum_get_digest(checksum, out, &got);
    g_checksum_free(checksum);
}

void digest_compute(enum digest_algorithm algorithm, const void *data, size_t length, uint8_t *out)
{
    if (algorithm == DIGEST_SHA256) {
        sha256(data, length, out);
        return;
    }
    xxh3_digest(data, length, out);
}

char *digest_to_hex(enum digest_algorithm algorithm, const uint8_t *digest)
{
    static const char digits[] = "0123456789abcdef";
    size_t length = digest_length(algorithm);
    char *hex = g_malloc(2 * length + 1);

    for (size_t i = 0; i < length; i++) {
        hex[2 * i] = digits[digest[i] >> 4];
        hex[2 * i + 1] = digits[digest[i] & 15];
    }
    hex[2 * length] = '\0';
    return hex;
}

bool digest_from_hex(enum digest_algorithm algorithm, const char *hex, uint8_t *digest)
{
    size_t length = digest_length(algorithm);
    uint8_t bytes[DIGEST_MAX_LENGTH];

    if (strlen(hex) != 2 * length)
        return false;
    for (size_t i = 0; i < length; i++) {
        int high = g_ascii_xdigit_value(hex[2 * i]), low = g_ascii_xdigit_value(hex[2 * i + 1]);
        if (high < 0 || low < 0)
            return false;
        bytes[i] = (uint8_t)(high << 4 | low);
    }
    memcpy(digest, bytes, length);
    return true;
}

/* ---- nodes ---- */

static bool node_has(const struct node *node, unsigned i)
{
    return node->bitmap[i / 64] >> (i % 64) & 1;
}

/* How many members stand before member i. */
static unsigned node_rank(const struct node *node, unsigned i)
{
    unsigned rank = 0;
    for (unsigned word = 0; word < i / 64; word++)
        rank += (unsigned)__builtin_popcountll(node->bitmap[word]);
    return rank + (unsigned)__builtin_popcountll(node->bitmap[i / 64] & ((UINT64_C(1) << (i % 64)) - 1));
}

/* The first member >= i, or FANOUT. */
static unsigned node_next(const struct node *node, unsigned i)
{
    for (; i < FANOUT; i = (i | 63) + 1) {
        uint64_t rest = node->bitmap[i / 64] >> (i % 64);
        if (rest)
            return i + (unsigned)__builtin_ctzll(rest);
    }
    return FANOUT;
}

static uint8_t *node_insert(struct node *node, unsigned i, size_t width)
{
    unsigned rank = node_rank(node, i);

    if (node->count == node->capacity) {
        node->capacity = MIN(FANOUT, MAX(4, node->capacity * 2));
        node->members = g_realloc_n(node->members, node->capacity, width);
    }
    uint8_t *place = node->members + rank * width;
    memmove(place + width, place, (node->count - rank) * width);
    node->bitmap[i / 64] |= UINT64_C(1) << (i % 64);
    node->count++;
    return place;
}

static void node_remove(struct node *node, unsigned i, size_t width)
{
    uint8_t *place = node->members + node_rank(node, i) * width;

    node->count--;
    memmove(place, place + width, (size_t)(node->members + node->count * width - place));
    node->bitmap[i / 64] &= ~(UINT64_C(1) << (i % 64));
}

static struct node **node_child(struct node *node, unsigned i)
{
    return &((struct node **)(void *)node->members)[node_rank(node, i)];
}

/* `level` 0 is a leaf. */
static void node_free(struct node *node, unsigned level)
{
    if (!node)
        return;
    for (unsigned i = 0; level && i < node->count; i++)
        node_free(((struct node **)(void *)node->members)[i], level - 1);
    g_free(node->members);
    g_free(node);
}

static unsigned node_index(uint64_t chunk, unsigned level)
{
    return (unsigned)(chunk >> (8 * level)) & (FANOUT - 1);
}

/* ---- the table ---- */

static uint64_t chunk_length(const struct digest_table *table, uint64_t chunk)
{
    return MIN(DIGEST_CHUNK_SIZE, table->size - chunk * DIGEST_CHUNK_SIZE);
}

/* The digests of all-zero nodes, from the chunks up. */
static void compute_zeros(struct digest_table *table)
{
    g_autofree uint8_t *zeros = g_malloc0(DIGEST_CHUNK_SIZE);
    uint8_t members[FANOUT * DIGEST_MAX_LENGTH];
    size_t length = table->length;

    digest_compute(table->algorithm, zeros, DIGEST_CHUNK_SIZE, table->zero[0]);
    digest_compute(table->algorithm, zeros, chunk_length(table, table->chunks - 1), table->zero_last[0]);
    for (unsigned level = 1; level <= table->levels; level++) {
        unsigned last = (unsigned)((table->nodes[level - 1] - 1) % FANOUT);
        for (unsigned i = 0; i < FANOUT; i++)
            memcpy(members + i * length, table->zero[level - 1], length);
        digest_compute(table->algorithm, members, FANOUT * length, table->zero[level]);
        memcpy(members + last * length, table->zero_last[level - 1], length);
        digest_compute(table->algorithm, members, (last + 1) * length, table->zero_last[level]);
    }
}

struct digest_table *digest_table_new(enum digest_algorithm algorithm, uint64_t size)
{
    struct digest_table *table = g_new0(struct digest_table, 1);

    table->algorithm = algorithm;
    table->length = digest_length(algorithm);
    table->size = size;
    table->chunks = size / DIGEST_CHUNK_SIZE + (size % DIGEST_CHUNK_SIZE != 0);
    table->nodes[0] = table->chunks;
    while (table->nodes[table->levels] > 1) {
        uint64_t below = table->nodes[table->levels++];
        table->nodes[table->levels] = (below + FANOUT - 1) / FANOUT;
    }
    if (table->chunks)
        compute_zeros(table);
    return table;
}

/* A table of one chunk has no level above it, but still needs a leaf to keep the digest in. */
static unsigned leaf_height(const struct digest_table *table)
{
    return table->levels ? table->levels - 1 : 0;
}

void digest_table_free(struct digest_table *table)
{
    if (!table)
        return;
    node_free(table->root, leaf_height(table));
    g_free(table);
}

enum digest_algorithm digest_table_algorithm(const struct digest_table *table)
{
    return table->algorithm;
}

uint64_t digest_table_size(const struct digest_table *table)
{
    return table->size;
}

uint64_t digest_table_chunks(const struct digest_table *table)
{
    return table->chunks;
}

uint64_t digest_table_stored(const struct digest_table *table)
{
    return table->stored;
}

/* The digest of an all-zero node `index` of a level of the digest tree. */
static const uint8_t *zero_node(const struct digest_table *table, unsigned level, uint64_t index)
{
    return index == table->nodes[level] - 1 ? table->zero_last[level] : table->zero[level];
}

const uint8_t *digest_table_zero(const struct digest_table *table, uint64_t chunk)
{
    g_return_val_if_fail(chunk < table->chunks, table->zero[0]);
    return zero_node(table, 0, chunk);
}

/* The leaf that would hold `chunk`, or NULL. */
static struct node *find_leaf(const struct digest_table *table, uint64_t chunk)
{
    struct node *node = table->root;

    for (unsigned level = leaf_height(table); node && level > 0; level--) {
        unsigned i = node_index(chunk, level);
        node = node_has(node, i) ? *node_child(node, i) : NULL;
    }
    return node;
}

static struct node *make_leaf(struct digest_table *table, uint64_t chunk)
{
    struct node **at = &table->root;

    for (unsigned level = leaf_height(table);; level--) {
        if (!*at)
            *at = g_new0(struct node, 1);
        if (level == 0)
            return *at;
        unsigned i = node_index(chunk, level);
        if (!node_has(*at, i)) {
            struct node *child = NULL;
            memcpy(node_insert(*at, i, sizeof(child)), &child, sizeof(child));
        }
        at = node_child(*at, i);
    }
}

static void unset(struct digest_table *table, uint64_t chunk)
{
    struct node *leaf = find_leaf(table, chunk);
    unsigned i = node_index(chunk, 0);

    if (!leaf || !node_has(leaf, i))
        return;
    node_remove(leaf, i, table->length); /* an empty leaf stays: it may fill again, and is small */
    table->stored--;
}

void digest_table_set(struct digest_table *table, uint64_t chunk, const uint8_t *digest)
{
    g_return_if_fail(chunk < table->chunks);
    if (!memcmp(digest, zero_node(table, 0, chunk), table->length)) {
        unset(table, chunk);
        return;
    }
    struct node *leaf = make_leaf(table, chunk);
    unsigned i = node_index(chunk, 0);
    uint8_t *member;
    if (node_has(leaf, i)) {
        member = leaf->members + node_rank(leaf, i) * table->length;
    } else {
        member = node_insert(leaf, i, table->length);
        table->stored++;
    }
    memcpy(member, digest, table->length);
}

const uint8_t *digest_table_get(const struct digest_table *table, uint64_t chunk)
{
    const struct node *leaf = find_leaf(table, chunk);
    unsigned i = node_index(chunk, 0);

    if (!leaf || !node_has(leaf, i))
        return digest_table_zero(table, chunk);
    return leaf->members + node_rank(leaf, i) * table->length;
}

bool digest_table_is_zero(const struct digest_table *table, uint64_t chunk)
{
    const struct node *leaf = find_leaf(table, chunk);
    return !leaf || !node_has(leaf, node_index(chunk, 0));
}

void digest_table_truncate(struct digest_table *table, uint64_t chunk)
{
    while (digest_table_next(table, &chunk))
        unset(table, chunk++);
}

/* The first stored chunk >= *chunk beneath `node`, whose first chunk is `first`. */
static bool next_below(struct node *node, unsigned level, uint64_t first, uint64_t *chunk)
{
    unsigned i = *chunk > first ? (unsigned)((*chunk - first) >> (8 * level)) : 0;

    for (i = node_next(node, i); i < FANOUT; i = node_next(node, i + 1)) {
        uint64_t child = first + ((uint64_t)i << (8 * level));
        if (level == 0) {
            *chunk = child;
            return true;
        }
        if (next_below(*node_child(node, i), level - 1, child, chunk))
            return true;
    }
    return false;
}

bool digest_table_next(const struct digest_table *table, uint64_t *chunk)
{
    return table->root && *chunk < table->chunks && next_below(table->root, leaf_height(table), 0, chunk);
}

/* The digest of node `index` at level `height` + 1 of the digest tree, which is kept in `node`. */
static void node_digest(const struct digest_table *table, struct node *node, unsigned height, uint64_t index,
                        uint8_t *out)
{
    uint8_t members[FANOUT * DIGEST_MAX_LENGTH];
    uint64_t first = index * FANOUT;
    unsigned count = (unsigned)MIN(FANOUT, table->nodes[height] - first);

    for (unsigned i = 0; i < count; i++) {
        uint8_t *member = members + i * table->length;
        if (!node_has(node, i))
            memcpy(member, zero_node(table, height, first + i), table->length);
        else if (height == 0)
            memcpy(member, node->members + node_rank(node, i) * table->length, table->length);
        else
            node_digest(table, *node_child(node, i), height - 1, first + i, member);
    }
    digest_compute(table->algorithm, members, count * table->length, out);
}

void digest_table_root(const struct digest_table *table, uint8_t *out)
{
    uint8_t text[sizeof(root_prefix) + 16 + DIGEST_MAX_LENGTH];
    uint64_t size = GUINT64_TO_LE(table->size), chunk_size = GUINT64_TO_LE(DIGEST_CHUNK_SIZE);
    uint8_t *node = text + sizeof(root_prefix) + 16;

    memcpy(text, root_prefix, sizeof(root_prefix));
    memcpy(text + sizeof(root_prefix), &size, 8);
    memcpy(text + sizeof(root_prefix) + 8, &chunk_size, 8);
    if (table->chunks == 0) {
        digest_compute(table->algorithm, text, sizeof(root_prefix) + 16, out);
        return;
    }
    if (table->levels == 0)
        memcpy(node, digest_table_get(table, 0), table->length);
    else if (table->root)
        node_digest(table, table->root, table->levels - 1, 0, node);
    else
        memcpy(node, table->zero_last[table->levels], table->length);
    digest_compute(table->algorithm, text, sizeof(root_prefix) + 16 + table->length, out);
}

GBytes *digest_table_pack(const struct digest_table *table, uint64_t from, uint64_t to)
{
    GByteArray *records = g_byte_array_new();

    for (uint64_t chunk = from; digest_table_next(table, &chunk) && chunk < to; chunk++) {
        uint64_t number = GUINT64_TO_LE(chunk);
        g_byte_array_append(records, (const guint8 *)&number, sizeof(number));
        g_byte_array_append(records, digest_table_get(table, chunk), (guint)table->length);
    }
    return g_byte_array_free_to_bytes(records);
}

bool digest_table_unpack(struct digest_table *table, const void *data, size_t length, GError **error)
{
    size_t record = sizeof(uint64_t) + table->length;

    if (length % record) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED,
                    "%zu bytes of digest records are not a multiple of %zu", length, record);
        return false;
    }
    for (size_t done = 0; done < length; done += record) {
        const uint8_t *at = (const uint8_t *)data + done;
        uint64_t chunk;
        memcpy(&chunk, at, sizeof(chunk));
        chunk = GUINT64_FROM_LE(chunk);
        if (chunk >= table->chunks) {
            g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED,
                        "digest record for chunk %" G_GUINT64_FORMAT " of a disk of %" G_GUINT64_FORMAT
                        " chunks",
                        chunk, table->chunks);
            return false;
        }
        digest_table_set(table, chunk, at + sizeof(chunk));
    }
    return true;
}
