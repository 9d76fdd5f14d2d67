/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * SCSI-3 persistent reservations (SPC-4, 5.13): who may write to a unit that several hosts see.
 *
 * A host registers a key; the one that reserves the unit as "write exclusive, registrants only" shuts out the
 * writes of all that have no key there.  Preempting takes the key of another away, and with it its writes,
 * whatever that host believes: this is how a host that may still run is fenced.
 */
#ifndef BLOCKMIG_STORAGE_RESERVATION_H
#define BLOCKMIG_STORAGE_RESERVATION_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#define RESERVATION_WRITE_EXCLUSIVE_REGISTRANTS 5 /* the type that is taken here */

struct reservation_registrant {
    uint64_t key;
    bool holder;
    uint8_t type;    /* of a holder */
    uint16_t port;   /* relative target port; 0: all or not known */
    char *initiator; /* "iqn...,i,0x..." or another transport's name in hex; NULL: not known */
};

/* Who may do what. */
struct reservation_state {
    uint32_t generation;    /* counts changes */
    GPtrArray *registrants; /* of struct reservation_registrant * */
    bool reserved;
    uint64_t key; /* of the holder; 0 where all registrants hold it */
    uint8_t type;
};

struct reservation;

/* The unit that an iSCSI URI or the path of a block device names.  The caller's. */
struct reservation *reservation_open(const char *name, GError **error);
void reservation_close(struct reservation *reservation); /* NULL is allowed */

/* The key of this host: the same every time, unlike that of any other host.  Never 0. */
uint64_t reservation_host_key(void);

/* The caller's.  REFUSED where it cannot be found out: devices that are no SCSI disks. */
struct reservation_state *reservation_read(struct reservation *reservation, GError **error);
void reservation_state_free(struct reservation_state *state); /* NULL is allowed */
/* "write exclusive, registrants only" */
const char *reservation_type_name(uint8_t type);
/* 0 where all registrants hold it. */
uint64_t reservation_holder_key(const struct reservation_state *state);
/* The registrant that holds the reservation; NULL: none, or the unit does not tell. */
const struct reservation_registrant *reservation_holder(const struct reservation_state *state);

/* Registers `key` and reserves the unit.  REFUSED if another key holds it, unless `preempt` is not 0: the key
 * that is taken from whoever has it, with their commands aborted; *aborted false: the unit cannot do that,
 * and what was on its way may still have been done. */
bool reservation_take(struct reservation *reservation, uint64_t key, uint64_t preempt, bool *aborted,
                      GError **error);
/* Gives the reservation up, if `key` holds it, and all registrations of `key`.  REFUSED if there are none. */
bool reservation_release(struct reservation *reservation, uint64_t key, GError **error);

/* `key` holds the unit afterwards, and `from` (0: nobody) has no registration any more, nor what it had on
 * its way
 * (*aborted as above).  Done twice it is done once, and nothing of `key` is ever aborted.  REFUSED if a third
 * one holds it. */
bool reservation_hand_over(struct reservation *reservation, uint64_t key, uint64_t from, bool *aborted,
                           GError **error);
/* `key` may write beside the holder, and does not hold it. */
bool reservation_register(struct reservation *reservation, uint64_t key, GError **error);
bool reservation_is_registered(const struct reservation_state *state, uint64_t key);

/* ---- for those that talk SCSI themselves ---- */

/* READ FULL STATUS and READ RESERVATION; what does not fit the received length is an error. */
bool reservation_parse_full(const uint8_t *data, size_t length, struct reservation_state *state,
                            GError **error);
bool reservation_parse_keys(const uint8_t *data, size_t length, struct reservation_state *state,
                            GError **error);
bool reservation_parse_holder(const uint8_t *data, size_t length, struct reservation_state *state,
                              GError **error);
struct reservation_state *reservation_state_new(void);

enum reservation_in { RESERVATION_READ_KEYS, RESERVATION_READ_RESERVATION, RESERVATION_READ_FULL = 3 };
enum reservation_out {
    RESERVATION_REGISTER,
    RESERVATION_RESERVE,
    RESERVATION_RELEASE,
    RESERVATION_PREEMPT = 4,
    RESERVATION_PREEMPT_ABORT,
    RESERVATION_REGISTER_IGNORE,
};
#define RESERVATION_LIST_BYTES 24
/* The parameter list of PERSISTENT RESERVE OUT. */
void reservation_list(uint8_t *list, uint64_t key, uint64_t service_key);

typedef struct reservation reservation_t; /* for g_autoptr only */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(reservation_t, reservation_close)
typedef struct reservation_state reservation_state_t;
G_DEFINE_AUTOPTR_CLEANUP_FUNC(reservation_state_t, reservation_state_free)

#endif
