/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/storage/reservation-internal.h"
#include "formats/bytes.h"
#include "formats/error.h"
#include "formats/storage.h"

#include <string.h>

#define MAX_INITIATOR 256

/* ---- answers ------------------------------------------------------------------------------------- */

static void registrant_free(gpointer data)
{
    struct reservation_registrant *registrant = data;

    g_free(registrant->initiator);
    g_free(registrant);
}

struct reservation_state *reservation_state_new(void)
{
    struct reservation_state *state = g_new0(struct reservation_state, 1);

    state->registrants = g_ptr_array_new_with_free_func(registrant_free);
    return state;
}

void reservation_state_free(struct reservation_state *state)
{
    if (!state)
        return;
    g_ptr_array_unref(state->registrants);
    g_free(state);
}

/* The list behind the header of all three answers. A list that did not fit would name some and hide others.
 */
static bool parse_header(const uint8_t *data, size_t length, struct reservation_state *state, size_t *list,
                         GError **error)
{
    if (length < 8 || load_be32(data + 4) > length - 8)
        return blockmig_fail(error, BLOCKMIG_ERROR_FAILED,
                             "the answer about reservations is longer than what was received (%zu bytes)",
                             length);
    state->generation = load_be32(data);
    *list = load_be32(data + 4);
    return true;
}

bool reservation_parse_keys(const uint8_t *data, size_t length, struct reservation_state *state,
                            GError **error)
{
    size_t list;

    if (!parse_header(data, length, state, &list, error))
        return false;
    for (size_t at = 0; at + 8 <= list; at += 8) {
        struct reservation_registrant *registrant = g_new0(struct reservation_registrant, 1);

        registrant->key = load_be64(data + 8 + at);
        g_ptr_array_add(state->registrants, registrant);
    }
    return true;
}

bool reservation_parse_holder(const uint8_t *data, size_t length, struct reservation_state *state,
                              GError **error)
{
    size_t list;

    if (!parse_header(data, length, state, &list, error))
        return false;
    state->reserved = list >= 16;
    if (state->reserved) {
        state->key = load_be64(data + 8);
        state->type = data[21] & 0x0f;
    }
    return true;
}

static char *name_initiator(const uint8_t *id, size_t length)
{
    GString *name;
    size_t size;

    if (length < 4)
        return NULL;
    if ((id[0] & 0x0f) == 5) { /* iSCSI: a text that ends with a zero byte */
        size = MIN((size_t)load_be16(id + 2), length - 4);
        name = g_string_new(NULL);
        for (size_t i = 0; i < MIN(size, MAX_INITIATOR) && id[4 + i]; i++)
            g_string_append_c(name, g_ascii_isgraph(id[4 + i]) ? id[4 + i] : '?');
        return g_string_free(name, FALSE);
    }
    name = g_string_new(NULL);
    g_string_append_printf(name, "protocol-%u:", id[0] & 0x0fu);
    for (size_t i = 0; i < MIN(length, 24); i++)
        g_string_append_printf(name, "%02x", id[i]);
    return g_string_free(name, FALSE);
}

bool reservation_parse_full(const uint8_t *data, size_t length, struct reservation_state *state,
                            GError **error)
{
    size_t list, at = 8;

    if (!parse_header(data, length, state, &list, error))
        return false;
    while (at + 24 <= 8 + list) {
        const uint8_t *entry = data + at;
        size_t id = load_be32(entry + 20);
        struct reservation_registrant *registrant;

        if (id > 8 + list - at - 24)
            return blockmig_fail(error, BLOCKMIG_ERROR_FAILED,
                                 "the name of an initiator reaches beyond the answer about reservations");
        registrant = g_new0(struct reservation_registrant, 1);
        registrant->key = load_be64(entry);
        registrant->holder = entry[12] & 0x01;
        registrant->type = entry[13] & 0x0f;
        registrant->port = entry[12] & 0x02 ? 0 : load_be16(entry + 18);
        registrant->initiator = name_initiator(entry + 24, id);
        g_ptr_array_add(state->registrants, registrant);
        at += 24 + id;
    }
    return true;
}

void reservation_list(uint8_t *list, uint64_t key, uint64_t service_key)
{
    memset(list, 0, RESERVATION_LIST_BYTES);
    store_be64(list, key);
    store_be64(list + 8, service_key);
}

