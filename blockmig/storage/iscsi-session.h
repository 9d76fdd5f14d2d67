/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A session with an iSCSI target, for one unit of it: many commands on their way, done by one thread.
 *
 * What passes by itself is not the caller's business: busy targets are asked again, and after a lost
 * connection a new session takes the place of the old one and gets what was not answered.  What was answered
 * may still be lost with the target's cache, if the target was switched off meanwhile:
 * iscsi_session_lost_writes().
 */
#ifndef BLOCKMIG_STORAGE_ISCSI_SESSION_H
#define BLOCKMIG_STORAGE_ISCSI_SESSION_H

#include "blockmig/storage/iscsi-address.h"
#include "blockmig/storage/scsi.h"

/* For a session whose name at the target is always the same on this host, and which only one process has at a
 * time; others wait for it.  Data goes through the other kind, of which there are many. */
#define ISCSI_FIXED 1

enum iscsi_direction { ISCSI_NO_DATA, ISCSI_IN, ISCSI_OUT };

/* What it does to the medium, when it succeeds. */
enum iscsi_effect { ISCSI_NO_EFFECT, ISCSI_CHANGES, ISCSI_FLUSHES };

/* The caller's; untouched by it until done(). */
struct iscsi_command {
    uint8_t cdb[SCSI_CDB_BYTES];
    enum iscsi_direction direction;
    void *buffer;
    size_t length;
    enum iscsi_effect effect;
    bool whole; /* IN: fewer bytes than `length` are an error, and they go to `buffer` without a copy */
    /* In the session's thread.  `error`: the session is gone; the callee's.  Otherwise `answer` and
     * `received` say what came of it. */
    void (*done)(struct iscsi_command *command, GError *error);
    void *opaque;

    struct scsi_answer answer;
    size_t received; /* IN, not `whole` */

    /* The session's. */
    struct iscsi_session *session;
    struct scsi_task *task;
    int64_t due, since;
    unsigned delay, attentions, losses;
    uint64_t mark;
};

struct iscsi_session;

/* UNREACHABLE if there is nobody within the time of `address`, REFUSED if the target does not want us.  Takes
 * `address`, also on failure. */
struct iscsi_session *iscsi_session_open(struct iscsi_address *address, unsigned flags, GError **error);
/* Nothing may be on its way. */
void iscsi_session_close(struct iscsi_session *session);

/* From any thread. */
void iscsi_session_submit(struct iscsi_session *session, struct iscsi_command *command);
/* Submits and waits; not from a done().  false: the session is gone.  The answer may still be bad. */
bool iscsi_session_run(struct iscsi_session *session, struct iscsi_command *command, GError **error);
/* The same, and a bad answer is an error: `what` was tried. */
bool iscsi_session_must(struct iscsi_session *session, struct iscsi_command *command, const char *what,
                        GError **error);

/* Was the unit switched off or reset while it had answered changes that were not flushed?  For good. */
bool iscsi_session_lost_writes(const struct iscsi_session *session);
/* The last that the unit told by itself; NULL: nothing that matters. */
const char *iscsi_session_news(const struct iscsi_session *session);
const struct iscsi_address *iscsi_session_address(const struct iscsi_session *session);

#endif
