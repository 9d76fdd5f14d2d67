/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/copy/hash.h"

#include "formats/bytes.h"

#include <config.h>

static size_t chunk_bytes(const struct load *load, size_t at)
{
    return MIN(DIGEST_CHUNK_SIZE, load->length - at);
}

static bool hash_run(struct ring_op *op, GError **error)
{
    struct hash *hash = (struct hash *)op;

    for (size_t i = 0, at = 0; at < hash->load->length; i++, at += DIGEST_CHUNK_SIZE) {
        const uint8_t *data = hash->load->buffer + at;
        size_t length = chunk_bytes(hash->load, at);
        hash->zero[i] = is_zero(data, length);
        if (hash->table && !hash->zero[i])
            digest_compute(digest_table_algorithm(hash->table), data, length, hash->digest[i]);
    }
    return true;
}

static void hash_done(struct ring_op *op)
{
    struct hash *hash = (struct hash *)op;
    hash->ready(hash);
}

/* XXH3 is faster than handing the work to a thread; SHA-256 is ten times slower than the disk. */
void hash_start(struct hash *hash, const struct load *load, const struct digest_table *table,
                void (*ready)(struct hash *hash))
{
    hash->load = load;
    hash->table = table;
    hash->ready = ready;
    hash->op = (struct ring_op){.kind = RING_CALL, .call = hash_run, .done = hash_done};
    if (table && digest_table_algorithm(table) == DIGEST_SHA256) {
        copier_submit(load->reader->copier, &hash->op);
        return;
    }
    hash_run(&hash->op, NULL);
    ready(hash);
}

void hash_store(const struct hash *hash, struct digest_table *table)
{
    uint64_t chunk = hash->load->offset / DIGEST_CHUNK_SIZE;

    for (size_t i = 0, at = 0; at < hash->load->length; i++, at += DIGEST_CHUNK_SIZE)
        digest_table_set(table, chunk + i,
                         hash->zero[i] ? digest_table_zero(table, chunk + i) : hash->digest[i]);
}
