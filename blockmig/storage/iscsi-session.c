/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libiscsi's context belongs to one thread, except while it is being opened and closed.
 *
 * Its own way to reconnect is not used: it repeats for ever, swallows the unit attention that says whether
 * the unit was switched off meanwhile, and gives the new session another name, so that the target may still
 * be doing commands of the old one while it gets them again.  Ours has the old name (initiator, ISID): then a
 * target ends the old session, with all its commands, before the new one begins (RFC 7143, 6.3.5).
 */
#include "blockmig/storage/iscsi-session.h"

#include "formats/error.h"

#include <errno.h>
#include <iscsi/iscsi.h>
#include <iscsi/scsi-lowlevel.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define DEPTH           64 /* commands on their way */
#define COMMAND_TIMEOUT 60 /* seconds without an answer: the connection counts as lost */
#define LOGIN_TIMEOUT   10
#define FIRST_DELAY     (G_USEC_PER_SEC / 100)
#define LONGEST_DELAY   G_USEC_PER_SEC
#define MAX_ATTENTIONS  8 /* a unit may have several to tell */
#define MAX_LOSSES      5
#define MAX_REDIRECTS   4
#define MAX_SLOTS       1024

struct iscsi_session {
    struct iscsi_address *address;
    struct iscsi_context *iscsi; /* NULL: not connected */
    int slot_fd;                 /* holds our place among the sessions of this host */
    uint16_t slot;
    bool fixed;

    GThread *thread;
    int wake_fd;
    GMutex lock;
    GQueue submitted; /* of struct iscsi_command; under `lock`, with: */
    bool closing;

    GQueue waiting; /* the thread's from here on */
    unsigned busy;
    bool lost;
    bool seen;                 /* the unit was there */
    GError *dead;              /* why there is no session any more */
    uint64_t changes, durable; /* changes that were answered; so many of them are on the medium */
    bool lost_writes;          /* atomic */
    const char *news;          /* atomic */
};

/* ---- a name for the session ---------------------------------------------------------------------- */

/* An abstract socket is gone with its process, however that ends, and its names are those of one host. */
static int try_slot(const struct iscsi_address *address, unsigned slot)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    g_autofree char *sum = g_compute_checksum_for_string(G_CHECKSUM_SHA256, address->initiator, -1);
    int length, fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -1;
    length = snprintf(name.sun_path + 1, sizeof(name.sun_path) - 1, "blockmig-iscsi-%.32s-%u", sum, slot);
    if (bind(fd, (struct sockaddr *)&name, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + length)) <
        0) {
        close(fd);
        return -1;
    }
    return fd;
}

static bool take_slot(struct iscsi_session *session, GError **error)
{
    int64_t until = g_get_monotonic_time() + session->address->patience * G_USEC_PER_SEC;

    for (unsigned slot = session->fixed ? 0 : 1; slot < MAX_SLOTS; slot++) {
        session->slot = (uint16_t)slot;
        session->slot_fd = try_slot(session->address, slot);
        while (session->slot_fd < 0 && session->fixed && g_get_monotonic_time() < until) {
            g_usleep(FIRST_DELAY);
            session->slot_fd = try_slot(session->address, slot);
        }
        if (session->slot_fd >= 0)
            return true;
        if (session->fixed)
            break;
    }
    return blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "too many iSCSI sessions of this host at a time");
}

/* ---- connecting ---------------------------------------------------------------------------------- */

static bool set_up(struct iscsi_context *iscsi, const struct iscsi_session *session)
{
    const struct iscsi_address *address = session->address;

    iscsi_set_noautoreconnect(iscsi, 1);
    iscsi_set_timeout(iscsi, LOGIN_TIMEOUT);
    return iscsi_set_targetname(iscsi, address->target) == 0 &&
           iscsi_set_session_type(iscsi, ISCSI_SESSION_NORMAL) == 0 &&
           iscsi_set_header_digest(iscsi, ISCSI_HEADER_DIGEST_NONE_CRC32C) == 0 &&
           iscsi_set_isid_random(iscsi, iscsi_host_number("isid") & 0xffffff, session->slot) == 0 &&
           (!address->ours.user || !address->ours.password ||
            iscsi_set_initiator_username_pwd(iscsi, address->ours.user, address->ours.password) == 0) &&
           (!address->theirs.user || !address->theirs.password ||
            iscsi_set_target_username_pwd(iscsi, address->theirs.user, address->theirs.password) == 0);
}

