/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The stream between blockmig and an agent. */
#include "blockmig/storage/frame.h"

#include "formats/bytes.h"
#include "formats/error.h"

#include <string.h>

struct seen {
    GArray *frames; /* of struct frame */
    GByteArray *content;
    const char *refusal; /* what the receiver says to the first frame; NULL: it takes it */
};

static bool see(void *opaque, const struct frame *frame, const uint8_t *content, GError **error)
{
    struct seen *seen = opaque;

    if (seen->refusal)
        return blockmig_fail(error, BLOCKMIG_ERROR_NOSPACE, "%s", seen->refusal);
    g_array_append_val(seen->frames, *frame);
    g_assert_cmpuint((uintptr_t)content % 4096, ==, 0);
    if (content)
        g_byte_array_append(seen->content, content, (guint)frame->length);
    return true;
}

static struct seen seen_new(void)
{
    return (struct seen){g_array_new(false, false, sizeof(struct frame)), g_byte_array_new(), NULL};
}

static void seen_clear(struct seen *seen)
{
    g_array_unref(seen->frames);
    g_byte_array_unref(seen->content);
}

/* Feeds in pieces of `step` bytes. */
static bool parse(const GByteArray *stream, size_t step, struct seen *seen, GError **error)
{
    g_autoptr(frame_parser_t) parser = frame_parser_new(see, seen);

    for (size_t at = 0; at < stream->len; at += step)
        if (!frame_parser_feed(parser, stream->data + at, MIN(step, stream->len - at), error))
            return false;
    return frame_parser_end(parser, error);
}

static void fill(uint8_t *data, size_t length, unsigned step)
{
    for (size_t i = 0; i < length; i++)
        data[i] = (uint8_t)(i * step >> 3);
}

static void test_round_trip(void)
{
    g_autoptr(GByteArray) stream = g_byte_array_new();
    uint8_t data[70000], noise[5000];

    fill(data, sizeof(data), 3);
    for (size_t i = 0; i < sizeof(noise); i++)
        noise[i] = (uint8_t)g_random_int();
    frame_put_data(stream, 512, data, sizeof(data), 0);
    frame_put_zero(stream, 1 << 20, UINT64_C(1) << 33);
    frame_put_data(stream, 99, data, sizeof(data), 1);
    frame_put_data(stream, 7, noise, sizeof(noise), 1);
    for (size_t step = 1; step < 200000; step = step * 7 + 1) {
        struct seen seen = seen_new();
        const struct frame *frames;

        g_assert_true(parse(stream, step, &seen, NULL));
        g_assert_cmpuint(seen.frames->len, ==, 4);
        frames = (const struct frame *)seen.frames->data;
        g_assert_cmpint(frames[0].kind, ==, FRAME_DATA);
        g_assert_cmpuint(frames[0].offset, ==, 512);
        g_assert_cmpint(frames[1].kind, ==, FRAME_ZERO);
        g_assert_cmpuint(frames[1].length, ==, UINT64_C(1) << 33);
        g_assert_cmpint(frames[2].kind, ==, FRAME_ZSTD);
        g_assert_cmpint(frames[3].kind, ==, FRAME_DATA); /* noise does not get smaller */
        g_assert_cmpuint(seen.content->len, ==, 2 * sizeof(data) + sizeof(noise));
        g_assert_cmpmem(seen.content->data, sizeof(data), data, sizeof(data));
        g_assert_cmpmem(seen.content->data + sizeof(data), sizeof(data), data, sizeof(data));
        seen_clear(&seen);
    }
}

static void test_same(void)
{
    g_autoptr(GByteArray) stream = g_byte_array_new();
    uint8_t data[4096], seed[FRAME_SEED], sha256[FRAME_SHA256];

    fill(data, sizeof(data), 5);
    fill(seed, sizeof(seed), 90);
    frame_sha256(data, sizeof(data), sha256);
    frame_put_same(stream, 4096, data, sizeof(data), seed, UINT64_C(1) << 40);
    frame_put_data(stream, 0, data, sizeof(data), 0);
    for (size_t step = 1; step < 9000; step = step * 7 + 1) {
        struct seen seen = seen_new();
        const struct frame *frames;

        g_assert_true(parse(stream, step, &seen, NULL));
        g_assert_cmpuint(seen.frames->len, ==, 2);
        frames = (const struct frame *)seen.frames->data;
        g_assert_cmpint(frames[0].kind, ==, FRAME_SAME);
        g_assert_cmpuint(frames[0].offset, ==, 4096);
        g_assert_cmpuint(frames[0].length, ==, sizeof(data));
        g_assert_cmpmem(frames[0].seed, FRAME_SEED, seed, FRAME_SEED);
        g_assert_cmpuint(frames[0].seed_offset, ==, UINT64_C(1) << 40);
        g_assert_cmpmem(frames[0].sha256, FRAME_SHA256, sha256, FRAME_SHA256);
        g_assert_cmpuint(seen.content->len, ==, sizeof(data));
        seen_clear(&seen);
    }
}

