/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Any bytes from a monitor: cut into the same messages whether they come at once or one by one.  The first
 * byte of the input chooses strict or lenient reading.
 */
#include "blockmig/vm/qmp-stream.h"

#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Every message's text in one string, and "!" where the stream ended with an error. */
static char *cut(const uint8_t *data, size_t size, size_t step, bool lenient, bool delimited)
{
    g_autoptr(qmp_stream_t) stream = qmp_stream_new();
    GString *all = g_string_new(NULL);
    bool fine = true;

    qmp_stream_set_lenient(stream, lenient);
    if (delimited)
        qmp_stream_skip_to_delimiter(stream);
    for (size_t at = 0; at < size && fine; at += step) {
        json_t *message = NULL;

        qmp_stream_feed(stream, data + at, MIN(step, size - at));
        do {
            g_autoptr(GError) error = NULL;

            g_clear_pointer(&message, json_decref);
            fine = qmp_stream_next(stream, &message, &error);
            g_assert_true(fine == !error);
            g_assert_true(fine || !lenient);
            if (message) {
                g_autofree char *text = json_dumps(message, JSON_COMPACT);

                g_assert_true(json_is_object(message));
                g_assert_cmpuint(qmp_stream_message_size(stream), <=, size);
                g_string_append(all, text ? text : "?");
            }
        } while (message);
    }
    if (!fine)
        g_string_append_c(all, '!');
    return g_string_free(all, FALSE);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    bool lenient = size > 0 && (data[0] & 1), delimited = size > 0 && (data[0] & 2);
    g_autofree char *at_once = NULL;
    g_autofree char *bytewise = NULL;

    if (size == 0)
        return 0;
    at_once = cut(data + 1, size - 1, size, lenient, delimited);
    bytewise = cut(data + 1, size - 1, 1, lenient, delimited);
    g_assert_cmpstr(at_once, ==, bytewise);
    return 0;
}