/* libiscsi gives the status of a login only as a text that ends in "(CLASS << 8 | DETAIL)".  Class 2: it is
 * us whom the target does not want. */
static enum blockmig_error login_error(const char *text)
{
    const char *number = strrchr(text, '(');
    guint64 status = number ? g_ascii_strtoull(number + 1, NULL, 10) : 0;

    return status >> 8 == 2 ? BLOCKMIG_ERROR_REFUSED : BLOCKMIG_ERROR_UNREACHABLE;
}

static bool log_in(struct iscsi_context *iscsi, const struct iscsi_session *session, GError **error)
{
    g_autofree char *portal = g_strdup(session->address->portal);

    for (unsigned i = 0; i < MAX_REDIRECTS; i++) {
        const char *elsewhere;

        if (iscsi_connect_sync(iscsi, portal) != 0)
            return blockmig_fail(error, BLOCKMIG_ERROR_UNREACHABLE, "connecting: %s", iscsi_get_error(iscsi));
        if (iscsi_login_sync(iscsi) == 0)
            return true;
        elsewhere = iscsi_get_target_address(iscsi);
        if (!elsewhere || !*elsewhere || strcmp(elsewhere, portal) == 0)
            break;
        g_free(portal);
        portal = g_strdup(elsewhere);
        iscsi_disconnect(iscsi);
    }
    return blockmig_fail(error, login_error(iscsi_get_error(iscsi)), "logging in: %s",
                         iscsi_get_error(iscsi));
}

static bool connect_once(struct iscsi_session *session, GError **error)
{
    struct iscsi_context *iscsi = iscsi_create_context(session->address->initiator);

    if (!iscsi || !set_up(iscsi, session)) {
        blockmig_fail(error, BLOCKMIG_ERROR_FAILED, "preparing a session: %s",
                      iscsi ? iscsi_get_error(iscsi) : "no memory");
    } else if (log_in(iscsi, session, error)) {
        iscsi_set_timeout(iscsi, COMMAND_TIMEOUT);
        session->iscsi = iscsi;
        session->lost = false;
        return true;
    }
    if (iscsi)
        iscsi_destroy_context(iscsi);
    return false;
}

/* A target that is being restarted is not there, or does not know the unit yet: only who stays away is given
 * up. */
static bool connect_for(struct iscsi_session *session, int64_t until, GError **error)
{
    int64_t delay = FIRST_DELAY;

    for (;;) {
        g_autoptr(GError) local = NULL;

        if (connect_once(session, &local))
            return true;
        if (g_get_monotonic_time() + delay >= until || __atomic_load_n(&session->closing, __ATOMIC_RELAXED)) {
            g_propagate_error(error, g_steal_pointer(&local));
            return false;
        }
        g_usleep(delay);
        delay = MIN(2 * delay, LONGEST_DELAY);
    }
}

/* ---- commands ------------------------------------------------------------------------------------ */

static void finish(struct iscsi_command *command, GError *error)
{
    command->done(command, error);
}

static void wait_and_repeat(struct iscsi_session *session, struct iscsi_command *command)
{
    command->delay = command->delay ? MIN(2 * command->delay, LONGEST_DELAY) : FIRST_DELAY;
    command->due = g_get_monotonic_time() + command->delay;
    g_queue_push_tail(&session->waiting, command);
}

static bool has_patience(const struct iscsi_session *session, const struct iscsi_command *command)
{
    return g_get_monotonic_time() - command->since < session->address->patience * G_USEC_PER_SEC;
}

static void take_sense(struct iscsi_command *command)
{
    const struct scsi_data *data = &command->task->datain;

    /* Two bytes of length stand before the sense data. */
    if (command->answer.status == SCSI_STATUS_CHECK_CONDITION && data->data && data->size > 2)
        scsi_parse_sense(data->data + 2, MIN((size_t)data->size - 2, SCSI_MAX_SENSE), &command->answer);
}