const char *reservation_type_name(uint8_t type)
{
    switch (type) {
    case 1:
        return "write exclusive";
    case 3:
        return "exclusive access";
    case 5:
        return "write exclusive, registrants only";
    case 6:
        return "exclusive access, registrants only";
    case 7:
        return "write exclusive, all registrants";
    case 8:
        return "exclusive access, all registrants";
    default:
        return "unknown type";
    }
}

const struct reservation_registrant *reservation_holder(const struct reservation_state *state)
{
    for (guint i = 0; i < state->registrants->len; i++) {
        const struct reservation_registrant *registrant = g_ptr_array_index(state->registrants, i);

        if (registrant->holder)
            return registrant;
    }
    return NULL;
}

uint64_t reservation_holder_key(const struct reservation_state *state)
{
    const struct reservation_registrant *holder = reservation_holder(state);

    return holder ? holder->key : state->key;
}

static char *describe_holder(const struct reservation_state *state)
{
    const struct reservation_registrant *holder = reservation_holder(state);

    return g_strdup_printf("reserved by %s (key 0x%016" G_GINT64_MODIFIER "x, %s)",
                           holder && holder->initiator ? holder->initiator : "another host",
                           reservation_holder_key(state),
                           reservation_type_name(holder ? holder->type : state->type));
}

char *reservation_name_holder(enum reservation_in action, const uint8_t *data, size_t length)
{
    g_autoptr(reservation_state_t) state = reservation_state_new();
    bool ok = action == RESERVATION_READ_FULL ? reservation_parse_full(data, length, state, NULL)
                                              : reservation_parse_holder(data, length, state, NULL);

    return ok && (state->reserved || reservation_holder(state)) ? describe_holder(state) : NULL;
}

/* ---- reading ------------------------------------------------------------------------------------- */

static bool ask(struct reservation *reservation, enum reservation_in action, struct reservation_state *state,
                bool (*parse)(const uint8_t *, size_t, struct reservation_state *, GError **), bool *known,
                GError **error)
{
    g_autofree uint8_t *data = g_malloc0(RESERVATION_ROOM);
    size_t length = 0;

    return reservation->ops->in(reservation, action, data, &length, known, error) &&
           (!*known || parse(data, length, state, error));
}

/* The names come with READ FULL STATUS, which not every unit has; then there are only the keys. */
static bool read_state(struct reservation *reservation, struct reservation_state *state, bool *known,
                       GError **error)
{
    if (!ask(reservation, RESERVATION_READ_RESERVATION, state, reservation_parse_holder, known, error))
        return false;
    if (!*known)
        return true;
    if (!ask(reservation, RESERVATION_READ_FULL, state, reservation_parse_full, known, error))
        return false;
    return *known || ask(reservation, RESERVATION_READ_KEYS, state, reservation_parse_keys, known, error);
}

struct reservation_state *reservation_read(struct reservation *reservation, GError **error)
{
    g_autoptr(reservation_state_t) state = reservation_state_new();
    bool known;

    if (!read_state(reservation, state, &known, error))
        return NULL;
    if (!known) {
        blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "the unit has no persistent reservations");
        return NULL;
    }
    return g_steal_pointer(&state);
}

uint64_t reservation_host_key(void)
{
    return iscsi_host_number("reservation");
}

bool reservation_is_registered(const struct reservation_state *state, uint64_t key)
{
    for (guint i = 0; i < state->registrants->len; i++)
        if (((const struct reservation_registrant *)g_ptr_array_index(state->registrants, i))->key == key)
            return true;
    return false;
}

/* ---- changing ------------------------------------------------------------------------------------ */

/* Anything but DONE is an error. */
static bool change(struct reservation *reservation, enum reservation_out action, uint64_t key,
                   uint64_t service_key, const char *what, GError **error)
{
    g_autoptr(reservation_state_t) state = NULL;
    g_autofree char *holder = NULL;
    enum reservation_outcome outcome = RESERVATION_DONE;

    if (!reservation->ops->out(reservation, action, key, service_key, &outcome, error)) {
        g_prefix_error(error, "%s: ", what);
        return false;
    }
    if (outcome == RESERVATION_DONE)
        return true;
    if (outcome == RESERVATION_UNKNOWN)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s: the unit cannot do that", what);
    state = reservation_read(reservation, NULL);
    if (state && state->reserved)
        holder = describe_holder(state);
    return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s: reservation conflict%s%s", what,
                         holder ? ": " : "", holder ? holder : "");
}

