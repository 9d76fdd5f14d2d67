/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Images that QEMU opens for us, and the snapshot that puts one on top of each disk. */
#include "blockmig/vm/qemu.h"
#include "formats/error.h"

#include <string.h>

static bool need_command(struct qmp *qmp, const char *command, GError **error)
{
    GError *fault = NULL;

    if (qmp_has_command(qmp, command, &fault))
        return true;
    if (fault)
        g_propagate_error(error, fault);
    else
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED, "this QEMU has no \"%s\"", command);
    return false;
}

static bool need_value(struct qmp *qmp, const char *command, const char *argument, const char *value,
                       GError **error)
{
    GError *fault = NULL;

    if (qmp_has_value(qmp, command, argument, value, &fault))
        return true;
    if (fault)
        g_propagate_error(error, fault);
    else
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED, "this QEMU's \"%s\" has no \"%s\": \"%s\"",
                    command, argument, value);
    return false;
}

bool qemu_can_pivot(struct vm *vm, GError **error)
{
    static const char *const commands[] = {
        "blockdev-add", "blockdev-del", "blockdev-snapshot", "blockdev-mirror",         "block-commit",
        "transaction",  "query-jobs",   "job-dismiss",       "query-named-block-nodes",
    };
    struct qmp *qmp = qemu_of(vm)->qmp;

    for (guint i = 0; i < G_N_ELEMENTS(commands); i++)
        if (!need_command(qmp, commands[i], error))
            return false;
    return need_value(qmp, "blockdev-mirror", "sync", "none", error) &&
           need_value(qmp, "blockdev-add", "driver", "qcow2", error);
}

bool qemu_can_mirror(struct vm *vm, GError **error)
{
    return qemu_can_pivot(vm, error) &&
           need_value(qemu_of(vm)->qmp, "blockdev-mirror", "copy-mode", "write-blocking", error);
}

static json_t *cache_of(const struct vm_node *node)
{
    return json_pack("{s:b, s:b}", "direct", node->direct, "no-flush", node->no_flush);
}

static bool has_backing(const char *format)
{
    return strcmp(format, "qcow2") == 0 || strcmp(format, "qcow") == 0 || strcmp(format, "qed") == 0 ||
           strcmp(format, "vmdk") == 0;
}

/* The arguments of blockdev-add.  "backing" is always said where there could be one: a name in a header is
 * not opened because it stands there. */
static json_t *node_arguments(const struct vm_node *node)
{
    /* QEMU refuses detect-zeroes=unmap without discard=unmap. */
    const char *discard = node->discard || g_strcmp0(node->detect_zeroes, "unmap") == 0 ? "unmap" : "ignore";
    json_t *file = json_pack("{s:s, s:s, s:s, s:b, s:o}", "driver",
                             node->block_device ? "host_device" : "file", "filename", node->filename,
                             "discard", discard, "read-only", node->read_only, "cache", cache_of(node));
    json_t *arguments =
        json_pack("{s:s, s:s, s:s, s:s, s:b, s:o, s:o}", "driver", node->format, "node-name", node->name,
                  "discard", discard, "detect-zeroes", node->detect_zeroes ? node->detect_zeroes : "off",
                  "read-only", node->read_only, "cache", cache_of(node), "file", file);

    if (arguments && has_backing(node->format))
        json_object_set_new(arguments, "backing", node->backing ? json_string(node->backing) : json_null());
    return arguments;
}

bool qemu_add_node(struct vm *vm, const struct vm_node *node, GError **error)
{
    json_t *arguments;

    if (strlen(node->name) > VM_NODE_NAME_MAX) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED, "node name \"%s\" has more than %d bytes",
                    node->name, VM_NODE_NAME_MAX);
        return false;
    }
    arguments = node_arguments(node);
    if (!arguments) {
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_REFUSED,
                    "file name is not UTF-8: QMP cannot say it");
        return false;
    }
    if (qmp_do(qemu_of(vm)->qmp, "blockdev-add", arguments, QMP_TIMEOUT, error))
        return true;
    g_prefix_error(error, "opening %s as \"%s\": ", node->filename, node->name);
    return false;
}

/* *there is false if no node has this name. */
static bool node_exists(struct qmp *qmp, const char *node, bool *there, GError **error)
{
    g_autoptr(json_t) nodes =
        qmp_command(qmp, "query-named-block-nodes", json_pack("{s:b}", "flat", true), QMP_TIMEOUT, error);
    size_t i;
    json_t *entry;

    *there = false;
    json_array_foreach(nodes, i, entry)
    {
        *there |= g_strcmp0(member_text(entry, "node-name"), node) == 0;
    }
    return nodes != NULL;
}

bool qemu_remove_node(struct vm *vm, const char *node, GError **error)
{
    struct qmp *qmp = qemu_of(vm)->qmp;
    GError *fault = NULL;
    bool there;

    if (qmp_do(qmp, "blockdev-del", json_pack("{s:s}", "node-name", node), QMP_TIMEOUT, &fault))
        return true;
    if (g_error_matches(fault, BLOCKMIG_ERROR, BLOCKMIG_ERROR_FAILED) &&
        node_exists(qmp, node, &there, NULL) && !there) {
        g_error_free(fault);
        return true;
    }
    g_propagate_prefixed_error(error, fault, "closing \"%s\": ", node);
    return false;
}

static json_t *snapshot_actions(const struct vm_snapshot *disks, unsigned count)
{
    json_t *actions = json_array();

    for (unsigned i = 0; i < count; i++)
        json_array_append_new(actions, json_pack("{s:s, s:{s:s, s:s}}", "type", "blockdev-snapshot", "data",
                                                 "node", disks[i].node, "overlay", disks[i].overlay.name));
    return json_pack("{s:o}", "actions", actions);
}

/* A transaction is all or nothing; so the overlays only have to be closed again. */
bool qemu_snapshot(struct vm *vm, const struct vm_snapshot *disks, unsigned count, GError **error)
{
    unsigned open = 0;

    while (open < count && qemu_add_node(vm, &disks[open].overlay, error))
        open++;
    if (open == count &&
        qmp_do(qemu_of(vm)->qmp, "transaction", snapshot_actions(disks, count), QMP_TIMEOUT, error))
        return true;
    while (open-- > 0)
        qemu_remove_node(vm, disks[open].overlay.name, NULL);
    g_prefix_error(error, "snapshot of %u disks: ", count);
    return false;
}

bool qemu_set_write_threshold(struct vm *vm, const char *node, uint64_t offset, GError **error)
{
    json_t *arguments = json_pack("{s:s, s:I}", "node-name", node, "write-threshold", (json_int_t)offset);

    return qmp_do(qemu_of(vm)->qmp, "block-set-write-threshold", arguments, QMP_TIMEOUT, error);
}
