/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* CRC-32C (Castagnoli, reflected), as VHDX uses it. */
#ifndef FORMATS_CRC32C_H
#define FORMATS_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* Continues the checksum `crc` of the bytes before; 0 begins. */
uint32_t crc32c(uint32_t crc, const void *bytes, size_t length);

#endif
