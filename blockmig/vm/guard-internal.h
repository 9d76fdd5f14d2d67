/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the two processes agree on.  They talk over a SOCK_SEQPACKET pair, one JSON object per packet; what
 * was sent before the sender died is still received.
 *
 *     {"do": "arm", "limit": MS, "devices": [{"qdev": Q, "from": NODE, "to": NODE}, ...]}     answered
 *     {"do": "freezing"}                                                                      answered
 *     {"do": "merged"} {"do": "disarm"} {"do": "thawed"} {"do": "goodbye"}
 *
 * An answer, and the first word of a guard that is ready, is {} or {"error": TEXT}.
 */
#ifndef BLOCKMIG_VM_GUARD_INTERNAL_H
#define BLOCKMIG_VM_GUARD_INTERNAL_H

#include "blockmig/vm/guard.h"
#include "blockmig/vm/spawn.h"

#define GUARD_ARGUMENT    "--pause-guard" /* then the machine's name and the log */
#define GUARD_CHANNEL     SPAWN_FIRST     /* descriptors of the guard */
#define GUARD_MONITOR     (SPAWN_FIRST + 1)
#define GUARD_PACKET_MAX  65536u
#define GUARD_DEVICES_MAX 256u
#define GUARD_LIFE_MAX    60u /* seconds; after its owner's end it is gone by then, whatever hangs */

#endif
