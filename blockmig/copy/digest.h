/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Proof of content: one digest per 1 MiB of guest-visible bytes, and one root over all.
 *
 * The same guest content has the same table in every format.  Only chunks that are not all zero
 * are stored, so the table grows with data, not with virtual size.
 *
 * The root: level 0 are the chunk digests; each node of level n+1 is the digest of up to 256
 * concatenated nodes of level n (the last may have fewer); the root is the digest of
 * "blockmig-digest-1\0", the size and the chunk size as little-endian u64, and the single node
 * that is left (nothing for an empty disk).  Nodes over nothing but zero chunks are precomputed.
 */
#ifndef BLOCKMIG_COPY_DIGEST_H
#define BLOCKMIG_COPY_DIGEST_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#define DIGEST_CHUNK_SIZE (UINT64_C(1) << 20)
#define DIGEST_MAX_LENGTH 32

enum digest_algorithm { DIGEST_XXH3_128, DIGEST_SHA256 };

const char *digest_algorithm_name(enum digest_algorithm algorithm); /* "xxh3-128", "sha256" */
/* Accepts "xxh3", "xxh3-128", "sha256"; a USAGE error otherwise. */
bool digest_algorithm_parse(const char *text, enum digest_algorithm *algorithm, GError **error);
size_t digest_length(enum digest_algorithm algorithm);
/* Thread-safe. `out` has digest_length() bytes; XXH3 in its canonical (big-endian) form. */
void digest_compute(enum digest_algorithm algorithm, const void *data, size_t length, uint8_t *out);
char *digest_to_hex(enum digest_algorithm algorithm, const uint8_t *digest);
bool digest_from_hex(enum digest_algorithm algorithm, const char *hex, uint8_t *digest);

struct digest_table;

struct digest_table *digest_table_new(enum digest_algorithm algorithm, uint64_t size);
void digest_table_free(struct digest_table *table);
enum digest_algorithm digest_table_algorithm(const struct digest_table *table);
uint64_t digest_table_size(const struct digest_table *table);   /* guest bytes */
uint64_t digest_table_chunks(const struct digest_table *table); /* number of chunks */
uint64_t digest_table_stored(const struct digest_table *table); /* chunks that are not zero */

/* The digest that chunk number `chunk` has when it is all zeros; the last one may be short. */
const uint8_t *digest_table_zero(const struct digest_table *table, uint64_t chunk);
void digest_table_set(struct digest_table *table, uint64_t chunk, const uint8_t *digest);
/* Never NULL: chunks that were not set are zero. */
const uint8_t *digest_table_get(const struct digest_table *table, uint64_t chunk);
bool digest_table_is_zero(const struct digest_table *table, uint64_t chunk);
/* Forgets everything from `chunk` on: a resumed copy computes it again. */
void digest_table_truncate(struct digest_table *table, uint64_t chunk);
/* The first stored chunk >= *chunk; false if there is none. */
bool digest_table_next(const struct digest_table *table, uint64_t *chunk);
void digest_table_root(const struct digest_table *table, uint8_t *out);

/* The stored chunks of [from, to) as (u64 little-endian chunk, digest) records; and back. */
GBytes *digest_table_pack(const struct digest_table *table, uint64_t from, uint64_t to);
bool digest_table_unpack(struct digest_table *table, const void *data, size_t length, GError **error);

typedef struct digest_table digest_table_t; /* for g_autoptr only */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(digest_table_t, digest_table_free)

#endif