/* A short answer to a read must not pass for what was in the buffer before. */
static bool is_complete(const struct iscsi_command *command)
{
    return command->task->residual_status == SCSI_RESIDUAL_NO_RESIDUAL;
}

static void take_data(struct iscsi_command *command)
{
    const struct scsi_data *data = &command->task->datain;

    if (command->direction != ISCSI_IN || command->whole || !data->data || data->size <= 0)
        return;
    command->received = MIN((size_t)data->size, command->length);
    memcpy(command->buffer, data->data, command->received);
}

static void count_changes(struct iscsi_session *session, const struct iscsi_command *command)
{
    if (command->effect == ISCSI_CHANGES)
        session->changes++;
    else if (command->effect == ISCSI_FLUSHES)
        session->durable = MAX(session->durable, command->mark);
}

/* What to do next with a command that was answered. */
static void judge(struct iscsi_session *session, struct iscsi_command *command)
{
    enum scsi_verdict verdict = scsi_judge(&command->answer);
    GError *error = NULL;

    if (scsi_was_reset(&command->answer) && session->changes > session->durable)
        __atomic_store_n(&session->lost_writes, true, __ATOMIC_RELAXED);
    session->seen = session->seen || verdict == SCSI_GOOD;
    /* A target that is being started learns of its units one after the other. */
    if (session->seen && scsi_is_missing(&command->answer))
        verdict = SCSI_LATER;
    if (verdict == SCSI_LATER && has_patience(session, command)) {
        wait_and_repeat(session, command);
        return;
    }
    if (verdict == SCSI_ATTENTION && command->attentions++ < MAX_ATTENTIONS) {
        if (scsi_news(&command->answer))
            __atomic_store_n(&session->news, scsi_news(&command->answer), __ATOMIC_RELAXED);
        g_queue_push_head(&session->waiting, command);
        return;
    }
    if (verdict == SCSI_GOOD && (command->whole || command->direction == ISCSI_OUT) && !is_complete(command))
        blockmig_fail(&error, BLOCKMIG_ERROR_IO, "the target moved %zu bytes less than it was asked to",
                      command->task->residual);
    if (verdict == SCSI_GOOD && !error) {
        take_data(command);
        count_changes(session, command);
    }
    scsi_free_scsi_task(g_steal_pointer(&command->task));
    finish(command, error);
}

static void free_task(struct iscsi_command *command)
{
    if (command->task)
        scsi_free_scsi_task(g_steal_pointer(&command->task));
}

/* A command at which the target breaks each time is not sent for ever. */
static void lost(struct iscsi_session *session, struct iscsi_command *command)
{
    GError *error = NULL;

    if (++command->losses <= MAX_LOSSES) {
        g_queue_push_head(&session->waiting, command);
        return;
    }
    free_task(command);
    blockmig_fail(&error, BLOCKMIG_ERROR_UNREACHABLE, "the connection broke %u times without an answer",
                  command->losses);
    finish(command, error);
}

static void answered(struct iscsi_context *iscsi, int status, void *data, void *opaque)
{
    struct iscsi_command *command = opaque;
    struct iscsi_session *session = command->session;

    session->busy--;
    /* libiscsi's own: cancelled, broken, timed out. */
    if (status >= SCSI_STATUS_CANCELLED) {
        session->lost = true;
        lost(session, command);
        return;
    }
    command->answer = (struct scsi_answer){.status = (uint8_t)status};
    take_sense(command);
    judge(session, command);
}

static bool send_command(struct iscsi_session *session, struct iscsi_command *command)
{
    static const int directions[] = {SCSI_XFER_NONE, SCSI_XFER_READ, SCSI_XFER_WRITE};

    free_task(command);
    command->task =
        scsi_create_task(SCSI_CDB_BYTES, command->cdb, directions[command->direction], (int)command->length);
    if (!command->task)
        return false;
    if (command->direction == ISCSI_OUT)
        scsi_task_add_data_out_buffer(command->task, (int)command->length, command->buffer);
    else if (command->whole)
        scsi_task_add_data_in_buffer(command->task, (int)command->length, command->buffer);
    if (iscsi_scsi_command_async(session->iscsi, session->address->lun, command->task, answered, NULL,
                                 command) != 0)
        return false;
    command->mark = session->changes;
    session->busy++;
    return true;
}

