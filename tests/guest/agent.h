/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The test guest's agent: what QEMU's own one says on its virtio port, as far as freezing goes.  Frozen means
 * that all is written and flushed and nothing is written any more, until it is thawed.
 */
#ifndef GUEST_AGENT_H
#define GUEST_AGENT_H

#include <stdbool.h>

struct agent_hooks {
    void (*freeze)(void);
    void (*thaw)(void);
    unsigned disks;    /* that is the number of file systems in its answers */
    unsigned delay_ms; /* between freezing and the answer */
    bool refuses;
};

/* In a thread of its own, if the machine has the port. */
void agent_serve(const struct agent_hooks *hooks);

#endif
