/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/remote/lead.h"

#include "blockmig/remote/led.h"
#include "blockmig/storage/agent-client.h"
#include "blockmig/storage/names.h"
#include "formats/error.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define CHANNEL     3           /* descriptor of the process that leads */
#define MAX_REQUEST (64u << 10) /* bytes */
#define REACH_SECS  "8"         /* that an agent may be silent */

static int channel = -1; /* of the agent, to it */

/* ---- acts -------------------------------------------------------------------------------------------- */

static bool ask_agent(const char *file, struct name_info *info, GError **error)
{
    g_auto(agent_address_t) address = {NULL};
    struct agent_client *client;
    json_t *machines;
    bool writable;

    if (!agent_address_parse(file, &address, error) || !(client = agent_client_get(&address, error)) ||
        !(machines = agent_ask_json(client, "GET", "/v1/machines", NULL, NULL, error)))
        return false;
    writable = json_object_get(json_object_get(machines, "datastores"), address.datastore) != NULL;
    json_decref(machines);
    return (writable || blockmig_fail(error, BLOCKMIG_ERROR_REFUSED,
                                      "there is no datastore '%s' that may be written", address.datastore)) &&
           name_look(file, info, error);
}

/* That somebody else does not answer is no silence of this agent. */
static json_t *reach(const json_t *arguments, GError **error)
{
    const char *file = led_get_text(arguments, "file", error);
    struct name_info info;

    if (!file)
        return NULL;
    if (!g_str_has_prefix(file, "blockmig://"))
        return blockmig_fail(error, BLOCKMIG_ERROR_USAGE, "%s: blockmig://HOST/DATASTORE is expected", file),
               NULL;
    g_setenv("BLOCKMIG_AGENT_TIMEOUT", REACH_SECS, TRUE);
    if (led_has_program(error) && ask_agent(file, &info, error))
        return json_pack("{s:b}", "seen", info.kind == NAME_FILE);
    (*error)->code = BLOCKMIG_ERROR_REFUSED;
    return NULL;
}

static const struct {
    const char *name;
    json_t *(*run)(const json_t *arguments, GError **error);
} acts[] = {{"begin", led_begin}, {"look", led_look}, {"stop", led_stop}, {"reach", reach}};

/* ---- the process ------------------------------------------------------------------------------------ */

static void send_all(int fd, const char *text)
{
    size_t length = strlen(text);

    for (ssize_t done; length > 0 && (done = send(fd, text, length, MSG_NOSIGNAL)) > 0;) {
        text += done;
        length -= (size_t)done;
    }
}

static void reply(int fd, json_t *answer, const GError *error)
{
    json_t *object = answer ? json_pack("{s:o}", "answer", answer)
                            : json_pack("{s:i, s:s}", "code", error->code, "error", error->message);
    g_autofree char *text = json_dumps(object, JSON_COMPACT);

    send_all(fd, text);
    json_decref(object);
    close(fd);
}

/* In a process of its own, for each request. */
static void serve(int fd, const char *text, size_t length)
{
    json_t *request = json_loadb(text, length, 0, NULL), *answer = NULL;
    const char *act = json_string_value(json_object_get(request, "act"));
    GError *error = NULL;

    for (unsigned i = 0; i < G_N_ELEMENTS(acts); i++)
        if (g_strcmp0(act, acts[i].name) == 0)
            answer = acts[i].run(json_object_get(request, "arguments"), &error);
    if (!answer && !error)
        blockmig_fail(&error, BLOCKMIG_ERROR_USAGE, "nothing of that kind is known");
    reply(fd, answer, error);
    led_stay();
}

static ssize_t receive(char *buffer, size_t size, int *fd)
{
    char control[CMSG_SPACE(sizeof(int))];
    struct iovec part = {.iov_base = buffer, .iov_len = size};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
    ssize_t length = recvmsg(CHANNEL, &message, MSG_CMSG_CLOEXEC);
    struct cmsghdr *header = length > 0 ? CMSG_FIRSTHDR(&message) : NULL;

    *fd = -1;
    if (header && header->cmsg_type == SCM_RIGHTS && header->cmsg_len == CMSG_LEN(sizeof(int)))
        memcpy(fd, CMSG_DATA(header), sizeof(int));
    return length;
}

bool lead_begin(const struct agent_machines *machines, const char *directory, int *theirs, GError **error)
{
    int ends[2];

    led_set_up(machines->program, directory, machines->libvirt);
    g_setenv("BLOCKMIG_TPM_DIRECTORY", machines->tpm->directory, TRUE);
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
        return blockmig_set_errno(error, errno, "a socket");
    channel = ends[0];
    *theirs = ends[1];
    return true;
}

int lead_main(int theirs)
{
    g_autofree char *buffer = g_malloc(MAX_REQUEST);
    sigset_t none;
    ssize_t length;
    int fd;

    prctl(PR_SET_NAME, "blockmigd-lead");
    dup2(theirs, CHANNEL);
    closefrom(CHANNEL + 1);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGCHLD, SIG_IGN);
    while ((length = receive(buffer, MAX_REQUEST, &fd)) > 0) {
        if (fd >= 0 && fork() == 0) {
            close(CHANNEL);
            serve(fd, buffer, (size_t)length);
            return 0;
        }
        if (fd >= 0)
            close(fd);
    }
    return 0;
}

/* ---- the agent -------------------------------------------------------------------------------------- */

static bool post(const char *text, int fd)
{
    char control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec part = {.iov_base = (char *)text, .iov_len = strlen(text)};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);

    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &fd, sizeof(int));
    return part.iov_len < MAX_REQUEST && sendmsg(channel, &message, MSG_NOSIGNAL) >= 0;
}

/* All that comes; the caller's. */
static GByteArray *read_all(int fd)
{
    GByteArray *bytes = g_byte_array_new();
    uint8_t part[4096];
    ssize_t done;

    while ((done = read(fd, part, sizeof(part))) > 0 || (done < 0 && errno == EINTR))
        g_byte_array_append(bytes, part, (guint)MAX(done, 0));
    return bytes;
}

static json_t *converse(const char *text, GError **error)
{
    int ends[2];
    g_autoptr(GByteArray) bytes = NULL;
    json_t *object;
    bool posted;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
        return blockmig_set_errno(error, errno, "a socket"), NULL;
    posted = post(text, ends[1]);
    close(ends[1]);
    bytes = posted ? read_all(ends[0]) : NULL;
    close(ends[0]);
    object = bytes ? json_loadb((const char *)bytes->data, bytes->len, 0, NULL) : NULL;
    if (!object)
        blockmig_fail(error, BLOCKMIG_ERROR_FAILED,
                      "the process that leads migrations does not answer: the agent has to be started anew");
    return object;
}

json_t *lead_ask(const char *act, json_t *arguments, GError **error)
{
    json_t *request = json_pack("{s:s, s:o}", "act", act, "arguments", arguments ? arguments : json_object());
    g_autofree char *text = json_dumps(request, JSON_COMPACT);
    json_t *object, *answer;

    json_decref(request);
    if (channel < 0)
        return blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "this agent was started without [machines]"),
               NULL;
    if (!(object = converse(text, error)))
        return NULL;
    answer = json_incref(json_object_get(object, "answer"));
    if (!answer)
        blockmig_fail(error, (int)json_integer_value(json_object_get(object, "code")), "%s",
                      json_string_value(json_object_get(object, "error")));
    json_decref(object);
    return answer;
}
