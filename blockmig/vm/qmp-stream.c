/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A scanner that knows only strings and brackets finds where a message ends (a monitor in pretty mode
 * spreads one over many lines), and counts; jansson then parses text that is known to be bounded.
 * Every byte is scanned once, however small the pieces in which it arrives.
 */
#include "blockmig/vm/qmp-stream.h"

#include "formats/error.h"

#include <string.h>

#define DELIMITER 0xff

struct qmp_stream {
    GByteArray *bytes;
    guint start;   /* of the message in `bytes` */
    guint scanned; /* up to here */
    guint size;    /* of the last message that was handed out */
    unsigned depth, values;
    bool in_string, escaped;
    bool lenient;
    bool skip_line, skip_delimiter; /* dropping input up to that byte */
};

struct qmp_stream *qmp_stream_new(void)
{
    struct qmp_stream *stream = g_new0(struct qmp_stream, 1);

    stream->bytes = g_byte_array_new();
    return stream;
}

void qmp_stream_free(struct qmp_stream *stream)
{
    if (!stream)
        return;
    g_byte_array_unref(stream->bytes);
    g_free(stream);
}

void qmp_stream_set_lenient(struct qmp_stream *stream, bool lenient)
{
    stream->lenient = lenient;
}

void qmp_stream_feed(struct qmp_stream *stream, const void *bytes, gsize length)
{
    g_byte_array_append(stream->bytes, bytes, length);
}

/* The next message begins after `used` bytes. */
static void begin_message(struct qmp_stream *stream, guint used)
{
    stream->start = stream->scanned = used;
    stream->depth = stream->values = 0;
    stream->in_string = stream->escaped = false;
}

void qmp_stream_skip_to_delimiter(struct qmp_stream *stream)
{
    begin_message(stream, stream->start);
    stream->skip_delimiter = true;
}

/* One byte outside of strings.  *end is set if it closes the message. */
static bool scan_structure(struct qmp_stream *stream, guint8 byte, bool *end, GError **error)
{
    switch (byte) {
    case '"':
        stream->in_string = true;
        break;
    case '{':
    case '[':
        if (++stream->depth > QMP_DEPTH_MAX)
            return blockmig_fail(error, BLOCKMIG_ERROR_UNREACHABLE,
                                 "a message is nested deeper than %u levels", QMP_DEPTH_MAX);
        stream->values++;
        break;
    case '}':
    case ']':
        *end = --stream->depth == 0;
        break;
    case ',':
    case ':':
        stream->values++;
        break;
    default:
        break;
    }
    if (stream->values > QMP_VALUES_MAX)
        return blockmig_fail(error, BLOCKMIG_ERROR_UNREACHABLE, "a message has more than %u values",
                             QMP_VALUES_MAX);
    return true;
}

static void scan_string(struct qmp_stream *stream, guint8 byte)
{
    if (stream->escaped)
        stream->escaped = false;
    else if (byte == '\\')
        stream->escaped = true;
    else if (byte == '"')
        stream->in_string = false;
}

/* Between messages.  Only white space may stand there. */
static bool scan_between(struct qmp_stream *stream, guint8 byte, GError **error)
{
    if (byte == ' ' || byte == '\t' || byte == '\r' || byte == '\n' || byte == DELIMITER) {
        stream->start = stream->scanned;
        return true;
    }
    if (byte != '{')
        return blockmig_fail(error, BLOCKMIG_ERROR_UNREACHABLE, "byte 0x%02x where a message must begin",
                             byte);
    stream->start = stream->scanned - 1;
    stream->depth = stream->values = 1;
    return true;
}

/* True at the end of a message, and when the input is used up (then *end is false). */
static bool scan(struct qmp_stream *stream, bool *end, GError **error)
{
    *end = false;
    while (stream->scanned < stream->bytes->len && !*end) {
        guint8 byte = stream->bytes->data[stream->scanned++];
        bool fine = true;

        if (stream->skip_delimiter || stream->skip_line) {
            guint8 until = stream->skip_delimiter ? DELIMITER : '\n';

            stream->start = stream->scanned;
            if (byte == until)
                stream->skip_delimiter = stream->skip_line = false;
        } else if (stream->depth == 0) {
            fine = scan_between(stream, byte, error);
        } else if (stream->in_string) {
            scan_string(stream, byte);
        } else {
            fine = scan_structure(stream, byte, end, error);
        }
        if (fine && stream->scanned - stream->start > QMP_MESSAGE_MAX)
            fine = blockmig_fail(error, BLOCKMIG_ERROR_UNREACHABLE, "a message is longer than %u bytes",
                                 QMP_MESSAGE_MAX);
        if (!fine)
            return false;
    }
    return true;
}

/* Forgets what was handed out or dropped. */
static void compact(struct qmp_stream *stream)
{
    if (stream->start == 0)
        return;
    g_byte_array_remove_range(stream->bytes, 0, stream->start);
    stream->scanned -= stream->start;
    stream->start = 0;
}

static json_t *parse(struct qmp_stream *stream, GError **error)
{
    const char *text = (const char *)stream->bytes->data + stream->start;
    json_error_t fault;
    json_t *message = json_loadb(text, stream->scanned - stream->start, JSON_REJECT_DUPLICATES, &fault);

    if (!message)
        blockmig_fail(error, BLOCKMIG_ERROR_UNREACHABLE, "a message is not JSON: %s at byte %d", fault.text,
                      fault.position);
    return message;
}

/* Strict or lenient: false ends the stream, true goes on after this line. */
static bool give_up_line(struct qmp_stream *stream, GError *fault, GError **error)
{
    if (!stream->lenient) {
        g_propagate_error(error, fault);
        return false;
    }
    g_error_free(fault);
    /* The byte at fault may itself be the end of the line. */
    stream->skip_line = stream->bytes->data[stream->scanned - 1] != '\n';
    begin_message(stream, stream->scanned);
    return true;
}

bool qmp_stream_next(struct qmp_stream *stream, json_t **message, GError **error)
{
    *message = NULL;
    for (;;) {
        GError *fault = NULL;
        bool end;

        if (scan(stream, &end, &fault) && !end)
            break;
        if (!fault)
            *message = parse(stream, &fault);
        if (!fault) {
            stream->size = stream->scanned - stream->start;
            begin_message(stream, stream->scanned);
            return true;
        }
        if (!give_up_line(stream, fault, error))
            return false;
    }
    compact(stream);
    return true;
}

gsize qmp_stream_message_size(const struct qmp_stream *stream)
{
    return stream->size;
}
