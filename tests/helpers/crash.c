/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/helpers/crash.h"

#include "blockmig/storage/memory.h"
#include "tests/helpers/image-writer.h"
#include "tests/unit/harness.h"

#include <string.h>

void crash_mark_free(struct crash_mark *mark)
{
    g_free(mark->model);
    g_free(mark->touched);
    g_free(mark);
}

struct crash_mark *crash_mark_new(struct storage *storage, const uint8_t *model, uint64_t size)
{
    struct crash_mark *mark = g_new0(struct crash_mark, 1);

    mark->flush = storage_memory_flush_count(storage);
    mark->model = g_memdup2(model, size);
    mark->touched = g_malloc0(size);
    return mark;
}

static bool keep_some(void *opaque, unsigned i)
{
    return g_rand_int_range(opaque, 0, 3) > 0;
}

static struct image *open_cut(const struct crash_case *crash, struct storage *storage, bool writable)
{
    g_autoptr(GError) error = NULL;
    struct image *image = image_open(storage, crash->format, writable, &error);

    g_assert_no_error(error);
    return image;
}

#define PIECE      4096 /* bytes */
#define USUAL_CUTS 16

static void check_content(const uint8_t *content, const struct crash_mark *mark, uint64_t size)
{
    for (uint64_t at = 0; at < size; at += PIECE) {
        uint64_t end = MIN(at + PIECE, size);

        if (memcmp(content + at, mark->model + at, end - at) == 0)
            continue;
        for (uint64_t i = at; i < end; i++) {
            if (content[i] != mark->model[i] && !mark->touched[i])
                g_error("flushed content was lost at %" G_GUINT64_FORMAT, i);
        }
    }
}

