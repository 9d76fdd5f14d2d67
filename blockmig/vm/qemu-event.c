/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Events that a migration cares about, and where the guest's agent listens. */
#include "blockmig/vm/qemu.h"
#include "formats/error.h"

#include <string.h>

struct event_kind {
    const char *name;
    enum vm_event_type type;
    const char *subject[3]; /* members of its data; the first that is a text and not empty counts */
};

static const struct event_kind kinds[] = {
    {"STOP", VM_EVENT_STOP, {NULL}},
    {"RESUME", VM_EVENT_RESUME, {NULL}},
    {"SHUTDOWN", VM_EVENT_SHUTDOWN, {"reason"}},
    {"RESET", VM_EVENT_RESET, {"reason"}},
    {"GUEST_PANICKED", VM_EVENT_PANIC, {"action"}},
    {"DEVICE_DELETED", VM_EVENT_DEVICE_DELETED, {"device", "path"}},
    {"DEVICE_TRAY_MOVED", VM_EVENT_MEDIUM_CHANGED, {"id", "device"}},
    {"BLOCK_IO_ERROR", VM_EVENT_IO_ERROR, {"node-name", "device"}},
    {"BLOCK_WRITE_THRESHOLD", VM_EVENT_WRITE_THRESHOLD, {"node-name"}},
    {"BLOCK_JOB_READY", VM_EVENT_JOB, {"device"}},
    {"BLOCK_JOB_COMPLETED", VM_EVENT_JOB, {"device"}},
    {"BLOCK_JOB_CANCELLED", VM_EVENT_JOB, {"device"}},
    {"BLOCK_JOB_ERROR", VM_EVENT_JOB, {"device"}},
};

static const struct event_kind *kind_of(const char *name)
{
    for (guint i = 0; i < G_N_ELEMENTS(kinds); i++)
        if (strcmp(kinds[i].name, name) == 0)
            return &kinds[i];
    return NULL;
}

static bool is_known(const char *name, json_t *data, void *opaque)
{
    return kind_of(name) != NULL;
}

/* STATUS_CHANGE of jobs, changes of the clock and the like: nobody asks for them here. */
static bool is_unknown(const char *name, json_t *data, void *opaque)
{
    return !kind_of(name);
}

static char *detail_of(const struct event_kind *kind, json_t *data)
{
    const char *operation = member_text(data, "operation"), *reason = member_text(data, "reason");
    const char *fault = member_text(data, "error");

    if (kind->type == VM_EVENT_IO_ERROR)
        return g_strdup_printf("%s: %s", operation ? operation : "?", reason ? reason : "?");
    if (kind->type == VM_EVENT_JOB)
        return fault ? g_strdup_printf("%s: %s", kind->name, fault) : g_strdup(kind->name);
    return NULL;
}

bool qemu_next_event(struct vm *vm, unsigned timeout, struct vm_event **event, GError **error)
{
    struct qmp *qmp = qemu_of(vm)->qmp;
    g_autoptr(json_t) raw = NULL;
    const struct event_kind *kind;

    *event = NULL;
    qmp_drop_events(qmp, is_unknown, NULL);
    if (!qmp_wait_event(qmp, is_known, NULL, timeout, &raw, error))
        return false;
    if (!raw)
        return true;
    kind = kind_of(qmp_event_name(raw));
    *event = g_new0(struct vm_event, 1);
    (*event)->type = kind->type;
    (*event)->time = qmp_event_time(raw);
    (*event)->detail = detail_of(kind, qmp_event_data(raw));
    (*event)->no_space = member_flag(qmp_event_data(raw), "nospace");
    for (guint i = 0; kind->subject[i] && !(*event)->subject; i++) {
        const char *subject = member_text(qmp_event_data(raw), kind->subject[i]);

        (*event)->subject = subject && *subject ? g_strdup(subject) : NULL;
    }
    return true;
}

/* ---- the guest agent ---- */

#define AGENT_PORT "org.qemu.guest_agent.0"

/* The value of a property if it is a text, the caller's. */
static char *text_property(struct qmp *qmp, const char *path, const char *name)
{
    json_t *arguments = json_pack("{s:s, s:s}", "path", path, "property", name);
    g_autoptr(json_t) value = qmp_command(qmp, "qom-get", arguments, QMP_TIMEOUT, NULL);

    return g_strdup(json_string_value(value));
}

/* The chardev behind the agent's port among the devices below `parent`; NULL: not there. */
static char *agent_chardev(struct qmp *qmp, const char *parent)
{
    g_autoptr(json_t) list =
        qmp_command(qmp, "qom-list", json_pack("{s:s}", "path", parent), QMP_TIMEOUT, NULL);
    size_t i;
    json_t *entry;

    json_array_foreach(list, i, entry)
    {
        g_autofree char *path = g_strdup_printf("%s/%s", parent, member_text(entry, "name"));
        g_autofree char *port = NULL;

        if (g_strcmp0(member_text(entry, "type"), "child<virtserialport>") != 0)
            continue;
        port = text_property(qmp, path, "name");
        if (g_strcmp0(port, AGENT_PORT) == 0)
            return text_property(qmp, path, "chardev");
    }
    return NULL;
}

/* "unix:/path,server=on", with "disconnected:" in front while nobody is connected. */
static char *socket_path(const char *filename)
{
    const char *start = filename ? strstr(filename, "unix:") : NULL;
    const char *end;

    if (!start)
        return NULL;
    start += strlen("unix:");
    end = strstr(start, ",server");
    return end ? g_strndup(start, end - start) : g_strdup(start);
}

bool qemu_agent_path(struct qemu *qemu, char **path, GError **error)
{
    g_autofree char *label = agent_chardev(qemu->qmp, "/machine/peripheral");
    g_autoptr(json_t) list = NULL;
    size_t i;
    json_t *entry;

    *path = NULL;
    if (!label)
        label = agent_chardev(qemu->qmp, "/machine/peripheral-anon");
    list = qmp_command(qemu->qmp, "query-chardev", NULL, QMP_TIMEOUT, error);
    if (!list)
        return false;
    json_array_foreach(list, i, entry)
    {
        if (label && !*path && g_strcmp0(member_text(entry, "label"), label) == 0)
            *path = socket_path(member_text(entry, "filename"));
    }
    return true;
}
