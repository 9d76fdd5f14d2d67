/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Cuts a byte stream from a QMP monitor or a guest agent into JSON messages.  The bytes are not trusted:
 * size, depth and number of values are checked while the text is scanned, before anything is parsed.
 */
#ifndef BLOCKMIG_VM_QMP_STREAM_H
#define BLOCKMIG_VM_QMP_STREAM_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

#define QMP_MESSAGE_MAX (64u << 20) /* bytes of text */
#define QMP_DEPTH_MAX   128u        /* brackets in brackets */
#define QMP_VALUES_MAX  (1u << 20)  /* a parsed value costs some 100 bytes, however short its text */

struct qmp_stream;

struct qmp_stream *qmp_stream_new(void);
void qmp_stream_free(struct qmp_stream *stream);

/* A lenient stream drops what it cannot read up to the next end of line: for a connection that was
 * inherited in the middle of a message.  Switched on at its first call; a new stream is strict. */
void qmp_stream_set_lenient(struct qmp_stream *stream, bool lenient);
/* Drops everything up to and with the next byte 0xff, which no JSON text contains. */
void qmp_stream_skip_to_delimiter(struct qmp_stream *stream);

void qmp_stream_feed(struct qmp_stream *stream, const void *bytes, gsize length);
/*
 * The next complete message, always an object, owned by the caller; *message is NULL if more bytes are
 * needed.  Feed at most some 64 KiB between two calls that did not say so, or the bound on memory is not
 * one.  An error (UNREACHABLE: this peer cannot be talked to) is final unless the stream is lenient.
 */
bool qmp_stream_next(struct qmp_stream *stream, json_t **message, GError **error);
/* Bytes of text that the last message had. */
gsize qmp_stream_message_size(const struct qmp_stream *stream);

typedef struct qmp_stream qmp_stream_t; /* for g_autoptr only */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(qmp_stream_t, qmp_stream_free)
G_DEFINE_AUTOPTR_CLEANUP_FUNC(json_t, json_decref)

#endif