/* The content that a crash left must be sound, and hold everything that was flushed and not touched since. */
static void check_cut(const struct crash_case *crash, GByteArray *cut, const struct crash_mark *mark,
                      bool exact, bool ask)
{
    struct storage *storage = storage_memory_new("cut", cut->data, cut->len, 0);
    g_autoptr(image_t) image = open_cut(crash, storage, false);
    g_autofree uint8_t *content = g_malloc(image->size);
    g_autoptr(GError) error = NULL;
    struct image_check result;

    image_check(image, false, &result, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(result.corruptions, ==, 0);
    if (exact)
        g_assert_cmpuint(result.leaks, ==, 0);
    writer_read(image, crash->backing, content, image->size, 0, &error);
    g_assert_no_error(error);
    check_content(content, mark, image->size);
    if (ask) {
        int status = crash->judge(cut->data, cut->len);

        g_assert_true(status == 0 || (status == 3 && !exact));
    }
}

/* A crashed target is opened again, repaired and used. */
static void check_reuse(const struct crash_case *crash, GByteArray *cut)
{
    struct storage *storage = storage_memory_new("cut", cut->data, cut->len, 0);
    g_autoptr(image_t) image = open_cut(crash, storage, true);
    g_autofree uint8_t *data = g_malloc(image->size);
    g_autoptr(GError) error = NULL;
    struct image_check result;

    image_check(image, true, &result, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(result.leaks, ==, result.repaired);
    image_check(image, true, &result, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(result.leaks + result.corruptions, ==, 0);
    memset(data, 0x5a, image->size);
    g_assert_true(writer_write(image, crash->backing, data, image->size, 0, &error));
    g_assert_true(image_flush(image, &error));
    image_check(image, false, &result, &error);
    g_assert_cmpuint(result.leaks + result.corruptions, ==, 0);
}

/* Of the flushes from *first to `last`: sets *first to the first of the sample, and returns how far they are
 * apart. */
static unsigned sample_flushes(unsigned *first, unsigned last, GRand *random)
{
    unsigned all = last - *first + 1, most = harness_sample(USUAL_CUTS, all), step = (all + most - 1) / most;

    *first += (unsigned)g_rand_int_range(random, 0, (int)step);
    return step;
}

void crash_everywhere(const struct crash_case *crash, struct storage *storage, GPtrArray *marks,
                      GRand *random)
{
    unsigned flushes = storage_memory_flush_count(storage);
    const struct crash_mark *mark = marks->pdata[0];
    unsigned flush = mark->flush, step = sample_flushes(&flush, flushes, random);
    guint current = 0;

    for (; flush <= flushes; flush += step) {
        while (current + 1 < marks->len && ((struct crash_mark *)marks->pdata[current + 1])->flush <= flush)
            current++;
        mark = marks->pdata[current];
        for (int round = 0; round < 5; round++) {
            size_t torn = g_rand_boolean(random) ? 512 * g_rand_int_range(random, 1, 8) : 0;
            g_autoptr(GByteArray) cut =
                storage_memory_cut(storage, flush, round ? keep_some : NULL, random, round ? torn : 0);

            check_cut(crash, cut, mark, round == 0 && mark->flush == flush, crash->judge && round < 2);
            if (round == 1)
                check_reuse(crash, cut);
        }
    }
}

void crash_random(const struct crash_case *crash, struct storage *storage, unsigned steps)
{
    g_autoptr(GRand) random = harness_rand();
    g_autoptr(GPtrArray) marks = g_ptr_array_new_with_free_func((GDestroyNotify)crash_mark_free);
    g_autoptr(image_t) image = open_cut(crash, storage, true);
    g_autofree uint8_t *model = g_malloc0(image->size);
    g_autoptr(GError) error = NULL;
    uint64_t offset, length;

    g_assert_true(writer_read(image, crash->backing, model, image->size, 0, &error));
    g_ptr_array_add(marks, crash_mark_new(storage, model, image->size));
    for (unsigned i = 0; i < steps; i++) {
        struct crash_mark *mark = marks->pdata[marks->len - 1];

        writer_step(image, crash->backing, random, model, &offset, &length, &error);
        g_assert_no_error(error);
        memset(mark->touched + offset, 1, length);
        if (i % 9 == 8) {
            image_flush(image, &error);
            g_assert_no_error(error);
            g_ptr_array_add(marks, crash_mark_new(storage, model, image->size));
        }
    }
    crash_everywhere(crash, storage, marks, random);
}

/* ---- merges ------------------------------------------------------------------------------------- */

static struct image *open_copy(const struct format *format, const void *bytes, uint64_t length, bool writable)
{
    const struct crash_case crash = {.format = format};

    return open_cut(&crash, storage_memory_new("copy", bytes, length, 0), writable);
}

static struct image *open_again(struct image *image, bool writable)
{
    return open_copy(image->format, storage_memory_data(image->storage), image->storage->size, writable);
}

/* `cut`, whose storage is cut behind every flush from number `first` on, and `other` stay parent and child.
 */
static void check_links(struct image *cut, unsigned first, struct image *other, bool cut_is_child,
                        GRand *random)
{
    for (unsigned flush = first; flush <= storage_memory_flush_count(cut->storage); flush++) {
        for (unsigned round = 0; round < harness_sample(5, 5); round++) {
            size_t torn = round ? 512 * g_rand_int_range(random, 0, 8) : 0;
            g_autoptr(GByteArray) left =
                storage_memory_cut(cut->storage, flush, round ? keep_some : NULL, random, torn);
            g_autoptr(image_t) image = open_copy(cut->format, left->data, left->len, false);
            g_autoptr(GError) error = NULL;

            assert_ok(image_check_parent(cut_is_child ? image : other, cut_is_child ? other : image, &error));
        }
    }
}

/* As much of a merge as changes identities; what follows needs other tests. */
static void merge_once(struct image *parent, struct image *child, GRand *random)
{
    unsigned child_first = storage_memory_flush_count(child->storage);
    unsigned parent_first = storage_memory_flush_count(parent->storage);
    g_autoptr(image_t) before = open_again(parent, false), told = NULL;
    g_autoptr(GError) error = NULL;

    assert_ok(image_begin_merge(parent, child, &error));
    check_links(child, child_first, before, true, random);
    told = open_again(child, false);
    assert_ok(writer_write(parent, NULL, "x", 1, 0, &error));
    assert_ok(image_flush(parent, &error));
    check_links(parent, parent_first, told, false, random);
}

void crash_merge(const struct format *format, struct storage *parent, struct storage *child,
                 struct storage *sibling)
{
    const struct crash_case crash = {.format = format};
    g_autoptr(image_t) other = open_cut(&crash, sibling, false);
    g_autoptr(GRand) random = harness_rand();
    g_autoptr(GError) error = NULL;
    struct image *below = open_cut(&crash, parent, true), *above = open_cut(&crash, child, false);

    assert_ok(image_check_parent(other, below, &error));
    for (int i = 0; i < 3; i++) {
        struct image *old_below = below, *old_above = above;

        merge_once(below, above, random);
        below = open_again(below, true);
        above = open_again(above, false);
        image_close(old_below);
        image_close(old_above);
        assert_ok(image_check_parent(above, below, &error));
        g_assert_false(image_check_parent(other, below, &error));
        g_assert_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED);
        g_clear_error(&error);
    }
    image_close(below);
    image_close(above);
}