/* Whether it worked is seen elsewhere, or does not matter any more. */
static void try_change(struct reservation *reservation, enum reservation_out action, uint64_t key,
                       uint64_t service_key)
{
    enum reservation_outcome outcome;

    reservation->ops->out(reservation, action, key, service_key, &outcome, NULL);
}

static bool preempt_key(struct reservation *reservation, uint64_t key, uint64_t preempt, bool *aborted,
                        GError **error)
{
    enum reservation_outcome outcome = RESERVATION_DONE;

    if (!reservation->ops->out(reservation, RESERVATION_PREEMPT_ABORT, key, preempt, &outcome, error))
        return false;
    *aborted = outcome == RESERVATION_DONE;
    return *aborted || change(reservation, RESERVATION_PREEMPT, key, preempt, "preempting", error);
}

/* This session has registered `key`.  Preempting a key that does not hold the reservation only removes it, so
 * then that is still to be had; unless a third one holds it. */
static bool reserve(struct reservation *reservation, const struct reservation_state *before, uint64_t key,
                    uint64_t preempt, bool *aborted, GError **error)
{
    if (preempt && !preempt_key(reservation, key, preempt, aborted, error))
        return false;
    if (preempt && before->reserved)
        return true;
    return change(reservation, RESERVATION_RESERVE, key, 0, "reserving", error);
}

bool reservation_take(struct reservation *reservation, uint64_t key, uint64_t preempt, bool *aborted,
                      GError **error)
{
    g_autoptr(reservation_state_t) before = reservation_read(reservation, error);

    *aborted = true;
    if (!before)
        return false;
    if (preempt && !reservation_is_registered(before, preempt))
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                             "nobody has registered the key 0x%016" G_GINT64_MODIFIER "x", preempt);
    /* Held by an earlier session of ours, which a target may take for somebody else. */
    if (!preempt && before->reserved && reservation_holder_key(before) == key)
        preempt = key;
    if (!change(reservation, RESERVATION_REGISTER_IGNORE, 0, key, "registering", error))
        return false;
    if (reserve(reservation, before, key, preempt, aborted, error))
        return true;
    if (!reservation_is_registered(before, key))
        try_change(reservation, RESERVATION_REGISTER, key, 0);
    return false;
}

/* What was asked for is believed when the unit says so. */
static bool check_holder(struct reservation *reservation, uint64_t key, uint64_t from, GError **error)
{
    g_autoptr(reservation_state_t) state = reservation_read(reservation, error);

    if (!state)
        return false;
    return (state->reserved && reservation_holder_key(state) == key &&
            reservation_is_registered(state, key) && !reservation_is_registered(state, from)) ||
           blockmig_fail(error, BLOCKMIG_ERROR_FAILED,
                         "the unit was taken, but does not say that the key 0x%016" G_GINT64_MODIFIER
                         "x alone has it",
                         key);
}

bool reservation_hand_over(struct reservation *reservation, uint64_t key, uint64_t from, bool *aborted,
                           GError **error)
{
    g_autoptr(reservation_state_t) state = reservation_read(reservation, error);
    uint64_t holder = state && state->reserved ? reservation_holder_key(state) : 0;
    bool fenced = state && !reservation_is_registered(state, from);

    *aborted = true;
    if (!state)
        return false;
    if (state->reserved && holder != key && (from == 0 || holder != from)) {
        g_autofree char *text = describe_holder(state);

        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "%s", text);
    }
    if (state->reserved && holder == key && fenced && reservation_is_registered(state, key))
        return true;
    return reservation_take(reservation, key, fenced ? 0 : from, aborted, error) &&
           check_holder(reservation, key, from, error);
}

bool reservation_register(struct reservation *reservation, uint64_t key, GError **error)
{
    return change(reservation, RESERVATION_REGISTER_IGNORE, 0, key, "registering", error);
}

/* Sessions that were killed have left their registrations behind, and an earlier one may hold the
 * reservation: preempting our own key removes those and makes this session the holder.  A device has none
 * such, and preempting would abort what a machine has on its way on other paths of it. */
bool reservation_release(struct reservation *reservation, uint64_t key, GError **error)
{
    g_autoptr(reservation_state_t) state = reservation_read(reservation, error);
    bool aborted;

    if (!state)
        return false;
    if (!reservation_is_registered(state, key))
        return blockmig_fail(
            error, BLOCKMIG_ERROR_REFUSED,
            "the key 0x%016" G_GINT64_MODIFIER "x is not registered: there is nothing to release", key);
    if (!change(reservation, RESERVATION_REGISTER_IGNORE, 0, key, "registering", error) ||
        (reservation->session && !preempt_key(reservation, key, key, &aborted, error)) ||
        !change(reservation, RESERVATION_RELEASE, key, 0, "releasing", error))
        return false;
    return change(reservation, RESERVATION_REGISTER, key, 0, "giving the registration up", error);
}

