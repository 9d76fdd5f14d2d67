/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* How often each client may ask.  Any thread may call. */
#ifndef BLOCKMIG_REMOTE_RATE_H
#define BLOCKMIG_REMOTE_RATE_H

#include <glib.h>
#include <stdbool.h>

struct rates;

struct rates *rates_new(void);
void rates_free(struct rates *rates); /* NULL is allowed */
/* May this client ask now?  `per_second` requests, and after a second of silence as many at once; so who is
 * refused may ask again a second later. */
bool rates_allow(struct rates *rates, const char *peer, unsigned per_second);

#endif
