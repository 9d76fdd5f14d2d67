/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* blockmig reservation: who may write to a unit that several hosts see. */
#include "blockmig/storage/reservation.h"
#include "blockmig/storage/uri.h"
#include "formats/error.h"
#include "tools/command.h"
#include "tools/output.h"

#include <errno.h>
#include <string.h>

static char *key_text(uint64_t key)
{
    return g_strdup_printf("0x%016" G_GINT64_MODIFIER "x", key);
}

static bool parse_key(const char *option, const char *text, uint64_t *key, GError **error)
{
    bool hex = g_str_has_prefix(text, "0x") || g_str_has_prefix(text, "0X");
    guint64 value;

    if (!g_ascii_string_to_unsigned(hex ? text + 2 : text, hex ? 16 : 10, 1, G_MAXUINT64, &value, NULL))
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE,
                             "reservation: --%s: \"%s\" is not a number of 64 bits, other than 0", option,
                             text);
    *key = value;
    return true;
}

/* ---- showing ------------------------------------------------------------------------------------- */

static json_t *key_to_json(uint64_t key)
{
    g_autofree char *text = key_text(key);

    return json_string(text);
}

static json_t *registrant_to_json(const struct reservation_registrant *registrant)
{
    return json_pack("{s:o, s:o, s:b, s:o}", "key", key_to_json(registrant->key), "initiator",
                     output_json_string(registrant->initiator), "holder", registrant->holder, "port",
                     registrant->port ? json_integer(registrant->port) : json_null());
}

static void print_json(const char *action, const char *unit, const struct reservation_state *state,
                       uint64_t key)
{
    json_t *registrants = json_array();

    for (guint i = 0; i < state->registrants->len; i++)
        json_array_append_new(registrants, registrant_to_json(g_ptr_array_index(state->registrants, i)));
    output_json(json_pack("{s:i, s:s, s:s, s:s, s:o, s:I, s:b, s:o, s:o, s:o, s:o}", "schema", 1, "command",
                          "reservation", "result", "done", "action", action, "unit", output_json_string(unit),
                          "generation", (json_int_t)state->generation, "reserved", state->reserved, "holder",
                          state->reserved ? key_to_json(reservation_holder_key(state)) : json_null(), "type",
                          state->reserved ? json_string(reservation_type_name(state->type)) : json_null(),
                          "key", key_to_json(key), "registrants", registrants),
                NULL);
}

static void print_registrant(const struct reservation_registrant *registrant, uint64_t ours, bool first)
{
    g_autofree char *key = key_text(registrant->key);

    output_pair(first ? "registered" : "", "%s %s%s%s", key,
                registrant->initiator ? registrant->initiator : "(initiator not told)",
                registrant->holder ? ", holds the reservation" : "",
                registrant->key == ours ? ", our key" : "");
}

static void print_state(const char *unit, const struct reservation_state *state, uint64_t ours)
{
    const struct reservation_registrant *holder = reservation_holder(state);
    g_autofree char *key = key_text(reservation_holder_key(state));

    output_pair("unit", "%s", unit);
    if (!state->reserved)
        output_pair("reservation", "none: whoever reaches the unit may write to it");
    else
        output_pair("reservation", "%s, by %s with key %s", reservation_type_name(state->type),
                    holder && holder->initiator ? holder->initiator : "an initiator that is not told", key);
    for (guint i = 0; i < state->registrants->len; i++)
        print_registrant(g_ptr_array_index(state->registrants, i), ours, i == 0);
    if (state->registrants->len == 0)
        output_pair("registered", "nobody");
}

static bool print_result(const struct options *options, const char *unit, struct reservation *reservation,
                         uint64_t key, GError **error)
{
    g_autoptr(reservation_state_t) state = reservation_read(reservation, error);

    if (!state)
        return false;
    if (options->json)
        print_json(options->arguments->pdata[0], unit, state, key);
    else if (!options->quiet)
        print_state(unit, state, key);
    return true;
}

/* ---- doing --------------------------------------------------------------------------------------- */

/* --force: from whoever holds it. */
static bool holder_to_preempt(struct reservation *reservation, uint64_t key, uint64_t *preempt,
                              GError **error)
{
    g_autoptr(reservation_state_t) state = reservation_read(reservation, error);

    if (!state)
        return false;
    if (state->reserved && reservation_holder_key(state) != key)
        *preempt = reservation_holder_key(state);
    return true;
}

static bool take(const struct options *options, struct reservation *reservation, uint64_t key, GError **error)
{
    uint64_t preempt = 0;
    bool aborted;

    if (options->preempt && !parse_key("preempt", options->preempt, &preempt, error))
        return false;
    if (options->force && preempt == 0 && !holder_to_preempt(reservation, key, &preempt, error))
        return false;
    if (!reservation_take(reservation, key, preempt, &aborted, error))
        return false;
    if (preempt && !aborted)
        output_message(
            "the unit cannot abort commands (PREEMPT AND ABORT): what the other host had on its way "
            "may still have been written");
    return true;
}

static bool act(const struct options *options, struct reservation *reservation, uint64_t key, GError **error)
{
    const char *action = options->arguments->pdata[0];

    if (strcmp(action, "take") == 0)
        return take(options, reservation, key, error);
    return strcmp(action, "show") == 0 || reservation_release(reservation, key, error);
}

static bool check_options(const struct options *options, uint64_t *key, GError **error)
{
    const char *action = options->arguments->pdata[0];

    if (strcmp(action, "show") != 0 && strcmp(action, "take") != 0 && strcmp(action, "release") != 0)
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE,
                             "reservation: \"%s\" is not one of show, take, release", action);
    if ((options->force || options->preempt) && strcmp(action, "take") != 0)
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE,
                             "reservation: --force and --preempt belong to \"take\"");
    *key = reservation_host_key();
    return !options->key || parse_key("key", options->key, key, error);
}

int cmd_reservation(const struct options *options, GError **error)
{
    uint64_t key;

    if (!command_arguments(options, 2, 2, error) || !check_options(options, &key, error))
        return 0;
    const char *name = options->arguments->pdata[1];
    g_autofree char *shown = storage_shown_name(name);
    g_autoptr(reservation_t) reservation = reservation_open(name, error);
    if (!reservation || !act(options, reservation, key, error) ||
        !print_result(options, shown, reservation, key, error))
        g_prefix_error(error, "%s: ", shown);
    return 0;
}