/* Types 1 and 3 are for the holder's session alone, the others for whoever is registered. */
static bool shuts_out(const struct reservation_state *state, bool registered)
{
    return state->reserved && (!registered || state->type == 1 || state->type == 3);
}

bool reservation_join(struct reservation *reservation, uint64_t *key, GError **error)
{
    g_autoptr(reservation_state_t) state = reservation_state_new();
    uint64_t ours = reservation_host_key();
    bool known, registered;

    *key = 0;
    if (!read_state(reservation, state, &known, error))
        return false;
    registered = known && reservation_is_registered(state, ours);
    if (known && shuts_out(state, registered)) {
        g_autofree char *holder = describe_holder(state);

        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "cannot be written to: %s", holder);
    }
    if (!registered)
        return true;
    *key = ours;
    return change(reservation, RESERVATION_REGISTER_IGNORE, 0, ours, "registering", error);
}

void reservation_leave(struct reservation *reservation, uint64_t key)
{
    try_change(reservation, RESERVATION_REGISTER, key, 0);
}

/* ---- over iSCSI ---------------------------------------------------------------------------------- */

static bool session_in(struct reservation *reservation, enum reservation_in action, uint8_t *data,
                       size_t *length, bool *known, GError **error)
{
    struct iscsi_command command = {.direction = ISCSI_IN, .buffer = data, .length = RESERVATION_ROOM};

    cdb_reserve_in(command.cdb, (uint8_t)action, RESERVATION_ROOM);
    if (!iscsi_session_run(reservation->session, &command, error))
        return false;
    *known = !scsi_is_unsupported(&command.answer);
    *length = command.received;
    return command.answer.status == 0 || !*known ||
           scsi_set_error(error, &command.answer, "asking for reservations");
}

static bool session_out(struct reservation *reservation, enum reservation_out action, uint64_t key,
                        uint64_t service_key, enum reservation_outcome *outcome, GError **error)
{
    uint8_t list[RESERVATION_LIST_BYTES];
    struct iscsi_command command = {.direction = ISCSI_OUT, .buffer = list, .length = sizeof(list)};

    reservation_list(list, key, service_key);
    cdb_reserve_out(command.cdb, (uint8_t)action, RESERVATION_WRITE_EXCLUSIVE_REGISTRANTS, sizeof(list));
    if (!iscsi_session_run(reservation->session, &command, error))
        return false;
    *outcome = RESERVATION_DONE;
    if (scsi_judge(&command.answer) == SCSI_CONFLICT)
        *outcome = RESERVATION_CONFLICT;
    else if (scsi_is_unsupported(&command.answer))
        *outcome = RESERVATION_UNKNOWN;
    return command.answer.status == 0 || *outcome != RESERVATION_DONE ||
           scsi_set_error(error, &command.answer, "PERSISTENT RESERVE OUT");
}

static void session_leave(struct reservation *reservation)
{
    g_free(reservation);
}

static void session_close(struct reservation *reservation)
{
    iscsi_session_close(reservation->session);
    g_free(reservation);
}

static const struct reservation_ops borrowed_ops = {session_in, session_out, session_leave};
static const struct reservation_ops session_ops = {session_in, session_out, session_close};

static struct reservation *of_session(struct iscsi_session *session, const struct reservation_ops *ops)
{
    struct reservation *reservation = g_new0(struct reservation, 1);

    reservation->ops = ops;
    reservation->session = session;
    return reservation;
}

struct reservation *reservation_of_session(struct iscsi_session *session)
{
    return of_session(session, &borrowed_ops);
}

struct reservation *reservation_open(const char *name, GError **error)
{
    struct iscsi_address *address;
    struct iscsi_session *session = NULL;

    if (!storage_name_is_uri(name))
        return reservation_of_device(name, error);
    address = iscsi_address_parse(name, error);
    if (address)
        session = iscsi_session_open(address, ISCSI_FIXED, error);
    return session ? of_session(session, &session_ops) : NULL;
}

void reservation_close(struct reservation *reservation)
{
    if (reservation)
        reservation->ops->close(reservation);
}
