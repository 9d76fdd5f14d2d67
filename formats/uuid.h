/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Identities of 16 bytes, compared as bytes. */
#ifndef FORMATS_UUID_H
#define FORMATS_UUID_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#define UUID_LENGTH 16u

/* A new one, of version 4. */
void uuid_random(uint8_t *uuid);
/* In the order of the bytes: "00112233-4455-6677-8899-aabbccddeeff". The caller's. */
char *uuid_text(const uint8_t *uuid);
bool uuid_is_zero(const uint8_t *uuid);

#endif