static void send_waiting(struct iscsi_session *session)
{
    int64_t now = g_get_monotonic_time();
    unsigned count = g_queue_get_length(&session->waiting);

    while (count-- > 0 && session->busy < DEPTH && !session->lost) {
        struct iscsi_command *command = g_queue_pop_head(&session->waiting);

        if (command->due > now) {
            g_queue_push_tail(&session->waiting, command);
        } else if (!send_command(session, command)) {
            g_queue_push_head(&session->waiting, command);
            session->lost = true;
        }
    }
}

/* ---- the thread ---------------------------------------------------------------------------------- */

static void drop_context(struct iscsi_session *session)
{
    struct iscsi_context *iscsi = g_steal_pointer(&session->iscsi);

    if (iscsi)
        iscsi_destroy_context(iscsi); /* what is on its way comes back through answered() */
}

static void fail_all(struct iscsi_session *session)
{
    struct iscsi_command *command;

    while ((command = g_queue_pop_head(&session->waiting))) {
        free_task(command);
        finish(command, g_error_copy(session->dead));
    }
}

static void recover(struct iscsi_session *session)
{
    int64_t until = g_get_monotonic_time() + session->address->patience * G_USEC_PER_SEC;
    g_autoptr(GError) error = NULL;

    drop_context(session);
    if (connect_for(session, until, &error))
        return;
    session->dead = g_error_new(BLOCKMIG_ERROR, BLOCKMIG_ERROR_UNREACHABLE,
                                "the target was lost, and has not come back within %u seconds: %s",
                                session->address->patience, error->message);
}

/* Returns false at the end. */
static bool take_submitted(struct iscsi_session *session)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&session->lock);
    struct iscsi_command *command;

    while ((command = g_queue_pop_head(&session->submitted)))
        g_queue_push_tail(&session->waiting, command);
    return !session->closing;
}

static int next_due(const struct iscsi_session *session)
{
    int64_t now = g_get_monotonic_time(), first = now + G_USEC_PER_SEC;

    for (const GList *item = session->waiting.head; item; item = item->next) {
        const struct iscsi_command *command = item->data;

        if (command->due > now)
            first = MIN(first, command->due);
    }
    return (int)((first - now) / 1000) + 1;
}

static void wait_for_events(struct iscsi_session *session)
{
    struct pollfd fds[] = {{.fd = session->wake_fd, .events = POLLIN}, {.fd = -1}};
    uint64_t count;
    int fd = session->iscsi ? iscsi_get_fd(session->iscsi) : -1;

    if (session->iscsi && fd < 0)
        session->lost = true;
    if (session->lost)
        return;
    if (session->iscsi) {
        fds[1].fd = fd;
        fds[1].events = (short)iscsi_which_events(session->iscsi);
    }
    if (poll(fds, 2, next_due(session)) < 0)
        return;
    if (fds[0].revents)
        (void)!read(session->wake_fd, &count, sizeof(count));
    /* Without events too: that is how libiscsi sees that a command takes too long. */
    if (session->iscsi && iscsi_service(session->iscsi, fds[1].revents) < 0)
        session->lost = true;
}

static void *run_session(void *opaque)
{
    struct iscsi_session *session = opaque;

    while (take_submitted(session)) {
        if (session->lost && !session->dead)
            recover(session);
        if (session->dead)
            fail_all(session);
        else
            send_waiting(session);
        wait_for_events(session);
    }
    return NULL;
}

static void wake(struct iscsi_session *session)
{
    uint64_t one = 1;

    (void)!write(session->wake_fd, &one, sizeof(one));
}

/* ---- what others call ---------------------------------------------------------------------------- */

