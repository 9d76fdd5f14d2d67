/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A stream of frames, fed in pieces whose size the first byte gives.  The last 16 bytes of a frame's header
 * are set to the right digest where the content is plain: no fuzzer guesses them.
 */
#include "blockmig/storage/frame.h"

#include "formats/bytes.h"
#include "formats/xxh3.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool see(void *opaque, const struct frame *frame, const uint8_t *content, GError **error)
{
    uint64_t *sum = opaque;

    g_assert_cmpuint(frame->length, >, 0);
    g_assert_cmpuint(frame->offset, <=, (uint64_t)INT64_MAX - frame->length);
    for (uint64_t i = 0; content && i < frame->length; i++)
        *sum += content[i];
    return true;
}

static void set_digests(uint8_t *stream, size_t size)
{
    for (size_t at = 0, payload; at + FRAME_HEADER <= size; at += FRAME_HEADER + payload) {
        payload = load_le32(stream + at + 24);
        if (payload > size - at - FRAME_HEADER)
            return;
        if (stream[at + 4] == FRAME_DATA && payload)
            xxh3_digest(stream + at + FRAME_HEADER, payload, stream + at + 32);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t step = size ? data[0] + 1 : 1, length = size ? size - 1 : 0;
    g_autofree uint8_t *stream = length ? g_memdup2(data + 1, length) : NULL;
    uint64_t sum = 0;
    g_autoptr(frame_parser_t) parser = frame_parser_new(see, &sum);

    set_digests(stream, length);
    for (size_t at = 0; at < length; at += step)
        if (!frame_parser_feed(parser, stream + at, MIN(step, length - at), NULL))
            break;
    frame_parser_end(parser, NULL);
    return 0;
}
