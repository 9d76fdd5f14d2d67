/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One migration that is led from here (lead.h).  It has a directory, named by the id that its client made up:
 *
 *   lock     held by who leads it, while it lives
 *   leader   the process that waits for its end
 *   log      its messages
 *   report   the object that it prints at its end
 *   status   its exit status, once it has ended
 *
 * These functions belong to a process that was made for one request.
 */
#ifndef BLOCKMIG_REMOTE_LED_H
#define BLOCKMIG_REMOTE_LED_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

/* blockmig, the directory of all of them, and the socket of libvirt. */
void led_set_up(const char *program, const char *directory, const char *libvirt);
/* Acts of lead_ask(). */
json_t *led_begin(const json_t *arguments, GError **error);
json_t *led_look(const json_t *arguments, GError **error);
json_t *led_stop(const json_t *arguments, GError **error);
/* What led_begin() has made is led, until its end. */
void led_stay(void);

bool led_has_program(GError **error);
/* Nothing that could be taken for an option, or is no text.  USAGE. */
const char *led_get_text(const json_t *arguments, const char *key, GError **error);

#endif
