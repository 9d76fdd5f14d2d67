/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Numbers as they lie in images, at any alignment, in either byte order; and zeros. */
#ifndef FORMATS_BYTES_H
#define FORMATS_BYTES_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BYTES_ACCESS(order, ORDER, bits)                                                                     \
    static inline uint##bits##_t load_##order##bits(const void *bytes)                                       \
    {                                                                                                        \
        uint##bits##_t value;                                                                                \
                                                                                                             \
        __builtin_memcpy(&value, bytes, sizeof value);                                                       \
        return GUINT##bits##_FROM_##ORDER(value);                                                            \
    }                                                                                                        \
    static inline void store_##order##bits(void *bytes, uint##bits##_t value)                                \
    {                                                                                                        \
        value = GUINT##bits##_TO_##ORDER(value);                                                             \
        __builtin_memcpy(bytes, &value, sizeof value);                                                       \
    }

BYTES_ACCESS(be, BE, 16)
BYTES_ACCESS(be, BE, 32)
BYTES_ACCESS(be, BE, 64)
BYTES_ACCESS(le, LE, 16)
BYTES_ACCESS(le, LE, 32)
BYTES_ACCESS(le, LE, 64)

#undef BYTES_ACCESS

static inline bool is_zero(const uint8_t *data, size_t length)
{
    static const uint8_t zeros[16];
    size_t head = MIN(length, sizeof(zeros));

    /* Equal to itself shifted by 16, and the first 16 are zero: so all are. */
    return !__builtin_memcmp(data, zeros, head) && !__builtin_memcmp(data, data + head, length - head);
}

static inline uint64_t divide_up(uint64_t value, uint64_t unit)
{
    return value / unit + (value % unit != 0);
}

/* The caller has made sure that the result fits. */
static inline uint64_t round_up(uint64_t value, uint64_t unit)
{
    return divide_up(value, unit) * unit;
}

#endif