void iscsi_session_submit(struct iscsi_session *session, struct iscsi_command *command)
{
    command->session = session;
    command->task = NULL;
    command->received = 0;
    command->due = 0;
    command->delay = command->attentions = command->losses = 0;
    command->since = g_get_monotonic_time();
    g_mutex_lock(&session->lock);
    g_queue_push_tail(&session->submitted, command);
    g_mutex_unlock(&session->lock);
    wake(session);
}

struct waiter {
    GMutex lock;
    GCond cond;
    bool finished;
    GError *error;
};

static void run_done(struct iscsi_command *command, GError *error)
{
    struct waiter *waiter = command->opaque;

    g_mutex_lock(&waiter->lock);
    waiter->finished = true;
    waiter->error = error;
    g_cond_signal(&waiter->cond);
    g_mutex_unlock(&waiter->lock);
}

bool iscsi_session_run(struct iscsi_session *session, struct iscsi_command *command, GError **error)
{
    struct waiter waiter = {0};

    g_mutex_init(&waiter.lock);
    g_cond_init(&waiter.cond);
    command->done = run_done;
    /* cppcheck-suppress autoVariables ; it is waited for here */
    command->opaque = &waiter;
    iscsi_session_submit(session, command);
    g_mutex_lock(&waiter.lock);
    while (!waiter.finished)
        g_cond_wait(&waiter.cond, &waiter.lock);
    g_mutex_unlock(&waiter.lock);
    g_mutex_clear(&waiter.lock);
    g_cond_clear(&waiter.cond);
    if (waiter.error)
        g_propagate_error(error, waiter.error);
    return waiter.error == NULL;
}

bool iscsi_session_must(struct iscsi_session *session, struct iscsi_command *command, const char *what,
                        GError **error)
{
    if (!iscsi_session_run(session, command, error)) {
        g_prefix_error(error, "%s: ", what);
        return false;
    }
    return command->answer.status == 0 || scsi_set_error(error, &command->answer, what);
}

bool iscsi_session_lost_writes(const struct iscsi_session *session)
{
    return __atomic_load_n(&session->lost_writes, __ATOMIC_RELAXED);
}

const char *iscsi_session_news(const struct iscsi_session *session)
{
    return __atomic_load_n(&session->news, __ATOMIC_RELAXED);
}

const struct iscsi_address *iscsi_session_address(const struct iscsi_session *session)
{
    return session->address;
}

/* The unit is there: its first attentions, which every new session gets, are heard here. */
static bool greet(struct iscsi_session *session, GError **error)
{
    struct iscsi_command command = {.direction = ISCSI_NO_DATA};

    cdb_test_unit_ready(command.cdb);
    return iscsi_session_must(session, &command, "looking for the unit", error);
}

struct iscsi_session *iscsi_session_open(struct iscsi_address *address, unsigned flags, GError **error)
{
    struct iscsi_session *session = g_new0(struct iscsi_session, 1);

    session->address = address;
    session->fixed = flags & ISCSI_FIXED;
    session->slot_fd = -1;
    g_mutex_init(&session->lock);
    g_queue_init(&session->submitted);
    g_queue_init(&session->waiting);
    session->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (session->wake_fd < 0)
        blockmig_set_errno(error, errno, "preparing a session");
    else if (take_slot(session, error) && connect_once(session, error)) {
        session->thread = g_thread_new("iscsi", run_session, session);
        if (greet(session, error))
            return session;
    }
    iscsi_session_close(session);
    return NULL;
}

void iscsi_session_close(struct iscsi_session *session)
{
    if (!session)
        return;
    if (session->thread) {
        g_mutex_lock(&session->lock);
        __atomic_store_n(&session->closing, true, __ATOMIC_RELAXED);
        g_mutex_unlock(&session->lock);
        wake(session);
        g_thread_join(session->thread);
    }
    if (session->iscsi && !session->lost)
        iscsi_logout_sync(session->iscsi);
    drop_context(session);
    g_clear_error(&session->dead);
    if (session->slot_fd >= 0)
        close(session->slot_fd);
    if (session->wake_fd >= 0)
        close(session->wake_fd);
    g_mutex_clear(&session->lock);
    iscsi_address_free(session->address);
    g_free(session);
}
