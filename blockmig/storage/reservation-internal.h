/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* How reservations reach a unit, and what the iSCSI storage needs of them. */
#ifndef BLOCKMIG_STORAGE_RESERVATION_INTERNAL_H
#define BLOCKMIG_STORAGE_RESERVATION_INTERNAL_H

#include "blockmig/storage/iscsi-session.h"
#include "blockmig/storage/reservation.h"

#include <stddef.h>

#define RESERVATION_ROOM 8192 /* bytes of an answer: some 80 registrants with their names */

/* What a unit answers to a change, where that is no error of the way there. */
enum reservation_outcome {
    RESERVATION_DONE,
    RESERVATION_CONFLICT, /* refused because of who we are */
    RESERVATION_UNKNOWN,  /* it does not know this action */
};

struct reservation_ops {
    /* PERSISTENT RESERVE IN; `*known` false, without an error: the unit does not know this action. */
    bool (*in)(struct reservation *reservation, enum reservation_in action, uint8_t *data, size_t *length,
               bool *known, GError **error);
    /* PERSISTENT RESERVE OUT. */
    bool (*out)(struct reservation *reservation, enum reservation_out action, uint64_t key,
                uint64_t service_key, enum reservation_outcome *outcome, GError **error);
    void (*close)(struct reservation *reservation);
};

struct reservation {
    const struct reservation_ops *ops;
    struct iscsi_session *session;
    int fd;
};

/* Borrows the session. */
struct reservation *reservation_of_session(struct iscsi_session *session);
struct reservation *reservation_of_device(const char *path, GError **error);

/* Registers this host's key for the session if the host has it there; *key 0: it has not.  REFUSED if
 * somebody else has reserved the unit against us. */
bool reservation_join(struct reservation *reservation, uint64_t *key, GError **error);
void reservation_leave(struct reservation *reservation, uint64_t key);
/* "reserved by iqn... (key 0x1, write exclusive)" from the answer to `action`, or NULL; the caller's.
 */
char *reservation_name_holder(enum reservation_in action, const uint8_t *data, size_t length);

#endif
