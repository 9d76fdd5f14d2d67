/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the files of the QEMU implementation share.  The functions are the members of vm_ops. */
#ifndef BLOCKMIG_VM_QEMU_H
#define BLOCKMIG_VM_QEMU_H

#include "blockmig/vm/agent.h"
#include "blockmig/vm/qmp.h"
#include "blockmig/vm/vm.h"

struct qemu {
    struct vm vm;
    struct qmp *qmp;
    struct agent *agent; /* NULL: not frozen */
};

static inline struct qemu *qemu_of(struct vm *vm)
{
    return (struct qemu *)vm;
}

/* Of an object, or NULL, 0, false when the member is not there or of another type. */
static inline const char *member_text(json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

static inline bool member_flag(json_t *object, const char *key)
{
    return json_is_true(json_object_get(object, key));
}

/* Negative numbers count as 0. */
static inline uint64_t member_size(json_t *object, const char *key)
{
    json_int_t value = json_integer_value(json_object_get(object, key));

    return value > 0 ? value : 0;
}

/* qemu-describe.c */
bool qemu_describe(struct vm *vm, struct vm_description *description, GError **error);
bool qemu_active_nodes(struct vm *vm, const char *const *qdevs, unsigned count, char **nodes, GError **error);
/* The entry of query-block or query-blockstats for a device, borrowed from `list`; NULL: none. */
json_t *qemu_find_device(json_t *list, const char *qdev);
/* Is a driver of this name one that only passes requests through? */
bool qemu_is_filter(const char *driver);

/* qemu-node.c */
bool qemu_can_pivot(struct vm *vm, GError **error);
bool qemu_add_node(struct vm *vm, const struct vm_node *node, GError **error);
bool qemu_hand_over(struct vm *vm, const struct vm_node *node, char **name, GError **error);
bool qemu_remove_node(struct vm *vm, const char *node, GError **error);
bool qemu_set_backings(struct vm *vm, const struct vm_rebase *disks, unsigned count, GError **error);
bool qemu_keep_open(struct vm *vm, const struct vm_disk *disk, GError **error);
bool qemu_forget_file(struct vm *vm, const char *path, GError **error);
bool qemu_snapshot(struct vm *vm, const struct vm_snapshot *disks, unsigned count, GError **error);
bool qemu_set_write_threshold(struct vm *vm, const char *node, uint64_t offset, GError **error);

/* qemu-uri.c */
/* Driver and place of what a URI names, for blockdev-add; the caller's.  REFUSED: QEMU is not told such URIs.
 * After it was used, qemu_uri_forget_secret() takes a password back that QEMU was told. */
json_t *qemu_uri_arguments(struct qmp *qmp, const char *uri, GError **error);
void qemu_uri_forget_secret(struct qmp *qmp, const json_t *arguments);
/* The URI of what QEMU calls a node of a network; the caller's; NULL: it has none. */
char *qemu_uri_of(const char *filename);

/* qemu-fdset.c */
/* Hands a descriptor over: "/dev/fdset/N", the caller's; NULL on error. */
char *qemu_fdset_add(struct qmp *qmp, const char *node, int fd, GError **error);
/* *there: a descriptor was handed over for a node of this name. */
bool qemu_fdset_exists(struct qmp *qmp, const char *node, bool *there, GError **error);
/* Takes it back; none is no error. */
bool qemu_fdset_remove(struct qmp *qmp, const char *node, GError **error);
/* The name that the file behind "/dev/fdset/N" has now, from what query-fdsets returned; the caller's; NULL:
 * not known. */
char *qemu_fdset_file(json_t *sets, const char *name, pid_t pid);

/* qemu-job.c */
bool qemu_commit(struct vm *vm, const struct vm_commit *commit, GError **error);
GPtrArray *qemu_jobs(struct vm *vm, GError **error);
bool qemu_job_wait(struct vm *vm, const char *id, enum vm_job_state wanted, unsigned timeout,
                   struct vm_job *job, GError **error);
bool qemu_job_complete(struct vm *vm, const char *id, GError **error);
bool qemu_job_cancel(struct vm *vm, const char *id, unsigned timeout, GError **error);
bool qemu_job_dismiss(struct vm *vm, const char *id, GError **error);

/* Has it been, by somebody else, since it was last paused here? */
bool qemu_was_resumed(struct vm *vm);

/* qemu-pivot.c */
bool qemu_pivot(struct vm *vm, const struct vm_pivot *disks, unsigned count, unsigned timeout,
                GError **error);
bool qemu_end_pivots(struct vm *vm, unsigned timeout, GError **error);

/* qemu-event.c */
bool qemu_next_event(struct vm *vm, unsigned timeout, struct vm_event **event, GError **error);
/* The path of the guest agent's socket, the caller's; *path is NULL if the machine has none. */
bool qemu_agent_path(struct qemu *qemu, char **path, GError **error);

#endif
