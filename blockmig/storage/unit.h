/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Units: what disks of machines stand on that are no files, and that several hosts may reach: block devices,
 * and what iSCSI and NBD URIs name.  Each host describes what it finds under a name; unit_difference() says
 * whether that is one and the same.
 */
#ifndef BLOCKMIG_STORAGE_UNIT_H
#define BLOCKMIG_STORAGE_UNIT_H

#include "formats/storage.h"

#include <jansson.h>

#define UNIT_SAMPLES 64u   /* blocks all over the unit */
#define UNIT_SAMPLE  4096u /* bytes of each */

struct unit {
    char *identity; /* no other unit has it on any host, as far as names can tell */
    bool local;     /* its server has an address of this host, which others may have, too */
    uint64_t size;
    uint8_t samples[UNIT_SAMPLES * STORAGE_DIGEST]; /* digests of what the medium held */
    char *unreserved; /* why there are no persistent reservations that this host can see and change; NULL:
                         there are */
    bool reserved;
    uint64_t holder; /* key; 0: nobody in particular */
    uint64_t key;    /* of the host that describes it */
};

/* Looks at what `name` is here, a path or a URI: REFUSED for what is neither a block device nor a URI of a
 * server that others could ask, UNREACHABLE, and what reading it may give.  The caller's. */
struct unit *unit_look(const char *name, GError **error);
void unit_free(struct unit *unit); /* NULL is allowed */

/* How they are certainly not known to be the same, the caller's; NULL: they are, if what does not change in
 * there is the same, too: unit_samples_differ(). */
char *unit_difference(const struct unit *here, const struct unit *there);
/* A machine may write meanwhile.  So what one host found before and after the other one looked, and is equal,
 * has to be what that one found.  *still: how many such blocks there were. */
bool unit_samples_differ(const struct unit *before, const struct unit *there, const struct unit *after,
                         unsigned *still);

/* What becomes of this host's key, reservation_host_key(), with the unit: UNIT_REGISTER beside whoever holds
 * it, UNIT_TAKE from `from` (0: nobody), UNIT_GIVE_UP whatever there is of it.  *aborted: see
 * reservation_take(). */
enum unit_act { UNIT_LOOK, UNIT_REGISTER, UNIT_TAKE, UNIT_GIVE_UP };
bool unit_reserve(const char *name, enum unit_act act, uint64_t from, bool *aborted, GError **error);
extern const char *const unit_acts[]; /* their words; NULL-terminated */

/* As agents tell it.  FAILED: something is missing. */
json_t *unit_to_json(const struct unit *unit);
struct unit *unit_from_json(const json_t *object, GError **error);

typedef struct unit unit_t; /* for g_autoptr only */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(unit_t, unit_free)

#endif
