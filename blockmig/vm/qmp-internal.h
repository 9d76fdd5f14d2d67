/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What qmp.c and qmp-schema.c share. */
#ifndef BLOCKMIG_VM_QMP_INTERNAL_H
#define BLOCKMIG_VM_QMP_INTERNAL_H

#include "blockmig/vm/qmp.h"

#include <gio/gio.h>

struct queued {
    json_t *event;
    gsize size; /* bytes of its text */
};

struct qmp {
    GSocket *socket;
    struct qmp_stream *stream;
    GHashTable *replies; /* gint64 id -> json_t, NULL while it is waited for */
    GQueue events;       /* of struct queued, oldest first */
    gsize queued_bytes;  /* sum of their sizes */
    guint64 lost;
    gint64 next_id;
    json_t *greeting;
    json_t *schema;           /* what query-qmp-schema returned; NULL: not asked yet */
    GHashTable *schema_index; /* name -> json_t borrowed from it */
    GError *dead;             /* why this connection is over */
    pid_t peer;
};

#endif