static void refused(const GByteArray *stream, int code)
{
    struct seen seen = seen_new();
    g_autoptr(GError) error = NULL;

    g_assert_false(parse(stream, 1000, &seen, &error));
    g_assert_error(error, BLOCKMIG_ERROR, code);
    g_assert_cmpuint(seen.frames->len, ==, 0);
    seen_clear(&seen);
}

static void test_changed(void)
{
    g_autoptr(GByteArray) plain = g_byte_array_new(), packed = g_byte_array_new();
    uint8_t data[20000];

    fill(data, sizeof(data), 1);
    frame_put_data(plain, 0, data, sizeof(data), 0);
    frame_put_data(packed, 0, data, sizeof(data), 3);
    plain->data[FRAME_HEADER + 12345] ^= 1;
    refused(plain, BLOCKMIG_ERROR_DIFFERENT);
    packed->data[33] ^= 1;
    refused(packed, BLOCKMIG_ERROR_DIFFERENT);
    packed->data[33] ^= 1;
    packed->data[packed->len - 1] ^= 0xff;
    packed->data[packed->len - 2] ^= 0xff;
    refused(packed, BLOCKMIG_ERROR_REFUSED);
}

/* What must not be believed. */
static void test_hostile(void)
{
    static const struct {
        unsigned at, width;
        uint64_t value;
    } rows[] = {
        {0, 1, 'X'},         {4, 1, FRAME_SAME},  {4, 1, 4},
        {5, 1, 1},           {28, 1, 1},          {8, 8, UINT64_MAX},
        {8, 8, INT64_MAX},   {16, 8, 0},          {16, 8, FRAME_CONTENT + 1},
        {16, 8, UINT64_MAX}, {24, 4, UINT32_MAX}, {24, 4, 0},
        {4, 1, FRAME_ZERO},  {4, 1, FRAME_ZSTD},
    };
    uint8_t data[4096];

    fill(data, sizeof(data), 5);
    for (unsigned i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autoptr(GByteArray) stream = g_byte_array_new();
        uint8_t value[8];

        frame_put_data(stream, 0, data, sizeof(data), 0);
        store_le64(value, rows[i].value);
        memcpy(stream->data + rows[i].at, value, rows[i].width);
        refused(stream, BLOCKMIG_ERROR_REFUSED);
    }
}

static void test_ends_early(void)
{
    g_autoptr(GByteArray) stream = g_byte_array_new();
    uint8_t data[4096];

    fill(data, sizeof(data), 5);
    frame_put_data(stream, 0, data, sizeof(data), 0);
    for (unsigned cut = 1; cut < stream->len; cut += 97) {
        g_autoptr(GByteArray) part = g_byte_array_new();

        g_byte_array_append(part, stream->data, stream->len - cut);
        refused(part, BLOCKMIG_ERROR_REFUSED);
    }
}

static void test_receiver_says_no(void)
{
    g_autoptr(GByteArray) stream = g_byte_array_new();
    struct seen seen = seen_new();
    g_autoptr(frame_parser_t) parser = frame_parser_new(see, &seen);
    g_autoptr(GError) error = NULL;

    seen.refusal = "full";
    frame_put_zero(stream, 0, 1);
    g_assert_false(frame_parser_feed(parser, stream->data, stream->len, &error));
    g_assert_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_NOSPACE);
    g_assert_false(frame_parser_feed(parser, stream->data, stream->len, NULL));
    g_assert_false(frame_parser_end(parser, NULL));
    seen_clear(&seen);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/frame/round-trip", test_round_trip);
    g_test_add_func("/frame/same", test_same);
    g_test_add_func("/frame/changed", test_changed);
    g_test_add_func("/frame/hostile", test_hostile);
    g_test_add_func("/frame/ends-early", test_ends_early);
    g_test_add_func("/frame/receiver-says-no", test_receiver_says_no);
    return g_test_run();
}
