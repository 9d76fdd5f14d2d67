/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The failback window: what its files share.  The journal knows the job, its deadline and the facts that
 * cannot be seen any more (window_facts); where everything stands is seen from the machine and the
 * datastores.
 */
#ifndef BLOCKMIG_MIGRATE_WINDOW_H
#define BLOCKMIG_MIGRATE_WINDOW_H

#include "blockmig/migrate/live.h"

/* On which side the machine is, and whether that side is one image again. */
enum window_place { ON_TARGET, TARGET_SETTLED, RETURNED, SOURCE_SETTLED };

struct window_disk {
    unsigned kept;    /* layers of the source at the switch */
    bool by_exchange; /* the target's name leads to its overlay */
    GPtrArray *lower; /* of char *: what the source stands on */
    char *base;       /* the node of its layer 0 */
};

struct window_facts {
    GPtrArray *disks; /* of struct window_disk, by their index */
};

struct window_facts *window_facts_load(const struct live_job *job, GError **error);
void window_facts_free(struct window_facts *facts);

typedef struct window_facts window_facts_t; /* for g_autoptr only */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(window_facts_t, window_facts_free)

/* live-window.c: 0 is no deadline but a note of how things stood, for who has to go back at once. */
bool window_save(struct live_job *job, int64_t deadline, GError **error);
/* The target's layers take their names, if they have not got them; `overlay` is where layer 1 was made.
 * by_exchange becomes false where it is not possible. */
bool window_name_layers(struct live_job *job, struct live_disk *disk, const char *overlay, GError **error);

/* window-look.c: both sides of every disk, from the machine, or from the datastores if it is off. */
bool window_look(struct live_job *job, const struct window_facts *facts, enum window_place *place,
                 GError **error);
bool window_join(enum window_place one, enum window_place other, enum window_place *both, GError **error);
/* Removes what stands above the layers that a side had when the window was opened. */
void window_trim(struct live_job *job, struct live_disk *disk);
/* The highest n of NAME.blockmig-n; -1: none. */
int window_highest_file(const struct live_disk *disk);

/* window-adopt.c: nothing, unless the machine was started anew. */
bool window_adopt(struct live_job *job, GError **error);
/* Opens layers 0 to `count` - 1 of a side in the hypervisor. */
bool window_open_layers(struct live_job *job, const struct live_disk *disk, unsigned count, GError **error);

/* window-off.c */
bool window_look_offline(struct live_job *job, enum window_place *place, GError **error);

#endif
